"""The escape hatch: a method that the grammar of rules cannot say, written by overriding ``Rule.update(bucket)``.

NorMuon (Li et al. 2025, arXiv 2510.05491): Muon, whose polar factor is divided row by row by the root of a running mean
of its squares, and is then brought back to a root mean square of 0.2. For each (m, n) matrix:

    M <- b1 M + (1 - b1) G;  O = polar(M);  v <- b2 v + (1 - b2) mean over columns of O^2   (m numbers)
    O <- O / (sqrt(v) + eps);  W <- (1 - lr wd) W - lr 0.2 sqrt(m n) / |O|_F O
"""

from __future__ import annotations

import copy
import io
import math
from collections import defaultdict
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import pytest
import torch

import cases
import steepest
from cases import Problem, assert_same, build, differ, trajectory
from reference import newton_schulz
from steepest import kernels, rules
from steepest.engine import Bucket


@dataclass(frozen=True, kw_only=True)
class NorMuon(rules.Rule):
    """See the module."""

    name: ClassVar[str] = "test_normuon"
    needs: ClassVar[str] = "matrix"
    buffers: ClassVar[tuple[str, ...]] = ("momentum", "row_second")

    betas: tuple[float, float] = (0.95, 0.95)
    eps: float = 1e-10

    def buffer_specs(self, shape, dtype):
        return {"momentum": (shape, dtype), "row_second": (torch.Size((shape[0], 1)), torch.float32)}

    def update(self, bucket: Bucket) -> None:
        stacks = defaultdict(list)
        for i, member in enumerate(bucket.members):
            stacks[i if self.backend == "single" else member.param.shape].append(member)
        for members in stacks.values():
            self.step_stack(bucket, members)

    def step_stack(self, bucket, members):
        b1, b2 = self.betas
        sign = -1.0 if bucket.maximize else 1.0
        for member in members:
            member.state["momentum"].lerp_(sign * member.gradient(), 1 - b1)
        o = kernels.polar(torch.stack([m.state["momentum"] for m in members]))
        for member, each in zip(members, o, strict=True):
            v = member.state["row_second"].lerp_(each.square().mean(dim=1, keepdim=True).float(), 1 - b2)
            scaled = each / (v.to(each).sqrt() + self.eps)
            rate = 0.2 * bucket.lr * math.sqrt(each.numel()) / float(scaled.norm())
            member.param.mul_(1 - bucket.lr * self.weight_decay).add_(scaled, alpha=-rate)


RULE = NorMuon(lr=0.02, betas=(0.8, 0.9), weight_decay=0.3)
SHAPES = {"wide": (4, 6), "wide too": (4, 6), "tall": (8, 3)}


def loop(problem, rule):
    """The formula in float64 numpy, one matrix and one step at a time."""
    b1, b2 = rule.betas
    history = []
    w = {name: p.detach().double().numpy() for name, p in problem.params.items()}
    m = {name: np.zeros_like(x) for name, x in w.items()}
    v = {name: np.zeros((len(x), 1)) for name, x in w.items()}
    for gradients in problem.gradients:
        for name, g in gradients.items():
            m[name] = b1 * m[name] + (1 - b1) * g.double().numpy()
            o = newton_schulz.newton_schulz(m[name], 5, "keller")
            v[name] = b2 * v[name] + (1 - b2) * (o * o).mean(axis=1, keepdims=True)
            o = o / (np.sqrt(v[name]) + rule.eps)
            step = 0.2 * rule.lr * np.sqrt(o.size) / np.linalg.norm(o)
            w[name] = (1 - rule.lr * rule.weight_decay) * w[name] - step * o
        history.append({name: torch.tensor(x) for name, x in w.items()})
    return history


@pytest.mark.parametrize("backend", ["single", "foreach"])
def test_it_is_its_formula(backend):
    rule = replace(RULE, backend=backend)
    actual = trajectory(rule, Problem(SHAPES, dtype=torch.float64))
    # the row moments are kept in float32
    torch.testing.assert_close(actual, loop(Problem(SHAPES, dtype=torch.float64), rule), rtol=1e-6, atol=1e-7)


def test_its_options_work_from_the_group():
    for option, value in (("lr", 0.05), ("betas", (0.5, 0.9)), ("eps", 0.5), ("weight_decay", 0.0)):
        problem, twin = Problem(SHAPES), Problem(SHAPES)
        optimizer = build(RULE, problem)
        optimizer.param_groups[0][option] = value
        history = problem.run(optimizer)
        assert_same(history, trajectory(replace(RULE, **{option: value}), twin))
        assert differ(history, trajectory(RULE, Problem(SHAPES)))
    with pytest.raises(TypeError, match="NorMuon has no option 'beta'; did you mean 'betas'"):
        steepest.Steepest([{"params": [torch.nn.Parameter(torch.ones(2, 2))], "rule": RULE, "beta": 1}])


def test_it_resumes_exactly():
    for at in range(5):
        problem, twin = Problem(SHAPES), Problem(SHAPES)
        optimizer, other = build(RULE, problem), build(RULE, twin)
        problem.run(optimizer, 0, at)
        stream = io.BytesIO()
        torch.save(optimizer.state_dict(), stream)
        stream.seek(0)
        other.load_state_dict(torch.load(stream, weights_only=True))
        with torch.no_grad():
            for name, p in twin.params.items():
                p.copy_(problem.params[name])
        assert_same(twin.run(other, at), problem.run(optimizer, at))


def test_it_has_the_contract_of_every_method():
    """Late parameters, maximize, refused input, copies, declared state and its bytes come with the engine."""
    problem = Problem(SHAPES)
    optimizer = build(RULE, problem)
    state = optimizer.state[problem.params["tall"]]
    assert {key: tuple(value.shape) for key, value in state.items()} == {
        "step": (),
        "momentum": (8, 3),
        "row_second": (8, 1),
    }
    held = sum(t.untyped_storage().nbytes() for s in optimizer.state.values() for t in s.values())
    assert steepest.state_bytes(SHAPES, RULE)["total"] == held

    problem.gradients[0]["tall"] = None
    problem.run(optimizer, 0, 2)
    assert int(state["step"]) == 1
    problem.load(2)
    problem.params["wide"].grad[0, 0] = math.nan
    before = cases.snapshot(optimizer)
    with pytest.raises(FloatingPointError, match="'wide'"):
        optimizer.step()
    assert_same(cases.snapshot(optimizer), before)
    twin, other = copy.deepcopy((problem, optimizer))
    assert_same(twin.run(other, 3), problem.run(optimizer, 3))

    negated, twin = Problem(SHAPES), Problem(SHAPES)
    for gradients in negated.gradients:
        gradients.update({name: -g for name, g in gradients.items()})
    assert_same(trajectory(RULE, negated), trajectory(RULE, twin, maximize=True))
    with pytest.raises(ValueError, match="test_normuon needs matrices"):
        steepest.Steepest([torch.nn.Parameter(torch.ones(3))], RULE)


def test_it_can_be_printed_and_routed():
    """Its report says what is known; the size of a step is not, unless the method says it."""
    model = torch.nn.Sequential(torch.nn.Embedding(9, 4), torch.nn.Linear(4, 4), torch.nn.LayerNorm(4))
    optimizer = steepest.Steepest(model, RULE)
    assert "test_normuon" in str(optimizer)
    (row,) = [row for row in optimizer.rows() if row["rule"] == "test_normuon"]
    assert row["state_bytes"] == 4 * 16 + 4 * 4
    assert row["rms_step"] is None
