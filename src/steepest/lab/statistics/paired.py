"""Two methods, paired by seed."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy import stats

from steepest.lab.statistics.intervals import CONFIDENCE, generator
from steepest.lab.statistics.noise import more_seeds

Verdict = Literal["better", "worse", "not decided"]

# Exact up to 13 seeds (2^13 sign patterns); beyond that, this many random patterns.
_SIGN_PATTERNS = 9_999


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


def paired_differences(method: Mapping[int, float], other: Mapping[int, float]) -> list[float]:
    """`method` minus `other`, one number per seed that both finished, in the order of the seeds.

    Args:
        method: Final loss by seed.
        other: Final loss by seed of the method to compare with, usually the baseline.
    """
    differences = [method[seed] - other[seed] for seed in sorted(method.keys() & other.keys())]
    return [d for d in differences if math.isfinite(d)]


def compare(method: Mapping[int, float], other: Mapping[int, float]) -> Comparison:
    """Compare two methods by the losses of their shared seeds.

    Args:
        method: Final loss by seed.
        other: Final loss by seed of the method to compare with, usually the baseline.
    """
    differences = paired_differences(method, other)
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
        random_state=generator(),
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
