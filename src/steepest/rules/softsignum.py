"""SoftSignum: the sign of the momentum, softening to tanh at the end of training."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from steepest import kernels
from steepest.rules.base import FitKind, Rate, check_choice
from steepest.rules.lion import Lion
from steepest.rules.softened import SWITCH, Softened


@dataclass(frozen=True, kw_only=True)
class SoftSignum(Softened, Lion):
    """SoftSignum (Feoktistov et al. 2026, arXiv 2605.31371): Signum, then tanh at a falling temperature.

    ``M <- b M + (1 - b) G``;  ``W <- (1 - lr wd) W - lr sign(M)`` before the transition,
    ``W <- (1 - lr wd) W - lr tanh(tau M)`` in it. The temperature: see ``steepest.rules.Softened``.

    The defaults are the paper's, not those of the class that was released with it, which caps tau at 20, has no
    momentum, and fails one step after the end of the transition.

    Attributes:
        lr: 1e-3 (the released class; a Signum rate carries over unchanged).
        betas: (b, b), b = 0.9 as ``Signum``; ``nesterov(b)`` and Lion's pairs work too.
        weight_decay: 0 (the released class).
        relaxation: "tanh" (the paper), "algebraic", "clip", or one of your own (``steepest.theory.relaxation``);
            "switch" is a control: momentum SGD through the whole transition, its rate scaled so that the root mean
            square of the step does not change at the switch.
        transition, total_steps, eps, temperature_range, pool, refresh_every, clock: see ``steepest.rules.Softened``.
    """

    name: ClassVar[str] = "soft_signum"
    fitted: ClassVar[tuple[FitKind, ...]] = ("elements",)

    lr: Rate = 1e-3
    betas: tuple[float, float] = (0.9, 0.9)
    weight_decay: float = 0.0
    relaxation: str = "tanh"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice(self.name, "relaxation", self.relaxation, (*kernels.RELAXATIONS, SWITCH))

    def _relaxation(self, kind: FitKind) -> str:
        return self.relaxation
