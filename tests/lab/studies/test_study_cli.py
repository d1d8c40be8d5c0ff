"""`steepest study`: what a user types and reads."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from small_runs import tiny

from steepest.lab.cli import main
from steepest.lab.config import StudyConfig, load_file, validate
from steepest.lab.errors import UserError
from steepest.lab.studies.slurm import script


def write(path: Path, cache: Path, **changes: Any) -> str:
    values = {
        "workload": tiny(cache).workload.model_dump(),
        "methods": ["adamw", {"name": "lionmuon", "space": {"lr": [1e-2, 2e-2], "sign_lr_ratio": [0.05, 0.1]}}],
        "device": "cpu",
        "cache": str(cache),
    }
    path.write_text(yaml.safe_dump(json.loads(json.dumps(values | changes))))
    return str(path)


def test_a_plan_says_what_it_costs_and_runs_nothing(
    cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = write(tmp_path / "first look.yaml", cache)
    assert main(["study", "plan", file, "--out", str(tmp_path / "out")]) == 0
    out = capsys.readouterr().out
    assert "lr (2), sign_lr_ratio (2)" in out
    assert "ms a step" in out
    assert "first look:" in out
    study = json.loads((tmp_path / "out" / "first look" / "study.json").read_text())
    assert set(study["calibration"]) == {"adamw", "lionmuon"}
    assert all(seconds > 0 for seconds in study["calibration"].values())
    assert study["seconds_per_evaluation"] > 0
    assert not list((tmp_path / "out" / "first look" / "runs").iterdir())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sedes": [1]}, "unknown key 'sedes'. Did you mean 'seeds'"),
        ({"methods": [{"name": "lion", "space": {"periode": [2, 3]}}], "baseline": "lion"}, "unknown option of lion"),
        ({"methods": ["adamw", "lionn"]}, "unknown optimizer 'lionn'. Did you mean 'lion'"),
        ({"trials": 3}, "its space has 4 points, and trials is 3"),
        ({"name": "a/b"}, "without / or"),
    ],
)
def test_a_bad_file_is_refused_before_anything_is_written(
    cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], changes: dict[str, Any], message: str
) -> None:
    file = write(tmp_path / "study.yaml", cache, **changes)
    assert main(["study", "run", file, "--out", str(tmp_path / "out")]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_the_schema_documents_every_key(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["study", "schema"]) == 0
    schema = json.loads(capsys.readouterr().out)
    assert set(schema["properties"]) == set(StudyConfig.model_fields)
    assert "quasi-random" in schema["properties"]["search"]["description"]


@pytest.mark.parametrize("file", sorted(Path("examples/studies").glob("*")), ids=lambda path: path.name)
def test_the_studies_of_the_examples_are_valid(file: Path, tmp_path: Path) -> None:
    from steepest.lab.studies import Study

    Study(validate(StudyConfig, load_file(file)), tmp_path)


def test_a_batch_script_is_a_script(tmp_path: Path) -> None:
    path = tmp_path / "it's a $(touch pwned) study.yaml"
    text = script("a b;c", path, tmp_path, tasks=3, workers=5, time="01:00:00", partition="cpu", gpus=1)
    lines = text.splitlines()
    assert lines[1:3] == ["#SBATCH --job-name=a-b-c", "#SBATCH --array=0-2"]
    assert {"#SBATCH --partition=cpu", "#SBATCH --gpus-per-task=1", "#SBATCH --cpus-per-task=5"} < set(lines)
    command = next(line for line in lines if "study run" in line)
    words = ["bash", "-c", f"printf '%s\\n' {command.rstrip('&')}"]
    shown = subprocess.run(words, capture_output=True, text=True, check=True)
    assert str(path) in shown.stdout.splitlines()  # one word, and nothing in it was run
    assert not list(tmp_path.iterdir())
    subprocess.run(["bash", "-n"], input=text, text=True, check=True)
    plain = script("s", path, tmp_path, tasks=1, workers=1, time="10")
    assert "partition" not in plain
    assert "gpus" not in plain
    changed = script("s", path, tmp_path, tasks=1, workers=1, time="10", overrides=["a=1", "name=x --no-report $y"])
    assert changed.replace(" -o a=1 -o 'name=x --no-report $y' --no-report", " --no-report") == plain
    with pytest.raises(UserError, match="--partition must be one word"):
        script("s", path, tmp_path, tasks=1, workers=1, time="10", partition="cpu\n#SBATCH --wrap=rm")
