from __future__ import annotations

import math

import pytest

from steepest.lab.statistics import rank_correlation

ORDER = {"muon": 1.0, "soap": 2.0, "lion": 3.0, "adamw": 4.0, "sgd": 5.0}


def test_same_and_reversed_order():
    same = rank_correlation(ORDER, {m: 10 + v**3 for m, v in ORDER.items()})
    assert (same.tau, same.n, same.swapped) == (pytest.approx(1.0), 5, [])
    assert same.p == pytest.approx(2 / math.factorial(5))  # one of 120 orders, two-sided
    back = rank_correlation(ORDER, {m: -v for m, v in ORDER.items()})
    assert back.tau == pytest.approx(-1.0)
    assert len(back.swapped) == 10
    assert ("muon", "sgd") in back.swapped


def test_each_swap_of_neighbours_costs_two_of_all_pairs():
    swapped = rank_correlation(ORDER, ORDER | {"lion": 4.5})
    assert swapped.tau == pytest.approx(1 - 2 / 10)
    assert swapped.swapped == [("lion", "adamw")]
    assert rank_correlation(ORDER | {"lion": 4.5}, ORDER).swapped == [("adamw", "lion")]


def test_ties_and_diverged_methods():
    # sgd and lion diverge on the second tier: tied for the last place. 9 pairs agree, one is tied there
    found = rank_correlation(
        ORDER | {"lion": 4.5}, {"muon": 1, "soap": 2, "adamw": 3, "lion": math.inf, "sgd": math.inf}
    )
    assert found.tau == pytest.approx(9 / math.sqrt(10 * 9))
    assert found.swapped == []


def test_only_methods_of_both_tiers_count():
    found = rank_correlation(ORDER | {"lost": math.nan}, {"soap": 1, "muon": 2, "new": 0, "lost": 3})
    assert (found.n, found.tau) == (2, pytest.approx(-1.0))
    one = rank_correlation(ORDER, {"muon": 1})
    assert one.n == 1
    assert math.isnan(one.tau)
    assert math.isnan(rank_correlation(ORDER, dict.fromkeys(ORDER, 1.0)).tau)
