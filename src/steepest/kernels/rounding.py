"""State and parameters in few bits without losing small changes: stochastic rounding, its noise, 8-bit codes, Kahan.

Rounding to nearest loses every change below half a unit in the last place (2^-9 of a bfloat16), so that a weight decay
of 1e-4 or an average over 1000 steps stands still. Rounding up with a probability equal to what would be cut off keeps
the expectation exact, whatever is added, as long as the arithmetic before it is in float32.
"""

from __future__ import annotations

import functools
import math

import torch
from torch import Tensor
from torch.nn.functional import pad

# Elements after which noise starts anew, at another place of the tile: the size of a piece of an element-wise step, so
# that the noise of a piece is a view.
PERIOD = 1 << 18
# Noise is made for two neighbours at a time, 16 bits each of a hash of their place among the 2^17 pairs of a period:
# multiply, fold, multiply, in int32 products that wrap around. The three numbers are among the best of 1000 random
# choices: no correlation of the hashes in order is above 0.02 at any distance, 0.01 up to 4096, and their spectrum and
# counts of pairs are those of independent numbers.
_PAIRS = PERIOD // 2
_FIRST, _FOLD, _SECOND = 448523403, 15, 672516429

# The lower half of a float32 is what a bfloat16 has not.
_LOWER = 16
_KEPT = -1 << _LOWER
_NUMBERS = (1 << _LOWER) - 1
_HALF = 1 << (_LOWER - 1)
# Codes are -127 .. 127, and code k stands for (k / 127)^2 of the largest magnitude of the block.
_LARGEST = 127
_BLOCK = 256

Key = tuple[int | Tensor, int | Tensor, int | Tensor]
"""Which noise: offset and stride below 2^17, flip below 2^16 (0-dim int32 tensors for a compiled function)."""


def noise_key(seed: int, step: int, *counters: int) -> tuple[int, int, int]:
    """Mix a seed, the step and counters (number of the tensor, of the buffer, ...) to the key of their noise.

    Any change of any of them, or of their order, gives another key (splitmix64, Steele, Lea and Flood 2014).

    Args:
        seed: any integer, of which 64 bits count.
        step: any integer. Keys of the same seed and step share a tile: use the step of the run, not of the tensor.
        *counters: any integers.

    Returns:
        Offset, stride and flip, for ``noise`` and ``noise_pairs``.
    """
    x = _mix(_mix(0, seed), step)
    flip = x & _NUMBERS
    for number in counters:
        x = _mix(x, number)
    x = _mix(x, len(counters))
    return x % _PAIRS, (x >> 32) % _PAIRS, flip


def _mix(x: int, number: int) -> int:
    x = (x ^ number) + 0x9E3779B97F4A7C15 & 0xFFFFFFFFFFFFFFFF
    x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9 & 0xFFFFFFFFFFFFFFFF
    x = (x ^ x >> 27) * 0x94D049BB133111EB & 0xFFFFFFFFFFFFFFFF
    return x ^ x >> 31


def noise(n: int, key: tuple[int, int, int], device: torch.device | str = "cpu", start: int = 0) -> Tensor:
    """Uniform 16-bit numbers for the elements ``start`` to ``start + n`` of a tensor, without a random generator.

    They depend on the key and the position alone, so that a resumed run repeats bit for bit, and pieces of a tensor
    have the noise that the whole one has. Over the keys the number of each element is exactly uniform. It costs next to
    nothing: up to 2^18 elements from a multiple of 2^18 on are a view of a tile that is made once for a step.

    Args:
        n: how many.
        key: from ``noise_key``. The same key is the same noise: use another for each step, tensor and buffer.
        device: where they are needed.
        start: position of the first, for a piece or a shard of a tensor.

    Returns:
        int32 (n,) in [0, 2^16). A view of shared memory: not to be written.
    """
    offset, stride, flip = key
    tile = _tile(torch.device(device), flip)
    parts: list[Tensor] = []
    position, end = start, start + n
    while position < end or not parts:
        block, inside = divmod(position, PERIOD)
        size = min(end - position, PERIOD - inside)
        parts.append(tile.narrow(0, 2 * ((offset + block * stride) % _PAIRS) + inside, size))
        position += size
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def noise_pairs(lanes: Tensor, rows: int, key: Key, start: int | Tensor = 0) -> tuple[Tensor, Tensor]:
    """The noise of the elements 0, 2, 4, ... and 1, 3, 5, ... of a tensor, computed: for a compiled function.

    It has no table to read and no view of varying place, and takes tensors for a key, so that one compiled function
    does for all steps. In a compiled step it costs 14 operations for two elements; uncompiled it is a slow ``noise``.

    Args:
        lanes: from ``lanes``, for rows of a length that divides 2^17. They are given because a compiler makes 45
            instructions of the first 16 integers.
        rows: how many rows the pairs of the tensor make.
        key: as for ``noise``.
        start: half the position of the first element, for a piece of a tensor; a multiple of the length of a row. Of
            the last pair the place is below 2^31.

    Returns:
        Two int32 tensors (rows, length). ``torch.stack(..., -1).flatten()`` is
        ``noise(2 * rows * length, key, start=2 * start)``.
    """
    offset, stride, flip = key
    first = torch.arange(rows, dtype=torch.int32, device=lanes.device).unsqueeze(1) * len(lanes) + start
    x = lanes + (first + (first >> 17) * stride + offset) & _PAIRS - 1
    x = x * _FIRST
    x = (x ^ x >> _FOLD) * _SECOND
    return (x & _NUMBERS) ^ flip, (x >> _LOWER & _NUMBERS) ^ flip


@functools.cache
def lanes(length: int, device: torch.device) -> Tensor:
    """The integers from 0 to ``length`` - 1; shared, not to be written."""
    with torch.inference_mode(False):
        return torch.arange(length, dtype=torch.int32, device=device)


@functools.lru_cache(maxsize=4)
def _tile(device: torch.device, flip: int) -> Tensor:
    """One period of noise, twice, so that a period from any place on is a view."""
    hashes = _hashes(device)
    return hashes if device.type == "meta" else hashes ^ flip


@functools.cache
def _hashes(device: torch.device) -> Tensor:
    with torch.inference_mode(False):  # it outlives the step that asks for it first
        return torch.stack(noise_pairs(lanes(_PAIRS, device), 1, (0, 0, 0)), dim=-1).flatten().repeat(2)


def round_stochastic(x: Tensor, noise: Tensor, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    """Round to one of the two bfloat16 neighbours, so that the expectation is ``x`` exactly.

    The noise is added to the 16 bits that a bfloat16 has not, which are then cut off: the neighbour away from zero is
    taken with the probability (x - nearer to zero) / (distance of the neighbours). Values that are bfloat16 already,
    zeros of both signs, infinities and NaN stay (of the NaN, all that arithmetic makes). Finite values between the
    largest bfloat16, 3.3895e38, and the largest float32 may become infinite, as in any rounding to bfloat16.

    Args:
        x: float32, any shape. Not changed.
        noise: int32, uniform in [0, 2^16), of the shape of ``x`` or flat with as many elements. See ``noise``.
        dtype: of the result. float32 leaves out the conversion, which is then exact, for example in
            ``buffer.copy_(round_stochastic(x, noise, torch.float32))`` for a bfloat16 buffer, which saves a copy.

    Returns:
        A new tensor of the shape of ``x``.

    Raises:
        ValueError: ``x`` is not float32, or ``noise`` not int32 or of another size.
    """
    _check(x, noise, "round_stochastic")
    bits = x.view(torch.int32) + noise.view(x.shape)
    return bits.bitwise_and_(_KEPT).view(torch.float32).to(dtype)


def scales_shape(shape: torch.Size, block: int = _BLOCK) -> torch.Size:
    """Shape of the scales of ``quantize``: (rows, blocks of a row), or (blocks,) of a vector."""
    rows = shape[:1] if len(shape) > 1 else ()
    return torch.Size((*rows, -(-math.prod(shape[len(rows) :]) // block)))


def quantize(x: Tensor, noise: Tensor, block: int = _BLOCK) -> tuple[Tensor, Tensor]:
    """8-bit codes of a tensor in blocks, rounded at random so that the expectation of what they stand for is ``x``.

    A block does not go beyond a row, that is, all elements of one index of the first axis, so that some rows of a
    tensor, as one process holds them, have the codes that they have in the whole one. A vector is one row.

    A code k in -127 .. 127 stands for sign(k) (k/127)^2 times the largest magnitude of its block. Compared with evenly
    spaced values the error of Gaussian blocks is the same, and small values beside a large one keep their size and sign
    (momentum beside an outlier a hundred times larger in 200: a fifth of the error, a quarter to a tenth of the wrong
    signs). It is meant for momentum. A second moment must not become zero where its gradient is not, and here it would,
    below 1/16129 of the largest value of its block.

    Args:
        x: float32, any shape, read in C order. Not changed.
        noise: as for ``round_stochastic``.
        block: elements of a block, at least 1; the last one of a row may be shorter.

    Returns:
        int8 codes of the shape of ``x``, and float32 scales of the shape ``scales_shape(x.shape, block)``: the largest
        magnitude of each block, or NaN for a block with an element that is not finite, all of which is then NaN.

    Raises:
        ValueError: ``x``, ``noise`` or ``block`` is not as above.
    """
    _check(x, noise, "quantize")
    blocks, u = _blocks(x, block), _blocks(noise.view(x.shape), block)
    sizes = blocks.abs()
    peaks = sizes.amax(-1, keepdim=True)
    scales = torch.where(peaks.isfinite(), peaks, torch.nan)
    # Relative to the block each size is in [0, 1] exactly; squares of codes then lie at k^2, with gaps of 2 k + 1.
    sizes = sizes.div_(torch.where(peaks > 0, peaks, 1.0)).mul_(_LARGEST**2)
    gaps = sizes.sqrt().floor_().mul_(2.0).add_(1.0)
    sizes = sizes.addcmul_(gaps, (u + 0.5).mul_(2.0**-_LOWER)).sqrt_().floor_().clamp_max_(_LARGEST)
    codes = torch.copysign(sizes, blocks).to(torch.int8)
    return _unblocked(codes, x.shape), scales.view(scales_shape(x.shape, block))


def dequantize(codes: Tensor, scales: Tensor, block: int = _BLOCK) -> Tensor:
    """What the codes of ``quantize`` stand for.

    Args:
        codes: int8, any shape.
        scales: float32 of the shape ``scales_shape(codes.shape, block)``.
        block: as in ``quantize``.

    Returns:
        float32 of the shape of ``codes``.

    Raises:
        ValueError: a dtype, the block or the number of scales does not fit.
    """
    if codes.dtype != torch.int8 or scales.dtype != torch.float32:
        raise ValueError(f"dequantize needs int8 codes and float32 scales, got {codes.dtype} and {scales.dtype}")
    values = _blocks(codes, block).to(torch.float32)
    wanted = scales_shape(codes.shape, block)
    if scales.shape != wanted:
        raise ValueError(
            f"codes of shape {tuple(codes.shape)} in blocks of {block} need scales of shape {tuple(wanted)}, "
            f"got {tuple(scales.shape)}"
        )
    values = values.mul_(values.abs()).mul_(scales.reshape(*values.shape[:2], 1) / _LARGEST**2)
    return _unblocked(values, codes.shape)


def _blocks(x: Tensor, block: int) -> Tensor:
    """As (rows, blocks of a row, block); zeros fill the last block of a row up."""
    if block < 1:
        raise ValueError(f"block must be at least 1, got {block}")
    rows = x.flatten(1) if x.ndim > 1 else x.reshape(1, -1)
    block = min(block, max(1, rows.shape[1]))  # a short row is one block, without anything to fill up
    missing = -rows.shape[1] % block
    rows = pad(rows, (0, missing)) if missing else rows
    return rows.reshape(len(rows), rows.shape[1] // block, block)


def _unblocked(blocks: Tensor, shape: torch.Size) -> Tensor:
    """The reverse."""
    row = math.prod(shape[1:]) if len(shape) > 1 else shape.numel()
    return blocks.flatten(1)[:, :row].reshape(shape)


def kahan_split(x: Tensor) -> tuple[Tensor, Tensor]:
    """A float32 as the nearest bfloat16 and the remainder: nothing is lost, but for magnitudes below 5e-41.

    Kahan's compensation carries what a rounding lost into the next addition. Kept as a bfloat16 it has 8 bits itself,
    and stops at relative changes between 2^-17 and 2^-18, as those of weight decay in fine-tuning are. Kept as the
    difference of the bit patterns, it takes the same two bytes and has all 16 bits that are missing.

    Args:
        x: float32, any shape. Not changed.

    Returns:
        bfloat16 nearest to ``x`` (of two, the one further from zero), and the int16 remainder in units of the last bit
        of ``x``: between -32768 and 32767, and 0 for infinities.

    Raises:
        ValueError: ``x`` is not float32.
    """
    if x.dtype != torch.float32:
        raise ValueError(f"kahan_split needs float32, got {x.dtype}")
    bits = x.view(torch.int32)
    nearest = (bits + _HALF).bitwise_and_(_KEPT)  # ties to even, as a conversion has them, would need a 17th bit
    return nearest.view(torch.float32).to(torch.bfloat16), (bits - nearest).to(torch.int16)


def kahan_join(param: Tensor, remainder: Tensor) -> Tensor:
    """The float32 that ``kahan_split`` took apart.

    A parameter that was changed in between, by loading weights for example, is off by at most half a unit in its last
    place; one that was set to zero is zero.

    Args:
        param: bfloat16, any shape.
        remainder: int16 of the same shape; zeros for a parameter that has none yet.

    Returns:
        float32 of that shape.

    Raises:
        ValueError: a dtype is another, or the shapes differ.
    """
    if (param.dtype, remainder.dtype) != (torch.bfloat16, torch.int16) or param.shape != remainder.shape:
        raise ValueError(
            "kahan_join needs a bfloat16 parameter and its int16 remainder, got "
            f"{param.dtype} {tuple(param.shape)} and {remainder.dtype} {tuple(remainder.shape)}"
        )
    bits = param.to(torch.float32).view(torch.int32)
    # All ones where the parameter is not zero: below zero a negative remainder would wrap around to a NaN.
    nonzero = bits << 1
    nonzero.bitwise_or_(-nonzero).bitwise_right_shift_(31)
    return bits.add_(nonzero.bitwise_and_(remainder)).view(torch.float32)


def kahan_add(param: Tensor, remainder: Tensor, update: Tensor, keep: float = 1.0) -> tuple[Tensor, Tensor]:
    """``keep * param + update`` as float32 would have it, bit for bit, for a bfloat16 parameter and its remainder.

    Args:
        param: bfloat16, any shape. Not changed.
        remainder: int16 of the same shape, as ``kahan_split`` gives it.
        update: float32 of the same shape.
        keep: what is left of the parameter, 1 - learning rate * weight decay: the decay is in the same rounding.

    Returns:
        The new parameter and the new remainder.

    Raises:
        ValueError: a dtype is another, or the shapes differ.
    """
    return kahan_split(kahan_join(param, remainder).mul_(keep).add_(update))


def _check(x: Tensor, noise: Tensor, caller: str) -> None:
    if x.dtype != torch.float32:
        raise ValueError(f"{caller} rounds float32, got {x.dtype}; convert it first")
    if noise.dtype != torch.int32 or noise.shape not in {x.shape, (x.numel(),)}:
        raise ValueError(
            f"{caller} needs noise of int32 and of shape {tuple(x.shape)} or ({x.numel()},), "
            f"got {noise.dtype} {tuple(noise.shape)}"
        )
