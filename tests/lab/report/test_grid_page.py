"""The page of a study with several axes, accounting and diagnostics."""

from __future__ import annotations

import csv
import json
import math
import shutil
from dataclasses import replace

import pytest
from fake_study import EVIL
from grid_study import ARMS, MODEL_SECONDS, Arm, write_grid_study
from jinja2 import Environment, FileSystemLoader
from pages import Page

from steepest.lab import report
from steepest.lab.report import page as page_module
from steepest.theory.period import TradeOff


@pytest.fixture(scope="module")
def page(grid_report):
    return Page(grid_report / "report.html")


def test_all_figures_and_sections_are_there(page):
    assert page.errors == []
    assert set(page.charts) == {
        *("curves", "final-loss", "differences", "learning-rates", "basins", "best-of-k", "heat-maps", "pareto"),
        *("state-bytes", "diagnostics"),
    }
    sections = [a["id"] for tag, a in page.tags if tag == "section"]
    assert {"variants", "diagnostics", "published", "tuning", "costs"} <= set(sections)
    ids = [a["id"] for _, a in page.tags if "id" in a]
    assert len(ids) == len(set(ids))
    assert all(a["href"].removeprefix("#") in ids for tag, a in page.tags if tag == "a")


def test_every_table_has_scoped_headers_and_every_scrolling_region_a_name(page):
    assert all(a.get("scope") in ("col", "row") for tag, a in page.tags if tag == "th")
    regions = [a for _, a in page.tags if "scroll" in (a.get("class") or "")]
    assert regions
    assert all(a.get("tabindex") == "0" and a.get("aria-label") for a in regions)


def test_every_figure_has_words_a_caption_and_its_data(page):
    figures = [a for _, a in page.tags if "data-chart" in a]
    captions = {a["id"] for tag, a in page.tags if tag == "figcaption"}
    for figure in figures:
        assert len(figure["aria-label"]) > 20
        assert figure["aria-describedby"] in captions
    tables = {a["id"] for tag, a in page.tags if tag == "table" and "id" in a}
    assert {"table-seeds", "table-tests", "table-curves", "table-trials", "table-tuning", "table-best-of-k"} <= tables
    assert {"table-costs", "table-state-bytes", "table-diagnostics", "table-targets", "table-variants"} <= tables
    assert page.source.count("Its data:") + page.source.count("Data of this figure") == len(figures)


def test_the_first_sentence_has_its_uncertainty(page):
    assert "against AdamW (95% interval \u2212" in page.words("header")
    assert "nats of noise" in page.words("header")
    assert "nats detectable" in page.words("header")


def test_badges_name_the_open_axis_and_the_missing_seeds(page):
    rows = {" ".join(row["Method"]["text"].split()): row for row in page.headline}
    assert "LionMuon no decay open edge: sign lr ratio" in rows
    assert "Muon open edge" in rows
    assert "needs" in rows["Lion"]["Verdict"]["text"]
    assert rows["LionMuon"]["Learning rate"]["text"] == "0.01 sign lr ratio 0.1, period 2"


def test_unequal_trials_are_said(page):
    assert "different numbers of tuning trials (4 to 24" in page.words("header")
    assert "AdamW: 4, Lion: 4, Muon: 4, LionMuon: 24" in page.words("tuning")
    assert "They are not equal" in page.words("tuning")


def test_curves_switch_to_flops_and_isolated_seconds(page):
    spec = page.charts["curves"]
    axis = spec["controls"][0]
    assert [value for value, _ in axis["options"]] == ["steps", "tokens", "flops", "seconds"]
    trace = next(t for t in spec["data"] if t.get("name") == "Muon" and t["meta"]["only"]["split"] == "validation")
    steps, flops, seconds = (trace["meta"]["x"][a] for a in ("steps", "flops", "seconds"))
    muon = ARMS[-1]
    assert flops[-1] == pytest.approx(steps[-1] * (6e6 * 4096 + muon.flops), rel=1e-5)
    minutes = steps[-1] * (MODEL_SECONDS + muon.seconds) / 60
    assert seconds[-1] == pytest.approx(minutes, rel=1e-5)
    assert "minutes" in spec["layouts"]["axis"]["seconds"]["xaxis"]["title"]["text"]
    assert "timed apart" in spec["layouts"]["axis"]["seconds"]["xaxis"]["title"]["text"]


def test_how_far_a_step_moves_the_weights_is_a_table(tmp_path, no_figures):
    write_grid_study(tmp_path, ARMS[:2], seeds=(1, 2), diagnostics=False)
    account = json.loads((tmp_path / "accounting.json").read_text())
    account["methods"]["AdamW"]["update_rms"] = {"mlp": 1.25e-3, "embedding": 4e-3}
    account["methods"]["Lion"]["update_rms"] = {"mlp": 2.5e-4}
    (tmp_path / "accounting.json").write_text(json.dumps(account))
    page = Page(report.write(tmp_path))
    assert "table-update-rms" in [a.get("id") for _, a in page.tags]
    assert "How far a step moves the weights" in page.words("costs")
    assert "Learning rates of two methods cannot be compared, these numbers can" in page.words("costs")
    with (tmp_path / "tables" / "update-rms.csv").open() as file:
        rows = {row["Method"]: row for row in csv.DictReader(file)}
    assert rows["AdamW"] == {"Method": "AdamW", "embedding": "0.004", "mlp": "0.00125"}
    assert rows["Lion"] == {"Method": "Lion", "embedding": "", "mlp": "0.00025"}
    for entry in account["methods"].values():
        entry["update_rms"] = None
    (tmp_path / "accounting.json").write_text(json.dumps(account))
    assert "update-rms" not in report.write(tmp_path).read_text()


def log(run, **measured):
    """Add a quantity to the diagnostics of a run."""
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    for row in rows:
        if "diagnostics" in row:
            row["diagnostics"] |= measured
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_logged_norm_ratios_become_phi_of_the_period(tmp_path, no_figures):
    write_grid_study(tmp_path, ARMS[:2], seeds=(1, 2))
    assert "table-period" not in report.write(tmp_path).read_text()
    measured = {"alpha": 67.1, "rho_nuc": 13.6, "rho_1": 894.0, "l_2": 0.789, "l_inf": 857.0}
    for run in (tmp_path / "runs").glob("adamw-*"):
        log(run, **measured)
    for run in (tmp_path / "runs").glob("lion-*"):
        log(run, **measured | {"l_2": 0.0})  # there is no ratio to it
    page = Page(report.write(tmp_path))
    words = page.words("diagnostics")
    assert "A diagnostic, and no choice of a period." in words
    assert "It cannot pick a period; runs can." in words
    with (tmp_path / "tables" / "period.csv").open() as file:
        (row,) = csv.DictReader(file)
    trade = TradeOff.of(**measured)
    assert float(row["phi(2)"]) == pytest.approx(trade.phi(2), rel=1e-5)
    assert float(row["phi(inf)"]) == pytest.approx(trade.phi(math.inf), rel=1e-5)
    assert (row["Method"], row["phi(1)"], row["Cheaper"]) == ("AdamW", "1", "Lion")


def test_texts_of_buttons_are_escaped_once(tmp_path, no_figures):
    label = "<i>L</i> & M"
    arms = (ARMS[0], replace(ARMS[2], label=label))
    write_grid_study(tmp_path, arms, seeds=(1, 2))
    for run in (tmp_path / "runs").iterdir():
        log(run, saturation={"<b>r</b>": 0.5})
    page = Page(report.write(tmp_path))
    assert page.errors == []
    assert ">&lt;b&gt;r&lt;/b&gt;</button>" in page.source
    assert ">&lt;i&gt;L&lt;/i&gt; &amp; M: learning rate, sign lr ratio</button>" in page.source
    environment = Environment(loader=FileSystemLoader(page_module._TEMPLATES), autoescape=True)
    template = '{% import "parts.html.j2" as parts %}{% call parts.figure(charts, "f", "alt") %}words{% endcall %}'
    charts = {"f": {"controls": [{"name": "n", "label": "l", "options": [["v", "<script>x</script>"]]}]}}
    assert "<script>" not in environment.from_string(template).render(charts=charts)


def test_dominated_points_are_grey_and_hover_has_the_command(page):
    data = [t for t in page.charts["pareto"]["data"] if t["mode"] == "markers"]
    flops = {t["hovertemplate"].split("</b>")[0][3:]: t for t in data if t["meta"]["only"]["cost"] == "flops"}
    assert flops["Muon"]["marker"]["color"] == "@card"
    assert flops["Muon"]["marker"]["line"]["color"] == "@muted"
    assert "another method is better on both" in flops["Muon"]["hovertemplate"]
    assert flops["LionMuon"]["marker"]["color"].startswith("@s")
    assert "steepest train --optimizer lionmuon" in flops["LionMuon"]["hovertemplate"].replace("<br>", " ")
    assert "sign lr ratio 0.1, period 2" in flops["LionMuon"]["hovertemplate"]


def test_heat_maps_mark_winner_edge_and_diverged(page):
    spec = page.charts["heat-maps"]
    views = spec["layouts"]["surface"]
    first, last = views["0"], views["3"]
    words = [note["text"] for note in first["annotations"]]
    assert sum("\u2605" in word for word in words) == 1
    assert sum("diverged" in word for word in words) == 3
    assert [s["type"] for s in first["shapes"]] == ["rect"]
    assert [s["type"] for s in last["shapes"]] == ["rect", "line"]
    assert last["yaxis"]["title"]["text"] == "sign lr ratio (open edge)"
    heat = next(t for t in spec["data"] if t["meta"]["only"]["surface"] == "0")
    assert heat["z"][0][3] is None


def test_every_command_is_there_and_no_name_ends_its_comment(tmp_path, no_figures):
    evil = Arm("muon", "x\n$(touch /tmp/pwned); `id` " + EVIL, 4.5, {"lr": (1e-2, 2e-2)}, {"lr": 1e-2})
    write_grid_study(tmp_path, (ARMS[0], evil), seeds=(1, 2), name="a; rm -rf / && " + EVIL)
    page = Page(report.write(tmp_path))
    assert page.errors == []
    assert len(page.scripts) == 3
    assert page.words("reproduce").count("steepest train") == 2 * 2 + 4 + 2
    lines = [line for line in page.sections["reproduce"].splitlines() if "pwned" in line]
    assert lines
    assert all(line.strip().startswith("#") for line in lines)
    assert EVIL.split("<")[0] not in ("", None) or "<script>alert" not in page.source


def test_configuration_versions_and_tier_are_in_the_appendix(page):
    assert "torch" in page.words("workload")
    assert '"seeds": [' in page.sections["reproduce"]
    assert "steepest bench study runs/x" in page.words("reproduce")
    assert "CPU proxy" in page.words("header")


@pytest.mark.usefixtures("no_figures")
def test_failures_are_shown(grid, tmp_path):
    folder = shutil.copytree(grid, tmp_path / "copy", ignore=shutil.ignore_patterns("figures", "tables"))
    raw = json.loads((folder / "study.json").read_text())
    raw["failures"] = {"muon-lr1-s0-abc": "Traceback ...\nValueError: <b>no</b>"}
    (folder / "study.json").write_text(json.dumps(raw))
    page = Page(report.write(folder))
    assert "1 run could not be carried out" in page.words("header")
    assert "ValueError: <b>no</b>" in page.words("header")


@pytest.mark.usefixtures("no_figures")
def test_a_page_of_500_runs_is_small(tmp_path):
    rates = [1e-3 * 2**i for i in range(5)]
    ratios = (0.05, 0.1, 0.2, 0.4)
    best = {"lr": 4e-3, "ratio": 0.1}
    arms = [Arm(f"m{i}", f"Method {i}", 4.5 + i / 50, {"lr": rates, "ratio": ratios}, best) for i in range(19)]
    write_grid_study(tmp_path, [ARMS[0], *arms], lines=80)
    page = report.write(tmp_path)
    assert len(list((tmp_path / "runs").iterdir())) == 4 + 19 * 20 + 20 * 5
    assert page.stat().st_size < 10e6


@pytest.mark.usefixtures("no_figures")
def test_a_sampled_search_is_drawn_as_dots(tmp_path):
    import numpy as np
    from grid_study import run_id, write_grid_run

    write_grid_study(tmp_path, (ARMS[0],), seeds=(1, 2), search="random")
    raw = json.loads((tmp_path / "study.json").read_text())
    arm = Arm("lion", "Lion", 4.6, {"lr": (), "decay": ()}, {"lr": 1e-2, "decay": 0.1}, diverges_above=5e-2)
    random = np.random.default_rng(0)
    tuning = []
    for _ in range(20):
        point = {"lr": float(10 ** random.uniform(-3, -1)), "decay": float(10 ** random.uniform(-2, 0))}
        at = tmp_path / "runs" / run_id(arm, point, 0)
        final = write_grid_run(at, arm, point, 0, purpose="tune")
        tuning.append({"point": point, "run_id": at.name, "loss": final["loss"], "state": final["state"]})
    best = min((t for t in tuning if t["loss"]), key=lambda t: t["loss"])["point"]
    ranges = {name: {"low": 1e-3, "high": 1.0, "log": True} for name in ("lr", "decay")}
    entry = {"name": "lion", "label": "Lion", "search": "random", "axes": ranges, "tuning": tuning, "best": best}
    raw["methods"].append(entry)
    (tmp_path / "study.json").write_text(json.dumps(raw))
    page = Page(report.write(tmp_path))
    spec = page.charts["heat-maps"]
    assert {t["type"] for t in spec["data"]} == {"scatter"}
    assert spec["layouts"]["surface"]["0"]["xaxis"]["type"] == "log"
    dots, crosses, ring = spec["data"]
    assert len(dots["x"]) + len(crosses["x"]) == 20
    assert len(crosses["x"]) > 0
    assert ring["x"] == [best["lr"]]
    assert "AdamW" in str(page.charts["basins"])
    assert "Lion" not in str(page.charts["basins"])
