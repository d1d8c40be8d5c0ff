"""The step of one tensor: one text that runs on a tensor, on a piece of one, on a list of tensors, and compiled."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor

from steepest.engine.tensors import TensorList
from steepest.rules.base import Geometry, Numbers, Rule

T = TypeVar("T", Tensor, TensorList)


@dataclass(frozen=True)
class Body:
    """Direction, map, decay, step: the specification that every backend runs and is tested against."""

    rule: Rule
    geometry: Geometry
    maximize: bool

    def __call__(self, param: T, grad: T, state: Mapping[str, T], numbers: Numbers) -> None:
        """Step ``param`` and its buffers in place by an element-wise map; ``grad`` is only read."""
        wide = load(param)
        descend(wide, self.geometry(self.direction(wide, grad, state, numbers), numbers), numbers)
        store(param, wide)

    def direction(self, like: T, grad: T, state: Mapping[str, T], numbers: Numbers) -> Any:
        """The rule's direction in the dtype of ``like``; the buffers are brought up to date."""
        wide: Any = {name: load(buffer, like) for name, buffer in state.items()}
        g: Any = load(grad, like)
        d = self.rule.direction(-g if self.maximize else g, wide, numbers)
        for name, buffer in state.items():
            store(buffer, wide[name])
        return d


def descend(param: Any, update: Any, numbers: Numbers) -> None:
    """``param <- keep * param - rate * update`` in place."""
    keep, rate = numbers["keep"], numbers["rate"]
    if isinstance(keep, Tensor) or keep != 1.0:
        param.mul_(keep)
    if isinstance(rate, Tensor):  # a tensor as alpha would be read back from its device
        param.sub_(update * rate)
    else:
        param.add_(update, alpha=-rate)


def load(x: T, like: T | None = None) -> T:
    """``x`` in the dtype of ``like``, or in the compute dtype of its own: float32 for narrower ones."""
    dtype = compute_dtype(x.dtype) if like is None else like.dtype
    if isinstance(x, TensorList):
        return x if x.dtype == dtype else x.apply(lambda t: t.to(dtype))
    return x.to(dtype)


def store(target: T, value: T) -> None:
    """Write a loaded value back, unless it is the target itself."""
    if value is not target:
        into: Any = target
        into.copy_(value)


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype of the arithmetic on a parameter: its own, at least float32."""
    return dtype if dtype.itemsize >= 4 else torch.float32
