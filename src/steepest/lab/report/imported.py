"""Imported runs beside ours: their curves, dashed, on axes that both have, and their numbers as a published table."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from steepest.lab.errors import UserError
from steepest.lab.published import Published
from steepest.lab.report.beside import named, our_protocol
from steepest.lab.report.interactive.parts import Spec, control, end_labels, layout, room, rounded, tall, text, title
from steepest.lab.report.measures import Findings
from steepest.lab.report.sheets import Cell, Sheet
from steepest.lab.report.static.parts import label_ends
from steepest.lab.report.static.parts import tall as tall_inches
from steepest.lab.results import headline, number, read_study
from steepest.lab.series import MARKERS, PALETTE, Curve, Style, window
from steepest.lab.statistics import Summary
from steepest.lab.wording import fixed, short

_AXES = {
    "part": ("Part of the run", "part of the run (%)"),
    "tokens": ("Tokens", "tokens"),
    "steps": ("Steps", "steps"),
}
_PLACES = (0, 10, 25, 50, 75, 90, 100)  # of the table, in percent of a run
_MARK = " (theirs)"


@dataclass(frozen=True)
class Line:
    """A curve of the figure."""

    label: str
    curve: Curve
    style: Style
    steps: float

    def x(self, axis: str) -> list[float]:
        """The values of an axis."""
        return [100 * s / self.steps for s in self.curve.steps] if axis == "part" else self.curve.x(axis)


def read_imported(folder: str | Path) -> Findings:
    """Read a study of imported runs.

    Raises:
        UserError: it is no study, or not of imported runs.
    """
    study = read_study(folder)
    if study.tier != "imported":
        raise UserError(
            f"{folder} is not of imported runs (`steepest import` makes such a study); `steepest report` of several "
            "studies compares studies of ours."
        )
    return Findings(study, headline(study))


def as_published(f: Findings) -> Published:
    """Imported runs as a published table; of several runs of one method the one with the lowest loss."""
    found: dict[str, Summary] = {}
    for row in f.rows:  # lowest first
        if row.loss.n:
            found.setdefault(named(row), row.loss)
    protocol = our_protocol(f.study)
    schedule = f.study.workload.get("schedule")
    kind = str(schedule.get("kind") or "") if isinstance(schedule, dict) else ""
    return Published(
        key=f"imported-{f.study.name}",
        title=f"Imported: {f.study.name}",
        source=str(f.study.path),
        quantity="loss",
        # what a summary does not say is unknown, not ours
        protocol=replace(
            protocol, schedule=kind, evaluation="", tuning="unknown; of several runs of a method the best"
        ),
        values={name: loss.mean for name, loss in found.items()},
        sigma={name: loss.sd for name, loss in found.items() if math.isfinite(loss.sd)},
    )


def lines(f: Findings, others: Sequence[Findings]) -> list[Line]:
    """Validation curves of the methods that finished; theirs in the colour of our method of the same name."""
    found = [Line(c.label, c, f.styles[c.label], _steps(f)) for c in _done(f)]
    colors = {named(row): f.styles[row.method.label].index for row in reversed(f.rows)}
    taken = {s.index for s in f.styles.values()}
    free = [i for i in range(len(PALETTE)) if i not in taken] or list(range(len(PALETTE)))
    for other in others:
        names = {row.method.label: named(row) for row in other.rows}
        for curve in _done(other):
            color = colors.setdefault(names[curve.label], free[len(colors) % len(free)])
            style = Style(color, *MARKERS[color], "dash", (0, (5, 2)))
            found.append(Line(short(curve.label) + _MARK, curve, style, _steps(other)))
    return found


def _done(f: Findings) -> list[Curve]:
    return [c for c in f.curves.get("validation", []) if c.state == "done"]


def _steps(f: Findings) -> float:
    steps = number(f.study.workload.get("steps"))
    return steps if steps > 0 else max((c.steps[-1] for c in _done(f)), default=math.nan)


def _window(f: Findings, others: Sequence[Findings]) -> tuple[float, float]:
    ranges = [window(group) for each in (f, *others) if (group := _done(each))]
    return min(low for low, _ in ranges), max(high for _, high in ranges)


def chart(f: Findings, others: Sequence[Findings]) -> Spec | None:
    """The figure of the page."""
    drawn = lines(f, others)
    if not drawn:
        return None
    low, high = _window(f, others)
    height = tall(len(drawn))
    data: list[Spec] = [
        {
            "type": "scatter",
            "mode": "lines",
            "x": rounded(line.x("part")),
            "y": rounded(line.curve.mean),
            "line": {"color": f"@s{line.style.index}", "width": 2.2, "dash": line.style.dash},
            "name": text(line.label),
            "hovertemplate": f"{text(line.label)}: %{{y:.4f}}<extra></extra>",
            "meta": {"x": {axis: rounded(line.x(axis)) for axis in _AXES}},
        }
        for line in drawn
    ]
    spec = layout(
        height,
        {"title": title(_AXES["part"][1]), "rangemode": "tozero"},
        {"title": title("loss (nats per token)"), "range": rounded((low, high))},
        annotations=end_labels([(x.curve.mean[-1], x.label, x.style) for x in drawn], low, high, height),
    )
    spec["margin"]["r"] = room([line.label for line in drawn], _MARK)
    return {
        "data": data,
        "layout": spec,
        "controls": control("axis", "Horizontal axis", [(axis, words) for axis, (words, _) in _AXES.items()]),
        "layouts": {"axis": {axis: {"xaxis": {"title": {"text": words}}} for axis, (_, words) in _AXES.items()}},
    }


def draw(f: Findings, others: Sequence[Findings], figure: Figure) -> bool:
    """The same figure for print, over the part of the run."""
    drawn = lines(f, others)
    if not drawn:
        return False
    figure.set_size_inches(6.6, tall_inches(len(drawn)))
    ax = figure.add_subplot()
    for line in drawn:
        ax.plot(line.x("part"), line.curve.mean, color=line.style.color, linestyle=line.style.line)
    ax.set_ylim(*_window(f, others))
    ax.set_xlim(0, 100)
    label_ends(ax, [(100, line.curve.mean[-1], line.label, line.style.color) for line in drawn], x=100)
    ax.set_xlabel(_AXES["part"][1])
    ax.set_ylabel("loss (nats per token)")
    ax.set_title("Validation loss; dashed: imported runs, of another protocol")
    return True


def sheet(f: Findings, others: Sequence[Findings]) -> Sheet | None:
    """The data of the figure."""
    body = []
    for line in lines(f, others):
        values = [float(np.interp(place, line.x("part"), line.curve.mean)) for place in _PLACES]
        body.append([Cell(line.label), *(Cell(fixed(v, 4), v) for v in values)])
    titles = ["Method", *(f"{place}% of the run" for place in _PLACES)]
    return Sheet("imported", "Validation loss along the runs", titles, body) if body else None
