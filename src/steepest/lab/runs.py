"""Run directories: the files a run writes are the truth about it; everything else is derived from them.

::

    config.json    what was asked for, with every default filled in
    env.json       versions, machine, command, choices made by measurement
    routing.json   one row per parameter: role, rule, expected step, state bytes
    status.json    {"state": created | running | done | diverged | failed | interrupted, "step", "updated"} and the
                   process that wrote it: {"host", "space", "pid"}
    metrics.jsonl  one line per logged step
    evals.jsonl    one line per evaluation
    final.json     written last: its existence means the run is over
    ckpt/          checkpoints of a run that is not over
    events/        what is logged for TensorBoard, where that is asked for
"""

from __future__ import annotations

import contextlib
import datetime
import hashlib
import json
import os
import platform
import shlex
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import IO, Any

import torch
from torch import nn

from steepest.lab import processes
from steepest.lab.errors import UserError, full_disk

OVER = ("done", "diverged")
_FINAL: dict[str, Any] = {"state": str, "step": int, "loss": float | int | None}  # what others rely on in final.json


def write_json(path: Path, value: Any) -> None:
    """Write JSON so that a reader, or a crash at any instant, sees the old file or the new one, never a part."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("w", encoding="utf-8") as file:
            json.dump(value, file, indent=1, allow_nan=False)
            file.write("\n")
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise full_disk(error, path, "writing") or error from None


def read_json(path: Path) -> Any:
    """Read a JSON file, or None when it does not exist.

    Raises:
        UserError: it cannot be read, or holds something else.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}.") from None
    except ValueError as error:  # no JSON, or no text
        raise damaged(path, str(error)) from None


def damaged(path: Path, why: str) -> UserError:
    """Build the error for a file whose content cannot be used."""
    return UserError(f"{path} is damaged ({why}); remove it, or the run's folder, and start again.")


class Lines:
    """An append-only JSON-lines file that a resumed run cuts back to where its checkpoint stood."""

    def __init__(self, path: Path, offset: int) -> None:
        self.path = path
        size = path.stat().st_size if path.exists() else 0
        if size < offset:
            raise UserError(
                f"{path} is shorter ({size} bytes) than its checkpoint says ({offset}): lines were lost. "
                "Remove the run's folder and start it again."
            )
        self._file: IO[bytes] = path.open("r+b" if path.exists() else "w+b")
        self._file.truncate(offset)
        self._file.seek(offset)

    def write(self, row: dict[str, Any]) -> None:
        """Append one line; it reaches the operating system before this returns."""
        try:
            self._file.write(json.dumps(row, allow_nan=False).encode() + b"\n")
            self._file.flush()
        except OSError as error:
            raise full_disk(error, self.path, "writing") or error from None

    def offset(self) -> int:
        """Bytes written so far, on the disk when this returns."""
        os.fsync(self._file.fileno())
        return self._file.tell()

    def close(self) -> None:
        """Close the file."""
        with contextlib.suppress(OSError):  # a full disk has already been reported by `write`
            self._file.close()


def last_line(path: Path) -> dict[str, Any] | None:
    """The last row of a JSON-lines file; None when it is empty or missing.

    Raises:
        UserError: the line is no row.
    """
    lines = path.read_bytes().splitlines() if path.exists() else []
    try:
        row = json.loads(lines[-1]) if lines else None
    except ValueError as error:
        raise damaged(path, f"last line: {error}") from None
    if row is not None and not isinstance(row, dict):
        raise damaged(path, "last line: no names and values")
    return row


class RunDirectory:
    """The files of one run."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.checkpoints = self.path / "ckpt"

    def create(self) -> None:
        """Make the folder (and its parents)."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise full_disk(error, self.path, "creating") or UserError(
                f"cannot create the run folder {self.path}: {error.strerror}. Choose another with --out."
            ) from None

    def write(self, name: str, value: Any) -> None:
        """Write `<name>.json` atomically."""
        write_json(self.path / f"{name}.json", value)

    def read(self, name: str) -> Any:
        """Read `<name>.json`; None when there is none."""
        return read_json(self.path / f"{name}.json")

    def status(self, state: str, step: int) -> None:
        """Write status.json."""
        self.write("status", {"state": state, "step": step, **processes.here(), "updated": now()})

    def final(self) -> dict[str, Any] | None:
        """final.json of a run that is over, else None.

        Raises:
            UserError: it lacks the state, the step or the loss.
        """
        path, final = self.path / "final.json", self.read("final")
        if final is None:
            return None
        if not isinstance(final, dict):
            raise damaged(path, "no names and values")
        missing = [name for name, kind in _FINAL.items() if not isinstance(final.get(name, ...), kind)]
        if missing or final["state"] not in OVER:
            raise damaged(path, f"no usable {' and '.join(missing or ['state'])}")
        return final

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the folder for this process; the lock dies with the process, however that ends.

        Raises:
            UserError: another process is running this run.
        """
        try:
            import fcntl
        except ImportError:  # Windows: no lock, two runs in one folder are the user's to avoid
            yield
            return
        with (self.path / ".lock").open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise UserError(
                    f"{self.path} is in use by another process. Wait for it, or choose another --out."
                ) from None
            yield


def now() -> str:
    """The time in UTC, ISO 8601, to the second."""
    return datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")


def chain(previous: str, tensor: torch.Tensor) -> str:
    """Return sha256(previous || bytes of the tensor)."""
    digest = hashlib.sha256(previous.encode())
    digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def weights_hash(model: nn.Module) -> str:
    """SHA-256 over the names and bytes of all parameters."""
    digest = ""
    for name, parameter in model.named_parameters():
        digest = chain(f"{digest}{name}", parameter.reshape(-1))
    return digest


def versions() -> dict[str, str]:
    """Versions of what decides a result."""
    found = {"python": platform.python_version(), "torch": torch.__version__}
    for name in ("steepest", "transformers", "tokenizers", "numpy"):
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


def machine() -> dict[str, Any]:
    """The processor, its cores and torch's threads."""
    name = platform.processor() or platform.machine()
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                name = line.partition(":")[2].strip()
                break
    gpus = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return {"cpu": name, "cores": os.cpu_count(), "threads": torch.get_num_threads(), "gpus": gpus}


def environment() -> dict[str, Any]:
    """What env.json starts from: versions, machine, load and command."""
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    return {
        "versions": versions(),
        "machine": machine(),
        "platform": platform.platform(),
        "load_average": load,
        "command": command(),
        "created": now(),
    }


def command() -> str:
    """The command line of this process, ready to be pasted into a shell."""
    name = Path(sys.argv[0]).name
    head = "steepest" if name in ("__main__.py", "steepest", "steepest.exe") else sys.argv[0]
    return shlex.join([head, *sys.argv[1:]])
