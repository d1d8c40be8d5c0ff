"""A study may grow; it may not change what its runs were made with, nor drop what it has seen."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from steepest.lab.config import StudyConfig, canonical, plain

# Of the versions that a study was begun with, those that decide numbers.
_DECISIVE = ("steepest", "torch", "transformers", "tokenizers", "numpy")


def changes(known: Mapping[str, Any], asked: StudyConfig) -> list[str]:
    """What a configuration would change in a study that has runs; empty if it only adds to it.

    New methods, seeds and listed values may be added, the baseline and the number of extensions may change.

    Args:
        known: the configuration in study.json.
        asked: the configuration as given now.
    """
    now: dict[str, Any] = json.loads(canonical(asked.model_dump()))
    found = _differences("workload", known["workload"], now["workload"])
    for name in ("tuning_seed", "search", "trials"):
        found += _differences(name, known.get(name, now[name]), now[name])
    dropped = [seed for seed in known["seeds"] if seed not in now["seeds"]]
    if dropped:
        found.append(f"seeds {dropped} are there and not asked for now")
    methods = {method["label"] or method["name"]: method for method in now["methods"]}
    for before in known["methods"]:
        label = before["label"] or before["name"]
        if label not in methods:
            found.append(f"the method {label!r} is there and not asked for now")
            continue
        after = methods[label]
        for name in ("name", "options"):
            found += _differences(f"{label}: {name}", before[name], after[name])
        found += _axes(f"{label}: grid", before["grid"], after["grid"])
        for axis in {**before.get("space", {}), **after["space"]}:
            where = f"{label}: space.{axis}"
            found += _axes(where, before.get("space", {}).get(axis), after["space"].get(axis))
    return found


def other_versions(known: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    """Packages whose version is not the one that the study was begun with."""
    names = [name for name in _DECISIVE if known.get(name) != now.get(name)]
    return [f"{name} is {known.get(name)} there and {now.get(name)} here" for name in names]


def _differences(where: str, known: Any, asked: Any) -> list[str]:
    known, asked = plain(known), plain(asked)
    if isinstance(known, Mapping) and isinstance(asked, Mapping):
        keys = [key for key in {**known, **asked} if known.get(key) != asked.get(key)]
        return [line for key in keys for line in _differences(f"{where}.{key}", known.get(key), asked.get(key))]
    return [] if known == asked else [f"{where} is {known!r} there and {asked!r} now"]


def _axes(where: str, known: Any, asked: Any) -> list[str]:
    """As `_differences`, but a list may have more values."""
    if isinstance(known, Sequence) and isinstance(asked, Sequence) and all(value in asked for value in known):
        return []
    return _differences(where, known, asked)
