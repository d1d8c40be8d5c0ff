"""The state of a parameter: declared buffers, made at construction and kept in their dtypes, or refused."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from steepest import sharding
from steepest.rules.base import Rule, by_name, closest, options, scales_key

COUNTER = "step"
FIT = "fit"


def kept_specs(rule: Rule) -> dict[str, tuple[torch.Size, torch.dtype]]:
    """Shape and dtype of what is kept on the CPU for each parameter beside its buffers: step counter, and fits."""
    specs = {COUNTER: (torch.Size(()), torch.int64)}
    if rule.fitted:
        specs[FIT] = (torch.Size((len(rule.fitted), 2)), torch.float64)
    return specs


def kept_bytes(rule: Rule) -> int:
    """Bytes of that."""
    return sum(shape.numel() * dtype.itemsize for shape, dtype in kept_specs(rule).values())


def create(rule: Rule, param: Tensor) -> dict[str, Tensor]:
    """The state of a new parameter: a step counter, no fit, and zeros of the declared shapes and dtypes."""
    state: dict[str, Tensor] = {
        key: torch.zeros(shape, dtype=dtype) if key == COUNTER else torch.full(shape, math.nan, dtype=dtype)
        for key, (shape, dtype) in kept_specs(rule).items()
    }
    for name, (shape, dtype) in rule.state_specs(param.shape, param.dtype).items():
        if shape == param.shape and name not in rule.whole:  # keeps the memory layout, and the sharding of a DTensor
            state[name] = torch.zeros_like(param, dtype=dtype, requires_grad=False)
        elif name in map(scales_key, rule.coded):
            state[name] = sharding.zero_rows(shape, dtype, param)
        else:
            state[name] = torch.zeros(shape, dtype=dtype, device=param.device)
    return state


def forget_fit(state: Mapping[str, Tensor]) -> None:
    """As if none had been made."""
    state[FIT].fill_(math.nan)


def plain(value: Any) -> Any:
    """A number of numpy, as schedulers leave them in groups, as one of Python; a pair likewise; all else as it is."""
    if isinstance(value, np.generic):
        return value.item()
    return tuple(map(plain, value)) if isinstance(value, tuple) else value


def rule_of(group: Mapping[str, Any]) -> Rule:
    """The rule of a param group, with the numbers that stand in the group now."""
    cls = by_name(group["rule"])
    return cls(**{name: plain(group[name]) for name in options(cls)})


def check_loaded(groups: list[dict[str, Any]], names: list[list[str]], loaded: Mapping[str, Any]) -> None:
    """Refuse a checkpoint that is not of these parameters and rules.

    Args:
        groups: the optimizer's param groups.
        names: parameter names by group.
        loaded: the state dict to be loaded.

    Raises:
        ValueError: with the group, parameter or key that does not fit.
    """
    for key in ("state", "param_groups"):
        if key not in loaded:
            raise ValueError(f"not an optimizer checkpoint: it has no {key!r}; its keys are {sorted(map(str, loaded))}")
    saved_groups = loaded["param_groups"]
    if len(saved_groups) != len(groups):
        raise ValueError(
            f"the checkpoint has {len(saved_groups)} param groups and this optimizer {len(groups)}: build the "
            "optimizer with the same model and routing as when it was saved"
        )
    for i, (group, saved, group_names) in enumerate(zip(groups, saved_groups, names, strict=True)):
        _check_group(i, group, saved)
        for param, name, index in zip(group["params"], group_names, saved["params"], strict=True):
            _check_state(rule_of({**group, **_options_in(saved)}), param, name, loaded["state"].get(index))
    known = {index for saved in saved_groups for index in saved["params"]}
    for index in loaded["state"]:
        if index not in known:
            raise ValueError(f"the checkpoint has state for parameter {index!r}, which is in none of its param groups")


def _options_in(group: Mapping[str, Any]) -> dict[str, Any]:
    return {name: group[name] for name in options(by_name(group["rule"])) if name in group}


def _check_group(i: int, group: Mapping[str, Any], saved: Mapping[str, Any]) -> None:
    if saved.get("rule") != group["rule"]:
        kind = f"the rule {saved['rule']!r}" if "rule" in saved else "no rule: it is of another optimizer"
        raise ValueError(f"group {i} of the checkpoint has {kind}, this optimizer has {group['rule']!r} there")
    if len(saved["params"]) != len(group["params"]):
        raise ValueError(
            f"group {i} of the checkpoint has {len(saved['params'])} parameters, this optimizer has "
            f"{len(group['params'])} there"
        )
    own, theirs = group["param_names"], saved.get("param_names", [])
    in_order = own == theirs or sorted(own) != sorted(theirs)  # other names may be those of a wrapped model
    if not in_order and not isinstance(saved["params"][0], str):  # torch.distributed.checkpoint orders them by name
        first = next(i for i, (a, b) in enumerate(zip(own, theirs, strict=True)) if a != b)
        raise ValueError(
            f"group {i} of the checkpoint has its parameters in another order: {theirs[first]!r} where this optimizer "
            f"has {own[first]!r}; build the optimizer with the parameters in the order of the checkpoint"
        )
    known = (*options(by_name(group["rule"])), "maximize")
    missing = [name for name in known if name not in saved]
    if missing:
        raise ValueError(
            f"group {i} of the checkpoint lacks {', '.join(missing)}: it is of another version or was edited"
        )


def _check_state(rule: Rule, param: Tensor, name: str, saved: Mapping[str, Any] | None) -> None:
    specs = rule.state_specs(param.shape, param.dtype)
    wanted = {**kept_specs(rule), **specs}
    if saved is None:
        if not param.requires_grad:  # a frozen parameter has no state until it is unfrozen
            return
        raise ValueError(f"the checkpoint has no state for parameter {name!r}")
    for key in saved:
        if key not in wanted:
            raise ValueError(f"unknown state {key!r} of parameter {name!r} in the checkpoint{closest(key, wanted)}")
    for key in sorted(wanted):
        if key not in saved:
            raise ValueError(f"the checkpoint lacks the state {key!r} of parameter {name!r}")
    for key, (shape, _) in wanted.items():
        there = saved[key]
        if key != COUNTER and not isinstance(there, Tensor):
            raise ValueError(f"state {key!r} of parameter {name!r} is no tensor in the checkpoint: {there!r:.80}")
        there = tuple(torch.as_tensor(there).shape)
        if there != tuple(shape):
            raise ValueError(
                f"state {key!r} of parameter {name!r} has shape {there} in the checkpoint, {tuple(shape)} here"
            )


def check_kept(rule: Rule, param: Tensor, name: str, state: Mapping[str, Tensor]) -> None:
    """Refuse options that were set in a group when the state was already made, and need another one.

    Raises:
        ValueError: with the parameter and the buffer.
    """
    specs = rule.state_specs(param.shape, param.dtype)
    kept = {key: tensor.shape for key, tensor in state.items() if key not in (COUNTER, FIT)}
    wanted = {key: shape for key, (shape, _) in specs.items()}
    if kept != wanted:
        key = next(key for key in (*wanted, *kept) if kept.get(key) != wanted.get(key))
        there = f"{key!r} of shape {tuple(kept[key])}" if key in kept else f"no {key!r}"
        needed = f"{key!r} of shape {tuple(wanted[key])}" if key in wanted else f"no {key!r}"
        raise ValueError(
            f"an option of {rule.name} was changed after the state of {name!r} was made, which has {there}; now "
            f"{needed} is needed: give the option to the optimizer when it is built"
        )


def adopt(rule: Rule, param: Tensor, saved: Mapping[str, Any]) -> dict[str, Tensor]:
    """Copy a checked state, in the declared dtypes (torch would cast it to the dtype of the parameter)."""
    state = {
        key: torch.as_tensor(saved[key]).detach().to("cpu", dtype, copy=True)
        for key, (_, dtype) in kept_specs(rule).items()
    }
    for name, (_, dtype) in rule.state_specs(param.shape, param.dtype).items():
        state[name] = saved[name].detach().to(param.device, dtype, copy=True)
    return state
