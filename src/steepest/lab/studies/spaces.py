"""What is tuned: points, grids of them, and when a grid must grow because the best point lies on its edge."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from steepest.lab.config import Range, StudyConfig, StudyMethod, canonical

Point = dict[str, Any]
"""A value for each axis: "lr" and options."""

LADDER = 2.0  # the factor between neighbours of a grid that is made from a number of trials


def key(point: Mapping[str, Any]) -> str:
    """What identifies a point, whatever the order of its axes."""
    return canonical(point)


@dataclass(frozen=True)
class Judgement:
    """What the tried points say.

    Attributes:
        best: the point of the least loss; None when all diverged.
        open_axes: axes on whose edge it lies, so that a better point may lie outside.
        beyond: for each of these that can grow, the next value outside.
    """

    best: Point | None
    open_axes: tuple[str, ...] = ()
    beyond: Mapping[str, float] | None = None


@dataclass(frozen=True)
class Grid:
    """Every combination of the values of its axes. Lists of numbers are sorted; other values have no edge."""

    axes: Mapping[str, tuple[Any, ...]]

    def __post_init__(self) -> None:
        ordered = {name: tuple(sorted(v) if _numbers(v) else v) for name, v in self.axes.items()}
        object.__setattr__(self, "axes", ordered)

    def points(self) -> list[Point]:
        """All combinations, the last axis varying fastest."""
        return [dict(zip(self.axes, values, strict=True)) for values in itertools.product(*self.axes.values())]

    def grown(self, beyond: Mapping[str, float]) -> Grid:
        """The grid with one more value on some axes."""
        return Grid({name: (*v, beyond[name]) if name in beyond else v for name, v in self.axes.items()})

    def judge(self, losses: Mapping[str, float | None], allowed: Callable[[Point], bool] | None = None) -> Judgement:
        """Find the best point and the edges that it lies on.

        A grid whose points have all diverged grows towards lower learning rates. An axis with one value was somebody's
        choice and has no edge; nor has a value beyond which the method allows none (a weight decay of 0).

        Args:
            losses: by the key of each point; None for a run that diverged or failed.
            allowed: whether the method accepts a point.
        """
        finished = [(loss, i) for i, p in enumerate(self.points()) if _finite(loss := losses[key(p)])]
        best = self.points()[min(finished)[1]] if finished else None
        beyond: dict[str, float] = {}
        for name, values in self.axes.items():
            if len(values) < 2 or not _numbers(values) or (best is None and name != "lr"):
                continue
            if best is not None and best[name] == values[-1]:
                outside = _outside(values[-1], values[-2])
            elif best is None or best[name] == values[0]:
                outside = _outside(values[0], values[1])
            else:
                continue
            inside = best or dict(zip(self.axes, (v[0] for v in self.axes.values()), strict=True))
            if (
                outside is not None
                and outside not in values
                and (allowed is None or allowed({**inside, name: outside}))
            ):
                beyond[name] = outside
        return Judgement(best, tuple(beyond), beyond)


def choose(grid: Sequence[float], losses: Mapping[float, float | None]) -> tuple[float | None, bool, float | None]:
    """Choose a learning rate by its loss.

    Args:
        grid: learning rates.
        losses: their losses; None for a run that diverged or failed.

    Returns:
        The best rate (None when every run diverged), whether it lies on the edge of the grid, and the next value beyond
        that edge (None inside the grid, or when the grid is a single rate that somebody fixed).
    """
    found = Grid({"lr": tuple(grid)}).judge({key({"lr": lr}): loss for lr, loss in losses.items()})
    beyond = (found.beyond or {}).get("lr")
    return (found.best["lr"] if found.best else None), beyond is not None, beyond


def starting_grid(method: StudyMethod, study: StudyConfig, own: Sequence[float]) -> Grid:
    """The grid of a method before it grows.

    Args:
        method: with its listed values, if any.
        study: `trials` makes a ladder of learning rates where the method lists none.
        own: the method's own learning rates.
    """
    axes = {name: axis for name, axis in method.space.items() if not isinstance(axis, Range)}
    if "lr" in axes:
        return Grid(axes)
    rates: Sequence[float] = method.grid or own
    if method.grid is None and study.trials is not None and not axes:
        middle = own[(len(own) - 1) // 2]
        rates = [_three_digits(middle * LADDER ** (i - (study.trials - 1) // 2)) for i in range(study.trials)]
    return Grid({"lr": tuple(rates), **axes})


def ranges(method: StudyMethod, own: Sequence[float]) -> dict[str, Range | tuple[Any, ...]]:
    """The axes of a sampled search; learning rates range a factor of 2 beyond the method's own grid, unless given."""
    rates = method.grid or own
    default = Range(low=min(rates) / LADDER, high=max(rates) * LADDER)
    return {"lr": default} | dict(method.space)


def on_edge(axis: Range, value: float, trials: int) -> bool:
    """Whether the best of so many sampled values lies so near an end that a better one may lie outside."""
    scale: Callable[[float], float] = math.log if axis.log else float
    place = (scale(value) - scale(axis.low)) / (scale(axis.high) - scale(axis.low))
    return min(place, 1 - place) < 1 / (2 * trials)


def _numbers(values: Sequence[Any]) -> bool:
    return all(isinstance(v, int | float) and not isinstance(v, bool) for v in values)


def _finite(loss: float | None) -> bool:
    return loss is not None and math.isfinite(loss)


def _outside(edge: float, inner: float) -> float | None:
    """The value that continues a geometric sequence; a whole number stays one. None where there is none."""
    if edge == 0 or math.isinf(edge):
        return None
    factor = edge / inner if inner > 0 and not math.isinf(inner) else LADDER ** (1 if edge > inner else -1)
    if isinstance(edge, int):
        return round(edge * factor)
    return _three_digits(edge * factor)


def _three_digits(value: float) -> float:
    return float(f"{value:.3g}")
