from __future__ import annotations

import math

import pytest
import torch

from steepest.lab.errors import UserError
from steepest.lab.schedules import SHAPES, Schedule, set_rates


def test_cosine_is_the_formula_of_the_paper() -> None:
    # LionMuon: s(t) = 0.01 + 0.99 t / W, then (1 + cos(pi (t - W) / (T - W))) / 2, with T = 64,000 and W = 3,000.
    schedule = Schedule(steps=64_000, warmup=3_000)
    assert schedule.factor(0) == 0.01
    assert schedule.factor(1_500) == pytest.approx(0.505)
    assert schedule.factor(3_000) == 1.0
    assert schedule.factor(33_500) == pytest.approx(0.5)
    for t in (3_001, 20_000, 63_999):
        assert schedule.factor(t) == pytest.approx(0.5 * (1 + math.cos(math.pi * (t - 3_000) / 61_000)), rel=1e-12)
    assert schedule.factor(64_000) == pytest.approx(0.0, abs=1e-12)


def test_wsd_is_stable_then_linear() -> None:
    schedule = Schedule(kind="wsd", steps=100, warmup=10, decay=0.2, final=0.1)
    assert [schedule.factor(t) for t in (10, 50, 80)] == [1.0, 1.0, 1.0]
    assert schedule.factor(90) == pytest.approx(0.55)
    assert schedule.factor(100) == pytest.approx(0.1)


def test_linear_and_constant() -> None:
    linear = Schedule(kind="linear", steps=10, warmup=0, final=0.2)
    assert [linear.factor(t) for t in (0, 5, 10, 99)] == pytest.approx([1.0, 0.6, 0.2, 0.2])
    constant = Schedule(kind="constant", steps=10, warmup=0.2)
    assert [constant.factor(t) for t in (0, 1, 2, 9)] == pytest.approx([0.01, 0.505, 1.0, 1.0])


@pytest.mark.parametrize("kind", SHAPES)
def test_factor_stays_in_range_and_warms_up_monotonically(kind: str) -> None:
    schedule = Schedule(kind=kind, steps=37, warmup=5, final=0.05)
    factors = [schedule.factor(t) for t in range(38)]
    assert all(0.0 < factor <= 1.0 for factor in factors)
    assert factors[:6] == sorted(factors[:6])
    assert factors[5:] == sorted(factors[5:], reverse=True)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kind": "cosin"}, "Did you mean 'cosine'"),
        ({"steps": 0}, "steps must be at least 1"),
        ({"warmup": -1}, "warmup must be"),
        ({"warmup": 101}, "warmup must be"),
        ({"final": 1.5}, "final must be"),
        ({"kind": "wsd", "warmup": 60, "decay": 50}, "together exceed"),
    ],
)
def test_bad_schedules_are_named(options: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        Schedule(**({"steps": 100} | options))  # type: ignore[arg-type]


def test_set_rates_reaches_every_group_and_keeps_tensors() -> None:
    rate = torch.tensor(0.0)
    groups = [{"lr": 1.0}, {"lr": rate}]
    set_rates(groups, [2.0, 4.0], 0.25)
    assert groups[0]["lr"] == 0.5
    assert groups[1]["lr"] is rate
    assert rate == 1.0
