"""The modes and presets of SAC, and the checks of its options."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from types import MappingProxyType
from typing import Any

from steepest.rules.base import check_choice, check_whole, closest
from steepest.scaling.checks import check_bounds, check_flag, check_number
from steepest.scaling.factors import FACTORS, granularity
from steepest.scaling.grouping import GROUPS
from steepest.scaling.partition import Partition
from steepest.scaling.places import Key
from steepest.scaling.statistics import BLOCK_SCALES

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
    check_choice("SAC", "mode", mode, tuple(MODES))
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
    used = ("layer", "block") if factors is None else (factors,) if isinstance(factors, str) else factors
    if not isinstance(used, Collection):
        raise ValueError(f"SAC: factors must be some of {', '.join(map(repr, FACTORS))}, got {factors!r}")
    for each in used:
        check_choice("SAC", "factors", each, FACTORS)
    return frozenset(used)


def check_settings(options: Mapping[str, Any], grouping: tuple[str, float, Any]) -> None:
    """Refuse what is out of range."""
    if "gamma" in options:
        check_number("SAC", "gamma", options["gamma"], 0.0, 1.0)
        check_number("SAC", "beta", options["beta"], 0.0)
        check_number("SAC", "rho", options["rho"], 0.0, 1.0, open_low=True)
        check_number("SAC", "eps", options["eps"], 0.0)
    if "interval" in options:
        check_whole("SAC", "interval", options["interval"], 1)
    if "block_scale" in options:
        check_choice("SAC", "block_scale", options["block_scale"], BLOCK_SCALES)
        check_flag("SAC", "normalize_block", options["normalize_block"])
    check_bounds("SAC", "bounds", options["bounds"], optional=True)
    by, beta, bounds = grouping
    check_choice("SAC", "group_by", by, GROUPS)
    check_number("SAC", "group_beta", beta, 0.0)
    check_bounds("SAC", "group_bounds", bounds)


def constant_scales(options: Mapping[str, Any], found: Partition) -> dict[Key, float]:
    """The factors of the control arm."""
    given = options["scales"]
    if given is None:
        low = (options["bounds"] or (0.1, 10.0))[0]
        kinds = found.kinds()
        return {key: 1.0 if kinds[key[0]] == "tokenizer" else float(low) for key in found.blocks}
    if not isinstance(given, Mapping):
        raise ValueError(f"SAC: scales must be a mapping {{(layer, block): factor}} or None, got {given!r}")
    for key, scale in given.items():
        if key not in found.blocks:
            raise ValueError(f"SAC: scales has no block {key!r} of this model{closest(str(key), found.blocks)}")
        check_number("SAC", f"scales[{key!r}]", scale, 0.0, open_low=True)
    return {key: float(scale) for key, scale in given.items()}
