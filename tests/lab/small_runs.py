"""Runs of a second on the generated corpus, and ways to read what they wrote."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from steepest.lab.config import TrainConfig, validate

MODEL = {"preset": "tiny", "hidden_size": 32, "intermediate_size": 48, "head_dim": 16}
# What differs between two executions of the same run: clocks.
CLOCKS = ("seconds", "tokens_per_second")


def tiny(cache: Path, /, **changes: Any) -> TrainConfig:
    """A run of 12 steps on 4 x 16 tokens with 2 layers of width 32; `workload__steps=3` changes workload.steps."""
    values: dict[str, Any] = {
        "workload": {
            "model": MODEL,
            "data": "synthetic",
            "max_bytes": 200_000,
            "batch_size": 4,
            "sequence_length": 16,
            "steps": 12,
            "precision": "fp32",
            "evaluation": {"tokens": 256, "batch_size": 4},
        },
        "method": {"name": "adamw", "lr": 1e-2},
        "threads": 1,
        "device": "cpu",
        "cache": str(cache),
    }
    for key, value in changes.items():
        *path, last = key.split("__")
        place = values
        for name in path:
            place = place.setdefault(name, {})
        place[last] = value
    return validate(TrainConfig, values)


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def numbers(folder: Path) -> dict[str, Any]:
    """Everything a run computed, without its clocks."""
    final = json.loads((folder / "final.json").read_text())
    found = {"final": final, "metrics": lines(folder / "metrics.jsonl"), "evals": lines(folder / "evals.jsonl")}
    for row in [found["final"], *found["metrics"], *found["evals"]]:
        for clock in CLOCKS:
            row.pop(clock, None)
    return found
