"""The oracles of SAC and SGG are trusted because they pass these: printed numbers, constants, invariants."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from . import rules, sac, sgg
from .soft import lower_median
from .test_reference import close, normal
from .test_soft_reference import printed

#: Two layers of two blocks, small enough to follow by hand.
POOLS = {
    (1, "token"): np.array([1.0, -2.0, 3.0, -4.0, 5.0]),
    (1, "channel"): np.array([0.5, -0.5, 1.5, -1.5, 2.5]),
    (2, "token"): np.array([0.1, -0.2, 0.3, -0.4, 0.5]),
    (2, "channel"): np.array([0.2, -0.2, 0.6, -0.6, 1.0]),
}
LITERAL = {"eps": 0.0, "smallest": 1}  # no guards
RAW = {**LITERAL, "gamma": 1.0, "beta": 1.0, "rho": 1.0, "bounds": None}

#: Of the four blocks in turn.
GOLDEN = {
    "c1": [0.350000, 0.350000, 2.333333, 2.333333],
    "c05": [0.591608, 0.591608, 1.527525, 1.527525],
    "rms": [3.316625, 1.500000, 0.331662, 0.600000],
    "s1": [1.377157, 0.622843, 0.711980, 1.288020],
    "s05": [1.195809, 0.804191, 0.852873, 1.147127],
    "S": [0.482005, 0.217995, 1.661286, 3.005380],
    "mad": [3.0, 1.0, 0.3, 0.4],
    "shape": [0.633902, 0.716704, 0.633902, 0.716704],
    "algorithm1": [0.221866, 0.250846, 1.479104, 1.672309],
    "clamped": [0.5, 0.5, 1.0, 1.0],
    "shape of distances": [0.889412, 0.716704, 0.889412, 0.716704],
}


def in_order(values) -> list[float]:
    return [values[key] for key in POOLS]


def scaled(pools, factor):
    """``factor`` is a number, or a function of the key."""
    return {key: x * (factor(key) if callable(factor) else factor) for key, x in pools.items()}


def model(layers=3, seed=0, sizes=(40, 60)):
    """Pools of gradients of different sizes, with heavy tails."""
    rng = np.random.default_rng(seed)
    return {
        (layer, block): np.exp(rng.normal()) * rng.standard_t(3, size)
        for layer in range(layers)
        for block, size in zip(("token", "channel", "other"), sizes, strict=False)
    }


# --- the hand example


def test_dispersions_by_hand():
    assert sac.dispersion(list(POOLS.values())) == pytest.approx(0.7)
    assert sac.dispersion(sac.blocks_of(POOLS, [1])) == 2.0
    assert sac.dispersion(sac.blocks_of(POOLS, [2])) == pytest.approx(0.3)
    printed([sac.mad(x) for x in POOLS.values()], GOLDEN["mad"], 6)
    printed([sac.rms(x) for x in POOLS.values()], GOLDEN["rms"], 6)


def test_equations_by_hand():
    found = sac.equations(POOLS, **RAW)
    printed([found.c[layer] for layer, _ in POOLS], GOLDEN["c1"], 6)
    printed(in_order(found.s), GOLDEN["s1"], 6)
    printed(in_order(found.scales), GOLDEN["S"], 6)
    half = sac.equations(POOLS, **{**RAW, "gamma": 0.5, "beta": 0.5})
    printed([half.c[layer] for layer, _ in POOLS], GOLDEN["c05"], 6)
    printed(in_order(half.s), GOLDEN["s05"], 6)


def test_algorithm1_by_hand():
    printed([sac.shape_factor(x, sac.mad(x)) for x in POOLS.values()], GOLDEN["shape"], 6)
    printed(in_order(sac.algorithm1(POOLS, bounds=None, **LITERAL)), GOLDEN["algorithm1"], 6)
    printed(in_order(sac.algorithm1(POOLS, bounds=(0.5, 1.0), **LITERAL)), GOLDEN["clamped"], 6)
    distances = [sac.shape_factor(x, sac.mad_of_distances(x)) for x in POOLS.values()]
    printed(distances, GOLDEN["shape of distances"], 6)
    scales = in_order(sac.algorithm1(POOLS, bounds=None, block_scale=sac.mad_of_distances, **LITERAL))
    close(scales, np.array(distances) * [sac.ratios(POOLS, **LITERAL)[layer] for layer, _ in POOLS])


def test_printed_columns_agree_with_each_other():
    close(np.array(GOLDEN["c1"]) * GOLDEN["s1"], GOLDEN["S"], 2e-6)
    close(np.array(GOLDEN["c1"]) * GOLDEN["shape"], GOLDEN["algorithm1"], 2e-6)
    close(np.clip(GOLDEN["algorithm1"], 0.5, 1.0), GOLDEN["clamped"], 2e-6)


# --- statistics


def test_statistics_by_hand():
    x = np.array([1.0, 2.0, 3.0, 4.0, 100.0])
    expected = {
        "mad": 1.0,
        "iqr": 2.0,
        "mean_deviation": 31.2,  # |x - 22| = 21, 20, 19, 18, 78
        "l1": 22.0,
        "variance": 1522.0,
        "std": math.sqrt(1522),
        "rms": math.sqrt(2006),
        "maximum": 100.0,
        # u = -2, -1, 0, 1, 97 over 1.4826: rho = 2/k - 1/2, 1/2k^2 (twice), 0, 97/k - 1/2
        "huber": 1.4826 * math.sqrt(2 / 5 * (99 / 1.4826 - 1 + 1 / 1.4826**2)),
    }
    assert list(expected.keys() ^ sac.STATISTICS.keys()) == []
    for name, value in expected.items():
        close(sac.STATISTICS[name](x), value)
    assert sac.mad(x, "mean") == 20.0
    assert sac.mad_of_distances(x) == 1.0  # 18, 19, 20, 21, 78 about 20


def test_medians_of_an_even_count_are_the_lower():
    x = np.array([4.0, 1.0, 3.0, 2.0])
    assert sac.lower_quantile(x, 0.5) == lower_median(x) == 2.0
    assert sac.mad(x) == 1.0  # 2 1 1 0
    assert sac.iqr(x) == 2.0


@pytest.mark.parametrize("name", sac.STATISTICS)
def test_statistics_scale_and_ignore_order(name):
    x = normal(101) + 0.3
    value, power = sac.STATISTICS[name](x), 2 if name == "variance" else 1
    for factor in (1e-6, 3.0, 1e6):
        close(sac.STATISTICS[name](factor * x), factor**power * value)
        close(sac.STATISTICS[name](-factor * x), factor**power * value)
    close(sac.STATISTICS[name](np.random.default_rng(1).permutation(x)), value)
    assert sac.STATISTICS[name](np.zeros(20)) == 0
    located = name in ("l1", "rms", "maximum")  # the others ignore a shift
    assert (abs(sac.STATISTICS[name](x + 5) - value) > 1e-3) == located


def test_pairs_of_statistics_agree_for_symmetric_pools():
    x = normal(50)
    x = np.concatenate([x, -x, [0.0]])
    close(sac.mean_deviation(x), sac.l1(x))
    close(sac.std(x), sac.rms(x))
    close(sac.iqr(x), 2 * sac.mad(x))


def test_huber_is_between_absolute_and_quadratic():
    x = np.array([-1.0, 0.0, 1.0] * 50)  # |u| <= 1 / 1.4826: quadratic everywhere
    close(sac.huber(x), sac.rms(x))
    x = normal(4000)
    assert sac.mad(x) < sac.huber(x) < sac.std(x)


def test_aggregates():
    pools = [np.array([1.0, -1.0]), np.array([3.0, -3.0, 3.0, -3.0, 3.0])]
    assert sac.dispersion(pools, sac.rms) == pytest.approx(math.sqrt(47 / 7))
    assert sac.dispersion(pools, sac.rms, "block_mean") == 2.0
    assert sac.dispersion(pools, sac.rms, "block_median") == 3.0
    for aggregate in ("block_mean", "block_median"):
        assert sac.dispersion(pools[:1], sac.mad, aggregate) == sac.mad(pools[0])


# --- constants of a Gaussian and of other shapes


@pytest.mark.parametrize(
    ("scale", "expected"),
    [(0.6745, 0.702), (0.798, 0.627), (0.92, 0.567), (1.0, 0.535), (1.349, 0.428), (4.9, 0.145)],
)
def test_shape_factor_of_a_gaussian(scale, expected):
    assert abs(sac.gaussian_shape_factor(scale) - expected) < 1.2e-3  # printed constants are from 4e6 draws
    z = normal(400_000)
    assert abs(sac.shape_factor(z, scale) - sac.gaussian_shape_factor(scale)) < 2e-3


def test_gaussian_scales():
    """The dispersions of a standard Gaussian that the constants above belong to."""
    z = normal(400_000)
    expected = {"mad": 0.6745, "huber": 0.92, "iqr": 1.349, "mean_deviation": 0.798, "l1": 0.798, "std": 1, "rms": 1}
    for name, value in expected.items():
        assert sac.STATISTICS[name](z) == pytest.approx(value, rel=7e-3)
    assert sac.shape_factor(z, sac.mad_of_distances(z)) == pytest.approx(0.975, abs=3e-3)


def test_shape_factor_of_other_shapes():
    rng = np.random.default_rng(0)
    pools = {
        0.757: rng.laplace(size=400_000),
        0.754: rng.standard_t(3, 400_000),
        0.853: (np.exp(rng.normal(size=(2000, 1))) * rng.normal(size=(2000, 200))).ravel(),
    }
    for expected, x in pools.items():
        assert sac.shape_factor(x, sac.mad(x)) == pytest.approx(expected, abs=0.012)


def test_homogeneous_gaussian_model():
    rng = np.random.default_rng(0)
    pools = {(layer, block): rng.normal(size=100_000) for layer in range(3) for block in ("token", "channel")}
    for value in sac.equations(pools).scales.values():
        assert value == pytest.approx(1, abs=0.01)
    for value in sac.algorithm1(pools).values():
        assert value == pytest.approx(0.702, abs=0.01)
    for value in sac.algorithm1(pools, gaussian=sac.gaussian_shape_factor(0.67449)).values():
        assert value == pytest.approx(1, abs=0.01)


# --- invariants


def assert_same_numbers(a, b, tolerance=1e-9):
    assert list(a) == list(b)
    close(list(a.values()), list(b.values()), tolerance)


def both(pools, **numbers):
    free = {"eps": 0.0, "bounds": None, **numbers}
    return sac.equations(pools, **free).scales, sac.algorithm1(pools, **free)


@pytest.mark.parametrize("factor", [1e-6, 0.3, 1e5])
def test_common_factor_changes_nothing(factor):
    for a, b in zip(both(model()), both(scaled(model(), factor)), strict=True):
        assert_same_numbers(a, b)


def test_order_and_sign_change_nothing():
    rng = np.random.default_rng(3)
    for a, b in zip(both(model()), both({k: rng.permutation(x) for k, x in model().items()}), strict=True):
        assert_same_numbers(a, b)
    odd = model(sizes=(41, 61, 31))  # every pool is odd: the median is the same from either end
    for a, b in zip(both(odd), both(scaled(odd, -1.0)), strict=True):
        assert_same_numbers(a, b)


def test_equal_blocks_have_the_scale_one_exactly():
    x = normal(50)
    found = sac.equations({(layer, block): x for layer in range(4) for block in "abc"})
    assert set(found.scales.values()) == {1.0}


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0])
def test_factor_on_a_layer(gamma):
    """Its ``c`` times ``factor^-gamma`` if the model's dispersion is not its own; its ``s`` unchanged."""
    pools, numbers = model(), {"eps": 0.0, "gamma": gamma, "bounds": None, "hidden": [0, 1]}
    before = sac.equations(pools, **numbers)
    after = sac.equations(scaled(pools, lambda key: 5.0 if key[0] == 2 else 1.0), **numbers)
    close(after.c[2], before.c[2] * 5**-gamma)
    close([after.c[layer] for layer in (0, 1)], [before.c[layer] for layer in (0, 1)])
    assert_same_numbers(after.s, before.s)


@pytest.mark.parametrize("beta", [0.0, 0.5, 1.0])
def test_block_factors(beta):
    pools = {(layer, block): normal(30, seed=7 * layer + i) for layer in range(3) for i, block in enumerate("abc")}
    s = sac.block_factors(pools, beta)
    for layer in range(3):
        values = [s[layer, block] for block in "abc"]
        close(np.mean(values), 1.0)
        assert min(values) > 0
        assert max(values) < 3
    if beta == 0:
        assert set(s.values()) == {1.0}
    # A factor on one block multiplies its share before normalisation by factor^beta
    k = sac.block_factors(scaled(pools, lambda key: 4.0 if key == (0, "a") else 1.0), beta)
    close((k[0, "a"] / k[0, "b"]) / (s[0, "a"] / s[0, "b"]), 4**beta)
    close([k[key] for key in k if key[0] > 0], [s[key] for key in s if key[0] > 0])
    assert sac.block_factors({(0, "only"): normal(9)}, beta) == {(0, "only"): 1.0}
    power = {key: sac.rms(x) ** beta for key, x in pools.items() if key[0] == 1}
    close([s[key] for key in power], [3 * x / sum(power.values()) for x in power.values()], 1e-9)


def test_layers_and_blocks_pull_in_opposite_directions():
    x = normal(50)
    found = sac.equations({(0, "a"): x, (0, "b"): 3 * x, (1, "a"): 9 * x, (1, "b"): 27 * x})
    assert found.c[0] > 1 > found.c[1]
    assert found.s[0, "a"] < 1 < found.s[0, "b"]


def test_no_exponent_no_scale():
    assert set(sac.equations(model(), gamma=0, beta=0).scales.values()) == {1.0}
    assert set(sac.equations(model(), factors=()).scales.values()) == {1.0}
    full = sac.equations(model(), bounds=None)
    layers = sac.equations(model(), bounds=None, factors=("layer",)).scales
    assert_same_numbers(layers, {key: full.c[key[0]] for key in full.s})
    assert_same_numbers(sac.equations(model(), bounds=None, factors=("block",)).scales, full.s)


def test_average_of_c_starts_at_the_first_and_weighs_the_new_by_rho():
    a, b = model(seed=0), model(seed=1)
    first = sac.equations(a, rho=0.1)
    raw = {p: sac.equations(x, rho=1.0).c for p, x in (("a", a), ("b", b))}
    assert first.averages == raw["a"]
    second = sac.equations(b, first.averages, rho=0.1)
    close(list(second.c.values()), [0.9 * raw["a"][layer] + 0.1 * raw["b"][layer] for layer in second.c])
    assert_same_numbers(second.s, sac.block_factors(b, 0.5))  # not averaged


# --- guards


def test_guards():
    pools = model()
    sparse = pools | {(9, "embedding"): np.where(np.arange(200) % 10 == 0, 1.0, 0.0)}  # dispersion 0
    found = sac.equations(sparse, hidden=[0, 1, 2])
    assert found.c[9] == found.scales[9, "embedding"] == 1.0
    assert 9 not in found.averages
    assert_same_numbers({k: v for k, v in found.scales.items() if k[0] < 9}, sac.equations(pools).scales)
    literal = sac.equations(sparse, hidden=[0, 1, 2], gamma=1, tiny=0.0, eps=1e-7, bounds=None)
    assert literal.c[9] > 1e6  # what the guard is for

    few = pools | {(9, "few"): normal(15)}
    assert sac.equations(few).c[9] == 1.0
    assert sac.equations(few, smallest=15).c[9] != 1.0
    mostly_zero = np.where(np.arange(40) < 30, 0.0, normal(40))
    assert sac.algorithm1({(0, "a"): normal(40), (1, "a"): mostly_zero})[1, "a"] == 1.0
    later = sac.equations(sparse, {9: 3.0}, hidden=[0, 1, 2])
    assert later.averages[9] == 3.0
    assert later.c[9] == 1.0
    nothing = sac.equations(scaled(pools, 0.0))
    assert set(nothing.c.values()) == {1.0}
    assert nothing.scales == {}


def test_blocks_of_zeros_do_not_take_part():
    pools = {(0, "a"): normal(30), (0, "b"): normal(30, seed=1), (0, "c"): np.zeros(30)}
    found = sac.block_factors(pools, 0.5)
    assert list(found) == [(0, "a"), (0, "b")]
    close(sum(found.values()), 2.0)
    assert list(sac.equations(pools).scales) == list(sac.algorithm1(pools)) == list(found)


def test_bounds_hold_for_the_product():
    pools = scaled(model(), lambda key: 100.0 ** key[0])
    assert {*sac.equations(pools, bounds=(0.5, 1.0)).scales.values()} >= {0.5, 1.0}
    free = sac.equations(pools, bounds=None).scales
    assert_same_numbers(
        sac.equations(pools, bounds=(0.2, 3.0)).scales, {k: min(max(v, 0.2), 3.0) for k, v in free.items()}
    )


# --- groups


def test_group_factors():
    groups = [normal(20), 3 * normal(50, seed=1), 0.2 * normal(10, seed=2)]
    r = sac.group_factors(groups, bounds=(0, math.inf))
    close(sum(value * x.size for value, x in zip(r, groups, strict=True)) / 80, 1.0)
    close(r[1] / r[0], (sac.rms(groups[1]) / sac.rms(groups[0])) ** 0.25, 1e-9)
    close(sac.group_factors([100 * x for x in groups], bounds=(0, math.inf)), r, 1e-9)
    assert sac.group_factors(groups, beta=0.0) == [1.0, 1.0, 1.0]
    assert sac.group_factors([x * 1e6**i for i, x in enumerate(groups)])[0] == 0.5
    close(sac.group_factors([normal(7)] * 3), [1.0] * 3)
    assert sac.group_factors([*groups, np.zeros(9)], bounds=(0, math.inf)) == [*r, 1.0]


# --- runs

PARTITION = {"a.q": (0, "token"), "a.k": (0, "token"), "a.up": (0, "channel"), "b.q": (1, "token"), "b.up": (1, "mlp")}


def problem(steps=12, seed=0):
    rng = np.random.default_rng(seed)
    shapes = {"a.q": (6, 5), "a.k": (5, 5), "a.up": (9, 4), "b.q": (6, 5), "b.up": (9, 4), "gain": (5,)}
    sizes = {name: np.exp(rng.normal()) for name in shapes}
    parameters = [(name, rng.normal(size=shape)) for name, shape in shapes.items()]
    return parameters, [{n: sizes[n] * rng.normal(size=s) for n, s in shapes.items()} for _ in range(steps)]


BASES = {
    rules.adamw: {"betas": (0.9, 0.99)},
    rules.lion: {"betas": (0.9, 0.99)},
    sac.sgd: {"momentum": 0.9},
}


def run(rule=rules.adamw, **numbers):
    given = {"lr": 0.1, "weight_decay": 0.2, "base": BASES[rule], "interval": 3, **numbers}
    return sac.run(rule, *problem(), PARTITION, **given)


@pytest.mark.parametrize("rule", BASES)
def test_run_without_exponents_is_the_base(rule):
    history, scales = run(rule, gamma=0.0, beta=0.0)
    base, _ = rules.run(rule, *problem(), lr=0.1, weight_decay=0.2, **BASES[rule])
    assert all(set(s.values()) == {1.0} for s in scales)
    for a, b in zip(history, base, strict=True):
        for name in a:
            close(a[name], b[name])


@pytest.mark.parametrize("rule", BASES)
def test_run_scales_the_step_and_not_the_decay(rule):
    """One step by hand: what moves, over what the base moves, is the scale; a 1-D tensor has none."""
    parameters, gradients = problem(1)
    for scaled_decay, decay in itertools.product((False, True), (0.0, 0.2)):
        numbers = {"lr": 0.1, "weight_decay": decay, "base": BASES[rule], "scale_weight_decay": scaled_decay}
        history, scales = sac.run(rule, parameters, gradients, PARTITION, **numbers)
        base, _ = rules.run(rule, parameters, gradients, lr=0.1, weight_decay=decay, **BASES[rule])
        expected = sac.equations(sac.pool(gradients[0], PARTITION)).scales
        assert_same_numbers(scales[0], expected)
        for name, old in parameters:
            scale = expected[PARTITION[name]] if name in PARTITION else 1.0
            decayed = 0.1 * decay * old if rule in sac.DECOUPLED else 0.0
            moved = old - base[1][name] - decayed
            close(old - history[1][name], scale * moved + (scale if scaled_decay else 1.0) * decayed)


def test_run_makes_statistics_every_interval():
    _, scales = run(interval=5)
    changed = [t for t in range(1, 12) if scales[t] != scales[t - 1]]
    assert changed == [5, 10]
    assert scales[0] != dict.fromkeys(scales[0], 1.0)


def test_run_keeps_scales_where_it_cannot_know():
    parameters, gradients = problem(4)
    gradients[1] = gradients[1] | {"a.q": np.full((6, 5), np.nan)}
    gradients[2] = gradients[2] | {"b.q": None}
    _, scales = sac.run(rules.adamw, parameters, gradients, PARTITION, lr=0.1, interval=1)
    assert scales[1] == scales[0]
    assert scales[2][1, "token"] == scales[1][1, "token"]
    assert scales[2][1, "mlp"] != scales[1][1, "mlp"]
    pools = sac.pool(gradients[2], PARTITION)
    assert (1, "token") not in pools
    assert sac.equations(pools).s[1, "mlp"] == 1.0  # alone in its layer now


def test_run_leaves_out_rows_of_zeros():
    partition = {"embedding": (-1, "embedding"), "w": (0, "a"), "u": (0, "b")}
    g = {"embedding": normal(30, 4), "w": normal(6, 6), "u": normal(6, 6, seed=1)}
    g["embedding"][3:27] = 0.0
    assert sac.pool(g, partition, ["embedding"])[-1, "embedding"].shape == (24,)
    parameters = [(name, np.zeros_like(x)) for name, x in g.items()]
    found = [
        sac.run(rules.adamw, parameters, [g], partition, lr=0.1, hidden=[0], nonzero_rows=rows)[1][0]
        for rows in ((), ("embedding",))
    ]
    assert found[0][-1, "embedding"] == 1.0  # nothing can be said of a pool that is mostly zeros
    assert found[1][-1, "embedding"] == pytest.approx(
        (sac.mad(np.concatenate([g["w"].ravel(), g["u"].ravel()])) / sac.mad(g["embedding"][[0, 1, 2, 27, 28, 29]]))
        ** 0.5
    )
    assert found[0][0, "a"] == found[1][0, "a"]


def test_run_with_groups():
    labels = {"a.q": np.repeat([0, 1, 2], 2)[:, None] * np.ones((1, 5), dtype=int)}
    plain, _ = run(interval=1)
    same, _ = run(interval=1, groups=labels, group_numbers={"beta": 0.0})
    other, _ = run(interval=1, groups=labels, weight_decay=0.0)
    bare, _ = run(interval=1, weight_decay=0.0)
    for name in plain[-1]:
        close(plain[-1][name], same[-1][name])
    g = problem()[1][0]["a.q"]
    r = np.repeat(sac.group_factors([g[0:2], g[2:4], g[4:6]]), 2)[:, None]
    close(other[1]["a.q"] - other[0]["a.q"], r * (bare[1]["a.q"] - bare[0]["a.q"]))
    close(other[1]["a.k"], bare[1]["a.k"])


def test_sgd_with_momentum_by_hand():
    w, state = np.array([1.0]), {}
    for t, (g, buffer, expected) in enumerate([(1.0, 1.5, 0.25), (2.0, 2.875, -1.1875)]):
        w, state = sac.sgd(w, np.array([g]), state, t, lr=0.5, momentum=0.5, weight_decay=0.5)
        assert state["buffer"].tolist() == [buffer]
        assert w.tolist() == [expected]


# --- SGG


def test_best_clusters_are_the_best_of_all():
    x = normal(8)
    for k in (1, 2, 3):
        ids = sgg.best_clusters(x, k)
        every = (np.array(i) for i in itertools.product(range(k), repeat=8))
        close(sgg.within(x, ids), min(sgg.within(x, i) for i in every))
        assert sorted(set(ids)) == list(range(k))
        centres = [x[ids == c].mean() for c in range(k)]
        assert centres == sorted(centres)
        assert (sgg.nearest(x, np.array(centres)) == ids).all()
    assert (sgg.best_clusters(x, 20) == np.argsort(np.argsort(x))).all()


def test_lloyd_never_beats_the_best_and_finds_clear_clusters():
    for seed in range(5):
        x = normal(40, seed=seed)
        centres = sgg.lloyd(x, np.quantile(x, [1 / 6, 1 / 2, 5 / 6]))
        found, best = sgg.within(x, sgg.nearest(x, centres)), sgg.within(x, sgg.best_clusters(x, 3))
        assert best <= found + 1e-12
        assert found < 1.3 * best
        close(sgg.lloyd(x, centres, 1), centres)  # a fixed point
    x = np.concatenate([normal(20) / 50 + c for c in (-3.0, 0.0, 5.0)])
    ids = sgg.nearest(x, sgg.lloyd(x, [-1.0, 0.5, 1.0]))
    assert (ids == np.repeat([0, 1, 2], 20)).all()
    assert sgg.lloyd(x, [0.0, 100.0])[1] == 100.0  # a centre without elements stays


def test_sgg_scales_by_hand():
    m = np.array([[1.0, 2.0, 3.0], [-1.0, -2.0, -3.0]])
    ids = np.array([[0, 0, 1], [0, 1, 1]])
    assert sgg.deviations(m, ids, 3) == [1.0, 3.0, None]  # 1 2 1 and 3 2 3
    raw = sgg.raw_scales({"m": m, "n": 4 * m}, {"m": ids, "n": ids}, 3, eps=0.0)
    assert raw == {"m": [3.0, 1.0, None], "n": [0.75, 0.25, None]}  # the lower median of 1 3 4 12
    elements = sgg.raw_scales({"m": m, "n": 4 * m}, {"m": ids, "n": ids}, 3, eps=0.0, pool="elements")
    assert elements["m"] == [3.0, 1.0, None]  # of 1 1 2 2 3 3 4 4 8 8 12 12: the lower median is 3
    close(sgg.averaged(1.0, 3.0), 1.02)
    close(sgg.averaged(1.0, 1e9), 1.09)
    close(sgg.averaged(1.0, 0.0, 0.5), 0.55)


def sgg_run(rule=rules.adamw, gradients=None, **numbers):
    parameters, drawn = problem(8)
    given = {"lr": 0.1, "weight_decay": 0.2, "base": BASES[rule], **numbers}
    return sgg.run(
        rule, parameters, gradients or drawn, lambda t, name, m: sgg.best_clusters(m, 3).reshape(m.shape), **given
    )


@pytest.mark.parametrize("rule", BASES)
def test_sgg_run_without_average_is_the_base(rule):
    base, _ = rules.run(rule, *problem(8), lr=0.1, weight_decay=0.2, **BASES[rule])
    same, scales = sgg_run(rule, recluster=2, beta=1.0)
    assert {x for s in scales for v in s.values() for x in v} == {1.0}
    for name in base[-1]:
        close(same[-1][name], base[-1][name])


def test_sgg_run_scales_the_step_of_each_cluster():
    base, _ = rules.run(rules.adamw, *problem(8), lr=0.1, weight_decay=0.2, **BASES[rules.adamw])
    history, scales = sgg_run(beta=0.5)
    ids = sgg.best_clusters(problem(8)[1][0]["a.q"], 3).reshape(6, 5)
    assert len(set(scales[0]["a.q"])) == 3
    old = base[0]["a.q"]
    step = base[1]["a.q"] - (1 - 0.02) * old
    close(history[1]["a.q"] - (1 - 0.02) * old, scales[0]["a.q"][ids] * step)
    along, _ = sgg_run(beta=0.5, scale_weight_decay=True)
    close(along[1]["a.q"] - old, scales[0]["a.q"][ids] * (step - 0.02 * old))
    close(history[-1]["gain"], base[-1]["gain"])  # 1-D is not scaled


def test_sgg_run_counts():
    def changes(**numbers):
        _, scales = sgg_run(beta=0.5, **numbers)
        return [t for t in range(1, 8) if any((scales[t][n] != scales[t - 1][n]).any() for n in scales[t])]

    assert changes() == [1, 2, 3, 4, 5, 6, 7]
    assert changes(interval=3) == [3, 6]
    seen = []

    def clusters(t, name, m):
        seen.append((t, name))
        return sgg.best_clusters(m, 3).reshape(m.shape)

    parameters, gradients = problem(8)
    gradients[6] = gradients[6] | {"a.k": None}
    history, scales = sgg.run(rules.adamw, parameters, gradients, clusters, lr=0.1, recluster=3, beta=0.5)
    assert [t for t, name in seen if name == "a.q"] == [0, 3, 6]
    assert [t for t, name in seen if name == "a.k"] == [0, 3]
    assert (history[7]["a.k"] == history[6]["a.k"]).all()
    assert (scales[6]["a.k"] == scales[5]["a.k"]).all()
    assert (scales[6]["a.q"] != scales[5]["a.q"]).any()


def test_spread_quantiles():
    assert sgg.spread_quantiles(np.array([4.0, 1.0, 3.0, 2.0, 6.0, 5.0]), 3).tolist() == [2.0, 4.0, 6.0]
