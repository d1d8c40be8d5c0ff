"""Several studies on one page."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import grid_study
import pytest
from grid_study import ARMS, write_grid_study
from pages import Page
from typer.testing import CliRunner

from steepest.lab.cli import app
from steepest.lab.errors import UserError
from steepest.lab.report.workloads import read_workloads, workload_sheets, write_workloads

ADAMW, LION, _, _, MUON = (replace(arm, open_axes=()) for arm in ARMS)
# AdamW follows this law, Muon at D tokens is where AdamW is at 1.5 D
LAW = (40.0, 0.2, 2.5)


def law(tokens: float) -> float:
    return LAW[0] * tokens ** -LAW[1] + LAW[2]


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> list[Path]:
    """Four horizons of one workload."""
    root = tmp_path_factory.mktemp("horizons")
    found = []
    steps_before = grid_study.STEPS
    for steps in (200, 400, 800, 1600):
        grid_study.STEPS = steps
        tokens = steps * grid_study.TOKENS
        arms = [
            replace(ADAMW, loss=law(tokens), noise=1e-4),
            replace(MUON, loss=law(1.5 * tokens), noise=1e-4),
            replace(LION, loss=law(tokens) + 0.5, noise=1e-4),
        ]
        arms += [replace(LION, name="sage", label="SAGE")] if steps == 200 else []
        folder = root / f"s{steps}"
        found.append(write_grid_study(folder, arms, seeds=(1, 2, 3), name=f"{steps} steps", diagnostics=False))
    grid_study.STEPS = steps_before
    return found


@pytest.fixture(scope="module")
def workloads(folders):
    return read_workloads(folders)


def test_methods_of_every_study_and_those_left_out(workloads):
    assert [m.label for m in workloads.methods] == ["AdamW", "Lion", "Muon"]
    assert workloads.left_out == ["SAGE"]
    assert workloads.baseline == "AdamW"


def test_profiles_and_speedups(workloads):
    profiles = workloads.profiles["steps"]
    assert profiles["Muon"].score.value == pytest.approx(1.0)  # the best on every workload
    assert profiles["Lion"].score.value == 0.0  # reaches no target
    assert profiles["AdamW"].rho(1.0) == 0.0
    speedup = workloads.speedups["steps"]["Muon"]
    assert speedup.mean.value > 1
    assert len(speedup.workloads) == 4
    costs = workloads.costs["steps"]
    assert costs["AdamW"]["400 steps"] <= 400  # its own schedule at most: the target is its median
    assert workloads.costs["flops"]["AdamW"]["400 steps"] == pytest.approx(
        costs["AdamW"]["400 steps"] * (6e6 * 4096 + ADAMW.flops), rel=1e-6
    )


def test_data_speedup_needs_four_horizons(workloads, folders):
    sheet = workload_sheets(workloads)["data-speedup"]
    rows = [[c.value if c.value is not None else c.text for c in row] for row in sheet.body]
    muon = {row[1]: row for row in rows if row[0] == "Muon"}
    assert muon[400 * 4096][2] == pytest.approx(1.5, abs=0.1)
    assert [c.text for c in sheet.body[-1]][2].startswith(("below", "above"))
    assert "data-speedup" not in workload_sheets(read_workloads(folders[:3]))


def test_the_page(folders, tmp_path):
    path = write_workloads(folders[:2], tmp_path / "two.html")
    page = Page(path)
    assert page.errors == []
    assert set(page.charts) == {"profile"}
    assert [value for value, _ in page.charts["profile"]["controls"][0]["options"]] == ["steps", "flops", "seconds"]
    assert "SAGE" in page.words("header")
    assert "CPU proxies" in page.words("header")
    files = {p.name for p in (tmp_path / "two-files").iterdir()}
    assert {"profile_steps.svg", "profile_steps.pdf", "profile-steps.md", "differences.tex", "differences.csv"} <= files


def test_the_command_takes_several(folders, tmp_path):
    result = CliRunner().invoke(app, ["report", *map(str, folders[:2]), "--out", str(tmp_path)])
    assert result.exit_code == 0, result.output
    assert (tmp_path / "profiles.html").exists()


def test_bad_combinations_are_refused(folders, tmp_path):
    with pytest.raises(UserError, match="given twice"):
        read_workloads([folders[0], folders[0]])
    other = write_grid_study(tmp_path / "other", (LION, MUON), seeds=(1,), name="other")
    with pytest.raises(UserError, match="same baseline"):
        read_workloads([folders[0], other])
    alone = write_grid_study(tmp_path / "alone", (ADAMW,), seeds=(1,), name="alone")
    with pytest.raises(UserError, match="share AdamW alone"):
        read_workloads([folders[0], alone])
    with pytest.raises(UserError, match="single run"):
        read_workloads([folders[0], next((folders[0] / "runs").iterdir())])
