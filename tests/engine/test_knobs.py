"""Every option does something, and every tensor of the state matters.

An option that nothing reads is the commonest bug of optimizer libraries that a full-coverage suite does not see.
"""

from __future__ import annotations

import copy
import inspect
from dataclasses import replace

import pytest
import torch
from torch import nn

import cases
import steepest
from cases import Problem, assert_close, assert_same, build, changed, differ, every_rule, trajectory
from steepest import rules

# Large enough that rounding a buffer changes the sign of some element.
SHAPES = {"wide": (40, 60), "tall": (60, 30), "square": (40, 40)}

KNOBS = [
    pytest.param(record, option, id=f"{record}-{option}")
    for record in cases.RECORDS
    for option in cases.option_names(record.rule)
    if option in record.knobs
]


@every_rule
def test_every_option_has_a_knob(record):
    """A new option of a rule needs a line in ``cases.py``."""
    assert set(record.knobs) == set(cases.option_names(record.rule))


@pytest.mark.parametrize(("record", "option"), KNOBS)
def test_every_option_changes_every_trajectory(record, option):
    knob = record.knobs[option]
    before, after = changed(record, option)
    assert getattr(before, option) != getattr(after, option)
    first, second = trajectory(before, Problem(SHAPES)), trajectory(after, Problem(SHAPES))
    if knob.effect == "trajectory":
        for name in SHAPES:
            assert any(differ(a[name], b[name]) for a, b in zip(first, second, strict=True)), name
    else:
        assert_close(first, second)


def test_an_option_is_inert_only_where_the_record_says_so():
    """The other triggers have no use for these; to give them one would be a change of documented behaviour."""
    base = cases.BY_NAME["lion_muon"].rule
    for given, option, value in (
        ({}, "seed", 5),
        ({}, "threshold", 1.0),
        ({"trigger": "random"}, "offset", 1),
        ({"trigger": "random"}, "threshold", 1.0),
        ({"trigger": "stable_rank"}, "period", 2),
        ({"trigger": "stable_rank"}, "offset", 1),
    ):
        rule = replace(base, **given)
        assert_same(trajectory(rule, Problem(SHAPES)), trajectory(replace(rule, **{option: value}), Problem(SHAPES)))


def test_the_seed_of_the_stable_rank_trigger_starts_another_power_iteration():
    """Three iterations do not converge, so that some choice near the threshold differs for some seed."""
    rule = rules.LionMuon(lr=0.1, trigger="stable_rank", threshold=0.3)
    shapes = {str(i): (8, 8) for i in range(20)}
    first, second = (trajectory(replace(rule, seed=seed), Problem(shapes)) for seed in (0, 1))
    assert differ(first, second)


# --- state


def problem_columns(optimizer, param):
    return optimizer.state[param]["columns"].numel()


@every_rule
def test_every_state_tensor_matters(record):
    # The bias correction of SAGE without eps cancels, but for rounding.
    for key in record.rule.buffers if record.rule.name == "sage" else ("step", *record.rule.buffers):
        problem, twin = Problem(record), Problem(record)
        optimizer, touched = build(record.rule, problem), build(record.rule, twin)
        problem.run(optimizer, 0, 1)
        twin.run(touched, 0, 1)
        for name, param in twin.params.items():
            value = touched.state[param][key]
            if key in record.rule.whole:
                value.view(-1)[0] += 100  # one of several columns
                continue
            # far enough to turn the sign of the next direction
            value.add_(1) if value.shape != param.shape or key == "step" else value.sub_(100 * twin.gradients[1][name])
        expected, actual = problem.run(optimizer, 1), twin.run(touched, 1)
        matters = key != "step" or record.clocked
        for name, param in problem.params.items():
            if key in record.rule.whole and problem_columns(optimizer, param) == 1:
                continue  # the only one is like all others
            assert any(differ(a[name], b[name]) for a, b in zip(expected, actual, strict=True)) == matters, (key, name)


@every_rule
def test_the_clock_counts_steps(record):
    problem = Problem(record)
    optimizer = build(record.rule, problem)
    problem.run(optimizer)
    assert {int(state["step"]) for state in optimizer.state.values()} == {len(problem.gradients)}


# --- options of the optimizers by name


class Model(nn.Module):
    """One of each: embedding, fused attention, matrices, norms, biases, head."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Embedding(7, 4)
        self.block = nn.TransformerEncoderLayer(4, 2, 8, batch_first=True)
        self.norm = nn.LayerNorm(4)
        self.head = nn.Linear(4, 9, bias=False)


VECTORS = ("norm", "bias")
EMBEDDINGS = ("embed",)
HEAD = ("head",)
FUSED = ("in_proj_weight",)


def run(make, steps=4):
    """Weights after a few steps on fixed gradients, by name."""
    model = Model()
    optimizer = make(model)
    generator = torch.Generator().manual_seed(1)
    for _ in range(steps):
        for p in model.parameters():
            p.grad = torch.randn(p.shape, generator=generator)
        optimizer.step()
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def is_any(name, parts):
    return any(part in name for part in parts)


def hidden(name):
    return name.endswith("weight") and not is_any(name, (*EMBEDDINGS, *HEAD, "norm"))


ROUTING_KNOBS = {
    "embeddings": (rules.Lion(lr=0.07), lambda n: is_any(n, (*EMBEDDINGS, *HEAD))),
    "head": (rules.Lion(lr=0.07), lambda n: is_any(n, HEAD)),
    "vectors": (rules.Lion(lr=0.07), lambda n: is_any(n, VECTORS)),
    "decay_vectors": (True, lambda n: is_any(n, VECTORS)),
    "maximize": (True, lambda n: True),
}
SPECTRAL_KNOBS = {
    "rest": (rules.Lion(lr=0.07), lambda n: not hidden(n) and "in_proj_weight" not in n),
    "fused": ("joined", lambda n: is_any(n, FUSED)),
}
OTHER_EFFECTS = {"check_finite", "preset"}  # tested below


@cases.named_optimizers
def test_every_routing_keyword_changes_the_parameters_it_names(record):
    spectral = not record.takes_vectors
    knobs = {**ROUTING_KNOBS, **(SPECTRAL_KNOBS if spectral else {})}
    known = set(inspect.signature(record.optimizer).parameters) - {"params"} - set(cases.option_names(record.rule))
    assert known == {*ROUTING_KNOBS, *SPECTRAL_KNOBS, *OTHER_EFFECTS}
    # zero biases and unit gains would hide the decay that is not there at zero
    options = {"lr": 0.02, "weight_decay": 0.1}
    expected = run(lambda m: record.optimizer(shaken(m), **options))
    for option, (value, concerns) in knobs.items():
        actual = run(lambda m, option=option, value=value: record.optimizer(shaken(m), **options, **{option: value}))
        for name, w in expected.items():
            assert differ(actual[name], w) == concerns(name), (option, name)


def shaken(model):
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.3)
    return model


@pytest.mark.parametrize("optimizer", [steepest.Signum, steepest.Lion])
def test_keywords_that_sign_methods_take_all_the_same(optimizer):
    """They have one rule for everything, so ``rest`` is for what is not hidden, and nothing is fused."""
    expected = run(lambda m: optimizer(m, lr=0.02))
    assert_same(run(lambda m: optimizer(m, lr=0.02, fused="joined")), expected)
    actual = run(lambda m: optimizer(m, lr=0.02, rest=rules.Lion(lr=0.07)))
    for name, w in expected.items():
        assert differ(actual[name], w) == (not hidden(name) and "in_proj_weight" not in name), name


@pytest.mark.parametrize("preset", rules.PRESETS)
def test_every_preset_is_its_rule(preset):
    chosen = rules.PRESETS[preset]
    optimizer = {type(r.rule): r.optimizer for r in cases.RECORDS}[type(chosen.rule)]
    expected = run(lambda m: steepest.Steepest(m, chosen.rule, rest=chosen.rest))
    assert_same(run(lambda m: optimizer(m, preset=preset)), expected)
    assert differ(run(lambda m: optimizer(m, preset=preset, lr=0.5)), expected)
    if chosen.rule != type(chosen.rule)():
        assert differ(run(optimizer), expected)
    names = [(n, p) for n, p in Model().named_parameters() if hidden(n)]
    groups = optimizer(names, preset=preset).param_groups
    assert [(g["rule"], g["lr"]) for g in groups] == [(chosen.rule.name, chosen.rule.lr)]


@cases.named_optimizers
def test_check_finite(record):
    """ "none" lets anything through, "matrix" refuses it where it would spread, "all" everywhere."""
    refusing = {"none": (), "all": ("block.linear1.weight", "norm.bias")}
    refusing["matrix"] = () if record.rule.takes == "all" else ("block.linear1.weight",)
    if record.rule.needs == "sums":  # of the columns: an element of a vector goes into the mean of them all
        refusing["matrix"] = refusing["all"]
    for check, refused in refusing.items():
        for name in refusing["all"]:
            model = Model()
            optimizer = record.optimizer(model, check_finite=check)
            for n, p in model.named_parameters():
                p.grad = torch.full_like(p, torch.nan if n == name else 0.1)
            before = cases.snapshot(optimizer)
            if name in refused:
                with pytest.raises(FloatingPointError, match=name):
                    optimizer.step()
                assert_same(cases.snapshot(optimizer), before)
            else:
                optimizer.step()
                assert model.embed.weight.isfinite().all()


def test_signatures_show_every_option():
    """Completion and ``help`` show the options with their defaults, in the order of the rule."""
    for record in cases.RECORDS:
        if record.optimizer:
            shown = inspect.signature(record.optimizer).parameters
            assert next(iter(shown)) == "params"
            for name in cases.option_names(record.rule):
                assert shown[name].default == getattr(type(record.rule)(), name), name
            general = inspect.signature(steepest.Steepest).parameters
            for name in set(general) - {"params", "rule", "self"}:
                assert shown[name].default == general[name].default, name
            assert copy.deepcopy(record.optimizer.__doc__).startswith(type(record.rule).__doc__.split(".")[0])
