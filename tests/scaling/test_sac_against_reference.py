"""SAC against the slow oracle of ``reference.sac``: whole runs, every scale and every weight after every step."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator

import numpy as np
import pytest
import torch

import steepest
from reference import rules
from reference import sac as reference
from steepest.scaling import SAC
from steepest.scaling.statistics import Measure, measure

STEPS = 26
LR, WEIGHT_DECAY = 0.02, 0.3

# name -> (shape, place). Layer 1 has a LoRA pair in a block of its own, whose A begins without a gradient. Layer 3 is
# such a pair alone: while A has none, most of the layer is zero and its dispersion means nothing. Layer 4 has 12
# elements, too few to measure.
TENSORS = {
    "embedding": ((40, 8), (-1, "embedding")),
    "0.q": ((12, 8), (0, "attention")),
    "0.o": ((8, 12), (0, "attention")),
    "0.up": ((20, 8), (0, "mlp")),
    "0.gain": ((8,), None),
    "1.q": ((12, 8), (1, "attention")),
    "1.A": ((4, 12), (1, "adapter")),
    "1.up": ((5, 8, 4), (1, "mlp")),
    "1.router": ((5, 8), None),
    "2.q": ((11, 7), (2, "attention")),
    "2.up": ((7, 9), (2, "mlp")),
    "3.A": ((4, 40), (3, "attention")),
    "3.B": ((10, 4), (3, "attention")),
    "4.small": ((3, 4), (4, "mlp")),
    "head": ((40, 8), (5, "head")),
}
PARTITION = {name: place for name, (_, place) in TENSORS.items() if place}
HIDDEN = (0, 1, 2, 3, 4)

Gradients = list[dict[str, np.ndarray | None]]


@functools.cache
def problem() -> tuple[list[tuple[str, np.ndarray]], Gradients]:
    """Gradients with heavy tails whose size differs between tensors and drifts; all are float32 numbers."""
    rng = np.random.default_rng(11)
    parameters = [(name, rng.normal(size=shape)) for name, (shape, _) in TENSORS.items()]
    size = {name: np.exp(rng.normal(scale=1.5)) * 1e-3 for name in TENSORS}
    gradients: Gradients = []
    for step in range(STEPS):
        g: dict[str, np.ndarray | None] = {}
        for name, (shape, _) in TENSORS.items():
            size[name] *= np.exp(rng.normal(scale=0.3))
            x = size[name] * (rng.standard_t(3, size=shape) + 0.2)
            if name == "embedding":
                x[rng.permutation(40)[:31]] = 0.0
            if name.endswith(".A") and step < 4:
                x = np.zeros(shape)
            absent = (name == "2.up" and 7 <= step < 17) or (name == "1.q" and step >= 14)
            g[name] = None if absent else x.astype(np.float32).astype(np.float64)
        gradients.append(g)
    return parameters, gradients


def adamw(named):
    return torch.optim.AdamW([p for _, p in named], lr=LR, betas=(0.8, 0.95), eps=1e-8, weight_decay=WEIGHT_DECAY)


def sgd(named):
    return torch.optim.SGD([p for _, p in named], lr=LR, momentum=0.8, weight_decay=WEIGHT_DECAY)


def lion(named):
    return steepest.Lion(named, lr=LR, betas=(0.8, 0.95), weight_decay=WEIGHT_DECAY)


BASES = {
    adamw: (rules.adamw, {"betas": (0.8, 0.95)}),
    sgd: (reference.sgd, {"momentum": 0.8}),
    lion: (rules.lion, {"betas": (0.8, 0.95)}),
}


@functools.cache
def with_infinity() -> tuple[list[tuple[str, np.ndarray]], Gradients]:
    """The same problem with one element that is not finite in step 10."""
    parameters, gradients = problem()
    spoilt = gradients[10]["2.q"].copy()
    spoilt[3, 4] = math.inf
    return parameters, [g | {"2.q": spoilt} if step == 10 else g for step, g in enumerate(gradients)]


def steps(
    optimizer: torch.optim.Optimizer, named: list[tuple[str, torch.nn.Parameter]], gradients: Gradients
) -> Iterator[int]:
    """Take every step, and yield its number after it."""
    for step, g in enumerate(gradients):
        for name, p in named:
            p.grad = None if g[name] is None else torch.tensor(g[name], dtype=p.dtype)
        optimizer.step()
        yield step


def named_parameters(dtype: torch.dtype) -> list[tuple[str, torch.nn.Parameter]]:
    return [(name, torch.nn.Parameter(torch.tensor(x, dtype=dtype))) for name, x in problem()[0]]


def compare(
    library: dict, oracle: dict, build=adamw, dtype=torch.float64, *, decay=WEIGHT_DECAY, of=problem
) -> list[dict]:
    """Run both and compare; return the scales of each step."""
    rule, numbers = BASES[build]
    expected, scales = reference.run(
        rule,
        *of(),
        PARTITION,
        lr=LR,
        weight_decay=decay,
        base=numbers,
        **{"hidden": HIDDEN, "nonzero_rows": ["embedding"], **oracle},
    )
    named = named_parameters(dtype)
    base = build(named)
    for group in base.param_groups:
        group["weight_decay"] = decay
    library = {"estimator": "exact", **library}
    optimizer = SAC(base, named, partition=lambda name, *_: PARTITION.get(name), **library)
    tolerance = 1e-6 if dtype == torch.float64 else 2e-5
    for step in steps(optimizer, named, of()[1]):
        found = optimizer.scales
        assert found.keys() == scales[step].keys()
        for key, scale in scales[step].items():
            assert found[key] == pytest.approx(scale, rel=1e-6), (step, key)
        for name, p in named:
            np.testing.assert_allclose(
                p.detach(), expected[step + 1][name], rtol=tolerance, atol=tolerance, err_msg=f"{step} {name}"
            )
    return scales


def test_the_problem_is_not_a_trivial_one():
    """Scales differ, change, reach neither bound most of the time, and every special case occurs."""
    scales = compare({"interval": 1}, {"interval": 1})
    values = np.array([list(s.values()) for s in scales])
    assert np.mean((values > 0.11) & (values < 9.9) & (abs(values - 1) > 1e-3)) > 0.8
    assert all(s[4, "mlp"] == 1.0 for s in scales)
    assert all(s[1, "adapter"] == 1.0 for s in scales[:4])
    assert scales[4][1, "adapter"] != 1.0
    assert scales[3][3, "attention"] == 1.0 != scales[4][3, "attention"]
    assert scales[6][2, "mlp"] == scales[16][2, "mlp"] != scales[17][2, "mlp"]
    assert scales[13][1, "attention"] == scales[-1][1, "attention"] != scales[12][1, "attention"]


@pytest.mark.parametrize(("interval", "dtype"), [(1, torch.float64), (5, torch.float64), (5, torch.float32)], ids=str)
@pytest.mark.parametrize("build", BASES)
def test_equations(build, interval, dtype):
    compare({"interval": interval}, {"interval": interval}, build, dtype)


@pytest.mark.parametrize("build", BASES)
def test_algorithm1(build):
    compare({"mode": "algorithm1", "interval": 5}, {"mode": "algorithm1", "interval": 5}, build)


MODES = {
    "raw": (
        {"mode": "equations-raw", "interval": 5},
        {"interval": 5, "gamma": 1.0, "beta": 1.0, "rho": 1.0, "bounds": None},
    ),
    "numbers": 2 * ({"interval": 3, "gamma": 0.25, "beta": 0.75, "rho": 0.4, "bounds": (0.5, 1.3), "eps": 1e-3},),
    "eps 0": 2 * ({"interval": 5, "eps": 0.0},),
    "block": ({"granularity": "P+B"}, {"factors": ("block",)}),
    "layer": ({"granularity": "P+L"}, {"factors": ("layer",)}),
    "all layers": ({"scope": "all", "interval": 5}, {"hidden": None, "interval": 5}),
    "raw embedding": ({"embedding": "raw", "interval": 5}, {"nonzero_rows": (), "interval": 5}),
    "scaled decay": 2 * ({"scale_weight_decay": True, "interval": 5},),
    "interval 10": ({}, {}),
    "interval 1 algorithm1": 2 * ({"mode": "algorithm1", "interval": 1},),
    "paper-c4": ({"mode": "paper-c4"}, {"mode": "algorithm1", "interval": 500}),
    "paper-sft": ({"mode": "paper-sft"}, {"mode": "algorithm1", "interval": 500, "bounds": (0.5, 1.0)}),
    "unbounded algorithm1": 2 * ({"mode": "algorithm1", "interval": 5, "bounds": None},),
    "released denominator": (
        {"mode": "algorithm1", "interval": 5, "block_scale": "mad_of_distances"},
        {"mode": "algorithm1", "interval": 5, "block_scale": reference.mad_of_distances},
    ),
    "normalized": (
        {"mode": "algorithm1", "interval": 5, "normalize_block": True},
        {"mode": "algorithm1", "interval": 5, "gaussian": reference.gaussian_shape_factor(0.6744897501960817)},
    ),
    "mean centre": (
        {"mode": "algorithm1", "interval": 5, "centre": "mean"},
        {"mode": "algorithm1", "interval": 5, "statistic": functools.partial(reference.mad, centre="mean")},
    ),
}


@pytest.mark.parametrize("mode", MODES)
def test_modes(mode):
    library, oracle = MODES[mode]
    scales = compare(library, oracle)
    assert len({round(x, 9) for s in scales for x in s.values()}) > 3  # 3 are in every run: 1 and the bounds


@pytest.mark.parametrize("mode", ["equations", "algorithm1"])
@pytest.mark.parametrize("statistic", reference.STATISTICS)
def test_statistics(statistic, mode):
    both = {"mode": mode, "interval": 9, "bounds": (1e-6, 1e6)}
    compare({**both, "statistic": statistic}, {**both, "statistic": reference.STATISTICS[statistic]})


@pytest.mark.parametrize("mode", ["equations", "algorithm1"])
@pytest.mark.parametrize("aggregate", ["block_mean", "block_median"])
def test_aggregates(aggregate, mode):
    both = {"mode": mode, "interval": 9, "aggregate": aggregate}
    compare({**both, "statistic": "rms"}, {**both, "statistic": reference.rms})


@pytest.mark.parametrize("statistic", ["l1", "std", "mean_deviation"])
def test_normalized_by_the_gaussian_value_of_the_statistic(statistic):
    gaussian = {"l1": math.sqrt(2 / math.pi), "mean_deviation": math.sqrt(2 / math.pi), "std": 1.0}[statistic]
    both = {"mode": "algorithm1", "interval": 10}
    compare(
        {**both, "statistic": statistic, "normalize_block": True},
        {
            **both,
            "statistic": reference.STATISTICS[statistic],
            "gaussian": reference.gaussian_shape_factor(gaussian),
        },
    )


@pytest.mark.parametrize("mode", ["equations", "algorithm1"])
def test_a_sample_of_small_blocks_is_all_of_them(mode):
    compare({"mode": mode, "estimator": "sample", "interval": 1}, {"mode": mode, "interval": 1}, dtype=torch.float32)


@pytest.mark.parametrize("statistic", ["mad", "iqr", "maximum"])
def test_a_histogram_of_bfloat16_gradients_is_exact(statistic):
    gradients = [torch.from_numpy(problem()[1][0][name]).bfloat16() for name in ("0.q", "1.up", "2.q")]
    blocks = {(layer, "attention"): [g] for layer, g in enumerate(gradients)}
    found = measure(blocks, Measure(statistic=statistic, estimator="histogram"))
    pools = [g.double().numpy().ravel() for g in gradients]
    expected = [reference.STATISTICS[statistic](x) for x in [*pools, np.concatenate(pools)]]
    assert [p.dispersion for p in [*found.layers.values(), found.model]] == pytest.approx(expected, rel=1e-7)


@pytest.mark.parametrize("engine", ["cpu", "hybrid"])
def test_engines_that_wait(engine):
    library = {"estimator": "sample", "engine": engine, "wait": True, "interval": 5}
    compare(library, {"interval": 5}, dtype=torch.float32)


def test_a_schedule_is_scaled_too():
    """Rates that are set from outside between the steps."""
    expected, _ = reference.run(
        rules.adamw,
        *problem(),
        PARTITION,
        lr=lambda step: LR / (1 + step),
        weight_decay=WEIGHT_DECAY,
        base=BASES[adamw][1],
        hidden=HIDDEN,
        nonzero_rows=["embedding"],
    )
    named = named_parameters(torch.float64)
    optimizer = SAC(adamw(named), named, partition=lambda name, *_: PARTITION.get(name))
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (1 + step))
    for _ in steps(optimizer, named, problem()[1]):
        scheduler.step()
    for name, p in named:
        np.testing.assert_allclose(p.detach(), expected[-1][name], rtol=1e-6, atol=1e-6, err_msg=name)


def test_update_and_rates_take_the_same_steps_without_decay():
    for build in BASES:
        for apply in ("rates", "update"):
            compare({"apply": apply}, {}, build, decay=0.0)


def test_update_scales_a_decoupled_decay():
    """As documented, and as the oracle with a scaled decay."""
    compare({"apply": "update", "interval": 5}, {"interval": 5, "scale_weight_decay": True})


def rows(name: str) -> np.ndarray:
    shape = TENSORS[name][0]
    return np.broadcast_to(np.arange(shape[0]).reshape(-1, *[1] * (len(shape) - 1)), shape)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("build", BASES)
def test_groups(build, dtype):
    compare(
        {"granularity": "P+G+L+B", "group_by": "rows", "interval": 5},
        {"interval": 5, "groups": {name: rows(name) for name in PARTITION}},
        build,
        dtype,
        decay=0.0,
    )


@pytest.mark.filterwarnings("ignore:SAC. the gradient of '2.q' is not finite")
def test_statistics_that_are_not_finite_change_no_factor():
    """Neither the scales nor the group factors, until the next time."""
    scales = compare(
        {"granularity": "P+G+L+B", "group_by": "rows", "interval": 5},
        {"interval": 5, "groups": {name: rows(name) for name in PARTITION}},
        dtype=torch.float32,
        decay=0.0,
        of=with_infinity,
    )
    assert scales[9] == scales[10] != scales[15]


def test_group_options():
    compare(
        {"factors": {"group"}, "group_by": "rows", "interval": 5, "group_beta": 0.8, "group_bounds": (0.7, 3.0)},
        {
            "interval": 5,
            "factors": (),
            "groups": {name: rows(name) for name in PARTITION},
            "group_numbers": {"beta": 0.8, "bounds": (0.7, 3.0)},
        },
        dtype=torch.float32,
        decay=0.0,
    )
