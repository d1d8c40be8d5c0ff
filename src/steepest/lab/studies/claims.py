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
import threading
import time
import uuid
from pathlib import Path
from typing import Any

from steepest.lab import processes
from steepest.lab.results import files
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
        self._owner = {**processes.here(), "token": self._token}
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
        there = owner(folder / "claim")
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
        there = owner(folder / "claim")
        if there is not None and there["token"] == self._token:
            for left in (folder / "claim", *folder.glob("claim-left-by-*")):
                shutil.rmtree(left, ignore_errors=True)

    def _left_by(self, folder: Path, holder: dict[str, Any] | None) -> str | None:
        """What identifies a claim whose owner is gone, or cannot be read and does not renew it; None otherwise."""
        here = (self._owner["host"], self._owner["space"])
        if holder is not None and (holder["host"], holder["space"]) == here and not processes.alive(holder["pid"]):
            return str(holder["token"])
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
        return f"unknown-{there.st_ino}-{there.st_mtime_ns}" if holder is None else str(holder["token"])

    def _renew(self) -> None:
        while not self._end.wait(self._beat):
            with self._guard:
                held = list(self._held)
            for folder in held:
                there = owner(folder / "claim")
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


def owner(claim: Path) -> dict[str, Any] | None:
    """Who has a claim; None if nobody has, or nobody can tell."""
    try:
        found = json.loads((claim / "owner.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    kinds = {"host": str, "space": str, "pid": int, "token": str}
    whole = isinstance(found, dict) and all(isinstance(found.get(name), kind) for name, kind in kinds.items())
    return found if whole else None


def goes_on(folder: Path) -> bool:
    """Whether a process has a run: the one of its claim in a study, else the one of its status.

    The number of a process says nothing about another machine: there, a claim is renewed or something is written.
    """
    holder = owner(folder / "claim") or files.mapping(folder / "status.json", [])
    pid, here = holder.get("pid"), processes.here()
    alive = isinstance(pid, int) and 0 < pid < 2**31 and processes.alive(pid)
    if (holder.get("host"), holder.get("space")) == (here["host"], here["space"]):
        return alive
    written = ("claim/owner.json", "status.json", "metrics.jsonl", "evals.jsonl")
    return (alive and "host" not in holder) or any(_is_new(folder / name) for name in written)


def _is_new(file: Path) -> bool:
    try:
        return time.time() - file.stat().st_mtime < STALE
    except OSError:
        return False
