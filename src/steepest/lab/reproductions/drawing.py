"""Figures of a study in the style of the reports: SVG files, the same bytes for the same numbers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from steepest.lab.figures import STYLE
from steepest.lab.reproductions.base import Arm, Case, Measure, Results
from steepest.lab.series import MARKERS, PALETTE, log_ticks

# The band around a median: the middle half of the seeds.
BAND = (0.25, 0.75)


def write_figures(results: Results, folder: Path) -> list[Path]:
    """Draw every figure of the study as `<name>.svg` and return the files."""
    written = []
    with mpl.rc_context(STYLE):
        for name, (_, draw) in results.study.figures.items():
            figure = Figure(figsize=(8.6, 4.2), layout="constrained")
            FigureCanvasAgg(figure)
            draw(figure, results)
            figure.savefig(folder / f"{name}.svg", metadata={"Date": None})
            written.append(folder / f"{name}.svg")
    return written


def color(results: Results, arm: Arm) -> str:
    """The colour of an arm: that of its place in the study."""
    return PALETTE[results.study.arms.index(arm) % len(PALETTE)][0]


def marker(results: Results, arm: Arm) -> str:
    """The marker of an arm."""
    return MARKERS[results.study.arms.index(arm) % len(MARKERS)][1]


def draw_series(
    figure: Figure,
    results: Results,
    cases: Sequence[Case],
    *,
    x: str,
    y: str,
    xlabel: str,
    ylabel: str,
    log: bool = False,
    arms: Sequence[str] = (),
    start: float = 0.0,
    lowest: float = 0.0,
    shared: bool = True,
) -> None:
    """Draw a series against another: a panel per case, a line per arm.

    Lines are medians over seeds, with the middle half of the seeds as a band.

    Args:
        figure: to draw into.
        results: of the study.
        cases: the panels.
        x: key of the series for the x axis, equal for all seeds.
        y: key of the series for the y axis.
        xlabel: with the unit.
        ylabel: with the unit.
        log: a logarithmic y axis.
        arms: names of those to draw; default all.
        start: the first x shown.
        lowest: the y axis does not go below it (a logarithmic one has no zero).
        shared: one y axis for all panels.
    """
    figure.set_size_inches(4.4 * len(cases) if len(cases) > 1 else 6.6, 4.4)
    panels = figure.subplots(1, len(cases), sharey=shared, squeeze=False)[0]
    shown: dict[str, Arm] = {}
    for ax, case in zip(panels, cases, strict=True):
        for arm in results.study.arms_of(case):
            lines = results.series(case, arm, y)
            if not lines.size or (arms and arm.name not in arms):
                continue
            shown[arm.name] = arm
            steps = results.series(case, arm, x)[0]
            lines, steps = np.maximum(lines, lowest)[:, steps >= start], steps[steps >= start]
            # Markers a few times along the line, at other places for each arm.
            every = max(1, len(steps) // 5)
            marks = (results.study.arms.index(arm) * every // 8 % every, every)
            style = {"color": color(results, arm), "marker": marker(results, arm)}
            ax.plot(steps, np.nanmedian(lines, axis=0), markevery=marks, zorder=3, **style)
            if len(lines) > 1:
                low, high = np.nanquantile(lines, BAND, axis=0)
                ax.fill_between(steps, low, high, color=color(results, arm), alpha=0.16, linewidth=0)
        if log:
            _log_axis(ax)
        ax.set_title(case.label)
        ax.set_xlabel(xlabel)
        ax.margins(x=0)
        ax.set_xlim(left=start)
    panels[0].set_ylabel(ylabel)
    _legend(figure, results, list(shown.values()))


def _log_axis(ax: Axes) -> None:
    """A logarithmic y axis with numbers, not powers in mathematical type (the style shows "$" as it is)."""
    ax.set_yscale("log")
    ax.yaxis.set_major_locator(FixedLocator(log_ticks(*ax.get_ylim())))
    ax.yaxis.set_minor_locator(NullLocator())
    ax.yaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}"))


def draw_measure(figure: Figure, results: Results, measure: Measure, cases: Sequence[Case], xlabel: str) -> None:
    """Draw a measure with its 95 % intervals: cases along the x axis, an arm per colour and marker."""
    ax = figure.add_subplot()
    for index, arm in enumerate(results.study.arms):
        offset = 0.6 * ((index + 0.5) / len(results.study.arms) - 0.5)
        for place, case in enumerate(cases):
            if arm not in results.study.arms_of(case):
                continue
            s = results.summary(case, arm, measure)
            if not s.n:
                continue
            x, shade = place + offset, color(results, arm)
            if s.n > 1:
                ax.plot([x, x], [s.low, s.high], color=shade, linewidth=2.0, solid_capstyle="butt")
            ax.plot(x, s.mean, marker(results, arm), color=shade, markeredgecolor="white", zorder=4)
    if measure.geometric:
        _log_axis(ax)
    ax.set_xticks(range(len(cases)), [case.label for case in cases])
    ax.grid(axis="x", visible=False)
    ax.set_xlabel(xlabel)
    ax.set_ylabel(measure.title)
    _legend(figure, results, [a for a in results.study.arms if any(a in results.study.arms_of(c) for c in cases)])


def _legend(figure: Figure, results: Results, arms: Sequence[Arm]) -> None:
    ax: Axes = figure.axes[0]
    for arm in arms:
        ax.plot([], [], color=color(results, arm), marker=marker(results, arm), label=arm.label)
    handles, labels = ax.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=min(len(arms), 4), columnspacing=1.4)


def draw_rows(figure: Figure, results: Results, measures: Sequence[Measure]) -> None:
    """Means with intervals: a panel per measure, a row per arm."""
    case = results.cases[0]
    arms = results.study.arms_of(case)
    figure.set_size_inches(max(2.9 * len(measures) + 1.6, 6.4), 0.34 * len(arms) + 1.1)
    panels = figure.subplots(1, len(measures), sharey=True, squeeze=False)[0]
    for ax, measure in zip(panels, measures, strict=True):
        for place, arm in enumerate(arms):
            s, shade = results.summary(case, arm, measure), color(results, arm)
            if s.n > 1:
                ax.hlines(place, s.low, s.high, color=shade, linewidth=2.0)
            if s.n:
                style: dict[str, Any] = {"color": shade, "markeredgecolor": "white", "markersize": 8}
                ax.plot(s.mean, place, marker(results, arm), zorder=4, **style)
        base = results.summary(case, results.study.arm(results.study.baseline), measure).mean
        ax.axvline(base, color="#9aa1ab", linewidth=1.0, zorder=1)
        ax.set_title(measure.label)
        ax.set_xlabel(measure.unit)
        ax.grid(axis="y", visible=False)
    panels[0].set_yticks(range(len(arms)), [arm.label for arm in arms])
    panels[0].set_ylim(len(arms) - 0.5, -0.5)
