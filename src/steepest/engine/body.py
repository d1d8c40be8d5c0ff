"""The step of one tensor: one text that runs on a tensor, on a piece of one, on a list of tensors, and compiled."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from torch import Tensor

from steepest.engine.precision import Value, cast
from steepest.engine.tensors import TensorList
from steepest.rules.base import Geometry, Numbers, Rule

T = TypeVar("T", Tensor, TensorList)


@dataclass(frozen=True)
class Body:
    """Direction, map, decay, step: the specification that every backend runs and is tested against."""

    rule: Rule
    geometry: Geometry
    maximize: bool

    def __call__(self, param: Value[T], grad: T, state: Mapping[str, Value[T]], numbers: Numbers) -> None:
        """Step ``param`` and its buffers in place by an element-wise map; ``grad`` is only read."""
        wide = param.load()
        descend(wide, self.geometry(self.direction(wide, grad, state, numbers), numbers), numbers)
        param.store(wide)

    def direction(
        self, like: T, grad: T, state: Mapping[str, Value[T]], numbers: Numbers, *, trial: bool = False
    ) -> Any:
        """The rule's direction in the dtype of ``like``; the buffers are brought up to date, but not in a trial."""
        wide: Any = {name: buffer.load(like) for name, buffer in state.items()}
        g: Any = cast(grad, like.dtype)
        g = -g if self.maximize else g
        if trial:
            return self.rule.trial(g, wide, numbers)
        d = self.rule.direction(g, wide, numbers)
        for name, buffer in state.items():
            buffer.store(wide[name])
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
