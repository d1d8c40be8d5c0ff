"""Muon: the polar factor of the momentum."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from steepest.kernels.polar import schedule
from steepest.rules.base import DTYPES, SCALES, Need, Phase, Rate, check_choice
from steepest.rules.geometry import Polar
from steepest.rules.momentum import MomentumRule, nesterov


@dataclass(frozen=True, kw_only=True)
class SpectralRule(MomentumRule):
    """The numbers of a rule that takes spectral steps.

    Attributes:
        steps: Newton-Schulz iterations (5: Muon, LionMuon).
        coefficients: table of the iteration, a key of ``kernels.COEFFICIENTS``.
        scale: factor on a spectral step, a key of ``SCALES`` ("match_rms": 0.2 sqrt(max(m, n)), as in LionMuon).
        compute_dtype: dtype of the matrix products by name; None: bfloat16 where the device multiplies it fast,
            else float32 (LionMuon's authors found no difference in loss); float64 parameters stay in float64.
    """

    needs: ClassVar[Need] = "matrix"

    steps: int = 5
    coefficients: str = "keller"
    scale: str = "match_rms"
    compute_dtype: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        schedule(self.coefficients, self.steps)
        check_choice(self.name, "scale", self.scale, SCALES)
        if self.compute_dtype is not None:
            check_choice(self.name, "compute_dtype", self.compute_dtype, DTYPES)

    def spectral(self) -> Phase:
        """A spectral step."""
        return Phase(Polar(self.steps, self.coefficients, self.compute_dtype), scale=self.scale)


@dataclass(frozen=True, kw_only=True)
class Muon(SpectralRule):
    """Muon (Jordan et al. 2024), with decoupled decay and a step of AdamW-like size (Moonlight, arXiv 2502.16982).

    ``D = b1 M + (1 - b1) G``;  ``W <- (1 - lr wd) W - lr s polar(D)``;  ``M <- b2 M + (1 - b2) G``
    for each (m, n) matrix, ``s`` by ``scale``.

    Attributes:
        lr: 1e-3 (LionMuon's Muon baseline, torch.optim.Muon).
        betas: Nesterov momentum 0.95, that is (0.95 ** 2, 0.95), as torch.optim.Muon and the original; the Muon
            baseline of LionMuon is the plain average (0.9, 0.9).
        weight_decay: 0.1.
    """

    name: ClassVar[str] = "muon"

    lr: Rate = 1e-3
    betas: tuple[float, float] = nesterov(0.95)
    weight_decay: float = 0.1

    def phase(self, step: int) -> Phase:
        """Every step is a spectral step."""
        return self.spectral()
