"""Runs of other harnesses are taken in as studies, seeds of one method together, and drawn beside ours."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from steepest.lab.cli import main
from steepest.lab.errors import UserError
from steepest.lab.report import write
from steepest.lab.results import headline, read_study
from steepest.lab.store.importing import import_summaries

WORKLOAD = "fineweb-base-d768-64000"


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


def test_a_second_import_adds_to_the_first(tmp_path: Path) -> None:
    summary(tmp_path / "a" / "adamw", [9.0, 3.5])
    summary(tmp_path / "b" / "lion", [9.0, 3.6], opt="lion", seed=1)
    import_summaries(tmp_path / "a", tmp_path / "out")
    made = import_summaries(tmp_path / "b", tmp_path / "out")
    assert made == {WORKLOAD: ["adamw", "lion"]}
    study = read_study(tmp_path / "out" / WORKLOAD)
    assert {row.method.label: row.losses for row in headline(study)} == {"adamw": {0: 3.5}, "lion": {1: 3.6}}
    assert (study.seeds, study.baseline, study.problems) == ([0, 1], "adamw", [])


def test_runs_that_differ_in_their_seed_are_one_method(tmp_path: Path) -> None:
    for seed in (0, 1):
        args = {"seed": seed, "results_dir": f"/there/{seed}", "exp_name": f"run {seed}"}
        summary(tmp_path / "exps" / f"adamw_s{seed}", [9.0, 3.5 + seed / 10], **args)
        summary(tmp_path / "exps" / f"lion-seed{seed}-x", [9.0, 3.75 + seed / 4], opt="lion", **args)
    summary(tmp_path / "exps" / "adamw_lr_s0", [9.0, 3.4], lr=1e-3)
    summary(tmp_path / "exps" / "adamw_again", [9.0, 3.45])  # the same seed once more: no second seed
    import_summaries(tmp_path / "exps", tmp_path / "out")
    summary(tmp_path / "more" / "adamw_s2", [9.0, 3.9], seed=2)
    import_summaries(tmp_path / "more", tmp_path / "out")
    rows = {row.method.label: row for row in headline(read_study(tmp_path / "out" / WORKLOAD))}
    assert {label: row.losses for label, row in rows.items()} == {
        "adamw_lr": {0: 3.4},
        "adamw_again": {0: 3.45},
        "adamw": {0: 3.5, 1: 3.6, 2: 3.9},
        "lion-x": {0: 3.75, 1: 4.0},
    }
    assert rows["lion-x"].comparison is not None
    assert rows["lion-x"].comparison.n == 2


def test_another_run_of_the_same_name_is_kept(tmp_path: Path) -> None:
    for folder, lr in (("a", 1e-3), ("b", 2e-3), ("c", 3e-3)):
        summary(tmp_path / folder / "x" / "adamw", [9.0, 3.5], lr=lr)
        made = import_summaries(tmp_path / folder, tmp_path / "out")
    assert made == {WORKLOAD: ["adamw", "x-adamw", "adamw-2"]}
    assert sorted(m.best_lr for m in read_study(tmp_path / "out" / WORKLOAD).methods) == [1e-3, 2e-3, 3e-3]


def test_periods_become_options_and_names(tmp_path: Path) -> None:
    for name, opt, period in (("a", "lion_muon", 2), ("b", "lion_muon", 10_000_000), ("c", "signmuon", 10_000_000)):
        summary(tmp_path / "exps" / name, [9.0, 3.5], opt=opt, muon_every_k=period)
    import_summaries(tmp_path / "exps", tmp_path / "out")
    methods = {m.label: (m.name, m.options) for m in read_study(tmp_path / "out" / WORKLOAD).methods}
    assert methods == {"a": ("lionmuon", {"period": 2}), "b": ("lion", {}), "c": ("signum", {})}


def test_a_study_of_ours_is_not_written_over(tmp_path: Path) -> None:
    summary(tmp_path / "exps" / "adamw", [9.0, 3.5])
    summary(tmp_path / "exps" / "small", [9.0, 3.5], iterations=10)
    ours = tmp_path / "out" / WORKLOAD / "study.json"
    ours.parent.mkdir(parents=True)
    ours.write_text('{"tier": "CPU proxy"}')
    with pytest.raises(UserError, match="is there and is not of imported runs"):
        import_summaries(tmp_path / "exps", tmp_path / "out")
    assert ours.read_text() == '{"tier": "CPU proxy"}'
    assert [path.name for path in (tmp_path / "out").iterdir()] == [WORKLOAD]
    ours.unlink()
    run = ours.parent / "runs" / "adamw-lr1-s1-aaaa"
    run.mkdir(parents=True)
    (run / "config.json").write_text("{}")
    with pytest.raises(UserError, match="is not of imported runs"):
        import_summaries(tmp_path / "exps", tmp_path / "out")


def test_runs_of_different_workloads_are_not_mixed(tmp_path: Path) -> None:
    summary(tmp_path / "a" / "adamw", [9.0, 3.5])
    summary(tmp_path / "b" / "lion", [9.0, 3.5], opt="lion", batch_size=64)
    import_summaries(tmp_path / "a", tmp_path / "out")
    with pytest.raises(UserError, match="not comparable: batch_size is 64 in adamw and 128 in lion"):
        import_summaries(tmp_path / "b", tmp_path / "out")
    assert len(read_study(tmp_path / "out" / WORKLOAD).runs) == 1


def test_names_of_data_stay_inside_the_folder(tmp_path: Path) -> None:
    summary(tmp_path / "exps" / "adamw", [9.0, 3.5], dataset="../../up/<b>")
    (name,) = import_summaries(tmp_path / "exps", tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").iterdir()] == [name]
    assert name == "up-b--base-d768-64000"


def test_an_import_that_was_killed_is_finished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from steepest.lab import runs

    for name in ("adamw", "lion"):
        summary(tmp_path / "exps" / name, [9.0, 3.5], opt=name)
    write_json, left = runs.write_json, [5]

    def killed(path: Path, value: Any) -> None:
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt
        write_json(path, value)

    for files in range(9):
        left[0] = files
        monkeypatch.setattr(runs, "write_json", killed)
        with pytest.raises(KeyboardInterrupt):
            import_summaries(tmp_path / "exps", tmp_path / f"out{files}")
        monkeypatch.setattr(runs, "write_json", write_json)
        import_summaries(tmp_path / "exps", tmp_path / f"out{files}")
        study = read_study(tmp_path / f"out{files}" / WORKLOAD)
        assert {row.method.label: row.losses for row in headline(study)} == {"adamw": {0: 3.5}, "lion": {0: 3.5}}


def ours(folder: Path) -> Path:
    """A small finished study of our own."""
    for method, label, loss in (("adamw", "AdamW", 4.0), ("lion", "Lion", 4.1)):
        for seed in (1, 2):
            run = folder / "runs" / f"{method}-s{seed}"
            run.mkdir(parents=True)
            config = {"method": {"name": method, "label": label, "lr": 1e-3}, "seed": seed, "purpose": "final"}
            (run / "config.json").write_text(json.dumps(config))
            rows = [{"step": s, "tokens": 8 * s, "seconds": s, "loss": loss + (10 - s) / 10} for s in (0, 5, 10)]
            (run / "evals.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
            (run / "final.json").write_text(json.dumps({"state": "done", "step": 10, "loss": loss + seed / 100}))
    methods = [{"name": "adamw", "label": "AdamW"}, {"name": "lion", "label": "Lion"}]
    study = {"name": "ours", "baseline": "adamw", "methods": methods, "seeds": [1, 2], "tier": "CPU proxy"}
    study |= {"workload": {"model": "tiny", "data": "news-wiki", "steps": 10, "tokens_per_step": 8}}
    (folder / "study.json").write_text(json.dumps(study))
    return folder


def test_imported_runs_are_drawn_beside_ours(tmp_path: Path) -> None:
    own = ours(tmp_path / "ours")
    for seed in (0, 1):
        summary(tmp_path / "exps" / f"adamw_s{seed}", [9.0, 4.0, 3.5], seed=seed)
    summary(tmp_path / "exps" / "<b>muon", [9.0, 4.0, 3.4], opt="muon")
    summary(tmp_path / "exps" / "lost", [9.0, 4.0, float("nan")], opt="lion")
    import_summaries(tmp_path / "exps", tmp_path / "out")
    theirs = tmp_path / "out" / WORKLOAD
    assert main(["report", str(own), "--beside", str(theirs)]) == 0
    page = (own / "report.html").read_text(encoding="utf-8")
    charts = json.loads(page.split('id="charts"', 1)[1].split(">", 1)[1].split("</script>", 1)[0])
    drawn = {trace["name"]: trace for trace in charts["imported"]["data"]}
    assert set(drawn) == {"AdamW", "Lion", "adamw (theirs)", "&lt;b&gt;muon (theirs)"}
    assert {name: trace["line"]["dash"] == "dash" for name, trace in drawn.items()} == {
        name: "theirs" in name for name in drawn
    }
    assert drawn["AdamW"]["line"]["color"] == drawn["adamw (theirs)"]["line"]["color"]
    assert drawn["adamw (theirs)"]["meta"]["x"]["part"] == [0.0, pytest.approx(500 / 640, rel=1e-4), 100.0]
    assert drawn["adamw (theirs)"]["meta"]["x"]["tokens"][-1] == pytest.approx(64_000 * 64 * 512, rel=1e-5)
    section = page.split('<section id="published">', 1)[1].split("</section>", 1)[0]
    assert f"Imported: {WORKLOAD}" in section
    assert "tokens 2.1 B, here 80" in section
    assert "3.5000" in section
    assert (own / "figures" / "imported.svg").exists()
    assert (own / "tables" / f"published-imported-{WORKLOAD}.csv").exists()
    assert "Imported" not in (write(own, figures=False)).read_text(encoding="utf-8")


def test_a_table_without_a_common_method_is_no_file(tmp_path: Path) -> None:
    own = ours(tmp_path / "ours")
    summary(tmp_path / "exps" / "muon_s0", [9.0, 4.0, 3.4], opt="muon")
    import_summaries(tmp_path / "exps", tmp_path / "out")
    page = write(own, figures=False, imported=[tmp_path / "out" / WORKLOAD])
    assert "No method is in both." in page.read_text(encoding="utf-8")
    assert (own / "tables" / "headline.csv").exists()
    assert not list((own / "tables").glob("published-*"))


def test_what_cannot_stand_beside_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    own = ours(tmp_path / "ours")
    assert main(["report", str(own), "--beside", str(own)]) == 2
    assert "is not of imported runs" in capsys.readouterr().err
    assert not (own / "report.html").exists()
    summary(tmp_path / "exps" / "adamw_s0", [9.0, 3.5])
    import_summaries(tmp_path / "exps", tmp_path / "out")
    theirs = str(tmp_path / "out" / WORKLOAD)
    assert main(["report", str(own), theirs]) == 2
    assert "report STUDY --beside IMPORTED" in capsys.readouterr().err
    assert main(["report", str(own), theirs, "--beside", theirs]) == 2
    assert "--beside goes with one study" in capsys.readouterr().err
