"""SAC in float64 numpy: dispersion, the scales of layers, blocks and groups, and whole runs, each from its own formula.

SAC multiplies the step of each block of weight matrices by one number, found from the raw gradients of the model: the
layer with the smaller dispersion and, inside a layer, the block with the larger gradient is given the larger step.
A *pool* is one vector: all gradient elements of a block, a layer, or the model. Everything here sorts whole pools.

"SAC: Scaling with Architectural Constraints", ICLR 2026 submission 4105. Its equations and its Algorithm 1 are two
different methods: ``equations`` and ``algorithm1``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np

from . import rules
from .rules import State
from .soft import lower_median

Key = tuple[int, str]  # (layer, block)
Pools = Mapping[Key, np.ndarray]

# --- dispersion of one pool


def lower_quantile(x: np.ndarray, q: float) -> float:
    """The smallest value that at least the part ``q`` of all do not exceed; at ``q = 1/2`` it is the lower median."""
    return float(np.sort(x, axis=None)[math.ceil(q * np.size(x)) - 1])


def centre_of(x: np.ndarray, centre: str = "median") -> float:
    return {"median": lower_median, "mean": lambda values: float(np.mean(values))}[centre](x)


def mad(x: np.ndarray, centre: str = "median") -> float:
    """``median |x - centre|``, without the factor 1.4826 of a normal distribution: it cancels in every ratio."""
    return lower_median(np.abs(x - centre_of(x, centre)))


def huber(x: np.ndarray, centre: str = "median") -> float:
    """``sigma sqrt(2 mean rho(u))``: ``u = (x - centre) / sigma``, ``sigma = 1.4826 MAD``, ``rho`` bent at 1."""
    sigma = 1.4826 * mad(x, centre)
    if sigma == 0:
        return 0.0
    u = np.abs(x - centre_of(x, centre)) / sigma
    return sigma * math.sqrt(2 * np.where(u <= 1, 0.5 * u * u, u - 0.5).mean())


def iqr(x: np.ndarray) -> float:
    return lower_quantile(x, 0.75) - lower_quantile(x, 0.25)


def mean_deviation(x: np.ndarray) -> float:
    return float(np.abs(x - x.mean()).mean())


def l1(x: np.ndarray) -> float:
    """Per element: a sum would make ratios count parameters."""
    return float(np.abs(x).mean())


def variance(x: np.ndarray) -> float:
    return float(((x - x.mean()) ** 2).mean())


def std(x: np.ndarray) -> float:
    return math.sqrt(variance(x))


def rms(x: np.ndarray) -> float:
    return math.sqrt((x * x).mean())


def maximum(x: np.ndarray) -> float:
    return float(np.abs(x).max())


def mad_of_distances(x: np.ndarray) -> float:
    """MAD of ``d = |x - mean x|``: the denominator of a block in the released code."""
    return mad(np.abs(x - x.mean()))


STATISTICS: dict[str, Callable[[np.ndarray], float]] = {
    "mad": mad,
    "huber": huber,
    "iqr": iqr,
    "mean_deviation": mean_deviation,
    "l1": l1,
    "std": std,
    "rms": rms,
    "variance": variance,
    "maximum": maximum,
}

# --- layers and the model


def blocks_of(pools: Pools, layers: Collection[int]) -> list[np.ndarray]:
    return [x for (layer, _), x in pools.items() if layer in layers]


def dispersion(
    pools: Sequence[np.ndarray], statistic: Callable[[np.ndarray], float] = mad, aggregate: str = "pooled"
) -> float:
    """The dispersion of some blocks together.

    ``"pooled"``: of all their elements. ``"block_mean"``: the unweighted mean of the numbers of the blocks.
    ``"block_median"``: the lower median of the numbers of the blocks, each counted as often as the block has elements.
    """
    if aggregate == "pooled":
        return statistic(np.concatenate(pools))
    numbers = [statistic(x) for x in pools]
    if aggregate == "block_mean":
        return float(np.mean(numbers))
    return lower_median(np.repeat(numbers, [x.size for x in pools]))


def ratios(
    pools: Pools,
    hidden: Collection[int] | None = None,
    *,
    statistic: Callable[[np.ndarray], float] = mad,
    aggregate: str = "pooled",
    eps: float = 1e-12,
    tiny: float = 1e-30,
    smallest: int = 16,
) -> dict[int, float | None]:
    """``(D_g + eps) / (D_l + eps)`` of every layer; None where it means nothing.

    ``hidden`` are the layers that make up the model's ``D_g`` (None: all). It means nothing if either dispersion is
    below ``tiny`` or its pool has less than ``smallest`` elements.
    """

    def known(members: Sequence[np.ndarray]) -> float | None:
        if sum(x.size for x in members) < max(smallest, 1):
            return None
        value = dispersion(members, statistic, aggregate)
        return None if value < tiny else value

    layers = dict.fromkeys(layer for layer, _ in pools)
    whole = known(blocks_of(pools, layers if hidden is None else hidden))
    result: dict[int, float | None] = {}
    for layer in layers:
        own = known(blocks_of(pools, [layer]))
        result[layer] = None if whole is None or own is None else (whole + eps) / (own + eps)
    return result


# --- equations 4 to 9


def layer_factors(found: Mapping[int, float | None], gamma: float) -> dict[int, float | None]:
    """``c_l = ratio^gamma``."""
    return {layer: None if ratio is None else ratio**gamma for layer, ratio in found.items()}


def block_factors(pools: Pools, beta: float, eps: float = 1e-12) -> dict[Key, float]:
    """``s = |B_l| softmax(beta log(RMS + eps))`` over the blocks of each layer; blocks of only zeros are left out."""
    result = {}
    for layer in dict.fromkeys(layer for layer, _ in pools):
        phi = {key: math.log(rms(x) + eps) for key, x in pools.items() if key[0] == layer and x.any()}
        weights = {key: math.exp(beta * (value - max(phi.values()))) for key, value in phi.items()}
        for key, weight in weights.items():
            result[key] = len(weights) * weight / sum(weights.values())
    return result


class Equations(NamedTuple):
    """What one statistics step finds: averaged ``c`` by layer (the next step starts from it), ``s`` and ``S``."""

    averages: dict[int, float]
    c: dict[int, float]
    s: dict[Key, float]
    scales: dict[Key, float]


def equations(
    pools: Pools,
    averages: Mapping[int, float] | None = None,
    *,
    hidden: Collection[int] | None = None,
    gamma: float = 0.5,
    beta: float = 0.5,
    rho: float = 0.1,
    bounds: tuple[float, float] | None = (0.1, 10.0),
    eps: float = 1e-12,
    factors: Collection[str] = ("layer", "block"),
    **numbers,
) -> Equations:
    """``S = clamp(c s)``, with ``c <- (1 - rho) c_old + rho c_new`` that starts at the first ``c`` found.

    Where the ratio of a layer means nothing, ``c = 1`` for this time and its average is left alone. A layer or block
    that is not among the pools (no gradient) is not among the results either, and nor is a block of only zeros.
    """
    averages = dict(averages or {})
    c = {}
    for layer, new in layer_factors(ratios(pools, hidden, eps=eps, **numbers), gamma).items():
        if new is not None:
            averages[layer] = (1 - rho) * averages[layer] + rho * new if layer in averages else new
        c[layer] = 1.0 if new is None else averages[layer]
    s = block_factors(pools, beta, eps)
    if "layer" not in factors:
        c = dict.fromkeys(c, 1.0)
    if "block" not in factors:
        s = dict.fromkeys(s, 1.0)
    low, high = bounds or (0.0, math.inf)
    return Equations(averages, c, s, {key: min(max(c[key[0]] * s[key], low), high) for key in s})


# --- Algorithm 1


def shape_factor(x: np.ndarray, scale: float) -> float:
    """Mean of ``log(1 + |x - mean x| / scale)``: it depends on the tails of the pool, not on its scale."""
    return float(np.log1p(np.abs(x - x.mean()) / scale).mean())


def algorithm1(
    pools: Pools,
    *,
    hidden: Collection[int] | None = None,
    bounds: tuple[float, float] | None = (0.1, 10.0),
    statistic: Callable[[np.ndarray], float] = mad,
    block_scale: Callable[[np.ndarray], float] | None = None,
    gaussian: float = 1.0,
    eps: float = 0.0,
    tiny: float = 1e-30,
    **numbers,
) -> dict[Key, float]:
    """``S = clamp(D_g / D_l * shape_factor(block))``; a block of only zeros is not among the results.

    Args:
        pools: The gradients by block.
        hidden: Layers that make up the model's dispersion.
        bounds: Of the product.
        statistic: The dispersion of layers and model.
        block_scale: The denominator of a block; None: ``statistic``. The released code has ``mad_of_distances``.
        gaussian: What the shape factor is divided by: 1 as printed, or its value for a Gaussian block.
        eps: Added to both dispersions.
        tiny: A block whose scale is below has the factor 1; so has a layer without a ratio.
        **numbers: Passed to ``ratios``.
    """
    found = ratios(pools, hidden, statistic=statistic, eps=eps, tiny=tiny, **numbers)
    low, high = bounds or (0.0, math.inf)
    result = {}
    for (layer, block), x in pools.items():
        if not x.any():
            continue
        scale = (block_scale or statistic)(x)
        s = 1.0 if scale < tiny else shape_factor(x, scale) / gaussian
        ratio = found[layer]
        result[layer, block] = min(max((1.0 if ratio is None else ratio) * s, low), high)
    return result


def gaussian_shape_factor(scale: float) -> float:
    """``E log(1 + |z| / scale)`` of a standard Gaussian ``z``, by the trapezoidal rule."""
    z = np.linspace(0, 12, 120_001)
    return float(np.trapezoid(np.log1p(z / scale) * np.exp(-z * z / 2), z)) * math.sqrt(2 / math.pi)


# --- groups inside the tensors of a block


def group_factors(
    groups: Sequence[np.ndarray], beta: float = 0.25, bounds: tuple[float, float] = (0.5, 2.0), eps: float = 1e-12
) -> list[float]:
    """``r_k`` proportional to ``(RMS_k + eps)^beta``, of mean 1 over the elements of the block, then clamped.

    Groups of only zeros have 1 and no part in the mean.
    """
    used = [k for k, x in enumerate(groups) if x.any()]
    weights = {k: math.exp(beta * math.log(rms(groups[k]) + eps)) for k in used}
    mean = sum(weights[k] * groups[k].size for k in used) / max(sum(groups[k].size for k in used), 1)
    return [min(max(weights[k] / mean, bounds[0]), bounds[1]) if k in weights else 1.0 for k in range(len(groups))]


# --- whole runs


def sgd(w, g, state: State, t: int, *, lr: float, momentum: float = 0.0, weight_decay: float = 0.0):
    """``G' = G + wd W;  B = mu B + G'`` (first ``B = G'``)``;  W = W - lr B``: the decay is part of the gradient."""
    g = g + weight_decay * w
    b = momentum * state["buffer"] + g if "buffer" in state else g
    return w - lr * b, {"buffer": b}


#: Rules whose weight decay is ``W <- (1 - lr wd) W``, which is not scaled.
DECOUPLED = (rules.adamw, rules.lion)


def pool(
    gradients: Mapping[str, np.ndarray | None], partition: Mapping[str, Key], nonzero_rows: Collection[str] = ()
) -> dict[Key, np.ndarray]:
    """The gradients of each block as one vector; of the tensors ``nonzero_rows`` only the rows that are not all 0."""
    pieces: dict[Key, list[np.ndarray]] = {}
    for name, key in partition.items():
        g = gradients.get(name)
        if g is None:
            continue
        g = np.asarray(g, dtype=np.float64)
        if name in nonzero_rows:
            g = g[g.reshape(len(g), -1).any(axis=1)]
        pieces.setdefault(key, []).append(g.ravel())
    return {key: np.concatenate(x) for key, x in pieces.items() if sum(map(np.size, x))}


def run(
    rule: Callable,
    parameters: Sequence[tuple[str, np.ndarray]],
    gradients: Sequence[Mapping[str, np.ndarray | None]],
    partition: Mapping[str, Key],
    *,
    lr: float | Callable[[int], float],
    weight_decay: float = 0.0,
    scale_weight_decay: bool = False,
    mode: str = "equations",
    interval: int = 10,
    nonzero_rows: Collection[str] = (),
    groups: Mapping[str, np.ndarray] | None = None,
    group_numbers: Mapping | None = None,
    base: Mapping | None = None,
    **numbers,
) -> tuple[list[dict[str, np.ndarray]], list[dict[Key, float]]]:
    """SAC over ``rules.adamw``, ``rules.lion`` or ``sgd``: weights after 0, 1, ... steps and the scales of each step.

    Args:
        rule: The base.
        parameters: Names and first values.
        gradients: One dict a step; a missing or None gradient leaves the tensor and its state alone.
        partition: The block of each tensor that is scaled; the step of any other is that of the base.
        lr: A number, or a function of the call number for a schedule.
        weight_decay: Of all tensors.
        scale_weight_decay: Decoupled decay times the scale too. Coupled decay is part of the gradient of the base, so
            it is always scaled (and never in the statistics).
        mode: ``"equations"`` or ``"algorithm1"``.
        interval: Statistics at steps 0, interval, ...: scales of a step are of its own gradients. With a gradient that
            is not finite they stay as they are, and so does the scale of a block that has none.
        nonzero_rows: Embeddings.
        groups: Integer labels in the shape of the tensor; what they divide has the group factor in addition.
        group_numbers: Passed to ``group_factors``.
        base: Passed to the rule.
        **numbers: Passed to ``equations`` or ``algorithm1``.
    """
    w = {name: np.array(value, dtype=np.float64) for name, value in parameters}
    states: dict[str, State] = {name: {} for name in w}
    taken = dict.fromkeys(w, 0)
    scales = dict.fromkeys(partition.values(), 1.0)
    within: dict[str, np.ndarray] = {name: np.ones_like(value) for name, value in w.items()}
    averages: dict[int, float] = {}
    weight_history, scale_history = [dict(w)], []
    for call, step_gradients in enumerate(gradients):
        g = {name: np.asarray(x, dtype=np.float64) for name in w if (x := step_gradients.get(name)) is not None}
        if call % interval == 0 and all(np.isfinite(x).all() for name, x in g.items() if name in partition):
            pools = pool(g, partition, nonzero_rows)
            if mode == "equations":
                found = equations(pools, averages, **numbers)
                averages = found.averages
                scales = scales | found.scales
            else:
                scales = scales | algorithm1(pools, **numbers)
            divided = [name for name in g if groups and name in groups]
            for key in dict.fromkeys(partition[name] for name in divided):
                members = [name for name in divided if partition[name] == key]
                labels = [(name, k) for name in members for k in np.unique(groups[name])]
                r = group_factors([g[n][groups[n] == k] for n, k in labels], **(group_numbers or {}))
                for (name, k), value in zip(labels, r, strict=True):
                    within[name] = np.where(groups[name] == k, value, within[name])
        rate = lr(call) if callable(lr) else lr
        for name, x in g.items():
            scale = scales[partition[name]] if name in partition else 1.0
            step = partial(rule, w[name], x, states[name], taken[name], lr=rate, **(base or {}))
            if rule in DECOUPLED:
                moved, states[name] = step(weight_decay=0.0)
                decay = rate * weight_decay * (scale if scale_weight_decay else 1.0)
            else:
                moved, states[name] = step(weight_decay=weight_decay)
                decay = 0.0
            w[name] = (1 - decay) * w[name] + scale * within[name] * (moved - w[name])
            taken[name] += 1
        weight_history.append(dict(w))
        scale_history.append(dict(scales))
    return weight_history, scale_history
