"""Where each rule ends: at a minimum, above it by a floor that soft maps remove, on the unit ball of its own norm."""

import math
from dataclasses import replace

import pytest
import torch

import steepest
from steepest import rules

TARGET = torch.randn(6, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
EXACT = {"steps": 12, "coefficients": "polar_express"}

EVERY = [
    rules.Signum(weight_decay=0.0),
    rules.Lion(weight_decay=0.0),
    rules.Muon(weight_decay=0.0),
    rules.SignMuon(weight_decay=0.0),
    rules.LionMuon(weight_decay=0.0),
    rules.LionMuon(weight_decay=0.0, period=5),
    rules.AdamW(weight_decay=0.0),
    rules.SoftSignum(total_steps=600),
    rules.SoftMuon(total_steps=600),
    rules.SoftLionMuon(total_steps=600, weight_decay=0.0),
]


def minimise(rule: rules.Rule, target: torch.Tensor, steps: int, *, lr: float, anneal: bool) -> torch.Tensor:
    weight = torch.nn.Parameter(torch.zeros_like(target))
    optimizer = steepest.Steepest([weight], rule)
    for t in range(steps):
        optimizer.param_groups[0]["lr"] = lr * (0.5 * (1 + math.cos(math.pi * t / steps)) if anneal else 1.0)
        weight.grad = weight.detach() - target  # of the squared distance to the target
        optimizer.step()
    return weight.detach()


@pytest.mark.parametrize("rule", EVERY, ids=lambda r: f"{r.name}-{getattr(r, 'period', '')}")
def test_a_falling_rate_ends_at_the_minimum(rule):
    reached = minimise(rule, TARGET, 600, lr=0.1, anneal=True)
    assert (reached - TARGET).norm() < 0.01 * TARGET.norm()


@pytest.mark.parametrize(
    "rule",
    [
        rules.Signum(weight_decay=0.5),
        rules.Lion(weight_decay=0.5),
        rules.LionMuon(period=math.inf, sign_lr_ratio=1.0, weight_decay=0.5),
    ],
)
def test_decay_keeps_a_sign_rule_in_the_ball_of_the_max_norm(rule):
    """A target far outside: the fixed point of W <- (1 - lr wd) W + lr sign is the corner sign(target) / wd."""
    reached = minimise(rule, 1000 * TARGET, 600, lr=0.1, anneal=False)
    torch.testing.assert_close(reached, TARGET.sign() / 0.5, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    "rule",
    [
        rules.Muon(weight_decay=0.5, scale="none", **EXACT),
        rules.LionMuon(weight_decay=0.5, scale="none", period=1, **EXACT),
        rules.SignMuon(weight_decay=0.5, scale="none", period=1, **EXACT),
    ],
)
def test_decay_keeps_a_spectral_rule_in_the_ball_of_the_spectral_norm(rule):
    """The fixed point of W <- (1 - lr wd) W + lr polar is the polar factor of the target / wd."""
    u, _, vt = torch.linalg.svd(TARGET, full_matrices=False)
    reached = minimise(rule, 1000 * TARGET, 600, lr=0.1, anneal=False)
    torch.testing.assert_close(reached, u @ vt / 0.5, rtol=1e-6, atol=1e-6)


# --- the floor of steps of fixed size


@pytest.mark.parametrize(
    ("rule", "ratio"),
    [
        (rules.SoftSignum(), 0.1),
        # all singular values of this problem are nearly equal: the usual eps leaves them saturated almost to the end
        (rules.SoftMuon(eps=2e-2), 0.05),
        (rules.SoftLionMuon(betas=(0.9, 0.95), weight_decay=0.0), 0.05),
    ],
    ids=lambda r: getattr(r, "name", ""),
)
def test_a_soft_map_ends_below_the_floor_of_the_hard_one_at_a_constant_rate(rule, ratio):
    """Steps that feel no size oscillate about the minimum with the size of the rate, for ever."""
    hard, soft = (
        (minimise(r, TARGET, 400, lr=0.05, anneal=False) - TARGET).norm() / TARGET.norm()
        for r in (rule, replace(rule, total_steps=400, transition=(0.3, 1.0)))
    )
    assert hard > 2e-3
    assert soft < ratio * hard


def unigram_gap(rule: rules.Rule, seed: int, steps: int = 400, classes: int = 200) -> float:
    """Mean excess loss of the last 50 steps: logits that learn the frequencies 1/i, full batch, constant rate."""
    target = torch.arange(1, classes + 1, dtype=torch.float64).reciprocal()
    target /= target.sum()
    start = torch.randn(classes, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    logits = torch.nn.Parameter(1e-3 * start)
    optimizer = steepest.Steepest([logits], rule)
    gaps = []
    for _ in range(steps):
        logits.grad = logits.detach().softmax(0) - target
        optimizer.step()
        gaps.append(float((target * (target.log() - logits.detach().log_softmax(0))).sum()))
    return sum(gaps[-50:]) / 50


def test_a_transition_ends_lower_on_power_law_frequencies():
    """The problem of the paper's Figure 5, small: Signum, and a transition of the last half."""
    signum = rules.SoftSignum(lr=0.01)
    for seed in range(2):
        hard = unigram_gap(signum, seed)
        soft = unigram_gap(replace(signum, total_steps=400, transition=(0.5, 1.0)), seed)
        never = unigram_gap(replace(signum, total_steps=500), seed)  # a transition that a run does not reach is none
        assert 1e-5 < hard == never
        assert soft < 0.01 * hard
