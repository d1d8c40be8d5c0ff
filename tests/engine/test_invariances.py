"""What must not change a run: the scale of the gradient, transposition, permutation, signs, and what else there is."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

import cases
from cases import Problem, assert_close, assert_same, build, every_rule, spectral_rules, trajectory
from steepest import rules

BACKENDS = ["single", "foreach"]
scale_free_rules = pytest.mark.parametrize("record", [r for r in cases.RECORDS if r.scale_free], ids=str)


def scaled(record, factor, dtype=torch.float32):
    problem = Problem(record, dtype=dtype)
    for gradients in problem.gradients:
        gradients.update({name: factor * g for name, g in gradients.items()})
    return problem


@pytest.mark.parametrize("power", [-80, -40, -1, 40, 80])
@pytest.mark.parametrize("backend", BACKENDS)
@scale_free_rules
def test_a_power_of_two_on_all_gradients_changes_no_bit(record, backend, power):
    rule = replace(record.rule, backend=backend)
    assert_same(trajectory(rule, scaled(record, 2.0**power)), trajectory(rule, Problem(record)))


@pytest.mark.parametrize("factor", [1e-12, 1e-6, 1e6, 1e12])
@scale_free_rules
def test_a_constant_factor_on_all_gradients_changes_nothing(record, factor):
    rule = replace(record.rule, compute_dtype="float64") if "compute_dtype" in record.knobs else record.rule
    expected = trajectory(rule, Problem(record, dtype=torch.float64))
    # A fit reads its sample in float32.
    rtol, atol = (1e-5, 1e-6) if record.pooled else (1e-9, 1e-12)
    assert_close(trajectory(rule, scaled(record, factor, torch.float64)), expected, rtol=rtol, atol=atol)


def test_adamw_is_scale_free_up_to_eps():
    """Its epsilon is absolute: gradients far below it make steps far below the rate."""
    record = cases.BY_NAME["adamw"]
    tiny = replace(record.rule, eps=1e-30)
    assert_close(trajectory(tiny, scaled(record, 1e6)), trajectory(tiny, Problem(record)))
    assert cases.differ(trajectory(record.rule, scaled(record, 1e-6)), trajectory(record.rule, Problem(record)))


def mapped(problem, change):
    """The problem with every matrix and gradient changed alike."""
    problem.params = {n: torch.nn.Parameter(change(p.detach())) for n, p in problem.params.items()}
    problem.gradients = [{n: change(g) for n, g in gradients.items()} for gradients in problem.gradients]
    return problem


SQUARES = {"wide": (4, 6), "tall": (8, 3), "square": (5, 5), "row": (1, 6)}
CHANGES = {
    "transpose": lambda x: x.mT.contiguous(),
    "reverse rows": lambda x: x.flip(0),
    "reverse columns": lambda x: x.flip(1),
    "rotate rows": lambda x: x.roll(1, 0),
    "flip signs of rows": lambda x: x * torch.tensor([1.0, -1.0]).to(x).repeat(x.shape[0])[: x.shape[0], None],
    "negate": lambda x: -x,
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("backend", BACKENDS)
@every_rule
def test_equivariance(record, backend, change):
    """Changing weights and gradients and then running is running and then changing."""
    if change == "transpose" and record.rule.name in ("sinkgd", "sage"):
        pytest.skip("columns come last, or are what is damped")
    if change == "flip signs of rows" and "elements" in record.rule.fitted:
        pytest.skip("the median of the elements, to which the temperature is fitted, is another one")
    rule = replace(record.rule, backend=backend)  # match_rms, where there is a scale, is the same for the transpose
    expected = [{n: CHANGES[change](w) for n, w in weights.items()} for weights in trajectory(rule, Problem(SQUARES))]
    actual = trajectory(rule, mapped(Problem(SQUARES), CHANGES[change]))
    assert_close(actual, expected, rtol=2e-5, atol=2e-5)


@spectral_rules
def test_a_transposed_view_is_the_transpose(record):
    """GPT-2 stores (in, out): the view makes the geometry and the scale those of (out, in)."""
    rule = replace(record.rule, scale="spectral")
    shapes = {"wide": (4, 6), "tall": (8, 3)}
    expected = [{n: w.mT for n, w in weights.items()} for weights in trajectory(rule, Problem(shapes))]
    actual = trajectory(replace(rule, view="transposed"), mapped(Problem(shapes), CHANGES["transpose"]))
    assert_close(actual, expected, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("side", ["left", "right"])
def test_muon_follows_a_change_of_basis(side):
    """The spectral step commutes with orthogonal matrices on either side; the sign step does not."""
    q, _ = torch.linalg.qr(torch.randn(6, 6, generator=torch.Generator().manual_seed(3), dtype=torch.float64))

    def change(x):
        return q @ x if side == "left" else x @ q

    for name, same in (("muon", True), ("lion_muon", False), ("lion", False)):
        rule = cases.BY_NAME[name].rule
        if name != "lion":
            rule = replace(rule, compute_dtype="float64")
        shapes = {"w": (6, 6)}
        expected = [{"w": change(w["w"])} for w in trajectory(rule, Problem(shapes, dtype=torch.float64))]
        actual = trajectory(rule, mapped(Problem(shapes, dtype=torch.float64), change))
        if same:
            assert_close(actual, expected, rtol=1e-9, atol=1e-10)
        else:
            assert (actual[-1]["w"] - expected[-1]["w"]).abs().max() > 1e-3


@every_rule
def test_running_twice_is_the_same_bit_for_bit(record):
    assert_same(trajectory(record.rule, Problem(record)), trajectory(record.rule, Problem(record)))


@every_rule
def test_the_global_random_state_is_not_used(record):
    rule = replace(record.rule, trigger="stable_rank", threshold=0.5) if "trigger" in record.knobs else record.rule
    problem = Problem(record)
    optimizer = build(rule, problem)
    torch.manual_seed(1)
    before = torch.get_rng_state()
    history = problem.run(optimizer)
    assert_same(torch.get_rng_state(), before)
    torch.manual_seed(2)
    assert_same(trajectory(rule, Problem(record)), history)


@every_rule
def test_the_default_number_format_is_not_used(record):
    rule = replace(record.rule, trigger="stable_rank", threshold=0.4) if "trigger" in record.knobs else record.rule
    expected = trajectory(rule, Problem(record))
    torch.set_default_dtype(torch.float64)
    try:
        problem = Problem(record)
        optimizer = build(rule, problem)
        history = problem.run(optimizer)
        assert {t.dtype for s in optimizer.state.values() for k, t in s.items() if k not in ("step", "fit")} == {
            torch.float32
        }
    finally:
        torch.set_default_dtype(torch.float32)
    assert_same(history, expected)


def test_decay_takes_the_rate_of_the_step_taken():
    """With zero gradients nothing moves but the decay: 1 - lr wd on spectral steps, 1 - lr ratio wd on sign steps."""
    rule = rules.LionMuon(lr=0.5, sign_lr_ratio=0.1, period=3, weight_decay=0.2)
    problem = Problem({"w": (4, 6)}, dtype=torch.float64, steps=6)
    problem.gradients = [{"w": torch.zeros(4, 6, dtype=torch.float64)} for _ in range(6)]
    previous = problem.weights()["w"]
    for step, weights in enumerate(trajectory(rule, problem)):
        kept = 1 - 0.5 * 0.2 if step % 3 == 0 else 1 - 0.05 * 0.2
        assert_close(weights["w"], kept * previous, rtol=1e-12, atol=0.0)
        previous = weights["w"]


@every_rule
def test_decay_is_decoupled(record):
    """It acts on the weights alone: never on the direction or the buffers."""
    with_decay, without = (replace(record.rule, weight_decay=wd, lr=1e-3) for wd in (0.5, 0.0))
    problem, twin = Problem(record), Problem(record)
    first, second = build(with_decay, problem), build(without, twin)
    problem.run(first)
    twin.run(second)
    for name in problem.params:
        for key in record.rule.buffers:
            assert_same(first.state[problem.params[name]][key], second.state[twin.params[name]][key])
