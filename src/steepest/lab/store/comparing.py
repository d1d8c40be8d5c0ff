"""What differs between runs: their settings, versions and numbers, side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from steepest.lab.errors import UserError
from steepest.lab.runs import read_json

# What the description of a workload calls otherwise.
_AGAIN = (
    *("workload.data", "workload.tokenizer", "workload.model", "workload.model.preset"),
    *("workload.model.hidden_size", "workload.model.num_hidden_layers", "workload.model.num_attention_heads"),
    *("workload.model.n_embd", "workload.model.n_layer", "workload.model.n_head"),
)
_NUMBERS = ("state", "loss", "perplexity", "bits_per_byte", "step", "tokens", "seconds", "state_bytes")


def differences(folders: Sequence[Path]) -> list[tuple[str, list[Any]]]:
    """Rows of (what, value in each run): first the settings that are not the same in all, then the results.

    Raises:
        UserError: fewer than two runs.
    """
    if len(folders) < 2:
        raise UserError("name at least two runs to compare, for example two ids of `steepest ls`.")
    settings = [_settings(_dict(read_json(folder / "config.json"))) for folder in folders]
    environments = [
        _flat({"versions": _dict(read_json(folder / "env.json")).get("versions") or {}}) for folder in folders
    ]
    settings = [own | environment for own, environment in zip(settings, environments, strict=True)]
    rows = []
    for key in dict.fromkeys(key for each in settings for key in each):
        values = [each.get(key) for each in settings]
        if any(value != values[0] for value in values):
            rows.append((key, values))
    finals = [_dict(read_json(folder / "final.json")) for folder in folders]
    return rows + [(key, [final.get(key) for final in finals]) for key in _NUMBERS]


def _settings(config: dict[str, Any]) -> dict[str, Any]:
    """What config.json says, each setting once: it has them as asked for, as described and as hashed."""
    described = _flat({key: value for key, value in config.items() if key not in ("identity", "config")})
    if "method.lr" in described:
        described.pop("lr", None)
    asked = _flat(_dict(config.get("config")))
    return described | {key: value for key, value in asked.items() if key not in described and key not in _AGAIN}


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return flat


def _dict(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}
