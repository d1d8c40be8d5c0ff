"""The index is a cache of the run directories; what it lists, exports and cleans is what stands in them."""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import sys
import time
from pathlib import Path
from typing import Any

import polars
import pytest
from small_runs import tiny

from steepest.lab import runs
from steepest.lab.cli import main
from steepest.lab.data import Pack
from steepest.lab.errors import UserError
from steepest.lab.store import Index, cleaning, exporting
from steepest.lab.store.comparing import differences
from steepest.lab.studies.claims import Claims
from steepest.lab.training import train
from steepest.lab.workloads import record_start, resolve


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


GONE = 2**22 + 1  # above the largest number of a process


def states(root: Path) -> dict[str, str]:
    return {e.run_id[-4:]: e.state for e in Index(root).refresh()}


def age(folder: Path, seconds: float) -> None:
    for file in folder.rglob("*"):
        os.utime(file, (time.time() - seconds,) * 2)


def test_a_run_whose_process_is_gone_is_interrupted(root: Path) -> None:
    folder = root / "first/runs/lion-lr0.0003-s2-cccc"
    age(folder, 3600)
    assert states(root)["cccc"] == "running"  # slow, and its process is there
    runs.RunDirectory(folder).write("status", {"state": "running", "step": 5, "pid": GONE})
    assert states(root)["cccc"] == "running"  # of another machine, and new
    age(folder, 59)
    assert states(root)["cccc"] == "running"
    age(folder, 61)
    assert states(root)["cccc"] == "interrupted"  # although the index has it as running
    assert [e.run_id[-4:] for e in Index(root).list(state="interrupted")] == ["cccc"]
    assert Index(root).list(state="running") == []


def test_a_claimed_run_is_running_while_its_owner_is_there(root: Path) -> None:
    folder = root / "first/runs/lion-lr0.0003-s2-cccc"
    runs.RunDirectory(folder).write("status", {"state": "running", "step": 5, "pid": GONE})
    age(folder, 3600)
    with Claims() as claims:
        assert claims.take(folder)
        owner = json.loads((folder / "claim/owner.json").read_text())
        age(folder, 3600)
        assert states(root)["cccc"] == "running"  # the owner lives here
        (folder / "claim/owner.json").write_text(json.dumps(owner | {"pid": GONE}))
        assert states(root)["cccc"] == "interrupted"  # killed just now
        (folder / "claim/owner.json").write_text(json.dumps(owner | {"pid": GONE, "host": "elsewhere"}))
        assert states(root)["cccc"] == "running"  # renewed just now
        age(folder, 61)
        assert states(root)["cccc"] == "interrupted"
        (folder / "claim/owner.json").write_text(json.dumps(owner | {"host": "elsewhere"}))
        age(folder, 61)
        assert states(root)["cccc"] == "interrupted"  # a number of there that lives here says nothing


def test_a_run_that_was_killed_just_now_is_interrupted(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    directory = runs.RunDirectory(root / "first/runs/lion-lr0.0003-s2-cccc")
    with monkeypatch.context() as other:
        other.setattr(os, "getpid", lambda: GONE)
        directory.status("running", 5)
    assert states(root)["cccc"] == "interrupted"
    directory.status("running", 5)
    assert states(root)["cccc"] == "running"


def test_a_damaged_status_is_no_process(root: Path) -> None:
    folder = root / "first/runs/lion-lr0.0003-s2-cccc"
    for pid in (-1, 0, 10**30, "1", None, [1]):
        runs.RunDirectory(folder).write("status", {"state": "running", "step": 5, "pid": pid})
        age(folder, 3600)
        assert states(root)["cccc"] == "interrupted"


def test_links_count_once_and_loops_end(root: Path, tmp_path: Path) -> None:
    expected = [e.path for e in Index(root).refresh()]
    (root / "again").symlink_to(root)
    (root / "first" / "again").symlink_to(root / "first", target_is_directory=True)
    (root / "first" / "runs" / "up").symlink_to("../..")
    (root / "above").symlink_to("/")
    (root / "itself").symlink_to("itself")
    (root / "nowhere").symlink_to("gone")
    (root / "a file").symlink_to(root / "index.sqlite")
    (root / "0 sorted before").symlink_to(root / "first")
    index = Index(root)
    assert [e.path for e in index.refresh()] == expected
    assert index.problems == []
    elsewhere = make_run(tmp_path / "disk" / "runs" / "sgd-lr1-s1-eeee", "sgd", 1.0)
    (root / "second").symlink_to(elsewhere.parent.parent)
    assert [e.path for e in Index(root).refresh()] == [*expected, "second/runs/sgd-lr1-s1-eeee"]


def test_a_folder_of_somebody_else_is_named(
    root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    scandir = os.scandir

    def refuse(path: Any) -> Any:
        if Path(path) == root / "first":
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)  # whoever runs the tests may be allowed everything
    assert main(["ls", str(root)]) == 0
    captured = capsys.readouterr()
    assert "1 runs" in captured.out
    assert f"note: {root / 'first'} cannot be read: Permission denied" in captured.err


def test_runs_that_come_and_go_while_they_are_listed(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from steepest.lab.store import index as module

    signature = module._signature

    def meanwhile(folder: Path) -> str:
        made = signature(folder)
        if folder.name.endswith("bbbb"):
            shutil.rmtree(folder)
            shutil.rmtree(root / "adamw-lr0.002-s1-dddd", ignore_errors=True)
        return made

    monkeypatch.setattr(module, "_signature", meanwhile)
    assert set(states(root)) <= {"aaaa", "bbbb", "cccc", "dddd"}
    assert set(states(root)) == {"aaaa", "cccc"}


def test_a_full_disk_loses_no_list(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = Index._open

    def full(path: str) -> sqlite3.Connection:
        connection = opened(path)
        connection.execute("PRAGMA query_only=1")
        return connection

    monkeypatch.setattr(Index, "_open", staticmethod(full))
    assert len(Index(root).refresh()) == 4


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


def test_each_setting_that_differs_is_shown_once(cache: Path, pack: Pack, tmp_path: Path) -> None:
    model = tiny(cache).workload.model
    assert isinstance(model, dict)
    changes = {"workload__model": {**model, "intermediate_size": 64}, "workload__evaluation": {"tokens": 128}}
    folders = []
    for config in (tiny(cache), tiny(cache, method__lr=2e-2, micro_batch=2, **changes)):
        directory = runs.RunDirectory(tmp_path / f"{len(folders)}")
        directory.create()
        record_start(directory, resolve(config), pack, {}, 0)
        folders.append(directory.path)
    assert dict(differences(folders)[:-8]) == {
        "method.lr": [1e-2, 2e-2],
        "workload.evaluation.batch_size": [4, 16],
        "workload.evaluation.tokens": [256, 128],
        "workload.model.intermediate_size": [48, 64],
        "workload.model.non_embedding_parameters": [17_568, 20_640],
        "workload.model.parameters": [25_792, 28_864],
        "micro_batch": [None, 2],
    }


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
    assert {"train/lr.all", "validation/loss"} < set(accumulator.Tags()["scalars"])


def test_without_tensorboard_its_events_are_refused(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    assert main(["export", str(root), "--format", "tensorboard", "--out", str(tmp_path / "events")]) == 2
    assert "TensorBoard is not installed: pip install 'steepest[tensorboard]'" in capsys.readouterr().err


def test_only_what_nobody_needs_goes(cache: Path, tmp_path: Path) -> None:
    done = train(tiny(cache), tmp_path).path
    empty = train(tiny(cache, seed=1, keep_checkpoint=False), tmp_path).path
    assert not (empty / "ckpt").exists()
    (empty / "ckpt").mkdir()  # as earlier versions left it
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


def test_the_commands(root: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    for i, run in enumerate(sorted(root.rglob("status.json"), key=lambda path: path.parent.name[-4:])):
        run.write_text(json.dumps({**json.loads(run.read_text()), "updated": f"2026-01-0{i + 1}"}))
    (root / "first" / "study.json").write_text("{}")
    assert main(["ls", str(root), "--sort", "loss"]) == 0
    out = capsys.readouterr().out
    assert out.index("bbbb") < out.index("aaaa") < out.index("cccc")
    assert "4 runs" in out
    for words, first, last, what in (
        (["--sort", "loss"], "bbbb", "aaaa", "first"),
        (["--sort", "loss", "--descending"], "dddd", "aaaa", "first"),
        ([], "cccc", "dddd", "last"),
        (["--descending"], "dddd", "cccc", "first"),
    ):
        assert main(["ls", str(root), "--limit", "2", *words]) == 0
        lines = capsys.readouterr().out.splitlines()
        assert [line.rstrip()[-4:] for line in lines[1:3]] == [first, last]
        assert lines[3] == f"4 runs, the {what} 2 are shown (--limit 0 for all)"
    assert main(["ls", str(root), "--json", "--state", "running"]) == 0
    assert json.loads(capsys.readouterr().out)["run_id"].endswith("cccc")
    assert main(["show", "bbbb", "--root", str(root)]) == 0
    shown = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["to", "repeat", "steepest", "train"] in shown
    assert shown[1:4] == [["study", "first"], ["method", "lion"], ["label", "lion"]]
    assert main(["show", "dddd", "--root", str(root)]) == 0
    assert "study" not in capsys.readouterr().out.split()
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


def test_the_tail_of_what_is_damaged(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = root / "first/runs/lion-lr0.0003-s1-bbbb/metrics.jsonl"
    rows = [
        '{"step": 1, "loss": 2.5, "lr": 3}',
        '{"step": "2.0", "loss": "\\u001b[2Jno number", "lr": {"a": "b", "c": 1e-3}}',
        "[1]", '{"step": 4, "loss": [1], "lr": [1], "tokens_per_second": "fast"}', '{"step": 5, "lr": null}',
    ]  # fmt: skip
    file.write_text("\n".join(rows) + "\n")
    assert main(["tail", "bbbb", "--root", str(root)]) == 0
    captured = capsys.readouterr()
    assert [line.split() for line in captured.out.splitlines()] == [
        ["step", "1", "loss", "2.5000", "0", "tokens/s", "lr", "3"],
        ["step", "2", "loss", '"\\u001b[2Jno', 'number"', "0", "tokens/s", "a", '"b"', "c", "0.001"],
        ["step", "4", "loss", "[1]", '"fast"', "tokens/s", "lr", "[1]"],
        ["step", "5", "0", "tokens/s"],
    ]
    assert "metrics.jsonl: line 3 cannot be read and is left out" in captured.err


def test_a_tail_that_shows_nothing_says_why(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = root / "first/runs/lion-lr0.0003-s1-bbbb/metrics.jsonl"
    file.unlink()
    assert main(["tail", "bbbb", "--root", str(root)]) == 2
    assert "(done) has no step to show yet" in capsys.readouterr().err
    file.mkdir()  # nobody can read this as a file, whatever they are allowed
    for follow in ([], ["-f"]):
        assert main(["tail", "bbbb", "--root", str(root), *follow]) == 2
        captured = capsys.readouterr()
        assert "metrics.jsonl cannot be read: Is a directory" in captured.err
        assert captured.out == ""


def test_following_a_run_ends_with_it(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = root / "first/runs/lion-lr0.0003-s2-cccc"
    runs.RunDirectory(folder).write("status", {"state": "running", "step": 5, "pid": GONE})
    age(folder, 3600)
    assert main(["tail", "cccc", "--root", str(root), "-f", "-n", "3"]) == 0  # killed: it would wait for ever
    assert [line.split()[1] for line in capsys.readouterr().out.splitlines()] == ["8", "9", "10"]


def test_showing_what_is_damaged(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = root / "adamw-lr0.002-s1-dddd"
    (folder / "config.json").write_text('{"method": "adamw", "seed": 1}')
    (folder / "env.json").write_text('{"torn')
    (folder / "final.json").write_text("[1]")
    assert main(["show", "dddd", "--root", str(root)]) == 0
    assert "env.json cannot be read" in capsys.readouterr().out


def test_tables_of_what_is_damaged(root: Path, tmp_path: Path) -> None:
    file = root / "adamw-lr0.002-s1-dddd" / "metrics.jsonl"
    file.write_text('{"step": 1, "loss": "no number", "lr": 3, "x": [1, 2], "path": 1}\n{"step": "2", "x": "a"}\n')
    written = exporting.parquet(Index(root).refresh(), root, tmp_path / "out")
    metrics = polars.read_parquet(written[1]).filter(polars.col("path").str.contains("dddd"))
    assert metrics["step"].to_list() == [1, 2]
    assert metrics["loss"].to_list() == [None, None]
    exporting.tensorboard(Index(root).list(text="dddd"), root, tmp_path / "events")


def test_a_link_to_checkpoints_is_left(root: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (root / "adamw-lr0.002-s1-dddd" / "ckpt").symlink_to(tmp_path / "elsewhere")
    assert cleaning.garbage(root) == []
