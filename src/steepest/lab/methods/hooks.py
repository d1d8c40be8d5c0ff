"""What some optimizers ask of a training loop: other weights for evaluation, a second gradient, another schedule.

Nothing here knows an optimizer by name. The loop calls these for every run; for most methods they do nothing.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import nn

from steepest.lab.config import ScheduleConfig
from steepest.lab.methods.accounting import unwrapped


@contextlib.contextmanager
def evaluated_weights(optimizer: torch.optim.Optimizer, active: bool = True) -> Iterator[None]:
    """Inside the block the parameters are the ones to evaluate; after it, exactly those that are trained.

    An optimizer with ``train()`` and ``eval()`` (the schedule-free ones) trains at other points than it returns. Its
    way there and back rounds, so the trained weights are kept aside: how often a run is evaluated changes nothing.
    """
    owner: Any = unwrapped(optimizer)
    if not active or not callable(getattr(owner, "eval", None)) or not callable(getattr(owner, "train", None)):
        yield
        return
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    trained = [parameter.detach().clone() for parameter in parameters]
    owner.eval()
    try:
        yield
    finally:
        owner.train()
        with torch.no_grad():
            for parameter, value in zip(parameters, trained, strict=True):
                parameter.copy_(value)


def offer_sample(
    optimizer: torch.optim.Optimizer, model: nn.Module, pieces: Sequence[torch.Tensor], precision: str
) -> None:
    """Give an optimizer that wants one at this step the mean gradient of labels drawn from the model itself.

    Args:
        optimizer: wants it when it has ``wants_sample()`` and ``take_sample(gradients, count)``; gradients are in the
            order of its groups, `count` is the number of predictions.
        model: gives the logits; its gradients are left alone.
        pieces: the rows of tokens of the step, as they fit the memory.
        precision: "fp32" or "bf16".
    """
    owner: Any = unwrapped(optimizer)
    if not hasattr(owner, "wants_sample") or not owner.wants_sample():
        return
    parameters = [parameter for group in owner.param_groups for parameter in group["params"]]
    totals = [torch.zeros_like(parameter) for parameter in parameters]
    count = sum(rows.shape[0] * (rows.shape[1] - 1) for rows in pieces)
    for rows in pieces:
        with torch.autocast(rows.device.type, dtype=torch.bfloat16, enabled=precision == "bf16"):
            logits = model(input_ids=rows[:, :-1], use_cache=False).logits
        logits = logits.float().flatten(0, 1)
        labels = torch.multinomial(torch.softmax(logits.detach(), dim=1), 1).flatten()
        loss = nn.functional.cross_entropy(logits, labels, reduction="sum") / count
        gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
        for index, gradient in enumerate(gradients):
            if gradient is not None:
                totals[index] += gradient
    owner.take_sample(totals, count)


def schedule(workload: ScheduleConfig, kind: str) -> ScheduleConfig:
    """The workload's schedule, with its warm-up and another shape after it; "workload" changes nothing."""
    return workload if kind == "workload" else workload.model_copy(update={"kind": kind})
