"""An index of run directories in SQLite: rebuilt from them at will, and never more than a cache."""

from __future__ import annotations

import contextlib
import fnmatch
import json
import os
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from dataclasses import astuple, dataclass, fields, replace
from pathlib import Path
from typing import Any

from steepest.lab.errors import UserError, closest

NAME = "index.sqlite"
_VERSION = 1  # of the table; another one is thrown away and made anew
_FILES = ("config.json", "status.json", "final.json")
# Folders of a run that hold no runs.
_INSIDE = ("ckpt", "claim", "events")


@dataclass(frozen=True)
class Entry:
    """One run, as lists show it; None where a run has not come so far."""

    path: str
    study: str
    run_id: str
    method: str
    label: str
    lr: float | None
    seed: int | None
    purpose: str
    state: str
    step: int | None
    steps: int | None
    loss: float | None
    perplexity: float | None
    bits_per_byte: float | None
    tokens: int | None
    seconds: float | None
    model: str
    data: str
    updated: str
    problem: str


_COLUMNS = tuple(field.name for field in fields(Entry))
ORDERS = ("loss", "updated", "label", "lr", "seed", "seconds", "step", "study", "state")


class Index:
    """The runs below a folder.

    Args:
        root: any folder: of runs, of studies, of both.
        rescan: read everything again.

    Attributes:
        problems: folders that the last refresh could not look into.

    Raises:
        UserError: there is no such folder.
    """

    def __init__(self, root: str | Path, rescan: bool = False) -> None:
        self.root = Path(root)
        if not self.root.is_dir():
            raise UserError(f"there is no folder {self.root}; `steepest train` and `steepest compare` make one.")
        self._rescan = rescan
        self.problems: list[str] = []

    def refresh(self) -> list[Entry]:
        """Bring the index up to date, and return all runs.

        A run is read again if one of its files has changed. If the folder cannot be written, all are read each time.
        """
        self.problems = []
        with self._database() as database:
            known = {row[0]: row for row in database.execute("SELECT path, signature, entry FROM runs")}
            found, changed = {}, []
            for folder in run_directories(self.root, self.problems):
                path, signature = str(folder.relative_to(self.root)), _signature(folder)
                row = known.get(path)
                if row is not None and row[1] == signature and not self._rescan:
                    written = Entry(*json.loads(row[2]))
                else:
                    written = entry(folder, self.root)
                    changed.append((path, signature, json.dumps(astuple(written))))
                found[path] = judged(written, folder)
            gone = [(path,) for path in known if path not in found]
            with contextlib.suppress(sqlite3.Error):  # a full disk, say: what was read is right without it
                database.executemany("INSERT OR REPLACE INTO runs VALUES (?, ?, ?)", changed)
                database.executemany("DELETE FROM runs WHERE path = ?", gone)
                database.commit()
        return list(found.values())

    def list(
        self,
        *,
        study: str = "*",
        method: str = "*",
        state: str = "*",
        text: str = "",
        order: str = "updated",
        descending: bool = False,
    ) -> list[Entry]:
        """The runs that fit; those without a value for the order come last.

        Args:
            study: a pattern, as for file names.
            method: a pattern for the name or the label.
            state: a pattern.
            text: part of the run's path.
            order: a column.
            descending: largest first.

        Raises:
            UserError: there is no such column.
        """
        if order not in ORDERS:
            raise UserError(f"unknown order {order!r}.{closest(order, ORDERS)} Known: {', '.join(ORDERS)}.")
        fits: Sequence[Callable[[Entry], bool]] = (
            lambda e: fnmatch.fnmatch(e.study, study),
            lambda e: fnmatch.fnmatch(e.method, method) or fnmatch.fnmatch(e.label, method),
            lambda e: fnmatch.fnmatch(e.state, state),
            lambda e: text in e.path,
        )
        entries = [e for e in self.refresh() if all(fit(e) for fit in fits)]
        with_value = [e for e in entries if getattr(e, order) not in (None, "")]
        without = [e for e in entries if getattr(e, order) in (None, "")]
        return sorted(with_value, key=lambda e: (getattr(e, order), e.path), reverse=descending) + without

    def find(self, name: str) -> Path:
        """The folder of a run by its path, its id, or a part of either that only one run has.

        Raises:
            UserError: no run or several have it.
        """
        direct = Path(name)
        if os.path.exists(direct / "config.json"):
            return direct
        entries = self.refresh()
        exact = [e for e in entries if name in (e.path, e.run_id)]
        hits = exact or [e for e in entries if name in e.path]
        if len(hits) == 1:
            return self.root / hits[0].path
        if not hits:
            near = closest(name, [e.run_id for e in entries])
            raise UserError(f"no run below {self.root} is called {name!r}.{near} `steepest ls` lists them.")
        shown = ", ".join(e.path for e in hits[:5]) + (", ..." if len(hits) > 5 else "")
        raise UserError(f"{name!r} fits {len(hits)} runs: {shown}. Give more of the name.")

    @contextlib.contextmanager
    def _database(self) -> Iterator[sqlite3.Connection]:
        try:
            connection = self._open(str(self.root / NAME))
        except sqlite3.Error:
            # Damaged, of another version, or of somebody else: it is only a cache.
            with contextlib.suppress(OSError):
                (self.root / NAME).unlink()
            try:
                connection = self._open(str(self.root / NAME))
            except sqlite3.Error:
                connection = self._open(":memory:")
        try:
            yield connection
        finally:
            connection.close()

    @staticmethod
    def _open(path: str) -> sqlite3.Connection:
        connection = sqlite3.connect(path, timeout=30)
        try:
            connection.execute("PRAGMA journal_mode=WAL")
            if connection.execute("PRAGMA user_version").fetchone()[0] not in (0, _VERSION):
                connection.execute("DROP TABLE IF EXISTS runs")
            connection.execute(f"PRAGMA user_version={_VERSION}")
            connection.execute("CREATE TABLE IF NOT EXISTS runs (path TEXT PRIMARY KEY, signature TEXT, entry TEXT)")
            connection.execute("SELECT path, signature, entry FROM runs LIMIT 1").fetchall()
            connection.commit()
        except sqlite3.Error:
            connection.close()
            raise
        return connection


def run_directories(root: Path, problems: list[str] | None = None) -> Iterator[Path]:
    """All run directories below a folder, or the folder itself, each once, whatever symbolic links lead to it.

    Args:
        root: where to look. A run that stands below it is found under its own name; then links are followed, but for
            those that lead up to a folder that `root` is in.
        problems: gets the folders that cannot be looked into.
    """
    seen = {identity for folder in root.resolve().parents if (identity := _identity(folder, [])) is not None}
    problems, links = [] if problems is None else problems, [root]
    for folder in links:  # grows meanwhile
        yield from _runs_below(folder, seen, links, problems)


def _runs_below(folder: Path, seen: set[tuple[int, int]], links: list[Path], problems: list[str]) -> Iterator[Path]:
    identity = _identity(folder, problems)
    if identity is None or identity in seen:
        return
    seen.add(identity)
    if os.path.exists(folder / "config.json"):
        yield folder
        return
    try:
        with os.scandir(folder) as listed:
            children = sorted((child for child in listed if child.name not in _INSIDE), key=lambda child: child.name)
        below = [Path(child.path) for child in children if child.is_dir(follow_symlinks=False)]
        links += [Path(child.path) for child in children if child.is_symlink() and os.path.isdir(child.path)]
    except OSError as error:
        _cannot_read(folder, error, problems)
        return
    for child in below:
        yield from _runs_below(child, seen, links, problems)


def _identity(folder: Path, problems: list[str]) -> tuple[int, int] | None:
    try:
        stat = folder.stat()
    except OSError as error:
        _cannot_read(folder, error, problems)
        return None
    return stat.st_dev, stat.st_ino


def _cannot_read(folder: Path, error: OSError, problems: list[str]) -> None:
    if not isinstance(error, FileNotFoundError):  # that one is gone since it was listed
        problems.append(f"{folder} cannot be read: {error.strerror or error}.")


def _signature(folder: Path) -> str:
    parts = []
    for name in _FILES:
        try:
            stat = (folder / name).stat()
            parts.append(f"{stat.st_mtime_ns}:{stat.st_size}")
        except OSError:
            parts.append("")
    return " ".join(parts)


def entry(folder: Path, root: Path) -> Entry:
    """Read one run, as its files say, in whatever state it is; what is wrong with it is said in `problem`."""
    problems: list[str] = []

    def read(name: str) -> dict[str, Any]:
        try:
            value = json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))
        except FileNotFoundError:
            return {}
        except (OSError, ValueError) as error:
            problems.append(f"{name}.json cannot be read: {error}")
            return {}
        return value if isinstance(value, dict) else {}

    config, status, final = read("config"), read("status"), read("final")
    named, made = config.get("method"), config.get("workload")
    method: dict[str, Any] = named if isinstance(named, dict) else {"name": named}
    workload: dict[str, Any] = made if isinstance(made, dict) else {}
    parent = folder.parent.parent if folder.parent.name == "runs" else folder.parent
    state = str(final.get("state") or status.get("state") or "created")
    if not final and state in ("done", "diverged"):
        problems.append(f"status.json says {state} and there is no final.json")
        state = "interrupted"
    return Entry(
        path=str(folder.relative_to(root)),
        study="" if parent == root.parent else parent.name,
        run_id=folder.resolve().name,
        method=str(method.get("name") or ""),
        label=str(method.get("label") or method.get("name") or ""),
        lr=_number(method.get("lr")),
        seed=_whole(config.get("seed")),
        purpose=str(config.get("purpose") or ""),
        state=state,
        step=_whole(final.get("step", status.get("step"))),
        steps=_whole(workload.get("steps")),
        loss=_number(final.get("loss")),
        perplexity=_number(final.get("perplexity")),
        bits_per_byte=_number(final.get("bits_per_byte")),
        tokens=_whole(final.get("tokens")),
        seconds=_number(final.get("seconds")),
        model=_short(workload.get("model")),
        data=str(workload.get("text") or workload.get("data") or ""),
        updated=str(status.get("updated") or ""),
        problem="; ".join(problems),
    )


def judged(written: Entry, folder: Path) -> Entry:
    """A run that says it is running, and whose process is gone, was interrupted: a killed process writes no status."""
    if written.state != "running":
        return written
    from steepest.lab.studies.claims import goes_on  # which loads torch

    return written if goes_on(folder) else replace(written, state="interrupted")


def _short(model: Any) -> str:
    return f"{model.get('preset', '')}*" if isinstance(model, dict) else str(model or "")


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def _whole(value: Any) -> int | None:
    number = _number(value)
    return None if number is None else int(number)
