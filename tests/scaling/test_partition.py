"""The partition: the blocks of many families, written out by hand from the tables of the specification; bad input."""

from __future__ import annotations

import copy
import re
import sys
from functools import cache

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from steepest.routing.views import View
from steepest.scaling.partition import Member, Partition, partition

WIDTHS = {"hidden_size": 48, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
TOKENS = {"vocab_size": 64, "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}
DECODER = {**WIDTHS, **TOKENS, "num_key_value_heads": 2, "max_position_embeddings": 32}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
IMAGES = {**WIDTHS, "image_size": 16, "patch_size": 4}
CONFIGS = {
    "gpt2": ("GPT2LMHeadModel", "GPT2Config", {"n_layer": 2, "n_embd": 48, "n_head": 4, "n_positions": 16, **TOKENS}),
    "llama": ("LlamaForCausalLM", "LlamaConfig", DECODER),
    "mistral": ("MistralForCausalLM", "MistralConfig", DECODER),
    "qwen2": ("Qwen2ForCausalLM", "Qwen2Config", {**DECODER, "tie_word_embeddings": True}),
    "qwen3": ("Qwen3ForCausalLM", "Qwen3Config", {**DECODER, "head_dim": 12}),
    "mixtral": ("MixtralForCausalLM", "MixtralConfig", {**DECODER, "num_local_experts": 4}),
    "qwen2_moe": (
        "Qwen2MoeForCausalLM",
        "Qwen2MoeConfig",
        {**DECODER, **EXPERTS, "shared_expert_intermediate_size": 24},
    ),
    "vit": ("ViTForImageClassification", "ViTConfig", IMAGES),
    "deit": ("DeiTForImageClassification", "DeiTConfig", IMAGES),
    "swin": (
        "SwinForImageClassification",
        "SwinConfig",
        {"image_size": 32, "patch_size": 4, "embed_dim": 8, "depths": [1, 2], "num_heads": [2, 4], "window_size": 4},
    ),
    "convnext": (
        "ConvNextForImageClassification",
        "ConvNextConfig",
        {"hidden_sizes": [8, 16], "depths": [2, 1], "num_stages": 2},
    ),
    "resnet50": (
        "ResNetForImageClassification",
        "ResNetConfig",
        {"embedding_size": 8, "hidden_sizes": [16, 32], "depths": [2, 1], "layer_type": "bottleneck"},
    ),
    "resnet18": (
        "ResNetForImageClassification",
        "ResNetConfig",
        {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 2], "layer_type": "basic"},
    ),
    "mamba": (
        "MambaForCausalLM",
        "MambaConfig",
        {"hidden_size": 48, "num_hidden_layers": 2, "state_size": 4, **TOKENS},
    ),
    "mamba2": (
        "Mamba2ForCausalLM",
        "Mamba2Config",
        {
            "hidden_size": 16,
            "num_hidden_layers": 2,
            "state_size": 4,
            "num_heads": 4,
            "head_dim": 8,
            "n_groups": 1,
            **TOKENS,
        },
    ),
    "qwen3_next": (
        "Qwen3NextForCausalLM",
        "Qwen3NextConfig",
        {
            **DECODER,
            **EXPERTS,
            "num_hidden_layers": 4,
            "head_dim": 12,
            "shared_expert_intermediate_size": 24,
            "linear_num_value_heads": 4,
            "linear_num_key_heads": 2,
            "linear_key_head_dim": 8,
            "linear_value_head_dim": 8,
        },
    ),
}


def build(family: str) -> nn.Module:
    import transformers

    model, config, options = CONFIGS[family]
    torch.manual_seed(0)
    return getattr(transformers, model)(getattr(transformers, config)(**options))


shared = cache(build)  # for tests that only look at a model


def llama_blocks(*, tied: bool = False) -> dict[tuple[int, str], list[str]]:
    layers = "model.layers"
    blocks = {
        (-1, "embedding"): ["model.embed_tokens.weight"],
        (0, "attention"): [f"{layers}.0.self_attn.{x}_proj.weight" for x in "qkvo"],
        (0, "mlp"): [f"{layers}.0.mlp.{x}_proj.weight" for x in ("gate", "up", "down")],
        (1, "attention"): [f"{layers}.1.self_attn.{x}_proj.weight" for x in "qkvo"],
        (1, "mlp"): [f"{layers}.1.mlp.{x}_proj.weight" for x in ("gate", "up", "down")],
        (2, "head"): ["lm_head.weight"],
    }
    if tied:
        del blocks[2, "head"]
    return blocks


def image_blocks(model: str) -> dict[tuple[int, str], list[str]]:
    return {
        (-1, "embedding"): [f"{model}.embeddings.patch_embeddings.projection.weight"],
        (0, "attention"): [f"{model}.layers.0.attention.{x}_proj.weight" for x in "qkvo"],
        (0, "mlp"): [f"{model}.layers.0.mlp.fc1.weight", f"{model}.layers.0.mlp.fc2.weight"],
        (1, "attention"): [f"{model}.layers.1.attention.{x}_proj.weight" for x in "qkvo"],
        (1, "mlp"): [f"{model}.layers.1.mlp.fc1.weight", f"{model}.layers.1.mlp.fc2.weight"],
        (2, "head"): ["classifier.weight"],
    }


def experts(layer: int) -> list[str]:
    return [f"model.layers.{layer}.mlp.experts.{x}" for x in ("gate_up_proj", "down_proj")]


def shared_expert(layer: int) -> list[str]:
    return [f"model.layers.{layer}.mlp.shared_expert.{x}_proj.weight" for x in ("gate", "up", "down")]


def swin_blocks() -> dict[tuple[int, str], list[str]]:
    def block(stage: int, number: int) -> str:
        return f"swin.encoder.layers.{stage}.blocks.{number}"

    return {
        (-1, "embedding"): ["swin.embeddings.patch_embeddings.projection.weight"],
        (0, "attention"): [f"{block(0, 0)}.attention.{x}_proj.weight" for x in "qkvo"],
        (0, "mlp"): [f"{block(0, 0)}.mlp.fc1.weight", f"{block(0, 0)}.mlp.fc2.weight"],
        (-2, "embedding"): ["swin.encoder.layers.0.downsample.reduction.weight"],
        (1, "attention"): [f"{block(1, 0)}.attention.{x}_proj.weight" for x in "qkvo"],
        (1, "mlp"): [f"{block(1, 0)}.mlp.fc1.weight", f"{block(1, 0)}.mlp.fc2.weight"],
        (2, "attention"): [f"{block(1, 1)}.attention.{x}_proj.weight" for x in "qkvo"],
        (2, "mlp"): [f"{block(1, 1)}.mlp.fc1.weight", f"{block(1, 1)}.mlp.fc2.weight"],
        (3, "head"): ["classifier.weight"],
    }


def convnext_blocks() -> dict[tuple[int, str], list[str]]:
    stages = "convnext.encoder.stages"
    return {
        (-1, "embedding"): ["convnext.embeddings.patch_embeddings.weight"],
        (0, "conv"): [f"{stages}.0.layers.0.dwconv.weight"],
        (0, "mlp"): [f"{stages}.0.layers.0.pwconv1.weight", f"{stages}.0.layers.0.pwconv2.weight"],
        (1, "conv"): [f"{stages}.0.layers.1.dwconv.weight"],
        (1, "mlp"): [f"{stages}.0.layers.1.pwconv1.weight", f"{stages}.0.layers.1.pwconv2.weight"],
        (-2, "embedding"): [f"{stages}.1.downsampling_layer.1.weight"],
        (2, "conv"): [f"{stages}.1.layers.0.dwconv.weight"],
        (2, "mlp"): [f"{stages}.1.layers.0.pwconv1.weight", f"{stages}.1.layers.0.pwconv2.weight"],
        (3, "head"): ["classifier.weight"],
    }


def bottleneck_blocks() -> dict[tuple[int, str], list[str]]:
    first, second, third = (
        f"resnet.encoder.stages.{stage}.layers.{layer}" for stage, layer in ((0, 0), (0, 1), (1, 0))
    )
    return {
        (-1, "embedding"): ["resnet.embedder.embedder.convolution.weight"],
        (0, "mlp"): [
            f"{first}.shortcut.convolution.weight",
            f"{first}.layer.0.convolution.weight",
            f"{first}.layer.2.convolution.weight",
        ],
        (0, "conv"): [f"{first}.layer.1.convolution.weight"],
        (1, "mlp"): [f"{second}.layer.0.convolution.weight", f"{second}.layer.2.convolution.weight"],
        (1, "conv"): [f"{second}.layer.1.convolution.weight"],
        (2, "mlp"): [
            f"{third}.shortcut.convolution.weight",
            f"{third}.layer.0.convolution.weight",
            f"{third}.layer.2.convolution.weight",
        ],
        (2, "conv"): [f"{third}.layer.1.convolution.weight"],
        (3, "head"): ["classifier.1.weight"],
    }


def basic_blocks() -> dict[tuple[int, str], list[str]]:
    first, second, third = (
        f"resnet.encoder.stages.{stage}.layers.{layer}" for stage, layer in ((0, 0), (1, 0), (1, 1))
    )
    return {
        (-1, "embedding"): ["resnet.embedder.embedder.convolution.weight"],
        (0, "conv"): [f"{first}.layer.0.convolution.weight", f"{first}.layer.1.convolution.weight"],
        (1, "conv"): [
            f"{second}.shortcut.convolution.weight",
            f"{second}.layer.0.convolution.weight",
            f"{second}.layer.1.convolution.weight",
        ],
        (2, "conv"): [f"{third}.layer.0.convolution.weight", f"{third}.layer.1.convolution.weight"],
        (3, "head"): ["classifier.1.weight"],
    }


def delta_net(layer: int) -> list[str]:
    return [
        f"model.layers.{layer}.linear_attn.{x}.weight" for x in ("conv1d", "in_proj_qkvz", "in_proj_ba", "out_proj")
    ]


EXPECTED = {
    "gpt2": {
        (-1, "embedding"): ["transformer.wte.weight", "transformer.wpe.weight"],
        (0, "attention"): ["transformer.h.0.attn.c_attn.weight", "transformer.h.0.attn.c_proj.weight"],
        (0, "mlp"): ["transformer.h.0.mlp.c_fc.weight", "transformer.h.0.mlp.c_proj.weight"],
        (1, "attention"): ["transformer.h.1.attn.c_attn.weight", "transformer.h.1.attn.c_proj.weight"],
        (1, "mlp"): ["transformer.h.1.mlp.c_fc.weight", "transformer.h.1.mlp.c_proj.weight"],
    },
    "llama": llama_blocks(),
    "mistral": llama_blocks(),
    "qwen2": llama_blocks(tied=True),
    "qwen3": llama_blocks(),
    "mixtral": {**llama_blocks(), (0, "mlp"): experts(0), (1, "mlp"): experts(1)},
    "qwen2_moe": {
        **llama_blocks(),
        (0, "mlp"): experts(0) + shared_expert(0),
        (1, "mlp"): experts(1) + shared_expert(1),
    },
    "vit": image_blocks("vit"),
    "deit": image_blocks("deit"),
    "swin": swin_blocks(),
    "convnext": convnext_blocks(),
    "resnet50": bottleneck_blocks(),
    "resnet18": basic_blocks(),
    "mamba": {
        (-1, "embedding"): ["backbone.embeddings.weight"],
        (0, "mixer"): [
            f"backbone.layers.0.mixer.{x}.weight" for x in ("conv1d", "in_proj", "x_proj", "dt_proj", "out_proj")
        ],
        (1, "mixer"): [
            f"backbone.layers.1.mixer.{x}.weight" for x in ("conv1d", "in_proj", "x_proj", "dt_proj", "out_proj")
        ],
    },
    "mamba2": {
        (-1, "embedding"): ["backbone.embeddings.weight"],
        (0, "mixer"): [f"backbone.layers.0.mixer.{x}.weight" for x in ("conv1d", "in_proj", "out_proj")],
        (1, "mixer"): [f"backbone.layers.1.mixer.{x}.weight" for x in ("conv1d", "in_proj", "out_proj")],
        (2, "head"): ["lm_head.weight"],
    },
    "qwen3_next": {
        (-1, "embedding"): ["model.embed_tokens.weight"],
        (0, "mixer"): delta_net(0),
        (0, "mlp"): experts(0) + shared_expert(0),
        (1, "mixer"): delta_net(1),
        (1, "mlp"): experts(1) + shared_expert(1),
        (2, "mixer"): delta_net(2),
        (2, "mlp"): experts(2) + shared_expert(2),
        (3, "attention"): [f"model.layers.3.self_attn.{x}_proj.weight" for x in "qkvo"],
        (3, "mlp"): experts(3) + shared_expert(3),
        (4, "head"): ["lm_head.weight"],
    },
}


def blocks_of(found: Partition) -> dict[tuple[int, str], list[str]]:
    return {key: [member.name for member in members] for key, members in found.blocks.items()}


# Families -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", CONFIGS)
def test_the_blocks_of_a_family(family):
    model = shared(family)
    found = partition(model)
    assert blocks_of(found) == EXPECTED[family]
    inside = {name for block in EXPECTED[family].values() for name in block}
    names = dict(model.named_parameters())
    assert found.outside.keys() == names.keys() - inside
    for members in found.blocks.values():
        for member in members:
            assert member.parameter is names[member.name]
            assert member.host == member.name.removesuffix(".weight")
            assert member.view.is_matrix


@pytest.mark.parametrize("family", CONFIGS)
def test_what_kind_each_layer_is(family):
    found = partition(shared(family))
    hidden = max(layer for layer, block in EXPECTED[family] if block not in ("embedding", "head")) + 1
    for layer, kind in found.kinds().items():
        assert kind == found.kind(layer) == ("tokenizer" if layer < 0 else "hidden" if layer < hidden else "head")
    assert [key for keys in found.layers.values() for key in keys] == sorted(
        found.blocks, key=lambda key: list(found.layers).index(key[0])
    )
    with pytest.raises(KeyError, match="no layer 99; it has -1, 0"):
        found.kind(99)


def test_why_the_rest_is_not_scaled():
    outside = partition(shared("qwen2_moe")).outside
    assert outside["model.layers.0.mlp.gate.weight"] == "router='exclude'"
    assert outside["model.layers.0.self_attn.q_proj.bias"] == "bias"
    assert outside["model.layers.0.input_layernorm.weight"] == outside["model.norm.weight"] == "norm"
    assert partition(shared("mamba")).outside["backbone.layers.0.mixer.A_log"] == "vector"  # although it has two axes
    assert partition(shared("deit")).outside["deit.embeddings.cls_token"] == "vector"
    assert partition(shared("deit")).outside["deit.embeddings.position_embeddings"] == "position"
    table = "swin.encoder.layers.0.blocks.0.attention.relative_position_bias.relative_position_bias_table"
    assert partition(shared("swin")).outside[table] == "position"


def test_depthwise_and_pointwise_convolutions_of_other_networks():
    class InvertedResidual(nn.Module):
        def __init__(self, *, expand: bool):
            super().__init__()
            if expand:
                self.expand = nn.Conv2d(4, 8, 1)
            self.spatial = nn.Conv2d(8, 8, 3, groups=8)
            self.project = nn.Conv2d(8, 4, 1)

    model = nn.ModuleDict(
        {
            "conv1": nn.Conv2d(3, 4, 3),
            "blocks": nn.ModuleList([InvertedResidual(expand=False), InvertedResidual(expand=True)]),
            "last": nn.Conv2d(4, 6, 1),
            "fc": nn.Linear(6, 2),
        }
    )
    assert blocks_of(partition(model)) == {
        (-1, "embedding"): ["conv1.weight"],
        (0, "conv"): ["blocks.0.spatial.weight"],
        (0, "mlp"): ["blocks.0.project.weight"],
        (1, "mlp"): ["blocks.1.expand.weight", "blocks.1.project.weight"],
        (1, "conv"): ["blocks.1.spatial.weight"],
        (3, "conv"): ["last.weight"],  # after the last layer: neither stem nor downsampling
        (2, "head"): ["fc.weight"],
    }
    assert partition(model).kind(3) == "other"


def test_an_encoder_and_a_decoder():
    import transformers

    config = transformers.T5Config(d_model=48, d_ff=64, num_layers=1, num_heads=4, d_kv=12, **TOKENS)
    found = partition(transformers.T5ForConditionalGeneration(config))
    attention = "decoder.block.0.layer"
    assert blocks_of(found) == {
        (-1, "embedding"): ["shared.weight"],
        (0, "attention"): [f"encoder.block.0.layer.0.SelfAttention.{x}.weight" for x in "qkvo"],
        (0, "mlp"): [f"encoder.block.0.layer.1.DenseReluDense.{x}.weight" for x in ("wi", "wo")],
        (1, "attention"): [f"{attention}.0.SelfAttention.{x}.weight" for x in "qkvo"]
        + [f"{attention}.1.EncDecAttention.{x}.weight" for x in "qkvo"],
        (1, "mlp"): [f"{attention}.2.DenseReluDense.{x}.weight" for x in ("wi", "wo")],
    }
    assert found.outside["encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight"] == "position"


def test_names_of_bert_that_look_like_a_head():
    import transformers

    config = transformers.BertConfig(**{**WIDTHS, "num_hidden_layers": 1}, vocab_size=64, max_position_embeddings=32)
    found = partition(transformers.BertForMaskedLM(config))
    layer = "bert.encoder.layer.0"
    assert blocks_of(found) == {
        (-1, "embedding"): [f"bert.embeddings.{x}_embeddings.weight" for x in ("word", "position", "token_type")],
        (0, "attention"): [f"{layer}.attention.self.{x}.weight" for x in ("query", "key", "value")]
        + [f"{layer}.attention.output.dense.weight"],
        (0, "mlp"): [f"{layer}.intermediate.dense.weight", f"{layer}.output.dense.weight"],
        (2, "linear"): ["cls.predictions.transform.dense.weight"],
    }
    assert found.kind(2) == "other"


# LoRA, towers, policies -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rank", [1, 2])
def test_lora_factors_are_in_the_block_of_their_host(rank):
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(
        target_modules=["q_proj", "down_proj", "embed_tokens"], r=rank, use_dora=True, modules_to_save=["lm_head"]
    )
    model = peft.get_peft_model(build("llama"), config)

    def factors(host: str) -> list[str]:
        return [f"{host}.lora_A.default.weight", f"{host}.lora_B.default.weight"]

    found = partition(model)
    table = "model.embed_tokens.lora_embedding_"
    assert blocks_of(found) == {
        (-1, "embedding"): [f"{table}A.default", f"{table}B.default"],
        (0, "attention"): factors("model.layers.0.self_attn.q_proj"),
        (0, "mlp"): factors("model.layers.0.mlp.down_proj"),
        (1, "attention"): factors("model.layers.1.self_attn.q_proj"),
        (1, "mlp"): factors("model.layers.1.mlp.down_proj"),
        (2, "head"): ["lm_head.modules_to_save.default.weight"],
    }
    assert found.outside["model.layers.0.self_attn.q_proj.weight"] == "frozen"
    assert found.outside["model.layers.0.self_attn.q_proj.lora_magnitude_vector.default.weight"] == "vector"
    hosts = {member.host for members in found.blocks.values() for member in members}
    assert {"model.embed_tokens", "model.layers.1.mlp.down_proj", "lm_head.modules_to_save.default"} - hosts == {
        "lm_head.modules_to_save.default"
    }
    assert "lm_head" in hosts


def test_a_second_tower_and_a_projector():
    import transformers

    config = transformers.LlavaConfig(
        vision_config=transformers.CLIPVisionConfig(**IMAGES),
        text_config=transformers.LlamaConfig(**DECODER),
        image_token_index=5,
    )
    model = transformers.LlavaForConditionalGeneration(config)
    every = partition(model)
    model.model.vision_tower.requires_grad_(False)
    found = partition(model)
    text = "model.language_model"
    assert blocks_of(found) == {
        (5, "mlp"): [f"model.multi_modal_projector.linear_{i}.weight" for i in (1, 2)],
        (-2, "embedding"): [f"{text}.embed_tokens.weight"],
        (2, "attention"): [f"{text}.layers.0.self_attn.{x}_proj.weight" for x in "qkvo"],
        (2, "mlp"): [f"{text}.layers.0.mlp.{x}_proj.weight" for x in ("gate", "up", "down")],
        (3, "attention"): [f"{text}.layers.1.self_attn.{x}_proj.weight" for x in "qkvo"],
        (3, "mlp"): [f"{text}.layers.1.mlp.{x}_proj.weight" for x in ("gate", "up", "down")],
        (4, "head"): ["lm_head.weight"],
    }
    assert found.kinds() == {5: "other", -2: "tokenizer", 2: "hidden", 3: "hidden", 4: "head"}
    assert found.blocks.items() <= every.blocks.items()  # the numbers do not depend on what is frozen
    assert (-1, "embedding") in every.blocks
    assert (0, "attention") in every.blocks


def test_policies():
    model = shared("mixtral")
    expected = EXPECTED["mixtral"]
    found = partition(model, embedding="exclude", head="exclude", router="scale")
    routers = {(i, "router"): [f"model.layers.{i}.mlp.gate.weight"] for i in range(2)}
    assert blocks_of(found) == {k: v for k, v in expected.items() if 0 <= k[0] < 2} | routers
    assert found.outside["model.embed_tokens.weight"] == "embedding='exclude'"
    assert found.outside["lm_head.weight"] == "head='exclude'"
    assert "model.layers.0.mlp.gate.weight" not in found.outside
    swin = partition(shared("swin"), embedding="exclude")
    assert set(swin.kinds().values()) == {"hidden", "head"}


# Wrappers -------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def process_group(tmp_path_factory):
    store = tmp_path_factory.mktemp("group") / "store"
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.parametrize("family", ["gpt2", "mixtral", "swin", "convnext", "resnet50", "mamba"])
@pytest.mark.usefixtures("process_group")
def test_the_same_under_every_wrapper(family):
    expected = EXPECTED[family]
    outside = partition(shared(family)).outside
    wrapped = [torch.compile(build(family)), DistributedDataParallel(build(family))]
    wrapped.append(DistributedDataParallel(torch.compile(build(family))))
    sharded = build(family)
    fully_shard(sharded, mesh=init_device_mesh("cpu", (1,)))
    wrapped.append(sharded)
    for model in wrapped:
        found = partition(model)
        assert blocks_of(found) == expected
        assert found.outside == outside
        ids = {id(p): n for n, p in model.named_parameters()}
        assert all(id(m.parameter) in ids for members in found.blocks.values() for m in members)


# Mapping --------------------------------------------------------------------------------------------------------------


def two_layers() -> nn.Module:
    class Layer(nn.Module):
        def __init__(self):
            super().__init__()
            self.attn = nn.Linear(4, 4)
            self.mlp = nn.Linear(4, 6)

    return nn.ModuleDict(
        {"embed": nn.Embedding(8, 4), "blocks": nn.ModuleList([Layer(), Layer()]), "head": nn.Linear(6, 3)}
    )


def test_a_callable_says_everything():
    model = two_layers()
    asked = {}

    def place(name, module, parameter):
        asked[name] = module, parameter
        return (7, "all of it") if "blocks" in name else None

    found = partition(model, place)
    matrices = [f"blocks.{i}.{x}.weight" for i in range(2) for x in ("attn", "mlp")]
    assert blocks_of(found) == {(7, "all of it"): matrices}
    assert found.outside["embed.weight"] == found.outside["head.weight"] == "left out by the mapping"
    assert found.outside["blocks.0.attn.bias"] == "bias"
    assert asked.keys() == {"embed.weight", "head.weight", *matrices}  # not about vectors
    assert asked["blocks.1.mlp.weight"] == (model["blocks"][1].mlp, model["blocks"][1].mlp.weight)


def test_a_table_changes_what_it_matches():
    model = two_layers()
    table = [(r"blocks\.(\d+)\.mlp", lambda m: (int(m[1]), "wide")), ("embed", None), (re.compile("head"), (9, "end"))]
    assert blocks_of(partition(model, table)) == {
        (0, "attention"): ["blocks.0.attn.weight"],
        (0, "wide"): ["blocks.0.mlp.weight"],
        (1, "attention"): ["blocks.1.attn.weight"],
        (1, "wide"): ["blocks.1.mlp.weight"],
        (9, "end"): ["head.weight"],
    }


def test_policies_do_not_undo_a_mapping():
    found = partition(two_layers(), [("embed", (-1, "embedding"))], embedding="exclude")
    assert found.blocks[-1, "embedding"][0].name == "embed.weight"


def test_a_tied_parameter_is_matched_by_each_of_its_names():
    found = partition(shared("gpt2"), [("lm_head", (5, "table"))])
    assert [m.name for m in found.blocks[5, "table"]] == ["transformer.wte.weight"]


def test_named_parameters_with_a_mapping():
    model = two_layers()
    table = [(r"blocks\.(\d+)\.(attn|mlp)", lambda m: (int(m[1]), m[2])), ("^head", (2, "head"))]
    for named in (model.named_parameters(), dict(model.named_parameters())):
        found = partition(named, table)
        assert blocks_of(found) == {
            (0, "attn"): ["blocks.0.attn.weight"],
            (0, "mlp"): ["blocks.0.mlp.weight"],
            (1, "attn"): ["blocks.1.attn.weight"],
            (1, "mlp"): ["blocks.1.mlp.weight"],
            (2, "head"): ["head.weight"],
        }
        assert found.kinds() == {0: "hidden", 1: "hidden", 2: "head"}
        assert found.outside["embed.weight"] == "not matched by the mapping"
    found = partition([("a", model["embed"].weight), ("b", model["embed"].weight)], lambda *_: (0, "x"))
    assert blocks_of(found) == {(0, "x"): ["a"]}


# Bad input ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mapping", "error", "message"),
    [
        (
            [("attn", (0, "a")), (r"blocks\.1", (1, "b"))],
            ValueError,
            r"'blocks.1.attn.weight' is matched by 'attn' and",
        ),
        ([("attention", (0, "a"))], ValueError, "'attention' matches no parameter; names look like 'embed.weight'"),
        ([("(", (0, "a"))], ValueError, r"'\(' is no regular expression"),
        ([("attn", ("0", "a"))], TypeError, r"gives tuple \('0', 'a'\) for 'attn'; a place is a tuple"),
        ([("attn", "a")], TypeError, "gives str 'a' for 'attn'"),
        ([("attn", lambda m: m[0])], TypeError, "gives str 'attn' for 'blocks.0.attn.weight'"),
        ([("attn", (True, "a"))], TypeError, "whole number"),
        ([("attn", (0, ""))], TypeError, "a name"),
        ([("attn",)], TypeError, "must be a pair"),
        (["attn"], TypeError, "must be a pair"),
        ("attn", TypeError, "mapping must be a callable"),
        ([], TypeError, "mapping must be a callable"),
        ({"attn": (0, "a")}, TypeError, "mapping must be a callable"),
        (lambda *_: 3, TypeError, "gives int 3 for 'embed.weight'"),
        (lambda *_: (0, "a", "b"), TypeError, "for 'embed.weight'"),
        (lambda *_: None, ValueError, "none of the 11 parameters is a matrix that can be scaled: bias, left out"),
    ],
)
def test_a_bad_mapping(mapping, error, message):
    with pytest.raises(error, match=message):
        partition(two_layers(), mapping)


def test_bad_sources():
    model = two_layers()
    with pytest.raises(ValueError, match="parameters without a model need mapping="):
        partition(model.named_parameters())
    with pytest.raises(TypeError, match=r"\(name, parameter\) pairs, .* got Parameter of shape \(8, 4\)"):
        partition(model.parameters(), lambda *_: (0, "a"))
    with pytest.raises(TypeError, match="parameter 'w' must be a tensor, got int"):
        partition([("w", 3)], lambda *_: (0, "a"))
    with pytest.raises(ValueError, match="two parameters have the name 'w'"):
        partition([("w", model["embed"].weight), ("w", model["head"].weight)], lambda *_: (0, "a"))
    with pytest.raises(ValueError, match="GELU has no parameters"):
        partition(nn.GELU())
    with pytest.raises(ValueError, match="none of the 2 parameters is a matrix that can be scaled: norm"):
        partition(nn.LayerNorm(4))
    with pytest.raises(ValueError, match="can be scaled: frozen"):
        partition(two_layers().requires_grad_(False))
    for option in ("embedding", "head", "router"):
        with pytest.raises(ValueError, match=f"partition: unknown {option} True; known: exclude, scale"):
            partition(model, **{option: True})


def test_a_parameter_of_unknown_role():
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.thing = nn.Parameter(torch.zeros(2, 3, 4))

    with pytest.raises(ValueError, match=r"'thing' of shape \(2, 3, 4\) fits no known role.*; place it by mapping="):
        partition(Odd())
    assert blocks_of(partition(Odd(), [("thing", (0, "odd"))])) == {(0, "odd"): ["thing"]}


def test_a_matrix_of_which_nothing_is_known_is_a_block_of_its_own():
    class Layer(nn.Module):
        def __init__(self):
            super().__init__()
            self.attn = nn.Linear(4, 4)
            self.something = nn.Linear(4, 4)

    model = nn.ModuleDict({"layers": nn.ModuleList([Layer()])})
    with pytest.warns(UserWarning, match=r"layers\.0\.something\.weight are: they are blocks of their own, 'linear'"):
        found = partition(model)
    assert blocks_of(found)[0, "linear"] == ["layers.0.something.weight"]
    assert blocks_of(partition(model, [("something", (0, "attention"))])) == {
        (0, "attention"): ["layers.0.attn.weight", "layers.0.something.weight"]
    }


# The partition itself -------------------------------------------------------------------------------------------------


def test_a_partition_is_disjoint_and_complete():
    first, second = (nn.Parameter(torch.zeros(2, 2)) for _ in range(2))

    def member(name, parameter):
        return Member(name=name, parameter=parameter, role_kind="mlp", host=name, view=View())

    def made(*members, outside=(), parameters):
        return Partition(blocks={(0, "mlp"): members}, outside=dict.fromkeys(outside, "norm"), parameters=parameters)

    a, b = member("a", first), member("b", second)
    both = {"a": first, "b": second}
    assert made(a, b, parameters=both).index() == {id(first): ("a", (0, "mlp")), id(second): ("b", (0, "mlp"))}
    assert made(a, outside=["b"], parameters=both).index()[id(second)] == ("b", None)
    with pytest.raises(ValueError, match="'b' is held 0 times"):
        made(a, parameters=both)
    with pytest.raises(ValueError, match="'a' is held 2 times"):
        made(a, a, b, parameters=both)
    with pytest.raises(ValueError, match="'a' is held 2 times"):
        made(a, b, outside=["a"], parameters=both)
    with pytest.raises(ValueError, match="'b' is no parameter"):
        made(a, b, parameters={"a": first})
    with pytest.raises(ValueError, match="for 'a' is not that of the model"):
        made(member("a", second), b, parameters=both)
    with pytest.raises(ValueError, match="two names are of one tensor"):
        made(a, member("b", first), parameters={"a": first, "b": first})


def test_the_index_of_a_copy_is_its_own():
    model = two_layers()
    model_copy, found = copy.deepcopy((model, partition(model)))
    assert {id(p) for p in model_copy.parameters()} == found.index().keys()


def test_the_summary():
    assert partition(shared("mixtral")).summary().splitlines() == [
        "layer  kind       block      tensors  elements     weights",
        "-1     tokenizer  embedding  1        3,072        embed_tokens",
        "0-1    hidden     attention  4 each   6,912 each   q_proj, k_proj, v_proj, o_proj",
        "0-1    hidden     mlp        2 each   36,864 each  gate_up_proj, down_proj",
        "2      head       head       1        3,072        lm_head",
        "",
        "scaled: 93,696 of 94,320 parameters, 14 of 21 tensors, in 6 blocks of 4 layers",
        "not scaled (router='exclude'): model.layers.0.mlp.gate.weight and 1 more",
        "not scaled (norm): model.layers.0.input_layernorm.weight and 4 more",
    ]


def many_layers(count: int) -> nn.Module:
    def layer() -> nn.Module:
        mlp = nn.Module()
        for i in range(10):
            mlp.register_parameter(f"w{i}", nn.Parameter(torch.empty(2, 2)))
        return nn.ModuleDict({"mlp": mlp})

    return nn.ModuleDict({"layers": nn.ModuleList([layer() for _ in range(count)])})


def calls(model: nn.Module) -> int:
    """Number of calls of Python functions that making the partition takes."""
    count = 0

    def note(frame, event, argument):
        nonlocal count
        count += event in ("call", "c_call")

    sys.setprofile(note)
    try:
        partition(model)
    finally:
        sys.setprofile(None)
    return count


def test_work_is_linear_in_the_number_of_tensors():
    small, large = many_layers(50), many_layers(200)
    partition(small)  # fills caches
    assert calls(large) < 4.2 * calls(small)


def test_a_hundred_thousand_tensors():
    """A quadratic loop would take hours."""
    tensors = {f"layers.{i // 10}.w{i % 10}": nn.Parameter(torch.empty(2, 2)) for i in range(100_000)}
    found = partition(tensors, [(r"layers\.(\d+)\.w[0-4]", lambda m: (int(m[1]), "a")), (r"w[5-9]", (-1, "b"))])
    assert len(found.blocks) == 10_001
    assert len(found.blocks[9_999, "a"]) == 5
    assert len(found.blocks[-1, "b"]) == 50_000
    assert len(found.index()) == 100_000
    assert found.summary().splitlines()[1].startswith("0-9999  hidden  a      5 each")


def test_layers_of_a_plain_sequential_have_no_gaps():
    """A role counts places there: that of the tokenizer, and of activations between layers."""
    model = nn.Sequential(nn.Embedding(9, 4), nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 9))
    found = partition(model)
    assert [(layer, found.kind(layer)) for layer in found.layers] == [
        (-1, "tokenizer"),
        (0, "hidden"),
        (1, "hidden"),
        (2, "head"),
    ]
