"""A list of tensors that answers to the methods of one tensor, so that a direction is written once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

_OUT_OF_PLACE = (
    "lerp",
    "mul",
    "add",
    "sub",
    "div",
    "pow",
    "sqrt",
    "sign",
    "neg",
    "abs",
    "reciprocal",
    "rsqrt",
    "sigmoid",
    "tanh",
    "exp",
    "clamp_min",
    "clamp_max",
)
_IN_PLACE = (*(name + "_" for name in _OUT_OF_PLACE), "copy_")


class TensorList:
    """Tensors that are stepped together through ``torch._foreach_*``, with the element-wise methods of a tensor."""

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        self.tensors = list(tensors)

    @property
    def device(self) -> torch.device:
        """Of the first tensor: all are on one device."""
        return self.tensors[0].device

    @property
    def dtype(self) -> torch.dtype:
        """Of the first tensor: all are of one dtype."""
        return self.tensors[0].dtype

    def apply(self, function: Callable[[Tensor], Tensor]) -> TensorList:
        """The function of each tensor, for one that is not among the methods here."""
        return TensorList([function(t) for t in self.tensors])

    def clamp(self, low: float, high: float) -> TensorList:
        """``Tensor.clamp`` on each tensor of the list."""
        return self.clamp_min(low).clamp_max_(high)  # type: ignore[attr-defined, no-any-return]

    def clamp_(self, low: float, high: float) -> TensorList:
        """``Tensor.clamp_`` on each tensor of the list."""
        return self.clamp_min_(low).clamp_max_(high)  # type: ignore[attr-defined, no-any-return]

    def __mul__(self, other: Any) -> TensorList:
        return self.mul(other)  # type: ignore[attr-defined, no-any-return]

    def __neg__(self) -> TensorList:
        return self.neg()  # type: ignore[attr-defined, no-any-return]


def _define(name: str) -> None:
    foreach = getattr(torch, f"_foreach_{name}")

    def method(self: TensorList, *args: Any, **kwargs: Any) -> TensorList:
        result = foreach(self.tensors, *(a.tensors if isinstance(a, TensorList) else a for a in args), **kwargs)
        return self if name.endswith("_") else TensorList(result)

    method.__name__ = name
    method.__doc__ = f"``Tensor.{name}`` on each tensor of the list."
    setattr(TensorList, name, method)


for _name in (*_OUT_OF_PLACE, *_IN_PLACE):
    _define(_name)
