"""Static figures of losses: curves, final losses with differences."""

from __future__ import annotations

import math

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from steepest.lab.figures import MUTED
from steepest.lab.report.measures import Findings, isolated
from steepest.lab.report.static.parts import compact_axis, label_ends, method_axis, tall
from steepest.lab.series import Curve, baseline_label, interval_window, window
from steepest.lab.wording import clock, short


def draw_curves(figure: Figure, f: Findings, axis: str, split: str) -> bool:
    """Loss against steps, tokens, FLOPs or seconds."""
    group = f.curves.get(split)
    if not group:
        return False
    figure.set_size_inches(6.6, tall(len({c.label for c in group})))
    ax = figure.add_subplot()
    low, high = window(group)
    apart = isolated(f.study, f.rows)

    def xs(curve: Curve) -> list[float]:
        row = next((row for row in f.rows if row.method.label == curve.label), None)
        if axis == "seconds" and apart and row:
            return [s * f.study.step_seconds(row.method) for s in curve.steps]
        return curve.x(axis)

    last = max((end for c in group if math.isfinite(end := xs(c)[-1])), default=0.0)
    unit, name = clock(last)
    scale = unit if axis == "seconds" else 1.0
    ends = []
    for curve in group:
        s, x = f.styles[curve.label], np.asarray(xs(curve)) / scale
        if curve.state == "done":
            ax.plot(x, curve.mean, color=s.color, linestyle=s.line, zorder=3)
            if curve.seeds > 1:
                ax.fill_between(x, curve.low, curve.high, color=s.color, alpha=0.16, linewidth=0)
            ends.append((float(x[-1]), curve.mean[-1], short(curve.label), s.color))
        else:
            ax.plot(x, curve.mean, color=s.color, linewidth=1.1, linestyle=":", zorder=2)
            mark = "x" if curve.state == "diverged" else "|"
            y = min(curve.mean[-1], high)
            ax.plot(x[-1], y, mark, color=s.color, markeredgewidth=1.8, clip_on=False, zorder=4)
    if not ends:
        ends = [
            (xs(c)[-1] / scale, c.mean[-1], f"{short(c.label)} ({c.state})", f.styles[c.label].color) for c in group
        ]
    ax.set_ylim(low, high)
    ax.set_xlim(left=0)
    ax.margins(x=0)
    label_ends(ax, ends, x=ax.get_xlim()[1])
    if axis in ("tokens", "flops"):
        compact_axis(ax)
    time = f"training time ({name}{', optimizer timed apart' if apart else ', machine shared'})"
    ax.set_xlabel({"steps": "steps", "tokens": "tokens", "flops": "FLOPs, model and optimizer", "seconds": time}[axis])
    ax.set_ylabel("loss (nats per token)")
    seeds = max(c.seeds for c in group)
    what = "Validation loss" if split == "validation" else "Training loss"
    ax.set_title(f"{what}: mean and range of {seeds} seeds" if seeds > 1 else f"{what} (one seed)")
    return True


def draw_final_loss(figure: Figure, f: Findings) -> bool:
    """Seeds, mean and interval of each method; beside it the paired differences to the baseline."""
    rows = [row for row in f.rows if row.loss.n]
    if not rows:
        return False
    compared = any(row.comparison for row in rows)
    figure.set_size_inches(8.6 if compared else 6.6, 1.3 + (0.42 if len(rows) <= 8 else 0.3) * len(rows))
    ax = figure.add_subplot(1, 2, 1) if compared else figure.add_subplot()
    for y, row in enumerate(rows):
        s = f.styles[row.method.label]
        values = list(row.losses.values())
        if row.loss.n > 1:
            ax.plot([row.loss.low, row.loss.high], [y, y], color=s.color, linewidth=2.2, solid_capstyle="butt")
        ax.plot(values, [y] * len(values), "o", color=s.color, alpha=0.45, markersize=4.5, markeredgewidth=0)
        ax.plot(row.loss.mean, y, s.marker, color=s.color, markersize=7.5, markeredgecolor="white", zorder=4)
        if row.is_baseline:
            ax.axvline(row.loss.mean, color=MUTED, linewidth=0.9, linestyle="--", zorder=1)
    losses = [v for row in rows for v in row.losses.values()]
    ax.set_xlim(*interval_window(losses, [v for row in rows for v in (row.loss.low, row.loss.high)]))
    noise = f"; noise {f.noise.sd:.2g}" if f.noise else ""
    ax.set_xlabel(f"final validation loss (nats per token{noise})")
    ax.set_title("Seeds, mean, 95% interval")
    method_axis(ax, [row.method.label for row in rows])
    axes = [ax]
    if compared:
        right = figure.add_subplot(1, 2, 2, sharey=ax)
        axes.append(right)
        right.axvline(0, color=MUTED, linewidth=0.9, linestyle="--", zorder=1)
        shown = [(y, row, row.comparison) for y, row in enumerate(rows) if row.comparison and row.comparison.n]
        for y, row, c in shown:
            s = f.styles[row.method.label]
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
