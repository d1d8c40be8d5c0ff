"""SGG: its first step, invariants, checkpoints and bad input; `test_sgg_against_reference` has whole runs."""

from __future__ import annotations

import copy
import io

import numpy as np
import pytest
import torch
import toys

import cases
import steepest

EXACT = {"samples": None, "cluster_samples": None}


def sgg(base: torch.optim.Optimizer, of: cases.Problem, **options) -> steepest.SGG:
    return steepest.SGG(base, of.named(), partition=toys.MAPPING, **options)


def test_the_first_step_is_a_small_move_from_the_base() -> None:
    made, bare = toys.problem(dtype=torch.float64), toys.problem(dtype=torch.float64)
    base = toys.adamw(bare, weight_decay=0.0)
    optimizer = sgg(toys.adamw(made, weight_decay=0.0), made)
    start = made.weights()
    (found,), (expected,) = made.run(optimizer, stop=1), bare.run(base, stop=1)
    for name, x in found.items():
        ratio = (x - start[name]) / (expected[name] - start[name])
        if x.ndim == 1:
            assert torch.equal(x, expected[name])  # norms and biases are not scaled
        else:
            assert ratio.min() >= 0.99 + 0.01 * 0.1 - 1e-4  # S = 0.99 + 0.01 clamp(raw)
            assert ratio.max() <= 0.99 + 0.01 * 10 + 1e-4
            assert len(ratio.flatten().round(decimals=6).unique()) <= 3


def test_the_scale_of_the_gradients_does_not_matter_and_permuting_elements_permutes() -> None:
    def run(change) -> dict[str, torch.Tensor]:
        made = toys.problem(steps=12)
        with torch.no_grad():
            for p in made.params.values():
                p.copy_(change(p, 1.0))
        made.gradients = [{name: change(g, 64.0) for name, g in step.items()} for step in made.gradients]
        optimizer = sgg(toys.adamw(made, eps=0.0), made, eps=0.0, beta=0.5, recluster=3, **EXACT)
        return made.run(optimizer)[-1]

    plain = run(lambda x, size: x)
    for name, x in run(lambda x, size: x * size).items():
        torch.testing.assert_close(x, plain[name], rtol=1e-6, atol=1e-7)
    flipped = run(lambda x, size: x.flip(0))
    for name, x in flipped.items():
        torch.testing.assert_close(x.flip(0), plain[name], rtol=1e-5, atol=1e-6)


def test_samples_come_near_everything() -> None:
    shapes = {"layers.0.attention.weight": (256, 512), "layers.0.mlp.weight": (300, 411)}
    runs = []
    for samples in (4096, None):
        made = cases.Problem(shapes, steps=6)
        base = toys.adamw(made)
        sizes = {"samples": samples, "cluster_samples": samples}
        optimizer = steepest.SGG(base, made.named(), partition=toys.MAPPING[:1], beta=0.0, **sizes)
        made.run(optimizer)
        runs.append(optimizer.scales)
    for name, values in runs[0].items():
        np.testing.assert_allclose(values, runs[1][name], rtol=0.15)


@pytest.mark.parametrize("storage", ["device", "cpu"])
@pytest.mark.parametrize("stop", range(1, 9))
def test_a_resumed_run_repeats_the_other(stop: int, storage: str) -> None:
    options = {"recluster": 4, "interval": 3, "beta": 0.5, "storage": storage}
    made = toys.problem(steps=10)
    expected = made.run(sgg(toys.adamw(made), made, **options))
    made = toys.problem(steps=10)
    optimizer = sgg(toys.adamw(made), made, **options)
    made.run(optimizer, stop=stop)
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    fresh = sgg(toys.adamw(made), made, **options)
    fresh.load_state_dict(torch.load(file, weights_only=True))
    for found, other in zip(made.run(fresh, start=stop), expected[stop:], strict=True):
        for name, x in found.items():
            assert torch.equal(x, other[name])


def test_the_base_loads_its_part_alone_and_copies_are_alive() -> None:
    made = toys.problem(steps=6)
    optimizer = sgg(toys.adamw(made), made)
    made.run(optimizer, stop=3)
    toys.adamw(made).load_state_dict(optimizer.state_dict())
    twin = copy.deepcopy((optimizer, made))
    expected, found = made.run(optimizer, start=3), twin[1].run(twin[0], start=3)
    assert all(torch.equal(x, found[-1][name]) for name, x in expected[-1].items())


def test_a_sparse_embedding() -> None:
    torch.manual_seed(0)
    model = torch.nn.ModuleDict({"embed": torch.nn.Embedding(20, 8, sparse=True), "head": torch.nn.Linear(8, 20)})
    optimizer = steepest.SGG(torch.optim.SGD(model.parameters(), lr=0.1), model, beta=0.5)
    for _ in range(3):
        optimizer.zero_grad()
        model["head"](model["embed"](torch.arange(5))).square().mean().backward()
        optimizer.step()
    assert len(set(optimizer.scales["embed.weight"])) > 1


@pytest.mark.parametrize("make", [toys.adamw, lambda of: steepest.Lion(of.named(), lr=0.01)])
def test_other_bases_and_missing_gradients(make) -> None:
    made = toys.problem(steps=8)
    for step in (2, 3):
        made.gradients[step]["layers.0.mlp.weight"] = None
    before = None
    optimizer = sgg(make(made), made, recluster=2, beta=0.5)
    for step in range(8):
        made.load(step)
        optimizer.step()
        now = optimizer.scales["layers.0.mlp.weight"]
        if step in (2, 3):
            assert now == before
        before = now
    assert all(x.isfinite().all() for x in made.weights().values())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"clusters": 0}, "clusters must be a whole number >= 1"),
        ({"clusters": 300}, "at most 255"),
        ({"recluster": 0}, "recluster must be a whole number >= 1"),
        ({"beta": 1.0}, r"SGG: beta must be a number in \[0, 1\), got 1.0"),
        ({"beta": -0.1}, "beta must be"),
        ({"bounds": (10.0, 0.1)}, r"SGG: bounds are reversed: \(10.0, 0.1\); give \(0.1, 10\)"),
        ({"bounds": (0.5, float("inf"))}, r"SGG: bounds must be a pair .* finite numbers > 0, got \(0.5, inf\)$"),
        ({"eps": float("inf")}, "SGG: eps must be a finite number >= 0, got inf"),
        ({"cluster": 4}, "SGG has no option 'cluster'; did you mean 'clusters'"),
        ({"head": "exlude"}, "SGG: unknown head 'exlude'; did you mean 'exclude'"),
        ({"bounds": None}, "bounds must be"),
        ({"seed": -1}, "seed must be a whole number >= 0"),
        ({"values": "absolute"}, "values"),
        ({"samples": 3}, "samples must be a whole number >= 16"),
    ],
)
def test_bad_options(options, message: str) -> None:
    made = toys.problem()
    with pytest.raises((ValueError, TypeError), match=message):
        sgg(toys.adamw(made), made, **options)
    toys.adamw(made).step()  # nothing was closed


def test_parameters_of_another_model_and_checkpoints_that_do_not_fit() -> None:
    made, other = toys.problem(), toys.problem()
    with pytest.raises(ValueError, match="8 of the 8 parameters of the optimizer are not parameters of the model"):
        steepest.SGG(toys.adamw(made), other.named(), partition=toys.MAPPING)
    optimizer = sgg(toys.adamw(made), made)
    made.run(optimizer, stop=1)
    saved = optimizer.state_dict()
    with pytest.raises(ValueError, match="has 3 clusters, here there are 4; give clusters=3"):
        sgg(toys.adamw(made), made, clusters=4).load_state_dict(saved)
    saved["sgg"]["ids"]["head.weight"] = torch.zeros(2, 2, dtype=torch.uint8)
    with pytest.raises(ValueError, match=r"'head.weight' in the shape \(2, 2\), here it is \(12, 6\)"):
        sgg(toys.adamw(made), made).load_state_dict(saved)


def test_weights_that_are_unfrozen_or_given_to_the_base_take_part() -> None:
    model = toys.Net()
    model.layers[0].requires_grad_(False)
    base = torch.optim.AdamW([*model.layers.parameters(), *model.embed.parameters()], lr=0.01)
    optimizer = steepest.SGG(base, model, beta=0.5, recluster=4)
    toys.train(model, optimizer, 0, 2)
    first = optimizer.scales
    assert not [name for name in first if name.startswith("layers.0") or name.startswith("head")]
    saved = copy.deepcopy(optimizer.state_dict())
    model.layers[0].requires_grad_(True)
    toys.train(model, optimizer, 2, 3)
    assert len(set(optimizer.scales["layers.0.mlp.0.weight"])) > 1
    assert set(optimizer.scales) > set(first)
    late = copy.deepcopy(optimizer.state_dict())
    base.add_param_group({"params": list(model.head.parameters())})
    toys.train(model, optimizer, 3, 4)
    assert len(set(optimizer.scales["head.weight"])) > 1
    again = toys.Net()
    again.layers[0].requires_grad_(False)
    twin = steepest.SGG(torch.optim.AdamW([*again.layers.parameters(), *again.embed.parameters()], lr=0.01), again)
    for state in (saved, late):  # the second has a weight that is frozen here
        twin.load_state_dict(state)
        assert twin.scales["embed.weight"] == pytest.approx(
            tuple(state["sgg"]["scales"]["embed.weight"].tolist()), rel=1e-7
        )
    base.add_param_group({"params": [torch.nn.Parameter(torch.ones(2, 3))]})
    with pytest.raises(ValueError, match=r"SGG: 1 of the \d+ parameters of the optimizer are not parameters"):
        optimizer.step()


def test_a_sample_of_the_clusters_follows_the_clusters() -> None:
    """What is kept of them between two clusterings is that of the last one, and of the weights with a gradient."""
    made, other = toys.problem(steps=9), toys.problem(steps=9)
    for gradients in (made.gradients, other.gradients):
        gradients[4]["layers.0.mlp.weight"] = None
    kept = sgg(toys.adamw(made), made, recluster=3, beta=0.5)
    fresh = sgg(toys.adamw(other), other, recluster=3, beta=0.5)
    for step in range(9):
        fresh._memory.seen = None
        cases.assert_same(made.run(kept, step, step + 1), other.run(fresh, step, step + 1))
        assert kept.scales == fresh.scales
