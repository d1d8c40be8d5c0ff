"""Quantiles of |m| for Cauchy distributed m, and the temperature they give (Softsign, arXiv 2605.31371, eq. (7))."""

from __future__ import annotations

import math


def folded_cauchy_quantile(p: float, centre: float, spread: float) -> float:
    """The p-quantile of |m| for m ~ Cauchy(centre, spread).

    It solves p = (atan((q - centre)/spread) + atan((q + centre)/spread)) / pi for q. The tangent of a sum gives it in
    closed form, so that no iteration (ten Newton steps in the Softsign code) is needed::

        q = (spread^2 + centre^2) S / (spread C + sqrt(spread^2 + centre^2 S^2)),    S = sin(pi p), C = cos(pi p)

    The result is accurate to a few units in the last place at any scale: q(p, a centre, a spread) = a q(p, centre,
    spread), and no square overflows or vanishes.

    Args:
        p: probability, 0 <= p < 1.
        centre: median of m; only its absolute value matters.
        spread: scale of the Cauchy law, which is the median of |m - centre|, at least 0. At 0 all |m| are |centre|.

    Returns:
        q >= 0, increasing in p; exactly 0 for p = 0.

    Raises:
        ValueError: ``p`` is outside [0, 1), or ``centre`` or ``spread`` is not a finite number, or ``spread`` < 0.
    """
    if not 0 <= p < 1:
        raise ValueError(f"p must be a probability with 0 <= p < 1, got {p!r}")
    if not math.isfinite(centre):
        raise ValueError(f"centre must be a finite number, got {centre!r}; is the sample finite?")
    if not 0 <= spread < math.inf:
        raise ValueError(f"spread must be a finite number of at least 0, got {spread!r}; is the sample finite?")
    scale = math.hypot(centre, spread)
    if p == 0 or scale == 0:
        return 0.0
    s, mu = spread / scale, abs(centre) / scale
    S = math.sin(math.pi * min(p, 1 - p))  # 1 - p is exact for p >= 1/2, sin(pi p) would lose digits there
    C = math.sin(math.pi * (0.5 - p))
    root = math.hypot(s, mu * S)
    # Twice the same number: the terms of the sum have equal signs on either side of p = 1/2.
    return scale * (S / (root + s * C) if p <= 0.5 else (root - s * C) / S)


def temperature(  # noqa: PLR0917
    p: float, centre: float, spread: float, margin: float, lowest: float = 1.0, highest: float = 1e9
) -> float:
    """Temperature at which the soft sign of all but the p smallest |m| is still saturated (Softsign, eq. (7)).

    tau = margin / q_p, clipped: the share 1 - p of Cauchy distributed m has |phi(tau m)| >= 1 - eps.

    Args:
        p: progress of the transition, 0 <= p < 1.
        centre: median of m at the beginning of the transition.
        spread: median of |m - centre|, without a consistency factor: it is the scale of a Cauchy law.
        margin: phi^-1(1 - eps), positive: 4.951718776 for tanh and 70.70537471 for z/sqrt(1 + z^2) with the eps = 1e-4
            of the paper.
        lowest: lower clip, 1 in the paper. It is an absolute number, so it assumes momentum that averages gradients
            (an EMA), of their scale.
        highest: upper clip, positive and not below ``lowest``. 1e9 as in the functions of the released code, where it
            stands for the sign itself; 20, as in its SoftSignum class, would cut typical steps several hundredfold.

    Returns:
        tau in [``lowest``, ``highest``], decreasing in p; or infinity, the sign itself, for p = 0 and for spread = 0,
        where all |m| are the same or most are zero and no scale is known.

    Raises:
        ValueError: a number is outside its range.
    """
    if not 0 < margin < math.inf:
        raise ValueError(f"margin must be a positive number, got {margin!r}")
    if not 0 < lowest <= highest:
        raise ValueError(f"temperatures must have 0 < lowest <= highest, got {lowest!r} and {highest!r}")
    quantile = folded_cauchy_quantile(p, centre, spread)
    if p == 0 or spread == 0:
        return math.inf
    tau = margin / quantile if quantile > 0 else math.inf  # a quantile can be too small for a float
    return min(highest, max(lowest, tau))
