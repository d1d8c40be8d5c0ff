"""The update rules in float64 numpy, one tensor and one step at a time, each written out from its own formula.

Every rule has the form ``rule(w, g, state, t, **numbers) -> (w, state)`` where ``state`` is a dict of arrays (empty
before the first step) and ``t`` counts from 0 the steps this tensor has taken. ``run`` drives a rule over named tensors
and steps. The rules are deliberately not built on each other: that they agree where they should is a test.

Notation: ``lr`` is the rate of a spectral step, ``sign_lr_ratio * lr`` of a sign step, ``betas = (direction, buffer)``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from . import newton_schulz as ns
from .views import FLAT, View, per_matrix

State = dict[str, np.ndarray]
Phase = Callable[[int, np.ndarray], bool]  # (t, direction as one matrix) -> spectral?


# --- maps and phases


def spectral(
    d: np.ndarray,
    *,
    view: View = FLAT,
    scale: str = "match_rms",
    steps: int = 5,
    coefficients: str | list[ns.Triple] = "keller",
    exact: bool = False,
) -> np.ndarray:
    """The scaled polar factor of each matrix of ``d``, by the iteration or (``exact``) by SVD."""

    def one(matrix: np.ndarray) -> np.ndarray:
        polar = ns.polar_exact(matrix) if exact else ns.newton_schulz(matrix, steps, coefficients)
        return ns.scale(*matrix.shape, scale) * polar

    return per_matrix(one, d, view)


def every(period: float) -> Phase:
    """Spectral when ``t mod period == 0``, so step 0 is; an infinite period is never spectral."""
    if math.isinf(period):
        return lambda t, d: False
    return lambda t, d: t % int(period) == 0


def at_random(period: float, uniform: Callable[[int], float]) -> Phase:
    """Spectral with probability ``1 / period``; ``uniform(t)`` in [0, 1) is the draw of step ``t`` for all tensors."""
    return lambda t, d: uniform(t) < 1 / period


def power_iteration(d: np.ndarray, start: np.ndarray, iterations: int = 3) -> float:
    """Estimate the largest singular value of ``d (m, n)`` by ``iterations`` of ``v <- D^T D v`` from ``start (n,)``.

    The value returned is ``|D v|`` for the last unit vector ``v``: a lower bound, exact as the iterations grow.
    """
    v = start / np.linalg.norm(start)
    for _ in range(iterations):
        v = d.T @ (d @ v)
        v = v / np.linalg.norm(v)
    return float(np.linalg.norm(d @ v))


def stable_rank(d: np.ndarray, start: np.ndarray, iterations: int = 3) -> float:
    """``|D|_F^2 / sigma_1^2`` with the largest singular value from ``power_iteration``."""
    return float((d * d).sum()) / power_iteration(d, start, iterations) ** 2


def when_low_rank(threshold: float, start: Callable[[int, int], np.ndarray], iterations: int = 3) -> Phase:
    """Spectral while the stable rank of the direction is at most ``threshold * min(m, n)``, from ``start(t, n)``."""
    return lambda t, d: stable_rank(d, start(t, d.shape[1]), iterations) <= threshold * min(d.shape)


# --- the rules


def signum(w, g, state: State, t: int, *, lr: float, beta: float = 0.9, weight_decay: float = 0.0):
    """``M = b M + (1 - b) G;  W = (1 - lr wd) W - lr sign(M)``."""
    m = beta * state.get("momentum", np.zeros_like(w)) + (1 - beta) * g
    return (1 - lr * weight_decay) * w - lr * np.sign(m), {"momentum": m}


def lion(w, g, state: State, t: int, *, lr: float, betas=(0.9, 0.99), weight_decay: float = 0.0):
    """``D = b1 M + (1 - b1) G;  W = (1 - lr wd) W - lr sign(D);  M = b2 M + (1 - b2) G``."""
    m = state.get("momentum", np.zeros_like(w))
    d = betas[0] * m + (1 - betas[0]) * g
    return (1 - lr * weight_decay) * w - lr * np.sign(d), {"momentum": betas[1] * m + (1 - betas[1]) * g}


def muon(w, g, state: State, t: int, *, lr: float, beta=0.9, nesterov=False, weight_decay: float = 0.0, **geometry):
    """``M = b M + (1 - b) G;  D = M,  or with Nesterov  b M + (1 - b) G;  W = (1 - lr wd) W - lr spectral(D)``."""
    m = beta * state.get("momentum", np.zeros_like(w)) + (1 - beta) * g
    d = beta * m + (1 - beta) * g if nesterov else m
    return (1 - lr * weight_decay) * w - lr * spectral(d, **geometry), {"momentum": m}


def sign_muon(w, g, state: State, t: int, *, lr, sign_lr_ratio, beta=0.9, phase: Phase, weight_decay=0.0, **geometry):
    """The EMA ``M = b M + (1 - b) G``, then a spectral step with ``lr`` or a sign step with ``sign_lr_ratio * lr``."""
    m = beta * state.get("momentum", np.zeros_like(w)) + (1 - beta) * g
    if phase(t, m.reshape(m.shape[0], -1)):
        rate, step = lr, spectral(m, **geometry)
    else:
        rate, step = sign_lr_ratio * lr, np.sign(m)
    return (1 - rate * weight_decay) * w - rate * step, {"momentum": m}


def lion_muon(
    w, g, state: State, t: int, *, lr, sign_lr_ratio, betas=(0.9, 0.99), phase: Phase, weight_decay=0.0, **geometry
):
    """Direction from the old buffer, buffer after it; the decay uses the rate of the step taken.

    ``D = b1 M + (1 - b1) G``; spectral: ``W = (1 - lr wd) W - lr scale NS(D)``; sign, with ``r = sign_lr_ratio * lr``:
    ``W = (1 - r wd) W - r sign(D)``; always ``M = b2 M + (1 - b2) G``.
    """
    m = state.get("momentum", np.zeros_like(w))
    d = betas[0] * m + (1 - betas[0]) * g
    if phase(t, d.reshape(d.shape[0], -1)):
        w = (1 - lr * weight_decay) * w - lr * spectral(d, **geometry)
    else:
        rate = sign_lr_ratio * lr
        w = (1 - rate * weight_decay) * w - rate * np.sign(d)
    return w, {"momentum": betas[1] * m + (1 - betas[1]) * g}


def heavy_ball_sign_muon(
    w, g, state: State, t: int, *, lr, sign_lr_ratio, mu=0.95, nesterov=False, phase: Phase, **geometry
):
    """The older form ``B = mu B + G``, direction ``B`` or ``G + mu B``, no decay of the weights.

    ``B`` is the EMA times ``1 / (1 - mu)`` at every step, and both maps ignore scale, so the iterates are those of the
    EMA at the *same* rates.
    """
    b = mu * state.get("momentum", np.zeros_like(w)) + g
    d = g + mu * b if nesterov else b
    if phase(t, d.reshape(d.shape[0], -1)):
        return w - lr * spectral(d, **geometry), {"momentum": b}
    return w - sign_lr_ratio * lr * np.sign(d), {"momentum": b}


def adamw(w, g, state: State, t: int, *, lr, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0):
    """Decoupled decay; epsilon is added to the bias-corrected root, as in ``torch.optim.AdamW``."""
    m = betas[0] * state.get("momentum", np.zeros_like(w)) + (1 - betas[0]) * g
    v = betas[1] * state.get("second", np.zeros_like(w)) + (1 - betas[1]) * g * g
    m_hat = m / (1 - betas[0] ** (t + 1))
    v_hat = v / (1 - betas[1] ** (t + 1))
    w = (1 - lr * weight_decay) * w - lr * m_hat / (np.sqrt(v_hat) + eps)
    return w, {"momentum": m, "second": v}


# --- the driver


def run(
    rule: Callable,
    parameters: Sequence[tuple[str, np.ndarray]],
    gradients: Sequence[dict[str, np.ndarray | None]],
    *,
    lr: float | Callable[[int], float],
    maximize: bool = False,
    **numbers,
) -> tuple[list[dict[str, np.ndarray]], list[dict[str, State]]]:
    """Drive ``rule`` and return the tensors and the states after 0, 1, ... steps (so one entry more than gradients).

    Args:
        rule: One of the functions above.
        parameters: Names and first values.
        gradients: One dict a step. A missing or None gradient leaves that tensor, its state and its step count alone.
        lr: A number, or a function of the call number (0, 1, ...) for a schedule.
        maximize: Ascend instead of descending.
        **numbers: Passed to the rule.
    """
    w = {name: np.array(value, dtype=np.float64) for name, value in parameters}
    states: dict[str, State] = {name: {} for name in w}
    taken = dict.fromkeys(w, 0)
    weight_history, state_history = [dict(w)], [dict(states)]
    for call, step_gradients in enumerate(gradients):
        rate = lr(call) if callable(lr) else lr
        for name in taken:
            g = step_gradients.get(name)
            if g is None:
                continue
            g = np.asarray(g, dtype=np.float64)
            w[name], states[name] = rule(w[name], -g if maximize else g, states[name], taken[name], lr=rate, **numbers)
            taken[name] += 1
        weight_history.append(dict(w))
        state_history.append(dict(states))
    return weight_history, state_history
