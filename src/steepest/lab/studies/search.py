"""Where the points of a method come from: a grid that may grow, or a sampler of Optuna that the whole folder shares."""

from __future__ import annotations

import hashlib
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from steepest.lab.config import Range, Search
from steepest.lab.studies.spaces import Grid, Judgement, Point, key, on_edge

if TYPE_CHECKING:
    import optuna

Losses = Mapping[str, float | None]


class Tuning(Protocol):
    """The tuning of one method."""

    def axes(self) -> dict[str, Any]:
        """The values listed or tried of each axis, or the range it is drawn from."""

    def points(self) -> list[Point]:
        """The points tried or to be tried, as far as they are known now."""

    def judge(self, losses: Losses, grow: bool = True) -> tuple[Judgement, bool]:
        """What the points say (all of them are known), and whether there are more to try now.

        Args:
            losses: by the key of each point; None for a run that diverged or failed.
            grow: whether a grid may grow to points that nobody has tried.
        """

    def extension(self, point: Point) -> int:
        """How often the grid had grown when this point came in; 0 for a first one."""


class GridTuning:
    """Every combination of listed values, growing at the edges at most `extend` times along an axis.

    Args:
        grid: the listed values.
        extend: growths of an axis.
        allowed: whether the method accepts a point.
        tried: points whose runs are over. The grid grows to them again, even where `extend` was more then.
    """

    def __init__(self, grid: Grid, extend: int, allowed: Callable[[Point], bool], tried: Sequence[Point] = ()) -> None:
        self._first, self._grid, self._extend, self._allowed, self._tried = grid, grid, extend, allowed, tried
        self._rounds = {key(point): 0 for point in grid.points()}

    def axes(self) -> dict[str, Any]:
        """All values, those beyond the first edges too."""
        return {name: list(values) for name, values in self._grid.axes.items()}

    def points(self) -> list[Point]:
        """All combinations."""
        return self._grid.points()

    def judge(self, losses: Losses, grow: bool = True) -> tuple[Judgement, bool]:
        """Judge, and grow where the best point is on an edge that may still move."""
        found = self._grid.judge(losses, self._allowed)
        may = {
            name: value
            for name, value in (found.beyond or {}).items()
            if (grow and len(self._grid.axes[name]) - len(self._first.axes[name]) < self._extend)
            or any(point.get(name) == value for point in self._tried)
        }
        if not may:
            return found, False
        self._grid = self._grid.grown(may)
        number = 1 + max(self._rounds.values())
        for point in self._grid.points():
            self._rounds.setdefault(key(point), number)
        return found, True

    def extension(self, point: Point) -> int:
        """The round of growth in which the point came in."""
        return self._rounds[key(point)]


class SampledTuning:
    """Points drawn by Optuna; its journal file in the study's folder is shared by all workers.

    Args:
        journal: the file.
        name: of the method's part in it.
        axes: ranges, or lists of values of which one is drawn.
        kind: "random" and "quasi-random" draw all points at once, so that they do not depend on the order in which runs
            end; "tpe" draws one at a time, and looks at the losses so far.
        trials: how many points in all.
        seed: of the sampler.
    """

    def __init__(
        self,
        journal: Path,
        name: str,
        axes: Mapping[str, Range | Sequence[Any]],
        *,
        kind: Search,
        trials: int,
        seed: int,
    ) -> None:
        import optuna
        from optuna.storages import JournalStorage
        from optuna.storages.journal import JournalFileBackend

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._axes, self._kind, self._trials, self._seed, self._name = dict(axes), kind, trials, seed, name
        self._study = optuna.create_study(
            storage=JournalStorage(JournalFileBackend(str(journal))),
            study_name=name,
            load_if_exists=True,
            sampler=self._sampler(0),
        )

    def _sampler(self, number: int) -> optuna.samplers.BaseSampler:
        import optuna

        # Seeded by the number of the trial, so that a stopped study goes on as if it had not been.
        digest = hashlib.sha256(f"{self._seed} {self._name} {number}".encode()).digest()
        seed = int.from_bytes(digest[:4], "big")
        if self._kind == "random":
            return optuna.samplers.RandomSampler(seed=seed)
        if self._kind == "tpe":
            return optuna.samplers.TPESampler(seed=seed, n_startup_trials=min(10, max(2, self._trials // 3)))
        first = int.from_bytes(hashlib.sha256(f"{self._seed} {self._name}".encode()).digest()[:4], "big")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            return optuna.samplers.QMCSampler(seed=first, scramble=True, warn_independent_sampling=False)

    def axes(self) -> dict[str, Any]:
        """The ranges as mappings, the lists as they are."""
        return {n: a.model_dump() if isinstance(a, Range) else list(a) for n, a in self._axes.items()}

    def points(self) -> list[Point]:
        """The points drawn so far."""
        return [self._point(trial.params) for trial in self._study.get_trials(deepcopy=False)]

    def draw(self, waiting: int) -> int:
        """Draw what may be drawn now, and return how many points that were. For one process at a time.

        Args:
            waiting: workers that would be without a run; "tpe" draws no more than so many.
        """
        trials = self._study.get_trials(deepcopy=False)
        missing = self._trials - len(trials)
        wanted = min(missing, waiting) if self._kind == "tpe" else missing
        for number in range(len(trials), len(trials) + wanted):
            self._study.sampler = self._sampler(number)
            self._study.ask(self._distributions())
        return wanted

    def tell(self, ended: Sequence[tuple[Point, float | None]]) -> None:
        """Tell the sampler which points have ended, with their losses; what diverged is not drawn towards."""
        import optuna

        losses = {key(point): loss for point, loss in ended}
        for trial in self._study.get_trials(deepcopy=False):
            point = key(self._point(trial.params))
            if trial.state != optuna.trial.TrialState.RUNNING or point not in losses:
                continue
            loss = losses[point]
            if loss is not None and math.isfinite(loss):
                self._study.tell(trial.number, loss, skip_if_finished=True)
            else:
                self._study.tell(trial.number, state=optuna.trial.TrialState.FAIL, skip_if_finished=True)

    def _distributions(self) -> dict[str, optuna.distributions.BaseDistribution]:
        from optuna.distributions import CategoricalDistribution, FloatDistribution

        # Lists of lists (betas) are no categories of Optuna: their numbers are.
        return {
            name: FloatDistribution(a.low, a.high, log=a.log)
            if isinstance(a, Range)
            else CategoricalDistribution(list(range(len(a))))
            for name, a in self._axes.items()
        }

    def _point(self, params: Mapping[str, Any]) -> Point:
        # Three digits, so that a run can be repeated by hand.
        return {
            name: float(f"{params[name]:.3g}") if isinstance(a, Range) else a[params[name]]
            for name, a in self._axes.items()
        }

    def judge(self, losses: Losses, grow: bool = True) -> tuple[Judgement, bool]:
        """The best of all points; an axis is open if it lies at an end of its range."""
        points = self.points()
        finished = [(loss, i) for i, p in enumerate(points) if (loss := losses[key(p)]) is not None]
        best = points[min(finished)[1]] if finished else None
        axes = {name: a for name, a in self._axes.items() if isinstance(a, Range)}
        edges = tuple(n for n, a in axes.items() if best is not None and on_edge(a, best[n], self._trials))
        return Judgement(best, edges), len(points) < self._trials

    def extension(self, point: Point) -> int:
        """Always 0: a range does not grow."""
        return 0
