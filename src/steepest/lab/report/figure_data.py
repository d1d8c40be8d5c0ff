"""The data of figures as tables, for readers who do not see them, or want the numbers."""

from __future__ import annotations

import math

import numpy as np

from steepest.lab.report.measures import Findings
from steepest.lab.report.sheets import Cell, Sheet
from steepest.lab.series import bytes_by_role, roles_in_order
from steepest.lab.wording import DASH, fixed, long_name, whole

_COLUMNS = 10  # of the steps of a curve


def figure_sheets(f: Findings) -> dict[str, Sheet]:
    """Tables by the name of the figure, for figures that no other table of the page holds the data of."""
    found = {
        "curves": _curves(f),
        "final-loss": _seeds(f),
        "best-of-k": _best_of_k(f),
        "state-bytes": _state_bytes(f),
        "diagnostics": _diagnostics(f),
    }
    return {name: sheet for name, sheet in found.items() if sheet and sheet.rows}


def _curves(f: Findings) -> Sheet | None:
    split = next(iter(f.curves), None)
    group = [c for c in f.curves[split] if c.state == "done"] if split else []
    if not split or not group:
        return None
    steps = max(group, key=lambda c: len(c.steps)).steps
    chosen = sorted({round(i) for i in np.linspace(0, len(steps) - 1, min(_COLUMNS, len(steps)))})
    places = [steps[i] for i in chosen]
    lines = []
    for curve in group:
        losses = [float(np.interp(step, curve.steps, curve.mean)) for step in places]
        lines.append([Cell(long_name(curve.label), curve.label), *(Cell(fixed(v, 4), v) for v in losses)])
    titles = ["Method", *(f"step {step:,.0f}" for step in places)]
    name = "Validation" if split == "validation" else "Training"
    return Sheet("curves", f"{name} loss along the schedule, mean of the seeds", titles, lines)


def _seeds(f: Findings) -> Sheet | None:
    seeds = f.study.seeds
    lines = [
        [
            Cell(long_name(row.method.label), row.method.label),
            *(Cell(fixed(x, 4), x) for x in (row.losses.get(seed, math.nan) for seed in seeds)),
            Cell(fixed(row.loss.mean, 4), row.loss.mean),
            Cell(f"{row.loss.low:.4f} to {row.loss.high:.4f}" if row.loss.n > 1 else DASH),
        ]
        for row in f.rows
        if row.loss.n
    ]
    titles = ["Method", *(f"seed {seed}" for seed in seeds), "Mean", "95% interval"]
    return Sheet("seeds", "Final validation loss of every seed", titles, lines)


def _best_of_k(f: Findings) -> Sheet | None:
    most = max((t.best_of_k.k[-1] for t in f.tunings if t.best_of_k.k), default=0)
    if most < 2:
        return None
    lines = []
    for t in f.tunings:
        values = [*t.best_of_k.expected, *[math.nan] * (most - len(t.best_of_k.expected))]
        lines.append([Cell(long_name(t.method.label), t.method.label), *(Cell(fixed(v, 4), v) for v in values)])
    titles = ["Method", *(f"k = {k}" for k in range(1, most + 1))]
    return Sheet("best-of-k", "Expected lowest loss of k tuning trials", titles, lines)


def _state_bytes(f: Findings) -> Sheet | None:
    table = bytes_by_role(f.study)
    roles = roles_in_order(table)
    lines = []
    for label, sums in table.items():
        values = [sums.get(role, 0.0) for role in roles] + [sum(sums.values())]
        lines.append([Cell(long_name(label), label), *(Cell(whole(v), v) for v in values)])
    return Sheet("state-bytes", "Bytes of optimizer state by role", ["Method", *roles, "total"], lines)


def _diagnostics(f: Findings) -> Sheet | None:
    keys = list(f.diagnostics)
    labels = list(dict.fromkeys(trace.label for traces in f.diagnostics.values() for trace in traces))
    if not labels:
        return None
    lines = []
    for label in labels:
        cells = [Cell(long_name(label), label)]
        for key in keys:
            values = [float(np.mean(t.values)) for t in f.diagnostics[key] if t.label == label]
            cells.append(Cell(f"{values[0]:.3g}" if values else DASH, values[0] if values else math.nan))
        lines.append(cells)
    titles = ["Method", *(name.replace("_", " ") + (f", {role}" if role != "all" else "") for name, role in keys)]
    return Sheet("diagnostics", "Diagnostics, mean along the runs", titles, lines)
