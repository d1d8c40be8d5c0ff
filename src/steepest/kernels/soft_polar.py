"""The soft polar factor: the algebraic soft sign z / sqrt(1 + z^2) on the singular values of a matrix (SoftMuon)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from steepest.kernels.fitted import fitted
from steepest.kernels.polar import (
    COEFFICIENTS,
    GRAM_STEPS,
    check_matrices,
    gram,
    normalised,
    plain,
    polar,
    schedule,
    through_gram,
)
from steepest.kernels.soft import check_temperature


def soft_polar(
    x: Tensor,
    temperature: float | Tensor,
    steps: int = 5,
    coefficients: str = "keller",
    dtype: torch.dtype | None = None,
) -> Tensor:
    """Approximate U phi(temperature S) V' for each matrix X = U S V' of a stack, with phi(z) = z / sqrt(1 + z^2).

    This is X (X'X + I / temperature^2)^(-1/2) (SoftMuon, Feoktistov et al. 2026, arXiv 2605.31371), computed as the
    first block of the polar factor of [X, I / temperature]. The iteration is that of ``polar``, so the step does not
    jump where the temperature leaves infinity. Only the product of temperature and ``x`` counts: powers of two moved
    from one to the other change nothing but the dtype's range. A zero matrix gives zero.

    How close it is: with r = min(m, n) and t = sqrt((1 + (temperature s)^2) / (r + (temperature ||X||_F)^2)), the part
    of the singular value s is p(t) times the exact one, p being what the iteration makes of a singular value t.

    - "keller", 5 steps: p in [0.68, 1.21] for t >= 0.0015 (every s if temperature ||X||_F < 600), below it 485 t.
    - "polar_express": in float64, |p - 1| < 1e-8 from 8 steps on for t >= 1e-3, from 19 for t >= 1e-6.
    - "fitted": the quintics that are best for the interval of t that the temperature leaves, as many as |p - 1| <= 1 %
      needs and ``steps`` at most; up to temperature s = 10 usually cheaper than 5 steps of ``polar``. Below 1e-3 t is
      neglected as by "polar_express", which stands in at a temperature of ``math.inf``. One number is read back from
      the device (so a step cannot be captured), and products asked for in bfloat16 are float32.

    Args:
        x: stack of matrices (..., m, n), floating point; m, n and the leading axes may be zero. Not changed.
        temperature: > 0 (from 1e-38 in float32); ``math.inf`` is ``polar`` bit for bit. A number, or a 0-dim tensor,
            which is not checked; an infinite one is the same iteration as ``polar`` up to the rounding of the products
            (bit for bit in bfloat16, and where one side is at least twice the other).
        steps: number of iterations, at least 1. 5 as in Muon.
        coefficients: a key of ``COEFFICIENTS``, as in ``polar``, or "fitted".
        dtype: dtype of the matrix products; default that of ``x``.

    Returns:
        A new tensor of the shape and dtype of ``x``.

    Raises:
        ValueError: ``x`` is not a stack of floating-point matrices, ``steps`` or ``coefficients`` is unknown, or the
            temperature is a number that is not positive.
    """
    _check(x, temperature, "soft_polar")
    if coefficients not in (*COEFFICIENTS, "fitted"):
        raise ValueError(f"unknown coefficients {coefficients!r}; choose one of {', '.join(COEFFICIENTS)}, fitted")
    named = "polar_express" if coefficients == "fitted" else coefficients
    table = schedule(named, steps)
    if not isinstance(temperature, Tensor) and temperature == math.inf:
        return polar(x, steps, named, dtype)
    if x.numel() == 0:
        return torch.zeros_like(x)
    dtype = dtype or x.dtype
    if coefficients == "fitted":
        X, tail = normalised(x, dtype if dtype.itemsize >= 4 else torch.float32, temperature)
        y = _fitted(X, tail, steps)
    else:
        X, tail = normalised(x, dtype, temperature)
        # The tail makes the Gram form the cheaper one for any aspect: at 5 steps 1.2 times the cost of `polar` for
        # square matrices. In bfloat16 (see `polar`) it is 1.4 times.
        y = (through_gram if X.element_size() >= 4 and steps > 1 else plain)(X, table, tail)
    return y.view(x.shape).to(x.dtype)


def _fitted(X: Tensor, tail: Tensor | None, steps: int) -> Tensor:
    assert tail is not None
    A = gram(X)
    # ||(X X')^2||_F^(1/4), the Schatten-8 norm, bounds the spectral norm of X, so this size that of [X, tail], squared.
    size = torch.linalg.matrix_norm(gram(A), keepdim=True).sqrt() + tail.square()
    scale = torch.where(size == 0, size, size.rsqrt())
    tail = tail * scale
    A.mul_(scale.square()).diagonal(dim1=-2, dim2=-1).add_(tail.square().squeeze(-1))
    lowest = tail.nan_to_num(1.0).amin().item()  # not finite only where X is not
    # In so short an interval the rounding errors do not outgrow the smallest singular value.
    restart = steps if lowest > 0.01 else GRAM_STEPS
    return through_gram(X.mul_(scale), fitted(lowest, steps), tail, A, restart)


def coupled_soft_polar(
    x: Tensor, temperature: float | Tensor, steps: int = 20, ridge: float = 1e-7, dtype: torch.dtype | None = None
) -> Tensor:
    """The map of ``soft_polar`` by the coupled cubic iteration, which computes the inverse square root itself.

    With A = X X' + I / temperature^2 (of the short side), plus ridge ||A||_F I: Y = A / ||A||_F and Z = I, then
    ``steps`` times T = (3 I - Z Y) / 2, Y <- Y T, Z <- T Z; the result is Z X / sqrt(||A||_F). In float32 it takes 15
    to 20 steps, and in bfloat16 it diverges from about 15 on. The code released with SoftMuon is ``steps=5, ridge=0.0,
    dtype=torch.bfloat16``, which is far from converged: at an infinite temperature the singular values of a spectrum
    1/i end at 0.22 (root mean square) in place of 1.

    Args:
        x: stack of matrices (..., m, n), floating point. Not changed.
        temperature: > 0, ``math.inf`` allowed. A number, or a 0-dim tensor, which is not checked.
        steps: number of iterations, at least 1.
        ridge: what is added to the diagonal of A, relative to its norm; 1e-7 keeps float32 from diverging.
        dtype: dtype of the matrix products; default that of ``x``.

    Returns:
        A new tensor of the shape and dtype of ``x``.

    Raises:
        ValueError: as for ``soft_polar``, or the ridge is negative.
    """
    _check(x, temperature, "coupled_soft_polar")
    schedule("cubic", steps)
    if not ridge >= 0.0:
        raise ValueError(f"ridge must be at least 0, got {ridge!r}")
    if x.numel() == 0:
        return torch.zeros_like(x)
    X, tail = normalised(x, dtype or x.dtype, temperature)
    A = gram(X, tail)
    size = torch.linalg.matrix_norm(A, keepdim=True)
    A.diagonal(dim1=-2, dim2=-1).add_(ridge * size.squeeze(-1))
    Y = A * torch.where(size == 0, size, 1.0 / size)
    Z = torch.eye(A.shape[-1], dtype=A.dtype, device=A.device).expand_as(A)
    for _ in range(steps):
        T = -0.5 * (Z @ Y)
        T.diagonal(dim1=-2, dim2=-1).add_(1.5)
        Y, Z = Y @ T, T @ Z
    Z = Z * torch.where(size == 0, size, size.rsqrt())
    return (Z @ X if X.shape[-2] <= X.shape[-1] else X @ Z).view(x.shape).to(x.dtype)


def _check(x: Tensor, temperature: float | Tensor, caller: str) -> None:
    check_matrices(x, caller)
    if not isinstance(temperature, Tensor):
        check_temperature(temperature)
