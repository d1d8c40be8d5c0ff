"""LionMuon: spectral and sign steps in turn, on one momentum."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

from steepest.rules.base import Gate, Phase, Rate, check_choice, check_range
from steepest.rules.geometry import Sign
from steepest.rules.muon import SpectralRule


@dataclass(frozen=True, kw_only=True)
class LionMuon(SpectralRule):
    """LionMuon (Bolatov et al. 2026, arXiv 2605.19811).

    ``D = b1 M + (1 - b1) G``, then ``M <- b2 M + (1 - b2) G``, and for t = 0, 1, 2, ...

    - t mod period = 0:  ``W <- (1 - lr wd) W - lr s polar(D)``
    - else:              ``W <- (1 - lr r wd) W - lr r sign(D)``,  r = ``sign_lr_ratio``

    Attributes:
        lr: rate of a spectral step, 1e-3 (the tuned cell for period 2, revised paper).
        sign_lr_ratio: rate of a sign step as a ratio to ``lr``: 0.1 (the same cell); about 1 / (5 period).
        betas: (0.9, 0.99) (the paper).
        period: a spectral step every ``period`` steps, 1 to infinity; step 0 is spectral for every finite period, and
            ``math.inf`` is Lion from the first step.
        offset: the step at which the first spectral step falls, 0.
        weight_decay: 0.1 (the paper), multiplied by the rate of the step taken.
        trigger: "period"; "random" for a spectral step with probability 1 / period (the revised paper found no
            difference); "stable_rank" for a spectral step on the matrices whose direction has a stable rank of at most
            ``threshold * min(m, n)``, and a sign step on the others.
        seed: also of the random trigger and of the power iteration.
        threshold: of the stable-rank trigger; 0.006 is in the middle of the range that the authors tried.
    """

    name: ClassVar[str] = "lion_muon"

    lr: Rate = 1e-3
    sign_lr_ratio: float = 0.1
    betas: tuple[float, float] = (0.9, 0.99)
    period: float = 2
    offset: int = 0
    weight_decay: float = 0.1
    trigger: Literal["period", "random", "stable_rank"] = "period"
    threshold: float = 0.006

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range(self.name, "sign_lr_ratio", self.sign_lr_ratio, 0.0, math.inf)
        check_range(self.name, "threshold", self.threshold, 0.0, 1.0)
        check_choice(self.name, "trigger", self.trigger, ("period", "random", "stable_rank"))
        number = isinstance(self.period, (int, float)) and not isinstance(self.period, bool)
        if not number or self.period < 1 or not (self.period == math.inf or float(self.period).is_integer()):
            raise ValueError(
                f"{self.name}: period must be a whole number >= 1, or math.inf for sign steps only; got {self.period!r}"
            )
        if not isinstance(self.offset, int) or self.offset < 0:
            raise ValueError(f"{self.name}: offset must be a whole number of steps >= 0, got {self.offset!r}")

    def phase(self, step: int) -> Phase:
        """A spectral or a sign step, by the trigger."""
        sign = Phase(Sign(), lr_ratio=self.sign_lr_ratio)
        if self.trigger == "stable_rank":
            return replace(self.spectral(), gate=Gate(self.threshold, self.seed), otherwise=sign)
        if self.trigger == "random":
            return self.spectral() if uniform(self.seed, step) * self.period < 1.0 else sign
        due = self.period < math.inf and step >= self.offset and (step - self.offset) % int(self.period) == 0
        return self.spectral() if due else sign

    def period_steps(self) -> int:
        """The period, for the average step size; at most 1000 so that a report stays quick."""
        return int(min(self.period, 1000))


def uniform(seed: int, step: int) -> float:
    """A number in [0, 1) from nothing but the arguments (SplitMix64), so that all processes draw the same."""
    mask = (1 << 64) - 1
    x = ((seed * 0x9E3779B97F4A7C15) ^ ((step + 1) * 0xD1342543DE82EF95)) & mask
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        x = ((x ^ (x >> shift)) * factor) & mask
    return ((x ^ (x >> 31)) >> 11) / (1 << 53)
