"""Layouts, dtypes, empty tensors, and the kinds of gradients that are refused."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

import cases
import steepest
from cases import Problem, assert_close, assert_same, build, element_rules, every_rule, matrix_rules, trajectory
from steepest import rules

BACKENDS = ["single", "foreach"]


def channels_last(x):
    return x.to(memory_format=torch.channels_last) if x.ndim == 4 else x


def transposed(x):
    return x.mT.contiguous().mT if x.ndim >= 2 else x


def strided(x):
    """Every second element of a larger memory."""
    return torch.stack([x, torch.full_like(x, 7.0)], dim=-1)[..., 0] if x.ndim else x


@pytest.mark.parametrize("layout", [channels_last, transposed, strided])
@pytest.mark.parametrize("which", ["parameters", "gradients", "both"])
@pytest.mark.parametrize("backend", BACKENDS)
@every_rule
def test_memory_layout_does_not_matter(record, backend, which, layout):
    rule = replace(record.rule, backend=backend)
    expected = trajectory(rule, Problem(record, steps=4))
    problem = Problem(record, steps=4)
    if which != "gradients":
        problem.params = {name: torch.nn.Parameter(layout(p.detach())) for name, p in problem.params.items()}
    optimizer = build(rule, problem)
    for step, wanted in enumerate(expected):
        problem.load(step)
        for p in problem.params.values():
            p.grad = layout(p.grad) if which != "parameters" else p.grad
        optimizer.step()
        if record.takes_vectors:
            assert_same({n: w.contiguous() for n, w in problem.weights().items()}, wanted)
        else:
            assert_close(problem.weights(), wanted)


@pytest.mark.parametrize("backend", BACKENDS)
@every_rule
def test_expanded_gradients(record, backend):
    """One number seen as many, as the gradient of a sum may be."""
    rule = replace(record.rule, backend=backend)
    problem, twin = Problem(record, steps=2), Problem(record, steps=2)
    for step in range(2):
        for name, p in problem.params.items():
            problem.gradients[step][name] = torch.tensor(0.3 + step).expand(p.shape)
            twin.gradients[step][name] = torch.full(p.shape, 0.3 + step)
    optimizer = build(rule, problem)
    for step in range(2):
        for name, p in problem.params.items():
            p.grad = problem.gradients[step][name]
        optimizer.step()
    assert_close(problem.weights(), trajectory(rule, twin)[-1])


@pytest.mark.parametrize("layout", [channels_last, transposed, strided])
@element_rules
def test_memory_layout_of_large_tensors_does_not_matter(record, layout, monkeypatch):
    """The same, where tensors are large enough to be taken in pieces."""
    monkeypatch.setattr("steepest.kernels.device._PIECE", {"cpu": 7})
    monkeypatch.setattr("steepest.kernels.device._LARGE", {"cpu": 10})
    expected = trajectory(replace(record.rule, backend="single"), Problem(record, steps=3))
    problem = Problem(record, steps=3)
    problem.params = {name: torch.nn.Parameter(layout(p.detach())) for name, p in problem.params.items()}
    history = problem.run(build(record.rule, problem))
    assert_same([{n: w.contiguous() for n, w in weights.items()} for weights in history], expected)


@pytest.mark.parametrize("backend", [*BACKENDS, "auto"])
@every_rule
def test_empty_parameters(record, backend):
    if record.rule.needs == "sums":
        pytest.skip("refused, see test_light_rules.py")
    shapes = {**(cases.MATRICES if not record.takes_vectors else cases.VECTORS), "none": (0, 5), "no columns": (5, 0)}
    rule = replace(record.rule, backend=backend)
    problem = Problem(shapes)
    optimizer = build(rule, problem, check_finite="all")
    problem.run(optimizer)
    assert problem.params["none"].shape == (0, 5)
    assert int(optimizer.state[problem.params["none"]]["step"]) == len(problem.gradients)
    only = Problem({"none": (0, 5)})
    trajectory(rule, only, check_finite="all")


def test_empty_parameters_under_the_stable_rank_trigger():
    rule = rules.LionMuon(lr=0.1, trigger="stable_rank", threshold=0.9)
    trajectory(rule, Problem({"none": (0, 5), "no columns": (5, 0), "some": (4, 6)}))
    trajectory(rule, Problem({"none": (0, 5)}))


@pytest.mark.parametrize("backend", BACKENDS)
@element_rules
def test_vectors_and_scalars(record, backend):
    """A tensor under an element-wise rule is its elements, whatever its shape."""
    rule = replace(record.rule, backend=backend)
    whole = Problem({"row": (1, 6)})
    expected = [w["row"].flatten() for w in trajectory(rule, whole)]
    for shape in ((6,), (2, 3), (6, 1, 1)):
        problem = Problem({"row": shape})
        assert_same([w["row"].flatten() for w in trajectory(rule, problem)], expected)
    scalars = Problem({str(i): () for i in range(6)}, steps=7)
    start = Problem({"row": (1, 6)})
    with torch.no_grad():
        for i, p in enumerate(scalars.params.values()):
            p.copy_(start.params["row"][0, i])
    scalars.gradients = [{str(i): g["row"][0, i] for i in range(6)} for g in start.gradients]
    assert_close([torch.stack(list(w.values())) for w in trajectory(rule, scalars)], expected)


@every_rule
def test_sparse_gradients_are_refused_before_anything_changes(record):
    table = torch.nn.Embedding(6, 4, sparse=True)
    problem = Problem(record)
    problem.params["embed.weight"] = table.weight
    optimizer = build(record.rule, problem)
    problem.load(0)
    table(torch.tensor([1, 2])).sum().backward()
    before = cases.snapshot(optimizer)
    with pytest.raises(RuntimeError, match=r"embed\.weight.*sparse=False"):
        optimizer.step()
    assert_same(cases.snapshot(optimizer), before)


@every_rule
def test_complex_and_integer_parameters_are_refused(record):
    for dtype, hint in ((torch.complex64, "view_as_real"), (torch.int64, "floating-point")):
        good = torch.nn.Parameter(torch.ones(2, 2))
        bad = torch.nn.Parameter(torch.ones(2, 2, dtype=dtype), requires_grad=False)
        with pytest.raises(TypeError, match=rf"'bad'.*{dtype}.*{hint}"):
            steepest.Steepest([("good", good), ("bad", bad)], record.rule)
        optimizer = steepest.Steepest([("good", good)], record.rule)
        with pytest.raises(TypeError, match=hint):
            optimizer.add_param_group({"params": [("bad", bad)]})
        assert len(optimizer.param_groups) == 1
        assert list(optimizer.state) == [good]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("backend", BACKENDS)
@every_rule
def test_narrow_parameters(record, backend, dtype):
    """The arithmetic of a step is in float32 and is rounded once: one step with a wide state shows it."""
    rule = replace(record.rule, backend=backend, state_dtype="float32")
    narrow, wide = Problem(record, dtype=dtype), Problem(record)
    wide.params = {n: torch.nn.Parameter(p.detach().float()) for n, p in narrow.params.items()}
    wide.gradients = [{n: g.float() for n, g in gradients.items()} for gradients in narrow.gradients]
    optimizer, reference = build(rule, narrow), build(rule, wide)
    for step in range(3):
        narrow.run(optimizer, step, step + 1)
        wide.run(reference, step, step + 1)
        assert_same(narrow.weights(), {n: w.to(dtype) for n, w in wide.weights().items()})
        for n, p in narrow.params.items():
            assert_same(optimizer.state[p], reference.state[wide.params[n]])
        with torch.no_grad():
            for n, p in wide.params.items():
                p.copy_(narrow.params[n])


@pytest.mark.parametrize("backend", BACKENDS)
@every_rule
def test_float64_is_float64_throughout(record, backend):
    """A float32 detour anywhere would cost eight digits."""
    rule = replace(record.rule, backend=backend, weight_decay=0.0)
    if "compute_dtype" in record.knobs:
        rule = replace(rule, compute_dtype=None)
    shift = 1e-11
    problem, moved = Problem(record, dtype=torch.float64), Problem(record, dtype=torch.float64)
    with torch.no_grad():
        for p in moved.params.values():
            p.add_(shift)
    still, other = trajectory(rule, problem), trajectory(rule, moved)
    for name, w in still[-1].items():
        assert_close(other[-1][name] - w, torch.full_like(w, shift), rtol=1e-3, atol=0.0)


@pytest.mark.parametrize("param_dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("state_dtype", ["float32", "bfloat16", "float16", "float64"])
@every_rule
def test_state_dtype_is_honoured(record, param_dtype, state_dtype):
    problem = Problem(record, dtype=param_dtype)
    optimizer = build(replace(record.rule, state_dtype=state_dtype), problem)
    for steps in (0, 2):
        problem.run(optimizer, 0, steps)
        for param in problem.params.values():
            own = [name for name in record.rule.buffers if name not in record.rule.whole]
            kept = {optimizer.state[param][name].dtype for name in own}
            assert kept == {getattr(torch, state_dtype)}
            assert param.dtype == param_dtype


@every_rule
def test_mixed_dtypes_in_one_group(record):
    problem = Problem(record, steps=3)
    problem.params["tall"] = torch.nn.Parameter(problem.params["tall"].detach().double())
    problem.params["conv"] = torch.nn.Parameter(problem.params["conv"].detach().bfloat16())
    for gradients in problem.gradients:
        gradients["tall"] = gradients["tall"].double()
        gradients["conv"] = gradients["conv"].bfloat16()
    optimizer = build(record.rule, problem)
    history = problem.run(optimizer)
    assert optimizer.state[problem.params["tall"]]["momentum"].dtype == torch.float64
    alone = trajectory(record.rule, Problem(record, steps=3))
    for name in ("wide", "row"):
        assert_close(history[-1][name], alone[-1][name])
    assert_close(history[-1]["tall"].float(), alone[-1]["tall"])


@matrix_rules
def test_matrices_of_many_shapes_step_as_if_alone(record):
    """Stacking is by shape; equal shapes under different views stay apart."""
    shapes = {f"{m}x{n} {i}": (m, n) for m in (1, 2, 5) for n in (1, 2, 5) for i in range(3)}
    expected = trajectory(replace(record.rule, backend="single"), Problem(shapes, steps=4))
    assert_close(trajectory(replace(record.rule, backend="foreach"), Problem(shapes, steps=4)), expected)
