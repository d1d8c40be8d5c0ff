"""The two ways in which a factor on the step of a parameter reaches an optimizer that knows nothing of it.

Never by the gradients: Adam, Lion, Muon and LAMB would cancel the factor.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import torch
from torch import Tensor

from steepest import sharding

Group = dict[str, Any]
# A tensor broadcasts to the parameter; of a sharded one, it is sharded as it is or broadcasts to the part on this
# process. A function returns a tensor or a number when the base has taken its step; it sees the buffers of that step.
Shape: TypeAlias = "Tensor | Callable[[], float | Tensor]"
# A number; a shape; or the product of both.
Factor: TypeAlias = "float | Shape | tuple[float, Shape]"

RATE, DECAY = "lr", "weight_decay"


# Mechanism "rates": for the time of the step, groups with scaled rates -----------------------------------------------


@contextmanager
def scaled_rates(
    groups: list[Group], factors: Mapping[Tensor, float], keeps_decay: Callable[[Group], bool], private: str
) -> Iterator[None]:
    """Split the groups by factor, with ``lr`` times the factor, for the time of the context; then put them back.

    What the base changes in a part (a counter, a running number) is then written to the group that was split. A group
    of which nothing is scaled stays as it is, itself. The list is changed in place: an optimizer inside the base may
    share it.

    Args:
        groups: the list of param groups of the base.
        factors: a positive number for each parameter whose step is scaled.
        keeps_decay: of a group, whether its ``weight_decay`` is divided by the factor, so that the product of rate and
            decay stays.
        private: a key of groups that the base shall not see.

    Raises:
        RuntimeError: the base changed a rate that was scaled, or gave one number different values in two parts.
    """
    own = list(groups)
    parts = [_split(group, factors, keeps_decay(group), private) for group in own]
    groups[:] = [part for group, its in zip(own, parts, strict=True) for part in [p.group for p in its] or [group]]
    try:
        yield
    finally:
        groups[:] = own
    for group, its in zip(own, parts, strict=True):
        _write_back(group, its)


@dataclass
class _Part:
    """Some parameters of a group, and the values that stood in it before the step."""

    group: Group
    given: Group
    versions: dict[str, int] = field(default_factory=dict)  # of tensors, which may be changed in place

    def changed(self) -> Iterator[str]:
        """Keys that the base changed or added."""
        for key, value in self.group.items():
            if key not in self.given:
                yield key
            elif key in self.versions and value is self.given[key]:
                if value._version != self.versions[key]:
                    yield key
            elif not _same(value, self.given[key]):
                yield key


def _split(group: Group, factors: Mapping[Tensor, float], keeps_decay: bool, private: str) -> list[_Part]:
    """The parts of a group with one factor each; none if nothing is to be scaled."""
    params = group["params"]
    places: dict[float, list[int]] = {}
    for i, param in enumerate(params):
        places.setdefault(factors.get(param, 1.0), []).append(i)
    if all(factor == 1.0 for factor in places):
        return []
    return [_part(group, indices, factor, keeps_decay, private) for factor, indices in places.items()]


def _part(group: Group, indices: Sequence[int], factor: float, keeps_decay: bool, private: str) -> _Part:
    part: Group = {}
    given: Group = {}
    for key, value in group.items():
        if key == private:
            continue
        if key == "params" or _runs_parallel(value, group["params"]):
            part[key] = given[key] = [value[i] for i in indices]
        elif type(value) in _PLAIN:
            part[key] = given[key] = value
        elif isinstance(value, Tensor):
            part[key] = given[key] = value.clone()
        else:  # of a list that is changed in place the original still tells
            part[key], given[key] = copy.copy(value), value
    if factor != 1.0:
        part[RATE] = given[RATE] = part[RATE] * factor  # of a tensor a new one: nothing is read from the device
        if keeps_decay:
            part[DECAY] = given[DECAY] = part[DECAY] / factor
    versions = {key: value._version for key, value in part.items() if isinstance(value, Tensor)}
    return _Part(part, given, versions)


# What cannot be changed in place; most of what stands in a group, of which a step may make many parts.
_PLAIN = (float, bool, int, str, type(None))


def _runs_parallel(value: Any, params: Sequence[Tensor]) -> bool:
    """Whether a value of a group is a list with an entry for each parameter, such as ``param_names``."""
    return (
        isinstance(value, list)
        and len(value) == len(params)
        and (all(isinstance(v, str) for v in value) or all(isinstance(v, Tensor) for v in value))
    )


def _write_back(group: Group, parts: Sequence[_Part]) -> None:
    found: dict[str, list[Any]] = {}
    for part in parts:
        for key in part.changed():
            found.setdefault(key, []).append(part.group[key])
    for key, values in found.items():
        # A part without gradients may not have counted; as in the whole group, those with gradients decide.
        if key in (RATE, DECAY) or not all(_same(value, values[0]) for value in values):
            raise RuntimeError(
                f"the base optimizer changed {key!r} of a param group to {values[0]!r:.40} and {values[-1]!r:.40} in "
                "parts with different learning rates, so its step is not linear in the rate; build the wrapper with "
                "apply='update'"
            )
    for key, values in found.items():
        if isinstance(group.get(key), Tensor) and isinstance(values[0], Tensor):
            group[key].copy_(values[0])  # someone may hold it
        else:
            group[key] = values[0]


def _same(a: Any, b: Any) -> bool:
    if a is b:
        return True
    if isinstance(a, Tensor) or isinstance(b, Tensor):
        return isinstance(a, Tensor) and isinstance(b, Tensor) and a.shape == b.shape and torch.equal(a, b)
    if isinstance(a, (list, tuple)) and type(a) is type(b):
        return len(a) == len(b) and all(map(_same, a, b))
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(_same(a[key], b[key]) for key in a)
    return bool(a == b)


# Mechanism "update": after the step, from where the parameters were --------------------------------------------------


@contextmanager
def scaled_update(factors: Mapping[Tensor, float | Shape]) -> Iterator[None]:
    """Replace the step that is taken in the context, from ``q`` to ``p``, by ``q + factor (p - q)``.

    It needs one copy of these parameters for the time of the step.
    """
    chosen = [p for p in factors if p.grad is not None]
    here = [sharding.local(p.detach()) for p in chosen]
    before = [x.clone() for x in here]
    yield
    for param, start, end in zip(chosen, before, here, strict=True):
        factor = _value(factors[param])
        weight = sharding.local(factor).to(end) if isinstance(factor, Tensor) else factor
        torch.lerp(start, end, weight, out=end)  # one pass, and exactly the end for 1


def _value(factor: float | Shape) -> float | Tensor:
    return factor() if callable(factor) and not isinstance(factor, Tensor) else factor
