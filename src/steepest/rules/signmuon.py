"""SignMuon: LionMuon with one average."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from steepest.rules.base import Rate
from steepest.rules.lionmuon import LionMuon
from steepest.rules.signum import check_equal


@dataclass(frozen=True, kw_only=True)
class SignMuon(LionMuon):
    """SignMuon (Bolatov et al. 2026, arXiv 2605.19811): LionMuon with equal betas, so that the direction is the buffer.

    Attributes:
        lr: 3e-3 (the tuned cell for period 2, revised paper).
        sign_lr_ratio: 1 / 30 (the same cell).
        betas: (0.9, 0.9) (the paper); different ones are ``LionMuon``.
    """

    name: ClassVar[str] = "sign_muon"

    lr: Rate = 3e-3
    sign_lr_ratio: float = 1 / 30
    betas: tuple[float, float] = (0.9, 0.9)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_equal(self.name, self.betas, "LionMuon")
