"""Where the parameters of an optimizer are in the partition of its model: what SAC and SGG share."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from steepest.engine.fitting import listed
from steepest.scaling.partition import Member, Partition, check_policies, partition
from steepest.scaling.places import BlockMapping, Key


@dataclass(frozen=True)
class Recipe:
    """What a partition is made from; it is made again when parameters are unfrozen or added.

    Attributes:
        model: a model, or names and parameters; not used where a partition is given.
        given: a partition, or the mapping of ``scaling.partition``.
        policies: its other options.
    """

    model: Any
    given: Partition | BlockMapping | None
    policies: Mapping[str, Any]

    @classmethod
    def of(
        cls,
        wrapper: str,
        model: nn.Module | Iterable[tuple[str, Tensor]],
        given: Partition | BlockMapping | None,
        policies: Mapping[str, Any],
    ) -> Recipe:
        """With pairs that can be read again.

        Raises:
            TypeError: the model is neither a module nor something to go through.
            ValueError: an unknown policy.
        """
        if not isinstance(model, (nn.Module, Iterable)):
            raise TypeError(
                f"{wrapper}: model must be the module whose parameters the optimizer has, or (name, parameter) pairs "
                f"with partition=, got {model!r:.80}; e.g. {wrapper}(optimizer, model)"
            )
        check_policies(wrapper, policies)
        return cls(model if isinstance(model, (nn.Module, Mapping)) else list(model), given, policies)

    def make(self) -> Partition:
        """The partition of what the model is now."""
        if isinstance(self.given, Partition):
            return self.given
        return partition(self.model, self.given, **self.policies)


@dataclass(frozen=True)
class Placed:
    """The parameters of an optimizer.

    Attributes:
        partition: of the model.
        blocks: its blocks, with what the optimizer has of them.
        frozen: by name those that are in no block because they have no gradient now.
    """

    partition: Partition
    blocks: dict[Key, list[Member]]
    frozen: dict[str, Tensor]

    def thawed(self) -> bool:
        """Whether one of the frozen ones has a gradient by now."""
        return any(p.requires_grad for p in self.frozen.values())


def placed(wrapper: str, recipe: Recipe, groups: Iterable[Mapping[str, Any]]) -> Placed:
    """Find the block of every parameter of some param groups.

    Args:
        wrapper: its name, for messages.
        recipe: see there.
        groups: param groups, before or after an optimizer has taken them.

    Raises:
        ValueError: there is one that the model does not have, or none to scale.
    """
    found = recipe.make()
    index = found.index()
    own = [pair for group in groups for pair in _named(group)]
    foreign = [name or f"a tensor of shape {tuple(p.shape)}" for name, p in own if id(p) not in index]
    if foreign:
        raise ValueError(
            f"{wrapper}: {len(foreign)} of the {len(own)} parameters of the optimizer are not parameters of the model: "
            f"{listed(foreign)}. The model has {listed(list(found.parameters))}. Give the model that the optimizer "
            "was made for, after anything that replaces its parameters (sharding, a new head)"
        )
    mine = {id(p) for _, p in own}
    blocks = {key: [m for m in members if id(m.parameter) in mine] for key, members in found.blocks.items()}
    blocks = {key: members for key, members in blocks.items() if members}
    frozen = {index[id(p)][0]: p for _, p in own if index[id(p)][1] is None and not p.requires_grad}
    if own and not blocks and not frozen:
        raise ValueError(f"{wrapper}: no parameter of the optimizer is in a block that is scaled:\n{found.summary()}")
    return Placed(found, blocks, frozen)


def _named(group: Mapping[str, Any]) -> list[tuple[str, Tensor]]:
    """(name, parameter) of a param group; "" where there is no name."""
    pairs = [entry if isinstance(entry, tuple) else ("", entry) for entry in group["params"]]
    names = group.get("param_names") or [name for name, _ in pairs]
    return [(name, p) for name, (_, p) in zip(names, pairs, strict=True)]
