"""Tiny models of many families, built from configs without a network, and their golden routing tables.

After a deliberate change of the routing, write the tables anew and read the difference:

    python tests/routing/routing_models.py
"""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import nn

from steepest import rules
from steepest.routing import default_routing

GOLDEN = Path(__file__).parent / "golden"
COLUMNS = ["name", "shape", "role", "layer", "block", "view", "rule", "decays", "tied"]

_WIDTHS = {"hidden_size": 48, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
_TOKENS = {"vocab_size": 64, "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}
_DECODER = {**_WIDTHS, **_TOKENS, "num_key_value_heads": 2, "max_position_embeddings": 32}
_EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}


def _hf(model: str, config: str, **options: Any) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        import transformers

        return getattr(transformers, model)(getattr(transformers, config)(**options))

    return build


def _convolutions() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3, groups=4), nn.Flatten(), nn.Linear(32, 5)
    )


def _language_model() -> nn.Module:
    return nn.Sequential(
        nn.Embedding(64, 16), nn.Sequential(nn.Linear(16, 32), nn.GELU()), nn.Linear(32, 64, bias=False)
    )


MODELS: dict[str, Callable[[], nn.Module]] = {
    "gpt2": _hf("GPT2LMHeadModel", "GPT2Config", n_layer=2, n_embd=48, n_head=4, n_positions=16, **_TOKENS),
    "llama": _hf("LlamaForCausalLM", "LlamaConfig", **_DECODER),
    "llama_tied": _hf("LlamaForCausalLM", "LlamaConfig", **_DECODER, tie_word_embeddings=True),
    "qwen2": _hf("Qwen2ForCausalLM", "Qwen2Config", **_DECODER),
    "qwen3": _hf("Qwen3ForCausalLM", "Qwen3Config", **_DECODER, head_dim=12),
    "mistral": _hf("MistralForCausalLM", "MistralConfig", **_DECODER),
    "phi3": _hf("Phi3ForCausalLM", "Phi3Config", **_DECODER),
    "gpt_neox": _hf("GPTNeoXForCausalLM", "GPTNeoXConfig", **_WIDTHS, **_TOKENS, max_position_embeddings=32),
    "mixtral": _hf("MixtralForCausalLM", "MixtralConfig", **_DECODER, num_local_experts=4),
    "qwen2_moe": _hf(
        "Qwen2MoeForCausalLM", "Qwen2MoeConfig", **_DECODER, **_EXPERTS, shared_expert_intermediate_size=24
    ),
    "qwen3_moe": _hf("Qwen3MoeForCausalLM", "Qwen3MoeConfig", **_DECODER, **_EXPERTS, head_dim=12),
    "gpt_oss": _hf("GptOssForCausalLM", "GptOssConfig", **_DECODER, num_local_experts=4, head_dim=12),
    "llama4": _hf(
        "Llama4ForCausalLM",
        "Llama4TextConfig",
        **_DECODER,
        num_local_experts=4,
        head_dim=12,
        intermediate_size_mlp=40,
        interleave_moe_layer_step=2,
    ),
    "bert": _hf("BertForMaskedLM", "BertConfig", **_WIDTHS, vocab_size=64, max_position_embeddings=32),
    "t5": _hf(
        "T5ForConditionalGeneration", "T5Config", d_model=48, d_ff=64, num_layers=2, num_heads=4, d_kv=12, **_TOKENS
    ),
    "vit": _hf("ViTForImageClassification", "ViTConfig", **_WIDTHS, image_size=16, patch_size=4),
    "convnext": _hf(
        "ConvNextForImageClassification", "ConvNextConfig", hidden_sizes=[8, 16, 24, 32], depths=[1, 1, 2, 1]
    ),
    "resnet": _hf(
        "ResNetForImageClassification",
        "ResNetConfig",
        embedding_size=8,
        hidden_sizes=[8, 16],
        depths=[1, 2],
        layer_type="basic",
    ),
    "mamba": _hf("MambaForCausalLM", "MambaConfig", hidden_size=48, num_hidden_layers=2, state_size=4, **_TOKENS),
    "sequential": _convolutions,
    "sequential_language_model": _language_model,
    "multihead_attention": lambda: nn.MultiheadAttention(16, 4),
    "transformer_encoder": lambda: nn.TransformerEncoder(nn.TransformerEncoderLayer(16, 4, 32, batch_first=True), 2),
    "lstm": lambda: nn.LSTM(8, 16, num_layers=2),
}


def fresh(name: str) -> nn.Module:
    """A new model, always with the same weights."""
    torch.manual_seed(0)
    return MODELS[name]()


@cache
def shared(name: str) -> nn.Module:
    """One model for all tests that only look at it."""
    return fresh(name)


def table(model: nn.Module) -> list[list[Any]]:
    """The rows of a golden table: what each parameter is, and what LionMuon does with it."""
    return [
        [
            e.name,
            list(e.shape),
            e.role.kind,
            e.role.layer,
            e.role.block,
            str(e.role.view),
            e.rule.name,
            e.rule.weight_decay > 0,
            list(e.role.tied),
        ]
        for e in default_routing(model, rules.LionMuon()).entries
    ]


def golden(name: str) -> list[list[Any]]:
    """The committed rows."""
    stored = json.loads((GOLDEN / f"{name}.json").read_text(encoding="utf-8"))
    assert stored["columns"] == COLUMNS
    return stored["rows"]


def write_golden() -> None:
    """Write every table, one row a line."""
    GOLDEN.mkdir(exist_ok=True)
    for name in MODELS:
        rows = ",\n  ".join(json.dumps(row) for row in table(fresh(name)))
        text = f'{{"columns": {json.dumps(COLUMNS)},\n "rows": [\n  {rows}\n ]}}\n'
        (GOLDEN / f"{name}.json").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    write_golden()
