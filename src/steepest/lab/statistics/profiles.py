"""Several workloads at once: performance profiles and geometric-mean speed-up."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from steepest.lab.errors import unknown
from steepest.lab.statistics.intervals import Interval, bootstrap_interval
from steepest.lab.statistics.paired import summarize

# Ratio to the best method up to which a profile is drawn and integrated.
LIMIT = 4.0

# What each method needs on each workload (steps, tokens, FLOPs or seconds to a target); None: not reached.
Costs = Mapping[str, Mapping[str, float | None]]


@dataclass(frozen=True)
class Profile:
    """How often a method is nearly the best one.

    Attributes:
        ratios: What the method needs over what the best method needs, by workload, 1 or more; infinite if it did not
            reach the target.
        score: Integral of rho from 1 to `limit` over (limit - 1), with its bootstrap interval over workloads: 1 if the
            method is the best on every workload, 0 if it never comes within `limit`.
        limit: The largest ratio that counts.
    """

    ratios: dict[str, float]
    score: Interval
    limit: float

    def rho(self, tau: float) -> float:
        """Share of the workloads on which the method needs at most `tau` times what the best one needs."""
        return sum(ratio <= tau for ratio in self.ratios.values()) / len(self.ratios)

    @property
    def corners(self) -> list[tuple[float, float]]:
        """The step function rho as points (tau, rho) from tau = 1 to `limit`: the value holds up to the next point."""
        places = {1.0, self.limit, *(ratio for ratio in self.ratios.values() if ratio <= self.limit)}
        return [(tau, self.rho(tau)) for tau in sorted(places)]


def performance_profiles(costs: Costs, limit: float = LIMIT) -> dict[str, Profile]:
    """Performance profile of each method over workloads, relative to the best method on each.

    rho(tau) is the share of all workloads on which a method needs at most tau times the least that any of the methods
    needs. A workload whose target no method reached counts as a failure of all. The profiles depend on which methods
    are compared, the speed-up over a baseline does not: show both.

    Args:
        costs: method -> workload -> steps, tokens, FLOPs or seconds to the target of the workload; None or infinite:
            not reached. Every method has an entry for every workload.
        limit: Where the integral ends; 4 as in AlgoPerf.

    Raises:
        ValueError: A workload is missing for a method, a cost is not positive, or `limit` is not above 1.

    Source: Dolan and More, Mathematical Programming 2002; AlgoPerf, arXiv:2306.07179 (the integral, limit 4).
    """
    if not limit > 1:
        raise ValueError(f"limit={limit} must be above 1, the ratio of the best method to itself")
    numbers = _numbers(costs)
    workloads = list(next(iter(numbers.values()), {}))
    best = {workload: min(own[workload] for own in numbers.values()) for workload in workloads}
    profiles = {}
    for method, own in numbers.items():
        ratios = {w: own[w] / best[w] if math.isfinite(own[w]) else math.inf for w in workloads}
        # a workload adds to rho from its ratio on, so to the integral from 1 to the limit what is left of that
        parts = [max(0.0, limit - ratio) / (limit - 1) for ratio in ratios.values()]
        profiles[method] = Profile(ratios, bootstrap_interval(parts), limit)
    return profiles


@dataclass(frozen=True)
class SpeedUp:
    """How many times faster than the baseline a method is on average over workloads.

    Attributes:
        mean: Geometric mean of baseline cost over method cost; above 1 the method is faster. The interval is the t
            interval of the mean of the logarithms, over workloads; NaN ends for one workload, NaN for none.
        workloads: The workloads in the mean.
        left_out: Those that the method or the baseline did not finish, which have no ratio. If it was the method, the
            mean flatters it: show them beside it.
    """

    mean: Interval
    workloads: tuple[str, ...]
    left_out: tuple[str, ...]


def geometric_speedups(costs: Costs, baseline: str) -> dict[str, SpeedUp]:
    """Geometric-mean speed-up of every other method over the baseline.

    Args:
        costs: As in `performance_profiles`.
        baseline: The method to compare with.

    Raises:
        UserError: `baseline` is not among the methods.
        ValueError: As in `performance_profiles`.
    """
    if baseline not in costs:
        raise unknown("method", baseline, costs)
    numbers = _numbers(costs)
    reference = numbers.pop(baseline)
    speedups = {}
    for method, own in numbers.items():
        reached = tuple(w for w in reference if math.isfinite(own[w]) and math.isfinite(reference[w]))
        s = summarize([math.log(reference[w] / own[w]) for w in reached])
        mean = Interval(*(float(np.exp(v)) for v in (s.mean, s.low, s.high)))
        speedups[method] = SpeedUp(mean, reached, tuple(w for w in reference if w not in reached))
    return speedups


def _numbers(costs: Costs) -> dict[str, dict[str, float]]:
    """The table with infinity for None, checked: the same workloads for all, and positive costs."""
    workloads = dict.fromkeys(workload for own in costs.values() for workload in own)
    numbers: dict[str, dict[str, float]] = {}
    for method, own in costs.items():
        missing = [w for w in workloads if w not in own]
        if missing:
            raise ValueError(
                f"{method!r} has no cost on {', '.join(missing)}: run it there, pass None if it did not reach the "
                "target, or leave the workload out for all methods"
            )
        for workload in workloads:
            cost = own[workload]
            if cost is not None and not cost > 0:
                raise ValueError(f"the cost {cost} of {method!r} on {workload!r} must be positive, or None")
        numbers[method] = {w: math.inf if (cost := own[w]) is None else float(cost) for w in workloads}
    return numbers
