"""What module types and names mean: wrappers, parts of a layer, kinds of parameters. Types are told by class name."""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _NormBase

# Wrapper class -> the child that is the wrapped module. Names are those of the classes, so that nothing is imported.
WRAPPERS = {
    "DistributedDataParallel": "module",
    "DataParallel": "module",
    "OptimizedModule": "_orig_mod",
    "FullyShardedDataParallel": "_fsdp_wrapped_module",
    "CheckpointWrapper": "_checkpoint_wrapped_module",
    "OffloadWrapper": "_checkpoint_wrapped_module",
    "DeepSpeedEngine": "module",
    "_FabricModule": "_forward_module",
    "PeftModel": "base_model",
    "BaseTuner": "model",
    "BaseTunerLayer": "base_layer",
    "AuxiliaryTrainingWrapper": "original_module",
    "ModulesToSaveWrapper": "original_module",
}


# Parts of a layer by class name; where no class matches, by the name of the module in its parent. First match wins.
CLASS_ZONES = {
    "router": re.compile(r"Router|TopK?Gate$|MoE?Gate$"),
    "expert": re.compile(r"Experts$"),
    "mixer": re.compile(
        r"Mixer$|DeltaNet|L(inear|ightning)Attention|^Mamba\d?$|SSM|TimeMix|Rwkv\w*Attention|RGLRU|Hyena"
        r"|^(LSTM|GRU|RNN)(Cell)?$"
    ),
    "attention": re.compile(r"Attention|Attn|MHA$|MLA$"),
    "mlp": re.compile(
        r"MLP|Mlp|FFN|FeedForward|DenseReluDense|Dense(Gated)?ActDense|GLU(?!E)|(Moe|MoE)(Block|Layer)?$"
    ),
}
NAME_ZONES = {
    "router": re.compile(r"^(router|shared_expert_gate)$"),
    "mlp": re.compile(r"shared_experts?|(^|_)(mlp|ffn|ff|moe|feed_?forward)($|_)", re.IGNORECASE),
    "expert": re.compile(r"^experts?$"),
    "mixer": re.compile(r"(^|_)(mixer|mamba|ssm|linear_attn|time_mix)($|_|\d)"),
    "attention": re.compile(r"(^|_)(attn|mha)\d?($|_)|attention", re.IGNORECASE),
}
# Names of the matrices themselves, where nothing around them says more.
MATRIX_ZONES = {
    "attention": re.compile(
        r"^((to_)?(q|k|v|o|qkv|kv|query|key|value)(_?proj|_lin|_linear)?|c_attn|wqkv|query_key_value)$"
    ),
    "mlp": re.compile(
        r"^((gate|up|down|gate_up)_proj|c_fc|w[123]|w[io](_\d)?|(fc|linear|lin|pwconv)_?\d)$", re.IGNORECASE
    ),
}
FUSED_QKV = re.compile(r"^(c_attn|(attn_|to_|in_proj_)?qkv(_proj)?|[Ww]qkv|query_key_value|(to_)?kv(_proj)?|[Ww]kv)$")
GATE_UP = {"gate_up_proj", "gate_and_up_proj", "Wi", "w12", "w13"}
INTERLEAVED = re.compile(r"^(GPTBigCode|CodeGen)|Lightning")  # their fused rows go head by head
HEADS = re.compile(
    r"(^|_)(heads?|classifier|logits)$|^(score|fc|output|output_layer|output_projection|embed_out|unembed(ding)?|"
    r"qa_outputs|proj_out|generator)$"
)
STEM = re.compile(r"embed|(^|_)(stem|patch)|^downsampl(e|er|ing)(_layers?)?$")
POSITION = re.compile(r"(^|_)(wpe|pos|rel|relative)(_|$)|(^|_)position")
NORM_NAME = re.compile(r"norm|(^|_)(ln|bn)(_|\d|$)", re.IGNORECASE)
EMBEDDING_NAME = re.compile(r"(^|_)emb(ed(ding)?s?)?(_|$)")
GAIN = "weight gain"  # stands for the name of the length that a weight normalisation splits off
BIAS = re.compile(r"(^|_)bias(es)?(_|$)")
VECTOR = re.compile(
    "|".join(
        (
            r"^(A|A_log|D|dt_bias)$|^time_(decay|first|mix|maa|faaaa)",  # of state-space models and RWKV
            r"(^|(?<!embed)_)tokens?(?!_emb)(_|$)|^class_embed|^(cls|mask(ed)?)_(spec_)?emb",  # class and mask tokens
            r"(^|_)(gamma|lambda|alpha|scale|scales|scaling|temperature|sinks?|magnitude)(_?\d+)?(_|$)|logit_|^ia3_",
            r"(^|_)(latents?|probe)(_?\d+)?(_|$)|^query(_tokens)?$",  # inputs that are learned
        )
    )
)


def class_name(module: nn.Module) -> str:
    """Name of the class of a module, seen through the subclasses that FSDP2 and parametrisations make at run time."""
    cls: Any = type(module)
    return _class_name(cls)


@lru_cache(maxsize=4096)
def _class_name(cls: type) -> str:
    for base in cls.__bases__:
        if cls.__name__.removesuffix(base.__name__) in ("FSDP", "DDP", "Parametrized", "Replicate"):
            return _class_name(base)
    return cls.__name__


@lru_cache(maxsize=65536)
def zone_of(cls: str, attribute: str) -> str:
    """The part of a layer that a class name, or else the name of a module in its parent, says; "" if they do not."""
    by_class = next((zone for zone, pattern in CLASS_ZONES.items() if pattern.search(cls)), "")
    if by_class == "expert" or not attribute:
        return by_class
    by_name = next((zone for zone, pattern in NAME_ZONES.items() if pattern.search(attribute)), "")
    return by_class or by_name


@lru_cache(maxsize=65536)
def zone_of_matrix(word: str) -> str:
    """The part of a layer that the name of a matrix says it belongs to; "" if it does not."""
    return next((zone for zone, pattern in MATRIX_ZONES.items() if pattern.search(word)), "")


@lru_cache(maxsize=4096)
def _wrapper_child(cls: type) -> str:
    return next((WRAPPERS[c.__name__] for c in cls.__mro__ if c.__name__ in WRAPPERS), "")


def wrapped(module: nn.Module) -> str:
    """Name of the child that a wrapper wraps; "" for a module that is no wrapper."""
    cls: Any = type(module)
    child = _wrapper_child(cls)
    return child if child in module._modules else ""


def unwrapped(module: nn.Module) -> nn.Module:
    """The module inside all wrappers."""
    while child := wrapped(module):
        module = module._modules[child]  # type: ignore[assignment]
    return module


def unparametrised(module: nn.Module, leaf: str, seen: str) -> str:
    """Name of the tensor that a parametrisation makes; its gain, for the first part of a weight normalisation."""
    if class_name(module) == "ParametrizationList":
        normed = any("WeightNorm" in type(m).__name__ for m in module._modules.values())
        return GAIN if normed and leaf == "original0" else seen
    if {"weight_g", "weight_v"} <= module._parameters.keys():
        return {"weight_v": "weight", "weight_g": GAIN}.get(leaf, leaf)
    return "weight" if leaf == "weight_orig" else leaf


def is_embedding(module: nn.Module) -> bool:
    """Whether a module is a table that is looked up."""
    return isinstance(module, (nn.Embedding, nn.EmbeddingBag)) or (
        class_name(module).endswith("Embedding") and not module._modules and "weight" in module._parameters
    )


def is_linear(module: nn.Module) -> bool:
    """Whether a module is a linear map with a weight of its own, quantised, parallel and ``Conv1D`` ones included."""
    cls = class_name(module)
    return isinstance(module, nn.Linear) or ("weight" in module._parameters and ("Linear" in cls or cls == "Conv1D"))


def is_norm(module: nn.Module) -> bool:
    """Whether a module is a normalisation layer."""
    if isinstance(module, (nn.LayerNorm, nn.RMSNorm, nn.GroupNorm, _NormBase)):
        return True
    return not module._modules and re.search(r"Norm(?!al)|GRN$", class_name(module)) is not None
