"""Weights, gradients and optimizer state of a model, to the byte."""

from __future__ import annotations

import copy
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

import steepest
from steepest.lab import methods, models
from steepest.lab.config import MethodConfig
from steepest.lab.errors import UserError, unknown
from steepest.lab.memory.architectures import meta_model
from steepest.lab.memory.step import carried_out, planned, step_of_steepest, step_of_torch
from steepest.routing import named_roles
from steepest.rules import Rule, by_name

DTYPES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16", "int8": "int8"}
# (bytes, name) of the binary unit and of the decimal one beside it.
UNITS = (((2**30, "GiB"), (10**9, "GB")), ((2**20, "MiB"), (10**6, "MB")), ((2**10, "KiB"), (10**3, "kB")))

# Steps of the run that is planned; soft rules are hard in the one that is traced.
_STEPS = 1000
# Parameters of the largest model of which a copy is made in memory.
_MEASURED = 1 << 27
# Parts of a model that can have rules of their own; the first is the rule that the optimizer is made with.
_PARTS = ("hidden", "embeddings", "head", "vectors", "rest")


@dataclass(frozen=True, kw_only=True)
class Usage:
    """What one method takes, in bytes of one process.

    Attributes:
        name: as it was asked for.
        label: how tables and figures call it.
        state: optimizer state by role of the parameters, exact; None where it cannot be counted.
        step: estimate of what a step allocates beside it, for a while; None where it cannot be traced.
        note: what qualifies the row; "" for nothing.
    """

    name: str
    label: str
    state: dict[str, int] | None
    step: int | None
    note: str = ""

    @property
    def total(self) -> int | None:
        """Bytes of the state."""
        return None if self.state is None else sum(self.state.values())


@dataclass(frozen=True, kw_only=True)
class Report:
    """A model and the methods on it, in bytes of one process.

    Attributes:
        model: its name, with what was changed.
        architecture: the class that was built.
        parameters: number of elements of the whole model; tied weights count once.
        tensors: number of different parameters.
        dtypes: names of `DTYPES` by "weights", "gradients" and "states".
        shards: number of processes that share everything evenly.
        weights: bytes by role.
        gradients: bytes by role; frozen weights have none.
        methods: in the order asked for.
    """

    model: str
    architecture: str
    parameters: int
    tensors: int
    dtypes: dict[str, str]
    shards: int
    weights: dict[str, int]
    gradients: dict[str, int]
    methods: tuple[Usage, ...]

    @property
    def fixed(self) -> int:
        """Bytes of weights and gradients."""
        return sum(self.weights.values()) + sum(self.gradients.values())

    @property
    def roles(self) -> list[str]:
        """The roles of the parameters, in the order of all figures."""
        from steepest.lab.series import roles_in_order

        return roles_in_order({"weights": {role: float(size) for role, size in self.weights.items()}})

    @property
    def units(self) -> tuple[tuple[int, str], tuple[int, str]]:
        """The pair of `UNITS` in which the largest sum reads well."""
        largest = self.fixed + max((usage.total or 0 for usage in self.methods), default=0)
        return next((pair for pair in UNITS if largest >= pair[0][0]), UNITS[-1])


def count(
    model: str,
    names: Sequence[str],
    *,
    changes: Sequence[str] = (),
    vocabulary: int | None = None,
    dtype: str = "fp32",
    shards: int = 1,
) -> Report:
    """Count what a model takes under each method; nothing is allocated.

    Args:
        model: a preset of `lab.models`, or the path of a Hugging Face config (a file, or a folder with config.json).
        names: methods of `steepest optimizers`, or hybrids such as "hidden=sinkgd+rest=sage"; see `hybrid`.
        changes: "key=value" for keys of the Hugging Face config.
        vocabulary: number of tokens in place of the model's.
        dtype: of weights, gradients and states: one of `DTYPES`, or three with commas.
        shards: number of processes. Every tensor is cut along its first axis as `fully_shard` does, and the numbers are
            those of the first process, whose pieces are the largest. Step counters, and buffers that a rule needs
            whole, are on every process.

    Raises:
        UserError: an unknown model, method, key or dtype (with the closest names), a value that does not fit, or none
            of the methods can be counted. One of several that cannot has a row with a note.
    """
    if shards < 1:
        raise UserError(f"shards must be at least 1, got {shards}.")
    if not names:
        raise UserError("no method: name some, for example adamw,lion,muon.")
    dtypes = _dtypes(dtype)
    for name in names:
        if "=" in name:
            hybrid(name)
        else:
            methods.find(name)
    network = meta_model(model, changes, vocabulary).to(torch_dtype(dtypes["weights"]))
    try:
        roles = {parameter: role.kind for _, parameter, role in named_roles(network)}
    except ValueError as error:
        raise UserError(str(error)) from error
    weights: Counter[str] = Counter()
    gradients: Counter[str] = Counter()
    for parameter, kind in roles.items():
        here = _held(parameter.shape, shards)
        weights[kind] += here * parameter.element_size()
        gradients[kind] += here * torch_dtype(dtypes["gradients"]).itemsize * parameter.requires_grad
    name = model if models.ALIASES.get(model, model) in models.PRESETS else Path(model).resolve().name
    changed = [*changes, *([] if vocabulary is None else [f"vocabulary={vocabulary}"])]
    return Report(
        model=f"{name} ({', '.join(changed)})" if changed else name,
        architecture=type(network).__name__,
        parameters=sum(parameter.numel() for parameter in roles),
        tensors=len(roles),
        dtypes=dtypes,
        shards=shards,
        weights=dict(weights),
        gradients=dict(gradients),
        methods=_usages(names, network, roles, dtypes, shards),
    )


def hybrid(text: str) -> tuple[Rule, dict[str, Rule]]:
    """Read rules by part of a model: "hidden=sinkgd+embeddings=sage+vectors=lion".

    The parts are "hidden" (the rule that the optimizer is made with) and the routing keywords of `steepest.Steepest`:
    "embeddings", "head", "vectors" and "rest". A rule is a name such as "lion_muon", with its defaults.

    Returns:
        The rule, and the others by keyword.
    """
    parts: dict[str, Rule] = {}
    for word in text.split("+"):
        part, _, name = (piece.strip() for piece in word.partition("="))
        if part not in _PARTS:
            raise unknown(f"part of a model in {text!r}", part, _PARTS)
        try:
            parts[part] = by_name(name)()
        except ValueError as error:
            raise UserError(f"{text!r}: {error}") from None
    if "hidden" not in parts:
        raise UserError(f"{text!r} has no rule of the hidden matrices: begin with it, as in hidden=sinkgd+{text}.")
    return parts.pop("hidden"), parts


def _dtypes(text: str) -> dict[str, str]:
    words = [word.strip() for word in text.split(",")]
    for word in words:
        if word not in DTYPES:
            raise unknown("dtype", word, DTYPES)
    if len(words) not in (1, 3):
        raise UserError(f"a dtype is one word, or three (weights,gradients,states), got {text!r}.")
    if "int8" in words[:2] or words == ["int8"]:
        raise UserError(f"int8 is for states only, as in fp32,fp32,int8; got {text!r}.")
    return dict(zip(("weights", "gradients", "states"), words * (3 // len(words)), strict=True))


def torch_dtype(name: str) -> torch.dtype:
    """The dtype of a name of `DTYPES`."""
    return cast("torch.dtype", getattr(torch, DTYPES[name]))


def _held(shape: Sequence[int], shards: int) -> int:
    """Elements of a tensor that the first process holds."""
    return -(-shape[0] // shards) * math.prod(shape[1:]) if shape else 1


def _usages(
    names: Sequence[str], network: nn.Module, roles: Mapping[nn.Parameter, str], dtypes: Mapping[str, str], shards: int
) -> tuple[Usage, ...]:
    usages, errors = [], []
    for name in names:
        try:
            usages.append(_usage(name, network, roles, dtypes, shards))
        except UserError as error:
            errors.append(error)
            why = str(error).removeprefix(f"{name}: ").rstrip(".")
            usages.append(Usage(name=name, label=_label(name), state=None, step=None, note=f"not counted: {why}"))
    if len(errors) == len(names):
        raise errors[0]
    return tuple(usages)


def _label(name: str) -> str:
    return name if "=" in name else methods.find(name).label


def _usage(
    name: str, network: nn.Module, roles: Mapping[nn.Parameter, str], dtypes: Mapping[str, str], shards: int
) -> Usage:
    if "=" not in name and name not in methods.METHODS:  # a prefix of a method, as `methods.find` has checked
        return _wrapped(name, network, roles, dtypes, shards)
    try:
        if "=" in name:
            rule, routing = hybrid(name)
            optimizer: torch.optim.Optimizer = steepest.Steepest(network, rule, **cast("dict[str, Any]", routing))
        else:
            optimizer = methods.build(MethodConfig(name=name), network, _STEPS)
        note = ""
        if isinstance(optimizer, steepest.Steepest):
            own = dtypes["states"] == dtypes["weights"]
            optimizer = planned(optimizer, None if own else DTYPES[dtypes["states"]])
            step = step_of_steepest(optimizer)
        else:
            try:
                step = step_of_torch(optimizer)
            except RuntimeError:  # it looks at numbers, and there are none on the meta device
                optimizer, roles, step = _measured(name, network)
            if dtypes["states"] != dtypes["weights"]:
                note = f"{_owner(name)}'s own: its state has the dtype of the weights ({dtypes['weights']})"
    except (ValueError, TypeError) as error:
        raise UserError(f"{name}: {error}" if "=" in name else str(error)) from error
    finally:
        for parameter in network.parameters():
            parameter.grad = None
    return Usage(name=name, label=_label(name), state=_state(optimizer, roles, shards), step=step, note=note)


def _owner(name: str) -> str:
    """Whose code a method is."""
    return methods.find(name).package or "torch"


def _wrapped(
    name: str, network: nn.Module, roles: Mapping[nn.Parameter, str], dtypes: Mapping[str, str], shards: int
) -> Usage:
    """A method in a wrapper, "sac+adamw": what the method has, and what the wrapper itself keeps."""
    base = _usage(name.partition("+")[2], network, roles, dtypes, shards)
    assert base.state is not None
    wrapper = methods.build(MethodConfig(name=name), network, _STEPS)
    state, own = dict(base.state), "SAC keeps plain numbers of layers and blocks, and no tensors"
    if isinstance(wrapper, steepest.SGG):
        own = "SGG keeps a byte an element, and the scales of its clusters"
        for parameter in roles:
            parameter.grad = torch.empty_like(parameter)
        for parameter in cast("list[nn.Parameter]", list(wrapper.factors())):
            scales = wrapper.options["clusters"] * torch.float32.itemsize
            state[roles[parameter]] += _held(parameter.shape, shards) + scales
        for parameter in roles:
            parameter.grad = None
    notes = [f"{own}, beside the state of its base; a step is not estimated", base.note]
    return Usage(name=name, label=_label(name), state=state, step=None, note="; ".join(filter(None, notes)))


def _measured(name: str, network: nn.Module) -> tuple[torch.optim.Optimizer, dict[nn.Parameter, str], None]:
    """The optimizer of a method after a step on a copy of the model in memory, and the roles in that copy."""
    size = sum(parameter.numel() for parameter in network.parameters())
    if size > _MEASURED:
        raise UserError(
            f"{name}: {_owner(name)} can only be counted by a step in memory, which is done for models of up to "
            f"{_MEASURED:,} parameters; this one has {size:,}. Choose a smaller model, or leave {name} out."
        )
    # Parameters that deepcopy takes in place of its own copies; tied ones stay one.
    taken: dict[int, Any] = {id(p): nn.Parameter(torch.empty_like(p, device="cpu")) for p in network.parameters()}
    real = copy.deepcopy(network, taken)
    optimizer = methods.build(MethodConfig(name=name), real, _STEPS)
    try:
        carried_out(optimizer)
    except Exception as error:  # whatever a package makes of a model that it does not know
        raise UserError(f"{name}: a step of {_owner(name)} on this model fails: {error}") from error
    return optimizer, {parameter: role.kind for _, parameter, role in named_roles(real)}, None


def _state(optimizer: torch.optim.Optimizer, roles: Mapping[nn.Parameter, str], shards: int) -> dict[str, int]:
    """Bytes of the state by role, on the first process."""
    groups = optimizer.param_groups if isinstance(optimizer, steepest.Steepest) else []
    whole = {parameter: by_name(group["rule"]).whole for group in groups for parameter in group["params"]}

    def size(parameter: nn.Parameter, key: str, tensor: torch.Tensor) -> int:
        stored = tensor.untyped_storage().nbytes()
        if tensor.shape == parameter.shape and key not in whole.get(parameter, ()) and tensor.numel():
            return stored * _held(tensor.shape, shards) // tensor.numel()
        return stored

    return methods.state_by_role(optimizer, roles, size)
