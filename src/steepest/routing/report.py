"""The routing report: what every parameter is, which rule it got, how large its steps and its state are, and why."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, TypedDict

import torch

from steepest.routing.views import View

if TYPE_CHECKING:
    from steepest.rules.base import Rule


class Row(TypedDict):
    """One parameter of a report; plain values, ready for JSON.

    ``rms_step`` is the expected root mean square of an element of one step (learning rate x scale, weight decay apart;
    None for a method that cannot say), ``state_bytes`` the size of the declared buffers, without the step counter.
    """

    name: str
    shape: list[int]
    view: str
    role: str
    rule: str
    rms_step: float | None
    state_bytes: int
    why: str


def row(
    *,
    name: str,
    shape: Sequence[int],
    dtype: torch.dtype,
    view: View | str,
    role: str,
    rule: Rule | None,
    why: str,
) -> Row:
    """The row of one parameter of the given (global) shape and dtype; ``rule`` is None for one that is not stepped."""
    return Row(
        name=name,
        shape=list(shape),
        view=str(view),
        role=role,
        rule="none" if rule is None else rule.name,
        rms_step=0.0 if rule is None else rms_step(rule, view, shape),
        state_bytes=0 if rule is None else state_bytes(rule, shape, dtype),
        why=why,
    )


def rms_step(rule: Rule, view: View | str, shape: Sequence[int]) -> float | None:
    """Expected RMS of an element of one step on a tensor of this shape, over all its matrices; None if unknown."""
    view = View.parse(view)
    stacks = [(1, max(math.prod(shape), 1))] if view.element else view.shapes(shape)
    squares = sum(math.prod(s) * rule.expected_rms(s[-2], s[-1]) ** 2 for s in stacks if math.prod(s))
    size = math.sqrt(squares / max(math.prod(shape), 1))
    return None if math.isnan(size) else size


def state_bytes(rule: Rule, shape: Sequence[int], dtype: torch.dtype) -> int:
    """Bytes of the buffers that a rule declares for a parameter, without the step counter."""
    return sum(math.prod(s) * d.itemsize for s, d in rule.state_specs(torch.Size(shape), dtype).values())


def text(rows: Sequence[Row]) -> str:
    """The rows as an aligned table, with layers that are alike in one line (``h.{0-11}.attn...``) and totals below."""
    header = ("name", "", "shape", "view", "role", "rule", "RMS step", "state", "why")
    lines = [header, *map(_line, _folded(rows))]
    widths = [max(len(line[i]) for line in lines) for i in range(len(header))]
    right = (1, 6, 7)  # counts and sizes

    def aligned(line: Sequence[str]) -> str:
        cells = (c.rjust(w) if i in right else c.ljust(w) for i, (c, w) in enumerate(zip(line, widths, strict=True)))
        return "  ".join(cells).rstrip()

    return "\n".join([*map(aligned, lines), "", *_totals(rows)])


def _line(rows: list[Row]) -> tuple[str, ...]:
    first = rows[0]
    return (
        _folded_name([r["name"] for r in rows]),
        f"x{len(rows)}" if len(rows) > 1 else "",
        "x".join(map(str, first["shape"])) or "scalar",
        first["view"],
        first["role"],
        first["rule"],
        "" if first["rms_step"] is None else f"{first['rms_step']:.3g}",
        _size(sum(r["state_bytes"] for r in rows)),
        first["why"],
    )


def _folded(rows: Sequence[Row]) -> list[list[Row]]:
    """Rows that differ in nothing but numbers within their names, in the order of the first of each."""
    alike: dict[tuple[object, ...], list[Row]] = {}
    for r in rows:
        name = re.sub(r"\b\d+\b", "#", r["name"])
        rest = (r["view"], r["role"], r["rule"], r["rms_step"], r["state_bytes"], re.sub(r"\b\d+\b", "#", r["why"]))
        alike.setdefault((name, *r["shape"], "|", *rest), []).append(r)
    return list(alike.values())


def _folded_name(names: Sequence[str]) -> str:
    """``a.0.b`` and ``a.1.b`` as ``a.{0-1}.b``."""
    found = [sorted(set(map(int, column))) for column in zip(*(re.findall(r"\b\d+\b", n) for n in names), strict=True)]
    parts = iter(found)
    return re.sub(r"\b\d+\b", lambda _: ranges(next(parts)), names[0])


def ranges(numbers: list[int]) -> str:
    """Increasing numbers as ``3`` or ``{0-4,7}``."""
    runs: list[list[int]] = []
    for n in numbers:
        if runs and n == runs[-1][-1] + 1:
            runs[-1].append(n)
        else:
            runs.append([n])
    if len(numbers) == 1:
        return str(numbers[0])
    return "{" + ",".join(f"{r[0]}-{r[-1]}" if len(r) > 1 else str(r[0]) for r in runs) + "}"


def _totals(rows: Sequence[Row]) -> list[str]:
    elements: dict[str, int] = {}
    tensors: dict[str, int] = {}
    state: dict[str, int] = {}
    for r in rows:
        rule = r["rule"]
        elements[rule] = elements.get(rule, 0) + math.prod(r["shape"])
        tensors[rule] = tensors.get(rule, 0) + 1
        state[rule] = state.get(rule, 0) + r["state_bytes"]
    total = sum(elements.values())
    share = {rule: f"{100 * n / max(total, 1):.1f} %" for rule, n in elements.items()}
    parts = [f"{rule} {share[rule]} ({tensors[rule]} tensors, state {_size(state[rule])})" for rule in elements]
    return [f"{total:,} parameters in {len(rows):,} tensors, state {_size(sum(state.values()))}: {'; '.join(parts)}"]


def _size(count: float) -> str:
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.0f} B" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"
