"""The oracle is trusted because it passes these: hand tables, published numbers, identities between formulas."""

from __future__ import annotations

import math

import numpy as np
import pytest

from . import golden, rules, views
from . import newton_schulz as ns

SHAPES = [(4, 9), (9, 4), (6, 6), (1, 7), (7, 1), (1, 1)]
TABLES = ["keller", "cubic", "polar_express"]


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape)


def orthogonal(n: int, seed: int) -> np.ndarray:
    return np.linalg.qr(normal(n, n, seed=seed))[0]


def with_singular_values(m: int, n: int, s: np.ndarray, seed: int = 0) -> np.ndarray:
    """An (m, n) matrix with exactly these min(m, n) singular values."""
    k = min(m, n)
    return orthogonal(m, seed)[:, :k] * s @ orthogonal(n, seed + 1)[:k]


def gradients(shape: tuple[int, ...], steps: int, seed: int = 5) -> list[dict[str, np.ndarray]]:
    return [{"w": normal(*shape, seed=seed + t)} for t in range(steps)]


def trajectory(rule, shape=(4, 6), steps=8, scale=1.0, **numbers) -> np.ndarray:
    """All weights of a run, stacked."""
    g = [{"w": scale * x["w"]} for x in gradients(shape, steps)]
    history, _ = rules.run(rule, [("w", normal(*shape, seed=1))], g, **{"lr": 0.1, **numbers})
    return np.stack([h["w"] for h in history])


def close(a, b, tolerance=1e-12) -> None:
    np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance)


# --- hand tables


def test_signum_hand_table():
    g = [{"w": np.array(x)} for x in golden.GRADIENTS]
    w, states = rules.run(
        rules.signum,
        [("w", np.array(golden.W0))],
        g,
        lr=golden.LR,
        beta=golden.SIGNUM_BETA,
        weight_decay=golden.WEIGHT_DECAY,
    )
    for t, (m, expected) in enumerate(golden.SIGNUM, start=1):
        assert states[t]["w"]["momentum"].tolist() == m
        assert w[t]["w"].tolist() == expected


def test_lion_hand_table():
    g = [{"w": np.array(x)} for x in golden.GRADIENTS]
    w, states = rules.run(
        rules.lion,
        [("w", np.array(golden.W0))],
        g,
        lr=golden.LR,
        betas=golden.LION_BETAS,
        weight_decay=golden.WEIGHT_DECAY,
    )
    for t, (m, expected) in enumerate(golden.LION, start=1):
        assert states[t]["w"]["momentum"].tolist() == m
        assert w[t]["w"].tolist() == expected


def test_lion_muon_hand_table():
    w, states = rules.run(
        rules.lion_muon,
        [("w", np.array([[golden.LION_MUON_W0]]))],
        [{"w": np.array([[x]])} for x in golden.LION_MUON_GRADIENTS],
        lr=golden.LION_MUON_LR,
        sign_lr_ratio=golden.LION_MUON_RATIO,
        betas=golden.LION_MUON_BETAS,
        weight_decay=golden.WEIGHT_DECAY,
        phase=rules.every(2),
        coefficients="cubic",
        scale="none",
    )
    for t, (m, expected) in enumerate(golden.LION_MUON, start=1):
        assert states[t]["w"]["momentum"].item() == m
        assert w[t]["w"].item() == expected


def test_adamw_hand_table():
    w, states = rules.run(
        rules.adamw,
        [("w", np.array([golden.ADAMW_W0]))],
        [{"w": np.array([x])} for x in golden.ADAMW_GRADIENTS],
        lr=golden.LR,
        betas=golden.ADAMW_BETAS,
        eps=golden.ADAMW_EPS,
        weight_decay=golden.WEIGHT_DECAY,
    )
    for t, (m, v, expected) in enumerate(golden.ADAMW, start=1):
        assert states[t]["w"]["momentum"].item() == m
        assert states[t]["w"]["second"].item() == v
        close(w[t]["w"].item(), expected, 1e-15)


@pytest.mark.parametrize("mode", golden.SCALES)
def test_scale_table(mode):
    for (m, n), expected in golden.SCALES[mode].items():
        close(ns.scale(m, n, mode), expected, 1e-15)
    with pytest.raises(ValueError, match="no such"):
        ns.scale(2, 2, "no such")


# --- Newton-Schulz, scalar map


def test_keller_band_and_slope():
    close(ns.quintic(1.0, ns.KELLER), golden.KELLER_AT_ONE)
    for (low, high), (bottom, top) in golden.KELLER_BANDS:
        values = ns.scalar_map(np.geomspace(low, high, 200_001))
        assert abs(values.min() - bottom) < 1e-3
        assert abs(values.max() - top) < 1e-3
    assert abs(ns.scalar_map(1e-9) / 1e-9 - golden.KELLER_SLOPE_AT_ZERO) < 0.5
    assert abs(ns.scalar_map(1e-3) - 0.47) < 0.005


def test_cubic_converges_and_fixes_one():
    assert ns.scalar_map(1.0, coefficients="cubic") == 1.0
    close(ns.scalar_map(np.linspace(0.2, 1.0, 101), steps=12, coefficients="cubic"), 1.0)


@pytest.mark.parametrize("ratio", [1e-3, 0.02407, 0.1, 0.5, 0.9, 0.99])
def test_optimal_quintic_equioscillates(ratio):
    (a, b, c), error = ns.optimal_quintic(ratio, 1.0)
    s = np.linspace(ratio, 1.0, 200_001)
    deviation = 1 - ns.quintic(s, (a, b, c))
    assert np.abs(deviation).max() <= error + 1e-12
    # Four alternating extremes of full height: by Chebyshev's theorem no odd quintic is better.
    extremes = [deviation[np.sign(deviation) == side] for side in (1, -1)]
    assert all(abs(np.abs(x).max() - error) < 1e-9 for x in extremes)
    touched = np.sign(deviation[np.abs(deviation) > error * (1 - 1e-4)])
    assert 1 + np.count_nonzero(np.diff(touched)) == 4


def test_optimal_quintic_agrees_with_a_linear_program():
    optimize = pytest.importorskip("scipy.optimize")
    s = np.linspace(0.1, 1.0, 4001)
    powers, one = np.stack([s, s**3, s**5], axis=1), np.ones((s.size, 1))
    # minimise e subject to |1 - p(s)| <= e on the grid
    program = optimize.linprog(
        [0, 0, 0, 1],
        A_ub=np.block([[powers, -one], [-powers, -one]]),
        b_ub=np.concatenate([np.ones(s.size), -np.ones(s.size)]),
        bounds=[(None, None)] * 4,
    )
    triple, error = ns.optimal_quintic(0.1, 1.0)
    assert abs(program.x[3] - error) < 1e-6
    np.testing.assert_allclose(program.x[:3], triple, rtol=1e-3)


def test_optimal_quintic_scales_with_the_interval_and_joins_its_limit():
    (a, b, c), error = ns.optimal_quintic(0.3, 2.0)
    (x, y, z), same = ns.optimal_quintic(0.15, 1.0)
    close((a * 2, b * 8, c * 32, error), (x, y, z, same))
    inside, e1 = ns.optimal_quintic(1 - 1.01e-4, 1.0)
    limit, e2 = ns.optimal_quintic(1 - 0.99e-4, 1.0)
    np.testing.assert_allclose(inside, limit, rtol=1e-2)
    assert e1 < 1e-12
    assert e2 < 1e-12


def test_polar_express_table_is_derived():
    """The printed numbers follow from the definition: best quintics, cushioned, composed greedily from [1e-3, 1]."""
    derived = ns.polar_express(8, ns.POLAR_EXPRESS_LOWER, ns.POLAR_EXPRESS_CUSHION)
    for i, (ours, printed) in enumerate(zip(derived, ns.POLAR_EXPRESS_PUBLISHED, strict=True)):
        np.testing.assert_allclose(ours, printed, rtol=1e-12 if i < 6 else 1e-8)


def test_polar_express_safety_rescales_all_but_the_last():
    plain, safe = (
        ns.polar_express(8, cushion=ns.POLAR_EXPRESS_CUSHION),
        ns.polar_express(8, cushion=ns.POLAR_EXPRESS_CUSHION, safety=1.01),
    )
    s = np.linspace(0, 1, 11)
    for p, q in zip(plain[:-1], safe[:-1], strict=True):
        close(ns.quintic(s / 1.01, p), ns.quintic(s, q))
    assert plain[-1] == safe[-1]
    np.testing.assert_allclose(safe, ns.triples("polar_express", 8), rtol=1e-8)


def test_polar_express_converges_faster_than_keller():
    s = np.geomspace(1e-3, 1, 10_001)
    close(ns.scalar_map(s, 8, ns.polar_express(8)), 1.0, 1e-6)  # no cushion: the whole interval, to the eighth error
    close(ns.scalar_map(s, 8, "polar_express"), 1.0)
    five = np.abs(ns.scalar_map(np.geomspace(1e-2, 1, 10_001), 5, "polar_express") - 1).max()
    assert five < np.abs(ns.scalar_map(np.geomspace(1e-2, 1, 10_001), 5, "keller") - 1).max()


def test_triples_repeat_the_last_entry():
    assert ns.triples("keller", 3) == [ns.KELLER] * 3
    assert ns.triples("polar_express", 10)[7:] == [ns.POLAR_EXPRESS_PUBLISHED[-1]] * 3
    assert ns.triples([(1.0, 0.0, 0.0), (2.0, 0.0, 0.0)], 3) == [(1.0, 0.0, 0.0), (2.0, 0.0, 0.0), (2.0, 0.0, 0.0)]


# --- Newton-Schulz, matrix


@pytest.mark.parametrize("coefficients", TABLES)
@pytest.mark.parametrize("shape", SHAPES)
def test_iteration_is_the_scalar_map_on_singular_values(shape, coefficients):
    x = normal(*shape)
    u, s, vt = np.linalg.svd(x, full_matrices=False)
    expected = u * ns.scalar_map(s / np.linalg.norm(s), 5, coefficients) @ vt
    close(ns.newton_schulz(x, 5, coefficients), expected)


@pytest.mark.parametrize("shape", SHAPES)
def test_exact_polar_factor(shape):
    x = normal(*shape)
    p = ns.polar_exact(x)
    gram = p @ p.T if shape[0] <= shape[1] else p.T @ p
    close(gram, np.eye(min(shape)))
    h = p.T @ x  # the symmetric positive semidefinite factor of X = P H
    close(h, h.T)
    assert np.linalg.eigvalsh(h).min() > -1e-12
    close(ns.newton_schulz(x, 60, "cubic"), p, 1e-9)


def test_exact_polar_factor_of_rank_deficient_and_zero():
    x = np.outer([1.0, 2.0, 2.0], [3.0, 4.0])
    close(ns.polar_exact(x), np.outer([1, 2, 2], [3, 4]) / 15)
    assert not ns.polar_exact(np.zeros((2, 3))).any()
    assert not ns.newton_schulz(np.zeros((2, 3))).any()


@pytest.mark.parametrize("coefficients", TABLES)
def test_invariances(coefficients):
    def f(x):
        return ns.newton_schulz(x, 5, coefficients)

    x = normal(5, 8)
    q, r = orthogonal(5, 2), orthogonal(8, 3)
    rows, columns = np.random.default_rng(4).permutation(5), np.random.default_rng(5).permutation(8)
    for factor in (1e-300, 1e-12, 1e12, 1e300):
        close(f(factor * x), f(x))
    assert (f(2.0**-40 * x) == f(x)).all()
    assert (f(x.T) == f(x).T).all()
    close(f(-x), -f(x))
    close(f(x[rows][:, columns]), f(x)[rows][:, columns])
    close(f(q @ x @ r), q @ f(x) @ r)


def test_match_rms_step():
    for shape in SHAPES:
        step = rules.spectral(normal(*shape), exact=True)
        close(math.sqrt((step * step).mean()), golden.MATCH_RMS)
    for (m, n), norm in golden.MATCH_RMS_NORMS.items():
        assert abs(ns.scale(m, n, "match_rms") - norm) < 0.05


def test_spectral_step_within_the_band():
    x = with_singular_values(8, 12, np.linspace(0.05, 1.0, 8))
    s = np.linalg.svd(rules.spectral(x) / ns.scale(8, 12, "match_rms"), compute_uv=False)
    assert golden.BAND[0] <= s.min()
    assert s.max() <= golden.BAND[1]


# --- views


def test_convolution_is_its_flattened_matrix():
    w = normal(6, 3, 2, 2)
    close(rules.spectral(w), rules.spectral(w.reshape(6, 12)).reshape(w.shape))


def test_transposed_view():
    w = normal(4, 9)
    close(
        rules.spectral(w, view=views.TRANSPOSED, scale="spectral"), ns.scale(9, 4, "spectral") * ns.newton_schulz(w.T).T
    )


def test_experts_and_fused_rows_are_independent():
    w = normal(3, 4, 5)
    close(rules.spectral(w, view=views.EXPERTS), np.stack([rules.spectral(w[i]) for i in range(3)]))
    fused = normal(9, 4)
    parts = [fused[:5], fused[5:7], fused[7:]]
    close(rules.spectral(fused, view=views.rows([5, 2, 2])), np.concatenate([rules.spectral(p) for p in parts]))


@pytest.mark.parametrize(
    ("view", "shape"),
    [
        (views.FLAT, (6, 3, 2, 2)),
        (views.FLAT, (4, 5)),
        (views.TRANSPOSED, (4, 5)),
        (views.EXPERTS, (3, 4, 5)),
        (views.rows([3, 1]), (4, 5)),
    ],
)
def test_views_round_trip(view, shape):
    w = normal(*shape)
    assert (view.join(view.split(w), w.shape) == w).all()


# --- identities between the rules


def test_period_one_with_equal_betas_is_muon():
    general = trajectory(rules.lion_muon, betas=(0.9, 0.9), sign_lr_ratio=0.3, phase=rules.every(1), weight_decay=0.1)
    close(general, trajectory(rules.muon, beta=0.9, weight_decay=0.1))


def test_nesterov_is_mix_of_decay_squared():
    general = trajectory(rules.lion_muon, betas=(0.81, 0.9), sign_lr_ratio=0.3, phase=rules.every(1))
    close(general, trajectory(rules.muon, beta=0.9, nesterov=True))
    assert np.abs(general - trajectory(rules.muon, beta=0.9)).max() > 1e-3


@pytest.mark.parametrize("period", [1, 2, 5, math.inf])
def test_equal_betas_is_sign_muon(period):
    numbers = {"sign_lr_ratio": 0.3, "phase": rules.every(period), "weight_decay": 0.2}
    close(trajectory(rules.lion_muon, betas=(0.9, 0.9), **numbers), trajectory(rules.sign_muon, beta=0.9, **numbers))


def test_infinite_period_is_lion_and_signum():
    numbers = {"sign_lr_ratio": 0.25, "phase": rules.every(math.inf), "weight_decay": 0.2}
    lion = trajectory(rules.lion, betas=(0.9, 0.99), lr=0.25 * 0.1, weight_decay=0.2)
    close(trajectory(rules.lion_muon, betas=(0.9, 0.99), **numbers), lion)
    signum = trajectory(rules.signum, beta=0.9, lr=0.25 * 0.1, weight_decay=0.2)
    close(trajectory(rules.sign_muon, beta=0.9, **numbers), signum)
    close(trajectory(rules.lion, betas=(0.9, 0.9), lr=0.25 * 0.1, weight_decay=0.2), signum)


@pytest.mark.parametrize("nesterov", [False, True])
def test_heavy_ball_and_average_take_the_same_steps_at_the_same_rates(nesterov):
    numbers = {"sign_lr_ratio": 0.3, "phase": rules.every(2)}
    betas = (0.95**2, 0.95) if nesterov else (0.95, 0.95)
    close(
        trajectory(rules.heavy_ball_sign_muon, mu=0.95, nesterov=nesterov, **numbers),
        trajectory(rules.lion_muon, betas=betas, **numbers),
    )


def test_period_starts_spectral_and_random_period_has_its_probability():
    assert [rules.every(3)(t, None) for t in range(7)] == [True, False, False, True, False, False, True]
    assert not any(rules.every(math.inf)(t, None) for t in range(10))
    draws = np.random.default_rng(0).random(20_000)
    phase = rules.at_random(5, lambda t: draws[t])
    assert abs(np.mean([phase(t, None) for t in range(20_000)]) - 0.2) < 0.01
    always = rules.at_random(1, lambda t: draws[t])
    assert all(always(t, None) for t in range(1000))


def test_steps_and_decay_use_the_rate_of_the_phase():
    w = trajectory(rules.lion_muon, betas=(0.9, 0.99), sign_lr_ratio=0.3, phase=rules.every(2), weight_decay=0.5)
    for t in range(1, 8, 2):  # sign steps
        step = (w[t + 1] - (1 - 0.03 * 0.5) * w[t]) / 0.03
        close(np.abs(step), 1.0)
    spectral = (w[1] - (1 - 0.1 * 0.5) * w[0]) / 0.1
    close(spectral, -rules.spectral(gradients((4, 6), 1)[0]["w"]))


@pytest.mark.parametrize("rule", [rules.signum, rules.lion, rules.muon, rules.sign_muon, rules.lion_muon])
def test_iterates_ignore_the_scale_of_the_gradient(rule):
    extra = {"sign_lr_ratio": 0.3, "phase": rules.every(2)} if rule in (rules.sign_muon, rules.lion_muon) else {}
    for factor in (1e-12, 1e12):
        close(trajectory(rule, scale=factor, **extra), trajectory(rule, **extra))
    assert (
        np.abs(trajectory(rules.adamw, scale=1e-12) - trajectory(rules.adamw)).max() > 1e-3
    )  # its epsilon is absolute


def test_stable_rank():
    x = with_singular_values(5, 8, np.array([2.0, 1.0, 1.0, 1.0, 1.0]))
    exact = np.linalg.norm(x) ** 2 / np.linalg.norm(x, 2) ** 2
    close(exact, 2.0)
    close(rules.stable_rank(x, normal(8), iterations=60), exact)
    # A power iteration cannot overestimate sigma_1, so three of them overestimate the stable rank a little.
    assert exact <= rules.stable_rank(x, normal(8)) <= 1.05 * exact
    close(rules.stable_rank(np.outer(normal(4), normal(6)), normal(6), 1), 1.0)
    close(rules.stable_rank(orthogonal(6, 0), normal(6)), 6.0)


def test_stable_rank_trigger():
    def start(t, n):
        return normal(n, seed=t)

    x = with_singular_values(5, 8, np.array([2.0, 1.0, 1.0, 1.0, 1.0]))  # stable rank 2 = 0.4 * 5
    assert rules.when_low_rank(0.45, start, 20)(0, x)
    assert not rules.when_low_rank(0.39, start, 20)(0, x)
    low, high = np.outer(normal(4), normal(6)), orthogonal(6, 0)[:4]
    assert rules.when_low_rank(0.5, start)(0, low)
    assert not rules.when_low_rank(0.5, start)(0, high)


# --- the driver


def test_maximize_is_descent_on_the_negative():
    up, _ = rules.run(rules.lion, [("w", normal(3))], [{"w": normal(3, seed=1)}], lr=0.1, maximize=True)
    down, _ = rules.run(rules.lion, [("w", normal(3))], [{"w": -normal(3, seed=1)}], lr=0.1)
    close(up[1]["w"], down[1]["w"])


def test_tensors_are_independent_and_a_missing_gradient_stops_their_clock():
    numbers = {"lr": 0.1, "sign_lr_ratio": 0.3, "phase": rules.every(2)}
    g = [normal(3, 4, seed=t) for t in range(3)]
    late, states = rules.run(
        rules.lion_muon,
        [("w", normal(3, 4)), ("other", normal(2, 2))],
        [{"w": g[0], "other": None}, {}, {"w": g[1]}],
        **numbers,
    )
    alone, _ = rules.run(rules.lion_muon, [("w", normal(3, 4))], [{"w": g[0]}, {"w": g[1]}], **numbers)
    close(late[3]["w"], alone[2]["w"])
    close(late[2]["w"], late[1]["w"])
    assert states[3]["other"] == {}
    close(late[3]["other"], normal(2, 2))


def test_schedule_and_inputs_untouched():
    w, g = normal(3), normal(3, seed=1)
    w0, g0 = w.copy(), g.copy()
    history, _ = rules.run(rules.signum, [("w", w)], [{"w": g}, {"w": g}], lr=lambda call: [0.1, 0.02][call])
    close(np.abs(history[1]["w"] - history[0]["w"]), 0.1)
    close(np.abs(history[2]["w"] - history[1]["w"]), 0.02)
    assert (w == w0).all()
    assert (g == g0).all()
