from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
from small_runs import lines, tiny

from steepest.lab import methods, runs
from steepest.lab.config import StudyConfig, TrainConfig, validate
from steepest.lab.errors import UserError
from steepest.lab.results import headline, read_study
from steepest.lab.signals import Stop
from steepest.lab.studies import Study, Watcher, choose
from steepest.lab.studies import study as module
from steepest.lab.studies.plan import Plan


def study(cache: Path, out: Path, **changes: Any) -> Study:
    values = {
        "workload": tiny(cache).workload.model_dump(),
        "methods": [{"name": "adamw", "grid": [1e-2, 2e-2]}, {"name": "lionmuon", "grid": [1e-2]}],
        "seeds": [1, 2],
        "extend": 1,
        "device": "cpu",
        "cache": str(cache),
    }
    return Study(validate(StudyConfig, values | changes), out)


@pytest.mark.parametrize(
    ("grid", "losses", "expected"),
    [
        ([1.0, 2.0, 4.0], [3.0, 2.0, 3.0], (2.0, False, None)),
        ([1.0, 2.0, 4.0], [3.0, 2.0, 1.0], (4.0, True, 8.0)),
        ([1.0, 3.0, 4.0], [1.0, 2.0, 3.0], (1.0, True, 0.333)),
        ([1.0, 2.0, 4.0], [3.0, 2.0, None], (2.0, False, None)),  # a diverged neighbour closes the grid
        ([1.0, 2.0], [None, None], (None, True, 0.5)),  # all diverged: look lower
        ([1.0], [2.0], (1.0, False, None)),  # a single rate was somebody's choice
        ([1.0], [None], (None, False, None)),
    ],
)
def test_the_best_rate_and_where_to_look_next(grid: list[float], losses: list[float | None], expected: Any) -> None:
    assert choose(grid, dict(zip(grid, losses, strict=True))) == expected


class Pack:
    sha256 = "sha"


class Disk:
    """Writes final.json files as if runs had been carried out; the loss is a function of method, rate and seed."""

    def __init__(self, study: Study) -> None:
        self.study = study
        study._pack = Pack()  # type: ignore[assignment]
        study.facts = {"workload": {"precision": "fp32"}, "calibration": {}}
        self.carried_out: list[TrainConfig] = []

    def carry_out(self, loss: Any) -> Plan:
        while True:
            plan = self.study.plan()
            if not plan.todo:
                return plan
            purposes = {name: {w.purpose for w in plan.todo if w.method.name == name} for name in methods.METHODS}
            assert {"tune", "final"} not in purposes.values()  # a rate is final once all its rivals are known
            for config in map(self.study.configure, plan.todo):
                value = loss(config.method.name, config.method.lr, config.seed)
                final = {"state": "done" if value is not None else "diverged", "loss": value}
                path = self.study.runs / self.study.name_of(config)
                path.mkdir(parents=True)
                runs.write_json(path / "final.json", final)
                self.carried_out.append(config)


def test_every_method_is_tuned_on_one_seed_and_judged_on_fresh_ones(cache: Path, tmp_path: Path) -> None:
    disk = Disk(study(cache, tmp_path, methods=["adamw", "lion"], extend=0))
    plan = disk.carry_out(lambda name, lr, seed: abs(lr - methods.find(name).grid[1]) + 1)
    assert len(disk.carried_out) == plan.total == 2 * (4 + 2)
    for row in plan.rows:
        assert (row.best, row.open_axes) == ({"lr": methods.find(row.method.name).grid[1]}, ())
    tuning = {(c.method.name, c.method.lr) for c in disk.carried_out if c.purpose == "tune"}
    assert {c.seed for c in disk.carried_out if c.purpose == "tune"} == {0}
    assert tuning == {(name, lr) for name in ("adamw", "lion") for lr in methods.find(name).grid}
    finals = [(c.method.name, c.seed) for c in disk.carried_out if c.purpose == "final"]
    assert sorted(finals) == [(name, seed) for name in ("adamw", "lion") for seed in (1, 2)]


def test_a_best_rate_on_the_edge_is_followed_as_often_as_allowed(cache: Path, tmp_path: Path) -> None:
    disk = Disk(study(cache, tmp_path, methods=[{"name": "adamw", "grid": [1e-3, 2e-3]}], extend=2))
    plan = disk.carry_out(lambda name, lr, seed: 1 / lr)
    assert plan.rows[0].axes["lr"] == [1e-3, 2e-3, 4e-3, 8e-3]
    assert (plan.rows[0].best, plan.rows[0].open_axes) == ({"lr": 8e-3}, ("lr",))
    again = Disk(study(cache, tmp_path, methods=[{"name": "adamw", "grid": [1e-3, 2e-3]}], extend=3))
    plan = again.carry_out(lambda name, lr, seed: 200.0)
    assert plan.rows[0].axes["lr"] == [1e-3, 2e-3, 4e-3, 8e-3, 1.6e-2]
    assert (plan.rows[0].best, plan.rows[0].open_axes) == ({"lr": 8e-3}, ())
    assert [c.method.lr for c in again.carried_out] == [1.6e-2]


def test_a_new_seed_or_method_runs_only_what_is_new(cache: Path, tmp_path: Path) -> None:
    def loss(name: str, lr: float, seed: int) -> float:
        return abs(lr - methods.find(name).grid[1]) + 1

    Disk(study(cache, tmp_path, methods=["adamw"])).carry_out(loss)
    disk = Disk(study(cache, tmp_path, methods=["adamw", "lion"], seeds=[1, 2, 3]))
    disk.carry_out(loss)
    assert sorted((c.method.name, c.seed) for c in disk.carried_out) == sorted(
        [("adamw", 3)] + [("lion", 0)] * 4 + [("lion", seed) for seed in (1, 2, 3)]
    )


def test_a_method_that_always_diverges_has_no_winner(cache: Path, tmp_path: Path) -> None:
    disk = Disk(study(cache, tmp_path, methods=["adamw", "lion"], extend=1))
    plan = disk.carry_out(lambda name, lr, seed: None if name == "lion" else abs(lr - 4e-3))
    lion = plan.rows[1]
    assert (lion.best, lion.open_axes) == (None, ("lr",))
    assert lion.axes["lr"] == [2e-4, *methods.find("lion").grid]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"methods": []}, "nothing to compare"),
        ({"methods": ["adamw", "lionmoun"]}, "unknown optimizer 'lionmoun'. Did you mean 'lionmuon'"),
        ({"methods": [{"name": "adamw"}, {"name": "lionmuon", "options": {"period": 0}}]}, "period must be"),
        ({"methods": ["adamw", "adamw"]}, "two methods share a label"),
        ({"methods": ["lion"]}, "unknown baseline 'adamw'"),
        ({"methods": [{"name": "adamw", "grid": [1e-3, 1e-3]}]}, "different positive values"),
        ({"methods": [{"name": "adamw", "gird": [1e-3]}]}, "unknown key 'methods.0.gird'. Did you mean 'grid'"),
    ],
)
def test_bad_comparisons_are_refused_before_anything_runs(
    cache: Path, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        study(cache, tmp_path, **changes)
    assert not list(tmp_path.iterdir())


class Trouble(Watcher):
    """Kills the worker of the third run half-way, and asks for a stop during the fifth."""

    def __init__(self, stop: Stop) -> None:
        self.stop = stop
        self.runs: list[str] = []
        self.states: list[str] = []
        self.pid = 0
        self.extensions: list[tuple[str, float]] = []

    def started(self, config: TrainConfig, worker: int) -> None:
        self.runs.append(f"{config.method.name} {config.method.lr:g} {config.seed}")

    def progressed(self, worker: int, progress: Any) -> None:
        if len(self.runs) == 3 and progress.step == 6 and self.pid:
            os.kill(self.pid, signal.SIGKILL)
            self.pid = 0
        if len(self.runs) == 5 and progress.step == 6:
            self.stop.requested = True

    def ended(self, config: TrainConfig, worker: int, state: str, loss: float | None, message: str) -> None:
        self.states.append(state)

    def extended(self, method: Any, axis: str, value: float) -> None:
        self.extensions.append((axis, value))


def test_a_study_survives_a_killed_worker_and_a_stop(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # One worker, so that the order is known. It imports everything once (and once more after it is killed).
    stop = Stop()
    watch = Trouble(stop)
    start = module.Pool._start

    def spy(pool: Any) -> Any:
        process, connection = start(pool)
        watch.pid = watch.pid or process.pid if not watch.runs else 0
        return process, connection

    monkeypatch.setattr(module.Pool, "_start", spy)
    assert not study(cache, tmp_path).carry_out(workers=1, watch=watch, stop=stop)
    folder = tmp_path / "compare"
    assert watch.runs[:4] == ["adamw 0.01 0", "adamw 0.02 0", watch.runs[2], watch.runs[2]]
    assert watch.states == ["done", "done", "failed", "done", "interrupted"]
    states = {p.name: json.loads((p / "status.json").read_text())["state"] for p in (folder / "runs").iterdir()}
    assert sorted(states.values()) == ["done", "done", "done", "interrupted"]

    calm = Watcher()
    assert study(cache, tmp_path).carry_out(workers=1, watch=calm)
    found = read_study(folder)
    assert not found.problems
    best = found.methods[0]
    assert [method.label for method in found.methods] == ["AdamW", "LionMuon"]
    assert best.edge or best.best_lr not in (best.trials[0].lr, best.trials[-1].lr)
    rows = headline(found)
    assert all(sorted(row.losses) == [1, 2] for row in rows)
    assert {row.comparison.n for row in rows if row.comparison} == {2}
    text = json.loads((folder / "study.json").read_text())
    assert text["workload"]["model"]["parameters"] > 0
    assert text["workload"]["precision"] == "fp32"
    assert [trial["state"] for method in text["methods"] for trial in method["tuning"]] == ["done"] * (
        len(best.trials) + 1
    )
    for path in (folder / "runs").iterdir():
        assert [row["step"] for row in lines(path / "metrics.jsonl")] == list(range(1, 13))

    # Nothing is left to do: no worker is started, and the same comparison is found again.
    monkeypatch.setattr(module, "Pool", None)
    assert study(cache, tmp_path).carry_out()

    # Another workload in the same folder is refused, and so is a run that began from other weights.
    other = tiny(cache, workload__steps=13).workload.model_dump()
    with pytest.raises(UserError, match=r"workload\.steps is 12 there and 13 now"):
        study(cache, tmp_path, workload=other).carry_out()
    path = next((folder / "runs").glob("lionmuon*s1*")) / "final.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"init_hash": "other"}))
    with pytest.raises(UserError, match="not fair: with seed 1 the methods did not have the same initial weights"):
        study(cache, tmp_path).carry_out()
