"""Diagnostics say what a step did, and change no number of the run."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from small_runs import lines, numbers, tiny
from torch import Tensor, nn

import steepest
from steepest.lab.diagnostics import Diagnostics
from steepest.lab.signals import Stop
from steepest.lab.training import train


@pytest.mark.parametrize("method", ["lionmuon", "adamw"])
def test_a_measured_run_is_the_same_run(cache: Path, tmp_path: Path, method: str) -> None:
    changes = {"method__name": method, "method__lr": 1e-2, "micro_batch": 2}
    plain = train(tiny(cache, **changes), tmp_path / "plain")
    measured = train(tiny(cache, diagnostics_every=4, **changes), tmp_path / "measured")
    assert measured.path.name == plain.path.name  # no part of a run's identity
    expected, found = numbers(plain.path), numbers(measured.path)
    seen = {row["step"]: row.pop("diagnostics") for row in found["metrics"] if "diagnostics" in row}
    assert found["metrics"] == expected["metrics"]
    assert found["final"]["loss"] == expected["final"]["loss"]
    assert sorted(seen) == [1, 2, 5, 6, 9, 10]  # both kinds of an alternation
    first = seen[1]
    assert {"attention", "mlp", "norm"} < set(first["update_rms"])
    assert set(first["stable_rank"]) == {"attention", "mlp"}
    for name in ("alpha", "l_2", "l_inf", "smoothness", "smoothness_sign", "noise_scale"):
        assert first[name] is None or math.isfinite(first[name])
    if method == "lionmuon":
        assert seen[1]["polar_residual"]["mlp"] < 0.35 < seen[2]["polar_residual"]["mlp"]
        assert seen[1]["saturation"]["mlp"] < 0.2
        assert seen[2]["saturation"]["mlp"] > 0.99
        assert seen[2]["rho_1"] > seen[2]["rho_nuc"] >= 1


def test_a_measurement_survives_a_stop(cache: Path, tmp_path: Path) -> None:
    # The line is written at step 8, after a stop at step 6, and holds what was measured at step 5.
    config = tiny(cache, diagnostics_every=4, log_every=8)
    whole = train(config, tmp_path / "whole")
    stop = Stop()

    class AfterSix(Stop):
        polls = 0

        @property
        def requested(self) -> bool:
            AfterSix.polls += 1
            return AfterSix.polls > 6

        @requested.setter
        def requested(self, value: bool) -> None:
            pass

    interrupted = train(config, tmp_path / "cut", stop=AfterSix())
    assert (interrupted.state, interrupted.step) == ("interrupted", 6)
    train(config, tmp_path / "cut", stop=stop)
    assert lines(interrupted.path / "metrics.jsonl")[0]["diagnostics"] is not None
    assert numbers(interrupted.path) == numbers(whole.path)


class Line(nn.Module):
    """A linear model with a given target: gradient of row i = x_i (w . x_i - y_i)."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(6, 5, bias=False), nn.Linear(5, 6, bias=False)])

    def forward(self, x: Tensor) -> Tensor:
        return self.layers[1](self.layers[0](x))


def measure(model: Line, optimizer: torch.optim.Optimizer, x: Tensor, y: Tensor) -> dict[str, Any]:
    def backward(batch: Sequence[Tensor]) -> None:
        rows = torch.cat(list(batch))
        (model(rows[:, :6]) - rows[:, 6:]).square().mean().backward()

    diagnostics = Diagnostics(model, optimizer, backward, 1)
    batch = [torch.cat([x, y], 1)]
    optimizer.zero_grad()
    backward(batch)
    diagnostics.before(batch)
    optimizer.step()
    return diagnostics.after(batch)


def test_known_steps() -> None:
    torch.manual_seed(0)
    model, x = Line(), torch.randn(32, 6)
    weights = [p.detach().clone() for p in model.parameters()]
    found = measure(model, torch.optim.SGD(model.parameters(), lr=0.1), x, torch.randn(32, 6))
    steps = torch.cat([(p.detach() - w).flatten() for p, w in zip(model.parameters(), weights, strict=True)])
    weight = torch.cat([w.flatten() for w in weights])
    (kind,) = found["update_rms"]
    assert found["update_rms"][kind] == pytest.approx(float(steps.square().mean().sqrt()))
    assert found["update_to_weight"][kind] == pytest.approx(float(steps.norm() / weight.norm()))
    assert found["saturation"][kind] < 0.2
    signed = measure(model, steepest.Signum(list(model.parameters()), lr=1e-3, weight_decay=0.0), x, torch.randn(32, 6))
    assert signed["saturation"][kind] == 1
    assert signed["update_rms"][kind] == pytest.approx(1e-3, rel=1e-3)
    spectral = measure(model, steepest.Muon(list(model.parameters()), lr=1e-3), x, torch.randn(32, 6))
    assert spectral["polar_residual"][kind] < 0.25 < signed["polar_residual"][kind]


def test_noise_and_gradient_are_told_apart() -> None:
    torch.manual_seed(0)
    model, x = Line(), torch.randn(8_000, 6)
    y = x @ torch.full((6, 6), 0.05) + torch.randn(8_000, 6)
    rows = torch.func.vmap(
        torch.func.grad(lambda p, a, b: (torch.func.functional_call(model, p, (a,)) - b).square().mean()),
        in_dims=(None, 0, 0),
    )(dict(model.named_parameters()), x, y)
    single = torch.cat([g.flatten(1) for g in rows.values()], 1).detach()
    still = torch.optim.SGD(model.parameters(), lr=0.0)
    found = [measure(model, still, a, b) for a, b in zip(x.split(20), y.split(20), strict=True)]
    noise, squared = (
        torch.tensor([row[name] for row in found], dtype=torch.float64)
        for name in ("gradient_noise", "gradient_squared")
    )
    expected = (float(single.var(0).sum()), float(single.mean(0).square().sum()))
    for estimates, value in zip((noise, squared), expected, strict=True):
        error = float(estimates.std() / math.sqrt(len(estimates)))
        assert abs(float(estimates.mean()) - value) < 3 * error
        assert error < value / 3  # else the line above says nothing


def test_nothing_is_measured_unless_asked(cache: Path, tmp_path: Path) -> None:
    result = train(tiny(cache), tmp_path)
    assert not any("diagnostics" in row for row in lines(result.path / "metrics.jsonl"))
