"""The polar factor (matrix sign) by Newton-Schulz iterations: steepest descent under the spectral norm."""

from __future__ import annotations

import math

import torch
from torch import Tensor

Step = tuple[float, float, float]

# Polar Express (Amsel et al. 2025, arXiv 2505.16932): the best odd quintic for what the previous steps leave over, for
# singular values in [1e-3, 1]. All but the last are damped by 1.01 so that bfloat16 rounding cannot leave the interval.
_POLAR_EXPRESS: tuple[Step, ...] = (
    (8.28721201814563, -23.595886519098837, 17.300387312530933),
    (4.107059111542203, -2.9478499167379106, 0.5448431082926601),
    (3.9486908534822946, -2.908902115962949, 0.5518191394370137),
    (3.3184196573706015, -2.488488024314874, 0.51004894012372),
    (2.300652019954817, -1.6689039845747493, 0.4188073119525673),
    (1.891301407787398, -1.2679958271945868, 0.37680408948524835),
    (1.8750014808534479, -1.2500016453999487, 0.3750001645474248),
    (1.875, -1.25, 0.375),
)

COEFFICIENTS: dict[str, tuple[Step, ...]] = {
    # K. Jordan's quintic, as in Muon and in every LionMuon run: fast rise, singular values end in [0.68, 1.21].
    "keller": ((3.4445, -4.7750, 2.0315),),
    # Close to the exact polar factor from 6 steps on.
    "polar_express": (*((a / 1.01, b / 1.01**3, c / 1.01**5) for a, b, c in _POLAR_EXPRESS[:-1]), _POLAR_EXPRESS[-1]),
    # The classic Newton-Schulz iteration: slow and exact in the limit.
    "cubic": ((1.5, -0.5, 0.0),),
}
"""Coefficient tables (a, b, c) of X <- a X + b (X X') X + c (X X')^2 X, by name; the last entry of a table repeats."""

# A matrix this much longer than wide is cheaper through its Gram matrix (counted in multiplications, 5 steps). Not in
# bfloat16: rounding gives the Gram matrix of a nearly singular matrix negative eigenvalues, which grow without bound.
_GRAM_ASPECT = 2.0
# After so many steps the Gram matrix is formed anew: rounding errors in its null space grow about twelvefold a step.
GRAM_STEPS = 3
# From this size on, a symmetric product is computed in blocks.
_BLOCKED = 512


def polar(x: Tensor, steps: int = 5, coefficients: str = "keller", dtype: torch.dtype | None = None) -> Tensor:
    """Approximate the polar factor U V' of each matrix X = U S V' of a stack, by matrix products alone.

    The result does not depend on the scale of ``x``, which is divided by its Frobenius norm without an absolute
    epsilon: 1e-12 and 1e12 times a matrix give the same, and powers of two bit for bit. A zero matrix gives zero. A
    non-finite element gives non-finite values (the optimizer refuses such gradients by name).

    Args:
        x: stack of matrices (..., m, n), floating point; m, n and the leading axes may be zero. Not changed.
        steps: number of iterations, at least 1. 5 as in Muon and LionMuon.
        coefficients: a key of ``COEFFICIENTS``: "keller" (paper parity), "polar_express" (accurate), "cubic" (classic).
        dtype: dtype of the matrix products; default that of ``x``. bfloat16 is the customary fast choice.

    Returns:
        A new tensor of the shape and dtype of ``x``.

    Raises:
        ValueError: ``x`` is not a stack of floating-point matrices, or ``steps`` or ``coefficients`` is unknown.
    """
    check_matrices(x, "polar")
    table = schedule(coefficients, steps)
    if x.numel() == 0:
        return torch.zeros_like(x)
    y, _ = normalised(x, dtype or x.dtype)
    long, short = max(y.shape[-2:]), min(y.shape[-2:])
    elongated = long >= _GRAM_ASPECT * short and y.element_size() >= 4 and steps > 1
    return (through_gram if elongated else plain)(y, table).view(x.shape).to(x.dtype)


def check_matrices(x: Tensor, caller: str) -> None:
    """Refuse what is not a stack of floating-point matrices."""
    if x.ndim < 2 or not x.is_floating_point():
        raise ValueError(f"{caller} needs floating-point matrices (..., m, n), got shape {tuple(x.shape)} of {x.dtype}")


def schedule(coefficients: str, steps: int) -> list[Step]:
    """The (a, b, c) of each of ``steps`` iterations of a named table.

    Raises:
        ValueError: the name is unknown or ``steps`` is not a positive integer.
    """
    if coefficients not in COEFFICIENTS:
        raise ValueError(f"unknown coefficients {coefficients!r}; choose one of {', '.join(COEFFICIENTS)}")
    if isinstance(steps, bool) or not isinstance(steps, int) or steps < 1:
        raise ValueError(f"steps must be a positive integer, got {steps!r}")
    table = COEFFICIENTS[coefficients]
    return [table[min(i, len(table) - 1)] for i in range(steps)]


def normalised(
    x: Tensor, dtype: torch.dtype, temperature: float | Tensor | None = None
) -> tuple[Tensor, Tensor | None]:
    """Scale each matrix X, or with a temperature each [X, I / temperature], to Frobenius norm 1; zero stays zero.

    Returns:
        The stack as one of at most three axes in a new tensor of ``dtype``, and with a temperature the multiples of
        the identity (..., 1, 1). A power of two goes first, so that no square is lost.
    """
    x = x.float() if x.element_size() < 4 else x
    x = x.flatten(0, -3) if x.ndim > 3 else x
    peak = torch.maximum(x.amax((-2, -1), keepdim=True), x.amin((-2, -1), keepdim=True).neg())
    tail = None if temperature is None else torch.ones_like(peak) / temperature
    peak = peak if tail is None else torch.maximum(peak, tail)
    limit = 120 if x.dtype == torch.float32 else 1000  # a little less than the exponents that the dtype has
    exponent = torch.frexp(peak).exponent.clamp(-limit, limit)
    power = torch.ldexp(torch.ones_like(peak), -exponent)
    y = x * power
    norm = torch.linalg.vector_norm(y, dim=(-2, -1), keepdim=True)
    if tail is not None:
        tail = tail * power
        norm = torch.hypot(norm, tail * math.sqrt(min(x.shape[-2:])))
    inverse = torch.where(norm == 0, norm, 1.0 / norm).to(dtype)
    return y.to(dtype).mul_(inverse), None if tail is None else tail.to(dtype) * inverse


def plain(X: Tensor, table: list[Step], tail: Tensor | None = None) -> Tensor:
    """Iterate on each X, or on the X of each [X, tail]: the tail is symmetric; (..., 1, 1) is a multiple of I."""
    # The short side is multiplied: from the left, or for a tall matrix from the right.
    wide = X.shape[-2] <= X.shape[-1]
    for i, (a, b, c) in enumerate(table):
        A = gram(X, tail)
        B = _symmetric(A, A, A, b, c) if c else b * A
        X = _product(B, X, X, a) if wide else _product(X, B, X, a)
        if tail is not None and i + 1 < len(table):
            tail = _plus_identity(B, a) * tail if tail.shape[-1] == 1 else _symmetric(B, tail, tail, a)
    return X


def through_gram(
    X: Tensor,
    table: list[Step],
    tail: Tensor | None = None,
    A: Tensor | None = None,
    restart: int = GRAM_STEPS,
) -> Tensor:
    """The same on the small Gram matrix A: X_k = Q_k X_0 (or X_0 Q_k), Q_k a polynomial in the Gram matrix of X_0."""
    wide = X.shape[-2] <= X.shape[-1]
    for start in range(0, len(table), restart):
        part = table[start : start + restart]
        A, Q = gram(X, tail) if A is None or start else A, None
        for i, (a, b, c) in enumerate(part):
            B = _symmetric(A, A, A, b, c) if c else b * A  # the step multiplies X by a I + B
            Q = _plus_identity(B, a) if Q is None else _symmetric(B, Q, Q, a)
            if i + 1 < len(part):
                half = _symmetric(B, A, A, a)
                A = _symmetric(half, B, half, a)
        assert Q is not None
        X = Q @ X if wide else X @ Q
        if tail is not None and start + restart < len(table):
            tail = Q * tail if tail.shape[-1] == 1 else _symmetric(Q, tail)
    return X


def gram(X: Tensor, tail: Tensor | None = None) -> Tensor:
    """The Gram matrix of the short side of each X, or of each [X, tail]."""
    A = _symmetric(X, X.mT) if X.shape[-2] <= X.shape[-1] else _symmetric(X.mT, X)
    if tail is None:
        return A
    if tail.shape[-1] > 1:
        return _symmetric(tail, tail.mT, A, 1.0)
    A.diagonal(dim1=-2, dim2=-1).add_(tail.square().squeeze(-1))
    return A


def _plus_identity(B: Tensor, a: float) -> Tensor:
    Q = B.clone()
    Q.diagonal(dim1=-2, dim2=-1).add_(a)
    return Q


def _symmetric(A: Tensor, B: Tensor, C: Tensor | None = None, beta: float = 0.0, alpha: float = 1.0) -> Tensor:
    """Return beta C + alpha A B, known to be symmetric: of a large product only three of four blocks are computed."""
    n = A.shape[-2]
    if n < _BLOCKED:
        if C is not None:
            return _product(A, B, C, beta, alpha)
        return torch.bmm(A, B) if A.ndim == 3 else A @ B  # matmul would put four more calls around a stack
    half = n // 2
    result = A.new_empty(*A.shape[:-1], n)
    upper, corner = result[..., :half, :], result[..., half:, half:]
    if C is None:
        torch.matmul(A[..., :half, :], B, out=upper)
        torch.matmul(A[..., half:, :], B[..., half:], out=corner)
    else:
        _product(A[..., :half, :], B, C[..., :half, :], beta, alpha, out=upper)
        _product(A[..., half:, :], B[..., half:], C[..., half:, half:], beta, alpha, out=corner)
    result[..., half:, :half] = upper[..., half:].mT
    return result


def _product(A: Tensor, B: Tensor, C: Tensor, beta: float, alpha: float = 1.0, *, out: Tensor | None = None) -> Tensor:
    """Return beta C + alpha A B in one call."""
    if C.ndim == 2:
        return torch.addmm(C, A, B, beta=beta, alpha=alpha, out=out)
    return torch.baddbmm(C, A, B, beta=beta, alpha=alpha, out=out)
