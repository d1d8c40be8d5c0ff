"""phi(P): the printed values of its specification, its ends, and that it can prefer no period between them."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from steepest.theory.period import PERIODS, TradeOff

FINEWEB = {"alpha": 67.1, "rho_nuc": 13.6, "rho_1": 894.0, "l_2": 0.789, "l_inf": 857.0}
WIKITEXT = {"alpha": 75.3, "rho_nuc": 10.9, "rho_1": 835.0, "l_2": 1.460, "l_inf": 1312.0}


@pytest.mark.parametrize(
    ("measured", "expected"),
    [(FINEWEB, (1, 0.365, 0.137, 0.064, 0.046)), (WIKITEXT, (1, 0.355, 0.122, 0.050, 0.033))],
)
def test_values_from_the_measured_constants(measured: dict[str, float], expected: tuple[float, ...]) -> None:
    # The constants are printed to three digits, so phi is known to about 3 %.
    found = [TradeOff.of(**measured).phi(p) for p in (1, 2, 5, 20, math.inf)]
    assert found == pytest.approx(expected, rel=0.035)


def test_the_ratios_are_those_of_the_table() -> None:
    fineweb, wikitext = TradeOff.of(**FINEWEB), TradeOff.of(**WIKITEXT)
    assert (round(fineweb.smoothness_ratio, 2), round(fineweb.noise_ratio, 2)) == (0.24, 0.98)
    assert (round(wikitext.smoothness_ratio, 2), round(wikitext.noise_ratio, 2)) == (0.16, 1.02)


def test_the_formula_by_hand() -> None:
    # P = 2: c = 6/10, (1/2 + 1/4), (1/2 + 1)^(1.5/0.5)
    trade = TradeOff(smoothness_ratio=0.5, noise_ratio=2.0, tail=1.5)
    assert trade.phi(2) == pytest.approx(0.6 * 0.75 * 1.5**3)
    assert trade.phi(math.inf) == pytest.approx(0.2 * 0.5 * 2.0**3)


@given(st.floats(1e-3, 1e3), st.floats(1e-3, 1e3), st.floats(1.05, 2.0), st.floats(1.0, 50.0), st.floats(1.0, 1e6))
def test_no_period_is_better_than_both_parents(r_l: float, r_rho: float, tail: float, cost: float, p: float) -> None:
    trade = TradeOff(smoothness_ratio=r_l, noise_ratio=r_rho, tail=tail, spectral_cost=cost)
    assert trade.phi(1) == pytest.approx(1)
    assert trade.phi(p) >= min(1.0, trade.phi(math.inf)) * (1 - 1e-9)
    assert trade.phi(trade.cheaper) == pytest.approx(min(1.0, trade.phi(math.inf)))


def test_the_table_says_what_it_cannot_say() -> None:
    text = TradeOff.of(**FINEWEB).table()
    assert len(text.splitlines()) == 1 + len(PERIODS) + 2
    assert "Lion (P = inf)" in text
    assert "cannot pick a period" in text.replace("\n", " ")
    assert "Muon (P = 1)" in TradeOff(smoothness_ratio=3.0, noise_ratio=2.0).table()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"smoothness_ratio": 0.0}, "smoothness_ratio must be positive"),
        ({"noise_ratio": math.inf}, "noise_ratio must be positive and finite"),
        ({"tail": 1.0}, r"tail must lie in \(1, 2\]"),
        ({"spectral_cost": 0.5}, "spectral_cost must be at least 1"),
    ],
)
def test_numbers_out_of_range(options: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TradeOff(**{"smoothness_ratio": 1.0, "noise_ratio": 1.0, **options})
    with pytest.raises(ValueError, match="period must be at least 1, got 0"):
        TradeOff(smoothness_ratio=1.0, noise_ratio=1.0).phi(0)
