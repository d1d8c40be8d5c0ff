"""Read files that may be half written, damaged or somebody else's: what cannot be read is listed, never fatal."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

Record = dict[str, Any]


def mapping(path: Path, problems: list[str]) -> Record:
    """A JSON object; empty if there is none."""
    value = _load(path, problems)
    return value if isinstance(value, dict) else {}


def items(path: Path, problems: list[str]) -> list[Any]:
    """A JSON list; empty if there is none."""
    value = _load(path, problems)
    return value if isinstance(value, list) else []


def _load(path: Path, problems: list[str]) -> Any:
    text = _text(path, problems)
    if text is None:
        return None
    try:
        return json.loads(text)
    except ValueError as error:
        _list(problems, f"{path.parent.name}/{path.name} cannot be read: {error}.")
        return None


def lines(path: Path, problems: list[str]) -> list[Record]:
    """Records by step. A torn last line is what a killed run leaves: dropped. A bad line elsewhere is reported."""
    records: dict[float, Record] = {}
    content = (_text(path, problems) or "").splitlines()
    for i, line in enumerate(content):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
            step = float(record["step"])
            if not math.isfinite(step):
                raise ValueError
            records[step] = record  # of a step that was repeated after a resume the last one counts
        except (ValueError, TypeError, KeyError):
            if i < len(content) - 1:
                _list(problems, f"{path.parent.name}/{path.name}: line {i + 1} cannot be read and is left out.")
    return [records[step] for step in sorted(records)]


def _text(path: Path, problems: list[str]) -> str | None:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return None
    except OSError as error:
        _list(problems, f"{path.parent.name}/{path.name} cannot be read: {error.strerror or error}.")
        return None


def _list(problems: list[str], problem: str) -> None:
    if problem not in problems:
        problems.append(problem)


def recipe(config: Mapping[str, Any]) -> str:
    """What the optimizer of a run was, with every option, as text: equal for runs that differ in their seed alone."""
    method = config.get("method")
    asked = {key: value for key, value in method.items() if key != "label"} if isinstance(method, dict) else method
    return json.dumps([asked, config.get("lr")], sort_keys=True, default=str)


def same(point: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether two points are one, up to the rounding of numbers."""
    return point.keys() == other.keys() and all(_equal(value, other[name]) for name, value in point.items())


def _equal(a: Any, b: Any) -> bool:
    if isinstance(a, (int, float)) and isinstance(b, (int, float)):
        return math.isclose(a, b, rel_tol=1e-6)
    return bool(a == b)
