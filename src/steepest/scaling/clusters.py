"""K-means on a line, for many rows at once: clusters are intervals, so a sort and running sums give every round."""

from __future__ import annotations

import torch
from torch import Tensor

from steepest.scaling.sampling import ascending

ROUNDS = 30
"""Rounds of Lloyd's algorithm; from quantiles it stands still after about ten."""


def cluster_bounds(values: Tensor, clusters: int, rounds: int = ROUNDS) -> Tensor:
    """Where one cluster ends and the next begins, by Lloyd's algorithm from evenly spaced quantiles.

    Nothing is read back from the device.

    Args:
        values: (rows, n) numbers, each row clustered alone; infinite ones are left out.
        clusters: K, at least 1.
        rounds: of nearest centre and mean. A centre without values stays where it is.

    Returns:
        (rows, K - 1) midpoints between neighbouring centres, ascending: the cluster of x is the number of midpoints
        below x, ``torch.bucketize(x, midpoints)``. They are nan in a row without values.
    """
    x = ascending(values.to(torch.float64, copy=True))
    count = x.isfinite().sum(-1, keepdim=True)
    x = torch.where(x.isfinite(), x, 0.0)
    sums = torch.nn.functional.pad(x.cumsum(-1), (1, 0))
    share = (torch.arange(clusters, device=x.device, dtype=x.dtype) + 0.5) / clusters
    first = (share * count).long().clamp(max=max(x.shape[-1] - 1, 0))
    centres = x.gather(-1, first)
    searchable = torch.where(torch.arange(x.shape[-1], device=x.device) < count, x, torch.inf)
    for _ in range(rounds):
        ends = torch.searchsorted(searchable, _midpoints(centres), right=True)  # of two as near, the lower centre
        ends = torch.cat((torch.zeros_like(count), torch.minimum(ends, count), count), -1)
        number = ends.diff()
        mean = sums.gather(-1, ends).diff() / number
        centres = torch.where(number > 0, mean, centres)
    return torch.where(count > 0, _midpoints(centres), torch.nan)


def _midpoints(centres: Tensor) -> Tensor:
    return (centres[..., 1:] + centres[..., :-1]) / 2
