from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import pytest
from fake_study import METHODS, PARAMETERS, final_id, write_run, write_study

from steepest.lab.errors import UserError
from steepest.lab.report import read_study
from steepest.lab.results import fairness, headline


def finals_on_disk(folder: Path, method: str, seeds=(1, 2, 3, 4)) -> list[dict]:
    return [json.loads((folder / "runs" / final_id(method, s) / "final.json").read_text()) for s in seeds]


def row_of(folder: Path, name: str):
    return next(row for row in headline(read_study(folder)) if row.method.name == name)


def test_study_reads_back_what_was_written(clean):
    study = read_study(clean)
    assert study.name == "six methods on news-wiki"
    assert [m.name for m in study.methods] == list(METHODS)
    assert (study.seeds, study.tuning_seed, study.baseline, study.tier) == ([1, 2, 3, 4], 0, "adamw", "CPU proxy")
    assert study.parameters == PARAMETERS
    assert len(study.runs) == 6 * (5 + 4)
    assert study.problems == []
    run = next(r for r in study.runs if r.id == final_id("muon", 2))
    assert (run.method, run.seed, run.purpose, run.state, run.lr) == ("Muon", 2, "final", "done", 1e-2)
    assert run.command == "steepest train --method muon --lr 0.01 --seed 2"
    assert [r["step"] for r in run.evals][-1] == 400
    muon = next(m for m in study.methods if m.name == "muon")
    assert [t.lr for t in muon.trials] == sorted(t.lr for t in muon.trials)
    assert muon.trials[-1].state == "diverged"
    assert math.isnan(muon.trials[-1].loss)


def test_headline_means_only_the_fresh_seeds(clean):
    row = row_of(clean, "muon")
    finals = finals_on_disk(clean, "muon")
    losses = [f["loss"] for f in finals]
    assert row.loss.n == 4
    assert row.loss.mean == pytest.approx(sum(losses) / 4)
    assert row.perplexity == pytest.approx(sum(f["perplexity"] for f in finals) / 4)
    assert row.bits_per_byte == pytest.approx(sum(f["bits_per_byte"] for f in finals) / 4)
    assert row.tokens_per_second == pytest.approx(sum(f["tokens_per_second"] for f in finals) / 4)
    assert row.bytes_per_parameter == pytest.approx(finals[0]["state_bytes"] / PARAMETERS)
    base = [f["loss"] for f in finals_on_disk(clean, "adamw")]
    assert row.comparison.difference == pytest.approx(sum(a - b for a, b in zip(losses, base, strict=True)) / 4)


def test_headline_is_sorted_and_the_baseline_is_marked(clean):
    rows = headline(read_study(clean))
    assert [row.loss.mean for row in rows] == sorted(row.loss.mean for row in rows)
    assert [row.method.name for row in rows if row.is_baseline] == ["adamw"]
    assert next(row for row in rows if row.is_baseline).comparison is None


def test_a_method_on_the_edge_is_not_called_worse(clean):
    row = row_of(clean, "lion")
    assert row.method.edge
    assert row.comparison.verdict == "worse"
    assert row.verdict == "not decided"
    assert "edge" in row.reason


def test_nothing_is_better_than_a_baseline_on_the_edge(tmp_path):
    write_study(tmp_path, ("adamw", "muon", "signum"), edge=("adamw",))
    assert row_of(tmp_path, "muon").comparison.verdict == "better"
    assert row_of(tmp_path, "muon").verdict == "not decided"
    assert "AdamW" in row_of(tmp_path, "muon").reason
    assert row_of(tmp_path, "signum").verdict == "worse"


def test_runs_that_did_not_finish_count_in_no_mean(messy):
    assert row_of(messy, "adamw").loss.n == 3
    assert row_of(messy, "muon").loss.n == 3
    assert row_of(messy, "muon").states == {"done": 3, "interrupted": 1}
    assert row_of(messy, "lion_muon").states == {"done": 3, "diverged": 1}
    assert row_of(messy, "sign_muon").loss.n == 0
    assert headline(read_study(messy))[-1].method.name == "sign_muon"
    losses = [f["loss"] for f in finals_on_disk(messy, "adamw", (1, 2, 3))]
    assert row_of(messy, "adamw").loss.mean == pytest.approx(sum(losses) / 3)


def test_a_method_that_diverged_is_not_called_better(messy):
    row = row_of(messy, "lion_muon")
    assert row.comparison.verdict == "better"
    assert row.verdict == "not decided"
    assert "diverged" in row.reason


def test_done_in_the_status_is_not_enough(messy):
    study = read_study(messy)
    run = next(r for r in study.runs if r.id == final_id("adamw", 4))
    assert run.state == "interrupted"
    assert any(run.id in problem and "final.json" in problem for problem in study.problems)


def test_a_torn_last_line_is_dropped_and_a_bad_one_elsewhere_reported(messy, tmp_path):
    study = read_study(messy)
    assert any(run.evals for run in study.runs if run.id == final_id("muon", 2))
    assert not any("evals.jsonl" in problem for problem in study.problems)
    write_run(tmp_path, "adamw", 8e-3, 1)
    lines = (tmp_path / "evals.jsonl").read_text().splitlines()
    repeated = json.dumps({**json.loads(lines[2]), "loss": 1.25})  # a resumed run may repeat a step
    (tmp_path / "evals.jsonl").write_text("\n".join([lines[0], "{nonsense", *lines[1:], repeated]) + "\n")
    study = read_study(tmp_path)
    evals = study.runs[0].evals
    assert any("evals.jsonl: line 2" in problem for problem in study.problems)
    assert [r["step"] for r in evals] == sorted({r["step"] for r in evals})
    assert evals[2]["loss"] == 1.25


def test_fairness_compares_hashes_within_a_seed(clean, tmp_path):
    assert all(c.init_equal and c.data_equal for c in fairness(read_study(clean)))
    folder = shutil.copytree(clean, tmp_path / "copy")
    for key, seed in (("init_hash", 1), ("data_hash", 2)):
        path = folder / "runs" / final_id("lion", seed) / "final.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), key: "other"}))
    checks = {c.seed: c for c in fairness(read_study(folder))}
    assert (checks[1].init_equal, checks[1].data_equal) == (False, True)
    assert (checks[2].init_equal, checks[2].data_equal) == (True, False)
    assert (checks[3].init_equal, checks[3].data_equal) == (True, True)


def test_a_run_that_stopped_early_does_not_make_the_data_differ(clean):
    # the diverged trials of seed 0 read a quarter of the tokens, so their running hash is another one
    tuning = next(c for c in fairness(read_study(clean)) if c.seed == 0)
    assert tuning.runs == 30
    assert tuning.data_equal is True


def test_a_lone_run_is_a_study_of_one(tmp_path):
    final = write_run(tmp_path / "single", "muon", 1e-2, 3)
    study = read_study(tmp_path / "single")
    assert study.lone
    (row,) = headline(study)
    assert row.loss.mean == final["loss"]
    assert row.comparison is None
    assert not row.is_baseline
    assert study.parameters == PARAMETERS


def test_runs_without_study_json_are_enough(tmp_path):
    write_study(tmp_path, ("adamw", "muon"), seeds=(1, 2))
    (tmp_path / "study.json").unlink()
    study = read_study(tmp_path)
    assert {m.name for m in study.methods} == {"adamw", "muon"}
    assert len(next(m for m in study.methods if m.name == "muon").trials) == 5
    assert row_of(tmp_path, "muon").loss.n == 2
    assert study.parameters == PARAMETERS


def test_a_study_that_has_only_begun(tmp_path):
    write_study(tmp_path, ("adamw", "muon"))
    shutil.rmtree(tmp_path / "runs")
    rows = headline(read_study(tmp_path))
    assert [row.loss.n for row in rows] == [0, 0]


def test_variants_of_one_method_are_told_apart_by_their_options(tmp_path):
    write_study(tmp_path, ("adamw",), seeds=(1,))
    study = json.loads((tmp_path / "study.json").read_text())
    study["methods"] += [
        {"name": "lion_muon", "label": f"P={p}", "options": {"period": p}, "tuning": [], "best_lr": 1e-2, "edge": False}
        for p in (2, 5)
    ]
    (tmp_path / "study.json").write_text(json.dumps(study))
    for p in (2, 5):
        folder = tmp_path / "runs" / f"lion_muon-p{p}"
        write_run(folder, "lion_muon", 1e-2, 1)
        config = json.loads((folder / "config.json").read_text())
        config["method"] = {"name": "lion_muon", "lr": 1e-2, "options": {"period": p}}
        (folder / "config.json").write_text(json.dumps(config))
    assert {r.id: r.method for r in read_study(tmp_path).runs if "p" in r.id} == {
        "lion_muon-p2": "P=2",
        "lion_muon-p5": "P=5",
    }


def test_a_label_counts_before_a_name(tmp_path):
    write_study(tmp_path, ("adamw",), seeds=(1,))
    study = json.loads((tmp_path / "study.json").read_text())
    entry = {"options": {}, "tuning": [], "best_lr": 1e-2, "edge": False}
    study["methods"] += [{"name": "muon", "label": "mine", **entry}, {"name": "lion_muon", "label": "muon", **entry}]
    (tmp_path / "study.json").write_text(json.dumps(study))
    folder = tmp_path / "runs" / "a-run"
    write_run(folder, "lion_muon", 1e-2, 1)
    config = json.loads((folder / "config.json").read_text())
    config["method"] = {"name": "lion_muon", "label": "muon", "lr": 1e-2, "options": {}}
    (folder / "config.json").write_text(json.dumps(config))
    assert next(run.method for run in read_study(tmp_path).runs if run.id == "a-run") == "muon"


def test_a_run_whose_process_is_gone_is_not_called_running(messy, tmp_path):
    folder = shutil.copytree(messy, tmp_path / "copy", ignore=shutil.ignore_patterns("figures", "report.html"))
    status = folder / "runs" / final_id("sign_muon", 1) / "status.json"
    status.write_text(json.dumps({**json.loads(status.read_text()), "pid": 2**22 + 1}))
    found = {run.id: run.state for run in read_study(folder).runs}
    assert [found[final_id("sign_muon", seed)] for seed in (1, 2)] == ["interrupted", "running"]


@pytest.mark.parametrize("name", ["study.json", "report.html"])
def test_a_file_of_the_study_names_it_too(clean, name):
    assert read_study(clean / name).name == "six methods on news-wiki"


def test_no_study_says_where_there_are_some(tmp_path):
    with pytest.raises(UserError, match="does not exist"):
        read_study(tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"neither study\.json nor config\.json"):
        read_study(tmp_path)
    write_run(tmp_path / "a-run", "muon", 1e-2, 3)
    with pytest.raises(UserError, match="a-run"):
        read_study(tmp_path)


def test_damaged_files_are_reported_not_fatal(tmp_path):
    write_study(tmp_path, ("adamw", "muon"), seeds=(1, 2))
    damaged = tmp_path / "runs" / final_id("muon", 1)
    (damaged / "final.json").write_text("{")
    (damaged / "routing.json").write_text("[1, 2]")
    study = read_study(tmp_path)
    assert all(run.routing == [] for run in study.runs if run.path == damaged)
    assert any("final.json cannot be read" in problem for problem in study.problems)
    assert row_of(tmp_path, "muon").loss.n == 1
