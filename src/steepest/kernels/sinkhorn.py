"""Sinkhorn normalisation: rows and columns of a matrix to fixed lengths, in turn (SinkGD)."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from steepest.kernels.polar import check_matrices

# Rows of which a compiled round makes one loop: it must see each by itself to sum in both directions while they are in
# the cache. 4 take a tenth longer.
FACTOR_ROWS = 8


def sinkhorn(x: Tensor, rounds: int = 5, target: Literal["rms", "unit"] = "rms") -> Tensor:
    """Scale the rows, then the columns, of each (m, n) matrix of a stack to fixed l2 norms, ``rounds`` times.

    SR-Sinkhorn (Scetbon et al. 2025, arXiv 2502.06742). The iteration is that of Sinkhorn and Knopp on the squared
    elements, so it needs only two vectors of scales and products of the squares with them. Column norms are exact
    in the end, row norms approximate. The result does not depend on the scale of ``x``.

    Args:
        x: stack of matrices (..., m, n), floating point; norms are taken in at least float32. Not changed.
        rounds: number of rounds, at least 1; 5 in the paper.
        target: "rms": rows to sqrt(n), columns to sqrt(m), so that the root mean square of an element is 1 (the paper);
            "unit": columns to 1 (the code released with SAGE). The first is sqrt(m) times the second.

    Returns:
        A new tensor of the shape and dtype of ``x``. Zero rows and columns stay zero; so do rows and columns more than
        1e18 times smaller than the largest element of their row.

    Raises:
        ValueError: ``x`` is not a stack of floating-point matrices, or an option is out of range.
    """
    check_matrices(x, "sinkhorn")
    if isinstance(rounds, bool) or not isinstance(rounds, int) or rounds < 1:
        raise ValueError(f"rounds must be a positive whole number, got {rounds!r}")
    if target not in ("rms", "unit"):
        raise ValueError(f"target must be 'rms' or 'unit', got {target!r}")
    if x.numel() == 0:
        return torch.zeros_like(x)
    wide = x.float() if x.element_size() < 4 else x
    # A power of two for each row goes first, so that no square overflows or is lost.
    peak = torch.maximum(wide.amax(-1, keepdim=True), wide.amin(-1, keepdim=True).neg())
    power = torch.ldexp(torch.ones_like(peak), -torch.frexp(peak).exponent.clamp(-120, 120))
    result = squares = (wide * power).square_()
    rows = _inverse(squares.sum(-1, keepdim=True))  # the product with ones, in half the time
    columns = _inverse(squares.mT @ rows)
    for _ in range(rounds - 1):
        rows = _inverse(squares @ columns)
        columns = _inverse(squares.mT @ rows)
    torch.mul(wide, _factors(rows, power), out=result)  # in the same memory: a new large tensor would cost more
    result.mul_(columns.sqrt_().mul_(math.sqrt(x.shape[-2]) if target == "rms" else 1.0).mT)
    return result.to(x.dtype)


def sinkhorn_factors(
    x: Tensor, rounds: int = 5, target: Literal["rms", "unit"] = "rms"
) -> tuple[Tensor, Tensor, list[Tensor]]:
    """What ``sinkhorn`` multiplies the rows and the columns of one matrix by: a text for a compiler.

    ``sinkhorn`` keeps the squares and reads them twice a round. This makes them anew in each round, of a few rows at a
    time, and takes from them the sums of the rows and then their share in the sums of the columns, so that compiled it
    reads the matrix once a round. Uncompiled it is slow.

    Args:
        x: (m, n) in float32 or float64, contiguous, m a multiple of ``FACTOR_ROWS``. Not changed.
        rounds: as in ``sinkhorn``.
        target: as in ``sinkhorn``.

    Returns:
        ``rows`` (m, 1) and ``columns`` (n,): ``x * rows * columns`` is ``sinkhorn(x, rounds, target)`` up to rounding.
        And what a compiled function must return, for no other use: else it would compute it again for each element.
    """
    blocks = x.view(-1, FACTOR_ROWS, x.shape[1]).unbind(1)
    scale = x.abs().amax(-1).clamp(2.0**-120, 2.0**120).reciprocal()
    scales = scale.view(-1, FACTOR_ROWS).unbind(1)
    kept = [scale]
    columns = None
    for _ in range(rounds):
        squares = [(rows * scale.unsqueeze(-1)).square() for rows, scale in zip(blocks, scales, strict=True)]
        sums = [(square if columns is None else square * columns).sum(-1) for square in squares]
        inverse = [_inverse(x) for x in sums]
        shares = squares[0] * inverse[0].unsqueeze(-1)
        for square, factor in zip(squares[1:], inverse[1:], strict=True):
            shares = shares + square * factor.unsqueeze(-1)
        columns = _inverse(shares.sum(0))
        kept += [*inverse, columns]
    assert columns is not None
    rows = _factors(torch.stack(inverse, 1), scale.view(-1, FACTOR_ROWS)).view(-1, 1)
    columns = columns.sqrt() * (math.sqrt(x.shape[0]) if target == "rms" else 1.0)
    return rows, columns, [*kept, rows, columns]


def _factors(rows: Tensor, scales: Tensor) -> Tensor:
    """Of the rows, in place of their inverse sums; finite, so that what is zero stays zero."""
    return rows.sqrt_().mul_(scales).clamp_(max=torch.finfo(rows.dtype).max)


def _inverse(x: Tensor) -> Tensor:
    """1 / x in place, finite for zero, so that what is zero stays zero (a select would take four times as long)."""
    return x.clamp_(min=torch.finfo(x.dtype).tiny).reciprocal_()


def column_damper(average: Tensor, current: Tensor | None, eps: float | Tensor = 0.0) -> Tensor:
    """How much of a sign step each column of a matrix takes: the less, the larger its gradients are beside the others'.

    SAGE (Lee and Kim 2026, arXiv 2604.07663): H = min(rms(average) / average, rms(current) / current, 1).

    Args:
        average: a bias-corrected average of the mean |g| of each column, (..., d), >= 0.
        current: the mean |g| of each column at this step, (..., d); None to leave its term out.
        eps: added to the denominators; 1e-8 in the released code.

    Returns:
        H of shape (..., d). With ``eps`` = 0, 1 / sqrt(d) <= H <= 1, and H = 1 where a column is not above the root
        mean square of all. Where all columns are zero, H is 0: nothing moves.
    """
    damper = _relative(average, eps)
    return (damper if current is None else torch.minimum(damper, _relative(current, eps))).clamp_(max=1.0)


def _relative(statistic: Tensor, eps: float | Tensor) -> Tensor:
    largest = statistic.amax(-1, keepdim=True)
    scale = torch.where(largest > 0, largest, 1.0)
    unit = statistic / scale  # a mean square of the smallest numbers would have too few digits
    rms = unit.square().mean(-1, keepdim=True).sqrt()
    # A zero column is below every rms. If all are zero, rms is too, and so is the damper.
    below = unit + eps / scale
    return torch.where(below > 0, rms / below, torch.where(rms > 0, torch.inf, 0.0))
