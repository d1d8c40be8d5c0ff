"""The closed form of the folded Cauchy quantile against printed values, against bisection and against samples."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from scipy import optimize, stats

from steepest.kernels.folded_cauchy import folded_cauchy_quantile, temperature

TANH = math.atanh(1 - 1e-4)
ALGEBRAIC = (1 - 1e-4) / math.sqrt(1 - (1 - 1e-4) ** 2)

# p: quantile for centre 0.5 and spread 1, temperature of tanh for centre 5e-4 and spread 1e-3.
GOLDEN = {
    0.1: (0.19678374, 25163.2516),
    0.3: (0.60682316, 8160.0689),
    0.5: (1.11803399, 4428.9519),
    0.7: (2.05990821, 2403.8541),
    0.8: (3.14963520, 1572.1563),
    0.9: (6.35215082, 779.5342),
    0.95: (12.72572923, 389.1108),
    0.99: (63.66066727, 77.7830),
    0.999: (636.61964147, 7.7781),
}

probabilities = st.floats(1e-9, 1 - 1e-9)
numbers = st.floats(-1e6, 1e6)
spreads = st.floats(1e-6, 1e6)
scales = st.integers(-100, 100).map(lambda n: 2.0**n)


def cdf(q: float, centre: float, spread: float) -> float:
    return (math.atan((q - centre) / spread) + math.atan((q + centre) / spread)) / math.pi


@pytest.mark.parametrize("p", GOLDEN)
def test_golden_values(p):
    quantile, tau = GOLDEN[p]
    assert folded_cauchy_quantile(p, 0.5, 1.0) == pytest.approx(quantile, rel=0, abs=5.001e-9)
    assert temperature(p, 5e-4, 1e-3, TANH) == pytest.approx(tau, rel=0, abs=5.001e-5)


def test_golden_margins():
    assert pytest.approx(4.951718776, rel=0, abs=5e-10) == TANH
    assert pytest.approx(70.70537471, rel=0, abs=5e-9) == ALGEBRAIC


@given(probabilities, numbers, spreads)
@example(0.5, 0.0, 1.0)
@example(0.25, 1e6, 1e-6)
@example(0.75, 1e6, 1e-6)
def test_the_quantile_inverts_the_distribution(p, centre, spread):
    q = folded_cauchy_quantile(p, centre, spread)
    rounding = 4 * np.finfo(float).eps * max(1.0, abs(centre) / spread)  # what one bit of q changes
    assert cdf(q, centre, spread) == pytest.approx(p, rel=0, abs=rounding)


@pytest.mark.parametrize("p", [1e-3, 0.2, 0.499999, 0.5, 0.500001, 0.8, 0.9999])
@pytest.mark.parametrize("centre", [0.0, 1e-4, 0.3, 1.0, 50.0])
def test_against_bisection(p, centre):
    expected = optimize.brentq(lambda q: cdf(q, centre, 1.0) - p, 0.0, 1e6, xtol=1e-13, rtol=1e-13)
    assert folded_cauchy_quantile(p, centre, 1.0) == pytest.approx(expected, rel=1e-8)
    assert expected == pytest.approx(stats.foldcauchy.ppf(p, centre), rel=1e-6)  # and it is the law of this name


@pytest.mark.parametrize("p", [1e-300, 1e-12, 0.1, 0.5, 0.9, 1 - 1e-12, 1 - 2**-53])
def test_without_a_centre_it_is_a_tangent(p):
    expected = math.tan(math.pi * p / 2) if p < 0.5 else 1 / math.tan(math.pi * (1 - p) / 2)
    assert folded_cauchy_quantile(p, 0.0, 1.0) == pytest.approx(expected, rel=4e-15)


@given(probabilities, numbers, spreads, scales)
def test_the_scale_goes_through(p, centre, spread, scale):
    """Powers of two, 1e-30 to 1e30: bit for bit."""
    quantile = folded_cauchy_quantile(p, centre, spread)
    assert folded_cauchy_quantile(p, scale * centre, scale * spread) == scale * quantile
    assert folded_cauchy_quantile(p, -centre, spread) == quantile


@pytest.mark.parametrize("scale", [1e-300, 1e-30, 1e30, 1e300])
@pytest.mark.parametrize("p", GOLDEN)
def test_squares_neither_overflow_nor_vanish(p, scale):
    quantile = folded_cauchy_quantile(p, 0.5 * scale, scale)
    assert quantile / scale == pytest.approx(GOLDEN[p][0], rel=1e-7)


@given(probabilities, probabilities, numbers, spreads)
def test_it_grows_with_p_and_the_temperature_falls(p, q, centre, spread):
    p, q = sorted((p, q))
    low, high = (folded_cauchy_quantile(x, centre, spread) for x in (p, q))
    assert 0 < low <= high * (1 + 1e-14)
    assert temperature(q, centre, spread, TANH) <= temperature(p, centre, spread, TANH) * (1 + 1e-14)


def test_a_schedule_is_strictly_monotone_across_one_half():
    quantiles = [folded_cauchy_quantile(j / 4000, 0.7, 0.2) for j in range(4000)]
    assert quantiles[0] == 0
    assert np.all(np.diff(quantiles) > 0)


def test_limits_of_the_quantile():
    assert folded_cauchy_quantile(0, 0.5, 1.0) == 0
    assert folded_cauchy_quantile(0.0, 0.0, 0.0) == 0
    assert folded_cauchy_quantile(0.7, 0.0, 0.0) == 0
    for p in [1e-9, 0.3, 0.5, 0.9]:  # a point mass
        assert folded_cauchy_quantile(p, -3.0, 0.0) == 3
    assert folded_cauchy_quantile(0.5, 3.0, 4.0) == 5
    # The median of a wide law is its scale; a narrow one far from zero has half its mass on either side of the centre.
    assert folded_cauchy_quantile(0.5, 1e-9, 1.0) == pytest.approx(1.0, rel=1e-15)
    assert folded_cauchy_quantile(0.25, 1e9, 1.0) == pytest.approx(1e9 - 1, rel=1e-15)


def test_limits_of_the_temperature():
    assert temperature(0, 0.5, 1.0, TANH) == math.inf
    assert temperature(0.5, 0.5, 0.0, TANH) == math.inf
    assert temperature(0.5, 0.0, 0.0, TANH) == math.inf
    assert temperature(1e-12, 0.0, 1.0, TANH) == 1e9
    assert temperature(0.5, 0.0, 5e-324, TANH) == 1e9
    assert temperature(1e-9, 0.0, 5e-324, TANH) == 1e9  # here the quantile is below the smallest float
    assert temperature(0.999, 0.0, 1e300, TANH) == 1
    assert temperature(1 - 2**-53, 0.0, 1e308, TANH) == 1
    assert temperature(0.5, 0.0, 1.0, TANH) == pytest.approx(TANH, rel=1e-15)
    assert temperature(0.5, 0.0, 1.0, TANH, lowest=6.0) == 6
    assert temperature(0.5, 0.0, 1.0, TANH, highest=2.0) == 2


@pytest.mark.parametrize("margin", [TANH, ALGEBRAIC])
def test_the_saturated_share_of_cauchy_data_is_one_minus_p(margin):
    m = np.random.default_rng(0).standard_cauchy(400_000) * 2e-3 + 5e-4
    centre = float(np.median(m))
    spread = float(np.median(np.abs(m - centre)))
    for p in [0.05, 0.3, 0.5, 0.8, 0.95]:
        z = temperature(p, centre, spread, margin) * np.abs(m)
        soft = np.tanh(z) if margin == TANH else z / np.hypot(1.0, z)
        assert abs((soft >= 1 - 1e-4).mean() - (1 - p)) < 0.002


@pytest.mark.parametrize("p", [-1e-9, 1.0, 1.5, math.nan, math.inf])
def test_a_probability_outside_the_range_is_refused(p):
    with pytest.raises(ValueError, match="p must be"):
        folded_cauchy_quantile(p, 0.0, 1.0)
    with pytest.raises(ValueError, match="p must be"):
        temperature(p, 0.0, 0.0, TANH)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"spread": -1e-9}, "spread must be"),
        ({"spread": math.nan}, "spread must be"),
        ({"spread": math.inf}, "spread must be"),
        ({"centre": math.nan}, "centre must be"),
        ({"centre": -math.inf}, "centre must be"),
        ({"margin": 0.0}, "margin must be"),
        ({"margin": math.nan}, "margin must be"),
        ({"margin": math.inf}, "margin must be"),
        ({"lowest": 0.0}, "lowest <= highest"),
        ({"lowest": 3.0, "highest": 2.0}, "lowest <= highest"),
        ({"highest": math.nan}, "lowest <= highest"),
    ],
)
def test_numbers_outside_their_range_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        temperature(**{"p": 0.5, "centre": 0.0, "spread": 1.0, "margin": TANH, **changes})
