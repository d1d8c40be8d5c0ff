"""Every rule, run by the engine in float64, against the numpy reference: 20 steps, weights and state at each."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch

import steepest
from reference import golden
from reference import newton_schulz as ns
from reference import rules as reference
from reference import views as reference_views
from steepest import rules

BACKENDS = ["single", "foreach", "auto"]
STEPS = 20
MATRICES = {
    "wide": (6, 16),
    "tall": (16, 6),
    "square": (8, 8),
    "row": (1, 12),
    "column": (12, 1),
    "one": (1, 1),
    "convolution": (8, 3, 2, 2),
    "embedding": (60, 8),
    "another wide": (6, 16),  # a second one of the same shape, so that a batched path has a stack
}
VECTORS = {"vector": (7,), "scalar": ()}


class Case(NamedTuple):
    """A rule of the library and the reference function with its numbers (without the rate)."""

    rule: rules.Rule
    function: Any
    numbers: dict[str, Any]
    elementwise: bool = False


def case(name: str, **changes: Any) -> Case:
    """The case of a rule, with numbers far from its defaults; ``changes`` are in the library's vocabulary."""
    if name == "signum":
        o = {"lr": 0.02, "betas": (0.8, 0.8), "weight_decay": 0.3, **changes}
        return Case(
            rules.Signum(**o), reference.signum, {"beta": o["betas"][0], "weight_decay": o["weight_decay"]}, True
        )
    if name == "lion":
        o = {"lr": 0.02, "betas": (0.8, 0.95), "weight_decay": 0.3, **changes}
        return Case(rules.Lion(**o), reference.lion, {"betas": o["betas"], "weight_decay": o["weight_decay"]}, True)
    if name == "adamw":
        o = {"lr": 0.02, "betas": (0.8, 0.95), "eps": 1e-3, "weight_decay": 0.3, **changes}
        numbers = {k: o[k] for k in ("betas", "eps", "weight_decay")}
        return Case(rules.AdamW(**o), reference.adamw, numbers, True)
    geometry = {k: changes[k] for k in ("scale", "steps", "coefficients") if k in changes}
    if name == "muon":
        o = {"lr": 0.02, "betas": (0.8, 0.8), "weight_decay": 0.3, **changes}
        numbers = {"beta": o["betas"][1], "nesterov": o["betas"][0] != o["betas"][1]}
        return Case(rules.Muon(**o), reference.muon, {**numbers, "weight_decay": o["weight_decay"], **geometry})
    o = {"lr": 0.02, "sign_lr_ratio": 0.3, "period": 2, "weight_decay": 0.3, **changes}
    numbers = {
        "sign_lr_ratio": o["sign_lr_ratio"],
        "weight_decay": o["weight_decay"],
        "phase": reference.every(o["period"]),
    }
    if name == "sign_muon":
        o = {"betas": (0.8, 0.8), **o}
        return Case(rules.SignMuon(**o), reference.sign_muon, {**numbers, "beta": o["betas"][0], **geometry})
    assert name == "lion_muon"
    o = {"betas": (0.8, 0.95), **o}
    return Case(rules.LionMuon(**o), reference.lion_muon, {**numbers, "betas": o["betas"], **geometry})


RULES = ["signum", "lion", "muon", "sign_muon", "lion_muon", "adamw"]


# --- the two runs


def draw(shapes: dict[str, tuple[int, ...]], seed: int = 0) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(seed)
    return {name: generator.standard_normal(shape) for name, shape in shapes.items()}


def draw_gradients(
    shapes: dict[str, tuple[int, ...]], steps: int = STEPS, seed: int = 100
) -> list[dict[str, np.ndarray]]:
    """Fresh normal gradients, except that an embedding sees few of its rows in each step (so that zeros occur)."""
    gradients = []
    for t in range(steps):
        g = draw(shapes, seed + t)
        if "embedding" in g:
            rows = np.random.default_rng(seed + t).permutation(len(g["embedding"]))
            g["embedding"][rows[5:]] = 0
        gradients.append(g)
    return gradients


class Library:
    """One optimizer over named tensors, one group for each rule."""

    def __init__(self, groups: list[tuple[rules.Rule, dict[str, np.ndarray]]], **options: Any) -> None:
        self.parameters = {
            name: torch.nn.Parameter(torch.tensor(w, dtype=torch.float64))
            for _, group in groups
            for name, w in group.items()
        }
        self.optimizer = steepest.Steepest(
            [{"params": [self.parameters[name] for name in group], "rule": rule} for rule, group in groups], **options
        )

    def step(self, gradients: dict[str, np.ndarray | None]) -> None:
        for name, p in self.parameters.items():
            g = gradients.get(name)
            p.grad = None if g is None else torch.tensor(g, dtype=torch.float64)
        self.optimizer.step()

    def weights(self) -> dict[str, np.ndarray]:
        return {name: p.detach().numpy().copy() for name, p in self.parameters.items()}

    def buffers(self, name: str) -> dict[str, np.ndarray]:
        """State tensors of a parameter in its own shape, without the step counter."""
        state = self.optimizer.state[self.parameters[name]]
        return {key: value.numpy() for key, value in state.items() if key != "step"}


def close(actual: np.ndarray, expected: np.ndarray, what: str = "", tolerance: float = 1e-10) -> None:
    np.testing.assert_allclose(actual, expected, rtol=tolerance, atol=tolerance * 1e-2, err_msg=what)


def compare(
    case: Case,
    shapes: dict[str, tuple[int, ...]],
    backend: str,
    *,
    steps: int = STEPS,
    lr: Any = None,
    gradients: list[dict[str, np.ndarray | None]] | None = None,
    maximize: bool = False,
    **numbers: Any,
) -> None:
    """Run both and compare the weights and the state after every step."""
    start = draw(shapes)
    gradients = draw_gradients(shapes, steps) if gradients is None else gradients
    weights, states = reference.run(
        case.function,
        list(start.items()),
        gradients,
        lr=case.rule.lr if lr is None else lr,
        maximize=maximize,
        **{**case.numbers, **numbers},
    )
    rule = dataclasses.replace(case.rule, backend=backend)
    library = Library([(rule, start)], **({"maximize": True} if maximize else {}))
    for t, g in enumerate(gradients):
        if lr is not None:
            library.optimizer.param_groups[0]["lr"] = lr(t)
        library.step(g)
        actual = library.weights()
        for name in shapes:
            close(actual[name], weights[t + 1][name], f"weights of {name} after step {t}")
            buffers, expected = library.buffers(name), states[t + 1][name]
            for key, value in expected.items():
                close(buffers[key], value, f"{key} of {name} after step {t}")


# --- every rule


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", RULES)
def test_rule(name, backend):
    c = case(name)
    compare(c, {**MATRICES, **VECTORS} if c.elementwise else MATRICES, backend)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", ["signum", "lion", "adamw"])
def test_large_tensors_in_pieces(name, backend):
    """Sizes that a path which cuts large tensors into pieces has to cut, and that no piece divides."""
    compare(case(name), {"large": (1531, 701), "small": (3,)}, backend, steps=3)


@pytest.mark.usefixtures("working_compiler")
@pytest.mark.parametrize("name", RULES)
def test_compiled(name):
    """Large tensors are compiled, small ones need not be; the first test of a kind pays for the compiler."""
    shapes = {
        "large": (300, 257),
        "same shape": (300, 257),
        "tall": (700, 150),
        "convolution": (64, 32, 6, 6),
        "small": (6, 16),
    }
    compare(case(name), shapes, "compile", steps=5, lr=lambda t: 0.02 / (1 + t))


@pytest.mark.usefixtures("working_compiler")
def test_the_compiler_is_really_used():
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    compare(case("lion"), {"large": (300, 257)}, "compile", steps=2)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] >= 1


# --- every number


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("period", [1, 2, 3, 5, math.inf])
@pytest.mark.parametrize("name", ["sign_muon", "lion_muon"])
def test_period(name, period, backend):
    compare(case(name, period=period), MATRICES, backend)


@pytest.mark.parametrize("offset", [0, 1, 2, 4])
def test_offset_is_the_first_spectral_step(offset):
    period = 5
    compare(
        case("lion_muon", period=period, offset=offset), MATRICES, "single", phase=lambda t, d: t % period == offset
    )


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("scale", ["match_rms", "keller", "spectral", "none"])
@pytest.mark.parametrize("name", ["muon", "lion_muon"])
def test_scale(name, scale, backend):
    compare(case(name, scale=scale), MATRICES, backend, steps=6)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("coefficients", "steps"), [("keller", 3), ("polar_express", 5), ("polar_express", 8), ("cubic", 9)]
)
@pytest.mark.parametrize("name", ["muon", "lion_muon"])
def test_coefficients(name, coefficients, steps, backend):
    compare(case(name, coefficients=coefficients, steps=steps), MATRICES, backend, steps=6)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", RULES)
def test_no_decay_of_the_weights(name, backend):
    compare(case(name, weight_decay=0.0), MATRICES, backend, steps=6)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("beta", [0.0, 0.5, 0.95])
def test_nesterov_momentum(beta, backend):
    assert rules.nesterov(beta) == (beta**2, beta)
    c = case("muon", betas=rules.nesterov(beta))
    compare(c, MATRICES, backend, steps=6, nesterov=True)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("betas", [(0.0, 0.0), (0.0, 0.9), (0.9, 0.0), (0.9, 0.99), (0.99, 0.9), (0.81, 0.9)])
@pytest.mark.parametrize("name", ["lion", "lion_muon"])
def test_betas(name, betas, backend):
    compare(case(name, betas=betas), MATRICES, backend, steps=6)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", RULES)
def test_changing_rate(name, backend):
    """Also through zero, where nothing but the state may move."""
    compare(case(name), MATRICES, backend, lr=lambda t: 0.05 * abs(math.cos(t)) if t != 4 else 0.0)


@pytest.mark.parametrize("backend", [*BACKENDS, "compile"])
@pytest.mark.parametrize("name", RULES)
def test_a_rate_that_is_a_tensor(name, backend):
    """Read anew in every step, also where it is changed in place, and not replaced by a number."""
    rate = torch.tensor(0.0, dtype=torch.float64)

    def set_rate(t: int) -> torch.Tensor:
        return rate.fill_(0.02 / (1 + t))

    c = case(name)
    shapes = {**MATRICES, "large": (300, 257)}
    start, gradients = draw(shapes), draw_gradients(shapes, 5)
    weights, _ = reference.run(c.function, list(start.items()), gradients, lr=lambda t: 0.02 / (1 + t), **c.numbers)
    library = Library([(dataclasses.replace(c.rule, lr=rate, backend=backend), start)])
    assert torch.is_tensor(library.optimizer.param_groups[0]["lr"])
    library.optimizer.param_groups[0]["lr"] = rate
    for t, g in enumerate(gradients):
        set_rate(t)
        library.step(g)
        for n in shapes:
            close(library.weights()[n], weights[t + 1][n], f"{n} after step {t}")
        assert rate.item() == 0.02 / (1 + t)


@pytest.mark.parametrize("backend", [*BACKENDS, "compile"])
@pytest.mark.parametrize("name", RULES)
def test_parameters_that_are_not_contiguous(name, backend):
    """A transposed or sliced parameter; with gradients of its own layout, and contiguous ones."""
    c = case(name)
    large = (1201, 603) if c.elementwise else (120, 60)
    shapes = {"transposed": (20, 30), "sliced": (20, 30), "large": large, "contiguous": (20, 30)}
    start, gradients = draw(shapes), draw_gradients(shapes, 4)
    weights, _ = reference.run(c.function, list(start.items()), gradients, lr=c.rule.lr, **c.numbers)
    library = Library([(dataclasses.replace(c.rule, backend=backend), {"contiguous": start["contiguous"]})])
    spread = torch.zeros(40, 60, dtype=torch.float64)[::2, ::2].copy_(torch.from_numpy(start["sliced"]))
    for n, w in (
        ("transposed", torch.from_numpy(start["transposed"].T.copy()).T),
        ("large", torch.from_numpy(start["large"].T.copy()).T),
        ("sliced", spread),
    ):
        assert not w.is_contiguous()
        library.parameters[n] = torch.nn.Parameter(w)
        library.optimizer.add_param_group(
            {"params": [library.parameters[n]], "rule": dataclasses.replace(c.rule, backend=backend)}
        )
    for t, g in enumerate(gradients):
        for n, p in library.parameters.items():
            p.grad = torch.tensor(g[n]) if t % 2 else torch.empty_like(p).copy_(torch.from_numpy(g[n]))
        library.optimizer.step()
        for n in shapes:
            close(library.weights()[n], weights[t + 1][n], f"{n} after step {t}")


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", RULES)
def test_maximize(name, backend):
    compare(case(name), MATRICES, backend, steps=6, maximize=True)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", RULES)
def test_missing_gradients_stop_the_clock_of_their_tensor_only(name, backend):
    """Its weights, its state, its bias correction and its phase wait."""
    gradients = draw_gradients(MATRICES, 12)
    for t, g in enumerate(gradients):
        if t in (0, 1, 2, 7):
            g["wide"] = None
        if t == 5:
            g["square"] = None
        if t == 6:
            gradients[t] = {}
    compare(case(name), MATRICES, backend, gradients=gradients)


@pytest.mark.parametrize("backend", BACKENDS)
def test_several_groups_with_their_own_numbers(backend):
    cases = {
        "a": case("lion_muon", lr=0.01, period=3),
        "b": case("lion_muon", lr=0.04, period=2, scale="keller", betas=(0.5, 0.6)),
        "c": case("sign_muon", lr=0.02, weight_decay=0.0),
        "d": case("muon", lr=0.03),
        "e": case("lion", lr=0.005),
        "f": case("adamw", lr=0.1),
        "g": case("signum"),
    }
    start = {label: draw(MATRICES, seed) for seed, label in enumerate(cases)}
    gradients = {label: draw_gradients(MATRICES, seed=1000 * seed) for seed, label in enumerate(cases)}
    library = Library(
        [
            (dataclasses.replace(c.rule, backend=backend), {f"{label} {n}": w for n, w in start[label].items()})
            for label, c in cases.items()
        ]
    )
    base = [group["lr"] for group in library.optimizer.param_groups]
    assert base == [c.rule.lr for c in cases.values()]

    def factor(t: int) -> float:
        return 1 / (1 + t)

    expected = {
        label: reference.run(
            c.function,
            list(start[label].items()),
            gradients[label],
            lr=lambda t, c=c: c.rule.lr * factor(t),
            **c.numbers,
        )[0]
        for label, c in cases.items()
    }
    scheduler = torch.optim.lr_scheduler.LambdaLR(library.optimizer, factor)
    for t in range(STEPS):
        library.step({f"{label} {n}": g for label in cases for n, g in gradients[label][t].items()})
        scheduler.step()
        actual = library.weights()
        for label in cases:
            for n in MATRICES:
                close(actual[f"{label} {n}"], expected[label][t + 1][n], f"{label} {n} after step {t}")


# --- triggers


def phases(rule: rules.LionMuon, steps: int) -> list[bool]:
    """Which steps the rule says are spectral."""
    return [isinstance(rule.phase(t).geometry, rules.Polar) for t in range(steps)]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", ["sign_muon", "lion_muon"])
def test_random_period(name, backend):
    c = case(name, trigger="random", period=3, seed=7)
    spectral = phases(c.rule, STEPS)
    assert 0 < sum(spectral) < STEPS
    compare(c, MATRICES, backend, phase=reference.at_random(3, lambda t: 0.0 if spectral[t] else 0.999))


def test_random_period_has_its_probability_and_no_memory():
    for period in (1, 2, 5):
        spectral = np.array(phases(rules.LionMuon(trigger="random", period=period, seed=3), 4000))
        p = 1 / period
        assert abs(spectral.mean() - p) <= 4 * math.sqrt(p * (1 - p) / 4000)
        if period > 1:  # a step tells nothing about the next one, nor about the parity of the step
            assert abs(spectral[1:][spectral[:-1]].mean() - p) < 5 * math.sqrt(p * (1 - p) / (4000 * p))
            assert abs(spectral[::2].mean() - p) < 5 * math.sqrt(p * (1 - p) / 2000)
    assert not any(phases(rules.LionMuon(trigger="random", period=math.inf), 100))


def test_random_period_is_a_function_of_seed_and_step():
    a = phases(rules.LionMuon(trigger="random", seed=1), 200)
    torch.manual_seed(5)
    assert phases(rules.LionMuon(trigger="random", seed=1), 200) == a
    assert phases(rules.LionMuon(trigger="random", seed=2), 200) != a
    assert phases(rules.LionMuon(trigger="random", seed=1), 200)[100:] == a[100:]


@pytest.mark.parametrize("backend", BACKENDS)
def test_stable_rank_trigger_chooses_for_each_matrix(backend):
    """Directions whose stable rank is known whatever the start vector: 1 for rank one, m for orthogonal rows."""
    low = np.outer(np.arange(1.0, 5), [1.0, -2, 3, 1, 2, 1])
    high = np.linalg.qr(np.random.default_rng(0).standard_normal((6, 6)))[0][:4]
    shapes = {"low": (4, 6), "high": (4, 6), "turns": (4, 6)}
    gradients = [
        {"low": low * (1 + t), "high": high * (2 + t), "turns": 1e-6 * low if t < 3 else 1e6 * high} for t in range(6)
    ]
    c = case("lion_muon", trigger="stable_rank", threshold=0.5, period=2)
    compare(
        c,
        shapes,
        backend,
        gradients=gradients,
        phase=reference.when_low_rank(0.5, lambda t, n: np.random.default_rng(t).standard_normal(n)),
    )


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("maximize", [False, True])
@pytest.mark.parametrize("view", ["batch", "rows=4,4,4"])
def test_stable_rank_trigger_chooses_for_each_matrix_of_a_view(view, maximize, backend):
    """One expert, or one section of a fused weight, may be spectral, with its rate, while others take sign steps."""
    low = np.outer(np.arange(1.0, 5), [1.0, -2, 3, 1, 2, 1])
    high = np.linalg.qr(np.random.default_rng(0).standard_normal((6, 6)))[0][:4]
    matrices = {"low": low, "high": high, "turns": low}
    gradients = [{**matrices, "turns": 1e-6 * low if t < 3 else 1e6 * high} for t in range(6)]
    start = draw(dict.fromkeys(matrices, (4, 6)))
    c = case("lion_muon", trigger="stable_rank", threshold=0.5)
    weights, states = reference.run(
        c.function,
        list(start.items()),
        gradients,
        lr=c.rule.lr,
        maximize=maximize,
        **{**c.numbers, "phase": reference.when_low_rank(0.5, lambda t, n: np.arange(1.0, n + 1))},
    )
    join = np.stack if view == "batch" else np.concatenate
    rule = dataclasses.replace(c.rule, view=view, backend=backend)
    library = Library([(rule, {"w": join(list(start.values()))})], maximize=maximize)
    for t, g in enumerate(gradients):
        library.step({"w": join(list(g.values()))})
        close(library.weights()["w"], join(list(weights[t + 1].values())), f"weights after step {t}")
        expected = join([state["momentum"] for state in states[t + 1].values()])
        close(library.buffers("w")["momentum"], expected, f"momentum after step {t}")


# --- views


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("text", "shape", "view"),
    [
        ("matrix", (6, 10), reference_views.FLAT),
        ("flatten", (8, 3, 2, 2), reference_views.FLAT),
        ("transposed", (6, 10), reference_views.TRANSPOSED),
        ("transposed", (10, 6), reference_views.TRANSPOSED),
        ("batch", (3, 4, 6), reference_views.EXPERTS),
        ("batch", (4, 4, 6), reference_views.EXPERTS),
        ("rows=6,2,2", (10, 6), reference_views.rows([6, 2, 2])),
        ("heads=3", (12, 5), reference_views.rows([4, 4, 4])),
    ],
)
@pytest.mark.parametrize("scale", ["match_rms", "spectral"])
@pytest.mark.parametrize("name", ["muon", "lion_muon"])
def test_view(name, scale, text, shape, view, backend):  # noqa: PLR0917
    """The geometry and the scale both come from the view."""
    c = case(name, scale=scale)
    c = c._replace(rule=dataclasses.replace(c.rule, view=text))
    compare(c, {"a": shape, "b": shape}, backend, steps=6, view=view)


# --- one spectral step against the singular value decomposition


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("name", ["muon", "sign_muon", "lion_muon"])
def test_step_against_svd(name, dtype, backend):
    c = case(name, lr=1.0, weight_decay=0.0)
    for shape in [(6, 16), (16, 6), (8, 8), (1, 12), (12, 1)]:
        w, g = (torch.tensor(draw({"w": shape}, seed)["w"], dtype=dtype) for seed in (0, 1))
        p = torch.nn.Parameter(w.clone())
        p.grad = g.clone()
        optimizer = steepest.Steepest([{"params": [p], "rule": dataclasses.replace(c.rule, backend=backend)}])
        optimizer.step()
        u, s, vt = np.linalg.svd(g.double().numpy(), full_matrices=False)
        assert (s / np.linalg.norm(s)).min() > 0.003  # inside the interval of the band
        step = (w - p.detach()).double().numpy() / ns.scale(*shape, "match_rms")
        core = u.T @ step @ vt.T  # diagonal, in the band, when the step has the singular vectors of the gradient
        rough = 0.0 if dtype == torch.float64 else 0.05  # float32 parameters may have their products in bfloat16
        low, high = golden.BAND
        assert ((low - rough <= np.diag(core)) & (np.diag(core) <= high + rough)).all()
        np.testing.assert_allclose(core, np.diag(np.diag(core)), atol=rough + 1e-10)
        outside = step - u @ core @ vt
        assert np.linalg.norm(outside) <= (rough + 1e-10) * np.linalg.norm(step)


def test_accurate_step_is_the_polar_factor():
    c = case("muon", lr=1.0, weight_decay=0.0, coefficients="polar_express", steps=8)
    start = draw(MATRICES)
    library = Library([(c.rule, start)])
    g = draw(MATRICES, 1)
    library.step(g)
    for name, w in library.weights().items():
        expected = reference.spectral(g[name], exact=True)
        close(start[name] - w, expected, name, tolerance=1e-6)
        assert abs(math.sqrt((expected**2).mean()) - golden.MATCH_RMS) < 1e-12


# --- hand tables


@pytest.mark.parametrize("backend", [*BACKENDS, "compile"])
def test_hand_tables(backend):
    """Exact in float64, state included."""
    decay = {"weight_decay": golden.WEIGHT_DECAY, "backend": backend}
    signum = rules.Signum(lr=golden.LR, betas=(golden.SIGNUM_BETA, golden.SIGNUM_BETA), **decay)
    lion = rules.Lion(lr=golden.LR, betas=golden.LION_BETAS, **decay)
    adamw = rules.AdamW(lr=golden.LR, betas=golden.ADAMW_BETAS, eps=golden.ADAMW_EPS, **decay)
    lion_muon = rules.LionMuon(
        lr=golden.LION_MUON_LR,
        sign_lr_ratio=golden.LION_MUON_RATIO,
        betas=golden.LION_MUON_BETAS,
        period=2,
        coefficients="cubic",
        scale="none",
        **decay,
    )
    library = Library(
        [
            (signum, {"signum": np.array(golden.W0)}),
            (lion, {"lion": np.array(golden.W0)}),
            (lion_muon, {"lion_muon": np.array([[golden.LION_MUON_W0]])}),
            (adamw, {"adamw": np.array([golden.ADAMW_W0])}),
        ]
    )
    for t in range(3):
        library.step(
            {
                "signum": np.array(golden.GRADIENTS[t]),
                "lion": np.array(golden.GRADIENTS[t]),
                "lion_muon": np.array([[golden.LION_MUON_GRADIENTS[t]]]),
                "adamw": np.array([golden.ADAMW_GRADIENTS[t]]),
            }
        )
        w = library.weights()
        for name, table in (("signum", golden.SIGNUM), ("lion", golden.LION)):
            assert library.buffers(name)["momentum"].tolist() == table[t][0]
            assert w[name].tolist() == table[t][1]
        assert library.buffers("lion_muon")["momentum"].item() == golden.LION_MUON[t][0]
        assert w["lion_muon"].item() == golden.LION_MUON[t][1]
        m, v, x = golden.ADAMW[t]
        assert library.buffers("adamw")["momentum"].item() == m
        assert library.buffers("adamw")["second"].item() == v
        close(w["adamw"], np.array([x]), tolerance=1e-14)


@pytest.mark.parametrize("mode", golden.SCALES)
def test_scale_table(mode):
    for (m, n), expected in golden.SCALES[mode].items():
        assert rules.SCALES[mode](m, n) == pytest.approx(expected, rel=1e-14)


def test_expected_rms_is_what_an_exact_step_has():
    for name in ("muon", "lion_muon"):
        for scale in ("match_rms", "keller", "spectral", "none"):
            for m, n in [(6, 16), (16, 6), (8, 8)]:
                rule = case(name, scale=scale, period=1).rule if name == "lion_muon" else case(name, scale=scale).rule
                exact = rule.lr * reference.spectral(draw({"w": (m, n)})["w"], exact=True, scale=scale)
                assert rule.expected_rms(m, n) == pytest.approx(math.sqrt((exact**2).mean()), rel=1e-12)
    mixed = case("lion_muon", period=4, lr=0.1, sign_lr_ratio=0.3).rule
    assert mixed.expected_rms(6, 16) == pytest.approx((0.1 * 0.2 + 3 * 0.03) / 4)
    assert case("lion", lr=0.1).rule.expected_rms(6, 16) == pytest.approx(0.1)


# --- the scale of the gradient


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("factor", [1e-12, 1e12])
@pytest.mark.parametrize("name", ["signum", "lion", "muon", "sign_muon", "lion_muon"])
def test_steps_ignore_the_scale_of_the_gradient(name, factor, backend):
    start = draw(MATRICES)
    rule = dataclasses.replace(case(name).rule, backend=backend)
    plain, scaled = Library([(rule, start)]), Library([(rule, start)])
    for g in draw_gradients(MATRICES, 8):
        plain.step(g)
        scaled.step({n: factor * x for n, x in g.items()})
    for n, w in plain.weights().items():
        close(scaled.weights()[n], w, n)


# --- float32: the fast paths against the plain one


@pytest.mark.parametrize("name", RULES)
def test_float32_paths_agree(name):
    """Bit for bit on elements; a batched matrix product may round differently from one matrix at a time."""
    c = case(name, **({"weight_decay": 0.3} if case(name).elementwise else {"compute_dtype": "float32"}))
    shapes = {**MATRICES, "large": (1531, 701)} if c.elementwise else MATRICES
    start, results = draw(shapes), {}
    for backend in ("single", "foreach", "auto"):
        parameters = {n: torch.nn.Parameter(torch.tensor(w, dtype=torch.float32)) for n, w in start.items()}
        rule = dataclasses.replace(c.rule, backend=backend)
        optimizer = steepest.Steepest([{"params": list(parameters.values()), "rule": rule}])
        for g in draw_gradients(shapes, 4):
            for n, p in parameters.items():
                p.grad = torch.tensor(g[n], dtype=torch.float32)
            optimizer.step()
        results[backend] = {n: p.detach() for n, p in parameters.items()}
    for backend in ("foreach", "auto"):
        for n in shapes:
            tolerance = 0 if c.elementwise else 1e-5
            torch.testing.assert_close(
                results[backend][n], results["single"][n], rtol=0, atol=tolerance, msg=f"{backend} {n}"
            )


# --- defaults


def test_defaults_are_those_of_the_papers():
    """LionMuon's table of tuned cells (period 2), its fallback AdamW, Lion's paper, the Newton-Schulz of Muon."""
    lion_muon = rules.LionMuon()
    assert (lion_muon.lr, lion_muon.sign_lr_ratio, lion_muon.period, lion_muon.betas) == (1e-3, 0.1, 2, (0.9, 0.99))
    sign_muon = rules.SignMuon()
    assert (sign_muon.lr, sign_muon.sign_lr_ratio, sign_muon.period, sign_muon.betas) == (3e-3, 1 / 30, 2, (0.9, 0.9))
    assert (rules.Lion().betas, rules.Signum().betas) == ((0.9, 0.99), (0.9, 0.9))
    assert rules.Muon().betas == rules.nesterov(0.95)
    assert (rules.AdamW().lr, rules.AdamW().betas, rules.AdamW().eps) == (1e-3, (0.8, 0.999), 1e-8)
    for rule in (lion_muon, sign_muon, rules.Muon()):
        assert (rule.steps, rule.coefficients, rule.scale) == (5, "keller", "match_rms")
    for rule in (lion_muon, sign_muon, rules.Muon(), rules.Lion(), rules.Signum(), rules.AdamW()):
        assert rule.weight_decay == 0.1
