"""Smooth relaxations of the sign: odd maps with slope 1 at zero that saturate at -1 and 1."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from steepest.kernels.device import slow_tanh
from steepest.kernels.elementwise import sign


@dataclass(frozen=True)
class Relaxation:
    """A soft sign: the gradient of a convex conjugate (see ``steepest.theory.relaxation`` for the framework).

    Attributes:
        name: key in ``RELAXATIONS``.
        map: phi, element by element, a new tensor.
        inverse: the y >= 0 with phi(y) = share, for a share in [0, 1).
    """

    name: str
    map: Callable[[Any], Any]
    inverse: Callable[[float], float]


def _tanh(y: Any) -> Any:
    return _tanh_of_half(y.mul(2.0)) if slow_tanh(y.device) else y.tanh()


def _tanh_of_half(y: Any) -> Any:
    """tanh(y / 2) in place, through the logistic function; compiled for float32, by a quotient of polynomials."""
    if torch.compiler.is_compiling() and y.dtype == torch.float32:
        return _rational_tanh_of_half(y)
    # Beyond 40 it is 1 in every dtype, and the logistic function takes four times as long from 88 on.
    y.clamp_(-40.0, 40.0).sigmoid_()
    if isinstance(y, Tensor):  # one pass in place of two
        return torch.add(y.new_full((), -1.0), y, alpha=2.0, out=y)
    return y.mul_(2.0).sub_(1.0)


def _rational_tanh_of_half(y: Tensor) -> Tensor:
    """The rational function (3, 4) in y^2 of least relative error, 1.3e-7, up to |y| = 15.8, and the sign beyond.

    In the caches a compiled step takes 2/3 of the time it takes with an exponential (0.21 against 0.32 ns an element on
    two cores), which hides it behind the memory. The numbers stand in the text because the compiler would take those of
    a module as arguments that may change.
    """
    s = y * y
    p = ((9.00924572e-8 * s + 9.25147747e-5) * s + 0.0161680212) * s + 0.499999935
    q = (((9.73651029e-10 * s + 3.75018729e-6) * s + 1.49088005e-3) * s + 0.115669109) * s + 1.0
    return torch.where(s > 249.64, y.sign(), y * p / q)  # a select is quicker than a clamp


def _algebraic(y: Any) -> Any:
    # Beyond the bound the square would overflow, and the result is 1 in every dtype long before.
    bound = 0.5 * math.sqrt(torch.finfo(y.dtype).max)
    y = y.clamp(-bound, bound)
    return y.mul(y).add_(1.0).rsqrt_().mul_(y)


def _clip(y: Any) -> Any:
    return y.clamp(-1.0, 1.0)


RELAXATIONS: dict[str, Relaxation] = {
    # SoftSignum: V* = ln cosh.
    "tanh": Relaxation("tanh", _tanh, math.atanh),
    # The map of SoftMuon on singular values: V* = sqrt(1 + y^2) - 1.
    "algebraic": Relaxation("algebraic", _algebraic, lambda share: share / math.sqrt((1.0 - share) * (1.0 + share))),
    # Coordinate clipping: V* is Huber's function.
    "clip": Relaxation("clip", _clip, lambda share: share),
}
"""Soft signs by name; ``register`` adds one."""


_OURS = tuple(RELAXATIONS)


def register(relaxation: Relaxation) -> None:
    """Make a soft sign known by its name, so that ``SoftSignum(relaxation=name)`` can use it.

    The last one registered under a name is taken, so that a cell of a notebook can run twice.

    Raises:
        ValueError: the name is that of one of the library.
    """
    if relaxation.name in _OURS:
        raise ValueError(f"the relaxation {relaxation.name!r} is one of the library; choose another name")
    RELAXATIONS[relaxation.name] = relaxation


def soft_sign(x: Tensor, temperature: float | Tensor, relaxation: str = "tanh", *, overwrite: bool = False) -> Tensor:
    """Map each element to phi(temperature x): its sign where temperature |x| >> 1, temperature x where it is << 1.

    Softsign (Feoktistov et al. 2026, arXiv 2605.31371). On a CPU, tanh is computed through the logistic function, which
    takes a tenth of the time and has an absolute error below 2e-7 in float32; in a compiled step, by a rational
    function with a relative error below 5e-7.

    Args:
        x: any shape, floating point. Not changed, unless ``overwrite``.
        temperature: > 0; ``math.inf`` is exactly ``sign(x)``. A number, or a finite 0-dim tensor.
        relaxation: a key of ``RELAXATIONS``: "tanh" (the paper), "algebraic" z / sqrt(1 + z^2), or "clip".
        overwrite: the memory of ``x`` may be used for the result, as for a large tensor that is not needed again.

    Returns:
        A tensor of the shape and dtype of ``x`` with elements in [-1, 1].

    Raises:
        ValueError: the relaxation is unknown, or the temperature is a number that is not positive.
    """
    if relaxation not in RELAXATIONS:
        raise ValueError(f"unknown relaxation {relaxation!r}; choose one of {', '.join(RELAXATIONS)}")
    if not isinstance(temperature, Tensor):
        check_temperature(temperature)
        if temperature == math.inf:
            return sign(x)
    if relaxation == "tanh" and slow_tanh(x.device):
        twice = 2.0 * temperature
        return _tanh_of_half(x.mul_(twice) if overwrite else x * twice)  # type: ignore[no-any-return]
    return RELAXATIONS[relaxation].map(x * temperature)  # type: ignore[no-any-return]


def check_temperature(temperature: float) -> None:
    """Refuse a number that is not positive, and NaN."""
    if not temperature > 0.0:
        raise ValueError(f"temperature must be positive (math.inf is the hard map), got {temperature!r}")
