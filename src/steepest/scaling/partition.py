"""What is scaled together: the matrices of a model by layer and block."""

from __future__ import annotations

import re
import warnings
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from torch import Tensor, nn

from steepest.routing.report import ranges
from steepest.routing.views import View
from steepest.rules.base import check_choice
from steepest.scaling.places import MAPPING_HELP, BlockMapping, Key, Known, by_mapping, by_roles, of_model, of_names

Kind = Literal["hidden", "tokenizer", "head", "other"]


@dataclass(frozen=True, kw_only=True)
class Member:
    """One tensor of a block.

    Attributes:
        name: clean name, without traces of wrappers.
        parameter: the tensor, possibly sharded.
        role_kind: kind of its role (see ``steepest.routing.KINDS``); "" if there is no model to ask.
        host: clean name of what the tensor is the weight of: ``layers.0.self_attn.q_proj`` for the weight of that
            module and for the LoRA factors beside it.
        view: how it is a stack of (out, in) matrices.
        heads: of a matrix of an attention, the numbers of query heads and of key and value heads that the nearest
            module around it (or its config) declares; (0, 0) if none does, and of other matrices.
    """

    name: str
    parameter: Tensor
    role_kind: str
    host: str
    view: View
    heads: tuple[int, int] = (0, 0)


@dataclass(frozen=True, kw_only=True)
class Partition:
    """The matrices of a model by (layer, block). ``partition`` makes it, and says what the numbers of layers mean.

    Attributes:
        blocks: what is scaled together, in the order of the model.
        outside: clean name -> why it is not scaled, for every other parameter.
        parameters: every parameter by its clean name, in the order of the model.
        others: numbers of the layers that are neither hidden layers nor tokenizer nor head.

    Raises:
        ValueError: ``blocks`` and ``outside`` do not hold each parameter exactly once.
    """

    blocks: dict[Key, tuple[Member, ...]]
    outside: dict[str, str]
    parameters: dict[str, Tensor] = field(repr=False)
    others: frozenset[int] = frozenset()

    def __post_init__(self) -> None:
        members = [member for block in self.blocks.values() for member in block]
        held = Counter([member.name for member in members])
        held.update(self.outside.keys())
        for name in {**self.parameters, **held}:
            if held[name] != 1 or name not in self.parameters:
                times = f"held {held[name]} times" if name in self.parameters else "no parameter of the model"
                raise ValueError(f"a partition holds each parameter of the model once, but {name!r} is {times}")
        for member in members:
            if member.parameter is not self.parameters[member.name]:
                raise ValueError(f"the tensor that the partition has for {member.name!r} is not that of the model")
        if len({id(p) for p in self.parameters.values()}) < len(self.parameters):
            raise ValueError("a partition holds each parameter of the model once, but two names are of one tensor")

    @property
    def layers(self) -> dict[int, list[Key]]:
        """The blocks of each layer, in the order of the model."""
        layers: dict[int, list[Key]] = {}
        for key in self.blocks:
            layers.setdefault(key[0], []).append(key)
        return layers

    def kinds(self) -> dict[int, Kind]:
        """What each layer is: "hidden", "tokenizer", "head" or "other" (a projector, say)."""
        only: dict[tuple[str, ...], Kind] = {("embedding",): "tokenizer", ("head",): "head"}
        return {
            layer: "other" if layer in self.others else only.get(tuple(block for _, block in keys), "hidden")
            for layer, keys in self.layers.items()
        }

    def kind(self, layer: int) -> Kind:
        """What one layer is, see ``kinds``.

        Raises:
            KeyError: there is no such layer.
        """
        kinds = self.kinds()
        if layer not in kinds:
            raise KeyError(f"the partition has no layer {layer}; it has {', '.join(map(str, kinds))}")
        return kinds[layer]

    def index(self) -> dict[int, tuple[str, Key | None]]:
        """The clean name and the key of each parameter by its ``id``; the key is None if it is not scaled."""
        index: dict[int, tuple[str, Key | None]] = {id(p): (name, None) for name, p in self.parameters.items()}
        for key, members in self.blocks.items():
            index.update({id(member.parameter): (member.name, key) for member in members})
        return index

    def summary(self) -> str:
        """A table for people: layers that are alike in one line, then what is not scaled, and why."""
        kinds = self.kinds()
        alike: dict[tuple[Kind, str, tuple[int, ...], tuple[str, ...]], list[int]] = {}
        for (layer, block), members in self.blocks.items():
            sizes = tuple(member.parameter.numel() for member in members)
            hosts = tuple(_last_word(member.host) for member in members)
            alike.setdefault((kinds[layer], block, sizes, hosts), []).append(layer)
        lines = [("layer", "kind", "block", "tensors", "elements", "weights")]
        for (kind, block, sizes, hosts), layers in alike.items():
            different = list(dict.fromkeys(hosts))
            weights = ", ".join(different[:6]) + (f" and {len(different) - 6} more" if len(different) > 6 else "")
            numbers = ranges(sorted(layers)).strip("{}")
            each = " each" if len(layers) > 1 else ""
            lines.append((numbers, kind, block, f"{len(sizes):,}{each}", f"{sum(sizes):,}{each}", weights))
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        table = ["  ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)).rstrip() for line in lines]
        scaled = [member.parameter.numel() for members in self.blocks.values() for member in members]
        every = [parameter.numel() for parameter in self.parameters.values()]
        table += [
            "",
            f"scaled: {sum(scaled):,} of {sum(every):,} parameters, {len(scaled):,} of {len(every):,} tensors, in "
            f"{len(self.blocks):,} blocks of {len(kinds):,} layers",
        ]
        reasons: dict[str, list[str]] = {}
        for name, why in self.outside.items():
            reasons.setdefault(why, []).append(name)
        for why, left in reasons.items():
            table.append(f"not scaled ({why}): {left[0]}" + (f" and {len(left) - 1:,} more" if len(left) > 1 else ""))
        return "\n".join(table)


def partition(
    model_or_named_parameters: nn.Module | Mapping[str, Tensor] | Iterable[tuple[str, Tensor]],
    mapping: BlockMapping | None = None,
    *,
    embedding: Literal["scale", "exclude"] = "scale",
    head: Literal["scale", "exclude"] = "scale",
    router: Literal["scale", "exclude"] = "exclude",
) -> Partition:
    r"""Cut the matrices of a model into layers and blocks, from their roles (``steepest.roles``).

    In the words of the SAC paper (OpenReview EB92tITeNq): each repeated block of the model is a layer, with a token
    mixer ("attention", "mixer", "conv") and a channel mixer ("mlp", experts too) as its blocks; the tokenizer and the
    output head are layers of one block.

    - Hidden layers are 0 to L - 1, in the order of their roles' numbers. These may have gaps: in a plain
      ``nn.Sequential`` they are the places in it.
    - The tokenizer, block "embedding", is layer -1: token and position tables, patch embedding, stem. What makes tokens
      between hidden layers (downsampling of Swin and ConvNeXt, the tables of a second tower) is -2, -3, ..., one layer
      for each place. An output head that is tied to the tables is the same parameter, so it is in -1.
    - The output head, block "head", is layer L.
    - Other matrices outside of layers (a projector, a pooler) are L + 1, L + 2, ..., one layer for each place.
    - Of the convolutions of a layer, the pointwise ones (1 x 1) are the channel mixer, "mlp", the others the token
      mixer, "conv". Not where dense spatial convolutions have at most one pointwise one beside them, the shortcut: the
      basic block of a ResNet is one block, "conv".
    - LoRA factors are in the block of the weight they adapt.
    - A matrix in a layer of which nothing is known is in a block of its own, "linear"; a warning names it if the layer
      has other blocks.

    Not scaled, so in ``outside``: frozen parameters; norms, biases and other vectors, ``A_log`` and class tokens too;
    everything with fewer than two axes that are longer than 1, but for LoRA factors of rank 1; position tables that are
    no embedding layers (``pos_embed``, biases of relative positions); routers.

    The numbers do not depend on what is frozen or excluded, nor on wrappers (DDP, compile, FSDP2, PEFT). A parameter
    that is unfrozen later is not scaled until the partition is made again.

    Args:
        model_or_named_parameters: a module, or (name, parameter) pairs, which need a mapping: a name alone does not say
            what a parameter is.
        mapping: where parameters go instead. It is not asked about frozen parameters, and those with fewer than two
            axes that are longer than 1.

            - A callable (name, module, parameter) gives the place of every parameter, None for "not scaled". ``module``
              is the module that holds the parameter, None without a model.
            - A list of pairs (regular expression, place): the expression is searched for in the clean name (of a tied
              parameter, in each of its names). The place is (layer, block), or None for "not scaled", or a callable
              that gives either from the match: ``(r"blocks\.(\d+)\.mix", lambda m: (int(m[1]), "mixer"))``. What no
              expression matches stays where its role puts it; without a model it is not scaled.

            Blocks may have any name; a layer that has only the block "embedding" is a tokenizer, "head" a head.
        embedding: "exclude" leaves the tokenizer layers out, "scale" (default) does not. Not applied to what a mapping
            placed; likewise the next two.
        head: the same for the output head.
        router: "scale" makes the routers of a mixture a block of their own, "router", in their layers. Default
            "exclude": a router is a small classifier.

    Raises:
        ValueError: named parameters without a mapping; nothing to scale; a parameter of unknown role that no mapping
            places; an expression that matches nothing or is not valid, or two that match the same parameter.
        TypeError: something that is no mapping, or a place that is no (layer, block).
    """
    policies = {"embedding": embedding, "head": head, "router": router}
    check_policies("partition", policies)
    tensors = _tensors(model_or_named_parameters, mapping)
    excluded = {option for option, policy in policies.items() if policy == "exclude"}
    by_role, others = by_roles(tensors)
    blocks: dict[Key, list[Member]] = {}
    outside: dict[str, str] = {}
    unknown: list[tuple[str, Key]] = []
    for tensor, mapped, from_role in zip(tensors, by_mapping(tensors, mapping), by_role, strict=True):
        place = tensor.no_matrix or mapped or from_role or "not matched by the mapping"
        if isinstance(place, str):
            outside[tensor.name] = place
        elif mapped is None and place[1] in excluded:
            outside[tensor.name] = f"{place[1]}='exclude'"
        else:
            blocks.setdefault(place, []).append(_member(tensor))
            if mapped is None and place[1] == "linear" and place[0] not in others:
                unknown.append((tensor.name, place))
    if not blocks:
        reasons = ", ".join(sorted(set(outside.values())))
        raise ValueError(f"none of the {len(tensors)} parameters is a matrix that can be scaled: {reasons}")
    found = Partition(
        blocks={key: tuple(members) for key, members in blocks.items()},
        outside=outside,
        parameters={tensor.name: tensor.parameter for tensor in tensors},
        others=others,
    )
    _warn(unknown, found)
    return found


def check_policies(owner: str, policies: Mapping[str, str]) -> None:
    """Refuse anything but "scale" and "exclude" as ``embedding``, ``head`` or ``router``."""
    for option, value in policies.items():
        check_choice(owner, option, value, ("scale", "exclude"))


def _tensors(source: nn.Module | Mapping[str, Tensor] | Iterable[tuple[str, Tensor]], mapping: object) -> list[Known]:
    if not isinstance(source, nn.Module) and mapping is None:
        raise ValueError(
            "parameters without a model need mapping= (partition= of SAC and SGG): a name alone does not say what a "
            f"parameter is; pass the model, or {MAPPING_HELP}"
        )
    tensors = list(of_model(source) if isinstance(source, nn.Module) else of_names(source))
    if not tensors:
        raise ValueError(f"{type(source).__name__} has no parameters")
    return tensors


def _member(tensor: Known) -> Member:
    role = tensor.role
    return Member(
        name=tensor.name,
        parameter=tensor.parameter,
        role_kind=role.kind if role else "",
        host=re.sub(r"\.(lora_\w+(\..*)?|(modules_to_save\.\w+\.)?weight)$", "", tensor.name),
        view=role.view if role and role.view.is_matrix else View.default(tensor.parameter.shape),
        heads=tensor.heads if role and role.block == "attention" else (0, 0),
    )


def _last_word(host: str) -> str:
    return next((word for word in reversed(host.split(".")) if not word.isdigit()), host)


def _warn(unknown: list[tuple[str, Key]], found: Partition) -> None:
    layers = found.layers
    beside = [name for name, (layer, _) in unknown if len(layers[layer]) > 1]
    if beside:
        more = f" and {len(beside) - 3} more" if len(beside) > 3 else ""
        warnings.warn(
            f"nothing says what part of their layers {', '.join(beside[:3])}{more} are: they are blocks of their own, "
            "'linear'; place them by mapping=",
            stacklevel=3,
        )
