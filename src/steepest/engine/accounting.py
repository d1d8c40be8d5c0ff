"""Exact optimizer-state memory, from shapes alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from steepest.engine.state import kept_bytes
from steepest.routing import Routing, default_routing, report
from steepest.rules.base import Rule, by_name
from steepest.rules.presets import Preset


def state_bytes(
    model_or_shapes: nn.Module | Routing | Mapping[str, Sequence[int]],
    method: Rule | Preset | str | None = None,
    **routing: Any,
) -> dict[str, int]:
    """Exact bytes of optimizer state by role of the parameters, without allocating it.

    Args:
        model_or_shapes: a model (also on the meta device), a ``Routing``, or shapes by parameter name (of float32
            parameters, which then all get the one rule and count under the role "parameter").
        method: a rule, its name ("lion_muon"), or a preset; None for a ``Routing``, which has its rules.
        **routing: the routing keywords of ``steepest.Steepest`` for a model (``embeddings=``, ``rest=``, ...).

    Returns:
        Bytes by role (embedding, attention, ...), with the "total". Frozen parameters have no state.

    Raises:
        TypeError: no method where one is needed, or routing keywords without a model.
    """
    if isinstance(method, Preset):
        routing = {"rest": method.rest, **routing}
        method = method.rule
    rule = by_name(method)() if isinstance(method, str) else method
    if not isinstance(model_or_shapes, (nn.Module, Routing)):
        if rule is None or routing:
            raise TypeError("shapes need a method, and only a model can be routed by role")
        total = sum(_parameter(rule, shape, torch.float32) for shape in model_or_shapes.values())
        return {"parameter": total, "total": total}
    if isinstance(model_or_shapes, nn.Module):
        if rule is None:
            raise TypeError("a model needs a method, e.g. state_bytes(model, 'lion_muon')")
        model_or_shapes = default_routing(model_or_shapes, rule, **routing)
    table: dict[str, int] = {}
    for entry in model_or_shapes.entries:
        if entry.rule is not None and not entry.frozen:
            kind = entry.role.kind
            table[kind] = table.get(kind, 0) + _parameter(entry.rule, entry.shape, entry.dtype)
    return {**table, "total": sum(table.values())}


def _parameter(rule: Rule, shape: Sequence[int], dtype: torch.dtype) -> int:
    """Bytes of the state of one parameter: its buffers, its step counter and its fits."""
    return kept_bytes(rule) + report.state_bytes(rule, shape, dtype)
