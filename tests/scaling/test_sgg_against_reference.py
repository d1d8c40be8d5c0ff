"""SGG against the slow oracle of ``reference.sgg``: whole runs, every scale and every weight after every step."""

from __future__ import annotations

import functools

import numpy as np
import pytest
import torch

import steepest
from reference import rules, sgg
from reference import sac as reference
from steepest.scaling import SGG
from steepest.scaling.clusters import cluster_bounds

STEPS, LR = 26, 0.02
SHAPES = {"a": (12, 9), "b": (7, 5, 3), "c": (20, 8), "small": (2, 3), "gain": (9,)}


@functools.cache
def problem():
    """Gradients of different sizes with heavy tails; all are float32 numbers. From step 12 to 15 ``c`` has none."""
    rng = np.random.default_rng(5)
    size = {name: np.exp(rng.normal()) for name in SHAPES}
    parameters = [(name, rng.normal(size=shape)) for name, shape in SHAPES.items()]
    gradients = [
        {n: (size[n] * rng.standard_t(3, size=shape)).astype(np.float32).astype(float) for n, shape in SHAPES.items()}
        for _ in range(STEPS)
    ]
    for step in range(12, 16):
        gradients[step]["c"] = None
    return parameters, gradients


def adamw(named):
    return torch.optim.AdamW([p for _, p in named], lr=LR, betas=(0.8, 0.95))


def sgd(named):
    return torch.optim.SGD([p for _, p in named], lr=LR, momentum=0.8)


def lion(named):
    return steepest.Lion(named, lr=LR, betas=(0.8, 0.95), weight_decay=0.0)


BASES = {
    adamw: (rules.adamw, {"betas": (0.8, 0.95)}),
    sgd: (reference.sgd, {"momentum": 0.8}),
    lion: (rules.lion, {"betas": (0.8, 0.95)}),
}


def compare(build=adamw, dtype=torch.float64, *, decay=0.0, values="signed", clusters=3, **numbers) -> list[dict]:
    """Run both and compare; return the scales of each step."""
    rule, base = BASES[build]
    numbers = {"beta": 0.7, "recluster": 10, **numbers}

    def find(step: int, name: str, momentum: np.ndarray) -> np.ndarray:
        x = np.abs(momentum) if values == "magnitude" else momentum
        return sgg.nearest(x, sgg.lloyd(x, sgg.spread_quantiles(x, clusters), 30))

    expected, scales = sgg.run(
        rule, *problem(), find, lr=LR, weight_decay=decay, scale_weight_decay=True, k=clusters, base=base, **numbers
    )
    named = [(name, torch.nn.Parameter(torch.tensor(x, dtype=dtype))) for name, x in problem()[0]]
    inner = build(named)
    for group in inner.param_groups:
        group["weight_decay"] = decay
    optimizer = SGG(
        inner,
        named,
        partition=lambda name, *_: (0, name),
        clusters=clusters,
        values=values,
        samples=None,
        cluster_samples=None,
        **numbers,
    )
    tolerance = 1e-6 if dtype == torch.float64 else 2e-5
    for step, g in enumerate(problem()[1]):
        for name, p in named:
            p.grad = None if g[name] is None else torch.tensor(g[name], dtype=dtype)
        optimizer.step()
        found = optimizer.scales
        assert found.keys() == scales[step].keys()
        for name, values_ in scales[step].items():
            np.testing.assert_allclose(found[name], values_, rtol=2e-5, err_msg=f"{step} {name}")
        for name, p in named:
            np.testing.assert_allclose(
                p.detach(), expected[step + 1][name], rtol=tolerance, atol=tolerance, err_msg=f"{step} {name}"
            )
    return scales


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("build", BASES)
def test_runs(build, dtype):
    scales = compare(build, dtype)
    assert max(np.ptp(s) for s in scales[-1].values()) > 0.5
    assert (scales[12]["c"] == scales[15]["c"]).all()


@pytest.mark.parametrize(
    "numbers",
    [
        {"interval": 5},
        {"recluster": 1},
        {"recluster": 500},
        {"beta": 0.0, "bounds": (0.5, 1.2)},
        {"beta": 0.99},
        {"pool": "elements"},
        {"eps": 0.1},
        {"values": "magnitude"},
        {"clusters": 1},
        {"clusters": 2},
        {"clusters": 8},  # more than ``small`` has elements
        {"decay": 0.3},  # scaled along, as documented
    ],
    ids=str,
)
def test_options(numbers):
    compare(**numbers)


@pytest.mark.parametrize("clusters", [2, 3, 5])
def test_clusters_are_a_local_optimum_near_the_best(clusters):
    rows = np.random.default_rng(0).standard_t(4, size=(4, 60))
    bounds = cluster_bounds(torch.tensor(rows), clusters)
    for x, limits in zip(rows, bounds, strict=True):
        found = torch.bucketize(torch.tensor(x), limits).numpy()
        assert (found == sgg.nearest(x, sgg.lloyd(x, sgg.spread_quantiles(x, clusters)))).all()
        best = sgg.within(x, sgg.best_clusters(x, clusters))
        assert best <= sgg.within(x, found) * (1 + 1e-12)
        assert sgg.within(x, found) < {2: 1.2, 3: 1.6, 5: 2.2}[clusters] * best  # quantiles start far from tails
