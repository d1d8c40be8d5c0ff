"""Models by name: transformers architectures built from a configuration, with random weights fixed by the seed.

A preset is a row of numbers below. Three flavours: "gpt2" (learned positions, LayerNorm, GELU, `Conv1D`), "llama"
(rotary positions, RMSNorm, SwiGLU) and "qwen" (Qwen3: LLaMA's plan with normalised queries and keys).
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from steepest.lab.errors import UserError, unknown

# The papers pad GPT-2's 50,257 tokens to 50,304. A corpus whose vocabulary is short of a model's by no more than this
# part gets the model's, so that the published shapes are met exactly; any other vocabulary replaces the model's.
_PADDING = 0.01


@dataclass(frozen=True, kw_only=True)
class Preset:
    """A named model: numbers of the architecture, and where they come from."""

    family: str
    layers: int
    width: int
    heads: int
    vocabulary: int
    mlp: int | None = None  # inner width; None is 4 x width for "gpt2"
    kv_heads: int | None = None
    positions: int = 4096  # a hard limit for "gpt2", whose position table is learned
    tied: bool = True
    norm_eps: float = 1e-5
    rope_theta: float = 10_000.0
    attention: str | None = None  # None: transformers' choice
    biases: bool = True  # only "gpt2" has any
    init_std: float = 0.02
    scaled_residuals: bool = False  # draw o_proj and down_proj with std / sqrt(2 layers); "gpt2" always does
    source: str = ""


def _own(family: str, size: str) -> Preset:
    # head_dim 32 keeps tiny models fast; on CPU torch's fused attention backward is slower than plain matmuls at
    # small head sizes (measured: plain is 1.5x as fast for `tiny` in bf16), so the two smallest ask for "eager".
    layers, width, heads, mlp, vocabulary = {
        "tiny": (2, 64, 2, 176, 256),
        "mini": (4, 128, 4, 344, 4096),
        "small": (6, 256, 8, 688, 4096),
    }[size]
    return Preset(
        family=family,
        layers=layers,
        width=width,
        heads=heads,
        kv_heads=heads // 2 if family == "qwen" else None,  # Qwen groups its queries
        mlp=None if family == "gpt2" else mlp,
        vocabulary=vocabulary,
        positions=512 if family == "gpt2" and size == "tiny" else 1024,
        attention=None if size == "small" else "eager",
        # 0.02 suits width 768. Narrow models start too near zero with it: measured on `tiny`, 400 steps, AdamW ends at
        # 1.90 instead of 2.08 nats per byte, Lion at 2.36 instead of 2.76.
        init_std=0.02 * math.sqrt(768 / width),
        source="steepest: for a laptop",
    )


_LIONMUON = (
    "LionMuon, arXiv 2605.19811, experimental configuration (N(0, 0.02), no biases, vocabulary padded to 50,304)"
)
_C4 = "the C4 harness of GaLore, arXiv 2403.03507 (SAC, SGG, SAGE and SinkGD use it): untied, RMSNorm eps 1e-6"


def _lionmuon(family: str, layers: int, width: int, heads: int, positions: int) -> Preset:
    return Preset(
        family=family, layers=layers, width=width, heads=heads, positions=positions, vocabulary=50_304,
        mlp=2048 if family == "llama" else None, biases=False, scaled_residuals=True, source=_LIONMUON,
    )  # fmt: skip


def _c4(width: int, mlp: int, heads: int, layers: int) -> Preset:
    return Preset(
        family="llama", layers=layers, width=width, heads=heads, mlp=mlp, vocabulary=32_000, tied=False,
        positions=1024, norm_eps=1e-6, source=_C4,
    )  # fmt: skip


_SAGE = (
    "SAGE, arXiv 2604.07663: the paper gives no dimensions; this layout (tied, Llama 3's vocabulary) is inferred from "
    "the optimizer memory that it prints"
)


def _sage(width: int, mlp: int, heads: int, kv_heads: int, layers: int) -> Preset:
    return Preset(
        family="llama", layers=layers, width=width, heads=heads, kv_heads=kv_heads, mlp=mlp, vocabulary=128_256,
        rope_theta=500_000.0, source=_SAGE,
    )  # fmt: skip


PRESETS: dict[str, Preset] = {
    **{
        f"{size}-{family}": _own(family, size)
        for size in ("tiny", "mini", "small")
        for family in ("llama", "gpt2", "qwen")
    },
    "lionmuon-gpt2-124m": _lionmuon("gpt2", 12, 768, 12, 512),
    "lionmuon-gpt2-355m": _lionmuon("gpt2", 24, 1024, 16, 1024),
    "lionmuon-gpt2-720m": _lionmuon("gpt2", 12, 2048, 16, 512),
    "lionmuon-llama-124m": _lionmuon("llama", 12, 768, 12, 512),
    "llama-60m": _c4(512, 1376, 8, 8),
    "llama-130m": _c4(768, 2048, 12, 12),
    "llama-350m": _c4(1024, 2736, 16, 24),
    "llama-1b": _c4(2048, 5461, 32, 24),
    "llama-3b": _c4(2560, 6848, 32, 32),
    "llama-7b": _c4(4096, 11008, 32, 32),
    "llama-270m-sage": _sage(1024, 2736, 16, 16, 12),
    # Two layouts meet the memory of the 1.3B model to all printed digits, and nothing tells which it is.
    "llama-1.3b-sage": _sage(2048, 5461, 32, 8, 24),
    "llama-1.3b-sage-kv4": _sage(2048, 5632, 32, 4, 24),
    "llama-3-70b": Preset(
        family="llama",
        layers=80,
        width=8192,
        heads=64,
        kv_heads=8,
        mlp=28_672,
        vocabulary=128_256,
        positions=8192,
        tied=False,
        rope_theta=500_000.0,
        source="the published configuration of Llama 3 70B",
    ),
    # The LASM paper gives 134M parameters, 12 layers, width 768 and 12 heads and nothing else. An inner width of 2,048
    # and an untied vocabulary of 32,000 (LLaMA 130M's) meet 134M; they are our reading, not the paper's words.
    "qwen-134m": Preset(
        family="qwen",
        layers=12,
        width=768,
        heads=12,
        mlp=2048,
        vocabulary=32_000,
        tied=False,
        norm_eps=1e-6,
        source="LASM (12 layers, width 768, 12 heads, 134M); inner width, vocabulary and untied head are inferred",
    ),
    "smollm2-360m": Preset(
        family="llama",
        layers=32,
        width=960,
        heads=15,
        kv_heads=5,
        mlp=2560,
        vocabulary=49_152,
        positions=8192,
        rope_theta=100_000.0,
        source="the published configuration of SmolLM2-360M",
    ),
}
ALIASES = {size: f"{size}-llama" for size in ("tiny", "mini", "small")}


def _configuration(preset: Preset) -> Any:
    from transformers import GPT2Config, LlamaConfig, Qwen3Config

    common: dict[str, Any] = {
        "vocab_size": preset.vocabulary,
        "tie_word_embeddings": preset.tied,
        "use_cache": False,
        "initializer_range": preset.init_std,
        # Document boundaries are ordinary tokens of the corpus here; no id of the model means anything special.
        "bos_token_id": None,
        "eos_token_id": None,
    }
    if preset.attention is not None:
        common["attn_implementation"] = preset.attention
    if preset.family == "gpt2":
        return GPT2Config(
            n_layer=preset.layers, n_embd=preset.width, n_head=preset.heads, n_positions=preset.positions,
            n_inner=preset.mlp, layer_norm_epsilon=preset.norm_eps,
            resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, **common,
        )  # fmt: skip
    kind = LlamaConfig if preset.family == "llama" else Qwen3Config
    return kind(
        num_hidden_layers=preset.layers, hidden_size=preset.width, num_attention_heads=preset.heads,
        num_key_value_heads=preset.kv_heads or preset.heads, head_dim=preset.width // preset.heads,
        intermediate_size=preset.mlp, max_position_embeddings=preset.positions, rms_norm_eps=preset.norm_eps,
        rope_parameters={"rope_type": "default", "rope_theta": preset.rope_theta}, **common,
    )  # fmt: skip


def inline(model: str | Mapping[str, Any]) -> str | dict[str, Any]:
    """Replace the path of a configuration (a file, or a folder with config.json) by its contents; check a name.

    Raises:
        UserError: no preset and no file has that name, or the file is no transformers configuration.
    """
    if isinstance(model, Mapping):
        if "preset" in model:
            name = ALIASES.get(str(model["preset"]), str(model["preset"]))
            if name not in PRESETS:
                raise unknown("model preset", name, [*ALIASES, *PRESETS])
            return {**model, "preset": name}
        if "model_type" not in model:
            raise UserError("a model given as a mapping needs 'preset' or transformers' 'model_type'.")
        return dict(model)
    name = ALIASES.get(model, model)
    if name in PRESETS:
        return name
    path = Path(model)
    path = path / "config.json" if path.is_dir() else path
    if not path.is_file():
        raise unknown("model", model, [*ALIASES, *PRESETS])
    try:
        contents = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not JSON: {error}") from None
    if not isinstance(contents, dict) or "model_type" not in contents:
        raise UserError(f"{path} is not a transformers configuration: it has no 'model_type'.")
    return contents


def configuration(
    model: str | Mapping[str, Any], vocabulary_size: int | None = None, sequence_length: int | None = None
) -> Any:
    """Return the transformers configuration of a preset, a file or a mapping.

    Args:
        model: see `steepest.lab.config.Workload`.
        vocabulary_size: of the corpus; None keeps the preset's. A model's own, padded vocabulary is kept when it
            is larger by no more than 1%.
        sequence_length: checked against the number of positions the model has.
    """
    import transformers

    model = inline(model)
    name, changes = (model, {}) if isinstance(model, str) else (str(model.get("preset", "")), dict(model))
    changes.pop("preset", None)
    if name:
        config = _configuration(PRESETS[name])
        for key, value in changes.items():
            if not hasattr(config, key):
                raise unknown(f"key of model {name!r}", key, config.to_dict())
            setattr(config, key, value)
    else:
        kind = changes.pop("model_type")
        if kind not in transformers.CONFIG_MAPPING:
            raise unknown("model_type", str(kind), transformers.CONFIG_MAPPING)
        config = transformers.CONFIG_MAPPING[kind](**changes)
    if vocabulary_size is not None and not 0 <= config.vocab_size / vocabulary_size - 1 <= _PADDING:
        config.vocab_size = vocabulary_size
    positions = getattr(config, "max_position_embeddings", None)
    if sequence_length is not None and positions is not None and sequence_length > positions:
        raise UserError(
            f"sequence_length {sequence_length} is longer than the {positions} positions of model {name or kind!r}. "
            "Shorten it, or raise the model's positions."
        )
    return config


def build(
    model: str | Mapping[str, Any],
    vocabulary_size: int | None = None,
    seed: int = 0,
    sequence_length: int | None = None,
    device: str = "cpu",
) -> nn.Module:
    """Build a language model whose initial weights depend on the seed alone (drawn on the CPU, in float32).

    The state of the random number generators is left as it was. `device="meta"` allocates nothing, for counting.
    Errors are those of `configuration`.
    """
    import transformers

    config = configuration(model, vocabulary_size, sequence_length)
    preset = PRESETS.get(_name(model))
    with torch.random.fork_rng(devices=[]), torch.device("meta" if device == "meta" else "cpu"):
        torch.default_generator.manual_seed(seed)
        network: nn.Module = transformers.AutoModelForCausalLM.from_config(config)
    if preset is not None and preset.family == "gpt2" and not preset.biases:
        _drop_biases(network)
    if preset is not None and preset.family != "gpt2" and preset.scaled_residuals:
        _scale_residuals(network, preset.layers)
    return network if device == "meta" else network.to(device)


def describe(model: str | Mapping[str, Any], vocabulary_size: int | None = None) -> dict[str, Any]:
    """Return name, family, layers, width and exact parameter counts without allocating the model."""
    network = build(model, vocabulary_size, device="meta")
    config: Any = network.config
    embeddings = {
        id(parameter)
        for module in (*_embeddings(network), _head(network))
        if module is not None
        for parameter in module.parameters(recurse=False)
    }
    sizes = {id(parameter): parameter.numel() for parameter in network.parameters()}
    name = _name(model)
    return {
        "name": name or config.model_type,
        "family": PRESETS[name].family if name in PRESETS else config.model_type,
        "layers": config.num_hidden_layers,
        "width": config.hidden_size,
        "heads": config.num_attention_heads,
        "vocabulary_size": config.vocab_size,
        "tied": bool(config.tie_word_embeddings),
        "parameters": sum(sizes.values()),
        "non_embedding_parameters": sum(size for key, size in sizes.items() if key not in embeddings),
    }


def _name(model: str | Mapping[str, Any]) -> str:
    inlined = inline(model)
    return inlined if isinstance(inlined, str) else str(inlined.get("preset", ""))


def _embeddings(network: nn.Module) -> list[nn.Module]:
    return [module for module in network.modules() if isinstance(module, nn.Embedding)]


def _head(network: nn.Module) -> nn.Module | None:
    head = network.get_output_embeddings()  # type: ignore[operator]
    return head if isinstance(head, nn.Module) else None


def _drop_biases(network: nn.Module) -> None:
    # transformers' GPT-2 cannot be configured without biases. Its Conv1D adds one unconditionally, so there it becomes
    # a constant zero that is no parameter; LayerNorm accepts none at all.
    for module in network.modules():
        bias = module._parameters.get("bias")
        if bias is None:
            continue
        del module._parameters["bias"]
        if isinstance(module, nn.LayerNorm | nn.Linear):
            module.register_parameter("bias", None)
        else:
            module.register_buffer("bias", torch.zeros_like(bias), persistent=False)


def _scale_residuals(network: nn.Module, layers: int) -> None:
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if name.endswith(("o_proj.weight", "down_proj.weight")):
                parameter.mul_(1.0 / math.sqrt(2 * layers))
