"""What may be given as parameters, what the groups hold, and groups added later."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch

import cases
import steepest
from cases import Problem, assert_close, assert_same, build, every_rule, independent_rules, named_optimizers, trajectory
from steepest import rules


@every_rule
def test_every_form_of_parameters_is_the_same(record):
    expected = trajectory(record.rule, Problem(record))
    forms = {
        "list": lambda named: [p for _, p in named],
        "generator": lambda named: (p for _, p in named),
        "pairs": lambda named: named,
        "generator of pairs": iter,
        "group": lambda named: [{"params": [p for _, p in named]}],
        "group of a generator": lambda named: [{"params": (p for _, p in named)}],
        "group of pairs": lambda named: [{"params": named}],
        "generator of groups": lambda named: ({"params": [pair]} for pair in named),
        "group with the rule": lambda named: [{"params": named, "rule": record.rule}],
        "group with the rule by name": lambda named: [
            {"params": named, "rule": record.rule.name, **{k: getattr(record.rule, k) for k in own_options(record)}}
        ],
    }
    for form, make in forms.items():
        problem = Problem(record)
        rule = None if "with the rule" in form else record.rule
        history = problem.run(steepest.Steepest(make(problem.named()), rule))
        assert not cases.differ(history, expected) or "groups" in form, form
        assert_close(history, expected)


def own_options(record):
    return [name for name in cases.option_names(record.rule) if name not in ("view", "state_dtype")]


@named_optimizers
def test_a_named_optimizer_is_its_rule(record):
    options = {name: getattr(record.rule, name) for name in cases.option_names(record.rule)}
    problem = Problem(record)
    history = problem.run(record.optimizer(problem.named(), **options))
    assert_same(history, trajectory(record.rule, Problem(record)))
    assert record.optimizer(Problem(record).named()).param_groups[0]["lr"] == type(record.rule)().lr


@every_rule
def test_options_of_a_group_override_its_rule(record):
    problem, twin = Problem(record), Problem(record)
    optimizer = steepest.Steepest(
        [{"params": problem.named(), "rule": record.rule, "lr": 0.5, "weight_decay": 0.0}], rules.Lion()
    )
    assert optimizer.param_groups[0]["lr"] == 0.5
    assert_same(problem.run(optimizer), trajectory(replace(record.rule, lr=0.5, weight_decay=0.0), twin))


def test_groups_of_several_rules_are_as_if_alone():
    mixed = {str(r): Problem(r, seed=i) for i, r in enumerate(cases.RECORDS)}
    optimizer = steepest.Steepest(
        [{"params": p.named(), "rule": cases.BY_NAME[name].rule} for name, p in mixed.items()],
    )
    for step in range(5):
        for problem in mixed.values():
            problem.load(step)
        optimizer.step()
    for i, record in enumerate(cases.RECORDS):
        assert_same(mixed[str(record)].weights(), trajectory(record.rule, Problem(record, steps=5, seed=i))[-1])


@every_rule
def test_a_group_holds_numbers_and_strings_under_the_names_of_the_rule(record):
    optimizer = build(record.rule, Problem(record))
    (group,) = optimizer.param_groups
    for name in set(cases.option_names(record.rule)) - {"view"}:
        assert group[name] == getattr(record.rule, name)
    assert group["rule"] == record.rule.name
    plain = (int, float, str, bool, type(None))
    for key, value in group.items():
        if key not in ("params", "param_names"):
            assert all(isinstance(v, plain) for v in (value if isinstance(value, tuple) else (value,))), key


def test_a_view_may_be_given_as_a_value():
    """And is kept as text, so that the state dict stays plain."""
    rule, shapes = rules.Muon(lr=0.02, scale="spectral"), {"wide": (4, 6)}
    expected = trajectory(replace(rule, view="transposed"), Problem(shapes))
    for make in (
        lambda named: steepest.Steepest(named, replace(rule, view=steepest.View(transposed=True))),
        lambda named: steepest.Steepest([{"params": named, "rule": rule, "view": steepest.View(transposed=True)}]),
    ):
        problem = Problem(shapes)
        optimizer = make(problem.named())
        assert optimizer.param_groups[0]["view"] == "transposed"
        assert_same(problem.run(optimizer), expected)


@every_rule
def test_numbers_edited_in_the_group_hold_from_the_next_step(record):
    problem, twin = Problem(record), Problem(record)
    optimizer = build(record.rule, problem)
    problem.run(optimizer, 0, 2)
    edited = {"lr": 0.1, "weight_decay": 0.7, "betas": (0.4, 0.4)}
    optimizer.param_groups[0].update(edited)
    other = build(record.rule, twin)
    twin.run(other, 0, 2)
    rebuilt = build(replace(record.rule, **edited, **({"clock": 2} if record.pooled else {})), twin)
    for p in twin.params.values():
        rebuilt.state[p] = other.state[p]
    assert_same(problem.run(optimizer, 2), twin.run(rebuilt, 2))


@independent_rules
def test_a_group_added_later_starts_at_step_0(record):
    problem = Problem(record)
    late, names = "tall", [n for n in problem.params if n != "tall"]
    optimizer = steepest.Steepest([(n, problem.params[n]) for n in names], record.rule)
    problem.run(optimizer, 0, 2)
    optimizer.add_param_group({"params": [(late, problem.params[late])], "lr": 0.01})
    added = [w[late] for w in problem.run(optimizer, 2)]

    alone = Problem(record)
    fresh = steepest.Steepest([(late, alone.params[late])], replace(record.rule, lr=0.01))
    assert_close(added, [w[late] for w in alone.run(fresh, 2)])
    rest = Problem(record)
    expected = rest.run(steepest.Steepest([(n, rest.params[n]) for n in names], record.rule))
    assert_same({n: problem.weights()[n] for n in names}, {n: expected[-1][n] for n in names})


def test_a_group_added_later_with_another_rule():
    problem = Problem({"a": (4, 6), "b": (5,)})
    optimizer = steepest.LionMuon([problem.params["a"]], lr=0.02)
    problem.run(optimizer, 0, 3)
    optimizer.add_param_group({"params": problem.params["b"], "rule": rules.AdamW(lr=0.1)})
    problem.run(optimizer, 3)
    assert [g["rule"] for g in optimizer.param_groups] == ["lion_muon", "adamw"]
    assert optimizer.param_groups[1]["param_names"] == ["parameter 1"]
    assert set(optimizer.state[problem.params["b"]]) == {"step", "momentum", "second"}


@every_rule
def test_state_is_there_from_the_start(record):
    """Checkpointing before the first step must not see an empty state (it would take a step to fill it)."""
    problem = Problem(record)
    optimizer = build(record.rule, problem)
    for param in problem.params.values():
        state = optimizer.state[param]
        assert set(state) == {"step", *record.rule.buffers, *(["fit"] if record.pooled else [])}
        assert int(state["step"]) == 0
        assert all(not state[name].any() for name in record.rule.buffers)


@every_rule
def test_dicts_of_the_caller_are_not_changed(record):
    problem = Problem(record)
    groups = [{"params": [pair], "rule": record.rule, "lr": 0.5} for pair in problem.named()]
    kept = [dict(g) for g in groups]
    optimizer = steepest.Steepest(groups)
    problem.run(optimizer, 0, 2)
    optimizer.param_groups[0]["lr"] = 1.0
    added = {"params": [torch.nn.Parameter(torch.ones(2, 2))], "rule": record.rule}
    kept_added = dict(added)
    optimizer.add_param_group(added)
    assert groups == kept
    assert added == kept_added
    assert all(list(g["params"]) == k["params"] for g, k in zip(groups, kept, strict=True))


@every_rule
def test_rules_of_the_caller_are_not_changed_and_may_be_shared(record):
    rule = copy.deepcopy(record.rule)
    problem, twin = Problem(record), Problem(record)
    first, second = build(rule, problem), build(rule, twin)
    first.param_groups[0]["lr"] = 0.5
    problem.run(first)
    assert rule == record.rule
    assert second.param_groups[0]["lr"] == record.rule.lr


def test_a_tensor_rate_is_not_shared_between_groups():
    """A scheduler writes tensor rates in place, one group after the other."""
    rate = torch.tensor(0.1)
    a, b = (torch.nn.Parameter(torch.ones(2, 2)) for _ in range(2))
    optimizer = steepest.Steepest([{"params": [a]}, {"params": [b], "rule": rules.AdamW(lr=rate)}], rules.Lion(lr=rate))
    plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, factor=0.5, patience=0)
    plateau.step(1.0)
    plateau.step(2.0)
    assert [float(g["lr"]) for g in optimizer.param_groups] == pytest.approx([0.05, 0.05])
    assert float(rate) == pytest.approx(0.1)


def test_defaults_are_known_to_schedulers_whatever_form_the_rule_has():
    """OneCycleLR looks for betas among ``defaults``."""
    p = torch.nn.Parameter(torch.ones(2, 2))
    for params, rule in (
        ([p], rules.Lion()),
        ([{"params": [p], "rule": rules.Lion()}], None),
        ([{"params": [p], "rule": "lion"}], None),
    ):
        optimizer = steepest.Steepest(params, rule)
        assert set(optimizer.defaults) >= {"lr", "betas", "weight_decay"}


@pytest.mark.parametrize("backend", ["single", "foreach"])
@every_rule
def test_order_presence_and_grouping_of_parameters_do_not_matter(record, backend):
    rule = replace(record.rule, backend=backend)
    expected = trajectory(rule, Problem(record))

    problem = Problem(record)
    assert_close(problem.run(steepest.Steepest(problem.named()[::-1], rule)), expected)

    problem = Problem(record)
    history = problem.run(steepest.Steepest([{"params": [pair]} for pair in problem.named()], rule))
    assert_close(history, expected)

    for name in () if record.pooled else expected[0]:
        problem = Problem(record)
        history = problem.run(steepest.Steepest([problem.params[name]], rule))
        assert_close([w[name] for w in history], [w[name] for w in expected])


@independent_rules
def test_one_bad_or_large_neighbour_changes_nothing(record):
    """No norm, mean or stack is shared between parameters."""
    expected = trajectory(record.rule, Problem(record))
    problem = Problem(record)
    for gradients in problem.gradients:
        gradients["wide too"] = gradients["wide too"] * 1e6
    history = problem.run(build(record.rule, problem))
    for actual, wanted in zip(history, expected, strict=True):
        assert_close(actual["wide"], wanted["wide"])
