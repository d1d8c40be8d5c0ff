"""State and parameters in few bits: nothing is lost on average, whatever the rule, and a run repeats bit for bit.

A z-test here has fixed seeds: it is a number, which was below 4 when the test was written, not a chance of failing.
"""

from __future__ import annotations

import functools
import io
import math
from dataclasses import dataclass, replace
from typing import ClassVar

import pytest
import torch

import cases
import steepest
from cases import Problem, assert_same, build, differ, every_rule, trajectory
from steepest import rules
from steepest.engine import elements, precision
from steepest.kernels.rounding import kahan_join
from steepest.rules.base import REMAINDER

CODED = [r for r in cases.RECORDS if set(r.rule.buffers) <= {*r.rule.coded, *r.rule.whole}]
coded_rules = pytest.mark.parametrize("record", CODED, ids=str)
STATES = [pytest.param(r, s, id=f"{r}-{s}") for s in ("bfloat16", "int8") for r in (cases.RECORDS, CODED)[s == "int8"]]
every_state = pytest.mark.parametrize(("record", "state_dtype"), STATES)
ROUNDINGS = ["nearest", "stochastic", "kahan"]
every_combination = pytest.mark.parametrize(
    ("record", "state_dtype", "rounding"),
    [pytest.param(*p.values, rounding, id=f"{p.id}-{rounding}") for p in STATES for rounding in ROUNDINGS],
)
# More than one block of a row; rows that are one block; a row of few elements, and vectors, which have no codes.
SHAPES = {"long": (6, 300), "wide": (4, 6), "wide too": (4, 6), "conv": (4, 2, 3, 3), "narrow": (8, 3)}


def shapes(record):
    return {**SHAPES, **(cases.VECTORS if record.takes_vectors else {})}


def z(errors):
    """Standard errors between zero and the mean of errors, one row for each seed."""
    sums = errors.double().flatten(1).sum(1)
    return float(sums.mean() / (sums.std() / math.sqrt(len(sums)) + 1e-30))


def nearest(monkeypatch):
    """The same code with numbers that round to nearest."""
    half = lambda noise, tensors: [torch.full((x.numel(),), 1 << 15, dtype=torch.int32) for x in tensors]  # noqa: E731
    monkeypatch.setattr(precision.Noise, "numbers", half)


# --- unbiased


class Repeated:
    """One step of a rule, taken from the same place under many seeds; and the same step in float64."""

    SHAPES: ClassVar = {"a": (16, 40), "b": (30, 20)}

    def __init__(self, rule, dtype, before=3):
        self.problem = Problem(self.SHAPES, steps=before + 1, dtype=dtype)
        self.optimizer = build(rule, self.problem)
        self.problem.run(self.optimizer, 0, before)
        self.problem.load(before)
        self.start = cases.snapshot(self.optimizer)

    def step(self, seed):
        (group,) = self.optimizer.param_groups
        group.update({k: self.start["groups"][0][k] for k in ("clock",) if k in group}, seed=seed)
        for i, p in enumerate(group["params"]):
            p.data.copy_(self.start["weights"][i])
            for key, value in self.start["state"][i].items():
                self.optimizer.state[p][key].copy_(value)
        self.optimizer.step()

    def values(self):
        """Weights and buffers as numbers, by parameter and name."""
        found = {}
        for name, p in self.problem.params.items():
            state = self.optimizer.state[p]
            kept = {"weight": p.detach(), **{key: state[key] for key in self.optimizer_rule().buffers}}
            for key, value in kept.items():
                scales = state.get(f"{key}_scales")
                loaded = precision.Kept(value, scales).load()
                found[name, key] = loaded.double().clone()
        return found

    def optimizer_rule(self):
        return rules.by_name(self.optimizer.param_groups[0]["rule"])(
            **{k: v for k, v in self.optimizer.param_groups[0].items() if k in ("betas", "state_dtype")}
        )

    def in_float64(self, rule):
        """The exact step from here: of a float64 twin that is given the weights and buffers of this moment."""
        twin = Repeated(replace(rule, state_dtype=None, param_rounding="nearest"), torch.float64, before=0)
        self.step(0)
        for i, (p, q) in enumerate(zip(self.problem.params.values(), twin.problem.params.values(), strict=True)):
            q.data.copy_(self.start["weights"][i])
            q.grad = p.grad.double()
            state = self.start["state"][i]
            for key, value in twin.optimizer.state[q].items():
                scales = state.get(f"{key}_scales")
                value.copy_(state[key] if scales is None else precision.Kept(state[key], scales).load())
        if "clock" in twin.optimizer.param_groups[0]:
            twin.optimizer.param_groups[0]["clock"] = self.start["groups"][0]["clock"]
        twin.optimizer.step()
        return twin.values()


def assert_unbiased(rule, dtype, names, seeds=200):
    repeated = Repeated(rule, dtype)
    exact = repeated.in_float64(rule)
    errors = {key: [] for key in exact}
    for seed in range(seeds):
        repeated.step(seed)
        for key, value in repeated.values().items():
            errors[key].append(value - exact[key])
    for (name, key), found in errors.items():
        if key in names:
            stacked = torch.stack(found)
            assert stacked.abs().max() > 0, (name, key)
            assert (stacked.std(0) > 0).float().mean() > 0.5, (name, key)  # it is random at all
            assert abs(z(stacked)) < 4, (name, key)
            assert abs(z(stacked * exact[name, key].sign())) < 4, (name, key)  # neither shrunk nor blown up


@every_state
def test_buffers_are_unbiased(record, state_dtype):
    """The mean over many seeds is the step of real numbers: the rounding is after all arithmetic, and there is one."""
    own = [name for name in record.rule.buffers if name not in record.rule.whole]
    assert_unbiased(replace(record.rule, state_dtype=state_dtype), torch.float32, own)


@every_rule
def test_bfloat16_parameters_are_unbiased(record):
    rule = replace(record.rule, state_dtype="float32", param_rounding="stochastic")
    assert_unbiased(rule, torch.bfloat16, ["weight"])


def test_that_rounding_to_nearest_would_not_pass(monkeypatch):
    """On 200 identical steps its error does not average out."""
    nearest(monkeypatch)
    with pytest.raises(AssertionError):
        assert_unbiased(rules.Lion(lr=0.02, state_dtype="bfloat16"), torch.float32, ["momentum"])


# --- nothing stands still


def decayed(record, state_dtype, steps=400):
    """What is left of the momentum after steps with zero gradients, as a share of what there was."""
    betas = (0.9985,) * 2
    rule = replace(record.rule, betas=betas, state_dtype=state_dtype, lr=0.0)
    problem = Problem({"a": (64, 80)}, steps=1)
    optimizer = build(rule, problem)
    problem.run(optimizer)
    (p,) = problem.params.values()
    state = optimizer.state[p]
    kept = precision.Kept(state["momentum"], state.get("momentum_scales"))
    start = kept.load().double().clone()
    p.grad = torch.zeros_like(p)
    for _ in range(steps):
        optimizer.step()
    usual = start.abs() > 1e-2 * start.abs().max()
    return (kept.load().double() / start)[usual], betas[1] ** steps


@every_state
def test_momentum_decays_below_where_rounding_to_nearest_stalls(record, state_dtype):
    left, expected = decayed(record, state_dtype)
    error = (left.mean() - expected) / (left.std() / math.sqrt(len(left)))
    assert abs(error) < 4
    assert expected < 0.6


def test_rounding_to_nearest_stalls(monkeypatch):
    nearest(monkeypatch)
    left, _ = decayed(cases.BY_NAME["lion"], "bfloat16")
    assert left.eq(1).all()


def small_steps(record, rounding, dtype=torch.bfloat16, steps=60):
    """Changes of weights of about 1.5 by steps of a thousandth, a quarter of half a unit in the last place."""
    lr = float(record.rule.lr) * 0.05 / (0.05 if record.rule.name == "sinkgd" else 1.0)
    rule = replace(record.rule, lr=min(lr, 1e-3), weight_decay=0.3, state_dtype="float32", param_rounding=rounding)
    rule = replace(rule, alpha=1.0) if record.rule.name == "sinkgd" else rule
    problem = Problem({"a": (40, 60)}, steps=1)
    problem.params["a"] = torch.nn.Parameter((1.4 + 0.2 * torch.rand(40, 60)).bfloat16().to(dtype))
    problem.gradients = [{"a": g["a"].to(dtype)} for g in problem.gradients * steps]
    start = problem.params["a"].detach().double().clone()
    optimizer = build(rule, problem)
    problem.run(optimizer)
    return problem.params["a"].detach().double() - start, optimizer.state[problem.params["a"]]


@every_rule
def test_small_steps_and_decay_add_up(record, monkeypatch):
    torch.manual_seed(0)
    exact, _ = small_steps(record, "nearest", torch.float32)
    torch.manual_seed(0)
    still, _ = small_steps(record, "nearest")
    torch.manual_seed(0)
    moved, _ = small_steps(record, "stochastic")
    assert exact.abs().mean() > 1e-3
    assert still.eq(0).all()
    for sign in (1.0, exact.sign()):
        error = (moved - exact) * sign
        assert abs(error.mean() / (error.std() / math.sqrt(error.numel()))) < 4


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@every_rule
def test_kahan_is_the_float32_run_bit_for_bit(record, dtype):
    rule = replace(record.rule, state_dtype=dtype)
    wide, narrow = Problem(shapes(record)), Problem(shapes(record), dtype=torch.bfloat16)
    for name, p in narrow.params.items():
        wide.params[name] = torch.nn.Parameter(p.detach().float())
    wide.gradients = [{n: g.float() for n, g in gradients.items()} for gradients in narrow.gradients]
    expected, optimizer = trajectory(rule, wide), build(replace(rule, param_rounding="kahan"), narrow)
    for step, weights in enumerate(expected):
        narrow.run(optimizer, step, step + 1)
        for name, p in narrow.params.items():
            assert_same(kahan_join(p.detach(), optimizer.state[p][REMAINDER]), weights[name])
            torch.testing.assert_close(p.detach(), weights[name].bfloat16(), rtol=2**-7, atol=0)  # ties


# --- convergence


@pytest.mark.parametrize("state_dtype", ["bfloat16", "int8"])
def test_a_noisy_quadratic_is_brought_as_low(state_dtype):
    """Curvatures from 1 to 100, noise of the size of the gradient, columns of different scale, a falling rate."""

    def excess(dtype, seed):
        generator = torch.Generator().manual_seed(seed)
        curvature = torch.logspace(0, 2, 64)
        p = torch.nn.Parameter(torch.randn(32, 64, generator=generator))
        optimizer = steepest.Lion([p], lr=0.05, weight_decay=0.0, state_dtype=dtype, seed=seed)
        for step in range(300):
            optimizer.param_groups[0]["lr"] = 0.05 * (1 - step / 300)
            p.grad = curvature * (p.detach() + 0.3 * torch.randn(p.shape, generator=generator))
            optimizer.step()
        return float((curvature * p.detach().square()).sum())

    wide, narrow = (sum(excess(dtype, seed) for seed in range(3)) for dtype in ("float32", state_dtype))
    assert narrow < 1.1 * wide


# --- the same bits


def low(record, state_dtype, rounding, dtype=torch.bfloat16, **options):
    return replace(record.rule, state_dtype=state_dtype, param_rounding=rounding, **options), dtype


@every_combination
def test_a_resumed_run_repeats_bit_for_bit(record, state_dtype, rounding):
    rule, dtype = low(record, state_dtype, rounding)
    for at in (1, 3):
        problem, twin = (Problem(shapes(record), steps=5, dtype=dtype) for _ in range(2))
        optimizer, other = build(rule, problem), build(rule, twin)
        problem.run(optimizer, 0, at)
        stream = io.BytesIO()
        torch.save(optimizer.state_dict(), stream)
        stream.seek(0)
        other.load_state_dict(torch.load(stream, weights_only=True))
        for name, p in twin.params.items():
            p.data.copy_(problem.params[name])
        assert_same(twin.run(other, at), problem.run(optimizer, at))
        assert_same(other.state_dict(), optimizer.state_dict())


@pytest.fixture
def small_pieces(monkeypatch):
    """Bounds so low that small tensors go through the code for large ones, whose pieces then begin anywhere."""
    monkeypatch.setattr("steepest.kernels.device._PIECE", {"cpu": 16})
    monkeypatch.setattr("steepest.kernels.device._LARGE", {"cpu": 30})


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@every_combination
def test_lists_and_pieces_are_the_single_tensor_bit_for_bit(record, state_dtype, rounding, dtype, small_pieces):
    rule, _ = low(record, state_dtype, rounding)
    runs = []
    for backend in ("single", "foreach"):
        problem = Problem(shapes(record), steps=4, dtype=dtype)
        optimizer = build(replace(rule, backend=backend), problem)
        weights = problem.run(optimizer)
        runs.append([weights, [optimizer.state[p] for p in problem.params.values()]])
    if record.takes_vectors:
        assert_same(*runs)
    else:  # products of a stack may be summed in another order
        torch.testing.assert_close(*runs, rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rounding", ROUNDINGS)
@pytest.mark.parametrize(
    ("name", "state_dtype"), [("lion", "bfloat16"), ("lion", "int8"), ("adamw", "bfloat16"), ("lasm", "bfloat16")]
)
def test_a_compiled_step_has_the_same_noise(name, state_dtype, rounding, dtype, monkeypatch):
    """Traced and guarded as always, but run by torch itself, so that nothing is fused and the bits are the same."""
    record = cases.BY_NAME[name]
    torch._dynamo.reset()
    elements._compiled.cache_clear()
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="eager"))
    monkeypatch.setattr("steepest.kernels.device._LARGE", {"cpu": 30})
    rule, _ = low(record, state_dtype, rounding)
    expected, actual = (
        trajectory(replace(rule, backend=backend), Problem({**SHAPES, "rows of pairs": (6, 320)}, steps=3, dtype=dtype))
        for backend in ("single", "compile")
    )
    assert (elements._compiled.cache_info().currsize > 0) == (
        state_dtype == "bfloat16" and (rounding, dtype) != ("kahan", torch.bfloat16)
    )
    elements._compiled.cache_clear()
    if name == "adamw":  # whose numbers are float64 in one and float32 in the other
        torch.testing.assert_close(actual, expected, rtol=2e-6 if dtype == torch.float32 else 2**-7, atol=2e-6)
    else:
        assert_same(actual, expected)


def test_steps_rates_and_betas_compile_nothing_again(monkeypatch):
    torch._dynamo.reset()
    elements._compiled.cache_clear()
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="eager"))
    monkeypatch.setattr("steepest.kernels.device._LARGE", {"cpu": 30})
    rule = rules.Lion(state_dtype="bfloat16", param_rounding="stochastic", backend="compile")
    problem = Problem({"a": (6, 320), "b": (30, 64), "c": (40, 128)}, steps=8, dtype=torch.bfloat16)
    optimizer = build(rule, problem, check_finite="none")
    problem.run(optimizer, 0, 2)
    assert elements._compiled.cache_info().currsize == 1
    with torch._dynamo.config.patch(error_on_recompile=True):
        for step in range(2, 8):
            optimizer.param_groups[0].update(lr=0.1 / step, betas=(0.9 - 0.1 * step, 0.99 - 0.1 * step), seed=step)
            problem.run(optimizer, step, step + 1)
    elements._compiled.cache_clear()


@every_rule
def test_the_noise_is_another_for_each_seed_step_parameter_and_buffer(record):
    """Equal tensors with equal gradients are rounded differently, and so are the buffers of one."""
    rule = replace(record.rule, state_dtype="bfloat16")
    seen = []
    monkey = precision.Place.noise

    def noise(self, entry, x):
        numbers = monkey(self, entry, x)
        seen.append((self.seed, self.step, self.number, entry, tuple(numbers[:8].tolist())))
        return numbers

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(precision.Place, "noise", noise)
        for seed in (0, 1):
            trajectory(replace(rule, seed=seed), Problem({"a": (4, 6), "b": (4, 6)}, steps=3))
    own = len([n for n in rule.buffers if n not in rule.whole])
    assert len({s[:4] for s in seen}) == 2 * 3 * 2 * own
    assert len({s[4] for s in seen}) == 2 * 3 * 2 * own


def test_nothing_is_drawn_from_the_random_generators_of_torch():
    before = torch.get_rng_state()
    trajectory(rules.Lion(state_dtype="int8", param_rounding="stochastic"), Problem(SHAPES, dtype=torch.bfloat16))
    assert_same(torch.get_rng_state(), before)


# --- accounting


@every_combination
def test_state_bytes_is_what_is_held(record, state_dtype, rounding):
    rule, dtype = low(record, state_dtype, rounding)
    model = torch.nn.Sequential(torch.nn.Linear(300, 6), torch.nn.Linear(6, 5), torch.nn.LayerNorm(5)).to(dtype)
    optimizer = steepest.Steepest(model, rule)
    held = {
        t.untyped_storage().data_ptr(): t.untyped_storage().nbytes()
        for state in optimizer.state.values()
        for t in state.values()
    }
    assert steepest.state_bytes(model, rule)["total"] == sum(held.values())
    counters = sum(8 + 16 * len(rules.by_name(r["rule"]).fitted) for r in optimizer.rows())
    assert sum(r["state_bytes"] for r in optimizer.rows()) + counters == sum(held.values())


def test_bytes_of_an_element():
    """Of a row of 768: 8-bit codes and three scales; and what Kahan compensation adds."""

    def count(**options):
        rule = rules.Lion(**options)
        return sum(s.numel() * d.itemsize for s, d in rule.state_specs(torch.Size((50, 768)), torch.bfloat16).values())

    n = 50 * 768
    assert count(state_dtype="float32") == 4 * n
    assert count(state_dtype="bfloat16") == 2 * n
    assert count(state_dtype="int8") == n + 50 * 3 * 4
    assert count(state_dtype="int8", param_rounding="kahan") == 3 * n + 50 * 3 * 4
    assert count(param_rounding="stochastic") == 2 * n


@coded_rules
def test_the_declared_state_of_8_bits(record):
    rule = replace(record.rule, state_dtype="int8")
    problem = Problem(shapes(record))
    optimizer = build(rule, problem)
    problem.run(optimizer)
    for name, p in problem.params.items():
        state = optimizer.state[p]
        coded = name in ("long", "wide", "wide too", "conv")
        assert state["momentum"].dtype == (torch.int8 if coded else torch.float32), name
        assert ("momentum_scales" in state) == coded
        if coded:
            assert state["momentum"].shape == p.shape
            assert state["momentum_scales"].shape == (p.shape[0], -(-p[0].numel() // 256))
            assert state["momentum_scales"].min() > 0


# --- bad input


@every_rule
def test_8_bits_for_squares_are_refused(record):
    """By name of the buffer, where the rule is made, where a group is given it, and where it is put into one."""
    lost = [n for n in record.rule.buffers if n not in (*record.rule.coded, *record.rule.whole)]
    if not lost:
        replace(record.rule, state_dtype="int8")
        return
    message = rf"{record.rule.name}: state_dtype='int8' cannot represent '{lost[0]}'.*use 'bfloat16'"
    with pytest.raises(ValueError, match=message):
        replace(record.rule, state_dtype="int8")
    problem = Problem(record)
    with pytest.raises(ValueError, match=message):
        steepest.Steepest([{"params": problem.named(), "rule": record.rule, "state_dtype": "int8"}])
    optimizer = build(record.rule, problem)
    problem.load(0)
    optimizer.param_groups[0]["state_dtype"] = "int8"
    before = cases.snapshot(optimizer)
    with pytest.raises(ValueError, match=message):
        optimizer.step()
    assert_same(cases.snapshot(optimizer), before)


@dataclass(frozen=True, kw_only=True)
class Sized(rules.Lion):
    """A method of someone who has not heard of 8 bits."""

    name: ClassVar[str] = "test_sized"
    buffers: ClassVar[tuple[str, ...]] = ("momentum", "size")


@dataclass(frozen=True, kw_only=True)
class Own(rules.Lion):
    """A method with steps of its own."""

    name: ClassVar[str] = "test_own"

    def update(self, bucket):
        """Nothing."""


def test_what_a_foreign_method_has_not_declared_is_refused():
    with pytest.raises(ValueError, match="test_sized: state_dtype='int8' cannot represent 'size'"):
        Sized(state_dtype="int8")
    with pytest.raises(ValueError, match="test_own: it takes its own steps, to which param_rounding"):
        Own(param_rounding="kahan")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"param_rounding": "kahn"}, "lion: unknown param_rounding 'kahn'; did you mean 'kahan'"),
        ({"param_rounding": None}, "lion: unknown param_rounding"),
        ({"state_dtype": "int4"}, "lion: unknown state_dtype 'int4'; did you mean 'int8'"),
        ({"state_dtype": torch.int8}, "lion: unknown state_dtype"),
        ({"seed": -1}, "lion: seed must be a whole number"),
        ({"seed": 0.5}, "lion: seed must be a whole number"),
        ({"seed": True}, "lion: seed must be a whole number"),
        ({"seed": 1 << 32}, "lion: seed must be a whole number"),
    ],
)
def test_options_that_make_no_sense(options, message):
    with pytest.raises(ValueError, match=message):
        rules.Lion(**options)
    with pytest.raises(ValueError, match=message):
        steepest.Lion([torch.nn.Parameter(torch.ones(2, 2))], **options)


@pytest.mark.parametrize("rounding", ["stochastic", "kahan"])
def test_float16_parameters_are_refused(rounding):
    good, bad = (torch.nn.Parameter(torch.ones(2, 2, dtype=d)) for d in (torch.bfloat16, torch.float16))
    with pytest.raises(ValueError, match=rf"'bad'.*float16.*param_rounding='{rounding}' is for bfloat16"):
        steepest.Lion([("good", good), ("bad", bad)], param_rounding=rounding)
    optimizer = steepest.Lion([("good", good)], param_rounding=rounding)
    with pytest.raises(ValueError, match="use 'nearest' here"):
        optimizer.add_param_group({"params": [("bad", bad)]})
    assert list(optimizer.state) == [good]
    steepest.Lion([("bad", bad)], param_rounding="nearest")


@every_rule
def test_wide_parameters_have_nothing_to_round(record):
    for dtype in (torch.float32, torch.float64):
        expected = trajectory(record.rule, Problem(record, dtype=dtype))
        for rounding in ROUNDINGS:
            problem = Problem(record, dtype=dtype)
            optimizer = build(replace(record.rule, param_rounding=rounding), problem)
            assert_same(problem.run(optimizer), expected)
            assert all(REMAINDER not in state for state in optimizer.state.values())


def test_kahan_in_the_group_of_a_state_without_is_refused():
    problem = Problem(SHAPES, dtype=torch.bfloat16)
    optimizer = build(rules.Lion(), problem)
    problem.run(optimizer, 0, 1)
    problem.load(1)
    optimizer.param_groups[0]["param_rounding"] = "kahan"
    before = cases.snapshot(optimizer)
    with pytest.raises(ValueError, match=r"'long'.*has no 'param_remainder'.*when it is built"):
        optimizer.step()
    assert_same(cases.snapshot(optimizer), before)


def test_a_checkpoint_without_scales_or_remainder_is_refused():
    rule = rules.Lion(state_dtype="int8", param_rounding="kahan")
    for key in ("momentum_scales", "param_remainder"):
        problem = Problem(SHAPES, dtype=torch.bfloat16)
        optimizer = build(rule, problem)
        saved = optimizer.state_dict()
        saved = {**saved, "state": {i: {k: v for k, v in s.items() if k != key} for i, s in saved["state"].items()}}
        before = cases.snapshot(optimizer)
        with pytest.raises(ValueError, match=f"lacks the state '{key}' of parameter 'long'"):
            optimizer.load_state_dict(saved)
        assert_same(cases.snapshot(optimizer), before)


def test_the_checkpoint_brings_its_precision():
    """As it brings its other numbers: the state of a run is not rounded by where it is loaded."""
    for own, saved in (("float32", "int8"), ("int8", "bfloat16"), ("bfloat16", "float32")):
        problem, twin = Problem(SHAPES), Problem(SHAPES)
        optimizer, other = (build(rules.Lion(state_dtype=d), p) for d, p in ((saved, problem), (own, twin)))
        problem.run(optimizer, 0, 2)
        other.load_state_dict(optimizer.state_dict())
        for name, p in twin.params.items():
            p.data.copy_(problem.params[name])
        assert_same(twin.run(other, 2), problem.run(optimizer, 2))


# --- models


def test_a_model_with_a_rule_beside_it_rounds_all_its_parameters_alike():
    model = torch.nn.Sequential(torch.nn.Embedding(9, 6), torch.nn.Linear(6, 6), torch.nn.LayerNorm(6)).bfloat16()
    for optimizer in (steepest.Muon, steepest.SoftMuon, steepest.SAGE, steepest.SinkGD):
        groups = optimizer(model, param_rounding="kahan", seed=3).param_groups
        assert len({g["rule"] for g in groups}) > 1
        assert {(g["param_rounding"], g["seed"]) for g in groups} == {("kahan", 3)}
    assert differ(*(g["rule"] for g in steepest.Muon(model).param_groups[:2]))
