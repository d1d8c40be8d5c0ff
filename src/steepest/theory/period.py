"""What the theory of LionMuon says about the period: the trade-off function phi(P), as the diagnostic it is.

LionMuon (Bolatov et al. 2026, arXiv 2605.19811, revised version, optimal period). phi(P) is the predicted cost of
reaching a given stationarity with period P, over that of Muon (P = 1), if the two rates make both norms equal:

    phi(P) = c(P) (1/P + (1 - 1/P) r_L) (1/P + (1 - 1/P) r_rho)^k,  c(P) = (K + P - 1) / (P K),  k = kappa / (kappa - 1)

In x = 1/P every factor is affine and positive, so log phi is concave and its least value is **always** at P = 1 or at
P = infinity. The function therefore says which of the two parents is cheaper, and never that a period between them is
best, though experiments say so. Read it as a number about the landscape; choose the period by trying 2 and 5.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

PERIODS = (1, 2, 5, 20, 100, math.inf)
WARNING = (
    "phi is concave in 1/P on a log scale: its minimum is always at P = 1 or P = inf, never between. It cannot pick a "
    "period; runs can. Start from P = 2 or 5 with the spectral rate 5 P to 6 P times the sign rate."
)


@dataclass(frozen=True, kw_only=True)
class TradeOff:
    """phi and what it depends on.

    Args:
        smoothness_ratio: r_L = L_inf / (alpha^2 L_2), positive; alpha = ||G||_1 / ||G||_nuc.
        noise_ratio: r_rho = rho_1 / (alpha rho_nuc), positive.
        tail: kappa in (1, 2], the tail index of the gradient noise; 2, a finite variance, is what was measured.
        spectral_cost: K >= 1, the cost of a spectral step in sign steps; 5 in the paper, one for each Newton-Schulz
            step. With the cost of forward and backward in it, it is (F_model + F_NS) / (F_model + F_sign): near 1.

    Raises:
        ValueError: a number is out of its range.
    """

    smoothness_ratio: float
    noise_ratio: float
    tail: float = 2.0
    spectral_cost: float = 5.0

    def __post_init__(self) -> None:
        for name in ("smoothness_ratio", "noise_ratio"):
            value = getattr(self, name)
            if not (0 < value < math.inf):
                raise ValueError(f"{name} must be positive and finite, got {value}")
        if not 1 < self.tail <= 2:
            raise ValueError(f"tail must lie in (1, 2], got {self.tail}; 2 is noise of finite variance")
        if not 1 <= self.spectral_cost < math.inf:
            raise ValueError(f"spectral_cost must be at least 1 and finite, got {self.spectral_cost}")

    @classmethod
    def of(cls, alpha: float, rho_nuc: float, rho_1: float, l_2: float, l_inf: float, **options: float) -> TradeOff:
        """From measured norm ratios, see ``steepest.theory.norm_ratios``."""
        return cls(smoothness_ratio=l_inf / (alpha**2 * l_2), noise_ratio=rho_1 / (alpha * rho_nuc), **options)

    def phi(self, period: float) -> float:
        """The predicted cost of period P over that of Muon, which is 1 at P = 1.

        Args:
            period: at least 1; ``math.inf`` is Lion.

        Raises:
            ValueError: the period is below 1.
        """
        if not period >= 1:
            raise ValueError(f"period must be at least 1, got {period}")
        x = 0.0 if math.isinf(period) else 1 / period

        def mixed(other: float) -> float:
            return x + (1 - x) * other

        power = self.tail / (self.tail - 1)
        noise: float = mixed(self.noise_ratio) ** power
        return mixed(1 / self.spectral_cost) * mixed(self.smoothness_ratio) * noise

    @property
    def cheaper(self) -> float:
        """The end of the range with the lower predicted cost: 1 (Muon) or infinity (Lion)."""
        return 1 if self.phi(math.inf) >= 1 else math.inf

    def table(self, periods: Sequence[float] = PERIODS) -> str:
        """A table for people, with the warning that belongs to it."""
        rows = [f"{'P':>6}  {'phi(P)':>8}"]
        rows += [f"{'inf' if math.isinf(p) else f'{p:g}':>6}  {self.phi(p):8.3f}" for p in periods]
        parent = "Muon (P = 1)" if self.cheaper == 1 else "Lion (P = inf)"
        return "\n".join([*rows, f"The theory's cheaper parent here is {parent}.", WARNING])
