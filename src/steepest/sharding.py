"""Sharded tensors: the only file that knows DTensor and process groups."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor


def is_sharded(x: Tensor) -> bool:
    """Whether ``x`` is a DTensor; cheap where torch.distributed was never loaded."""
    if type(x) is Tensor or type(x) is torch.nn.Parameter:
        return False
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(x, module.DTensor)


def local(x: Tensor) -> Tensor:
    """The part of ``x`` that this process holds, sharing its memory; ``x`` itself if it is an ordinary tensor."""
    return _dtensor(x).to_local().detach() if is_sharded(x) else x


def full(part: Tensor, like: Tensor) -> Tensor:
    """The whole of a tensor that is sharded as ``like``, from this process's part of it."""
    if not is_sharded(like):
        return part
    from torch.distributed.tensor import DTensor  # noqa: PLC0415

    whole = _dtensor(like)
    joined = DTensor.from_local(
        part, whole.device_mesh, whole.placements, run_check=False, shape=whole.shape, stride=whole.stride()
    )
    return joined.full_tensor()


def shard(whole: Tensor, like: Tensor) -> Tensor:
    """This process's part of a tensor that every process holds whole, cut as ``like`` is."""
    if not is_sharded(like):
        return whole
    from torch.distributed.tensor import DTensor, Replicate  # noqa: PLC0415

    target = _dtensor(like)
    replicated = DTensor.from_local(whole, target.device_mesh, [Replicate()] * target.device_mesh.ndim, run_check=False)
    return replicated.redistribute(placements=target.placements).to_local()


def zero_rows(shape: torch.Size, dtype: torch.dtype, like: Tensor) -> Tensor:
    """Zeros with the rows of ``like``, each on the process that has that row of it.

    Raises:
        ValueError: a row of ``like`` is on several processes.
    """
    part = local(like)
    if part.shape[1:] != like.shape[1:]:
        raise ValueError(
            f"a tensor of shape {tuple(like.shape)} that is sharded along another than its first axis cannot have "
            "scales for blocks of a row; use state_dtype='bfloat16', or shard its rows"
        )
    zeros = torch.zeros((*part.shape[:1], *shape[1:]), dtype=dtype, device=part.device)
    if not is_sharded(like):
        return zeros
    from torch.distributed.tensor import DTensor  # noqa: PLC0415

    mesh, placements = _dtensor(like).device_mesh, _dtensor(like).placements
    return DTensor.from_local(zeros, mesh, placements, run_check=False, shape=shape, stride=zeros.stride())


def any_process(flag: bool, tensors: Sequence[Tensor]) -> bool:
    """Whether the flag is set on any process, if the tensors are shared with others; else the flag itself."""
    meshes = dict.fromkeys(_dtensor(t).device_mesh for t in tensors if is_sharded(t))
    if not meshes:
        return flag
    import torch.distributed as dist  # noqa: PLC0415

    count = torch.tensor(int(flag), device=local(tensors[0]).device)
    for mesh in meshes:  # not all processes of the job: another pipeline stage may hold nothing that is sharded
        for group in mesh.get_all_groups():
            dist.all_reduce(count, op=dist.ReduceOp.MAX, group=group)
    return bool(count)


def counted_here(tensors: Sequence[Tensor]) -> list[bool]:
    """For each tensor, whether this process counts its part of it in a sum over the processes that share them.

    Of copies on several processes only the first counts; an ordinary tensor beside sharded ones is such a copy.
    """
    meshes = {_dtensor(t).device_mesh for t in tensors if is_sharded(t)}
    first = not any(any(mesh.get_coordinate() or ()) for mesh in meshes)
    return [not any(_copies_before(t)) if is_sharded(t) else first for t in tensors]


def _copies_before(x: Tensor) -> list[int]:
    whole = _dtensor(x)
    places = zip(whole.device_mesh.get_coordinate() or (), whole.placements, strict=True)
    return [coordinate for coordinate, placement in places if placement.is_replicate()]


def summed(part: Tensor, params: Sequence[Tensor]) -> Tensor:
    """The sum of ``part`` over the processes that share the parameters.

    Raises:
        ValueError: the parameters lie on different sets of processes.
    """
    import torch.distributed as dist  # noqa: PLC0415

    meshes = list(dict.fromkeys(_dtensor(t).device_mesh for t in params if is_sharded(t)))
    ranks = [frozenset(mesh.mesh.flatten().tolist()) for mesh in meshes]
    if len(set(ranks)) > 1:
        raise ValueError(
            "one fit cannot be made over parameters on different sets of processes; give them param groups of their "
            "own and pool='group'"
        )
    part = part.to(local(next(t for t in params if is_sharded(t))).device, copy=True)
    for group in meshes[0].get_all_groups():
        dist.all_reduce(part, group=group)
    return part


def summed_each(parts: Sequence[Tensor], params: Sequence[Tensor]) -> list[Tensor]:
    """For each parameter the sum of its part over the processes that share it; one exchange for each mesh."""
    summed_parts = list(parts)
    for chosen in by_mesh(params):
        mine = [params[i] for i in chosen]
        here = zip(chosen, counted_here(mine), strict=True)
        together = torch.cat([parts[i] if counted else torch.zeros_like(parts[i]) for i, counted in here])
        for i, part in zip(chosen, summed(together, mine).split([parts[i].numel() for i in chosen]), strict=True):
            summed_parts[i] = part
    return summed_parts


def by_mesh(tensors: Sequence[Tensor]) -> list[list[int]]:
    """The positions of the sharded ones among the tensors, those on each device mesh together."""
    chosen: dict[Any, list[int]] = {}
    for i, x in enumerate(tensors):
        if is_sharded(x):
            chosen.setdefault(_dtensor(x).device_mesh, []).append(i)
    return list(chosen.values())


def local_slices(x: Tensor) -> tuple[slice, ...]:
    """Where in the whole tensor the part of this process lies; everything for an ordinary tensor."""
    if not is_sharded(x):
        return (slice(None),) * x.ndim
    from torch.distributed.tensor._utils import compute_local_shape_and_global_offset  # noqa: PLC0415

    whole = _dtensor(x)
    shape, start = compute_local_shape_and_global_offset(whole.shape, whole.device_mesh, whole.placements)
    return tuple(slice(at, at + length) for at, length in zip(start, shape, strict=True))


def _dtensor(x: Tensor) -> DTensor:
    return x  # type: ignore[return-value]
