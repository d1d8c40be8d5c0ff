"""Summaries of the gradients of blocks, which give quantiles and means of any pools of these blocks.

========= ===================================== ============================ =====================================
estimator what a summary is                     cost                         error
========= ===================================== ============================ =====================================
sample    n sorted elements of each block       reads n elements of a block  of sampling: ``statistics.Measure``
histogram counts by the upper 16 bits           reads everything once        2^-8; none for bfloat16 gradients
exact     the gradients, to be used at once     reads them for each question none, but for the rounding of means
========= ===================================== ============================ =====================================

All are the same however a block is split into tensors or shards: counts exactly, a sample if it is sharding.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from steepest import sharding
from steepest.kernels import Histogram
from steepest.kernels.device import piece_elements
from steepest.rules.base import check_choice
from steepest.scaling import sampling

ESTIMATORS = ("sample", "histogram", "exact")

_HUGE = torch.finfo(torch.float32).max
_BINS = 1 << 16
_HIGHEST = 0x7F7FFFFF  # the key of the largest float32; see _float_of


class Pools:
    """Blocks that are looked at together; a block may be in one pool at each of several levels.

    Args:
        levels: for each level the pool of each block; ``number`` for none.
        number: how many pools there are.
        device: that of the summary.
    """

    def __init__(self, levels: Sequence[Sequence[int]], number: int, device: torch.device) -> None:
        self.levels = levels
        self.number = number
        self.member = torch.tensor(levels, dtype=torch.int64).to(device, non_blocking=True)

    def of(self, block: int) -> list[int]:
        """The pools of a block."""
        return [level[block] for level in self.levels if level[block] < self.number]

    def sums(self, values: Tensor) -> Tensor:
        """Add up (blocks,) in each pool."""
        return self.add(values.expand(len(self.member), -1), self.member)

    def add(self, values: Tensor, member: Tensor) -> Tensor:
        """Add up values of shape (..., *rest) in the pools that ``member``, of shape (...), names."""
        rest = values.shape[member.ndim :]
        size = math.prod(rest)
        # On a CPU torch adds along one axis in one thread, and along more of them in many, which wait for each other.
        index = (member.reshape(-1, 1) * size + torch.arange(size, device=member.device)).flatten()
        made = values.new_zeros((self.number + 1) * size).index_add_(0, index, values.reshape(-1))
        return made.view(self.number + 1, *rest)[:-1]

    def each(self, values: Tensor, member: Tensor) -> Tensor:
        """The value of its pool, of (pools, ...), for each place of ``member``."""
        return torch.cat((values, values.new_zeros(1, *values.shape[1:])))[member]


class Summary(ABC):
    """What is known of the gradients of some blocks.

    Attributes:
        count: float64 (blocks,), finite elements, without rows that are left out.
        non_finite: float64 scalar, infinite and nan elements that were seen.
    """

    count: Tensor
    non_finite: Tensor

    @abstractmethod
    def quantile(self, p: float, pools: Pools, about: Sequence[Tensor] = ()) -> Tensor:
        """The smallest x (or distance) that at least the part p of the elements of each pool does not exceed.

        Args:
            p: 0 < p <= 1; 0.5 is the lower median, as of ``torch.median``.
            pools: see ``Pools``.
            about: centres, float64 (pools,) each: of the distances |x - a|, or ||x - a| - b| with a second one.

        Returns:
            float64 (pools,); 0 for a pool without elements.
        """

    @abstractmethod
    def mean(self, function: Callable[..., Tensor], pools: Pools, *arguments: Tensor) -> Tensor:
        """The mean of function(x, *arguments) over each pool, 0 for one without elements.

        Args:
            function: of float64 tensors, elementwise; 0 at 0 if it has no further arguments.
            pools: see ``Pools``.
            arguments: float64 (pools,), what the function gets beside the elements of each pool.
        """


@dataclass(frozen=True)
class _Stack:
    """Ascending values of some blocks, one in each row, with what they weigh.

    Attributes:
        owner: int64 (rows,), the block of each row.
        values: float32 (rows, n), ascending; the infinite ones at the end do not count.
        weight: float64 (rows, 1), or (rows, n) for values that stand for different numbers of elements.
        below: float64 (rows, n + 1), the weight of the first ones; None if they are all the same.
    """

    owner: Tensor
    values: Tensor
    weight: Tensor
    below: Tensor | None = None

    def moved(self, move: Callable[[Tensor], Tensor]) -> _Stack:
        """With each tensor as ``move`` returns it."""
        below = None if self.below is None else move(self.below)
        return _Stack(move(self.owner), move(self.values), move(self.weight), below)


class Points(Summary):
    """Sorted values with weights: of a sample, or the bins of a histogram."""

    def __init__(self, stacks: Sequence[_Stack], count: Tensor, non_finite: Tensor) -> None:
        self.stacks = list(stacks)
        self.count = count
        self.non_finite = non_finite

    @classmethod
    def of_sample(cls, rows: Sequence[sampling.Rows], blocks: int) -> Points:
        """Sort what ``sampling.gather`` read, in place."""
        device = rows[0].values.device if rows else torch.device("cpu")
        count = torch.zeros(blocks, dtype=torch.float64, device=device)
        non_finite = torch.zeros((), dtype=torch.float64, device=device)
        stacks = []
        for r in rows:
            values = sampling.ascending(r.values.nan_to_num_(math.inf, math.inf, math.inf))
            finite = torch.searchsorted(values, values.new_full((len(values), 1), _HUGE), right=True).double()
            count.index_add_(0, r.owner, finite.squeeze(1) * r.weight)
            non_finite += (values.shape[1] - finite.squeeze(1) - r.left_out).sum()
            stacks.append(_Stack(r.owner, values, r.weight[:, None]))
        return cls(stacks, count, non_finite)

    @classmethod
    def of_histograms(cls, counts: Tensor, left_out: Tensor) -> Points:
        """From the counts of ``kernels.Histogram`` for each block, of which ``left_out`` elements were nan."""
        finite = _BINS // 2 - (1 << 7)
        wide = counts[:, -1:] > 0
        bits = torch.arange(finite, dtype=torch.int32, device=counts.device) << 16
        magnitude = torch.where(wide, (bits + (1 << 15)).view(torch.float32), bits.view(torch.float32))
        magnitude[:, : 1 << 7] = 0.0  # the bins of zero and of what is below 2^-126
        negative, positive = counts[:, :-1].view(-1, 2, _BINS // 2)[:, :, :finite].unbind(1)
        weight = torch.cat((negative.flip(1), positive), 1).double()
        below = torch.nn.functional.pad(weight.cumsum(1), (1, 0))
        values = torch.cat((0.0 - magnitude.flip(1), magnitude), 1)
        count = weight.sum(1)
        stack = _Stack(torch.arange(len(counts), device=counts.device), values, weight, below)
        return cls([stack], count, counts[:, :-1].sum().double() - count.sum() - left_out)

    def moved(self, move: Callable[[Tensor], Tensor]) -> Points:
        """With each tensor as ``move``, to another device, returns it."""
        return Points([stack.moved(move) for stack in self.stacks], move(self.count), move(self.non_finite))

    def quantile(self, p: float, pools: Pools, about: Sequence[Tensor] = ()) -> Tensor:
        """By search over the bits of the answer, four at a time, for all pools at once.

        The last pool, here, is that of what is in none.
        """
        total = pools.sums(self.count)
        wanted = torch.nn.functional.pad(p * (1.0 - 1e-12) * total, (0, 1))[:, None]  # sums of weights may be rounded
        centres = [torch.nn.functional.pad(centre, (0, 1))[:, None] for centre in about]
        digits = torch.arange(1, 16, device=total.device)
        parts = [self._places(stack, pools, len(digits) << len(about)) for stack in self.stacks]
        key = torch.full((pools.number + 1, 1), 0 if about else -(1 << 31), device=total.device)
        for shift in range(28, -1, -4):
            last = key + (digits << shift) - 1  # of each of the first 15 of 16 ranges of keys
            reached = _mass(_float_of(last).double(), centres, parts)
            key = key + ((reached < wanted).sum(1, keepdim=True) << shift)
        return _float_of(key[:-1]).double().squeeze(1).where(total > 0, 0.0)

    @staticmethod
    def _places(stack: _Stack, pools: Pools, columns: int) -> tuple[_Stack, Tensor, Tensor]:
        """A stack with the pools of its rows, (rows, levels), and where ``columns`` numbers of each are added up."""
        member = pools.member[:, stack.owner].T.contiguous()
        index = member[:, :, None] * columns + torch.arange(columns, device=member.device)
        return stack, member, index.flatten()

    def mean(self, function: Callable[..., Tensor], pools: Pools, *arguments: Tensor) -> Tensor:
        """Over the values, by their weight; some rows at a time, which fit the caches."""
        total = pools.sums(self.count)
        made = torch.zeros_like(total)
        for stack in self.stacks:
            levels = pools.member[:, stack.owner]
            sums = [
                self._row_sums(stack, function, [pools.each(a, member)[:, None] for a in arguments])
                for member in (levels if arguments else levels[:1])
            ]
            made += pools.add(torch.stack(sums).expand(levels.shape), levels)
        return made / total.clamp(min=1.0)

    @staticmethod
    def _row_sums(stack: _Stack, function: Callable[..., Tensor], arguments: Sequence[Tensor]) -> Tensor:
        """The sum of function(x, *arguments) over each row, by weight; the arguments are of (rows, 1)."""
        rows = max(piece_elements(stack.values.device) // 4 // stack.values.shape[1], 1)  # several copies, in 8 bytes
        sums = []
        for values, weight, *of_row in zip(
            *(t.split(rows) for t in (stack.values, stack.weight, *arguments)), strict=True
        ):
            y = function(values.nan_to_num(0.0, 0.0, 0.0).double(), *of_row)
            y = y.where(values <= _HUGE, 0.0) if arguments else y
            sums.append(y.sum(1) if stack.below is None else (y * weight).sum(1))
        together = torch.cat(sums)
        return together * stack.weight[:, 0] if stack.below is None else together


@dataclass(frozen=True)
class _Source:
    """A gradient and the part of it that is here.

    Attributes:
        owner: its block.
        gradient: possibly sharded.
        keep: bool, which of the rows that are here count; None for all.
    """

    owner: int
    gradient: Tensor
    keep: Tensor | None

    def pieces(self) -> Iterator[Tensor]:
        """The elements that are here, a part at a time; nan for what is left out."""
        x = sharding.local(self.gradient).detach()
        if self.keep is None:
            yield from x.reshape(-1).split(piece_elements(x.device))
            return
        x = x.flatten(1)
        rows = max(piece_elements(x.device) // max(x.shape[1], 1), 1)
        for part, keep in zip(x.split(rows), self.keep.split(rows), strict=True):
            yield part.where(keep[:, None], math.nan).flatten()

    def left_out(self) -> Tensor:
        """How many elements are here that do not count."""
        if self.keep is None:
            return torch.zeros((), dtype=torch.int64)
        return (~self.keep).sum() * sharding.local(self.gradient)[:1].numel()


def _sources(blocks: Sequence[Sequence[Tensor]], nonzero_rows: Sequence[bool]) -> list[_Source]:
    pairs = list(zip(blocks, nonzero_rows, strict=True))
    kept = iter(sampling.nonzero([g for block, only in pairs if only for g in block if g.ndim > 1]))
    sources = []
    for owner, (block, only) in enumerate(pairs):
        for g in block:
            keep = next(kept)[sharding.local_slices(g)[0]] if only and g.ndim > 1 else None
            sources.append(_Source(owner, g, keep))
    return sources


def _everywhere(
    sources: Sequence[_Source], device: torch.device, count: Callable[[Sequence[_Source]], Tensor]
) -> Tensor:
    """The sum of ``count``, which is additive, over what all processes have of the sources, on ``device``."""
    gradients = [s.gradient for s in sources]
    total = count([s for s in sources if not sharding.is_sharded(s.gradient)])
    for chosen in sharding.by_mesh(gradients):
        mine = [gradients[i] for i in chosen]
        here = [sources[i] for i, counted in zip(chosen, sharding.counted_here(mine), strict=True) if counted]
        total = total + sharding.summed(count(here), mine).to(device)
    return total


class Stream(Summary):
    """The gradients themselves, read again for each question. They must not change meanwhile."""

    def __init__(self, sources: Sequence[_Source], blocks: int, device: torch.device) -> None:
        self.sources = list(sources)
        self.device = device

        def count(chosen: Sequence[_Source]) -> Tensor:
            found = torch.zeros(blocks, 2, dtype=torch.float64, device=device)
            for source in chosen:
                for piece in source.pieces():
                    finite = (piece.float().abs() <= _HUGE).sum()
                    found[source.owner] += torch.stack((finite, piece.numel() - finite)).to(device)
                found[source.owner, 1] -= source.left_out().to(device)
            return found

        found = _everywhere(self.sources, device, count)
        self.count = found[:, 0]
        self.non_finite = found[:, 1].sum()

    def quantile(self, p: float, pools: Pools, about: Sequence[Tensor] = ()) -> Tensor:
        """By counting the upper half of the bits, and then the lower half of what the upper half found."""
        total = pools.sums(self.count)
        wanted = (p * (1.0 - 1e-12) * total)[:, None]
        upper, before = self._find(wanted, pools, about, lambda key: (key >> 16) + _BINS // 2)
        lower, _ = self._find(wanted - before, pools, about, lambda key: key & (_BINS - 1), upper)
        key = ((upper - _BINS // 2) << 16) + lower
        return _float_of(key).double().squeeze(1).where(total > 0, 0.0)

    def _find(
        self,
        wanted: Tensor,
        pools: Pools,
        about: Sequence[Tensor],
        part: Callable[[Tensor], Tensor],
        upper: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """The bin where each pool reaches the wanted count, and the count before it, both (pools, 1)."""

        def count(chosen: Sequence[_Source]) -> Tensor:
            counts = torch.zeros(pools.number, _BINS + 1, dtype=torch.int64, device=self.device)
            for source in chosen:
                for pool in pools.of(source.owner):
                    for piece in source.pieces():
                        x = _distance(piece, [a[pool].to(piece.device) for a in about])
                        key = _key_of(x)
                        index = part(key)
                        if upper is not None:
                            index = index.where((key >> 16) + _BINS // 2 == upper[pool].to(key.device), _BINS)
                        _tally(counts[pool], index.where(x.abs() <= _HUGE, _BINS).to(self.device))
            return counts

        cumulative = _everywhere(self.sources, self.device, count)[:, :-1].cumsum(1)
        found = (cumulative < wanted).sum(1, keepdim=True).clamp_(max=_BINS - 1)
        return found, cumulative.gather(1, (found - 1).clamp(min=0)).where(found > 0, 0)

    def mean(self, function: Callable[..., Tensor], pools: Pools, *arguments: Tensor) -> Tensor:
        """In float64, piece by piece."""

        def add(chosen: Sequence[_Source]) -> Tensor:
            sums = torch.zeros(pools.number, dtype=torch.float64, device=self.device)
            for source in chosen:
                for pool in pools.of(source.owner):
                    for piece in source.pieces():
                        x = piece.float().double()
                        y = function(x, *(a[pool].to(x.device) for a in arguments))
                        sums[pool] += y.where(x.abs() <= _HUGE, 0.0).sum().to(self.device)
            return sums

        return _everywhere(self.sources, self.device, add) / pools.sums(self.count).clamp(min=1.0)


def _histograms(sources: Sequence[_Source], blocks: int, device: torch.device) -> Points:
    def count(chosen: Sequence[_Source]) -> Tensor:
        histograms = [Histogram() for _ in range(blocks)]
        left_out = torch.zeros(1, dtype=torch.int64, device=device)
        for source in chosen:
            for piece in source.pieces():
                histograms[source.owner].add(piece)
            left_out += source.left_out().to(device)
        return torch.cat([left_out, *(h.counts.to(device) for h in histograms)])

    counts = _everywhere(sources, device, count)
    return Points.of_histograms(counts[1:].view(blocks, _BINS + 1), counts[0])


def _mass(x: Tensor, centres: Sequence[Tensor], parts: Sequence[tuple[_Stack, Tensor, Tensor]]) -> Tensor:
    """Weight of the elements (or distances) of each pool that are at most x, of (pools, q)."""
    limits = _limits(x, False, centres)
    lowest = torch.full((), -math.inf, dtype=torch.float64, device=x.device)
    together = torch.cat([torch.nextafter(t, lowest) if strict else t for _, strict, t in limits], 1)
    near = together.float()  # elements are of float32, so below a bound if at most the nearest float32 number below it
    bounds = torch.where(near.double() > together, torch.nextafter(near, lowest.float()), near)
    mass = together.new_zeros(together.numel())
    for stack, member, index in parts:
        number = torch.searchsorted(stack.values, bounds[member].flatten(1), right=True)
        weight = number * stack.weight if stack.below is None else stack.below.gather(1, number)
        mass.index_add_(0, index, weight.flatten())
    pieces = zip(limits, mass.view(together.shape).split(x.shape[1], 1), strict=True)
    return sum((piece if sign > 0 else -piece for (sign, _, _), piece in pieces), start=torch.zeros_like(x))


def _limits(x: Tensor, strict: bool, centres: Sequence[Tensor]) -> list[tuple[int, bool, Tensor]]:
    """Bounds of plain elements for a bound of distances: how what is up to each of them counts, and without equals?

    |y - a| <= x is y <= a + x without y < a - x, and so on inwards; a distance is never negative.
    """
    if not centres:
        return [(1, strict, x)]
    *inner, centre = centres
    possible = x > 0 if strict else x >= 0
    upper = (centre + x).where(possible, -math.inf)
    lower = (centre - x).where(possible, -math.inf)
    return [
        *_limits(upper, strict, inner),
        *((-sign, equals, limit) for sign, equals, limit in _limits(lower, not strict, inner)),
    ]


def _distance(x: Tensor, about: Sequence[Tensor]) -> Tensor:
    """What the quantiles are of; see ``Summary.quantile``."""
    for centre in about:
        x = (x.double() - centre).abs()
    return x.float()


def _float_of(key: Tensor) -> Tensor:
    """float32 numbers from their keys, the integers in the same order; beyond the finite ones, the nearest of them."""
    key = key.clamp(-_HIGHEST - 1, _HIGHEST).int()
    return (key ^ ((key >> 31) & 0x7FFFFFFF)).view(torch.float32) + 0.0  # not -0


def _key_of(x: Tensor) -> Tensor:
    bits = (x + 0.0).view(torch.int32)
    return (bits ^ ((bits >> 31) & 0x7FFFFFFF)).long()


def _tally(counts: Tensor, index: Tensor) -> None:
    """Add 1 to the counts at each index, without waiting for the device."""
    if index.device.type == "cpu" and index.numel() >= counts.numel():
        counts += torch.bincount(index, minlength=counts.numel())
    else:
        counts.index_add_(0, index, counts.new_ones(()).expand(index.numel()))


def summarize_blocks(
    blocks: Sequence[Sequence[Tensor]],
    estimator: str = "sample",
    samples: int = 1 << 15,
    seed: int = 0,
    nonzero_rows: Sequence[bool] = (),
) -> Summary:
    """The summary of some blocks, each given by its gradients, with ``nonzero_rows`` for each (default: for none).

    Sharded gradients are summarized as the whole tensors that they are parts of: a collective call. The arguments are
    those of ``statistics.Measure``.

    Raises:
        ValueError: an unknown estimator, or a gradient that is not of a floating dtype.
    """
    check_choice("statistics", "estimator", estimator, ESTIMATORS)
    for g in (g for block in blocks for g in block):
        if not g.is_floating_point():
            raise ValueError(f"a gradient must be of a floating dtype, got {g.dtype}")
    only = list(nonzero_rows) or [False] * len(blocks)
    with torch.no_grad():
        if estimator == "sample":
            return Points.of_sample(sampling.gather(blocks, samples, seed, only), len(blocks))
        sources, device = _sources(blocks, only), sampling.home(blocks)
        if estimator == "histogram":
            return _histograms(sources, len(blocks), device)
        return Stream(sources, len(blocks), device)


def summarize(
    gradients: Sequence[Tensor],
    *,
    estimator: str = "sample",
    samples: int = 1 << 15,
    seed: int = 0,
    nonzero_rows: bool = False,
) -> Summary:
    """The summary of one block, given by its gradients; the arguments are those of ``statistics.Measure``."""
    return summarize_blocks([gradients], estimator, samples, seed, [nonzero_rows])


def merge(summaries: Sequence[Summary]) -> Summary:
    """The summary of all blocks of some summaries, in order.

    Raises:
        ValueError: there is none, or they come from different estimators.
    """
    if not summaries or len({type(s) for s in summaries}) > 1:
        raise ValueError("merge needs summaries, and of one estimator")
    starts = [0]
    for summary in summaries:
        starts.append(starts[-1] + len(summary.count))
    first = summaries[0]
    if isinstance(first, Stream):
        sources = [
            replace(s, owner=s.owner + at) for each, at in zip(summaries, starts, strict=False) for s in _of(each)
        ]
        return Stream(sources, starts[-1], first.device)
    stacks: dict[tuple[int, ...], list[_Stack]] = {}
    for summary, at in zip(summaries, starts, strict=False):
        assert isinstance(summary, Points)
        for s in summary.stacks:
            stacks.setdefault((s.values.shape[1], s.weight.shape[1]), []).append(replace(s, owner=s.owner + at))
    return Points(
        [_joined(alike) for alike in stacks.values()],
        torch.cat([s.count for s in summaries]),
        torch.stack([s.non_finite for s in summaries]).sum(),
    )


def _of(summary: Summary) -> list[_Source]:
    assert isinstance(summary, Stream)
    return summary.sources


def _joined(stacks: Sequence[_Stack]) -> _Stack:
    below = [s.below for s in stacks if s.below is not None]
    return _Stack(
        torch.cat([s.owner for s in stacks]),
        torch.cat([s.values for s in stacks]),
        torch.cat([s.weight for s in stacks]),
        torch.cat(below) if below else None,
    )
