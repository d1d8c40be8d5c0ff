"""Roles: what every parameter of a model is. Module types and identity decide first, names second, sizes never."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

from torch import Tensor, nn
from torch.nn.parameter import UninitializedParameter

from steepest.routing import names
from steepest.routing.classify import block, classify
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
            too), "mixer", "conv", "router", "embedding" (position tables, patch and stem convolutions, downsampling
            between stages too), "head", or "linear" if nothing is known; all normalisation layers are in "norm"; a bias
            or vector is in the block of the matrices beside it, or in "vector" if there are none.
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


def unknown_message(name: str, parameter: Tensor) -> str:
    """What to say of a parameter that fits no role."""
    return (
        f"parameter {name!r} of shape {tuple(parameter.shape)} fits no known role: neither its module nor its name say "
        f"what its axes are; claim it by a pattern of its own, steepest.route(model, [({name!r}, rule), ...]), with "
        "a rule that works on elements or has a view (view='batch' for a stack of (out, in) matrices)"
    )


# The walk -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Place:
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
class Owned:
    """One name of one parameter. ``owner`` and ``leaf`` see through a parametrisation, ``name`` does not."""

    name: str
    parameter: nn.Parameter
    owner: nn.Module
    leaf: str
    place: Place


@dataclass
class Walk:
    """Everything that one pass over the modules collects."""

    owned: list[Owned] = field(default_factory=list)
    layers: int = 0
    heads: dict[str, nn.Module] = field(default_factory=dict)  # name of an output head -> its last linear module
    inputs: set[int] = field(default_factory=set)  # ids of modules that the model calls its input embeddings
    outputs: set[int] = field(default_factory=set)  # ids of modules that the model calls its output embeddings


def claim(model: nn.Module) -> Iterator[tuple[str, nn.Parameter, Role]]:
    """Like ``named_roles``, with a role of the kind "unknown" for a parameter that fits nothing."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"roles are those of a torch.nn.Module, got {type(model).__name__}")
    walk = Walk()
    _visit(model, Place(), walk)
    _last_of_sequential(model, walk)
    by_identity: dict[int, list[Owned]] = {}
    for owned in walk.owned:
        by_identity.setdefault(id(owned.parameter), []).append(owned)
    for same in by_identity.values():
        first = same[0]
        winner = next((o for o in same if names.is_embedding(o.owner)), first)
        tied = tuple(dict.fromkeys(o.name for o in same if o.name != first.name))
        role = _role(winner, walk)
        if tied:
            role = replace(role, tied=tied, why=f"{role.why}, tied to {_listing(tied)}")
        yield first.name, first.parameter, role


def _visit(module: nn.Module, place: Place, walk: Walk, owner: tuple[nn.Module, str, Place] | None = None) -> None:
    """Collect the parameters of a module, then those of its children, in the order of ``named_parameters``."""
    inner = names.wrapped(module)
    for leaf, parameter in module._parameters.items():
        if parameter is not None:
            name = f"{place.name}.{leaf}" if place.name else leaf
            seen = owner if owner is not None else (module, leaf, place)
            _check_whole(name, parameter)
            walk.owned.append(Owned(name, parameter, seen[0], names.unparametrised(module, leaf, seen[1]), seen[2]))
    _note_identity(module, walk)
    if place.head and names.is_linear(module) and id(walk.heads.get(place.head)) not in walk.outputs:
        walk.heads[place.head] = module
    first_layer = _open_layers(module, place, walk)
    for i, (attribute, child) in enumerate(module._modules.items()):
        if child is None:
            continue
        if inner == attribute:
            _visit(child, place, walk)
            continue
        if inner == "original_module" and attribute == "modules_to_save":  # PEFT's trained copies of a whole module
            _visit_copies(child, place, id(names.unwrapped(module)) in walk.outputs, walk)
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
            below = replace(below, layer=first_layer + i, head="")
        _visit(child, _enter(below, names.unwrapped(child)), walk)


def _visit_copies(copies: nn.Module, place: Place, output: bool, walk: Walk) -> None:
    for adapter, copy in copies._modules.items():
        if copy is not None:
            if output:
                walk.outputs.add(id(copy))
            _visit(copy, replace(place, name=f"{place.name}.modules_to_save.{adapter}"), walk)


def _enter(place: Place, module: nn.Module) -> Place:
    """The place of a child, with the zone, head and adapter that its type and name add."""
    if place.adapter or place.attribute.startswith("lora_"):
        return replace(place, adapter=True, zone="embedding" if "embedding" in place.attribute else place.zone)
    if place.zone in ("expert", "router"):  # an expert's own mlp is still an expert
        return place
    zone = names.zone_of(names.class_name(module), place.attribute)
    if place.attribute == "gate" and place.parent is not None and "experts" in place.parent._modules:
        zone = "router"
    if not zone and place.layer is not None and not place.zone and place.attribute in ("intermediate", "output"):
        zone = "mlp"  # BERT's names for its two halves
    if zone:
        return replace(place, zone=zone)
    if place.layer is None and not place.zone:
        if not place.head and names.HEADS.search(place.attribute):
            return replace(place, head=place.name)
        if names.STEM.search(place.attribute):
            return replace(place, zone="embedding")
    return place


def _open_layers(module: nn.Module, place: Place, walk: Walk) -> int | None:
    """Number of the first layer if the children of this module are repeated blocks, else None.

    Blocks are the composite elements of a ``ModuleList`` or ``Sequential``. Not elements that hold blocks themselves,
    in a list named "blocks" or "layers": those are stages. A model that is a ``Sequential`` has its elements as layers.
    """
    if place.layer is not None or place.zone or not isinstance(module, (nn.ModuleList, nn.Sequential)):
        return None
    stages = any(
        _holds_blocks(names.unwrapped(element)._modules.get(inner))
        for element in module._modules.values()
        if element is not None
        for inner in ("blocks", "layers")
    )
    if stages or not (_holds_blocks(module) or not place.name):
        return None
    walk.layers += len(module._modules)
    return walk.layers - len(module._modules)


def _holds_blocks(module: nn.Module | None) -> bool:
    return isinstance(module, (nn.ModuleList, nn.Sequential)) and any(
        names.unwrapped(element)._modules for element in module._modules.values() if element is not None
    )


def _last_of_sequential(model: nn.Module, walk: Walk) -> None:
    """Note the output layer of a plain ``nn.Sequential``: the last parameters are those of a linear element."""
    root = names.unwrapped(model)
    if names.class_name(root) != "Sequential" or not walk.owned:
        return
    last = walk.owned[-1].owner
    if last in [names.unwrapped(e) for e in root._modules.values() if e is not None] and names.is_linear(last):
        first = next(o.owner for o in walk.owned if o.parameter.ndim > 1)
        if first is not last:
            walk.heads[""] = last


def _note_identity(module: nn.Module, walk: Walk) -> None:
    """Note which modules a model itself calls its input and output embeddings."""
    for method, found in (("get_input_embeddings", walk.inputs), ("get_output_embeddings", walk.outputs)):
        ask = getattr(module, method, None)
        if callable(ask):
            try:
                answer = ask()
            except (NotImplementedError, AttributeError):  # a model without such a part says so in this way
                continue
            if isinstance(answer, nn.Module):
                found.add(id(names.unwrapped(answer)))


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


def _role(owned: Owned, walk: Walk) -> Role:
    kind, view, why = classify(owned, walk) or ("unknown", View(element=True), "fits no known role")
    if owned.parameter.ndim < 2 and view.is_matrix:
        raise ValueError(
            f"parameter {owned.name!r} is a matrix ({kind}) of a {names.class_name(owned.owner)}, but has shape "
            f"{tuple(owned.parameter.shape)}: it looks flattened, as by FSDP1; shard the model with "
            "torch.distributed.fsdp.fully_shard (FSDP2) instead"
        )
    return Role(kind=kind, layer=owned.place.layer, block=block(owned, kind, walk), view=view, why=why)


def _listing(names: tuple[str, ...]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
