"""What an optimizer holds and what goes where, of ours and of anyone's."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from steepest.lab.schedules import set_rates


def tensors(state: Any) -> Iterator[torch.Tensor]:
    """Every tensor in an optimizer's state, also in lists, mappings and the attributes of a package's own objects."""
    stack, seen = [state], set()
    while stack:
        value = stack.pop()
        if isinstance(value, torch.Tensor):
            yield value
        elif isinstance(value, Mapping):
            stack.extend(value.values())
        elif isinstance(value, list | tuple):
            stack.extend(value)
        elif hasattr(value, "__dict__") and not isinstance(value, type) and id(value) not in seen:
            seen.add(id(value))
            stack.extend(vars(value).values())


def state_bytes(optimizer: torch.optim.Optimizer) -> int:
    """Bytes of all distinct tensor storages in the optimizer's state; of a wrapper's own state too."""
    own = []
    while isinstance(base := getattr(optimizer, "base", None), torch.optim.Optimizer):
        own.append(optimizer.own_state() if hasattr(optimizer, "own_state") else None)
        optimizer = base
    return _bytes([optimizer.state, own])


def state_by_role(
    optimizer: torch.optim.Optimizer,
    roles: Mapping[nn.Parameter, str],
    size: Callable[[nn.Parameter, str, torch.Tensor], int] | None = None,
) -> dict[str, int]:
    """Bytes of all distinct storages in the state of the parameters, by role; also on the meta device.

    Args:
        optimizer: has its state.
        roles: of the parameters.
        size: bytes to count for a tensor under a key of a parameter's state. Default: those of its storage.
    """
    table, seen = dict.fromkeys(roles.values(), 0), set()
    for parameter, role in roles.items():
        for key, value in optimizer.state.get(parameter, {}).items():
            for tensor in tensors(value):
                storage = tensor.untyped_storage()
                if storage._cdata not in seen:
                    seen.add(storage._cdata)
                    table[role] += size(parameter, key, tensor) if size else storage.nbytes()
    return table


def _bytes(state: Any) -> int:
    storages = {tensor.untyped_storage()._cdata: tensor.untyped_storage().nbytes() for tensor in tensors(state)}
    return sum(storages.values())


def unwrapped(optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
    """The optimizer under wrappers such as SAC, whose `base` it is."""
    while isinstance(base := getattr(optimizer, "base", None), torch.optim.Optimizer):
        optimizer = base
    return optimizer


def routing_rows(
    model: nn.Module, optimizer: torch.optim.Optimizer, rates: Sequence[float] | None = None
) -> list[dict[str, Any]]:
    """One row per parameter for reports: name, shape, view, role, rule, expected RMS step, state bytes and why.

    A steepest optimizer reports its own routing; for any other one the rows say which group a parameter is in.

    Args:
        model: owns the parameters.
        optimizer: has taken a step, so that it has its state.
        rates: of the groups, for the expected steps. Default: as they are now, wherever the schedule stands.
    """
    import steepest

    groups, base = optimizer.param_groups, unwrapped(optimizer)
    if isinstance(base, steepest.Steepest):
        now = [float(group["lr"]) for group in groups]
        set_rates(groups, rates or now, 1.0)
        rows = [dict(row) for row in base.rows()]
        set_rates(groups, now, 1.0)
        return rows
    roles = steepest.roles(model)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    rows = [
        {
            "name": names[id(parameter)],
            "shape": list(parameter.shape),
            "view": None,
            "role": roles[names[id(parameter)]].kind,
            "rule": type(base).__name__,
            "rms_step": None,
            "state_bytes": _bytes(base.state.get(parameter, {})),
            "why": f"group {label!r}",
        }
        for label, group in zip(group_labels(model, optimizer), groups, strict=True)
        for parameter in group["params"]
    ]
    order = list(names.values())
    return sorted(rows, key=lambda row: order.index(row["name"]))


def group_labels(model: nn.Module, optimizer: torch.optim.Optimizer) -> list[str]:
    """A name for each parameter group: its "label" or rule, and the roles in it where two groups share that."""
    import steepest

    given = [str(group.get("label") or group.get("rule") or "all") for group in optimizer.param_groups]
    if len(set(given)) == len(given):
        return given
    roles = steepest.roles(model)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    labels = []
    for label, group in zip(given, optimizer.param_groups, strict=True):
        kinds = sorted({roles[names[id(parameter)]].kind for parameter in group["params"]})
        labels.append(label if given.count(label) == 1 else f"{label}: {', '.join(kinds)}")
    return [label if labels.count(label) == 1 else f"{label} {index}" for index, label in enumerate(labels)]
