"""SGG in float64 numpy: clusters of the momentum inside each tensor, a scale per cluster, and whole runs.

"Taming LLMs by Scaling Learning Rates with Gradient Grouping", arXiv 2506.01049.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from .rules import State
from .sac import DECOUPLED
from .soft import lower_median

# --- clusters of numbers on a line


def within(x: np.ndarray, ids: np.ndarray) -> float:
    """Sum of squared distances of the elements from the mean of their cluster."""
    return float(sum(((x[ids == k] - x[ids == k].mean()) ** 2).sum() for k in np.unique(ids)))


def best_clusters(x: np.ndarray, k: int) -> np.ndarray:
    """Ids 0, 1, ... (by centre) of the clustering with the least ``within``; the best of all, not a local minimum.

    Clusters on a line are intervals. ``cost[j, n]``, the least of the ``n`` smallest elements in ``j`` clusters, is the
    least over ``i`` of ``cost[j - 1, i]`` and one more cluster of the elements ``i`` to ``n``. For small ``x`` only.
    """
    x = np.asarray(x, dtype=np.float64).ravel()
    order = np.argsort(x, kind="stable")
    values, size = x[order], x.size

    def alone(i: int, n: int) -> float:
        return float(((values[i:n] - values[i:n].mean()) ** 2).sum())

    cost = {(0, 0): 0.0}
    begin: dict[tuple[int, int], int] = {}
    for j in range(1, min(k, size) + 1):
        for n in range(j, size + 1):
            options = {i: cost[j - 1, i] + alone(i, n) for i in range(j - 1, n) if (j - 1, i) in cost}
            begin[j, n] = min(options, key=options.__getitem__)
            cost[j, n] = options[begin[j, n]]
    ids, end = np.empty(size, dtype=int), size
    for j in range(min(k, size), 0, -1):
        ids[order[begin[j, end] : end]] = j - 1
        end = begin[j, end]
    return ids


def nearest(x: np.ndarray, centres: np.ndarray) -> np.ndarray:
    """The number of the nearest centre of each element; of two as near, the lower."""
    return np.abs(np.asarray(x)[..., None] - centres).argmin(axis=-1)


def lloyd(x: np.ndarray, centres: Sequence[float] | np.ndarray, rounds: int = 100) -> np.ndarray:
    """Centres after rounds of: nearest centre, then the mean of its elements; a centre without elements stays."""
    x, centres = np.ravel(x), np.array(centres, dtype=np.float64)
    for _ in range(rounds):
        ids = nearest(x, centres)
        new = np.array([x[ids == k].mean() if (ids == k).any() else c for k, c in enumerate(centres)])
        if (new == centres).all():
            break
        centres = new
    return centres


def spread_quantiles(x: np.ndarray, k: int) -> np.ndarray:
    """``k`` sorted values at even distances: number ``floor((j + 1/2) n / k)``, a start for ``lloyd``."""
    x = np.sort(x, axis=None)
    return np.array([x[int((j + 0.5) / k * x.size)] for j in range(k)])


# --- scales


def deviations(m: np.ndarray, ids: np.ndarray, k: int) -> list[float | None]:
    """``D_c``: the lower median over a cluster of ``|m - mean of the whole tensor|``; None for an empty cluster."""
    d = np.abs(m - m.mean())
    return [lower_median(d[ids == c]) if (ids == c).any() else None for c in range(k)]


def raw_scales(
    momenta: Mapping[str, np.ndarray], ids: Mapping[str, np.ndarray], k: int, *, pool: str = "clusters", eps=1e-8
) -> dict[str, list[float | None]]:
    """``D / (D_c + eps)`` by tensor and cluster; None for an empty cluster.

    ``D`` is the lower median of all ``D_c`` of the model (``"clusters"``) or of all ``|m - mean|`` (``"elements"``).
    """
    own = {name: deviations(m, ids[name], k) for name, m in momenta.items()}
    if pool == "clusters":
        whole = lower_median(np.array([d for values in own.values() for d in values if d is not None]))
    else:
        whole = lower_median(np.concatenate([np.abs(m - m.mean()).ravel() for m in momenta.values()]))
    return {name: [None if d is None else whole / (d + eps) for d in values] for name, values in own.items()}


def averaged(old: float, raw: float, beta: float = 0.99, bounds: tuple[float, float] = (0.1, 10.0)) -> float:
    """``beta old + (1 - beta) clamp(raw)``: it never leaves the bounds, as it starts at 1."""
    return beta * old + (1 - beta) * min(max(raw, bounds[0]), bounds[1])


# --- whole runs


def run(
    rule: Callable,
    parameters: Sequence[tuple[str, np.ndarray]],
    gradients: Sequence[Mapping[str, np.ndarray | None]],
    clusters: Callable[[int, str, np.ndarray], np.ndarray],
    *,
    lr: float,
    weight_decay: float = 0.0,
    scale_weight_decay: bool = False,
    k: int = 3,
    recluster: int = 500,
    interval: int = 1,
    scaled: Callable[[str, np.ndarray], bool] = lambda name, w: w.ndim > 1,
    beta: float = 0.99,
    bounds: tuple[float, float] = (0.1, 10.0),
    pool: str = "clusters",
    eps: float = 1e-8,
    base: Mapping | None = None,
) -> tuple[list[dict[str, np.ndarray]], list[dict[str, np.ndarray]]]:
    """SGG over ``rules.adamw``, ``rules.lion`` or ``sac.sgd``.

    Returns the weights after 0, 1, ... steps, and the scales (a number per cluster of a tensor) of each step.

    Args:
        rule: The base.
        parameters: Names and first values.
        gradients: One dict a step; a missing or None gradient leaves a tensor and all of its state alone.
        clusters: (step, name, new momentum) -> ids in its shape.
        lr: The rate.
        weight_decay: Of all tensors.
        scale_weight_decay: Decoupled decay times the scale too; coupled decay is part of the gradient.
        k: Number of clusters.
        recluster: Clusters are found at steps 0, ``recluster``, ...
        interval: The scales are renewed at steps 0, ``interval``, ...
        scaled: Which tensors.
        beta: Of the average of the scales, which starts at 1.
        bounds: Of what enters the average.
        pool: See ``raw_scales``.
        eps: See ``raw_scales``.
        base: Passed to the rule.
    """
    w = {name: np.array(value, dtype=np.float64) for name, value in parameters}
    states: dict[str, State] = {name: {} for name in w}
    taken = dict.fromkeys(w, 0)
    ids = {name: np.zeros(x.shape, dtype=int) for name, x in w.items() if scaled(name, x)}
    scales = {name: np.ones(k) for name in ids}
    weight_history, scale_history = [dict(w)], []
    for step, step_gradients in enumerate(gradients):
        moved, decay = {}, lr * weight_decay if rule in DECOUPLED else 0.0
        for name, old in w.items():
            g = step_gradients.get(name)
            if g is not None:
                moved[name], states[name] = rule(
                    old,
                    g,
                    states[name],
                    taken[name],
                    lr=lr,
                    weight_decay=0.0 if decay else weight_decay,
                    **(base or {}),
                )
                taken[name] += 1
        momenta = {n: states[n]["buffer" if "buffer" in states[n] else "momentum"] for n in moved if n in ids}
        if step % recluster == 0:
            ids |= {name: clusters(step, name, m) for name, m in momenta.items()}
        if step % interval == 0:
            for name, raw in raw_scales(momenta, ids, k, pool=pool, eps=eps).items():
                pairs = zip(scales[name], raw, strict=True)
                scales[name] = np.array([s if r is None else averaged(s, r, beta, bounds) for s, r in pairs])
        for name, new in moved.items():
            factor = scales[name][ids[name]] if name in ids else np.ones_like(new)
            shrink = decay * (factor if scale_weight_decay else 1.0)
            w[name] = (1 - shrink) * w[name] + factor * (new - w[name])
        weight_history.append(dict(w))
        scale_history.append(dict(scales))
    return weight_history, scale_history
