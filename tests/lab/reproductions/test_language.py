from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from steepest.lab import methods
from steepest.lab.reproductions import softsign_language as module
from steepest.lab.reproductions.base import Cell, Results
from steepest.lab.reproductions.execution import carry_out, plan
from steepest.lab.reproductions.output import write
from steepest.lab.reproductions.softsign_language import STUDY, findings, parent_rate, soft_options, train
from steepest.lab.wording import MINUS

CASE = STUDY.cases[-1]
SHORT = dataclasses.replace(
    STUDY,
    quick={**STUDY.quick, "steps": 10},
    cases=(dataclasses.replace(CASE, settings={**CASE.settings, "grid": [1e-2, 2e-2]}),),
)


@pytest.fixture(autouse=True)
def _cache(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STEEPEST_CACHE", str(cache))
    monkeypatch.setattr(module, "_tuned", {})


def settings(parent: str, arm: str, **changes: Any) -> dict[str, Any]:
    values = {key: setting.value for key, setting in STUDY.settings.items()} | dict(SHORT.quick)
    return {
        **values, "parent": parent, "schedule": "constant", "grid": [1e-3, 2e-3], **STUDY.arm(arm).settings, **changes
    }  # fmt: skip


def quietly(fraction: float) -> None:
    pass


def test_a_short_study_from_tuning_to_files(tmp_path: Path) -> None:
    results = carry_out(plan(SHORT, quick=True), tmp_path)
    assert results is not None
    written = [path.name for path in write(results, tmp_path)]
    assert {"result.json", "README.md", "differences.svg"} <= set(written)
    content = json.loads((tmp_path / "result.json").read_text())
    rows = {(row["case"], row["arm"]): row["by_seed"] for row in content["results"]}
    assert len(rows) == 6
    for (case, arm), numbers in rows.items():
        hard = rows[case, "hard"]
        assert all(2.0 < loss < 7.0 for loss in numbers["loss"]), (case, arm)
        # Paired: the same weights, data and rate as the parent; other seeds have others.
        assert all(numbers[key] == hard[key] for key in ("weights", "data", "rate"))
        assert len(set(numbers["weights"])) == len(set(numbers["data"])) == 2
    assert any("same weights" in sentence for sentence in content["sentences"])


@pytest.mark.parametrize("parent", ["signum", "muon"])
def test_a_soft_arm_is_its_parent_until_the_transition(parent: str) -> None:
    hard = train(settings(parent, "hard"), 1e-2, 0, quietly)
    # At progress 0 the map is exactly hard, and a transition of one step has no other progress.
    one_step = train(settings(parent, "soft", hard_share=0.9), 1e-2, 0, quietly)
    half = train(settings(parent, "soft", hard_share=0.5), 1e-2, 0, quietly)
    assert one_step == hard
    assert half["loss"] != hard["loss"]
    assert half["weights"] == hard["weights"]


@pytest.mark.parametrize("parent", ["signum", "muon"])
def test_soft_arms_inherit_every_option(parent: str) -> None:
    options = soft_options(settings(parent, "soft"))
    theirs = methods.find(parent).options
    assert {key: options[key] for key in theirs} == theirs
    assert options["transition"] == (0.9, 1.0)
    assert soft_options(settings(parent, "switch"))["relaxation"] == "switch"


def test_the_rate_is_that_of_the_hard_parent_and_tuned_once(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[bool, float, int]] = []

    def fake(values: Any, lr: float, seed: int, report: Any) -> dict[str, float]:
        asked.append((values["soft"], lr, seed))
        return {"loss": abs(lr - 2e-3)}

    monkeypatch.setattr(module, "train", fake)
    grid = [1e-3, 2e-3, 4e-3]
    for arm in ("switch", "soft", "hard"):
        assert parent_rate(settings("signum", arm, grid=grid), quietly) == (2e-3, False)
    assert asked == [(False, lr, 10_000) for lr in grid]
    assert parent_rate(settings("signum", "hard", grid=grid, schedule="cosine"), quietly) == (2e-3, False)
    assert len(asked) == 6


def fake_results(loss: dict[str, float], **other: float) -> Results:
    """Four seeds; `loss[arm]` is added to the loss of an arm, with a little noise."""
    cells = {}
    for case in STUDY.cases:
        for arm in STUDY.arms_of(case):
            for seed in range(4):
                value = 2.0 + 0.1 * seed + loss.get(arm.name, 0.0) * (1 + 0.01 * seed)
                numbers = {"loss": value, "weights": float(seed), "data": 7.0, "rate": 1e-3, "edge": 0.0}
                if arm.name == "soft":
                    numbers |= other
                cells[case.name, arm.name, seed] = Cell(case.name, arm.name, seed, {}, numbers, {}, 0.0, "", {})
    return Results(STUDY, STUDY.settings, STUDY.cases, tuple(range(4)), cells)


def test_findings_tell_temperature_from_truncation() -> None:
    sentences = findings(fake_results({"soft": -0.01, "truncated-alone": 0.02, "truncated": 0.005}))
    text = " ".join(sentences)
    assert f"SoftSignum against its parent: {MINUS}0.010" in text
    assert "Truncated map (hard) +0.0203" in text
    assert f"its temperature adds {MINUS}0.0152" in text
    assert text.count("(better)") == 4 + 2  # soft maps in four cases, told again for Muon's two
    assert "same weights" in text
    assert "no arm ends further than 0.0203 nats from its parent" in text


def test_findings_notice_runs_that_are_not_paired() -> None:
    assert findings(fake_results({}, weights=99.0))[0].startswith("NOT PAIRED")
