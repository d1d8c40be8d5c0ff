from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from scipy import stats

from steepest.lab.statistics import (
    compare,
    holm,
    minimum_detectable_effect,
    more_seeds,
    sign_flip_p,
    summarize,
)


def by_seed(values):
    return dict(enumerate(values))


def test_summary_by_hand():
    s = summarize([1.0, 2.0, 4.0])
    assert s.n == 3
    assert s.mean == pytest.approx(7 / 3)
    assert s.sd == pytest.approx(math.sqrt((16 + 1 + 25) / 9 / 2))  # squares of -4/3, -1/3, 5/3 over n - 1
    assert s.high - s.mean == pytest.approx(4.302653 * s.sd / math.sqrt(3), rel=1e-6)  # t(0.975, 2) from a table
    assert s.mean - s.low == pytest.approx(s.high - s.mean)


def test_summary_leaves_out_what_diverged_and_knows_no_spread_of_one():
    assert summarize([1.0, math.nan, 3.0, math.inf]).mean == 2.0
    one = summarize([1.5])
    assert (one.n, one.mean) == (1, 1.5)
    assert math.isnan(one.sd)
    assert math.isnan(one.low)
    assert summarize([]).n == 0


@pytest.mark.parametrize("n", [2, 3, 5, 8])
def test_comparison_is_scipys_paired_t_test(n):
    rng = np.random.default_rng(n)
    x, y = rng.normal(4.5, 0.1, n), rng.normal(4.6, 0.1, n)
    c = compare(by_seed(x), by_seed(y))
    expected = stats.ttest_rel(x, y)
    low, high = expected.confidence_interval(0.95)
    assert c.n == n
    assert c.difference == pytest.approx(np.mean(x - y))
    assert c.sd == pytest.approx(np.std(x - y, ddof=1))
    assert (c.low, c.high) == (pytest.approx(low), pytest.approx(high))
    assert c.p == pytest.approx(expected.pvalue)


def test_verdict_is_the_side_of_zero_the_interval_is_on():
    base = by_seed([4.0, 4.1, 3.9, 4.05])
    shifted = {seed: value - 0.1 + 0.001 * seed for seed, value in base.items()}
    assert compare(shifted, base).verdict == "better"
    assert compare(base, shifted).verdict == "worse"
    noisy = by_seed([3.9, 4.3, 3.7, 4.2])
    assert compare(noisy, base).verdict == "not decided"
    assert compare(base, base).verdict == "not decided"
    exact = {seed: value - 0.125 for seed, value in by_seed([4.0, 4.25, 3.75]).items()}
    assert compare(exact, by_seed([4.0, 4.25, 3.75])).verdict == "better"


def test_pairing_decides_what_unpaired_means_cannot():
    seeds = np.array([0.0, 0.3, -0.3, 0.1])  # noise of the seed, shared by both methods
    x, y = 4.0 + seeds, 4.05 + seeds + np.array([0.002, -0.001, 0.0, 0.001])
    assert compare(by_seed(x), by_seed(y)).verdict == "better"
    assert stats.ttest_ind(x, y).pvalue > 0.5


def test_only_shared_and_finite_seeds_count():
    c = compare({1: 4.0, 2: 4.2, 3: math.nan, 7: 1.0}, {1: 4.1, 2: 4.4, 3: 4.0, 9: 9.0})
    assert c.n == 2
    assert c.difference == pytest.approx(-0.15)


def test_one_seed_and_no_seed_decide_nothing():
    one = compare({1: 3.0}, {1: 4.0})
    assert (one.n, one.difference, one.verdict, one.more_seeds) == (1, -1.0, "not decided", 1)
    assert math.isnan(one.low)
    none = compare({1: 3.0}, {2: 4.0})
    assert (none.n, none.verdict) == (0, "not decided")
    assert math.isnan(none.difference)


def test_sign_flips_by_enumeration():
    d = [-0.3, -0.1, -0.25, 0.05, -0.4, -0.2, -0.15]
    sums = [abs(sum(s * x for s, x in zip(signs, d, strict=True))) for signs in itertools.product((1, -1), repeat=7)]
    p = sum(s >= abs(sum(d)) - 1e-12 for s in sums) / len(sums)
    assert sign_flip_p(d) == pytest.approx(p)
    assert sign_flip_p([-1.0] * 6) == pytest.approx(2 / 2**6)
    assert sign_flip_p([-1.0] * 5) is None  # could not go below 2/32 > 5%


def test_holm_by_hand():
    # sorted 0.01, 0.02, 0.03, 0.04 times 4, 3, 2, 1, then made monotone
    assert holm([0.04, 0.01, 0.03, 0.02]) == pytest.approx([0.06, 0.04, 0.06, 0.06])
    assert holm([0.9, 0.8])[0] == 1.0
    mixed = holm([0.01, math.nan, 0.02])
    assert mixed[0] == pytest.approx(0.02)  # two questions, not three
    assert math.isnan(mixed[1])
    assert holm([]) == []


@pytest.mark.parametrize(("n", "nats"), [(1, 0.0051), (3, 0.0030), (5, 0.0023), (10, 0.0016)])
def test_minimum_detectable_effect_of_published_noise(n, nats):
    assert minimum_detectable_effect(0.0013, n) == pytest.approx(nats, abs=6e-5)


def test_seeds_that_are_missing_give_the_power_that_was_promised():
    difference, sd, n = 0.05, 0.08, 3
    size = n + more_seeds(difference, sd, n)

    def power(m):  # noncentral t: the exact power of the two-sided test
        t = stats.t.ppf(0.975, m - 1)
        return 1 - stats.nct.cdf(t, m - 1, difference / sd * math.sqrt(m))

    assert power(size) > 0.78
    assert power(size - 2) < 0.80
    assert more_seeds(0.0, 0.1, 3) is None
    assert more_seeds(1e-6, 1.0, 3) is None
    assert more_seeds(1.0, 0.001, 3) == 0
    assert more_seeds(0.1, math.nan, 1) == 1


def test_an_undecided_difference_always_asks_for_more():
    rng = np.random.default_rng(0)
    for _ in range(50):
        n = int(rng.integers(2, 6))
        c = compare(by_seed(rng.normal(0.01, 0.1, n)), by_seed(rng.normal(0, 0.1, n)))
        assert (c.more_seeds == 0) == (c.verdict != "not decided")
