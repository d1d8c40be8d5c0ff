"""Interactive figures of losses: curves, final losses, differences."""

from __future__ import annotations

import html
import math

from steepest.lab.report.interactive.parts import (
    Spec,
    control,
    end_labels,
    layout,
    marker,
    method_axis,
    room,
    rounded,
    tall,
    text,
    title,
    vertical,
)
from steepest.lab.report.measures import Findings, isolated
from steepest.lab.series import Curve, Style, axes, interval_window, window
from steepest.lab.wording import clock, short

_UNIFIED = 8  # methods up to which one hover text lists all


def curves(f: Findings) -> Spec | None:
    """Loss against steps, tokens, FLOPs or time."""
    if not f.curves:
        return None
    names = axes(f.study)
    apart = isolated(f.study, f.rows) and any(row.loss.n for row in f.rows)
    seconds = {row.method.label: f.study.step_seconds(row.method) for row in f.rows} if apart else {}
    first = next(iter(f.curves))
    height = tall(max(len({c.label for c in group}) for group in f.curves.values()))
    ends = [_seconds(c, seconds)[-1] for group in f.curves.values() for c in group]
    unit, name = clock(max((end for end in ends if math.isfinite(end)), default=0.0))
    data: list[Spec] = []
    views: Spec = {}
    for split, group in f.curves.items():
        low, high = window(group)
        for curve in group:
            xs = {axis: curve.x(axis) for axis in names}
            xs["seconds"] = [s / unit for s in _seconds(curve, seconds)]
            data += _traces(curve, {axis: rounded(x) for axis, x in xs.items()}, f.styles[curve.label], split, high)
        shown = [c for c in group if c.state == "done"] or group
        ends_ = [(c.mean[-1], short(c.label) + f" ({c.state})" * (c.state != "done"), f.styles[c.label]) for c in shown]
        views[split] = {
            "yaxis": {"range": rounded((low, high))},
            "annotations": end_labels(ends_, low, high, height),
        }
    clock_name = f"training time in {name}" + (", optimizer timed apart" if apart else ", machine shared")
    titles = {"steps": "steps", "tokens": "tokens", "flops": "FLOPs, model and optimizer", "seconds": clock_name}
    words = {"steps": "Steps", "tokens": "Tokens", "flops": "FLOPs", "seconds": "Time"}
    together = len(f.rows) <= _UNIFIED
    hover = {axis: "x unified" if together and axis in ("steps", "tokens") else "closest" for axis in names}
    spec = layout(
        height,
        {"title": title(titles["steps"]), "rangemode": "tozero"},
        {"title": title("loss (nats per token)"), "range": views[first]["yaxis"]["range"]},
        annotations=views[first]["annotations"],
    )
    spec["margin"]["r"] = room(m.label for m in f.study.methods)
    return {
        "data": data,
        "layout": spec,
        "controls": control("axis", "Horizontal axis", [(axis, words[axis]) for axis in names])
        + control("split", "Loss", [(split, split.capitalize()) for split in f.curves]),
        "layouts": {
            "axis": {a: {"xaxis": {"title": {"text": titles[a]}}, "hovermode": hover[a]} for a in names},
            "split": views,
        },
    }


def _seconds(curve: Curve, isolated_seconds: dict[str, float]) -> list[float]:
    step = isolated_seconds.get(curve.label)
    return curve.seconds if step is None else [s * step for s in curve.steps]


def _traces(curve: Curve, xs: dict[str, list[float | None]], style: Style, split: str, top: float) -> list[Spec]:
    line = {"color": f"@s{style.index}", "width": 2.2, "dash": style.dash}
    meta = {"only": {"split": split}, "x": xs}
    common = {"legendgroup": html.escape(curve.label), "type": "scatter", "x": xs["steps"]}
    hover = f"{text(curve.label)}: %{{y:.4f}}<extra></extra>"
    if curve.state != "done":
        ended = [*[0] * (len(curve.mean) - 1), 10]
        return [
            {
                **common,
                "y": [*rounded(curve.mean[:-1]), *rounded([min(curve.mean[-1], top)])],
                "mode": "lines+markers",
                "line": {**line, "width": 1.3, "dash": "dot"},
                "marker": {
                    "color": line["color"],
                    "size": ended,
                    "symbol": "x-thin" if curve.state == "diverged" else "line-ns",
                    "line": {"width": 2, "color": line["color"]},
                },
                "name": f"{text(curve.label)} ({html.escape(curve.state)})",
                "showlegend": False,
                "cliponaxis": False,
                "hovertemplate": hover,
                "meta": meta,
            }
        ]
    mean = {
        **common,
        "y": rounded(curve.mean),
        "mode": "lines",
        "line": line,
        "name": text(curve.label),
        "hovertemplate": hover,
        "meta": meta,
    }
    if curve.seeds < 2:
        return [mean]
    around = {axis: [*values, *values[::-1]] for axis, values in xs.items()}
    band = {
        **common,
        "x": around["steps"],
        "y": rounded([*curve.low, *curve.high[::-1]]),
        "mode": "lines",
        "line": {"width": 0, "color": line["color"]},
        "fill": "toself",
        "fillcolor": f"@s{style.index}/0.16",
        "hoverinfo": "skip",
        "showlegend": False,
        "meta": {**meta, "x": around},
    }
    return [band, mean]


def final_loss(f: Findings) -> Spec | None:
    """Seeds, mean and interval of each method."""
    rows = [row for row in f.rows if row.loss.n]
    if not rows or f.study.lone:
        return None
    data: list[Spec] = []
    for y, row in enumerate(rows):
        s, name = f.styles[row.method.label], text(row.method.label)
        half = row.loss.high - row.loss.mean
        interval = f"<br>95% interval {row.loss.low:.4f} to {row.loss.high:.4f}" if row.loss.n > 1 else ""
        data.append(
            {
                "type": "scatter",
                "mode": "markers",
                "x": rounded(row.losses.values()),
                "y": [y] * len(row.losses),
                "text": [f"seed {seed}" for seed in row.losses],
                "marker": {"color": f"@s{s.index}", "size": 9, "opacity": 0.45},
                "hovertemplate": f"{name}, %{{text}}: %{{x:.4f}}<extra></extra>",
            }
        )
        data.append(
            {
                "type": "scatter",
                "mode": "markers",
                "x": rounded([row.loss.mean]),
                "y": [y],
                "error_x": {"array": rounded([half]), "color": f"@s{s.index}", "thickness": 2.4, "width": 0},
                "marker": {**marker(s), "line": {"color": "@card", "width": 1.5}},
                "hovertemplate": f"{name}: mean %{{x:.4f}}{interval}<extra></extra>",
            }
        )
    losses = [v for row in rows for v in row.losses.values()]
    span = interval_window(losses, [v for row in rows for v in (row.loss.low, row.loss.high)])
    x = {"title": title("final validation loss (nats per token)"), "range": rounded(span), "nticks": 6}
    shapes = [vertical(row.loss.mean) for row in rows if row.is_baseline]
    y_axis = method_axis([row.method.label for row in rows])
    return {"data": data, "layout": layout(_height(len(rows)), x, y_axis, shapes=shapes)}


def _height(rows: int) -> int:
    return 90 + (44 if rows <= 8 else 32) * rows


def differences(f: Findings) -> Spec | None:
    """Paired difference of each method to the baseline."""
    # the rows of the figure of final losses, so that the two can be read across
    rows = [row for row in f.rows if row.loss.n]
    shown = [(y, row, row.comparison) for y, row in enumerate(rows) if row.comparison and row.comparison.n]
    if not shown:
        return None
    data: list[Spec] = []
    for y, row, c in shown:
        s, name = f.styles[row.method.label], text(row.method.label)
        interval = f"<br>95% interval {c.low:+.4f} to {c.high:+.4f}" if c.n > 1 else "<br>one seed: no interval"
        error = {"array": rounded([c.high - c.difference]), "color": f"@s{s.index}", "thickness": 2.4, "width": 0}
        data.append(
            {
                "type": "scatter",
                "mode": "markers",
                "x": rounded([c.difference]),
                "y": [y],
                "error_x": error,
                "marker": marker(s, hollow=row.verdict == "not decided"),
                "hovertemplate": f"{name}: %{{x:+.4f}}{interval}<br>{row.verdict}<extra></extra>",
            }
        )
    ends = [v for _, _, c in shown for v in (c.low, c.high)]
    span = interval_window([c.difference for _, _, c in shown], ends, 0.0)
    x = {"title": title("difference (nats; left is better)"), "range": rounded(span), "nticks": 6}
    y_axis = method_axis([row.method.label for row in rows])
    return {"data": data, "layout": layout(_height(len(rows)), x, y_axis, shapes=[vertical(0.0)])}
