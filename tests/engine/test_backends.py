"""Every backend takes the step of the single-tensor body, in few calls, in little memory, and is compiled once.

The bars are counted by the dispatcher, not timed, so they are the same on every machine.
"""

from __future__ import annotations

import functools
import warnings
from dataclasses import dataclass, replace
from typing import ClassVar

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import cases
import steepest
from cases import (
    Calls,
    Problem,
    assert_close,
    assert_same,
    build,
    differ,
    element_rules,
    every_rule,
    spectral_rules,
    trajectory,
)
from steepest import rules
from steepest.engine import compiler as engine_compiler
from steepest.engine import elements

pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")  # the compiler of torch itself

MIXED = {**cases.MATRICES, **cases.VECTORS, "long": (301,), "many rows": (40, 7)}
LARGE = 70_000  # elements; more than the bound from which a tensor has calls of its own


@pytest.fixture
def small_pieces(monkeypatch):
    """Bounds so low that small tensors go through the code for large ones."""
    monkeypatch.setattr("steepest.kernels.device._PIECE", {"cpu": 16})
    monkeypatch.setattr("steepest.kernels.device._LARGE", {"cpu": 30})


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("state_dtype", [None, "float32"])
@pytest.mark.parametrize("backend", ["foreach", "auto"])
@pytest.mark.parametrize("maximize", [False, True])
@element_rules
def test_lists_and_pieces_are_the_single_tensor_bit_for_bit(  # noqa: PLR0917
    record, backend, state_dtype, dtype, maximize, small_pieces
):
    rule = replace(record.rule, state_dtype=state_dtype)
    single = trajectory(replace(rule, backend="single"), Problem(MIXED, dtype=dtype, steps=4), maximize=maximize)
    other = trajectory(replace(rule, backend=backend), Problem(MIXED, dtype=dtype, steps=4), maximize=maximize)
    assert_same(other, single)


@element_rules
def test_large_tensors_at_their_real_bounds(record):
    shapes = {"small": (5,), "large": (LARGE,), "several pieces": (3, 100_000)}
    single = trajectory(replace(record.rule, backend="single"), Problem(shapes, steps=2))
    assert_same(trajectory(replace(record.rule, backend="foreach"), Problem(shapes, steps=2)), single)


@spectral_rules
def test_stacks_are_the_single_matrix(record):
    """To rounding: a product of a stack may be summed in another order than that of one matrix."""
    shapes = {f"{m}x{n} {i}": (m, n) for m, n in ((24, 40), (40, 24), (16, 16), (1, 9)) for i in range(3)}
    for compute, atol in (("float32", 2e-6), ("float64", 1e-12), ("bfloat16", 0.02 * 0.2 * 2**-4)):
        rule = replace(record.rule, compute_dtype=compute, weight_decay=0.0)
        dtype = torch.float64 if compute == "float64" else torch.float32
        single = trajectory(replace(rule, backend="single"), Problem(shapes, dtype=dtype))
        stacks = trajectory(replace(rule, backend="foreach"), Problem(shapes, dtype=dtype))
        torch.testing.assert_close(stacks, single, rtol=0.0, atol=atol * len(single))


# --- dispatcher calls


def calls_per_tensor(rule, shape, count, free=(), **options):
    """In the steady state, for a spectral (or only) and for the next step; ``free`` ones are not counted."""
    problem = Problem({str(i): shape for i in range(count)}, steps=4)
    rule = replace(rule, transition=(0, 4)) if rule.fitted else rule  # the fit, at step 0, is made once
    optimizer = build(rule, problem, **options)
    problem.run(optimizer, 0, 2)
    result = []
    for step in (2, 3):
        problem.load(step)
        with Calls() as calls:
            optimizer.step()
        result.append(sum(n for name, n in calls.count.items() if name not in free) / count)
    return result


@pytest.mark.parametrize("check_finite", ["none", "all"])
@element_rules
def test_calls_of_an_elementwise_step(record, check_finite):
    """A list of many small tensors costs a few calls in all, whatever the rule."""
    assert max(calls_per_tensor(record.rule, (64,), 200, check_finite=check_finite)) <= 0.25
    assert max(calls_per_tensor(record.rule, (16, 12), 200, check_finite=check_finite)) <= 0.25


def test_calls_of_a_sign_step_of_lion_muon():
    rule = rules.LionMuon(period=2)
    _, sign = calls_per_tensor(rule, (16, 12), 200, check_finite="none")
    assert sign <= 0.25


def test_calls_of_a_step_with_a_narrow_state():
    """A copy to float32 for each buffer (there is no list form of that), and nothing else by tensor but views."""
    views = ("aten.view.default", "aten.slice.Tensor")
    for shape in ((64,), (16, 12)):
        assert max(calls_per_tensor(rules.Lion(state_dtype="bfloat16"), shape, 200, free=views)) <= 1.25
        assert max(calls_per_tensor(rules.Lion(state_dtype="bfloat16"), shape, 200)) <= 4.25


@spectral_rules
def test_calls_of_a_spectral_step(record):
    for compute in ("float32", "bfloat16"):
        rule = replace(record.rule, compute_dtype=compute)
        most = 6 if record.pooled else 5  # the soft map has the block I / temperature beside the matrix
        assert max(calls_per_tensor(rule, (64, 48), 24)) <= most
        assert max(calls_per_tensor(rule, (48, 64), 24)) <= most


def test_nothing_is_read_back_by_parameter():
    """One synchronisation for the check in all, none without it, however many parameters there are."""
    for check, allowed in (("none", 0), ("matrix", 2)):
        problem = Problem({str(i): (8, 6) for i in range(20)}, steps=2)
        optimizer = build(rules.LionMuon(), problem, check_finite=check)
        problem.load(0)
        with Calls() as calls:
            optimizer.step()
        assert calls.count["aten._local_scalar_dense.default"] + calls.count["aten.item.default"] <= allowed
        assert calls.count["aten.nonzero.default"] == 0


# --- temporaries


class Largest(TorchDispatchMode):
    """Bytes of the largest storage that an operator made."""

    def __init__(self, held):
        super().__init__()
        self.known = {t.untyped_storage().data_ptr() for t in held}
        self.bytes = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for t in result if isinstance(result, (list, tuple)) else [result]:
            if isinstance(t, torch.Tensor) and t.untyped_storage().data_ptr() not in self.known:
                self.bytes = max(self.bytes, t.untyped_storage().nbytes())
        return result


@pytest.mark.parametrize("backend", ["foreach", "auto"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@element_rules
def test_no_large_temporary_in_an_elementwise_step(record, dtype, backend):
    """A temporary as large as a tensor is paid in page faults, and would be half of what the method saves in state."""
    shape = (4000, 5000)
    layouts = {"contiguous": torch.ones(shape, dtype=dtype)}
    if dtype == torch.float32 and backend == "auto":
        layouts["transposed"] = torch.ones(shape[::-1], dtype=dtype).mT
    for layout, w in layouts.items():
        p = torch.nn.Parameter(w)
        optimizer = steepest.Steepest([p], replace(record.rule, backend=backend))
        p.grad = torch.ones(shape, dtype=dtype)
        held = [p, p.grad, *(t for t in optimizer.state[p].values())]
        with Largest(held) as largest:
            optimizer.step()
        assert 0 < largest.bytes <= 4 << 20, layout


def test_no_large_temporary_in_a_list():
    """Many small tensors are cut into lists, so that the temporaries of a list stay small together."""
    problem = Problem({str(i): (60_000,) for i in range(40)}, steps=1)
    optimizer = build(rules.Lion(), problem)
    problem.load(0)
    peak = []

    class Alive(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            result = func(*args, **(kwargs or {}))
            if isinstance(result, (list, tuple)):
                peak.append(sum(t.untyped_storage().nbytes() for t in result if isinstance(t, torch.Tensor)))
            return result

    with Alive():
        optimizer.step()
    assert 0 < max(peak) <= 4 << 20


# --- compiled


@pytest.fixture
def compiler(monkeypatch):
    """Compiled functions of this test alone."""
    torch._dynamo.reset()
    elements._compiled.cache_clear()
    monkeypatch.setattr(engine_compiler, "missing", set())
    yield
    torch._dynamo.reset()
    elements._compiled.cache_clear()


@pytest.fixture
def traced(compiler, monkeypatch):
    """Graphs are traced, guarded and counted as always, but run by torch itself: no machine code, so it is quick."""
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="eager"))


def graphs():
    return torch._dynamo.utils.counters["stats"]["unique_graphs"]


SHAPES = {"large": (LARGE,), "matrix": (300, 240), "small": (5, 4)}


@pytest.mark.usefixtures("working_compiler")
@pytest.mark.parametrize("name", ["lion", "adamw", "lion_muon"])
def test_compiled_is_the_single_tensor_to_the_last_places(name, compiler):
    """Fused multiply-adds round once where two operations round twice: two units in the last place of a weight."""
    rule = cases.BY_NAME[name].rule
    if name == "lion_muon":
        rule = replace(rule, period=10**7, compute_dtype="float32", steps=1)
    shapes = {key: shape for key, shape in SHAPES.items() if rule.needs == "element" or len(shape) > 1}
    before = graphs()
    single = trajectory(replace(rule, backend="single"), Problem(shapes, steps=3))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        compiled = trajectory(replace(rule, backend="compile"), Problem(shapes, steps=3))
    assert not engine_compiler.missing
    assert graphs() > before
    for a, b in zip(compiled, single, strict=True):
        assert_close(a, b, rtol=3e-7 if name == "lion" else 2e-6, atol=3e-7 if name == "lion" else 2e-6)


@pytest.mark.parametrize("name", ["lion", "signum", "lion_muon", "adamw"])
def test_nothing_is_compiled_twice_under_a_schedule(name, traced):
    """Twenty rates, betas and phases, tensors of several lengths: the graphs of the first period serve for all."""
    record = cases.BY_NAME[name]
    rule = replace(record.rule, backend="compile")
    if name == "lion_muon":
        rule = replace(rule, steps=1)
    problem = Problem({"a": (300, 240), "b": (240, 300), "c": (280, 260)}, steps=1)
    optimizer = build(rule, problem, check_finite="none")
    problem.load(0)
    cycle = name != "signum"  # its betas must stay equal
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.1, total_steps=40, cycle_momentum=cycle)
    for _ in range(record.period + 1):
        optimizer.step()
        scheduler.step()
    before = graphs()
    assert before > 0
    seen = set()
    with torch._dynamo.config.patch(error_on_recompile=True):
        for _ in range(20):
            group = optimizer.param_groups[0]
            seen.add((float(group["lr"]), tuple(group["betas"])))
            optimizer.step()
            scheduler.step()
    assert len(seen) == 20
    assert graphs() == before


def test_a_tensor_rate_compiles_nothing_again(traced):
    problem = Problem({"a": (LARGE,)}, steps=1)
    optimizer = build(rules.Lion(lr=torch.tensor(0.5), backend="compile"), problem)
    problem.load(0)
    optimizer.step()
    before = graphs()
    with torch._dynamo.config.patch(error_on_recompile=True):
        for i in range(5):
            optimizer.param_groups[0]["lr"].fill_(0.1 * i)
            optimizer.step()
    assert graphs() == before


def test_many_kinds_of_compiled_steps_in_one_process(traced):
    """The compiler gives up after 8 graphs of one function; rules, dtypes and directions must not add up to that."""
    kinds = 0
    for record in cases.RECORDS:
        for maximize in (False, True):
            for dtype in (torch.float32, torch.bfloat16, torch.float64):
                if record.takes_vectors:
                    rule = replace(record.rule, backend="compile")
                    problem, twin = (Problem({"a": (LARGE,)}, steps=1, dtype=dtype) for _ in range(2))
                    actual = trajectory(rule, problem, maximize=maximize)
                    expected = trajectory(replace(rule, backend="single"), twin, maximize=maximize)
                    assert_close(actual, expected, rtol=1e-2 if dtype == torch.bfloat16 else 2e-6)
                    kinds += 1
    assert kinds > 8


def test_without_a_compiler_there_is_one_warning_and_the_same_result(compiler):
    problem, twin = (Problem({"a": (LARGE,), "b": (LARGE,), "small": (4,)}, steps=3) for _ in range(2))
    rule = rules.Lion(lr=0.02, backend="compile")
    broken = {"cpp.cxx": ("/nowhere/no-compiler",), "force_disable_caches": True}
    with torch._inductor.config.patch(broken), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        actual = trajectory(rule, problem)
        second = trajectory(replace(rule, lr=0.03), Problem({"a": (LARGE,)}, steps=1))
    ours = [str(w.message) for w in caught if "steepest" in str(w.message)]
    assert len(ours) == 1
    assert "compiler" in ours[0]
    assert "'foreach'" in ours[0]
    assert differ(actual, second)
    assert_same(actual, trajectory(replace(rule, backend="foreach"), twin))


def test_tensors_that_are_not_flat_go_the_ordinary_way(traced):
    problem, twin = (Problem({"a": (300, 240)}, steps=2) for _ in range(2))
    for p in (problem, twin):
        p.params = {"a": torch.nn.Parameter(p.params["a"].detach().mT)}
        p.gradients = [{"a": g["a"].mT} for g in p.gradients]
    rule = rules.Lion(lr=0.02)
    assert_same(
        trajectory(replace(rule, backend="compile"), problem), trajectory(replace(rule, backend="single"), twin)
    )


# --- a rule that is only a direction runs on every backend


@dataclass(frozen=True, kw_only=True)
class Damped(rules.Lion):
    """Lion with an RMS-free damping of the direction: uses operators that no rule of the library uses."""

    name: ClassVar[str] = "test_damped"
    buffers: ClassVar[tuple[str, ...]] = ("momentum", "size")

    def direction(self, g, state, numbers):
        d = g.lerp(state["momentum"], numbers["mix"])
        state["momentum"].lerp_(g, numbers["track"])
        state["size"].lerp_(g.abs(), numbers["track"])
        return d.mul(state["size"].add(1.0).reciprocal()).sub_(state["size"] * 0.1)


@pytest.mark.parametrize("backend", ["foreach", "compile"])
def test_a_direction_is_written_once_for_every_backend(backend, traced, small_pieces):
    shapes = {**MIXED, "large": (LARGE,)}
    single = trajectory(Damped(lr=0.02, backend="single"), Problem(shapes, steps=3))
    assert_close(trajectory(Damped(lr=0.02, backend=backend), Problem(shapes, steps=3)), single)


@every_rule
def test_an_unknown_backend_is_refused(record):
    with pytest.raises(ValueError, match=f"{record.rule.name}: unknown backend 'foreahc'; did you mean 'foreach'"):
        replace(record.rule, backend="foreahc")
