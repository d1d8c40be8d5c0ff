"""What it takes to reach a target loss: steps, tokens, FLOPs, seconds."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from steepest.lab.statistics.intervals import Array, generator, percentile_interval

# Seeds of the baseline that a target should rest on (the protocol's number for studies on a CPU).
TARGET_SEEDS = 5
_RESAMPLES = 999


@dataclass(frozen=True)
class Target:
    """A loss to reach, in nats, and the number of baseline seeds it was taken from."""

    loss: float
    seeds: int

    @property
    def provisional(self) -> bool:
        """It rests on fewer than five seeds."""
        return self.seeds < TARGET_SEEDS


def target_loss(baseline: Sequence[float]) -> Target:
    """The target of a workload: the median over seeds of the final loss of the best tuned baseline.

    It is to be fixed before any other method is run (AlgoPerf, arXiv:2306.07179, does the same).

    Args:
        baseline: Final loss of each seed in nats: infinite if it diverged, NaN if it has not finished (left out).
    """
    finished = [v for v in baseline if not math.isnan(v)]
    return Target(_median(finished), len(finished))


def _median(values: Sequence[float]) -> float:
    x, n = sorted(values), len(values)
    if n == 0:
        return math.nan
    return x[n // 2] if n % 2 else (x[n // 2 - 1] + x[n // 2]) / 2  # one or two infinities make infinity, never NaN


@dataclass(frozen=True)
class LossCurve:
    """Validation loss of one run at its evaluations.

    Attributes:
        steps: Steps of the evaluations, increasing.
        losses: Loss in nats per token; not finite means diverged. So does a curve that ends before those of the other
            seeds: pass only runs that finished or diverged.
        costs: What else had been spent at these evaluations, by name: "tokens", "flops", "seconds".
    """

    steps: Sequence[float]
    losses: Sequence[float]
    costs: Mapping[str, Sequence[float]] = field(default_factory=dict)


@dataclass(frozen=True)
class ToTarget:
    """What a method needs to reach a target loss.

    Attributes:
        target: The loss to reach.
        steps: The stopping step, the same for all seeds; None if it is not reached.
        low: Lower end of the 95% bootstrap interval of `steps` over seeds; NaN below two seeds. Infinite: not reached.
        high: Upper end.
        costs: What is spent by that step, mean over seeds, by name; None if not reached.
        seeds: Runs it was measured from.
        note: Why a number is missing or only a bound; usually empty.
    """

    target: float
    steps: float | None
    low: float
    high: float
    costs: dict[str, float | None]
    seeds: int
    note: str = ""


def to_target(curves: Sequence[LossCurve], target: float) -> ToTarget:
    """Steps (and tokens, FLOPs, seconds) after which a method reaches a target loss.

    One stopping step holds for all seeds: the first at which the *mean* of the loss over seeds is at the target. No
    run is stopped on its own validation loss, which would reward noise. Between two evaluations the mean is taken as
    linear in the step, and the costs as well. A seed that diverged has an infinite loss from then on.

    A step in mid-schedule is what it is: most of the fall of a loss comes when the learning rate decays, so a target
    that is taken at the end of a schedule is reached near the end by nearly every method. How much data a method saves
    is the question of `data_speedups`.

    Args:
        curves: One per seed.
        target: Loss in nats, usually that of `target_loss`.

    Raises:
        ValueError: The steps of a curve do not increase, or lengths differ.
    """
    for curve in curves:
        _check(curve)
    names = list(dict.fromkeys(name for curve in curves for name in curve.costs))
    nothing: dict[str, float | None] = dict.fromkeys(names)
    if not curves:
        return ToTarget(target, None, math.nan, math.nan, nothing, 0, "no run has finished")
    start = max(curve.steps[0] for curve in curves)
    steps = np.asarray(sorted({s for curve in curves for s in curve.steps if s >= start}), dtype=np.float64)
    losses = np.stack([_at(steps, curve.steps, curve.losses) for curve in curves])
    reached = _crossing(steps, losses.mean(axis=0), target)
    low = high = math.nan
    if len(curves) > 1:
        picks = generator().integers(len(curves), size=(_RESAMPLES, len(curves)))
        replicates = np.asarray([_crossing(steps, losses[pick].mean(axis=0), target) for pick in picks])
        low, high = (float(end) for end in percentile_interval(replicates))
    if math.isinf(reached):
        lowest = float(losses.mean(axis=0).min())
        said = f"its lowest mean loss is {lowest:.4g}" if math.isfinite(lowest) else "a seed diverged"
        note = f"censored: {target:.4g} is not reached in {steps[-1]:g} steps; {said}"
        return ToTarget(target, None, low, high, nothing, len(curves), note)
    costs: dict[str, float | None] = {
        name: float(np.mean([np.interp(reached, c.steps, c.costs[name]) for c in curves if name in c.costs]))
        for name in names
    }
    note = "censored: reached at or before the first evaluation" if reached == steps[0] else ""
    return ToTarget(target, reached, low, high, costs, len(curves), note)


def _check(curve: LossCurve) -> None:
    if not len(curve.steps) or np.any(np.diff(np.asarray(curve.steps, dtype=np.float64)) <= 0):
        raise ValueError(f"steps={list(curve.steps)[:5]}... must be one or more increasing steps: sort the evaluations")
    for name, values in {"losses": curve.losses, **curve.costs}.items():
        if len(values) != len(curve.steps):
            raise ValueError(f"{name} has {len(values)} values for {len(curve.steps)} steps: pass one per evaluation")


def _at(steps: Array, known: Sequence[float], losses: Sequence[float]) -> Array:
    """The curve at other steps: linear in between, infinite beyond its end and from its first non-finite loss on."""
    bad = np.flatnonzero(~np.isfinite(np.asarray(losses, dtype=np.float64)))
    alive = int(bad[0]) if bad.size else len(losses)
    if alive == 0:
        return np.full(steps.shape, math.inf)
    return np.asarray(np.interp(steps, known[:alive], losses[:alive], right=math.inf), dtype=np.float64)


def _crossing(steps: Array, loss: Array, target: float) -> float:
    """The first step at which a piecewise linear loss is at most the target; infinite if there is none."""
    below = np.flatnonzero(loss <= target)
    if below.size == 0:
        return math.inf
    i = int(below[0])
    if i == 0:
        return float(steps[0])
    part = (loss[i - 1] - target) / (loss[i - 1] - loss[i])
    return float(steps[i - 1] + part * (steps[i] - steps[i - 1]))
