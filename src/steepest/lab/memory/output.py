"""The numbers as tables, in words, as files and as a figure."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from steepest.kernels.device import piece_elements, stack_elements
from steepest.lab import runs
from steepest.lab.memory.counting import Report, Usage
from steepest.lab.memory.papers import published_tables
from steepest.lab.wording import DASH

SCHEMA = 1


def totals(report: Report) -> list[list[str]]:
    """The sums as rows of text, the titles first."""
    (size, unit), (decimal, decimal_unit) = report.units
    rows = [["", f"state, {unit}", decimal_unit, "B/param", f"all, {unit}", f"step ≈ {unit}"]]

    def each(total: int | None) -> str:
        return f"{total / report.parameters:.2f}" if report.shards == 1 and total is not None else DASH

    for label, sums in (("weights", report.weights), ("gradients", report.gradients)):
        total = sum(sums.values())
        rows.append([label, _size(total, size), _size(total, decimal), each(total), "", ""])
    for usage in report.methods:
        rows.append(
            [
                usage.label + "*" * bool(usage.note),
                _size(usage.total, size),
                _size(usage.total, decimal),
                each(usage.total),
                _size(_all(report, usage), size),
                _size(usage.step, size),
            ]
        )
    return rows


def by_role(report: Report) -> list[list[str]]:
    """Weights, gradients and state by role as rows of text, the titles first."""
    size, unit = report.units[0]
    lines: list[tuple[str, Mapping[str, int] | None]] = [("weights", report.weights), ("gradients", report.gradients)]
    lines += [(usage.label, usage.state) for usage in report.methods]
    cells = [[label, *(_size(size_of, size) for size_of in _sizes(sums, report))] for label, sums in lines]
    return [[unit, *report.roles], *cells]


def _sizes(sums: Mapping[str, int] | None, report: Report) -> list[int | None]:
    """Bytes by role; None for what was not counted."""
    return [None if sums is None else sums.get(role, 0) for role in report.roles]


def _all(report: Report, usage: Usage) -> int | None:
    """Weights, gradients and state."""
    return None if usage.total is None else report.fixed + usage.total


def _size(count: int | None, unit: int) -> str:
    if count is None:
        return DASH
    return "0" if not count else f"{count / unit:.2f}" if count / unit >= 0.005 else "<0.01"


def headline(report: Report) -> str:
    """What was counted, in a line."""
    kinds = [f"{what} {dtype}" for what, dtype in report.dtypes.items()]
    cut = f"; per process, of {report.shards}" if report.shards > 1 else ""
    what = f"{report.parameters:,} parameters in {report.tensors:,} tensors of {report.architecture}"
    return f"{report.model}: {what}; {', '.join(kinds)}{cut}"


def remarks(report: Report) -> list[str]:
    """What the numbers mean, and what they leave out."""
    (size, unit), (decimal, decimal_unit) = report.units
    meta = torch.device("meta")
    pieces, stacks = piece_elements(meta).bit_length() - 1, stack_elements(meta).bit_length() - 1
    bound = ", of the whole model (an upper bound for a process)" if report.shards > 1 else ""
    step = (
        f"step is an estimate{bound}: the most that one step allocates on a GPU beside that, and gives back. "
        f"Element-wise rules work in pieces of up to 2^{pieces} elements (lists of small tensors: four times that), "
        f"spectral ones in stacks of up to 2^{stacks}, multiplied in bfloat16; soft rules before their transition; "
        "torch's AdamW fused, its SGD on lists. The workspace of math libraries is not in it."
    )
    notes: dict[str, list[str]] = {}
    for usage in report.methods:
        if usage.note:
            notes.setdefault(usage.note, []).append(usage.label)
    return [
        f"1 {unit} = {size:,} bytes, 1 {decimal_unit} = {decimal:,} bytes. Weights, gradients and state are exact, "
        "all is their sum; activations are not counted.",
        step,
        *(f"* {', '.join(labels)}: {note}." for note, labels in notes.items()),
    ]


# Files


def write(report: Report, folder: Path, cells: Sequence[Mapping[str, Any]] = ()) -> list[Path]:
    """Write table.md, table.csv, memory.json and memory.svg into `folder`; `cells` are those of `published`."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "table.md").write_text(markdown(report, cells), encoding="utf-8", newline="\n")
    (folder / "table.csv").write_text(csv_table(report), encoding="utf-8", newline="\n")
    record = {"schema": SCHEMA, "command": runs.command(), "versions": runs.versions(), **asdict(report)}
    runs.write_json(folder / "memory.json", {**record, **({"published": list(cells)} if cells else {})})
    draw(report, folder / "memory.svg")
    return [folder / name for name in ("table.md", "table.csv", "memory.json", "memory.svg")]


def markdown(report: Report, cells: Sequence[Mapping[str, Any]] = ()) -> str:
    """All tables and remarks, for a README."""
    parts = [f"# Memory of {report.model}", f"{headline(report)}.", _markdown_table(totals(report))]
    parts += ["By role of the parameters:", _markdown_table(by_role(report)), *remarks(report)]
    for title, rows, below in published_tables(cells) if cells else []:
        parts += [f"## {title}", _markdown_table(rows), below]
    return "\n\n".join(parts) + "\n"


def _markdown_table(rows: Sequence[Sequence[str]]) -> str:
    lines = [rows[0], ["---", *["---:"] * (len(rows[0]) - 1)], *rows[1:]]
    return "\n".join(f"| {' | '.join(cell.replace('*', chr(92) + '*') for cell in line)} |" for line in lines)


def csv_table(report: Report) -> str:
    """Exact bytes: a row per method. An empty cell is what was not counted."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    titles = ["method", "weights", "gradients", *(f"state {role}" for role in report.roles), "state", "step (estimate)"]
    writer.writerow([*titles[:-1], "weights, gradients and state", titles[-1]])
    fixed = [sum(report.weights.values()), sum(report.gradients.values())]
    for usage in report.methods:
        sums = [*_sizes(usage.state, report), usage.total, _all(report, usage)]
        writer.writerow([usage.name, *fixed, *sums, usage.step])  # None is an empty cell
    return file.getvalue()


def draw(report: Report, path: Path) -> None:
    """Draw a bar per method that was counted as SVG: weights, gradients, state by role, and the estimate of a step."""
    import matplotlib as mpl
    import numpy as np
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    from steepest.lab.figures import STYLE
    from steepest.lab.series import ROLE_PALETTE

    (size, unit), (decimal, decimal_unit) = report.units
    counted = [usage for usage in report.methods if usage.state is not None]
    places = np.arange(len(counted))
    # (label, colour, hatch, bytes of each method)
    segments: list[tuple[str, str, str, list[int]]] = [
        (what, color, "", [sum(sums.values())] * len(places))
        for what, color, sums in (("weights", "#9aa1ab", report.weights), ("gradients", "#d3d7dc", report.gradients))
    ]
    for i, role in enumerate(report.roles):
        color = ROLE_PALETTE[i % len(ROLE_PALETTE)][0]
        segments.append((f"state: {role}", color, "", [(usage.state or {}).get(role, 0) for usage in counted]))
    segments.append(("a step (estimate)", "white", "////", [usage.step or 0 for usage in counted]))
    with mpl.rc_context({**STYLE, "hatch.color": "#9aa1ab", "hatch.linewidth": 0.8}):
        figure = Figure(figsize=(8.6, 1.9 + 0.4 * len(places)), layout="constrained")
        FigureCanvasAgg(figure)
        ax = figure.add_subplot()
        left = np.zeros(len(places))
        for label, color, hatch, sizes in segments:
            width = np.asarray(sizes) / size
            style: dict[str, Any] = {
                "color": color,
                "hatch": hatch,
                "edgecolor": "#9aa1ab" if hatch else "white",
                "linewidth": 0.5,
            }
            ax.barh(places, width, left=left, height=0.62, label=label, **style)
            left += width
        for place, usage, end in zip(places, counted, left, strict=True):
            text = f"{_size(_all(report, usage), size)} {unit}, state {_size(usage.total, size)}"
            ax.annotate(text, (end, place), xytext=(5, 0), textcoords="offset points", va="center", fontsize=8.5)
        ax.set_xlim(0, 1.26 * max(left))
        ax.set_yticks(places, [usage.label.replace("+", "\n+") for usage in counted])
        ax.invert_yaxis()
        ax.grid(axis="y", visible=False)
        each = f", per process of {report.shards}" if report.shards > 1 else ""
        ax.set_xlabel(f"memory without activations ({unit}; 1 {unit} = {size / decimal:.3f} {decimal_unit}){each}")
        ax.set_title(f"{report.model}: weights, gradients and optimizer state")
        figure.legend(loc="outside lower center", ncols=4, handlelength=1.2, columnspacing=1.4)
        figure.savefig(path, metadata={"Date": None})
