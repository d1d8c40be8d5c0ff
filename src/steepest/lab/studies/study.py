"""A study: a folder, its configuration, what is known about its workload, and where it stands."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from steepest.lab import methods, models, runs
from steepest.lab.compute import pick_device
from steepest.lab.config import MethodConfig, StudyConfig, StudyMethod, TrainConfig, plain, run_id
from steepest.lab.data import Pack
from steepest.lab.errors import UserError, unknown
from steepest.lab.results import fairness, read_study
from steepest.lab.signals import Stop
from steepest.lab.studies.changes import changes, other_versions
from steepest.lab.studies.claims import Claims
from steepest.lab.studies.execution import Execution, Watcher
from steepest.lab.studies.plan import Outcome, Plan, Wanted, make_plan
from steepest.lab.studies.search import GridTuning, SampledTuning, Tuning
from steepest.lab.studies.spaces import Point, ranges, starting_grid
from steepest.lab.workers import Pool
from steepest.lab.workloads import open_data, resolve

SCHEMA = 2
_FACTS = (
    *("created", "command", "versions", "machine", "device", "workload"),
    *("seconds_per_step", "seconds_per_evaluation", "calibration"),
)


class Study:
    """A study in a folder, `<out>/<name>`. Any number of processes may carry it out together.

    Args:
        config: what to compare.
        out: where the study's folder is.

    Attributes:
        facts: what was found out before the first run: versions, machine, type of device, workload with its precision,
            seconds a step and an evaluation.
        failed: why runs failed in this process, by run id.
        tunings: method and tuning by label.

    Raises:
        UserError: a bad name, option, value, axis or model; nothing was written.
    """

    def __init__(self, config: StudyConfig, out: str | Path) -> None:
        if not config.methods:
            raise UserError("nothing to compare: name at least one method, for example --methods adamw,lionmuon.")
        names = [method.name for method in config.methods]
        labels = [method.label or method.name for method in config.methods]
        if config.baseline not in names + labels:
            raise unknown("baseline", config.baseline, labels)
        base = TrainConfig(
            workload=config.workload, device=config.device, cache=config.cache, threads=1,
            diagnostics_every=config.diagnostics_every, tensorboard=config.tensorboard,
        )  # fmt: skip
        self.base = resolve(base)
        self.config = config.model_copy(update={"workload": self.base.workload})
        for method in config.methods:
            for point in self._corners(method):
                methods.check(_method(method, point), config.workload.steps)
        models.configuration(self.base.workload.model, sequence_length=config.workload.sequence_length)
        self.folder = Path(out) / config.name
        self.runs = self.folder / "runs"
        self.facts: dict[str, Any] = {}
        self.failed: dict[str, str] = {}
        self.tunings: dict[str, tuple[StudyMethod, Tuning]] = {}
        self._finals: dict[str, dict[str, Any]] = {}
        self._tried: dict[str, list[Point]] = {}
        self._seen: Any = None  # the configuration that this process has last read or written
        self._pack: Pack | None = None

    def _corners(self, method: StudyMethod) -> Iterator[Point]:
        """Points that show whether the axes and their first and last values are accepted."""
        own = methods.find(method.name).grid
        if self.config.search == "grid":
            points = starting_grid(method, self.config, own).points()
            yield points[0]  # is checked first: a misspelt axis makes a wrong count, and is what there is to say
            trials = self.config.trials
            if trials is not None and len(points) != trials:
                raise UserError(
                    f"{method.label or method.name}: its space has {len(points)} points, and trials is {trials} for "
                    "every method. List as many values, or leave trials out."
                )
            yield from points[1:]
            return
        axes = ranges(method, own)
        for end in (0, -1):
            yield {n: a[end] if isinstance(a, tuple) else (a.low, a.high)[end] for n, a in axes.items()}

    # Carrying it out --------------------------------------------------------------------------------------------------

    def carry_out(self, workers: int = 2, watch: Watcher | None = None, stop: Stop | None = None) -> bool:
        """Carry out what is missing, together with any other process that does. False if stopped before the end.

        Raises:
            UserError: the folder holds another study or one of other versions, a run cannot be carried out at all, or
                two methods did not start from the same weights or read the same data.
        """
        self.open()
        finished = self.over()
        if finished:
            self.write(self.plan())
        else:
            with Claims() as claims, Pool(workers) as pool:
                finished = Execution(self, pool, claims, watch or Watcher(), stop or Stop()).run()
        if finished:
            self._check_fair()
        return finished

    def calibrate(self, watch: Watcher | None = None, stop: Stop | None = None) -> Plan:
        """Time a few steps of each method, tell the watcher what the study will cost, and make no run."""
        self.open()
        with Claims() as claims, Pool(1) as pool:
            execution = Execution(self, pool, claims, watch or Watcher(), stop or Stop())
            if execution.measure():
                execution.announce(self.plan())
        return self.plan()

    def open(self) -> None:
        """Prepare the data and make the folder, or read in it what is known already.

        The precision that somebody measured is kept: measured again it might come out differently, and old and new runs
        would not compare.

        Raises:
            UserError: the folder holds another study, or one of other versions.
        """
        self._pack = open_data(self.base, progress=True)
        directory = runs.RunDirectory(self.folder)
        directory.create()
        self.runs.mkdir(exist_ok=True)
        self.refresh()

    def refresh(self) -> None:
        """Take over what another process may have found out and written since."""
        known = _read(self.folder / "study.json", self.config)
        if known is None:
            return
        found = known.changed if known.data_sha256 == self.data_sha256 else ["the data changed"]
        if found:
            raise UserError(
                f"{self.folder} holds another study, and a study may grow but not change: {'; '.join(found)}. Choose "
                "another name, or remove that folder."
            )
        if known.other_versions:
            raise UserError(
                f"{self.folder} was begun with other versions, whose numbers may differ: "
                f"{'; '.join(known.other_versions)}. Install those, or choose another name."
            )
        device = self.config.device
        here = pick_device(device).type if device == "auto" else device.partition(":")[0]
        there = known.facts["device"] or here
        if there != here:
            raise UserError(
                f"{self.folder} was begun on {there}, and device {device!r} is {here} here, whose numbers may differ. "
                f"Set device to {there}, or choose another name."
            )
        self.facts = known.facts | {"device": there}
        self._seen, self._tried = known.config, known.tried

    @property
    def data_sha256(self) -> str:
        """The data's own hash, which is part of a run's name."""
        assert self._pack is not None, "open() comes first"
        return self._pack.sha256

    def over(self) -> bool:
        """Whether nothing is left to do."""
        if not self.facts:
            return False
        plan = self.plan()
        return not plan.todo and self.drawn(plan)

    def drawn(self, plan: Plan) -> bool:
        """Whether no sampler has points left to draw."""
        return self.config.search == "grid" or all(len(row.tuning) == self.config.trials for row in plan.rows)

    def uncalibrated(self) -> dict[str, TrainConfig]:
        """A run of each method that was not timed yet."""
        missing = [method for method in self.config.methods if label(method) not in self.facts["calibration"]]
        seed = self.config.tuning_seed
        return {label(m): self.configure(Wanted(m, next(self._corners(m)), seed, "tune")) for m in missing}

    def seconds_per_run(self, label: str) -> float:
        """About how long a run of a method takes: its steps and evaluations, as they were timed; NaN if not."""
        workload, step = self.config.workload, self.facts["calibration"][label]
        evaluations = math.ceil(workload.steps / workload.evaluate_every)
        return workload.steps * (step or math.nan) + evaluations * (self.facts["seconds_per_evaluation"] or 0.0)

    # The plan ---------------------------------------------------------------------------------------------------------

    def plan(self) -> Plan:
        """Derive from the runs on disk where every method stands and what can be run now."""
        for method in self.config.methods:
            if label(method) not in self.tunings:
                self.tunings[label(method)] = (method, self._tuning(method))
        return make_plan(self.tunings, self.config.tuning_seed, self.config.seeds, self._outcome)

    def _tuning(self, method: StudyMethod) -> Tuning:
        config, own = self.config, methods.find(method.name).grid

        def allowed(point: Point) -> bool:
            try:
                methods.check(_method(method, point), config.workload.steps)
            except UserError:
                return False
            return True

        if config.search == "grid":
            return GridTuning(
                starting_grid(method, config, own), config.extend, allowed, self._tried.get(label(method), ())
            )
        assert config.trials is not None
        return SampledTuning(
            self.folder / "search.journal", label(method), ranges(method, own),
            kind=config.search, trials=config.trials, seed=config.tuning_seed,
        )  # fmt: skip

    def configure(self, wanted: Wanted) -> TrainConfig:
        """The run of a point and a seed."""
        workload = self.base.workload.model_copy(update={"precision": self.facts["workload"]["precision"]})
        return self.base.model_copy(update={
            "workload": workload, "method": methods.resolve(_method(wanted.method, wanted.point)),
            "seed": wanted.seed, "purpose": wanted.purpose, "keep_checkpoint": False,
        })  # fmt: skip

    def name_of(self, config: TrainConfig) -> str:
        """The run's folder in `runs`."""
        return run_id(config, self.data_sha256)

    def _outcome(self, wanted: Wanted) -> Outcome:
        name = self.name_of(self.configure(wanted))
        if name in self.failed:
            return {"run_id": name, "loss": None, "state": "failed"}
        if name not in self._finals:
            final = runs.RunDirectory(self.runs / name).final()
            if final is None:
                return {"run_id": name, "loss": None, "state": "created"}
            self._finals[name] = final
        final = self._finals[name]
        return {"run_id": name, "loss": final["loss"], "state": final["state"]}

    def write(self, plan: Plan) -> None:
        """Write study.json.

        Raises:
            UserError: another process has grown the study since this one has looked.
        """
        facts, config = self.facts, self.config
        known = _read(self.folder / "study.json", config)
        if known is not None and known.config != self._seen:
            found, extend = known.changed, known.config.get("extend", 0)
            if extend > config.extend:
                found = [*found, f"extend is {extend} there and {config.extend} now"]
            if found:
                raise UserError(
                    f"another process has grown the study {self.folder}: {'; '.join(found)}. All runs are saved; give "
                    "the command again with the new file."
                )
        runs.write_json(self.folder / "study.json", {
            "schema": SCHEMA,
            "name": config.name,
            **{key: facts[key] for key in _FACTS},
            "tier": "CPU proxy" if facts["device"] == "cpu" else "GPU",
            "baseline": config.baseline,
            "methods": [
                {
                    "name": row.method.name,
                    "label": row.method.label or methods.find(row.method.name).label,
                    "options": plain(row.method.options),
                    "search": config.search,
                    "axes": plain(row.axes),
                    "tuning": plain(row.tuning),
                    "best": plain(row.best),
                    "best_lr": row.best and row.best["lr"],
                    "open_axes": list(row.open_axes),
                    "edge": bool(row.open_axes),
                    "trials": len(row.tuning),
                }
                for row in plan.rows
            ],
            "tuning_seed": config.tuning_seed,
            "seeds": list(config.seeds),
            "failures": self.failed,
            "config": plain(config.model_dump()),
        })  # fmt: skip
        self._seen = plain(config.model_dump())

    def _check_fair(self) -> None:
        for check in fairness(read_study(self.folder)):
            for what, equal in (("initial weights", check.init_equal), ("training data", check.data_equal)):
                if equal is False:
                    raise UserError(
                        f"the comparison is not fair: with seed {check.seed} the methods did not have the same {what} "
                        f"(init_hash and data_hash in {self.runs}/*/final.json). Runs of different versions of "
                        "torch, transformers or steepest may have met in this folder; choose a new name."
                    )


@dataclass(frozen=True)
class _Known:
    """What study.json says.

    Attributes:
        facts: those of `Study`.
        config: the configuration that it was written with, as plain values.
        changed: what the configuration asked for now would change in it.
        tried: the points whose runs are over, by the label of their method.
    """

    facts: dict[str, Any]
    config: dict[str, Any]
    changed: list[str]
    other_versions: list[str]
    data_sha256: str
    tried: dict[str, list[Point]]


def _read(path: Path, asked: StudyConfig) -> _Known | None:
    """Read study.json; None if there is none, a `UserError` if something is missing in it."""
    study = runs.read_json(path)
    if study is None:
        return None
    try:
        config, workload = study["config"], study["workload"]
        facts = {key: study.get(key) for key in _FACTS} | {"calibration": dict(study["calibration"] or {})}
        data_sha256, _ = workload["data"]["sha256"], workload["precision"]
        rows = zip(config["methods"], study["methods"], strict=True)
        return _Known(
            facts=facts,
            config=config,
            changed=changes(config, asked),
            other_versions=other_versions(study["versions"], runs.versions()),
            data_sha256=data_sha256,
            tried={
                method["label"] or method["name"]: [dict(t["point"]) for t in row["tuning"] if t["state"] in runs.OVER]
                for method, row in rows
            },
        )
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise runs.damaged(path, f"{type(error).__name__}: {error}") from None


def label(method: StudyMethod) -> str:
    """What tells the methods of a study apart."""
    return method.label or method.name


def _method(method: StudyMethod, point: Point) -> MethodConfig:
    options = {name: value for name, value in point.items() if name != "lr"}
    return MethodConfig(name=method.name, label=method.label, lr=point["lr"], options=method.options | options)
