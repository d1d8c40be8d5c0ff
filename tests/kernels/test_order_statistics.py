"""Medians by counting against numpy, their error bounds, and that nothing but the set of the elements matters."""

from __future__ import annotations

import math
import threading
import weakref

import numpy as np
import pytest
import torch
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from steepest.kernels import order_statistics
from steepest.kernels.order_statistics import Histogram, Statistics, median_and_mad

ALWAYS_EXACT = 1 << 60
HALF_BIN = 2.0**-8
TINY = 2.0**-126


def lower_median(x: np.ndarray) -> float:
    return np.partition(x, (x.size - 1) // 2)[(x.size - 1) // 2]


def expected(x: np.ndarray) -> Statistics:
    """The definition, on the finite float32 elements of an array."""
    finite = x[np.isfinite(x)]
    zero = np.abs(finite) < TINY
    sample = finite[~zero] if 2 * zero.sum() > finite.size else finite
    known = (finite.size, int(zero.sum()), x.size - finite.size)
    if not sample.size:
        return Statistics(0.0, 0.0, 0.0, *known)
    centre = lower_median(sample)
    with np.errstate(over="ignore"):
        distance = np.minimum(np.abs(sample - centre), np.finfo(np.float32).max)
    rms = math.sqrt(np.square(sample.astype(np.float64)).mean())
    return Statistics(float(centre), float(lower_median(distance)), rms, *known)


def exact(*pieces: torch.Tensor) -> Statistics:
    return median_and_mad(lambda: iter(pieces), exact_below=ALWAYS_EXACT)


def rough(*pieces: torch.Tensor) -> Statistics:
    return median_and_mad(lambda: iter(pieces), exact_below=0)


def check(found: Statistics, wanted: Statistics) -> None:
    assert (found.centre, found.spread) == (wanted.centre, wanted.spread)
    assert found.rms == pytest.approx(wanted.rms, rel=1e-6, abs=0)
    assert (found.count, found.zeros, found.non_finite) == (wanted.count, wanted.zeros, wanted.non_finite)


def samples(n: int = 20_001) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    normal = rng.standard_normal(n)
    return {
        "normal": normal,
        "even number": normal[:-1],
        "shifted": normal + 0.5,
        "far from zero": 3.0 + 1e-3 * normal,
        "cauchy": 1e-3 * rng.standard_cauchy(n),
        "lognormal scale": normal * np.exp(2 * rng.standard_normal(n)),
        "40 % zeros": normal * (rng.random(n) < 0.6),
        "60 % zeros": normal * (rng.random(n) < 0.4),
        "one sign and zeros": np.abs(normal) * (rng.random(n) < 0.55),
        "few values": np.round(2 * normal),
        "negative": -np.exp(normal),
        "constant": np.full(n, -0.3),
        "two values": np.where(normal > 0, 0.1, -0.2),
        "tiny": 1e-30 * normal,
        "huge": 1e30 * normal,
        "around the smallest normal number": 4e-38 * normal,
    }


@pytest.mark.parametrize("name", samples())
def test_exact_results(name):
    x = samples()[name].astype(np.float32)
    check(exact(torch.from_numpy(x)), expected(x))
    check(median_and_mad(lambda: iter([torch.from_numpy(x)])), expected(x))  # 2^20 by default
    assert exact(torch.from_numpy(x)).zeros_left_out == (name == "60 % zeros")


@pytest.mark.parametrize("name", samples())
def test_one_pass_keeps_its_bounds(name):
    x = samples()[name].astype(np.float32)
    found, wanted = rough(torch.from_numpy(x)), expected(x)
    if abs(found.centre) > found.spread:
        return check(found, wanted)
    assert abs(found.centre - wanted.centre) <= HALF_BIN * abs(wanted.centre) + TINY
    assert abs(found.spread - wanted.spread) <= 4 * HALF_BIN * wanted.spread + 2 * TINY
    assert abs(found.rms - wanted.rms) <= HALF_BIN * wanted.rms + TINY
    assert (found.count, found.zeros, found.non_finite) == (wanted.count, wanted.zeros, wanted.non_finite)
    return None


@pytest.mark.parametrize("name", samples())
def test_bfloat16_is_exact_in_one_pass(name):
    x = torch.from_numpy(samples()[name]).bfloat16()
    x = x.where(x.abs() >= TINY, 0.0)
    found, wanted = rough(x), expected(x.float().numpy())
    assert found.centre == wanted.centre
    assert found.spread == pytest.approx(wanted.spread, rel=2**-24)
    assert found.rms == pytest.approx(wanted.rms, rel=1e-12)
    check(exact(x), wanted)


def test_large_samples_take_one_pass_and_are_close():
    x = np.random.default_rng(0).standard_cauchy(1_200_000).astype(np.float32) * 1e-3 + 1e-5
    passes = []
    found = median_and_mad(lambda: passes.append(1) or iter([torch.from_numpy(x)]))
    wanted = expected(x.astype(np.float32))
    assert len(passes) == 1
    assert found.centre == pytest.approx(wanted.centre, rel=HALF_BIN)
    assert found.spread == pytest.approx(wanted.spread, rel=HALF_BIN)
    assert found.rms == pytest.approx(wanted.rms, rel=HALF_BIN)
    assert found.count == 1_200_000


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_dtypes_are_read_as_float32(dtype):
    x = torch.from_numpy(samples(1000)["shifted"]).to(dtype)
    check(exact(x), expected(x.float().numpy()))


def test_mixed_dtypes_shapes_and_layouts():
    x = torch.from_numpy(samples(3000)["shifted"]).float()
    pieces = [x[:1000].double().view(10, 4, 25), x[1000:2000].bfloat16(), x[2000:].view(50, 20).T[::2], x[0], x[:0]]
    together = torch.cat([p.flatten().float() for p in pieces])
    check(exact(*pieces), expected(together.numpy()))
    parameter = torch.nn.Parameter(x.clone())
    assert exact(parameter) == exact(x)
    assert torch.equal(parameter, x)  # nothing is written to the data


# --- small and degenerate samples


@pytest.mark.parametrize(
    ("values", "centre", "spread", "rms"),
    [
        ([], 0, 0, 0),
        ([-2.5], -2.5, 0, 2.5),
        ([1.0, 2.0], 1, 0, math.sqrt(2.5)),
        ([-1.0, 2.0, 10.0], 2, 3, math.sqrt(35)),
        ([0.0, -0.0], 0, 0, 0),
        ([0.0, 3.0], 0, 0, math.sqrt(4.5)),  # half zeros is not the majority
        ([0.0, 0.0, 3.0], 3, 0, 3),
        ([0.0, 0.0, 0.0, 3.0, -5.0], -5, 0, math.sqrt(17)),
        ([0.7] * 5, np.float32(0.7), 0, np.float32(0.7)),
        ([-0.0, 0.0, 1.0, -1.0], 0, 0, math.sqrt(0.5)),
        ([3e38, -3e38, 3e38], np.float32(3e38), 0, np.float32(3e38)),  # distances beyond the largest float
        ([3e38, -3e38, -3e38, 3e38, 2e38], np.float32(2e38), np.float32(1e38), math.sqrt(4 * 9 + 4) / 5**0.5 * 1e38),
    ],
)
def test_small_samples(values, centre, spread, rms):
    x = torch.tensor(values, dtype=torch.float32)
    for found in [exact(x), exact(x, x[:0]), exact(*x.split(1))] if values else [exact(), exact(x), rough(), rough(x)]:
        assert found.centre == centre
        assert math.copysign(1, found.centre) == (1 if found.centre == 0 else np.sign(centre))
        assert found.spread == pytest.approx(spread, rel=1e-6)
        assert found.rms == pytest.approx(rms, rel=1e-6)
        assert found.count == len(values)
        assert found.zeros == values.count(0)
    assert Histogram().median() == Histogram().mad() == Histogram().rms() == Histogram().quantile(1.0) == 0
    assert Histogram().count == Histogram().zeros == Histogram().non_finite == 0


def test_subnormal_numbers_count_as_zero():
    x = torch.tensor([TINY / 2, -TINY / 2, 1e-45, TINY, -TINY], dtype=torch.float32)
    found = exact(x)
    assert (found.count, found.zeros, found.zeros_left_out) == (5, 3, True)
    assert (found.centre, found.spread) == (-TINY, 0)
    assert exact(x[:3]) == Statistics(0.0, 0.0, 0.0, 3, 3, 0)
    # Where they are few they are numbers like others.
    assert exact(torch.tensor([TINY, TINY / 2, -TINY, TINY])).centre == TINY / 2


@pytest.mark.parametrize("exact_below", [0, ALWAYS_EXACT])
def test_non_finite_values_are_counted_and_left_out(exact_below):
    # nan of every kind: the smallest and the largest pattern of either sign
    nans = torch.tensor([0x7F800001, 0x7FFFFFFF, -0x7FFFFF, -1], dtype=torch.int32).view(torch.float32)
    x = torch.tensor([1.0, math.inf, 2.0, math.nan, -math.inf, 0.0, -0.0, -math.nan, 4.0])
    found = median_and_mad(lambda: iter([x, nans]), exact_below=exact_below)
    assert (found.count, found.zeros, found.non_finite) == (5, 2, 8)
    wanted = median_and_mad(lambda: iter([x[x.isfinite()]]), exact_below=exact_below)
    assert (found.centre, found.spread, found.rms) == (wanted.centre, wanted.spread, wanted.rms)
    found = median_and_mad(lambda: iter([torch.tensor([math.nan, 0.0, 0.0, 1.0])]), exact_below=exact_below)
    assert (found.count, found.zeros, found.non_finite, found.zeros_left_out) == (3, 2, 1, True)
    assert found.centre == pytest.approx(1, rel=HALF_BIN)
    assert exact(nans) == Statistics(0.0, 0.0, 0.0, 0, 0, 4)


def test_other_dtypes_are_refused():
    for x in [torch.arange(3), torch.tensor([True]), torch.tensor([1j])]:
        with pytest.raises(ValueError, match="floating dtype"):
            Histogram().add(x)
        with pytest.raises(ValueError, match="floating dtype"):
            exact(x)


# --- only the set of the elements matters

floats = st.floats(width=32, allow_nan=False, allow_infinity=False) | st.sampled_from([0.0, -0.0, 1.0, -1.0, 1e-30])
arrays = hnp.arrays(np.float32, st.integers(0, 40), elements=floats)


@given(arrays)
@settings(max_examples=200)
@example(np.array([0.1, 0.1, 0.2], np.float32))
def test_any_sample_is_exact(x):
    check(exact(torch.from_numpy(x)), expected(x))


@given(arrays, st.randoms(use_true_random=False), st.sampled_from([0, ALWAYS_EXACT]))
def test_order_splitting_and_grouping_change_nothing(x, random, exact_below):
    wanted = median_and_mad(lambda: iter([torch.from_numpy(x)]), exact_below=exact_below)
    mixed = x.copy()
    random.shuffle(mixed)
    pieces = [torch.from_numpy(p) for p in np.split(mixed, sorted(random.choices(range(x.size + 1), k=4)))]
    assert median_and_mad(lambda: iter(pieces), exact_below=exact_below) == wanted


@given(hnp.arrays(np.float32, st.integers(1, 40), elements=st.floats(2**-20, 2**20, width=32)), st.integers(-60, 60))
def test_signs_and_powers_of_two_go_through(x, power):
    assume(x.size % 2)  # there is one middle element
    found, mirrored = exact(torch.from_numpy(x)), exact(torch.from_numpy(-x))
    assert (mirrored.centre, mirrored.spread, mirrored.rms) == (-found.centre, found.spread, found.rms)
    scaled = exact(torch.from_numpy(x * np.float32(2.0**power)))
    scale = 2.0**power
    assert (scaled.centre, scaled.spread, scaled.rms) == (scale * found.centre, scale * found.spread, scale * found.rms)


@pytest.mark.parametrize("exact_below", [0, ALWAYS_EXACT])
def test_large_and_small_pieces_are_counted_alike(exact_below):
    """Beyond the size of a cache-sized part, and on both sides of the size from which parts are counted otherwise."""
    x = torch.from_numpy(samples(600_001)["shifted"]).float()
    wanted = median_and_mad(lambda: iter([x]), exact_below=exact_below)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    for size in [300_000, 70_000, 30_000]:
        assert median_and_mad(lambda s=size: iter(x[order].split(s)), exact_below=exact_below) == wanted
    assert wanted.centre == pytest.approx(x.median().item(), rel=HALF_BIN)


# --- several processes


def on_processes(parts: list[list[torch.Tensor]], exact_below: int) -> tuple[list[Statistics], list[int]]:
    """Run on one thread a process, with a reduction at which all wait for one another; its result and number of calls.

    A process that makes other passes than the others would wait in vain: the barrier breaks and raises.
    """
    barrier = threading.Barrier(len(parts), timeout=20)
    given: list[torch.Tensor | None] = [None] * len(parts)
    calls = [0] * len(parts)
    results: list[Statistics | None] = [None] * len(parts)

    def run(rank: int) -> None:
        def reduce(counts: torch.Tensor) -> torch.Tensor:
            assert counts.dtype == torch.int64
            calls[rank] += 1
            given[rank] = counts
            barrier.wait()
            total = torch.stack([c for c in given if c is not None]).sum(0)
            barrier.wait()
            counts.fill_(-7)  # a reduction may change its argument
            return total

        results[rank] = median_and_mad(lambda: iter(parts[rank]), reduce, exact_below)

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(len(parts))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert None not in results
    return [r for r in results if r is not None], calls


@pytest.mark.parametrize("exact_below", [0, ALWAYS_EXACT])
@pytest.mark.parametrize("name", ["shifted", "60 % zeros", "far from zero", "constant"])
def test_processes_agree_with_one(name, exact_below):
    x = torch.from_numpy(samples(999)[name]).float()
    wanted = median_and_mad(lambda: iter([x]), exact_below=exact_below)
    zero = x[x == 0]
    for parts in [
        [[x[:10]], [x[10:500], x[500:]], []],  # one has nothing
        [[x[x != 0]], [zero[: len(zero) // 2]], [zero[len(zero) // 2 :]]],  # one alone would leave out zeros
        [[x[::3], x[:0]], [x[1::3]], [x[2::3]]],
    ]:
        found, _ = on_processes(parts, exact_below)
        assert found == [wanted] * 3


def test_the_global_count_decides():
    x = torch.from_numpy(samples(300)["normal"]).float()
    for exact_below, passes in [(300, 4), (299, 1)]:
        found, calls = on_processes([[x[:298]], [x[298:]], []], exact_below)
        assert calls == [passes] * 3
        assert found == [median_and_mad(lambda: iter([x]), exact_below=exact_below)] * 3


def test_bfloat16_on_one_process_only():
    """Whether bins stand for their midpoints is known of all processes together."""
    x = torch.from_numpy(samples(300)["normal"])
    parts = [[x[:100].bfloat16()], [x[100:].float()]]
    found, _ = on_processes(parts, 0)
    assert found == [rough(parts[0][0], parts[1][0])] * 2


@pytest.mark.parametrize("name", samples())
def test_as_many_reductions_as_passes_whatever_the_data(name):
    x = torch.from_numpy(samples(500)[name]).float()
    events: list[str] = []

    def pieces():
        events.append("pass")
        return iter([x])

    def reduce(counts):
        events.append("reduce")
        return counts

    median_and_mad(pieces, reduce)
    assert events == ["pass", "reduce"] * 4


# --- memory


@pytest.mark.parametrize("exact_below", [0, ALWAYS_EXACT])
def test_no_piece_is_kept_while_the_next_is_made(exact_below):
    alive: list[weakref.ref] = []

    def pieces():
        for i in range(5):
            assert all(ref() is None for ref in alive)
            x = torch.full((300_000 if i == 1 else 50,), float(i - 2))
            alive.append(weakref.ref(x.untyped_storage()))
            alive.append(weakref.ref(x))
            yield x
            del x

    found = median_and_mad(pieces, exact_below=exact_below)
    assert found.count == 300_200
    assert len(alive) == 10 * (1 if exact_below == 0 and found.spread >= abs(found.centre) else 4)


# --- Histogram


def test_histograms_of_blocks_add_up():
    data = [torch.from_numpy(x).float() for x in samples(2000).values()]
    blocks = [Histogram() for _ in data]
    for block, x in zip(blocks, data, strict=True):
        block.add(x[:700])
        block.add(x[700:])
    model, direct = sum(blocks[1:], start=blocks[0]), Histogram()
    direct.add(torch.cat(data))
    assert torch.equal(model.counts, direct.counts)
    assert model.count == 16 * 2000 - 1
    assert blocks[0].count == 2000  # adding changed nothing
    assert model.without_zeros().count == model.count - model.zeros
    assert model.without_zeros().zeros == 0 < model.zeros
    restored = Histogram()
    restored.counts = model.counts.clone()
    assert (restored.median(), restored.mad(), restored.rms()) == (direct.median(), direct.mad(), direct.rms())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", samples())
def test_quantiles(name, dtype):
    x = torch.from_numpy(samples(5000)[name]).to(dtype)
    histogram = Histogram()
    histogram.add(x)
    ordered = x.float().sort().values
    bound = 0.0 if dtype == torch.bfloat16 else HALF_BIN
    for p in [0.0, 0.01, 0.25, 0.5, 0.75, 0.999, 1.0]:
        wanted = ordered[math.floor(p * (len(x) - 1))].item()
        assert abs(histogram.quantile(p) - wanted) <= bound * abs(wanted) + TINY
    wanted = (x.float() - x.float().median()).abs().median().item()
    assert abs(histogram.mad() - wanted) <= 2 * bound * (abs(histogram.median()) + wanted) + 2**-24 * wanted + TINY
    assert histogram.median() == histogram.quantile(0.5)


def test_quantiles_outside_the_range_are_refused():
    for p in [-0.1, 1.1, math.nan]:
        with pytest.raises(ValueError, match="p must be"):
            Histogram().quantile(p)


def test_every_bin_holds_what_it_should():
    """The ends of each finite bin of either sign, and its value in between."""
    low = torch.arange(0, 0x7F80, dtype=torch.int32) << 16
    ends = torch.stack([low, low + 0xFFFF]).view(torch.float32)
    histogram = Histogram()
    histogram.add(ends)
    histogram.add(-ends)
    assert histogram.counts[:-1].view(2, -1)[:, :0x7F80].eq(2).all()
    assert histogram.counts[:-1].view(2, -1)[:, 0x7F80:].eq(0).all()
    assert histogram.counts[-1] == histogram.count == 4 * 0x7F80
    assert histogram.zeros == 4 * 128
    for index in [0x80, 0x81, 0x3F80, 0x7F7F]:
        histogram = Histogram()
        histogram.add(ends[:, index])
        assert ends[0, index] < histogram.median() < ends[1, index]
        assert abs(histogram.median() - ends[:, index].double()).max() <= HALF_BIN * ends[0, index]
        histogram = Histogram()
        histogram.add(ends[0, index].bfloat16())
        assert histogram.median() == ends[0, index]


def test_parts_are_sized_by_the_device(monkeypatch):
    monkeypatch.setattr(order_statistics, "piece_elements", lambda device: 7)
    x = torch.from_numpy(samples(100)["shifted"]).float()
    check(exact(x.view(10, 10)), expected(x.numpy()))
