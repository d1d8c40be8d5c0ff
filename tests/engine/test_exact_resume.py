"""A checkpoint is exact: any step, through files and torch.distributed.checkpoint, in the declared dtypes and bytes."""

from __future__ import annotations

import copy
import io
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.distributed.checkpoint import state_dict as dcp_state

import cases
import steepest
from cases import Problem, assert_same, build, every_rule, independent_rules, through_distributed_checkpoint
from steepest import rules


def through_a_file(saved):
    """As written and read by a careful user."""
    stream = io.BytesIO()
    torch.save(saved, stream)
    stream.seek(0)
    return torch.load(stream, weights_only=True)


def resume(problem, optimizer, twin, other, at):
    """Run to ``at``, move to the twin through a file, run both to the end and compare every step."""
    problem.run(optimizer, 0, at)
    other.load_state_dict(through_a_file(optimizer.state_dict()))
    with torch.no_grad():
        for name, p in twin.params.items():
            p.copy_(problem.params[name])
    assert_same(twin.run(other, at), problem.run(optimizer, at))
    assert_same(other.state_dict(), optimizer.state_dict())


@every_rule
def test_from_every_step_of_two_periods(record):
    for at in range(2 * record.period + 1):
        problem, twin = (Problem(record, steps=2 * record.period + 2) for _ in range(2))
        resume(problem, build(record.rule, problem), twin, build(record.rule, twin), at)


@pytest.mark.parametrize(
    "options",
    [
        {"trigger": "random", "seed": 3, "period": 2},
        {"trigger": "stable_rank", "threshold": 0.8},
        {"offset": 2},
        {"state_dtype": "bfloat16"},
        {"lr": torch.tensor(0.02)},
    ],
    ids=str,
)
def test_with_options(options):
    rule = replace(cases.BY_NAME["lion_muon"].rule, **options)
    for at in (0, 1, 2, 5):
        problem, twin = Problem(cases.MATRICES), Problem(cases.MATRICES)
        resume(problem, build(rule, problem), twin, build(rule, twin), at)


@every_rule
def test_loading_its_own_state_changes_nothing(record):
    problem = Problem(record)
    optimizer = build(record.rule, problem)
    problem.run(optimizer, 0, 2)
    optimizer.load_state_dict(optimizer.state_dict())
    assert_same(problem.run(optimizer, 2), cases.trajectory(record.rule, Problem(record))[2:])


@independent_rules
def test_state_that_was_emptied_starts_anew(record):
    """Clearing ``optimizer.state`` is how a run is restarted; the next step is that of a new optimizer.

    (Not of a soft rule, whose clock is that of the run and stands in the group.)
    """
    problem, twin = Problem(record), Problem(record)
    optimizer = build(record.rule, problem)
    problem.run(optimizer, 0, 2)
    optimizer.state.clear()
    with torch.no_grad():
        for name, p in twin.params.items():
            p.copy_(problem.params[name])
    assert_same(problem.run(optimizer, 2), twin.run(build(record.rule, twin), 2))


@every_rule
def test_the_checkpoint_brings_its_numbers(record):
    """A run resumes with the numbers it was saved with, whatever the new optimizer was given."""
    problem, twin = Problem(record), Problem(record)
    others = replace(record.rule, lr=0.7, weight_decay=0.0)
    resume(problem, build(record.rule, problem), twin, build(others, twin), 3)


@every_rule
def test_parameters_that_started_late_keep_their_clocks(record):
    problem, twin = Problem(record), Problem(record)
    for step in range(2):
        problem.gradients[step]["wide"] = twin.gradients[step]["wide"] = None
    problem.gradients[4]["tall"] = twin.gradients[4]["tall"] = None
    for at in (1, 2, 3):
        a, b = copy.deepcopy((problem, twin))
        resume(a, build(record.rule, a), b, build(record.rule, b), at)


@pytest.mark.parametrize(
    ("param_dtype", "state_dtype"),
    [(torch.bfloat16, "float32"), (torch.float32, "bfloat16"), (torch.float16, None), (torch.float64, "float32")],
)
@every_rule
def test_declared_dtypes_are_kept(record, param_dtype, state_dtype):
    rule = replace(record.rule, state_dtype=state_dtype)
    problem, twin = (Problem(record, dtype=param_dtype) for _ in range(2))
    other = build(rule, twin)
    resume(problem, build(rule, problem), twin, other, 2)
    declared = param_dtype if state_dtype is None else getattr(torch, state_dtype)
    for param in twin.params.values():
        own = [n for n in record.rule.buffers if n not in record.rule.whole]
        assert {other.state[param][n].dtype for n in own} == {declared}


@every_rule
def test_a_state_dict_is_tensors_and_plain_data(record):
    """Also after a scheduler has left numpy numbers in the groups."""
    problem = Problem(record)
    optimizer = build(record.rule, problem)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda t: np.cos(t / 9))
    problem.run(optimizer, 0, 2)
    scheduler.step()
    optimizer.param_groups[0]["weight_decay"] = np.float32(0.5)
    saved = optimizer.state_dict()

    def check(x, where):
        if isinstance(x, dict):
            for key, value in x.items():
                check(value, (*where, key))
        elif isinstance(x, list | tuple):
            for i, value in enumerate(x):
                check(value, (*where, i))
        else:
            assert type(x) in (torch.Tensor, int, float, str, bool, type(None)), (where, type(x))

    check(saved, ())
    through_a_file(saved)
    for state in saved["state"].values():
        assert all(type(v) is torch.Tensor for v in state.values())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("state_dtype", [None, "bfloat16", "float32"])
@every_rule
def test_state_bytes_is_what_is_held(record, dtype, state_dtype):
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Linear(4, 5), torch.nn.LayerNorm(5)).to(dtype)
    rule = replace(record.rule, state_dtype=state_dtype)
    optimizer = steepest.Steepest(model, rule)
    for steps in range(2):
        held = {
            t.untyped_storage().data_ptr(): t.untyped_storage().nbytes()
            for state in optimizer.state.values()
            for t in state.values()
        }
        expected = steepest.state_bytes(model, rule)
        assert sum(held.values()) == expected["total"]
        assert sum(v for k, v in expected.items() if k != "total") == expected["total"]
        if steps == 0:
            model(torch.ones(2, 3, dtype=dtype)).sum().backward()
            optimizer.step()


@every_rule
def test_state_bytes_of_shapes(record):
    problem = Problem(record)
    optimizer = build(record.rule, problem)
    held = sum(t.untyped_storage().nbytes() for state in optimizer.state.values() for t in state.values())
    shapes = {name: tuple(p.shape) for name, p in problem.params.items()}
    assert steepest.state_bytes(shapes, record.rule)["total"] == held
    if type(record.rule)().buffers == record.rule.buffers:
        assert steepest.state_bytes(shapes, record.rule.name)["total"] == held


# --- torch.distributed.checkpoint


class Model(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body = torch.nn.Sequential(torch.nn.Linear(6, 5), torch.nn.Tanh(), torch.nn.Linear(5, 4))
        self.norm = torch.nn.LayerNorm(4)

    def forward(self, x):
        return self.norm(self.body(x)).square().mul(torch.arange(1.0, 5)).sum()


def steps(model, optimizer, count, first=0):
    for step in range(first, first + count):
        optimizer.zero_grad()
        generator = torch.Generator().manual_seed(step)
        model(torch.randn(8, 6, generator=generator).to(next(model.parameters()).dtype)).backward()
        optimizer.step()


OPTIMIZERS = {
    "signum": lambda m: steepest.Signum(m, lr=0.01),
    "lion": lambda m: steepest.Lion(m, lr=0.01, state_dtype="bfloat16"),
    "lion 8 bits": lambda m: steepest.Lion(m.bfloat16(), lr=0.01, state_dtype="int8", param_rounding="kahan"),
    "muon": lambda m: steepest.Muon(m, lr=0.01),
    "lion_muon": lambda m: steepest.LionMuon(m, lr=0.01, period=3, vectors=rules.Lion(lr=0.02)),
}


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
@pytest.mark.parametrize("flatten", [False, True], ids=["nested", "flat"])
@pytest.mark.parametrize("frozen", [False, True], ids=["trained", "part frozen"])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_distributed_checkpoint(name, frozen, flatten, tmp_path):
    """Through files and back into an optimizer that has taken other steps; then the same numbers, bit for bit."""

    def make():
        model = Model()
        model.body[0].weight.requires_grad_(not frozen)
        return model, OPTIMIZERS[name](model)

    model, optimizer = make()
    steps(model, optimizer, 4)
    twin, other = make()
    steps(twin, other, 1, first=50)
    through_distributed_checkpoint((model, optimizer), (twin, other), tmp_path / "checkpoint", flatten=flatten)

    for a, b in ((model, optimizer), (twin, other)):
        steps(a, b, 3, first=4)
    for (n, p), q in zip(model.named_parameters(), twin.parameters(), strict=True):
        assert_same(q.detach(), p.detach())
        if p.requires_grad:
            assert_same(other.state[q], optimizer.state[p]), n


def test_distributed_checkpoint_takes_no_hidden_step():
    """State that is empty at the start would be filled by a step with zero gradients."""
    model = Model()
    optimizer = steepest.LionMuon(model, lr=0.01)
    before = cases.snapshot(optimizer)
    dcp_state.get_optimizer_state_dict(model, optimizer)
    assert_same(cases.snapshot(optimizer), before)
