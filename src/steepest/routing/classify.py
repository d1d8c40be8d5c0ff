"""One parameter: its kind, its view and its block, from the type of its module, then from names, never from sizes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from steepest.routing import names
from steepest.routing.views import View

if TYPE_CHECKING:
    from steepest.routing.roles import Owned, Walk


def block(owned: Owned, kind: str, walk: Walk) -> str:
    """The part of its layer that a parameter of this kind is in; see ``Role``."""
    place = owned.place
    if kind in ("norm", "embedding", "head", "router"):
        return kind
    if kind == "position" or place.zone == "embedding":
        return "embedding"
    if place.head or owned.owner is walk.heads.get(""):
        return "head"
    if kind not in ("attention", "mlp", "mixer", "expert", "linear"):  # the block of the matrices beside it
        own = "conv" if isinstance(owned.owner, _ConvNd) else "vector" if kind == "vector" else "linear"
        kind = _zone(owned) or names.zone_of_matrix(place.attribute) or own
    return {"expert": "mlp", "unknown": "linear"}.get(kind, kind)


def _zone(owned: Owned) -> str:
    """The part of a layer that types and names say a parameter is in; "" if they do not."""
    zone = names.zone_of(names.class_name(owned.owner), "") or owned.place.zone
    if not zone and owned.place.parent is not None:  # a part of a layer that is the whole model
        zone = names.zone_of(names.class_name(owned.place.parent), "")
    return "" if zone == "embedding" else zone  # a projection beside the tables


def classify(owned: Owned, walk: Walk) -> tuple[str, View, str] | None:  # noqa: PLR0911 (a decision list)
    """(kind, view, why) of a parameter: by the type of its module, then by names."""
    module, leaf, place = owned.owner, owned.leaf, owned.place
    cls = names.class_name(module)
    element = View(element=True)
    if leaf == names.GAIN:
        return "vector", element, f"gain of a weight-normalised {cls}"
    if place.adapter or leaf.startswith("lora_"):
        if "magnitude" in owned.name:
            return "vector", element, "magnitude of an adapter"
        return "adapter", _conv_view(module) if isinstance(module, _ConvNd) else View(), "adapter factor"
    if names.is_norm(module):
        return "norm", element, cls
    if leaf == "weight" and (
        names.is_embedding(module) or (id(module) in walk.inputs and not isinstance(module, _ConvNd))
    ):
        table = "position" if names.POSITION.search(place.attribute) or "Position" in cls else "embedding"
        return table, View(), f"{cls}, {place.attribute}" if place.attribute else cls
    if leaf == "bias" or (
        names.BIAS.search(leaf) and isinstance(module, (nn.RNNBase, nn.RNNCellBase, nn.MultiheadAttention))
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
    if names.is_linear(module):
        return _matrix(owned, walk, cls, word)
    return _bare(owned, cls, word) or _matrix(owned, walk, cls, word)


def _bare(owned: Owned, cls: str, word: str) -> tuple[str, View, str] | None:
    """The part of ``_classify`` for parameters whose module has no known type: by name; None for a matrix."""
    leaf, ndim = owned.leaf, owned.parameter.ndim
    view = View(batch=ndim > 2, element=ndim < 2)
    why = f"{leaf} of {cls}"
    if names.VECTOR.search(word):
        return "vector", View(element=True), why
    if names.POSITION.search(word):
        return "position", view, why
    if names.BIAS.search(leaf):
        return "bias", View(element=True), why
    if names.NORM_NAME.search(word) and leaf == "weight":
        return "norm", View(element=True), f"{cls} named {word}"
    if ndim < 2:
        return "vector", View(element=True), why
    return ("embedding", view, why) if names.EMBEDDING_NAME.search(word) else None


def _matrix(owned: Owned, walk: Walk, cls: str, word: str) -> tuple[str, View, str] | None:
    """The part of ``_classify`` that is left: matrices, and stacks of them in one tensor."""
    module, place, parameter = owned.owner, owned.place, owned.parameter
    if names.is_linear(module):
        if id(module) in walk.outputs:
            return "head", View(), "the model's output embedding"
        if place.head and walk.heads.get(place.head) is module:
            return "head", View(), f"last {cls} of {place.head.rpartition('.')[2]}"
        if walk.heads.get("") is module:
            return "head", View(), "last layer of a plain Sequential"
    own, zone = names.zone_of(cls, ""), _zone(owned)
    kind = zone or names.zone_of_matrix(word) or "linear"
    why = cls if own or kind == "linear" else f"{cls} in {zone}" if zone else f"{cls} named {word}"
    if isinstance(module, nn.Bilinear):
        return kind, View(flatten=True), why
    if parameter.ndim > 2:
        return _expert(owned, why) if kind == "expert" else None
    transposed = cls == "Conv1D"
    rows, note = _sections(owned, word, kind, transposed)
    return kind, View(transposed=transposed, rows=rows), why + note


def _expert(owned: Owned, why: str) -> tuple[str, View, str]:
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
    if owned.leaf in names.GATE_UP:
        out = shape[-1] if transposed else shape[-2]
        if getattr(module, "is_concatenated", True):
            rows, note = (out // 2, out - out // 2), ", fused gate and up"
        else:
            note = ", gate and up interleaved, kept joined"
    return "expert", View(batch=True, transposed=bool(transposed), rows=rows), why + note


def _sections(owned: Owned, word: str, kind: str, transposed: bool) -> tuple[tuple[int, ...], str]:  # noqa: PLR0911
    """Sections of a fused matrix along its out axis, from what the module around it declares, and a note."""
    if owned.parameter.ndim != 2:
        return (), ""
    size, width = tuple(owned.parameter.shape) if not transposed else tuple(owned.parameter.shape)[::-1]
    if word in names.GATE_UP and size % 2 == 0:
        return (size // 2, size // 2), ", fused gate and up"
    if kind != "attention" or not names.FUSED_QKV.search(word):
        return (), ""
    parent = owned.place.parent
    if word == "query_key_value" or (parent is not None and names.INTERLEAVED.search(names.class_name(parent))):
        return (), ", q, k, v interleaved by head, kept joined"
    heads, keys = declared_heads(parent)
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
    cls = names.class_name(module)
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


def declared_heads(module: nn.Module | None) -> tuple[int | None, int | None]:
    """Numbers of query heads and of key and value heads that a module, or else its config, declares."""
    return (
        _number(module, "num_heads", "num_attention_heads", "n_heads", "n_head", "nhead"),
        _number(module, "num_key_value_heads", "num_kv_heads", "n_kv_heads", "n_kv_head", "kv_n_heads", "kv_heads"),
    )


def _number(module: nn.Module | None, *names: str) -> int | None:
    """The first of some whole numbers that a module, or else its config, declares."""
    for holder in (module, getattr(module, "config", None)):
        for name in names:
            value = getattr(holder, name, None)
            if isinstance(value, int) and not isinstance(value, bool):
                return value
    return None
