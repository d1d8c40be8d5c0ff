"""Statistics of blocks: against numpy on the same data, their invariances, the error of each estimator."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch

import processes
from processes import WORLD
from steepest.scaling import sampling
from steepest.scaling.statistics import (
    ESTIMATORS,
    STATISTICS,
    Measure,
    Numbers,
    dispersion,
    measure,
    merge,
    summarize,
)
from steepest.scaling.summaries import Pools

EXACT = {"sample": 1e-6, "histogram": 2.0**-7, "exact": 1e-6}  # of data that a sample holds whole
each_estimator = pytest.mark.parametrize("estimator", ESTIMATORS)


def heavy(*shape, seed=0, scale=1e-4):
    """Student t with 3 degrees of freedom, and a centre that is not 0."""
    x = np.random.default_rng(seed).standard_t(3, shape)
    return torch.tensor(scale * (x + 0.3), dtype=torch.float32)


def by_numpy(x, statistic, centre="median"):
    x = np.asarray(x, dtype=np.float64).ravel()

    def quantile(y, p):
        return np.quantile(y, p, method="inverted_cdf")

    m = quantile(x, 0.5) if centre == "median" else x.mean()
    mad = quantile(abs(x - m), 0.5)
    u = abs(x - m) / (1.4826 * mad)
    return {
        "mad": mad,
        "huber": 1.4826 * mad * math.sqrt(2 * np.where(u <= 1, u * u / 2, u - 0.5).mean()),
        "iqr": quantile(x, 0.75) - quantile(x, 0.25),
        "mean_deviation": abs(x - x.mean()).mean(),
        "l1": abs(x).mean(),
        "std": x.std(),
        "rms": math.sqrt((x * x).mean()),
        "variance": x.var(),
        "maximum": abs(x).max(),
    }[statistic]


def relative(actual: Numbers, expected: Numbers):
    """The largest relative difference of all numbers."""
    pairs = [(actual.model.dispersion, expected.model.dispersion)]
    pairs += [(actual.layers[k].dispersion, v.dispersion) for k, v in expected.layers.items()]
    for key, block in expected.blocks.items():
        mine = actual.blocks[key]
        pairs += [(mine.count, block.count), (mine.rms, block.rms), (mine.score, block.score)]
    return max(abs(a - b) / abs(b) for a, b in pairs if not math.isnan(b))


@each_estimator
@pytest.mark.parametrize("centre", ["median", "mean"])
@pytest.mark.parametrize("statistic", STATISTICS)
def test_the_nine_statistics_are_those_of_numpy(statistic, centre, estimator):
    x, y = heavy(40, 25), heavy(999, seed=1, scale=3e-4)
    expected = by_numpy(np.concatenate([x.numpy().ravel(), y.numpy()]), statistic, centre)
    found = dispersion(summarize([x, y], estimator=estimator), statistic, centre)
    assert found == pytest.approx(expected, rel=2 * EXACT[estimator])


@each_estimator
def test_even_counts_take_the_lower_median(estimator):
    x = torch.tensor([1.0, 2.0, 8.0, 16.0], dtype=torch.bfloat16)
    assert dispersion(summarize([x], estimator=estimator)) == 1.0  # median 2, distances 1 0 6 14


@each_estimator
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_dtypes_are_read_as_float32(dtype, estimator):
    x = heavy(300, 20, scale=1e-2).to(dtype)
    for statistic in STATISTICS:
        found = dispersion(summarize([x], estimator=estimator), statistic)
        exact = 1e-6 if dtype == torch.bfloat16 else 2 * EXACT[estimator]
        assert found == pytest.approx(by_numpy(x.float(), statistic), rel=exact)


@each_estimator
def test_splitting_merging_and_order_change_nothing(estimator):
    x = heavy(90, 64)
    whole = summarize([x], estimator=estimator)
    parts = summarize([x[:17], x[17:17], x[17:, :50].T, x[17:, 50:]], estimator=estimator)
    merged = merge(
        [
            summarize([x[:40]], estimator=estimator),
            summarize([x[40:41]], estimator=estimator),
            *[summarize([row], estimator=estimator) for row in x[41:]],
        ]
    )
    shuffled = summarize([x.flatten()[torch.randperm(x.numel())]], estimator=estimator)
    for statistic in STATISTICS:
        expected = dispersion(whole, statistic)
        for other in (parts, merged, shuffled):
            found = dispersion(other, statistic)
            if statistic in ("mad", "iqr", "maximum"):
                assert found == expected
            else:
                assert found == pytest.approx(expected, rel=1e-12)


@each_estimator
@pytest.mark.parametrize("p", [0.02, 0.5, 0.93, 1.0])
def test_quantiles_of_distances_of_distances(p, estimator):
    x = heavy(40, 25)
    pools = Pools([[0]], 1, x.device)
    a, b = 3e-5, 8e-5
    distances = [x.double(), (x.double() - a).abs(), ((x.double() - a).abs() - b).abs()]
    for about, y in zip(([], [a], [a, b]), distances, strict=True):
        centres = [torch.tensor([c], dtype=torch.float64) for c in about]
        found = summarize([x], estimator=estimator).quantile(p, pools, centres)
        expected = np.quantile(y, p, method="inverted_cdf")
        near = 1e-6 * abs(expected) if estimator != "histogram" else 2.0**-7 * (abs(expected) + 2e-4)
        assert float(found) == pytest.approx(expected, rel=0, abs=near)


def test_merging_refuses_what_does_not_fit():
    with pytest.raises(ValueError, match="one estimator"):
        merge([summarize([heavy(4)]), summarize([heavy(4)], estimator="exact")])
    with pytest.raises(ValueError, match="merge needs"):
        merge([])


@each_estimator
@pytest.mark.parametrize("factor", [2.0**-40, 2.0**30])
def test_numbers_scale_with_the_gradient(factor, estimator):
    """By a power of two exactly, far from 1 too."""
    gradients = {(0, "a"): [heavy(70, 30)], (0, "b"): [heavy(50, 30, seed=1)], (1, "a"): [heavy(2000, seed=2)]}
    what = Measure(estimator=estimator, block_scale="mad_of_distances", samples=1024)
    once = measure(gradients, what)
    scaled = measure({key: [factor * g for g in block] for key, block in gradients.items()}, what)
    for key, block in once.blocks.items():
        assert scaled.blocks[key].rms == pytest.approx(factor * block.rms, rel=1e-12)
        assert scaled.blocks[key].spread == pytest.approx(factor * block.spread, rel=1e-12)
        assert scaled.blocks[key].score == pytest.approx(block.score, rel=1e-12)
    assert scaled.layers[0].dispersion == factor * once.layers[0].dispersion
    assert scaled.model.dispersion == factor * once.model.dispersion


@each_estimator
def test_pools_are_over_the_elements_of_their_blocks(estimator):
    """Blocks of different sizes: a layer is not the average of its blocks. The scope says who is in the model."""
    gradients = {
        (0, "a"): [heavy(400)],
        (-1, "e"): [heavy(77, seed=1, scale=5.0)],
        (0, "b"): [heavy(90, seed=2, scale=1e-2)],
    }
    numbers = measure(gradients, Measure(estimator=estimator, scope=frozenset({0})))
    layer = np.concatenate([gradients[0, "a"][0], gradients[0, "b"][0]])
    near = {"rel": EXACT[estimator]}
    assert numbers.layers[0].dispersion == pytest.approx(by_numpy(layer, "mad"), **near)
    assert numbers.layers[-1].dispersion == pytest.approx(by_numpy(gradients[-1, "e"][0], "mad"), **near)
    assert numbers.model == numbers.layers[0]
    assert [numbers.layers[0].count, numbers.blocks[0, "b"].count] == [490, 90]
    everything = measure(gradients, Measure(estimator=estimator))
    assert everything.model.count == 567


def test_weights_make_a_large_block_count_for_more():
    """Blocks of 4 : 1 elements are sampled equally, and pooled as 4 : 1."""
    large, small = heavy(400, 1000), heavy(100, 1000, seed=1, scale=3e-3)
    numbers = measure({(0, "a"): [large], (0, "b"): [small]}, Measure(samples=16384))
    expected = by_numpy(np.concatenate([large.ravel(), small.ravel()]), "mad")
    assert numbers.layers[0].dispersion == pytest.approx(expected, rel=0.05)
    unweighted = by_numpy(np.concatenate([large[:100].ravel(), small.ravel()]), "mad")
    assert abs(unweighted / expected - 1) > 0.5
    assert numbers.layers[0].count == pytest.approx(500_000)


def test_aggregates_of_blocks():
    blocks = {
        (0, "a"): [heavy(100)],
        (0, "b"): [heavy(30, scale=1.0)],
        (0, "c"): [heavy(40, scale=1e-2)],
        (1, "a"): [heavy(9)],
    }
    own = {key: by_numpy(block[0], "mad") for key, block in blocks.items()}
    median = measure(blocks, Measure(aggregate="block_median"))
    assert median.layers[0].dispersion == pytest.approx(own[0, "a"], rel=1e-6)  # 100 of 170 elements
    mean = measure(blocks, Measure(aggregate="block_mean", statistic="rms"))
    expected = np.mean([by_numpy(block[0], "rms") for block in blocks.values()])
    assert mean.model.dispersion == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("estimator", ["histogram", "sample"])
def test_the_estimators_are_within_their_stated_error(estimator):
    x = {(i, "a"): [heavy(512, 500, seed=i)] for i in range(4)}
    exact = measure(x, Measure(estimator="exact", block_scale="mad"))
    found = measure(x, Measure(estimator=estimator, block_scale="mad", samples=16384))
    # four standard errors; the RMS of t with 3 degrees of freedom is that of the largest of its elements
    limit = 2.0**-7 if estimator == "histogram" else 4 * 1.3 / math.sqrt(16384)
    for i in range(4):
        assert found.layers[i].dispersion == pytest.approx(exact.layers[i].dispersion, rel=limit)
        assert found.blocks[i, "a"].score == pytest.approx(exact.blocks[i, "a"].score, rel=limit)
    assert found.model.dispersion == pytest.approx(exact.model.dispersion, rel=limit)
    assert relative(found, exact) < (2.0**-7 if estimator == "histogram" else 0.2)


@pytest.mark.parametrize("structure", ["rows", "columns", "a third", "stripes"])
@pytest.mark.parametrize("width", [512, 384, 500])
def test_a_sample_sees_rows_and_columns_alike(structure, width):
    """Scales that follow rows or columns, also with the period of a run: right on average over seeds, and each time."""
    rows = 600
    x = heavy(rows, width)
    scale = torch.ones(rows, width)
    if structure == "rows":
        scale *= torch.logspace(-2, 0, rows)[:, None]
    elif structure == "columns":
        scale *= torch.logspace(-2, 0, width)
    elif structure == "a third":
        scale[:, : width // 3] = 0.01
    else:
        scale[:, ::16] = 100.0
    x = x * scale
    ratios = {"mad": [], "rms": [], "l1": []}
    for statistic, seed in itertools.product(ratios, range(8)):
        found = dispersion(summarize([x], samples=16384, seed=seed), statistic)
        ratios[statistic].append(found / by_numpy(x, statistic) - 1)
    for found, limit in ((ratios["mad"], 0.1), (ratios["l1"], 0.15), (ratios["rms"], 0.3)):
        assert max(map(abs, found)) < limit
        assert abs(np.mean(found)) < limit / 2


def test_every_element_is_equally_likely_to_be_read():
    """Also the last few of a tensor that is not made of whole runs, and in a block of several tensors."""
    sizes = (1000, 7, 333)
    total = sum(sizes)
    seen = np.zeros(total)
    rounds = 600
    for seed in range(rounds):
        block = list(torch.arange(total, dtype=torch.float32).split(sizes))
        (rows,) = sampling.gather([block], 160, seed)
        values = rows.values[rows.values.isfinite()].long().numpy()
        assert float(rows.weight) == pytest.approx(total / len(values))
        assert float(rows.left_out) == rows.values.numel() - len(values)
        np.add.at(seen, values, 1)
    lines = np.ceil(np.array(sizes) / 16).sum()
    expected = rounds * 10 / lines
    assert abs(seen - expected).max() < 6 * math.sqrt(expected)


def test_a_sample_is_the_same_every_time_and_reads_its_part():
    x = heavy(300, 1000)
    before = x.clone()
    assert dispersion(summarize([x], samples=4096)) == dispersion(summarize([x], samples=4096))
    assert dispersion(summarize([x], samples=4096)) != dispersion(summarize([x], samples=4096, seed=1))
    assert torch.equal(x, before)
    (rows,) = sampling.gather([[x]], 4096)
    assert rows.values.shape == (1, 4096)


def sparse_embedding(rows=3000, width=48, touched=0.1, seed=0):
    x = heavy(rows, width, seed=seed)
    keep = torch.rand(rows, generator=torch.Generator().manual_seed(seed)) < touched
    return x * keep[:, None], keep


@each_estimator
@pytest.mark.parametrize("samples", [1 << 16, 8192])  # all elements or a sample of them
def test_rows_without_gradient_can_be_left_out(samples, estimator):
    x, keep = sparse_embedding(seed=3)
    small = heavy(4, 48, seed=4)
    raw = measure({(-1, "embedding"): [x]}, Measure(estimator=estimator, samples=samples))
    assert raw.layers[-1].dispersion == 0.0
    what = Measure(estimator=estimator, samples=samples, nonzero_rows=frozenset({(-1, "embedding")}))
    numbers = measure({(-1, "embedding"): [x, small]}, what)
    expected = np.concatenate([x[keep].ravel(), small.ravel()])
    exact = estimator == "exact"
    sampled = estimator == "sample" and samples < x.numel()  # a third of the rows are looked at, 109 have a gradient
    limit = 1e-6 if exact else 2.0**-7 if estimator == "histogram" else 0.2 if sampled else 0.03
    found = numbers.blocks[-1, "embedding"].count
    assert found == pytest.approx(len(expected), rel=0.25 if sampled else 1e-9)
    assert numbers.layers[-1].dispersion == pytest.approx(by_numpy(expected, "mad"), rel=limit)
    assert numbers.blocks[-1, "embedding"].rms == pytest.approx(by_numpy(expected, "rms"), rel=max(limit, 1e-4) * 3)
    assert numbers.non_finite == 0
    nothing = measure({(-1, "embedding"): [torch.zeros_like(x)]}, what)
    assert nothing.blocks[-1, "embedding"].count == 0
    assert nothing.layers[-1].dispersion == 0
    x[int(keep.nonzero()[0])] = math.nan
    assert measure({(-1, "embedding"): [x]}, what).non_finite > 0 or estimator == "sample"


@pytest.mark.parametrize("width", [48, 40, 7])  # whole cache lines or not, and less than one
def test_a_sample_of_rows_with_gradient_is_a_fair_one(width):
    """Over seeds: their number, and each of them and each column as often as the others; rows of zeros never."""
    x, keep = sparse_embedding(rows=600, width=width, touched=0.25)
    numbered = torch.arange(1.0, x.numel() + 1).view_as(x) * keep[:, None]
    read, counts = torch.zeros(x.numel() + 1), []
    for seed in range(400):
        (rows,) = sampling.gather([[numbered]], 800, seed, [True])
        values = rows.values[rows.values.isfinite()].long()
        read.index_add_(0, values, torch.ones(len(values)))
        counts.append(float(rows.weight) * len(values))
    assert read[0] == 0
    each = read[1:].view_as(x)[keep]
    assert np.mean(counts) == pytest.approx(int(keep.sum()) * width, rel=0.02)
    expected = float(each.mean())
    assert abs(each.mean(1) / expected - 1).max() < 6 / math.sqrt(expected)
    assert abs(each.mean(0) / expected - 1).max() < 0.15


@pytest.mark.parametrize("first", [0, 24])
def test_a_row_that_is_zero_in_one_half_is_not_a_row_of_zeros(first):
    x = heavy(500, 48)
    x[:, first : first + 24] = 0.0
    found = measure(
        {(-1, "embedding"): [x]}, Measure(samples=2048, statistic="rms", nonzero_rows=frozenset({(-1, "embedding")}))
    )
    assert found.blocks[-1, "embedding"].count == x.numel()
    assert found.layers[-1].dispersion == pytest.approx(float(x.square().mean().sqrt()), rel=0.3)


def test_of_a_large_table_only_a_part_is_read():
    class Reads(torch.Tensor):
        """Counts the elements that are picked, and refuses to be read as a whole."""

        picked = 0

        @classmethod
        def __torch_function__(cls, function, types, arguments=(), options=None):
            if function in (torch.Tensor.ne, torch.Tensor.abs, torch.Tensor.amax, torch.Tensor.clone, torch.Tensor.eq):
                raise AssertionError(f"{function.__name__} of the whole table")
            made = super().__torch_function__(function, types, arguments, options or {})
            if function is torch.index_select:
                cls.picked += made.numel()
                return made.as_subclass(torch.Tensor)
            return made

    x, _ = sparse_embedding(rows=20_000)
    sampling.gather([[x.as_subclass(Reads)]], 4096, 0, [True])
    assert 0 < Reads.picked <= 4096 * (1 + 2 * sampling.CANDIDATES)


@each_estimator
def test_non_finite_elements_are_counted_apart(estimator):
    x = heavy(500)
    good = measure({(0, "a"): [x[5:]]}, Measure(estimator=estimator, block_scale="mad"))
    x[:5] = torch.tensor([math.nan, math.inf, -math.inf, -math.nan, math.inf])
    bad = measure({(0, "a"): [x]}, Measure(estimator=estimator, block_scale="mad"))
    assert (good.non_finite, bad.non_finite) == (0, 5)
    assert relative(bad, good) < 1e-12
    only = measure({(0, "a"): [x[:5]]}, Measure(estimator=estimator, block_scale="mad"))
    assert (only.non_finite, only.blocks[0, "a"].count, only.model.dispersion) == (5, 0, 0)


@each_estimator
def test_degenerate_gradients(estimator):
    gradients = {
        (0, "none"): [],
        (0, "empty"): [torch.zeros(0, 3)],
        (0, "zero"): [torch.zeros(40)],
        (1, "constant"): [torch.full((30,), -0.1)],
        (2, "scalar"): [torch.tensor(3.0)],
        (3, "huge"): [torch.tensor([-3e38, 3e38, 3.4e38])],
        (4, "tiny"): [torch.tensor([1e-30, 2e-30, -4e-30]).bfloat16()],
    }
    for statistic in STATISTICS:
        numbers = measure(gradients, Measure(estimator=estimator, statistic=statistic, block_scale="mad"))
        assert (0, "none") not in numbers.blocks
        assert numbers.blocks[0, "empty"].count == 0
        assert numbers.layers[0].dispersion == 0
        for centre in ("median", "mean") if statistic not in ("l1", "rms", "maximum") else ():
            what = Measure(estimator=estimator, statistic=statistic, centre=centre)
            assert measure(gradients, what).layers[1].dispersion == 0
        assert numbers.layers[1].count == 30
        assert numbers.blocks[4, "tiny"].rms == pytest.approx(
            by_numpy(gradients[4, "tiny"][0].float(), "rms"), rel=1e-6
        )
        assert numbers.blocks[3, "huge"].rms > 2e38
    assert measure({}, Measure(estimator=estimator)) == Numbers({}, {}, numbers.model.__class__(0.0, 0.0))
    assert measure({(0, "none"): []}, Measure(estimator=estimator)).blocks == {}


@each_estimator
def test_distances_that_are_mostly_equal_have_no_spread(estimator):
    """Of a block that is zero in most places: not the rounding of its mean, which would make the score huge."""
    x = heavy(100)
    x[:60] = 0.0
    what = Measure(estimator=estimator, block_scale="mad_of_distances")
    assert measure({(0, "a"): [x]}, what).blocks[0, "a"].spread == 0.0
    assert measure({(0, "a"): [x[50:]]}, what).blocks[0, "a"].spread > 0.0


def test_numbers_survive_a_checkpoint(tmp_path):
    numbers = measure({(0, "a"): [heavy(50)], (-1, "b"): [heavy(20)]}, Measure(block_scale="mad"))
    torch.save(numbers.plain(), tmp_path / "numbers.pt")
    assert Numbers.of_plain(torch.load(tmp_path / "numbers.pt", weights_only=True)) == numbers


def test_a_hundred_thousand_small_tensors():
    tensors = list(heavy(100_000, 6).unbind())
    blocks = {
        (i, name): tensors[i * 5000 + j * 2500 : i * 5000 + j * 2500 + 2500]
        for i in range(20)
        for j, name in enumerate("ab")
    }
    numbers = measure(blocks, Measure(samples=4096))
    assert sum(block.count for block in numbers.blocks.values()) == pytest.approx(600_000)
    alone = measure({(i, "a"): [t] for i, t in enumerate(tensors[:3000])}, Measure(statistic="maximum"))
    assert alone.layers[2999].dispersion == float(tensors[2999].abs().max())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"statistic": "mode"}, "statistics: unknown statistic 'mode'; did you mean 'mad'"),
        ({"centre": "zero"}, "unknown centre"),
        ({"aggregate": "sum"}, "unknown aggregate"),
        ({"estimator": "sort"}, "unknown estimator"),
        ({"block_scale": "std"}, "unknown block_scale"),
        ({"samples": 3}, "samples must be a whole number >= 16, got 3"),
        ({"seed": 1 << 32}, "seed must be below 2..32"),
    ],
)
def test_unknown_options(options, message):
    with pytest.raises(ValueError, match=message):
        Measure(**options)
    with pytest.raises(ValueError, match="unknown estimator"):
        summarize([heavy(3)], estimator="sort")


@each_estimator
def test_gradients_of_integers_are_refused(estimator):
    with pytest.raises(ValueError, match="a floating dtype"):
        summarize([torch.arange(3)], estimator=estimator)


# --- two processes


CASES = [
    (estimator, samples, mesh)
    for estimator in ESTIMATORS
    for samples in (1024, 1 << 16)
    for mesh in ("one axis", "copies of shards", "shards of copies")
]


def whole_gradients():
    embedding, _ = sparse_embedding(rows=301, width=48, touched=0.3, seed=5)
    return {
        (-1, "embedding"): {"embedding": embedding, "positions": heavy(61, 40, seed=6)},
        (0, "attention"): {"rows": heavy(67, 50, seed=7), "columns": heavy(60, 34, seed=8, scale=1e-2)},
        (0, "mlp"): {
            "one row": heavy(1, 400, seed=9),
            "plain": heavy(5, 100, seed=10),
            "cube": heavy(6, 10, 9, seed=11),
        },
        (1, "attention"): {"copied": heavy(80, 33, seed=12), "narrow": heavy(70, 30, seed=13).bfloat16()},
    }


def options(estimator, samples):
    return Measure(
        estimator=estimator,
        samples=samples,
        block_scale="mad_of_distances",
        statistic="huber",
        scope=frozenset({0, 1}),
        nonzero_rows=frozenset({(-1, "embedding")}),
    )


def laid_out(mesh_name):
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Replicate, Shard, distribute_tensor

    shape = {"one axis": (WORLD,), "copies of shards": (WORLD, 1), "shards of copies": (1, WORLD)}[mesh_name]
    mesh = init_device_mesh("cpu", shape)
    axes = {"columns": Shard(1), "positions": Shard(1), "copied": Replicate(), "cube": Shard(2)}

    def place(name, x):
        placements = [*[Replicate()] * (len(shape) - 1), axes.get(name, Shard(0))]
        return x if name == "plain" else distribute_tensor(x, mesh, placements)

    return {key: [place(name, x) for name, x in block.items()] for key, block in whole_gradients().items()}


def work(rank):
    result = {case: measure(laid_out(case[2]), options(*case[:2])).plain() for case in CASES}
    bad = laid_out("one axis")
    if rank == WORLD - 1:
        bad[0, "attention"][0].to_local()[-1] = math.nan
    result["bad"] = {e: measure(bad, options(e, 1 << 16)).non_finite for e in ESTIMATORS}
    return result


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """What each process found."""
    return processes.run(work, tmp_path_factory.mktemp("processes"))


@processes.needs_processes
@pytest.mark.parametrize("case", CASES, ids=str)
def test_sharded_is_unsharded(case, results):
    """A sample and a histogram bit for bit; exact ones but for the order in which means are added up."""
    gradients = {key: list(block.values()) for key, block in whole_gradients().items()}
    expected = measure(gradients, options(*case[:2]))
    for result in results:
        found = Numbers.of_plain(result[case])
        if case[0] == "exact":
            assert found.non_finite == expected.non_finite
            assert relative(found, expected) < 1e-12
        else:
            assert relative(found, expected) == 0.0
    assert results[0][case]["layers"] == results[1][case]["layers"]


@processes.needs_processes
def test_a_bad_shard_is_seen_by_all(results):
    for result in results:
        assert result["bad"] == dict.fromkeys(ESTIMATORS, 50.0)
