"""Carrying out a study: this process's workers take the runs that no other process has."""

from __future__ import annotations

import contextlib
import math
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from steepest.lab import runs
from steepest.lab.config import StudyConfig, StudyMethod, TrainConfig
from steepest.lab.errors import UserError
from steepest.lab.signals import Stop
from steepest.lab.studies.claims import Claims, is_claimed
from steepest.lab.studies.plan import Plan
from steepest.lab.studies.search import SampledTuning
from steepest.lab.training import Progress
from steepest.lab.workers import Message, Pool

if TYPE_CHECKING:
    from steepest.lab.studies.study import Study

_CRASHES = 5  # deaths of a worker in one run, without a checkpoint in between, that make it a failure
_POLL = 2.0  # seconds between looks at what other processes have finished


class Watcher:
    """Hears what happens during a study; does nothing."""

    def planned(self, config: StudyConfig, runs_left: int, seconds: float | None) -> None:
        """Before the first run: how many runs are left and, if measured, about how long they will take in all."""

    def started(self, config: TrainConfig, worker: int) -> None:
        """A worker begins a run."""

    def progressed(self, worker: int, progress: Progress) -> None:
        """A logged step of a worker's run."""

    def ended(self, config: TrainConfig, worker: int, state: str, loss: float | None, message: str) -> None:
        """A run ended: "done", "diverged", "interrupted", or "failed" (then `message` says why)."""

    def extended(self, method: StudyMethod, axis: str, value: float) -> None:
        """The best value of a method was at the edge of its grid, so one more is tried."""

    def waiting(self, runs: int) -> None:
        """Nothing to do here while other processes carry out the runs that are left."""


class Execution:
    """One process's part in a study.

    Args:
        study: opened.
        pool: the workers of this process.
        claims: on runs, and for a moment on the folder itself.
        watch: hears what happens.
        stop: when requested, all runs are saved and given back.
    """

    def __init__(self, study: Study, pool: Pool, claims: Claims, watch: Watcher, stop: Stop) -> None:
        self.study, self.pool, self.claims, self.watch, self.stop = study, pool, claims, watch, stop
        self._running: dict[int, TrainConfig] = {}
        self._axes: dict[str, dict[str, Any]] = {}
        self._crashes: dict[str, tuple[int, int]] = {}
        self._fault: str | None = None

    def run(self) -> bool:
        """Go on until nothing is left, here or elsewhere; False when stopped before."""
        if not self.measure():
            return False
        self._draw(self.study.plan())
        self.announce(self.study.plan())
        waited = False
        while True:
            plan = self._advance()
            if self._running:
                self._listen()
            elif self._ending or (not plan.todo and self.study.drawn(plan)):
                break
            else:
                if not waited:
                    self.watch.waiting(len(plan.todo))
                waited = True
                time.sleep(_POLL)
        if self._fault is not None:
            raise UserError(self._fault)
        return not self.stop.requested

    @property
    def _ending(self) -> bool:
        return self.stop.requested or self._fault is not None

    # Before the first run ---------------------------------------------------------------------------------------------

    def measure(self) -> bool:
        """Let a worker describe the workload, choose the precision and time each method; False when stopped."""
        study = self.study
        while not self.claims.take(study.folder):  # another process measures
            if self.stop.requested:
                return False
            time.sleep(_POLL / 4)
        try:
            study.refresh()
            if not study.facts:
                facts = self._ask("probe", study.base)
                if facts is None:
                    return False
                study.facts = facts | {"created": runs.now(), "command": runs.command(), "calibration": {}}
            for label, config in study.uncalibrated().items():
                seconds = self._ask("calibrate", config)
                if seconds is None:
                    return False
                study.facts["calibration"][label] = seconds
            study.write(study.plan())
        finally:
            self.claims.release(study.folder)
        return True

    def _ask(self, job: str, config: TrainConfig) -> Any:
        """A worker's answer; None when stopped before."""
        self.pool.submit(self.pool.idle[0], job, config, self.study.runs)
        while not self.stop.requested:
            for message in self.pool.receive(0.2):
                if message.kind == "fault":
                    raise UserError(message.content)
                if message.kind != "result":
                    method = config.method.label or config.method.name
                    what = "describing the workload" if job == "probe" else f"timing the steps of {method}"
                    raise UserError(f"{what} failed: {message.content}")
                return message.content
        return None

    def announce(self, plan: Plan) -> None:
        """Tell the watcher how much is left, as far as is known: grids may grow."""
        study, runs_left, seconds = self.study, 0, 0.0
        for row in plan.rows:
            left = sum(wanted.method is row.method for wanted in plan.todo)
            left += (study.config.trials or 0) - len(row.tuning) if not study.drawn(plan) else 0
            left += len(study.config.seeds) if row.best is None else 0
            runs_left += left
            seconds += left * study.seconds_per_run(row.label) / len(self.pool.idle)
        self.watch.planned(study.config, runs_left, seconds if math.isfinite(seconds) else None)

    # The loop ---------------------------------------------------------------------------------------------------------

    def _advance(self) -> Plan:
        """Look where the study stands, and give idle workers what no process has."""
        study, plan = self.study, self.study.plan()
        if not self._ending and self._draw(plan):
            plan = study.plan()
        try:
            study.write(plan)
        except UserError as error:  # runs that are under way are saved first
            self._fault = str(error)
        self._tell_growth(plan)
        todo, failed = {study.name_of(config): config for config in map(study.configure, plan.todo)}, len(study.failed)
        for worker in self.pool.idle if not self._ending else ():
            config = self._take(worker, todo)
            if config is None:
                break
            self._running[worker] = config
            self.watch.started(config, worker)
            self.pool.submit(worker, "train", config, study.runs)
        return plan if len(study.failed) == failed else self._advance()

    def _draw(self, plan: Plan) -> bool:
        """Let samplers see what has ended and draw new points, one process at a time. Whether there are new ones."""
        sampled = [(row, t) for row in plan.rows if isinstance(t := self.study.tunings[row.label][1], SampledTuning)]
        if not sampled or self.study.drawn(plan) or not self.claims.take(self.study.folder):
            return False
        try:
            idle, new = len(self.pool.idle), 0
            for row, tuning in sampled:
                tuning.tell([(t["point"], t["loss"]) for t in row.tuning if t["state"] != "created"])
                waiting = [t["run_id"] for t in row.tuning if t["state"] == "created"]
                free = [name for name in waiting if not is_claimed(self.study.runs / name)]
                new += tuning.draw(max(0, idle - new - len(free)))
            return new > 0
        finally:
            self.claims.release(self.study.folder)

    def _tell_growth(self, plan: Plan) -> None:
        for row in plan.rows:
            known = self._axes.get(row.label, row.axes)
            for name, values in row.axes.items():
                for value in values if isinstance(values, list) else ():
                    if value not in known[name]:
                        self.watch.extended(row.method, name, value)
            self._axes[row.label] = row.axes

    def _take(self, worker: int, todo: dict[str, TrainConfig]) -> TrainConfig | None:
        """The first run that no process has, for a worker; its claim is ours then."""
        ours = {self.study.name_of(config) for config in self._running.values()}
        for name, config in todo.items():
            folder = self.study.runs / name
            try:
                if name in ours or not self.claims.take(folder):
                    continue
            except OSError as error:  # somebody else's folder
                self.study.failed[name] = str(error)
                self.watch.started(config, worker)
                self.watch.ended(config, worker, "failed", None, str(error))
                continue
            if runs.RunDirectory(folder).final() is None:
                return config
            self.claims.release(folder)  # finished by another process since the plan was made
        return None

    def _listen(self) -> None:
        """Hear the workers until a run has ended, or it is time to look what other processes have done."""
        until = time.monotonic() + (_POLL if self.pool.idle else math.inf)
        ended = False
        while not ended and time.monotonic() < until:
            if self._ending:
                self.pool.stop()
            for worker, config in self._running.items():
                if self.study.runs / self.study.name_of(config) in self.claims.lost:
                    self.pool.kill(worker)  # this process stood still, and another one has taken the run over
            for message in self.pool.receive(0.2):
                if message.kind == "progress":
                    self.watch.progressed(message.worker, message.content)
                else:
                    self._ended(self._running.pop(message.worker), message)
                    ended = True

    def _ended(self, config: TrainConfig, message: Message) -> None:
        name = self.study.name_of(config)
        folder = self.study.runs / name
        if message.kind == "result":
            self.watch.ended(config, message.worker, message.content.state, message.content.loss, "")
        elif folder in self.claims.lost:
            self.watch.ended(config, message.worker, "interrupted", None, "another process has taken this run over")
        else:
            if message.kind == "fault":  # the user's to mend, and the next run would meet it too
                self._fault = message.content
            step = _step(folder)
            count, before = self._crashes.get(name, (0, step))
            self._crashes[name] = (count + 1 if step == before else 1, step)
            if message.kind == "error" or self._crashes[name][0] >= _CRASHES:
                self.study.failed[name] = message.content
            self.watch.ended(config, message.worker, "failed", None, message.content)
        self.claims.release(folder)


def _step(folder: Path) -> int:
    """The step that a run has saved, as far as its status can be read."""
    with contextlib.suppress(UserError, TypeError, KeyError):
        return int(runs.RunDirectory(folder).read("status")["step"])
    return 0
