"""What a torch optimizer owes its user: gradients left alone, memory of its own, closures, hooks, copies, pickles."""

from __future__ import annotations

import contextlib
import copy
import io
import pickle

import pytest
import torch

import cases
import steepest
from cases import Problem, assert_close, assert_same, build, every_rule, independent_rules, storages, trajectory
from steepest import rules

BACKENDS = ["single", "foreach", "auto"]


def buffers(optimizer):
    return [t for state in optimizer.state.values() for t in state.values()]


@pytest.mark.parametrize("maximize", [False, True])
@pytest.mark.parametrize("backend", BACKENDS)
@every_rule
def test_gradients_are_never_written(record, backend, maximize):
    problem = Problem(record)
    optimizer = build(record.rule, problem, maximize=maximize)
    optimizer.param_groups[0]["backend"] = backend
    for step in range(2 * record.period):
        problem.load(step)
        kept = {name: p.grad for name, p in problem.params.items()}
        optimizer.step()
        assert all(p.grad is kept[name] for name, p in problem.params.items())
        assert_same({name: p.grad for name, p in problem.params.items()}, problem.gradients[step])


@pytest.mark.parametrize("state_dtype", [None, "bfloat16", "float32"])
@pytest.mark.parametrize("backend", BACKENDS)
@every_rule
def test_no_two_tensors_share_memory(record, backend, state_dtype):
    problem = Problem(record)
    optimizer = build(record.rule, problem)
    optimizer.param_groups[0].update(backend=backend)
    optimizer = build(cases.replace(record.rule, backend=backend, state_dtype=state_dtype), problem)
    for step in range(record.period + 1):
        problem.load(step)
        optimizer.step()
        params = list(problem.params.values())
        held = storages([*params, *(p.grad for p in params), *buffers(optimizer)])
        assert len(held) == len(set(held))


@every_rule
def test_loading_shares_no_memory_with_the_loaded_dict(record):
    problem = Problem(record)
    optimizer = build(record.rule, problem)
    problem.run(optimizer, 0, 2)
    saved = copy.deepcopy(optimizer.state_dict())
    untouched = copy.deepcopy(saved)
    optimizer.load_state_dict(saved)
    theirs = storages(t for state in saved["state"].values() for t in state.values())
    assert not set(theirs) & set(storages(buffers(optimizer)))
    problem.run(optimizer, 2)
    assert_same(saved, untouched)


@every_rule
def test_a_parameter_without_a_gradient_stands_still(record):
    problem = Problem(record)
    optimizer = build(record.rule, problem)
    problem.run(optimizer, 0, 1)
    weights, state = problem.weights()["tall"], copy.deepcopy(optimizer.state[problem.params["tall"]])
    problem.gradients[1]["tall"] = None
    problem.run(optimizer, 1, 2)
    assert_same(problem.weights()["tall"], weights)
    assert_same(optimizer.state[problem.params["tall"]], state)


@every_rule
def test_no_gradients_at_all(record):
    problem = Problem(record)
    optimizer = build(record.rule, problem)
    before = cases.snapshot(optimizer)
    optimizer.step()
    for group in before["groups"]:
        if "clock" in group:  # of the run, not of a parameter
            group["clock"] += 1
    assert_same(cases.snapshot(optimizer), before)


@independent_rules
def test_a_parameter_unfrozen_late_starts_at_its_own_step_0(record):
    """Its counter, phase and averages are those of a parameter that was just made, whatever the others have done."""
    late = 2  # not a multiple of any period above 1, so that a shared clock would show
    problem = Problem(record)
    problem.params["wide"].requires_grad_(False)
    for step in range(late):
        problem.gradients[step]["wide"] = None
    optimizer = build(record.rule, problem)
    problem.run(optimizer, 0, late)
    problem.params["wide"].requires_grad_(True)
    actual = [w["wide"] for w in problem.run(optimizer, late)]

    alone = Problem(record)
    fresh = steepest.Steepest([("wide", alone.params["wide"])], record.rule)
    assert_close(actual, [w["wide"] for w in alone.run(fresh, late)])
    assert int(optimizer.state[problem.params["wide"]]["step"]) == len(problem.gradients) - late


def test_the_first_step_of_a_late_parameter_is_spectral():
    rule = rules.LionMuon(lr=1.0, sign_lr_ratio=0.5, period=4, weight_decay=0.0)
    problem = Problem({"early": (4, 6), "late": (4, 6)}, steps=3)
    problem.gradients[0]["late"] = problem.gradients[1]["late"] = None
    before = problem.weights()["late"]
    history = problem.run(build(rule, problem))
    sign_step = history[2]["early"] - history[1]["early"]
    assert_close(sign_step.abs(), torch.full((4, 6), 0.5))
    spectral_step = history[2]["late"] - before
    assert spectral_step.abs().unique().numel() == 24
    band = torch.linalg.svdvals(spectral_step.double()) / (0.2 * 6**0.5)
    assert band.min() > 0.68
    assert band.max() < 1.21


@every_rule
def test_closure(record):
    """It runs with gradients enabled, once, before the step; its loss is returned."""
    problem = Problem(record)
    optimizer = build(record.rule, problem)
    calls = []

    def closure():
        calls.append(torch.is_grad_enabled())
        optimizer.zero_grad()
        loss = sum((p * g).sum() for (p, g) in zip(problem.params.values(), problem.gradients[0].values(), strict=True))
        loss.backward()
        return loss

    with torch.no_grad():
        loss = optimizer.step(closure)
    assert calls == [True]
    twin = Problem(record)
    expected = trajectory(record.rule, twin)[0]
    assert_same(problem.weights(), expected)
    start = Problem(record)
    assert_close(loss.detach(), sum((w * start.gradients[0][name]).sum() for name, w in start.weights().items()))


@every_rule
def test_a_closure_that_fails_changes_nothing(record):
    problem = Problem(record)
    optimizer = build(record.rule, problem)
    problem.run(optimizer, 0, 1)
    before = cases.snapshot(optimizer)

    def closure():
        raise RuntimeError("out of data")

    with pytest.raises(RuntimeError, match="out of data"):
        optimizer.step(closure)
    assert_same(cases.snapshot(optimizer), before)


@every_rule
def test_maximize_is_a_step_on_the_negated_gradient(record):
    problem, twin = Problem(record), Problem(record)
    for gradients in twin.gradients:
        gradients.update({name: -g for name, g in gradients.items()})
    assert_same(trajectory(record.rule, problem, maximize=True), trajectory(record.rule, twin))


@every_rule
def test_maximize_is_saved_and_loaded(record):
    problem = Problem(record)
    optimizer = build(record.rule, problem, maximize=True)
    problem.run(optimizer, 0, 2)
    twin = Problem(record)
    other = build(record.rule, twin)
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    assert other.param_groups[0]["maximize"] is True
    with torch.no_grad():
        for name, p in twin.params.items():
            p.copy_(problem.params[name])
    assert_same(twin.run(other, 2), problem.run(optimizer, 2))


@every_rule
def test_maximize_of_one_group(record):
    problem, twin = Problem(record), Problem(record)
    names = list(problem.params)
    groups = [
        {"params": [(names[0], problem.params[names[0]])], "maximize": True},
        {"params": [(n, problem.params[n]) for n in names[1:]]},
    ]
    for gradients in twin.gradients:
        gradients[names[0]] = -gradients[names[0]]
    assert_close(problem.run(steepest.Steepest(groups, record.rule)), trajectory(record.rule, twin))


@every_rule
def test_zero_gradients_change_nothing_without_decay(record):
    """Zero in, zero out, from the zero momentum of the start; with decay the weights only shrink."""
    problem = Problem(record, steps=4)
    for gradients in problem.gradients:
        gradients.update({name: torch.zeros_like(g) for name, g in gradients.items()})
    before = problem.weights()
    with pytest.warns(UserWarning, match="stay hard") if record.pooled else contextlib.nullcontext():
        assert_same(trajectory(cases.replace(record.rule, weight_decay=0.0), problem)[-1], before)
    after = trajectory(cases.replace(record.rule, weight_decay=0.5), Problem(record, steps=1))  # moved, hence finite
    assert all(w.isfinite().all() for w in after[0].values())


@every_rule
def test_step_hooks(record):
    problem, twin = Problem(record), Problem(record)
    optimizer = build(record.rule, problem)
    seen = []

    def double(opt, args, kwargs):
        seen.append(("before", problem.weights()))
        for p in problem.params.values():
            p.grad = 2 * p.grad

    optimizer.register_step_pre_hook(double)
    optimizer.register_step_post_hook(lambda opt, args, kwargs: seen.append(("after", problem.weights())))
    start = problem.weights()
    for gradients in twin.gradients:
        gradients.update({name: 2 * g for name, g in gradients.items()})
    problem.run(optimizer, 0, 1)
    assert [when for when, _ in seen] == ["before", "after"]
    assert_same(seen[0][1], start)
    assert_same(seen[1][1], trajectory(record.rule, twin)[0])


def test_state_dict_hooks():
    """A hook that renames on the way in and out is what the checkpoint and the checks see."""
    record = cases.BY_NAME["lion_muon"]
    problem = Problem(record)
    optimizer = build(record.rule, problem)
    problem.run(optimizer, 0, 2)

    def rename(old, new):
        def hook(opt, state_dict):
            state_dict = copy.copy(state_dict)
            state_dict["state"] = {
                index: {(new if key == old else key): value for key, value in state.items()}
                for index, state in state_dict["state"].items()
            }
            return state_dict

        return hook

    optimizer.register_state_dict_post_hook(rename("momentum", "exp_avg"))
    saved = copy.deepcopy(optimizer.state_dict())
    assert set(saved["state"][0]) == {"step", "exp_avg"}
    twin = Problem(record)
    other = build(record.rule, twin)
    other.register_load_state_dict_pre_hook(rename("exp_avg", "momentum"))
    loaded = []
    other.register_load_state_dict_post_hook(lambda opt: loaded.append(copy.deepcopy(opt.state_dict())))
    other.load_state_dict(saved)
    assert_same(loaded[0]["state"][0]["momentum"], optimizer.state[problem.params["wide"]]["momentum"])
    with torch.no_grad():
        for name, p in twin.params.items():
            p.copy_(problem.params[name])
    assert_same(twin.run(other, 2), problem.run(optimizer, 2))


@every_rule
def test_deepcopy_goes_on_alone(record):
    problem = Problem(record)
    optimizer = build(record.rule, problem, maximize=True, check_finite="all")
    problem.run(optimizer, 0, 2)
    twin, other = copy.deepcopy((problem, optimizer))
    assert other.check_finite == "all"
    assert not set(storages(buffers(optimizer))) & set(storages(buffers(other)))
    before = problem.weights()
    theirs = twin.run(other, 2)
    assert_same(problem.weights(), before)
    assert_same(theirs, problem.run(optimizer, 2))


@every_rule
def test_pickle_goes_on_alone(record):
    problem = Problem(record)
    optimizer = build(record.rule, problem, maximize=True, check_finite="none")
    problem.run(optimizer, 0, 2)
    twin, other = pickle.loads(pickle.dumps((problem, optimizer)))
    assert type(other) is type(optimizer)
    assert other.check_finite == "none"
    assert_same(twin.run(other, 2), problem.run(optimizer, 2))


@cases.named_optimizers
def test_named_optimizers_are_pickled_whole(record):
    problem = Problem(record)
    optimizer = record.optimizer(problem.named(), lr=0.5)
    stream = io.BytesIO()
    torch.save(optimizer, stream)
    stream.seek(0)
    again = torch.load(stream, weights_only=False)
    assert type(again) is record.optimizer
    assert again.param_groups[0]["lr"] == 0.5
    extra = torch.nn.Parameter(torch.ones(2, 2))
    again.add_param_group({"params": [("extra", extra)]})  # the rule of the constructor is still known
    assert again.param_groups[1]["rule"] == record.rule.name


def test_replaced_state_is_the_state():
    """Frameworks move state between devices by putting new dicts into ``optimizer.state``; no old one may be held."""
    record = cases.BY_NAME["lion_muon"]
    problem, twin = Problem(record), Problem(record)
    optimizer = build(record.rule, problem)
    problem.run(optimizer, 0, 2)
    for param in problem.params.values():
        optimizer.state[param] = {key: value.clone() for key, value in optimizer.state[param].items()}
    momentum = optimizer.state[problem.params["wide"]]["momentum"]
    before = momentum.clone()
    history = problem.run(optimizer, 2)
    assert cases.differ(momentum, before)
    assert int(optimizer.state[problem.params["wide"]]["step"]) == len(problem.gradients)
    assert_same(history, trajectory(record.rule, twin)[2:])


@every_rule
def test_a_step_makes_no_graph(record):
    problem = Problem(record)
    optimizer = build(record.rule, problem)
    for p in problem.params.values():
        p.grad = (p * p).detach().requires_grad_()  # as after backward(create_graph=True)
    optimizer.step()
    assert all(p.is_leaf and p.requires_grad for p in problem.params.values())
    assert not any(t.requires_grad for t in buffers(optimizer))
