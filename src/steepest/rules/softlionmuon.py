"""SoftLionMuon: spectral and sign steps in turn, both softening at the end of training."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from steepest import kernels
from steepest.rules.base import FitKind, Rate, check_choice
from steepest.rules.lionmuon import LionMuon
from steepest.rules.softened import SWITCH, Softened
from steepest.rules.softmuon import SPECTRAL_RELAXATIONS


@dataclass(frozen=True, kw_only=True)
class SoftLionMuon(Softened, LionMuon):
    """SoftLionMuon: ``LionMuon`` whose two maps soften as those of ``SoftMuon`` and ``SoftSignum`` (ours, no paper).

    Two fits are made at the first step of the transition, from the same directions D: of their singular values for the
    spectral steps, and of their elements for the sign steps.

    Attributes:
        lr, sign_lr_ratio, betas, period, offset, trigger, seed, threshold, weight_decay: as in ``LionMuon``.
        relaxation: of the spectral steps, as in ``SoftMuon``.
        sign_relaxation: of the sign steps, as the ``relaxation`` of ``SoftSignum``.
        transition, total_steps, eps, temperature_range, pool, refresh_every, clock: see ``steepest.rules.Softened``.
    """

    name: ClassVar[str] = "soft_lion_muon"
    fitted: ClassVar[tuple[FitKind, ...]] = ("singular_values", "elements")

    lr: Rate = LionMuon.lr
    weight_decay: float = LionMuon.weight_decay
    relaxation: str = "algebraic"
    sign_relaxation: str = "tanh"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice(self.name, "relaxation", self.relaxation, SPECTRAL_RELAXATIONS)
        check_choice(self.name, "sign_relaxation", self.sign_relaxation, (*kernels.RELAXATIONS, SWITCH))

    def _relaxation(self, kind: FitKind) -> str:
        return self.sign_relaxation if kind == "elements" else self.relaxation
