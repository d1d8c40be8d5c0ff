"""Methods with little state in float64 numpy: Sinkhorn, SinkGD, SAGE and LASM, each written out from its own formula.

They have the calling convention of ``rules``. An embedding is ``(V, d)``: rows are tokens, columns are features. The
closed forms of the optimizer state, and the shapes of LLaMA models to put into them, are at the end.

SAGE: arXiv 2604.07663. SinkGD: "Gradient Multi-Normalization for Efficient LLM Training", arXiv 2502.06742.
LASM: an aardXiv preprint of 31 October 2025.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping

import numpy as np

from .rules import State
from .views import FLAT, View, per_matrix

# --- Sinkhorn


def with_norms(x: np.ndarray, norm: float, axis: int) -> np.ndarray:
    """``x`` with 2-norm ``norm`` along ``axis``; what is zero stays zero.

    First to a largest element of 1, so that no square overflows or vanishes.
    """
    largest = np.abs(x).max(axis=axis, keepdims=True)
    x = x / np.where(largest > 0, largest, 1.0)
    length = np.sqrt((x * x).sum(axis=axis, keepdims=True))
    return norm * (x / np.where(length > 0, length, 1.0))


def sinkhorn(x: np.ndarray, rounds: int = 5, target: str = "rms") -> np.ndarray:
    """Alternate normalisation of rows, then columns, of every matrix in ``x (..., m, n)``.

    ``"rms"``, of the paper: rows to ``sqrt(n)``, columns to ``sqrt(m)``. ``"unit"``: both to 1. The columns come last,
    so they are exact, and ``"rms"`` is ``sqrt(m)`` times ``"unit"``.
    """
    x = np.asarray(x, dtype=np.float64)
    m, n = x.shape[-2:]
    row, column = {"rms": (math.sqrt(n), math.sqrt(m)), "unit": (1.0, 1.0)}[target]
    for _ in range(rounds):
        x = with_norms(x, row, -1)
        x = with_norms(x, column, -2)
    return x


def sinkgd(
    w,
    g,
    state: State,
    t: int,
    *,
    lr: float,
    alpha: float = 0.05,
    rounds: int = 5,
    target: str = "rms",
    betas=(0.0, 0.0),
    weight_decay: float = 0.0,
    scale_decay: bool = False,
    view: View = FLAT,
):
    """``D = b1 M + (1 - b1) G;  W = (1 - lr wd) W - alpha lr sinkhorn(D);  M = b2 M + (1 - b2) G``.

    The paper has no momentum; with ``b1 = 0`` the buffer is never read, so there is none. It has no decay either: the
    code that has one leaves out ``alpha``, or has it in (``scale_decay``).
    """
    decay = 1 - (alpha if scale_decay else 1.0) * lr * weight_decay
    d, new = g, {}
    if betas[0] != 0:
        m = state.get("momentum", np.zeros_like(w))
        d = betas[0] * m + (1 - betas[0]) * g
        new = {"momentum": betas[1] * m + (1 - betas[1]) * g}
    return decay * w - alpha * lr * per_matrix(lambda x: sinkhorn(x, rounds, target), d, view), new


# --- SAGE


def damping(x: np.ndarray, eps: float = 0.0) -> np.ndarray:
    """``rms(x) / (x_j + eps)`` for ``x (..., d) >= 0``, the root mean square over the d; where all are 0: 0.

    That is the limit of small ``eps``; a single ``x_j = 0`` has infinity. Everything is divided by the largest of
    ``x``, so that no square overflows or vanishes (and equal ``x_j`` give exactly 1).
    """
    x = np.asarray(x, dtype=np.float64)
    largest = x.max(axis=-1, keepdims=True)
    with np.errstate(over="ignore", divide="ignore", invalid="ignore"):
        relative = x / largest
        reference = np.sqrt((relative * relative).mean(axis=-1, keepdims=True))
        return np.where(largest > 0, reference / (relative + eps / largest), 0.0)


def column_damper(average: np.ndarray, current: np.ndarray | None, eps: float = 0.0) -> np.ndarray:
    """``H (..., d)``, the smallest of ``sigma / (average + eps)``, ``gamma / (current + eps)`` and 1.

    ``sigma`` and ``gamma`` are the root mean squares of the two statistics. ``current=None`` leaves its damper out.
    With ``eps = 0`` and statistics that are not all 0: ``1 / sqrt(d) <= H <= 1``.
    """
    h = np.minimum(damping(average, eps), 1.0)
    return h if current is None else np.minimum(h, damping(current, eps))


def sage(
    w,
    g,
    state: State,
    t: int,
    *,
    lr: float,
    betas=(0.9, 0.99),
    eps: float = 1e-8,
    weight_decay: float = 0.01,
    order: str = "paper",
    instantaneous: bool = True,
    axis: int = 0,
    damper: Callable[..., np.ndarray] = column_damper,
):
    """``W = (1 - lr wd) W - lr sign(b1 M + (1 - b1) G) H``, with ``H`` per column from the means of ``|G|``.

    ``s`` = mean of ``|G|`` over the rows; ``S = b2 S + (1 - b2) s``; ``H`` from ``S / (1 - b2^(t + 1))`` and ``s``;
    ``M = b2 M + (1 - b2) G``.

    Args:
        order: ``"paper"``: the direction reads the old ``M``. ``"released"``: the new one.
        instantaneous: With the damper of the current ``s``.
        axis: The axis averaged over; 1 for an embedding stored as (d, V).
        damper: ``H`` from the two statistics and eps.

    A tensor of more than two axes is ``(shape[0], rest)``. One with less is a single row, so that ``s = |G|``.
    """
    rows, axis = (g.shape[0], axis) if g.ndim >= 2 else (1, 0)
    columns = np.abs(g.reshape(rows, -1)).mean(axis=axis)
    s = betas[1] * state.get("columns", np.zeros_like(columns)) + (1 - betas[1]) * columns
    h = damper(s / (1 - betas[1] ** (t + 1)), columns if instantaneous else None, eps)

    old = state.get("momentum", np.zeros_like(w))
    new = betas[1] * old + (1 - betas[1]) * g
    c = np.sign(betas[0] * {"paper": old, "released": new}[order] + (1 - betas[0]) * g)
    step = (c.reshape(rows, -1) * np.expand_dims(h, axis)).reshape(w.shape)
    return (1 - lr * weight_decay) * w - lr * step, {"momentum": new, "columns": s}


# --- LASM

#: Multiplier of the rate by role; 1 for every other role.
LASM_FACTORS = {"attention": 1.5, "mlp": 1.0, "embedding": 0.5, "head": 0.5}


def lasm(
    w,
    g,
    state: State,
    t: int,
    *,
    lr: float,
    betas=(0.9, 0.95),
    weight_decay: float = 0.1,
    factor: float = 1.0,
    scale_decay: bool = False,
):
    """``V = b2 V + (1 - b2) (G - M)^2;  M = b1 M + (1 - b1) G / (1 + sqrt(V))``, then the sign of ``M``.

    ``V`` is updated first, from the old ``M``, which is an average of scaled gradients. No bias correction. The step is
    ``W = (1 - lr wd) W - factor lr sign(M)``: the factor of the role is not in the decay, unless ``scale_decay``.
    """
    m, v = (state.get(name, np.zeros_like(w)) for name in ("momentum", "variance"))
    v = betas[1] * v + (1 - betas[1]) * (g - m) ** 2
    m = betas[0] * m + (1 - betas[0]) * g / (1 + np.sqrt(v))
    decay = 1 - (factor if scale_decay else 1.0) * lr * weight_decay
    return decay * w - factor * lr * np.sign(m), {"momentum": m, "variance": v}


# --- state in bytes

Tensors = Iterable[tuple[str, tuple[int, ...]]]  # (role, shape)

ROLES = ("embedding", "head", "matrix", "vector")


def by_role(embedding: str, matrix: str, vector: str) -> dict[str, str]:
    """The head, where it is a tensor of its own, is treated as the embedding."""
    return {"embedding": embedding, "head": embedding, "matrix": matrix, "vector": vector}


METHODS = {
    "adamw": by_role("adamw", "adamw", "adamw"),
    "lion": by_role("lion", "lion", "lion"),
    "lasm": by_role("lasm", "lasm", "lasm"),
    "sinkgd-hybrid": by_role("adamw", "sinkgd", "adamw"),
    "lion-hybrid": by_role("lion", "sinkgd", "adamw"),
    "sage-hybrid": by_role("sage", "sinkgd", "sage"),
    "sage-pure": by_role("sage", "sage", "sage"),
    "sinkgd-pure": by_role("sinkgd", "sinkgd", "sinkgd"),
}


def state_bytes(
    tensors: Tensors, method: str | Mapping[str, str], size: int = 4, column_size: int | None = None
) -> dict[str, int]:
    """Bytes of optimizer state by role, and their ``"total"``; step counters are not counted.

    Args:
        tensors: Roles and shapes.
        method: A key of ``METHODS``, or the rule of each role.
        size: Bytes of an element of a buffer in the shape of the parameter.
        column_size: Bytes of a column statistic of SAGE; None: ``size``.
    """
    assigned = METHODS[method] if isinstance(method, str) else method
    result = dict.fromkeys(ROLES, 0)
    for role, shape in tensors:
        n = math.prod(shape)
        columns = n // shape[0] if len(shape) >= 2 else n
        buffers = {"adamw": 2, "lion": 1, "sage": 1, "lasm": 2, "sinkgd": 0}[assigned[role]]
        result[role] += buffers * n * size
        if assigned[role] == "sage":
            result[role] += columns * (size if column_size is None else column_size)
    result["total"] = sum(result.values())
    return result


def llama(
    vocabulary: int, width: int, layers: int, ffn: int, heads: int, *, kv_heads: int | None = None, tied: bool = False
) -> list[tuple[str, tuple[int, ...]]]:
    """Roles and shapes of a LLaMA: grouped queries, gated feed-forward, one gain per norm, no biases."""
    kv = width // heads * (heads if kv_heads is None else kv_heads)
    gain = ("vector", (width,))
    layer = [
        gain,
        *(("matrix", (rows, width)) for rows in (width, kv, kv, width)),  # query, key, value, output
        gain,
        *(("matrix", shape) for shape in ((ffn, width), (ffn, width), (width, ffn))),  # gate, up, down
    ]
    head = [] if tied else [("head", (vocabulary, width))]
    return [("embedding", (vocabulary, width)), *(layer * layers), gain, *head]


def elements(tensors: Tensors, *roles: str) -> int:
    """Number of elements of these roles, or of all."""
    return sum(math.prod(shape) for role, shape in tensors if not roles or role in roles)
