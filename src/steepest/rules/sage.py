"""SAGE: sign steps damped per column, for embeddings."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from steepest import kernels
from steepest.rules.base import Need, Numbers, Phase, Rate, Rule, check_choice, check_range
from steepest.rules.geometry import DampedSign
from steepest.rules.momentum import MomentumRule
from steepest.rules.sinkgd import SinkGD


@dataclass(frozen=True, kw_only=True)
class SAGE(MomentumRule):
    """SAGE (Lee and Kim 2026, arXiv 2604.07663), for embeddings, heads and vectors; ``SinkGD`` on hidden matrices.

    For a (V, d) tensor and each of its d columns, with s the mean of |G| over the V rows:
    ``S <- b2 S + (1 - b2) s``;  ``A = S / (1 - b2^t)``;  ``H = min(rms(A) / (A + eps), rms(s) / (s + eps), 1)``;
    ``D = b1 M + (1 - b1) G``;  ``W <- (1 - lr wd) W - lr H sign(D)``;  ``M <- b2 M + (1 - b2) G``

    so that no column steps farther than Lion's, and one with large gradients less. A vector of n elements is a matrix
    of one row. The state is one buffer like the tensor and one number per column.

    As for Lion, a row whose gradient is zero keeps moving by the sign of its old momentum (an untied input embedding
    of a rare token); H cannot stop it. A tensor whose gradient is all zero takes no step, unless
    ``instantaneous=False``.

    Where the paper and the code released with it differ, the paper is the default: ``order`` and ``instantaneous``
    below; ``steepest.SAGE(model, vectors=steepest.rules.AdamW())`` has AdamW on vectors, as one released variant and
    the hybrids it is compared with; ``rest=steepest.rules.SAGE()`` has SAGE on the hidden matrices, too (SAGE-Pure).

    Attributes:
        lr: 1e-3 (the paper's text; its script has 2e-3), also of the hidden matrices; see ``companion``.
        betas: (b1, b2) = (0.9, 0.99) (the paper); b2 is that of S, too.
        eps: 1e-8 (the released code); the paper's bounds 1 / sqrt(d) <= H <= 1 hold for 0.
        weight_decay: 0.01 (the released code).
        order: "paper": D reads the old buffer; "released": the buffer is brought up to date before.
        instantaneous: keep the term rms(s) / s; without it as in two of the three released variants.
        axis: over which s is the mean, 0 for a weight of shape (vocabulary, features), 1 for a transposed one.
    """

    name: ClassVar[str] = "sage"
    needs: ClassVar[Need] = "sums"
    takes: ClassVar[Literal["all", "hidden", "rest"]] = "rest"
    buffers: ClassVar[tuple[str, ...]] = ("momentum", "columns")
    whole: ClassVar[tuple[str, ...]] = ("columns",)

    lr: Rate = 1e-3
    betas: tuple[float, float] = (0.9, 0.99)
    eps: float = 1e-8
    weight_decay: float = 0.01
    order: Literal["paper", "released"] = "paper"
    instantaneous: bool = True
    axis: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range(self.name, "eps", self.eps, 0.0, math.inf)
        check_choice(self.name, "order", self.order, ("paper", "released"))
        check_choice(self.name, "axis", self.axis, (0, 1))
        check_choice(self.name, "instantaneous", self.instantaneous, (True, False))

    def columns(self, shape: torch.Size) -> int:
        """Number of columns of a tensor: of all axes but the one over which the mean is taken."""
        if len(shape) < 2:
            return shape.numel()
        return math.prod(shape[1:]) if self.axis == 0 else shape[0]

    def buffer_specs(self, shape: torch.Size, dtype: torch.dtype) -> dict[str, tuple[torch.Size, torch.dtype]]:
        """Momentum as the parameter; the column averages in at least float32, whatever the dtype."""
        momentum = super().buffer_specs(shape, dtype)["momentum"]
        wide = dtype if dtype.itemsize >= 4 else torch.float32
        return {"momentum": momentum, "columns": (torch.Size((self.columns(shape),)), wide)}

    def numbers(self, step: int) -> dict[str, float]:
        """The two averages, and the bias correction of S."""
        return {**super().numbers(step), "correct": 1.0 / (1.0 - self.betas[1] ** (step + 1)), "eps": self.eps}

    def reduced(self, mean: Tensor, state: Mapping[str, Tensor], numbers: Numbers) -> dict[str, Tensor]:
        """The damper of each column from the mean |G| of each; the averages are brought up to date."""
        average = state["columns"].lerp_(mean, numbers["track"]) * numbers["correct"]
        return {"damper": kernels.column_damper(average, mean if self.instantaneous else None, numbers["eps"])}

    def direction(self, g: Tensor, state: Mapping[str, Tensor], numbers: Numbers) -> Tensor:
        """As Lion's, or from the new buffer."""
        if self.order == "paper":
            return super().direction(g, state, numbers)
        return g.lerp(state["momentum"].lerp_(g, numbers["track"]), numbers["mix"])

    def phase(self, step: int) -> Phase:
        """Every step is a damped sign step."""
        return Phase(DampedSign())

    def companion(self) -> Rule:
        """SinkGD on the hidden matrices as in the released hybrid: columns of norm 1, times 10, at the same rate."""
        return SinkGD(lr=self.lr, alpha=10.0, target="unit", weight_decay=self.weight_decay, **self.rounding())
