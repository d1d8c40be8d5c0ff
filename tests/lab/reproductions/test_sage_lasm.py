from __future__ import annotations

import dataclasses
import itertools
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import steepest
from steepest import rules
from steepest.lab import models
from steepest.lab.data import Pack
from steepest.lab.reproductions import lasm_ablation, sage_embedding_dilemma, small_language_model
from steepest.lab.reproductions.base import Arm, Cell, Results, Study
from steepest.lab.reproductions.execution import carry_out, plan
from steepest.lab.reproductions.output import write
from steepest.lab.reproductions.small_language_model import bucket_of_token, evaluate, open_data, train, tune
from steepest.lab.wording import MINUS

SAGE, LASM = sage_embedding_dilemma.STUDY, lasm_ablation.STUDY


@pytest.fixture(autouse=True)
def _folders(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STEEPEST_CACHE", str(cache))
    (tmp_path / "tuning").mkdir()
    monkeypatch.setenv("STEEPEST_TUNING_FOLDER", str(tmp_path / "tuning"))


def settings(study: Study, arm: str, **changes: Any) -> dict[str, Any]:
    values = {key: setting.value for key, setting in study.settings.items()} | dict(study.quick)
    return {**values, **study.arm(arm).settings, **changes}


def quietly(fraction: float) -> None:
    pass


def grid(study: Study, arm: Arm) -> list[float]:
    rates: list[float] = arm.settings.get("grid") or study.settings["grid"].value
    return rates


def short(study: Study) -> Study:
    """Fewer steps and two rates for each arm."""
    arms = tuple(
        dataclasses.replace(arm, settings={**arm.settings, "grid": grid(study, arm)[:2]}) for arm in study.arms
    )
    return dataclasses.replace(study, arms=arms, quick={**study.quick, "steps": 12})


@pytest.fixture(scope="module")
def done() -> dict[str, Results]:
    return {}


def results_of(study: Study, done: dict[str, Results], folder: Path) -> Results:
    if study.name not in done:
        results = carry_out(plan(short(study), quick=True), folder)
        assert results is not None
        done[study.name] = results
    return done[study.name]


@pytest.mark.parametrize("study", [SAGE, LASM], ids=lambda study: study.name)
def test_a_short_study_from_tuning_to_files(study: Study, done: dict[str, Results], tmp_path: Path) -> None:
    results = results_of(study, done, tmp_path)
    written = {path.name for path in write(results, tmp_path)}
    assert {"result.json", "README.md", *(f"{name}.svg" for name in study.figures)} <= written
    content = json.loads((tmp_path / "result.json").read_text())
    assert any("same weights" in sentence for sentence in content["sentences"])
    for case, seed in itertools.product(study.cases, results.seeds):
        cells = [results.cells[case.name, arm.name, seed] for arm in study.arms_of(case)]
        assert len({(cell.numbers["weights"], cell.numbers["data"]) for cell in cells}) == 1
        # Nobody got more trials than the others.
        assert {len(cell.series["trials"]) for cell in cells} == {2}
        assert all(2.0 < (cell.numbers["loss"] or 0.0) < 7.0 for cell in cells)
    weights = {results.cells[study.cases[0].name, study.baseline, seed].numbers["weights"] for seed in results.seeds}
    assert len(weights) == len(results.seeds)


@pytest.mark.parametrize("study", [SAGE, LASM], ids=lambda study: study.name)
def test_every_arm_is_tuned_over_as_many_rates(study: Study) -> None:
    grids = [grid(study, arm) for arm in study.arms]
    assert len({len(rates) for rates in grids}) == 1
    assert all(b == 2 * a for rates in grids for a, b in itertools.pairwise(rates))


def test_the_damper_stays_within_its_bounds(done: dict[str, Results], tmp_path: Path) -> None:
    results = results_of(SAGE, done, tmp_path)
    case = SAGE.cases[0]
    arms = [arm for arm in SAGE.arms if arm.settings["rule"] == "sage"]
    assert len(arms) == 7
    for arm in arms:
        least, mean, most, damped, closing = (
            results.series(case, arm, key) for key in ("H min", "H mean", "H max", "damped", "closing")
        )
        width = closing.shape[1]
        assert width == 16
        assert least.min() >= 1 / math.sqrt(width) - 1e-3  # eps = 1e-8 lowers it a little
        assert ((least <= mean) & (mean <= most)).all()
        assert most.max() <= 1.0
        # At least one column is damped and at least one is not damped by its average.
        assert (damped > 0).all()
        assert (least < 1).all()
        assert closing.min() >= 1 / math.sqrt(width) - 1e-3
    # A column with larger gradients is damped more.
    assert np.mean(list(results.values(case, SAGE.arm("sage"), "correlation").values())) < -0.3


def test_measured_state_is_what_is_predicted(done: dict[str, Results], tmp_path: Path) -> None:
    results = results_of(SAGE, done, tmp_path)
    state = {arm.name: results.values(SAGE.cases[0], arm, "state")[0] for arm in SAGE.arms}
    assert state == {arm.name: results.values(SAGE.cases[0], arm, "predicted")[0] for arm in SAGE.arms}
    size = 257 * 16 * 4 / 1e3  # 256 bytes and the end of a text
    assert state["sage"] - state["lion"] == pytest.approx(16 * 4 / 1e3)  # one number a column
    assert state["adamw"] - state["lion"] == pytest.approx(size)
    assert state["lion"] - state["sinkgd-pure"] == pytest.approx(size)
    assert state["sinkgd-momentum"] == state["lion"]
    # On norm gains SAGE has as many averages as AdamW has second moments. Everywhere it has Lion's buffers, and a
    # number for each column: of the embedding, 7 matrices (6 with 16 inputs, one with 24) in 2 layers, and 5 gains.
    assert state["sage-vectors"] == state["sage"]
    columns = 16 + 2 * (6 * 16 + 24)
    assert state["sage-pure"] - state["lion-full"] == pytest.approx((columns + 5 * 16) * 4 / 1e3)


def rows_of(arm: str, **changes: Any) -> list[Any]:
    """What the optimizer of an arm says of each parameter of a small model."""
    model = models.build("tiny", 64, 0)
    rows: list[Any] = sage_embedding_dilemma.optimizer(model, settings(SAGE, arm, **changes), 1e-3).rows()
    return rows


def hidden_steps(rows: list[Any]) -> list[float]:
    return [row["rms_step"] for row in rows if row["role"] in ("attention", "mlp")]


def test_only_the_embedding_differs_between_hybrids() -> None:
    rows = {arm.name: rows_of(arm.name) for arm in SAGE.arms}
    outside = {name: [row for row in found if row["role"] != "embedding"] for name, found in rows.items()}
    hybrids = [arm.name for arm in SAGE.arms if arm.settings["hidden"] == "sinkgd" and arm.name != "sage-vectors"]
    assert len(hybrids) == 7
    assert all(outside[name] == outside["adamw"] for name in hybrids)
    # One arm has SAGE on the norm gains, too, and differs from SAGE in nothing else.
    pairs = list(zip(rows["sage"], rows["sage-vectors"], strict=True))
    assert {row["role"] for row, other in pairs if row != other} == {"norm"}
    assert {(row["rule"], other["rule"]) for row, other in pairs if row != other} == {("adamw", "sage")}
    assert (
        len({row["rms_step"] for name in ("sage", "sage-vectors") for row in rows[name] if row["role"] == "norm"}) == 1
    )
    assert {row["rule"] for row in rows["sage-pure"]} == {"sage"}


@pytest.mark.parametrize("step", [4e-3, 1e-2])
def test_a_dense_step_is_that_of_the_hidden_matrices_of_every_arm(step: float) -> None:
    for arm in SAGE.arms:
        expected = 1e-3 if arm.settings["hidden"] == "same" else step  # the rate of the whole model
        found = hidden_steps(rows_of(arm.name, dense_step=step))
        assert found == pytest.approx([expected] * 14, rel=1e-6), arm.name
    # Spectral and sign steps alike, not only on average.
    model = models.build("tiny", 64, 0)
    method = sage_embedding_dilemma.optimizer(model, settings(SAGE, "lionmuon-sage", dense_step=step), 1e-3)
    groups = [group for group in method.param_groups if group["rule"] == "lion_muon"]
    assert groups
    assert all(group["lr"] * group["sign_lr_ratio"] == pytest.approx(step) for group in groups)


def test_released_dense_steps_are_those_of_the_script() -> None:
    """Rate x factor by the rule of the embedding; SAGE's of columns of norm 1, so over the root of the rows."""
    released = SAGE.cases[1]
    assert released.settings == {"dense_step": "released"}
    expected = {"sage": 2e-3 * 10, "lion": 1e-4 * 100, "adamw": 2e-4 * 100, "sinkgd-pure": 2e-4 * 100}
    assert {arm.name for arm in SAGE.arms_of(released)} == set(expected)
    for name, size in expected.items():
        rows = rows_of(name, **released.settings)
        hidden = [row for row in rows if row["role"] in ("attention", "mlp")]
        steps = [size / math.sqrt(row["shape"][0]) if name == "sage" else size for row in hidden]
        assert [row["rms_step"] for row in hidden] == pytest.approx(steps, rel=1e-6)
        # The rest is as with the common step.
        rest = [row for row in rows if row not in hidden]
        assert rest == [row for row in rows_of(name) if row["role"] not in ("attention", "mlp")]


@pytest.mark.parametrize(("arm", "step"), [("lionmuon-sage", "released"), ("sage", "relaesed")])
def test_a_dense_step_that_is_none_is_refused(arm: str, step: str) -> None:
    with pytest.raises(ValueError, match=f"dense_step must be a number, or 'released'.*{step}"):
        rows_of(arm, dense_step=step)


def test_sage_leaves_vectors_to_adamw_where_asked() -> None:
    """As in the released experimental class; the docstring of the rule says how."""
    model = models.build("tiny", 64, 0)
    rule_of = {row["role"]: row["rule"] for row in steepest.SAGE(model, vectors=rules.AdamW()).rows()}
    assert rule_of == {"embedding": "sage", "attention": "sinkgd", "mlp": "sinkgd", "norm": "adamw"}
    rule_of = {row["role"]: row["rule"] for row in steepest.SAGE(model).rows()}
    assert rule_of == {"embedding": "sage", "attention": "sinkgd", "mlp": "sinkgd", "norm": "sage"}


def test_buckets_are_by_frequency_and_their_losses_make_the_loss(pack: Pack) -> None:
    values = settings(SAGE, "sage")
    buckets, counts = bucket_of_token(pack), np.bincount(pack.tokens("train"), minlength=pack.vocabulary_size)
    assert counts[buckets == 0].min() >= counts[buckets == 1].max() >= counts[buckets == 2].max()
    shares = [counts[buckets == i].sum() / counts.sum() for i in range(3)]
    assert 0.5 <= shares[0] < 0.6
    assert 0.9 <= shares[0] + shares[1] < 0.96
    model = models.build(values["model"], pack.vocabulary_size, 0)
    losses = evaluate(model, open_data(values), values)
    assert min(losses["head"], losses["middle"], losses["tail"]) < losses["loss"]
    assert losses["loss"] < max(losses["head"], losses["middle"], losses["tail"])


def test_an_arm_is_tuned_once_for_all_its_seeds(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[float, int]] = []

    def fake(values: Any, seed: int, report: Any, build: Any, watch: Any = None) -> dict[str, Any]:
        model = models.build("tiny", 64, 0)
        lr = max(group["lr"] for group in build(model).param_groups)
        asked.append((lr, seed))
        return {"loss": abs(lr - 2e-3)}

    monkeypatch.setattr(lasm_ablation, "train", fake)
    values = settings(LASM, "signum", grid=[1e-3, 2e-3, 4e-3])
    for seed in (0, 1):
        assert lasm_ablation.run(values, seed, quietly)["rate"] == 2e-3
    assert asked == [(1e-3, 10_000), (2e-3, 10_000), (4e-3, 10_000), (2e-3, 0), (2e-3, 1)]
    del values["rate_of"]
    assert tune(values, lambda lr: math.nan)[2] == pytest.approx({1e-3: 1e-3, 2e-3: 0.0, 4e-3: 2e-3})  # not asked again
    assert tune({**values, "steps": 1}, lambda lr: math.nan)[:2] == (1e-3, True)  # every rate diverged


@pytest.mark.parametrize(
    ("best", "growths", "expected"),
    [
        (2e-3, 3, (2e-3, False, [1e-3, 2e-3, 4e-3])),
        (4e-3, 3, (4e-3, False, [1e-3, 2e-3, 4e-3, 8e-3])),
        (5e-4, 3, (5e-4, False, [1e-3, 2e-3, 4e-3, 5e-4, 2.5e-4])),
        (1.0, 2, (1.6e-2, True, [1e-3, 2e-3, 4e-3, 8e-3, 1.6e-2])),
        (4e-3, 0, (4e-3, True, [1e-3, 2e-3, 4e-3])),
    ],
)
def test_a_grid_grows_beyond_an_edge(
    best: float, growths: int, expected: tuple[float, bool, list[float]], monkeypatch: Any, tmp_path: Path
) -> None:
    monkeypatch.setenv(small_language_model._TUNING_FOLDER, str(tmp_path))
    tried: list[float] = []

    def loss_at(lr: float) -> float:
        tried.append(lr)
        return abs(math.log(lr / best))

    lr, edge, losses = tune({"grid": [1e-3, 2e-3, 4e-3], "growths": growths}, loss_at)
    assert (lr, edge, tried) == expected
    assert list(losses) == sorted(tried)


def test_the_second_control_has_the_rate_of_lasm(done: dict[str, Results], tmp_path: Path) -> None:
    results = results_of(LASM, done, tmp_path)
    lasm, control = (results.cells["language", name, 0] for name in ("lasm", "control-same-rate"))
    assert (control.numbers["rate"], control.series["trials"]) == (lasm.numbers["rate"], lasm.series["trials"])
    assert control.numbers["loss"] != lasm.numbers["loss"]
    # Its optimizer is that of the control arm.
    assert control.settings["rule"] == "signum"
    assert control.settings["factors"]


def test_a_run_that_diverges_has_no_loss() -> None:
    values = settings(SAGE, "lion-full", steps=20)
    numbers = train(values, 0, quietly, lambda model: sage_embedding_dilemma.optimizer(model, values, 30.0))
    assert math.isnan(numbers["loss"])  # type: ignore[arg-type]


# LASM


def descend(arm: str, scale: float, steps: int = 8) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Weights before and after some steps on random gradients of a scale."""
    model = models.build("tiny", 64, 0).double()
    before = [parameter.detach().clone() for parameter in model.parameters()]
    method = lasm_ablation.optimizer(model, settings(LASM, arm), 1e-2)
    random = torch.Generator().manual_seed(1)
    for _ in range(steps):
        for parameter in model.parameters():
            parameter.grad = scale * torch.randn(parameter.shape, generator=random, dtype=torch.float64)
        method.step()
    return before, [parameter.detach() for parameter in model.parameters()]


def test_with_tiny_gradients_lasm_is_the_control_arm() -> None:
    before, lasm = descend("lasm", 1e-12)
    _, control = descend("control", 1e-12)
    for a, b in zip(lasm, control, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)
    moved = [float((b - a).abs().max()) for a, b in zip(before, lasm, strict=True)]
    assert min(moved) > 1e-3
    # With large ones it is not, nor is it without factors.
    _, large = descend("lasm", 1.0)
    assert any(not torch.allclose(a, b, atol=1e-4) for a, b in zip(large, control, strict=True))
    _, plain = descend("signum", 1e-12)
    assert any(not torch.allclose(a, b, atol=1e-4) for a, b in zip(plain, control, strict=True))


def test_the_control_arm_has_the_rates_and_decays_of_lasm() -> None:
    model = models.build("tiny", 64, 0)
    groups = lasm_ablation.optimizer(model, settings(LASM, "control"), 1e-2).param_groups
    of_name = {group["param_names"][0]: group for group in groups}
    expected = {
        "model.embed_tokens.weight": 0.5,
        "model.layers.0.self_attn.q_proj.weight": 1.5,
        "model.layers.1.mlp.down_proj.weight": 1.0,
    }
    for name, factor in expected.items():
        assert of_name[name]["lr"] == pytest.approx(1e-2 * factor)
        assert of_name[name]["lr"] * of_name[name]["weight_decay"] == pytest.approx(1e-3)
    assert of_name["model.norm.weight"]["weight_decay"] == 0.0
    assert of_name["model.norm.weight"]["lr"] == 1e-2


def test_the_damping_needs_large_gradients(done: dict[str, Results], tmp_path: Path) -> None:
    results = results_of(LASM, done, tmp_path)
    mean = {arm.name: results.values(LASM.cases[0], arm, "mean damping")[0] for arm in LASM.arms}
    assert all(math.isnan(mean[name]) for name in ("control", "control-same-rate", "signum", "lion", "adamw"))
    assert 0.9 < mean["lasm"] <= 1.0
    assert mean["lasm-scaled"] < 0.5
    assert mean["lasm-unclipped"] <= mean["lasm"] + 1e-3


def test_damping_is_that_of_the_state() -> None:
    model = models.build("tiny", 64, 0)
    method = lasm_ablation.optimizer(model, settings(LASM, "lasm"), 1e-3)
    damping = lasm_ablation.Damping(steps=3)
    observe = damping.watch(model, method)
    for step in range(3):
        for parameter in model.parameters():
            parameter.grad = torch.full_like(parameter, 2.0)
        observe(step)
        method.step()
    # V = 0.05 x 2^2 after the first step.
    assert damping.series["damping"][0] == pytest.approx(1 / (1 + math.sqrt(0.2)), rel=1e-6)
    assert damping.series["step"] == [1, 2]
    assert isinstance(method.param_groups[0]["lr"], float)
    assert rules.LASM().factor == 1.0


# Sentences


def fake(study: Study, loss: dict[str, float], **numbers: Any) -> Results:
    """Four seeds; `loss[arm]` is added to the loss of an arm, with a little noise."""
    cells = {}
    for case, (place, arm) in itertools.product(study.cases, enumerate(study.arms)):
        if arm not in study.arms_of(case):
            continue
        for seed in range(4):
            noise = 1e-3 * (place + 1) * (-1) ** seed
            value = 2.0 + 0.1 * seed + loss.get(arm.name, 0.0) * (1 + 0.01 * seed) + noise
            found = {
                "loss": value, "head": value, "middle": value, "tail": value, "state": 1.0, "predicted": 1.0,
                "weights": float(seed), "data": 7.0, "rate": 1e-3, "edge": 0.0, "share": 0.4, "parameters": 1e5,
                "H": 0.9, "share damped": 0.4, "correlation": -0.8, "lowest": 0.5,
                **({"mean damping": 0.999, "least damping": 0.9} if arm.name == "lasm" else {}),
                **(numbers if arm.name in ('sage', 'lasm') else {}),
            }  # fmt: skip
            series: dict[str, list[float | None]] = {"trials": [1.0, 2.0], "grid": [1.0, 2.0], "closing": [1.0] * 16}
            cells[case.name, arm.name, seed] = Cell(case.name, arm.name, seed, {}, found, series, 0.0, "", {})
    return Results(study, study.settings, study.cases, tuple(range(4)), cells)


def test_findings_of_sage_say_who_is_decided_against_whom() -> None:
    text = " ".join(SAGE.findings(fake(SAGE, {"sage": -0.05, "sinkgd-pure": 0.5, "sinkgd-momentum": -0.1})))
    assert f"SAGE minus AdamW {MINUS}0.05" in text
    assert "Mom. + Sinkhorn minus SAGE" in text
    assert "(better)" in text
    assert "Nothing is decided" not in text
    assert "to the byte" in text
    assert "SAGE-Pure minus All Lion" in text
    assert "SAGE on 1-D too minus SAGE" in text
    assert text.index("common step of the hidden matrices off") < text.rindex(f"SAGE minus AdamW {MINUS}0.05")
    assert "Nothing is decided" in " ".join(SAGE.findings(fake(SAGE, {"sage": 1e-6})))
    assert SAGE.findings(fake(SAGE, {}, weights=99.0))[0].startswith("NOT PAIRED")
    assert "differs from steepest.state_bytes" in " ".join(SAGE.findings(fake(SAGE, {}, state=2.0)))
    assert "On the edge of its grid" in " ".join(SAGE.findings(fake(SAGE, {}, edge=1.0)))


def test_findings_of_lasm_judge_the_damping() -> None:
    text = " ".join(LASM.findings(fake(LASM, {"lasm-no-roles": 0.1})))
    assert "at least 0.99" in text
    assert "LASM minus Signum + factors" in text
    assert "LASM no factors +0.1" in text
    below = " ".join(LASM.findings(fake(LASM, {}, **{"mean damping": 0.9})))
    assert "below the 0.99" in below
