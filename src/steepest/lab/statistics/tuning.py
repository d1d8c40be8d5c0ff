"""What tuning costs: the expected best of k trials, and how wide the basin of good learning rates is."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from steepest.lab.statistics.intervals import Array, generator, percentile_interval

_RESAMPLES = 1_999
# Distances from the best loss, in nats, at which the width of a basin is reported.
WITHIN = (0.01, 0.05)


@dataclass(frozen=True)
class BestOfK:
    """The lowest loss that k of the finished trials of a method are expected to reach, for k = 1 ... N.

    Attributes:
        k: Number of trials, 1 to N.
        expected: Expected lowest loss of k trials; infinite while k trials can all have diverged.
        low: Lower end of the pointwise 95% bootstrap band of `expected`.
        high: Upper end.
        all_diverged: Probability that all of k trials diverged.
    """

    k: list[int]
    expected: list[float]
    low: list[float]
    high: list[float]
    all_diverged: list[float]


def expected_best_of_k(losses: Sequence[float], diverged_as: float = math.inf) -> BestOfK:
    """How the best loss falls with the number of trials: the price of tuning a method.

    The mean over all sets of k of the N finished trials is exact, by order statistics: with losses sorted,
    x_1 <= ... <= x_N, the i-th is the lowest of k in C(N - i, k - 1) of the C(N, k) sets. Sets without repetition make
    the estimate unbiased; drawing with repetition (Dodge et al. 2019, arXiv:1909.03004) does not (Tang et al., ACL
    2020). The band is the percentile bootstrap over trials. It is trustworthy for k well below N: towards N hardly
    anything but the single best trial matters, and a better one than that is in no resample.

    It describes trials drawn at random from the search space. For a grid it describes choosing k of its points.

    Args:
        losses: Final loss of each trial in nats: infinite if it diverged, NaN if it has not finished (left out).
        diverged_as: The loss that a diverged trial counts as, for example that of the untrained model. With the
            default, infinity, `expected` is infinite for every k up to the number of diverged trials.

    Returns:
        Empty lists if no trial has finished.
    """
    x = np.sort(np.asarray([v for v in losses if not math.isnan(v)], dtype=np.float64))
    n = x.size
    if n == 0:
        return BestOfK([], [], [], [], [])
    diverged = np.isinf(x).astype(np.float64)  # the last ones
    k = np.arange(1, n + 1)
    weights = _weights(n)
    x = np.where(diverged > 0, diverged_as, x)
    resamples = np.sort(generator().choice(x, (_RESAMPLES, n)), axis=1)
    low, high = percentile_interval(_lowest(resamples, weights))
    return BestOfK(
        k=[int(i) for i in k],
        expected=_lowest(np.sort(x)[None], weights)[0].tolist(),
        low=low.tolist(),
        high=high.tolist(),
        all_diverged=(weights @ diverged).tolist(),
    )


def _weights(n: int) -> Array:
    """Row k - 1: the probability, for each of the n sorted trials, to be the lowest of k."""
    k, i = np.arange(1, n + 1)[:, None], np.arange(n - 1)[None]
    # The first is the lowest in k / n of the sets; then C(n - 2 - i, k - 1) / C(n - 1 - i, k - 1) from one to the next.
    ratios = np.maximum(n - i - k, 0) / (n - 1 - i)
    return np.asarray(np.cumprod(np.concatenate([k / n, ratios], axis=1), axis=1), dtype=np.float64)


def _lowest(samples: Array, weights: Array) -> Array:
    """Expected lowest of k trials for sorted samples (..., n): (..., n), one per k. Infinite ones count if possible."""
    infinite = np.isinf(samples)
    mean = np.where(infinite, 0.0, samples) @ weights.T
    return np.asarray(np.where(infinite @ (weights.T > 0), math.inf, mean), dtype=np.float64)


@dataclass(frozen=True)
class Basin:
    """The learning rates around the best one whose loss is within a given distance of it.

    Attributes:
        within: The distance in nats.
        octaves: Width in factors of two, log2(high / low); NaN if no trial converged. A lower bound if an end is open.
        low: Lowest learning rate of the basin.
        high: Highest.
        open_low: The basin reaches the lower end of the grid, so it may be wider.
        open_high: The same for the upper end.
    """

    within: float
    octaves: float
    low: float
    high: float
    open_low: bool
    open_high: bool


def basin_width(rates: Sequence[float], losses: Sequence[float], within: float) -> Basin:
    """Width of the learning-rate basin: how exactly a learning rate must be tuned to lose no more than `within`.

    Between two rates of the grid the loss is taken as linear in the logarithm of the rate. A basin is connected: rates
    beyond the first that is worse than that do not count. Next to a diverged rate it ends at the last one that
    converged.

    Args:
        rates: Learning rates of the trials, positive and distinct, in any order.
        losses: Their final losses in nats: infinite if diverged, NaN if not finished (left out).
        within: Distance from the lowest loss in nats; 0.01 and 0.05 are those of the protocol (`WITHIN`).

    Raises:
        ValueError: Lengths differ, a rate is repeated or not positive, or `within` is negative.
    """
    if len(rates) != len(losses):
        raise ValueError(f"{len(rates)} rates and {len(losses)} losses: pass one loss per learning rate")
    if len(set(rates)) < len(rates) or any(not rate > 0 for rate in rates):
        raise ValueError(
            f"rates={list(rates)} must be positive and distinct: pass for each learning rate one loss, the lowest over "
            "the other axes of the search or the mean over seeds"
        )
    if not within >= 0:
        raise ValueError(f"within={within} must be a distance in nats, 0 or more")
    points = sorted((math.log2(r), loss) for r, loss in zip(rates, losses, strict=True) if not math.isnan(loss))
    best = min(points, key=lambda point: point[1], default=(math.nan, math.inf))
    if math.isinf(best[1]):
        return Basin(within, math.nan, math.nan, math.nan, True, True)
    place, highest = points.index(best), best[1] + within
    low, open_low = _end(points[place::-1], highest)
    high, open_high = _end(points[place:], highest)
    return Basin(within, high - low, 2.0**low, 2.0**high, open_low, open_high)


def _end(points: Sequence[tuple[float, float]], highest: float) -> tuple[float, bool]:
    """Where the loss first exceeds `highest` on the way through the points, and whether it never does."""
    for (x, loss), (beyond, worse) in pairwise(points):
        if worse > highest:
            return (x + (beyond - x) * (highest - loss) / (worse - loss) if math.isfinite(worse) else x), False
    return points[-1][0], True
