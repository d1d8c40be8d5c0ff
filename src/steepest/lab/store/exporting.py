"""Runs as tables for other tools: Parquet by polars, and event files for TensorBoard."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from steepest.lab.errors import UserError, full_disk
from steepest.lab.events import Events
from steepest.lab.results import files
from steepest.lab.store.index import Entry

KINDS = ("runs", "metrics", "evals")


def parquet(entries: Sequence[Entry], root: Path, out: Path, kinds: Sequence[str] = KINDS) -> list[Path]:
    """Write runs.parquet, metrics.parquet and evals.parquet; the latter have a row per line and the path of the run.

    Nested values get dotted names ("lr.muon", "diagnostics.update_rms.mlp"); a line that cannot be read is left out,
    and so is what is no number in a column of numbers.

    Raises:
        UserError: polars is not installed, or the disk is full.
    """
    try:
        import polars
    except ImportError:
        raise UserError("Parquet needs polars: pip install 'steepest[lab]'.") from None
    out.mkdir(parents=True, exist_ok=True)
    written = []
    for kind in kinds:
        rows = [asdict(e) for e in entries] if kind == "runs" else _columns(list(_lines(entries, root, kind)))
        frame = polars.DataFrame(rows, infer_schema_length=None)
        path = out / f"{kind}.parquet"
        try:
            frame.write_parquet(path)
        except OSError as error:
            raise full_disk(error, path, "writing") or error from None
        written.append(path)
    return written


def tensorboard(entries: Sequence[Entry], root: Path, out: Path) -> list[Path]:
    """Write one folder of events for each run, named by its path.

    Raises:
        UserError: tensorboard is not installed.
    """
    written = []
    for each in entries:
        events = Events(out / each.path)
        for kind, prefix in (("metrics", "train"), ("evals", "validation")):
            for row in files.lines(root / each.path / f"{kind}.jsonl", []):
                events.write(prefix, {**row, "step": int(float(row["step"]))})
        events.close()
        written.append(out / each.path)
    return written


def _lines(entries: Sequence[Entry], root: Path, kind: str) -> Iterator[dict[str, Any]]:
    for each in entries:
        for row in files.lines(root / each.path / f"{kind}.jsonl", []):
            yield _flat({"path": each.path, **row, "step": int(float(row["step"]))}) | {"path": each.path}


def _columns(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The same, each column of one type: a damaged value must not make text of all numbers."""
    numeric = {key for row in rows for key, value in row.items() if isinstance(value, int | float)}
    for row in rows:
        for key, value in row.items():
            if key in numeric and not isinstance(value, int | float):
                row[key] = None
            elif isinstance(value, list):
                row[key] = json.dumps(value)
    return rows


def _flat(row: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in row.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = float(value) if isinstance(value, int) and key != "step" else value
    return flat
