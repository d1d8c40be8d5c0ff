"""Softsign: let the maps of a rule soften by a temperature that falls through a transition phase."""

from __future__ import annotations

import math
from collections.abc import Hashable
from dataclasses import dataclass, field, replace
from numbers import Real
from typing import Any, Literal

from steepest import kernels
from steepest.kernels import Statistics
from steepest.rules.base import KEPT, Fit, FitKind, Phase, Rule, check_choice, check_range, check_whole
from steepest.rules.geometry import (
    LinearElement,
    LinearMatrix,
    Polar,
    Sign,
    SoftPolar,
    SoftSign,
    TruncatedSoftPolar,
)
from steepest.rules.momentum import MomentumRule

SWITCH, TRUNCATED = "switch", "truncated"


@dataclass(frozen=True, kw_only=True)
class Softened(Rule):
    """Mixed into a rule, this softens its maps at the end of training (Feoktistov et al. 2026, arXiv 2605.31371).

    Before the transition every step is that of the rule. Through the transition, at progress p from 0 to 1, ``sign(d)``
    becomes ``phi(tau d)`` and ``polar(D)`` becomes the same phi of the singular values of D, with

        ``tau = max(1, phi^-1(1 - eps) / q_p)``,   q_p the p-quantile of |x|,  x ~ Cauchy(centre, spread)

    so that a share 1 - p of the elements (singular values) still takes a full step. The fit, centre = median(x) and
    spread = median|x - centre|, is made once, at the first step of the transition, over all tensors of the rule, from
    what is mapped at that step, and kept in the state. At p = 0 the map is exactly the hard one; after the end of the
    transition the last temperature is held. Neither learning rate nor decay changes.

    The fit of a sample without spread (all zero, or constant) leaves the map hard, with a warning that names the
    parameters. Exact zeros are left out where they are the majority.

    Attributes:
        transition: (start, end) in steps of the run, of which the first is still hard; or in fractions of
            ``total_steps``, (0.9, 1.0) if that is given alone (the paper: 90 % hard). None: hard until
            ``optimizer.begin_transition(steps)``.
        total_steps: number of steps of the run.
        eps: a step counts as full from 1 - eps on, 1e-4 (the paper).
        temperature_range: (lowest, highest) temperature. The lowest, 1 (the paper), depends on the scale of the
            gradient: it acts where the spread exceeds about 5 cot(pi p / 2). There is no highest (the paper); in the
            released code it is 1e9 or 20.
        pool: what one fit is made over: all tensors of the "rule" (the paper), of a param "group", or each "tensor".
            Shards of a tensor count together; where processes hold different tensors (pipeline stages,
            ``ZeroRedundancyOptimizer``), each fits its own.
        refresh_every: make the fit anew every so many steps of the transition; 0: only once (the paper).
        clock: 0-based step of the run, kept by the optimizer; steps without any gradient count.
    """

    transition: tuple[float, float] | None = None
    total_steps: int | None = None
    eps: float = 1e-4
    temperature_range: tuple[float, float] = (1.0, math.inf)
    pool: Literal["rule", "group", "tensor"] = "rule"
    refresh_every: int = 0
    clock: int = 0
    fit: tuple[Fit, ...] | None = field(default=None, metadata=KEPT)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range(self.name, "eps", self.eps, 0.0, 1.0)
        if not 0.0 < 1.0 - self.eps < 1.0:  # also a number that is lost in 1 - eps
            raise ValueError(f"{self.name}: eps must lie strictly between 0 and 1, got {self.eps!r}")
        check_choice(self.name, "pool", self.pool, ("rule", "group", "tensor"))
        check_whole(self.name, "refresh_every", self.refresh_every, 0)
        check_whole(self.name, "clock", self.clock, 0)
        if self.total_steps is not None:
            check_whole(self.name, "total_steps", self.total_steps, 1)
        self._check_pair("temperature_range", "(lowest, highest)")
        low, high = self.temperature_range
        if not 0.0 < low <= high:
            raise ValueError(
                f"{self.name}: temperature_range must be (lowest, highest) with 0 < lowest <= highest, got {low, high}"
            )
        if self.transition is not None:
            self._check_pair("transition", "(start, end)")
        self.bounds()

    def _check_pair(self, option: str, meaning: str) -> None:
        pair = getattr(self, option)
        two = isinstance(pair, (tuple, list)) and len(pair) == 2
        if not two or any(isinstance(v, bool) or not isinstance(v, Real) or not float(v) >= 0.0 for v in pair):
            raise ValueError(f"{self.name}: {option} must be a pair {meaning} of numbers >= 0, got {pair!r}")
        object.__setattr__(self, option, tuple(pair))

    def bounds(self) -> tuple[int, int] | None:
        """First step of the transition and the step after its last; None if it is not planned.

        Raises:
            ValueError: the transition does not fit the run.
        """
        total = self.total_steps
        if self.transition is None and total is None:
            return None
        start, end = self.transition or (0.9, 1.0)
        if total is not None and end <= 1.0:
            first, last = round(start * total), round(end * total)
        else:
            whole = math.isfinite(end) and start == int(start) and end == int(end)
            if not whole or (total is None and isinstance(end, float) and end <= 1.0):
                raise ValueError(
                    f"{self.name}: transition {start, end} must be whole steps, or fractions (end <= 1) with "
                    "total_steps="
                )
            first, last = int(start), int(end)
        if not first < last:
            raise ValueError(
                f"{self.name}: transition {start, end} must start before it ends"
                + (f"; of {total} total_steps it has no step" if total is not None else "")
            )
        if total is not None and last > total:
            raise ValueError(f"{self.name}: transition {start, end} ends after the run of total_steps={total}")
        return first, last

    def progress(self) -> float:
        """The share p in [0, 1) of the transition that lies behind; 0 before it, and held at its last value."""
        bounds = self.bounds()
        if bounds is None:
            return 0.0
        start, end = bounds
        return max(0, min(self.clock, end - 1) - start) / (end - start)

    # Fit -------------------------------------------------------------------------------------------------------------

    def wants_fit(self) -> bool:
        """Whether this step is one of the transition and the tensors have no fit, or it is time for a new one."""
        bounds = self.bounds()
        if bounds is None or self.clock < bounds[0]:
            return False
        if self.fit is None:
            return True
        due = self.refresh_every > 0 and (self.clock - bounds[0]) % self.refresh_every == 0
        return due and bounds[0] < self.clock < bounds[1]

    def company(self) -> Hashable:
        """Equal for rules that can share a fit: of one method, at one point of one schedule, measuring the same."""
        start, end = self.bounds() or (0, 0)
        linear = tuple(self._relaxation(kind) == SWITCH for kind in self.fitted)
        return self.name, start - self.clock, end - self.clock, linear

    def measure(self, kind: FitKind, found: Statistics) -> Fit:
        """The fit of one kind from the statistics of its sample; the control "switch" needs the size alone."""
        return (0.0, found.rms) if self._relaxation(kind) == SWITCH else (found.centre, found.spread)

    def temperature(self, kind: FitKind) -> float:
        """The temperature of this step; infinite while the map is hard."""
        p = self.progress()
        if self.fit is None or p == 0.0:
            return math.inf
        centre, spread = self.fit[self.fitted.index(kind)]
        relaxation = self._relaxation(kind)
        if relaxation == SWITCH:
            return 1.0 / spread if spread > 0.0 else math.inf
        margin = kernels.RELAXATIONS["algebraic" if relaxation == TRUNCATED else relaxation].inverse(1.0 - self.eps)
        lowest, highest = self.temperature_range
        # Beyond 1e30 a product with a temperature could leave the range of float32.
        return kernels.temperature(p, centre, spread, margin, min(lowest, 1e30), min(highest, 1e30))

    def capped(self, kind: FitKind) -> bool:
        """Whether even the last step of the transition takes the highest temperature, so that there is no schedule.

        Not where the lowest is as high: that is how a constant temperature is asked for.
        """
        bounds, (lowest, highest) = self.bounds(), self.temperature_range
        last = math.inf if bounds is None else replace(self, clock=bounds[1]).temperature(kind)
        return lowest < highest <= last < math.inf

    def _relaxation(self, kind: FitKind) -> str:
        """The soft map of a kind of sample; a rule of two kinds has two options."""
        raise NotImplementedError

    # Step ------------------------------------------------------------------------------------------------------------

    def numbers(self, step: int) -> dict[str, float]:
        """Those of the rule, and the temperature of each kind of map while it is soft."""
        soft = {kind: self.temperature(kind) for kind in self.fitted}
        return {**super().numbers(step), **{f"temperature_{kind}": tau for kind, tau in soft.items() if tau < math.inf}}

    def phase(self, step: int) -> Phase:
        """The phase of the rule, with soft maps where the temperature is finite."""
        return self._soften(super().phase(step))

    def _soften(self, phase: Phase) -> Phase:
        geometry: Any = phase.geometry
        if isinstance(geometry, Sign) and self.temperature("elements") < math.inf:
            relaxation = self._relaxation("elements")
            # The direction of momentum is a new tensor; that of another rule could be its buffer.
            new = type(self).direction is MomentumRule.direction
            geometry = LinearElement() if relaxation == SWITCH else SoftSign(relaxation, overwrite=new)
        elif isinstance(geometry, Polar) and self.temperature("singular_values") < math.inf:
            relaxation = self._relaxation("singular_values")
            if relaxation == SWITCH:
                geometry = LinearMatrix()
            elif relaxation == TRUNCATED:
                geometry = TruncatedSoftPolar(geometry.steps)
            else:
                geometry = SoftPolar(geometry.steps, geometry.coefficients, geometry.dtype)
        otherwise = None if phase.otherwise is None else self._soften(phase.otherwise)
        return replace(phase, geometry=geometry, otherwise=otherwise)
