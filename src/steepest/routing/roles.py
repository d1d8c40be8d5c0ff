"""Roles: what every parameter of a model is. Module types and identity decide first, names second, sizes never."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.nn.parameter import UninitializedParameter

from steepest.routing.views import View

KINDS = (
    "embedding",  # token and type tables, also when tied to the output head
    "position",  # learned position tables, relative ones too
    "head",  # the untied output layer
    "attention",
    "mlp",
    "conv",
    "mixer",  # matrices of state-space models, linear attention and recurrent layers
    "expert",  # routed experts of a mixture; a shared expert is an mlp
    "router",
    "adapter",  # LoRA factors
    "linear",  # a matrix of which nothing says more
    "norm",  # gains and biases of normalisation layers
    "bias",
    "vector",  # other parameters that are no matrices: layer scales, class tokens, A_log, D, dt_bias, ...
)
HIDDEN = frozenset({"attention", "mlp", "conv", "mixer", "expert", "adapter", "linear"})
"""Kinds that are hidden matrices, the ones a matrix rule takes by default. Not the router: it is a small classifier,
like an output head."""


@dataclass(frozen=True, kw_only=True)
class Role:
    """What a parameter is.

    Attributes:
        kind: one of ``KINDS``.
        layer: running number of the repeated block the parameter is in, over the whole model (a decoder's layers go on
            where the encoder's end, and stages are numbered through); None outside of them.
        block: the part of the layer, so that (layer, block) is a partition of the matrices: "attention", "mlp" (experts
            too), "mixer", "conv", "router", "embedding" (position tables, patch and stem convolutions too), "head", or
            "linear" if nothing is known; all normalisation layers are in "norm"; a bias or vector is in the block of
            the matrices beside it, or in "vector" if there are none.
        view: how the tensor is a stack of matrices; ``element`` if it is none.
        tied: other names of the same parameter.
        why: what decided, in a few words.
    """

    kind: str
    layer: int | None
    block: str
    view: View
    tied: tuple[str, ...] = ()
    why: str


def roles(model: nn.Module) -> dict[str, Role]:
    """The role of each parameter by its clean name, in the order of ``model.named_parameters()``.

    A clean name has no trace of a wrapper (DDP, ``torch.compile``, FSDP, activation checkpointing, PEFT), so that the
    result is the same before and after wrapping. A parameter with several names has one entry, under the first; the
    role of an embedding wins.

    Args:
        model: any module, wrapped or not.

    Raises:
        ValueError: a parameter fits nothing, is flattened (FSDP1) or not yet initialised (a lazy module); it is named.
    """
    return {name: role for name, _, role in named_roles(model)}


def named_roles(model: nn.Module) -> Iterator[tuple[str, nn.Parameter, Role]]:
    """(clean name, parameter, role), once for each distinct parameter, in the order of ``model.named_parameters()``.

    Raises:
        ValueError: as for ``roles``.
    """
    for name, parameter, role in claim(model):
        if role.kind == "unknown":
            raise ValueError(unknown_message(name, parameter))
        yield name, parameter, role


def unknown_message(name: str, parameter: nn.Parameter) -> str:
    """What to say of a parameter that fits no role."""
    return (
        f"parameter {name!r} of shape {tuple(parameter.shape)} fits no known role: neither its module nor its name say "
        f"what its axes are; claim it by a pattern of its own, steepest.route(model, [({name!r}, rule), ...]), with "
        "a rule that works on elements or has a view (view='batch' for a stack of (out, in) matrices)"
    )


# The walk -------------------------------------------------------------------------------------------------------------

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


@dataclass(frozen=True)
class _Place:
    """Where a module stands, handed down the tree so that each module costs the same.

    Attributes:
        name: clean name of the module.
        attribute: its name in its parent.
        parent: the module around it, without wrappers.
        zone: the part of a layer that module types and names say it is in, if any.
        layer: see ``Role``.
        head: name of the output head it is in, if any.
        adapter: whether it is inside a LoRA layer's own part.
    """

    name: str = ""
    attribute: str = ""
    parent: nn.Module | None = None
    zone: str = ""
    layer: int | None = None
    head: str = ""
    adapter: bool = False


@dataclass(frozen=True)
class _Owned:
    """One name of one parameter. ``owner`` and ``leaf`` see through a parametrisation, ``name`` does not."""

    name: str
    parameter: nn.Parameter
    owner: nn.Module
    leaf: str
    place: _Place


@dataclass
class _Walk:
    """Everything that one pass over the modules collects."""

    owned: list[_Owned] = field(default_factory=list)
    layers: int = 0
    heads: dict[str, nn.Module] = field(default_factory=dict)  # name of an output head -> its last linear module
    inputs: set[int] = field(default_factory=set)  # ids of modules that the model calls its input embeddings
    outputs: set[int] = field(default_factory=set)  # ids of modules that the model calls its output embeddings


def claim(model: nn.Module) -> Iterator[tuple[str, nn.Parameter, Role]]:
    """Like ``named_roles``, with a role of the kind "unknown" for a parameter that fits nothing."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"roles are those of a torch.nn.Module, got {type(model).__name__}")
    walk = _Walk()
    _visit(model, _Place(), walk)
    _last_of_sequential(model, walk)
    names: dict[int, list[_Owned]] = {}
    for owned in walk.owned:
        names.setdefault(id(owned.parameter), []).append(owned)
    for same in names.values():
        first = same[0]
        winner = next((o for o in same if _is_embedding(o.owner)), first)
        tied = tuple(dict.fromkeys(o.name for o in same if o.name != first.name))
        role = _role(winner, walk)
        if tied:
            role = replace(role, tied=tied, why=f"{role.why}, tied to {_listing(tied)}")
        yield first.name, first.parameter, role


def _visit(module: nn.Module, place: _Place, walk: _Walk, owner: tuple[nn.Module, str, _Place] | None = None) -> None:
    """Collect the parameters of a module, then those of its children, in the order of ``named_parameters``."""
    inner = _wrapped(module)
    for leaf, parameter in module._parameters.items():
        if parameter is not None:
            name = f"{place.name}.{leaf}" if place.name else leaf
            seen = owner if owner is not None else (module, leaf, place)
            _check_whole(name, parameter)
            walk.owned.append(_Owned(name, parameter, seen[0], _unparametrised(module, leaf, seen[1]), seen[2]))
    _note_identity(module, walk)
    if place.head and _is_linear(module) and id(walk.heads.get(place.head)) not in walk.outputs:
        walk.heads[place.head] = module
    first_layer = _open_layers(module, place, walk)
    for i, (attribute, child) in enumerate(module._modules.items()):
        if child is None:
            continue
        if inner == attribute:
            _visit(child, place, walk)
            continue
        if inner == "original_module" and attribute == "modules_to_save":  # PEFT's trained copies of a whole module
            _visit_copies(child, place, id(_unwrapped(module)) in walk.outputs, walk)
            continue
        below = replace(
            place, name=f"{place.name}.{attribute}" if place.name else attribute, attribute=attribute, parent=module
        )
        if attribute == "parametrizations":
            for leaf, chain in child._modules.items():
                if chain is not None:
                    _visit(chain, replace(below, name=f"{below.name}.{leaf}"), walk, (module, leaf, place))
            continue
        if first_layer is not None:
            below = replace(below, layer=first_layer + i)
        _visit(child, _enter(below, _unwrapped(child)), walk)


def _visit_copies(copies: nn.Module, place: _Place, output: bool, walk: _Walk) -> None:
    for adapter, copy in copies._modules.items():
        if copy is not None:
            if output:
                walk.outputs.add(id(copy))
            _visit(copy, replace(place, name=f"{place.name}.modules_to_save.{adapter}"), walk)


def _enter(place: _Place, module: nn.Module) -> _Place:
    """The place of a child, with the zone, head and adapter that its type and name add."""
    if place.adapter or place.attribute.startswith("lora_"):
        return replace(place, adapter=True, zone="embedding" if "embedding" in place.attribute else place.zone)
    if place.zone in ("expert", "router"):  # an expert's own mlp is still an expert
        return place
    zone = zone_of(class_name(module), place.attribute)
    if place.attribute == "gate" and place.parent is not None and "experts" in place.parent._modules:
        zone = "router"
    if not zone and place.layer is not None and not place.zone and place.attribute in ("intermediate", "output"):
        zone = "mlp"  # BERT's names for its two halves
    if zone:
        return replace(place, zone=zone)
    if place.layer is None and not place.zone:
        if not place.head and HEADS.search(place.attribute):
            return replace(place, head=place.name)
        if STEM.search(place.attribute):
            return replace(place, zone="embedding")
    return place


def _open_layers(module: nn.Module, place: _Place, walk: _Walk) -> int | None:
    """Number of the first layer if the children of this module are repeated blocks, else None.

    Blocks are the composite elements of a ``ModuleList`` or ``Sequential``. Not elements that hold such a list named
    "blocks" or "layers" themselves: those are stages. A model that is a ``Sequential`` has its elements as layers.
    """
    if place.layer is not None or place.zone or place.head or not isinstance(module, (nn.ModuleList, nn.Sequential)):
        return None
    elements = [_unwrapped(child) for child in module._modules.values() if child is not None]
    composite = any(element._modules for element in elements)
    stages = any(isinstance(e._modules.get(n), nn.Module) for e in elements for n in ("blocks", "layers"))
    if stages or not (composite or not place.name):
        return None
    walk.layers += len(elements)
    return walk.layers - len(elements)


def _last_of_sequential(model: nn.Module, walk: _Walk) -> None:
    """Note the output layer of a plain ``nn.Sequential``: the last parameters are those of a linear element."""
    root = _unwrapped(model)
    if class_name(root) != "Sequential" or not walk.owned:
        return
    last = walk.owned[-1].owner
    if last in [_unwrapped(e) for e in root._modules.values() if e is not None] and _is_linear(last):
        first = next(o.owner for o in walk.owned if o.parameter.ndim > 1)
        if first is not last:
            walk.heads[""] = last


def _note_identity(module: nn.Module, walk: _Walk) -> None:
    """Note which modules a model itself calls its input and output embeddings."""
    for method, found in (("get_input_embeddings", walk.inputs), ("get_output_embeddings", walk.outputs)):
        ask = getattr(module, method, None)
        if callable(ask):
            try:
                answer = ask()
            except (NotImplementedError, AttributeError):  # a model without such a part says so in this way
                continue
            if isinstance(answer, nn.Module):
                found.add(id(_unwrapped(answer)))


def _check_whole(name: str, parameter: nn.Parameter) -> None:
    """Refuse a parameter that is not the tensor of a module."""
    if type(parameter).__name__ == "FlatParameter" or name.rpartition(".")[2].startswith("_flat_param"):
        raise ValueError(
            f"parameter {name!r} is a flattened FSDP1 parameter, in which no matrix can be seen; shard the model with "
            "torch.distributed.fsdp.fully_shard (FSDP2) instead"
        )
    if isinstance(parameter, UninitializedParameter):
        raise ValueError(
            f"parameter {name!r} is not initialised yet; run the lazy model once before asking for its roles"
        )


# One parameter --------------------------------------------------------------------------------------------------------


def _role(owned: _Owned, walk: _Walk) -> Role:
    kind, view, why = _classify(owned, walk) or ("unknown", View(element=True), "fits no known role")
    if owned.parameter.ndim < 2 and view.is_matrix:
        raise ValueError(
            f"parameter {owned.name!r} is a matrix ({kind}) of a {class_name(owned.owner)}, but has shape "
            f"{tuple(owned.parameter.shape)}: it looks flattened, as by FSDP1; shard the model with "
            "torch.distributed.fsdp.fully_shard (FSDP2) instead"
        )
    return Role(kind=kind, layer=owned.place.layer, block=_block(owned, kind, walk), view=view, why=why)


def _block(owned: _Owned, kind: str, walk: _Walk) -> str:
    place = owned.place
    if kind in ("norm", "embedding", "head", "router"):
        return kind
    if kind == "position":
        return "embedding"
    if place.zone == "embedding":
        return "embedding"
    if place.head or owned.owner is walk.heads.get(""):
        return "head"
    if kind not in ("attention", "mlp", "mixer", "expert", "linear"):  # the block of the matrices beside it
        own = "conv" if isinstance(owned.owner, _ConvNd) else "vector" if kind == "vector" else "linear"
        kind = _zone(owned) or _hint(place.attribute) or own
    return {"expert": "mlp", "unknown": "linear"}.get(kind, kind)


def _zone(owned: _Owned) -> str:
    """The part of a layer that types and names say a parameter is in; "" if they do not."""
    zone = zone_of(class_name(owned.owner), "") or owned.place.zone
    if not zone and owned.place.parent is not None:  # a part of a layer that is the whole model
        zone = zone_of(class_name(owned.place.parent), "")
    return "" if zone == "embedding" else zone  # a projection beside the tables


def _classify(owned: _Owned, walk: _Walk) -> tuple[str, View, str] | None:  # noqa: PLR0911 (a decision list)
    """(kind, view, why) of a parameter: by the type of its module, then by names."""
    module, leaf, place = owned.owner, owned.leaf, owned.place
    cls = class_name(module)
    element = View(element=True)
    if leaf == GAIN:
        return "vector", element, f"gain of a weight-normalised {cls}"
    if place.adapter or leaf.startswith("lora_"):
        if "magnitude" in owned.name:
            return "vector", element, "magnitude of an adapter"
        return "adapter", _conv_view(module) if isinstance(module, _ConvNd) else View(), "adapter factor"
    if _is_norm(module):
        return "norm", element, cls
    if leaf == "weight" and (_is_embedding(module) or (id(module) in walk.inputs and not isinstance(module, _ConvNd))):
        table = "position" if POSITION.search(place.attribute) or "Position" in cls else "embedding"
        return table, View(), f"{cls}, {place.attribute}" if place.attribute else cls
    if leaf == "bias" or (
        BIAS.search(leaf) and isinstance(module, (nn.RNNBase, nn.RNNCellBase, nn.MultiheadAttention))
    ):
        return "bias", element, f"{leaf} of {cls}"
    if isinstance(module, _ConvNd):
        return "conv", _conv_view(module), f"{cls}{_conv_note(module)}"
    if isinstance(module, nn.MultiheadAttention):
        fused = leaf == "in_proj_weight"
        rows = (module.embed_dim,) * 3 if fused else ()
        return "attention", View(rows=rows), f"{cls}, fused q, k, v" if fused else f"{cls}, {leaf}"
    if isinstance(module, (nn.RNNBase, nn.RNNCellBase)):
        return _recurrent(module, leaf)
    word = place.attribute if leaf in ("weight", "data") or leaf.isdigit() else leaf
    if _is_linear(module):
        return _matrix(owned, walk, cls, word)
    return _bare(owned, cls, word) or _matrix(owned, walk, cls, word)


def _bare(owned: _Owned, cls: str, word: str) -> tuple[str, View, str] | None:
    """The part of ``_classify`` for parameters whose module has no known type: by name; None for a matrix."""
    leaf, ndim = owned.leaf, owned.parameter.ndim
    view = View(batch=ndim > 2, element=ndim < 2)
    why = f"{leaf} of {cls}"
    if VECTOR.search(word):
        return "vector", View(element=True), why
    if POSITION.search(word):
        return "position", view, why
    if BIAS.search(leaf):
        return "bias", View(element=True), why
    if NORM_NAME.search(word) and leaf == "weight":
        return "norm", View(element=True), f"{cls} named {word}"
    if ndim < 2:
        return "vector", View(element=True), why
    return ("embedding", view, why) if EMBEDDING_NAME.search(word) else None


def _matrix(owned: _Owned, walk: _Walk, cls: str, word: str) -> tuple[str, View, str] | None:
    """The part of ``_classify`` that is left: matrices, and stacks of them in one tensor."""
    module, place, parameter = owned.owner, owned.place, owned.parameter
    if _is_linear(module):
        if id(module) in walk.outputs:
            return "head", View(), "the model's output embedding"
        if place.head and walk.heads.get(place.head) is module:
            return "head", View(), f"last {cls} of {place.head.rpartition('.')[2]}"
        if walk.heads.get("") is module:
            return "head", View(), "last layer of a plain Sequential"
    own, zone = zone_of(cls, ""), _zone(owned)
    kind = zone or _hint(word) or "linear"
    why = cls if own or kind == "linear" else f"{cls} in {zone}" if zone else f"{cls} named {word}"
    if parameter.ndim > 2 and not isinstance(module, nn.Bilinear):
        return _expert(owned, why) if kind == "expert" else None
    transposed = cls == "Conv1D"
    if isinstance(module, nn.Bilinear):
        return kind, View(flatten=True), why
    rows, note = _sections(owned, word, kind, transposed)
    return kind, View(transposed=transposed, rows=rows), why + note


def _expert(owned: _Owned, why: str) -> tuple[str, View, str]:
    """Experts in one tensor: (experts, out, in), or (experts, in, out) where the module says so."""
    module, shape = owned.owner, tuple(owned.parameter.shape)
    transposed = getattr(module, "is_transposed", None)
    if transposed is None:  # then the axis of the model's width tells: what goes down writes it, the others read it
        width = _number(module, "hidden_size", "hidden_dim", "dim")
        out, read = shape[-2:]
        if "down" in owned.leaf or owned.leaf in ("w2", "wo"):
            out, read = read, out
        transposed = width is not None and read != width and out == width
    rows: tuple[int, ...] = ()
    note = ""
    if owned.leaf in GATE_UP:
        out = shape[-1] if transposed else shape[-2]
        if getattr(module, "is_concatenated", True):
            rows, note = (out // 2, out - out // 2), ", fused gate and up"
        else:
            note = ", gate and up interleaved, kept joined"
    return "expert", View(batch=True, transposed=bool(transposed), rows=rows), why + note


def _sections(owned: _Owned, word: str, kind: str, transposed: bool) -> tuple[tuple[int, ...], str]:  # noqa: PLR0911
    """Sections of a fused matrix along its out axis, from what the module around it declares, and a note."""
    if owned.parameter.ndim != 2:
        return (), ""
    size, width = tuple(owned.parameter.shape) if not transposed else tuple(owned.parameter.shape)[::-1]
    if word in GATE_UP and size % 2 == 0:
        return (size // 2, size // 2), ", fused gate and up"
    if kind != "attention" or word not in FUSED_QKV:
        return (), ""
    parent = owned.place.parent
    if word == "query_key_value" or (parent is not None and INTERLEAVED.search(class_name(parent))):
        return (), ", q, k, v interleaved by head, kept joined"
    heads = _number(parent, "num_heads", "num_attention_heads", "n_heads", "n_head", "nhead")
    keys = _number(parent, "num_key_value_heads", "num_kv_heads", "n_kv_heads", "n_kv_head", "kv_n_heads", "kv_heads")
    head = _number(parent, "head_dim", "head_size", "attention_head_size") or (width // heads if heads else None)
    if heads and head:
        query, key = heads * head, (keys or heads) * head
        if query + 2 * key == size:
            return (query, key, key), ", fused q, k, v"
        if 2 * key == size:
            return (key, key), ", fused k, v"
    if "qkv" not in word.lower() and word != "c_attn":
        return (), ""
    if keys is None and size % 3 == 0:
        return (size // 3,) * 3, ", fused q, k, v"
    return (), ", fused q, k, v of unknown sizes, kept joined"


def _recurrent(module: nn.RNNBase | nn.RNNCellBase, leaf: str) -> tuple[str, View, str]:
    gates = 4 if isinstance(module, (nn.LSTM, nn.LSTMCell)) else 3 if isinstance(module, (nn.GRU, nn.GRUCell)) else 1
    cls = class_name(module)
    if gates == 1 or leaf.startswith("weight_hr"):
        return "mixer", View(), cls
    return "mixer", View(rows=(module.hidden_size,) * gates), f"{cls}, {gates} fused gates"


def _conv_view(module: _ConvNd) -> View:
    """A convolution as a matrix (out, in x taps), each group for itself; a transposed one is stored the other way."""
    if isinstance(module, _ConvTransposeNd):
        return View(flatten=True, transposed=True)
    return View(flatten=True, heads=(module.groups,) if module.groups > 1 else ())


def _conv_note(module: _ConvNd) -> str:
    if module.groups == 1:
        return ""
    return ", depthwise" if module.groups == module.in_channels else f", {module.groups} groups"


# Types and names ------------------------------------------------------------------------------------------------------

# Zones by class name, first match wins, then by the name of the module in its parent.
CLASS_ZONES = (
    ("router", re.compile(r"Router|TopK?Gate$|MoE?Gate$")),
    ("expert", re.compile(r"Experts$")),
    (
        "mixer",
        re.compile(
            r"Mixer$|DeltaNet|L(inear|ightning)Attention|^Mamba\d?$|SSM|TimeMix|Rwkv\w*Attention|RGLRU|Hyena|^(LSTM|GRU|RNN)(Cell)?$"
        ),
    ),
    ("attention", re.compile(r"Attention|Attn|MHA$|MLA$")),
    (
        "mlp",
        re.compile(r"MLP|Mlp|FFN|FeedForward|DenseReluDense|Dense(Gated)?ActDense|GLU(?!E)|(Moe|MoE)(Block|Layer)?$"),
    ),
)
NAME_ZONES = (
    ("router", re.compile(r"^(router|shared_expert_gate)$")),
    ("mlp", re.compile(r"shared_experts?|(^|_)(mlp|ffn|ff|moe|feed_?forward)($|_)", re.IGNORECASE)),
    ("expert", re.compile(r"^experts?$")),
    ("mixer", re.compile(r"(^|_)(mixer|mamba|ssm|linear_attn|time_mix)($|_|\d)")),
    ("attention", re.compile(r"(^|_)(attn|mha)\d?($|_)|attention", re.IGNORECASE)),
)
HINTS = (
    (
        "attention",
        re.compile(r"^((to_)?(q|k|v|o|qkv|kv|query|key|value)(_?proj|_lin|_linear)?|c_attn|wqkv|query_key_value)$"),
    ),
    (
        "mlp",
        re.compile(
            r"^((gate|up|down|gate_up)_proj|c_fc|w[123]|w[io](_\d)?|(fc|linear|lin|pwconv)_?\d)$", re.IGNORECASE
        ),
    ),
)
FUSED_QKV = {
    "c_attn",
    "qkv",
    "qkv_proj",
    "Wqkv",
    "wqkv",
    "to_qkv",
    "query_key_value",
    "kv_proj",
    "to_kv",
    "Wkv",
    "attn_qkv",
}
GATE_UP = {"gate_up_proj", "gate_and_up_proj", "Wi", "w12", "w13"}
INTERLEAVED = re.compile(r"^(GPTBigCode|CodeGen)|Lightning")  # their fused rows go head by head
HEADS = re.compile(
    r"(^|_)(heads?|classifier|logits)$|^(score|fc|output|output_layer|output_projection|embed_out|unembed(ding)?|"
    r"qa_outputs|proj_out|generator)$"
)
STEM = re.compile(r"embed|(^|_)(stem|patch)")
POSITION = re.compile(r"(^|_)(wpe|pos|rel|relative)(_|$)|(^|_)position")
NORM_NAME = re.compile(r"norm|(^|_)(ln|bn)(_|\d|$)", re.IGNORECASE)
EMBEDDING_NAME = re.compile(r"(^|_)emb(ed(ding)?s?)?(_|$)")
GAIN = "weight gain"  # stands for the name of the length that a weight normalisation splits off
BIAS = re.compile(r"(^|_)bias(es)?(_|$)")
VECTOR = re.compile(
    "|".join(
        (
            r"^(A|A_log|D|dt_bias)$|^time_(decay|first|mix|maa|faaaa)",  # of state-space models and RWKV
            r"(^|(?<!embed)_)tokens?(?!_emb)(_|$)|^class_embed|^(cls|mask(ed)?)_(spec_)?emb",  # cls_token, mask_tokens_1
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
    by_class = next((zone for zone, pattern in CLASS_ZONES if pattern.search(cls)), "")
    if by_class == "expert" or not attribute:
        return by_class
    by_name = next((zone for zone, pattern in NAME_ZONES if pattern.search(attribute)), "")
    return by_class or by_name


@lru_cache(maxsize=65536)
def _hint(word: str) -> str:
    return next((kind for kind, pattern in HINTS if pattern.search(word)), "")


@lru_cache(maxsize=4096)
def _wrapper_child(cls: type) -> str:
    return next((WRAPPERS[c.__name__] for c in cls.__mro__ if c.__name__ in WRAPPERS), "")


def _wrapped(module: nn.Module) -> str:
    """Name of the child that a wrapper wraps; "" for a module that is no wrapper."""
    cls: Any = type(module)
    child = _wrapper_child(cls)
    return child if child in module._modules else ""


def _unwrapped(module: nn.Module) -> nn.Module:
    while child := _wrapped(module):
        module = module._modules[child]  # type: ignore[assignment]
    return module


def _unparametrised(module: nn.Module, leaf: str, seen: str) -> str:
    """Name of the tensor that a parametrisation makes; its gain, for the first part of a weight normalisation."""
    if class_name(module) == "ParametrizationList":
        normed = any("WeightNorm" in type(m).__name__ for m in module._modules.values())
        return GAIN if normed and leaf == "original0" else seen
    return {"weight_orig": "weight", "weight_v": "weight", "weight_g": GAIN}.get(leaf, leaf)


def _is_embedding(module: nn.Module) -> bool:
    return isinstance(module, (nn.Embedding, nn.EmbeddingBag)) or (
        class_name(module).endswith("Embedding") and not module._modules and "weight" in module._parameters
    )


def _is_linear(module: nn.Module) -> bool:
    cls = class_name(module)
    return isinstance(module, nn.Linear) or ("weight" in module._parameters and ("Linear" in cls or cls == "Conv1D"))


def _is_norm(module: nn.Module) -> bool:
    if isinstance(module, (nn.LayerNorm, nn.RMSNorm, nn.GroupNorm, _NormBase)):
        return True
    return not module._modules and re.search(r"Norm(?!al)|GRN$", class_name(module)) is not None


def _number(module: nn.Module | None, *names: str) -> int | None:
    """The first of some whole numbers that a module, or else its config, declares."""
    for holder in (module, getattr(module, "config", None)):
        for name in names:
            value = getattr(holder, name, None)
            if isinstance(value, int) and not isinstance(value, bool):
                return value
    return None


def _listing(names: tuple[str, ...]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
