from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from small_runs import MODEL

from steepest.lab import models
from steepest.lab.errors import UserError
from steepest.lab.runs import weights_hash

# Totals of the papers: LionMuon's own counts, the C4 harness and SmolLM2 as published, ours by design.
PARAMETERS = {
    "tiny": 117_056,
    "mini": 1_315_968,
    "small": 5_795_072,
    "lionmuon-gpt2-124m": 123_980_544,
    "lionmuon-gpt2-355m": 354_599_936,
    "lionmuon-gpt2-720m": 708_102_144,
    "lionmuon-llama-124m": 123_587_328,
    "llama-60m": 58_073_600,
    "llama-130m": 134_105_856,
    "llama-350m": 367_969_280,
    "llama-1b": 1_339_082_752,
    "llama-3b": 2_685_831_680,
    "qwen-134m": 134_107_392,
    "smollm2-360m": 361_821_120,
}


@pytest.mark.parametrize(("name", "count"), PARAMETERS.items())
def test_parameter_counts_are_the_published_ones(name: str, count: int) -> None:
    assert models.describe(name)["parameters"] == count


@pytest.mark.parametrize("size", ["tiny", "mini", "small"])
def test_flavours_of_a_size_are_alike(size: str) -> None:
    found = {family: models.describe(f"{size}-{family}") for family in ("llama", "gpt2", "qwen")}
    target = {"tiny": 1e5, "mini": 8e5, "small": 4.7e6}[size]
    assert all(abs(facts["non_embedding_parameters"] / target - 1) < 0.1 for facts in found.values())
    assert {facts["family"] for facts in found.values()} == {"llama", "gpt2", "qwen"}


def test_embeddings_are_counted_once_tied_or_not() -> None:
    tied, untied = models.describe("tiny"), models.describe("llama-60m")
    assert tied["parameters"] - tied["non_embedding_parameters"] == 256 * 64
    assert untied["parameters"] - untied["non_embedding_parameters"] == 2 * 32_000 * 512


def test_weights_depend_on_the_seed_alone() -> None:
    torch.manual_seed(123)
    first = models.build("tiny", 257, seed=5)
    torch.manual_seed(321)
    second = models.build("tiny", 257, seed=5)
    assert weights_hash(first) == weights_hash(second)
    assert weights_hash(first) != weights_hash(models.build("tiny", 257, seed=6))


def test_lionmuon_models_have_its_initialisation_and_no_biases() -> None:
    gpt2 = models.build({"preset": "lionmuon-gpt2-124m", "n_layer": 2, "n_embd": 64, "n_head": 2}, 300)
    assert not [name for name, _ in gpt2.named_parameters() if name.endswith("bias")]
    loss = gpt2(input_ids=torch.arange(8)[None]).logits.sum()
    loss.backward()
    small = {"preset": "lionmuon-llama-124m", "num_hidden_layers": 2, "hidden_size": 96, "head_dim": 8}
    llama = dict(models.build(small, 300).named_parameters())
    plain = llama["model.layers.0.self_attn.q_proj.weight"].std().item()
    scaled = llama["model.layers.0.self_attn.o_proj.weight"].std().item()
    assert plain == pytest.approx(0.02, rel=0.05)
    # The preset has 12 layers, whatever a test makes of it.
    assert scaled == pytest.approx(0.02 / math.sqrt(24), rel=0.05)


def test_a_padded_vocabulary_is_kept_and_any_other_follows_the_corpus() -> None:
    assert models.configuration("lionmuon-gpt2-124m", 50_257).vocab_size == 50_304
    assert models.configuration("lionmuon-gpt2-124m", 4_096).vocab_size == 4_096
    assert models.configuration("tiny", 257).vocab_size == 257
    assert models.configuration("tiny", 250).vocab_size == 250


def test_any_configuration_file_or_folder(tmp_path: Path) -> None:
    contents = {"model_type": "llama", **{key: value for key, value in MODEL.items() if key != "preset"}}
    contents |= {"num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 2, "vocab_size": 100}
    (tmp_path / "config.json").write_text(json.dumps(contents))
    assert models.inline(str(tmp_path)) == models.inline(str(tmp_path / "config.json")) == contents
    assert models.build(str(tmp_path), 64).config.vocab_size == 64  # type: ignore[union-attr]
    assert models.describe(str(tmp_path))["family"] == "llama"


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("tinny", "unknown model 'tinny'. Did you mean 'tiny'"),
        ({"preset": "minni"}, "unknown model preset 'minni'. Did you mean 'mini"),
        (
            {"preset": "tiny", "hidden_sise": 3},
            "unknown key of model 'tiny-llama' 'hidden_sise'. Did you mean 'hidden_size'",
        ),
        ({"model_type": "lama"}, "unknown model_type 'lama'. Did you mean 'llama'"),
        ({"hidden_size": 3}, "needs 'preset' or transformers' 'model_type'"),
    ],
)
def test_unknown_models_come_with_the_closest_names(model: str | dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        models.configuration(model)


def test_a_sequence_longer_than_the_positions_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="sequence_length 600 is longer than the 512 positions"):
        models.configuration("tiny-gpt2", 257, 600)
    (tmp_path / "x.json").write_text("{}")
    with pytest.raises(UserError, match="no 'model_type'"):
        models.configuration(str(tmp_path / "x.json"))
