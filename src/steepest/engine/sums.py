"""How a step runs that needs sums over a whole tensor and is element-wise otherwise: sums first, of all processes."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from types import FunctionType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from steepest import sharding
from steepest.engine.body import Body
from steepest.engine.compiler import attempt
from steepest.engine.precision import Kept, Operands, cast, compute_dtype
from steepest.kernels.device import large_elements, piece_elements
from steepest.rules.base import Geometry, Phase, Rule

if TYPE_CHECKING:
    from steepest.engine.bucket import Bucket, Member

# Rows that a compiled sum takes together.
_BLOCK = 16


def run(bucket: Bucket, phase: Phase, members: Sequence[Member]) -> None:
    """Step the members by their local shards, with what the rule makes of the sums of their columns."""
    rule: Any = bucket.rule
    numbers = bucket.numbers(phase)
    body = Body(rule, phase.geometry, bucket.maximize)
    for member, sums in zip(members, bucket.column_sums, strict=True):
        if not member.param.numel():
            continue
        mean = sums * (sums.numel() / member.param.numel())
        reduced = rule.reduced(mean, {name: member.state[name] for name in rule.whole}, numbers)
        vectors = {name: _like_columns(vector, member.param, rule.axis) for name, vector in reduced.items()}
        each = bucket.operands(member)
        if rule.backend != "compile" or not _run_compiled(body, each, {**numbers, **vectors}):
            _step(body, each, vectors, numbers)


def column_sums(rule: Any, members: Sequence[Member]) -> list[Tensor]:
    """The sum of |g| over an axis for each member, over all processes; one exchange for all."""
    sums, axis = [], rule.axis
    for member in members:
        g = sharding.local(member.gradient())
        whole = torch.zeros(_column_shape(member.param.shape, axis), dtype=compute_dtype(g.dtype), device=g.device)
        if g.numel():
            part = whole[_column_slices(sharding.local_slices(member.param), axis)] if whole.ndim else whole
            if g.ndim > 1 and axis == 0:
                blocks = len(g) - len(g) % _BLOCK if rule.backend == "compile" and _large_matrix([g]) else 0
                if blocks and attempt(g.device, _add_blocks, part, g[:blocks]):
                    g = g[blocks:]
                _add_columns(part, g)
            else:
                wide = cast(g, compute_dtype(g.dtype)).abs()
                part += wide.sum(1) if g.ndim > 1 else wide
        sums.append(whole.flatten())
    return sharding.summed_each(sums, [m.param for m in members])


def _add_columns(sums: Tensor, g: Tensor) -> None:
    """Add |g| summed over the rows."""
    rows = _piece_rows(g) if g.numel() else 1
    total = sums.new_zeros(min(rows, len(g)), *g.shape[1:])
    for piece in g.split(rows):  # element-wise up to the last sum, which would take twice as long on each piece
        total[: len(piece)] += cast(piece, sums.dtype).abs()
    sums += total.sum(0)


def _step(body: Body, each: Operands[Tensor], vectors: dict[str, Tensor], numbers: dict[str, Any]) -> None:
    """The element-wise part, in pieces of rows; a vector broadcasts over the rows or, with as many axes, is cut too."""
    first = each.tensors[0]
    if not first.numel():
        return
    whole = first.ndim == 0 or body.rule.backend == "single"
    count = 1 if whole else -(-first.shape[0] // _piece_rows(first))

    def pieces(t: Tensor, *, cut: bool = True) -> Sequence[Tensor]:
        return t.tensor_split(count) if cut and count > 1 else [t] * count

    columns = [*map(pieces, each.tensors), *(pieces(v, cut=v.ndim == first.ndim) for v in vectors.values())]
    done = 0
    for tensors in zip(*columns, strict=True):
        part = each.piece(tensors[: len(each.tensors)], done)
        own = dict(zip(vectors, tensors[len(each.tensors) :], strict=True))
        body(part.param, part.grad, part.state, {**numbers, **own})
        done += tensors[0].numel()


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


# Compiled ------------------------------------------------------------------------------------------------------------


@functools.cache
def _compiled(rule: Rule, geometry: Geometry, maximize: bool) -> Callable[..., None]:
    """One graph for matrices of any shape; as in ``elements``, every number is a tensor argument."""
    body = Body(rule, geometry, maximize)

    def step(param: Tensor, grad: Tensor, state: Mapping[str, Tensor], numbers: Mapping[str, Tensor]) -> None:
        body(Kept(param), grad, {name: Kept(buffer) for name, buffer in state.items()}, numbers)

    own = FunctionType(step.__code__.replace(co_name=f"step_{rule.name}"), globals(), closure=step.__closure__)
    return torch.compile(own, dynamic=True, fullgraph=True)


def _run_compiled(body: Body, each: Operands[Tensor], numbers: dict[str, Any]) -> bool:
    """Step a large matrix in one pass; whether it was one, and could be."""
    param, grad, *state = each.tensors
    if each.rounded or not _large_matrix(each.tensors):
        return False
    # The choices of a rule are part of the program, its numbers are arguments.
    choices = {f.name: getattr(body.rule, f.name) for f in fields(body.rule)}
    choices = {name: value for name, value in choices.items() if isinstance(value, (str, bool))}
    step = _compiled(type(body.rule)(**choices), body.geometry, body.maximize)  # type: ignore[arg-type]
    dtype = compute_dtype(param.dtype)
    tensors = {
        name: value if isinstance(value, Tensor) and value.ndim else torch.as_tensor(value, dtype=dtype, device="cpu")
        for name, value in numbers.items()
    }
    return attempt(param.device, step, param, grad, dict(zip(each.keys, state, strict=True)), tensors)


@functools.cache
def _compiled_block_sums() -> Callable[[Tensor], Tensor]:
    return torch.compile(lambda x: cast(x, compute_dtype(x.dtype)).abs().sum(1), dynamic=True, fullgraph=True)


def _add_blocks(sums: Tensor, g: Tensor) -> None:
    """As ``_add_columns``, by blocks of rows that fit the first cache, in 3/4 of the time."""
    sums += _compiled_block_sums()(g.view(-1, _BLOCK, g.shape[1])).sum(0)


def _large_matrix(tensors: Sequence[Tensor]) -> bool:
    first = tensors[0]
    large = first.ndim == 2 and first.numel() >= large_elements(first.device)
    return large and all(t.is_contiguous() for t in tensors)
