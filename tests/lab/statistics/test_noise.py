from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from steepest.lab.errors import UserError
from steepest.lab.statistics import noise_floor


def with_sd(sd, n, mean=4.0):
    """n numbers whose sample standard deviation (n - 1 in the denominator) is exactly `sd`."""
    x = np.arange(n, dtype=float)
    return list(mean + sd * (x - x.mean()) / x.std(ddof=1))


def test_noise_floor_with_the_factors_of_a_chi_squared_table():
    noise = noise_floor({"adamw": with_sd(0.02, 10), "muon": with_sd(5.0, 4)}, "adamw")
    assert noise.sd == pytest.approx(0.02)
    # table: chi2(0.975, 9) = 19.023, chi2(0.025, 9) = 2.700
    assert noise.low == pytest.approx(0.02 * math.sqrt(9 / 19.023), rel=1e-4)
    assert noise.high == pytest.approx(0.02 * math.sqrt(9 / 2.700), rel=1e-3)
    assert (noise.degrees, noise.methods) == (9, ("adamw",))
    assert noise_floor({"adamw": with_sd(1.0, 5)}, "adamw").high == pytest.approx(2.87, abs=0.01)


def test_only_asked_are_methods_pooled_and_each_around_its_own_mean():
    losses = {"adamw": with_sd(0.01, 3, mean=4.0), "soap": with_sd(0.03, 7, mean=3.0), "one": [2.0], "none": []}
    assert noise_floor(losses, "adamw").sd == pytest.approx(0.01)
    pooled = noise_floor(losses, "adamw", pool=True)
    assert pooled.sd == pytest.approx(math.sqrt((2 * 0.01**2 + 6 * 0.03**2) / 8))
    assert (pooled.degrees, pooled.methods) == (8, ("adamw", "soap"))


def test_the_interval_covers_the_true_noise_as_often_as_it_says():
    rng = np.random.default_rng(3)
    found = [noise_floor({"a": list(rng.normal(4, 0.02, 4))}, "a") for _ in range(600)]
    hits = sum(n.low <= 0.02 <= n.high for n in found)
    assert stats.binomtest(hits, 600, 0.95).pvalue > 0.01


def test_too_few_seeds_have_no_noise_and_an_unknown_baseline_is_named():
    noise = noise_floor({"adamw": [4.0, math.nan, math.inf]}, "adamw")
    assert noise.degrees == 0
    assert math.isnan(noise.sd)
    assert math.isnan(noise.high)
    with pytest.raises(UserError, match=r"'adamv'.*'adamw'"):
        noise_floor({"adamw": [4.0, 4.1]}, "adamv")
