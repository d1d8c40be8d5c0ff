"""The soft family in float64 numpy: maps, schedule, fit and rules, each written out from its own formula.

A soft map replaces ``sign`` by ``phi(tau x)``, elementwise or on singular values: an infinite temperature ``tau`` is
the hard map, a small one is the linear map ``tau x``. The temperature falls through a transition of steps
``[start, end)``: at progress ``p`` the share ``p`` of a sample (elements, or singular values) may be below saturation,
where the sample is modelled as ``|m|`` with ``m`` Cauchy, of centre and spread estimated once, at the first step of the
transition.
"Softsign: Smooth Sign in Your Optimizer For Better Parameter Heterogeneity Handling", arXiv 2605.31371.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from . import newton_schulz as ns
from .rules import Phase, State
from .views import FLAT, View, per_matrix

# --- the maps and their convex functions


class Relaxation(NamedTuple):
    """An odd map ``phi = (V*)'``, its inverse on [0, 1), the regulariser ``V`` and the conjugate ``V*``, per element.

    ``V*(y) = sup_d <y, d> - V(d)``, so ``V(phi(y)) + V*(y) = y phi(y)`` (Fenchel-Young, with equality).
    """

    map: Callable[[np.ndarray], np.ndarray]
    inverse: Callable[[float], float]
    regulariser: Callable[[np.ndarray], np.ndarray]
    conjugate: Callable[[np.ndarray], np.ndarray]


def _x_log_x(x: np.ndarray) -> np.ndarray:
    return x * np.log(np.where(x > 0, x, 1.0))


RELAXATIONS = {
    "tanh": Relaxation(
        map=np.tanh,
        inverse=math.atanh,
        regulariser=lambda d: 0.5 * (_x_log_x(1 + d) + _x_log_x(1 - d)),
        conjugate=lambda y: np.logaddexp(y, -y) - math.log(2),  # ln cosh y
    ),
    "algebraic": Relaxation(
        map=lambda y: y / np.hypot(1.0, y),
        inverse=lambda x: x / math.sqrt(1 - x * x),
        regulariser=lambda d: 1 - np.sqrt(1 - d * d),
        conjugate=lambda y: np.hypot(1.0, y) - 1,
    ),
    "clip": Relaxation(
        map=lambda y: np.clip(y, -1.0, 1.0),
        inverse=lambda x: x,
        regulariser=lambda d: 0.5 * d * d,  # inside the box [-1, 1], infinite outside
        conjugate=lambda y: np.where(np.abs(y) <= 1, 0.5 * y * y, np.abs(y) - 0.5),  # Huber
    ),
}


def soft_sign(x: np.ndarray, temperature: float, relaxation: str = "tanh") -> np.ndarray:
    """``phi(temperature x)`` elementwise; exactly ``sign(x)`` at an infinite temperature."""
    x = np.asarray(x, dtype=np.float64)
    return np.sign(x) if math.isinf(temperature) else RELAXATIONS[relaxation].map(temperature * x)


def soft_polar(x: np.ndarray, temperature: float) -> np.ndarray:
    """``U diag(phi(temperature s)) V^T`` with the algebraic ``phi``, by SVD; at infinity the polar factor."""
    if math.isinf(temperature):
        return ns.polar_exact(x)
    u, s, vt = np.linalg.svd(np.asarray(x, dtype=np.float64), full_matrices=False)
    return u * soft_sign(s, temperature, "algebraic") @ vt


def soft_polar_by_root(x: np.ndarray, temperature: float) -> np.ndarray:
    """The same as ``M (M^T M + temperature^-2 I)^(-1/2)``, by the eigenvalues of that sum.

    Squaring loses digits: the relative error is about ``1e-16 (temperature sigma_1)^2``.
    """
    values, vectors = np.linalg.eigh(x.T @ x + temperature**-2 * np.eye(x.shape[1]))
    return x @ (vectors / np.sqrt(values) @ vectors.T)


def augmented_polar(
    x: np.ndarray, temperature: float, polar: Callable[[np.ndarray], np.ndarray] = ns.newton_schulz
) -> np.ndarray:
    """The same as the first block of ``polar([M, I / temperature])``; a tall matrix is transposed before.

    It is as exact as ``polar``. At an infinite temperature it is ``polar(M)`` itself.
    """
    x = np.asarray(x, dtype=np.float64)
    if math.isinf(temperature):
        return polar(x)
    if x.shape[0] > x.shape[1]:
        return augmented_polar(x.T, temperature, polar).T
    return polar(np.hstack([x, np.eye(x.shape[0]) / temperature]))[:, : x.shape[1]]


def coupled_soft_polar(x: np.ndarray, temperature: float, steps: int = 20, ridge: float = 1e-7) -> np.ndarray:
    """The same as ``A^(-1/2) M`` with ``A = M M^T + temperature^-2 I`` by the coupled cubic iteration.

    ``Y = A / |A|_F + ridge I, Z = I``, then ``T = (3 I - Z Y) / 2, Y <- Y T, Z <- T Z``; the result is
    ``Z M / sqrt(|A|_F)``. The short side comes first. The ridge is relative: it keeps a singular ``A`` from diverging.
    The released code is ``steps=5, ridge=0`` (in bfloat16): far from converged, which is why it is only a control.
    """
    x = np.asarray(x, dtype=np.float64)
    if x.shape[0] > x.shape[1]:
        return coupled_soft_polar(x.T, temperature, steps, ridge).T
    if not x.any():
        return np.zeros_like(x)
    one = np.eye(x.shape[0])
    a = x @ x.T + temperature**-2 * one
    norm = math.sqrt((a * a).sum())
    y, z = a / norm + ridge * one, one
    for _ in range(steps):
        t = (3 * one - z @ y) / 2
        y, z = y @ t, t @ z
    return z @ x / math.sqrt(norm)


# --- the model of the sample


def folded_cauchy_cdf(q: float, centre: float, spread: float) -> float:
    """``P(|m| <= q) = (atan((q - centre) / spread) + atan((q + centre) / spread)) / pi`` for a Cauchy ``m``.

    Written as one angle, between the vectors ``(spread, centre + q)`` and ``(spread, centre - q)``, because the two
    arctangents cancel when the probability is small.
    """
    return math.atan2(2 * q * spread, spread**2 + centre**2 - q**2) / math.pi


def folded_cauchy_survival(q: float, centre: float, spread: float) -> float:
    """``P(|m| > q)``: the rest of the straight angle, which keeps its digits in the tail."""
    return math.atan2(2 * q * spread, q**2 - spread**2 - centre**2) / math.pi


def folded_cauchy_quantile(p: float, centre: float, spread: float) -> float:
    """The ``q >= 0`` with ``folded_cauchy_cdf(q) = p``, by bisection until no float lies between the two ends."""
    if not 0 <= p < 1:
        raise ValueError(p)
    unit = spread + abs(centre)  # so that no square underflows
    centre, spread = centre / unit, spread / unit

    def below(q: float) -> bool:
        if p > 0.5:
            return folded_cauchy_survival(q, centre, spread) > 1 - p
        return folded_cauchy_cdf(q, centre, spread) < p

    low, high = 0.0, 1.0
    while below(high):
        high *= 2
    while True:
        middle = (low + high) / 2
        if middle in (low, high):
            return unit * high if p > 0 else 0.0
        low, high = (middle, high) if below(middle) else (low, middle)


def lower_median(x: np.ndarray) -> float:
    """The middle of the sorted values, the lower of the two for an even count (as ``torch.median``)."""
    return float(np.sort(x, axis=None)[(np.size(x) - 1) // 2])


class Fit(NamedTuple):
    """Median, median distance from it (no factor) and root mean square of a sample."""

    centre: float
    spread: float
    rms: float


def fit_sample(sample: np.ndarray) -> Fit:
    """Fit all values pooled; exact zeros are left out when they are more than half. Nothing left: three zeros."""
    sample = np.asarray(sample, dtype=np.float64).ravel()
    if 2 * np.count_nonzero(sample) < sample.size:
        sample = sample[sample != 0]
    if not sample.size:
        return Fit(0.0, 0.0, 0.0)
    centre = lower_median(sample)
    return Fit(centre, lower_median(np.abs(sample - centre)), math.sqrt((sample * sample).mean()))


def singular_values(x: np.ndarray) -> np.ndarray:
    """Those of one matrix ``(m, n)``; exact zeros below ``max(m, n)`` float32 units of rounding of the largest."""
    s = np.linalg.svd(np.asarray(x, dtype=np.float64), compute_uv=False)
    return np.where(s < s.max() * max(x.shape) * np.finfo(np.float32).eps, 0.0, s)


def pooled_elements(tensors: Sequence[np.ndarray], view: View = FLAT) -> np.ndarray:
    """All elements of all tensors."""
    return np.concatenate([np.ravel(x) for x in tensors])


def pooled_singular_values(tensors: Sequence[np.ndarray], view: View = FLAT) -> np.ndarray:
    """All singular values of all matrices of all tensors."""
    return np.concatenate([singular_values(matrix) for x in tensors for matrix in view.split(x)])


# --- the schedule


def progress(clock: int, start: int, end: int) -> float:
    """``p``: 0 until ``start``, then ``(clock - start) / (end - start)``; from ``end`` on the value of ``end - 1``."""
    return (min(max(clock, start), end - 1) - start) / (end - start)


def margin(relaxation: str, eps: float = 1e-4) -> float:
    """``phi^-1(1 - eps)``: from here on the map counts as saturated."""
    return RELAXATIONS[relaxation].inverse(1 - eps)


def temperature(  # noqa: PLR0917 -- the schedule in the order of its formula
    p: float, centre: float, spread: float, margin: float, lowest: float = 1.0, highest: float = 1e9
) -> float:
    """``margin`` over the ``p``-quantile, clipped; infinite (the hard map) at ``p = 0`` and where nothing spreads."""
    if p == 0 or spread == 0:
        return math.inf
    return max(lowest, min(highest, margin / folded_cauchy_quantile(p, centre, spread)))


# --- the steps of the rules


def sign_step(
    d: np.ndarray,
    p: float,
    fit: Fit | None,
    *,
    relaxation: str = "tanh",
    eps: float = 1e-4,
    temperature_range: tuple[float, float] = (1.0, 1e9),
) -> np.ndarray:
    """The map of a direction at progress ``p``; ``fit`` (of pooled elements) is not looked at while ``p = 0``.

    ``relaxation="switch"`` is the control that ends the sign steps at once: ``d / fit.rms``, whose root mean square at
    the fit is that of the signs.
    """
    if p == 0 or fit.rms == 0:
        return np.sign(d)
    if relaxation == "switch":
        return d / fit.rms
    return soft_sign(d, temperature(p, fit.centre, fit.spread, margin(relaxation, eps), *temperature_range), relaxation)


def spectral_step(
    d: np.ndarray,
    p: float,
    fit: Fit | None,
    *,
    relaxation: str = "algebraic",
    eps: float = 1e-4,
    temperature_range: tuple[float, float] = (1.0, 1e9),
    view: View = FLAT,
    scale: str = "keller",
    steps: int = 5,
    coefficients: str | list[ns.Triple] = "keller",
    exact: bool = False,
) -> np.ndarray:
    """The scaled map of each matrix of ``d``; ``fit`` is of pooled singular values.

    The polar factor is that of the iteration or (``exact``) of the SVD, the soft one uses the same on the augmented
    matrix. ``relaxation`` is also ``"switch"``: ``scale d / fit.rms``, or ``"truncated"``: five coupled steps.
    """

    def soft(matrix: np.ndarray) -> np.ndarray:
        if relaxation == "switch" and p > 0 and fit.rms > 0:
            return matrix / fit.rms
        if p == 0:
            tau = math.inf
        else:
            name = "algebraic" if relaxation in ("switch", "truncated") else relaxation
            tau = temperature(p, fit.centre, fit.spread, margin(name, eps), *temperature_range)
        if relaxation == "truncated" and not math.isinf(tau):
            return coupled_soft_polar(matrix, tau, steps=5, ridge=0.0)
        if exact:
            return soft_polar(matrix, tau)
        return augmented_polar(matrix, tau, lambda x: ns.newton_schulz(x, steps, coefficients))

    return per_matrix(lambda matrix: ns.scale(*matrix.shape, scale) * soft(matrix), d, view)


# --- the rules, in the form of rules.py with the run's step ``clock`` and the fit of the transition


def soft_signum(
    w,
    g,
    state: State,
    t: int,
    *,
    lr: float,
    clock: int,
    transition: tuple[int, int],
    fit: Fit | None = None,
    betas=(0.9, 0.9),
    weight_decay: float = 0.0,
    **geometry,
):
    """``D = b1 M + (1 - b1) G;  W = (1 - lr wd) W - lr phi(tau D);  M = b2 M + (1 - b2) G``."""
    m = state.get("momentum", np.zeros_like(w))
    d = betas[0] * m + (1 - betas[0]) * g
    step = sign_step(d, progress(clock, *transition), fit, **geometry)
    return (1 - lr * weight_decay) * w - lr * step, {"momentum": betas[1] * m + (1 - betas[1]) * g}


def soft_muon(
    w,
    g,
    state: State,
    t: int,
    *,
    lr: float,
    clock: int,
    transition: tuple[int, int],
    fit: Fit | None = None,
    betas=(0.95**2, 0.95),
    weight_decay: float = 0.0,
    **geometry,
):
    """``D = b1 M + (1 - b1) G;  W = (1 - lr wd) W - lr scale Phi_tau(D);  M = b2 M + (1 - b2) G``."""
    m = state.get("momentum", np.zeros_like(w))
    d = betas[0] * m + (1 - betas[0]) * g
    step = spectral_step(d, progress(clock, *transition), fit, **geometry)
    return (1 - lr * weight_decay) * w - lr * step, {"momentum": betas[1] * m + (1 - betas[1]) * g}


def soft_lion_muon(
    w,
    g,
    state: State,
    t: int,
    *,
    lr: float,
    sign_lr_ratio: float,
    phase: Phase,
    clock: int,
    transition: tuple[int, int],
    fit: Fit | None = None,
    sign_fit: Fit | None = None,
    betas=(0.9, 0.99),
    weight_decay: float = 0.0,
    relaxation: str = "algebraic",
    sign_relaxation: str = "tanh",
    eps: float = 1e-4,
    temperature_range: tuple[float, float] = (1.0, 1e9),
    **geometry,
):
    """LionMuon with both maps soft, each with its own fit and margin; the decay uses the rate of the step taken.

    ``D = b1 M + (1 - b1) G``; spectral: ``W = (1 - lr wd) W - lr scale Phi_tau(D)``; sign, at
    ``r = sign_lr_ratio lr``: ``W = (1 - r wd) W - r phi(tau' D)``; always ``M = b2 M + (1 - b2) G``.
    """
    m = state.get("momentum", np.zeros_like(w))
    d = betas[0] * m + (1 - betas[0]) * g
    p, common = progress(clock, *transition), {"eps": eps, "temperature_range": temperature_range}
    if phase(t, d.reshape(d.shape[0], -1)):
        w = (1 - lr * weight_decay) * w - lr * spectral_step(d, p, fit, relaxation=relaxation, **common, **geometry)
    else:
        rate = sign_lr_ratio * lr
        w = (1 - rate * weight_decay) * w - rate * sign_step(d, p, sign_fit, relaxation=sign_relaxation, **common)
    return w, {"momentum": betas[1] * m + (1 - betas[1]) * g}


#: What each rule is given: option -> function that pools the sample of that fit.
FITS = {
    soft_signum: {"fit": pooled_elements},
    soft_muon: {"fit": pooled_singular_values},
    soft_lion_muon: {"fit": pooled_singular_values, "sign_fit": pooled_elements},
}


def run_soft(
    rule: Callable,
    parameters: Sequence[tuple[str, np.ndarray]],
    gradients: Sequence[dict[str, np.ndarray | None]],
    *,
    lr: float | Callable[[int], float],
    betas: tuple[float, float],
    transition: tuple[int, int],
    clock: int = 0,
    sample: str = "direction",
    pool: str = "rule",
    refresh_every: int = 0,
    maximize: bool = False,
    **numbers,
) -> tuple[list[dict[str, np.ndarray]], list[dict[str, State]], dict[str, dict[str, Fit]]]:
    """As ``rules.run``, with the fit: made at the first step of the transition, before any update of that step.

    Args:
        rule: ``soft_signum``, ``soft_muon`` or ``soft_lion_muon``.
        parameters: Names and first values.
        gradients: One dict a step. A missing or None gradient leaves that tensor and its state alone, and out of the
            fit. A step without any gradient makes no fit: the next one that has one does.
        lr: A number, or a function of the call number (0, 1, ...) for a schedule.
        betas: ``(direction, buffer)``.
        transition: First step that is fitted, and the first step after the transition.
        clock: Step of the run at the first call.
        sample: ``"direction"``: what is mapped. ``"gradient"``: the raw gradient, as the released code.
        pool: ``"rule"``: all tensors together. ``"tensor"``: each its own (each must have a gradient at the fit).
        refresh_every: Fit again every so many steps of the transition; 0: never.
        maximize: Ascend instead of descending.
        **numbers: Passed to the rule.

    Returns:
        Tensors and states after 0, 1, ... steps, and the last fits: tensor name -> option of the rule -> fit.
    """
    start, end = transition
    w = {name: np.array(value, dtype=np.float64) for name, value in parameters}
    states: dict[str, State] = {name: {} for name in w}
    fits: dict[str, dict[str, Fit]] = {name: {} for name in w}
    taken = dict.fromkeys(w, 0)
    weight_history, state_history = [dict(w)], [dict(states)]
    fitted = False
    for call, step_gradients in enumerate(gradients):
        now = clock + call
        g = {name: np.asarray(x, dtype=np.float64) for name in w if (x := step_gradients.get(name)) is not None}
        if maximize:
            g = {name: -x for name, x in g.items()}
        refresh = refresh_every > 0 and start < now < end and (now - start) % refresh_every == 0
        if g and now >= start and (not fitted or refresh):
            samples = g
            if sample == "direction":
                samples = {
                    name: betas[0] * states[name].get("momentum", np.zeros_like(x)) + (1 - betas[0]) * x
                    for name, x in g.items()
                }
            pools = [list(w)] if pool == "rule" else [[name] for name in w]
            for names in pools:
                together = [samples[name] for name in names if name in samples]
                made = {
                    option: fit_sample(pooled(together, numbers.get("view", FLAT)))
                    for option, pooled in FITS[rule].items()
                }
                fits.update(dict.fromkeys(names, made))
            fitted = True
        rate = lr(call) if callable(lr) else lr
        for name, x in g.items():
            w[name], states[name] = rule(
                w[name],
                x,
                states[name],
                taken[name],
                lr=rate,
                betas=betas,
                clock=now,
                transition=transition,
                **fits[name],
                **numbers,
            )
            taken[name] += 1
        weight_history.append(dict(w))
        state_history.append(dict(states))
    return weight_history, state_history, fits
