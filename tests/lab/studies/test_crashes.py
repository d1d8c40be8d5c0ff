"""A study whose workers are killed again and again, by two processes that share it, ends with the same numbers."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from small_runs import tiny

from steepest.lab.config import StudyConfig, TrainConfig, validate
from steepest.lab.studies import Study, Watcher

KILLS = 20
TIMES = ("seconds", "tokens_per_second", "command")


def values(cache: Path) -> dict[str, Any]:
    return {
        "name": "crashes",
        "workload": tiny(cache).workload.model_dump(),
        "methods": [{"name": "adamw", "grid": [1e-2, 2e-2]}, {"name": "lionmuon", "grid": [1e-2]}, "sgd"],
        "trials": None,
        "seeds": [1, 2],
        "extend": 1,
        "device": "cpu",
        "cache": str(cache),
    }


class Killer(Watcher):
    """Kills the worker that has just logged a step, at random, until it has killed as many as it wants."""

    def __init__(self, kills: int) -> None:
        self.left, self.random, self.pool = kills, random.Random(0), None
        self.states: list[str] = []

    def progressed(self, worker: int, progress: Any) -> None:
        if self.left and self.random.random() < 0.25:
            self.left -= 1
            assert self.pool is not None
            self.pool.kill(worker)

    def ended(self, config: TrainConfig, worker: int, state: str, loss: float | None, message: str) -> None:
        self.states.append(state)


def numbers(folder: Path) -> dict[str, Any]:
    """Everything that a study found, without what depends on the clock."""
    found: dict[str, Any] = {}
    for path in sorted((folder / "runs").iterdir()):
        final = json.loads((path / "final.json").read_text())
        lines = [json.loads(line) for name in ("metrics", "evals") for line in (path / f"{name}.jsonl").open()]
        found[path.name] = [{k: v for k, v in entry.items() if k not in TIMES} for entry in (final, *lines)]
    study = json.loads((folder / "study.json").read_text())
    return found | {"methods": study["methods"], "failures": study["failures"]}


@pytest.fixture(scope="module")
def undisturbed(cache: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    study = Study(validate(StudyConfig, values(cache)), tmp_path_factory.mktemp("calm"))
    assert study.carry_out(workers=2)
    return numbers(study.folder)


def test_killed_workers_change_no_number(
    cache: Path, tmp_path: Path, undisturbed: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    from steepest.lab.studies import execution

    watch = Killer(KILLS)
    start = execution.Pool._start

    def spy(pool: Any) -> Any:
        watch.pool = pool
        return start(pool)

    monkeypatch.setattr(execution.Pool, "_start", spy)
    study = Study(validate(StudyConfig, values(cache)), tmp_path)
    assert study.carry_out(workers=2, watch=watch)
    assert watch.left == 0
    # A worker that was killed with its result on the way out is no failure.
    assert KILLS // 2 < watch.states.count("failed") <= KILLS
    assert numbers(study.folder) == undisturbed
    assert not list(study.runs.glob("*/claim*"))


def test_processes_share_a_study_and_survive_each_other(
    cache: Path, tmp_path: Path, undisturbed: dict[str, Any]
) -> None:
    file = tmp_path / "study.yaml"
    file.write_text(yaml.safe_dump(json.loads(json.dumps(values(cache)))))
    command = [sys.executable, "-m", "steepest", "study", "run", str(file), "--out", str(tmp_path), "--workers", "1"]
    command += ["--no-report", "--no-bench"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}

    def start() -> subprocess.Popen[str]:
        return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)

    first, second = start(), start()
    assert first.stdout is not None
    for line in first.stdout:  # kill it once it has finished a run; what it was at is then free for the other
        if "loss" in line:
            break
    first.send_signal(signal.SIGKILL)
    first.wait()
    text, _ = second.communicate(timeout=240)
    assert second.returncode == 0, text
    assert numbers(tmp_path / "crashes") == undisturbed
    again = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert "(tune)" not in again.stderr + again.stdout  # nothing was left to run
