"""Do two tiers, say a small proxy and the real size, put the methods in the same order?"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import combinations

from scipy import stats


@dataclass(frozen=True)
class RankCorrelation:
    """Agreement of two orders of the same methods.

    Attributes:
        tau: Kendall's tau-b: (concordant - discordant pairs) / all pairs, corrected for ties. 1 is the same order, -1
            the reverse, 0 none; NaN for fewer than two methods, or if all are tied in one order.
        p: Two-sided p of no association, exact for up to 33 methods without ties. Four methods cannot reach 5%.
        n: Methods in both orders.
        swapped: The pairs in which the orders disagree, each with the method that the first order prefers in front.
    """

    tau: float
    p: float
    n: int
    swapped: list[tuple[str, str]]


def rank_correlation(first: Mapping[str, float], second: Mapping[str, float]) -> RankCorrelation:
    """Kendall's rank correlation of two tiers, over the methods that are in both.

    Single numbers are compared: pairs that are tied within the noise of the seeds count like any other.

    Args:
        first: Final loss (or place) by method, lower is better; infinite if diverged, NaN is left out.
        second: The same on the other tier.

    Source: Kendall, Biometrika 1938 and 1945 (ties).
    """
    names = [m for m in first if m in second and not math.isnan(first[m]) and not math.isnan(second[m])]
    swapped = [
        (a, b) if first[a] < first[b] else (b, a)
        for a, b in combinations(names, 2)
        if (first[a] < first[b] and second[a] > second[b]) or (first[a] > first[b] and second[a] < second[b])
    ]
    if len(names) < 2:
        return RankCorrelation(math.nan, math.nan, len(names), swapped)
    found = stats.kendalltau([first[m] for m in names], [second[m] for m in names])
    return RankCorrelation(float(found.statistic), float(found.pvalue), len(names), swapped)
