"""`soft_polar` against the singular value decomposition in float64, its limits and the symmetries of the map."""

from __future__ import annotations

import math
import sys

import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

from reference import golden
from reference import newton_schulz as ns
from steepest.kernels.fitted import best_quintic, fitted
from steepest.kernels.polar import COEFFICIENTS, normalised, plain, polar, schedule, through_gram
from steepest.kernels.soft_polar import coupled_soft_polar, soft_polar

module = sys.modules["steepest.kernels.polar"]  # `kernels.polar` is the function
DTYPES = [torch.float64, torch.float32, torch.bfloat16]
ALL = [*COEFFICIENTS, "fitted"]
SHAPES = [(9, 9), (6, 8), (5, 20), (20, 5), (8, 6), (1, 7), (7, 1), (1, 1)]


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).standard_normal(shape)).to(dtype)


def with_spectrum(m: int, n: int, s: torch.Tensor, seed: int = 0) -> torch.Tensor:
    u, v = torch.linalg.qr(normal(m, len(s), seed=seed))[0], torch.linalg.qr(normal(n, len(s), seed=seed + 1))[0]
    return (u * s) @ v.T


def exact(x: torch.Tensor, temperature: float) -> torch.Tensor:
    u, s, vt = torch.linalg.svd(x.double(), full_matrices=False)
    z = temperature * s
    return (u * (z / torch.hypot(z, torch.ones_like(z))).unsqueeze(-2)) @ vt


def error(y: torch.Tensor, expected: torch.Tensor) -> float:
    return ((y.double() - expected).norm() / expected.norm()).item()


def close(actual: torch.Tensor, expected: torch.Tensor, atol: float = 1e-12) -> None:
    torch.testing.assert_close(actual, expected, rtol=0, atol=atol)


# --- against the singular value decomposition


@pytest.mark.parametrize("size", [1e-3, 1.0, 1e3, 1e6])  # temperature times the largest singular value
@pytest.mark.parametrize("condition", [1.0, 1e3, 1e6])
@pytest.mark.parametrize("shape", [(24, 24), (24, 60), (60, 24)])
def test_enough_steps_give_the_exact_map(shape, condition, size):
    x = with_spectrum(*shape, torch.logspace(0, -math.log10(condition), 24, dtype=torch.float64))
    expected = exact(x, size)
    close(soft_polar(x, size, 20, "polar_express") / expected.norm(), expected / expected.norm(), 1e-8)
    close(soft_polar(x, size, 45, "cubic") / expected.norm(), expected / expected.norm(), 1e-8)
    tolerance = 1e-8 if min(condition, size) < 1e6 else 1e-5  # of the squared condition number of A
    close(coupled_soft_polar(x, size, 40, ridge=0.0) / expected.norm(), expected / expected.norm(), tolerance)


@pytest.mark.parametrize(("coefficients", "steps"), [("keller", 5), ("keller", 2), ("polar_express", 5), ("cubic", 3)])
@pytest.mark.parametrize("size", [1e-6, 0.3, 20.0, 590.0, 1e5])
@pytest.mark.parametrize("shape", [(12, 12), (12, 40), (30, 12)])
def test_each_singular_value_is_off_by_the_documented_factor(shape, size, coefficients, steps):
    s = torch.logspace(0, -5, 12, dtype=torch.float64)
    temperature = size / s.norm().item()
    x = with_spectrum(*shape, s)
    u, v = torch.linalg.qr(normal(shape[0], 12))[0], torch.linalg.qr(normal(shape[1], 12, seed=1))[0]
    core = u.T @ soft_polar(x, temperature, steps, coefficients) @ v
    z = temperature * s
    factor = core.diagonal() / (z / torch.hypot(z, torch.ones_like(z)))
    t = torch.sqrt((1 + z * z) / (12 + size * size))
    close(factor, torch.from_numpy(ns.scalar_map(t.numpy(), steps, coefficients)), 1e-9)
    close(core, torch.diag(core.diagonal()), 1e-10)
    if (coefficients, steps) == ("keller", 5):
        low, high = golden.BAND
        assert low * (t >= 0.0015).double().min() <= factor.min()  # for size < 600 the whole spectrum is in the band
        assert factor.max() <= high
        assert (size > 600) == (t.min().item() < 0.0015)


# Root mean square of the singular values of the map, rows of temperature * median: the exact one, 5 Keller steps in
# bfloat16, and the released code.
POWER_LAW = [
    (1e6, 1.000, 1.019, 0.220),
    (70.7, 1.000, 1.019, 0.220),
    (10, 0.994, 1.012, 0.220),
    (1, 0.745, 0.623, 0.220),
    (0.1, 0.273, 0.232, 0.208),
    (0.01, 0.077, 0.075, 0.076),
]


@pytest.mark.parametrize("shape", [(256, 256), (256, 768), (768, 256)])
def test_size_of_the_step_for_a_power_law_spectrum(shape):
    s = 1.0 / torch.arange(1, 257, dtype=torch.float64)
    x = with_spectrum(*shape, s).float()
    for size, expected, keller, released in POWER_LAW:
        temperature = size / s.median().item()
        z = temperature * s
        assert (z / torch.hypot(z, torch.ones_like(z))).square().mean().sqrt().item() == pytest.approx(
            expected, abs=6e-4
        )
        actual = [
            soft_polar(x, temperature, dtype=torch.bfloat16).norm().item() / 16,
            coupled_soft_polar(x, temperature, 5, 0.0, torch.bfloat16).norm().item() / 16,
        ]
        assert actual == pytest.approx([keller, released], abs=2.5e-3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("coefficients", "steps"), [("keller", 5), ("polar_express", 8), ("cubic", 20), ("fitted", 8)])
@pytest.mark.parametrize("shape", [(32, 32), (32, 80), (80, 32)])
@pytest.mark.parametrize("spectrum", ["rank 3", "ill-conditioned"])
def test_low_precision_stays_bounded_and_close(spectrum, shape, coefficients, steps, dtype):
    """Rounding errors in (nearly) null directions must not grow from step to step, whatever the temperature."""
    s = torch.ones(3) if spectrum == "rank 3" else torch.logspace(0, -6, 32)
    x = with_spectrum(*shape, s.double())
    for size in (1e-20, 1e-3, 1.0, 30.0, 1e3, 1e6, 1e20):
        y = soft_polar(x.to(dtype), size, steps, coefficients)
        assert torch.isfinite(y).all()
        assert torch.linalg.matrix_norm(y.float(), 2) < 1.21 + (0.1 if dtype == torch.bfloat16 else 0.0)
        if size <= 30.0:  # beyond, what rounding adds to the matrix itself counts as much as the rest
            same = exact(x, size) if coefficients == "fitted" else soft_polar(x, size, steps, coefficients)
            bound = 0.011 if coefficients == "fitted" else 1e-4
            assert error(y, same) < (bound if dtype == torch.float32 else 0.15)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("coefficients", ALL)
@pytest.mark.parametrize("size", [1e-30, 1e-20, 1e-10, 1e10, 1e20, 1e30])
def test_no_temperature_and_no_scale_overflows(size, coefficients, dtype):
    x = normal(6, 10, dtype=dtype)
    for scale in (1e-30, 1.0, 1e30):
        if size / scale > 1e-38:  # the smallest temperature whose reciprocal is a float32
            y = soft_polar(x * scale, size / scale, 9, coefficients)
            assert error(y * 1e30 if size < 1e-9 else y, exact(x, size) * (1e30 if size < 1e-9 else 1.0)) < 0.35


@pytest.mark.parametrize("coefficients", ALL)
def test_a_matrix_far_below_the_temperature_does_not_overflow(coefficients):
    x = torch.full((4, 6), 1e-37, dtype=torch.float32)
    assert soft_polar(x, 1e-3, 5, coefficients).abs().max() < 1e-37


# --- limits


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("coefficients", ALL)
@pytest.mark.parametrize("shape", [*SHAPES, (3, 6, 6), (2, 2, 4, 9)])
def test_an_infinite_temperature_is_polar(shape, coefficients, dtype):
    x = normal(*shape, dtype=dtype)
    hard = polar(x, 4, "polar_express" if coefficients == "fitted" else coefficients, torch.float32)
    assert torch.equal(soft_polar(x, math.inf, 4, coefficients, torch.float32), hard)
    if coefficients != "fitted":
        soft = soft_polar(x, torch.tensor(math.inf), 4, coefficients)
        hard = polar(x, 4, coefficients)
        if dtype == torch.bfloat16 or max(shape[-2:]) >= 2 * min(shape[-2:]):  # both take the same route
            assert torch.equal(soft, hard)
        close(soft, hard, 2e-5 if dtype == torch.float32 else 1e-12)
        assert torch.equal(soft_polar(x, 1e30, 4, coefficients), soft)


@pytest.mark.parametrize("shape", SHAPES)
def test_a_low_temperature_scales(shape):
    x = normal(*shape)
    expected = x * 1e-9
    for coefficients, steps in (("polar_express", 8), ("cubic", 30)):
        close(soft_polar(x, 1e-9, steps, coefficients) / 1e-9, x, 1e-8)
    assert error(soft_polar(x, 1e-9, 5, "fitted"), expected) < 0.01
    ratio = soft_polar(x, 1e-9) / expected
    close(ratio, ratio.mean().expand(shape), 1e-9)
    assert golden.BAND[0] < ratio.mean() < golden.BAND[1]


def test_a_temperature_may_be_a_tensor():
    x = normal(5, 8, dtype=torch.float32)
    for temperature in (0.1, 3.0):
        for dtype in (torch.float32, torch.float64):
            for f in (soft_polar, coupled_soft_polar):
                close(f(x, torch.tensor(temperature, dtype=dtype)), f(x, temperature), 1e-6)


def test_nothing_is_read_back_from_the_device():
    with FakeTensorMode():  # refuses to
        x, temperature = torch.ones(4, 6), torch.ones(())
        assert soft_polar(x, temperature).shape == (4, 6)
        assert coupled_soft_polar(x, temperature).shape == (4, 6)
        with pytest.raises(DataDependentOutputException):
            soft_polar(x, temperature, coefficients="fitted")


# --- symmetries


@pytest.mark.parametrize("coefficients", ALL)
@pytest.mark.parametrize("shape", SHAPES)
def test_equivariance(shape, coefficients):
    m, n = shape
    x = normal(*shape)
    y = soft_polar(x, 2.0, 5, coefficients)
    close(soft_polar(x.mT, 2.0, 5, coefficients), y.mT)
    q, r = torch.linalg.qr(normal(m, m, seed=2))[0], torch.linalg.qr(normal(n, n, seed=3))[0]
    close(soft_polar(q @ x @ r, 2.0, 5, coefficients), q @ y @ r)
    rows, columns = np.random.default_rng(1).permutation(m), np.random.default_rng(2).permutation(n)
    close(soft_polar(x[rows][:, columns], 2.0, 5, coefficients), y[rows][:, columns])
    assert torch.equal(soft_polar(-x, 2.0, 5, coefficients), -y)
    z = coupled_soft_polar(x, 2.0)
    close(coupled_soft_polar(x.mT, 2.0), z.mT)
    close(coupled_soft_polar(q @ x @ r, 2.0), q @ z @ r)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("coefficients", ALL)
@pytest.mark.parametrize("power", [-40, -7, 3, 40])
def test_a_power_of_two_may_move_from_the_matrix_to_the_temperature(power, coefficients, dtype):
    x = normal(3, 5, 8, dtype=dtype)
    moved = soft_polar(x * 2.0**power, 3.7 * 2.0**-power, 5, coefficients)
    assert torch.equal(moved, soft_polar(x, 3.7, 5, coefficients))


# --- stacks and routes


@pytest.mark.parametrize("shape", [(3, 4, 6), (4, 4, 4), (4, 6, 4), (2, 2, 3, 8), (3, 1, 5)])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_a_stack_is_its_matrices_one_by_one(shape, dtype):
    x = normal(*shape, dtype=dtype)
    x *= torch.logspace(-3, 3, math.prod(shape[:-2])).to(dtype).reshape(*shape[:-2], 1, 1)
    maps = [(soft_polar, 1e-12), (lambda x, t: soft_polar(x, t, 8, "fitted"), 0.02)]  # fitted to the widest interval
    if dtype == torch.float64:  # 20 steps of the coupled iteration diverge in bfloat16
        maps.append((coupled_soft_polar, 1e-12))
    for f, tolerance in maps:
        y = f(x, 2.0)
        assert y.shape == shape
        assert y.dtype == dtype
        for matrix, result in zip(x.reshape(-1, *shape[-2:]), y.reshape(-1, *shape[-2:]), strict=True):
            close(result.double(), f(matrix, 2.0).double(), 0.03 if dtype == torch.bfloat16 else tolerance)


@pytest.mark.parametrize("shape", [(6, 6), (7, 20), (20, 7), (3, 9, 9), (1, 5)])
@pytest.mark.parametrize("coefficients", list(COEFFICIENTS))
@pytest.mark.parametrize("steps", [1, 2, 3, 4, 7])
def test_the_routes_agree(monkeypatch, shape, coefficients, steps):
    x = normal(*shape)
    X, tail = normalised(x, x.dtype, 2.0)
    table = schedule(coefficients, steps)
    expected = plain(X, table, tail)
    close(through_gram(X, table, tail), expected, 1e-11)
    close(through_gram(X, table, tail, restart=7), expected, 1e-11)
    monkeypatch.setattr(module, "_BLOCKED", 2)
    close(plain(X, table, tail), expected, 1e-11)
    close(through_gram(X, table, tail), expected, 1e-11)
    m, n = shape[-2:]
    if m <= n:  # the definition: the iteration on the whole matrix [X, I / temperature]
        whole = torch.cat([X, (tail * torch.eye(m, dtype=x.dtype)).expand(*shape[:-1], m)], -1)
        close(plain(whole, table)[..., :n], expected, 1e-11)


# --- fitted quintics


@pytest.mark.parametrize("lower", [1e-3, 0.01, 0.1, 0.3, 0.5, 0.8, 0.95])
@pytest.mark.parametrize("upper", [1.0, 1.7])
def test_the_best_quintic_equioscillates(lower, upper):
    lower = lower * upper
    step, bound = best_quintic(lower, upper)
    s = np.linspace(lower, upper, 200001)
    deviation = ns.quintic(s, step) - 1
    assert np.abs(deviation).max() == pytest.approx(bound, rel=1e-6, abs=1e-13)
    extremes = s[np.abs(deviation) > bound * (1 - 1e-6)]
    signs = np.sign(ns.quintic(extremes, step) - 1)
    assert 1 + np.count_nonzero(np.diff(signs)) == 4  # three coefficients: the best one has four alternations
    reference, _ = ns.optimal_quintic(lower, upper)
    np.testing.assert_allclose(step, reference, rtol=1e-6)


@pytest.mark.parametrize("lowest", np.geomspace(1e-3, 1, 41))
def test_fitted_steps_keep_their_bound_with_no_step_too_many(lowest):
    s = np.geomspace(lowest, 1, 100001)
    table = fitted(lowest, 12)
    assert np.abs(ns.scalar_map(s, len(table), table) - 1).max() <= 0.01
    if len(table) > 1:  # one less is not enough for the interval on the grid, which is at most a quarter octave longer
        shorter = np.geomspace(max(1e-3, lowest) / 2**0.25, 1, 100001)
        few = fitted(lowest, len(table) - 1)
        assert few == table[:-1]
        assert np.abs(ns.scalar_map(shorter, len(few), few) - 1).max() > 0.01


def test_the_number_of_fitted_steps():
    assert [len(fitted(lowest, 9)) for lowest in (1.0, 0.9, 0.5, 0.3, 0.1, 0.06, 0.03, 0.01, 0.003, 1e-3)] == [
        *(1, 1, 2, 2, 3, 3, 4, 5, 5, 6)
    ]
    assert fitted(0.0, 9) == fitted(1e-30, 9) == fitted(1e-3, 9)
    assert len(fitted(0.0, 4)) == 4


@pytest.mark.parametrize("size", [1e-3, 1.0, 3.0, 10.0, 30.0, 100.0])
@pytest.mark.parametrize("shape", [(64, 64), (48, 150), (150, 48), (1, 30)])
def test_fitted_is_within_one_percent(shape, size):
    spectra = [torch.ones(min(shape)), 1.0 / torch.arange(1, 1 + min(shape)), torch.logspace(0, -6, min(shape))]
    x = torch.stack([with_spectrum(*shape, s.double()) for s in spectra] + [torch.zeros(shape, dtype=torch.float64)])
    for dtype in (torch.float64, torch.float32):
        y = soft_polar(x.to(dtype), size, 8, "fitted")
        for result, matrix in zip(y[:3], x, strict=False):
            assert error(result, exact(matrix, size)) < 0.0101
        assert not y[3].any()
    assert torch.equal(
        soft_polar(x.float(), size, 8, "fitted", torch.bfloat16), soft_polar(x.float(), size, 8, "fitted")
    )


def test_fitted_steps_in_float32_where_singular_values_are_tiny():
    x = with_spectrum(128, 128, torch.logspace(0, -6, 128, dtype=torch.float64))
    y = soft_polar(x, 1e4, 8, "fitted")
    assert error(soft_polar(x.float(), 1e4, 8, "fitted"), y) < 1e-3


# --- the coupled iteration


def test_the_ridge_of_the_coupled_iteration():
    x = (normal(32, 3) @ normal(3, 40, seed=1)).float()
    for steps in (20, 40):
        y = coupled_soft_polar(x, math.inf, steps)
        assert torch.linalg.svdvals(y)[:3].sub(1).abs().max() < 0.01
    assert not torch.isfinite(coupled_soft_polar(x, math.inf, 40, ridge=0.0)).all()
    # Relative to ||A||_F, here sqrt(4) for four orthonormal rows.
    eye = torch.eye(4, 6, dtype=torch.float64)
    close(coupled_soft_polar(eye, math.inf, 40, ridge=0.5), eye / math.sqrt(1 + 0.5 * 2))


# --- contract

MAPS = [soft_polar, lambda x, t, **k: soft_polar(x, t, coefficients="fitted", **k), coupled_soft_polar]


@pytest.mark.parametrize("f", MAPS)
def test_contract(f):
    for shape in [(0, 4, 6), (3, 0, 6), (3, 4, 0), (0, 5)]:
        assert f(torch.zeros(shape), 2.0).shape == shape
    for dtype in DTYPES:
        for temperature in (2.0, math.inf, torch.tensor(math.inf)):
            zero = torch.zeros(2, 4, 6, dtype=dtype)
            assert torch.equal(f(zero, temperature), zero)
        for compute in (None, *DTYPES):
            x = normal(4, 6, dtype=dtype)
            before = x.clone()
            y = f(x, 2.0, dtype=compute)
            assert torch.equal(x, before)
            assert y.dtype == dtype
            assert y.untyped_storage().data_ptr() != x.untyped_storage().data_ptr()
    base = normal(3, 12, 10)
    for x in (base[:, ::2, ::2], base.mT, base[0].expand(2, 12, 10), base.permute(2, 0, 1)):
        close(f(x, 2.0), f(x.contiguous(), 2.0))


@pytest.mark.parametrize("f", MAPS)
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_bad_matrix_is_visible_and_does_not_touch_its_neighbours(f, bad):
    x = normal(3, 4, 6)
    x[1, 2, 3] = bad
    y = f(x, 2.0)
    assert not torch.isfinite(y[1]).all()
    for i in (0, 2):
        assert error(y[i], f(x[i], 2.0)) < 0.02


@pytest.mark.parametrize("f", MAPS)
def test_bad_arguments(f):
    x = normal(4, 6)
    for temperature in (0.0, -1.0, math.nan):
        with pytest.raises(ValueError, match="temperature"):
            f(x, temperature)
    with pytest.raises(ValueError, match=r"soft_polar needs .* \(4,\)"):
        f(x[:, 0], 2.0)
    with pytest.raises(ValueError, match="int64"):
        f(x.long(), 2.0)
    for steps in (0, 2.5):
        with pytest.raises(ValueError, match="steps"):
            f(x, 2.0, steps=steps)
    with pytest.raises(ValueError, match=r"'kellar'.* keller, polar_express, cubic, fitted"):
        soft_polar(x, 2.0, coefficients="kellar")
    for ridge in (-1e-9, math.nan):
        with pytest.raises(ValueError, match="ridge"):
            coupled_soft_polar(x, 2.0, ridge=ridge)
