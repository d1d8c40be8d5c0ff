from __future__ import annotations

import itertools
import json
import math
import re
import shutil

import numpy as np
import pytest
from fake_study import EVIL, METHODS, final_id, routing, write_run, write_study
from pages import Page

from steepest.lab import report
from steepest.lab.results import headline, read_study
from steepest.lab.series import (
    MARKERS,
    PALETTE,
    bytes_by_role,
    curves,
    front,
    interval_window,
    log_ticks,
    ordered,
    spread,
    styles,
    window,
)

NAMES = {
    *("loss_vs_steps", "loss_vs_tokens", "loss_vs_seconds", "train_loss_vs_steps"),
    *("learning_rates", "basins", "best_of_k", "final_loss"),
    *("pareto_state", "pareto_seconds", "state_bytes_by_role"),
}


@pytest.mark.parametrize("study", ["clean_report", "messy_report"])
def test_every_figure_is_written_twice(study, request):
    folder = request.getfixturevalue(study) / "figures"
    assert {p.name for p in folder.iterdir()} == {f"{n}.{kind}" for n in NAMES for kind in ("svg", "pdf")}
    for path in folder.glob("*.svg"):
        assert path.read_text().count("<path") > 20, path  # something was drawn
    for path in folder.glob("*.pdf"):
        assert path.read_bytes().startswith(b"%PDF"), path


def test_svgs_fetch_nothing_and_show_labels_as_text(messy_report):
    for path in (messy_report / "figures").glob("*.svg"):
        source = path.read_text()
        assert not re.search(r'(href|src)="(?!#)', source), path
        assert "<script" not in source


def test_a_dollar_in_a_label_is_no_mathematics(tmp_path):
    write_study(tmp_path, ("adamw", "muon"), seeds=(1, 2), labels={"muon": r"$\frac{1}{$ & <b>"})
    assert report.write(tmp_path).exists()


def test_plotly_knows_every_property(clean_report, messy_report, grid_report):
    import plotly.graph_objects as go

    def resolved(value, key=""):
        if isinstance(value, dict):
            return {k: resolved(v, k) for k, v in value.items()}
        if isinstance(value, list):
            return [resolved(v, key) for v in value]
        return (
            "#123456"
            if isinstance(value, str) and value.startswith("@") and key.endswith(("color", "colorscale"))
            else value
        )

    for folder in (clean_report, messy_report, grid_report):
        for name, spec in Page(folder / "report.html").charts.items():
            known = resolved(spec)
            assert go.Figure(data=known["data"], layout=known["layout"]).data, name
            for choices in known.get("layouts", {}).values():
                for patch in choices.values():
                    go.Layout(patch)
            assert "@" not in str(known), name  # every colour is under a key the script resolves


def test_six_methods_have_colours_of_their_own_that_never_change(clean, tmp_path):
    of_six = styles(read_study(clean))
    assert len({s.index for s in of_six.values()}) == 6
    few = styles(read_study(write_study(tmp_path, ("muon", "adamw"), seeds=(1,))))
    assert few == {label: of_six[label] for label in ("AdamW", "Muon")}
    assert len(MARKERS) == len(PALETTE)
    assert len(set(itertools.chain(*PALETTE))) == 2 * len(PALETTE)


def _oklab(rgb):
    a = [[0.4122214708, 0.5363325363, 0.0514459929], [0.2119034982, 0.6806995451, 0.1073969566]]
    a += [[0.0883024619, 0.2817188376, 0.6299787005]]
    b = [[0.2104542553, 0.7936177850, -0.0040720468], [1.9779984951, -2.4285922050, 0.4505937099]]
    b += [[0.0259040371, 0.7827717662, -0.8086757660]]
    return np.array(b) @ np.cbrt(np.clip(np.array(a) @ rgb, 0, None))


DEUTERANOPE = [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]]
PROTANOPE = [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]]
TRITANOPE = [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]]


@pytest.mark.parametrize("side", [0, 1])
@pytest.mark.parametrize("eye", [np.eye(3), DEUTERANOPE, PROTANOPE, TRITANOPE])
def test_colours_differ_for_every_eye(side, eye):
    def linear(color):
        c = np.array([int(color[i : i + 2], 16) for i in (1, 3, 5)]) / 255
        return np.where(c <= 0.04045, c / 12.92, ((c + 0.055) / 1.055) ** 2.4)

    seen = [_oklab(np.clip(np.array(eye) @ linear(pair[side]), 0, 1)) for pair in PALETTE]
    nearest = min(float(np.linalg.norm(a - b)) for a, b in itertools.combinations(seen[:6], 2))
    assert nearest > 0.10
    assert min(float(np.linalg.norm(a - b)) for a, b in itertools.combinations(seen, 2)) > 0.05


def test_order_is_fixed_whatever_the_study_says(tmp_path):
    study = read_study(write_study(tmp_path, ("lion_muon", "muon", "adamw"), seeds=(1,)))
    assert [m.name for m in study.methods] == ["lion_muon", "muon", "adamw"]
    assert [m.name for m in ordered(study.methods)] == ["adamw", "muon", "lion_muon"]


def test_curves_are_means_with_ranges_and_unfinished_runs_stand_alone(messy):
    by_label = {}
    for curve in curves(read_study(messy), "validation"):
        by_label.setdefault(curve.label, []).append(curve)
    muon = {c.state: c for c in by_label["Muon"]}
    assert muon["done"].seeds == 3
    assert muon["interrupted"].steps[-1] == 180
    assert all(lo <= m <= hi for lo, m, hi in zip(muon["done"].low, muon["done"].mean, muon["done"].high, strict=True))
    assert [c.state for c in by_label["SignMuon"]] == ["running"] * 4
    low, high = window([c for group in by_label.values() for c in group])
    assert high < 6.5  # neither the start nor the run that diverged sets the height
    assert low < min(muon["done"].low)


def test_training_curves_are_thinned_not_changed(tmp_path):
    write_run(tmp_path, "muon", 1e-2, 1, steps=2000)
    study = read_study(tmp_path)
    (curve,) = curves(study, "train")
    raw = [r["loss"] for r in study.runs[0].metrics]
    assert len(raw) == 1000
    assert len(curve.mean) <= 150
    assert np.mean(curve.mean) == pytest.approx(np.mean(raw), abs=0.02)


def test_state_bytes_by_role_are_those_of_the_routing_table(clean):
    table = bytes_by_role(read_study(clean))
    assert list(table) == [label for label, *_ in METHODS.values()]
    for method, (label, *_) in METHODS.items():
        assert sum(table[label].values()) == sum(row["state_bytes"] for row in routing(method))
    assert table["Muon"]["embedding"] == 2 * table["Lion"]["embedding"]


def test_front_keeps_what_nothing_beats():
    points = [(4.0, 4.8), (8.0, 4.7), (5.5, 4.5), (5.5, 4.4), (6.0, 4.4)]
    assert front(points) == [0, 3]


def test_labels_are_moved_apart_and_no_more():
    assert spread([0.0, 10.0, 20.0], 5.0) == [0.0, 10.0, 20.0]
    placed = spread([1.0, 1.0, 1.1, 9.0], 1.0)
    assert min(b - a for a, b in itertools.pairwise(sorted(placed))) >= 1.0 - 1e-9
    assert np.mean(placed[:3]) == pytest.approx(np.mean([1.0, 1.0, 1.1]))
    assert placed[3] == 9.0
    assert placed.index(min(placed)) in (0, 1)
    assert spread([], 1.0) == []


def test_wide_intervals_do_not_flatten_the_figure():
    low, high = interval_window([4.4, 4.8], [-100.0, 4.3, math.nan])
    assert 3.9 < low < 4.4
    assert 4.8 < high < 4.9
    low, high = interval_window([-0.2, 0.1], [-0.25, 0.15], 0.0)
    assert low < -0.25
    assert high > 0.15


def test_ticks_lie_in_the_grid():
    assert log_ticks(1e-3, 1e-2) == pytest.approx([1e-3, 2e-3, 5e-3, 1e-2])
    assert all(9e-5 < t < 1.1 for t in log_ticks(1e-4, 1.0))


def test_a_method_whose_every_rate_diverged(tmp_path):
    write_study(tmp_path, ("adamw", "muon"), seeds=(1, 2))
    path = tmp_path / "study.json"
    study = json.loads(path.read_text())
    muon = next(m for m in study["methods"] if m["name"] == "muon")
    muon["tuning"] = [{**t, "loss": None, "state": "diverged"} for t in muon["tuning"]]
    muon["best_lr"], muon["edge"] = None, True
    path.write_text(json.dumps(study))
    for seed in (1, 2):
        shutil.rmtree(tmp_path / "runs" / final_id("muon", seed))
    page = Page(report.write(tmp_path))
    assert page.headline[-1]["Method"]["text"] == "Muon"
    assert page.headline[-1]["Verdict"]["text"] == "diverged"
    assert headline(read_study(tmp_path))[0].method.name == "adamw"


def test_evil_label_reaches_no_file_unescaped(messy_report):
    assert EVIL not in (messy_report / "report.html").read_text()
    assert "<script>alert" not in (messy_report / "tables" / "headline.md").read_text()
    assert final_id("muon", 2) in (messy_report / "report.html").read_text()
