"""How far a step really moves the weights: root mean square of the change by role, weight decay excluded."""

from __future__ import annotations

import math
from collections import Counter, defaultdict

import torch
from torch import nn

from steepest.lab import methods
from steepest.lab.accounting.subject import Job, cycle, parameters
from steepest.lab.compute import loss_sum
from steepest.routing import named_roles

# Steps before the ones that are measured: the first step of an average is that of a sign, whatever the rule.
_BEFORE = 10


def measure(job: Job, before: int = _BEFORE) -> dict[str, float]:
    """Train some steps at the full learning rate on the gradients of real batches, and measure a cycle of steps.

    Args:
        job: its batches are cut to 4,096 tokens; the gradient is clipped as in a run.
        before: steps before the measured ones.

    Returns:
        The RMS of the change of a weight in a step, by role, over the steps of a cycle.
    """
    model = job.model()
    optimizer = job.optimizer(model)
    without_decay(optimizer)
    batch = job.batches(model)
    steps = cycle(optimizer).steps
    sums: defaultdict[str, float] = defaultdict(float)
    roles = [(parameter, role.kind) for _, parameter, role in named_roles(model)]
    for step in range(before + steps):
        tokens = batch(step)
        optimizer.zero_grad(set_to_none=True)
        (loss_sum(model, tokens, "fp32") / tokens[:, 1:].numel()).backward()
        clip = job.workload.clip
        nn.utils.clip_grad_norm_(parameters(optimizer), math.inf if clip is None else clip)
        methods.offer_sample(optimizer, model, [tokens], "fp32")
        old = [parameter.detach().clone() for parameter, _ in roles] if step >= before else []
        optimizer.step()
        for (parameter, kind), value in zip(roles, old, strict=False):
            sums[kind] += float((parameter.detach() - value).double().square().sum())
    counts: Counter[str] = Counter()
    for parameter, kind in roles:
        counts[kind] += parameter.numel()
    found = {kind: math.sqrt(sums[kind] / (steps * counts[kind])) for kind in counts}
    if not all(math.isfinite(value) for value in found.values()):
        raise ArithmeticError(f"the weights are no longer finite after {before + steps} steps")
    return found


def without_decay(optimizer: torch.optim.Optimizer) -> None:
    """Set every weight decay of an optimizer to 0, also that of vectors where it has a name of its own."""
    for group in optimizer.param_groups:
        for key, value in group.items():
            if key.startswith("weight_decay") and isinstance(value, int | float) and not isinstance(value, bool):
                group[key] = 0.0
