"""SinkGD: the gradient with its rows and columns brought to fixed norms, without any state."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor

from steepest.rules.base import Need, Numbers, Phase, Rate, check_choice, check_range, check_whole
from steepest.rules.geometry import Sinkhorn
from steepest.rules.momentum import MomentumRule


@dataclass(frozen=True, kw_only=True)
class SinkGD(MomentumRule):
    """SinkGD (Scetbon et al. 2025, arXiv 2502.06742), on matrices; AdamW beside it.

    ``W <- (1 - lr wd) W - lr alpha sinkhorn(D)``, ``D`` the gradient itself, for each (m, n) matrix.

    Attributes:
        lr: 0.02 (the paper's: one rate for the matrices and for the Adam part).
        alpha: factor on the step of the matrices, 0.05 (the paper); it does not change the decay.
        rounds: of the normalisation, 5 (the paper).
        target: "rms": an element of the step has the root mean square ``lr alpha`` (the paper); "unit": columns of norm
            1, so that it has ``lr alpha / sqrt(m)`` (the code released with SAGE, with alpha = 10).
        betas: (0, 0): no momentum and no buffer (the paper). A pair as in ``MomentumRule`` puts momentum first.
        weight_decay: 0 (the paper).
    """

    name: ClassVar[str] = "sinkgd"
    needs: ClassVar[Need] = "matrix"

    lr: Rate = 0.02
    alpha: float = 0.05
    rounds: int = 5
    target: Literal["rms", "unit"] = "rms"
    betas: tuple[float, float] = (0.0, 0.0)
    weight_decay: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range(self.name, "alpha", self.alpha, 0.0, math.inf)
        check_whole(self.name, "rounds", self.rounds, 1)
        check_choice(self.name, "target", self.target, ("rms", "unit"))

    @property
    def buffers(self) -> tuple[str, ...]:  # type: ignore[override]
        """None without momentum."""
        return ("momentum",) if any(self.betas) else ()

    def direction(self, g: Tensor, state: Mapping[str, Tensor], numbers: Numbers) -> Tensor:
        """The gradient, or what momentum makes of it."""
        return super().direction(g, state, numbers) if state else g

    def phase(self, step: int) -> Phase:
        """Every step is the same."""
        return Phase(Sinkhorn(self.rounds, self.target), lr_ratio=self.alpha, decay_ratio=1.0)
