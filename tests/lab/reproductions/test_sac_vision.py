"""sac-vision and sac-lora: short studies on the digits and on a tiny model, and what their sentences say."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import steepest
from steepest.lab.data.images import Images
from steepest.lab.data.storage import cache_directory
from steepest.lab.errors import UserError
from steepest.lab.reproductions import find, sac_arms, sac_lora, sac_vision, small_language_model
from steepest.lab.reproductions.base import Cell, Results, Study
from steepest.lab.reproductions.execution import carry_out, plan
from steepest.lab.reproductions.output import write
from steepest.lab.wording import MINUS

VISION, LORA = sac_vision.STUDY, sac_lora.STUDY
SHORT = dataclasses.replace(VISION, quick={"steps": 3, "grid": [3e-3, 1e-2]})


@pytest.fixture(autouse=True)
def own_tuning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What is tuned, pretrained or found missing in one test is not known to the next."""
    folder = tmp_path / "tuning"
    folder.mkdir()
    monkeypatch.setenv(small_language_model._TUNING_FOLDER, str(folder))
    for cached in (sac_vision.fashion_missing, sac_lora.missing_smollm2, sac_lora._before):
        cached.cache_clear()
    yield
    sac_vision.fashion_missing.cache_clear()
    sac_lora.missing_smollm2.cache_clear()


def settings(study: Study, case: str, arm: str, **changes: Any) -> dict[str, Any]:
    values = {key: setting.value for key, setting in study.settings.items()} | study.quick
    of_case = next(each.settings for each in study.cases if each.name == case)
    return {**values, **of_case, **study.arm(arm).settings, **changes}


def quietly(fraction: float) -> None:
    pass


def no_download(*args: Any, **kwargs: Any) -> Any:
    raise UserError("no network in a test")


# Images


def test_a_short_study_of_images_from_tuning_to_files(tmp_path: Path) -> None:
    results = carry_out(plan(SHORT, seeds=1, quick=True), tmp_path / "out")
    assert results is not None
    written = {path.name for path in write(results, tmp_path / "out")}
    assert {"result.json", "README.md", "differences.svg", "factors.svg"} <= written
    rows = json.loads((tmp_path / "out" / "result.json").read_text())["results"]
    assert len(rows) == 4 * 5
    assert {row["summary"]["accuracy"]["reference"] for row in rows if row["arm"] == "sac"} == {
        76.05,
        83.43,
        84.58,
        80.12,
    }
    for case in results.cases:
        cells = {arm.name: results.cells[case.name, arm.name, 0] for arm in VISION.arms}
        assert all(0 <= (cell.numbers["accuracy"] or 0) <= 100 for cell in cells.values())
        assert len({cell.numbers["loss"] for cell in cells.values()}) == 5  # every arm steps in its own way
        assert len({(cell.numbers["weights"], cell.numbers["data"]) for cell in cells.values()}) == 1
        blocks = {key.split(maxsplit=2)[2] for key in cells["sac"].series if key.startswith("S ")}
        mixer = "attention" if case.settings["model"] in ("deit", "swin") else "conv"
        assert blocks == {"embedding", mixer, "mlp", "head"}
        assert not [key for key in cells["adamw"].series if key.startswith("S ")]
        assert cells["sac"].numbers["mean factor"] is not None
    text = (tmp_path / "out" / "README.md").read_text()
    assert "All arms of a seed began with the same weights" in text
    assert "DeiT, digits" in text


@pytest.mark.parametrize("name", sac_vision.MODELS)
def test_all_matrices_of_a_model_are_scaled(name: str) -> None:
    model = sac_vision.network(name, "fashion-mnist", 0)
    values = settings(VISION, "digits-deit", "constant")
    optimizer = sac_arms.build(values, 1e-3)(model)
    assert isinstance(optimizer, steepest.SAC)
    kinds = optimizer.partition.kinds()
    assert {scale for (layer, _), scale in optimizer.scales.items() if kinds[layer] == "tokenizer"} == {1.0}
    assert {scale for (layer, _), scale in optimizer.scales.items() if kinds[layer] != "tokenizer"} == {0.1}
    parameters = dict(model.named_parameters())
    outside = {key for key in optimizer.partition.outside if parameters[key].squeeze().ndim > 1}
    tables = ("position_embeddings", "position_bias_table")
    assert all(key.endswith(tables) for key in outside), outside
    assert sum(p.numel() for p in parameters.values()) < 100_000
    assert all({group["weight_decay"], *group["betas"]} <= {0.0, 0.05, 0.9, 0.999} for group in optimizer.param_groups)


def test_pictures_are_framed_and_centred_on_zero() -> None:
    pixels = np.zeros((2, 28 * 28), dtype=np.float32)
    pixels[1, 0] = 1.0  # the upper left corner
    seen = sac_vision.pictures(Images("fashion-mnist", pixels, np.array([0, 1])))
    assert seen.shape == (2, 1, 32, 32)
    assert seen[1, 0, 2, 2] == 1.0
    assert seen.sum() == -2 * 32 * 32 + 2
    digits = sac_vision.pictures(Images("digits", np.full((1, 64), 0.5, dtype=np.float32), np.array([3])))
    assert digits.shape == (1, 1, 8, 8)
    assert not digits.any()


def test_a_seed_decides_split_weights_and_batches_and_nothing_else_does() -> None:
    values = settings(SHORT, "digits-resnet", "adamw", steps=2)
    one, again, other = (sac_vision.train(values, 1e-3, seed, quietly) for seed in (0, 0, 1))
    assert one == again
    assert one["weights"] != other["weights"]
    assert one["data"] != other["data"]
    split = sac_vision.task(values, 0)
    assert len(split.train.labels) == 1_240
    assert set(np.bincount(split.test.labels)) == {50}


def test_a_network_that_diverges_has_no_accuracy() -> None:
    numbers = sac_vision.train(settings(SHORT, "digits-resnet", "adamw", steps=9), 1e30, 0, quietly)
    assert math.isnan(numbers["accuracy"])  # type: ignore[arg-type]
    assert math.isnan(numbers["loss"])  # type: ignore[arg-type]


def test_without_the_package_fashion_mnist_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sac_vision, "_images", no_download)
    planned = plan(VISION)
    assert [case.settings["images"] for case in planned.cases] == ["digits"] * 4
    assert len(planned.left_out) == 4
    assert set(planned.left_out.values()) == {"no network in a test"}
    assert all("Fashion-MNIST" in label for label in planned.left_out)


def fake_results(study: Study, gains: dict[tuple[str, str], float], seeds: int = 4, **other: Any) -> Results:
    """`gains[case, arm]` is added to the numbers of an arm, with a little noise; numbers rise with the seed."""
    cells, cases = {}, study.cases
    for case in cases:
        for arm in study.arms_of(case):
            for seed in range(seeds):
                gain = gains.get((case.name, arm.name), 0.0) + 1e-3 * math.sin(7 * seed + len(case.name))
                numbers = {"accuracy": 90.0 + seed + gain, "loss": 2.0 + seed - gain, "weights": seed, "data": 7.0}
                numbers |= {"rate": 1e-3, "edge": 0.0, "mean factor": 0.5, "before": 9.0}
                series = {"trials": [2.0, 1.5], "grid": [1e-3, 1e-2], "step": [0.0, 1.0]}
                if arm.name == "sac":
                    series |= {"S 0 attention": [0.25, 1.5], "S 1 head": [2.0, 3.0]}
                series |= other.get(arm.name, {})
                cell = Cell(case.name, arm.name, seed, {}, {**numbers}, series, 0.0, "", {})  # type: ignore[arg-type]
                cells[case.name, arm.name, seed] = cell
    return Results(study, study.settings, cases, tuple(range(seeds)), cells)


def test_sentences_about_images_follow_the_numbers() -> None:
    gains = {("digits-deit", "sac"): 2.0, ("digits-swin", "sac"): -4.0, ("digits-deit", "constant"): 2.5}
    results = fake_results(VISION, gains)
    accuracy, loss = VISION.measures[:2]
    text = sac_vision.over_cases(results, "sac", "adamw", accuracy)
    assert f"accuracy (%): {MINUS}0.25 [" in text  # (2 - 4) / 8
    assert "better: DeiT, digits (+2.00); worse: Swin, digits" in text
    assert "not decided: ConvNeXt, digits" in text
    assert "in the mean over 8 cases" in text
    assert "worse: DeiT, digits" in sac_vision.over_cases(results, "sac", "constant", accuracy)
    assert "better: DeiT, digits" in sac_vision.over_cases(results, "sac", "adamw", loss)
    assert "in the mean over 4 cases" in sac_vision.over_cases(results, "sgg", "adamw", accuracy)
    told = " ".join(sac_vision.findings(results))
    assert f"DeiT, digits +3.90 there and +2.00 here; Swin, digits +2.13 there and {MINUS}4.00 here" in told
    assert "DeiT, digits 0.25 to 3.00, mean 0.50" in told
    assert "none on its edge" in told


def test_an_arm_that_only_some_images_have_is_drawn_there(tmp_path: Path) -> None:
    results = fake_results(VISION, {})
    assert len({len(VISION.arms_of(case)) for case in results.cases}) == 2
    assert (tmp_path / "differences.svg") in write(results, tmp_path)


# LoRA


def test_a_short_study_of_adapters_from_tuning_to_files(tmp_path: Path) -> None:
    results = carry_out(plan(LORA, seeds=2, quick=True), tmp_path / "out")
    assert results is not None
    written = {path.name for path in write(results, tmp_path / "out")}
    assert {"result.json", "README.md", "differences.svg", "factors.svg"} <= written
    case = results.cases[0]
    assert (case.name, len(results.cases)) == ("tiny", 1)
    cells = {arm.name: results.cells["tiny", arm.name, 0] for arm in LORA.arms}
    assert len({cell.numbers["loss"] for cell in cells.values()}) == len(LORA.arms)
    # 2 layers of width 16, MLP 24: four square weights and three of 16 x 24, each with rank 8 on both sides.
    assert {cell.numbers["trained"] for cell in cells.values()} == {2 * 8 * (4 * 32 + 3 * 40)}
    keys = {key for key in cells["sac"].series if key.startswith("S ")}
    assert keys == {f"S {layer} {block}" for layer in (0, 1) for block in ("attention", "mlp")}
    # Constant factors on adapters are AdamW at a tenth of the rate, bit for bit.
    assert cells["constant"].series["trials"][1] == cells["adamw"].series["trials"][0]
    text = (tmp_path / "out" / "README.md").read_text()
    assert "AdamW at 0.1 times its rate are the same" in text
    assert "All arms of a seed began with the same weights" in text
    (tiny,) = list(small_language_model.tuning_folder().glob("tiny-*.pt"))
    assert tiny.stat().st_size > 0


def test_only_adapters_are_trained_and_they_begin_at_the_model() -> None:
    values = settings(LORA, "tiny", "sac")
    stream, held_out = sac_lora.text(values, 0)
    model = sac_lora.adapted(values, 0)
    assert sac_lora.mean_loss(model, held_out) == sac_lora.before(values)
    frozen = {name: p.detach().clone() for name, p in model.named_parameters() if not p.requires_grad}
    optimizer = sac_arms.build(values, 1e-2)(model)
    assert isinstance(optimizer, steepest.SAC)
    for step in range(7):
        small_language_model.token_losses(model, stream.batch(step)).mean().backward()
        if step == 0:  # the second factor is zero, so that the first one has no gradient
            gradients = {name: p.grad for name, p in model.named_parameters() if "lora_A" in name}
            assert not any(gradient.any() for gradient in gradients.values() if gradient is not None)
        optimizer.step()
        optimizer.zero_grad()
    assert all(math.isfinite(scale) and 0.1 <= scale <= 10 for scale in optimizer.scales.values())
    assert len(set(optimizer.scales.values())) > 1
    after = dict(model.named_parameters())
    assert all(torch.equal(after[name], p) for name, p in frozen.items())
    assert sac_lora.mean_loss(model, held_out) != sac_lora.before(values)


def test_the_tiny_model_is_trained_once(monkeypatch: pytest.MonkeyPatch) -> None:
    values = settings(LORA, "tiny", "adamw")
    sac_lora.prepare(values)
    first = sac_lora.trained_model(values)
    monkeypatch.setattr(sac_lora, "_pretrain", no_download)
    again = sac_lora.trained_model(values)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True))
    longer = {**values, "pretraining": {**values["pretraining"], "steps": 1}}
    with pytest.raises(UserError, match="no network"):
        sac_lora.trained_model(longer)


def test_two_languages_with_other_words_and_nothing_held_out_is_trained_on() -> None:
    parts = [sac_lora.generated(language, 20_000) for language in (0, 1)]
    texts = [bytes(int(i) for i in np.concatenate(part) if i < 256).decode() for part in parts]
    words = [{word.strip(".,").lower() for word in text.split()} for text in texts]
    assert all(len(own) > 300 for own in words)
    assert len(words[0] & words[1]) < 0.5 * len(words[0])
    for train_part, held_out in parts:
        documents = [
            {tuple(piece) for piece in np.split(ids, np.flatnonzero(ids == 256) + 1) if len(piece)}
            for ids in (train_part, held_out)
        ]
        assert not documents[0] & documents[1]
        assert 0.02 < len(held_out) / (len(train_part) + len(held_out)) < 0.2


def test_fine_tuning_that_diverges_has_no_loss() -> None:
    numbers = sac_lora.train(settings(LORA, "tiny", "adamw", steps=20), 30.0, 0, quietly)
    assert math.isnan(numbers["loss"])  # type: ignore[arg-type]


def test_without_the_package_smollm2_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sac_lora, "smollm2", no_download)
    planned = plan(LORA)
    assert [case.name for case in planned.cases] == ["tiny"]
    assert planned.left_out == {"SmolLM2-135M on news": "no network in a test"}


def test_without_peft_nothing_can_be_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sac_lora, "news", lambda: None)
    real = sac_lora.importlib.util.find_spec
    monkeypatch.setattr(sac_lora.importlib.util, "find_spec", lambda name: None if name == "peft" else real(name))
    with pytest.raises(UserError, match="pip install peft"):
        plan(LORA)


def test_the_news_are_in_the_tokens_of_the_model(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked: dict[str, Any] = {}

    def fake_pack(name: str, **options: Any) -> None:
        asked.update(options, name=name)

    monkeypatch.setattr(sac_lora, "smollm2", lambda cache: cache / "model")
    monkeypatch.setattr(sac_lora, "prepare_pack", fake_pack)
    sac_lora.news()
    assert asked["name"] == "news-wiki"
    assert asked["tokenizer"] == str(cache_directory() / "model" / "tokenizer.json")


def test_sentences_about_adapters_follow_the_numbers() -> None:
    gains = {("tiny", "sac"): 0.25, ("smollm2", "constant"): 0.5}
    results = fake_results(LORA, gains, constant={"trials": [1.25, 2.0], "grid": [1e-3, 1e-2]})
    told = sac_lora.findings(results)
    text = " ".join(told)
    assert "tiny model on a second language: 9.0000 before fine-tuning, 3.5" in text
    assert f"SAC+AdamW minus AdamW {MINUS}0.2500" in text
    assert "constant factors do not explain it" in text
    assert (
        text.count("AdamW at 0.1 times its rate are the same") == 2
    )  # the control at 1e-2 as AdamW at 1e-3, in both cases
    assert "SmolLM2-135M on news 0.25 to 3.00, mean 0.50" in text
    far = fake_results(LORA, gains, constant={"trials": [1.25, 2.5], "grid": [1e-3, 1e-2]})
    assert "AdamW at 0.1 times its rate differ by at most 0.5" in " ".join(sac_lora.findings(far))
    other = fake_results(LORA, gains, constant={"trials": [1.25, 2.5], "grid": [1e-3, 2e-3]})
    assert "nothing but a lower rate" not in " ".join(sac_lora.findings(other))


def test_both_studies_are_found_by_name() -> None:
    assert find("sac-vision") is VISION
    assert find("sac-lora") is LORA
