"""The modes and presets of SAC, and the checks of its options."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from types import MappingProxyType
from typing import Any

from steepest.rules.base import check_choice, check_range, check_whole, closest
from steepest.scaling.factors import FACTORS, granularity
from steepest.scaling.partition import Partition
from steepest.scaling.places import Key

_EQUATIONS = {"gamma": 0.5, "beta": 0.5, "rho": 0.1, "interval": 10, "bounds": (0.1, 10.0), "eps": 1e-12}
_ALGORITHM1 = {"interval": 10, "bounds": (0.1, 10.0), "block_scale": "mad", "normalize_block": False}
# What a mode computes, and the values of its options where none are given.
MODES: Mapping[str, tuple[str, Mapping[str, Any]]] = MappingProxyType(
    {
        "equations": ("equations", _EQUATIONS),
        "equations-raw": ("equations", {**_EQUATIONS, "gamma": 1.0, "beta": 1.0, "rho": 1.0, "bounds": None}),
        "algorithm1": ("algorithm1", _ALGORITHM1),
        "paper-c4": ("algorithm1", {**_ALGORITHM1, "interval": 500}),
        "paper-sft": ("algorithm1", {**_ALGORITHM1, "interval": 500, "bounds": (0.5, 1.0)}),
        "constant": ("constant", {"bounds": (0.1, 10.0), "scales": None}),
    }
)
OF_THE_MODE: Any = type("_OfTheMode", (), {"__repr__": lambda _: "of the mode"})()


def settings(mode: str, given: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """What a mode computes, and its options: those that were given, and its own values of the others."""
    check_choice("SAC", "mode", mode, MODES)
    formula, defaults = MODES[mode]
    given = {name: value for name, value in given.items() if value is not OF_THE_MODE}
    for name in given:
        if name not in defaults:
            raise TypeError(f"SAC: the mode {mode!r} has no option {name!r}; its own are {', '.join(defaults)}")
    return formula, {**defaults, **given}


def used_factors(factors: Collection[str] | None, name: str | None) -> frozenset[str]:
    """Which of layer, block and group factors are used, from either way to say it."""
    if factors is not None and name is not None:
        raise TypeError("SAC: give factors or granularity, not both: they are two names of one thing")
    if name is not None:
        return granularity(name)
    used = frozenset({"layer", "block"} if factors is None else [factors] if isinstance(factors, str) else factors)
    for each in used:
        check_choice("SAC", "factors", each, FACTORS)
    return used


def check_settings(options: Mapping[str, Any], grouping: tuple[str, float, Any]) -> None:
    """Refuse what is out of range."""
    for name, high in (("gamma", 1.0), ("beta", math.inf), ("eps", math.inf), ("rho", 1.0)):
        if name in options:
            check_range("SAC", name, options[name], 0.0, high)
    if options.get("rho") == 0.0:
        raise ValueError("SAC: rho must be a number in (0, 1], got 0.0, at which no new statistics would count")
    if "interval" in options:
        check_whole("SAC", "interval", options["interval"], 1)
    _check_bounds("bounds", options["bounds"], optional=True)
    by, beta, bounds = grouping
    check_choice("SAC", "group_by", by, ("heads", "rows", "columns"))
    check_range("SAC", "group_beta", beta, 0.0, math.inf)
    _check_bounds("group_bounds", bounds, optional=False)


def _check_bounds(name: str, bounds: Any, *, optional: bool) -> None:
    if bounds is None and optional:
        return
    if not (isinstance(bounds, (tuple, list)) and len(bounds) == 2):
        raise ValueError(f"SAC: {name} must be a pair (smallest, largest), got {bounds!r}")
    for value in bounds:
        check_range("SAC", name, value, 0.0, math.inf)
    low, high = bounds
    if low > high:
        raise ValueError(f"SAC: {name} are reversed: {bounds!r}; give ({high:g}, {low:g})")
    if low == 0.0:
        raise ValueError(f"SAC: the smaller of {name} must be > 0, got {bounds!r}: a step of factor 0 is none")


def constant_scales(options: Mapping[str, Any], found: Partition) -> dict[Key, float]:
    """The factors of the control arm."""
    given = options["scales"]
    if given is None:
        low = (options["bounds"] or (0.1, 10.0))[0]
        kinds = found.kinds()
        return {key: 1.0 if kinds[key[0]] == "tokenizer" else float(low) for key in found.blocks}
    for key, scale in given.items():
        if key not in found.blocks:
            raise ValueError(f"SAC: scales has no block {key!r} of this model{closest(str(key), found.blocks)}")
        check_range("SAC", f"scales[{key!r}]", scale, 0.0, math.inf)
        if scale == 0.0:
            raise ValueError(f"SAC: scales[{key!r}] must be > 0; leave a block out of the optimizer to freeze it")
    return {key: float(scale) for key, scale in given.items()}
