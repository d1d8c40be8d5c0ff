"""SoftMuon: the polar factor of the momentum, softening at the end of training."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from steepest.rules.adamw import AdamW
from steepest.rules.base import FitKind, Rate, Rule, check_choice
from steepest.rules.momentum import nesterov
from steepest.rules.muon import Muon
from steepest.rules.softened import SWITCH, TRUNCATED, Softened

SPECTRAL_RELAXATIONS = ("algebraic", SWITCH, TRUNCATED)


@dataclass(frozen=True, kw_only=True)
class SoftMuon(Softened, Muon):
    """SoftMuon (Feoktistov et al. 2026, arXiv 2605.31371): Muon, then a soft polar factor at a falling temperature.

    ``D = b1 M + (1 - b1) G``, ``M <- b2 M + (1 - b2) G``, and for each (m, n) matrix ``W <- (1 - lr wd) W - lr s P``
    with ``P = polar(D)`` before the transition and ``P = D (D'D + tau^-2)^(-1/2)`` in it: singular values x of D become
    x / sqrt(x^2 + tau^-2). The temperature is fitted to the pooled singular values of D: see ``rules.Softened``.

    P is a block of ``polar([D, I / tau])``, by the same iteration as before the transition: the step does not jump
    where it begins. The code released with the paper iterates differently and stops early, which shrinks the step by up
    to 78 % at any temperature, and fits tau to the gradient rather than to D; both are options, as controls.

    Attributes:
        lr: 0.02 (the released code; a Muon rate carries over unchanged).
        betas: Nesterov momentum 0.95, that is (0.95 ** 2, 0.95) (the released code).
        weight_decay: 0 (the released code).
        scale: "keller", sqrt(max(1, m / n)) (the released code); "match_rms" as ``Muon`` here.
        relaxation: "algebraic" (the paper). Controls: "truncated", the released map (5 coupled cubic iterations in
            bfloat16); "switch", momentum SGD with the same root mean square of the step at the switch.
        sample: fit the temperature to the singular values of the "direction" D, or of the "gradient" (released code).
        transition, total_steps, eps, temperature_range, pool, refresh_every, clock: see ``steepest.rules.Softened``.
    """

    name: ClassVar[str] = "soft_muon"
    fitted: ClassVar[tuple[FitKind, ...]] = ("singular_values",)

    lr: Rate = 0.02
    betas: tuple[float, float] = nesterov(0.95)
    weight_decay: float = 0.0
    scale: str = "keller"
    relaxation: str = "algebraic"
    sample: Literal["direction", "gradient"] = "direction"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice(self.name, "relaxation", self.relaxation, SPECTRAL_RELAXATIONS)
        check_choice(self.name, "sample", self.sample, ("direction", "gradient"))

    def _relaxation(self, kind: FitKind) -> str:
        return self.relaxation

    def companion(self) -> Rule:
        """AdamW beside it as in the released code: rate 3e-4 for 0.02 here. It is never softened."""
        rate = self.lr * (3e-4 / 0.02) if self.scale == "keller" else self.lr
        return AdamW(lr=rate, betas=(0.9, 0.95), eps=1e-10, weight_decay=self.weight_decay, **self.rounding())
