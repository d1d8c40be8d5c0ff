"""Static figures of tuning: learning rates, basins, expected best of k trials, heat maps."""

from __future__ import annotations

import math

import numpy as np
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator

from steepest.lab.figures import INK, MUTED
from steepest.lab.report.measures import Findings, Surface
from steepest.lab.report.static.parts import label_ends, method_axis, rate_axis, tall
from steepest.lab.series import ordered, padded, trial_window
from steepest.lab.wording import axis_name, rate, short, value

_HEAT = LinearSegmentedColormap.from_list("loss", ["#e6eef9", "#7fa8d9", "#234f8e"])
_EDGE = "#a8321f"


def draw_learning_rates(figure: Figure, f: Findings) -> bool:
    """Loss against learning rate."""
    methods = [m for m in ordered(f.study.methods) if len(m.by_rate) > 1]
    if not methods:
        return False
    figure.set_size_inches(6.6, tall(len(methods)))
    ax = figure.add_subplot()
    low, high, crosses = trial_window(f.study)
    ends = []
    for method in methods:
        s = f.styles[method.label]
        done = [t for t in method.by_rate if math.isfinite(t.loss)]
        ax.plot(
            [t.lr for t in done], [t.loss for t in done], color=s.color, marker=s.marker, linestyle=s.line, zorder=3
        )
        for trial in method.by_rate:
            if trial.state == "diverged":
                ax.plot(trial.lr, crosses[method.label], "x", color=s.color, markeredgewidth=1.8, clip_on=False)
        for trial in done:
            if math.isclose(trial.lr, method.best_lr, rel_tol=1e-6):
                ax.plot(trial.lr, trial.loss, "o", color=s.color, fillstyle="none", markersize=13, markeredgewidth=1.4)
        if done:
            edge = " (edge)" * ("lr" in method.open_axes)
            ends.append((done[-1].lr, done[-1].loss, short(method.label) + edge, s.color))
    rates = sorted({t.lr for m in methods for t in m.trials if t.lr > 0})
    rate_axis(ax, rates)
    ax.set_ylim(low, high)
    crowded = len(methods) > 8 and rates[-1] / rates[0] > 30
    label_ends(ax, ends, x=ax.get_xlim()[1] if crowded else None)
    ax.set_xlabel("learning rate")
    ax.set_ylabel("validation loss (nats per token)")
    ax.set_title("Learning-rate grids: ring = chosen, cross = diverged")
    return True


def draw_basins(figure: Figure, f: Findings) -> bool:
    """Learning rates within 0.01 and 0.05 nats of the best."""
    shown = [t for t in f.tunings if any(math.isfinite(b.octaves) for b in t.basins)]
    if not shown:
        return False
    figure.set_size_inches(6.6, 1.3 + 0.3 * len(shown))
    ax = figure.add_subplot()
    for y, t in enumerate(shown):
        color = f.styles[t.method.label].color
        for basin, width, alpha in zip(t.basins, (6, 2.5), (1.0, 0.5), strict=True):
            ax.plot([basin.low, basin.high], [y, y], color=color, linewidth=width, alpha=alpha, solid_capstyle="butt")
            for open_, x, mark in ((basin.open_low, basin.low, "<"), (basin.open_high, basin.high, ">")):
                if open_:
                    ax.plot(x, y, mark, color=color, alpha=alpha, clip_on=False)
        ax.plot(t.method.best_lr, y, "o", color=color, markerfacecolor="white", zorder=4)
    rate_axis(ax, [x.lr for t in shown for x in t.method.trials if x.lr > 0])
    method_axis(ax, [t.method.label for t in shown])
    ax.set_xlabel("learning rate")
    ax.set_title("Within 0.01 (thick) and 0.05 nats (thin) of the best loss")
    return True


def draw_best_of_k(figure: Figure, f: Findings) -> bool:
    """What k trials of tuning are expected to find."""
    shown = [t for t in f.tunings if len(t.best_of_k.k) > 1]
    late = [v for t in shown for v in t.best_of_k.expected[1:] if math.isfinite(v)]
    if not late:
        return False
    figure.set_size_inches(6.6, tall(len(shown)))
    ax = figure.add_subplot()
    ends = []
    for t in shown:
        s, best = f.styles[t.method.label], t.best_of_k
        known = [i for i in range(len(best.k)) if math.isfinite(best.expected[i])]
        k = [best.k[i] for i in known]
        ax.plot(k, [best.expected[i] for i in known], color=s.color, linestyle=s.line, marker=s.marker, zorder=3)
        ax.fill_between(
            k, [best.low[i] for i in known], [best.high[i] for i in known], color=s.color, alpha=0.10, linewidth=0
        )
        ends.append((best.k[-1], best.expected[-1], short(t.method.label), s.color))
    lowest = min(v for t in shown for v in t.best_of_k.expected if math.isfinite(v))
    ax.set_ylim(*padded(lowest, max(late), 0.06))
    label_ends(ax, ends, x=ax.get_xlim()[1])
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.set_xlabel("trials k")
    ax.set_ylabel("expected lowest loss of k trials")
    ax.set_title("What tuning costs")
    return True


def draw_heat_map(figure: Figure, surface: Surface) -> bool:
    """Loss over two tuned axes; the frame is the chosen point, the thick bar the edge that it lies on."""
    columns, lines = len(surface.xs), len(surface.ys)
    figure.set_size_inches(max(4.6, 1.6 + 0.85 * columns), max(2.6, 1.2 + 0.5 * lines))
    ax = figure.add_subplot()
    z = np.full((lines, columns), np.nan)
    for cell in surface.cells:
        z[cell.y, cell.x] = cell.loss
    known = np.sort(z[np.isfinite(z)])
    low = float(known[0]) if known.size else 0.0
    high = min(float(known[-1]), low + 4 * (float(np.median(known)) - low)) if known.size > 1 else low + 1.0
    image = ax.imshow(z, cmap=_HEAT, vmin=low, vmax=max(high, low + 1e-9), aspect="auto", origin="lower")
    for cell in surface.cells:
        lost = not math.isfinite(cell.loss)
        star = "\u2605 " if surface.best == (cell.x, cell.y) else ""
        pale = lost or cell.loss < low + 0.55 * (high - low)
        text = ("\u00d7 " + cell.state) if lost else f"{star}{cell.loss:.3f}"
        color = MUTED if lost else INK if pale else "white"
        ax.text(cell.x, cell.y, text, ha="center", va="center", color=color, fontsize=8.5)
    if surface.best:
        x, y = surface.best
        ax.add_patch(Rectangle((x - 0.47, y - 0.47), 0.94, 0.94, fill=False, edgecolor=INK, linewidth=1.8, zorder=4))
        for name in surface.open:
            if name == surface.x:
                side = -0.5 if x == 0 else x + 0.5
                ax.plot([side, side], [y - 0.5, y + 0.5], color=_EDGE, linewidth=5, clip_on=False, zorder=5)
            else:
                side = -0.5 if y == 0 else y + 0.5
                ax.plot([x - 0.5, x + 0.5], [side, side], color=_EDGE, linewidth=5, clip_on=False, zorder=5)
    ax.set_xticks(range(columns), [_tick(v) for v in surface.xs])
    ax.set_yticks(range(lines), [_tick(v) for v in surface.ys])
    ax.set_xlim(-0.5, columns - 0.5)
    ax.set_ylim(-0.5, lines - 0.5)
    ax.grid(visible=False)
    ax.set_xlabel(axis_name(surface.x) + " (open edge)" * (surface.x in surface.open))
    ax.set_ylabel(axis_name(surface.y) + " (open edge)" * (surface.y in surface.open))
    ax.set_title(short(surface.label))
    figure.colorbar(image, ax=ax, label="validation loss")
    return True


def draw_dots(figure: Figure, surface: Surface) -> bool:
    """Points that a sampler drew."""
    ax = figure.add_subplot()
    done = [c for c in surface.cells if math.isfinite(c.loss)]
    dots = ax.scatter(
        [surface.xs[c.x] for c in done],
        [surface.ys[c.y] for c in done],
        c=[c.loss for c in done],
        cmap=_HEAT,
        edgecolors=INK,
        linewidths=0.5,
        s=70,
    )
    for cell in surface.cells:
        if not math.isfinite(cell.loss):
            ax.plot(surface.xs[cell.x], surface.ys[cell.y], "x", color=MUTED, markeredgewidth=1.8)
    if surface.best:
        x, y = surface.best
        ax.plot(surface.xs[x], surface.ys[y], "o", fillstyle="none", color=INK, markersize=15)
    for set_scale, values in ((ax.set_xscale, surface.xs), (ax.set_yscale, surface.ys)):
        numeric = all(isinstance(v, (int, float)) and not isinstance(v, bool) and v > 0 for v in values)
        if numeric and max(values) / min(values) > 20:
            set_scale("log")
    ax.set_xlabel(axis_name(surface.x))
    ax.set_ylabel(axis_name(surface.y))
    ax.set_title(f"{short(surface.label)}: ring = chosen, cross = diverged")
    figure.colorbar(dots, ax=ax, label="validation loss")
    return True


def _tick(item: object) -> str:
    return rate(item) if isinstance(item, float) else value(item)
