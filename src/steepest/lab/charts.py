"""The figures of a report in their interactive form: specifications for plotly.js, as plain dictionaries.

Colours are written as names that `templates/report.js` resolves for a light, dark or printed page: "@s3" (colour 3 of
the methods), "@r1" (of the roles), "@ink", "@muted", "@line", "@card"; "@s3/0.15" is the same at an opacity. Labels are
escaped, because plotly reads a little HTML in them.
"""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from typing import Any

from steepest.lab.results import Row, Study
from steepest.lab.series import (
    AXES,
    ROLE_PALETTE,
    SPLITS,
    Curve,
    Style,
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
from steepest.lab.wording import byte_unit, clock, rate, short

Spec = dict[str, Any]


def charts(study: Study, rows: Sequence[Row]) -> dict[str, Spec]:
    """All figures the study has data for, by name: {"data": traces, "layout": layout, ...} ready for JSON."""
    specs = {
        "curves": _curves(study),
        "learning-rates": _learning_rates(study),
        "final-loss": _final_loss(study, rows),
        "differences": _differences(study, rows),
        "pareto": _pareto(study, rows),
        "state-bytes": _state_bytes(study),
    }
    return {name: spec for name, spec in specs.items() if spec}


def _text(label: str) -> str:
    return html.escape(short(label))


def _round(values: Sequence[float]) -> list[float | None]:
    """Six significant digits are more than a screen shows; JSON has no NaN."""
    return [float(f"{v:.6g}") if math.isfinite(v) else None for v in values]


def _layout(height: int, x: Spec, y: Spec, **rest: Any) -> Spec:
    axis = {"gridcolor": "@line", "linecolor": "@line", "zeroline": False, "automargin": True, "fixedrange": False}
    return {
        "height": height,
        "margin": {"l": 58, "r": 16, "t": 12, "b": 48},
        "paper_bgcolor": "@card",
        "plot_bgcolor": "@card",
        "font": {"color": "@ink", "size": 13},
        "hoverlabel": {"bgcolor": "@card", "bordercolor": "@line", "font": {"color": "@ink"}},
        "showlegend": False,
        "xaxis": {**axis, "tickfont": {"color": "@muted"}, **x},
        "yaxis": {**axis, "tickfont": {"color": "@muted"}, **y},
        **rest,
    }


def _title(text: str) -> Spec:
    return {"text": text, "standoff": 12, "font": {"size": 13, "color": "@muted"}}


def _end_labels(
    ends: Sequence[tuple[float, str, Style]], low: float, high: float, height: int, xs: Sequence[float] | None = None
) -> list[Spec]:
    """Labels at the right border of the plot (or at `xs`), moved apart; the script hides them where room is short."""
    places = spread([min(max(y, low), high) for y, _, _ in ends], 17 * (high - low) / (height - 60))
    return [
        {
            "name": "end",
            "x": 1 if xs is None else xs[i],
            "xref": "paper" if xs is None else "x",
            "y": float(f"{place:.6g}"),
            "text": html.escape(label),
            "showarrow": False,
            "xanchor": "left",
            "xshift": 8 if xs is None else 12,
            "font": {"color": f"@s{style.index}", "size": 13},
        }
        for i, ((_, label, style), place) in enumerate(zip(ends, places, strict=True))
    ]


def _room(study: Study) -> int:
    """Pixels right of a plot for the labels of its lines."""
    return 30 + 8 * max(len(short(method.label)) for method in study.methods)


def _curves(study: Study) -> Spec | None:
    style, height = styles(study), 430
    groups = {split: curves(study, split) for split in SPLITS}
    groups = {split: group for split, group in groups.items() if group}
    if not groups:
        return None
    ends = [c.seconds[-1] for group in groups.values() for c in group if math.isfinite(c.seconds[-1])]
    unit, name = clock(max(ends, default=0.0))
    data: list[Spec] = []
    views: Spec = {}
    first = next(iter(groups))
    for split, group in groups.items():
        low, high = window(group)
        for curve in group:
            data += _curve_traces(curve, style[curve.label], split, unit, visible=split == first, top=high)
        shown = [c for c in group if c.state == "done"] or group
        labels = [(c.mean[-1], short(c.label) + f" ({c.state})" * (c.state != "done"), style[c.label]) for c in shown]
        views[split] = {"range": _round((low, high)), "annotations": _end_labels(labels, low, high, height)}
    titles = {"steps": "steps", "tokens": "tokens", "seconds": f"training time in {name}"}
    layout = _layout(
        height,
        {"title": _title(titles["steps"]), "rangemode": "tozero"},
        {"title": _title("loss (nats per token)"), "range": views[first]["range"]},
        annotations=views[first]["annotations"],
        hovermode="x unified",
    )
    layout["margin"]["r"] = _room(study)
    return {"data": data, "layout": layout, "titles": titles, "views": views}


def _curve_traces(curve: Curve, style: Style, split: str, unit: float, *, visible: bool, top: float) -> list[Spec]:
    xs = {axis: _round([x / unit if axis == "seconds" else x for x in curve.x(axis)]) for axis in AXES}
    line = {"color": f"@s{style.index}", "width": 2.2}
    common = {"legendgroup": html.escape(curve.label), "visible": visible, "type": "scatter"}
    if curve.state != "done":
        ended = [*[0] * (len(curve.mean) - 1), 10]
        return [
            {
                **common,
                "x": xs["steps"],
                "y": [*_round(curve.mean[:-1]), *_round([min(curve.mean[-1], top)])],
                "mode": "lines+markers",
                "line": {**line, "width": 1.3, "dash": "dot"},
                "marker": {
                    "color": line["color"],
                    "size": ended,
                    "symbol": "x-thin" if curve.state == "diverged" else "line-ns",
                    "line": {"width": 2, "color": line["color"]},
                },
                "name": f"{_text(curve.label)} ({html.escape(curve.state)})",
                "showlegend": False,
                "cliponaxis": False,
                "hovertemplate": "%{y:.4f}",
                "meta": {"split": split, "x": xs},
            }
        ]
    traces = [
        {
            **common,
            "x": xs["steps"],
            "y": _round(curve.mean),
            "mode": "lines",
            "line": line,
            "name": _text(curve.label),
            "hovertemplate": "%{y:.4f}",
            "meta": {"split": split, "x": xs},
        }
    ]
    if curve.seeds > 1:
        band = {axis: [*values, *values[::-1]] for axis, values in xs.items()}
        traces.insert(
            0,
            {
                **common,
                "x": band["steps"],
                "y": _round([*curve.low, *curve.high[::-1]]),
                "mode": "lines",
                "line": {"width": 0, "color": line["color"]},
                "fill": "toself",
                "fillcolor": f"@s{style.index}/0.16",
                "hoverinfo": "skip",
                "showlegend": False,
                "meta": {"split": split, "x": band},
            },
        )
    return traces


def _learning_rates(study: Study) -> Spec | None:
    methods = [m for m in ordered(study.methods) if len(m.trials) > 1]
    if not methods:
        return None
    style, height = styles(study), 430
    low, high, crosses = trial_window(study)
    data: list[Spec] = []
    ends: list[tuple[float, str, Style]] = []
    end_rates: list[float] = []
    for method in methods:
        s = style[method.label]
        color, name = f"@s{s.index}", _text(method.label)
        done = [t for t in method.trials if math.isfinite(t.loss)]
        lost = [t for t in method.trials if t.state == "diverged"]
        best = [t for t in done if t.lr == method.best_lr]
        common = {"type": "scatter", "legendgroup": html.escape(method.label)}
        data.append(
            {
                **common,
                "x": [t.lr for t in done],
                "y": _round([t.loss for t in done]),
                "mode": "lines+markers",
                "line": {"color": color, "width": 2},
                "marker": {"color": color, "size": 8, "symbol": s.symbol},
                "name": name,
                "hovertemplate": f"{name}<br>learning rate %{{x:.3g}}<br>loss %{{y:.4f}}<extra></extra>",
            }
        )
        for points, heights, marker, words in (
            (best, [t.loss for t in best], {"symbol": "circle-open", "size": 18, "line": {"width": 2}}, "chosen"),
            (
                lost,
                [crosses.get(method.label, high)] * len(lost),
                {"symbol": "x-thin", "size": 9, "line": {"width": 2, "color": color}},
                "diverged",
            ),
        ):
            if points:
                data.append(
                    {
                        **common,
                        "x": [t.lr for t in points],
                        "y": _round(heights),
                        "mode": "markers",
                        "marker": {"color": color, **marker},
                        "name": f"{name}: {words}",
                        "showlegend": False,
                        "cliponaxis": False,
                        "hovertemplate": f"{name}<br>learning rate %{{x:.3g}}: {words}<extra></extra>",
                    }
                )
        if done:
            ends.append((done[-1].loss, short(method.label) + " (edge)" * method.edge, s))
            end_rates.append(math.log10(done[-1].lr))
    rates = sorted({t.lr for m in methods for t in m.trials})
    ticks = log_ticks(rates[0], rates[-1])
    room = 0.04 * math.log10(rates[-1] / rates[0])
    x = {
        "title": _title("learning rate"),
        "type": "log",
        "tickvals": ticks,
        "ticktext": [rate(t) for t in ticks],
        "range": _round((math.log10(rates[0]) - room, math.log10(rates[-1]) + room)),
    }
    y = {"title": _title("validation loss (nats per token)"), "range": _round((low, high))}
    labels = _end_labels(ends, low, high, height, end_rates)
    layout = _layout(height, x, y, annotations=labels, hovermode="closest")
    layout["margin"]["r"] = _room(study) + 45 * any(method.edge for method in methods)
    return {"data": data, "layout": layout}


def _method_axis(labels: Sequence[str]) -> Spec:
    ticks = list(range(len(labels)))
    return {
        "tickvals": ticks,
        "ticktext": [_text(label) for label in labels],
        "tickfont": {"color": "@ink", "size": 13},
        "range": [len(labels) - 0.45, -0.55],
        "showgrid": False,
        "fixedrange": True,
    }


def _vertical(x: float) -> Spec:
    line = {"color": "@muted", "width": 1, "dash": "dash"}
    return {"type": "line", "x0": x, "x1": x, "y0": 0, "y1": 1, "yref": "paper", "line": line, "layer": "below"}


def _final_loss(study: Study, rows: Sequence[Row]) -> Spec | None:
    rows, style = [row for row in rows if row.loss.n], styles(study)
    if not rows:
        return None
    data: list[Spec] = []
    for y, row in enumerate(rows):
        s, name = style[row.method.label], _text(row.method.label)
        half = row.loss.high - row.loss.mean
        interval = f"<br>95% interval {row.loss.low:.4f} to {row.loss.high:.4f}" if row.loss.n > 1 else ""
        data.append(
            {
                "type": "scatter",
                "mode": "markers",
                "x": _round(list(row.losses.values())),
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
                "x": _round([row.loss.mean]),
                "y": [y],
                "error_x": {"array": _round([half]), "color": f"@s{s.index}", "thickness": 2.4, "width": 0},
                "marker": {
                    "color": f"@s{s.index}",
                    "size": 11,
                    "symbol": s.symbol,
                    "line": {"color": "@card", "width": 1.5},
                },
                "hovertemplate": f"{name}: mean %{{x:.4f}}{interval}<extra></extra>",
            }
        )
    losses = [v for row in rows for v in row.losses.values()]
    span = interval_window(losses, [v for row in rows for v in (row.loss.low, row.loss.high)])
    x = {"title": _title("final validation loss (nats per token)"), "range": _round(span), "nticks": 6}
    shapes = [_vertical(row.loss.mean) for row in rows if row.is_baseline]
    return {
        "data": data,
        "layout": _layout(90 + 44 * len(rows), x, _method_axis([r.method.label for r in rows]), shapes=shapes),
    }


def _differences(study: Study, rows: Sequence[Row]) -> Spec | None:
    rows = [
        row for row in rows if row.loss.n
    ]  # the rows of the figure of final losses, so that the two can be read across
    shown = [(y, row, row.comparison) for y, row in enumerate(rows) if row.comparison and row.comparison.n]
    if not shown:
        return None
    style = styles(study)
    data: list[Spec] = []
    for y, row, c in shown:
        s, name = style[row.method.label], _text(row.method.label)
        color = f"@s{s.index}"
        interval = f"<br>95% interval {c.low:+.4f} to {c.high:+.4f}" if c.n > 1 else "<br>one seed: no interval"
        data.append(
            {
                "type": "scatter",
                "mode": "markers",
                "x": _round([c.difference]),
                "y": [y],
                "error_x": {"array": _round([c.high - c.difference]), "color": color, "thickness": 2.4, "width": 0},
                "marker": _marker(s, hollow=row.verdict == "not decided"),
                "hovertemplate": f"{name}: %{{x:+.4f}}{interval}<br>{row.verdict}<extra></extra>",
            }
        )
    ends = [v for _, _, c in shown for v in (c.low, c.high)]
    span = interval_window([c.difference for _, _, c in shown], ends, 0.0)
    x = {"title": _title("difference (nats; left is better)"), "range": _round(span), "nticks": 6}
    y_axis = _method_axis([row.method.label for row in rows])
    return {"data": data, "layout": _layout(90 + 44 * len(rows), x, y_axis, shapes=[_vertical(0.0)])}


def _marker(style: Style, *, hollow: bool) -> Spec:
    color = f"@s{style.index}"
    return {
        "color": "@card" if hollow else color,
        "size": 11,
        "symbol": style.symbol,
        "line": {"color": color, "width": 2},
    }


def _pareto(study: Study, rows: Sequence[Row]) -> Spec | None:
    rows = [row for row in rows if row.loss.n and math.isfinite(row.bytes_per_parameter)]
    if len(rows) < 2:
        return None
    style, height = styles(study), 380
    points = [(row.bytes_per_parameter, row.loss.mean) for row in rows]
    kept = front(points)
    low, high = padded(min(y for _, y in points), max(y for _, y in points), 0.14)
    data: list[Spec] = [
        {
            "type": "scatter",
            "mode": "lines",
            "x": _round([points[i][0] for i in kept]),
            "y": _round([points[i][1] for i in kept]),
            "line": {"color": "@muted", "width": 1.2, "dash": "dash"},
            "hoverinfo": "skip",
        }
    ]
    places = spread([y for _, y in points], 17 * (high - low) / (height - 60))
    annotations = []
    for i, row in enumerate(rows):
        s, name = style[row.method.label], _text(row.method.label)
        color = f"@s{s.index}"
        data.append(
            {
                "type": "scatter",
                "mode": "markers",
                "x": _round([points[i][0]]),
                "y": _round([points[i][1]]),
                "marker": _marker(s, hollow=i not in kept),
                "hovertemplate": f"{name}<br>%{{x:.2f}} bytes per parameter<br>loss %{{y:.4f}}<extra></extra>",
            }
        )
        annotations.append(
            {
                "x": points[i][0],
                "y": places[i],
                "text": name,
                "showarrow": False,
                "xanchor": "left",
                "xshift": 10,
                "font": {"color": color, "size": 13},
            }
        )
    x = {
        "title": _title("optimizer state (bytes per parameter)"),
        "range": [0, 1.25 * max(x for x, _ in points)],
    }
    y = {"title": _title("final validation loss"), "range": _round((low, high))}
    return {"data": data, "layout": _layout(height, x, y, annotations=annotations, hovermode="closest")}


def _state_bytes(study: Study) -> Spec | None:
    table = bytes_by_role(study)
    roles = roles_in_order(table)
    if not roles:
        return None
    unit, name = byte_unit(max(sum(sums.values()) for sums in table.values()))
    data = [
        {
            "type": "bar",
            "orientation": "h",
            "name": html.escape(role),
            "x": _round([sums.get(role, 0.0) / unit for sums in table.values()]),
            "y": list(range(len(table))),
            "customdata": [f"{sums.get(role, 0.0):,.0f}" for sums in table.values()],
            "marker": {"color": f"@r{i % len(ROLE_PALETTE)}", "line": {"color": "@card", "width": 1}},
            "hovertemplate": f"{html.escape(role)}: %{{customdata}} bytes<extra></extra>",
        }
        for i, role in enumerate(roles)
    ]
    layout = _layout(
        130 + 40 * len(table),
        {"title": _title(f"optimizer state ({name})")},
        _method_axis(list(table)),
        barmode="stack",
        bargap=0.35,
        showlegend=True,
        legend={"orientation": "h", "y": 1, "yanchor": "bottom", "x": 0, "traceorder": "normal"},
    )
    return {"data": data, "layout": layout}
