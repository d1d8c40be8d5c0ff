"""Signum: the sign of the momentum."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from steepest.rules.base import Phase, Rate
from steepest.rules.geometry import Sign
from steepest.rules.momentum import MomentumRule


@dataclass(frozen=True, kw_only=True)
class Signum(MomentumRule):
    """Signum (Bernstein et al. 2018, arXiv 1802.04434), with decoupled weight decay.

    ``M <- b M + (1 - b) G``;  ``W <- (1 - lr wd) W - lr sign(M)``

    Attributes:
        lr: 1e-4 (the sign baseline of LionMuon).
        betas: (b, b), equal; b = 0.9 as in LionMuon's baseline. Different ones are ``Lion``, so a scheduler must not
            change one of them: ``OneCycleLR(..., cycle_momentum=False)``.
        weight_decay: 0.1 as in LionMuon.
    """

    name: ClassVar[str] = "signum"

    lr: Rate = 1e-4
    weight_decay: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        check_equal(self.name, self.betas, "Lion")

    def phase(self, step: int) -> Phase:
        """Every step is a sign step."""
        return Phase(Sign())


def check_equal(rule: str, betas: tuple[float, float], other: str) -> None:
    """Refuse different betas for a method that has one average."""
    if betas[0] != betas[1]:
        raise ValueError(f"{rule}: betas must be equal (its direction is the buffer), got {betas}; use {other} instead")
