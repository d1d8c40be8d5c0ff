"""Is the difference between two methods real, or is it the noise of the seeds?

Every method of a study is trained from the same seeds, and a seed fixes the initial weights and the order of the data.
Most of the noise is therefore common to two methods and cancels in the *paired* difference, seed by seed. All
conclusions rest on it: a method is called better or worse only if the 95% t interval of the mean paired difference
excludes zero.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy import stats

Verdict = Literal["better", "worse", "not decided"]

CONFIDENCE = 0.95
POWER = 0.80
# 2.8 = z(0.975) + z(0.80): two-sided 5% test with 80% power.
DETECTABLE = 2.8
# Exact up to 13 seeds (2^13 sign patterns); beyond that, this many random patterns.
_SIGN_PATTERNS = 9_999
_MOST_SEEDS = 10_000


@dataclass(frozen=True)
class Summary:
    """Mean, standard deviation and t interval of a number over seeds; all but the mean are NaN below two seeds."""

    n: int
    mean: float
    sd: float
    low: float
    high: float


@dataclass(frozen=True)
class Comparison:
    """A method against another one, paired by seed. Negative `difference` means a lower loss, so a better method.

    Attributes:
        n: Seeds that both methods finished.
        difference: Mean of the paired differences; NaN if no seed is shared.
        sd: Standard deviation of the paired differences; NaN for fewer than two.
        low: Lower end of the 95% t interval of `difference`.
        high: Upper end.
        p: Two-sided p of the paired t test; NaN where it does not exist.
        p_sign_flip: Two-sided p of the sign-flip permutation test, or None with fewer than six seeds, where even the
            most extreme outcome could not reach 5%.
        verdict: "better", "worse" or "not decided".
        more_seeds: Further seeds needed to decide a difference of this size; 0 if decided, None if no number would do.
    """

    n: int
    difference: float
    sd: float
    low: float
    high: float
    p: float
    p_sign_flip: float | None
    verdict: Verdict
    more_seeds: int | None


def summarize(values: Sequence[float]) -> Summary:
    """Mean, sample standard deviation and 95% t interval of the mean; non-finite values are left out."""
    x = np.asarray([v for v in values if math.isfinite(v)], dtype=np.float64)
    if x.size == 0:
        return Summary(0, math.nan, math.nan, math.nan, math.nan)
    mean = float(x.mean())
    if x.size == 1:
        return Summary(1, mean, math.nan, math.nan, math.nan)
    sd = float(x.std(ddof=1))
    half = float(stats.t.ppf((1 + CONFIDENCE) / 2, x.size - 1)) * sd / math.sqrt(x.size)
    return Summary(int(x.size), mean, sd, mean - half, mean + half)


def compare(method: Mapping[int, float], other: Mapping[int, float]) -> Comparison:
    """Compare two methods by the losses of their shared seeds.

    Args:
        method: Final loss by seed.
        other: Final loss by seed of the method to compare with, usually the baseline.
    """
    differences = [method[seed] - other[seed] for seed in sorted(method.keys() & other.keys())]
    differences = [d for d in differences if math.isfinite(d)]
    s = summarize(differences)
    verdict: Verdict = "not decided"
    if s.n >= 2 and s.high < 0:
        verdict = "better"
    elif s.n >= 2 and s.low > 0:
        verdict = "worse"
    return Comparison(
        n=s.n,
        difference=s.mean,
        sd=s.sd,
        low=s.low,
        high=s.high,
        p=_t_test(s),
        p_sign_flip=sign_flip_p(differences),
        verdict=verdict,
        more_seeds=0 if verdict != "not decided" else more_seeds(s.mean, s.sd, s.n),
    )


def _t_test(s: Summary) -> float:
    if s.n < 2:
        return math.nan
    if s.sd == 0:
        return 1.0 if s.mean == 0 else 0.0
    return float(2 * stats.t.sf(abs(s.mean) / s.sd * math.sqrt(s.n), s.n - 1))


def sign_flip_p(differences: Sequence[float]) -> float | None:
    """Two-sided p that the mean of paired differences is this far from zero if each sign were a coin toss.

    Exact up to 13 seeds. None with fewer than six: the smallest p that n seeds can give is 2 / 2^n.
    """
    if len(differences) < 6:
        return None
    result = stats.permutation_test(
        (np.asarray(differences, dtype=np.float64),),
        np.mean,
        permutation_type="samples",
        n_resamples=_SIGN_PATTERNS,
        random_state=np.random.default_rng(0),
    )
    return float(result.pvalue)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down correction: p values adjusted for having asked several questions. NaN is not counted."""
    asked = sorted((i for i, p in enumerate(p_values) if math.isfinite(p)), key=lambda i: p_values[i])
    adjusted = [math.nan] * len(p_values)
    running = 0.0
    for rank, i in enumerate(asked):
        running = max(running, min(1.0, (len(asked) - rank) * p_values[i]))
        adjusted[i] = running
    return adjusted


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
