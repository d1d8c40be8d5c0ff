"""What the page finds beyond the headline, on studies whose answers are known."""

from __future__ import annotations

import json
import math
import shutil

import pytest
from fake_study import VOCABULARY
from grid_study import ARMS, FLOPS_PER_TOKEN, MODEL_SECONDS, STEPS, TOKENS, write_grid_study

from steepest.lab.report.measures import Findings, is_table
from steepest.lab.report.tables import sheets
from steepest.lab.results import headline, read_study

ADAMW, LION, LIONMUON, NO_DECAY, MUON = ARMS


def findings(folder) -> Findings:
    study = read_study(folder)
    return Findings(study, headline(study))


@pytest.fixture(scope="module")
def f(grid) -> Findings:
    return findings(grid)


def test_noise_is_that_of_the_baseline(f):
    assert f.noise.sd == pytest.approx(f.base.loss.sd)
    assert f.noise.methods == ("AdamW",)
    assert f.noise.low < f.noise.sd < f.noise.high


def test_costs_are_steps_times_what_a_step_costs(f):
    costs = {c.key: c for c in f.costs}
    assert list(costs) == ["state", "flops", "seconds"]
    assert costs["flops"].values["Muon"] == pytest.approx(STEPS * (FLOPS_PER_TOKEN * TOKENS + MUON.flops))
    # not the clock of its runs, which had a crowded machine
    assert costs["seconds"].values["Lion"] == pytest.approx(STEPS * (MODEL_SECONDS + LION.seconds))
    assert "process of its own" in costs["seconds"].note


def test_without_accounting_the_clock_is_said_to_be_shared(tmp_path):
    found = findings(write_grid_study(tmp_path, (ADAMW, LION), seeds=(1, 2), accounting=False))
    costs = {c.key: c for c in found.costs}
    assert "flops" not in costs
    assert costs["seconds"].values["Lion"] == pytest.approx(STEPS * (MODEL_SECONDS + LION.seconds + LION.crowd))
    assert "machine shared" in costs["seconds"].title
    assert "not a benchmark" in costs["seconds"].note


def test_one_method_without_a_step_time_makes_all_times_shared(grid, tmp_path):
    folder = shutil.copytree(grid, tmp_path / "copy")
    raw = json.loads((folder / "accounting.json").read_text())
    raw["methods"]["Lion"]["step_seconds"] = None
    raw["methods"]["Lion"]["optimizer_flops"] = None
    raw["methods"]["Muon"]["step_seconds"]["contended"] = True
    (folder / "accounting.json").write_text(json.dumps(raw))
    seconds = next(c for c in findings(folder).costs if c.key == "seconds")
    assert seconds.values["AdamW"] == pytest.approx(STEPS * (MODEL_SECONDS + ADAMW.seconds))
    raw["methods"]["Lion"]["step_seconds"] = {"median": 0.1}
    (folder / "accounting.json").write_text(json.dumps(raw))
    assert "not to be trusted: Muon." in next(c for c in findings(folder).costs if c.key == "seconds").note


def test_steps_to_the_target_have_the_costs_of_these_steps(f):
    target, reached = f.targets
    assert target.loss == sorted(f.base.losses.values())[2]
    muon = reached["Muon"]
    assert 0 < muon.low <= muon.steps <= muon.high < STEPS
    assert muon.costs["tokens"] == pytest.approx(muon.steps * TOKENS)
    assert muon.costs["flops"] == pytest.approx(muon.steps * (FLOPS_PER_TOKEN * TOKENS + MUON.flops))
    assert muon.costs["seconds"] == pytest.approx(muon.steps * (MODEL_SECONDS + MUON.seconds))


def test_divergence_counts_tuning_and_final_runs(f):
    tuning = {t.method.label: t for t in f.tunings}
    assert (tuning["LionMuon"].lost, tuning["LionMuon"].finished) == (6, 24 + 5)
    assert tuning["LionMuon"].diverged.value == pytest.approx(6 / 29)
    assert (tuning["AdamW"].lost, tuning["AdamW"].finished) == (0, 4 + 5)


def test_basins_are_those_of_the_parabola(f):
    tuning = {t.method.label: t for t in f.tunings}
    near, wide = tuning["AdamW"].basins
    # 0.03 nats at one octave, so linear interpolation reaches 0.01 after a third of one (noise 0.004) on both sides
    assert near.octaves == pytest.approx(2 / 3, abs=0.25)
    assert wide.low == pytest.approx(2.5e-3)
    assert (wide.open_low, wide.open_high) == (True, False)
    assert tuning["LionMuon"].basins[1].high == pytest.approx(1e-2)  # next to a diverged rate
    assert tuning["Muon"].basins[0].open_high


def test_a_diverged_trial_counts_as_an_untrained_model(f):
    best = next(t for t in f.tunings if t.method.label == "LionMuon").best_of_k
    losses = [t.loss if t.state == "done" else math.log(VOCABULARY) for t in f.study.methods[2].trials]
    assert best.expected[0] == pytest.approx(sum(losses) / 24)
    assert best.expected[-1] == pytest.approx(min(losses))
    assert best.all_diverged[0] == pytest.approx(6 / 24)


def test_surfaces_have_every_pair_of_axes(f):
    pairs = [(s.label, s.x, s.y) for s in f.surfaces]
    assert pairs == [
        ("LionMuon", "lr", "sign_lr_ratio"),
        ("LionMuon", "lr", "period"),
        ("LionMuon", "sign_lr_ratio", "period"),
        ("LionMuon no decay", "lr", "sign_lr_ratio"),
    ]
    first, last = f.surfaces[0], f.surfaces[-1]
    assert is_table(first)
    assert (first.xs, first.ys) == ([2.5e-3, 5e-3, 1e-2, 2e-2], [0.05, 0.1, 0.2])
    assert first.best == (2, 1)
    cells = {(c.x, c.y): c for c in first.cells}
    assert len(cells) == 12
    assert cells[3, 0].state == "diverged"
    period_2_and_5 = [
        t.loss for t in f.study.methods[2].trials if t.point["lr"] == 5e-3 and t.point["sign_lr_ratio"] == 0.2
    ]
    assert cells[1, 2].loss == min(period_2_and_5)
    assert last.open == ("sign_lr_ratio",)


def test_the_ablation_table_compares_seed_by_seed_and_gives_the_cost(f):
    (variant,) = f.variants
    assert (variant.row.method.label, variant.full.method.label) == ("LionMuon no decay", "LionMuon")
    assert variant.changed == {"weight_decay": 0.0}
    differences = [variant.row.losses[s] - variant.full.losses[s] for s in range(1, 6)]
    assert variant.comparison.difference == pytest.approx(sum(differences) / 5)
    sheet = sheets(f)["variants"]
    line = dict(zip(sheet.columns, (c.text for c in sheet.body[0]), strict=True))
    assert line["Changed"] == "weight decay 0"
    assert line["Verdict"] == "worse"
    assert line["FLOPs, ratio"] == "1.000"
    ratio = (MODEL_SECONDS + NO_DECAY.seconds) / (MODEL_SECONDS + LIONMUON.seconds)
    assert line["Time, ratio"] == f"{ratio:.2f}"


def test_diagnostics_by_quantity_and_role(f):
    assert set(f.diagnostics) == {
        *(("update_rms", "attention"), ("update_rms", "mlp")),
        *(("polar_residual", "mlp"), ("noise_scale", "all")),
    }
    lion = next(t for t in f.diagnostics["update_rms", "mlp"] if t.label == "Lion")
    assert lion.values == pytest.approx([1e-2 * 0.3] * len(lion.values))
    noise = f.diagnostics["noise_scale", "all"][0]
    assert noise.values == pytest.approx([10 + step for step in noise.steps])


def test_numbers_of_tests_and_tuning_in_the_tables(f):
    found = sheets(f)
    tests = {row[0].text: [c.text for c in row] for row in found["tests"].body}
    row = next(r for r in f.rows if r.method.label == "Muon")
    assert tests["Muon"][2] == f"{row.comparison.difference:+.4f}".replace("-", "\u2212")
    holm = [c.value for c in next(r for r in found["tests"].body if r[0].text == "Lion")][7]
    assert holm == pytest.approx(row.p_holm if row.method.label == "Lion" else holm)
    tuning = {row[0].text: dict(zip(found["tuning"].columns, row, strict=True)) for row in found["tuning"].body}
    assert tuning["LionMuon"]["Runs that diverged"].text == "6 of 29"
    assert tuning["Muon"]["Best point"].text == "learning rate 0.02 (open: learning rate)"
    assert len(found["trials"].body) == 4 + 4 + 24 + 12 + 4
    assert len(found["runs"].body) == 48 + 25


def test_a_verdict_that_does_not_survive_holm_says_so(tmp_path):
    from dataclasses import replace

    from steepest.lab.wording import not_after_holm

    write_grid_study(tmp_path, (ADAMW, LION, MUON), seeds=(1, 2, 3))
    row = next(r for r in headline(read_study(tmp_path)) if r.method.label == "Muon")
    assert row.verdict == "better"
    assert not_after_holm(replace(row, p_holm=0.049)) == ""
    assert "Holm p = 0.06" in not_after_holm(replace(row, p_holm=0.06))
    assert not_after_holm(replace(row, p_holm=0.06, verdict="not decided")) == ""


def test_the_verdict_says_which_lead_does_not_survive_holm(tmp_path):
    from dataclasses import replace

    from steepest.lab.wording import verdict

    write_grid_study(tmp_path, (ADAMW, LION, MUON), seeds=(1, 2, 3))
    study = read_study(tmp_path)
    rows = headline(study)
    assert [(row.method.label, row.is_baseline) for row in rows[:2]] == [("Muon", False), ("AdamW", True)]

    def said(found, p):
        return verdict(study, [replace(row, p_holm=p.get(row.method.label, row.p_holm)) for row in found])[1]

    lead = "Its lead over every other method is outside the noise"
    assert said(rows, {"Muon": 0.049, "Lion": 0.9}) == f"{lead}."  # Lion's is no lead of Muon's
    assert said(rows, {"Muon": 0.053}) == (
        f"{lead} on its own; not that over AdamW among all comparisons together (Holm p = 0.053)."
    )
    adamw = rows[1]
    lion = next(row for row in rows if row.method.label == "Lion")
    best = [adamw, replace(lion, losses={seed: loss + 0.1 for seed, loss in adamw.losses.items()})]
    assert said(best, {"Lion": 0.01}) == f"{lead}."
    assert said(best, {"Lion": 0.05}).endswith("not that over Lion among all comparisons together (Holm p = 0.05).")
