"""The soft rules, run by the engine in float64 through hard phase, transition and beyond, against the numpy reference.

The fit is made of float32 values (they are exact order statistics of the rounded sample), so centre and spread are
within 2^-24 of the reference and so is the temperature, up to the condition of spread = median |x - centre|. An element
of a soft step changes by at most half the relative change of the temperature: hence a tolerance of 1e-6 of a step,
where all else would allow 1e-12.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

import cases
import steepest
from cases import Problem
from reference import rules as hard_reference
from reference import soft as reference
from reference import views as reference_views
from steepest import rules
from steepest.engine import elements

BACKENDS = ["single", "foreach", "auto"]
START, END, STEPS = 3, 9, 11  # the last two steps are after the end
SHAPES = {"wide": (6, 16), "tall": (16, 6), "square": (8, 8), "conv": (8, 3, 2, 2), "another wide": (6, 16)}
VECTORS = {"row": (1, 12), "vector": (7,), "scalar": ()}

COMMON: dict[str, Any] = {"lr": 0.05, "weight_decay": 0.3, "transition": (START, END)}
RULES: dict[str, rules.Rule] = {
    "soft_signum": rules.SoftSignum(**COMMON, betas=(0.8, 0.8)),
    "soft_muon": rules.SoftMuon(**COMMON, betas=(0.7, 0.9), compute_dtype="float64"),
    "soft_lion_muon": rules.SoftLionMuon(
        **COMMON, betas=(0.7, 0.9), sign_lr_ratio=0.3, period=2, compute_dtype="float64"
    ),
}
FUNCTIONS = {
    "soft_signum": reference.soft_signum,
    "soft_muon": reference.soft_muon,
    "soft_lion_muon": reference.soft_lion_muon,
}
every_soft_rule = pytest.mark.parametrize("name", RULES)
spectral_rules = pytest.mark.parametrize("name", ["soft_muon", "soft_lion_muon"])


def expected(rule: Any, problem: Problem, **options: Any):
    """The reference on the problem: weights after 0, 1, ... steps, states, fits."""
    numbers = {
        key: getattr(rule, key)
        for key in (
            *("betas", "transition", "clock", "pool", "refresh_every", "weight_decay"),
            *("relaxation", "eps", "temperature_range"),
            *("sample", "scale", "steps", "coefficients", "sign_lr_ratio", "sign_relaxation"),
        )
        if hasattr(rule, key)
    }
    if isinstance(rule, rules.SoftLionMuon):
        numbers["phase"] = hard_reference.every(rule.period)
    return reference.run_soft(
        FUNCTIONS[rule.name],
        [(name, p.detach().double().numpy().copy()) for name, p in problem.params.items()],
        [{n: None if g is None else g.double().numpy() for n, g in step.items()} for step in problem.gradients],
        **{"lr": rule.lr, **numbers, **options},
    )


def shapes_of(name: str) -> dict[str, tuple[int, ...]]:
    return {**SHAPES, **VECTORS} if name == "soft_signum" else SHAPES


def compare(
    rule: Any,
    problem: Problem,
    *,
    tolerance: float = 1e-6,
    lr: Any = None,
    maximize: bool = False,
    **reference_only: Any,
) -> None:
    """Run both; compare the weights and the momentum after every step, and the fits at the end."""
    if lr is not None:
        reference_only["lr"] = lr
    weights, states, fits = expected(rule, problem, maximize=maximize, **reference_only)
    optimizer = cases.build(rule, problem, maximize=maximize)
    size = rule.lr * max(rules.SCALES[getattr(rule, "scale", "none")](*s) for s in ((16, 6), (8, 12), (1, 1)))
    for t in range(len(problem.gradients)):
        if lr is not None:
            optimizer.param_groups[0]["lr"] = lr(t)
        problem.run(optimizer, t, t + 1)
        for name, p in problem.params.items():
            np.testing.assert_allclose(
                p.detach().numpy(),
                weights[t + 1][name],
                rtol=0,
                atol=tolerance * size * (t + 1),
                err_msg=f"weights of {name} after step {t}",
            )
            momentum = states[t + 1][name].get("momentum", np.zeros(p.shape))
            np.testing.assert_allclose(
                optimizer.state[p]["momentum"].numpy(), momentum, rtol=1e-10, atol=1e-12, err_msg=f"momentum of {name}"
            )
    options = ("fit", "sign_fit") if len(rule.fitted) == 2 else ("fit",)
    for name, p in problem.params.items():
        for i, (kind, option) in enumerate(zip(rule.fitted, options, strict=True)):
            made = fits[name].get(option)
            if made is None:
                assert optimizer.state[p]["fit"].isnan().all()
                continue
            linear = rule._relaxation(kind) == "switch"
            wanted = (0.0, made.rms) if linear else (made.centre, made.spread)
            np.testing.assert_allclose(optimizer.state[p]["fit"][i].numpy(), wanted, rtol=1e-6, atol=1e-7)


# --- the whole schedule


@pytest.mark.parametrize("backend", BACKENDS)
@every_soft_rule
def test_rule(name, backend):
    compare(replace(RULES[name], backend=backend), Problem(shapes_of(name), steps=STEPS, dtype=torch.float64))


@pytest.mark.usefixtures("working_compiler")
@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")  # the compiler of torch itself
@pytest.mark.parametrize("name", ["soft_signum", "soft_lion_muon"])
def test_compiled(name):
    """Large tensors are compiled once for the hard and once for the soft map: a temperature is an argument."""
    torch._dynamo.reset()
    elements._compiled.cache_clear()
    rule = replace(RULES[name], backend="compile", transition=(1, 9))
    problem = Problem({"large": (300, 257), "small": (6, 16)}, steps=8, dtype=torch.float64)
    weights, _, _ = expected(rule, problem)
    optimizer = cases.build(rule, problem)
    problem.run(optimizer, 0, 4)
    graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    with torch._dynamo.config.patch(error_on_recompile=True):
        problem.run(optimizer, 4)
    assert graphs == torch._dynamo.utils.counters["stats"]["unique_graphs"] >= 2
    for n, w in problem.weights().items():
        np.testing.assert_allclose(w.numpy(), weights[-1][n], rtol=0, atol=1e-4 * rule.lr, err_msg=n)


@every_soft_rule
def test_a_long_transition(name):
    """Of 40 steps, into the region where the map is close to linear."""
    rule = replace(RULES[name], transition=(2, 42))
    compare(rule, Problem(shapes_of(name), steps=45, dtype=torch.float64))


@pytest.mark.parametrize("relaxation", ["tanh", "algebraic", "clip", "switch"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_relaxations_of_elements(relaxation, backend):
    rule = replace(RULES["soft_signum"], relaxation=relaxation, backend=backend)
    compare(rule, Problem(shapes_of("soft_signum"), steps=STEPS, dtype=torch.float64))
    rule = replace(RULES["soft_lion_muon"], sign_relaxation=relaxation, backend=backend)
    compare(rule, Problem(SHAPES, steps=STEPS, dtype=torch.float64))


@spectral_rules
def test_a_switch_of_the_spectral_steps(name):
    compare(replace(RULES[name], relaxation="switch"), Problem(SHAPES, steps=STEPS, dtype=torch.float64))


@spectral_rules
def test_the_truncated_map(name):
    """Its products are in bfloat16, as in the released code: five coupled steps leave about 1 % of a step."""
    rule = replace(RULES[name], relaxation="truncated", transition=(3, 6), weight_decay=0.0)
    problem = Problem(SHAPES, steps=7, dtype=torch.float64)
    weights, _, _ = expected(rule, problem)
    soft_away = expected(replace(rule, relaxation="algebraic"), problem)[0]
    optimizer = cases.build(rule, problem)
    for t in range(7):
        before = problem.weights()
        problem.run(optimizer, t, t + 1)
        for n, p in problem.params.items():
            moved, wanted = (p.detach() - before[n]).numpy(), weights[t + 1][n] - weights[t][n]
            error = np.linalg.norm(moved - wanted) / np.linalg.norm(wanted)
            spectral = name == "soft_muon" or t % 2 == 0
            assert error < (0.03 if t > START and spectral else 1e-6), (n, t)
            if t > START and spectral:  # and the band is narrow enough to tell the maps apart
                other = soft_away[t + 1][n] - soft_away[t][n]
                assert np.linalg.norm(other - wanted) / np.linalg.norm(wanted) > 0.06, (n, t)


# --- every option


@pytest.mark.parametrize(
    "options",
    [
        {"pool": "tensor"},
        {"refresh_every": 2},
        {"refresh_every": 1, "pool": "tensor"},
        {"eps": 1e-2},
        {"temperature_range": (0.5, 3.0)},
        {"temperature_range": (1e-30, 1e30)},
        {"weight_decay": 0.0},
        {"clock": 2},
        {"clock": 5},
        {"clock": 20},
        {"transition": (0, 6)},
        {"betas": (0.0, 0.0)},
        {"betas": (0.95, 0.5)},
    ],
    ids=str,
)
@pytest.mark.filterwarnings("ignore:.*binds to the end")
@every_soft_rule
def test_options(name, options):
    shapes = SHAPES if "pool" in options else shapes_of(name)  # the fit of a scalar alone has no spread
    compare(replace(RULES[name], **options), Problem(shapes, steps=STEPS, dtype=torch.float64))


@pytest.mark.parametrize(
    "options",
    [{"scale": "match_rms"}, {"steps": 3}, {"coefficients": "polar_express", "steps": 8}],
    ids=str,
)
@spectral_rules
def test_options_of_spectral_rules(name, options):
    compare(replace(RULES[name], **options), Problem(SHAPES, steps=STEPS, dtype=torch.float64))


@pytest.mark.parametrize("options", [{}, {"pool": "tensor", "refresh_every": 2}, {"relaxation": "switch"}], ids=str)
def test_a_fit_of_the_gradient(options):
    """As the released code: not of what is mapped."""
    rule = replace(RULES["soft_muon"], sample="gradient", **options)
    compare(rule, Problem(SHAPES, steps=STEPS, dtype=torch.float64))


@every_soft_rule
def test_each_group_has_its_fit(name):
    """pool="group": two groups are two runs of the reference, whatever the scale of the other."""
    problems = [Problem(SHAPES, steps=STEPS, dtype=torch.float64, seed=seed) for seed in (0, 1)]
    for step in problems[1].gradients:
        step.update({n: 100 * g for n, g in step.items()})
    rule = replace(RULES[name], pool="group", temperature_range=(1e-30, 1e30))
    wanted = [expected(replace(rule, pool="rule"), p)[0] for p in problems]
    optimizer = steepest.Steepest([{"params": p.named()} for p in problems], rule)
    for t in range(STEPS):
        for p in problems:
            p.load(t)
        optimizer.step()
    for p, weights in zip(problems, wanted, strict=True):
        for n, w in p.weights().items():
            np.testing.assert_allclose(w.numpy(), weights[-1][n], rtol=0, atol=1e-5 * rule.lr, err_msg=n)


@pytest.mark.parametrize("backend", BACKENDS)
@every_soft_rule
def test_maximize(name, backend):
    compare(
        replace(RULES[name], backend=backend),
        Problem(shapes_of(name), steps=STEPS, dtype=torch.float64),
        maximize=True,
    )


@every_soft_rule
def test_a_scheduled_rate(name):
    """Also through zero; the rate of the sign steps moves with it, the temperature does not."""
    problem = Problem(shapes_of(name), steps=STEPS, dtype=torch.float64)
    compare(RULES[name], problem, lr=lambda t: 0.05 / (1 + t) if t != 5 else 0.0)


@pytest.mark.parametrize("backend", BACKENDS)
@every_soft_rule
def test_missing_gradients(name, backend):
    """Some at the fit, all at another step: the clock goes on, and a late tensor takes the fit of the others."""
    problem = Problem(SHAPES, steps=STEPS, dtype=torch.float64)
    for t in range(5):
        problem.gradients[t]["wide"] = None
    problem.gradients[START]["square"] = None
    problem.gradients[1] = dict.fromkeys(SHAPES)
    problem.gradients[6] = dict.fromkeys(SHAPES)
    compare(replace(RULES[name], backend=backend), problem)


@every_soft_rule
def test_no_gradient_at_the_start_of_the_transition(name):
    """The first step that has one makes the fit, at its own progress."""
    problem = Problem(shapes_of(name), steps=STEPS, dtype=torch.float64)
    for t in (START, START + 1):
        problem.gradients[t] = dict.fromkeys(problem.params)
    compare(RULES[name], problem)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("text", "shape", "view"),
    [
        ("flatten", (8, 3, 2, 2), reference_views.FLAT),
        ("transposed", (6, 10), reference_views.TRANSPOSED),
        ("transposed", (10, 6), reference_views.TRANSPOSED),
        ("batch", (3, 4, 6), reference_views.EXPERTS),
        ("rows=6,2,2", (10, 6), reference_views.rows([6, 2, 2])),
    ],
)
@spectral_rules
def test_view(name, text, shape, view, backend):
    """Singular values are those of the matrices of the view, each counted once."""
    rule = replace(RULES[name], view=text, backend=backend)
    compare(rule, Problem({"a": shape, "b": shape}, steps=STEPS, dtype=torch.float64), view=view)


def test_rows_that_never_got_a_gradient_are_left_out_of_the_fit():
    """Exact zeros are the majority of an embedding that saw few of its rows: they tell nothing about the rest."""
    problem = Problem({"embedding": (60, 8), "head": (8, 5)}, steps=STEPS, dtype=torch.float64)
    for g in problem.gradients:
        g["embedding"][10:] = 0.0
    compare(RULES["soft_signum"], problem)


@pytest.mark.parametrize("relaxation", ["algebraic", "switch"])
def test_low_rank_directions_are_fitted_by_their_rank(relaxation):
    """Singular values that are rounding are exactly zero, and left out where they are the majority."""
    problem = Problem({"a": (12, 16), "b": (16, 12)}, steps=STEPS, dtype=torch.float64)
    left, right = (torch.randn(n, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(n)) for n in (12, 16))
    for g in problem.gradients:
        core = g["a"][:4, :4].clone()
        g["a"], g["b"] = left @ core @ right.mT, right @ core @ left.mT
    compare(replace(RULES["soft_muon"], relaxation=relaxation, transition=(3, 30)), problem)


@every_soft_rule
def test_narrow_parameters(name):
    """bfloat16 weights with a float32 state: each step is that of the reference, rounded once."""
    options = {} if name == "soft_signum" else {"compute_dtype": "float32"}
    rule = replace(RULES[name], lr=0.5, state_dtype="float32", **options)
    problem = Problem(shapes_of(name), steps=STEPS, dtype=torch.bfloat16)
    weights, _, _ = expected(rule, problem)
    optimizer = cases.build(rule, problem)
    for t in range(STEPS):
        rate = rule.lr * (0.3 if name == "soft_lion_muon" and t % 2 else 1.0)
        keep = 1 - rate * rule.weight_decay
        before = problem.weights()
        problem.run(optimizer, t, t + 1)
        for n, p in problem.params.items():
            wanted = keep * before[n].double().numpy() + weights[t + 1][n] - keep * weights[t][n]
            np.testing.assert_allclose(
                p.detach().double().numpy(), wanted, rtol=2.0**-8, atol=2e-4 * rate, err_msg=f"{n} after step {t}"
            )
