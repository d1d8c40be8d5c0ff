"""How a step that needs whole matrices runs: views, stacks of equal shape, and back."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from types import FunctionType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from steepest import kernels, sharding
from steepest.engine.body import Body, descend
from steepest.engine.compiler import attempt
from steepest.engine.precision import Operands, compute_dtype, together
from steepest.engine.tensors import TensorList
from steepest.kernels.device import large_elements, stack_elements
from steepest.kernels.sinkhorn import FACTOR_ROWS
from steepest.rules.base import SCALES, Numbers, Phase

if TYPE_CHECKING:
    from steepest.engine.bucket import Bucket, Member


def run(bucket: Bucket, phase: Phase, members: Sequence[Member]) -> None:
    """Step the members in stacks that fit the device; each alone for the backend "single"."""
    numbers = bucket.numbers(phase)
    body = Body(bucket.rule, phase.geometry, bucket.maximize)
    for batch in _batches(members, single=bucket.rule.backend == "single"):
        lists = together([bucket.operands(m) for m in batch])
        directions = _directions(body, batch, lists, numbers)
        wide = lists.param.load()
        if bucket.rule.backend != "compile" or not _run_compiled(phase, batch, wide, directions, numbers):
            updates = _mapped(phase, batch, directions, numbers)
            shards = TensorList([sharding.shard(u, m.param) for u, m in zip(updates, batch, strict=True)])
            descend(wide, shards, numbers)
            del updates, shards
        lists.param.store(wide)
        del directions, wide  # before the next batch is mapped: on a GPU each may be half a GiB


def passes(bucket: Bucket, phase: Phase) -> list[list[bool]]:
    """For each member, whether the direction of each of its matrices passes the gate of the phase.

    Buffers stay as they are. One read from the device for the whole bucket.
    """
    assert phase.gate is not None
    generator = torch.Generator()
    shares: list[Tensor] = []
    for member, direction in trial_directions(bucket):
        ranks = [direction.new_empty(0)]
        for x in member.view.split(direction):
            # Spread over the 32 bits that the generator of a CPU reads: the upper half of a longer seed is lost.
            generator.manual_seed((phase.gate.seed * 0x9E3779B1 + bucket.step) % (1 << 32))
            start = torch.randn(x.shape[-1], generator=generator, dtype=torch.float32).to(x.device)
            ranks.append(kernels.stable_rank(x, start).flatten() / max(1, min(x.shape[-2:])))
        shares.append(torch.cat(ranks))
    flags = iter((torch.cat([share.float() for share in shares]) <= phase.gate.threshold).tolist())
    return [list(islice(flags, share.numel())) for share in shares]


def trial_directions(bucket: Bucket) -> Iterator[tuple[Member, Tensor]]:
    """The whole direction of each member that the step will map; buffers stay as they are."""
    phase = bucket.rule.phase(bucket.step)
    numbers, body = bucket.numbers(phase), Body(bucket.rule, phase.geometry, bucket.maximize)
    for member in bucket.members:
        (direction,) = _directions(body, [member], together([bucket.operands(member)]), numbers, trial=True)
        yield member, direction


def run_mixed(bucket: Bucket, phase: Phase, member: Member, passed: Sequence[bool]) -> None:
    """Step a member of several matrices of which some take the phase and the others its ``otherwise``."""
    assert phase.otherwise is not None
    numbers = bucket.numbers(phase)
    lists = together([bucket.operands(member)])
    (direction,) = _directions(Body(bucket.rule, phase.geometry, bucket.maximize), [member], lists, numbers)
    flags = iter(passed)
    updates, ratios = [], []
    for x in member.view.split(direction):
        flat = x.reshape(-1, *x.shape[-2:])
        here = list(islice(flags, len(flat)))
        update = torch.empty_like(flat)
        ratio = torch.empty_like(flat)
        for part, wanted in ((phase, True), (phase.otherwise, False)):
            chosen = [i for i, ok in enumerate(here) if ok is wanted]
            if chosen:
                scale = SCALES[part.scale](*x.shape[-2:])
                update[chosen] = part.geometry(flat[chosen], numbers) * (scale * part.lr_ratio)
                ratio[chosen] = part.lr_ratio
        updates.append(update.view(x.shape))
        ratios.append(ratio.view(x.shape))
    rate = sharding.shard(member.view.join(ratios, direction.shape), member.param) * bucket.lr
    wide = lists.param.load()
    (values,) = wide.tensors
    values.mul_(1.0 - rate * bucket.rule.weight_decay)
    values.sub_(sharding.shard(member.view.join(updates, direction.shape), member.param) * bucket.lr)
    lists.param.store(wide)


def _batches(members: Sequence[Member], *, single: bool) -> Iterator[list[Member]]:
    """Members of one shape (so of one view) together, up to the stack size of the device, in order of appearance."""
    alike: dict[torch.Size, list[Member]] = {}
    for member in members:
        if member.param.numel():
            alike.setdefault(member.param.shape, []).append(member)
    for same in alike.values():
        first = same[0].param
        count = 1 if single else max(1, stack_elements(first.device) // first.numel())
        for start in range(0, len(same), count):
            yield same[start : start + count]


def _directions(
    body: Body, batch: Sequence[Member], lists: Operands[TensorList], numbers: Numbers, *, trial: bool = False
) -> list[Tensor]:
    """The directions of whole (gathered) tensors; buffers are brought up to date, but not in a trial."""
    first = lists.tensors[0].tensors[0]
    like = TensorList([first.new_empty(0, dtype=compute_dtype(first.dtype))])
    d = body.direction(like, lists.grad, lists.state, numbers, trial=trial)
    return [sharding.full(x, m.param) for x, m in zip(d.tensors, batch, strict=True)]


def _mapped(phase: Phase, batch: Sequence[Member], directions: Sequence[Tensor], numbers: Numbers) -> list[Tensor]:
    """Each direction through its view, the map and the scale of its matrices, and back to its shape."""
    pieces = [m.view.split(d) for m, d in zip(batch, directions, strict=True)]
    # The members of a batch have one shape and one view, so their i-th pieces have one shape too.
    columns = [_mapped_stack(column, phase, numbers) for column in zip(*pieces, strict=True)]
    return [
        m.view.join(list(mapped), d.shape)
        for m, d, mapped in zip(batch, directions, zip(*columns, strict=True), strict=True)
    ]


def _mapped_stack(stacks: Sequence[Tensor], phase: Phase, numbers: Numbers) -> Sequence[Tensor]:
    """Map stacks of one shape together; a single one goes as it is."""
    together = stacks[0] if len(stacks) == 1 else torch.stack(list(stacks))
    mapped = phase.geometry(together, numbers)
    m, n = together.shape[-2:]
    scale = SCALES[phase.scale](m, n)
    mapped = mapped if scale == 1.0 else mapped.mul_(scale)
    return [mapped] if len(stacks) == 1 else mapped.unbind(0)


# Compiled ------------------------------------------------------------------------------------------------------------


@functools.cache
def _compiled(geometry: Any) -> Callable[..., list[Tensor]]:
    """The step of one matrix by a map that scales rows and columns: one graph for matrices of any shape."""

    def step(param: Tensor, direction: Tensor, numbers: Numbers) -> list[Tensor]:
        rows, columns, kept = geometry.factors(direction)
        descend(param, direction * rows * columns, numbers)
        return kept  # type: ignore[no-any-return]

    # A code object of its own for each geometry: the compiler counts its graphs by these, and gives up after some.
    own = FunctionType(step.__code__.replace(co_name=f"step_{geometry}"), globals(), closure=step.__closure__)
    return torch.compile(own, dynamic=True, fullgraph=True)


def _run_compiled(
    phase: Phase, batch: Sequence[Member], params: TensorList, directions: Sequence[Tensor], numbers: Numbers
) -> bool:
    """Step large matrices by the factors of their rows and columns; whether the map has such, and all are large ones.

    On a CPU alone: the way to these factors is made for its caches.
    """
    geometry: Any = phase.geometry
    if not hasattr(geometry, "factors") or any(sharding.is_sharded(m.param) for m in batch):
        return False
    if not all(t.is_contiguous() for t in (*params.tensors, *directions)):  # so that all pieces are views
        return False
    sides = [
        [x for m, t in zip(batch, ts, strict=True) for x in m.view.split(t)] for ts in (params.tensors, directions)
    ]
    if not all(_rows_in_blocks(x) for side in sides for x in side):
        return False
    for param, direction in zip(*sides, strict=True):
        m, n = direction.shape
        rates = {"keep": numbers["keep"], "rate": numbers["rate"] * SCALES[phase.scale](m, n)}
        scalars = {name: torch.as_tensor(value, dtype=param.dtype, device="cpu") for name, value in rates.items()}
        if not attempt(param.device, _compiled(geometry), param, direction, scalars):
            descend(param, _mapped_stack([direction], phase, numbers)[0], numbers)
    return True


def _rows_in_blocks(x: Tensor) -> bool:
    """Whether a tensor is a large matrix in rows, on a CPU, that blocks of rows make up."""
    large = x.ndim == 2 and x.numel() >= large_elements(x.device) and x.shape[1] > 1
    return large and x.device.type == "cpu" and x.is_contiguous() and len(x) % FACTOR_ROWS == 0
