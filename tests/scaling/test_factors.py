"""Scale factors: numbers worked out by hand, what formulas leave open, invariances."""

from __future__ import annotations

import math

import pytest
import torch

from steepest.scaling.factors import GRANULARITIES, algorithm1, equations, gaussian_score, granularity
from steepest.scaling.statistics import ESTIMATORS, STATISTICS, BlockNumbers, Measure, Numbers, PoolNumbers, measure

GOLDEN = {
    (1, "token"): [1, -2, 3, -4, 5],
    (1, "channel"): [0.5, -0.5, 1.5, -1.5, 2.5],
    (2, "token"): [0.1, -0.2, 0.3, -0.4, 0.5],
    (2, "channel"): [0.2, -0.2, 0.6, -0.6, 1.0],
}
KEYS = list(GOLDEN)
PURE = {"rho": 1.0, "eps": 0.0, "bounds": None, "least": 1}


def golden(factor=None, estimator="exact", **options):
    factor = factor or {}
    gradients = {key: [factor.get(key, 1.0) * torch.tensor(block)] for key, block in GOLDEN.items()}
    return measure(gradients, Measure(estimator=estimator, **options))


def printed(values):
    return [f"{values[key]:.6f}" for key in KEYS]


@pytest.mark.parametrize("estimator", ["exact", "sample"])
def test_equations_of_numbers_by_hand(estimator):
    numbers = golden(estimator=estimator)
    assert printed({key: block.rms for key, block in numbers.blocks.items()}) == [
        "3.316625",
        "1.500000",
        "0.331662",
        "0.600000",
    ]
    full = equations(numbers, gamma=1.0, beta=1.0, **PURE)
    assert [f"{c:.6f}" for c in full.layers.values()] == ["0.350000", "2.333333"]
    assert printed(full.blocks) == ["1.377157", "0.622843", "0.711980", "1.288020"]
    assert printed(full.scales) == ["0.482005", "0.217995", "1.661286", "3.005380"]
    half = equations(numbers, gamma=0.5, beta=0.5, **PURE)
    assert [f"{c:.6f}" for c in half.layers.values()] == ["0.591608", "1.527525"]
    assert printed(half.blocks) == ["1.195809", "0.804191", "0.852873", "1.147127"]


@pytest.mark.parametrize("estimator", ["exact", "sample"])
def test_algorithm1_of_numbers_by_hand(estimator):
    numbers = golden(block_scale="mad", estimator=estimator)
    assert printed({key: block.spread for key, block in numbers.blocks.items()}) == [
        "3.000000",
        "1.000000",
        "0.300000",
        "0.400000",
    ]
    found = algorithm1(numbers, bounds=None, least=1)
    assert printed(found.blocks) == ["0.633902", "0.716704", "0.633902", "0.716704"]
    assert printed(found.scales) == ["0.221866", "0.250846", "1.479104", "1.672309"]
    assert list(algorithm1(numbers, bounds=(0.5, 1.0), least=1).scales.values()) == [0.5, 0.5, 1.0, 1.0]
    distances = algorithm1(golden(block_scale="mad_of_distances", estimator=estimator), least=1)
    assert printed(distances.blocks) == ["0.889412", "0.716704", "0.889412", "0.716704"]


def test_a_histogram_gives_almost_the_numbers_by_hand():
    found = equations(golden(estimator="histogram"), gamma=1.0, beta=1.0, **PURE).scales
    exact = equations(golden(), gamma=1.0, beta=1.0, **PURE).scales
    assert all(found[key] == pytest.approx(exact[key], rel=0.02) for key in KEYS)


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("statistic", STATISTICS)
def test_equal_gradients_give_exactly_one(statistic, estimator):
    g = torch.randn(300, 40, generator=torch.Generator().manual_seed(0)) * 1e-5
    gradients = {(layer, block): [g.clone()] for layer in range(4) for block in ("attention", "mlp")}
    numbers = measure(gradients, Measure(statistic=statistic, estimator=estimator, samples=4096))
    assert set(equations(numbers, rho=0.3).scales.values()) == {1.0}


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_scaling_gradients(estimator):
    """Of all: nothing changes. Of a layer by k: its c by k^-gamma. Of a block: its weight in the softmax by k^beta."""
    once = equations(golden(estimator=estimator), **PURE)
    every = equations(golden(dict.fromkeys(KEYS, 2.0**-20), estimator), **PURE)
    assert every.scales == pytest.approx(once.scales, rel=1e-12)
    assert equations(golden(dict.fromkeys(KEYS, 2.0**-20), estimator, scope=frozenset({2})), **PURE).layers[2] == 1.0
    layer = equations(golden({KEYS[0]: 8.0, KEYS[1]: 8.0}, estimator, scope=frozenset({2})), **PURE)
    before = equations(golden(estimator=estimator, scope=frozenset({2})), **PURE)
    assert layer.layers[1] / before.layers[1] == pytest.approx(8.0**-0.5, rel=1e-12)
    assert layer.blocks == pytest.approx(before.blocks, rel=1e-12)
    block = equations(golden({KEYS[2]: 16.0}, estimator), beta=0.75, **PURE).blocks
    old = equations(golden(estimator=estimator), beta=0.75, **PURE).blocks
    odds = block[KEYS[2]] / block[KEYS[3]] / (old[KEYS[2]] / old[KEYS[3]])
    assert odds == pytest.approx(16.0**0.75, rel=1e-12)


def numbers_of(rms, dispersion, count=100.0, model=1.0):
    """One layer for each of ``dispersion``, with the blocks of ``rms``."""
    layers = {i: PoolNumbers(count, d) for i, d in enumerate(dispersion)}
    blocks = {(i, name): BlockNumbers(count, r, spread=1.0, score=0.5) for i in layers for name, r in rms.items()}
    return Numbers(blocks, layers, PoolNumbers(count, model))


def test_blocks_share_a_budget():
    numbers = numbers_of({"a": 1.0, "b": 3.0, "c": 1e-3}, [0.1, 2.0])
    found = equations(numbers, beta=1.7)
    for layer in range(2):
        mine = [s for (of, _), s in found.blocks.items() if of == layer]
        assert sum(mine) == pytest.approx(3.0)
        assert all(0 < s < 3 for s in mine)
    assert set(equations(numbers, beta=0.0).blocks.values()) == {1.0}
    assert set(equations(numbers, gamma=0.0, beta=0.0).scales.values()) == {1.0}
    assert equations(numbers_of({"a": 123.0}, [1.0]), beta=2.0).scales == {(0, "a"): 1.0}


def test_the_moving_average_is_of_the_layer_factor():
    """From the first value on; rho weighs the new one."""
    first = equations(numbers_of({"a": 1.0, "b": 2.0}, [0.25]), rho=0.25)
    assert first.layers == first.memory == {0: pytest.approx(2.0)}
    second = equations(numbers_of({"a": 5.0, "b": 2.0}, [4.0]), first.memory, rho=0.25)
    assert second.layers[0] == pytest.approx(0.75 * 2.0 + 0.25 * 0.5)
    assert second.blocks == equations(numbers_of({"a": 5.0, "b": 2.0}, [4.0])).blocks
    assert first.memory == {0: pytest.approx(2.0)}  # the input stays
    assert equations(numbers_of({"a": 1.0}, [4.0]), first.memory, rho=1.0).layers[0] == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("dispersion", "count", "model"), [(0.0, 100.0, 1.0), (2.0, 15.0, 1.0), (2.0, 100.0, 0.0), (1e-39, 99.0, 1.0)]
)
def test_a_layer_that_cannot_be_measured_has_the_factor_one(dispersion, count, model):
    numbers = numbers_of({"a": 1.0, "b": 2.0}, [dispersion], count, model)
    found = equations(numbers, {0: 1.7, 5: 0.3})
    assert found.layers == {0: 1.0}
    assert found.memory == {0: 1.7, 5: 0.3}
    assert found.scales == found.blocks
    assert algorithm1(numbers).layers == {0: 1.0}


def test_a_block_without_gradient_is_left_to_the_others():
    """No gradient, or one of zeros only (LoRA's A at the first step): its scale is not in the result."""
    gradients = {(0, "a"): [torch.zeros(50)], (0, "b"): [torch.randn(60)], (0, "c"): [torch.randn(60)], (1, "a"): []}
    for mode in (equations, algorithm1):
        found = mode(measure(gradients, Measure(block_scale="mad")))
        assert set(found.scales) == {(0, "b"), (0, "c")}
        assert all(math.isfinite(s) for s in found.scales.values())
    found = equations(measure(gradients, Measure()))
    assert sum(found.blocks.values()) == pytest.approx(2.0)
    assert found.layers.keys() == found.memory.keys() == {0}


def test_algorithm1_of_a_block_without_spread_is_one():
    numbers = measure({(0, "a"): [torch.full((40,), 2.0)], (0, "b"): [torch.randn(40)]}, Measure(block_scale="mad"))
    found = algorithm1(numbers)
    assert found.blocks[0, "a"] == 1.0
    assert found.blocks[0, "b"] != 1.0


def test_bounds_hold_the_product():
    numbers = numbers_of({"a": 1.0}, [1e-9, 1e9])
    assert list(equations(numbers).scales.values()) == [10.0, 0.1]
    assert list(algorithm1(numbers).scales.values()) == [10.0, 0.1]
    assert equations(numbers, bounds=None).scales[0, "a"] > 1e4


@pytest.mark.parametrize("name", GRANULARITIES)
def test_granularity(name):
    factors = granularity(name)
    assert ("layer" in factors) == ("L" in name)
    assert ("block" in factors) == ("B" in name)
    assert ("group" in factors) == (name == "P+G+L+B")
    numbers = numbers_of({"a": 1.0, "b": 2.0}, [0.3])
    for found in (equations(numbers, factors=factors), algorithm1(numbers, factors=factors)):
        assert (found.layers[0] != 1.0) == ("L" in name)
        assert (found.blocks[0, "a"] != 1.0) == ("B" in name)


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_algorithm1_of_gaussian_gradients(estimator):
    """It makes all steps smaller, by a constant of the statistic; normalized, a homogeneous model has scale 1."""
    generator = torch.Generator().manual_seed(0)
    gradients = {(i, "a"): [1e-4 * torch.randn(400, 500, generator=generator)] for i in range(2)}
    known = {
        "mad": 0.702,
        "huber": 0.567,
        "iqr": 0.428,
        "mean_deviation": 0.627,
        "l1": 0.627,
        "std": 0.535,
        "rms": 0.535,
    }
    for statistic, constant in known.items():
        numbers = measure(gradients, Measure(statistic=statistic, block_scale="mad", estimator=estimator))
        assert algorithm1(numbers).scales[0, "a"] == pytest.approx(constant, rel=0.02)
        assert gaussian_score(statistic) == pytest.approx(constant, abs=0.0006)
        normal = algorithm1(numbers, gaussian=gaussian_score(statistic))
        assert normal.scales[0, "a"] == pytest.approx(1.0, abs=0.02)
        if estimator != "sample":
            break
    numbers = measure(gradients, Measure(block_scale="mad_of_distances", estimator=estimator))
    assert algorithm1(numbers).scales[1, "a"] == pytest.approx(0.975, rel=0.02)
    assert gaussian_score("mad", "mad_of_distances") == pytest.approx(0.975, abs=0.0006)


@pytest.mark.parametrize("statistic", ["variance", "maximum"])
def test_some_statistics_cannot_be_normalized(statistic):
    with pytest.raises(ValueError, match=f"normalize_block needs .* not '{statistic}'"):
        gaussian_score(statistic)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"gamma": 1.5}, r"equations: gamma must be a number in \[0, 1\], got 1.5"),
        ({"gamma": math.nan}, "gamma must be"),
        ({"beta": -0.1}, "beta must be a finite number >= 0"),
        ({"rho": 0.0}, r"rho must be a number in \(0, 1\], got 0.0"),
        ({"eps": -1.0}, "eps must be"),
        ({"bounds": (2.0, 1.0)}, r"bounds are reversed: \(2.0, 1.0\)"),
        ({"bounds": (0.0, 1.0)}, "bounds must be"),
        ({"factors": {"row"}}, "unknown factors 'row'; did you mean 'group'"),
    ],
)
def test_bad_options(options, message):
    numbers = numbers_of({"a": 1.0}, [1.0])
    with pytest.raises(ValueError, match=message):
        equations(numbers, **options)
    if options.keys() & {"bounds", "factors"}:
        with pytest.raises(ValueError, match=message):
            algorithm1(numbers, **options)


def test_bad_names_and_numbers():
    with pytest.raises(ValueError, match=r"SAC: unknown granularity 'B'; did you mean 'P\+B'"):
        granularity("B")
    with pytest.raises(ValueError, match="gaussian must be a finite number > 0"):
        algorithm1(golden(block_scale="mad"), gaussian=0.0)
    with pytest.raises(ValueError, match="measured with a block_scale"):
        algorithm1(golden())
    with pytest.raises(ValueError, match="unknown statistic 'mode'"):
        gaussian_score("mode")
