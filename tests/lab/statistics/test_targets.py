from __future__ import annotations

import math

import numpy as np
import pytest

from steepest.lab.statistics import LossCurve, target_loss, to_target


def test_target_is_the_median_over_seeds():
    target = target_loss([3.0, 3.5, 3.1, math.nan, 3.2, 9.0])
    assert (target.loss, target.seeds, target.provisional) == (3.2, 5, False)
    assert target_loss([3.0, 3.5, 3.1, 3.2]).loss == pytest.approx(3.15)
    assert target_loss([3.0, 3.5]).provisional
    assert math.isinf(target_loss([3.0, math.inf, math.inf, 3.1]).loss)  # of whose seeds half diverge has no target
    assert math.isnan(target_loss([]).loss)


def line(offset, slope=-0.01, steps=(0, 100, 200, 300)):
    """A run whose loss falls linearly; it spends 32 tokens and half a second a step."""
    return LossCurve(
        steps,
        [4.0 + offset + slope * s for s in steps],
        {"tokens": [32.0 * s for s in steps], "seconds": [0.5 * s + 7 for s in steps]},
    )


def test_a_line_reaches_its_target_where_algebra_says():
    found = to_target([line(0.0)], 2.5)
    assert found.steps == pytest.approx(150)
    assert found.costs == pytest.approx({"tokens": 32 * 150, "seconds": 82.0})
    assert (found.seeds, found.note) == (1, "")
    assert math.isnan(found.low)
    assert to_target([line(0.0)], 3.0).steps == pytest.approx(100)  # on an evaluation


def test_one_stopping_step_for_all_seeds_is_where_the_mean_curve_crosses():
    # seed by seed 100 and 150 steps; a curve that falls at once then waits would stop its own seed early
    first = LossCurve([0, 100, 200, 300], [4.0, 2.0, 2.0, 2.0])
    second = LossCurve([0, 100, 200, 300], [4.0, 4.0, 3.0, 2.0])
    found = to_target([first, second], 2.5)  # means 4, 3, 2.5, 2
    assert found.steps == pytest.approx(200)
    assert np.mean([to_target([first], 2.5).steps, to_target([second], 2.5).steps]) == pytest.approx((75 + 250) / 2)
    assert (found.low, found.high) == (pytest.approx(75), pytest.approx(250))  # of two seeds: one of them twice


def test_costs_are_means_over_seeds_at_the_same_step():
    slow = LossCurve([0, 100], [4.0, 2.0], {"seconds": [0.0, 300.0]})
    fast = LossCurve([0, 100], [4.0, 2.0], {"seconds": [0.0, 100.0]})
    assert to_target([slow, fast], 3.0).costs == {"seconds": pytest.approx(100.0)}


def test_interval_of_parallel_lines_is_that_of_their_offsets():
    offsets = np.linspace(-0.2, 0.2, 21)
    found = to_target([line(o) for o in offsets], 2.5)
    half = 1.96 * np.std(offsets) / math.sqrt(21) / 0.01
    assert found.steps == pytest.approx(150)
    assert (found.low, found.high) == pytest.approx((150 - half, 150 + half), abs=0.8)


def test_not_reached_is_none_with_a_note_and_not_the_last_step():
    found = to_target([line(0.0), line(0.5)], 1.0)  # lowest mean 1.25
    assert found.steps is None
    assert found.costs == {"tokens": None, "seconds": None}
    assert "not reached in 300 steps" in found.note
    assert "1.25" in found.note
    assert math.isinf(found.high)
    assert found.low == pytest.approx(300)  # a quarter of the resamples hold the better seed twice; it gets there


def test_a_seed_that_diverged_holds_the_method_back():
    good, bad = line(0.0), LossCurve([0, 100, 200], [4.0, 3.0, math.nan], {"tokens": [0.0, 1.0, 2.0]})
    found = to_target([good, bad], 2.5)
    assert found.steps is None
    short = LossCurve([0, 100], [4.0, 3.0])  # ends early: the same
    assert to_target([good, short], 2.5).steps is None
    assert to_target([good, short], 3.5).steps == pytest.approx(50)  # before that it counts
    assert "diverged" in to_target([LossCurve([0, 1], [math.inf, 1.0])], 2.0).note


def test_evaluations_of_other_steps_and_first_evaluations_below_the_target():
    found = to_target([line(0.0), line(0.0, steps=(50, 120, 300))], 2.5)
    assert found.steps == pytest.approx(150)
    early = to_target([line(0.0, steps=(100, 200))], 3.2)
    assert early.steps == 100
    assert "at or before the first evaluation" in early.note


def test_the_first_crossing_counts():
    assert to_target([LossCurve([1, 2, 3, 4], [4.0, 2.0, 4.0, 1.0])], 3.0).steps == pytest.approx(1.5)


def test_no_curve_and_bad_curves():
    none = to_target([], 3.0)
    assert (none.steps, none.seeds) == (None, 0)
    with pytest.raises(ValueError, match="increasing"):
        to_target([LossCurve([0, 2, 1], [4.0, 3.0, 2.0])], 2.5)
    with pytest.raises(ValueError, match="increasing"):
        to_target([LossCurve([], [])], 2.5)
    with pytest.raises(ValueError, match="tokens has 1 values for 2 steps"):
        to_target([LossCurve([0, 1], [4.0, 3.0], {"tokens": [1.0]})], 2.5)
