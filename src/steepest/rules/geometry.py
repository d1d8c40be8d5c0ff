"""The maps of the rules, each a kernel with its constants."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from steepest import kernels
from steepest.kernels.device import product_dtype
from steepest.kernels.sinkhorn import sinkhorn_factors
from steepest.rules.base import DTYPES, Need, Numbers


@dataclass(frozen=True)
class Identity:
    """The direction itself (Adam-family rules, whose direction already has the size of a step)."""

    needs: ClassVar[Need] = "element"

    def __call__(self, x: Tensor, numbers: Numbers) -> Tensor:
        """Return ``x``."""
        return x

    def rms(self, m: int, n: int) -> float:
        """About 1: the nominal size of an Adam step."""
        return 1.0


@dataclass(frozen=True)
class Sign:
    """Unit ball of the max norm."""

    needs: ClassVar[Need] = "element"

    def __call__(self, x: Tensor, numbers: Numbers) -> Tensor:
        """Return the sign of each element."""
        return kernels.sign(x)

    def rms(self, m: int, n: int) -> float:
        """Exactly 1 where no element is zero."""
        return 1.0


@dataclass(frozen=True)
class Polar:
    """Unit ball of the spectral norm, by Newton-Schulz."""

    needs: ClassVar[Need] = "matrix"
    steps: int
    coefficients: str
    dtype: str | None

    def __call__(self, x: Tensor, numbers: Numbers) -> Tensor:
        """Return the polar factors of a stack of matrices."""
        return kernels.polar(x, self.steps, self.coefficients, self.product_dtype(x))

    def product_dtype(self, x: Tensor) -> torch.dtype:
        """The dtype of the products: the one asked for, or the fast one of the device."""
        return product_dtype(x.device, x.dtype) if self.dtype is None else DTYPES[self.dtype]

    def rms(self, m: int, n: int) -> float:
        """All min(m, n) singular values are 1."""
        return 1.0 / math.sqrt(max(m, n, 1))


@dataclass(frozen=True)
class Sinkhorn:
    """Rows and columns of fixed norms."""

    needs: ClassVar[Need] = "matrix"
    rounds: int
    target: Literal["rms", "unit"]

    def __call__(self, x: Tensor, numbers: Numbers) -> Tensor:
        """Return the balanced matrices of a stack."""
        return kernels.sinkhorn(x, self.rounds, self.target)

    def factors(self, x: Tensor) -> tuple[Tensor, Tensor, list[Tensor]]:
        """Return what the map multiplies the rows and the columns of one matrix by; see ``sinkhorn_factors``."""
        return sinkhorn_factors(x, self.rounds, self.target)

    def rms(self, m: int, n: int) -> float:
        """Exactly this for a matrix without zero columns."""
        return 1.0 if self.target == "rms" else 1.0 / math.sqrt(max(m, 1))


@dataclass(frozen=True)
class DampedSign:
    """The sign of each element, times the damper of its column."""

    needs: ClassVar[Need] = "sums"

    def __call__(self, x: Tensor, numbers: Numbers) -> Tensor:
        """Return the damped signs."""
        return kernels.sign(x).mul_(numbers["damper"])

    def rms(self, m: int, n: int) -> float:
        """At most 1, where all columns are alike."""
        return 1.0


# Soft maps -----------------------------------------------------------------------------------------------------------
# Their temperature is a number of the step, named after what it was fitted to. The root mean square of the result
# depends on the data; what is given is that of the hard map, its upper bound.


@dataclass(frozen=True)
class SoftSign(Sign):
    """Elements of small size take small steps."""

    relaxation: str = "tanh"
    overwrite: bool = False  # the direction is a new tensor, not a buffer

    def __call__(self, x: Tensor, numbers: Numbers) -> Tensor:
        """Return phi(temperature x)."""
        return kernels.soft_sign(x, numbers["temperature_elements"], self.relaxation, overwrite=self.overwrite)


@dataclass(frozen=True)
class SoftPolar(Polar):
    """Small singular values take small steps; by the iteration of the hard map."""

    def __call__(self, x: Tensor, numbers: Numbers) -> Tensor:
        """Return x (x'x + temperature^-2)^(-1/2) for a stack of matrices."""
        temperature = numbers["temperature_singular_values"]
        return kernels.soft_polar(x, temperature, self.steps, self.coefficients, self.product_dtype(x))


@dataclass(frozen=True)
class TruncatedSoftPolar:
    """The map of the code released with SoftMuon: a coupled iteration that stops early (a control)."""

    needs: ClassVar[Need] = "matrix"
    steps: int

    def __call__(self, x: Tensor, numbers: Numbers) -> Tensor:
        """Return what the iteration has reached."""
        return kernels.coupled_soft_polar(x, numbers["temperature_singular_values"], self.steps, 0.0, torch.bfloat16)

    def rms(self, m: int, n: int) -> float:
        """Between a quarter of this and all of it."""
        return 1.0 / math.sqrt(max(m, n, 1))


@dataclass(frozen=True)
class LinearElement:
    """Momentum SGD (a control)."""

    needs: ClassVar[Need] = "element"

    def __call__(self, x: Tensor, numbers: Numbers) -> Tensor:
        """Return temperature x."""
        return x * numbers["temperature_elements"]

    def rms(self, m: int, n: int) -> float:
        """1 at the switch, falling with the gradient."""
        return 1.0


@dataclass(frozen=True)
class LinearMatrix:
    """Momentum SGD with the scale of a matrix (a control)."""

    needs: ClassVar[Need] = "matrix"

    def __call__(self, x: Tensor, numbers: Numbers) -> Tensor:
        """Return temperature x."""
        return x * numbers["temperature_singular_values"]

    def rms(self, m: int, n: int) -> float:
        """That of the polar factor at the switch, falling with the gradient."""
        return 1.0 / math.sqrt(max(m, n, 1))
