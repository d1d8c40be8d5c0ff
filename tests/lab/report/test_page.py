"""The page: complete, right, harmless, and needing nothing but itself."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import shutil

import pytest
from fake_study import EVIL, METHODS, PARAMETERS, final_id, write_run, write_study
from pages import Page

from steepest.lab import report
from steepest.lab.results import headline, read_study

MINUS = "\u2212"


@pytest.fixture(scope="module")
def page(clean_report):
    return Page(clean_report / "report.html")


@pytest.fixture(scope="module")
def messy_page(messy_report):
    return Page(messy_report / "report.html")


def losses(folder, method, seeds=(1, 2, 3, 4)):
    runs = [folder / "runs" / final_id(method, seed) for seed in seeds]
    return [json.loads((run / "final.json").read_text())["loss"] for run in runs]


def test_page_is_well_formed(page, messy_page):
    for p in (page, messy_page):
        assert p.errors == []
        assert p.open == []
        ids = [a["id"] for _, a in p.tags if "id" in a]
        assert len(ids) == len(set(ids))
        anchors = [a["href"] for tag, a in p.tags if tag == "a"]
        assert anchors
        assert all(href.removeprefix("#") in ids for href in anchors)


def test_every_section_is_there(page):
    sections = [a["id"] for tag, a in page.tags if tag == "section"]
    assert sections == [
        *("results", "curves", "tuning", "costs", "published", "routing"),
        *("fairness", "workload", "runs", "reproduce", "glossary"),
    ]
    assert set(page.charts) == {
        *("curves", "learning-rates", "basins", "best-of-k"),
        *("final-loss", "differences", "pareto", "state-bytes"),
    }
    drawn = {a["data-chart"] for _, a in page.tags if "data-chart" in a}
    assert drawn == set(page.charts)


def test_headline_table_says_what_the_files_say(page, clean):
    assert [row["Method"]["text"].split()[0] for row in page.headline] == [
        row.method.label for row in headline(read_study(clean))
    ]
    for row in page.headline:
        label = row["Method"]["text"].split()[0]
        method = next(name for name, (shown, *_) in METHODS.items() if shown == label)
        values = losses(clean, method)
        mean = sum(values) / 4
        sd = (sum((v - mean) ** 2 for v in values) / 3) ** 0.5
        loss = row["Validation loss"]
        assert float(loss["data-value"]) == pytest.approx(mean, rel=1e-8)
        assert loss["text"].split() == [f"{mean:.3f}", "±", f"{sd:.3f}"]
        first = json.loads((clean / "runs" / final_id(method, 1) / "final.json").read_text())
        assert row["State, bytes per parameter"]["text"] == f"{first['state_bytes'] / PARAMETERS:.2f}"
        assert float(row["Learning rate"]["text"]) == METHODS[method][2]
        if method != "adamw":
            base = losses(clean, "adamw")
            difference = sum(a - b for a, b in zip(values, base, strict=True)) / 4
            shown = row["Difference to AdamW"]["text"].replace(MINUS, "-")
            assert re.match(r"[+-]\d\.\d{3}", shown).group() == f"{difference:+.3f}"


def test_baseline_edge_and_verdicts_are_marked(page):
    verdicts = {row["Method"]["text"].split()[0]: row["Verdict"]["text"] for row in page.headline}
    assert verdicts["AdamW"] == "baseline"
    assert verdicts["Muon"] == "\u2193 better"
    assert verdicts["Signum"] == "\u2191 worse"
    assert verdicts["Lion"].startswith("not decided")
    assert "open edge" in next(r["Method"]["text"] for r in page.headline if r["Method"]["text"].startswith("Lion "))
    assert page.tags.count(("tr", {"class": "baseline"})) == 1


def test_verdict_paragraph_and_claims(page):
    words = page.words("header")
    assert (
        "On this workload (1.33 M-parameter mini llama on 1.64 M tokens of news-wiki, 4 seeds), Muon reached" in words
    )
    assert "outside the noise" in words
    assert "Tuning is open for Lion" in words
    assert "CPU proxy" in words
    assert "May not be claimed" in words


def test_curves_hold_the_mean_of_the_seeds(page, clean):
    spec = page.charts["curves"]
    trace = next(t for t in spec["data"] if t.get("name") == "Muon" and t["meta"]["only"]["split"] == "validation")
    tables = []
    for seed in (1, 2, 3, 4):
        lines = (clean / "runs" / final_id("muon", seed) / "evals.jsonl").read_text().splitlines()
        tables.append([json.loads(line) for line in lines])
    for i, point in enumerate(zip(*tables, strict=True)):
        assert trace["meta"]["x"]["steps"][i] == point[0]["step"]
        assert trace["meta"]["x"]["tokens"][i] == point[0]["tokens"]
        assert trace["y"][i] == pytest.approx(sum(r["loss"] for r in point) / 4, rel=1e-5)
    splits = spec["layouts"]["split"]
    assert set(splits) == {"validation", "train"}
    assert {note["text"] for note in splits["train"]["annotations"]} == {label for label, *_ in METHODS.values()}


def test_learning_rate_figure_marks_chosen_edge_and_diverged(page):
    spec = page.charts["learning-rates"]
    names = [trace["name"] for trace in spec["data"]]
    assert "Muon: chosen" in names
    assert "Muon: diverged" in names
    assert "Lion: diverged" not in names
    chosen = next(trace for trace in spec["data"] if trace["name"] == "Muon: chosen")
    assert chosen["x"] == [METHODS["muon"][2]]
    assert [n["text"] for n in spec["layout"]["annotations"] if "edge" in n["text"]] == ["Lion (edge)"]


def test_routing_tables_are_folded_and_complete(page):
    words = page.words("routing")
    assert "10 tensors by adamw and 28 tensors by muon" in words
    assert words.count("model.embed_tokens.weight") == len(METHODS)
    assert "1.23e-03" in words


def test_workload_fairness_and_commands(page, clean):
    words = page.words("workload")
    for expected in ("1,328,256", "Tokens a run 1,638,400", "kind cosine, warmup 0.05", "Example CPU", "torch 2.13.0"):
        assert expected in words
    assert page.words("fairness").count("equal") == 2 * 5
    command = json.loads((clean / "study.json").read_text())["command"]
    assert command in page.words("reproduce")
    assert page.words("reproduce").count("steepest train") == 6 * 4 + 6 * 5  # final and tuning runs


def test_no_float_is_printed_in_full(page):
    for section in page.sections:
        shown = re.sub(r"\b[0-9a-f]{32,}\b", "", page.words(section))  # hashes are not floats
        assert not re.search(r"\d\.\d{7,}", shown), section


def test_page_loads_nothing(page):
    plotly = max((code for _, code in page.scripts), key=len)
    rest = page.source.replace(plotly, "")
    assert len(plotly) > 1_000_000
    assert len(rest) < 1_000_000
    assert not re.search(r"https?:|//[a-z0-9.-]+\.[a-z]{2,}/|@import|url\(", rest)
    for tag, attributes in page.tags:
        assert "src" not in attributes, tag
        assert tag not in ("link", "iframe", "object", "embed", "base", "form"), tag
        assert attributes.get("href", "#").startswith("#"), attributes
        assert not any(name.startswith("on") for name in attributes), attributes


def test_policy_admits_exactly_the_scripts_of_the_page(page):
    (policy,) = [a["content"] for tag, a in page.tags if tag == "meta" and a.get("http-equiv")]
    rules = {rule.split()[0]: rule.split()[1:] for rule in policy.split("; ")}
    code = [code for attributes, code in page.scripts if "type" not in attributes]
    digests = [f"'sha256-{base64.b64encode(hashlib.sha256(c.encode()).digest()).decode()}'" for c in code]
    assert rules["default-src"] == ["'none'"]
    assert rules["script-src"] == digests
    assert not any("http" in source for sources in rules.values() for source in sources)


def test_a_harmful_label_is_only_text(messy_page):
    assert EVIL in messy_page.words("header")
    assert EVIL in next(r["Method"]["text"] for r in messy_page.headline if "alert" in r["Method"]["text"])
    assert len(messy_page.scripts) == 3
    assert not any("alert('x')" in code for attributes, code in messy_page.scripts if "type" not in attributes)
    # In the figures plotly would read HTML: there the label is escaped once more.
    data = json.dumps(messy_page.charts)
    assert "&lt;script&gt;" in data
    assert "<script" not in data


def test_half_finished_study_is_shown_as_it_is(messy_page):
    header = messy_page.words("header")
    assert "Final runs that diverged: 1 of 4 of LionMuon." in header
    assert "4 of 4 of SignMuon" in header
    badges = {row["Method"]["text"].split()[0]: " ".join(row["Method"]["text"].split()) for row in messy_page.headline}
    assert "1 of 4 diverged" in badges["LionMuon"]
    assert "1 of 4 unfinished" in badges["Muon"]
    last = messy_page.headline[-1]
    assert last["Verdict"]["text"] == "unfinished"
    assert last["Validation loss"]["data-value"] == ""
    single = [t["name"] for t in messy_page.charts["curves"]["data"] if t.get("line", {}).get("dash") == "dot"]
    assert {"LionMuon (diverged)", "Muon (interrupted)", "AdamW (interrupted)", "SignMuon (running)"} <= set(single)
    runs = messy_page.words("runs")
    assert "54 runs" in runs
    assert "diverged" in runs


@pytest.mark.usefixtures("no_figures")
def test_unfair_studies_are_called_so(clean, tmp_path):
    folder = shutil.copytree(clean, tmp_path / "copy", ignore=shutil.ignore_patterns("figures", "report.html"))
    path = folder / "runs" / final_id("lion", 1) / "final.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "init_hash": "other"}))
    page = Page(report.write(folder))
    assert "Not a fair comparison" in page.words("header")
    assert "different" in page.words("fairness")


@pytest.mark.usefixtures("no_figures")
def test_one_seed_decides_nothing(tmp_path):
    page = Page(report.write(write_study(tmp_path, ("adamw", "muon"), seeds=(1,))))
    assert "With one seed per method the noise is unknown" in page.words("header")
    assert "outside the noise" not in page.words("header")
    (muon,) = [row for row in page.headline if row["Method"]["text"].startswith("Muon")]
    assert muon["Verdict"]["text"] == "not decided needs at least 1 more seed"
    assert "±" not in muon["Validation loss"]["text"]
    assert "NaN" not in page.words("results")
    assert "nan" not in page.words("results")


@pytest.mark.usefixtures("no_figures")
def test_differences_within_the_noise_have_no_winner(tmp_path):
    write_study(tmp_path, ("adamw", "signum", "lion"))
    header = Page(report.write(tmp_path)).words("header")
    assert "AdamW reached the lowest validation loss" in header
    for method in ("signum", "lion"):  # give both exactly AdamW's losses, but for noise
        for seed, noise in zip((1, 2, 3, 4), (0.01, -0.012, 0.008, -0.011), strict=True):
            path = tmp_path / "runs" / final_id(method, seed) / "final.json"
            (loss,) = losses(tmp_path, "adamw", (seed,))
            path.write_text(json.dumps({**json.loads(path.read_text()), "loss": loss + noise}))
    header = Page(report.write(tmp_path)).words("header")
    assert "is within the noise, so no single winner is declared." in header
    assert "not decided: " in header


@pytest.mark.usefixtures("no_figures")
def test_a_lone_run(tmp_path):
    final = write_run(tmp_path / "only-run", "muon", 1e-2, 3)
    page = Page(report.write(tmp_path / "only-run"))
    assert f"muon reached a validation loss of {final['loss']:.3f} nats per token" in page.words("header")
    assert list(page.headline[0]) == [
        *("Method", "Learning rate", "Validation loss", "Perplexity", "Bits per byte"),
        *("State, bytes per parameter", "Tokens per second"),
    ]
    assert set(page.charts) >= {"curves", "state-bytes"}
    assert "differences" not in page.charts
    assert "fairness" not in page.sections
    assert final["command"] in page.words("reproduce")


@pytest.mark.usefixtures("no_figures")
def test_an_unfinished_lone_run(tmp_path):
    write_run(tmp_path, "muon", 1e-2, 3, stop=100)
    page = Page(report.write(tmp_path))
    assert "No final run has finished yet" in page.words("header")
    assert "1 interrupted" in page.words("header")
    assert set(page.charts) == {"curves", "state-bytes"}


def test_a_study_with_nothing_in_it_yet(tmp_path):
    write_study(tmp_path, ("adamw", "muon"))
    shutil.rmtree(tmp_path / "runs")
    page = Page(report.write(tmp_path))
    assert page.errors == []
    assert "none started" in page.words("header")


@pytest.mark.usefixtures("no_figures")
def test_the_page_goes_where_it_is_told(clean, tmp_path):
    target = tmp_path / "new" / "page.html"
    assert report.write(clean, target) == target
    assert Page(target).headline
    assert report.write(clean, tmp_path) == tmp_path / "report.html"


def contents(folder):
    files = [*folder.glob("figures/*"), *folder.glob("tables/*"), folder / "report.html"]
    return {path.name: path.read_bytes() for path in files}


def test_the_same_study_gives_the_same_bytes(clean_report, tmp_path):
    first = {
        p.name: p.read_bytes()
        for p in [*clean_report.glob("figures/*"), *clean_report.glob("tables/*"), clean_report / "report.html"]
    }
    report.write(clean_report)
    second = {
        p.name: p.read_bytes()
        for p in [*clean_report.glob("figures/*"), *clean_report.glob("tables/*"), clean_report / "report.html"]
    }
    assert first.keys() == second.keys()
    assert [name for name in first if first[name] != second[name]] == []
