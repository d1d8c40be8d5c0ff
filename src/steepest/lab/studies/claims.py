"""Who carries out which run, when any number of processes on any number of machines share a folder.

A claim is a folder `claim` in the run's folder, with the owner in it. It appears by one rename, so exactly one process
gets it. The owner renews its time stamp every few seconds; a claim that was not renewed for a minute, or whose process
on this machine is gone, is taken over, again by one rename. A claim that names no owner, as a power cut may leave it,
counts for a minute too. Time stamps are those of the file server on both sides, so that clocks need not agree.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import threading
import uuid
from pathlib import Path
from typing import Any

from steepest.lab.runs import write_json

BEAT = 5.0  # seconds between renewals
STALE = 60.0  # seconds after which a claim that nobody renewed is free


class Claims:
    """The runs that this process has taken on. Use as a context manager: it renews them, and gives them back.

    Attributes:
        lost: folders whose claim another process has taken over, because this one stood still for too long.
    """

    def __init__(self, beat: float = BEAT, stale: float = STALE) -> None:
        self._beat, self._stale = beat, stale
        self._token = uuid.uuid4().hex
        self._owner = {
            "host": socket.gethostname(),
            "space": _process_space(),
            "pid": os.getpid(),
            "token": self._token,
        }
        self._held: set[Path] = set()
        self._guard = threading.Lock()
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._renew, name="claims", daemon=True)
        self.lost: set[Path] = set()

    def __enter__(self) -> Claims:
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._end.set()
        self._thread.join()
        for folder in list(self._held):
            self.release(folder)

    def take(self, folder: Path) -> bool:
        """Claim a run, if it is free. Its folder is made if need be."""
        folder.mkdir(parents=True, exist_ok=True)
        there = _owner(folder / "claim")
        if there is not None or (folder / "claim" / "owner.json").exists():
            name = self._left_by(folder, there)
            if name is None:
                return False
            # The old claim moves to a name of its own, once: of several processes that find it stale, one succeeds.
            try:
                os.rename(folder / "claim", folder / f"claim-left-by-{name}")
            except OSError:
                return False
        fresh = folder / f".claim-{self._token}"
        shutil.rmtree(fresh, ignore_errors=True)
        fresh.mkdir()
        write_json(fresh / "owner.json", self._owner)
        try:
            os.rename(fresh, folder / "claim")  # fails if there is one: a folder with something in it is not replaced
        except OSError:
            shutil.rmtree(fresh, ignore_errors=True)
            return False
        with self._guard:
            self._held.add(folder)
            self.lost.discard(folder)
        return True

    def release(self, folder: Path) -> None:
        """Give a run back, finished or not."""
        with self._guard:
            self._held.discard(folder)
        there = _owner(folder / "claim")
        if there is not None and there["token"] == self._token:
            for left in (folder / "claim", *folder.glob("claim-left-by-*")):
                shutil.rmtree(left, ignore_errors=True)

    def _left_by(self, folder: Path, owner: dict[str, Any] | None) -> str | None:
        """What identifies a claim whose owner is gone, or cannot be read and does not renew it; None otherwise."""
        here = (self._owner["host"], self._owner["space"])
        if owner is not None and (owner["host"], owner["space"]) == here and not _alive(owner["pid"]):
            return str(owner["token"])
        now = folder / f".now-{self._token}"
        now.touch()
        try:
            there = (folder / "claim" / "owner.json").stat()
            if now.stat().st_mtime - there.st_mtime <= self._stale:
                return None
        except FileNotFoundError:  # given back just now; the next look will find it free
            return None
        finally:
            now.unlink(missing_ok=True)
        return f"unknown-{there.st_ino}-{there.st_mtime_ns}" if owner is None else str(owner["token"])

    def _renew(self) -> None:
        while not self._end.wait(self._beat):
            with self._guard:
                held = list(self._held)
            for folder in held:
                there = _owner(folder / "claim")
                if there is None or there["token"] != self._token:
                    with self._guard:
                        if folder in self._held:
                            self._held.discard(folder)
                            self.lost.add(folder)
                    continue
                with contextlib.suppress(OSError):
                    os.utime(folder / "claim" / "owner.json")


def is_claimed(folder: Path) -> bool:
    """Whether some process has the run, or had it and died."""
    return (folder / "claim").exists()


def _owner(claim: Path) -> dict[str, Any] | None:
    """Who has it; None if nobody has, or nobody can tell."""
    try:
        owner = json.loads((claim / "owner.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    kinds = {"host": str, "space": str, "pid": int, "token": str}
    whole = isinstance(owner, dict) and all(isinstance(owner.get(name), kind) for name, kind in kinds.items())
    return owner if whole else None


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:  # it exists and is somebody else's
        return True
    return True


def _process_space() -> str:
    """Process numbers mean something only inside a container or machine since its start."""
    parts = []
    with contextlib.suppress(OSError):
        parts.append(os.readlink("/proc/self/ns/pid"))
    with contextlib.suppress(OSError):
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text(encoding="utf-8").strip())
    return " ".join(parts)
