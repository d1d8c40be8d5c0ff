from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from scipy import stats

from steepest.lab.statistics import bootstrap_interval, divergence_rate, paired_differences
from steepest.lab.statistics.intervals import percentile_interval


def exact_bca(x):
    """The BCa interval from all n^n resamples, by the formulas of Efron 1987."""
    x, n = np.asarray(x), len(x)
    means = np.sort([np.mean(pick) for pick in itertools.product(x, repeat=n)])
    share = np.mean(means < x.mean() - 1e-12) + np.mean(np.abs(means - x.mean()) <= 1e-12) / 2
    z0 = stats.norm.ppf(share)
    left_out = np.asarray([np.delete(x, i).mean() for i in range(n)])
    u = left_out.mean() - left_out
    a = (u**3).sum() / 6 / (u**2).sum() ** 1.5
    z = z0 + stats.norm.ppf([0.025, 0.975])
    return np.quantile(means, stats.norm.cdf(z0 + z / (1 - a * z)), method="inverted_cdf")


def test_bootstrap_interval_is_that_of_all_resamples():
    skewed = [0.0, 0.1, 0.15, 0.3, 2.0]
    found, expected = bootstrap_interval(skewed), exact_bca(skewed)
    assert found.value == pytest.approx(0.51)
    assert (found.low, found.high) == pytest.approx(tuple(expected), abs=0.03)
    assert found.high - found.value > 1.5 * (found.value - found.low)  # what plain symmetric intervals miss


def test_two_values_are_their_own_interval():
    # each of both is drawn twice in a quarter of the resamples, more than 2.5%
    assert bootstrap_interval([1.0, 2.0]) == bootstrap_interval([2.0, 1.0])
    assert (bootstrap_interval([1.0, 2.0]).low, bootstrap_interval([1.0, 2.0]).high) == (1.0, 2.0)


def test_bootstrap_of_many_normal_differences_is_the_normal_interval():
    z = stats.norm.ppf((np.arange(400) + 0.5) / 400)
    found = bootstrap_interval(list(0.3 + 2.0 * z))
    assert found.value == pytest.approx(0.3)
    assert found.high - found.value == pytest.approx(1.96 * 2.0 / 20, rel=0.03)
    assert found.value - found.low == pytest.approx(1.96 * 2.0 / 20, rel=0.03)


def test_degenerate_bootstraps_are_defined():
    empty, one, equal = bootstrap_interval([]), bootstrap_interval([0.5]), bootstrap_interval([0.1, 0.1, 0.1])
    assert math.isnan(empty.value)
    assert one.value == 0.5
    assert math.isnan(one.low)
    assert (equal.value, equal.low, equal.high) == (0.1, 0.1, 0.1)
    tiny = bootstrap_interval([0.0, 1e-120, 2e-120])  # the acceleration underflows to 0 / 0
    assert (tiny.low, tiny.high) == (0.0, 2e-120)
    assert bootstrap_interval([1.0, math.nan, 2.0, math.inf]) == bootstrap_interval([1.0, 2.0])


def test_bootstrap_repeats_itself_and_takes_paired_differences():
    method, other = {1: 4.0, 2: 4.3, 5: 1.0, 3: 4.1}, {3: 4.5, 2: 4.4, 1: 4.3, 4: 9.0}
    differences = paired_differences(method, other)
    assert differences == pytest.approx([-0.3, -0.1, -0.4])
    first, again = bootstrap_interval(differences), bootstrap_interval(differences)
    assert first == again
    assert -0.4 <= first.low < first.value == pytest.approx(-0.8 / 3)


def test_percentiles_of_replicates_may_be_infinite():
    low, high = percentile_interval(np.asarray([[1.0, 2.0]] * 39 + [[math.inf, 2.0]]))  # 2.5% are never
    assert low.tolist() == [1.0, 2.0]
    assert high.tolist() == [1.0, 2.0]
    low, high = percentile_interval(np.asarray([[1.0]] * 38 + [[math.inf]] * 2))
    assert (low.tolist(), high.tolist()) == ([1.0], [math.inf])


@pytest.mark.parametrize(
    ("diverged", "finished", "low", "high"),
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilson_intervals_printed_by_newcombe_1998(diverged, finished, low, high):
    rate = divergence_rate(diverged, finished)
    assert rate.value == diverged / finished
    assert (rate.low, rate.high) == pytest.approx((low, high), abs=6e-5)


def test_divergence_rate_of_all_none_and_nonsense():
    assert divergence_rate(3, 3).low == pytest.approx(1 - divergence_rate(0, 3).high)
    assert math.isnan(divergence_rate(0, 0).value)
    for diverged, finished in ((3, 2), (-1, 2)):
        with pytest.raises(ValueError, match=f"diverged={diverged} of finished={finished}"):
            divergence_rate(diverged, finished)
