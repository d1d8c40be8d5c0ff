"""One buffer, two numbers: the momentum of every sign and spectral method."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from steepest.rules.base import Numbers, Rule, check_betas


@dataclass(frozen=True, kw_only=True)
class MomentumRule(Rule):
    """Direction and buffer with separate averages.

    ``direction = lerp(g, buffer, mix)`` reads the old buffer, then ``buffer = lerp(g, buffer, decay)``, with
    ``betas = (mix, decay)``: equal ones are an average (Signum, Muon), different ones are Lion, ``mix = decay ** 2`` is
    Nesterov momentum. The buffer starts at zero and there is no bias correction: the maps ignore the scale.

    Attributes:
        betas: (mix, decay), each in [0, 1).
    """

    buffers: ClassVar[tuple[str, ...]] = ("momentum",)
    coded: ClassVar[tuple[str, ...]] = ("momentum",)

    betas: tuple[float, float] = (0.9, 0.9)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_betas(self.name, self.betas)
        object.__setattr__(self, "betas", tuple(self.betas))

    def numbers(self, step: int) -> dict[str, float]:
        """The two averages."""
        return {"mix": self.betas[0], "track": 1.0 - self.betas[1]}

    def direction(self, g: Tensor, state: Mapping[str, Tensor], numbers: Numbers) -> Tensor:
        """Mix the gradient into the old buffer, then let the buffer follow."""
        d = self.trial(g, state, numbers)
        state["momentum"].lerp_(g, numbers["track"])
        return d

    def trial(self, g: Tensor, state: Mapping[str, Tensor], numbers: Numbers) -> Tensor:
        """The direction alone."""
        return g.lerp(state["momentum"], numbers["mix"])


def nesterov(beta: float) -> tuple[float, float]:
    """The ``betas`` of Nesterov momentum, as in ``torch.optim.Muon(momentum=beta, nesterov=True)``."""
    return (beta * beta, beta)
