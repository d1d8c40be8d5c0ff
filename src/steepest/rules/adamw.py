"""AdamW, for the part of a model that a matrix rule does not take."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from steepest.rules.base import Numbers, Phase, Rate, Rule, check_betas, check_range
from steepest.rules.geometry import Identity


@dataclass(frozen=True, kw_only=True)
class AdamW(Rule):
    """AdamW (Loshchilov and Hutter 2019, arXiv 1711.05101), the same numbers as ``torch.optim.AdamW``.

    ``M <- b1 M + (1 - b1) G``;  ``V <- b2 V + (1 - b2) G^2``;
    ``W <- (1 - lr wd) W - lr (M / (1 - b1^t)) / (sqrt(V / (1 - b2^t)) + eps)``,  t = 1, 2, ...

    Attributes:
        lr: 1e-3, betas: (0.8, 0.999), eps: 1e-8, weight_decay: 0.1: what LionMuon's runs use beside the matrix rule.
    """

    name: ClassVar[str] = "adamw"
    buffers: ClassVar[tuple[str, ...]] = ("momentum", "second")
    coded: ClassVar[tuple[str, ...]] = ("momentum",)

    lr: Rate = 1e-3
    betas: tuple[float, float] = (0.8, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        check_betas(self.name, self.betas)
        check_range(self.name, "eps", self.eps, 0.0, math.inf)
        object.__setattr__(self, "betas", tuple(self.betas))

    def numbers(self, step: int) -> dict[str, float]:
        """The averages and their bias corrections."""
        b1, b2 = self.betas
        return {
            "track": 1.0 - b1,
            "track_second": 1.0 - b2,
            "correct": 1.0 / (1.0 - b1 ** (step + 1)),
            "correct_second": 1.0 / math.sqrt(1.0 - b2 ** (step + 1)),
            "eps": self.eps,
        }

    def direction(self, g: Tensor, state: Mapping[str, Tensor], numbers: Numbers) -> Tensor:
        """The ratio of the two corrected averages."""
        state["momentum"].lerp_(g, numbers["track"])
        state["second"].lerp_(g * g, numbers["track_second"])
        d = state["second"].sqrt().mul_(numbers["correct_second"]).add_(numbers["eps"]).reciprocal_()
        return d.mul_(state["momentum"]).mul_(numbers["correct"])

    def phase(self, step: int) -> Phase:
        """The direction is the step."""
        return Phase(Identity())
