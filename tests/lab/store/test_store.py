"""The index is a cache of the run directories; what it lists, exports, cleans and imports is what stands in them."""

from __future__ import annotations

import json
import os
import sqlite3
import time
from pathlib import Path
from typing import Any

import polars
import pytest
from small_runs import tiny

from steepest.lab import runs
from steepest.lab.cli import main
from steepest.lab.errors import UserError
from steepest.lab.results import headline, read_study
from steepest.lab.store import Index, cleaning, exporting
from steepest.lab.store.comparing import differences
from steepest.lab.store.importing import import_summaries
from steepest.lab.training import train


def make_run(folder: Path, name: str, lr: float, seed: int = 1, loss: float | None = 2.0, **changes: Any) -> Path:
    """The files of a run that is over (or not, without a loss), as training writes them."""
    directory = runs.RunDirectory(folder)
    directory.create()
    config = {"workload": {"model": "tiny", "data": "news-wiki", "steps": 10}, "seed": seed, "purpose": "final"}
    directory.write("config", {**config, "method": {"name": name, "label": None, "lr": lr, "options": {}}, **changes})
    directory.write("env", {"versions": {"torch": "2.13.0"}})
    directory.status("running" if loss is None else "done", 5 if loss is None else 10)
    rows = [{"step": i + 1, "tokens": i, "seconds": 0.1, "loss": 3.0 - i / 10, "lr": {"all": lr}} for i in range(10)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "evals.jsonl").write_text(json.dumps({"step": 10, "loss": loss, "tokens": 10, "seconds": 1.0}) + "\n")
    if loss is not None:
        directory.write(
            "final", {"state": "done", "step": 10, "loss": loss, "seconds": 1.5, "command": "steepest train"}
        )
    return folder


@pytest.fixture
def root(tmp_path: Path) -> Path:
    study = tmp_path / "runs" / "first" / "runs"
    make_run(study / "adamw-lr0.004-s1-aaaa", "adamw", 4e-3, loss=2.5)
    make_run(study / "lion-lr0.0003-s1-bbbb", "lion", 3e-4, loss=2.25)
    make_run(study / "lion-lr0.0003-s2-cccc", "lion", 3e-4, seed=2, loss=None)
    make_run(tmp_path / "runs" / "adamw-lr0.002-s1-dddd", "adamw", 2e-3, loss=3.0)
    return tmp_path / "runs"


def test_runs_are_found_filtered_and_ordered(root: Path) -> None:
    index = Index(root)
    assert [e.run_id[-4:] for e in index.list(order="loss")] == ["bbbb", "aaaa", "dddd", "cccc"]  # no loss: last
    assert [e.run_id[-4:] for e in index.list(order="loss", descending=True)] == ["dddd", "aaaa", "bbbb", "cccc"]
    assert [e.run_id[-4:] for e in index.list(study="first", method="li*", state="done")] == ["bbbb"]
    assert {e.study for e in index.list(text="dddd")} == {""}
    running = index.list(state="running")[0]
    assert (running.step, running.steps, running.loss, running.seed) == (5, 10, None, 2)
    with pytest.raises(UserError, match=r"unknown order 'los'\. Did you mean 'loss'"):
        index.list(order="los")


def test_the_index_follows_the_folders(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from steepest.lab.store import index as module

    read: list[str] = []
    entry = module.entry
    monkeypatch.setattr(module, "entry", lambda folder, top: read.append(folder.name[-4:]) or entry(folder, top))
    assert len(Index(root).refresh()) == 4
    assert sorted(read) == ["aaaa", "bbbb", "cccc", "dddd"]
    read.clear()
    Index(root).refresh()
    assert read == []
    runs.RunDirectory(root / "first/runs/lion-lr0.0003-s2-cccc").write("final", {"state": "done", "loss": 2.0})
    make_run(root / "second" / "runs" / "sgd-lr0.1-s1-eeee", "sgd", 0.1)
    for file in (root / "adamw-lr0.002-s1-dddd").iterdir():
        file.unlink()
    (root / "adamw-lr0.002-s1-dddd").rmdir()
    found = {e.run_id[-4:]: e for e in Index(root).refresh()}
    assert sorted(read) == ["cccc", "eeee"]
    assert sorted(found) == ["aaaa", "bbbb", "cccc", "eeee"]
    assert found["cccc"].loss == 2.0
    read.clear()
    Index(root, rescan=True).refresh()
    assert len(read) == 4


@pytest.mark.parametrize("damage", ["garbage", "other version", "deleted"])
def test_a_damaged_index_is_made_anew(root: Path, damage: str) -> None:
    expected = Index(root).refresh()
    path = root / "index.sqlite"
    if damage == "garbage":
        path.write_bytes(b"SQLite format 3\0" + os.urandom(5000))
    elif damage == "deleted":
        path.unlink()
    else:
        with sqlite3.connect(path) as database:
            database.execute("PRAGMA user_version=99")
            database.execute("UPDATE runs SET entry='[]'")
    assert Index(root).refresh() == expected
    assert Index(root).refresh() == expected


def test_damaged_runs_are_listed_with_what_is_wrong(root: Path) -> None:
    (root / "first/runs/lion-lr0.0003-s1-bbbb/final.json").write_text('{"state": "do')
    (root / "first/runs/adamw-lr0.004-s1-aaaa/final.json").unlink()
    (root / "adamw-lr0.002-s1-dddd/config.json").write_text("[1, 2]")
    found = {e.run_id[-4:]: e for e in Index(root).refresh()}
    assert "final.json cannot be read" in found["bbbb"].problem
    assert (found["aaaa"].state, found["aaaa"].problem) == (
        "interrupted",
        "status.json says done and there is no final.json",
    )
    assert found["dddd"].state == "done"


def test_a_run_is_found_by_part_of_its_name(root: Path) -> None:
    index = Index(root)
    assert index.find("bbbb").name == "lion-lr0.0003-s1-bbbb"
    assert index.find(str(root / "adamw-lr0.002-s1-dddd")).name.endswith("dddd")
    with pytest.raises(UserError, match="'lion' fits 2 runs"):
        index.find("lion")
    with pytest.raises(UserError, match=r"no run below .* is called 'adamw-lr0\.004-s1-aaab'\. Did you mean"):
        index.find("adamw-lr0.004-s1-aaab")
    with pytest.raises(UserError, match="there is no folder"):
        Index(root / "nowhere")


def test_two_thousand_runs_are_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from steepest.lab.store import index as module

    for i in range(2_000):
        folder = tmp_path / f"study{i % 10}" / "runs" / f"lion-lr{i}-s1-{i:04d}"
        folder.mkdir(parents=True)
        (folder / "config.json").write_text(json.dumps({"method": {"name": "lion", "lr": i}, "seed": 1}))
        (folder / "final.json").write_text(json.dumps({"state": "done", "loss": 2 + i / 1e4}))
    read: list[Path] = []
    entry = module.entry
    monkeypatch.setattr(module, "entry", lambda folder, top: read.append(folder) or entry(folder, top))
    assert len(Index(tmp_path).refresh()) == len(read) == 2_000
    best = Index(tmp_path).list(study="study3", order="loss")
    assert (len(best), best[0].run_id[-4:], len(read)) == (200, "0003", 2_000)


def test_differences_leave_out_what_is_the_same(root: Path) -> None:
    first, second = root / "first/runs/adamw-lr0.004-s1-aaaa", root / "first/runs/lion-lr0.0003-s1-bbbb"
    runs.RunDirectory(second).write("env", {"versions": {"torch": "2.14.0"}})
    rows = dict(differences([first, second]))
    assert rows["method.name"] == ["adamw", "lion"]
    assert rows["versions.torch"] == ["2.13.0", "2.14.0"]
    assert rows["loss"] == [2.5, 2.25]
    assert "seed" not in rows
    assert "workload.steps" not in rows
    with pytest.raises(UserError, match="at least two runs"):
        differences([first])


def test_tables_for_other_tools(root: Path, tmp_path: Path) -> None:
    (root / "first/runs/adamw-lr0.004-s1-aaaa/metrics.jsonl").open("a").write('{"step": 11, "lo')
    written = exporting.parquet(Index(root).refresh(), root, tmp_path / "out")
    assert [path.name for path in written] == ["runs.parquet", "metrics.parquet", "evals.parquet"]
    table, metrics, evals = (polars.read_parquet(path) for path in written)
    assert table.filter(polars.col("method") == "lion")["loss"].to_list() == [2.25, None]
    assert len(metrics) == 40
    assert metrics.filter(polars.col("step") == 3)["lr.all"].to_list() == pytest.approx([2e-3, 4e-3, 3e-4, 3e-4])
    assert len(evals) == 4
    events = exporting.tensorboard(Index(root).list(text="aaaa"), root, tmp_path / "events")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    accumulator = EventAccumulator(str(events[0]))
    accumulator.Reload()
    assert [(e.step, pytest.approx(e.value)) for e in accumulator.Scalars("train/loss")][:2] == [(1, 3.0), (2, 2.9)]


def test_only_what_nobody_needs_goes(cache: Path, tmp_path: Path) -> None:
    done = train(tiny(cache), tmp_path).path
    under_way = make_run(tmp_path / "lion-lr1-s1-ffff", "lion", 1.0, loss=None)
    (under_way / "ckpt").mkdir()
    (under_way / "ckpt" / "step").write_text("x")
    for folder, age in ((done, 120), (under_way, 120)):
        (folder / "claim").mkdir()
        owner = folder / "claim" / "owner.json"
        owner.write_text("{}")
        os.utime(owner, (time.time() - age,) * 2)
    temporary = done / ".final.json.1.tmp"
    temporary.write_text("x" * 100)
    os.utime(temporary, (0, 0))
    before = {path: path.read_bytes() for path in tmp_path.rglob("*.json*")}
    items = cleaning.garbage(tmp_path)
    assert {item.path for item in items} == {done / "ckpt", done / "claim", temporary}
    assert {item.path for item in cleaning.garbage(tmp_path, keep_checkpoints=True)} == {done / "claim", temporary}
    assert cleaning.delete(items) > 100
    assert not (done / "ckpt").exists()
    assert (under_way / "ckpt" / "step").exists()
    kept = {path: content for path, content in before.items() if path not in (temporary, done / "claim" / "owner.json")}
    assert {path: path.read_bytes() for path in kept} == kept


def summary(folder: Path, losses: list[float], **args: Any) -> None:
    folder.mkdir(parents=True)
    given = {
        "iterations": 64_000, "eval_interval": 500, "log_interval": 50, "batch_size": 32, "acc_steps": 2, "seed": 0,
        "sequence_length": 512, "world_size": 1, "dataset": "fineweb", "model": "base", "n_embd": 768, "n_layer": 12,
        "tokenizer": "gpt2", "scheduler": "cos", "warmup_steps": 3000, "grad_clip": 0.5, "dtype": "bfloat16",
        "opt": "adamw", "lr": 5e-4, "muon_lr_factor": 0.02, **args,
    }  # fmt: skip
    value = {"train_loss": [4.0, 3.9], "val_loss": losses, "val_pp": [], "wall_time": 6400.0, "args": given}
    (folder / "summary.json").write_text(json.dumps(value))


def test_published_runs_are_taken_in(tmp_path: Path) -> None:
    curve = [10.0 - i / 20 for i in range(129)]
    summary(tmp_path / "exps" / "fw_adamw", curve)
    summary(
        tmp_path / "exps" / "fw_lionmuon_k2", [*curve[:-2], 3.4, 3.5], opt="lion_muon", lr=1e-3, muon_lr_factor=2e-3
    )
    summary(tmp_path / "exps" / "fw_bad", [*curve[:-1], float("nan")], opt="lion")
    summary(tmp_path / "exps" / "other", [9.0, 8.0], iterations=500, dataset="wikitext")
    made = import_summaries(tmp_path / "exps", tmp_path / "out")
    assert made == {
        "fineweb-base-d768-64000": ["fw_adamw", "fw_bad", "fw_lionmuon_k2"],
        "wikitext-base-d768-500": ["other"],
    }
    study = read_study(tmp_path / "out" / "fineweb-base-d768-64000")
    assert not study.problems
    rows = {row.method.label: row for row in headline(study)}
    assert rows["fw_lionmuon_k2"].losses == {0: 3.5}  # the last, not the best
    assert rows["fw_lionmuon_k2"].method.best_lr == 2e-3  # the spectral rate
    assert rows["fw_bad"].states["diverged"] == 1
    folder = tmp_path / "out" / "fineweb-base-d768-64000" / "runs" / "fw_lionmuon_k2"
    final = json.loads((folder / "final.json").read_text())
    assert (final["best_loss"], final["tokens"], final["seconds"]) == (3.4, 64_000 * 32 * 2 * 512, 6400.0)
    evals = [json.loads(line) for line in (folder / "evals.jsonl").open()]
    assert [row["step"] for row in evals[:2]] + [evals[-1]["step"]] == [0, 500, 64_000]
    assert [json.loads(line)["step"] for line in (folder / "metrics.jsonl").open()] == [50, 100]
    assert import_summaries(tmp_path / "exps", tmp_path / "out") == made  # again: nothing is lost


@pytest.mark.parametrize(
    "text", ["", "[]", '{"val_loss": [], "args": {}}', '{"val_loss": [1.0], "args": {"iterations": 3}}']
)
def test_what_is_no_summary_is_refused_before_anything_is_written(tmp_path: Path, text: str) -> None:
    summary(tmp_path / "exps" / "good", [9.0, 8.0])
    (tmp_path / "exps" / "zbad").mkdir()
    (tmp_path / "exps" / "zbad" / "summary.json").write_text(text)
    with pytest.raises(UserError, match=r"zbad/summary\.json is no summary of llm-baselines"):
        import_summaries(tmp_path / "exps", tmp_path / "out")
    assert not (tmp_path / "out").exists()
    with pytest.raises(UserError, match=r"there is no summary\.json below"):
        import_summaries(tmp_path / "nothing", tmp_path / "out")


def test_the_commands(root: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["ls", str(root), "--sort", "loss"]) == 0
    out = capsys.readouterr().out
    assert out.index("bbbb") < out.index("aaaa") < out.index("cccc")
    assert "4 runs" in out
    assert main(["ls", str(root), "--json", "--state", "running"]) == 0
    assert json.loads(capsys.readouterr().out)["run_id"].endswith("cccc")
    assert main(["show", "bbbb", "--root", str(root)]) == 0
    assert "steepest train" in capsys.readouterr().out
    assert main(["tail", "bbbb", "--root", str(root), "-n", "2"]) == 0
    assert [line.split()[1] for line in capsys.readouterr().out.splitlines()] == ["9", "10"]
    assert main(["compare", "aaaa", "bbbb", "--root", str(root)]) == 0
    assert "method.lr" in capsys.readouterr().out
    assert main(["gc", str(root)]) == 0
    assert "could go" in capsys.readouterr().out
    assert main(["export", str(root), "--out", str(tmp_path / "t"), "--method", "lion"]) == 0
    assert "2 runs" in capsys.readouterr().out
    assert main(["export", str(root), "--format", "parket"]) == 2
    assert "Did you mean 'parquet'" in capsys.readouterr().err
    assert main(["show", "nothing", "--root", str(root)]) == 2
