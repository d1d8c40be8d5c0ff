from __future__ import annotations

import errno
import json
import os
import signal
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from small_runs import lines, tiny

from steepest.lab import methods, runs, workers
from steepest.lab.config import StudyConfig, TrainConfig, run_id, validate
from steepest.lab.data import Pack
from steepest.lab.errors import UserError
from steepest.lab.results import headline, read_study
from steepest.lab.signals import Stop
from steepest.lab.studies import Study, Watcher, choose
from steepest.lab.studies import study as module
from steepest.lab.studies.claims import Claims
from steepest.lab.studies.execution import Execution
from steepest.lab.studies.plan import Plan
from steepest.lab.workloads import resolve


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


class NoData:
    sha256 = "sha"


class Disk:
    """Writes final.json files as if runs had been carried out; the loss is a function of method, rate and seed."""

    def __init__(self, study: Study) -> None:
        self.study = study
        study._pack = NoData()  # type: ignore[assignment]
        study.folder.mkdir(exist_ok=True)
        study.refresh()
        study.facts = study.facts or {
            "created": "", "command": "", "versions": runs.versions(), "machine": {"gpus": []}, "device": "cpu",
            "workload": {"precision": "fp32", "data": {"sha256": "sha"}}, "seconds_per_step": None,
            "seconds_per_evaluation": None, "calibration": {},
        }  # fmt: skip
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
                if value == "failed":
                    self.study.failed[self.study.name_of(config)] = "no idea"
                    continue
                final = {"state": "done" if value is not None else "diverged", "step": 12, "loss": value}
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


def test_a_grid_does_not_grow_while_a_run_of_it_has_failed(cache: Path, tmp_path: Path) -> None:
    values: dict[str, Any] = {"methods": [{"name": "adamw", "grid": [1e-3, 2e-3]}, "lion"], "extend": 2}

    def loss(name: str, lr: float, seed: int) -> Any:
        return "failed" if name == "lion" or lr == 1e-3 else 1 / lr

    disk = Disk(study(cache, tmp_path, **values))
    plan = disk.carry_out(loss)
    assert plan.rows[0].axes["lr"] == [1e-3, 2e-3]
    assert (plan.rows[0].best, plan.rows[0].open_axes) == ({"lr": 2e-3}, ("lr",))
    assert plan.rows[1].axes["lr"] == list(methods.find("lion").grid)  # downwards is where a method goes that diverges
    assert plan.rows[1].best is None
    disk.study.failed.clear()  # the same command again
    plan = disk.carry_out(lambda name, lr, seed: 1 / lr)
    assert plan.rows[0].axes["lr"] == [1e-3, 2e-3, 4e-3, 8e-3]
    disk.study.write(plan)
    for path in disk.study.runs.glob("adamw-lr0.001-*/final.json"):
        path.unlink()
    again = Disk(study(cache, tmp_path, **values))
    again.study.failed = dict.fromkeys((p.name for p in again.study.runs.glob("adamw-lr0.001-*")), "no idea")
    assert again.study.plan().rows[0].axes["lr"] == [1e-3, 2e-3, 4e-3, 8e-3]  # what was tried is kept


def test_events_for_tensorboard_are_no_change_of_a_study(cache: Path, tmp_path: Path) -> None:
    plain, wanted = (Disk(study(cache, tmp_path, tensorboard=wanted)).study for wanted in (False, True))
    plain.write(plain.plan())
    one, other = (each.configure(each.plan().todo[0]) for each in (plain, wanted))
    assert (one.tensorboard, other.tensorboard) == (False, True)
    assert plain.name_of(one) == wanted.name_of(other)
    wanted.refresh()
    wanted.write(wanted.plan())
    plain.write(plain.plan())  # of another process that still runs


def test_the_cost_of_a_run_has_its_evaluations_in_it(cache: Path, tmp_path: Path) -> None:
    class Heard(Watcher):
        def planned(self, config: StudyConfig, runs_left: int, seconds: float | None) -> None:
            heard.append((runs_left, seconds))

    heard: list[Any] = []
    workload = tiny(cache, workload__evaluation={"every": 5}).workload.model_dump()
    found = Disk(study(cache, tmp_path, workload=workload, methods=[{"name": "adamw", "grid": [1e-2, 2e-2]}])).study
    found.facts |= {"calibration": {"adamw": 0.5}, "seconds_per_evaluation": 3.0}
    assert found.seconds_per_run("adamw") == 12 * 0.5 + 3 * 3.0  # after 5, 10 and 12 steps
    execution(found, IdlePool(), watch=Heard()).announce(found.plan())
    assert heard == [(4, 60.0)]
    found.facts["seconds_per_evaluation"] = None  # of a study that was begun before it was timed
    assert found.seconds_per_run("adamw") == 6.0


def test_what_was_tried_is_kept_when_grids_may_grow_less(cache: Path, tmp_path: Path) -> None:
    values = {"methods": [{"name": "adamw", "grid": [1e-3, 2e-3]}]}
    before = Disk(study(cache, tmp_path, **values, extend=2))
    before.study.write(before.carry_out(lambda name, lr, seed: 1 / lr))
    after = Disk(study(cache, tmp_path, **values, extend=0))
    plan = after.carry_out(lambda name, lr, seed: 1 / lr)
    assert not after.carried_out
    assert plan.rows[0].axes["lr"] == [1e-3, 2e-3, 4e-3, 8e-3]
    assert (plan.rows[0].best, plan.rows[0].open_axes) == ({"lr": 8e-3}, ("lr",))
    after.study.write(plan)
    again = Disk(study(cache, tmp_path, **values, extend=0))  # and the record of it is kept
    assert again.study.plan().rows[0].best == {"lr": 8e-3}


class IdlePool:
    """Takes every job, and says what it is told to."""

    def __init__(self, *messages: workers.Message) -> None:
        self.messages = list(messages)
        self.jobs: list[str] = []

    @property
    def idle(self) -> tuple[int, ...]:
        return () if any(job.startswith("train") for job in self.jobs) else (0,)

    def submit(self, worker: int, job: str, config: TrainConfig, out: Path) -> None:
        self.jobs.append(f"{job} {config.method.name} {config.method.lr:g}")

    def receive(self, timeout: float) -> list[workers.Message]:
        return self.messages


def execution(study: Study, pool: IdlePool, claims: Any = None, watch: Watcher | None = None) -> Execution:
    return Execution(study, pool, claims or Claims(), watch or Watcher(), Stop())  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"methods": [{"name": "adamw", "grid": [1e-3, 2e-3]}, "lion"]}, "the method 'lion' is there"),
        ({"seeds": [1, 2, 3]}, "seeds [3] are there"),
        ({"methods": [{"name": "adamw", "grid": [1e-3, 2e-3, 4e-3]}]}, "grid is [0.001, 0.002, 0.004] there"),
        ({"extend": 2}, "extend is 2 there and 1 now"),
    ],
)
def test_a_study_that_another_process_has_grown_is_left_as_it_is(
    cache: Path, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    values: dict[str, Any] = {"methods": [{"name": "adamw", "grid": [1e-3, 2e-3]}]}
    old = Disk(study(cache, tmp_path, **values)).study
    old.write(old.plan())
    old.write(old.plan())
    same = Disk(study(cache, tmp_path, **values)).study
    same.write(same.plan())
    old.write(old.plan())
    new = Disk(study(cache, tmp_path, **(values | changes))).study
    new.write(new.plan())
    content = (tmp_path / "compare" / "study.json").read_text()
    with pytest.raises(UserError, match=r"another process has grown the study.*All runs are saved") as caught:
        old.write(old.plan())
    assert message in str(caught.value)
    running = execution(same, pool := IdlePool())
    running._advance()
    assert message in str(running._fault)  # what is under way ends in an orderly way, and nothing new begins
    assert not pool.jobs
    assert (tmp_path / "compare" / "study.json").read_text() == content
    new.write(new.plan())


@pytest.mark.parametrize(
    "text",
    [
        *("", "[]", "{}", "5", "\xff", '{"state": "done", "step": 12}', '{"state": "done", "step": 12, "loss": "low"}'),
        *('{"state": "running", "step": 12, "loss": 1.0}', '{"state": [], "step": 12, "loss": 1.0}'),
    ],
)
def test_a_damaged_result_is_named(cache: Path, tmp_path: Path, text: str) -> None:
    disk = Disk(study(cache, tmp_path))
    folder = disk.study.runs / disk.study.name_of(disk.study.configure(disk.study.plan().todo[0]))
    folder.mkdir(parents=True)
    (folder / "final.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(UserError, match=r"final\.json is damaged .*; remove it"):
        disk.study.plan()


@pytest.mark.parametrize("change", ["config", "workload", "versions", "methods", "calibration", None])
def test_a_damaged_study_is_named(cache: Path, tmp_path: Path, change: str | None) -> None:
    disk = Disk(study(cache, tmp_path))
    disk.study.write(disk.study.plan())
    path = tmp_path / "compare" / "study.json"
    content = json.loads(path.read_text())
    for damage in ({}, [], 5, None) if change else ([], 5, "study"):
        path.write_text(json.dumps({**content, change: damage} if change else damage))
        if change == "calibration" and not damage:
            continue  # nothing was timed yet
        if change == "versions" and damage == {}:
            continue  # other versions
        with pytest.raises(UserError, match=r"study\.json is damaged .*; remove it"):
            study_of_no_data(cache, tmp_path).refresh()


def study_of_no_data(cache: Path, out: Path, **changes: Any) -> Study:
    found = study(cache, out, **changes)
    found._pack = NoData()  # type: ignore[assignment]
    return found


@pytest.mark.parametrize("line", ['{"loss": 1.', "5", "\xff"])
def test_a_damaged_last_line_is_named(tmp_path: Path, line: str) -> None:
    path = tmp_path / "evals.jsonl"
    path.write_bytes(f'{{"loss": 2.0}}\n{line}\n'.encode("latin-1"))
    with pytest.raises(UserError, match=r"evals\.jsonl is damaged .*last line.*; remove it"):
        runs.last_line(path)


def test_a_study_stays_on_one_type_of_device(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    disk = Disk(study(cache, tmp_path))
    disk.study.write(disk.study.plan())
    study_of_no_data(cache, tmp_path, device="cpu:0").refresh()
    with pytest.raises(UserError, match=r"was begun on cpu, and device 'cuda:1' is cuda here.* Set device to cpu"):
        study_of_no_data(cache, tmp_path, device="cuda:1").refresh()
    monkeypatch.setattr(module, "pick_device", lambda name: torch.device("cuda"))
    with pytest.raises(UserError, match="was begun on cpu, and device 'auto' is cuda here"):
        study_of_no_data(cache, tmp_path, device="auto").refresh()
    path = tmp_path / "compare" / "study.json"
    content = json.loads(path.read_text())
    del content["device"]  # of an earlier version
    path.write_text(json.dumps(content))
    found = study_of_no_data(cache, tmp_path, device="auto")
    found.refresh()
    assert found.facts["device"] == "cuda"


def test_a_dead_worker_is_named_with_what_it_did(cache: Path, tmp_path: Path) -> None:
    disk = Disk(study(cache, tmp_path))
    crash = workers.Message("crash", 0, "the worker process ended with exit code 1")
    asking = execution(disk.study, IdlePool(crash))
    with pytest.raises(UserError, match=r"^describing the workload failed: the worker process ended with exit code 1"):
        asking._ask("probe", disk.study.base)
    config = disk.study.uncalibrated()["lionmuon"]
    with pytest.raises(UserError, match=r"^timing the steps of lionmuon failed: the worker process ended"):
        asking._ask("calibrate", config)
    fault = execution(disk.study, IdlePool(workers.Message("fault", 0, "the disk is full")))
    with pytest.raises(UserError, match=r"^the disk is full"):
        fault._ask("calibrate", config)


class Parent:
    """The other end of a worker's connection."""

    def __init__(self, *jobs: Any) -> None:
        self.jobs, self.said = [*jobs, None], list[Any]()

    def recv(self) -> Any:
        return self.jobs.pop(0)

    def send(self, message: Any) -> None:
        self.said.append(message)


def test_a_file_that_cannot_be_opened_fails_one_run_in_one_line(
    cache: Path, pack: Pack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bad, good = resolve(tiny(cache)), resolve(tiny(cache, seed=1))
    (tmp_path / run_id(bad, pack.sha256) / "metrics.jsonl").mkdir(parents=True)
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    parent = Parent(("train", bad, str(tmp_path)), ("train", good, str(tmp_path)))
    workers._work(parent, threading.Event())  # type: ignore[arg-type]
    answers = [(kind, content) for kind, content in parent.said if kind != "progress"]
    assert [kind for kind, _ in answers] == ["error", "result"]  # a "fault" would end the study
    assert "metrics.jsonl" in answers[0][1]
    assert "\n" not in answers[0][1]
    assert answers[1][1].state == "done"


def test_a_full_disk_ends_the_study(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **__: Any) -> Any:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("steepest.lab.training.train", full)
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    parent = Parent(("train", resolve(tiny(cache)), str(tmp_path)))
    workers._work(parent, threading.Event())  # type: ignore[arg-type]
    ((kind, message),) = parent.said
    assert kind == "fault"
    assert message.startswith("the disk is full")


def test_a_worker_leaves_it_to_its_parent_to_stop(cache: Path, tmp_path: Path) -> None:
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, [])
    with workers.Pool(1) as pool:
        assert signal.pthread_sigmask(signal.SIG_BLOCK, []) == mask
        pid, kinds = pool._workers[0][0].pid, ["progress"]
        os.kill(pid, signal.SIGTERM)
        pool.submit(0, "train", resolve(tiny(cache)), tmp_path)
        while kinds[-1] == "progress":  # `timeout` and Ctrl-C send to the whole group
            kinds += [message.kind for message in pool.receive(60)]
            os.kill(pid, signal.SIGTERM)
            os.kill(pid, signal.SIGINT)
        assert kinds[-1] == "result"


@pytest.mark.parametrize("status", ['{"step": 4}', "{}", "[]", "{", None])
def test_a_run_may_fail_with_a_damaged_status(cache: Path, tmp_path: Path, status: str | None) -> None:
    disk = Disk(study(cache, tmp_path))
    config = disk.study.configure(disk.study.plan().todo[0])
    folder = disk.study.runs / disk.study.name_of(config)
    folder.mkdir(parents=True)
    if status is not None:
        (folder / "status.json").write_text(status)
    execution(disk.study, IdlePool())._ended(config, workers.Message("error", 0, "[Errno 13] Permission denied"))
    assert list(disk.study.failed.values()) == ["[Errno 13] Permission denied"]


def test_a_folder_that_cannot_be_claimed_fails_one_run(cache: Path, tmp_path: Path) -> None:
    class Refused(Claims):
        def take(self, folder: Path) -> bool:
            if folder.name.startswith("adamw-lr0.01-"):
                raise PermissionError(13, "Permission denied", str(folder))
            return super().take(folder)

    class Heard(Watcher):
        def ended(self, config: TrainConfig, worker: int, state: str, loss: float | None, message: str) -> None:
            heard.append((config.method.lr, state, message))

    heard: list[Any] = []
    disk, pool = Disk(study(cache, tmp_path)), IdlePool()
    execution(disk.study, pool, Refused(), Heard())._advance()
    ((name, message),) = disk.study.failed.items()
    assert name.startswith("adamw-lr0.01-")
    assert "Permission denied" in message
    assert heard == [(0.01, "failed", message)]
    assert pool.jobs == ["train adamw 0.02"]  # the worker goes on with the next


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
        (
            {"trials": 2, "methods": ["adamw", {"name": "lionmuon", "space": {"perod": [2, 5]}}]},
            "unknown option.*'perod'",
        ),
        ({"workload": {"model": {"preset": "tiny", "hiden_size": 32}}}, "unknown key of model .*'hiden_size'"),
        ({"workload": {"model": "tiny", "sequence_length": 5000}}, "sequence_length 5000 is longer than"),
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
    assert (text["device"], text["tier"]) == ("cpu", "CPU proxy")
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
