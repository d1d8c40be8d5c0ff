"""A sample of the elements of large tensors: short runs at fixed places, the same however the tensors are sharded.

A single element costs a whole cache line of memory traffic and a run of 16 costs little more, so runs are read. There
is one in each of equal strata, at a random place within it: every element has the same chance, no stride can fall in
step with the rows of a matrix, and the runs are spread over all of it.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from steepest import sharding
from steepest.kernels.device import piece_elements

RUN = 16
"""Elements of a run: in float32 a cache line of 64 bytes."""


@dataclass(frozen=True)
class Rows:
    """Samples of equal length, one in each row.

    Attributes:
        owner: int64 (rows,), the block that a row is of.
        values: float32 (rows, length); what is left out (padding, rows without a gradient) is infinite.
        left_out: float64 (rows,), how many values are.
        weight: float64 (rows,), the number of elements that each value stands for.
    """

    owner: Tensor
    values: Tensor
    left_out: Tensor
    weight: Tensor

    def moved(self, move: Callable[[Tensor], Tensor]) -> Rows:
        """With each tensor as ``move``, to another device, returns it."""
        return Rows(move(self.owner), move(self.values), move(self.left_out), move(self.weight))


@dataclass
class _Row:
    """One row while it is filled: where each tensor's part goes, and what is known of it before any value is."""

    owner: int
    length: int
    parts: list[_Part] = field(default_factory=list)
    weight: float | Tensor = 1.0
    left_out: float | Tensor = 0.0


@dataclass
class _Part:
    """The elements that are read of one tensor: everything, some runs, or what ``index`` says."""

    gradient: Tensor
    start: int  # in the row
    length: int
    lines: Tensor | None = None  # numbers of whole runs; None for all elements
    tails: int = 0  # how often the elements after the last whole run are read
    index: Tensor | None = None  # positions in the flat tensor, which replace the above
    keep: Tensor | None = None  # rows of the tensor that are not left out


def gather(
    blocks: Sequence[Sequence[Tensor]], samples: int, seed: int = 0, nonzero_rows: Sequence[bool] = ()
) -> list[Rows]:
    """Read a sample of each block; a block of at most ``samples`` elements is read whole.

    Of an ordinary tensor only the sample is touched; of sharded ones every process reads what it holds of the sample,
    and one exchange for each device mesh gives it to all. Nothing waits for the device.

    Args:
        blocks: the gradients of each block, of any shapes and floating dtypes.
        samples: elements to read of each block.
        seed: another seed reads at other places.
        nonzero_rows: for each block, whether rows that are all zero are left out. Of a large tensor one run of each
            row is looked at to see that. Default: no block.
    """
    chosen = list(nonzero_rows) or [False] * len(blocks)
    device = home(blocks)
    touched = iter(
        nonzero([g for b, flag in zip(blocks, chosen, strict=True) if flag for g in b if g.ndim > 1], whole=False)
    )
    rows: list[_Row] = []
    for owner, (block, only) in enumerate(zip(blocks, chosen, strict=True)):
        if only:
            rows += _nonzero_block(owner, block, samples, seed, [next(touched) if g.ndim > 1 else None for g in block])
        else:
            rows.append(_block(owner, block, samples, seed, device))
    by_length: dict[int, list[_Row]] = {}
    for row in rows:  # lengths are rounded up, to have few different ones
        length = row.length if row.length == samples else 1 << max(row.length - 1, 15).bit_length()
        by_length.setdefault(length, []).append(row)
    stacks = [(torch.empty(len(of), length, device=device), of) for length, of in by_length.items()]
    places = [(values[i], part) for values, of in stacks for i, row in enumerate(of) for part in row.parts]
    _fill([(row[part.start : part.start + part.length], part) for row, part in places])
    return [_finished(values, of) for values, of in stacks]


def home(blocks: Sequence[Sequence[Tensor]]) -> torch.device:
    """The device where the samples of all blocks come together: that of the first gradient."""
    return next((sharding.local(g).device for block in blocks for g in block), torch.device("cpu"))


def nonzero(gradients: Sequence[Tensor], whole: bool = True) -> list[Tensor]:
    """For each tensor which of its (global) rows are not all zero; sharded: one exchange for each mesh.

    Args:
        gradients: of two or more dimensions.
        whole: look at all elements, and not only at a run in the middle of each row.
    """
    counts = []
    for g in gradients:
        x, (rows, *others) = sharding.local(g), sharding.local_slices(g)
        x = x.detach()
        seen = torch.zeros(len(g), dtype=torch.int32, device=x.device)
        if x.numel():
            columns = slice(None) if whole or g.ndim > 2 else _probe(g.shape[1], others[0])
            seen[rows] += _nonzero(x[:, columns].flatten(1)).int()
        counts.append(seen)
    return [seen > 0 for seen in sharding.summed_each(counts, gradients)]


def _nonzero(x: Tensor) -> Tensor:
    """Which rows are not all zero; nan is not zero. Of the ways to ask, this is the fastest on a CPU."""
    if not x.shape[1]:
        return torch.zeros(len(x), dtype=torch.bool, device=x.device)
    parts = x.split(max(piece_elements(x.device) // x.shape[1], 1))
    return torch.cat([part.abs().amax(1) for part in parts]) != 0


def _probe(width: int, mine: slice) -> slice:
    """The local columns of a run in the middle of the global row."""
    first, last = mine.indices(width)[:2]
    ends = (width // 2, min(width // 2 + RUN, width))
    start, stop = (min(max(end, first), last) - first for end in ends)
    return slice(start, stop)


def _block(owner: int, block: Sequence[Tensor], samples: int, seed: int, device: torch.device) -> _Row:
    sizes = tuple(g.numel() for g in block)
    total = sum(sizes)
    if total <= samples:
        starts = np.cumsum((0, *sizes))
        parts = [_Part(g, int(at), n) for g, at, n in zip(block, starts, sizes, strict=False) if n]
        return _Row(owner, total, parts)
    row = _Row(owner, samples // RUN * RUN)
    at = 0
    for which, lines, tails in _places(sizes, samples // RUN, seed, device):
        length = len(lines) * RUN + tails * (sizes[which] % RUN)
        row.parts.append(_Part(block[which], at, length, lines, tails))
        at += length
    row.weight = total / at
    return row


@functools.lru_cache(maxsize=1024)  # a model has few different blocks; each holds 8 bytes for each run
def _places(sizes: tuple[int, ...], runs: int, seed: int, device: torch.device) -> tuple[tuple[int, Tensor, int], ...]:
    """For each tensor that is read: its number, its whole runs, and how often the shorter one after them is."""
    ends = np.cumsum([-(-n // RUN) for n in sizes])
    jitter = np.random.RandomState(seed).random_sample(runs)  # whose numbers stay the same in all versions
    lines = np.minimum(((np.arange(runs) + jitter) * (ends[-1] / runs)).astype(np.int64), ends[-1] - 1)
    found = []
    which = np.searchsorted(ends, lines, side="right")
    for i in np.unique(which).tolist():
        mine = lines[which == i] - (ends[i - 1] if i else 0)
        full = mine[mine < sizes[i] // RUN]
        found.append((i, torch.from_numpy(full).to(device), len(mine) - len(full)))
    return tuple(found)


def _nonzero_block(
    owner: int, block: Sequence[Tensor], samples: int, seed: int, touched: Sequence[Tensor | None]
) -> list[_Row]:
    """A row for each tensor, because a value of each stands for another number of elements."""
    total = max(sum(g.numel() for g in block), 1)
    rows = []
    for i, (g, keep) in enumerate(zip(block, touched, strict=True)):
        budget = samples if total <= samples else max(samples * g.numel() // total, RUN)
        if keep is None or g.numel() <= budget:
            row = _block(owner, [g], budget, seed + i, sharding.local(g).device)
            if keep is not None:
                row.parts = [_Part(p.gradient, p.start, p.length, keep=keep) for p in row.parts]
                row.left_out = (~keep).sum().double() * (g.numel() // max(len(g), 1))
        else:
            row = _Row(owner, budget)
            index = _index(g, keep, budget, seed + i)
            row.parts = [_Part(g, 0, len(index), index=index)]
            row.weight = keep.sum().double() * (g.numel() / len(g) / len(index))
        rows.append(row)
    return rows


def _index(g: Tensor, keep: Tensor, budget: int, seed: int) -> Tensor:
    """Positions of runs in rows that are kept; a run that begins near the end of a row goes on at its beginning."""
    width = g.numel() // len(g)
    run = min(RUN, width)
    runs = budget // run
    jitter, begin = torch.from_numpy(np.random.RandomState(seed).random_sample((2, runs))).to(keep.device)
    ranks = keep.cumsum(0)
    rank = ((torch.arange(runs, device=keep.device) + jitter) * (ranks[-1] / runs)).long()
    rows = torch.searchsorted(ranks, rank, right=True).clamp_(max=len(g) - 1)
    columns = ((begin * width).long()[:, None] + torch.arange(run, device=keep.device)) % width
    index: Tensor = (rows[:, None] * width + columns).flatten()
    return index


def _fill(parts: Sequence[tuple[Tensor, _Part]]) -> None:
    """Read the values of all parts; those of sharded tensors are put together over the processes."""
    shared = []
    for to, part in parts:
        if sharding.is_sharded(part.gradient):
            shared.append((to, part))
        else:
            _read(to, part)
    if shared:
        params = [part.gradient for _, part in shared]
        pieces = [_local_part(part) for _, part in shared]
        for (to, _), values in zip(shared, sharding.summed_each(pieces, params), strict=True):
            to.copy_(values)
    for to, part in parts:
        if part.keep is not None:
            kept = part.keep.to(to.device)
            to.view(len(kept), -1).masked_fill_(~kept[:, None], math.inf)


def _read(to: Tensor, part: _Part) -> None:
    flat = part.gradient.detach().reshape(-1)
    if part.index is not None:
        to.copy_(flat[part.index])
    elif part.lines is None:
        to.copy_(flat)
    else:
        whole = len(flat) // RUN * RUN
        runs = flat[:whole].view(-1, RUN)
        lines = part.lines.to(flat.device)
        head = to[: len(lines) * RUN].view(-1, RUN)
        if to.device == flat.device and to.dtype == flat.dtype:
            torch.index_select(runs, 0, lines, out=head)
        else:
            head.copy_(runs.index_select(0, lines))
        if part.tails:
            to[len(lines) * RUN :].view(part.tails, -1).copy_(flat[whole:])


def _local_part(part: _Part) -> Tensor:
    """What this process holds of a part, in float32, and zero elsewhere."""
    x = sharding.local(part.gradient).detach()
    size = part.gradient.numel()
    index = part.index
    if index is None and part.lines is None:
        index = torch.arange(size, device=x.device)
    elif index is None:
        assert part.lines is not None
        runs = part.lines.to(x.device)[:, None] * RUN + torch.arange(RUN, device=x.device)
        tail = torch.arange(size // RUN * RUN, size, device=x.device)
        index = torch.cat((runs.flatten(), tail.repeat(part.tails)))
    if not x.numel():
        return torch.zeros(len(index), device=x.device)
    here = torch.ones_like(index, dtype=torch.bool)
    at = torch.zeros_like(index)
    stride = 1
    rest = index
    slices = sharding.local_slices(part.gradient)
    for length, span, own in reversed(list(zip(part.gradient.shape, slices, x.shape, strict=True))):
        coordinate = rest % length - (span.start or 0)
        rest = rest // length
        here &= (coordinate >= 0) & (coordinate < own)
        at += coordinate.clamp(0, own - 1) * stride
        stride *= own
    values: Tensor = x.reshape(-1)[at].float().where(here, 0.0)
    return values


def _finished(values: Tensor, rows: Sequence[_Row]) -> Rows:
    """Pad the rows, and bring what is known of each to the device in one piece where it is known on the host."""
    length = values.shape[1]
    ends = [max((p.start + p.length for p in row.parts), default=0) for row in rows]
    for i, end in enumerate(ends):
        if end < length:
            values[i, end:] = math.inf

    def column(numbers: Sequence[float | Tensor]) -> Tensor:
        host = torch.tensor([0.0 if isinstance(n, Tensor) else n for n in numbers], dtype=torch.float64)
        made = host.to(values.device, non_blocking=True)
        for i, n in enumerate(numbers):
            if isinstance(n, Tensor):
                made[i] = n
        return made

    return Rows(
        owner=torch.tensor([row.owner for row in rows]).to(values.device, non_blocking=True),
        values=values,
        left_out=column([row.left_out + (length - end) for row, end in zip(rows, ends, strict=True)]),
        weight=column([row.weight for row in rows]),
    )
