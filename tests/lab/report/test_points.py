"""Studies of several tuned axes are read back as they are: points, variants, accounting, and what is damaged."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import pytest
from grid_study import (
    ARMS,
    FLOPS_PER_TOKEN,
    MODEL_SECONDS,
    TOKENS,
    final_loss,
    run_id,
    write_grid_run,
    write_grid_study,
)

from steepest.lab import report
from steepest.lab.results import headline, read_study

ADAMW, LION, LIONMUON, NO_DECAY, MUON = ARMS


def method(study, label):
    return next(m for m in study.methods if m.label == label)


def test_the_best_point_has_all_axes(grid):
    study = read_study(grid)
    best = method(study, "LionMuon")
    assert best.best == {"lr": 1e-2, "sign_lr_ratio": 0.1, "period": 2}
    assert best.tuned == ["lr", "sign_lr_ratio", "period"]
    assert best.others == {"sign_lr_ratio": 0.1, "period": 2}
    assert best.chosen.point == best.best
    assert (best.edge, best.open_axes, len(best.trials)) == (False, (), 24)
    assert method(study, "LionMuon no decay").open_axes == ("sign_lr_ratio",)
    assert max(t.extension for t in method(study, "Muon").trials) == 3
    assert study.problems == []


def test_a_rate_has_the_lowest_loss_over_the_other_axes(grid):
    study = read_study(grid)
    rates = method(study, "LionMuon").by_rate
    assert [t.lr for t in rates] == [2.5e-3, 5e-3, 1e-2, 2e-2]
    expected = min(
        final_loss(LIONMUON, {"lr": 5e-3, "sign_lr_ratio": r, "period": p}, 0) for r in (0.05, 0.1, 0.2) for p in (2, 5)
    )
    assert rates[1].loss == pytest.approx(expected)
    assert rates[3].state == "diverged"


def test_final_runs_are_those_of_the_best_point_and_not_only_of_its_rate(grid, tmp_path):
    folder = shutil.copytree(grid, tmp_path / "copy")
    for seed in (1, 2):  # another point, with the same learning rate and a final purpose
        point = {"lr": 1e-2, "sign_lr_ratio": 0.05, "period": 2}
        write_grid_run(folder / "runs" / run_id(LIONMUON, point, seed), LIONMUON, point, seed, purpose="final")
    study = read_study(folder)
    finals = study.finals(method(study, "LionMuon"))
    assert [run.seed for run in finals] == [1, 2, 3, 4, 5]
    assert {run.config["method"]["options"]["sign_lr_ratio"] for run in finals} == {0.1}
    row = next(r for r in headline(study) if r.method.label == "LionMuon")
    assert row.losses == {s: pytest.approx(final_loss(LIONMUON, LIONMUON.best, s)) for s in (1, 2, 3, 4, 5)}


def test_two_variants_of_one_configuration_share_their_runs(tmp_path):
    write_grid_study(tmp_path, (ADAMW, MUON), seeds=(1, 2))
    study = json.loads((tmp_path / "study.json").read_text())
    study["methods"].append({**study["methods"][1], "label": "Muon again"})
    (tmp_path / "study.json").write_text(json.dumps(study))
    rows = {row.method.label: row.losses for row in headline(read_study(tmp_path))}
    assert rows["Muon again"] == rows["Muon"] != {}


def test_variants_with_the_same_rate_are_told_apart_by_their_options(grid):
    rows = {row.method.label: row for row in headline(read_study(grid))}
    assert rows["LionMuon"].lr == rows["LionMuon no decay"].lr
    assert rows["LionMuon"].losses != rows["LionMuon no decay"].losses


def test_without_the_winning_trial_label_and_rate_decide(grid, tmp_path):
    folder = shutil.copytree(grid, tmp_path / "copy")
    shutil.rmtree(folder / "runs" / run_id(ADAMW, ADAMW.best, 0))
    study = read_study(folder)
    assert len(study.finals(method(study, "AdamW"))) == 5
    assert any("AdamW" in p and "gone" in p for p in study.problems)


def test_accounting_is_read(grid):
    study = read_study(grid)
    assert study.flops_per_step(method(study, "Muon")) == FLOPS_PER_TOKEN * TOKENS + MUON.flops
    assert study.model_seconds == pytest.approx(MODEL_SECONDS)  # the median: Lion's runs had a crowded machine
    assert study.step_seconds(method(study, "Lion")) == pytest.approx(MODEL_SECONDS + LION.seconds)
    assert study.account(method(study, "AdamW")).transient_bytes == 1e6


def test_passes_over_the_model_that_a_method_adds_are_charged(tmp_path):
    write_grid_study(tmp_path, (ADAMW, replace(LION, extra_passes=0.5, crowd=0.0)), seeds=(1, 2))
    study = read_study(tmp_path)
    lion = method(study, "Lion")
    assert study.flops_per_step(lion) == pytest.approx(1.5 * FLOPS_PER_TOKEN * TOKENS + LION.flops)
    assert study.step_seconds(lion) == pytest.approx(1.5 * MODEL_SECONDS + LION.seconds)


@pytest.mark.parametrize("content", ["{", "[]", '{"methods": 3}', '{"model": 1, "methods": {"AdamW": [1]}}'])
def test_damaged_accounting_is_no_accounting(grid, tmp_path, content):
    folder = shutil.copytree(grid, tmp_path / "copy")
    (folder / "accounting.json").write_text(content)
    study = read_study(folder)
    assert str(study.flops_per_step(method(study, "AdamW"))) == "nan"


@pytest.mark.parametrize(
    "damage",
    [
        {"methods": [{"name": "adamw", "tuning": 3, "axes": [1], "best": 5, "open_axes": "lr"}]},
        {"methods": [None, 3, {}], "seeds": ["one", 2]},
        {"methods": "all", "seeds": 5, "tuning_seed": "none", "workload": []},
    ],
)
def test_nonsense_in_study_json_is_no_crash(grid, tmp_path, damage):
    folder = shutil.copytree(grid, tmp_path / "copy")
    raw = json.loads((folder / "study.json").read_text())
    (folder / "study.json").write_text(json.dumps(raw | damage))
    headline(read_study(folder))


@pytest.mark.usefixtures("no_figures")
def test_what_is_half_deleted_is_listed_on_the_page(grid, tmp_path):
    folder = shutil.copytree(grid, tmp_path / "copy")
    runs = folder / "runs"
    (runs / run_id(LION, LION.best, 1) / "config.json").unlink()
    (runs / "empty").mkdir()  # a run that somebody has only just claimed
    metrics = runs / run_id(ADAMW, ADAMW.best, 2) / "metrics.jsonl"
    lines = metrics.read_text().splitlines()
    metrics.write_text("\n".join([*lines[:3], "\x00garbage", "[1]", '{"step": NaN}', *lines[3:]]))
    evals = runs / run_id(ADAMW, ADAMW.best, 3) / "evals.jsonl"
    evals.unlink()
    evals.mkdir()  # what another user's file is to us: there, and not to be read
    page = report.write(folder).read_text()
    for words in (
        f"{run_id(LION, LION.best, 1)}: its config.json is gone or damaged",
        "metrics.jsonl: line 4 cannot be read and is left out",
        "metrics.jsonl: line 6 cannot be read",
        "evals.jsonl cannot be read",
    ):
        assert words in page
    assert "empty" not in {run.id for run in read_study(folder).runs}
    assert "empty: its config.json" not in page
    row = next(r for r in headline(read_study(folder)) if r.method.label == "Lion")
    assert sorted(row.losses) == [2, 3, 4, 5]


def test_lines_are_read_when_they_are_asked_for(grid, tmp_path):
    folder = shutil.copytree(grid, tmp_path / "copy")
    for path in folder.glob("runs/*/metrics.jsonl"):
        path.write_text("{\n{\n{\n")
    study = read_study(folder)
    headline(study)
    assert study.problems == []
    assert study.runs[0].metrics == []
    assert len(study.problems) == 2  # the last line is what a killed run leaves


def test_a_study_of_a_sampler_has_no_edge_of_a_grid(tmp_path):
    write_grid_study(tmp_path, (ADAMW, replace(LIONMUON, diverges_above=1.0)), seeds=(1,), search="tpe")
    study = read_study(tmp_path)
    assert method(study, "LionMuon").search == "tpe"
