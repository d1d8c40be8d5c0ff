"""Where a parameter belongs, (layer, block): what the roles of a model say, and what a mapping of the user says."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from torch import Tensor, nn

from steepest.routing import names
from steepest.routing.classify import declared_heads
from steepest.routing.roles import HIDDEN, Role, claim, unknown_message

Key = tuple[int, str]
"""(layer, block), for example ``(3, "attention")``."""
Place = Callable[["re.Match[str]"], "Key | None"] | Key | None
Rule = tuple["str | re.Pattern[str]", Place]
BlockMapping = Callable[[str, "nn.Module | None", Tensor], "Key | None"] | Sequence[Rule]

LEFT_OUT: Final = "left out by the mapping"
MAPPING_HELP = (
    "a callable (name, module, parameter) -> (layer, block) | None, or a list of (regular expression, (layer, block) | "
    "callable(match) | None)"
)


@dataclass(frozen=True, kw_only=True)
class Known:
    """A parameter and what its model says of it.

    Attributes:
        name: clean name.
        parameter: the tensor.
        no_matrix: why neither a role nor a mapping can make it part of a block; "" if they can.
        role: None without a model.
        module: the module that holds it, of a tied table the embedding; None without a model.
        heads: numbers of query heads and of key and value heads that the nearest module around it declares.
    """

    name: str
    parameter: Tensor
    no_matrix: str
    role: Role | None = None
    module: nn.Module | None = None
    heads: tuple[int, int] = (0, 0)


def of_model(model: nn.Module) -> Iterator[Known]:
    """Every distinct parameter of a model, in its order, under its clean name."""
    holders: dict[int, tuple[nn.Module, tuple[int, int]]] = {}
    waiting: list[tuple[nn.Module, tuple[int, int]]] = [(model, (0, 0))]
    while waiting:
        module, heads = waiting.pop()
        query, key = declared_heads(module)
        if query:
            heads = query, key or query
        for parameter in module._parameters.values():
            if parameter is not None and (id(parameter) not in holders or names.is_embedding(module)):
                holders[id(parameter)] = module, heads
        waiting += [(child, heads) for child in reversed(module._modules.values()) if child is not None]
    for name, parameter, role in claim(model):
        module, heads = holders[id(parameter)]
        reason = _no_matrix(parameter, role.kind)
        yield Known(name=name, parameter=parameter, no_matrix=reason, role=role, module=module, heads=heads)


def of_names(named: Mapping[str, Tensor] | Iterable[tuple[str, Tensor]]) -> Iterator[Known]:
    """Every distinct tensor under its first name.

    Raises:
        TypeError: something that is no pair of a name and a tensor.
        ValueError: two tensors of one name.
    """
    seen: dict[str, Tensor] = {}
    ids: set[int] = set()
    for pair in named.items() if isinstance(named, Mapping) else named:
        if not (isinstance(pair, (tuple, list)) and len(pair) == 2 and isinstance(pair[0], str)):
            raise TypeError(
                f"expected a model or (name, parameter) pairs, as model.named_parameters() gives, got {_short(pair)}"
            )
        name, parameter = pair
        if not isinstance(parameter, Tensor):
            raise TypeError(f"parameter {name!r} must be a tensor, got {type(parameter).__name__}")
        if seen.setdefault(name, parameter) is not parameter:
            raise ValueError(f"two parameters have the name {name!r}; give each a name of its own")
        if id(parameter) not in ids:
            ids.add(id(parameter))
            yield Known(name=name, parameter=parameter, no_matrix=_no_matrix(parameter, ""))


def _no_matrix(parameter: Tensor, kind: str) -> str:
    if not parameter.requires_grad:
        return "frozen"
    if not parameter.numel():
        return "empty"
    if sum(n != 1 for n in parameter.shape) < 2 and not (kind == "adapter" and parameter.ndim > 1):
        return kind if kind in ("norm", "bias") else "vector"
    return ""


# By roles -------------------------------------------------------------------------------------------------------------


def by_roles(tensors: Sequence[Known]) -> tuple[list[Key | str], frozenset[int]]:
    """For each parameter its place, or why it has none, and the numbers of the "other" layers; see ``partition``.

    Of every parameter, frozen ones too, so that the numbers do not depend on what is trained.
    """
    parts = [_part(tensor) for tensor in tensors]
    hidden = [tensor for tensor, part in zip(tensors, parts, strict=True) if part == "hidden"]
    last = max((i for i, part in enumerate(parts) if part == "hidden"), default=-1)
    # In a plain Sequential a role has the place in it, where the tokenizer and an activation have one too.
    layers = sorted({t.role.layer for t in hidden if t.role and t.role.layer is not None})
    rank = {layer: i for i, layer in enumerate(layers)}
    pointwise = _channel_mixers(hidden)
    tokenizers: dict[int, int] = {}  # gap -> layer; a gap is what stands between two hidden layers
    others: dict[int, int] = {}
    places: list[Key | str] = []
    gap, inside = 0, False
    for i, (tensor, part) in enumerate(zip(tensors, parts, strict=True)):
        role = tensor.role
        if role is None or part not in ("hidden", "tokenizer", "head", "other"):
            places.append(part)
        elif part == "hidden":
            inside = True
            layer = rank[role.layer] if role.layer is not None else 0
            places.append((layer, "mlp" if id(tensor.parameter) in pointwise else role.block))
        elif part == "head":
            places.append((len(rank), "head"))
        else:
            gap, inside = gap + inside, False
            if part == "tokenizer" or (
                role.kind == "conv" and i < last
            ):  # a stem or downsampling that has no such name
                places.append((tokenizers.setdefault(gap, -1 - len(tokenizers)), "embedding"))
            else:
                places.append((others.setdefault(gap, len(rank) + 1 + len(others)), role.block))
    return places, frozenset(others.values())


def _part(tensor: Known) -> str:
    """The part of the model that a parameter is in, "hidden", "tokenizer", "head" or "other", or why it is in none."""
    role = tensor.role
    if role is None or role.kind in ("norm", "bias", "vector", "unknown"):
        return role.kind if role else ""
    if role.kind == "position":
        table = tensor.module is not None and names.is_embedding(tensor.module) and role.layer is None
        return "tokenizer" if table else "position"
    if "embedding" in (role.kind, role.block):
        return "tokenizer"
    if "head" in (role.kind, role.block):
        return "head"
    return "hidden" if role.layer is not None and (role.kind in HIDDEN or role.kind == "router") else "other"


def _channel_mixers(hidden: Sequence[Known]) -> set[int]:
    """The ids of the pointwise convolutions that are the channel mixers of their layers; see ``partition``."""
    layers: dict[int | None, list[Tensor]] = {}
    for tensor in hidden:
        if tensor.role is not None and (tensor.role.kind, tensor.role.block) == ("conv", "conv"):
            layers.setdefault(tensor.role.layer, []).append(tensor.parameter)
    found: set[int] = set()
    for kernels in layers.values():
        pointwise = {id(k) for k in kernels if math.prod(k.shape[2:]) == 1}
        spatial = [k for k in kernels if id(k) not in pointwise]
        depthwise = all(k.shape[1] == 1 for k in spatial)
        if spatial and (depthwise or len(pointwise) > 1):
            found |= pointwise
    return found


# By a mapping ---------------------------------------------------------------------------------------------------------


def by_mapping(tensors: Sequence[Known], mapping: Any) -> list[Key | str | None]:
    """For each parameter its place or ``LEFT_OUT``; None where the mapping says nothing.

    Raises:
        TypeError, ValueError: see ``partition``.
    """
    if mapping is None:
        places: list[Key | str | None] = [None] * len(tensors)
    elif callable(mapping):
        places = [None if t.no_matrix else _checked(mapping(t.name, t.module, t.parameter), t.name) for t in tensors]
    elif isinstance(mapping, Sequence) and not isinstance(mapping, (str, bytes)) and mapping:
        places = _by_table(tensors, mapping)
    else:
        raise TypeError(f"mapping must be {MAPPING_HELP} (so must partition of SAC and SGG); got {_short(mapping)}")
    for tensor, place in zip(tensors, places, strict=True):
        if tensor.role is not None and tensor.role.kind == "unknown" and place is None and not tensor.no_matrix:
            fits_nothing = unknown_message(tensor.name, tensor.parameter).partition("; claim it")[0]
            raise ValueError(f"{fits_nothing}; place it by mapping=[({re.escape(tensor.name)!r}, (layer, block))]")
    return places


def _by_table(tensors: Sequence[Known], table: Sequence[Any]) -> list[Key | str | None]:
    rules = [_rule(entry) for entry in table]
    unused = dict(enumerate(pattern for pattern, _ in rules))
    places: list[Key | str | None] = []
    for tensor in tensors:
        aliases = (tensor.name, *(tensor.role.tied if tensor.role else ()))
        hits: list[tuple[re.Match[str], Any]] = []
        for i, (pattern, place) in enumerate(rules):
            match = next((m for alias in aliases if (m := pattern.search(alias))), None)
            if match is not None:
                unused.pop(i, None)
                hits.append((match, place))
        if len(hits) > 1:
            both = " and ".join(repr(match.re.pattern) for match, _ in hits[:2])
            raise ValueError(
                f"parameter {tensor.name!r} is matched by {both} of mapping, but can be in one block only; write the "
                "expressions so that they exclude each other"
            )
        if not hits or tensor.no_matrix:
            places.append(None)
            continue
        match, place = hits[0]
        places.append(_checked(place(match) if callable(place) else place, tensor.name))
    for pattern in unused.values():
        like = ", ".join(repr(t.name) for t in tensors[:3])
        raise ValueError(f"mapping: {pattern.pattern!r} matches no parameter; names look like {like}")
    return places


def _rule(entry: Any) -> tuple[re.Pattern[str], Any]:
    if not (isinstance(entry, (tuple, list)) and len(entry) == 2 and isinstance(entry[0], (str, re.Pattern))):
        raise TypeError(f"an entry of mapping must be a pair (regular expression, place), got {_short(entry)}")
    pattern, place = entry
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise ValueError(f"mapping: {pattern!r} is no regular expression: {error}") from None
    if not callable(place):
        _checked(place, compiled.pattern)
    return compiled, place


def _checked(place: Any, of: str) -> Key | str:
    """A place that a user gave for a parameter or an expression, if it is one."""
    if place is None:
        return LEFT_OUT
    if isinstance(place, tuple) and len(place) == 2:
        layer, block = place
        if isinstance(layer, int) and not isinstance(layer, bool) and isinstance(block, str) and block:
            return layer, block
    raise TypeError(
        f"mapping gives {_short(place)} for {of!r}; a place is a tuple (layer, block) of a whole number and a name, "
        "such as (3, 'attention'), or None for a parameter that is not scaled"
    )


def _short(value: Any) -> str:
    text = f"of shape {tuple(value.shape)}" if isinstance(value, Tensor) else repr(value)
    return f"{type(value).__name__} {text[:80]}{'...' if len(text) > 80 else ''}"
