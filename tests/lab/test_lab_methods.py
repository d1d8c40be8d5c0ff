from __future__ import annotations

from typing import Any

import pytest
import torch
from small_runs import MODEL
from torch import nn

from steepest.lab import methods, models
from steepest.lab.config import MethodConfig
from steepest.lab.errors import UserError
from steepest.lab.schedules import set_rates

# Those that need no package, and whose state is as declared; all of them train in test_methods_training.py.
OWN = [name for name, method in methods.METHODS.items() if method.package is None]


@pytest.fixture(scope="module")
def model() -> nn.Module:
    network = models.build(MODEL, 257, seed=0)
    for parameter in network.parameters():
        parameter.grad = torch.randn_like(parameter)
    return network


@pytest.mark.parametrize("name", OWN)
def test_every_method_builds_steps_and_is_scheduled_in_every_group(name: str, model: nn.Module) -> None:
    optimizer = methods.build(MethodConfig(name=name, lr=1e-3), model, 10)
    base = [float(group["lr"]) for group in optimizer.param_groups]
    assert max(base) == 1e-3
    owned = [id(p) for group in optimizer.param_groups for p in group["params"]]
    assert sorted(owned) == sorted(id(p) for p in model.parameters())
    before = [parameter.detach().clone() for parameter in model.parameters()]
    set_rates(optimizer.param_groups, base, 0.0)
    optimizer.step()
    assert all(torch.equal(old, new) for old, new in zip(before, model.parameters(), strict=True))
    set_rates(optimizer.param_groups, base, 0.5)
    assert [group["lr"] for group in optimizer.param_groups] == [0.5 * rate for rate in base]
    optimizer.step()
    assert not any(torch.equal(old, new) for old, new in zip(before, model.parameters(), strict=True))


@pytest.mark.parametrize("name", OWN)
def test_routing_rows_name_every_parameter_and_sum_to_the_state(name: str, model: nn.Module) -> None:
    optimizer = methods.build(MethodConfig(name=name), model, 10)
    optimizer.step()
    rows = methods.routing_rows(model, optimizer)
    assert [row["name"] for row in rows] == [name for name, _ in model.named_parameters()]
    assert {"name", "shape", "view", "role", "rule", "rms_step", "state_bytes", "why"} == set(rows[0])
    total = methods.state_bytes(optimizer)
    # Step counters and fits (a few numbers a parameter) are in the total and may be missing in the rows.
    assert 0 <= total - sum(row["state_bytes"] for row in rows) <= 40 * len(rows)
    buffers = {"sgd": 1, "signum": 1, "lion": 1, "softsignum": 1, "hard-switch": 1, "adamw": 2, "lasm": 2}.get(name)
    buffers = {"nadam": 2, "radam": 2, "lionmuon-sage": 1, "softmuon-sage": 1}.get(name, buffers)
    elements = sum(parameter.numel() for parameter in model.parameters())
    outside = 257 * 32 + sum(parameter.numel() for parameter in model.parameters() if parameter.ndim < 2)
    if buffers is not None:
        assert total == pytest.approx(4 * buffers * elements, rel=0.02)
    elif name in ("sage", "sinkgd-lion", "sinkgd"):  # nothing for the hidden matrices
        assert total == pytest.approx((8 if name == "sinkgd" else 4) * outside, rel=0.05)
    else:
        embedding = 2 * 4 * 257 * 32
        assert embedding + 4 * (elements - 257 * 32) < total < embedding + 4 * (elements - 257 * 32) * 1.1


def test_the_baseline_decays_weights_but_neither_embeddings_nor_norms(model: nn.Module) -> None:
    groups = methods.build(MethodConfig(name="adamw", options={"weight_decay": 0.3}), model, 10).param_groups
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    decay = {names[id(p)]: group["weight_decay"] for group in groups for p in group["params"]}
    assert decay["model.layers.0.mlp.up_proj.weight"] == 0.3
    assert decay["model.embed_tokens.weight"] == decay["model.norm.weight"] == 0.0
    assert groups[0]["betas"] == (0.8, 0.999)


@pytest.mark.parametrize("name", methods.METHODS)
def test_labels_of_groups_differ(name: str, model: nn.Module) -> None:
    optimizer = methods.build(MethodConfig(name=name), model, 10)
    labels = methods.group_labels(model, optimizer)
    assert len(set(labels)) == len(optimizer.param_groups)


def test_the_rest_follows_the_rate_by_a_ratio(model: nn.Module) -> None:
    options = {"rest_lr_ratio": 0.25, "sign_lr_ratio": 0.05, "period": 5}
    groups = methods.build(MethodConfig(name="lionmuon", lr=0.02, options=options), model, 10).param_groups
    assert {(group["rule"], group["lr"]) for group in groups} == {("lion_muon", 0.02), ("adamw", 0.005)}


def test_defaults_are_filled_in_so_that_equal_runs_are_equal() -> None:
    plain = methods.resolve(MethodConfig(name="lionmuon"))
    assert plain == methods.resolve(MethodConfig(name="lionmuon", lr=plain.lr, options={"period": 2}))
    assert plain.lr in methods.find("lionmuon").grid


@pytest.mark.parametrize(
    ("name", "lr", "options", "message"),
    [
        ("lionmoun", 1e-3, {}, "unknown optimizer 'lionmoun'. Did you mean 'lionmuon'"),
        (
            "lionmuon",
            1e-3,
            {"sign_lr_ration": 0.1},
            "unknown option of lionmuon 'sign_lr_ration'. Did you mean 'sign_lr_ratio'",
        ),
        ("lionmuon", 0.0, {}, "learning rate must be a positive number, got 0.0"),
        ("lionmuon", 1e-3, {"period": 0}, "period must be"),
        ("muon", 1e-3, {"scale": "kelller"}, "did you mean 'keller'"),
        ("adamw", 1e-3, {"betas": (0.9, 1.5)}, "[Ii]nvalid beta"),
        ("signum", 1e-3, {"betas": (0.9, 0.99)}, "betas must be equal"),
    ],
)
def test_bad_values_are_refused_before_a_model_is_built(
    name: str, lr: float, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        methods.check(MethodConfig(name=name, lr=lr, options=options), 10)
