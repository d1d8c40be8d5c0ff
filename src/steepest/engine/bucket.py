"""A bucket: the parameters of one group that take the same step together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from steepest import sharding
from steepest.engine import elements, matrices, sums
from steepest.engine.precision import Operands, Place
from steepest.engine.state import COUNTER, FIT
from steepest.routing.views import View
from steepest.rules.base import Phase, Rule


@dataclass(frozen=True)
class Member:
    """One parameter and what belongs to it.

    Attributes:
        name: for messages.
        param: the parameter.
        state: its buffers by name.
        view: how it is a stack of matrices.
        number: of it in the optimizer.
    """

    name: str
    param: Tensor
    state: dict[str, Tensor]
    view: View
    number: int = 0

    def gradient(self) -> Tensor:
        """The gradient; never written."""
        assert self.param.grad is not None
        return self.param.grad  # as it is: a step runs without autograd, and detaching would be a call for each

    @cached_property
    def layout(self) -> tuple[tuple[str, torch.dtype], ...]:
        """What its state consists of; equal for the members of a bucket."""
        return tuple((key, tensor.dtype) for key, tensor in self.state.items())

    @cached_property
    def origin(self) -> tuple[int, ...]:
        """Where in the whole tensor the shard of this process begins."""
        return tuple(part.start or 0 for part in sharding.local_slices(self.param))


@dataclass(frozen=True)
class Bucket:
    """Parameters of one group, one dtype, one layout of the state and one device, at the same step.

    A method that the grammar of rules cannot say overrides ``Rule.update(bucket)`` and works on the members itself.

    Attributes:
        rule: with the current numbers of the group.
        step: 0-based step of these parameters.
        members: the parameters, each with a gradient.
        group: index of their param group.
        lr: the learning rate of the group, a number or a 0-dim tensor.
        maximize: ascend instead of descend.
    """

    rule: Rule
    step: int
    members: Sequence[Member]
    group: int
    lr: float | Tensor
    maximize: bool = False

    @cached_property
    def keys(self) -> tuple[str, ...]:
        """Of the state of each member, without what every process has whole."""
        return tuple(key for key, _ in self.members[0].layout if key not in (*self.rule.whole, COUNTER, FIT))

    @cached_property
    def column_sums(self) -> list[Tensor]:
        """Of each member, for a rule that needs sums: made before anything is changed, since they tell of bad input."""
        return sums.column_sums(self.rule, self.members)

    def operands(self, member: Member) -> Operands[Tensor]:
        """What a step of a member reads and writes: the local shards."""
        param, state = member.param, member.state
        tensors = [sharding.local(param), sharding.local(member.gradient())]
        tensors += [sharding.local(state[key]) for key in self.keys]
        place = Place(self.rule.seed, self.step, member.number, param.shape, member.origin, tensors[0].shape)
        return Operands(self.rule, self.keys, tensors, [place])

    def descend(self) -> None:
        """Take the step that the rule declares: direction, map, scale, decay, step."""
        phase = self.rule.phase(self.step)
        if phase.gate is None or phase.otherwise is None:
            self._take(phase, self.members)
            return
        chosen = list(zip(self.members, matrices.passes(self, phase), strict=True))
        self._take(phase, [m for m, passed in chosen if all(passed)])
        self._take(phase.otherwise, [m for m, passed in chosen if passed and not any(passed)])
        for member, passed in chosen:
            if any(passed) and not all(passed):
                matrices.run_mixed(self, phase, member, passed)

    def numbers(self, phase: Phase) -> dict[str, Any]:
        """The numbers of the rule at this step, with the ``rate`` of the phase and the share of a weight it keeps."""
        rate: Any = self.lr * phase.lr_ratio
        decay: Any = rate if phase.decay_ratio is None else self.lr * phase.decay_ratio
        return {**self.rule.numbers(self.step), "rate": rate, "keep": 1.0 - decay * self.rule.weight_decay}

    def _take(self, phase: Phase, members: Sequence[Member]) -> None:
        {"matrix": matrices, "sums": sums, "element": elements}[phase.geometry.needs].run(self, phase, members)
