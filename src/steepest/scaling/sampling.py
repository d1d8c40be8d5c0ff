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
from typing import Any

import numpy as np
import torch
from torch import Tensor

from steepest import sharding
from steepest.kernels.device import piece_elements
from steepest.rules.base import check_whole

RUN = 16
"""Elements of a run: in float32 a cache line of 64 bytes."""
CANDIDATES = 2
"""Of a table with rows that do not count: rows that are looked at for each run that is read."""


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
class _Table:
    """A matrix of which only the rows that are not all zero count.

    Attributes:
        owner: its block.
        gradient: the matrix, possibly sharded.
        budget: elements to read of it; all if it has no more.
        seed: of the places.
        looks: runs to look at, see ``_looks``; None for all elements, of a matrix that is read whole.
        keep: which rows of those that were looked at are not all zero.
    """

    owner: int
    gradient: Tensor
    budget: int
    seed: int
    looks: tuple[Tensor, Tensor] | None = None
    keep: Tensor | None = None


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


def ascending(x: Tensor) -> Tensor:
    """Sort each row; on a CPU in place and by numpy, which is 30 times faster, as it makes no indices."""
    if x.device.type == "cpu":
        x.numpy().sort(axis=-1)  # not in threads of our own: those of torch still spin on the other cores
        return x
    return x.sort(-1).values


def check_seed(owner: str, seed: Any) -> None:
    """Refuse what numpy takes no random numbers from."""
    check_whole(owner, "seed", seed, 0)
    if seed >= 1 << 32:
        raise ValueError(f"{owner}: seed must be below 2**32, got {seed}")


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
        nonzero_rows: for each block, whether rows that are all zero are left out. Of a large matrix two runs of each of
            ``CANDIDATES`` rows for a run of the sample are looked at; their share that is not zero is taken for that of
            the matrix, and the sample is of these. Default: no block.
    """
    chosen = list(nonzero_rows) or [False] * len(blocks)
    device = home(blocks)
    tables: list[_Table] = []
    rows: list[_Row] = []
    for owner, (block, only) in enumerate(zip(blocks, chosen, strict=True)):
        if only:
            tables += _tables(owner, block, samples, seed)
        else:
            rows.append(_block(owner, block, samples, seed, device))
    _look(tables)
    rows += [_table_row(table) for table in tables]
    by_length: dict[int, list[_Row]] = {}
    for row in rows:  # lengths are rounded up, to have few different ones
        length = row.length if row.length == samples else 1 << max(row.length - 1, 15).bit_length()
        by_length.setdefault(length, []).append(row)
    stacks = [(torch.empty(len(of), length, device=device), of) for length, of in by_length.items()]
    places = [(of, part) for values, its in stacks for of, row in zip(values, its, strict=True) for part in row.parts]
    _fill([(row[part.start : part.start + part.length], part) for row, part in places])
    return [_finished(values, of) for values, of in stacks]


def home(blocks: Sequence[Sequence[Tensor]]) -> torch.device:
    """The device where the samples of all blocks come together: that of the first gradient."""
    return next((sharding.local(g).device for block in blocks for g in block), torch.device("cpu"))


def nonzero(gradients: Sequence[Tensor]) -> list[Tensor]:
    """For each tensor of two or more dimensions which of its (global) rows are not all zero.

    Sharded: one exchange for each mesh.
    """
    return [seen > 0 for seen in sharding.summed_each([_seen(g) for g in gradients], gradients)]


def _seen(g: Tensor) -> Tensor:
    """1 for the rows that are not all zero in what this process holds."""
    x, rows = sharding.local(g).detach(), sharding.local_slices(g)[0]
    seen = torch.zeros(len(g), dtype=torch.int32, device=x.device)
    if x.numel():
        seen[rows] += _nonzero(x.flatten(1)).int()
    return seen


def _look(tables: Sequence[_Table]) -> None:
    """Find which of the rows are not all zero."""
    matrices = [table for table in tables if table.gradient.ndim > 1]
    seen = []
    for table in matrices:
        if table.looks is None:
            seen.append(_seen(table.gradient))
            continue
        rows, begin = table.looks
        part = _in_rows(table.gradient, rows, begin)
        values = _local_part(part) if sharding.is_sharded(part.gradient) else _values(part)
        first, second = _nonzero(values.view(len(rows), -1)).chunk(2)
        seen.append((first | second).int())
    counts = sharding.summed_each(seen, [table.gradient for table in matrices])
    for table, count in zip(matrices, counts, strict=True):
        table.keep = count > 0


def _nonzero(x: Tensor) -> Tensor:
    """Which rows are not all zero; nan is not zero. Of the ways to ask, this is the fastest on a CPU."""
    if not x.shape[1]:
        return torch.zeros(len(x), dtype=torch.bool, device=x.device)
    parts = x.split(max(piece_elements(x.device) // x.shape[1], 1))
    return torch.cat([part.abs().amax(1) for part in parts]) != 0


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


def _tables(owner: int, block: Sequence[Tensor], samples: int, seed: int) -> list[_Table]:
    """One for each tensor of a block, because a value of each stands for another number of elements."""
    total = max(sum(g.numel() for g in block), 1)
    tables = []
    for i, g in enumerate(block):
        budget = samples if total <= samples else max(samples * g.numel() // total, RUN)
        table = _Table(owner, g, budget, (seed + i) % (1 << 32))
        if g.ndim > 1 and g.numel() > budget:
            number = CANDIDATES * _runs(g, budget)
            table.looks = _looks(len(g), number, table.seed, sharding.local(g).device)
        tables.append(table)
    return tables


def _runs(g: Tensor, budget: int) -> int:
    """How many runs inside a row give so many elements."""
    return budget // min(RUN, g.numel() // len(g))


@functools.lru_cache(maxsize=64)
def _looks(count: int, number: int, seed: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Two runs in each of ``number`` of so many rows, or in all if there are no more: the row, and where it begins.

    The rows are one in each of equal strata; all have their first run in the first half of the result, and the second
    ones, half a row further, in the other.
    """
    number = min(number, count)
    jitter, begin = np.random.RandomState(seed).random_sample((2, number))
    jitter = jitter if number < count else 0.0
    rows = np.minimum(((np.arange(number) + jitter) * (count / number)).astype(np.int64), count - 1)
    both = np.concatenate((rows, rows)), np.concatenate((begin, (begin + 0.5) % 1.0))
    return torch.from_numpy(both[0]).to(device), torch.from_numpy(both[1]).to(device)


@functools.lru_cache(maxsize=64)
def _jitter(runs: int, seed: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Where a run is in its stratum of the rows, with the stratum before it, and where in its row it begins."""
    jitter, begin = np.random.RandomState(seed).random_sample((2, runs))
    return torch.from_numpy((np.arange(runs) + jitter) / runs).to(device), torch.from_numpy(begin).to(device)


def _table_row(table: _Table) -> _Row:
    """The sample of a table, when it is known which rows count."""
    g, keep = table.gradient, table.keep
    if keep is None or table.looks is None:
        row = _block(table.owner, [g], table.budget, table.seed, sharding.local(g).device)
        if keep is not None:
            row.parts = [_Part(p.gradient, p.start, p.length, keep=keep) for p in row.parts]
            row.left_out = (~keep).sum().double() * (g.numel() // max(len(g), 1))
        return row
    place, begin = _jitter(_runs(g, table.budget), table.seed, keep.device)
    ranks = keep.cumsum(0)
    which = torch.searchsorted(ranks, (place * ranks[-1]).long(), right=True).clamp_(max=len(keep) - 1)
    part = _in_rows(g, table.looks[0][which], begin)
    row = _Row(table.owner, table.budget, [part])
    row.weight = ranks[-1].double() * (g.numel() / len(keep) / part.length)
    return row


def _in_rows(g: Tensor, rows: Tensor, begin: Tensor) -> _Part:
    """A run in each of these rows, which begins at such a part of it; at the end of the row it goes on at the start."""
    width = g.numel() // len(g)
    if width % RUN == 0:  # so that it is a whole cache line
        lines = rows * (width // RUN) + (begin * (width // RUN)).long()
        return _Part(g, 0, len(lines) * RUN, lines)
    columns = ((begin * width).long()[:, None] + torch.arange(min(RUN, width), device=rows.device)) % width
    index = (rows[:, None] * width + columns).flatten()
    return _Part(g, 0, len(index), index=index)


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


def _values(part: _Part) -> Tensor:
    """Those of a part of an ordinary tensor, in float32."""
    values = torch.empty(part.length, device=part.gradient.device)
    _read(values, part)
    return values


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
