"""Each mistake raises before anything changes, names what is wrong and says what to do."""

from __future__ import annotations

import copy
import math
from dataclasses import replace

import pytest
import torch

import cases
import steepest
from cases import Problem, assert_same, build, element_rules, every_rule, matrix_rules, named_optimizers
from steepest import rules


def parameter(*shape):
    return torch.nn.Parameter(torch.ones(shape))


# --- parameters


@every_rule
def test_empty_parameters_lists(record):
    for nothing in ([], iter([]), [{"params": []}], [{"params": []}, {"params": iter([])}]):
        with pytest.raises(ValueError, match="empty"):
            steepest.Steepest(nothing, record.rule)
    used_up = (p for p in [parameter(2, 2)])
    list(used_up)
    with pytest.raises(ValueError, match="already used up"):
        steepest.Steepest(used_up, record.rule)


@every_rule
def test_a_parameter_given_twice(record):
    p, q = parameter(2, 2), parameter(2, 2)
    with pytest.raises(ValueError, match=r"'b'.*twice"):
        steepest.Steepest([("a", p), ("b", p)], record.rule)
    with pytest.raises(ValueError, match=r"'b'.*twice"):
        steepest.Steepest([{"params": [("a", p)]}, {"params": [("b", p)]}], record.rule)
    optimizer = steepest.Steepest([("a", p)], record.rule)
    before = cases.snapshot(optimizer)
    with pytest.raises(ValueError, match=r"'c'.*twice"):
        optimizer.add_param_group({"params": [("b", q), ("c", p)]})
    assert_same(cases.snapshot(optimizer), before)
    assert q not in optimizer.state


def test_equal_names_are_two_parameters():
    """Parameters of two models in one optimizer often have the same names; each counts."""
    p, q = parameter(2, 2), parameter(2, 2)
    optimizer = steepest.Muon([("w", p), ("w", q)], lr=0.1)
    p.grad, q.grad = torch.full((2, 2), math.nan), torch.eye(2)
    with pytest.raises(FloatingPointError, match="'w'"):
        optimizer.step()
    p.grad = torch.eye(2)
    optimizer.step()
    assert_same(p.detach(), q.detach())


@pytest.mark.parametrize(
    ("params", "error", "message"),
    [
        (torch.nn.Parameter(torch.ones(2, 2)), TypeError, r"single tensor; pass \[parameter\]"),
        ([1.0], TypeError, "must be a tensor, got float"),
        ([("w", None)], TypeError, "w must be a tensor, got NoneType"),
        ([{"weights": []}], TypeError, "param group 0 must be a dict with 'params'"),
        ([{"params": [torch.nn.Parameter(torch.ones(2, 2))]}, 3], TypeError, "param group 1 must be a dict"),
        ({torch.nn.Parameter(torch.ones(2, 2))}, TypeError, "order.*list"),
        ([{"params": {torch.nn.Parameter(torch.ones(2, 2))}}], TypeError, "order.*list"),
        ([torch.nn.Parameter(torch.ones(2, 2)) * 2], ValueError, "non-leaf"),
    ],
    ids=["tensor", "number", "None", "no params", "no dict", "set", "set in a group", "not a leaf"],
)
def test_things_that_are_no_parameters(params, error, message):
    with pytest.raises(error, match=message):
        steepest.Steepest(params, rules.Lion())


def test_a_rule_is_needed():
    for params in ([parameter(2, 2)], [{"params": [parameter(2, 2)]}]):
        with pytest.raises(TypeError, match="needs a rule"):
            steepest.Steepest(params)
    with pytest.raises(TypeError, match=r"needs a rule.*rules\.LionMuon\(\)"):
        steepest.Steepest(torch.nn.Linear(2, 2))
    with pytest.raises(TypeError, match="needs a rule"):
        steepest.Steepest([parameter(2, 2)], rules.Lion)  # the class, not a value
    with pytest.raises(ValueError, match=r"unknown rule 'lion_moun'.*'lion_muon'"):
        steepest.Steepest([{"params": [parameter(2, 2)], "rule": "lion_moun"}])


def test_routing_keywords_need_a_model():
    for options in ({"embeddings": rules.Lion()}, {"rest": rules.Lion()}, {"decay_vectors": True}, {"fused": "joined"}):
        with pytest.raises(TypeError, match=rf"{next(iter(options))}.*model"):
            steepest.LionMuon([parameter(2, 2)], **options)


@matrix_rules
def test_a_vector_under_a_matrix_rule(record):
    good = parameter(3, 3)
    for bad in (parameter(3), torch.nn.Parameter(torch.tensor(1.0))):
        with pytest.raises(ValueError, match=rf"'bias'.*{record.rule.name} needs matrices.*rules\.AdamW"):
            steepest.Steepest([("weight", good), ("bias", bad)], record.rule)
        optimizer = steepest.Steepest([("weight", good)], record.rule)
        before = cases.snapshot(optimizer)
        with pytest.raises(ValueError, match="'bias'"):
            optimizer.add_param_group({"params": [("bias", bad)]})
        assert_same(cases.snapshot(optimizer), before)


@matrix_rules
@pytest.mark.parametrize(
    ("view", "shape", "message"),
    [
        ("transposd", (4, 4), "transposd.*transposed"),
        ("rows=2,1", (4, 4), "add up"),
        ("heads=3", (4, 4), "equal heads"),
        ("batch", (4, 4), "three axes"),
        ("element", (4, 4), "element"),
    ],
)
def test_a_view_that_does_not_fit(record, view, shape, message):
    for make in (
        lambda p: steepest.Steepest([("w", p)], replace(record.rule, view=view)),
        lambda p: steepest.Steepest([{"params": [("w", p)], "rule": record.rule, "view": view}]),
    ):
        with pytest.raises(ValueError, match=message) as error:
            make(parameter(*shape))
        if view != "transposd":
            assert "'w'" in str(error.value)


@element_rules
def test_a_view_is_read_even_where_it_has_no_use(record):
    with pytest.raises(ValueError, match=r"transposd.*transposed"):
        steepest.Steepest([parameter(4, 4)], replace(record.rule, view="transposd"))


# --- options


@named_optimizers
def test_unknown_options(record):
    name = record.optimizer.__name__
    for wrong, right in (
        ("beta", "betas"),
        ("weigth_decay", "weight_decay"),
        ("learning_rate", None),
        ("maximise", "maximize"),
    ):
        hint = rf".*did you mean .*'{right}'" if right else ""
        with pytest.raises(TypeError, match=rf"{name} has no option '{wrong}'{hint}"):
            record.optimizer([parameter(2, 2)], **{wrong: 1})
        with pytest.raises(TypeError, match=rf"has no option '{wrong}'{hint}"):
            steepest.Steepest([{"params": [parameter(2, 2)], "rule": record.rule, wrong: 1}])
    optimizer = record.optimizer([parameter(2, 2)])
    before = cases.snapshot(optimizer)
    with pytest.raises(TypeError, match="did you mean 'lr'"):
        optimizer.add_param_group({"params": [parameter(2, 2)], "lrr": 1.0})
    assert_same(cases.snapshot(optimizer), before)


@every_rule
@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("lr", -1e-3),
        ("lr", math.nan),
        ("lr", math.inf),
        ("lr", "1e-3"),
        ("lr", None),
        ("lr", True),
        ("lr", torch.tensor(-1.0)),
        ("lr", torch.tensor(math.nan)),
        ("lr", torch.tensor([1e-3, 1e-3])),
        ("weight_decay", -0.1),
        ("weight_decay", math.nan),
        ("betas", (1.0, 1.0)),
        ("betas", (-0.1, -0.1)),
        ("betas", (math.nan, math.nan)),
        ("betas", 0.9),
        ("betas", (0.9,)),
        ("betas", (0.9, 0.9, 0.9)),
        ("betas", ("a", "a")),
        ("backend", "cuda"),
        ("state_dtype", "float31"),
        ("state_dtype", torch.float32),
    ],
)
def test_numbers_out_of_range_at_construction_and_in_the_group(record, option, value):
    named = rf"{record.rule.name}: (unknown )?{option}"
    with pytest.raises(ValueError, match=named):
        replace(record.rule, **{option: value})
    if record.optimizer:
        with pytest.raises(ValueError, match=named):
            record.optimizer([parameter(2, 2)], **{option: value})
    with pytest.raises(ValueError, match=named):
        steepest.Steepest([{"params": [parameter(2, 2)], "rule": record.rule, option: value}])
    problem = Problem(record)
    optimizer = build(record.rule, problem)
    problem.run(optimizer, 0, 1)
    optimizer.param_groups[0][option] = value
    problem.load(1)
    before = cases.snapshot(optimizer)
    with pytest.raises(ValueError, match=named):
        optimizer.step()
    assert_same(cases.snapshot(optimizer), before)


def test_a_bad_group_after_a_good_one_leaves_the_good_one_alone():
    """All groups are checked before the first is stepped."""
    p, q = parameter(3, 3), parameter(3)
    optimizer = steepest.Steepest([{"params": [p], "rule": rules.Muon()}, {"params": [q], "rule": rules.AdamW()}])
    p.grad, q.grad = torch.ones(3, 3), torch.ones(3)
    optimizer.param_groups[1]["lr"] = -1.0
    before = cases.snapshot(optimizer)
    with pytest.raises(ValueError, match="adamw: lr"):
        optimizer.step()
    assert_same(cases.snapshot(optimizer), before)


def test_unknown_group_keys_are_refused_where_the_engine_would_ignore_them():
    with pytest.raises(TypeError, match="no option 'nesterov'"):
        steepest.Steepest([{"params": [parameter(2, 2)], "nesterov": True}], rules.Muon())


def test_unknown_choice_of_check_finite():
    with pytest.raises(ValueError, match=r"check_finite 'al'.*'all'"):
        steepest.LionMuon([parameter(2, 2)], check_finite="al")


def test_presets():
    with pytest.raises(ValueError, match=r"unknown preset 'lionmuon-p2'.*'lionmuon-v[12]-p2"):
        steepest.LionMuon([parameter(2, 2)], preset="lionmuon-p2")
    with pytest.raises(ValueError, match="'signmuon-v1-p2' is of SignMuon, not LionMuon"):
        steepest.LionMuon([parameter(2, 2)], preset="signmuon-v1-p2")


# --- gradients


@every_rule
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_non_finite_gradient_is_named_and_nothing_changes(record, bad):
    problem = Problem(record)
    optimizer = build(record.rule, problem, check_finite="all")
    problem.run(optimizer, 0, 2)
    problem.load(2)
    problem.params["tall"].grad[1, 2] = bad
    before = cases.snapshot(optimizer)
    with pytest.raises(FloatingPointError, match=r"gradient of 'tall'; nothing was changed.*GradScaler"):
        optimizer.step()
    assert_same(cases.snapshot(optimizer), before)
    problem.load(2)
    optimizer.step()  # and the run goes on
    twin = Problem(record)
    assert_same(problem.weights(), twin.run(build(record.rule, twin), 0, 3)[-1])


@matrix_rules
def test_matrices_are_checked_by_default(record):
    problem = Problem(record)
    optimizer = build(record.rule, problem)
    for step in range(record.period + 1):
        problem.load(step)
        before = cases.snapshot(optimizer)["weights"]
        problem.params["conv"].grad[0, 0, 0, 0] = math.nan
        with pytest.raises(FloatingPointError, match="'conv'"):
            optimizer.step()
        assert_same(cases.snapshot(optimizer)["weights"], before)
        problem.load(step)
        optimizer.step()


@pytest.mark.parametrize("record", [r for r in cases.RECORDS if r.rule.needs == "element" and not r.pooled], ids=str)
def test_an_unchecked_bad_element_stays_where_it_is(record):
    """Element-wise rules are not checked by default: one bad element is bad for itself alone."""
    problem = Problem(record)
    twin = Problem(record)
    problem.gradients[0]["tall"] = problem.gradients[0]["tall"].index_put(
        (torch.tensor(1), torch.tensor(2)), torch.tensor(math.nan)
    )
    history = problem.run(build(record.rule, problem))
    expected = twin.run(build(record.rule, twin))
    bad = torch.zeros(8, 3, dtype=torch.bool)
    bad[1, 2] = True
    assert_same(history[-1]["tall"][~bad], expected[-1]["tall"][~bad])
    assert_same({**history[-1], "tall": 0}, {**expected[-1], "tall": 0})


@every_rule
def test_no_check_means_no_check(record):
    problem = Problem(record)
    problem.gradients[0]["tall"] = torch.full((8, 3), math.nan)
    problem.run(build(record.rule, problem, check_finite="none"), 0, 1)
    assert problem.weights()["wide"].isfinite().all()


@every_rule
def test_large_finite_gradients_are_no_error(record):
    """Their squares overflow, they do not."""
    problem = Problem(record)
    for gradients in problem.gradients:
        gradients.update({name: g * 1e30 for name, g in gradients.items()})
    history = problem.run(build(record.rule, problem, check_finite="all"))
    if record.scale_free:
        cases.assert_close(history, cases.trajectory(record.rule, Problem(record)))


def test_large_finite_half_precision_gradients_are_no_error():
    problem = Problem({"w": (16, 16)}, dtype=torch.float16)
    for gradients in problem.gradients:
        gradients["w"] = gradients["w"].sign() * 6e4
    for name in ("muon", "lion_muon"):
        history = problem.run(build(cases.BY_NAME[name].rule, problem))
        assert history[-1]["w"].isfinite().all()


def test_many_bad_gradients_are_counted():
    params = [(f"layer.{i}", parameter(2, 2)) for i in range(8)]
    optimizer = steepest.Muon(params)
    for _, p in params:
        p.grad = torch.full((2, 2), math.nan)
    with pytest.raises(FloatingPointError, match=r"'layer\.0'.*'layer\.4' and 3 more"):
        optimizer.step()


# --- checkpoints


def saved_and_fresh(record):
    problem = Problem(record)
    optimizer = build(record.rule, problem)
    problem.run(optimizer, 0, 2)
    return copy.deepcopy(optimizer.state_dict()), build(record.rule, Problem(record))


def refused(optimizer, saved, message):
    before = cases.snapshot(optimizer)
    kept = copy.deepcopy(saved)
    with pytest.raises(ValueError, match=message):
        optimizer.load_state_dict(saved)
    assert_same(cases.snapshot(optimizer), before)
    assert not cases.differ(saved, kept)


@every_rule
def test_a_checkpoint_with_an_unknown_or_missing_state(record):
    saved, fresh = saved_and_fresh(record)
    wrong = copy.deepcopy(saved)
    wrong["state"][2]["momentun"] = torch.zeros(8, 3)
    refused(fresh, wrong, r"unknown state 'momentun' of parameter 'tall'.*did you mean 'momentum'")
    for key in ("step", "momentum"):
        wrong = copy.deepcopy(saved)
        del wrong["state"][2][key]
        refused(fresh, wrong, rf"lacks the state '{key}' of parameter 'tall'")
    wrong = copy.deepcopy(saved)
    del wrong["state"][2]
    refused(fresh, wrong, "no state for parameter 'tall'")
    wrong = copy.deepcopy(saved)
    wrong["state"][99] = {"step": torch.tensor(0)}
    refused(fresh, wrong, "99")


@every_rule
def test_a_checkpoint_of_other_shapes(record):
    saved, fresh = saved_and_fresh(record)
    wrong = copy.deepcopy(saved)
    wrong["state"][2]["momentum"] = torch.zeros(3, 8)
    refused(fresh, wrong, r"'momentum' of parameter 'tall' has shape \(3, 8\) in the checkpoint, \(8, 3\) here")
    wrong = copy.deepcopy(saved)
    wrong["state"][2]["momentum"] = [0.0]
    refused(fresh, wrong, r"'momentum' of parameter 'tall'")
    wrong = copy.deepcopy(saved)
    wrong["state"][2]["step"] = torch.zeros(3)
    refused(fresh, wrong, r"'step' of parameter 'tall'")


@every_rule
def test_a_checkpoint_of_another_method(record):
    saved, _ = saved_and_fresh(record)
    for other in cases.RECORDS:
        if other.rule.name != record.rule.name:
            optimizer = build(other.rule, Problem(cases.MATRICES))
            wrong = copy.deepcopy(saved)
            wrong["param_groups"][0]["params"] = [0, 1, 2, 3, 4]
            refused(optimizer, wrong, f"rule {record.rule.name!r}.*{other.rule.name!r}")


@every_rule
def test_a_checkpoint_with_other_groups(record):
    saved, _ = saved_and_fresh(record)
    problem = Problem(record)
    split = steepest.Steepest([{"params": [pair]} for pair in problem.named()], record.rule)
    refused(split, saved, f"1 param groups and this optimizer {len(problem.params)}")
    fewer = steepest.Steepest(Problem(record).named()[:3], record.rule)
    refused(fewer, saved, f"{len(problem.params)} parameters, this optimizer has 3")


@every_rule
def test_a_checkpoint_in_another_order(record):
    """Equal shapes would load, each into the wrong parameter."""
    problem = Problem(record)
    optimizer = build(record.rule, problem)
    problem.run(optimizer, 0, 2)
    reordered = steepest.Steepest([(n, parameter(*p.shape)) for n, p in reversed(problem.named())], record.rule)
    refused(reordered, optimizer.state_dict(), "another order: 'wide' where")
    # other names are no error: a wrapper may have added to them
    renamed = steepest.Steepest([(f"module.{n}", p) for n, p in Problem(record).named()], record.rule)
    renamed.load_state_dict(optimizer.state_dict())
    assert renamed.param_groups[0]["param_names"][0] == "module.wide"


@every_rule
def test_a_checkpoint_with_missing_or_bad_numbers(record):
    saved, fresh = saved_and_fresh(record)
    for key in ("lr", "betas", "weight_decay", "view", "maximize"):
        wrong = copy.deepcopy(saved)
        del wrong["param_groups"][0][key]
        refused(fresh, wrong, f"lacks {key}")
    wrong = copy.deepcopy(saved)
    wrong["param_groups"][0]["lr"] = -1.0
    refused(fresh, wrong, "lr")


@every_rule
def test_a_checkpoint_of_another_optimizer(record):
    problem = Problem(record)
    adamw = torch.optim.AdamW(problem.params.values(), lr=1e-3)
    problem.run(adamw, 0, 2)
    fresh = build(record.rule, Problem(record))
    refused(fresh, adamw.state_dict(), "of another optimizer")
    refused(fresh, {"model": {}, "optimizer": {}}, r"not an optimizer checkpoint.*'model'")
