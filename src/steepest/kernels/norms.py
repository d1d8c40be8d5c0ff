"""Norms and ranks of stacks of matrices."""

from __future__ import annotations

import torch
from torch import Tensor


def stable_rank(x: Tensor, start: Tensor, iterations: int = 3) -> Tensor:
    """Estimate the stable rank ||X||_F^2 / ||X||_2^2, a smooth stand-in for the rank (LionMuon, adaptive trigger).

    Power iteration estimates the spectral norm from below, so the result errs upwards.

    Args:
        x: stack of matrices (..., m, n).
        start: start vector (n,) of the power iteration. It is an argument so that every process can use the same one.
        iterations: number of power iterations (3 in the LionMuon code).

    Returns:
        Stable ranks (...), between 1 and min(m, n) up to the estimation error; 0 for a zero or empty matrix.
    """
    if x.numel() == 0:
        return x.new_zeros(x.shape[:-2])
    peak = torch.linalg.vector_norm(x, ord=float("inf"), dim=(-2, -1), keepdim=True)
    x = x / torch.where(peak > 0, peak, torch.ones_like(peak))
    v = start.to(x).expand(*x.shape[:-2], -1).unsqueeze(-1)
    tiny = torch.finfo(x.dtype).tiny
    for _ in range(iterations):
        v = x.mT @ (x @ v)
        v = v / torch.linalg.vector_norm(v, dim=-2, keepdim=True).clamp_min(tiny)
    spectral = (x @ v).square().sum((-2, -1))
    return x.square().sum((-2, -1)) / spectral.clamp_min(tiny)
