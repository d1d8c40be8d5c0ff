"""`sign` and `polar` against the float64 reference, and the invariances that hold whatever the reference says."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from reference import golden
from reference import newton_schulz as ns
from steepest import kernels

SHAPES = [(4, 9), (9, 4), (6, 6), (1, 7), (7, 1), (1, 1), (16, 200), (200, 16)]
STACKS = [
    (3, 4, 6),
    (4, 4, 6),
    (6, 4, 6),
    (4, 6, 4),
    (2, 5, 5),
    (5, 5, 5),
    (2, 3, 4, 6),
    (1, 4, 6),
    (3, 1, 7),
    (3, 7, 1),
]
TABLES = ["keller", "polar_express", "cubic"]
DTYPES = [torch.float64, torch.float32, torch.bfloat16]
# Largest difference of an element of the result (all are at most 1.2) after five steps of rounding. The first Polar
# Express polynomial has slope 22 at a singular value of 1, so a small matrix in bfloat16 (8 bits) is far from exact.
TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-4, torch.bfloat16: 6e-2}
LOOSE = {**TOLERANCE, torch.bfloat16: 0.25}


def tolerance(dtype: torch.dtype, coefficients: str) -> float:
    return (LOOSE if coefficients == "polar_express" else TOLERANCE)[dtype]


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).standard_normal(shape)).to(dtype)


def orthogonal(n: int, seed: int) -> torch.Tensor:
    return torch.linalg.qr(normal(n, n, seed=seed))[0]


def close(actual: torch.Tensor, expected: torch.Tensor | np.ndarray, atol: float = 1e-12) -> None:
    expected = torch.as_tensor(expected, dtype=actual.dtype)
    torch.testing.assert_close(actual, expected, rtol=0, atol=atol)


# --- sign


@pytest.mark.parametrize("dtype", DTYPES)
def test_sign(dtype):
    x = torch.tensor([[3.0, -0.0, 0.0], [-2e-30, 1e-30, -5.0]], dtype=dtype)
    before = x.clone()
    y = kernels.sign(x)
    assert y.tolist() == [[1, 0, 0], [-1, 1, -1]]
    assert y.dtype == dtype
    assert y.data_ptr() != x.data_ptr()
    assert torch.equal(x, before)


def test_sign_of_any_shape_and_layout():
    for shape in [(), (0,), (5,), (2, 3, 4), (2, 0, 3)]:
        x = normal(*shape)
        assert torch.equal(kernels.sign(x), torch.from_numpy(np.asarray(np.sign(x.numpy()))))
    x = normal(6, 8).T[::2]
    assert torch.equal(kernels.sign(x), torch.from_numpy(np.sign(x.numpy())))


def test_sign_of_the_smallest_numbers():
    x = torch.tensor([5e-324, -5e-324], dtype=torch.float64)
    assert kernels.sign(x).tolist() == [1, -1]


# --- polar against the reference


@pytest.mark.parametrize("steps", [1, 2, 5, 9])
@pytest.mark.parametrize("coefficients", TABLES)
@pytest.mark.parametrize("shape", SHAPES)
def test_polar_equals_the_float64_reference(shape, coefficients, steps):
    x = normal(*shape)
    close(kernels.polar(x, steps=steps, coefficients=coefficients), ns.newton_schulz(x.numpy(), steps, coefficients))


@pytest.mark.parametrize("shape", [(515, 515), (514, 900), (900, 515), (2, 513, 530)])
def test_large_matrices(shape):
    """Large enough for any shortcut that small ones do not take, of odd sizes."""
    x = normal(*shape)
    expected = [ns.newton_schulz(matrix) for matrix in x.reshape(-1, *shape[-2:]).numpy()]
    close(kernels.polar(x), np.stack(expected).reshape(shape), 1e-11)
    error = kernels.polar(x.bfloat16()).double() - torch.from_numpy(np.stack(expected).reshape(shape))
    assert error.norm() < 0.06 * np.linalg.norm(expected)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("coefficients", TABLES)
@pytest.mark.parametrize("shape", SHAPES)
def test_polar_in_each_dtype(shape, coefficients, dtype):
    x = normal(*shape, dtype=dtype)
    y = kernels.polar(x, coefficients=coefficients)
    assert y.dtype == dtype
    assert y.shape == x.shape
    close(y.double(), ns.newton_schulz(x.double().numpy(), 5, coefficients), tolerance(dtype, coefficients))


@pytest.mark.parametrize("compute", DTYPES)
def test_the_compute_dtype_is_explicit(compute):
    x = normal(8, 12, dtype=torch.float32)
    y = kernels.polar(x, dtype=compute)
    assert y.dtype == torch.float32
    error = (y.double() - torch.from_numpy(ns.newton_schulz(x.double().numpy()))).abs().max().item()
    bounds = {torch.float64: (0, 1e-6), torch.float32: (0, 1e-4), torch.bfloat16: (1e-3, 6e-2)}  # bfloat16 must be seen
    assert bounds[compute][0] <= error <= bounds[compute][1]


def test_defaults_are_five_keller_steps():
    x = normal(4, 6)
    assert torch.equal(kernels.polar(x), kernels.polar(x, steps=5, coefficients="keller", dtype=torch.float64))


def test_tables_are_the_published_ones():
    assert kernels.COEFFICIENTS["keller"] == (ns.KELLER,)
    assert kernels.COEFFICIENTS["cubic"] == (ns.CUBIC,)
    np.testing.assert_allclose(kernels.COEFFICIENTS["polar_express"], ns.triples("polar_express", 8), rtol=1e-15)


def test_polar_express_table_follows_from_its_definition():
    derived = ns.polar_express(8, cushion=ns.POLAR_EXPRESS_CUSHION, safety=ns.POLAR_EXPRESS_SAFETY)
    np.testing.assert_allclose(kernels.COEFFICIENTS["polar_express"][:6], derived[:6], rtol=1e-12)
    np.testing.assert_allclose(kernels.COEFFICIENTS["polar_express"], derived, rtol=1e-8)


# --- polar against the singular value decomposition


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(8, 12), (12, 8), (8, 8), (1, 9), (9, 1)])
def test_singular_values_end_in_the_band(shape, dtype):
    k = min(shape)
    s = torch.linspace(0.1, 1.0, k, dtype=torch.float64)
    q, r = orthogonal(shape[0], 1)[:, :k], orthogonal(shape[1], 2)[:, :k]
    x = ((q * s) @ r.T).to(dtype)
    y = kernels.polar(x).double()
    low, high = golden.BAND
    if dtype == torch.bfloat16:
        low, high = low - 0.02, high + 0.02
    values = torch.linalg.svdvals(y)
    assert low <= values.min()
    assert values.max() <= high
    # The singular vectors are those of the input: U' Y V is the diagonal of the singular values, up to rounding.
    core = q.T @ y @ r
    close(core - torch.diag(core.diagonal()), torch.zeros(k, k), TOLERANCE[dtype])


@pytest.mark.parametrize(
    ("coefficients", "steps"), [("keller", 5), ("cubic", 5), ("polar_express", 5), ("polar_express", 8)]
)
@pytest.mark.parametrize("shape", [(2, 3), (3, 5), (4, 6), (6, 4), (6, 6), (8, 12), (32, 64)])
@pytest.mark.parametrize("rank", [2, 4, 1000])
def test_bfloat16_stays_bounded(rank, shape, coefficients, steps):
    """Null and nearly null directions must not grow without bound when the products are rounded to eight bits."""
    rank = min(rank, *shape)
    x = normal(400, shape[0], rank) @ normal(400, rank, shape[1], seed=1)
    y = kernels.polar(x.bfloat16(), steps=steps, coefficients=coefficients)
    assert torch.isfinite(y).all()
    assert torch.linalg.svdvals(y.float()).max() < golden.BAND[1] + 0.1


@pytest.mark.parametrize(("coefficients", "steps"), [("keller", 5), ("polar_express", 5), ("polar_express", 8)])
def test_bfloat16_stays_bounded_for_a_decaying_spectrum(coefficients, steps):
    s = torch.logspace(0, -4, 128, dtype=torch.float64)
    for shape in [(128, 256), (256, 128)]:
        q, r = torch.linalg.qr(normal(shape[0], 128))[0], torch.linalg.qr(normal(shape[1], 128, seed=1))[0]
        y = kernels.polar(((q * s) @ r.T).bfloat16(), steps=steps, coefficients=coefficients)
        assert torch.linalg.svdvals(y.float()).max() < golden.BAND[1] + 0.1


@pytest.mark.parametrize("coefficients", TABLES)
@pytest.mark.parametrize("shape", [(48, 96), (96, 48), (64, 64)])
def test_bfloat16_is_close_in_the_mean(shape, coefficients):
    x = normal(*shape)
    expected = torch.from_numpy(ns.newton_schulz(x.numpy(), 5, coefficients))
    error = kernels.polar(x.bfloat16(), coefficients=coefficients).double() - expected
    assert error.norm() < 0.06 * expected.norm()


@pytest.mark.parametrize("shape", [(8, 12), (12, 8), (8, 8)])
def test_accurate_tables_reach_the_exact_polar_factor(shape):
    x = normal(*shape, seed=3)
    exact = ns.polar_exact(x.numpy())
    close(kernels.polar(x, steps=8, coefficients="polar_express"), exact, 1e-6)
    close(kernels.polar(x, steps=40, coefficients="cubic"), exact, 1e-9)


@pytest.mark.parametrize("rank", [1, 2, 3])
@pytest.mark.parametrize("coefficients", TABLES)
def test_rank_deficient(rank, coefficients):
    x = normal(5, rank) @ normal(rank, 7, seed=1)
    y = kernels.polar(x, coefficients=coefficients)
    close(y, ns.newton_schulz(x.numpy(), 5, coefficients))
    values = torch.linalg.svdvals(y)
    assert values[rank - 1] > 0.2  # the cubic is slow, the other tables are above 0.6
    assert values[rank:].max() < 1e-10  # null directions stay null
    u = torch.linalg.svd(x)[0][:, rank:]
    close(u.T @ y, torch.zeros(5 - rank, 7), 1e-10)


# --- stacks


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("coefficients", TABLES)
@pytest.mark.parametrize("shape", STACKS)
def test_a_stack_is_its_matrices_one_by_one(shape, coefficients, dtype):
    """Also with as many matrices as rows or columns, where a norm over the wrong axes has the right shape."""
    x = normal(*shape, dtype=dtype)
    factor = torch.logspace(-3, 3, int(np.prod(shape[:-2]))).to(dtype).reshape(*shape[:-2], 1, 1)
    x = x * factor
    y = kernels.polar(x, coefficients=coefficients)
    assert y.shape == x.shape
    flat_x, flat_y = x.reshape(-1, *shape[-2:]), y.reshape(-1, *shape[-2:])
    for matrix, result in zip(flat_x, flat_y, strict=True):
        alone = kernels.polar(matrix, coefficients=coefficients)
        close(result.double(), alone.double(), {torch.float64: 1e-13, torch.float32: 1e-5, torch.bfloat16: 3e-2}[dtype])
        reference = ns.newton_schulz(matrix.double().numpy(), 5, coefficients)
        close(result.double(), reference, tolerance(dtype, coefficients))


def test_a_zero_matrix_in_a_stack_stays_zero_and_alone():
    x = normal(3, 4, 6)
    x[1] = 0
    y = kernels.polar(x)
    assert not y[1].any()
    close(y[0], ns.newton_schulz(x[0].numpy()))
    close(y[2], ns.newton_schulz(x[2].numpy()))


@pytest.mark.parametrize("shape", [(0, 4, 6), (3, 0, 6), (3, 4, 0), (0, 5), (5, 0)])
def test_empty(shape):
    assert kernels.polar(torch.zeros(shape)).shape == shape


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_zero_in_zero_out(shape, dtype):
    assert torch.equal(kernels.polar(torch.zeros(shape, dtype=dtype)), torch.zeros(shape, dtype=dtype))


# --- invariances


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("power", [-40, -13, 1, 40])
def test_powers_of_two_change_nothing_at_all(power, dtype):
    x = normal(3, 5, 8, dtype=dtype)
    assert torch.equal(kernels.polar(x * 2.0**power), kernels.polar(x))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("coefficients", TABLES)
@pytest.mark.parametrize("factor", [1e-12, 1e-6, 1e6, 1e12])
def test_scale_invariance(factor, coefficients, dtype):
    x = normal(5, 8, dtype=dtype)
    y = kernels.polar(x, coefficients=coefficients)
    close(kernels.polar(x * factor, coefficients=coefficients), y, tolerance(dtype, coefficients))


@pytest.mark.parametrize("factor", [1e-30, 1e30])
def test_scale_invariance_where_squares_overflow_in_float32(factor):
    x = normal(5, 8, dtype=torch.float32)
    close(kernels.polar(x * factor), kernels.polar(x), 1e-5)


@pytest.mark.parametrize("coefficients", TABLES)
@pytest.mark.parametrize("shape", [(5, 8), (8, 5), (6, 6), (3, 5, 8)])
def test_transpose(shape, coefficients):
    x = normal(*shape)
    close(kernels.polar(x.mT, coefficients=coefficients), kernels.polar(x, coefficients=coefficients).mT)


@pytest.mark.parametrize("coefficients", TABLES)
def test_permutation_of_rows_and_columns_and_flips_of_sign(coefficients):
    x = normal(5, 8)
    rows = torch.from_numpy(np.random.default_rng(1).permutation(5))
    columns = torch.from_numpy(np.random.default_rng(2).permutation(8))
    y = kernels.polar(x, coefficients=coefficients)
    close(kernels.polar(x[rows][:, columns], coefficients=coefficients), y[rows][:, columns])
    flips = kernels.sign(normal(5, 1, seed=3)) * kernels.sign(normal(1, 8, seed=4))
    close(kernels.polar(x * flips, coefficients=coefficients), y * flips)
    assert torch.equal(kernels.polar(-x, coefficients=coefficients), -y)


@pytest.mark.parametrize("coefficients", TABLES)
@pytest.mark.parametrize("shape", [(5, 8), (8, 5), (6, 6)])
def test_orthogonal_changes_of_basis(shape, coefficients):
    x = normal(*shape)
    q, r = orthogonal(shape[0], 2), orthogonal(shape[1], 3)
    close(kernels.polar(q @ x @ r, coefficients=coefficients), q @ kernels.polar(x, coefficients=coefficients) @ r)


# --- contract


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("compute", [None, *DTYPES])
def test_the_input_is_not_changed_and_not_returned(dtype, compute):
    for shape in [(4, 6), (6, 4), (2, 4, 6)]:
        x = normal(*shape, dtype=dtype)
        before = x.clone()
        y = kernels.polar(x, dtype=compute)
        assert torch.equal(x, before)
        assert y.untyped_storage().data_ptr() != x.untyped_storage().data_ptr()


def test_non_contiguous_input():
    base = normal(3, 12, 10)
    for x in (base[:, ::2, ::2], base.mT, base.permute(1, 0, 2), base[:, :, 1:7], base[0].expand(2, 12, 10)):
        close(kernels.polar(x), kernels.polar(x.contiguous()))


def test_a_parameter_that_requires_grad_gives_a_plain_tensor_under_no_grad():
    x = normal(4, 6).requires_grad_()
    with torch.no_grad():
        assert not kernels.polar(x).requires_grad


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_a_bad_matrix_is_visible_and_does_not_touch_its_neighbours(bad):
    x = normal(3, 4, 6)
    x[1, 2, 3] = bad
    y = kernels.polar(x)
    assert not torch.isfinite(y[1]).all()
    close(y[0], ns.newton_schulz(x[0].numpy()))
    close(y[2], ns.newton_schulz(x[2].numpy()))


def test_bad_arguments():
    x = normal(4, 6)
    with pytest.raises(ValueError, match="keller"):
        kernels.polar(x, coefficients="kellar")
    for steps in (0, -1):
        with pytest.raises(ValueError, match="steps"):
            kernels.polar(x, steps=steps)
    with pytest.raises(ValueError, match="matri"):
        kernels.polar(normal(4))
    for dtype in (torch.int64, torch.complex64):
        with pytest.raises(ValueError, match="float"):
            kernels.polar(torch.ones(4, 6, dtype=dtype))


# --- stable rank


def test_stable_rank_equals_the_reference():
    from reference import rules

    x, start = normal(3, 5, 8), normal(8, seed=9)
    for iterations in (1, 3, 30):
        expected = [rules.stable_rank(m.numpy(), start.numpy(), iterations) for m in x]
        close(kernels.stable_rank(x, start, iterations), np.array(expected), 1e-10)
    close(kernels.stable_rank(x * 1e-12, start), kernels.stable_rank(x, start), 1e-10)
    close(kernels.stable_rank(x * 1e150, start), kernels.stable_rank(x, start), 1e-10)
    assert kernels.stable_rank(torch.zeros(2, 4, 6), torch.ones(6)).tolist() == [0, 0]
    default = kernels.stable_rank(x, start)
    assert torch.equal(default, kernels.stable_rank(x, start, 3))
