from __future__ import annotations

import math

import numpy as np
import pytest

from steepest.lab.errors import UserError
from steepest.lab.statistics import data_speedups, fit_scaling_law, fit_shared_law

A, B, C = 60.0, 0.28, 1.7
HORIZONS = [5e5, 1e6, 2e6, 4e6]


def loss(tokens, multiplier=1.0):
    """The final loss of a method that needs `multiplier` times the tokens of the baseline."""
    return A * (tokens / multiplier) ** -B + C


def exact(multiplier=1.0, horizons=HORIZONS, seeds=1):
    return {tokens: {seed: loss(tokens, multiplier) for seed in range(seeds)} for tokens in horizons}


def noisy(rng, common, multiplier=1.0, sd=0.005):
    """Losses with the noise of the seed in common (`common`) and a part of their own."""
    return {
        tokens: {seed: loss(tokens, multiplier) + shift + rng.normal(0, sd) for seed, shift in enumerate(common)}
        for tokens in HORIZONS
    }


@pytest.mark.parametrize(("a", "b", "c"), [(60.0, 0.28, 1.7), (2000.0, 0.5, 3.0), (8.0, 0.1, 0.0), (5e4, 0.9, 0.4)])
def test_fit_finds_the_law_that_made_the_losses(a, b, c):
    law = fit_scaling_law({tokens: {0: a * tokens**-b + c} for tokens in HORIZONS})
    assert (law.b, law.c) == (pytest.approx(b, rel=1e-3), pytest.approx(c, abs=2e-3))
    assert law.error < 1e-6
    assert (law.shortest, law.longest) == (5e5, 4e6)
    for tokens in (7e5, 3e6):
        assert law.loss(tokens) == pytest.approx(a * tokens**-b + c, rel=1e-6)
        assert law.tokens(a * tokens**-b + c) == pytest.approx(tokens, rel=1e-4)
    assert math.isinf(law.tokens(law.c))


def test_error_of_the_fit_is_the_relative_error_of_a_loss():
    pairs = {tokens: {0: loss(tokens) * math.exp(5e-4), 1: loss(tokens) * math.exp(-5e-4)} for tokens in HORIZONS}
    assert fit_scaling_law(pairs).error == pytest.approx(5e-4, rel=1e-3)


def test_one_bad_seed_hardly_moves_the_fit():
    horizons = exact(seeds=5)
    horizons[2e6] = horizons[2e6] | {3: loss(2e6) + 0.5, 4: math.nan}
    law = fit_scaling_law(horizons)
    assert law.loss(2e6) == pytest.approx(loss(2e6), abs=2e-3)  # least squares is off by 0.04
    assert law.loss(4e6) == pytest.approx(loss(4e6), abs=2e-3)


def test_speed_up_of_a_method_that_needs_0_8_times_the_tokens():
    found = data_speedups(exact(seeds=2), {"muon": {7: loss(1e6, 0.8)}, "same": {0: loss(1e6), 1: loss(1e6)}}, 1e6, 9)
    assert found["muon"].value == pytest.approx(1 / 0.8, rel=1e-4)
    assert (found["muon"].beyond, found["muon"].tokens) == ("", 1e6)
    assert math.isnan(found["muon"].low)  # one seed
    assert found["same"].value == pytest.approx(1.0, rel=1e-4)
    assert (found["same"].low, found["same"].high) == pytest.approx((1.0, 1.0), rel=1e-4)


def test_nothing_is_extrapolated():
    methods = {"fast": {0: loss(5e6)}, "slow": {0: loss(4e5)}, "below": {0: C - 0.1}, "lost": {0: math.inf}}
    found = data_speedups(exact(), methods, 1e6, 5)
    assert set(found) == {"fast", "slow", "below"}
    assert [found[m].value for m in found] == [None, None, None]
    assert [found[m].beyond for m in found] == ["longest", "shortest", "longest"]
    assert [found[m].bound for m in found] == [4.0, 0.5, 4.0]


def test_interval_of_a_speed_up_covers_the_truth_and_shrinks_when_seeds_are_shared():
    rng = np.random.default_rng(2)
    common = rng.normal(0, 0.02, 8)
    baseline = noisy(rng, common)
    own = {s: loss(1e6, 0.8) + common[s] + rng.normal(0, 0.005) for s in range(8)}
    paired = data_speedups(baseline, {"m": own}, 1e6, 99)["m"]
    assert paired.low < 1 / 0.8 < paired.high
    assert paired.low < paired.value < paired.high
    unpaired = data_speedups(baseline, {"m": {s + 100: v for s, v in own.items()}}, 1e6, 99)["m"]
    assert unpaired.value == pytest.approx(paired.value)
    assert unpaired.high - unpaired.low > 1.3 * (paired.high - paired.low)


def test_shared_law_finds_the_multipliers():
    results = {
        "muon": exact(0.72),
        "adamw": exact(),
        "lion": exact(1.5, [1e6]),  # one horizon is enough
        "far": exact(0.1, [4e6]),  # stands for 40 M tokens of the baseline
        "lost": {1e6: {0: math.inf}},
    }
    found = fit_shared_law(results, "adamw", 5)
    values = {name: m.value for name, m in found.multipliers.items()}
    assert values == pytest.approx({"adamw": 1.0, "muon": 0.72, "lion": 1.5, "far": 0.1}, rel=1e-3)
    assert {name for name, m in found.multipliers.items() if m.beyond} == {"far"}
    assert (found.law.b, found.law.c) == (pytest.approx(B, rel=1e-3), pytest.approx(C, abs=2e-3))
    assert math.isnan(found.multipliers["muon"].low)


def test_interval_of_a_multiplier_covers_the_truth():
    rng = np.random.default_rng(4)
    common = rng.normal(0, 0.02, 5)
    found = fit_shared_law({"adamw": noisy(rng, common), "muon": noisy(rng, common, 0.72)}, "adamw", 99)
    muon = found.multipliers["muon"]
    assert muon.low < 0.72 < muon.high
    assert muon.high - muon.low < 0.1
    assert fit_shared_law({"adamw": noisy(rng, common)}, "adamw", 3).multipliers.keys() == {"adamw"}


def test_too_few_horizons_and_nonsense_are_refused():
    three = exact(horizons=HORIZONS[:3]) | {4e6: {0: math.inf}}  # the fourth diverged
    with pytest.raises(UserError, match="4 or more horizons, got 3"):
        data_speedups(three, {}, 1e6)
    with pytest.raises(UserError, match="baseline adamw at 4 or more"):
        fit_shared_law({"adamw": three}, "adamw")
    with pytest.raises(UserError, match="positive"):
        fit_scaling_law(exact() | {8e6: {0: -1.0}})
    with pytest.raises(UserError, match=r"'adam'.*'adamw'"):
        fit_shared_law({"adamw": exact()}, "adam")


@pytest.mark.parametrize("falls", [0.0, -0.1, 0.0005])
def test_a_baseline_that_more_data_does_not_improve_is_no_measure(falls):
    flat = {tokens: {0: 3.0 - falls * i} for i, tokens in enumerate(HORIZONS)}
    for refused in (fit_scaling_law, lambda h: data_speedups(h, {}, 1e6), lambda h: fit_shared_law({"a": h}, "a")):
        with pytest.raises(UserError, match="how much data a difference in loss is worth"):
            refused(flat)
    assert fit_scaling_law({tokens: {0: 3.0 - 0.005 * i} for i, tokens in enumerate(HORIZONS)}).error < 1e-3
