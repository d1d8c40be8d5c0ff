"""Lion: the sign of a mix of momentum and gradient."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from steepest.rules.base import Phase, Rate
from steepest.rules.geometry import Sign
from steepest.rules.momentum import MomentumRule


@dataclass(frozen=True, kw_only=True)
class Lion(MomentumRule):
    """Lion (Chen et al. 2023, arXiv 2302.06675).

    ``D = b1 M + (1 - b1) G``;  ``W <- (1 - lr wd) W - lr sign(D)``;  ``M <- b2 M + (1 - b2) G``

    Attributes:
        lr: 1e-4 (the paper; about a tenth to a third of AdamW's).
        betas: (b1, b2) = (0.9, 0.99) (the paper, and LionMuon).
        weight_decay: 0.1 as in LionMuon.
    """

    name: ClassVar[str] = "lion"

    lr: Rate = 1e-4
    betas: tuple[float, float] = (0.9, 0.99)
    weight_decay: float = 0.1

    def phase(self, step: int) -> Phase:
        """Every step is a sign step."""
        return Phase(Sign())
