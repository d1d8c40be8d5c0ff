from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import pytest
from small_runs import MODEL

from steepest.lab import accounting, runs
from steepest.lab.accounting import output
from steepest.lab.cli import main
from steepest.lab.config import MethodConfig, StudyConfig, Workload, plain, validate
from steepest.lab.errors import UserError

WORKLOAD = {"model": MODEL, "data": "synthetic", "max_bytes": 200_000, "batch_size": 4, "sequence_length": 16}


def write_study(folder: Path, cache: Path, **changes: Any) -> Path:
    """A study of three methods, one of which has no winner and one of which cannot be stepped."""
    methods = [
        {"name": "adamw", "label": "AdamW", "lr": 2e-3, "options": {}},
        {"name": "lionmuon", "label": "LionMuon, P = 3", "lr": 5e-3, "options": {"period": 3}},
        {"name": "sgd", "label": "SGD", "lr": None, "options": {}},
    ]
    config = {
        "name": "s",
        "workload": {**WORKLOAD, "steps": 12},
        "methods": [{key: m[key] for key in ("name", "label", "options")} for m in methods],
        "device": "cpu",
        "cache": str(cache),
    }
    study = {
        "schema": 2,
        "baseline": "adamw",
        "workload": {"model": {"vocabulary_size": 257}},
        "config": plain(validate(StudyConfig, config).model_dump()),
        "methods": [
            {
                **{key: m[key] for key in ("name", "label", "options")},
                "best_lr": m["lr"],
                "best": m["lr"] and {"lr": m["lr"]},
            }
            for m in methods
        ],
        **changes,
    }
    folder.mkdir(exist_ok=True)
    (folder / "study.json").write_text(json.dumps(study))
    return folder


def quick(folder: Path, **options: Any) -> tuple[accounting.record.Record, list[tuple[str, str]]]:
    told: list[tuple[str, str]] = []
    subject = accounting.of_study(folder)
    record = accounting.account(
        subject, folder, **{"parts": ("flops", "bytes"), **options}, watch=lambda *what: told.append(what)
    )
    return record, told


def test_a_study_is_accounted_and_written(tmp_path: Path, cache: Path) -> None:
    folder = write_study(tmp_path / "s", cache)
    record, told = quick(folder, parts=accounting.PARTS, rounds=2)
    assert told == [
        ("model", "flops"),
        *((label, part) for label in ("AdamW", "LionMuon, P = 3", "SGD") for part in accounting.PARTS),
    ]
    assert json.loads((folder / "accounting.json").read_text()) == record
    assert {"schema", "command", "machine", "versions", "baseline", "model", "methods"} <= set(record)
    assert record["baseline"] == "AdamW"
    assert record["gradients"] == "the workload's data"
    model = record["model"]
    assert model["vocabulary_size"] == 257
    assert model["flops_per_step"] == model["formula_flops_per_step"] == 64 * model["flops_per_token"]
    for label, entry in record["methods"].items():
        assert entry["reasons"] == {}, label
        assert entry["state_bytes"]["total"] == sum(v for k, v in entry["state_bytes"].items() if k != "total")
        assert entry["optimizer_flops_per_step"] > model["parameters"]
        assert set(entry["update_rms"]) == {"embedding", "attention", "mlp", "norm"}
        assert all(value > 0 for value in entry["update_rms"].values())
        seconds = entry["step_seconds"]
        assert {"median", "p90", "rounds", "contended", "ratio", "cpu_ratio", "why"} <= set(seconds)
        assert seconds["rounds"] == 2
        assert ("baseline_median" in seconds) == (label != "AdamW")
    assert record["methods"]["LionMuon, P = 3"]["step_seconds"]["steps_per_sample"] % 3 == 0
    assert record["methods"]["AdamW"]["state_bytes"]["total"] > record["methods"]["SGD"]["state_bytes"]["total"]


def test_the_values_that_won_are_accounted(tmp_path: Path, cache: Path) -> None:
    folder = write_study(tmp_path / "s", cache)
    study = json.loads((folder / "study.json").read_text())
    study["methods"][1]["best"] = {"lr": 0.25, "period": 4}
    (folder / "study.json").write_text(json.dumps(study))
    subject = accounting.of_study(folder)
    assert subject.methods["LionMuon, P = 3"].lr == 0.25
    assert subject.methods["LionMuon, P = 3"].options["period"] == 4
    assert subject.methods["SGD"].lr is None
    assert (subject.vocabulary, subject.data, subject.workload.sequence_length) == (257, True, 16)


def test_what_is_there_is_not_done_again(tmp_path: Path, cache: Path) -> None:
    folder = write_study(tmp_path / "s", cache)
    first, told = quick(folder, parts=("bytes",))
    assert len(told) == 4
    again, told = quick(folder, parts=("bytes",))
    assert told == []
    assert again["methods"] == first["methods"]
    more, told = quick(folder)  # the other part only
    assert told == [("AdamW", "flops"), ("LionMuon, P = 3", "flops"), ("SGD", "flops")]
    assert more["methods"]["SGD"]["state_bytes"] == first["methods"]["SGD"]["state_bytes"]
    # A method that changed is done again, and one that is gone is left out.
    study = json.loads((folder / "study.json").read_text())
    study["methods"][1]["options"] = {"period": 2}
    del study["methods"][2]
    (folder / "study.json").write_text(json.dumps(study))
    changed, told = quick(folder)
    assert told == [("LionMuon, P = 3", "flops"), ("LionMuon, P = 3", "bytes")]
    assert list(changed["methods"]) == ["AdamW", "LionMuon, P = 3"]
    products = [record["methods"]["LionMuon, P = 3"]["optimizer_flops"]["products"] for record in (more, changed)]
    assert products[1] == pytest.approx(1.5 * products[0])
    _, told = quick(folder, parts=("bytes",), again=True)
    assert told == [("AdamW", "bytes"), ("LionMuon, P = 3", "bytes")]


def test_a_failure_is_a_reason_and_the_others_go_on(tmp_path: Path) -> None:
    chosen = {"SGD, far": MethodConfig(name="sgd", lr=1e30), "SGD": MethodConfig(name="sgd", lr=1e-3)}
    workload = validate(Workload, WORKLOAD)
    subject = accounting.Subject(methods=chosen, workload=workload, baseline="SGD", device="cpu")
    record = accounting.account(subject, tmp_path, parts=("update",))
    bad, good = record["methods"].values()
    assert bad["update_rms"] is None
    assert "no longer finite" in bad["reasons"]["update"]
    assert good["update_rms"]["mlp"] > 0
    assert "SGD, far: ArithmeticError" in output.remarks(record, "update")[0]
    told: list[Any] = []
    accounting.account(subject, tmp_path, parts=("update",), watch=lambda *what: told.append(what))
    assert told == []


def test_times_are_not_taken_beside_a_running_study(tmp_path: Path, cache: Path) -> None:
    folder = write_study(tmp_path / "s", cache)
    claim = folder / "runs" / "adamw-1" / "claim"
    claim.mkdir(parents=True)
    (claim / "owner.json").write_text("{}")
    with pytest.raises(UserError, match=r"carrying out adamw-1.*--no-time"):
        quick(folder, parts=("time",))
    assert not (folder / "accounting.json").exists()
    record, _ = quick(folder, parts=("flops",))
    assert record["methods"]["SGD"]["optimizer_flops_per_step"]
    old = time.time() - 3600
    os.utime(claim / "owner.json", (old, old))
    accounting.record.refuse_running(folder)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("study.json", None, "there is no study at"),
        ("study.json", '{"schema": 1, "methods": []}', "does not say what was run.*config"),
        ("study.json", "{", "damaged"),
        ("accounting.json", "[1]", "no record of an account"),
        ("accounting.json", '{"methods": 3}', "no record of an account"),
        ("accounting.json", "{", "damaged"),
    ],
)
def test_bad_files(tmp_path: Path, cache: Path, name: str, content: str | None, message: str) -> None:
    folder = write_study(tmp_path / "s", cache)
    if content is None:
        (folder / name).unlink()
    else:
        (folder / name).write_text(content)
    with pytest.raises(UserError, match=message):
        quick(folder)


def test_bad_input_is_refused_before_anything_runs(tmp_path: Path) -> None:
    workload = validate(Workload, WORKLOAD)
    with pytest.raises(UserError, match=r"unknown part 'flop'. Did you mean 'flops'"):
        accounting.account(accounting.of_names(["sgd"], workload), parts=("flop",))
    with pytest.raises(UserError, match="rounds must be at least 1, got 0"):
        accounting.account(accounting.of_names(["sgd"], workload), rounds=0)
    with pytest.raises(UserError, match=r"unknown optimizer 'lionmoun'. Did you mean 'lionmuon'"):
        accounting.of_names(["lionmoun"], workload)
    with pytest.raises(UserError, match="nothing to account"):
        accounting.of_names([], workload)
    with pytest.raises(UserError, match=r"unknown baseline 'adam'"):
        accounting.Subject(methods={"SGD": MethodConfig(name="sgd")}, workload=workload, baseline="adam")
    bad = MethodConfig(name="sgd", options={"momentun": 0.9})
    with pytest.raises(UserError, match="unknown option of sgd 'momentun'"):
        accounting.Subject(methods={"SGD": bad}, workload=workload, baseline="SGD")
    with pytest.raises(UserError, match="longer than the"):
        accounting.of_names(["sgd"], workload.model_copy(update={"sequence_length": 10**6}))
    with pytest.raises(UserError, match="threads must be at least 1"):
        accounting.of_names(["sgd"], workload, threads=0)
    assert list(tmp_path.iterdir()) == []


def test_the_baseline_comes_along() -> None:
    subject = accounting.of_names(["lion", "sgd", "lion"], validate(Workload, WORKLOAD))
    assert list(subject.methods) == ["AdamW", "Lion", "SGD"]
    assert subject.baseline == "AdamW"


def test_commands(tmp_path: Path, cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_study(tmp_path / "s", cache)
    assert main(["bench", "study", str(folder), "--no-time"]) == 0
    shown = capsys.readouterr().out
    assert "LionMuon, P = 3" in shown
    assert "accounting.json" in shown
    assert "step_seconds" not in runs.read_json(folder / "accounting.json")["methods"]["SGD"]
    assert main(["bench", "study", str(folder), "--no-time", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == runs.read_json(folder / "accounting.json") | {
        key: json.loads((folder / "accounting.json").read_text())[key] for key in ("created", "command")
    }
    assert main(["bench", "flops", "--methods", "sgd", "--model", "tiny-gpt2", "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert list(record["methods"]) == ["SGD"]
    assert main(["bench", "memory", "--methods", "sgd,lion"]) == 0
    assert "Lion" in capsys.readouterr().out
    assert main(["bench", "step", "--methods", "sgd", "--baseline", "sgd", "--rounds", "1"]) == 0
    assert "the baseline is SGD" in capsys.readouterr().out
    assert main(["bench", "step", "--methods", "sdg"]) == 2
    assert "Did you mean 'sgd'" in capsys.readouterr().err
    assert main(["bench", "study", str(tmp_path / "none")]) == 2
    assert "there is no study" in capsys.readouterr().err
