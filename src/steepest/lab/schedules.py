"""Learning-rate schedules as stateless functions of the step.

A schedule gives one factor s(t) in (0, 1]; training multiplies the base rate of *every* parameter group by it, so no
rate is ever left out. Nothing is saved: after a resume the factor follows from the step alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from steepest.lab.errors import UserError, unknown


def _cosine(x: float) -> float:
    return 0.5 * (1.0 + math.cos(math.pi * x))


def _linear(x: float) -> float:
    return 1.0 - x


# The shape of the part after warm-up, from 1 at x = 0 to 0 at x = 1.
SHAPES: dict[str, Callable[[float], float]] = {
    "cosine": _cosine,
    "linear": _linear,
    "wsd": _linear,  # warm-up, stable, decay: x starts only in the last `decay` part of the run
    "constant": lambda x: 1.0,
}


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """Warm-up, then a shape down to a floor.

    ``s(t) = start + (1 - start) t / W`` for ``t < W``, then ``final + (1 - final) shape(x)``, ``x`` from 0 to 1.

    Args:
        kind: "cosine", "linear", "wsd" (stable at 1, then linear) or "constant".
        steps: T, the length of the run.
        warmup: W; steps if >= 1, else a fraction of `steps`. Default 0.1 (the C4 harness; LionMuon's runs have 0.047).
        final: the floor as a fraction of the peak. Default 0 (LionMuon's schedule); the C4 harness uses 0.1.
        start: the factor at step 0. Default 0.01 (LionMuon's schedule).
        decay: length of the decay of "wsd"; steps if >= 1, else a fraction of `steps`. Default 0.2.
    """

    kind: str = "cosine"
    steps: int
    warmup: float = 0.1
    final: float = 0.0
    start: float = 0.01
    decay: float = 0.2

    def __post_init__(self) -> None:
        if self.kind not in SHAPES:
            raise unknown("schedule", self.kind, SHAPES)
        if self.steps < 1:
            raise UserError(f"steps must be at least 1, got {self.steps}.")
        for name in ("final", "start"):
            value = getattr(self, name)
            if not 0.0 <= value <= 1.0:
                raise UserError(f"schedule {name} must be a fraction of the peak rate in [0, 1], got {value}.")
        for name in ("warmup", "decay"):
            value = getattr(self, name)
            if not 0.0 <= value <= self.steps:
                raise UserError(
                    f"schedule {name} must be a fraction in [0, 1) or up to {self.steps} steps, got {value}."
                )
        if self.kind == "wsd" and self._count(self.warmup) + self._count(self.decay) > self.steps:
            raise UserError(
                f"schedule wsd: warmup ({self.warmup:g}) and decay ({self.decay:g}) together exceed the run's "
                f"{self.steps} steps. Shorten one of them."
            )

    def _count(self, length: float) -> int:
        return round(length * self.steps) if length < 1 else round(length)

    def factor(self, step: int) -> float:
        """s(step); steps beyond the end keep the floor."""
        warmup = self._count(self.warmup)
        if step < warmup:
            return self.start + (1.0 - self.start) * step / warmup
        begin = self.steps - self._count(self.decay) if self.kind == "wsd" else warmup
        length = max(self.steps - begin, 1)
        x = min(max((step - begin) / length, 0.0), 1.0)
        return self.final + (1.0 - self.final) * SHAPES[self.kind](x)


def set_rates(groups: Sequence[dict[str, Any]], base: Sequence[float], factor: float) -> None:
    """Set every group's "lr" to its base rate times `factor`; a tensor is filled in place, so compiled steps see it."""
    for group, rate in zip(groups, base, strict=True):
        if isinstance(group["lr"], torch.Tensor):
            group["lr"].fill_(rate * factor)
        else:
            group["lr"] = rate * factor
