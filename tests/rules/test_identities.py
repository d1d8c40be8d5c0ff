"""Methods that are the same where the formulas say so, run through the optimizers, and public implementations."""

from __future__ import annotations

import math
import warnings
from dataclasses import replace
from itertools import pairwise

import pytest
import torch

import cases
import steepest
from cases import Problem, assert_close, assert_same, differ, trajectory
from steepest import rules

MATRICES = {"wide": (4, 6), "tall": (8, 3), "square": (5, 5), "row": (1, 6)}
COMMON = {"lr": 0.02, "weight_decay": 0.3}
LION = rules.Lion(**COMMON, betas=(0.7, 0.95))
MUON = rules.Muon(**COMMON, betas=(0.7, 0.95), compute_dtype="float32")
LION_MUON = rules.LionMuon(**COMMON, betas=(0.7, 0.95), sign_lr_ratio=0.25, period=3, compute_dtype="float32")
BACKENDS = ["single", "foreach"]


def same(a, b, shapes=None):
    shapes = shapes or MATRICES
    assert_same(trajectory(a, Problem(shapes)), trajectory(b, Problem(shapes)))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("betas", [(0.9, 0.9), (0.7, 0.95)])
def test_period_1_is_muon(betas, backend):
    same(
        replace(LION_MUON, period=1, betas=betas, backend=backend),
        replace(MUON, betas=betas, backend=backend),
    )


@pytest.mark.parametrize("backend", BACKENDS)
def test_an_infinite_period_is_lion_bit_for_bit(backend):
    for ratio in (1.0, 0.25):
        lion = replace(LION, lr=LION.lr * ratio, backend=backend)
        same(replace(LION_MUON, period=math.inf, sign_lr_ratio=ratio, backend=backend), lion)


def test_a_huge_period_is_one_spectral_step_and_then_lion():
    """The papers' Lion and Signum baselines are coded so."""
    problem, twin = Problem(MATRICES), Problem(MATRICES)
    optimizer = cases.build(replace(LION_MUON, period=10**7, sign_lr_ratio=1.0), problem)
    first = problem.run(optimizer, 0, 1)
    assert_same(first, trajectory(MUON, Problem(MATRICES, steps=1)))
    lion = cases.build(LION, twin)
    twin.run(lion, 0, 1)  # the same buffers; then the weights of the other
    with torch.no_grad():
        for name, p in twin.params.items():
            p.copy_(problem.params[name])
    assert_same(problem.run(optimizer, 1), twin.run(lion, 1))


def test_equal_betas_are_signmuon_and_signum():
    sign_muon = rules.SignMuon(**COMMON, betas=(0.8, 0.8), sign_lr_ratio=0.25, period=3, compute_dtype="float32")
    same(replace(LION_MUON, betas=(0.8, 0.8)), sign_muon)
    same(replace(LION, betas=(0.8, 0.8)), rules.Signum(**COMMON, betas=(0.8, 0.8)))
    same(replace(sign_muon, period=math.inf, sign_lr_ratio=1.0), rules.Signum(**COMMON, betas=(0.8, 0.8)))


def test_no_momentum_is_sign_descent():
    problem = Problem({**MATRICES, "vector": (5,)})
    before = problem.weights()
    after = trajectory(rules.Signum(lr=0.5, betas=(0.0, 0.0), weight_decay=0.1), problem)[0]
    for name, w in before.items():
        assert_close(after[name], 0.95 * w - 0.5 * problem.gradients[0][name].sign(), rtol=1e-6, atol=1e-7)


def test_the_sign_step_is_the_ratio_times_lr_and_nothing_else():
    rule = replace(LION_MUON, weight_decay=0.0, period=math.inf)
    problem = Problem(MATRICES, dtype=torch.float64)
    history = [problem.weights(), *trajectory(rule, problem)]
    for a, b in pairwise(history):
        for name in MATRICES:
            assert_close((b[name] - a[name]).abs(), torch.full_like(a[name], 0.25 * 0.02), rtol=1e-9, atol=0.0)


@pytest.mark.parametrize("backend", BACKENDS)
def test_two_optimizers_draw_the_same_random_period(backend):
    """As processes must: nothing but the seed and the step decides, whatever else each of them has drawn."""
    rule = replace(LION_MUON, trigger="random", period=2, seed=7, backend=backend)
    a, b = Problem(MATRICES, steps=12), Problem(MATRICES, steps=12)
    first, second = cases.build(rule, a), cases.build(rule, b)
    torch.manual_seed(0)
    histories = []
    for step in range(12):
        histories.append((a.run(first, step, step + 1), b.run(second, step, step + 1)))
        torch.rand(step + 1)
    for x, y in histories:
        assert_same(x, y)
    assert differ(trajectory(replace(rule, seed=8), Problem(MATRICES, steps=12))[-1], histories[-1][0][0])


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_stable_rank_trigger_takes_spectral_steps_on_low_rank_matrices_alone(backend):
    """Rank one under the threshold, orthogonal (full stable rank) over it, in one bucket and one step."""
    rule = rules.LionMuon(
        lr=1.0, sign_lr_ratio=0.5, trigger="stable_rank", threshold=0.3, weight_decay=0.0, backend=backend,
        compute_dtype="float32",
    )  # fmt: skip
    problem = Problem(dict.fromkeys(("low", "full", "low too"), (6, 6)), steps=3)
    generator = torch.Generator().manual_seed(0)
    for gradients in problem.gradients:
        for name in ("low", "low too"):
            gradients[name] = torch.outer(*torch.randn(2, 6, generator=generator))
        gradients["full"] = torch.linalg.qr(torch.randn(6, 6, generator=generator))[0]
    problem.gradients[1:] = [problem.gradients[0]] * 2  # constant, so that the direction keeps its rank
    history = [problem.weights(), *trajectory(rule, problem)]
    for a, b in pairwise(history):
        assert_close((b["full"] - a["full"]).abs(), torch.full((6, 6), 0.5))
        for name in ("low", "low too"):
            values = torch.linalg.svdvals((b[name] - a[name]).double()) / (0.2 * 6**0.5)
            assert 0.6 < values[0] < 1.21
            assert values[1] < 0.1
    # and all or nothing at the ends of the range
    for threshold, period in ((1.0, 1), (0.0, math.inf)):
        shapes = {name: MATRICES[name] for name in ("wide", "tall", "square")}
        by_period = trajectory(replace(rule, trigger="period", period=period), Problem(shapes))
        assert_close(trajectory(replace(rule, threshold=threshold), Problem(shapes)), by_period)


# --- torch.optim


@pytest.mark.parametrize("ours", ["list", "alone"])
@pytest.mark.parametrize("weight_decay", [0.0, 0.3])
def test_nesterov_betas_are_the_muon_of_torch(weight_decay, ours):
    """Same coefficients and scale. It multiplies in bfloat16 and adds an absolute 1e-7, hence the tolerance."""
    shapes = {"wide": (12, 20), "tall": (20, 12), "square": (12, 12)}
    beta = 0.9
    problem, twin = Problem(shapes), Problem(shapes)
    theirs = torch.optim.Muon(
        twin.params.values(), lr=0.02, weight_decay=weight_decay, momentum=beta, nesterov=True, ns_steps=5,
        adjust_lr_fn="match_rms_adamw",
    )  # fmt: skip
    rule = rules.Muon(
        lr=0.02, weight_decay=weight_decay, betas=rules.nesterov(beta), compute_dtype="bfloat16",
        backend="single" if ours == "alone" else "auto",
    )  # fmt: skip
    expected, actual = twin.run(theirs), trajectory(rule, problem)
    step = 0.02 * 0.2  # RMS of one
    for a, e in zip(actual, expected, strict=True):
        for name in shapes:
            assert (a[name] - e[name]).square().mean().sqrt() < 0.05 * step
    assert rules.Muon(betas=rules.nesterov(0.95)) == rules.Muon()


def test_the_plain_average_is_the_muon_of_torch_without_nesterov():
    shapes = {"wide": (12, 20), "square": (12, 12)}
    problem, twin = Problem(shapes), Problem(shapes)
    theirs = torch.optim.Muon(
        twin.params.values(), lr=0.02, weight_decay=0.3, momentum=0.9, nesterov=False, adjust_lr_fn="original"
    )
    rule = rules.Muon(lr=0.02, weight_decay=0.3, betas=(0.9, 0.9), scale="keller", compute_dtype="bfloat16")
    expected, actual = twin.run(theirs), trajectory(rule, problem)
    for a, e in zip(actual, expected, strict=True):
        for name in shapes:
            assert (a[name] - e[name]).square().mean().sqrt() < 0.05 * 0.02 / math.sqrt(12)


def test_an_absolute_epsilon_is_why_torch_differs_for_tiny_gradients():
    """The documented difference: at 1e-12 its step is far shorter, ours is the same."""
    shapes = {"w": (12, 12)}
    moved = {}
    for factor in (1.0, 1e-12):
        for which in ("torch", "ours"):
            problem = Problem(shapes, steps=1)
            problem.gradients[0]["w"] = factor * problem.gradients[0]["w"]
            before = problem.weights()["w"]
            if which == "torch":
                optimizer = torch.optim.Muon(problem.params.values(), lr=0.1, weight_decay=0.0)
            else:
                optimizer = steepest.Muon(problem.named(), lr=0.1, weight_decay=0.0, compute_dtype="float32")
            moved[which, factor] = float((problem.run(optimizer)[0]["w"] - before).norm())
    assert moved["ours", 1e-12] == pytest.approx(moved["ours", 1.0], rel=1e-3)
    assert moved["torch", 1e-12] < 0.5 * moved["torch", 1.0]


@pytest.mark.parametrize("backend", BACKENDS)
def test_adamw_is_that_of_torch(backend):
    shapes = {**MATRICES, "vector": (5,), "scalar": ()}
    for dtype, rtol in ((torch.float64, 1e-12), (torch.float32, 1e-5)):
        problem, twin = Problem(shapes, dtype=dtype), Problem(shapes, dtype=dtype)
        numbers = {"lr": 0.02, "betas": (0.8, 0.95), "eps": 1e-3, "weight_decay": 0.3}
        theirs = torch.optim.AdamW(twin.params.values(), **numbers, foreach=False)
        assert_close(trajectory(rules.AdamW(**numbers, backend=backend), problem), twin.run(theirs), rtol, rtol)


# --- other libraries, as black boxes


@pytest.mark.parametrize("backend", BACKENDS)
def test_lion_is_that_of_lion_pytorch(backend):
    theirs = pytest.importorskip("lion_pytorch").Lion
    problem, twin = Problem(cases.MATRICES, dtype=torch.float64), Problem(cases.MATRICES, dtype=torch.float64)
    expected = twin.run(theirs(twin.params.values(), lr=0.02, betas=(0.7, 0.95), weight_decay=0.3))
    assert_close(trajectory(replace(LION, backend=backend), problem), expected, rtol=1e-12, atol=1e-12)


def test_lion_is_that_of_torch_optimi():
    theirs = pytest.importorskip("optimi").Lion
    problem, twin = Problem(cases.MATRICES), Problem(cases.MATRICES)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        optimizer = theirs(list(twin.params.values()), lr=0.02, betas=(0.7, 0.95), weight_decay=0.3, foreach=False)
    assert_close(trajectory(LION, problem), twin.run(optimizer))


def test_lion_and_signum_are_those_of_pytorch_optimizer():
    other = pytest.importorskip("pytorch_optimizer")
    shapes = cases.MATRICES
    problem, twin = Problem(shapes, dtype=torch.float64), Problem(shapes, dtype=torch.float64)
    theirs = other.Lion(list(twin.params.values()), lr=0.02, betas=(0.7, 0.95), weight_decay=0.3, weight_decouple=True)
    assert_close(trajectory(LION, problem), twin.run(theirs), rtol=1e-12, atol=1e-12)
    problem, twin = Problem(shapes, dtype=torch.float64), Problem(shapes, dtype=torch.float64)
    theirs = other.SignSGD(list(twin.params.values()), lr=0.02, momentum=0.8, weight_decay=0.0)
    rule = rules.Signum(lr=0.02, betas=(0.8, 0.8), weight_decay=0.0)
    assert_close(trajectory(rule, problem), twin.run(theirs), rtol=1e-12, atol=1e-12)
