"""The maps of the rules, each a kernel with its constants."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from steepest import kernels
from steepest.kernels.device import product_dtype
from steepest.rules.base import STATE_DTYPES, Need, Numbers


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
        dtype = product_dtype(x.device, x.dtype) if self.dtype is None else STATE_DTYPES[self.dtype]
        return kernels.polar(x, self.steps, self.coefficients, dtype)

    def rms(self, m: int, n: int) -> float:
        """All min(m, n) singular values are 1."""
        return 1.0 / math.sqrt(max(m, n, 1))
