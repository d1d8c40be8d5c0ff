"""One way to build the optimizer of any package, whatever its habits."""

from __future__ import annotations

import importlib
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import nn

from steepest.lab.errors import UserError
from steepest.lab.methods.record import decay_groups
from steepest.lab.methods.together import Together

# Makes what an optimizer takes as its first argument from the model and the options, and takes its own options out.
Groups = Callable[[nn.Module, dict[str, Any]], list[Any]]


def decayed(model: nn.Module, options: dict[str, Any]) -> list[Any]:
    """Groups with and without weight decay."""
    return decay_groups(model, options.pop("weight_decay"))


def matrices(model: nn.Module) -> list[nn.Parameter]:
    """Matrices and embeddings: all but vectors."""
    return [parameter for parameter in model.parameters() if parameter.requires_grad and parameter.ndim >= 2]


def hidden_matrices(model: nn.Module) -> list[nn.Parameter]:
    """Matrices inside the model, by their roles; tensors of more dimensions are not among them."""
    from steepest.routing.roles import HIDDEN, named_roles

    return [p for _, p, role in named_roles(model) if role.kind in HIDDEN and p.ndim == 2 and p.requires_grad]


def low_rank(*keys: str) -> Groups:
    """Groups with hidden matrices apart, which get the options of `keys`: rank, scale and so on."""

    def groups(model: nn.Module, options: dict[str, Any]) -> list[Any]:
        hidden = {id(parameter) for parameter in hidden_matrices(model)}
        extra = {key: options.pop(key) for key in keys}
        groups = decayed(model, options)
        outside = {id(parameter) for parameter in model.parameters()} - hidden
        inside = [{**group, **extra, "label": "hidden matrices"} for group in _only(hidden, groups)]
        return [*inside, *_only(outside, groups)]

    return groups


def by_name(model: nn.Module, options: dict[str, Any]) -> list[Any]:
    """(name, parameter) pairs, and the sizes of the model's attention among the options."""
    config = getattr(model, "config", None)
    heads = getattr(config, "num_attention_heads", 1)
    options["dim"] = getattr(config, "hidden_size", 1)
    options["n_heads"] = heads
    options["n_kv_heads"] = getattr(config, "num_key_value_heads", None) or heads
    return [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]


@dataclass(frozen=True, kw_only=True)
class Adapter:
    """Builds an optimizer of a package from (model, lr, options).

    Args:
        source: "module:Class".
        package: as pip knows it; None when it is torch's own.
        groups: the first argument of the class.
        fixed: arguments that are no options.
        takes: gives the parameters that the class takes; AdamW steps the others, with the options that begin with
            "rest_", at `rest_lr_ratio` of the rate. None: it takes all.
        objects: "module:Class" of what the package keeps in its state, so that checkpoints may hold it.
        extend: makes a class of the package's one.
    """

    source: str
    package: str | None = None
    groups: Groups = decayed
    fixed: Mapping[str, Any] = field(default_factory=dict)
    takes: Callable[[nn.Module], list[nn.Parameter]] | None = None
    objects: tuple[str, ...] = ()
    extend: Callable[[Any], Any] | None = None

    def __call__(self, model: nn.Module, lr: float, options: dict[str, Any]) -> torch.optim.Optimizer:
        """Build it.

        Raises:
            UserError: the package is missing.
        """
        kind = self._load(self.source)
        kind = kind if self.extend is None else self.extend(kind)
        torch.serialization.add_safe_globals([self._load(name) for name in self.objects])
        options = {key: tuple(value) if isinstance(value, list) else value for key, value in options.items()}
        options.pop("schedule", None)  # the loop's business
        rest = {key: options.pop(key) for key in list(options) if key.startswith("rest_")}
        exempt = {id(p) for group in decay_groups(model, 1.0) if not group["weight_decay"] for p in group["params"]}
        parameters = self.groups(model, options)
        if self.takes is not None:
            taken = {id(parameter) for parameter in self.takes(model)}
            parameters = _only(taken, parameters)
        optimizer = cast("torch.optim.Optimizer", kind(parameters, lr=lr, **options, **self.fixed))
        for group in optimizer.param_groups:  # also of those that make their groups themselves
            if all(id(parameter) in exempt for parameter in group["params"]):
                group["weight_decay"] = 0.0
        if callable(train := getattr(optimizer, "train", None)):
            train()  # schedule-free optimizers refuse to step before
        return optimizer if self.takes is None else _with_adamw(optimizer, model, lr, taken, rest)

    def _load(self, source: str) -> Any:
        module, _, name = source.partition(":")
        logger = logging.getLogger((self.package or "torch").replace("-", "_"))
        level = logger.level
        logger.setLevel(logging.ERROR)  # bitsandbytes tells at every import what it lacks for other uses
        try:
            return getattr(importlib.import_module(module), name)
        except (ImportError, OSError) as error:
            raise UserError(
                f"{name} needs the package {self.package}: pip install 'steepest[baselines]' ({error})."
            ) from None
        finally:
            logger.setLevel(level)


def _with_adamw(
    optimizer: torch.optim.Optimizer, model: nn.Module, lr: float, taken: set[int], options: dict[str, Any]
) -> torch.optim.Optimizer:
    rest = {key.removeprefix("rest_"): value for key, value in options.items()}
    outside = {id(parameter) for parameter in model.parameters()} - taken
    groups = _only(outside, decay_groups(model, rest.pop("weight_decay")))
    if not groups:
        return optimizer
    lr *= rest.pop("lr_ratio")
    return Together({"matrices": optimizer, "rest": torch.optim.AdamW(groups, lr=lr, fused=True, **rest)})


def _only(wanted: set[int], groups: list[dict[str, Any]]) -> list[dict[str, Any]]:
    kept = [{**group, "params": [p for p in group["params"] if id(p) in wanted]} for group in groups]
    return [group for group in kept if group["params"]]
