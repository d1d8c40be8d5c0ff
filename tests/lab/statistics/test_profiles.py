from __future__ import annotations

import math

import numpy as np
import pytest

from steepest.lab.errors import UserError
from steepest.lab.statistics import compare, geometric_speedups, performance_profiles

COSTS = {
    "adamw": {"a": 100, "b": 200, "c": 300, "d": 90},
    "muon": {"a": 50, "b": 250, "c": 300, "d": 450},
    "sgd": {"a": None, "b": 500, "c": math.inf, "d": None},
}


def test_profiles_by_hand():
    profiles = performance_profiles(COSTS)
    assert profiles["adamw"].ratios == pytest.approx({"a": 2.0, "b": 1.0, "c": 1.0, "d": 1.0})
    assert profiles["muon"].ratios == pytest.approx({"a": 1.0, "b": 1.25, "c": 1.0, "d": 5.0})
    assert profiles["sgd"].ratios == {"a": math.inf, "b": 2.5, "c": math.inf, "d": math.inf}
    muon = profiles["muon"]
    assert [muon.rho(t) for t in (1.0, 1.24, 1.25, 4.0, 5.0)] == [0.5, 0.5, 0.75, 0.75, 1.0]
    assert muon.corners == [(1.0, 0.5), (1.25, 0.75), (4.0, 0.75)]
    assert profiles["adamw"].score.value == pytest.approx((2 / 3 + 1 + 1 + 1) / 4)
    assert profiles["sgd"].score.value == pytest.approx(0.5 / 4)


def test_score_is_the_integral_of_rho():
    tau = np.linspace(1, 4, 300_001)
    for profile in performance_profiles(COSTS).values():
        numeric = np.mean([sum(t >= r for r in profile.ratios.values()) / 4 for t in tau[::100]])
        assert profile.score.value == pytest.approx(numeric, abs=1e-3)
        assert 0 <= profile.score.low <= profile.score.value <= profile.score.high <= 1


def test_best_everywhere_is_one_and_a_target_nobody_reached_is_a_failure_of_all():
    best = performance_profiles({"x": {"a": 1, "b": 2}, "y": {"a": 9, "b": 9}})
    assert best["x"].score.value == best["x"].score.low == 1.0
    assert best["y"].score.value == 0.0
    failed = performance_profiles({"x": {"a": 1, "b": None}, "y": {"a": 1, "b": None}})
    assert failed["x"].rho(4.0) == 0.5
    assert failed["x"].score.value == 0.5
    assert performance_profiles({}) == {}


def test_geometric_mean_and_the_workloads_that_are_not_in_it():
    found = geometric_speedups(COSTS, "adamw")
    assert set(found) == {"muon", "sgd"}
    muon = found["muon"]
    assert muon.mean.value == pytest.approx((2.0 * 0.8 * 1.0 * 0.2) ** 0.25)
    assert muon.workloads == ("a", "b", "c", "d")
    assert muon.left_out == ()
    # the t interval of the logarithms, here by the paired comparison of them
    logs = [{i: math.log(v) for i, v in enumerate(COSTS[m].values())} for m in ("adamw", "muon")]
    t = compare(*logs)
    assert (muon.mean.low, muon.mean.high) == pytest.approx((math.exp(t.low), math.exp(t.high)))
    assert found["sgd"].mean.value == pytest.approx(0.4)
    assert found["sgd"].left_out == ("a", "c", "d")
    assert math.isnan(found["sgd"].mean.low)


def test_equal_speedups_have_an_interval_of_no_width():
    costs = {"x": {"a": 3, "b": 30, "c": 6}, "y": {"a": 1, "b": 10, "c": 2}}
    mean = geometric_speedups(costs, "x")["y"].mean
    assert (mean.low, mean.value, mean.high) == pytest.approx((3.0, 3.0, 3.0))


def test_bad_tables_are_refused():
    with pytest.raises(ValueError, match="'y' has no cost on b"):
        performance_profiles({"x": {"a": 1, "b": 1}, "y": {"a": 1}})
    for cost in (0, -1.0, math.nan):
        with pytest.raises(ValueError, match="must be positive"):
            performance_profiles({"x": {"a": cost}})
    with pytest.raises(ValueError, match="limit=1"):
        performance_profiles(COSTS, limit=1)
    with pytest.raises(UserError, match=r"'adam'.*'adamw'"):
        geometric_speedups(COSTS, "adam")
