"""The studies of SAC on language models: short runs from tuning to files, what the arms are, and their sentences."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

import steepest
from steepest.lab import models
from steepest.lab.reproductions import (
    sac_arms,
    sac_bases,
    sac_dispersion,
    sac_gated_deltanet,
    sac_granularity,
    sac_robustness,
    sac_scales,
)
from steepest.lab.reproductions.base import Case, Cell, Results, Study
from steepest.lab.reproductions.execution import carry_out, plan
from steepest.lab.reproductions.output import write
from steepest.lab.wording import MINUS

GRANULARITY, DISPERSION, BASES = sac_granularity.STUDY, sac_dispersion.STUDY, sac_bases.STUDY
ROBUSTNESS, SCALES, GDN = sac_robustness.STUDY, sac_scales.STUDY, sac_gated_deltanet.STUDY
STUDIES = (GRANULARITY, DISPERSION, BASES, ROBUSTNESS, SCALES, GDN)


@pytest.fixture(autouse=True)
def _folders(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STEEPEST_CACHE", str(cache))
    (tmp_path / "tuning").mkdir()
    monkeypatch.setenv("STEEPEST_TUNING_FOLDER", str(tmp_path / "tuning"))


def settings(study: Study, arm: str, case: str | None = None, **changes: Any) -> dict[str, Any]:
    """Those of a cell of a quick look."""
    chosen = plan(study, quick=True)
    of_case = next(each for each in study.cases if each.name == (case or study.cases[0].name))
    return {**chosen.merged(of_case, study.arm(arm)), **changes}


def short(study: Study) -> Study:
    few = {"rates": [3.2e-3, 1e-2]} if "rates" in study.quick else {"multiples": [2, 4]}
    return dataclasses.replace(study, quick={**study.quick, "steps": 5, **few})


@pytest.fixture(scope="module")
def done() -> dict[str, Results]:
    return {}


def results_of(study: Study, done: dict[str, Results], folder: Path) -> Results:
    if study.name not in done:
        results = carry_out(plan(short(study), quick=True), folder)
        assert results is not None
        done[study.name] = results
    return done[study.name]


@pytest.mark.parametrize("study", STUDIES, ids=lambda study: study.name)
def test_a_short_study_from_tuning_to_files(study: Study, done: dict[str, Results], tmp_path: Path) -> None:
    pytest.importorskip("adam_mini")
    results = results_of(study, done, tmp_path)
    written = {path.name for path in write(results, tmp_path)}
    assert {"result.json", "README.md", *(f"{name}.svg" for name in study.figures)} <= written
    sentences = json.loads((tmp_path / "result.json").read_text())["sentences"]
    assert any("same weights" in sentence for sentence in sentences)
    assert not any("nan" in sentence for sentence in sentences)
    for case, seed in itertools.product(results.cases, results.seeds):
        cells = [results.cells[case.name, arm.name, seed] for arm in study.arms_of(case)]
        assert len({(cell.numbers["weights"], cell.numbers["data"]) for cell in cells}) == 1
        # As many rates are tried for every arm, and they are the same.
        assert len({tuple(cell.series["rate" if study is ROBUSTNESS else "grid"]) for cell in cells}) == 1
        assert all(2.0 < (cell.numbers["loss"] or 0.0) < 7.0 for cell in cells)
        # The arms are not one and the same.
        assert len({cell.numbers["loss"] for cell in cells}) > len(cells) // 2


# The arms


def optimizer(study: Study, arm: str, case: str | None = None) -> tuple[torch.nn.Module, Any]:
    values = settings(study, arm, case)
    if study is DISPERSION:
        values["options"] = sac_dispersion.options(values["mode"], values["statistic"])
    model = models.build(values["model"], 64, 0)
    return model, sac_arms.build(values, 1e-3)(model)


def test_the_arms_of_the_granularity_study() -> None:
    pytest.importorskip("adam_mini")
    used = {name: optimizer(GRANULARITY, name)[1].used for name in ("block", "layer", "both", "group", "mini-both")}
    assert used == {
        "block": {"block"},
        "layer": {"layer"},
        "both": {"layer", "block"},
        "group": {"group", "layer", "block"},
        "mini-both": {"layer", "block"},
    }
    assert type(optimizer(GRANULARITY, "mini-both")[1].base).__name__ == "Adam_mini"
    for name in ("adamw", "both", "constant", "matrices", "algorithm1"):
        found = optimizer(GRANULARITY, name)[1]
        base = found if name == "adamw" else found.base
        assert isinstance(base, torch.optim.AdamW)
        assert {(group["betas"], group["weight_decay"]) for group in base.param_groups} == {((0.9, 0.99), 0.0)}
    assert optimizer(GRANULARITY, "algorithm1")[1].formula == "algorithm1"
    assert (-1, "embedding") not in optimizer(GRANULARITY, "matrices")[1].scales
    assert (-1, "embedding") in optimizer(GRANULARITY, "both")[1].scales


def test_the_control_has_a_tenth_of_the_rate_where_the_released_factors_have_it() -> None:
    scales = optimizer(GRANULARITY, "constant")[1].scales
    assert scales.pop((-1, "embedding")) == 1.0
    assert len(scales) == 5  # two layers of two blocks, and the head
    assert set(scales.values()) == {0.1}


@pytest.mark.parametrize("base", sac_bases._BASES)
def test_every_base_is_run_bare_and_in_both_wrappings(base: str) -> None:
    if sac_arms.missing(base):
        pytest.skip("not installed")
    bare, sac, constant = (optimizer(BASES, arm, base)[1] for arm in ("bare", "sac", "constant"))
    assert not isinstance(bare, steepest.SAC)
    assert type(sac.base) is type(bare)
    assert (sac.mode, constant.mode) == ("equations", "constant")
    groups = [group for each in (bare, sac, constant) for group in each.param_groups]
    assert all(group.get("weight_decay", 0.0) == 0.0 for group in groups)


def test_modes_and_statistics_of_the_dispersion_study() -> None:
    for statistic in sac_dispersion.PUBLISHED:
        for case in ("equations", "algorithm1"):
            sac = optimizer(DISPERSION, statistic, case)[1]
            assert (sac.formula, sac._measure.statistic) == (case, statistic)
            assert (-1, "embedding") not in sac.scales
    assert optimizer(DISPERSION, "std", "normalized")[1].options["normalize_block"]
    for statistic, factor in (("mad", 0.702), ("std", 0.535), ("maximum", 0.145), ("variance", 10.0)):
        scales = optimizer(DISPERSION, statistic, "constant")[1].scales
        assert scales.pop((-1, "embedding")) == 1.0
        assert list(scales.values()) == pytest.approx([factor] * 5, rel=1e-2)


def test_the_gated_deltanet_is_a_hybrid_whose_mixers_are_blocks() -> None:
    scales = optimizer(GDN, "sac")[1].scales
    layers = {layer for layer, block in scales if block not in ("embedding", "head")}
    assert layers == {0, 1, 2, 3}
    model = models.build(GDN.settings["model"].value, 64, 0)
    names = [name for name, _ in model.named_parameters()]
    assert sum(name.endswith("A_log") for name in names) == 3
    assert sum(name.endswith("self_attn.q_proj.weight") for name in names) == 1


def test_factors_are_seen_through_a_run() -> None:
    model, sac = optimizer(GRANULARITY, "both")
    factors = sac_arms.Factors(steps=3)
    observe = factors.watch(model, sac)
    torch.manual_seed(0)
    for step in range(3):
        for parameter in model.parameters():
            parameter.grad = torch.randn(parameter.shape)
        observe(step)
        sac.step()
    series, record = factors.series(), factors.record()
    assert series["step"] == [0.0, 1.0]
    assert series["S 0 attention"][0] == pytest.approx(sac.scales[0, "attention"])
    assert series["c 0"][0] * series["s 0 attention"][0] == pytest.approx(series["S 0 attention"][0])
    # Gradients of one law: the factors of large blocks are about 1, and all within the bounds.
    assert record["mean factor"] == pytest.approx(1.0, abs=0.1)
    assert record["inside"] == 1.0

    model, constant = optimizer(GRANULARITY, "constant")
    factors = sac_arms.Factors(steps=3)
    factors.watch(model, constant)(1)
    record = factors.record()
    assert (record["mean factor"], record["tokenizer factor"]) == pytest.approx((0.1, 1.0))
    assert math.isnan(record["inside"])  # type: ignore[arg-type]


def test_all_statistics_of_a_mode_have_the_rate_of_the_mad(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[Any, float, int]] = []

    def fake(values: Any, lr: float, seed: int, report: Any, factors: Any = None) -> dict[str, Any]:
        statistic = values["options"].get("sac_statistic", values["options"]["sac_mode"])
        asked.append((statistic, lr, seed))
        return {"loss": abs(lr - 8e-3)}

    monkeypatch.setattr(sac_arms, "train_language", fake)
    for statistic in ("mad", "std"):
        values = settings(DISPERSION, statistic, "algorithm1", multiples=[1, 2, 4])
        numbers = sac_dispersion.run(values, 0, lambda fraction: None)
        assert numbers["rate"] == 8e-3
    assert asked[:3] == [("mad", lr, 10_000) for lr in (4e-3, 8e-3, 1.6e-2)]
    assert asked[3:] == [("mad", 8e-3, 0), ("std", 8e-3, 0)]
    sac_dispersion.run(settings(DISPERSION, "std", "constant", multiples=[1, 2, 4]), 0, lambda fraction: None)
    assert asked[5:] == [("constant", 8e-3, 0)]  # at the rate of Algorithm 1, which is known


def test_the_basin_of_a_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    losses = {1e-3: 3.4, 2e-3: 3.0, 4e-3: 3.2, 8e-3: math.nan}

    def fake(values: Any, lr: float, seed: int, report: Any) -> dict[str, Any]:
        return {"loss": losses[lr], "perplexity": lr, "weights": 1.0, "data": 2.0}

    monkeypatch.setattr(sac_arms, "train_language", fake)
    values = settings(ROBUSTNESS, "sac", rates=list(losses), within=0.1)
    numbers = sac_robustness.run(values, 0, lambda fraction: None)
    # To 3.1 it is a quarter of the octave below, and half of that above.
    assert numbers["octaves"] == pytest.approx(0.75)
    assert (numbers["loss"], numbers["best rate"], numbers["perplexity"]) == (3.0, 2e-3, 2e-3)
    assert (numbers["diverged"], numbers["open"]) == (1.0, 0.0)
    values = settings(ROBUSTNESS, "sac", rates=[1e-3, 2e-3], within=0.1)
    assert sac_robustness.run(values, 0, lambda fraction: None)["open"] == 1.0


# Sentences


def fake(
    study: Study, gains: dict[str, float], series: dict[str, list[float]] | None = None, **numbers: Any
) -> Results:
    """Four seeds of every case: `gains["arm"]` or `gains["case arm"]` is added to the first measure, and noise."""
    first = study.measures[0].key
    cells = {}
    for case in study.cases:
        for place, arm in enumerate(study.arms_of(case)):
            for seed in range(4):
                noise = 1e-3 * (place + 1) * (-1) ** seed
                gain = gains.get(f"{case.name} {arm.name}", gains.get(arm.name, 0.0))
                value = 4.0 + 0.1 * seed + gain * (1 + 0.01 * seed) + noise
                found = {
                    "loss": value, "perplexity": 50.0, "state": 1.0, "rate": 1e-2, "edge": 0.0, "weights": float(seed),
                    "data": 7.0, "mean factor": 0.5, "tokenizer factor": 2.0, "inside": 1.0, "open": 0.0,
                    "diverged": 0.0, "best rate": 1e-2, **numbers, first: value,
                }  # fmt: skip
                lines: dict[str, Any] = {"trials": [1.0, 2.0], "grid": [1.0, 2.0], **(series or {})}
                cell = Cell(case.name, arm.name, seed, {}, found, lines, 0.0, "", {})
                cells[case.name, arm.name, seed] = cell
    return Results(study, study.settings, study.cases, tuple(range(4)), cells)


@pytest.mark.parametrize(
    ("gains", "verdict"),
    [
        ({}, "the paper's gain of SAC over its base does not show"),
        ({"sac": 0.1}, "SAC is worse than its base, the opposite of what the paper reports"),
        ({"sac": -0.1}, "and constant factors do not explain it"),
        ({"sac": -0.1, "constant": -0.2}, "but constant factors are better still"),
        ({"sac": -0.1, "constant": -0.1}, "that this is more than constant factors give is not decided"),
    ],
)
def test_the_control_decides_what_a_gain_means(gains: dict[str, float], verdict: str) -> None:
    results = fake(GDN, gains)
    assert verdict in sac_arms.control(results, GDN.cases[0], "adamw", "sac", "constant")
    assert any(verdict in sentence for sentence in GDN.findings(results))


def test_claims_are_held_against_what_is_seen() -> None:
    text = " ".join(GRANULARITY.findings(fake(GRANULARITY, {"block": -0.2, "layer": -0.1, "group": 0.3})))
    assert "P+B minus AdamW" in text
    assert f"the paper has {MINUS}0.72 and {MINUS}0.19 of perplexity at 130M and 350M: as in the paper" in text
    assert "P+G+L+B minus P+L+B +0.3" in text
    assert (
        f"the paper has {MINUS}0.17 and {MINUS}0.11 of perplexity at 130M and 350M: the opposite of the paper" in text
    )
    assert f"the paper has {MINUS}0.46 and {MINUS}2.59 of perplexity at 130M and 350M: not decided here" in text
    assert "P+B 0.8" in text  # exp(-0.2)
    assert "AdamW 0.005 and 0.02" in text  # the rate times the factors
    assert "as in the paper" not in " ".join(GRANULARITY.findings(fake(GRANULARITY, {})))


def test_bases_are_counted() -> None:
    gains = {"adamw sac": -0.1, "lion sac": 0.1}
    text = " ".join(BASES.findings(fake(BASES, gains)))
    bare = "SAC against the bare base: better on 1, worse on 1, not decided on 3"
    assert bare in text
    assert "against constant factors: better on 1, worse on 1, not decided on 3" in text
    assert "AdamW 0.903 (0.965 and 0.952)" in text
    assert "The paper has no SAC on Lion and LionMuon" in text


def test_the_order_of_the_paper_and_the_constants() -> None:
    paper = {name: more / 10 for name, (more, _) in sac_dispersion.PUBLISHED.items()}
    text = " ".join(DISPERSION.findings(fake(DISPERSION, paper)))
    assert "Algorithm 1: rank correlation with the paper's order +1.00" in text
    assert "of 8 statistics 7 are" in text or "of 8 statistics 8 are" in text
    assert "Of the same sign: 4 of 4." in text
    assert "Gaussian gradients would give: MAD 0.702, Huber 0.567, IQR 0.428" in text
    against_it = {f"algorithm1 {name}": -more for name, more in paper.items()} | paper
    text = " ".join(DISPERSION.findings(fake(DISPERSION, against_it)))
    assert f"Algorithm 1: rank correlation with the paper's order {MINUS}1.00" in text
    assert "Of the same sign: 0 of 4." in text


def test_pairs_that_differ_by_a_constant() -> None:
    results = fake(DISPERSION, {"algorithm1 iqr": 0.1})
    equations, printed = (sac_dispersion.pairs(results, case) for case in DISPERSION.cases[:2])
    assert "none is decided" in equations
    assert "decided: IQR and MAD." in printed


def test_a_basin_has_to_be_wider_than_that_of_constants_too() -> None:
    def sentence(**gains: float) -> str:
        return sac_robustness.widths(fake(ROBUSTNESS, gains), ROBUSTNESS.cases[0])

    assert "it does not show that SAC is more robust" in sentence()
    assert "the opposite of what the paper says" in sentence(sac=-0.5)
    assert "as the paper says, and more than constant factors" in sentence(sac=0.5)
    assert "as the paper says, not more than constant factors" in sentence(sac=0.5, constant=0.5)
    text = " ".join(ROBUSTNESS.findings(fake(ROBUSTNESS, {}, open=1.0, diverged=2.0)))
    assert "may be wider: AdamW, SAC+AdamW and Constant" in text
    assert "runs that diverged: AdamW 8, SAC+AdamW 8, Constant 8" in text


def test_the_factors_of_the_second_half_are_told() -> None:
    series = {
        "step": [0.0, 1.0, 2.0, 3.0],
        **{f"S {layer} {block}": [1.0, 1.0, 2.0, 2.0] for layer in (0, 1) for block in ("attention", "mlp")},
        **{f"s {layer} attention": [9.0, 9.0, 1.25, 1.25] for layer in (0, 1)},
        **{f"s {layer} mlp": [9.0, 9.0, 0.75, 0.75] for layer in (0, 1)},
        "S -1 embedding": [1.0, 1.0, 0.3, 0.3], "S 2 head": [1.0, 1.0, 3.0, 3.0],
        "s -1 embedding": [1.0] * 4, "s 2 head": [1.0] * 4,
        "c -1": [5.0] * 4, "c 0": [9.0, 9.0, 0.5, 2.0], "c 1": [9.0, 9.0, 1.5, 1.5], "c 2": [5.0] * 4,
        "S a.weight 0": [1.0, 1.0, 1.0, 0.5], "S a.weight 1": [1.0, 1.0, 1.0, 4.0],
    }  # fmt: skip
    results = fake(SCALES, {}, series)
    case: Case = SCALES.cases[0]
    told = sac_scales.factors(results, case, "equations")
    assert "c 1.00, 1.50 from the first layer to the last" in told
    assert "s of attention 1.25 to 1.25; s of mlp 0.75 to 0.75; S of the embedding 0.30; S of the head 3.00" in told
