"""Groups inside a tensor, heads, rows or columns, and the light factor that each of them has in its block.

For the group k of a block, with gradient g_k of n_k elements (the SAC paper asks only for a mean of 1 inside the block;
the rest is our definition):

    phi_k = log(RMS(g_k) + eps)      w = softmax(beta phi)      r_k = clamp(w_k sum(n) / sum(n w), lowest, highest)

so that before the clamp the mean of r over the elements of the block is 1. Pure functions of tensors; nothing is read
back from the device.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from steepest import sharding
from steepest.routing.views import View
from steepest.rules.base import check_choice
from steepest.scaling.partition import Member

GROUPS = ("heads", "rows", "columns")

_SUFFIX = r"(_?proj|_lin|_linear)?(_weight)?$"
_QUERY = re.compile(rf"^(to_)?(q|query|q_b){_SUFFIX}")
_KEY = re.compile(rf"^(to_)?(k|v|key|value|kv_b){_SUFFIX}")
_BY_HEAD = re.compile(r"^query_key_value$")  # its rows go head by head
_OUT = re.compile(r"^((c|o|out|attn_out|attention_out)(_?proj|_lin|_linear)|to_out|o|w_?o|proj|dense)$", re.IGNORECASE)


@dataclass(frozen=True)
class Groups:
    """How a tensor is cut into groups of equal size.

    Attributes:
        axes: axes along which groups differ, increasing; along all others a group holds everything.
        length: how many indices of the last of ``axes`` a group holds; of the others it holds one.
    """

    axes: tuple[int, ...]
    length: int = 1

    def counts(self, shape: Sequence[int]) -> tuple[int, ...]:
        """Number of groups along each of ``axes`` of a tensor of this (global) shape.

        Raises:
            ValueError: the last axis is not a whole number of groups.
        """
        *outer, last = (shape[axis] for axis in self.axes)
        if last % self.length:
            raise ValueError(
                f"groups of {self.length} do not cut axis {self.axes[-1]} of a tensor of shape {tuple(shape)} into "
                "equal parts"
            )
        return (*outer, last // self.length)


def groups_of(member: Member, by: Literal["heads", "rows", "columns"] = "heads") -> Groups:
    """The groups of one tensor of a block.

    Args:
        member: see ``partition``.
        by: "rows", output neurons, which are the filters of a convolution; "columns", input features; both for each
            expert alone. "heads" (default) is the heads of the query, key, value (fused ones too) and output matrices
            of an attention, and rows elsewhere. Of LoRA factors, lora_B has the heads of query, key and value, and
            lora_A those of the output.

    Raises:
        ValueError: another ``by``.
    """
    check_choice("groups_of", "by", by, GROUPS)
    shape = tuple(member.parameter.shape)
    *outer, out, into = _axes(member.view, shape)
    if by == "heads" and not outer:
        axis, heads = _heads(member, out, into)
        if heads and shape[axis] % heads == 0:
            return Groups((axis,), shape[axis] // heads)
    return Groups((*outer, into if by == "columns" else out))


def _axes(view: View, shape: Sequence[int]) -> tuple[int, ...]:
    """(axes that count matrices..., out axis, in axis) of a tensor."""
    if view.batch:
        first, second = len(shape) - 2, len(shape) - 1
    else:
        first, second = 0, 1
    outer = range(first)
    return (*outer, second, first) if view.transposed else (*outer, first, second)


def _heads(member: Member, out: int, into: int) -> tuple[int, int]:
    """(axis, number of heads along it) of a matrix; 0 heads for a matrix that has none."""
    query, key = member.heads
    word = member.host.rpartition(".")[2]
    factor = re.search(r"lora_\w*([AB])", member.name.removeprefix(member.host))
    if _OUT.search(word):
        return into, 0 if factor and factor[1] == "B" else query
    heads = {3: query + 2 * key, 2: 2 * key}.get(len(member.view.rows), 0)  # a head is as long in q, k and v
    for pattern, count in ((_QUERY, query), (_KEY, key), (_BY_HEAD, key)):
        heads = count if pattern.search(word) else heads
    return out, 0 if factor and factor[1] == "A" else heads


# Factors --------------------------------------------------------------------------------------------------------------


def group_rms(gradients: Sequence[Tensor], groups: Sequence[Groups]) -> list[Tensor]:
    """Root mean square of each group of each gradient, in float32.

    Args:
        gradients: whole tensors or DTensors; of these the result is over the global tensor, the same on every process,
            after one exchange for all of them.
        groups: how each is cut.

    Returns:
        For each gradient a tensor of the shape that ``Groups.counts`` gives.
    """
    squares = [_squares(gradient, cut) for gradient, cut in zip(gradients, groups, strict=True)]
    if any(sharding.is_sharded(gradient) for gradient in gradients):
        flat = sharding.summed_each([s.flatten() for s in squares], gradients)
        squares = [f.view(s.shape) for f, s in zip(flat, squares, strict=True)]
    rms = []
    for gradient, cut, square in zip(gradients, groups, squares, strict=True):
        counts = cut.counts(gradient.shape)
        size = gradient.numel() // max(math.prod(counts), 1)
        rms.append((square.unflatten(-1, (counts[-1], cut.length)).sum(-1) / size).sqrt())
    return rms


def _squares(gradient: Tensor, cut: Groups) -> Tensor:
    """Sums of squares along the axes that are not those of the groups; zero where another process has the elements."""
    part = sharding.local(gradient)
    part = part if part.layout == torch.strided else part.to_dense()  # that of a sparse embedding
    others = tuple(axis for axis in range(part.ndim) if axis not in cut.axes)
    wide = torch.promote_types(part.dtype, torch.float32)
    norms: Tensor = torch.linalg.vector_norm(part, dim=others, dtype=wide) if others else part
    squares = norms.float() * norms.float()
    if not sharding.is_sharded(gradient):
        return squares
    whole = squares.new_zeros([gradient.shape[axis] for axis in cut.axes])
    slices = sharding.local_slices(gradient)
    whole[tuple(slices[axis] for axis in cut.axes)] = squares
    return whole


def group_factors(
    rms: Sequence[Tensor],
    sizes: Sequence[int],
    *,
    beta: float = 0.25,
    bounds: tuple[float, float] = (0.5, 2.0),
    eps: float = 1e-12,
) -> list[Tensor]:
    """The factor r of each group of one block.

    Groups without gradient (unused experts, tokens that did not occur) or with one that is not finite have the factor 1
    and no part in the mean.

    Args:
        rms: for each tensor of the block the RMS of its groups, from ``group_rms``.
        sizes: for each tensor the number of elements of one of its groups.
        beta: how much larger gradients raise the factor; 0 makes all factors 1. Default 0.25, ours.
        bounds: smallest and largest factor. Default (0.5, 2), ours.
        eps: added to an RMS before its logarithm.

    Returns:
        Tensors of the shapes of ``rms``.
    """
    flat = torch.cat([r.flatten() for r in rms])
    size = torch.cat([r.new_full((r.numel(),), float(n)) for r, n in zip(rms, sizes, strict=True)])
    used = (flat > 0) & flat.isfinite()
    phi = torch.where(used, (flat + eps).log(), -math.inf)
    highest = phi.amax() if flat.numel() else phi.sum()
    weight = torch.where(used, (beta * (phi - highest)).exp(), 0.0)  # the largest is 1
    count = torch.where(used, size, 0.0).sum()
    factors = torch.where(used, (weight * (count / (size * weight).sum())).clamp(*bounds), 1.0)
    return [f.view(r.shape) for f, r in zip(factors.split([r.numel() for r in rms]), rms, strict=True)]


def broadcast(factors: Tensor, groups: Groups, like: Tensor) -> Tensor:
    """The factors of a tensor's groups in a shape that multiplies the tensor, with length 1 along the other axes.

    Args:
        factors: of the shape that ``groups.counts(like.shape)`` gives.
        groups: how ``like`` is cut.
        like: the tensor; for a DTensor the factors are those of this process's part, to multiply ``to_local()``.
    """
    along = factors.repeat_interleave(groups.length, dim=-1)
    if sharding.is_sharded(like):
        slices = sharding.local_slices(like)
        along = along[tuple(slices[axis] for axis in groups.axes)]
    lengths = iter(along.shape)
    return along.view([next(lengths) if axis in groups.axes else 1 for axis in range(like.ndim)])
