"""SAC: golden numbers, invariants, options, checkpoints, and what it does where there is nothing to measure."""

from __future__ import annotations

import copy
import inspect
import io
import math
import warnings

import pytest
import torch
import toys
from torch import nn

import cases
import steepest
from steepest.scaling import Partition, partition

# --- golden numbers: two layers of two blocks, the numbers of each given twice so that they are matrices

GOLDEN = {
    (1, "token"): [1.0, -2.0, 3.0, -4.0, 5.0],
    (1, "channel"): [0.5, -0.5, 1.5, -1.5, 2.5],
    (2, "token"): [0.1, -0.2, 0.3, -0.4, 0.5],
    (2, "channel"): [0.2, -0.2, 0.6, -0.6, 1.0],
}
RATIO = {1: 0.35, 2: 7 / 3}
BLOCK = {(1, "token"): 1.377157, (1, "channel"): 0.622843, (2, "token"): 0.711980, (2, "channel"): 1.288020}
HALF = {(1, "token"): 1.195809, (1, "channel"): 0.804191, (2, "token"): 0.852873, (2, "channel"): 1.147127}
SCORE = {"token": 0.633902, "channel": 0.716704}
DISTANCES = {"token": 0.889412, "channel": 0.716704}


def golden(factor: float = 1.0, **options):
    """The scales, and the step that SGD took, of the golden gradients."""
    named = [(f"{layer}.{block}", nn.Parameter(torch.zeros(2, 5))) for layer, block in GOLDEN]
    for (_, p), x in zip(named, GOLDEN.values(), strict=True):
        p.grad = torch.tensor([x, x]) * factor
    where = [(r"(\d)\.(\w+)", lambda match: (int(match[1]), match[2]))]
    options = {"eps": 0.0, **options} if options.get("mode", "equations").startswith("eq") else options
    optimizer = steepest.SAC(torch.optim.SGD([p for _, p in named], lr=0.5), named, partition=where, **options)
    optimizer.step()
    for (_, p), key in zip(named, GOLDEN, strict=True):
        cases.assert_close(p.detach(), -0.5 * optimizer.scales[key] * p.grad)
    return optimizer.scales


@pytest.mark.parametrize("engine", ["device", "cpu", "hybrid"])
@pytest.mark.parametrize("factor", [1.0, 1e-6, 1e6])
def test_golden_numbers_of_the_equations(engine, factor):
    raw = golden(factor, mode="equations-raw", engine=engine, wait=True)
    assert raw == pytest.approx({key: RATIO[key[0]] * s for key, s in BLOCK.items()}, rel=1e-5)
    half = golden(factor, engine=engine, wait=True)
    assert half == pytest.approx({key: RATIO[key[0]] ** 0.5 * s for key, s in HALF.items()}, rel=1e-5)
    assert golden(factor, gamma=1.0, factors=("layer",)) == pytest.approx({key: RATIO[key[0]] for key in BLOCK})
    assert golden(factor, beta=1.0, factors=("block",)) == pytest.approx(BLOCK, rel=1e-5)


def test_golden_numbers_of_algorithm_1():
    exact = {key: RATIO[key[0]] * SCORE[key[1]] for key in GOLDEN}
    assert golden(mode="algorithm1", bounds=None) == pytest.approx(exact, rel=1e-5)
    assert golden(mode="paper-c4") == pytest.approx(exact, rel=1e-5)  # nothing at the bounds
    assert golden(mode="paper-sft") == pytest.approx({key: min(max(s, 0.5), 1.0) for key, s in exact.items()}, rel=1e-5)
    released = {key: RATIO[key[0]] * DISTANCES[key[1]] for key in GOLDEN}
    assert golden(mode="algorithm1", block_scale="mad_of_distances") == pytest.approx(released, rel=1e-5)
    usual = golden(mode="algorithm1", normalize_block=True)
    assert usual == pytest.approx({key: s / 0.702 for key, s in exact.items()}, rel=1e-2)


@pytest.mark.parametrize(
    ("name", "factors"),
    [("P+B", ("block",)), ("P+L", ("layer",)), ("P+L+B", ("layer", "block")), ("G+L+B", ("layer", "block"))],
)
def test_granularities_of_table_7(name, factors):
    assert golden(granularity=name) == golden(factors=factors)


# --- the base, bit for bit


@pytest.mark.parametrize("options", [{"gamma": 0.0, "beta": 0.0}, {"factors": ()}], ids=str)
def test_without_exponents_it_is_the_base(options):
    bare, wrapped = toys.problem(), toys.problem()
    optimizer = toys.sac(toys.adamw(wrapped), wrapped, interval=2, **options)
    cases.assert_same(wrapped.run(optimizer), bare.run(toys.adamw(bare)))
    assert set(optimizer.scales.values()) == {1.0}
    assert optimizer.statistics() is not None


def test_equal_gradients_give_factors_of_one():
    def make():
        of = toys.problem()
        for gradients in of.gradients:  # of every parameter the same numbers as often
            numbers = torch.linspace(-2, 3, 12)
            gradients.update({name: numbers.repeat(8)[: math.prod(s)].view(s) for name, s in toys.SHAPES.items()})
        return of

    bare, wrapped = make(), make()
    optimizer = toys.sac(toys.adamw(wrapped), wrapped, interval=1, mode="equations-raw")
    cases.assert_same(wrapped.run(optimizer), bare.run(toys.adamw(bare)))
    assert set(optimizer.scales.values()) == {1.0}


def test_the_step_is_that_of_the_base_at_a_scaled_rate():
    wrapped = toys.problem()
    optimizer = toys.sac(toys.adamw(wrapped), wrapped, interval=100)
    actual = wrapped.run(optimizer)
    for name, scale in toys.by_name(optimizer.scales).items():
        alone = toys.problem()
        expected = alone.run(toys.adamw(alone, lr=0.01 * scale, weight_decay=0.3 / scale))
        cases.assert_same([w[name] for w in actual], [w[name] for w in expected])
    assert len(set(toys.by_name(optimizer.scales).values())) == 7


# --- invariants


def scales_of(change=None, sizes=None, **options):
    of = toys.problem(steps=1, sizes=sizes)
    for name in toys.SHAPES:
        if change is not None:
            of.gradients[0][name] = change(name, of.gradients[0][name])
    optimizer = toys.sac(toys.adamw(of), of, **{"bounds": None, **options})
    of.run(optimizer)
    return optimizer.scales


@pytest.mark.parametrize("mode", ["equations", "algorithm1"])
def test_the_size_of_all_gradients_does_not_matter(mode):
    plain = scales_of(mode=mode)
    for size in (2.0**-20, 2.0**20):
        assert scales_of(lambda _, g, size=size: g * size, mode=mode) == pytest.approx(plain, rel=1e-5)


def test_one_layer_and_one_block_made_larger():
    plain = scales_of(scope="hidden")
    layer = scales_of(lambda name, g: g * 4.0 if name.startswith("layers.1") else g)
    # D of the model moves too; it is the same for all layers, so ratios of layers tell the exponent
    moved = {key: layer[key] / plain[key] for key in plain}
    assert moved[1, "attention"] == pytest.approx(moved[1, "mlp"])
    assert moved[0, "mlp"] / moved[1, "mlp"] == pytest.approx(4.0**0.5)
    block = scales_of(lambda name, g: g * 4.0 if name == "layers.1.mlp.weight" else g, factors=("block",))
    own = scales_of(factors=("block",))
    odds = (block[1, "mlp"] / block[1, "attention"]) / (own[1, "mlp"] / own[1, "attention"])
    assert odds == pytest.approx(4.0**0.5)
    assert block[1, "mlp"] + block[1, "attention"] == pytest.approx(2.0)
    assert block[0, "mlp"] == own[0, "mlp"]


def test_where_an_element_stands_does_not_matter():
    def shuffled(name, g):
        order = torch.randperm(g.numel(), generator=torch.Generator().manual_seed(1))
        return g.flatten()[order].view(g.shape)

    assert scales_of(shuffled) == pytest.approx(scales_of(), rel=1e-6)


def test_bounds_hold():
    assert min(scales_of().values()) < 0.8
    assert max(scales_of().values()) > 1.25
    bounded = scales_of(bounds=(0.8, 1.25))
    assert bounded == {key: min(max(scale, 0.8), 1.25) for key, scale in scales_of().items()}


def test_scope_and_embedding():
    plain = scales_of()
    assert scales_of(scope="all")[0, "mlp"] != plain[0, "mlp"]

    def half_of_the_rows(name, g):
        return g * (torch.arange(12) < 5)[:, None] if name == "embed.weight" else g

    assert scales_of(half_of_the_rows)[-1, "embedding"] == pytest.approx(plain[-1, "embedding"], rel=0.4)
    assert scales_of(half_of_the_rows, embedding="raw")[-1, "embedding"] == 1.0  # most numbers are zero: none measured


@pytest.mark.parametrize("statistic", ["huber", "iqr", "mean_deviation", "l1", "std", "rms", "variance", "maximum"])
def test_statistics_differ(statistic):
    plain, other = scales_of(), scales_of(statistic=statistic)
    assert all(other[key] != plain[key] for key in plain)
    assert other == pytest.approx(plain, rel=5.0 if statistic == "variance" else 1.5)


# --- when


def test_statistics_are_made_every_so_many_steps_and_averaged():
    of = toys.problem(steps=7)
    for step, gradients in enumerate(of.gradients):  # layer 1 grows against layer 0
        gradients["layers.1.mlp.weight"] = gradients["layers.1.mlp.weight"] * 2.0**step
    optimizer = toys.sac(toys.adamw(of), of, interval=3, rho=0.25)
    history, averages = [], []
    for step in range(7):
        of.run(optimizer, step, step + 1)
        history.append(optimizer.scales)
        averages.append(optimizer.own_state()["layers"]["1"])
    assert history[0] == history[1] == history[2] != history[3] == history[5] != history[6]
    single = []
    for step in (0, 3, 6):
        again = toys.sac(toys.adamw(of), of, interval=1)
        of.run(again, step, step + 1)
        single.append(again.own_state()["layers"]["1"])
    assert averages[0] == single[0]  # begins with the first
    assert averages[3] == pytest.approx(0.75 * single[0] + 0.25 * single[1])
    assert averages[6] == pytest.approx(0.75 * averages[3] + 0.25 * single[2])
    assert optimizer.statistics().step == 6


@pytest.mark.parametrize("engine", ["cpu", "hybrid"])
def test_other_engines_give_the_same_scales_one_step_later(engine):
    first, second = toys.problem(), toys.problem()
    now = toys.sac(toys.adamw(first), first, interval=3)
    late = toys.sac(toys.adamw(second), second, interval=3, engine=engine)
    seen = []
    for step in range(7):
        first.run(now, step, step + 1)
        second.run(late, step, step + 1)
        seen.append((now.scales, late.scales))
    assert set(seen[0][1].values()) == {1.0}
    for step in range(1, 7):
        assert seen[step][1] == seen[step - 1][0]


# --- where there is nothing to measure


def test_a_block_without_gradients_keeps_its_factor():
    of = toys.problem(steps=9)
    for gradients in of.gradients[1:]:
        gradients["layers.1.mlp.weight"] = None
    optimizer = toys.sac(toys.adamw(of), of, interval=2)
    of.run(optimizer, 0, 1)
    first = optimizer.scales
    of.run(optimizer, 1)
    assert optimizer.scales[1, "mlp"] == first[1, "mlp"] != 1.0
    assert optimizer.scales[0, "mlp"] != first[0, "mlp"]
    assert optimizer.statistics().factors.blocks[1, "attention"] == 1.0  # alone in its layer now


def test_no_gradients_at_all_and_zeros():
    of = toys.problem(steps=3)
    for name in toys.SHAPES:
        of.gradients[0][name] = None
        of.gradients[1][name] = torch.zeros(toys.SHAPES[name])
    optimizer = toys.sac(toys.adamw(of), of, interval=1)
    of.run(optimizer, 0, 2)
    assert set(optimizer.scales.values()) == {1.0}
    assert optimizer.own_state()["layers"] == {}
    of.run(optimizer, 2)
    assert 1.0 not in optimizer.scales.values()


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_non_finite_gradients_change_no_factor_and_warn_once(bad):
    of = toys.problem(steps=5)
    for step in (1, 2):
        of.gradients[step]["layers.0.mlp.weight"][1, 2] = bad
        of.gradients[step]["head.weight"][0, 0] = bad
    base = torch.optim.SGD(of.params.values(), lr=0.0)
    optimizer = toys.sac(base, of, interval=1)
    of.run(optimizer, 0, 1)
    before = optimizer.scales, optimizer.own_state()["layers"], optimizer.statistics()
    with pytest.warns(UserWarning, match=r"SAC: the gradient of '\S+', '\S+' is not finite") as caught:
        of.run(optimizer, 1, 3)
    assert len(caught) == 1
    assert "'layers.0.mlp.weight'" in str(caught[0].message)
    assert "'head.weight'" in str(caught[0].message)
    assert caught[0].filename.endswith("cases.py")  # who called step()
    assert (optimizer.scales, optimizer.own_state()["layers"], optimizer.statistics()) == before
    assert optimizer.own_state()["step"] == 3
    of.run(optimizer, 3)
    assert optimizer.scales != before[0]


@pytest.mark.parametrize(("estimator", "noticed"), [("sample", 1), ("histogram", 3), ("exact", 3)])
def test_what_is_not_finite_outside_of_the_sample_goes_unnoticed(estimator, noticed):
    """Of a matrix of 48 elements "sample" reads 16, a third."""

    def scales_and_warnings(bad: int | None):
        of = toys.problem(steps=1)
        if bad is not None:
            of.gradients[0]["layers.1.mlp.weight"].view(-1)[bad] = math.nan
        optimizer = toys.sac(torch.optim.SGD(of.params.values(), lr=0.0), of, estimator=estimator, samples=16)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            of.run(optimizer)
        return optimizer.scales, len(caught)

    clean, _ = scales_and_warnings(None)
    assert len(set(clean.values())) > 3
    found = [scales_and_warnings(bad) for bad in (3, 20, 40)]
    assert sum(warned for _, warned in found) == noticed
    for scales, warned in found:
        assert scales == (dict.fromkeys(clean, 1.0) if warned else clean)


def test_a_step_that_the_base_refuses_leaves_no_trace():
    of = toys.problem()
    optimizer = toys.sac(steepest.Lion(of.named(), lr=0.01, check_finite="all"), of, interval=1)
    of.run(optimizer, 0, 2)
    of.load(2)
    of.params["norm.weight"].grad[0] = math.nan  # not in the partition, so not in the statistics
    before = copy.deepcopy(optimizer.state_dict())
    with pytest.raises(FloatingPointError):
        optimizer.step()
    cases.assert_same(optimizer.state_dict(), before)
    twin = toys.problem()
    other = toys.sac(steepest.Lion(twin.named(), lr=0.01), twin, interval=1)
    cases.assert_same(of.run(optimizer, 2), twin.run(other)[2:])


@pytest.mark.parametrize("embedding", ["nonzero_rows", "raw"])
def test_sparse_gradients(embedding):
    torch.manual_seed(0)
    dense, sparse = nn.Embedding(12, 6), nn.Embedding(12, 6, sparse=True)
    sparse.load_state_dict(dense.state_dict())
    found = []
    for table in (dense, sparse):
        layer = nn.Parameter(torch.ones(6, 6))
        named = [("embed.weight", table.weight), ("layers.0.mlp.weight", layer)]
        optimizer = steepest.SAC(
            torch.optim.SGD([table.weight, layer], lr=0.1),
            named,
            partition=toys.MAPPING[:2],
            gamma=1.0,
            embedding=embedding,
        )
        for step in range(3):
            optimizer.zero_grad()
            ((table(toys.tokens(step) % 5) @ layer) ** 2).mean().backward()
            optimizer.step()
        found.append((optimizer.scales, table.weight.detach().clone()))
    assert found[1][0] == pytest.approx(found[0][0], rel=1e-6)
    cases.assert_close(found[1][1], found[0][1])
    assert found[0][0][-1, "embedding"] == 1.0 or embedding != "raw"  # most of its numbers are zero


def test_parameters_take_part_when_they_are_unfrozen():
    model = toys.Net()
    model.layers[0].requires_grad_(False)
    optimizer = steepest.SAC(torch.optim.AdamW(model.parameters(), lr=0.01), model, interval=2)
    toys.train(model, optimizer, 0, 2)
    assert set(optimizer.scales) == {(-1, "embedding"), (1, "attention"), (1, "mlp"), (2, "head")}
    saved = copy.deepcopy(optimizer.state_dict())
    model.layers[0].requires_grad_(True)
    toys.train(model, optimizer, 2, 4)
    assert optimizer.scales[0, "mlp"] != 1.0
    fresh = toys.Net()
    other = steepest.SAC(torch.optim.AdamW(fresh.parameters(), lr=0.01), fresh, interval=2)
    other.load_state_dict(saved)  # what is new begins at 1
    assert other.scales == {**optimizer_scales(saved), (0, "attention"): 1.0, (0, "mlp"): 1.0}
    toys.train(fresh, other, 2, 3)
    assert other.scales[0, "mlp"] != 1.0
    late = copy.deepcopy(other.state_dict())
    frozen = toys.Net()
    frozen.layers[0].requires_grad_(False)
    third = steepest.SAC(torch.optim.AdamW(frozen.parameters(), lr=0.01), frozen, interval=2)
    third.load_state_dict(late)  # and what is frozen again has its factor when it is not
    frozen.layers[0].requires_grad_(True)
    third._notice_unfrozen()
    assert third.scales == other.scales


def optimizer_scales(saved):
    return {(int(text.split()[0]), text.split()[1]): scale for text, scale in saved["sac"]["scales"].items()}


def test_a_checkpoint_that_contradicts_the_partition_is_refused():
    model, optimizer = resumable()
    toys.train(model, optimizer, 0, 1)
    base = torch.optim.AdamW(model.parameters(), lr=0.01)
    other = steepest.SAC(base, model, partition=[(r"layers\.0\.mlp\.0\.weight", (0, "attention"))])
    before = other.own_state()
    with pytest.raises(ValueError, match=r"'layers\.0\.mlp\.0\.weight' is in '0 mlp' there, and in '0 attention' here"):
        other.load_state_dict(optimizer.state_dict())
    assert other.own_state() == before
    without = steepest.SAC(torch.optim.AdamW(model.parameters(), lr=0.01), model, head="exclude")
    with pytest.raises(
        ValueError, match=r"'head\.weight' is in '2 head' there, and not scaled here \(head='exclude'\)"
    ):
        without.load_state_dict(optimizer.state_dict())


def test_a_group_that_the_base_was_given_directly_takes_part():
    model = toys.Net()
    base = torch.optim.AdamW(model.layers[1].parameters(), lr=0.01)
    optimizer = steepest.SAC(base, model, interval=2)
    toys.train(model, optimizer, 0, 1)
    base.add_param_group({"params": list(model.layers[0].parameters())})
    toys.train(model, optimizer, 1, 3)
    assert optimizer.scales[0, "mlp"] not in (0.0, 1.0)
    base.add_param_group({"params": [nn.Parameter(torch.ones(2, 3))]})
    before = [p.detach().clone() for p in model.parameters()]
    with pytest.raises(ValueError, match=r"1 of the \d+ .* 'a tensor of shape \(2, 3\)'"):
        optimizer.step()
    cases.assert_same([p.detach() for p in model.parameters()], before)


def test_one_sac_in_another_is_refused_and_sgg_around_it_is_not():
    model = toys.Net()

    def inner():
        return steepest.SAC(torch.optim.AdamW(model.parameters(), lr=0.01), model)

    message = r"SAC: the AdamW is inside a SAC already, and both would keep their state as 'sac'"
    with pytest.raises(ValueError, match=message):
        steepest.SAC(inner(), model)
    with pytest.raises(ValueError, match=message):
        steepest.SAC(steepest.SGG(inner(), model), model)
    both = steepest.SGG(inner(), model)
    toys.train(model, both, 0, 2)
    assert both.state_dict().keys() >= {"sac", "sgg"}
    with pytest.raises(ValueError, match=r"SGG: the AdamW is inside a SGG already"):
        steepest.SGG(both, model)


def test_groups_that_are_added():
    model = toys.Net()
    optimizer = steepest.SAC(torch.optim.AdamW(model.layers[1].parameters(), lr=0.01), model, interval=1)
    toys.train(model, optimizer, 0, 1)
    assert set(optimizer.scales) == {(1, "attention"), (1, "mlp")}
    optimizer.add_param_group({"params": model.layers[0].parameters(), "lr": 0.02})
    toys.train(model, optimizer, 1, 2)
    assert optimizer.scales[0, "mlp"] not in (0.0, 1.0)
    assert [g["lr"] for g in optimizer.param_groups] == [0.01, 0.02]
    before = optimizer.scales
    for bad, message in (
        (nn.Parameter(torch.ones(2, 3)), r"1 of the \d+ .* 'a tensor of shape \(2, 3\)'"),
        (model.layers[0].mlp[0].weight, "more than one parameter group"),
    ):
        with pytest.raises(ValueError, match=message):
            optimizer.add_param_group({"params": [bad]})
        assert (len(optimizer.param_groups), optimizer.scales) == (2, before)
    toys.train(model, optimizer, 2, 3)


# --- the control arm, and groups


def test_constant_factors():
    of = toys.problem()
    optimizer = toys.sac(toys.adamw(of), of, mode="constant", scales=toys.SCALES)
    expected = {name: {} for name in toys.SHAPES}
    for name, factor in toys.by_name(toys.SCALES).items():
        alone = toys.problem()
        expected[name] = [w[name] for w in alone.run(toys.adamw(alone, lr=0.01 * factor, weight_decay=0.3 / factor))]
    for step, weights in enumerate(of.run(optimizer)):
        cases.assert_same(weights, {name: expected[name][step] for name in weights})
    assert optimizer.scales == {**toys.SCALES, (1, "attention"): 1.0, (2, "head"): 1.0}
    assert optimizer.statistics() is None


@pytest.mark.parametrize(("options", "low"), [({}, 0.1), ({"bounds": (0.5, 1.0)}, 0.5)])
def test_the_pattern_of_the_released_code(options, low):
    model = toys.Net()
    optimizer = steepest.SAC(torch.optim.AdamW(model.parameters(), lr=0.01), model, mode="constant", **options)
    assert optimizer.scales == {
        (-1, "embedding"): 1.0,
        **{(layer, block): low for layer in (0, 1) for block in ("attention", "mlp")},
        (2, "head"): low,
    }


def test_group_factors_multiply_rows_and_heads():
    model, plain = toys.Net(), toys.Net()
    options = {"interval": 2}
    optimizer = steepest.SAC(
        torch.optim.SGD(model.parameters(), lr=0.01), model, granularity="P+G+L+B", group_beta=1.0, **options
    )
    same = steepest.SAC(torch.optim.SGD(plain.parameters(), lr=0.01), plain, **options)
    before = toys.Net().state_dict()
    toys.train(model, optimizer, 0, 1)
    toys.train(plain, same, 0, 1)
    assert optimizer.scales == same.scales
    ratios = {
        name: (p.detach() - before[name]) / (q.detach() - before[name])
        for (name, p), q in zip(model.named_parameters(), plain.parameters(), strict=True)
    }
    rows = ratios["layers.0.mlp.0.weight"]
    cases.assert_close(rows, rows[:, :1].expand_as(rows), rtol=1e-2)
    assert rows[:, 0].std() > 0.05
    assert rows.min() >= 0.5 * (1 - 1e-2)
    heads = ratios["layers.0.attention.out_proj.weight"]
    cases.assert_close(heads, torch.stack([heads[0, 0], heads[0, -1]]).repeat_interleave(4).expand_as(heads), 1e-2)
    assert heads[0, 0] != pytest.approx(heads[0, -1].item(), rel=1e-2)
    bias = ratios["layers.0.mlp.0.bias"]
    cases.assert_same(bias, torch.ones_like(bias))


# --- checkpoints


def resumable(**options):
    model = toys.Net()
    base = torch.optim.AdamW(model.parameters(), lr=0.01, weight_decay=0.1)
    return model, steepest.SAC(base, model, interval=3, **options)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"engine": "cpu"},
        {"engine": "hybrid", "estimator": "histogram"},
        {"mode": "algorithm1"},
        {"granularity": "P+G+L+B"},
        {"granularity": "P+G+L+B", "engine": "cpu"},
        {"apply": "update"},
    ],
    ids=str,
)
def test_a_run_resumes_exactly_from_every_step(options):
    whole = toys.train(*resumable(**options), 0, 8)
    for stop in range(1, 8):
        model, optimizer = resumable(**options)
        toys.train(model, optimizer, 0, stop)
        file = io.BytesIO()
        torch.save((model.state_dict(), optimizer.state_dict()), file)
        saved = torch.load(io.BytesIO(file.getvalue()), weights_only=True)
        again, other = resumable(**options)
        toys.train(again, other, 20, 20 + stop % 3)
        again.load_state_dict(saved[0])
        other.load_state_dict(saved[1])
        assert other.scales == optimizer.scales
        cases.assert_same(toys.train(again, other, stop, 8), whole[stop:])


@pytest.mark.parametrize("flatten", [False, True])
@pytest.mark.parametrize("options", [{}, {"engine": "cpu"}], ids=str)
def test_through_distributed_checkpoint(flatten, options, tmp_path):
    model, optimizer = resumable(**options)
    toys.train(model, optimizer, 0, 4)
    target = resumable(**options)
    cases.through_distributed_checkpoint((model, optimizer), target, tmp_path, flatten=flatten)
    assert target[1].scales == optimizer.scales
    cases.assert_same(toys.train(*target, 4, 8), toys.train(model, optimizer, 4, 8))


def test_group_factors_are_made_anew_after_a_distributed_checkpoint(tmp_path):
    model, optimizer = resumable(granularity="P+G+L+B")
    toys.train(model, optimizer, 0, 4)
    target = resumable(granularity="P+G+L+B")
    cases.through_distributed_checkpoint((model, optimizer), target, tmp_path, flatten=False)
    assert target[1].scales == optimizer.scales
    assert "groups" not in target[1].own_state()
    toys.train(*target, 4, 7)
    assert set(target[1].own_state()["groups"]) == set(optimizer.own_state()["groups"])
    model, plain = resumable()
    plain.load_state_dict(optimizer.state_dict())  # which has factors that this one does not use
    toys.train(model, plain, 4, 7)
    assert "groups" not in plain.own_state()


@pytest.mark.parametrize(("engine", "expected"), [("device", [4, 6]), ("cpu", [1, 5])])
def test_group_factors_come_and_stay_with_those_of_the_blocks(engine, expected):
    """Statistics at steps 0, 2, 4 and 6, those of step 2 not finite."""
    of = toys.problem(steps=7)
    of.gradients[2]["layers.0.mlp.weight"][1, 2] = math.inf
    optimizer = toys.sac(
        torch.optim.SGD(of.params.values(), lr=0.0), of, interval=2, granularity="P+G+L+B", engine=engine
    )
    seen = []
    for step in range(7):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            of.run(optimizer, step, step + 1)
        groups = optimizer.own_state().get("groups", {}).get("layers.1.mlp.weight", torch.zeros(0)).tolist()
        seen.append((groups, tuple(optimizer.scales.values())))
    changes = [step for step in range(1, 7) if seen[step] != seen[step - 1]]
    assert changes == expected
    assert all((a != c) == (b != d) for (a, b), (c, d) in zip(seen[1:], seen, strict=False))


def test_the_state_is_small_and_plain():
    model, optimizer = resumable()
    toys.train(model, optimizer, 0, 4)
    own = optimizer.state_dict()["sac"]
    assert {"step", "scales", "layers", "mode", "options", "partition", "engine"} == set(own)
    assert own["step"] == 4
    assert set(own["scales"]) == {"-1 embedding", "0 attention", "0 mlp", "1 attention", "1 mlp", "2 head"}
    assert own["partition"]["0 mlp"] == ["layers.0.mlp.0.weight", "layers.0.mlp.2.weight"]
    assert optimizer.param_groups[0].keys() - torch.optim.AdamW(model.parameters()).param_groups[0].keys() == {"sac"}
    assert not [k for state in optimizer.state.values() for k in state if k not in ("step", "exp_avg", "exp_avg_sq")]


def test_a_checkpoint_of_the_base_alone_begins_anew():
    model, optimizer = resumable()
    toys.train(model, optimizer, 0, 4)
    bare = torch.optim.AdamW(model.parameters(), lr=0.01)
    bare.load_state_dict(optimizer.state_dict())
    optimizer.load_state_dict(bare.state_dict())  # which still has the string of ours in a group
    assert set(optimizer.scales.values()) == {1.0}
    assert optimizer.own_state()["step"] == 0
    toys.train(model, optimizer, 4, 5)
    assert 1.0 not in optimizer.scales.values()


def test_a_checkpoint_of_another_partition_is_refused():
    model, optimizer = resumable()
    toys.train(model, optimizer, 0, 4)
    saved = optimizer.state_dict()
    saved["sac"]["partition"]["0 mlp"][0] = "layers.0.mlp.other"
    before = cases.snapshot(optimizer), optimizer.scales
    message = r"'layers\.0\.mlp\.other' is in '0 mlp' there, and not scaled here \(no such parameter\)"
    with pytest.raises(ValueError, match=message):
        optimizer.load_state_dict(saved)
    cases.assert_same((cases.snapshot(optimizer), optimizer.scales)[0], before[0])
    saved.pop("sac")
    optimizer.load_state_dict({**saved, "param_groups": [{**g, "sac": ""} for g in saved["param_groups"]]})
    assert set(optimizer.scales.values()) == {1.0}


def test_a_copy_goes_on_alike():
    model, optimizer = resumable(engine="cpu")
    toys.train(model, optimizer, 0, 4)
    twin, other = copy.deepcopy((model, optimizer))
    cases.assert_same(toys.train(twin, other, 4, 8), toys.train(model, optimizer, 4, 8))


# --- models and partitions


def test_a_wrapped_model_and_a_partition_that_is_given():
    model = toys.Net()
    base = torch.optim.AdamW(model.parameters(), lr=0.01)
    ready = partition(model)
    optimizer = steepest.SAC(base, torch.compile(model), partition=ready)
    assert optimizer.partition is ready
    assert isinstance(ready, Partition)
    compiled = torch.compile(toys.Net())
    assert set(steepest.SAC(torch.optim.SGD(compiled.parameters(), lr=0.1), compiled).scales) == set(optimizer.scales)


def test_policies():
    model = toys.Net()
    optimizer = steepest.SAC(torch.optim.AdamW(model.parameters(), lr=0.01), model, embedding="exclude", head="exclude")
    assert set(optimizer.scales) == {(layer, block) for layer in (0, 1) for block in ("attention", "mlp")}


def test_parameters_of_another_model():
    model = toys.Net()
    named = [(f"mine.{name}", p) for name, p in copy.deepcopy(model).named_parameters()]
    for base, message in (
        (torch.optim.AdamW(named, lr=0.01), r"20 of the 20 parameters .* 'mine\.embed\.weight', .* and 15 more"),
        (torch.optim.AdamW([p for _, p in named], lr=0.01), r"'a tensor of shape \(16, 8\)'"),
    ):
        with pytest.raises(ValueError, match=message + r".*The model has 'embed\.weight'"):
            steepest.SAC(base, model)
        base.step()  # not closed
    extra = nn.Parameter(torch.ones(3, 3))
    with pytest.raises(ValueError, match=r"1 of the 21 .*\(3, 3\)"):
        steepest.SAC(torch.optim.AdamW([*model.parameters(), extra]), model)


def test_an_optimizer_of_part_of_the_model():
    """Such as one for the matrices beside another for the rest."""
    model = toys.Net()
    optimizer = steepest.SAC(torch.optim.SGD(model.layers.parameters(), lr=0.1), model)
    toys.train(model, optimizer, 0, 2)
    assert {layer for layer, _ in optimizer.scales} == {0, 1}
    with pytest.raises(ValueError, match=r"no parameter of the optimizer is in a block that is scaled:\n"):
        steepest.SAC(torch.optim.SGD(model.norm.parameters(), lr=0.1), model)


# --- what is refused

BAD = [
    ({"mode": "equation"}, ValueError, "unknown mode 'equation'; did you mean 'equations'"),
    ({"statistic": "madd"}, ValueError, "unknown statistic 'madd'; did you mean 'mad'"),
    ({"engine": "gpu"}, ValueError, "SAC: unknown engine 'gpu'; did you mean 'cpu'"),
    ({"estimator": "sampled"}, ValueError, "SAC: unknown estimator 'sampled'; did you mean 'sample'"),
    ({"aggregate": "mean"}, ValueError, "SAC: unknown aggregate 'mean'; did you mean 'block_mean'"),
    ({"centre": "medain"}, ValueError, "SAC: unknown centre 'medain'; did you mean 'median'"),
    ({"granularity": "L+B"}, ValueError, r"SAC: unknown granularity 'L\+B'; did you mean 'P\+L\+B'"),
    ({"granularity": ["P+L"]}, ValueError, r"SAC: unknown granularity \['P\+L'\]"),
    ({"mode": ["equations"]}, ValueError, r"SAC: unknown mode \['equations'\]; did you mean 'equations'"),
    ({"granularity": "P+B", "factors": ["block"]}, TypeError, "factors or granularity, not both"),
    ({"factors": ("layers",)}, ValueError, "unknown factors 'layers'; did you mean 'layer'"),
    ({"factors": 2}, ValueError, "SAC: factors must be some of 'layer', 'block', 'group', got 2"),
    ({"factors": [["layer"]]}, ValueError, r"SAC: unknown factors \['layer'\]; did you mean 'layer'"),
    ({"gama": 0.5}, TypeError, "SAC has no option 'gama'; did you mean 'gamma'"),
    ({"gamma": 1.5}, ValueError, r"gamma must be a number in \[0, 1\], got 1.5"),
    ({"gamma": "half"}, ValueError, "gamma must be a number"),
    ({"beta": -1.0}, ValueError, "SAC: beta must be a finite number >= 0, got -1.0"),
    ({"beta": math.inf}, ValueError, "SAC: beta must be a finite number >= 0, got inf"),
    ({"rho": 0.0}, ValueError, r"rho must be a number in \(0, 1\], got 0.0"),
    ({"rho": 2}, ValueError, r"SAC: rho must be a number in \(0, 1\], got 2"),
    ({"eps": -1e-12}, ValueError, "SAC: eps must be a finite number >= 0"),
    ({"interval": 0}, ValueError, "interval must be a whole number >= 1, got 0"),
    ({"interval": 2.5}, ValueError, "interval must be a whole number"),
    ({"bounds": (10.0, 0.1)}, ValueError, r"bounds are reversed: \(10.0, 0.1\); give \(0.1, 10\)"),
    ({"bounds": (0.0, 1.0)}, ValueError, r"SAC: bounds must be a pair .* of finite numbers > 0, got \(0.0, 1.0\)"),
    ({"bounds": (0.5, math.inf)}, ValueError, r"finite numbers > 0, got \(0.5, inf\); bounds=None is for no bounds"),
    ({"bounds": (True, 2.0)}, ValueError, r"bounds must be a pair .*got \(True, 2.0\)"),
    ({"bounds": 0.1}, ValueError, "bounds must be a pair"),
    ({"group_bounds": None}, ValueError, "SAC: group_bounds must be a pair .*, got None$"),
    ({"group_bounds": (2.0, 0.5)}, ValueError, "group_bounds are reversed"),
    ({"group_beta": -1.0}, ValueError, "group_beta"),
    ({"group_by": "head"}, ValueError, "unknown group_by 'head'; did you mean 'heads'"),
    ({"embedding": "nonzero"}, ValueError, "unknown embedding 'nonzero'; did you mean 'nonzero_rows'"),
    ({"head": "exlude"}, ValueError, "SAC: unknown head 'exlude'; did you mean 'exclude'"),
    ({"router": True}, ValueError, "SAC: unknown router True; known: exclude, scale"),
    ({"scope": "hiden"}, ValueError, "unknown scope 'hiden'"),
    (
        {"mode": "algorithm1", "gamma": 1.0},
        TypeError,
        "the mode 'algorithm1' has no option 'gamma'; its own are interval",
    ),
    ({"block_scale": "mad"}, TypeError, "the mode 'equations' has no option 'block_scale'"),
    ({"mode": "algorithm1", "normalize_block": True, "statistic": "maximum"}, ValueError, "normalize_block"),
    (
        {"mode": "algorithm1", "normalize_block": "yes"},
        ValueError,
        "SAC: normalize_block must be True or False, got '",
    ),
    ({"mode": "algorithm1", "normalize_block": 1}, ValueError, "SAC: normalize_block must be True or False, got 1"),
    ({"mode": "algorithm1", "block_scale": None}, ValueError, "SAC: unknown block_scale None; known: mad, mad_of"),
    ({"scale_weight_decay": "x"}, ValueError, "SAC: scale_weight_decay must be True or False, got 'x'"),
    ({"scales": {(0, "mlp"): 2.0}}, TypeError, "no option 'scales'"),
    ({"mode": "constant", "scales": {(0, "mpl"): 2.0}}, ValueError, r"no block \(0, 'mpl'\) .* mean .*\(0, 'mlp'\)"),
    ({"mode": "constant", "scales": {(0, "mlp"): 0.0}}, ValueError, r"scales\[\(0, 'mlp'\)\] must be .* > 0, got 0.0"),
    ({"mode": "constant", "scales": [1]}, ValueError, r"SAC: scales must be a mapping .* or None, got \[1\]"),
    ({"apply": "gradients"}, ValueError, "never scales gradients"),
    ({"samples": 1}, ValueError, "SAC: samples must be a whole number >= 16, got 1"),
    ({"samples": 4096.0}, ValueError, "samples must be a whole number >= 16, got 4096.0"),
    ({"seed": -1}, ValueError, "SAC: seed must be a whole number >= 0, got -1"),
    ({"seed": 0.5}, ValueError, "seed must be a whole number >= 0, got 0.5"),
    ({"seed": 2**32}, ValueError, "seed must be below 2\\*\\*32, got 4294967296"),
    ({"wait": 1}, ValueError, "SAC: wait must be True or False, got 1"),
    ({"wait": "no"}, ValueError, "wait must be True or False, got 'no'"),
    ({"engine": "hybrid", "estimator": "exact"}, ValueError, "SAC: engine='hybrid'"),
]


@pytest.mark.parametrize(("options", "error", "message"), BAD, ids=[str(options) for options, *_ in BAD])
def test_bad_options(options, error, message):
    model = toys.Net()
    base = torch.optim.AdamW(model.parameters(), lr=0.01)
    before = cases.snapshot(base), [dict(group) for group in base.param_groups]
    with pytest.raises(error, match=message):
        steepest.SAC(base, model, **options)
    assert [dict(group) for group in base.param_groups] == before[1]
    cases.assert_same(cases.snapshot(base), before[0])
    base.step()  # not closed


@pytest.mark.parametrize("wrapper", [steepest.SAC, steepest.SGG])
@pytest.mark.parametrize("thing", [None, 3])
def test_what_is_no_model(wrapper, thing):
    base = torch.optim.AdamW(toys.Net().parameters(), lr=0.01)
    message = f"{wrapper.__name__}: model must be the module whose parameters the optimizer has, .* got {thing}; e"
    with pytest.raises(TypeError, match=message):
        wrapper(base, thing)
    base.step()  # not closed


def test_options_that_are_checked_by_name_show_in_the_signature():
    shown = inspect.signature(steepest.SAC).parameters
    assert list(shown)[:3] == ["base", "model", "mode"]
    assert all(p.kind is not p.VAR_KEYWORD for p in shown.values())


def test_what_is_no_optimizer():
    model = toys.Net()
    with pytest.raises(TypeError, match=r"SAC wraps a torch optimizer, e\.g\. SAC\(torch"):
        steepest.SAC(model, torch.optim.AdamW(model.parameters(), lr=0.01))
    with pytest.raises(RuntimeError, match=r"AdamW was stepped outside the SAC"):
        steepest.SAC(torch.optim.AdamW(model.parameters(), lr=0.01), model).base.step()


def test_repr_and_silence():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        _, optimizer = resumable()
    assert repr(optimizer).startswith("SAC(mode='equations', factors=['block', 'layer'], gamma=0.5, beta=0.5, rho=0.1")
