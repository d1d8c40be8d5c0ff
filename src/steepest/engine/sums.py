"""How a step runs that needs sums over a whole tensor and is element-wise otherwise: sums first, of all processes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from steepest import sharding
from steepest.engine.body import Body, compute_dtype, load
from steepest.kernels.device import piece_elements
from steepest.rules.base import Phase

if TYPE_CHECKING:
    from steepest.engine.bucket import Bucket, Member


def run(bucket: Bucket, phase: Phase, members: Sequence[Member]) -> None:
    """Step the members by their local shards, with what the rule makes of the sums of their columns."""
    rule: Any = bucket.rule
    numbers = bucket.numbers(phase)
    body = Body(rule, phase.geometry, bucket.maximize)
    members = [m for m in members if m.param.numel()]
    for member, sums in zip(members, _column_sums(rule.axis, members), strict=True):
        mean = sums * (sums.numel() / member.param.numel())
        reduced = rule.reduced(mean, {name: member.state[name] for name in rule.whole}, numbers)
        vectors = {name: _like_columns(vector, member.param, rule.axis) for name, vector in reduced.items()}
        _step(body, member, vectors, numbers)


def _column_sums(axis: int, members: Sequence[Member]) -> list[Tensor]:
    """The sum of |g| over an axis for each member, over all processes; one exchange for all."""
    sums = []
    for member in members:
        g = sharding.local(member.gradient())
        whole = torch.zeros(_column_shape(member.param.shape, axis), dtype=compute_dtype(g.dtype), device=g.device)
        if g.numel():
            part = whole[_column_slices(sharding.local_slices(member.param), axis)] if whole.ndim else whole
            for piece in g.split(_piece_rows(g)) if g.ndim > 1 and axis == 0 else [g]:
                wide = load(piece).abs()
                part += wide.sum(axis) if g.ndim > 1 else wide
        sums.append(whole.flatten())
    return sharding.summed_each(sums, [m.param for m in members])


def _step(body: Body, member: Member, vectors: dict[str, Tensor], numbers: dict[str, Any]) -> None:
    """The element-wise part, in pieces of rows; a vector broadcasts over the rows or, with as many axes, is cut too."""
    own = [name for name in body.rule.buffers if name not in body.rule.whole]
    tensors = [sharding.local(t) for t in (member.param, member.gradient(), *(member.state[n] for n in own))]
    first = tensors[0]
    if not first.numel():
        return
    whole = first.ndim == 0 or body.rule.backend == "single"
    count = 1 if whole else -(-first.shape[0] // _piece_rows(first))

    def pieces(t: Tensor) -> Sequence[Tensor]:
        return [t] * count if t.ndim < first.ndim or count == 1 else t.tensor_split(count)

    columns = [pieces(t) for t in (*tensors, *vectors.values())]
    for param, grad, *rest in zip(*columns, strict=True):
        state = dict(zip(own, rest, strict=False))
        body(param, grad, state, {**numbers, **dict(zip(vectors, rest[len(own) :], strict=True))})


def _piece_rows(x: Tensor) -> int:
    """Rows of a piece that fits the caches."""
    return max(1, piece_elements(x.device) * x.shape[0] // x.numel())


def _column_shape(shape: torch.Size, axis: int) -> torch.Size:
    """The axes that are left when a tensor is summed over one; a vector is one row."""
    if len(shape) < 2:
        return shape
    return shape[1:] if axis == 0 else shape[:1]


def _column_slices(slices: tuple[slice, ...], axis: int) -> tuple[slice, ...]:
    if len(slices) < 2:
        return slices
    return slices[1:] if axis == 0 else slices[:1]


def _like_columns(vector: Tensor, param: Tensor, axis: int) -> Tensor:
    """One number per column as a tensor that broadcasts over the local shard of a parameter."""
    local = vector.view(_column_shape(param.shape, axis))[_column_slices(sharding.local_slices(param), axis)]
    return local.unsqueeze(-1) if param.ndim > 1 and axis == 1 else local
