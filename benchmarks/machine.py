"""What a result file says about the machine, and how busy others kept it."""

from __future__ import annotations

import datetime
import importlib.metadata
import os
import platform
import shlex
import sys
import time
from pathlib import Path
from typing import Any

BUSY = 0.12  # share of the machine used by other processes above which a time is not to be trusted
PACKAGES = ("torch", "steepest", "pytorch_optimizer", "torch-optimi", "lion-pytorch")


def cpu_model() -> str:
    """Name of the processor."""
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def version(package: str) -> str:
    """Version of a package, or "not installed"."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def describe(threads: int) -> dict[str, Any]:
    """The head of a result file: command, date, versions, machine."""
    arguments = [os.path.relpath(sys.argv[0]), *sys.argv[1:]]
    return {
        "schema": 1,
        "command": "python " + shlex.join(arguments),
        "created": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "versions": {"python": platform.python_version(), **{p: version(p) for p in PACKAGES}},
        "machine": {"cpu": cpu_model(), "cores": os.cpu_count(), "threads": threads, "system": platform.system()},
    }


class Load:
    """Share of the machine that other processes used since the last call (Linux; None elsewhere)."""

    def __init__(self) -> None:
        self.last = self._read()

    def share(self) -> float | None:
        """Other processes' CPU time since the last call, as a share of all cores' time."""
        before, self.last = self.last, self._read()
        if before is None or self.last is None:
            return None
        busy, total, own = (now - then for now, then in zip(self.last, before, strict=True))
        return max(0.0, (busy - own) / total) if total > 0 else None

    @staticmethod
    def _read() -> tuple[float, float, float] | None:
        try:
            fields = Path("/proc/stat").read_text(encoding="utf-8").split("\n", 1)[0].split()[1:]
        except OSError:
            return None
        # user nice system idle iowait irq softirq steal (guest times are counted in user already)
        ticks = [int(field) / os.sysconf("SC_CLK_TCK") for field in fields[:8]]
        idle = ticks[3] + ticks[4]
        return sum(ticks) - idle, sum(ticks), time.process_time()
