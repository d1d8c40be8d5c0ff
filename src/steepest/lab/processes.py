"""Which process has something in hand, so that another one can tell whether it still lives."""

from __future__ import annotations

import contextlib
import os
import socket
from pathlib import Path
from typing import Any


def here() -> dict[str, Any]:
    """This process: {"host", "space", "pid"}."""
    return {"host": socket.gethostname(), "space": process_space(), "pid": os.getpid()}


def process_space() -> str:
    """Process numbers mean something only inside a container or machine since its start."""
    parts = []
    with contextlib.suppress(OSError):
        parts.append(os.readlink("/proc/self/ns/pid"))
    with contextlib.suppress(OSError):
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text(encoding="utf-8").strip())
    return " ".join(parts)


def alive(pid: int) -> bool:
    """Whether there is a process of this number here."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:  # it exists and is somebody else's
        return True
    return True
