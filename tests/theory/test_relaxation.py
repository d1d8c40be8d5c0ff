"""Regularisers, their conjugates and maps against each other, new ones from a conjugate, and the convergence bound."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import pytest
import torch

import steepest
from steepest import kernels
from steepest.theory.relaxation import (
    REGULARIZERS,
    Regularizer,
    bound,
    check,
    direction,
    from_conjugate,
    largest_step,
    progress,
    spectral,
    step_condition,
)

SMOOTH = ["linear", "tanh", "algebraic", "clip"]
SOFT = ["tanh", "algebraic", "clip"]


def double(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).standard_normal(shape))


def close(actual: torch.Tensor, expected: torch.Tensor, rtol: float = 1e-12, atol: float = 0.0) -> None:
    torch.testing.assert_close(actual, expected, rtol=rtol, atol=atol)


# --- the entries of the table


@pytest.mark.parametrize("name", SMOOTH)
def test_map_value_and_conjugate_belong_together(name):
    check(REGULARIZERS[name])
    check(spectral(REGULARIZERS[name]))
    assert REGULARIZERS[name].name == name


def test_sign_is_the_limit_and_not_smooth():
    hard = REGULARIZERS["sign"]
    with pytest.raises(ValueError, match="sign: V\\* is not 1-smooth"):
        check(hard)
    m = double(-3.0, -1e-3, 0.0, 2.0)
    for name in SOFT:
        close(direction(m, 1e12, REGULARIZERS[name]), direction(m, 1.0, hard), rtol=1e-12)
        close(progress(m, 1e12, REGULARIZERS[name]) / 1e12, progress(m, 1.0, hard), rtol=1e-11)
    y = double(-2.0, 0.0, 0.5)
    close(hard.value(hard.map(y)) + hard.conjugate(y), y * hard.map(y))


@pytest.mark.parametrize("name", [*SOFT, "sign"])
def test_value_on_the_edge_of_the_box_and_outside(name):
    edge = {"tanh": math.log(2.0), "algebraic": 1.0, "clip": 0.5, "sign": 0.0}[name]
    value = REGULARIZERS[name].value(double(0.0, 1.0, -1.0, 1.0 + 1e-9, -2.0))
    close(value, double(0.0, edge, edge, math.inf, math.inf))
    assert REGULARIZERS["linear"].value(double(3.0)).item() == 4.5


@pytest.mark.parametrize("name", SMOOTH)
def test_small_and_large_arguments_are_exact(name):
    """V and V* are x^2 / 2 to first order at 0 without cancellation, and V* does not overflow in float32."""
    r = REGULARIZERS[name]
    small = double(1e-12, -1e-8, 1e-5)
    close(r.value(small), small**2 / 2, rtol=1e-9)
    close(r.conjugate(small), small**2 / 2, rtol=1e-9)
    if name != "linear":
        offset = {"tanh": math.log(2.0), "algebraic": 1.0, "clip": 0.5}[name]
        large = torch.tensor([1e3, -1e30], dtype=torch.float32)
        close(r.conjugate(large), large.abs() - offset, rtol=1e-6)


@pytest.mark.parametrize("name", SOFT)
def test_inverse_agrees_with_the_closed_form_of_the_kernel(name):
    inverse = REGULARIZERS[name].relaxation().inverse
    for share in (0.0, 1e-9, 0.1, 0.5, 0.999, 1.0 - 1e-4):
        assert inverse(share) == pytest.approx(kernels.RELAXATIONS[name].inverse(share), rel=1e-9, abs=1e-15)


@pytest.mark.parametrize("field", ["value", "conjugate", "map"])
@pytest.mark.parametrize("name", SMOOTH)
def test_check_sees_a_wrong_function(name, field):
    """Each of the three functions 0.01 % too large is seen, for numbers and for matrices."""
    right = REGULARIZERS[name]
    functions = {key: getattr(right, key) for key in ("value", "conjugate", "map")}
    functions[field] = lambda x: 1.0001 * getattr(right, field)(x)
    wrong = Regularizer("wrong", radius=right.radius, **functions)
    for candidate in (wrong, spectral(wrong)):
        with pytest.raises(ValueError, match="wrong: "):
            check(candidate)


def test_direction_minimises_the_regularised_linear_model():
    m, tau, grid = double(0.7, -0.02, 3.0), 1.7, torch.linspace(-3, 3, 600_001, dtype=torch.float64)
    for name in (*SMOOTH, "sign"):
        r = REGULARIZERS[name]
        for element, d in zip(m, direction(m, tau, r), strict=True):
            best = grid[(element * grid + r.value(grid) / tau).argmin()] if name != "linear" else -tau * element
            assert float(d) == pytest.approx(float(best), abs=2e-5)


def test_progress_is_quadratic_for_small_and_the_dual_norm_for_large_gradients():
    g = normal(5, 7)
    for name in SMOOTH:
        r = REGULARIZERS[name]
        close(progress(g, 1e-6, r, normalised=True), g.square().sum(), rtol=1e-9)
        close(progress(g, 1e-4, spectral(r), normalised=True), g.square().sum(), rtol=1e-6)
        assert progress(g, 2.0, r).item() == pytest.approx(2.0 * progress(g, 2.0, r, normalised=True).item())
    tanh, tau = REGULARIZERS["tanh"], 1e6
    close(progress(g, tau, tanh, normalised=True) * tau / 2, g.abs().sum(), rtol=1e-4)
    close(progress(g, tau, spectral(tanh), normalised=True) * tau / 2, torch.linalg.matrix_norm(g, "nuc"), rtol=1e-4)
    x = torch.linspace(-20, 20, 40_001, dtype=torch.float64)
    assert (tanh.conjugate(x) >= 0.433 * torch.minimum(x * x, x.abs())).all()


@pytest.mark.parametrize("temperature", [0.0, -1.0, math.inf, math.nan])
def test_temperature_must_be_positive_and_finite(temperature):
    for function in (direction, progress):
        with pytest.raises(ValueError, match="temperature must be positive and finite"):
            function(double(1.0), temperature, REGULARIZERS["tanh"])


# --- spectral functions


@pytest.mark.parametrize("shape", [(4, 6), (6, 4), (5, 5), (3, 2, 7)])
def test_spectral_map_of_the_algebraic_one_is_that_of_softmuon(shape):
    m, tau = normal(*shape), 0.8
    gram = m.mT @ m + torch.eye(shape[-1], dtype=m.dtype) / tau**2
    values, vectors = torch.linalg.eigh(gram)
    expected = m @ (vectors / values.sqrt().unsqueeze(-2)) @ vectors.mT
    close(-direction(m, tau, spectral(REGULARIZERS["algebraic"])), expected, rtol=0, atol=1e-13)


def test_spectral_value_of_a_polar_factor_is_finite():
    """Its singular values are 1 up to rounding."""
    d = spectral(REGULARIZERS["sign"]).map(normal(40, 60))
    close(spectral(REGULARIZERS["algebraic"]).value(d).sum(), torch.tensor(40.0, dtype=d.dtype), rtol=1e-5)
    with pytest.raises(ValueError, match="maps matrices"):
        spectral(REGULARIZERS["tanh"]).relaxation()


# --- new geometries from a conjugate


def rational(y: torch.Tensor) -> torch.Tensor:
    return y.abs() - y.abs().log1p()


def arctan(y: torch.Tensor) -> torch.Tensor:
    z = math.pi / 2 * y
    return (2.0 * z * z.atan() - z.square().log1p()) * 2.0 / math.pi**2


@pytest.mark.parametrize(
    ("conjugate", "phi", "inverse", "value"),
    [
        (rational, lambda y: y / (1 + y.abs()), lambda d: d / (1 - d), lambda d: -d.abs() - (-d.abs()).log1p()),
        (
            arctan,
            lambda y: (math.pi / 2 * y).atan() * 2 / math.pi,
            lambda d: math.tan(math.pi * d / 2) * 2 / math.pi,
            lambda d: -((math.pi * d / 2).cos().log()) * 4 / math.pi**2,
        ),
    ],
)
def test_from_conjugate_recovers_map_inverse_and_value(conjugate, phi, inverse, value):
    r = from_conjugate("new", conjugate)
    y, d = 10 * normal(3, 50), double(0.0, 1e-3, -0.5, 0.9, -0.9999)
    close(r.map(y), phi(y), rtol=1e-12)
    close(r.value(d), value(d), rtol=1e-9, atol=1e-14)
    assert r.value(double(1.001)).item() == math.inf
    assert r.relaxation().inverse(1 - 1e-4) == pytest.approx(inverse(1 - 1e-4), rel=1e-9)


def test_from_conjugate_recovers_the_table():
    d = double(-1.0, -0.9, 0.0, 1e-4, 0.5)
    for name in SOFT:
        again, original = from_conjugate(name, REGULARIZERS[name].conjugate), REGULARIZERS[name]
        close(again.value(d), original.value(d), rtol=1e-7)
        close(again.map(10 * d), original.map(10 * d), rtol=1e-12)
    linear = from_conjugate("linear", lambda y: y * y / 2, radius=math.inf)
    close(linear.value(double(-3.0, 100.0)), double(4.5, 5000.0))


@pytest.fixture
def registered() -> Iterator[None]:
    kernels.register(from_conjugate("rational", rational).relaxation())
    yield
    del kernels.RELAXATIONS["rational"]


@pytest.mark.usefixtures("registered")
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_a_new_relaxation_serves_the_kernel(dtype):
    x = normal(6, 5).to(dtype)
    y = kernels.soft_sign(x, 3.0, "rational")
    assert y.dtype == dtype
    close(y, 3 * x / (1 + 3 * x.abs()), rtol=4 * torch.finfo(dtype).eps, atol=2 * torch.finfo(dtype).eps)


@pytest.mark.usefixtures("registered")
@pytest.mark.parametrize("backend", ["single", "foreach"])
def test_a_new_relaxation_serves_the_optimizer(backend):
    """One step with the temperature of p = 1/2, against the formulas."""
    gradients = [normal(40, 3, seed=1).float(), normal(7, seed=2).float()]
    parameters = [torch.zeros(40, 3, requires_grad=True), torch.zeros(7, requires_grad=True)]
    optimizer = steepest.SoftSignum(
        parameters, lr=1.0, betas=(0.0, 0.0), relaxation="rational", transition=(0, 2), eps=0.1, backend=backend
    )
    for _ in range(2):
        for p, g in zip(parameters, gradients, strict=True):
            p.grad = g.clone()
        optimizer.step()
    m = torch.cat([g.flatten() for g in gradients]).double()
    centre = m.median()
    spread = (m - centre).abs().median()
    z = m * 9.0 / (spread**2 + centre**2).sqrt()  # 0.9 / (1 - 0.9), and the median of a folded Cauchy variable
    actual = -torch.cat([p.detach().flatten() for p in parameters]).double()
    close(actual, m.sign() + z / (1 + z.abs()), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("conjugate", "message"),
    [
        (lambda y: y.cosh().log(), "not finite"),
        (lambda y: (1 + y * y).sqrt(), "V\\*\\(0\\) must be 0, it is 1"),
        (lambda y: torch.nn.functional.softplus(y) - math.log(2.0), "not odd"),
        (lambda y: 1 - y.cos(), "not convex"),
        (lambda y: (1 + 4 * y * y).sqrt() / 2 - 0.5, "not 1-smooth: the map has a slope of 2;"),
        (lambda y: y.abs(), "not 1-smooth"),
        (lambda y: y * y / 2, "leaves the domain of V, |d| <= 1"),
    ],
)
def test_from_conjugate_names_what_fails(conjugate, message):
    with pytest.raises(ValueError, match=message):
        from_conjugate("mine", conjugate)


def test_a_regulariser_that_is_no_soft_sign_gives_no_relaxation():
    half = from_conjugate("half", lambda y: ((1 + y * y).sqrt() - 1) / 2)
    for r in (half, REGULARIZERS["linear"]):
        with pytest.raises(ValueError, match="is no soft sign: its map must tend to 1"):
            r.relaxation()
    with pytest.raises(ValueError, match="not 1-smooth"):
        REGULARIZERS["sign"].relaxation()


# --- the convergence bound

REPEATS = 100


def ratio(problem: str, name: str, *, beta: float, tau: float, sd: float, factor: float, steps: int = 300) -> float:
    """Run the recursion at `factor` times the largest step; measured mean progress divided by its bound."""
    dimension = 16
    curvature = (
        torch.logspace(-2, 0, dimension, dtype=torch.float64) if problem != "isotropic" else torch.ones(dimension)
    )
    start = 0.0 if problem == "isotropic" else 2.0  # at the minimum, where noise is all there is
    r, gamma = REGULARIZERS[name], factor * largest_step(1.0, beta)

    def gradient(x: torch.Tensor) -> torch.Tensor:
        return curvature * (x.tanh() if problem == "log_cosh" else x)

    x = torch.full((REPEATS if sd else 1, dimension), start, dtype=torch.float64)
    loss = REGULARIZERS["tanh"].conjugate(x) if problem == "log_cosh" else x * x / 2
    gap, g0 = float((curvature * loss)[0].sum()), float(gradient(x)[0].square().sum())
    generator, momentum, total = torch.Generator().manual_seed(1), torch.zeros_like(x), 0.0
    for _ in range(steps):
        g = gradient(x)
        total += float(progress(g, tau, r, normalised=True)) / len(x)
        noise = sd * torch.randn(x.shape, generator=generator, dtype=torch.float64)
        momentum = beta * momentum + (1 - beta) * (g + noise)
        x = x + gamma / tau * direction(momentum, tau, r)
    noise_2 = sd**2 * dimension
    first_error = beta**2 * g0 + (1 - beta) ** 2 * noise_2
    limit = bound(gap=gap, steps=steps, gamma=gamma, beta=beta, noise=math.sqrt(noise_2), first_error=first_error)
    return total / steps / limit


@pytest.mark.parametrize("name", SMOOTH)
@pytest.mark.parametrize("problem", ["quadratic", "log_cosh"])
def test_bound_holds_under_the_step_condition(problem, name):
    ratios = [
        ratio(problem, name, beta=beta, tau=tau, sd=sd, factor=1.0)
        for beta in (0.0, 0.5, 0.9)
        for tau, sd in ((0.1, 0.0), (30.0, 0.0), (1.0, 0.3))
    ]
    assert max(ratios) <= 1.0
    assert max(ratios) > 0.5  # the bound is close to what happens, so that a wrong constant shows


def test_the_noise_term_of_the_bound_is_attained():
    """From the minimum of |x|^2 / 2 with unit steps and no momentum, each gradient is the noise of the step before."""
    assert ratio("isotropic", "linear", beta=0.0, tau=1.0, sd=0.3, factor=1.0, steps=400) == pytest.approx(
        1.0, abs=0.02
    )


@pytest.mark.parametrize(
    ("name", "beta", "tau", "sd"), [("linear", 0.5, 1.0, 0.0), ("tanh", 0.0, 1.0, 0.3), ("tanh", 0.5, 1.0, 0.0)]
)
def test_bound_can_fail_beyond_the_step_condition(name, beta, tau, sd):
    assert ratio("quadratic", name, beta=beta, tau=tau, sd=sd, factor=30.0) > 10.0


@pytest.mark.parametrize("beta", [0.0, 0.9])
def test_bound_of_a_falling_temperature(beta):
    steps, x, momentum, lr = (
        400,
        torch.full((16,), 2.0, dtype=torch.float64),
        torch.zeros(16, dtype=torch.float64),
        0.01,
    )
    curvature, tanh = torch.logspace(-2, 0, 16, dtype=torch.float64), REGULARIZERS["tanh"]
    taus = torch.logspace(0, -1, steps, dtype=torch.float64) * largest_step(1.0, beta) / lr
    gap, g0 = float((curvature * x * x / 2).sum()), float((curvature * x).square().sum())
    total = 0.0
    for tau in taus.tolist():
        assert step_condition(lr, tau * (1 - 1e-12), smoothness=1.0, beta=beta)
        g = curvature * x
        total += lr * tau * float(progress(g, tau, tanh, normalised=True))
        momentum = beta * momentum + (1 - beta) * g
        x = x + lr * direction(momentum, tau, tanh)
    gammas = lr * taus
    gamma = float(gammas.mean())
    error = beta**2 * g0 * float(gammas[0]) / gamma
    limit = bound(gap=gap, steps=steps, gamma=gamma, beta=beta, first_error=error)
    assert 0.2 * limit < total / float(gammas.sum()) <= limit


def test_largest_step_solves_the_condition():
    for smoothness in (0.1, 1.0, 40.0):
        for beta in (0.0, 0.5, 0.9, 0.999):
            gamma = largest_step(smoothness, beta)
            z = smoothness * gamma
            assert z + (beta * z / (1 - beta)) ** 2 == pytest.approx(1.0, rel=1e-12)
            assert min(1 / (2 * smoothness), (1 - beta) / (math.sqrt(2) * smoothness * max(beta, 1e-9))) <= gamma
            assert step_condition(gamma / 100.0, 99.9, smoothness, beta)
            assert not step_condition(gamma / 100.0, 100.1, smoothness, beta)
    assert not step_condition(1e-3, math.inf, 1.0, 0.9)


@pytest.mark.parametrize(("smoothness", "beta"), [(0.0, 0.9), (math.nan, 0.9), (1.0, 1.0), (1.0, -0.1)])
def test_largest_step_refuses_impossible_numbers(smoothness, beta):
    with pytest.raises(ValueError, match="need smoothness > 0 and 0 <= beta < 1"):
        largest_step(smoothness, beta)


def test_bound_by_hand():
    assert bound(gap=3.0, steps=6, gamma=0.5, beta=0.75, noise=2.0, first_error=1.5) == pytest.approx(2.0 + 1.0 + 1.0)
