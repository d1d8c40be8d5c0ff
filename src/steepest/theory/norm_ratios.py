"""LionMuon's norm ratios: what its theory needs to know about a landscape, measured along a run.

LionMuon (Bolatov et al. 2026, arXiv 2605.19811, Figure 2 and the revised version's Table 2). Of each matrix, with G the
raw gradient, M the momentum before the step, W -> W' the step, and G' the gradient of the same mini-batch after it:

    alpha = ||G||_1 / ||G||_nuc         rho_nuc = ||G - M||_nuc / ||G - M||_F     rho_1 = ||G - M||_1 / ||G - M||_F
    L_2 = ||G' - G||_nuc / ||W' - W||_2                     L_inf = ||G' - G||_1 / ||W' - W||_inf

then the median over the matrices. This differs from the paper's own measurement on purpose: there G' is of another
batch, 100 steps later, so that L is mostly the noise of batches; G is clipped; and every record falls on a sign step of
period 2.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class NormRatios(NamedTuple):
    """Medians over matrices; nan where nothing was measured. See the module."""

    alpha: float
    rho_nuc: float
    rho_1: float
    l_2: float
    l_inf: float


class Measured(NamedTuple):
    """What is known of one stack of matrices, each tensor (..., m, n); ``momentum`` and ``later`` may be missing."""

    gradient: Tensor
    step: Tensor
    momentum: Tensor | None = None
    later: Tensor | None = None


def norm_ratios(matrices: Sequence[Measured]) -> NormRatios:
    """Measure the ratios in float32, by singular values.

    Args:
        matrices: stacks of matrices; each matrix of a stack counts as one. One with a zero denominator is left out.

    Raises:
        ValueError: there are no matrices.
    """
    if not matrices:
        raise ValueError("matrices is empty; the norm ratios are of matrices, and this optimizer steps none")
    columns: tuple[list[Tensor], ...] = ([], [], [], [], [])
    for gradient, step, momentum, later in matrices:
        g = gradient.float()
        found: list[Tensor | None] = [_l1(g) / _nuclear(g)]
        noise = None if momentum is None else g - momentum.float()
        found += [None, None] if noise is None else [_nuclear(noise) / _l2(noise), _l1(noise) / _l2(noise)]
        change = None if later is None else later.float() - g
        w = step.float()
        found += (
            [None, None]
            if change is None
            else [_nuclear(change) / torch.linalg.matrix_norm(w, 2), _l1(change) / w.abs().amax((-2, -1))]
        )
        for column, value in zip(columns, found, strict=True):
            if value is not None:
                column.append(value.reshape(-1).cpu())
    return NormRatios(*(_median(column) for column in columns))


def _median(parts: list[Tensor]) -> float:
    values = torch.cat(parts) if parts else torch.empty(0)
    values = values[values.isfinite()]
    return float(values.quantile(0.5)) if values.numel() else math.nan


def _nuclear(x: Tensor) -> Tensor:
    values: Tensor = torch.linalg.svdvals(x)
    return values.sum(-1)


def _l1(x: Tensor) -> Tensor:
    return x.abs().sum((-2, -1))


def _l2(x: Tensor) -> Tensor:
    norm: Tensor = torch.linalg.vector_norm(x, dim=(-2, -1))
    return norm
