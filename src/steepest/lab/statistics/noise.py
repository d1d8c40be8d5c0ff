"""How much of a difference is the noise of the seeds, and how many seeds would see through it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from steepest.lab.errors import unknown
from steepest.lab.statistics.intervals import CONFIDENCE

POWER = 0.80
# 2.8 = z(0.975) + z(0.80): two-sided 5% test with 80% power.
DETECTABLE = 2.8
_MOST_SEEDS = 10_000


@dataclass(frozen=True)
class Noise:
    """Standard deviation over seeds of a final loss, in nats, with its 95% interval.

    Attributes:
        sd: The standard deviation; NaN below two seeds, like the ends of its interval.
        low: Lower end, sd sqrt(d / chi2_d(0.975)) with d degrees of freedom.
        high: Upper end, sd sqrt(d / chi2_d(0.025)): 2.9 times the sd for 5 seeds, so a noise floor is never sharp.
        degrees: Degrees of freedom: seeds minus one, summed over the methods that were pooled.
        methods: The methods whose seeds it was measured from.
    """

    sd: float
    low: float
    high: float
    degrees: int
    methods: tuple[str, ...]


def noise_floor(losses: Mapping[str, Sequence[float]], baseline: str, *, pool: bool = False) -> Noise:
    """The noise of a workload: how far final losses scatter when only the seed changes.

    It is measured from the baseline. The noise depends on the method (in one published harness 0.0025 nats for AdamW
    and 0.0009 for SOAP-Muon), so those of several methods are pooled only if that is asked for. For the noise of one
    method name it as the baseline. The interval assumes normal losses.

    Args:
        losses: Final losses in nats per token, one per seed, by method; those that are not finite are left out.
        baseline: The method to measure.
        pool: Take the variance within all methods, sqrt(sum_i (n_i - 1) sd_i^2 / sum_i (n_i - 1)), instead of that of
            the baseline. Methods with fewer than two finite losses say nothing about it.

    Raises:
        UserError: `baseline` is not among the methods.
    """
    if baseline not in losses:
        raise unknown("method", baseline, losses)
    finite = {
        name: np.asarray([v for v in values if math.isfinite(v)], dtype=np.float64)
        for name, values in losses.items()
        if pool or name == baseline
    }
    finite = {name: x for name, x in finite.items() if x.size >= 2}
    degrees = sum(x.size - 1 for x in finite.values())
    if degrees == 0:
        return Noise(math.nan, math.nan, math.nan, 0, ())
    squares = sum(float(((x - x.mean()) ** 2).sum()) for x in finite.values())
    ends = stats.chi2.ppf([(1 + CONFIDENCE) / 2, (1 - CONFIDENCE) / 2], degrees)
    low, high = (math.sqrt(squares / float(end)) for end in ends)
    return Noise(math.sqrt(squares / degrees), low, high, degrees, tuple(finite))


def minimum_detectable_effect(sigma: float, n: int) -> float:
    """Smallest difference between two methods that n seeds each show with 80% power at a two-sided 5% level.

    Args:
        sigma: Standard deviation of one method's final loss over seeds.
        n: Seeds per method.

    Returns:
        2.8 sigma sqrt(2 / n); NaN for no seeds. Pairing by seed usually sees smaller differences than this.
    """
    return DETECTABLE * sigma * math.sqrt(2 / n) if n > 0 else math.nan


def more_seeds(difference: float, sd: float, n: int) -> int | None:
    """How many seeds beyond n a paired comparison needs to decide a difference with 80% power at the 5% level.

    The 2.8 of `minimum_detectable_effect` is replaced by t quantiles, which matter with few seeds.

    Args:
        difference: Mean paired difference seen so far.
        sd: Standard deviation of the paired differences; with fewer than two seeds it is unknown and the answer is
            what is missing to two.
        n: Seeds so far.

    Returns:
        The number of further seeds, or None if the difference is too small for any reasonable number (10,000).
    """
    if n < 2:
        return 2 - n
    if difference == 0:
        return None
    sizes = np.arange(2, _MOST_SEEDS)
    quantiles = stats.t.ppf((1 + CONFIDENCE) / 2, sizes - 1) + stats.t.ppf(POWER, sizes - 1)
    enough = np.flatnonzero(quantiles * sd / np.sqrt(sizes) <= abs(difference))
    return max(0, int(sizes[enough[0]]) - n) if enough.size else None
