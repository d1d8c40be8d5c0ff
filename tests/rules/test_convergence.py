"""Where each rule ends: on a quadratic at its minimum, and under weight decay on the unit ball of its own norm."""

import math

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
