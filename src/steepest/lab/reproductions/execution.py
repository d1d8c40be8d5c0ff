"""Compute the cells of a study, each once: finished cells are files, and a second call goes on from them."""

from __future__ import annotations

import json
import math
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass, replace
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Any, cast

from steepest.lab import runs
from steepest.lab.compute import threads
from steepest.lab.errors import UserError
from steepest.lab.reproductions.base import Arm, Case, Cell, Report, Results, Run, Setting, Study
from steepest.lab.signals import Stop

CELLS = "cells"
# Versions that decide a number.
_VERSIONS = ("steepest", "torch")


class Stopped(Exception):  # noqa: N818 - a request of the user, not an error
    """The user wants to stop; the cell under way is given up."""


@dataclass(frozen=True)
class Plan:
    """What is to be computed: the study's settings (quick or not), the cases that can be run here, and the seeds."""

    study: Study
    settings: Mapping[str, Setting]
    cases: tuple[Case, ...]
    seeds: tuple[int, ...]
    left_out: Mapping[str, str]

    def cells(self) -> Iterator[tuple[Case, Arm, int]]:
        """Every cell, seed by seed, so that a stop leaves whole seeds."""
        for seed in self.seeds:
            for case in self.cases:
                for arm in self.study.arms_of(case):
                    yield case, arm, seed

    def merged(self, case: Case, arm: Arm) -> dict[str, Any]:
        """The settings of a cell as JSON has them: the study's, then the case's, then the arm's."""
        values = {key: setting.value for key, setting in self.settings.items()} | {**case.settings, **arm.settings}
        return cast("dict[str, Any]", json.loads(json.dumps(values)))


def plan(study: Study, seeds: int | None = None, quick: bool = False) -> Plan:
    """Decide what is computed.

    Args:
        study: the study.
        seeds: how many; default those of the study.
        quick: fewer seeds, fewer cases and the quick settings.

    Raises:
        UserError: no seed, or no case can be run here.
    """
    count = seeds if seeds is not None else study.quick_seeds if quick else study.seeds
    if count < 1:
        raise UserError(f"--seeds must be at least 1; got {count}. With one seed nothing is compared.")
    chosen = [case for case in study.cases if not quick or not study.quick_cases or case.name in study.quick_cases]
    left_out = {case.label: reason for case in chosen if (reason := case.missing())}
    if len(left_out) == len(chosen):
        raise UserError(f"{study.name} cannot be run here: {'; '.join(left_out.values())}")
    settings = dict(study.settings)
    if quick:
        settings |= {key: Setting(value, "quick look") for key, value in study.quick.items()}
    cases = tuple(case for case in chosen if case.label not in left_out)
    return Plan(study, settings, cases, tuple(range(count)), left_out)


class Watcher:
    """Told what happens; the command line draws it."""

    def planned(self, total: int, left: int) -> None:
        """`left` of `total` cells are to be computed."""

    def progressed(self, label: str, fraction: float) -> None:
        """A cell in this process has come so far."""

    def ended(self, label: str, seconds: float) -> None:
        """A cell is finished and stored."""


def carry_out(
    plan: Plan,
    folder: Path,
    *,
    workers: int = 1,
    force: bool = False,
    stop: Stop | None = None,
    watch: Watcher | None = None,
) -> Results | None:
    """Compute the cells that are not in `folder` yet.

    Args:
        plan: what to compute.
        folder: made if it does not exist; cells are files in `cells/` of it.
        workers: processes with one thread each; 1 computes in this process.
        force: remove these cells first, so that all are computed anew.
        stop: a request to stop; the cell under way is given up, finished ones are kept.
        watch: told what happens.

    Returns:
        All results, or None when stopped.

    Raises:
        UserError: the folder holds cells of other settings or versions, or is in use.
    """
    stop, watch = stop or Stop(), watch or Watcher()
    directory = runs.RunDirectory(folder)
    directory.create()
    with directory.lock():
        (folder / CELLS).mkdir(exist_ok=True)
        found: dict[tuple[str, str, int], Cell] = {}
        todo: list[tuple[Case, Arm, int]] = []
        for case, arm, seed in plan.cells():
            if force:
                _path(folder, case.name, arm.name, seed).unlink(missing_ok=True)
            cell = _read(plan, folder, case, arm, seed)
            if cell is None:
                todo.append((case, arm, seed))
            else:
                found[case.name, arm.name, seed] = cell
        watch.planned(len(todo) + len(found), len(todo))
        if todo:
            plan.study.prepare({key: setting.value for key, setting in plan.settings.items()})
        try:
            compute = _in_this_process if min(workers, len(todo)) < 2 else _in_workers
            for cell in compute(plan, todo, workers, stop, watch):
                runs.write_json(_path(folder, cell.case, cell.arm, cell.seed), asdict(cell))
                found[cell.case, cell.arm, cell.seed] = cell
                watch.ended(f"{cell.case} {cell.arm} seed {cell.seed}", cell.seconds)
        except Stopped:
            return None
    return Results(plan.study, plan.settings, plan.cases, plan.seeds, found, plan.left_out)


def cores() -> int:
    """Processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _path(folder: Path, case: str, arm: str, seed: int) -> Path:
    return folder / CELLS / f"{case}-{arm}-s{seed}.json"


def _read(plan: Plan, folder: Path, case: Case, arm: Arm, seed: int) -> Cell | None:
    path = _path(folder, case.name, arm.name, seed)
    content = runs.read_json(path)
    if content is None:
        return None
    try:
        cell = Cell(**content)
    except TypeError:
        raise UserError(f"{path} is not a cell of this version of steepest; use --force or another --out.") from None
    versions = runs.versions()
    there = cell.settings | {name: cell.versions.get(name) for name in _VERSIONS}
    now = plan.merged(case, arm) | {name: versions.get(name) for name in _VERSIONS}
    if there != now:
        keys = sorted(key for key in there.keys() | now.keys() if there.get(key) != now.get(key))
        differences = "; ".join(f"{key} is {there.get(key)!r} there and {now.get(key)!r} now" for key in keys)
        raise UserError(
            f"{folder} holds results of other settings ({path.name}: {differences}). Choose another --out, or compute "
            "everything anew with --force."
        )
    return cell


def _in_this_process(
    plan: Plan, todo: Sequence[tuple[Case, Arm, int]], workers: int, stop: Stop, watch: Watcher
) -> Iterator[Cell]:
    for case, arm, seed in todo:

        def report(fraction: float, label: str = f"{case.name} {arm.name} seed {seed}") -> None:
            watch.progressed(label, fraction)
            if stop.requested:
                raise Stopped

        report(0.0)
        yield _named(_compute(plan.study.run, plan.merged(case, arm), seed, report), case, arm)


def _in_workers(
    plan: Plan, todo: Sequence[tuple[Case, Arm, int]], workers: int, stop: Stop, watch: Watcher
) -> Iterator[Cell]:
    context = multiprocessing.get_context("spawn")
    event = context.Event()
    with ProcessPoolExecutor(workers, context, initializer=_begin, initargs=(event,)) as pool:
        jobs: dict[Future[Cell], tuple[Case, Arm]] = {}
        try:
            for case, arm, seed in todo:
                jobs[pool.submit(_in_worker, plan.study.run, plan.merged(case, arm), seed)] = case, arm
            while jobs:
                done, _ = wait(jobs, timeout=0.2, return_when=FIRST_COMPLETED)
                for job in done:
                    yield _named(job.result(), *jobs.pop(job))
                if stop.requested:
                    raise Stopped
        except BrokenProcessPool:
            raise UserError(
                "a worker process was killed (memory?). What is finished is saved: run the same command again, with "
                "--workers 1 if it happens again."
            ) from None
        finally:
            event.set()
            pool.shutdown(cancel_futures=True)


_stop: Event | None = None  # of a worker process


def _begin(event: Event) -> None:
    global _stop  # noqa: PLW0603 - a process pool has no other place for what its workers share
    _stop = event
    # Ctrl-C reaches the whole process group; the parent decides what it means.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)  # it was killed, or it would have ended this process


def _in_worker(run: Run, settings: dict[str, Any], seed: int) -> Cell:
    def report(fraction: float) -> None:
        if _stop is None or _stop.is_set():
            raise Stopped

    return _compute(run, settings, seed, report)


def _compute(run: Run, settings: dict[str, Any], seed: int, report: Report) -> Cell:
    began = time.monotonic()
    with threads(1):  # the same sums in the same order, however many cores there are
        values = run(settings, seed, report)
    numbers = {k: float(v) for k, v in values.items() if isinstance(v, (int, float))}
    series = {k: [_short(x) for x in v] for k, v in values.items() if not isinstance(v, (int, float))}
    finite = {key: value if math.isfinite(value) else None for key, value in numbers.items()}
    versions = {name: version for name, version in runs.versions().items() if name in _VERSIONS}
    return Cell("", "", seed, settings, finite, series, round(time.monotonic() - began, 2), runs.now(), versions)


def _named(cell: Cell, case: Case, arm: Arm) -> Cell:
    return replace(cell, case=case.name, arm=arm.name)


def _short(value: float) -> float | None:
    """Six significant digits are enough for a figure; JSON has no word for what is not finite."""
    return float(f"{value:.6g}") if math.isfinite(value) else None
