"""Rules as values: frozen, checked, found by name, cited defaults, declared state, and the phases of a run."""

from __future__ import annotations

import copy
import dataclasses
import math
import pickle
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import ClassVar

import numpy as np
import pytest
import torch

import cases
import steepest
from cases import every_rule, spectral_rules
from steepest import rules

alternating = pytest.mark.parametrize("record", [r for r in cases.RECORDS if "period" in r.knobs], ids=str)


@every_rule
def test_a_rule_is_a_frozen_value(record):
    rule = record.rule
    with pytest.raises(dataclasses.FrozenInstanceError):
        rule.lr = 1.0
    assert replace(rule) == rule
    assert hash(replace(rule)) == hash(rule)
    assert replace(rule, lr=0.7) != rule
    assert copy.deepcopy(rule) == pickle.loads(pickle.dumps(rule)) == rule
    with pytest.raises(TypeError):
        type(rule)(0.1)  # by keyword only: the order of numbers is no interface


@every_rule
def test_a_rule_is_found_by_its_name(record):
    assert rules.by_name(record.rule.name) is type(record.rule)
    with pytest.raises(ValueError, match=f"unknown rule '{record.rule.name}x'.*'{record.rule.name}'"):
        rules.by_name(record.rule.name + "x")


@every_rule
def test_every_option_is_documented(record):
    """The name of each number stands in a docstring of the rule or of what it builds on."""
    text = "\n".join(cls.__doc__ or "" for cls in type(record.rule).__mro__ if cls is not object)
    for name in cases.option_names(record.rule):
        assert f"{name}:" in text, name


SOFT = {
    "transition": None, "total_steps": None, "eps": 1e-4, "temperature_range": (1.0, math.inf), "pool": "rule",
    "refresh_every": 0, "clock": 0,
}  # fmt: skip


def test_defaults_are_those_of_their_sources():
    """The tuned cells of the papers; a change here is a change of published behaviour."""
    table = {
        rules.Signum: {"lr": 1e-4, "betas": (0.9, 0.9), "weight_decay": 0.1},
        rules.Lion: {"lr": 1e-4, "betas": (0.9, 0.99), "weight_decay": 0.1},
        rules.Muon: {"lr": 1e-3, "betas": (0.95**2, 0.95), "weight_decay": 0.1, "steps": 5, "coefficients": "keller"},
        rules.SignMuon: {"lr": 3e-3, "sign_lr_ratio": 1 / 30, "betas": (0.9, 0.9), "period": 2, "weight_decay": 0.1},
        rules.LionMuon: {"lr": 1e-3, "sign_lr_ratio": 0.1, "betas": (0.9, 0.99), "period": 2, "weight_decay": 0.1},
        rules.SoftSignum: {"lr": 1e-3, "betas": (0.9, 0.9), "weight_decay": 0.0, "relaxation": "tanh", **SOFT},
        rules.SoftMuon: {"lr": 0.02, "betas": (0.95**2, 0.95), "weight_decay": 0.0, "relaxation": "algebraic", **SOFT},
        rules.SoftLionMuon: {"lr": 1e-3, "sign_lr_ratio": 0.1, "betas": (0.9, 0.99), "weight_decay": 0.1, **SOFT},
        rules.SinkGD: {"lr": 0.02, "alpha": 0.05, "rounds": 5, "target": "rms", "betas": (0.0, 0.0), "weight_decay": 0},
        rules.SAGE: {"lr": 1e-3, "betas": (0.9, 0.99), "eps": 1e-8, "weight_decay": 0.01, "order": "paper", "axis": 0},
        rules.LASM: {"lr": 3e-4, "betas": (0.9, 0.95), "attention": 1.5, "mlp": 1.0, "embedding": 0.5},
        rules.AdamW: {"lr": 1e-3, "betas": (0.8, 0.999), "eps": 1e-8, "weight_decay": 0.1},
    }
    assert {type(r.rule) for r in cases.RECORDS} == set(table)
    for cls, numbers in table.items():
        assert {name: getattr(cls(), name) for name in numbers} == numbers
        assert getattr(cls(), "scale", "match_rms") == ("keller" if cls is rules.SoftMuon else "match_rms")
        for name, value in {"trigger": "period", "offset": 0, "compute_dtype": None}.items():
            assert getattr(cls(), name, value) == value
        assert (cls().view, cls().state_dtype, cls().backend) == (None, None, "auto")


def test_presets_are_the_published_cells():
    """lr and rate of the sign steps (spec: LionMuon v1 run configurations and the retuned cells of the revision)."""
    cells = {
        "lionmuon-v1-p1": (7e-4, None, 1), "lionmuon-v1-p2": (1e-3, 5e-5, 2), "lionmuon-v1-p5": (2e-3, 5e-5, 5),
        "lionmuon-v1-p20": (5e-3, 5e-5, 20), "lionmuon-v1-p100": (7e-3, 5e-5, 100),
        "signmuon-v1-p2": (2e-3, 5e-5, 2), "signmuon-v1-p5": (3e-3, 5e-5, 5),
        "signmuon-v1-p20": (1e-2, 5e-5, 20), "signmuon-v1-p100": (1e-2, 1e-4, 100),
        "lionmuon-v2-p1": (1e-3, None, 1), "lionmuon-v2-p2": (1e-3, 1e-4, 2), "lionmuon-v2-p5": (3e-3, 1e-4, 5),
        "lionmuon-v2-p20": (1e-2, 1e-4, 20), "signmuon-v2-p2": (3e-3, 1e-4, 2),
        "signmuon-v2-p5": (1e-2, 1e-2 / 300, 5), "signmuon-v2-p20": (1e-2, 1e-4, 20),
    }  # fmt: skip
    for name, (lr, sign_lr, period) in cells.items():
        rule = rules.preset(name).rule
        assert (rule.lr, rule.period) == (lr, period)
        assert sign_lr is None or rule.lr * rule.sign_lr_ratio == pytest.approx(sign_lr)
        assert rule.betas == ((0.9, 0.99) if name.startswith("lion") else (0.9, 0.9))
    for version, lion, signum in (("v1", 5e-5, 1e-4), ("v2", 3e-4, 3e-4)):
        for name, lr in ((f"lion-{version}", lion), (f"signum-{version}", signum)):
            rule = rules.preset(name).rule
            assert rule.period == math.inf
            assert rule.lr * rule.sign_lr_ratio == pytest.approx(lr)
    assert rules.preset("muon-v1").rule.betas == rules.preset("muon-v2").rule.betas == (0.9, 0.9)
    for preset in rules.PRESETS.values():
        assert preset.source
        if isinstance(preset.rest, rules.AdamW):
            assert preset.rest == rules.AdamW(lr=1e-3, betas=(0.8, 0.999), eps=1e-8, weight_decay=0.1)


# --- state and report


@every_rule
def test_declared_buffers(record):
    for state_dtype, kept in ((None, torch.float16), ("bfloat16", torch.bfloat16)):
        specs = replace(record.rule, state_dtype=state_dtype).buffer_specs(torch.Size((3, 4)), torch.float16)
        assert set(specs) == set(record.rule.buffers)
        own = [name for name in specs if name not in record.rule.whole]
        assert {name: specs[name] for name in own} == {name: (torch.Size((3, 4)), kept) for name in own}
    assert "step" not in record.rule.buffers
    assert all("." not in name for name in record.rule.buffers)  # flat keys: checkpoints join them with dots


def test_memory_of_a_matrix_is_one_buffer_except_for_adamw():
    assert {str(r): len(r.rule.buffers) for r in cases.RECORDS} == {
        "signum": 1, "lion": 1, "muon": 1, "sign_muon": 1, "lion_muon": 1,
        "soft_signum": 1, "soft_muon": 1, "soft_lion_muon": 1, "sinkgd": 1, "sage": 2, "lasm": 2, "adamw": 2,
    }  # fmt: skip


def test_expected_rms_averages_over_the_period():
    m, n = 768, 3072
    assert rules.Lion(lr=3e-4).expected_rms(m, n) == pytest.approx(3e-4)
    assert rules.Muon(lr=1e-3).expected_rms(m, n) == pytest.approx(2e-4)
    assert rules.Muon(lr=1e-3, scale="none").expected_rms(m, n) == pytest.approx(1e-3 / math.sqrt(n))
    assert rules.Muon(lr=1e-3, scale="keller").expected_rms(n, m) == pytest.approx(1e-3 * 2 / math.sqrt(n))
    assert rules.LionMuon(lr=1e-3, sign_lr_ratio=0.1).expected_rms(m, n) == pytest.approx((2e-4 + 1e-4) / 2)
    five = rules.LionMuon(lr=1e-3, sign_lr_ratio=0.1, period=5)
    assert five.expected_rms(m, n) == pytest.approx((2e-4 + 4 * 1e-4) / 5)
    assert replace(five, period=math.inf).expected_rms(m, n) == pytest.approx(1e-4)
    assert rules.Lion(lr=torch.tensor(3e-4)).expected_rms(m, n) == pytest.approx(3e-4)


@pytest.mark.parametrize("record", [r for r in cases.RECORDS if r.scale_free], ids=str)
def test_expected_rms_is_that_of_a_step(record):
    """Over one period, within the band of the five-step iteration."""
    rule = replace(record.rule, weight_decay=0.0)
    problem = cases.Problem({"w": (48, 64)}, steps=record.period)
    weights = [problem.weights(), *cases.trajectory(rule, problem)]
    rms = [float((b["w"] - a["w"]).square().mean().sqrt()) for a, b in pairwise(weights)]
    assert sum(rms) / len(rms) == pytest.approx(rule.expected_rms(48, 64), rel=0.2)


# --- phases


def spectral_steps(rule, steps=12):
    return [t for t in range(steps) if type(rule.phase(t).geometry) is rules.Polar]


@alternating
def test_the_phase_is_a_function_of_the_step(record):
    for period, expected in (
        (1, list(range(12))),
        (2, [0, 2, 4, 6, 8, 10]),
        (5, [0, 5, 10]),
        (10**7, [0]),
        (math.inf, []),
    ):
        assert spectral_steps(replace(record.rule, period=period)) == expected
    assert spectral_steps(replace(record.rule, period=3.0)) == [0, 3, 6, 9]
    assert spectral_steps(replace(record.rule, period=4, offset=2)) == [2, 6, 10]
    assert spectral_steps(replace(record.rule, period=1, offset=9)) == [9, 10, 11]
    rule = record.rule
    assert [rule.phase(t) for t in range(9)] == [rule.phase(t) for t in range(9)][::1]
    assert rule.phase(0).lr_ratio == 1.0
    assert rule.phase(1).lr_ratio == rule.sign_lr_ratio
    assert rule.phase(1).scale == "none"


@alternating
@pytest.mark.parametrize("period", [2, 5, 20])
def test_the_random_trigger_has_its_frequency(record, period):
    n = 20_000
    for seed in range(3):
        rule = replace(record.rule, trigger="random", period=period, seed=seed)
        hits = spectral_steps(rule, n)
        sigma = math.sqrt(n * (1 / period) * (1 - 1 / period))
        assert abs(len(hits) - n / period) < 4 * sigma
        # no memory: two in a row come as often as chance has it
        pairs = len(set(hits) & {t + 1 for t in hits})
        assert abs(pairs - n / period**2) < 5 * math.sqrt(n) / period


@alternating
def test_the_random_trigger_is_the_same_everywhere(record):
    rule = replace(record.rule, trigger="random", period=3)
    assert spectral_steps(rule, 200) == spectral_steps(copy.deepcopy(rule), 200)
    runs = {tuple(spectral_steps(replace(rule, seed=seed), 200)) for seed in (0, 1, 2, 2**32 - 1)}
    assert len(runs) == 4
    assert spectral_steps(replace(rule, period=1), 50) == list(range(50))
    assert spectral_steps(replace(rule, period=math.inf), 50) == []


# --- numbers that are refused, with the rule and the option in the message


@alternating
@pytest.mark.parametrize("period", [0, -1, 1.5, math.nan, -math.inf, "2", None, True])
def test_bad_periods(record, period):
    with pytest.raises(ValueError, match=rf"{record.rule.name}: period must be a whole number >= 1, or math\.inf"):
        replace(record.rule, period=period)


@alternating
@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("sign_lr_ratio", -0.1),
        ("sign_lr_ratio", math.nan),
        ("offset", -1),
        ("offset", 0.5),
        ("seed", 1.5),
        ("seed", -1),
        ("seed", 2**32),
        ("threshold", 1.5),
        ("threshold", math.nan),
        ("trigger", "randm"),
    ],
)
def test_bad_options_of_alternating_rules(record, option, value):
    with pytest.raises(ValueError, match=rf"{record.rule.name}: (unknown )?{option}"):
        replace(record.rule, **{option: value})


@spectral_rules
@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("steps", 0, "steps.*positive"),
        ("steps", 2.5, "steps.*positive"),
        ("steps", True, "steps.*positive"),
        ("coefficients", "kelller", "coefficients 'kelller'.*keller"),
        ("scale", "match_rsm", "scale 'match_rsm'.*'match_rms'"),
        ("compute_dtype", "bf16", "compute_dtype 'bf16'"),
    ],
)
def test_bad_options_of_spectral_rules(record, option, value, message):
    with pytest.raises(ValueError, match=message):
        replace(record.rule, **{option: value})


@pytest.mark.parametrize("cls", [rules.Signum, rules.SignMuon])
def test_averages_have_equal_betas(cls):
    with pytest.raises(ValueError, match=r"betas must be equal.*use Lion"):
        cls(betas=(0.9, 0.99))


@every_rule
def test_numbers_of_numpy_are_numbers(record):
    """Grids and schedules are often made with numpy."""
    for number in (np.float64(0.25), np.float32(0.25)):
        rule = replace(record.rule, lr=number, betas=(number, number), weight_decay=number)
        problem, twin = cases.Problem(record), cases.Problem(record)
        actual = cases.trajectory(rule, problem)
        cases.assert_same(
            actual, cases.trajectory(replace(record.rule, lr=0.25, betas=(0.25, 0.25), weight_decay=0.25), twin)
        )


# --- rules of one's own


@dataclass(frozen=True, kw_only=True)
class Nameless(rules.Muon):
    """A variant whose author forgot the name."""


def test_a_subclass_does_not_take_the_name_of_its_parent():
    assert rules.by_name("muon") is rules.Muon
    with pytest.raises(TypeError, match=r"Nameless needs a name of its own, e.g. .*'nameless'"):
        steepest.Steepest([torch.nn.Parameter(torch.ones(2, 2))], Nameless())


def test_a_name_belongs_to_one_class():
    with pytest.raises(TypeError, match="Other: the name 'muon' is that of Muon"):

        @dataclass(frozen=True, kw_only=True)
        class Other(rules.Muon):
            name: ClassVar[str] = "muon"

    assert rules.by_name("muon") is rules.Muon


def test_a_class_may_be_defined_again():
    """As when a cell of a notebook is run twice."""

    def define():
        @dataclass(frozen=True, kw_only=True)
        class Again(rules.Lion):
            name: ClassVar[str] = "test_again"

        return Again

    first, second = define(), define()
    assert rules.by_name("test_again") is second is not first
    steepest.Steepest([torch.nn.Parameter(torch.ones(2, 2))], second())
