"""Median and median absolute deviation (MAD) of all elements of very many tensors, by counting, without joining them.

A float32 is a sign bit, 8 bits of exponent and 23 of mantissa; read as integers, the numbers of one sign keep their
order. A histogram over the upper 16 bits therefore has logarithmic bins, 128 to an octave. As counts are integers, a
result does not depend on the order, the splitting or the grouping of the data, and over processes counts add up.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from steepest.kernels.device import piece_elements

_BINS = 1 << 16
_BLOCK = 1 << 20  # indices that are counted in one call; at least as many as a part has
# The bins of one sign in ascending order of magnitude: the first 128 hold zero and what is below 2^-126, the last 128
# infinity and nan.
_EDGE = 1 << 7
_FINITE = _BINS // 2 - _EDGE

Gather = Callable[[int, Callable[["_Tally", Tensor], None]], Tensor]
"""One pass: from a number of counts, and what adds a part of the data to them, to the counts of all data."""


class _Tally:
    """Counts at indices, and one count more that is not at an index.

    On a CPU indices wait until there are many: each call of ``bincount`` makes counts of its own, 0.5 MB. With new
    memory for every part, a pass takes up to 1.7 times as long.
    """

    def __init__(self, counts: Tensor, room: int = _BLOCK) -> None:
        self.counts = counts
        self._waiting = counts.new_empty(room if counts.device.type == "cpu" else 0, dtype=torch.int32)
        self._used = 0
        self._signed = False

    def add(self, index: Tensor, signed: bool = False) -> None:
        """Add 1 to the counts at each index, without waiting for the device.

        Args:
            index: int32, not negative; or 16-bit numbers, of which the lowest has the index 0.
            signed: which of these it is.
        """
        if index.device.type != "cpu":
            self._add(index + _BINS // 2 if signed else index)
            return
        if self._used + index.numel() > len(self._waiting):
            self.flush()
        self._signed = signed
        # The lower 16 bits, and not a sum: for integers it takes a third of the time.
        mask = _BINS - 1 if signed else -1
        torch.bitwise_and(index, mask, out=self._waiting[self._used : self._used + index.numel()])
        self._used += index.numel()

    def flush(self) -> None:
        """Count what waits."""
        if not self._used:
            return
        if self._signed:
            swapped = torch.bincount(self._waiting[: self._used], minlength=_BINS)  # negative numbers come last
            self.counts[:_BINS] += swapped.view(2, -1).flip(0).flatten()
        else:
            self._add(self._waiting[: self._used])
        self._used = 0

    def _add(self, index: Tensor) -> None:
        counts = self.counts[:-1]
        if index.device.type == "cpu" and index.numel() >= counts.numel():
            counts += torch.bincount(index, minlength=counts.numel())  # faster, but makes counts of its own
        else:
            counts.index_add_(0, index, counts.new_ones(()).expand(index.numel()))


class Histogram:
    """Counts of float32 values by their upper 16 bits, for order statistics to half a bin: 2^-8 relative.

    What a query returns is the midpoint of a bin; it is exact if all values were bfloat16, which has no more bits.
    Magnitudes below 2^-126, the normal numbers, count as zero. Histograms of blocks add up to that of a layer, and over
    processes ``counts`` add up. Adding data does not wait for the device; a query copies the counts to the host.

    Args:
        counts: see below; empty by default.

    Attributes:
        counts: int64 (65537,), on the device of the data; may be set. 32768 bins of negative and as many of positive
            values by ascending magnitude, then the number of values that were wider than bfloat16.
    """

    def __init__(self, counts: Tensor | None = None) -> None:
        self.counts = torch.zeros(_BINS + 1, dtype=torch.int64) if counts is None else counts

    def add(self, x: Tensor) -> None:
        """Count the elements of a tensor of any shape and floating dtype; they are read as float32.

        Raises:
            ValueError: ``x`` is not of a floating dtype.
        """
        self.counts = self.counts.to(x.device)
        tally = _Tally(self.counts, min(x.numel(), _BLOCK))
        for part in _parts(x):
            _count(tally, part)
        tally.flush()

    def __add__(self, other: Histogram) -> Histogram:
        return Histogram(self.counts + other.counts.to(self.counts.device))

    def without_zeros(self) -> Histogram:
        """A copy in which zeros are not counted."""
        counts = self.counts.clone()
        counts[:-1].view(2, -1)[:, :_EDGE] = 0
        return Histogram(counts)

    @property
    def count(self) -> int:
        """Number of finite values, zeros included."""
        return int(self._ascending().sum())

    @property
    def zeros(self) -> int:
        """Number of values that are zero or below 2^-126 in magnitude."""
        return int(self._ascending()[_FINITE - _EDGE : _FINITE + _EDGE].sum())

    @property
    def non_finite(self) -> int:
        """Number of values that are infinite or nan; no other query sees them."""
        return int(self.counts[:-1].sum()) - self.count

    def find(self, rank: int) -> tuple[int, int]:
        """The bin, in ascending order of the finite ones, that holds the value of a rank, and its rank in the bin."""
        counts = self._ascending()
        index = _first_above(counts, rank)
        return index, rank - int(counts[:index].sum())

    def quantile(self, p: float) -> float:
        """The p-quantile, 0 <= p <= 1, without interpolation (between two values the lower); 0 if there are none.

        Raises:
            ValueError: ``p`` is outside [0, 1].
        """
        if not 0 <= p <= 1:
            raise ValueError(f"p must be a probability with 0 <= p <= 1, got {p!r}")
        count = self.count
        return float(self._values()[self.find(math.floor(p * (count - 1)))[0]]) if count else 0.0

    def median(self) -> float:
        """The lower median, as of ``torch.median``."""
        return self.quantile(0.5)

    def mad(self) -> float:
        """The lower median of the distances to the median; its error is below 2^-7 (|median| + MAD)."""
        counts = self._ascending()
        seen = counts.nonzero().squeeze(-1)
        if not len(seen):
            return 0.0
        distance, order = (self._values()[seen] - self.median()).abs().sort()
        return float(distance[_first_above(counts[seen][order], (self.count - 1) // 2)])

    def rms(self) -> float:
        """Root mean square, like the quantiles; values that are spread over many bins give about 2^-16 relative."""
        return math.sqrt(float(self._ascending().double() @ self._values().square()) / max(self.count, 1))

    def peak(self) -> float:
        """A power of two above all magnitudes, at most twice the largest normal one; 2^-126 if there is none."""
        magnitudes = self.counts[:-1].view(2, -1)[:, :_FINITE].sum(0).nonzero()
        return 2.0 ** ((int(magnitudes[-1]) if len(magnitudes) else 0) // _EDGE - 126)

    def _ascending(self) -> Tensor:
        """Counts of the finite bins in ascending order of value, on the host."""
        negative, positive = self.counts[:-1].cpu().view(2, -1)[:, :_FINITE]
        return torch.cat((negative.flip(0), positive))

    def _values(self) -> Tensor:
        """What each of those bins stands for."""
        return _bin_values(bool(self.counts[-1] == 0))


@dataclass(frozen=True)
class Statistics:
    """What ``median_and_mad`` finds.

    Attributes:
        centre: lower median of the sample, 0 for an empty one.
        spread: lower median of |x - centre|, without a consistency factor; 0 for an empty sample.
        rms: root mean square of the sample, 0 for an empty one.
        count: number of finite elements, zeros included.
        zeros: number of those that are zero (below 2^-126 in magnitude).
        non_finite: number of infinite and nan elements, which are left out; it is for the caller to refuse them.
    """

    centre: float
    spread: float
    rms: float
    count: int
    zeros: int
    non_finite: int

    @property
    def zeros_left_out(self) -> bool:
        """Whether more than half of the elements are zero, so that the sample is the others."""
        return 2 * self.zeros > self.count


def median_and_mad(
    pieces: Callable[[], Iterator[Tensor]],
    reduce: Callable[[Tensor], Tensor] | None = None,
    exact_below: int = 1 << 20,
) -> Statistics:
    """Median, MAD and root mean square of all elements of all pieces, the centre and spread of a Cauchy law.

    Four passes over the data give the exact float32 results. A sample of more than ``exact_below`` elements, if its
    centre is not farther from zero than its spread, takes one pass only: centre and root mean square are within 2^-8
    relative, the spread is within 2^-6, and in bfloat16 all are exact. Zeros are left out when more than half of the
    elements are zero: of rows that never got a gradient nothing can be learned.

    Args:
        pieces: returns a new iterator over tensors of any shapes and floating dtypes, read as float32 (so finite
            float64 values may be infinite). It is called once a pass, and no piece is kept while the next one is made.
        reduce: returns the sum of an int64 tensor over all processes (and may change its argument). It is called once
            a pass, and all processes make the same passes, whatever part of the data they have. Default: one process.
        exact_below: number of elements of the sample, over all processes, up to which the results are always exact.

    Raises:
        ValueError: a piece is not of a floating dtype.
    """
    gather = functools.partial(_gather, pieces, reduce)
    everything = Histogram(gather(_BINS + 1, _count))
    found = Statistics(0.0, 0.0, 0.0, everything.count, everything.zeros, everything.non_finite)
    sample = everything.without_zeros() if found.zeros_left_out else everything
    size = sample.count
    if size == 0:
        return found
    if size > exact_below:
        rough = replace(found, centre=sample.median(), spread=sample.mad(), rms=sample.rms())
        if abs(rough.centre) <= rough.spread:  # bins are narrow near zero, so a spread far from it would be inaccurate
            return rough
    huge = torch.finfo(torch.float32).max
    least = torch.finfo(torch.float32).tiny if found.zeros_left_out else 0.0

    def values(x: Tensor) -> Tensor:
        """Nan for what is not in the sample, because it is counted apart."""
        x = x.float()
        magnitude = x.abs()
        return x.where((magnitude >= least) & (magnitude <= huge), math.nan)

    def distances(x: Tensor) -> Tensor:
        return (values(x) - centre).abs_().clamp_(max=huge)

    centre, rms = _exact(gather, sample, values)
    between = Histogram(gather(_BINS + 1, lambda tally, x: _count(tally, distances(x))))
    spread, _ = _exact(gather, between, distances)
    return replace(found, centre=centre, spread=spread, rms=rms)


def _exact(gather: Gather, histogram: Histogram, read: Callable[[Tensor], Tensor]) -> tuple[float, float]:
    """Lower median and root mean square of the values that the histogram counted, by one more pass over them."""
    count, peak = histogram.count, histogram.peak()
    index, rank = histogram.find((count - 1) // 2)
    negative = index < _FINITE
    upper = -1 - index - _EDGE if negative else index - _FINITE  # the upper 16 bits, a signed number
    one = 1 << (62 - count.bit_length())  # squares are counted in fixed point: no rounding depends on their order

    def add(tally: _Tally, x: Tensor) -> None:
        x = read(x)
        bits = x.view(torch.int32)
        tally.add(torch.where(bits >> 16 == upper, bits & (_BINS - 1), _BINS))
        tally.counts[-1] += ((x.double() / peak).square_() * one).nan_to_num_(0.0).round_().long().sum()

    counts = gather(_BINS + 2, add)
    lower = counts[:_BINS].flip(0) if negative else counts[:_BINS]
    found = _first_above(lower, rank)
    bits = (upper << 16) + (_BINS - 1 - found if negative else found)
    median = torch.tensor(bits, dtype=torch.int32).view(torch.float32).item() + 0.0  # not -0
    return median, math.sqrt(int(counts[-1]) / one / count) * peak


def _gather(
    pieces: Callable[[], Iterator[Tensor]],
    reduce: Callable[[Tensor], Tensor] | None,
    size: int,
    count: Callable[[_Tally, Tensor], None],
) -> Tensor:
    """A ``Gather``, once the first two arguments are bound: int64 counts on the host, summed over the processes."""
    tally = _Tally(torch.zeros(size, dtype=torch.int64))
    for x in pieces():
        if x.device != tally.counts.device:
            tally.flush()
            tally = _Tally(tally.counts.to(x.device))
        for part in _parts(x):
            count(tally, part)
        del x, part  # before the next piece is made
    tally.flush()
    return (tally.counts if reduce is None else reduce(tally.counts)).cpu()


def _parts(x: Tensor) -> tuple[Tensor, ...]:
    """The elements in parts that fit the caches."""
    if not x.is_floating_point():
        raise ValueError(f"order statistics need tensors of a floating dtype, got {x.dtype}")
    parts: tuple[Tensor, ...] = x.detach().reshape(-1).split(piece_elements(x.device))
    return parts


def _count(tally: _Tally, x: Tensor) -> None:
    """Add a part to the counts of a histogram."""
    tally.add(x.float().view(torch.int32) >> 16, signed=True)
    if x.dtype != torch.bfloat16:
        tally.counts[-1] += x.numel()


def _first_above(counts: Tensor, rank: int) -> int:
    """The bin that holds the value of a rank."""
    return int((counts.cumsum(0) <= rank).sum())


@functools.cache
def _bin_values(exact: bool) -> Tensor:
    """The float64 midpoint of each finite bin in ascending order; ``exact``: its end that is nearer to zero."""
    bits = (torch.arange(_FINITE, dtype=torch.int32) << 16) + (0 if exact else _BINS // 2)
    positive = bits.view(torch.float32).double()
    positive[:_EDGE] = 0.0
    return torch.cat((0.0 - positive.flip(0), positive))
