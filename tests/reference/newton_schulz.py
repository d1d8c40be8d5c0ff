"""The odd matrix iteration that approximates the polar factor, one float64 matrix at a time.

With the thin SVD ``X = U diag(s) V^T`` the polar factor is ``U V^T``. The iteration ``X <- a X + (b A + c A^2) X`` with
``A = X X^T`` maps each singular value through ``p(s) = a s + b s^3 + c s^5`` and leaves ``U`` and ``V`` alone.
"""

from __future__ import annotations

import math

import numpy as np

Triple = tuple[float, float, float]

KELLER: Triple = (3.4445, -4.7750, 2.0315)
CUBIC: Triple = (1.5, -0.5, 0.0)

# "The Polar Express" (Amsel, Persson, Musco, Gower; arXiv 2505.16932), Algorithm 1: quintics for singular values in
# [1e-3, 1]. The printed table, before the safety factor of 1.01 which the paper applies to every triple but the last.
POLAR_EXPRESS_LOWER = 1e-3
POLAR_EXPRESS_CUSHION = 0.02407327424182761
POLAR_EXPRESS_SAFETY = 1.01
POLAR_EXPRESS_PUBLISHED: list[Triple] = [
    (8.28721201814563, -23.595886519098837, 17.300387312530933),
    (4.107059111542203, -2.9478499167379106, 0.5448431082926601),
    (3.9486908534822946, -2.908902115962949, 0.5518191394370137),
    (3.3184196573706015, -2.488488024314874, 0.51004894012372),
    (2.300652019954817, -1.6689039845747493, 0.4188073119525673),
    (1.891301407787398, -1.2679958271945868, 0.37680408948524835),
    (1.8750014808534479, -1.2500016453999487, 0.3750001645474248),
    (1.875, -1.25, 0.375),
]


def quintic(s: np.ndarray | float, triple: Triple) -> np.ndarray | float:
    """``a s + b s^3 + c s^5``."""
    a, b, c = triple
    return a * s + b * s**3 + c * s**5


def optimal_quintic(lower: float, upper: float) -> tuple[Triple, float]:
    """The odd quintic with the smallest ``max |1 - p(s)|`` on ``[lower, upper]``, and that error, by Remez exchange.

    Three free coefficients, so the best polynomial touches the error bound at four points with alternating sign: both
    ends and its two interior turning points. Solve for coefficients and error, move the interior points, repeat.
    """
    ratio = lower / upper  # work on [ratio, 1]; s -> s / upper puts the answer back
    if ratio > 1 - 1e-4:  # the four points merge: the limit is the polynomial with p(1) = 1, p'(1) = p''(1) = 0
        return (15 / 8 / upper, -10 / 8 / upper**3, 3 / 8 / upper**5), 5 / 32 * (1 - ratio) ** 3
    points = np.array([ratio, (3 * ratio + 1) / 4, (ratio + 3) / 4, 1.0])
    sides = np.array(
        [1.0, -1.0, 1.0, -1.0]
    )  # p(s) + side * error = 1: below 1 at the lower end, above 1 at the next point
    error = math.inf
    for _ in range(100):
        a, b, c, new_error = np.linalg.solve(np.stack([points, points**3, points**5, sides], axis=1), np.ones(4))
        root = math.sqrt(9 * b * b - 20 * a * c)  # p'(s) = a + 3 b s^2 + 5 c s^4 is a quadratic in s^2; b < 0 < c
        points[1:3] = math.sqrt((-3 * b - root) / (10 * c)), math.sqrt((-3 * b + root) / (10 * c))
        if abs(new_error - error) < 1e-15:
            break
        error = new_error
    return (a / upper, b / upper**3, c / upper**5), float(new_error)


def polar_express(
    steps: int,
    lower: float = POLAR_EXPRESS_LOWER,
    cushion: float = POLAR_EXPRESS_CUSHION,
    safety: float = 1.0,
) -> list[Triple]:
    """The greedy composition of the paper: each step is the best quintic for the interval reached by those before it.

    Args:
        steps: Number of triples.
        lower: Smallest normalised singular value that must converge; the largest is 1.
        cushion: Fit each quintic on ``[max(lower, cushion * upper), upper]``, then rescale it so that ``p(lower)`` and
            ``p(upper)`` are again equally far from 1. It bounds what the large singular values pay for the tiny ones.
        safety: Divide the argument of every step but the last by this, ``p(s / safety)``, so that rounding above the
            interval is harmless. It does not change the later intervals.
    """
    triples = []
    upper = 1.0
    for _ in range(steps):
        triple, _ = optimal_quintic(max(lower, cushion * upper), upper)
        rescale = 2 / (quintic(lower, triple) + quintic(upper, triple))
        triple = tuple(rescale * x for x in triple)
        triples.append(triple)
        lower = quintic(lower, triple)
        upper = 2 - lower
    return [(a / safety, b / safety**3, c / safety**5) for a, b, c in triples[:-1]] + triples[-1:]


def triples(coefficients: str | list[Triple], steps: int) -> list[Triple]:
    """The triple of every step: a table by name, its last entry repeated when it is shorter than ``steps``.

    ``"polar_express"`` is the published table with its safety factor, so that five steps take its first five triples.
    """
    if coefficients == "keller":
        table = [KELLER]
    elif coefficients == "cubic":
        table = [CUBIC]
    elif coefficients == "polar_express":
        k = POLAR_EXPRESS_SAFETY
        table = [(a / k, b / k**3, c / k**5) for a, b, c in POLAR_EXPRESS_PUBLISHED[:-1]] + POLAR_EXPRESS_PUBLISHED[-1:]
    else:
        table = list(coefficients)
    return [table[min(i, len(table) - 1)] for i in range(steps)]


def scalar_map(
    s: np.ndarray | float, steps: int = 5, coefficients: str | list[Triple] = "keller"
) -> np.ndarray | float:
    """What ``newton_schulz`` does to one singular value that is already divided by the Frobenius norm."""
    for triple in triples(coefficients, steps):
        s = quintic(s, triple)
    return s


def newton_schulz(x: np.ndarray, steps: int = 5, coefficients: str | list[Triple] = "keller") -> np.ndarray:
    """The iteration on one matrix ``(m, n)``: relative normalisation (no epsilon), short side first, zero to zero."""
    x = np.array(x, dtype=np.float64)
    if not x.any():
        return np.zeros_like(x)
    if x.shape[0] > x.shape[1]:
        return newton_schulz(x.T, steps, coefficients).T
    x = x / np.abs(x).max()  # so that squaring 1e-300 or 1e300 is no question
    x = x / np.sqrt((x * x).sum())
    for a, b, c in triples(coefficients, steps):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x


def polar_exact(x: np.ndarray, tolerance: float = 1e-12) -> np.ndarray:
    """``U V^T`` by SVD over the singular values above ``tolerance`` times the largest (so zero gives zero)."""
    u, s, vt = np.linalg.svd(np.asarray(x, dtype=np.float64), full_matrices=False)
    keep = s > tolerance * s.max(initial=0.0)
    return u[:, keep] @ vt[keep]


def scale(m: int, n: int, mode: str) -> float:
    """The factor of a spectral step for an ``(m, n)`` matrix (out, in)."""
    if mode == "match_rms":  # RMS 0.2 when every singular value is 1
        return 0.2 * math.sqrt(max(m, n))
    if mode == "keller":
        return math.sqrt(max(1.0, m / n))
    if mode == "spectral":
        return math.sqrt(m / n)
    if mode == "none":
        return 1.0
    raise ValueError(mode)
