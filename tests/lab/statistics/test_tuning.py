from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from steepest.lab.statistics import basin_width, expected_best_of_k


@pytest.mark.parametrize("n", [1, 2, 7, 60])
def test_expected_lowest_of_k_of_the_numbers_1_to_n(n):
    curve = expected_best_of_k(list(np.random.default_rng(0).permutation(n) + 1.0))
    assert curve.k == list(range(1, n + 1))
    assert curve.expected == pytest.approx([(n + 1) / (k + 1) for k in curve.k])  # a closed form
    assert curve.all_diverged == [0.0] * n


def test_expected_best_of_k_by_enumeration_of_all_sets():
    losses = [3.0, 2.5, 2.5, 4.0, 2.7, math.inf, math.inf]
    curve = expected_best_of_k([*losses, math.nan])  # the last has not finished
    for k in range(1, 8):
        lowest = [min(chosen) for chosen in itertools.combinations(losses, k)]
        assert curve.expected[k - 1] == pytest.approx(np.mean(lowest))
        assert curve.all_diverged[k - 1] == pytest.approx(np.mean(np.isinf(lowest)))
    assert [math.isinf(v) for v in curve.expected] == [True, True] + [False] * 5
    assert curve.expected[-1] == 2.5


def test_a_diverged_trial_may_count_as_a_finite_loss():
    curve = expected_best_of_k([2.0, math.inf, 3.0], diverged_as=5.0)
    assert curve.expected == pytest.approx([10 / 3, (2 + 2 + 3) / 3, 2.0])
    assert curve.all_diverged == pytest.approx([1 / 3, 0.0, 0.0])


def test_band_of_one_trial_is_the_bootstrap_of_the_mean_and_of_all_that_of_the_lowest():
    losses = list(np.linspace(2.0, 3.0, 41))
    curve = expected_best_of_k(losses)
    half = 1.96 * np.std(losses) / math.sqrt(41)
    assert (curve.low[0], curve.high[0]) == pytest.approx((2.5 - half, 2.5 + half), abs=0.02)
    assert curve.low[-1] == 2.0  # nothing is lower than the lowest
    assert 2.0 < curve.high[-1] <= losses[6]  # none of the best four is drawn in 1.6% of the resamples
    assert all(low <= mean <= high for low, mean, high in zip(curve.low, curve.expected, curve.high, strict=True))
    mixed = expected_best_of_k([2.0, 2.1, 2.2, math.inf])
    assert math.isinf(mixed.high[0])  # more than 2.5% of the resamples hold the diverged one
    assert math.isfinite(mixed.low[0]) != math.isfinite(mixed.high[0])


def test_no_trial_no_curve():
    assert expected_best_of_k([]).k == []
    assert expected_best_of_k([math.nan]).expected == []
    assert expected_best_of_k([math.inf, math.inf]).expected == [math.inf, math.inf]


def test_width_of_a_parabola_in_the_logarithm_of_the_rate():
    octaves = np.linspace(-4, 4, 801)
    rates, losses = 0.003 * 2**octaves, 3.0 + 0.02 * octaves**2
    for within in (0.01, 0.05):
        basin = basin_width(list(rates), list(losses), within)
        assert basin.octaves == pytest.approx(2 * math.sqrt(within / 0.02), rel=1e-3)
        assert basin.high / 0.003 == pytest.approx(2 ** math.sqrt(within / 0.02), rel=1e-3)
        assert not basin.open_low
        assert not basin.open_high


def test_interpolation_between_grid_points_is_linear_in_the_logarithm():
    # one octave down the loss is 0.02 higher, so 0.01 is half an octave; two octaves up 0.04, so again half an octave
    basin = basin_width([4.0, 16.0, 2.0], [1.0, 1.04, 1.02], 0.01)
    assert basin.low == pytest.approx(4 / math.sqrt(2))
    assert basin.high == pytest.approx(4 * math.sqrt(2))
    assert basin.octaves == pytest.approx(1.0)


def test_open_ends_are_flagged_one_by_one():
    basin = basin_width([1, 2, 4, 8], [1.5, 1.0, 1.001, 1.002], 0.01)
    assert (basin.high, basin.open_low, basin.open_high) == (8, False, True)
    basin = basin_width([1, 2, 4, 8], [1.0, 1.001, 1.002, 1.5], 0.01)
    assert (basin.low, basin.open_low, basin.open_high) == (1, True, False)
    alone = basin_width([0.5, 1.0], [2.0, math.nan], 0.05)
    assert (alone.octaves, alone.open_low, alone.open_high) == (0.0, True, True)


def test_a_basin_is_connected_and_ends_before_a_diverged_rate():
    basin = basin_width([1, 2, 4, 8, 16], [1.0, 1.2, 0.995, 1.0, math.inf], 0.01)
    assert basin.low > 2
    assert (basin.high, basin.open_high) == (8, False)
    lost = basin_width([1, 2], [math.inf, math.inf], 0.01)
    assert math.isnan(lost.octaves)


@pytest.mark.parametrize(
    ("rates", "losses", "within", "message"),
    [
        ([1, 1], [1.0, 2.0], 0.01, "distinct"),
        ([0, 1], [1.0, 2.0], 0.01, "positive"),
        ([1], [1.0, 2.0], 0.01, "one loss per learning rate"),
        ([1, 2], [1.0, 2.0], -0.01, "within=-0.01"),
    ],
)
def test_bad_grids_are_refused(rates, losses, within, message):
    with pytest.raises(ValueError, match=message):
        basin_width(rates, losses, within)
