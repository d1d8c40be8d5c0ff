"""Memory of an optimizer after and during a step that was really carried out."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile

from steepest.lab import methods
from steepest.lab.accounting.subject import Job, cycle, give_noise, give_sample
from steepest.routing import named_roles

_STEPS = 10  # most steps of a cycle that are looked at


def measure(job: Job) -> dict[str, Any]:
    """Bytes of the state by role, and the most that a step allocates beside it and gives back.

    Returns:
        "state_bytes" (with "total"), "transient_bytes" and "transient_source".
    """
    model = job.model()
    optimizer = job.optimizer(model)
    turns = cycle(optimizer)
    peak, source = 0, ""
    for step in range(1 + min(turns.steps, _STEPS)):
        give_noise(optimizer, step)
        give_sample(optimizer)
        if step:
            used, source = transient(optimizer)
            peak = max(peak, used)
        else:
            optimizer.step()  # makes the state, which is not transient
    return {
        "state_bytes": state_by_role(optimizer, model),
        "transient_bytes": peak,
        "transient_source": source,
    }


def state_by_role(optimizer: torch.optim.Optimizer, model: nn.Module) -> dict[str, int]:
    """Bytes of the distinct storages in the state, by role of the parameters.

    What belongs to no parameter, such as the statistics of a wrapper, is "shared"; "total" is the sum.
    """
    table = methods.state_by_role(optimizer, {parameter: role.kind for _, parameter, role in named_roles(model)})
    total = methods.state_bytes(optimizer)
    if total > sum(table.values()):
        table["shared"] = total - sum(table.values())
    return {**table, "total": total}


def transient(optimizer: torch.optim.Optimizer) -> tuple[int, str]:
    """Take a step; the most that torch's allocator held during it beyond what it held before, and how that is known.

    What a package allocates past torch's allocator is not seen.
    """
    if any(parameter.is_cuda for group in optimizer.param_groups for parameter in group["params"]):
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        optimizer.step()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before, "CUDA peak statistics"
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        optimizer.step()
    assert recorded.profiler is not None
    assert recorded.profiler.kineto_results is not None
    events = [event for event in recorded.profiler.kineto_results.events() if event.name() == "[memory]"]
    live = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        live += event.nbytes()
        peak = max(peak, live)
    return peak, "memory events of torch's profiler"
