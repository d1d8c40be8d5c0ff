"""Schedulers, gradient scaling, accumulation and clipping of torch work as with any torch optimizer."""

from __future__ import annotations

import copy
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.optim import lr_scheduler

import cases
import steepest
from cases import Problem, assert_close, assert_same, build, every_rule, trajectory
from steepest import rules

SCHEDULERS = {
    "LambdaLR": lambda o: lr_scheduler.LambdaLR(o, lambda t: 1 / (1 + t)),
    "LambdaLR of numpy": lambda o: lr_scheduler.LambdaLR(o, lambda t: 0.5 * (1 + np.cos(np.float32(t / 4)))),
    "CosineAnnealingLR": lambda o: lr_scheduler.CosineAnnealingLR(o, T_max=5),
    "OneCycleLR": lambda o: lr_scheduler.OneCycleLR(o, max_lr=0.1, total_steps=9, cycle_momentum=False),
    "ExponentialLR": lambda o: lr_scheduler.ExponentialLR(o, 0.5),
    "ReduceLROnPlateau": lambda o: lr_scheduler.ReduceLROnPlateau(o, patience=0, factor=0.5),
    "SequentialLR": lambda o: lr_scheduler.SequentialLR(
        o, [lr_scheduler.LinearLR(o, 0.1, total_iters=2), lr_scheduler.CosineAnnealingLR(o, 5)], milestones=[2]
    ),
}


def advance(scheduler):
    scheduler.step(*([1.0] if isinstance(scheduler, lr_scheduler.ReduceLROnPlateau) else []))


@pytest.mark.parametrize("rate", [0.02, torch.tensor(0.02)], ids=["number", "tensor"])
@pytest.mark.parametrize("name", SCHEDULERS)
@every_rule
def test_schedulers_move_every_rate(record, name, rate):
    """Each step is the one at rate 1 times the rate that the group shows, that of sign steps too."""
    rule = replace(record.rule, weight_decay=0.0, lr=1.0)
    problem = Problem(record)
    start = problem.weights()
    unit = [start, *trajectory(rule, problem)]

    problem = Problem(record)
    optimizer = build(replace(rule, lr=rate if isinstance(rate, float) else rate.clone()), problem)
    scheduler = SCHEDULERS[name](optimizer)
    rates = []
    weights = start
    for step in range(len(problem.gradients)):
        rates.append(float(optimizer.param_groups[0]["lr"]))
        (moved,) = problem.run(optimizer, step, step + 1)
        advance(scheduler)
        for n, w in moved.items():
            assert_close(w - weights[n], rates[-1] * (unit[step + 1][n] - unit[step][n]), rtol=1e-3, atol=2e-6)
        weights = moved
    assert len(set(rates)) > 2


def test_sign_steps_are_the_ratio_times_the_scheduled_rate():
    rule = rules.LionMuon(lr=1.0, sign_lr_ratio=0.25, period=2, weight_decay=0.0)
    problem = Problem({"w": (4, 6)}, dtype=torch.float64)
    optimizer = build(rule, problem)
    scheduler = lr_scheduler.ExponentialLR(optimizer, 0.5)
    history = [problem.weights()]
    for step in range(6):
        history += problem.run(optimizer, step, step + 1)
        scheduler.step()
        if step % 2:
            moved = (history[-1]["w"] - history[-2]["w"]).abs()
            assert_close(moved, torch.full_like(moved, 0.25 * 0.5**step), rtol=1e-10)


@pytest.mark.parametrize("name", ["lion", "lion_muon", "muon", "adamw"])
def test_one_cycle_moves_betas_and_every_group(name):
    record = cases.BY_NAME[name]
    problem, twin = Problem(record), Problem(record)
    optimizer, by_hand = build(record.rule, problem), build(record.rule, twin)
    scheduler = lr_scheduler.OneCycleLR(optimizer, max_lr=0.1, total_steps=9, base_momentum=0.3, max_momentum=0.8)
    seen = []
    for step in range(len(problem.gradients)):
        group = optimizer.param_groups[0]
        seen.append((group["lr"], group["betas"]))
        by_hand.param_groups[0].update(lr=group["lr"], betas=tuple(group["betas"]))
        assert_same(problem.run(optimizer, step, step + 1), twin.run(by_hand, step, step + 1))
        scheduler.step()
    assert len({betas for _, betas in seen}) > 3


def test_one_cycle_on_equal_betas_says_what_to_do():
    """OneCycleLR moves the first beta alone, which makes another method of Signum; the refusal must say so at once."""
    problem = Problem({"w": (3,)})
    optimizer = steepest.Signum(problem.named())
    lr_scheduler.OneCycleLR(optimizer, max_lr=0.1, total_steps=9)
    problem.load(0)
    before = cases.snapshot(optimizer)
    with pytest.raises(ValueError, match=r"betas must be equal.*Lion"):
        optimizer.step()
    assert_same(cases.snapshot(optimizer), before)


@pytest.mark.parametrize("backend", ["single", "foreach", "auto"])
@every_rule
def test_a_tensor_rate_is_the_number(record, backend):
    for dtype in (torch.float32, torch.float64):
        rule = replace(record.rule, backend=backend, lr=0.03125)  # exact, so that both are the same number
        problem, twin = Problem(record, dtype=dtype), Problem(record, dtype=dtype)
        with_tensor = trajectory(replace(rule, lr=torch.tensor(0.03125, dtype=torch.float64)), problem)
        assert_close(with_tensor, trajectory(rule, twin))


@every_rule
def test_a_rate_of_numpy_is_the_number(record):
    """In single precision, one minus a small rate times a small decay would be far off."""
    problem, twin = Problem(record, dtype=torch.float64), Problem(record, dtype=torch.float64)
    optimizer, by_hand = build(record.rule, problem), build(record.rule, twin)
    optimizer.param_groups[0]["lr"] = np.float32(1e-4)
    by_hand.param_groups[0]["lr"] = float(np.float32(1e-4))
    assert_same(problem.run(optimizer), twin.run(by_hand))


@every_rule
def test_a_tensor_rate_written_in_place_holds_from_the_next_step(record):
    problem, twin = Problem(record), Problem(record)
    optimizer, by_hand = build(replace(record.rule, lr=torch.tensor(0.5)), problem), build(record.rule, twin)
    for step in range(len(problem.gradients)):
        optimizer.param_groups[0]["lr"].fill_(2.0**-step)
        by_hand.param_groups[0]["lr"] = 2.0**-step
        assert_close(problem.run(optimizer, step, step + 1), twin.run(by_hand, step, step + 1))


@every_rule
def test_a_scheduler_made_for_a_resumed_run(record):
    """``initial_lr`` and what else schedulers put into the groups is saved and loaded with them."""
    problem, twin = Problem(record), Problem(record)

    def make(problem):
        optimizer = build(record.rule, problem)
        return optimizer, lr_scheduler.OneCycleLR(optimizer, max_lr=0.1, total_steps=9, cycle_momentum=False)

    optimizer, scheduler = make(problem)
    for step in range(3):
        problem.run(optimizer, step, step + 1)
        scheduler.step()
    saved = copy.deepcopy((optimizer.state_dict(), scheduler.state_dict()))
    other, resumed = make(twin)
    other.load_state_dict(saved[0])
    resumed.load_state_dict(saved[1])
    extra = {"initial_lr", "max_lr", "min_lr"}
    assert extra <= set(other.param_groups[0])
    assert {k: other.param_groups[0][k] for k in extra} == {k: optimizer.param_groups[0][k] for k in extra}
    with torch.no_grad():
        for name, p in twin.params.items():
            p.copy_(problem.params[name])
    for step in range(3, 7):
        assert_same(twin.run(other, step, step + 1), problem.run(optimizer, step, step + 1))
        scheduler.step()
        resumed.step()


# --- gradient scaling


@every_rule
def test_grad_scaler_on_a_cpu(record):
    """Scaled losses give the steps of unscaled ones; a step with an infinite gradient is skipped whole."""
    problem, twin = Problem(record), Problem(record)
    optimizer, plain = build(record.rule, problem), build(record.rule, twin)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10, growth_interval=1000)

    def backward(problem, step, scale):
        for p in problem.params.values():
            p.grad = None
        loss = sum((problem.params[n] * g).sum() for n, g in problem.gradients[step].items())
        scale(loss).backward()

    for step in range(5):
        backward(problem, step, scaler.scale)
        if step == 2:
            problem.params["tall"].grad[1, 1] = math.inf
            before = cases.snapshot(optimizer)
            del before["gradients"]
        scaler.step(optimizer)
        if step == 2:
            after = cases.snapshot(optimizer)
            del after["gradients"]
            assert_same(after, before)
        else:
            backward(twin, step, lambda loss: loss)
            plain.step()
        scaler.update()
        assert_same(problem.weights(), twin.weights())
    assert scaler.get_scale() == 2.0**9


# --- a small model


def tiny_model():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(6, 16), torch.nn.Tanh(), torch.nn.Linear(16, 3))


def batch(n, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, 6, generator=generator)
    return x, x[:, :3].argmax(dim=1)


def test_gradient_accumulation():
    whole, parts = tiny_model(), tiny_model()
    first, second = (steepest.LionMuon(m, lr=0.01, period=2) for m in (whole, parts))
    x, y = batch(16)
    loss = torch.nn.functional.cross_entropy
    for _ in range(4):
        loss(whole(x), y).backward()
        for i in range(0, 16, 4):
            (loss(parts(x[i : i + 4]), y[i : i + 4]) / 4).backward()
        for optimizer in (first, second):
            optimizer.step()
            optimizer.zero_grad()
    for p, q in zip(whole.parameters(), parts.parameters(), strict=True):
        assert_close(p, q, rtol=1e-3, atol=1e-4)


def test_training_with_clipping_and_a_schedule_lowers_the_loss():
    model = tiny_model()
    optimizer = steepest.LionMuon(model, lr=0.03, sign_lr_ratio=0.2)
    scheduler = lr_scheduler.CosineAnnealingLR(optimizer, 100)
    x, y = batch(64)
    losses = []
    for _ in range(100):
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(model(x), y)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 0.5, foreach=True)
        optimizer.step()
        scheduler.step()
        losses.append(loss.item())
    assert losses[-1] < 0.3 < losses[0]
