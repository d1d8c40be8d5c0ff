"""What is accounted: a method on a workload, built as a run builds it."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from steepest.lab import methods, models
from steepest.lab.compute import pick_device
from steepest.lab.config import MethodConfig, TrainConfig, Workload
from steepest.lab.methods.accounting import unwrapped

# How packages and rules call "every so many steps"; some are in the groups, a wrapper's are its options.
_INTERVALS = (
    "period",
    "refresh_every",
    "interval",
    "update_period",
    "precondition_frequency",
    "preconditioning_compute_steps",
    "update_proj_gap",
)
_STARTS = ("start_preconditioning_step",)  # ... and "not before this step"
_SHORT = 32  # a cycle up to here is carried out whole; what comes more seldom is added as its share
_TOKENS = 4096  # most tokens of a batch that only gradients of the usual kind are wanted from


@dataclass(frozen=True, kw_only=True)
class Job:
    """A method on a workload, all that a process of its own has to know.

    Args:
        method: the optimizer with its learning rate and options.
        workload: its model, batch and length are used, its data only for gradients.
        vocabulary: number of tokens; None for the model's own.
        seed: of the initial weights and of what is drawn.
        device: "cpu", "cuda", ... or "auto".
        threads: of torch.
        cache: folder of prepared data; None for the default.
        data: take gradients on the workload's data; otherwise on random tokens.
    """

    method: MethodConfig
    workload: Workload
    vocabulary: int | None = None
    seed: int = 0
    device: str = "cpu"
    threads: int = 1
    cache: str | None = None
    data: bool = False

    def model(self, device: str | None = None) -> nn.Module:
        """Build the model, by default on the job's device."""
        place = device or str(pick_device(self.device))
        return models.build(self.workload.model, self.vocabulary, self.seed, self.workload.sequence_length, place)

    def optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        """Build the optimizer as a run of the workload does."""
        return methods.build(self.method, model, self.workload.steps)

    def batches(self, model: nn.Module) -> Callable[[int], Tensor]:
        """Batches of (rows, length + 1) tokens by step: the first rows of those of a run, or random ones."""
        length, device = self.workload.sequence_length, next(model.parameters()).device
        rows = min(self.workload.batch_size, max(1, _TOKENS // length))
        if not self.data:
            size = int(model.config.vocab_size)  # type: ignore[union-attr, arg-type]

            def drawn(step: int) -> Tensor:
                generator = torch.Generator().manual_seed(1000 * self.seed + step)
                return torch.randint(size, (rows, length + 1), generator=generator).to(device)

            return drawn
        from steepest.lab.workloads import open_data

        pack = open_data(TrainConfig(workload=self.workload, cache=self.cache))
        stream = pack.train(batch_size=self.workload.batch_size, length=length, seed=self.seed)
        return lambda step: stream.batch(step)[:rows].to(device)


def parameters(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    """All parameters of an optimizer, in the order of its groups."""
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def give_noise(optimizer: torch.optim.Optimizer, seed: int = 0) -> None:
    """Set the gradients of all parameters to normal numbers of the size that gradients have."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in parameters(optimizer):
        noise = torch.randn(parameter.shape, generator=generator).mul_(1e-3)
        parameter.grad = noise.to(parameter.device, parameter.dtype)


def give_sample(optimizer: torch.optim.Optimizer) -> bool:
    """Give an optimizer that wants a second gradient at this step the one it has, in its place; whether it did."""
    owner: Any = unwrapped(optimizer)
    if not callable(getattr(owner, "wants_sample", None)) or not owner.wants_sample():
        return False
    owner.take_sample([torch.zeros_like(p) if p.grad is None else p.grad for p in parameters(owner)], 1)
    return True


@dataclass(frozen=True)
class Cycle:
    """After how many steps an optimizer does the same again.

    Attributes:
        steps: of the cycle, without what comes more seldom than every 32 steps.
        seldom: the longest interval beyond that; None if there is none.
        start: steps after which the cycle is what it will always be.
    """

    steps: int = 1
    seldom: int | None = None
    start: int = 1


def cycle(optimizer: torch.optim.Optimizer) -> Cycle:
    """Read the intervals of an optimizer: periods of its rules, refreshes of its projections and factors."""
    settings: list[dict[str, Any]] = list(optimizer.param_groups)
    wrapper: Any = optimizer
    while wrapper is not unwrapped(optimizer):
        settings.append(getattr(wrapper, "options", {}))
        wrapper = wrapper.base
    settings.append({key: getattr(wrapper, key, None) for key in (*_INTERVALS, *_STARTS)})

    def whole(keys: tuple[str, ...]) -> set[int]:
        found = [setting.get(key) for setting in settings for key in keys]
        numbers = [v for v in found if isinstance(v, int | float) and not isinstance(v, bool)]
        return {int(number) for number in numbers if 1 <= number < math.inf}

    intervals = whole(_INTERVALS)
    short = math.lcm(*(value for value in intervals if value <= _SHORT))
    # Intervals that do not divide each other are all short ones in turn; nobody has more than two.
    steps = short if short <= _SHORT else max(value for value in intervals if value <= _SHORT)
    seldom = max((value for value in intervals if value > _SHORT), default=None)
    return Cycle(steps, seldom, max(whole(_STARTS), default=1))
