"""Rounding at random: unbiased, exact where it can be, repeatable; and the compensation that loses nothing.

A z-test here has a fixed seed: it is a number, which was below 4 when the test was written, not a chance of failing.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from steepest.kernels import rounding
from steepest.kernels.rounding import (
    PERIOD,
    dequantize,
    kahan_add,
    kahan_join,
    kahan_split,
    lanes,
    noise,
    noise_key,
    noise_pairs,
    quantize,
    round_stochastic,
    scales_shape,
)

EVERY_BF16 = torch.arange(-(1 << 15), 1 << 15, dtype=torch.int32).to(torch.int16).view(torch.bfloat16)
ALL_NOISE = torch.arange(1 << 16, dtype=torch.int32)
SHAPES = [(), (0,), (1,), (7,), (3, 5), (256,), (300,), (2, 0, 3), (4, 8, 16)]


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).standard_normal(shape)).float()


def same_bits(a: torch.Tensor, b: torch.Tensor) -> bool:
    kind = torch.int16 if a.itemsize == 2 else torch.int32
    return a.dtype == b.dtype and torch.equal(a.contiguous().view(kind), b.contiguous().view(kind))


def z_of_mean(values: torch.Tensor, expected: float = 0.0) -> float:
    """Standard errors between the mean of independent values and what it should be."""
    values = values.double().flatten()
    return (values.mean().item() - expected) / (values.std().item() / math.sqrt(len(values)))


# --- the noise


@pytest.mark.parametrize("flip", [1, 0x1234, 0xFFFF])
def test_a_flip_exchanges_all_numbers(flip):
    """So over the 2^16 flips each element has every number once: exactly uniform."""
    plain, flipped = (noise(PERIOD + 10, (7, 9, number)) for number in (0, flip))
    assert plain.dtype == torch.int32
    assert torch.equal(flipped, plain ^ flip)


def test_the_numbers_of_a_tile_are_uniform_by_themselves():
    tile = noise(PERIOD, (0, 0, 0))
    assert 0 <= tile.min() <= tile.max() < 1 << 16
    for numbers in (tile, tile[::2], tile[1::2]):
        for bits in (0, 8):
            counts = torch.bincount(numbers >> bits & 0xFF, minlength=256)
            expected = len(numbers) / 256
            chi2 = ((counts - expected).square() / expected).sum().item()
            assert chi2 < 255 + 4 * math.sqrt(2 * 255)


def test_neighbours_at_any_distance_are_uncorrelated():
    """A period of independent numbers has 2^18 - 1 correlations of size 1/512, the largest about 4.9 times that."""
    tile = noise(PERIOD, (0, 0, 0)).double()
    for values, far in ((tile, 11), (tile.square(), 16), ((tile >= 1 << 15).double(), 16)):
        spectrum = torch.fft.rfft((values - values.mean()) / values.std(correction=0)).abs().square()
        assert spectrum[1:].max() / PERIOD < 18  # no frequency stands out: exponentially distributed, the largest 12
        correlations = torch.fft.irfft(spectrum).div(PERIOD)[1:].abs()
        assert correlations[:5000].max() < 6 / 512
        assert correlations.max() < far / 512


def test_one_element_over_the_steps():
    """Uniform, and independent of its past, of its neighbour and of the elements of other periods and tensors."""
    steps = 1500
    n = 5 * PERIOD
    columns = {name: [] for name in ("element", "neighbour", "next period", "fifth period", "tensor", "seed")}
    for step in range(steps):
        key, position = noise_key(3, step, 0), 12345
        tile = [int(noise(1, key, start=position + shift)) for shift in (0, 1, PERIOD, n - PERIOD)]
        others = [int(noise(1, other, start=position)) for other in (noise_key(3, step, 1), noise_key(4, step, 0))]
        for column, value in zip(columns.values(), tile + others, strict=True):
            column.append((value + 0.5) / (1 << 16) - 0.5)
    values = {name: torch.tensor(column, dtype=torch.float64) for name, column in columns.items()}
    x = values["element"]
    for name, y in values.items():
        assert abs(z_of_mean(y)) < 4, name
        assert abs(z_of_mean(y.square(), 1 / 12)) < 4, name
        if name != "element":
            assert abs(z_of_mean(x * y)) < 4, name
    for lag in (1, 2, 3, 7, 100):
        assert abs(z_of_mean(x[lag:] * x[:-lag])) < 4, lag


def test_the_noise_is_a_function_of_its_arguments_and_leaves_random_generators_alone():
    torch.manual_seed(0)
    before = torch.get_rng_state()
    first = noise(1000, noise_key(7, 12, 3), start=5).clone()
    assert torch.equal(torch.get_rng_state(), before)
    rounding._tile.cache_clear()  # as in a new process
    rounding._hashes.cache_clear()
    rounding.lanes.cache_clear()
    assert torch.equal(noise(1000, noise_key(7, 12, 3), start=5), first)
    assert first[:4].tolist() == [52228, 1787, 51212, 40906]  # and in the next version


def test_any_counter_changes_the_key():
    keys = [(0, 0), (0, 1), (1, 0), (0, 0, 0), (0, 0, 1), (0, 1, 0), (1, 0, 0), (-1, 0), (0, 0, 0, 0), (0, 0, 0, 1)]
    keys += [(5, step, index) for step in range(30) for index in range(30)]
    offsets = {noise_key(*key)[:2] for key in keys}
    assert len(offsets) == len(keys)
    assert all(0 <= number < 1 << 17 for pair in offsets for number in pair)
    flips = [noise_key(5, step)[2] for step in range(1000)]
    assert len(set(flips)) > 980
    assert 0 <= min(flips) < 1000
    assert 64000 < max(flips) < 1 << 16
    assert noise_key(5, 3, 1, 2)[2] == flips[3]  # one tile for all tensors of a step


@pytest.mark.parametrize(("start", "n"), [(0, 1), (0, PERIOD), (3, PERIOD), (PERIOD, 10), (PERIOD - 5, 9), (0, 0)])
def test_pieces_have_the_noise_of_the_whole(start, n):
    key = noise_key(1, 2)
    whole = noise(3 * PERIOD, key)
    assert torch.equal(noise(n, key, start=start), whole[start : start + n])


@pytest.mark.parametrize("key", [(0, 0, 0), (131071, 131071, 65535), (777, 4242, 17), noise_key(1, 2, 3)])
def test_pairs_are_the_same_noise(key):
    for length, rows, start in ((16, 5, 0), (4096, 100, 0), (4096, 100, 3 * 4096), (PERIOD // 2, 3, PERIOD)):
        expected = noise(2 * rows * length, key, start=2 * start)
        for given in (key, tuple(torch.tensor(number, dtype=torch.int32) for number in key)):
            pairs = noise_pairs(lanes(length, torch.device("cpu")), rows, given, start)
            assert torch.equal(torch.stack(pairs, -1).flatten(), expected)


def test_a_piece_is_a_view():
    assert noise(PERIOD, (5, 6, 7)).untyped_storage().data_ptr() == noise(3, (1, 2, 7)).untyped_storage().data_ptr()


def test_noise_is_made_on_the_device():
    assert noise(5, (0, 0, 0), "meta").device.type == "meta"
    assert noise_pairs(lanes(4, torch.device("meta")), 5, (0, 0, 0))[0].device.type == "meta"


# --- stochastic rounding to bfloat16


@pytest.mark.parametrize("number", [0, 1, 1 << 15, (1 << 16) - 1])
def test_bfloat16_values_stay_bit_for_bit(number):
    finite = EVERY_BF16[~EVERY_BF16.isnan()]
    assert len(finite) == (1 << 16) - 2 * 127
    x = finite.float()
    assert same_bits(round_stochastic(x, torch.full_like(x, number, dtype=torch.int32)), finite)
    nans = EVERY_BF16[EVERY_BF16.isnan()].float()
    assert round_stochastic(nans, torch.full_like(nans, number, dtype=torch.int32)).isnan().all()


def test_each_neighbour_has_its_exact_share_of_the_noise():
    """Counted over all 2^16 numbers: exact up to the float64 that adds them up."""
    x = torch.cat([normal(40) * 10.0 ** torch.arange(-20, 20), torch.tensor([1e-40, -1e-45, 3.3e38, 1 + 2**-23])])
    for value in x:
        rounded = round_stochastic(value.expand(1 << 16), ALL_NOISE)
        low, high = rounded.min().double(), rounded.max().double()
        neighbours = {low.item(), high.item()}
        assert set(rounded.double().unique().tolist()) == neighbours
        assert low <= value.double() <= high
        assert high - low <= 2**-7 * max(abs(low), abs(high)) + 1e-40  # next to each other
        assert rounded.double().mean() == value.double()


def test_what_is_beyond_the_largest_bfloat16():
    """As in any rounding: to the largest, or to infinity."""
    top = torch.finfo(torch.bfloat16).max
    x = torch.tensor([torch.finfo(torch.float32).max, -torch.finfo(torch.float32).max])
    for number, expected in ((0, [top, -top]), ((1 << 16) - 1, [math.inf, -math.inf])):
        assert round_stochastic(x, torch.full((2,), number, dtype=torch.int32)).tolist() == expected


@pytest.mark.parametrize("shape", SHAPES)
def test_shapes_layouts_and_results(shape):
    x = normal(*shape)
    before = x.clone()
    flat = noise(x.numel(), noise_key(0, 0))
    y = round_stochastic(x, flat)
    assert y.shape == x.shape
    assert y.dtype == torch.bfloat16
    assert torch.equal(x, before)
    assert same_bits(round_stochastic(x, flat.view(shape)), y)
    wide = round_stochastic(x, flat, torch.float32)
    assert wide.dtype == torch.float32
    assert same_bits(wide.to(torch.bfloat16), y)
    assert torch.equal(wide, y.float())


def test_strided_tensors_are_read_by_position():
    x = normal(6, 8).T
    numbers = noise(48, noise_key(0, 0))
    assert same_bits(round_stochastic(x, numbers), round_stochastic(x.contiguous(), numbers))


def test_tiny_changes_add_up_with_the_variance_of_a_fair_coin():
    """Increments of a thousandth of the distance of bfloat16 numbers: to nearest nothing would ever happen."""
    n, steps, increment = 4096, 8000, 1e-5
    x = torch.ones(n)
    for step in range(steps):
        x = round_stochastic(x + increment, noise(n, noise_key(1, step)), torch.float32)
    change = x.double() - 1
    assert torch.equal((torch.ones(n) + increment).bfloat16(), torch.ones(n, dtype=torch.bfloat16))
    moved = (torch.ones(1) + increment).double().item() - 1  # float32 has its own rounding before ours
    assert abs(z_of_mean(change, steps * moved)) < 4
    # Each step is a coin with p = increment / 2^-7 for a jump of 2^-7.
    p = moved * 2**7
    ideal = steps * p * (1 - p) * 2**-14
    assert abs(change.var().item() / ideal - 1) < 4 * math.sqrt(2 / n)
    # No two of them go together, near or far, nor do rows and columns of a matrix of them.
    z = (change - change.mean()) / change.std()
    for distance in (1, 2, 64, 1000, 2048):
        assert abs(z_of_mean(z * z.roll(distance))) < 4, distance
    for side in (0, 1):
        assert abs(z.view(64, 64).mean(side).square().sum().item() - 64 / 64) < 4 * math.sqrt(2 * 64) / 64


def test_decay_is_not_lost():
    """w <- (1 - 1e-4) w for 5000 steps: bfloat16 alone would not move."""
    n, steps, keep = 2048, 5000, 1 - 1e-4
    start = (1 + torch.arange(n) / n).bfloat16()
    x = start.float()
    for step in range(steps):
        x = round_stochastic(x * keep, noise(n, noise_key(2, step)), torch.float32)
    share = x.double() / start.double()
    assert torch.equal((start.float() * keep).bfloat16(), start)
    expected = torch.tensor(keep, dtype=torch.float32).double().item() ** steps
    assert abs(z_of_mean(share, expected)) < 4
    assert share.std() < 0.1


def test_an_average_over_many_steps_is_not_lost():
    """A bfloat16 average with beta = 0.999 of a gradient of mean 1: to nearest it stops far below."""
    n, steps, beta = 1024, 4000, 0.999
    stochastic, nearest = torch.zeros(n), torch.zeros(n)
    for step in range(steps):
        gradient = 1 + 0.1 * normal(n, seed=step)
        nearest = torch.lerp(nearest, gradient, 1 - beta).bfloat16().float()
        average = torch.lerp(stochastic, gradient, 1 - beta)
        stochastic = round_stochastic(average, noise(n, noise_key(0, step)), torch.float32)
    assert abs(z_of_mean(stochastic, 1 - beta**steps)) < 4
    assert nearest.mean() < 0.7


# --- 8-bit codes


def rows(x: torch.Tensor) -> torch.Tensor:
    """One for each index of the first axis; a vector is one."""
    return x.flatten(1) if x.ndim > 1 else x.reshape(1, -1)


def peaks(scales: torch.Tensor, shape: tuple[int, ...], block: int) -> torch.Tensor:
    """The scale of each element."""
    row = math.prod(shape[1:]) if len(shape) > 1 else math.prod(shape)
    return rows(scales).double().repeat_interleave(block, 1)[:, :row].reshape(shape)


def exact(codes: torch.Tensor, scales: torch.Tensor, block: int) -> torch.Tensor:
    peak = peaks(scales, codes.shape, block)
    return codes.double().sign() * (codes.double() / 127) ** 2 * peak


@pytest.mark.parametrize("block", [1, 3, 256, 1000])
@pytest.mark.parametrize("shape", SHAPES)
def test_codes_are_next_to_the_value(shape, block):
    x = normal(*shape) ** 3
    before = x.clone()
    codes, scales = quantize(x, noise(x.numel(), noise_key(0, 0)), block)
    assert (codes.dtype, scales.dtype) == (torch.int8, torch.float32)
    assert codes.shape == x.shape
    assert scales.shape == scales_shape(x.shape, block)
    assert rows(scales).shape[1:] == (-(-rows(x).shape[1] // block),)
    assert torch.equal(x, before)
    assert codes.numel() == 0 or codes.int().abs().max() <= 127
    if x.numel():
        peak = peaks(scales, shape, block)
        largest = [part.abs().max() for row in rows(x) for part in row.split(block)]
        assert torch.equal(scales.flatten(), torch.stack(largest))
        position = (x.double().abs() / peak).sqrt() * 127
        assert ((codes.abs() - position).abs() < 1 + 1e-4).all()  # one of the two codes around it
        assert (codes * x.sign() >= 0).all()  # never of the wrong sign
    y = dequantize(codes, scales, block)
    assert y.dtype == torch.float32
    torch.testing.assert_close(y.double(), exact(codes, scales, block), rtol=1e-6, atol=0)


@pytest.mark.parametrize("shape", [(6, 300), (6, 5), (6, 2, 150), (6, 4, 16, 16)])
def test_some_rows_have_the_codes_they_have_in_the_whole(shape):
    x, numbers = normal(*shape), noise(math.prod(shape), noise_key(0, 0)).view(shape)
    whole = quantize(x, numbers)
    for some in (slice(0, 1), slice(2, 5), slice(5, 6), slice(3, 3)):
        for part, expected in zip(quantize(x[some], numbers[some]), whole, strict=True):
            assert torch.equal(part, expected[some])


def test_each_code_has_its_exact_share_of_the_noise():
    for value in [0.0, 1e-6, 3.1e-5, 0.0123, -0.2, 0.5, 0.99, 0.9999, 1.0, -1.0]:
        x = torch.stack([torch.full((1 << 16,), value), torch.ones(1 << 16)], dim=1)
        codes, scales = quantize(x, ALL_NOISE.repeat_interleave(2).view_as(x), 2)
        mean = exact(codes, scales, 2)[:, 0].mean().item()
        # 2^16 numbers tell the shares of two values that are 2 k + 1 squares of a code apart to 2^-16 of that.
        gap = (2 * int(math.sqrt(abs(value)) * 127) + 1) / 127**2
        assert abs(mean - value) < gap * 2**-15 + 2e-7 * abs(value), value
        assert len(codes[:, 0].unique()) <= 2


def test_the_largest_of_a_block_stays():
    x = normal(1000)
    x[::100] *= 50
    codes, scales = quantize(x, torch.full((1000,), (1 << 16) - 1, dtype=torch.int32), 100)
    largest = torch.stack([part[part.abs().argmax()] for part in x.split(100)])
    assert codes.abs().max() == 127
    torch.testing.assert_close(dequantize(codes, scales, 100)[codes.abs() == 127][:10], largest, rtol=2e-7, atol=0)


@pytest.mark.parametrize("scale", [1e-44, 1e-38, 1e-20, 1.0, 1e20, 3e38])
def test_blocks_of_any_size(scale):
    """Down to the subnormal numbers; only the order of magnitude is then to be had."""
    x = torch.linspace(-1, 1, 256) * scale
    codes, scales = quantize(x, noise(256, noise_key(0, 0)))
    assert codes.abs().max() == 127
    y = dequantize(codes, scales)
    assert y.isfinite().all()
    assert (y - x).abs().max() <= scale * (0.017 if scale > 1e-38 else 1.5)


def test_momentum_in_codes_is_unbiased_beside_an_outlier():
    """Averages of gradients, some columns a hundred times the others, against the same in float64."""
    n, steps, beta = 1 << 14, 200, 0.9
    size = torch.ones(n)
    size[::200] = 100
    wide, narrow = torch.zeros(n, dtype=torch.float64), torch.zeros(n)
    for step in range(steps):
        gradient = normal(n, seed=step) * size
        wide = beta * wide + (1 - beta) * gradient
        narrow = beta * narrow + (1 - beta) * gradient
        narrow = dequantize(*quantize(narrow, noise(n, noise_key(0, step))))
    error = (narrow - wide) / size
    assert abs(z_of_mean(error)) < 4
    assert abs(z_of_mean(error * wide.sign())) < 4  # and neither shrunk nor blown up
    assert (error.square().mean() / (wide / size).square().mean()).sqrt() < 0.2  # 0.8 with evenly spaced codes


def test_decay_is_not_lost_in_codes():
    n, steps, keep = 4096, 2000, 1 - 1e-3
    x = start = 0.1 + torch.arange(n) / n
    for step in range(steps):
        x = dequantize(*quantize(x * keep, noise(n, noise_key(0, step))))
    inner = torch.arange(n) % 256 < 250  # the largest of a block is always rounded to itself, the rest at random
    assert abs(z_of_mean((x / start)[inner], keep**steps)) < 4


def test_blocks_of_zeros_and_of_what_is_not_finite():
    x = normal(5, 256)
    x[1] = 0
    x[2, 3] = math.inf
    x[3, 4] = math.nan
    codes, scales = quantize(x, noise(5 * 256, noise_key(0, 0)))
    assert scales.flatten().isnan().tolist() == [False, False, True, True, False]
    assert scales[1] == 0
    y = dequantize(codes, scales)
    assert not y[1].any()
    assert y[2:4].isnan().all()  # seen at once, not averaged away
    assert y[[0, 4]].isfinite().all()


def test_blocks_follow_the_order_of_the_elements():
    x = normal(6, 8).T
    numbers = noise(48, noise_key(0, 0))
    for strided, plain in zip(quantize(x, numbers, 5), quantize(x.contiguous(), numbers, 5), strict=True):
        assert torch.equal(strided, plain)


# --- compensation


def test_a_float32_comes_back_bit_for_bit():
    halves = torch.cat([EVERY_BF16[EVERY_BF16.isfinite()].float().view(torch.int32) + low for low in (0, 1, 0x7FFF)])
    upper = torch.cat([EVERY_BF16[EVERY_BF16.isfinite()].float().view(torch.int32) + low for low in (0x8000, 0xFFFF)])
    x = torch.cat([halves, upper]).view(torch.float32)
    x = torch.cat([x, torch.tensor([math.inf, -math.inf])])
    param, remainder = kahan_split(x)
    assert (param.dtype, remainder.dtype) == (torch.bfloat16, torch.int16)
    wide = kahan_join(param, remainder)
    small = x.view(torch.int32) & 0x7FFFFFFF < 0x8000  # less than half the smallest bfloat16
    assert same_bits(wide[~small], x[~small])
    assert same_bits(wide[small], 0 * x[small])
    tie = x.view(torch.int32) & 0xFFFF == 0x8000
    assert torch.equal(param[~tie], x[~tie].bfloat16())
    assert kahan_join(*kahan_split(torch.tensor([math.nan, -math.nan]))).isnan().all()


def test_training_with_a_remainder_is_float32_bit_for_bit():
    wide = normal(1000)
    param, remainder = kahan_split(wide)
    for step in range(50):
        update, keep = 1e-3 * normal(1000, seed=step), 1 - 1e-5 * step
        wide = wide * keep + update
        before = param.clone(), remainder.clone()
        new = kahan_add(param, remainder, update, keep)
        assert torch.equal(param, before[0])
        assert torch.equal(remainder, before[1])
        param, remainder = new
    assert same_bits(kahan_join(param, remainder), wide)


def test_ten_thousand_tiny_updates():
    """Of 3e-7, and decay by 1e-6: below what a compensation kept in bfloat16 resolves."""
    n, steps, update, keep = 512, 10_000, -3e-7, 1 - 1e-6
    start = (1 + torch.arange(n) / n).bfloat16()
    exactly = start.double()
    nearest, coin, classic, lost = start, start, start, torch.zeros_like(start)
    param, remainder = start, torch.zeros(n, dtype=torch.int16)
    u = torch.full((n,), update)
    for step in range(steps):
        exactly = exactly * keep + update
        nearest = (nearest.float() * keep + u).bfloat16()
        coin = round_stochastic(coin.float() * keep + u, noise(n, noise_key(0, step)))
        total = (classic.float() + lost.float()) * keep + u
        classic = total.bfloat16()
        lost = (total - classic.float()).bfloat16()
        param, remainder = kahan_add(param, remainder, u, keep)
    change = (exactly - start.double()).abs().mean()

    def error(x: torch.Tensor) -> float:
        return ((x.double() - exactly).abs().mean() / change).item()

    assert torch.equal(nearest, start)
    wide = kahan_join(param, remainder)
    assert error(wide) < 0.05
    assert abs(z_of_mean(coin.double() - exactly)) < 4
    assert error(classic.float() + lost.float()) > 0.9


def test_a_parameter_that_was_changed_meanwhile():
    """Its remainder is of another number: at most half a unit in the last place, and zero stays zero."""
    _, remainder = kahan_split(normal(1 << 12))
    for value in (0.0, -0.0, 1.5, -3e-5):
        param = torch.full((1 << 12,), value, dtype=torch.bfloat16)
        wide = kahan_join(param, remainder)
        assert ((wide - param.float()).abs() <= 2**-8 * abs(value)).all()
        assert torch.equal(wide.signbit(), param.signbit())


# --- bad input


@pytest.mark.parametrize("function", [round_stochastic, quantize])
def test_refusals_of_rounding(function):
    x, numbers = normal(2, 3), noise(6, noise_key(0, 0))
    for dtype in (torch.bfloat16, torch.float64, torch.int32):
        with pytest.raises(ValueError, match=rf"{function.__name__} rounds float32, got {dtype}; convert it first"):
            function(x.to(dtype), numbers)
    with pytest.raises(ValueError, match=r"noise of int32 and of shape \(2, 3\) or \(6,\), got torch.float32 \(6,\)"):
        function(x, numbers.float())
    for wrong in (numbers[:5], numbers.view(3, 2), numbers.view(1, 6), numbers[0]):
        with pytest.raises(ValueError, match=r"noise of int32 and of shape \(2, 3\)"):
            function(x, wrong)


def test_refusals_of_codes():
    x, numbers = normal(300), noise(300, noise_key(0, 0))
    for block in (0, -1):
        with pytest.raises(ValueError, match=f"block must be at least 1, got {block}"):
            quantize(x, numbers, block)
    codes, scales = quantize(x, numbers)
    with pytest.raises(ValueError, match=r"codes of shape \(300,\) in blocks of 256 need.*\(2,\), got \(1,\)"):
        dequantize(codes, scales[:1])
    with pytest.raises(ValueError, match=r"blocks of 100 need scales of shape \(3,\), got \(2,\)"):
        dequantize(codes, scales, 100)
    with pytest.raises(ValueError, match=r"int8 codes and float32 scales, got torch.int32 and torch.float32"):
        dequantize(codes.int(), scales)
    with pytest.raises(ValueError, match=r"int8 codes and float32 scales, got torch.int8 and torch.float64"):
        dequantize(codes, scales.double())


def test_refusals_of_compensation():
    x = normal(4)
    with pytest.raises(ValueError, match=r"kahan_split needs float32, got torch.bfloat16"):
        kahan_split(x.bfloat16())
    param, remainder = kahan_split(x)
    for bad in ((x, remainder), (param, param), (param, remainder[:1])):
        with pytest.raises(ValueError, match="kahan_join needs a bfloat16 parameter and its int16 remainder"):
            kahan_join(*bad)
        with pytest.raises(ValueError, match="kahan_join"):
            kahan_add(*bad, x)
