"""The pages in headless Chromium: no error, every figure drawn, every button works, nothing loaded."""

from __future__ import annotations

import pytest
from browser import CHROMIUM, visit
from grid_study import ARMS, write_grid_study

from steepest.lab.report.workloads import write_workloads

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium or Chrome is installed")


@pytest.mark.parametrize(("report", "width"), [("grid_report", 1200), ("messy_report", 1200), ("grid_report", 500)])
def test_a_page_draws_all_its_figures_and_all_buttons_work(report, width, request, tmp_path):
    found = visit(request.getfixturevalue(report) / "report.html", tmp_path, width)
    assert found.console == []
    assert len(found.figures) == (10 if report == "grid_report" else 8)
    for name, figure in found.figures.items():
        assert figure["drawn"], name
        assert figure["marks"], name
        assert figure["width"] == figure["room"], name
    assert {(p["figure"], p["control"]) for p in found.pressed} >= {("curves", "axis"), ("curves", "split")}
    before = {name: figure["state"] for name, figure in found.figures.items()}
    for p in found.pressed:
        assert p["focused"], p
        assert p["alone"], p
        assert p["marks"], p
        first = p["first"]
        assert (p["state"] == before[p["figure"]]) == first, p  # what was drawn changed, but for the button pressed
        before[p["figure"]] = p["state"]
    if report == "grid_report":  # every quantity and every role of the last one was drawn
        pressed = [(p["control"], p["value"]) for p in found.pressed if p["figure"] == "diagnostics"]
        quantities = [("quantity", q) for q in ("noise_scale", "polar_residual", "update_rms")]
        assert pressed == [*quantities, ("role", "mlp"), ("role", "attention")]
    assert found.wide <= 0  # no sideways scrolling


def test_the_page_of_several_studies(tmp_path):
    folders = [write_grid_study(tmp_path / n, ARMS[:2], seeds=(1, 2), name=n) for n in ("a", "b")]
    found = visit(write_workloads(folders, tmp_path / "page.html"), tmp_path)
    assert found.console == []
    assert found.figures["profile"]["marks"]
    assert [p["value"] for p in found.pressed] == ["steps", "flops", "seconds"]
