"""Wrappers as prefixes: "sac+adamw", "sac-constant+lion", "sgg+muon" are methods like any other."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from steepest.lab.errors import UserError
from steepest.lab.methods.record import Builder, Method

_CLASSES = {"sac": "SAC", "sgg": "SGG"}
_PAPERS = {
    "sac": "scaled by layer and block: SAC, OpenReview EB92tITeNq",
    "sgg": "scaled by clusters of the momentum: SGG, arXiv 2506.01049",
}
_FORMULAS = {"sac": "S of (layer, block) x step of {}", "sgg": "S of the cluster x step of {}"}
PREFIXES = tuple(f"{prefix}+" for prefix in _CLASSES)


def is_prefix(prefix: str) -> bool:
    """Whether a name may begin so: a wrapper, or "sac-MODE" for SAC in that mode."""
    return prefix in _CLASSES or prefix.startswith("sac-")


def wrap(prefix: str, base: Method) -> Method:
    """The method `base` in a wrapper. Its options are those of the base, and those of the wrapper as "sac_..."."""
    kind, _, mode = prefix.partition("-")
    defaults = _defaults(kind) | ({f"{kind}_mode": mode} if mode else {})
    return dataclasses.replace(
        base,
        name=f"{prefix}+{base.name}",
        label=f"{_CLASSES[kind]}{f' ({mode})' if mode else ''} + {base.label}",
        paper=f"{_PAPERS[kind]}; over {base.paper}",
        formula=f"{_FORMULAS[kind].format(base.label)}: {base.formula}",
        options=base.options | defaults,
        build=_builder(kind, base),
    )


def _wrapper(kind: str) -> Any:
    import steepest

    try:
        return getattr(steepest, _CLASSES[kind])
    except AttributeError:
        raise UserError(f"this version of steepest has no {_CLASSES[kind]}.") from None


# Keywords whose values are no numbers or words.
_NOT_OPTIONS = ("partition", "scales")


def _defaults(kind: str) -> dict[str, Any]:
    """The wrapper's keywords as options. A default that depends on others is given by its words, "of the mode"."""
    parameters: Mapping[str, inspect.Parameter] = inspect.signature(_wrapper(kind)).parameters
    return {
        f"{kind}_{name}": parameter.default if _is_plain(parameter.default) else str(parameter.default)
        for name, parameter in parameters.items()
        if parameter.kind is parameter.KEYWORD_ONLY and name not in _NOT_OPTIONS
    }


def _is_plain(value: Any) -> bool:
    return value is None or isinstance(value, bool | int | float | str | tuple)


def _builder(kind: str, base: Method) -> Builder:
    def build(model: nn.Module, lr: float, options: dict[str, Any]) -> torch.optim.Optimizer:
        defaults = _defaults(kind)
        changed = {key: value for key, value in options.items() if key in defaults and value != defaults[key]}
        own = {key.removeprefix(f"{kind}_"): value for key, value in changed.items()}
        own = {key: tuple(value) if isinstance(value, list) else value for key, value in own.items()}
        rest = {key: value for key, value in options.items() if key not in defaults}
        optimizer: torch.optim.Optimizer = _wrapper(kind)(base.build(model, lr, rest), model, **own)
        return optimizer

    return build
