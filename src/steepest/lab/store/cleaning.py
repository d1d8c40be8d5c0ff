"""What may be deleted without losing a number: checkpoints of runs that are over, and what killed processes left."""

from __future__ import annotations

import contextlib
import math
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from steepest.lab.store.index import NAME, run_directories
from steepest.lab.studies.claims import STALE

OLD = 3600.0  # seconds after which a temporary file belongs to no process any more


@dataclass(frozen=True)
class Garbage:
    """Something that may go, and why."""

    path: Path
    bytes: int
    why: str


def garbage(root: Path, keep_checkpoints: bool = False) -> list[Garbage]:
    """What may go below a folder.

    Never a config, a metric, an evaluation or a result; never anything of a run that may still go on, but for temporary
    files that nobody has touched for an hour.

    Args:
        root: any folder of runs.
        keep_checkpoints: leave the checkpoints of finished runs.
    """
    return sorted(_garbage(root, keep_checkpoints), key=lambda item: str(item.path))


def _garbage(root: Path, keep_checkpoints: bool) -> Iterator[Garbage]:
    for run in run_directories(root):
        over, ckpt = (run / "final.json").exists(), run / "ckpt"
        if over and not keep_checkpoints and ckpt.is_dir() and not ckpt.is_symlink() and (size := _size(ckpt)):
            yield Garbage(ckpt, size, "checkpoint of a run that is over")
        for left in [*run.glob("claim*"), *run.glob(".claim-*"), *run.glob(".now-*")]:
            owner = left / "owner.json"
            if _age(owner if owner.exists() else left) > (STALE if over else OLD):
                yield Garbage(left, _size(left), "claim of a process that is gone")
        for left in run.glob(".*.tmp"):
            if _age(left) > OLD:
                yield Garbage(left, _size(left), "temporary file of a process that is gone")
    for part in ("", "-wal", "-shm"):
        path = root / f"{NAME}{part}"
        if path.exists() and not any(True for _ in run_directories(root)):
            yield Garbage(path, _size(path), "index of a folder without runs")


def delete(items: list[Garbage]) -> int:
    """Delete them; returns the bytes."""
    for item in items:
        if item.path.is_dir():
            shutil.rmtree(item.path)
        else:
            item.path.unlink(missing_ok=True)
    return sum(item.bytes for item in items)


def _age(path: Path) -> float:
    """Seconds since it was touched; below any limit if it is gone by now, or somebody else's."""
    try:
        return time.time() - path.stat().st_mtime
    except OSError:
        return -math.inf


def _size(path: Path) -> int:
    size = 0
    for file in path.rglob("*") if path.is_dir() else [path]:
        with contextlib.suppress(OSError):  # a run that goes on may take it away meanwhile
            size += file.stat().st_size if file.is_file() else 0
    return size
