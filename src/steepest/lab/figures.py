"""The figures of a report in their static form: PNG and SVG by matplotlib, one style for all."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator

from steepest.lab.results import Row, Study
from steepest.lab.series import (
    AXES,
    ROLE_PALETTE,
    baseline_label,
    bytes_by_role,
    curves,
    front,
    interval_window,
    log_ticks,
    ordered,
    padded,
    roles_in_order,
    spread,
    styles,
    trial_window,
    window,
)
from steepest.lab.wording import byte_unit, clock, compact, rate, short

_INK, _MUTED, _GRID = "#22262b", "#6a717b", "#e4e7eb"
_DPI = 160
STYLE: Any = {
    "font.family": ["DejaVu Sans"],
    "font.size": 9.5,
    "text.color": _INK,
    "text.parse_math": False,  # a "$" in a label is a dollar
    "axes.labelcolor": _INK,
    "axes.edgecolor": "#9aa1ab",
    "axes.titlelocation": "left",
    "axes.titlesize": 10.5,
    "axes.titleweight": "bold",
    "axes.titlepad": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": _GRID,
    "grid.linewidth": 0.8,
    "xtick.color": _MUTED,
    "ytick.color": _MUTED,
    "xtick.labelcolor": _INK,
    "ytick.labelcolor": _INK,
    "xtick.major.size": 3,
    "ytick.major.size": 0,
    "legend.frameon": False,
    "lines.linewidth": 1.8,
    "lines.markersize": 5.5,
    "figure.facecolor": "white",
    "svg.hashsalt": "steepest",
}


def write_figures(study: Study, rows: Sequence[Row], folder: Path) -> list[Path]:
    """Write every figure that the study has data for as `<name>.png` and `<name>.svg`.

    Args:
        study: The study.
        rows: Its headline rows.
        folder: Created if it does not exist; figures of an earlier report are overwritten.

    Returns:
        The PNG files.
    """
    folder.mkdir(parents=True, exist_ok=True)
    drawings: dict[str, Callable[[Figure], bool]] = {
        **{f"loss_vs_{axis}": _bind(_draw_curves, study, axis, "validation") for axis in AXES},
        "train_loss_vs_steps": _bind(_draw_curves, study, "steps", "train"),
        "learning_rates": _bind(_draw_learning_rates, study),
        "final_loss": _bind(_draw_final_loss, study, rows),
        "loss_vs_state_bytes": _bind(_draw_pareto, study, rows),
        "state_bytes_by_role": _bind(_draw_state_bytes, study),
    }
    written = []
    with mpl.rc_context(STYLE):
        for name, draw in drawings.items():
            figure = Figure(figsize=(6.6, 4.0), layout="constrained")
            FigureCanvasAgg(figure)
            if not draw(figure):
                continue
            # No date in the files: the same study gives the same bytes.
            figure.savefig(folder / f"{name}.svg", metadata={"Date": None})
            figure.savefig(folder / f"{name}.png", dpi=_DPI)
            written.append(folder / f"{name}.png")
    return written


def _bind(draw: Callable[..., bool], *args: Any) -> Callable[[Figure], bool]:
    return lambda figure: draw(figure, *args)


def _label_ends(ax: Axes, ends: Sequence[tuple[float, float, str, str]], x: float | None = None) -> None:
    """Write the label of each line at its end (x, y, label, colour), moved apart where they would touch.

    Args:
        ax: The axes; its limits must be set.
        ends: The ends.
        x: Write all labels at this x instead of at the ends.
    """
    low, high = ax.get_ylim()
    places = spread([min(max(y, low), high) for _, y, _, _ in ends], (high - low) / 19)
    for (end, _, label, color), place in zip(ends, places, strict=True):
        ax.annotate(
            label,
            (end if x is None else x, place),
            xytext=(11, 0),
            textcoords="offset points",
            color=color,
            va="center",
            annotation_clip=False,
        )


def _draw_curves(figure: Figure, study: Study, axis: str, split: str) -> bool:
    group, style = curves(study, split), styles(study)
    if not group:
        return False
    ax = figure.add_subplot()
    low, high = window(group)
    unit, name = clock(max((c.seconds[-1] for c in group if math.isfinite(c.seconds[-1])), default=0.0))
    scale = unit if axis == "seconds" else 1.0
    ends = []
    for curve in group:
        color, x = style[curve.label].color, np.asarray(curve.x(axis)) / scale
        if curve.state == "done":
            ax.plot(x, curve.mean, color=color, zorder=3)
            if curve.seeds > 1:
                ax.fill_between(x, curve.low, curve.high, color=color, alpha=0.16, linewidth=0)
            ends.append((float(x[-1]), curve.mean[-1], short(curve.label), color))
        else:
            ax.plot(x, curve.mean, color=color, linewidth=1.1, linestyle=":", zorder=2)
            mark = "x" if curve.state == "diverged" else "|"
            ax.plot(x[-1], min(curve.mean[-1], high), mark, color=color, markeredgewidth=1.8, clip_on=False, zorder=4)
    if not ends:
        ends = [
            (c.x(axis)[-1] / scale, c.mean[-1], f"{short(c.label)} ({c.state})", style[c.label].color) for c in group
        ]
    ax.set_ylim(low, high)
    ax.set_xlim(left=0)
    ax.margins(x=0)
    _label_ends(ax, ends, x=ax.get_xlim()[1])
    if axis == "tokens":
        ax.xaxis.set_major_formatter(FuncFormatter(lambda v, _: compact(v)))
    ax.set_xlabel({"steps": "steps", "tokens": "tokens", "seconds": f"training time ({name})"}[axis])
    ax.set_ylabel("loss (nats per token)")
    seeds = max(c.seeds for c in group)
    what = "Validation loss" if split == "validation" else "Training loss"
    ax.set_title(f"{what}: mean and range of {seeds} seeds" if seeds > 1 else f"{what} (one seed)")
    return True


def _draw_learning_rates(figure: Figure, study: Study) -> bool:
    methods = [m for m in ordered(study.methods) if len(m.trials) > 1]
    if not methods:
        return False
    ax, style = figure.add_subplot(), styles(study)
    low, high, crosses = trial_window(study)
    ends = []
    for method in methods:
        s = style[method.label]
        done = [t for t in method.trials if math.isfinite(t.loss)]
        ax.plot([t.lr for t in done], [t.loss for t in done], color=s.color, marker=s.marker, zorder=3)
        for trial in method.trials:
            if trial.state == "diverged":
                y = crosses[method.label]
                ax.plot(trial.lr, y, "x", color=s.color, markeredgewidth=1.8, clip_on=False)
        for trial in done:
            if trial.lr == method.best_lr:
                ax.plot(trial.lr, trial.loss, "o", color=s.color, fillstyle="none", markersize=13, markeredgewidth=1.4)
        if done:
            ends.append((done[-1].lr, done[-1].loss, short(method.label) + " (edge)" * method.edge, s.color))
    rates = sorted({t.lr for m in methods for t in m.trials})
    ax.set_xscale("log")
    ax.xaxis.set_major_locator(FixedLocator(log_ticks(rates[0], rates[-1])))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.xaxis.set_major_formatter(FuncFormatter(lambda v, _: rate(v)))
    ax.set_ylim(low, high)
    _label_ends(ax, ends)
    ax.set_xlabel("learning rate")
    ax.set_ylabel("validation loss (nats per token)")
    ax.set_title("Learning-rate grids: ring = chosen, cross = diverged")
    return True


def _draw_final_loss(figure: Figure, study: Study, rows: Sequence[Row]) -> bool:
    rows, style = [row for row in rows if row.loss.n], styles(study)
    if not rows:
        return False
    compared = any(row.comparison for row in rows)
    figure.set_size_inches(8.6 if compared else 6.6, 1.3 + 0.42 * len(rows))
    ax = figure.add_subplot(1, 2, 1) if compared else figure.add_subplot()
    for y, row in enumerate(rows):
        s = style[row.method.label]
        values = list(row.losses.values())
        if row.loss.n > 1:
            ax.plot([row.loss.low, row.loss.high], [y, y], color=s.color, linewidth=2.2, solid_capstyle="butt")
        ax.plot(values, [y] * len(values), "o", color=s.color, alpha=0.45, markersize=4.5, markeredgewidth=0)
        ax.plot(row.loss.mean, y, s.marker, color=s.color, markersize=7.5, markeredgecolor="white", zorder=4)
        if row.is_baseline:
            ax.axvline(row.loss.mean, color=_MUTED, linewidth=0.9, linestyle="--", zorder=1)
    losses = [v for row in rows for v in row.losses.values()]
    ax.set_xlim(*interval_window(losses, [v for row in rows for v in (row.loss.low, row.loss.high)]))
    ax.set_yticks(range(len(rows)), [short(row.method.label) for row in rows])
    ax.set_xlabel("final validation loss (nats per token)")
    ax.set_title("Seeds, mean, 95% interval")
    axes = [ax]
    if compared:
        right = figure.add_subplot(1, 2, 2, sharey=ax)
        axes.append(right)
        right.axvline(0, color=_MUTED, linewidth=0.9, linestyle="--", zorder=1)
        shown = [(y, row, row.comparison) for y, row in enumerate(rows) if row.comparison and row.comparison.n]
        for y, row, c in shown:
            s = style[row.method.label]
            if c.n > 1:
                right.plot([c.low, c.high], [y, y], color=s.color, linewidth=2.2, solid_capstyle="butt")
            face = "white" if row.verdict == "not decided" else s.color
            right.plot(c.difference, y, s.marker, color=s.color, markersize=7.5, markerfacecolor=face, zorder=4)
        if shown:
            ends = [v for _, _, c in shown for v in (c.low, c.high)]
            right.set_xlim(*interval_window([c.difference for _, _, c in shown], ends, 0.0))
        right.tick_params(labelleft=False)
        right.set_xlabel(f"difference to {short(baseline_label(rows))}, paired by seed")
        right.set_title("95% interval; hollow = not decided")
    for panel in axes:
        panel.xaxis.set_major_locator(MaxNLocator(5))
        panel.grid(axis="y", visible=False)
    ax.set_ylim(len(rows) - 0.4, -0.6)
    return True


def _draw_pareto(figure: Figure, study: Study, rows: Sequence[Row]) -> bool:
    rows = [row for row in rows if row.loss.n and math.isfinite(row.bytes_per_parameter)]
    if len(rows) < 2:
        return False
    ax, style = figure.add_subplot(), styles(study)
    points = [(row.bytes_per_parameter, row.loss.mean) for row in rows]
    kept = front(points)
    ax.plot(
        [points[i][0] for i in kept],
        [points[i][1] for i in kept],
        color="#b4bac3",
        linewidth=1.2,
        linestyle="--",
        zorder=1,
    )
    for i, row in enumerate(rows):
        s = style[row.method.label]
        ax.plot(*points[i], s.marker, color=s.color, markersize=9, markerfacecolor=s.color if i in kept else "white")
    ax.set_xlim(0, 1.08 * max(x for x, _ in points))
    ax.set_ylim(*padded(min(y for _, y in points), max(y for _, y in points), 0.12))
    _label_ends(
        ax,
        [
            (x, y, short(row.method.label), style[row.method.label].color)
            for (x, y), row in zip(points, rows, strict=True)
        ],
    )
    ax.set_xlabel("optimizer state (bytes per parameter)")
    ax.set_ylabel("final validation loss (nats per token)")
    ax.set_title("Loss against memory: hollow = another method is better on both")
    return True


def _draw_state_bytes(figure: Figure, study: Study) -> bool:
    table = bytes_by_role(study)
    roles = roles_in_order(table)
    if not roles:
        return False
    figure.set_size_inches(6.6, 1.5 + 0.4 * len(table))
    ax = figure.add_subplot()
    unit, name = byte_unit(max(sum(sums.values()) for sums in table.values()))
    left = np.zeros(len(table))
    for i, role in enumerate(roles):
        width = np.asarray([sums.get(role, 0.0) for sums in table.values()]) / unit
        color = ROLE_PALETTE[i % len(ROLE_PALETTE)][0]
        ax.barh(
            range(len(table)), width, left=left, height=0.62, color=color, label=role, edgecolor="white", linewidth=0.6
        )
        left += width
    ax.set_yticks(range(len(table)), [short(label) for label in table])
    ax.invert_yaxis()
    ax.grid(axis="y", visible=False)
    ax.set_xlabel(f"optimizer state ({name})")
    ax.set_title("Where the optimizer state is")
    figure.legend(loc="outside lower center", ncols=min(len(roles), 6), handlelength=1.0, columnspacing=1.4)
    return True
