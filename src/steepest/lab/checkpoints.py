"""Checkpoints: everything a run needs to go on bit for bit, written so that a crash never costs the last good one."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from steepest.lab.errors import UserError, full_disk

SCHEMA = 1
KEEP = 2
_NAME = re.compile(r"step-(\d{9})\.pt")


def parts(model: nn.Module, optimizer: torch.optim.Optimizer, device: torch.device) -> dict[str, Any]:
    """What model, optimizer and random numbers need to go on."""
    return {
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "random": torch.get_rng_state(),
        "random_cuda": torch.cuda.get_rng_state_all() if device.type == "cuda" else [],
    }


def put_back(
    saved: Mapping[str, Any], model: nn.Module, optimizer: torch.optim.Optimizer, device: torch.device
) -> None:
    """Give model, optimizer and random numbers the state of a checkpoint that holds their `parts`."""
    model.load_state_dict(saved["model"])
    optimizer.load_state_dict(saved["optimizer"])
    torch.set_rng_state(saved["random"].cpu())
    if saved["random_cuda"] and device.type == "cuda":
        torch.cuda.set_rng_state_all([state.cpu() for state in saved["random_cuda"]])


def save(folder: Path, step: int, content: dict[str, Any]) -> Path:
    """Write the state after `step` steps: to a temporary file, flushed to the disk, then renamed; keep the last two.

    Args:
        folder: of the checkpoints; made when missing.
        step: number of steps taken.
        content: tensors, numbers, strings and containers of them only.

    Raises:
        UserError: the disk is full. Earlier checkpoints are untouched.
    """
    path = folder / f"step-{step:09d}.pt"
    temporary = path.with_suffix(".tmp")
    try:
        folder.mkdir(exist_ok=True)
        with temporary.open("wb") as file:
            torch.save({"schema": SCHEMA, "step": step, **content}, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        _sync(folder)
    except (OSError, RuntimeError) as error:
        temporary.unlink(missing_ok=True)
        # torch hides a failed write behind a RuntimeError about the archive it could not finish.
        cause = error if isinstance(error, OSError) else error.__context__
        if isinstance(cause, OSError) and (fault := full_disk(cause, path, "saving the checkpoint")) is not None:
            raise fault from None
        raise
    for old in _all(folder)[:-KEEP]:
        old.unlink(missing_ok=True)
    return path


def load(folder: Path, device: str = "cpu") -> dict[str, Any] | None:
    """Read the newest readable checkpoint; None when there is none.

    Raises:
        UserError: there are checkpoints, but none can be read.
    """
    faults = []
    for path in reversed(_all(folder)):
        try:
            content: dict[str, Any] = torch.load(path, map_location=device, weights_only=True)
        except Exception as error:  # damage shows as many kinds of exception
            faults.append(f"{path.name}: {(str(error) or type(error).__name__).splitlines()[0]}")
            continue
        if content.get("schema") != SCHEMA:
            faults.append(f"{path.name}: written by another version (schema {content.get('schema')}, not {SCHEMA})")
            continue
        return content
    if faults:
        raise UserError(
            f"no checkpoint in {folder} can be read ({'; '.join(faults)}). Remove the folder to start again."
        )
    return None


def remove(folder: Path) -> None:
    """Delete all checkpoints, and the folder if nothing else is in it."""
    for path in _all(folder):
        path.unlink(missing_ok=True)
    with contextlib.suppress(OSError):
        folder.rmdir()


def _all(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("step-*.pt") if _NAME.fullmatch(path.name))


def _sync(folder: Path) -> None:
    # A rename is on the disk once its folder is; not every file system lets a folder be opened.
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
