from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from steepest.lab import methods
from steepest.lab.data.images import Images, Split
from steepest.lab.reproductions import find
from steepest.lab.reproductions import softsign_imbalance as module
from steepest.lab.reproductions.base import Cell, Results
from steepest.lab.reproductions.execution import carry_out, plan
from steepest.lab.reproductions.output import write
from steepest.lab.reproductions.softsign_imbalance import STUDY, findings, scores, train, tuned
from steepest.lab.wording import MINUS

SHORT = dataclasses.replace(STUDY, quick={**STUDY.quick, "steps": 12}, quick_cases=("constant-k10",))


def settings(arm: str, **changes: Any) -> dict[str, Any]:
    values = {key: setting.value for key, setting in STUDY.settings.items()}
    return {**values, "ratio": 10, "schedule": "constant", "steps": 30, **STUDY.arm(arm).settings, **changes}


def test_a_short_study_from_tuning_to_files(tmp_path: Path) -> None:
    results = carry_out(plan(SHORT, seeds=2, quick=True), tmp_path)
    assert results is not None
    written = [path.name for path in write(results, tmp_path)]
    assert {"result.json", "README.md", "macro_f1.svg", "differences.svg"} <= set(written)
    rows = json.loads((tmp_path / "result.json").read_text())["results"]
    assert len(rows) == len(STUDY.arms)
    for row in rows:
        assert all(0 < value <= 100 for value in row["by_seed"]["f1"])
        grid = STUDY.arm(row["arm"]).settings["grid"]
        assert set(row["by_seed"]["rate"]) <= set(grid)
        assert set(row["by_seed"]["edge"]) == {float(row["by_seed"]["rate"][0] in (grid[0], grid[-1]))}


def test_macro_f1_against_a_hand_computation() -> None:
    # True classes 0 0 0 1 1 1 2 2 2, guesses 0 0 1 1 1 2 0 0 0. F1 = 2 hits / (true + guessed):
    # class 0: 4 / (3 + 5), class 1: 4 / (3 + 3), class 2: 0.
    guesses = np.array([0, 0, 1, 1, 1, 2, 0, 0, 0])
    test = Images("hand", np.eye(3, dtype=np.float32)[guesses], np.repeat(np.arange(3), 3))
    train_set = Images("hand", np.zeros((2, 3), dtype=np.float32), np.array([0, 2]))
    found = scores(nn.Identity(), Split(train_set, test, counts=(9, 4, 1)))
    assert found["f1"] == pytest.approx(100 * (1 / 2 + 2 / 3 + 0) / 3)
    assert found["loss"] == pytest.approx(math.log(3))


def test_the_tail_is_the_three_rarest_classes() -> None:
    guesses = np.array([0, 1, 2, 3, 3])  # class 4 is never found, and its image is taken for one of class 3
    test = Images("hand", np.eye(5, dtype=np.float32)[guesses], np.arange(5))
    found = scores(nn.Identity(), Split(test, test, counts=(5, 9, 1, 7, 2)))
    assert found["tail"] == pytest.approx(100 * (1 + 1 + 0) / 3)  # classes 2, 4 and 0


def test_arms_of_a_seed_share_images_weights_and_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, list[torch.Tensor]] = {}
    build = methods.build

    def record(config: Any, model: nn.Module, steps: int) -> torch.optim.Optimizer:
        first = next(iter(model.children()))
        inputs = seen.setdefault(config.name + str(config.options), [])
        inputs.append(torch.cat([p.detach().flatten().clone() for p in model.parameters()]))
        first.register_forward_hook(lambda module, arguments, output: inputs.append(arguments[0].detach().clone()))
        return build(config, model, steps)

    monkeypatch.setattr(methods, "build", record)
    for arm in STUDY.arms:
        train(settings(arm.name, steps=5), 1e-3, seed=3)
    assert len(seen) == len(STUDY.arms)
    first, *others = seen.values()
    assert len(first) == 1 + 5 + 2  # weights, batches, the training and the test images
    for other in others:
        assert all(torch.equal(a, b) for a, b in zip(first, other, strict=True))
    seen.clear()
    train(settings("signum", steps=5), 1e-3, seed=4)
    assert not any(torch.equal(a, b) for a, b in zip(first[:-1], next(iter(seen.values()))[:-1], strict=True))


def test_a_run_is_a_function_of_its_seed_and_leaves_the_random_state_alone() -> None:
    before = torch.get_rng_state()
    assert train(settings("soft"), 1e-3, seed=1) == train(settings("soft"), 1e-3, seed=1)
    assert torch.equal(before, torch.get_rng_state())


def test_soft_arms_take_smaller_steps_at_the_end() -> None:
    sizes = {name: train(settings(name, steps=100), 1e-3, seed=0)["step"] for name in ("signum", "soft", "soft-half")}
    assert 0.8 < sizes["signum"] <= 1.0 + 1e-4
    assert sizes["soft-half"] < sizes["soft"] < 0.8 * sizes["signum"]


def test_a_run_that_diverges_has_no_numbers() -> None:
    assert all(math.isnan(value) for value in train(settings("sgd"), 1e30, seed=0).values())


def test_tuning_takes_the_best_mean_on_seeds_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[float, int, int]] = []

    def fake(values: Any, lr: float, seed: int) -> dict[str, float]:
        asked.append((lr, values["ratio"], seed))
        if lr == 4.0:
            return {"f1": math.nan}
        return {"f1": {1.0: 50.0, 2.0: 60.0, 3.0: 55.0}[lr] + (30.0 if asked[-1] == (1.0, 5, 10_000) else 0.0)}

    monkeypatch.setattr(module, "train", fake)
    text = json.dumps({"grid": [1.0, 2.0, 3.0, 4.0], "tuning_seeds": 2, "tuning_ratios": [1, 5]})
    assert tuned(text) == (2.0, False)
    assert {(ratio, seed) for _, ratio, seed in asked} == {(1, 10_000), (1, 10_001), (5, 10_000), (5, 10_001)}
    assert len(asked) == 16
    assert tuned(json.dumps({"grid": [3.0, 1.0], "tuning_seeds": 1, "tuning_ratios": [1]})) == (3.0, True)
    assert len({len(arm.settings["grid"]) for arm in STUDY.arms}) == 1


def test_one_rate_serves_all_ratios(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    monkeypatch.setattr(module, "tuned", lambda text: (asked.append(text), (1e-3, False))[1])
    for ratio in (1, 100):
        module.run(settings("signum", ratio=ratio, steps=2), 0, lambda fraction: None)
    assert asked[0] == asked[1]


def fake_results(gain: dict[str, float]) -> Results:
    """Eight seeds of every case; the arm "soft" is better than "signum" by `gain[schedule]` with a little noise."""
    cells = {}
    for case in STUDY.cases:
        for arm in STUDY.arms:
            for seed in range(8):
                f1 = 90.0 + seed + 0.01 * (seed % 3) * (arm.name == "soft")
                f1 += gain[case.settings["schedule"]] * (arm.name == "soft")
                numbers = {"f1": f1, "tail": 1.0, "loss": 1.0, "step": 0.5, "rate": 1e-3, "edge": 0.0}
                cells[case.name, arm.name, seed] = Cell(case.name, arm.name, seed, {}, numbers, {}, 0.0, "", {})
    return Results(STUDY, STUDY.settings, STUDY.cases, tuple(range(8)), cells)


def test_findings_say_which_way_a_difference_points() -> None:
    sentences = findings(fake_results({"constant": 1.0, "cosine": -1.0}))
    constant, cosine = (
        next(s for s in sentences if s.startswith("SoftSignum 0.9 against Signum, " + name)) for name in module.RATES
    )
    assert "+1.01 [+1.00, +1.02] in the mean over the ratios" in constant
    assert "for 5 ratios, better at k = 1 (+1.01), 10 (+1.01)" in constant
    assert "worse" not in constant
    assert f"for 5 ratios, worse at k = 1 ({MINUS}0.99)" in cosine
    paper = [s for s in sentences if s.startswith("What the paper reports")]
    assert "imbalance: seen at k = 10, 20 and 50; behind it from k = 100 on: not seen." in paper[0]
    assert "imbalance: not seen; behind it from k = 100 on: seen at k = 100." in paper[1]
    nothing = findings(fake_results({"constant": 0.0, "cosine": 0.0}))
    assert all("better" not in s or "+0.01" in s for s in nothing)
    assert sentences[-1].endswith("Hard switch 0.9 0.001, SGD 0.001 and AdamW 0.001.")


def test_the_fashion_study_has_the_same_arms() -> None:
    study = find("softsign-imbalance-fashion")
    assert study.arms == STUDY.arms
    assert study.settings.keys() == STUDY.settings.keys()
    assert [case.settings["ratio"] for case in study.cases[:6]] == [1, 10, 20, 50, 100, 200]
