"""Maps that act on each element by itself."""

from __future__ import annotations

from torch import Tensor


def sign(x: Tensor) -> Tensor:
    """The steepest direction in the unit ball of the max norm: each element becomes its sign, and 0 stays 0.

    Args:
        x: any shape.

    Returns:
        A new tensor of the shape and dtype of ``x`` with elements in {-1, 0, 1}.
    """
    return x.sign()
