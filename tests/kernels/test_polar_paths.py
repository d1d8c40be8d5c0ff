"""The cheaper ways through the iteration give what the plain one gives."""

import sys

import pytest
import torch

from steepest import kernels

module = sys.modules["steepest.kernels.polar"]  # `kernels.polar` is the function


@pytest.mark.parametrize("shape", [(6, 6), (7, 20), (20, 7), (3, 9, 5), (2, 2, 8, 9)])
@pytest.mark.parametrize("coefficients", list(kernels.COEFFICIENTS))
def test_symmetric_products_in_blocks(monkeypatch, shape, coefficients):
    x = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    whole = kernels.polar(x, coefficients=coefficients)
    monkeypatch.setattr(module, "_BLOCKED", 2)
    torch.testing.assert_close(kernels.polar(x, coefficients=coefficients), whole, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("shape", [(7, 20), (20, 7), (3, 9, 4)])
@pytest.mark.parametrize("coefficients", list(kernels.COEFFICIENTS))
def test_through_the_gram_matrix(monkeypatch, shape, coefficients):
    x = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    through_gram = kernels.polar(x, coefficients=coefficients)
    monkeypatch.setattr(module, "_GRAM_ASPECT", 1e9)
    torch.testing.assert_close(kernels.polar(x, coefficients=coefficients), through_gram, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("coefficients", "steps"), [("keller", 10), ("polar_express", 12), ("cubic", 25)])
@pytest.mark.parametrize("shape", [(4, 9), (64, 256), (256, 64)])
@pytest.mark.parametrize("rank", [1, 3])
def test_null_directions_stay_bounded_however_many_steps(dtype, coefficients, steps, shape, rank):
    """Rounding errors in the null space must not grow from step to step."""
    generator = torch.Generator().manual_seed(0)
    left = torch.randn(shape[0], rank, dtype=dtype, generator=generator)
    x = left @ torch.randn(rank, shape[1], dtype=dtype, generator=generator)
    y = kernels.polar(x, steps=steps, coefficients=coefficients)
    assert torch.isfinite(y).all()
    assert torch.linalg.matrix_norm(y, 2) < 1.21
