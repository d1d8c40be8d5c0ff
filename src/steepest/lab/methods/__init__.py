"""Optimizers by name, for the command line and for comparisons: how to build each on a model, and what to try first.

A method has one tuned number, its learning rate; every other rate is a ratio to it. The grids are for models of 0.1 to
10 million parameters and a few hundred to a few thousand steps: the papers' rates at 124M parameters are 5 to 30 times
smaller, and `presets` and `steepest.rules.PRESETS` have them.

`ours` has the methods of this library, `baselines` everybody else's, built by one `adapter`; a prefix wraps any of
them: "sac+adamw", "sac-constant+lion", "sgg+adamw" (`wrapped`).
"""

from __future__ import annotations

import math

import torch
from torch import nn

from steepest.lab.config import MethodConfig, ScheduleConfig
from steepest.lab.errors import UserError, unknown
from steepest.lab.methods import hooks, wrapped
from steepest.lab.methods.accounting import group_labels, routing_rows, state_by_role, state_bytes, tensors
from steepest.lab.methods.baselines import baselines
from steepest.lab.methods.hooks import evaluated_weights, offer_sample
from steepest.lab.methods.ours import ours
from steepest.lab.methods.record import Builder, Method

__all__ = [
    "METHODS",
    "Builder",
    "Method",
    "build",
    "check",
    "evaluated_weights",
    "find",
    "group_labels",
    "offer_sample",
    "resolve",
    "routing_rows",
    "schedule",
    "state_by_role",
    "state_bytes",
    "tensors",
]

METHODS: dict[str, Method] = {method.name: method for method in (*ours(), *baselines())}


def find(name: str) -> Method:
    """The method of a name; a `UserError` with the closest names if there is none."""
    if name in METHODS:
        return METHODS[name]
    prefix, plus, rest = name.partition("+")
    if plus and wrapped.is_prefix(prefix):
        return wrapped.wrap(prefix, find(rest))
    raise unknown("optimizer", name, [*METHODS, *wrapped.PREFIXES])


def resolve(config: MethodConfig) -> MethodConfig:
    """Fill in the default learning rate and options, so that equal runs have equal configurations.

    Raises:
        UserError: an unknown optimizer or option, with the closest names.
    """
    method = find(config.name)
    for option in config.options:
        if option not in method.options:
            raise unknown(f"option of {method.name}", option, method.options)
    lr = method.lr if config.lr is None else config.lr
    return config.model_copy(update={"lr": lr, "options": method.options | config.options})


def build(config: MethodConfig, model: nn.Module, steps: int) -> torch.optim.Optimizer:
    """Build the optimizer of a (resolved or unresolved) configuration on a model, for a run of so many steps.

    Raises:
        UserError: a bad name, option or value, or a package that is not installed.
    """
    config = resolve(config)
    assert config.lr is not None
    if not math.isfinite(config.lr) or config.lr <= 0:
        raise UserError(f"{config.name}: the learning rate must be a positive number, got {config.lr}.")
    options = dict(config.options)
    if "transition" in options:
        options["total_steps"] = steps
    try:
        return find(config.name).build(model, config.lr, options)
    except UserError:
        raise
    except (TypeError, ValueError) as error:
        raise UserError(str(error)) from error


def check(config: MethodConfig, steps: int) -> None:
    """Build the optimizer on a toy model: a bad name, option or value raises its `UserError` now, not in an hour."""
    toy = nn.Sequential(nn.Embedding(4, 4), nn.Linear(4, 4), nn.LayerNorm(4), nn.Linear(4, 4, bias=False))
    build(config, toy, steps)


def schedule(config: MethodConfig, workload: ScheduleConfig) -> ScheduleConfig:
    """The schedule of a run: the workload's, with another shape after the warm-up where the method has its own."""
    return hooks.schedule(workload, resolve(config).options.get("schedule", "workload"))
