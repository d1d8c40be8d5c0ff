"""How values are kept in few bits: the one place where parameters and buffers are read for a step and stored after."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

import torch
from torch import Tensor

from steepest.engine.tensors import TensorList
from steepest.kernels.rounding import (
    dequantize,
    kahan_join,
    kahan_split,
    noise,
    noise_key,
    noise_pairs,
    quantize,
    round_stochastic,
)
from steepest.rules.base import REMAINDER, Rule, scales_key

T = TypeVar("T", Tensor, TensorList)

# Tensors of fewer elements are rounded together.
_SMALL = 1 << 16
# Pairs of elements in a row of a compiled step: at most as many as can be, at least so many that it pays.
_ROW, _SHORT = 1 << 12, 1 << 4


class Place(NamedTuple):
    """Which elements of which parameter, and at which step: what the noise of their rounding is a function of.

    Attributes:
        seed: of the rule.
        step: 0-based step of the parameter.
        number: of the parameter in the optimizer.
        shape: of the whole tensor.
        origin: where in it the part of this process begins.
        local: shape of that part.
        first: the element of that part with which this piece of it begins.
    """

    seed: int
    step: int
    number: int
    shape: torch.Size
    origin: tuple[int, ...]
    local: torch.Size
    first: int = 0

    @property
    def contiguous(self) -> bool:
        """Whether the elements of the part are consecutive in the whole: a shard along the first axis, or all."""
        return self.local[1:] == self.shape[1:]

    def at(self, first: int) -> Place:
        """The piece that begins with another element."""
        return self._replace(first=first)

    @property
    def start(self) -> int:
        """The position in the whole of the first element of a contiguous piece."""
        return (self.origin[0] * self.shape[1:].numel() if self.origin else 0) + self.first

    def key(self, entry: int) -> tuple[int, int, int]:
        """Of the noise; ``entry`` is 0 for the parameter, then counts buffers."""
        return noise_key(self.seed, self.step, self.number, entry)

    def noise(self, entry: int, x: Tensor) -> Tensor:
        """The numbers for the elements of a piece, flat."""
        key, row = self.key(entry), self.shape[1:].numel()
        if self.contiguous:
            return noise(x.numel(), key, x.device, self.start)
        # Pieces of such a part are some of its rows: the noise of whole rows, of which the others have the rest.
        start = self.origin[0] + self.first // max(1, self.local[1:].numel())
        whole = noise(len(x) * row, key, x.device, start * row).view(len(x), *self.shape[1:])
        for axis, (begin, length) in enumerate(zip(self.origin[1:], x.shape[1:], strict=True), start=1):
            whole = whole.narrow(axis, begin, length)
        return whole.flatten()


@dataclass(frozen=True)
class Noise:
    """The noise of one entry of a parameter, of a piece of it, or of a list of such."""

    entry: int
    places: Sequence[Place]

    def numbers(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """For each tensor, flat."""
        return [place.noise(self.entry, x) for place, x in zip(self.places, tensors, strict=True)]

    def counters(self) -> Sequence[Tensor]:
        """Of one piece, what ``packed`` needs beside lanes: the key, and where it begins, in pairs of elements."""
        (place,) = self.places
        return torch.tensor([*place.key(self.entry), place.start // 2], dtype=torch.int32).unbind()


class Value(Protocol[T]):
    """What a step reads and stores."""

    def load(self, like: T | None = None) -> T:
        """The values in the dtype of ``like``, or in their compute dtype; may be the memory itself."""

    def store(self, values: T) -> None:
        """Write loaded values back, unless they are the memory itself."""


@dataclass(frozen=True)
class Kept(Generic[T]):
    """A parameter or a buffer as it lies in memory, or a piece or a list of them.

    Attributes:
        main: the values themselves, or 8-bit codes, or the bfloat16 part of values under Kahan compensation.
        beside: the scales of the codes, or the rest of the values.
        noise: of values that are rounded at random.
    """

    main: T
    beside: T | None = None
    noise: Noise | None = None

    def load(self, like: T | None = None) -> T:
        """See ``Value``."""
        main: Any = self.main
        if self.beside is not None:
            main = _each(dequantize if main.dtype == torch.int8 else kahan_join, main, self.beside)
        values: T = cast(main, compute_dtype(main.dtype) if like is None else like.dtype)
        return values

    def store(self, values: T) -> None:
        """See ``Value``."""
        main: Any = self.main
        if values is main:
            return
        if self.beside is None and self.noise is None:
            main.copy_(values)
            return
        values = cast(values, torch.float32)
        noises = self.noise.numbers(_tensors(main)) if self.noise is not None else []
        if self.beside is None:
            _round(_tensors(main), _tensors(values), noises)
            return
        for i, (x, main_i, beside_i) in enumerate(
            zip(_tensors(values), _tensors(main), _tensors(self.beside), strict=True)
        ):
            new = quantize(x, noises[i]) if noises else kahan_split(x)
            main_i.copy_(new[0])
            beside_i.copy_(new[1])


@dataclass(slots=True)  # one is made for each parameter at each step: quick to make
class Operands(Generic[T]):
    """What a step of one parameter reads and writes: the local shards, or matching pieces, or lists of such.

    Attributes:
        rule: what the buffers are of.
        keys: of the state that is here.
        tensors: parameter, gradient, then the state under these keys.
        places: for each tensor of a list.
    """

    rule: Rule
    keys: tuple[str, ...]
    tensors: Sequence[T]
    places: Sequence[Place]

    @property
    def numel(self) -> int:
        """Elements of a piece, not of a list."""
        return self.tensors[0].numel()  # type: ignore[attr-defined, no-any-return]

    @property
    def device(self) -> torch.device:
        """Of all tensors."""
        return self.tensors[0].device

    @property
    def grad(self) -> T:
        """The gradient."""
        return self.tensors[1]

    @property
    def param(self) -> Kept[T]:
        """The parameter."""
        main = self.tensors[0]
        rounded = self.rule.param_rounding == "stochastic" and main.dtype == torch.bfloat16
        return Kept(main, self._under(REMAINDER), Noise(0, self.places) if rounded else None)

    @property
    def state(self) -> dict[str, Kept[T]]:
        """The buffers."""
        kept = {}
        for entry, name in enumerate(self.rule.buffers, start=1):
            if name in self.keys:
                main = self._under(name)
                assert main is not None
                rounded = main.dtype in {torch.bfloat16, torch.int8}
                kept[name] = Kept(main, self._under(scales_key(name)), Noise(entry, self.places) if rounded else None)
        return kept

    @property
    def rounded(self) -> bool:
        """Whether anything here is rounded at random, or kept in two parts."""
        return any(kept.noise is not None or kept.beside is not None for kept in self.kept().values())

    def kept(self) -> dict[str, Kept[T]]:
        """All that is stored: the parameter, under no name, and the buffers."""
        return {"": self.param, **self.state}

    def piece(self, tensors: Sequence[T], first: int) -> Operands[T]:
        """Matching pieces, which begin at an element of the local shard."""
        return replace(self, tensors=tensors, places=[self.places[0].at(first)])

    def _under(self, key: str) -> T | None:
        return self.tensors[2 + self.keys.index(key)] if key in self.keys else None


def together(group: Sequence[Operands[Tensor]]) -> Operands[TensorList]:
    """Operands of one layout as one of lists."""
    columns = [TensorList(column) for column in zip(*(each.tensors for each in group), strict=True)]
    return Operands(group[0].rule, group[0].keys, columns, [each.places[0] for each in group])


class Half:
    """Every second element of a tensor, as values alone: a ``Value`` of a compiled step, see ``unpacked``."""

    def __init__(self, values: Tensor) -> None:
        self.values = values

    def load(self, like: Tensor | None = None) -> Tensor:
        """The values."""
        return self.values

    def store(self, values: Tensor) -> None:
        """Keep them; ``packed`` writes them."""
        self.values = values


def pairs(each: Operands[Tensor]) -> list[Tensor] | None:
    """Flat tensors as rows of integers of two neighbours, of which one hash makes the noise; None if impossible."""
    (place,) = each.places
    kinds = {torch.float32: torch.int64, torch.bfloat16: torch.int32}
    aligned = all(t.dtype in kinds and t.storage_offset() % 2 == 0 for t in each.tensors)
    # Rows as long as they can be: the largest power of two up to a bound that divides the number of pairs, and places.
    length = math.gcd(each.numel, place.start, 2 * _ROW) // 2
    if length < _SHORT or place.start + each.numel >= 1 << 32 or not aligned or sys.byteorder != "little":
        return None
    if any(kept.beside is not None for kept in each.kept().values()):
        return None
    return [t.view(-1).view(kinds[t.dtype]).view(-1, length) for t in each.tensors]


def unpacked(pair: Tensor) -> tuple[Tensor, Tensor]:
    """The values of the first and of the second of each two neighbours, in float32."""
    if pair.dtype == torch.int32:
        return (pair << 16).view(torch.float32), (pair & -1 << 16).view(torch.float32)
    return pair.to(torch.int32).view(torch.float32), (pair >> 32).to(torch.int32).view(torch.float32)


def packed(first: Tensor, second: Tensor, dtype: torch.dtype, noise: tuple[Tensor, Sequence[Tensor] | None]) -> Tensor:
    """The reverse; at random where there are, beside the lanes, counters of a ``Noise``."""
    if dtype == torch.int64:
        return second.view(torch.int32).to(dtype) << 32 | first.view(torch.int32).to(dtype) & (1 << 32) - 1
    lanes, counters = noise
    if counters is None:  # to nearest, ties to even; a conversion there and back would be left out by the compiler
        numbers = [(x.view(torch.int32) >> 16 & 1) + ((1 << 15) - 1) for x in (first, second)]
    else:
        offset, stride, flip, start = counters
        numbers = list(noise_pairs(lanes, len(first), (offset, stride, flip), start))
    low, high = (round_stochastic(x, n, torch.float32) for x, n in zip((first, second), numbers, strict=True))
    return low.view(torch.int32) >> 16 & (1 << 16) - 1 | high.view(torch.int32)


def cast(x: T, dtype: torch.dtype) -> T:
    """``x`` in another dtype; itself if it has it."""
    if isinstance(x, TensorList):
        return x if x.dtype == dtype else x.apply(lambda t: t.to(dtype))
    return x.to(dtype)


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype of the arithmetic on a parameter: its own, at least float32."""
    return dtype if dtype.itemsize >= 4 else torch.float32


def _round(targets: Sequence[Tensor], values: Sequence[Tensor], noises: Sequence[Tensor]) -> None:
    """Store float32 values at random in bfloat16 tensors; a list of small ones in a few calls for all."""
    if len(targets) == 1 or targets[0].numel() >= _SMALL:
        for target, x, numbers in zip(targets, values, noises, strict=True):
            target.copy_(round_stochastic(x, numbers, torch.float32))
        return
    flat = round_stochastic(torch.cat([x.reshape(-1) for x in values]), torch.cat(list(noises)), torch.float32)
    pieces = flat.split([x.numel() for x in values])
    torch._foreach_copy_(list(targets), [piece.view(x.shape) for piece, x in zip(pieces, values, strict=True)])


def _tensors(x: Tensor | TensorList) -> list[Tensor]:
    return x.tensors if isinstance(x, TensorList) else [x]


def _each(function: Callable[..., Tensor], *lists: Any) -> Any:
    """The function of tensors, or of the tensors of lists."""
    if isinstance(lists[0], TensorList):
        return TensorList([function(*tensors) for tensors in zip(*(x.tensors for x in lists), strict=True)])
    return function(*lists)
