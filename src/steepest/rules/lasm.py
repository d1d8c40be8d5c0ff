"""LASM: signs of a variance-damped momentum, with a factor for each role (experimental)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

from torch import Tensor

from steepest.rules.base import Numbers, Phase, Rate, Rule, check_betas, check_choice, check_range
from steepest.rules.geometry import Sign

if TYPE_CHECKING:
    from steepest.routing.roles import Role

# Which option is the factor of a role; the other roles have 1.
_OPTION = {
    "attention": "attention", "mlp": "mlp", "expert": "mlp", "embedding": "embedding", "position": "embedding",
    "head": "embedding",
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class LASM(Rule):
    """LASM (an unreviewed preprint signed "Aardvark", aardXiv, 31 October 2025); experimental.

    ``V <- b2 V + (1 - b2) (G - M)^2``;  ``M <- b1 M + (1 - b1) G / (1 + sqrt(V))``;
    ``W <- (1 - lr wd) W - lr factor sign(M)``

    Experimental, because the formula cannot do what its paper reports: the damping 1 / (1 + sqrt(V)) depends on the
    scale of the gradient and is 1 to four digits after the usual clipping, so that what is left is Signum with a
    factor for each role; and the memory is AdamW's. Compare it with ``Signum`` under the same factors, as
    ``steepest reproduce lasm-ablation`` does. There is no released code; where the paper is silent, what is done here
    stands below.

    Attributes:
        lr: 3e-4, betas: (0.9, 0.95), weight_decay: 0.1 (the paper; none on biases and norms).
        attention: factor on the step of attention matrices in a model, 1.5 (the paper).
        mlp: of those of MLPs, experts too, 1.0 (the paper).
        embedding: of token embeddings, position tables and the output head, 0.5 (the paper, which is silent about an
            untied head: ``head=rules.LASM(embedding=1.0)`` gives it another).
        factor: of one param group; set by the routing from the three above.
        scale_decay: multiply the decay by the factor, too. The paper does not say; off.
    """

    name: ClassVar[str] = "lasm"
    buffers: ClassVar[tuple[str, ...]] = ("momentum", "variance")
    coded: ClassVar[tuple[str, ...]] = ("momentum",)

    lr: Rate = 3e-4
    betas: tuple[float, float] = (0.9, 0.95)
    weight_decay: float = 0.1
    attention: float = 1.5
    mlp: float = 1.0
    embedding: float = 0.5
    factor: float = 1.0
    scale_decay: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        check_betas(self.name, self.betas)
        object.__setattr__(self, "betas", tuple(self.betas))
        for option in ("attention", "mlp", "embedding", "factor"):
            check_range(self.name, option, getattr(self, option), 0.0, math.inf)
        check_choice(self.name, "scale_decay", self.scale_decay, (True, False))

    def for_role(self, role: Role) -> Rule:
        """The rule with the factor of a role."""
        option = _OPTION.get(role.kind)
        return replace(self, factor=1.0 if option is None else getattr(self, option))

    def numbers(self, step: int) -> dict[str, float]:
        """The two averages."""
        return {"track": 1.0 - self.betas[0], "track_variance": 1.0 - self.betas[1]}

    def direction(self, g: Tensor, state: Mapping[str, Tensor], numbers: Numbers) -> Tensor:
        """The damped momentum; the variance is that of the gradient around the old one."""
        momentum, variance = state["momentum"], state["variance"]
        deviation = momentum.sub(g)
        variance.lerp_(deviation.mul_(deviation), numbers["track_variance"])
        momentum.lerp_(variance.sqrt().add_(1.0).reciprocal_().mul_(g), numbers["track"])
        return momentum

    def phase(self, step: int) -> Phase:
        """Every step is a sign step, times the factor."""
        return Phase(Sign(), lr_ratio=self.factor, decay_ratio=None if self.scale_decay else 1.0)
