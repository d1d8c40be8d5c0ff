"""Comparisons: every method tuned on a grid of learning rates with one seed, then run with fresh seeds, all kept.

The plan is a pure function of the configuration and of the final.json files that exist, so a comparison that was
stopped or killed goes on where it was when the same command is given again, and adding a method or a seed runs only
what is missing.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from steepest.lab import methods, runs
from steepest.lab.config import MethodConfig, StudyConfig, StudyMethod, TrainConfig, plain, run_id
from steepest.lab.data import Pack
from steepest.lab.errors import UserError, unknown
from steepest.lab.results import fairness, read_study
from steepest.lab.signals import Stop
from steepest.lab.training import Progress, Result
from steepest.lab.workers import Message, Pool
from steepest.lab.workloads import open_data, resolve

SCHEMA = 1
_FACTS = ("created", "versions", "machine", "workload", "seconds_per_step")
_TRIES = 2  # a run whose worker died is tried again once, from its last checkpoint


class Watcher:
    """Hears what happens during a comparison; does nothing."""

    def planned(self, config: StudyConfig, runs_left: int, seconds: float | None) -> None:
        """Before the first run: how many runs are left and, if measured, about how long they will take in all."""

    def started(self, config: TrainConfig, worker: int) -> None:
        """A worker begins a run."""

    def progressed(self, worker: int, progress: Progress) -> None:
        """A logged step of a worker's run."""

    def ended(self, config: TrainConfig, worker: int, state: str, loss: float | None, message: str) -> None:
        """A run ended: "done", "diverged", "interrupted", or "failed" (then `message` says why)."""

    def extended(self, method: StudyMethod, lr: float) -> None:
        """The best learning rate of a method was at the edge of its grid, so one more is tried."""


@dataclass
class Trials:
    """One method of a study: the learning rates tried, and what came out, by learning rate."""

    method: StudyMethod
    grid: list[float]
    tuning: dict[float, dict[str, Any]] = field(default_factory=dict)
    best_lr: float | None = None
    edge: bool = False

    @property
    def label(self) -> str:
        """How tables call it."""
        return self.method.label or methods.find(self.method.name).label


@dataclass
class Plan:
    """Where a study stands: per method, and the runs that can be carried out now."""

    rows: list[Trials]
    todo: list[TrainConfig]
    total: int


class Study:
    """A comparison in a folder.

    Args:
        config: what to compare.
        out: the study's folder is `<out>/<name>`.
    """

    def __init__(self, config: StudyConfig, out: str | Path) -> None:
        if not config.methods:
            raise UserError("nothing to compare: name at least one method, for example --methods adamw,lionmuon.")
        names = [method.name for method in config.methods]
        labels = [method.label or method.name for method in config.methods]
        if config.baseline not in names + labels:
            raise unknown("baseline", config.baseline, labels)
        base = TrainConfig(workload=config.workload, device=config.device, cache=config.cache, threads=1)
        self.base = resolve(base)
        for method in config.methods:
            methods.check(_method(method, None), config.workload.steps)
        self.config = config.model_copy(update={"workload": self.base.workload})
        self.folder = Path(out) / config.name
        self.runs = self.folder / "runs"
        self._failed: dict[str, str] = {}
        self._tries: dict[str, int] = {}
        self._fault: str | None = None
        self._finals: dict[str, dict[str, Any]] = {}
        self._facts: dict[str, Any] = {}

    def carry_out(self, workers: int = 2, watch: Watcher | None = None, stop: Stop | None = None) -> bool:
        """Carry out what is missing. Returns False when it was stopped before the end.

        Raises:
            UserError: the folder holds another study, a run cannot be carried out at all, or two methods did not start
                from the same weights or read the same data.
        """
        watch, stop = watch or Watcher(), stop or Stop()
        pack = open_data(self.base, progress=True)
        directory = runs.RunDirectory(self.folder)
        directory.create()
        self.runs.mkdir(exist_ok=True)
        with directory.lock():
            self._facts = self._known(directory.read("study"), pack)
            finished = self._facts != {} and not self.plan(pack.sha256).todo
            if finished:
                self._write(self.plan(pack.sha256))
            else:
                with Pool(workers) as pool:
                    finished = self._probe(pool, stop) and self._run(pool, pack, watch, stop)
        if finished:
            self._check_fair()
        return finished

    def _known(self, study: dict[str, Any] | None, pack: Pack) -> dict[str, Any]:
        """What an earlier invocation found out about the workload; empty when there was none.

        Its precision is kept: measured again it might come out differently, and old and new runs would not compare.
        """
        if study is None:
            return {}
        there, asked = study["config"]["workload"], plain(self.config.workload.model_dump())
        if there != asked or study["workload"]["data"]["sha256"] != pack.sha256:
            raise UserError(
                f"{self.folder} holds a comparison on another workload: {_differences(there, asked)}. Choose another "
                "--name, or remove that folder."
            )
        return {key: study[key] for key in _FACTS}

    def _probe(self, pool: Pool, stop: Stop) -> bool:
        """Let a worker describe the workload and choose the precision; False when stopped meanwhile."""
        if not self._facts:
            pool.submit(0, "probe", self.base, self.runs)
        while pool.busy and not stop.requested:
            for message in pool.receive(0.2):
                if message.kind != "result":
                    raise UserError(message.content)
                self._facts = message.content | {"created": runs.now()}
        return not stop.requested

    # The plan ---------------------------------------------------------------------------------------------------------

    def plan(self, data_sha256: str) -> Plan:
        """Derive from the runs on disk where every method stands and what can be run now."""
        rows, todo, total = [], [], 0
        for method in self.config.methods:
            row = Trials(method, list(method.grid or methods.find(method.name).grid))
            first = len(row.grid)
            while True:
                row.tuning = {lr: self._outcome(method, lr, self.config.tuning_seed, data_sha256) for lr in row.grid}
                if any(trial["state"] == "created" for trial in row.tuning.values()):
                    row.best_lr, row.edge = None, False
                    break
                row.best_lr, row.edge, beyond = choose(row.grid, {lr: t["loss"] for lr, t in row.tuning.items()})
                if beyond is None or len(row.grid) - first >= self.config.extend:
                    break
                row.grid = sorted([*row.grid, beyond])
            todo += [
                self._configure(method, lr, self.config.tuning_seed, "tune")
                for lr, t in row.tuning.items()
                if t["state"] == "created"
            ]
            if row.best_lr is not None:
                for seed in self.config.seeds:
                    if self._outcome(method, row.best_lr, seed, data_sha256)["state"] == "created":
                        todo.append(self._configure(method, row.best_lr, seed, "final"))
            total += len(row.grid) + len(self.config.seeds)
            rows.append(row)
        return Plan(rows, todo, total)

    def _configure(self, method: StudyMethod, lr: float, seed: int, purpose: str) -> TrainConfig:
        workload = self.base.workload.model_copy(update={"precision": self._facts["workload"]["precision"]})
        return self.base.model_copy(update={
            "workload": workload, "method": methods.resolve(_method(method, lr)), "seed": seed, "purpose": purpose,
            "keep_checkpoint": False,
        })  # fmt: skip

    def _outcome(self, method: StudyMethod, lr: float, seed: int, data_sha256: str) -> dict[str, Any]:
        name = run_id(self._configure(method, lr, seed, "final"), data_sha256)
        if name in self._failed:
            return {"lr": lr, "run_id": name, "loss": None, "state": "failed"}
        if name not in self._finals:
            final = runs.RunDirectory(self.runs / name).final()
            if final is None:
                return {"lr": lr, "run_id": name, "loss": None, "state": "created"}
            self._finals[name] = final
        final = self._finals[name]
        return {"lr": lr, "run_id": name, "loss": final["loss"], "state": final["state"]}

    # Carrying it out --------------------------------------------------------------------------------------------------

    def _run(self, pool: Pool, pack: Pack, watch: Watcher, stop: Stop) -> bool:
        running: dict[int, TrainConfig] = {}
        grids: dict[str, list[float]] = {}
        self._announce(self.plan(pack.sha256), watch, len(pool.idle))
        while True:
            plan = self.plan(pack.sha256)
            self._write(plan)
            for row in plan.rows:
                for lr in set(row.grid) - set(grids.get(row.label, row.grid)):
                    watch.extended(row.method, lr)
                grids[row.label] = row.grid
            if not stop.requested and self._fault is None:
                under_way = [run_id(config, pack.sha256) for config in running.values()]
                waiting = [config for config in plan.todo if run_id(config, pack.sha256) not in under_way]
                for worker, config in zip(pool.idle, waiting, strict=False):
                    running[worker] = config
                    watch.started(config, worker)
                    pool.submit(worker, "train", config, self.runs)
            if not running:
                break
            ended = False
            while not ended:
                if stop.requested or self._fault is not None:
                    pool.stop()
                for message in pool.receive(0.2):
                    if message.kind == "progress":
                        watch.progressed(message.worker, message.content)
                    else:
                        config = running.pop(message.worker)
                        self._ended(config, run_id(config, pack.sha256), message, watch)
                        ended = True
        if self._fault is not None:
            raise UserError(self._fault)
        return not stop.requested

    def _announce(self, plan: Plan, watch: Watcher, workers: int) -> None:
        seconds, left = self._facts["seconds_per_step"], plan.total - len(self._finals)
        watch.planned(self.config, left, seconds and seconds * self.config.workload.steps * left / workers)

    def _ended(self, config: TrainConfig, name: str, message: Message, watch: Watcher) -> None:
        if message.kind == "result":
            result: Result = message.content
            watch.ended(config, message.worker, result.state, result.loss, "")
            return
        if message.kind == "fault":  # the user's to mend, and the next run would meet it too
            self._fault = message.content
        self._tries[name] = self._tries.get(name, 0) + 1
        if message.kind == "error" or self._tries[name] >= _TRIES:
            self._failed[name] = message.content
        watch.ended(config, message.worker, "failed", None, message.content)

    def _write(self, plan: Plan) -> None:
        facts, config = self._facts, self.config
        runs.write_json(self.folder / "study.json", {
            "schema": SCHEMA,
            "name": config.name,
            "command": runs.command(),
            **{key: facts[key] for key in _FACTS},
            "tier": "GPU" if facts["machine"]["gpus"] else "CPU proxy",
            "baseline": config.baseline,
            "methods": [
                {
                    "name": row.method.name,
                    "label": row.label,
                    "options": plain(row.method.options),
                    "grid": row.grid,
                    "tuning": [row.tuning[lr] for lr in row.grid],
                    "best_lr": row.best_lr,
                    "edge": row.edge,
                }
                for row in plan.rows
            ],
            "tuning_seed": config.tuning_seed,
            "seeds": list(config.seeds),
            "failures": self._failed,
            "config": plain(config.model_dump()),
        })  # fmt: skip

    def _check_fair(self) -> None:
        for check in fairness(read_study(self.folder)):
            for what, equal in (("initial weights", check.init_equal), ("training data", check.data_equal)):
                if equal is False:
                    raise UserError(
                        f"the comparison is not fair: with seed {check.seed} the methods did not have the same {what} "
                        f"(init_hash and data_hash in {self.runs}/*/final.json). Runs of different versions of "
                        "torch, transformers or steepest may have met in this folder; choose a new --name."
                    )


def choose(grid: list[float], losses: Mapping[float, float | None]) -> tuple[float | None, bool, float | None]:
    """Choose a learning rate by its loss.

    Args:
        grid: sorted learning rates.
        losses: their losses; None for a run that diverged or failed.

    Returns:
        The best rate (None when every run diverged), whether it lies on the edge of the grid, and the next value beyond
        that edge (None inside the grid, or when the grid is a single rate that somebody fixed).
    """
    if len(grid) == 1:
        return (grid[0] if losses[grid[0]] is not None else None), False, None
    finished = {lr: loss for lr in grid if (loss := losses[lr]) is not None and math.isfinite(loss)}
    best = min(finished, key=lambda lr: finished[lr]) if finished else None
    if best == grid[-1]:
        return best, True, _round(grid[-1] * grid[-1] / grid[-2])
    if best is None or best == grid[0]:
        return best, True, _round(grid[0] * grid[0] / grid[1])
    return best, False, None


def _round(lr: float) -> float:
    return float(f"{lr:.3g}")


def _method(method: StudyMethod, lr: float | None) -> MethodConfig:
    return MethodConfig(name=method.name, label=method.label, lr=lr, options=method.options)


def _differences(known: Mapping[str, Any], asked: Mapping[str, Any]) -> str:
    keys = [key for key in asked if known.get(key) != asked[key]]
    return "; ".join(f"{key} is {known.get(key)!r} there and {asked[key]!r} now" for key in keys) or "the data changed"
