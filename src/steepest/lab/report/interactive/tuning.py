"""Interactive figures of tuning: learning rates, basins, expected best of k trials, two-rate heat maps."""

from __future__ import annotations

import html
import math
from typing import Any

from steepest.lab.report.interactive.parts import (
    Spec,
    end_labels,
    layout,
    method_axis,
    room,
    rounded,
    tall,
    text,
    title,
)
from steepest.lab.report.measures import Findings, Surface, is_table
from steepest.lab.results import Method
from steepest.lab.series import Style, log_ticks, ordered, padded, trial_window
from steepest.lab.wording import axis_name, rate, short, value

_FEW = 8  # rates up to which each is a tick
# Light is a low loss, dark a high one; both ends keep their distance to text on a light and on a dark page.
HEAT = ((0.0, "@h0"), (0.5, "@h1"), (1.0, "@h2"))


def learning_rates(f: Findings) -> Spec | None:
    """Loss against learning rate: the basins of all methods."""
    study = f.study
    methods = [m for m in ordered(study.methods) if len(m.by_rate) > 1]
    if not methods:
        return None
    height = tall(len(methods))
    low, high, crosses = trial_window(study)
    data: list[Spec] = []
    ends: list[tuple[float, str, Style]] = []
    end_rates: list[float] = []
    for method in methods:
        data += _rate_traces(method, f.styles[method.label], crosses.get(method.label, high))
        done = [t for t in method.by_rate if math.isfinite(t.loss)]
        if done:
            edge = " (edge)" * ("lr" in method.open_axes)
            ends.append((done[-1].loss, short(method.label) + edge, f.styles[method.label]))
            end_rates.append(math.log10(done[-1].lr))
    rates = sorted({t.lr for m in methods for t in m.trials if t.lr > 0})
    span, ticks = rate_axis(rates)
    x = {"title": title("learning rate"), "type": "log", "range": span, **ticks}
    y = {"title": title("validation loss (nats per token)"), "range": rounded((low, high))}
    crowded = len(methods) > 8 and max(rates) / min(rates) > 30  # lines end all over the plot: labels go to the border
    notes = end_labels(ends, low, high, height, None if crowded else end_rates)
    spec = layout(height, x, y, annotations=notes)
    spec["margin"]["r"] = room((m.label for m in methods), " (edge)" * any("lr" in m.open_axes for m in methods))
    return {"data": data, "layout": spec}


def _rate_traces(method: Method, s: Style, top: float) -> list[Spec]:
    color, name = f"@s{s.index}", text(method.label)
    done = [t for t in method.by_rate if math.isfinite(t.loss)]
    lost = [t for t in method.by_rate if t.state == "diverged"]
    best = [t for t in done if math.isclose(t.lr, method.best_lr, rel_tol=1e-6)]
    common = {"type": "scatter", "legendgroup": html.escape(method.label)}
    data: list[Spec] = [
        {
            **common,
            "x": [t.lr for t in done],
            "y": rounded(t.loss for t in done),
            "mode": "lines+markers",
            "line": {"color": color, "width": 2, "dash": s.dash},
            "marker": {"color": color, "size": 8, "symbol": s.symbol},
            "name": name,
            "hovertemplate": f"{name}<br>learning rate %{{x:.3g}}<br>loss %{{y:.4f}}<extra></extra>",
        }
    ]
    ring = {"symbol": "circle-open", "size": 18, "line": {"width": 2}}
    cross = {"symbol": "x-thin", "size": 9, "line": {"width": 2, "color": color}}
    for points, heights, form, words in (
        (best, [t.loss for t in best], ring, "chosen"),
        (lost, [top] * len(lost), cross, "diverged"),
    ):
        if points:
            data.append(
                {
                    **common,
                    "x": [t.lr for t in points],
                    "y": rounded(heights),
                    "mode": "markers",
                    "marker": {"color": color, **form},
                    "name": f"{name}: {words}",
                    "showlegend": False,
                    "cliponaxis": False,
                    "hovertemplate": f"{name}<br>learning rate %{{x:.3g}}: {words}<extra></extra>",
                }
            )
    return data


def rate_axis(rates: list[float]) -> tuple[list[float | None], Spec]:
    """Range (powers of ten) and ticks of a logarithmic axis of learning rates."""
    rates = sorted(set(rates))
    ticks = rates if len(rates) <= _FEW else log_ticks(rates[0], rates[-1])
    space = 0.04 * math.log10(rates[-1] / rates[0]) or 0.1
    span = rounded((math.log10(rates[0]) - space, math.log10(rates[-1]) + space))
    return span, {"tickvals": ticks, "ticktext": [rate(t) for t in ticks]}


def basins(f: Findings) -> Spec | None:
    """The range of learning rates within 0.01 and 0.05 nats of the best, one bar per method."""
    shown = [t for t in f.tunings if t.basins and any(math.isfinite(b.octaves) for b in t.basins)]
    if not shown:
        return None
    data: list[Spec] = []
    rates = sorted({x.lr for t in shown for x in t.method.trials if x.lr > 0})
    for y, t in enumerate(shown):
        color, name = f"@s{f.styles[t.method.label].index}", text(t.method.label)
        for basin, width, opacity in sorted(
            zip(t.basins, (9, 4), (1.0, 0.45), strict=True), key=lambda item: -item[0].within
        ):
            least = "at least " if basin.open_low or basin.open_high else ""
            ends = [
                "triangle-left" if basin.open_low else "line-ns",
                "triangle-right" if basin.open_high else "line-ns",
            ]
            words = f"within {basin.within} nats: {least}{basin.octaves:.1f} octaves"
            data.append(
                {
                    "type": "scatter",
                    "mode": "lines+markers",
                    "x": rounded([basin.low, basin.high]),
                    "y": [y, y],
                    "line": {"color": color, "width": width},
                    "marker": {"color": color, "size": 11, "symbol": ends, "line": {"color": color, "width": 2}},
                    "opacity": opacity,
                    "cliponaxis": False,
                    "hovertemplate": f"{name}<br>{words}, {rate(basin.low)} to {rate(basin.high)}<extra></extra>",
                }
            )
        if math.isfinite(t.method.best_lr):
            data.append(
                {
                    "type": "scatter",
                    "mode": "markers",
                    "x": [t.method.best_lr],
                    "y": [y],
                    "marker": {"color": "@card", "size": 9, "line": {"color": color, "width": 2.4}},
                    "hovertemplate": f"{name}<br>chosen: {rate(t.method.best_lr)}<extra></extra>",
                }
            )
    span, ticks = rate_axis(rates)
    x = {"title": title("learning rate"), "type": "log", "range": span, **ticks}
    return {"data": data, "layout": layout(90 + 30 * len(shown), x, method_axis([t.method.label for t in shown]))}


def best_of_k(f: Findings) -> Spec | None:
    """What k trials of tuning are expected to find."""
    shown = [t for t in f.tunings if len(t.best_of_k.k) > 1]
    if not shown:
        return None
    data: list[Spec] = []
    ends: list[tuple[float, str, Style]] = []
    values = [v for t in shown for v in t.best_of_k.expected if math.isfinite(v)]
    if not values:
        return None
    late = [v for t in shown for v in t.best_of_k.expected[1:] if math.isfinite(v)] or values
    low, high = padded(min(values), min(max(values), max(late)), 0.06)
    for t in shown:
        s, name, best = f.styles[t.method.label], text(t.method.label), t.best_of_k
        band = [i for i in range(len(best.k)) if math.isfinite(best.low[i]) and math.isfinite(best.high[i])]
        data.append(
            {
                "type": "scatter",
                "mode": "lines",
                "x": [best.k[i] for i in [*band, *band[::-1]]],
                "y": rounded([*(best.low[i] for i in band), *(best.high[i] for i in band[::-1])]),
                "line": {"width": 0, "color": f"@s{s.index}"},
                "fill": "toself",
                "fillcolor": f"@s{s.index}/0.10",
                "hoverinfo": "skip",
                "showlegend": False,
            }
        )
        data.append(
            {
                "type": "scatter",
                "mode": "lines+markers",
                "x": best.k,
                "y": rounded(best.expected),
                "line": {"color": f"@s{s.index}", "width": 2, "dash": s.dash},
                "marker": {"color": f"@s{s.index}", "size": 6, "symbol": s.symbol},
                "name": name,
                "hovertemplate": f"{name}<br>best of %{{x}} trials: %{{y:.4f}}<extra></extra>",
            }
        )
        ends.append((best.expected[-1], short(t.method.label), s))
    height = tall(len(shown), 380)
    most = max(t.best_of_k.k[-1] for t in shown)
    x = {"title": title("trials k"), "range": [0.8, most + 0.2], "dtick": 1 if most <= 16 else None}
    y = {"title": title("expected lowest loss of k trials"), "range": rounded((low, high))}
    spec = layout(height, x, y, annotations=end_labels(ends, low, high, height))
    spec["margin"]["r"] = room(t.method.label for t in shown)
    return {"data": data, "layout": spec}


def heat_maps(f: Findings) -> Spec | None:
    """Loss over two tuned axes, one view per method and pair of axes."""
    if not f.surfaces:
        return None
    data: list[Spec] = []
    layouts: Spec = {}
    options = []
    for i, surface in enumerate(f.surfaces):
        key = str(i)
        several = sum(s.label == surface.label for s in f.surfaces) > 1
        name = short(surface.label) + (f": {axis_name(surface.x)}, {axis_name(surface.y)}" if several else "")
        options.append((key, name))
        traces, patch = _cells(surface) if is_table(surface) else _dots(surface)
        data += [{**trace, "meta": {"only": {"surface": key}}} for trace in traces]
        layouts[key] = patch
    height = 110 + 46 * max(4, *(len(s.ys) if is_table(s) else 7 for s in f.surfaces))
    first = layouts["0"]
    spec = layout(height, {**first["xaxis"], "title": title(first["xaxis"]["title"]["text"])}, first["yaxis"])
    spec["yaxis"]["title"] = title(first["yaxis"]["title"]["text"])
    spec["annotations"] = first["annotations"]
    return {
        "data": data,
        "layout": spec,
        "controls": [{"name": "surface", "label": "Method", "options": [list(option) for option in options]}],
        "layouts": {"surface": layouts},
    }


def _axis(name: str) -> str:
    return html.escape(axis_name(name))


def _scale(surface: Surface) -> tuple[float, float]:
    losses = sorted(c.loss for c in surface.cells if math.isfinite(c.loss))
    if not losses:
        return 0.0, 1.0
    middle = losses[len(losses) // 2]
    return losses[0], min(losses[-1], losses[0] + 4 * (middle - losses[0])) if middle > losses[0] else losses[-1]


def _bar(surface: Surface) -> Spec:
    low, high = _scale(surface)
    bar = {"title": {"text": "loss", "font": {"color": "@muted"}}, "thickness": 12, "outlinewidth": 0}
    return {"cmin": low, "cmax": high or 1.0, "colorscale": [list(stop) for stop in HEAT], "colorbar": bar}


def _cells(surface: Surface) -> tuple[list[Spec], Spec]:
    z: list[list[float | None]] = [[None] * len(surface.xs) for _ in surface.ys]
    hover = [["not tried"] * len(surface.xs) for _ in surface.ys]
    notes: list[Spec] = []
    low, high = _scale(surface)
    for c in surface.cells:
        where = f"{_axis(surface.x)} {_text(surface.xs[c.x])}<br>{_axis(surface.y)} {_text(surface.ys[c.y])}"
        lost = not math.isfinite(c.loss)
        z[c.y][c.x] = None if lost else float(f"{c.loss:.6g}")
        word = (c.state or "unfinished") if lost else f"{c.loss:.4f}"
        hover[c.y][c.x] = f"{where}<br>{html.escape(word)}"
        best = surface.best == (c.x, c.y)
        mark = (
            ("\u2715 " + html.escape(c.state) if lost else f"{c.loss:.3f}") if len(surface.xs) <= 9 else "\u2715" * lost
        )
        pale = not lost and c.loss < low + 0.55 * (high - low)
        notes.append(
            {
                "x": c.x,
                "y": c.y,
                "text": f"<b>\u2605 {mark}</b>" if best else mark,
                "showarrow": False,
                "font": {"size": 12, "color": "@muted" if lost else "@h3" if pale else "@h4"},
            }
        )
    bar = _bar(surface)
    heat = {
        "type": "heatmap",
        "z": z,
        "text": hover,
        "zmin": bar["cmin"],
        "zmax": bar["cmax"],
        "colorscale": bar["colorscale"],
        "colorbar": bar["colorbar"],
        "xgap": 3,
        "ygap": 3,
        "hoverongaps": False,
        "hovertemplate": "%{text}<extra></extra>",
    }
    shapes: list[Spec] = []
    if surface.best:
        x, y = surface.best
        box = {"x0": x - 0.47, "x1": x + 0.47, "y0": y - 0.47, "y1": y + 0.47, "fillcolor": "@card/0"}
        shapes.append({"type": "rect", **box, "line": {"color": "@ink", "width": 2.5}})
        for name in surface.open:
            shapes.append(_edge(surface, name, x, y))
    axes = [
        {
            "title": {"text": _axis(name) + " (open edge)" * (name in surface.open)},
            "tickvals": list(range(len(values))),
            "ticktext": [_text(item) for item in values],
            "range": [-0.5, len(values) - 0.5],
            "type": "linear",
            "showgrid": False,
        }
        for name, values in ((surface.x, surface.xs), (surface.y, surface.ys))
    ]
    return [heat], {"xaxis": axes[0], "yaxis": axes[1], "annotations": notes, "shapes": shapes}


def _edge(surface: Surface, name: str, x: int, y: int) -> Spec:
    """A thick line where the best cell touches the border of what was tried."""
    line = {"color": "@bad", "width": 5}
    if name == surface.x:
        side = x - 0.5 if x == 0 else x + 0.5
        return {"type": "line", "x0": side, "x1": side, "y0": y - 0.5, "y1": y + 0.5, "line": line}
    side = y - 0.5 if y == 0 else y + 0.5
    return {"type": "line", "x0": x - 0.5, "x1": x + 0.5, "y0": side, "y1": side, "line": line}


def _dots(surface: Surface) -> tuple[list[Spec], Spec]:
    """Points that a sampler drew: dots coloured by loss, crosses where a run diverged."""
    bar = _bar(surface)
    done = [c for c in surface.cells if math.isfinite(c.loss)]
    lost = [c for c in surface.cells if not math.isfinite(c.loss)]
    traces: list[Spec] = [
        {
            "type": "scatter",
            "mode": "markers",
            "x": [surface.xs[c.x] for c in done],
            "y": [surface.ys[c.y] for c in done],
            "marker": {
                "size": 15,
                "color": rounded(c.loss for c in done),
                "line": {"color": "@ink", "width": 0.8},
                **bar,
            },
            "text": [f"{c.loss:.4f}" for c in done],
            "hovertemplate": "%{x:.3g}, %{y:.3g}<br>%{text}<extra></extra>",
        },
        {
            "type": "scatter",
            "mode": "markers",
            "x": [surface.xs[c.x] for c in lost],
            "y": [surface.ys[c.y] for c in lost],
            "marker": {"size": 10, "symbol": "x-thin", "color": "@muted", "line": {"color": "@muted", "width": 2}},
            "hovertemplate": "%{x:.3g}, %{y:.3g}<br>diverged<extra></extra>",
        },
    ]
    if surface.best:
        x, y = surface.best
        traces.append(
            {
                "type": "scatter",
                "mode": "markers",
                "x": [surface.xs[x]],
                "y": [surface.ys[y]],
                "marker": {"size": 24, "symbol": "circle-open", "color": "@ink", "line": {"width": 2.5}},
                "hoverinfo": "skip",
            }
        )
    axes = []
    for name, values in ((surface.x, surface.xs), (surface.y, surface.ys)):
        axis: Spec = {"title": {"text": _axis(name) + " (open edge)" * (name in surface.open)}, "showgrid": True}
        numeric = all(isinstance(v, (int, float)) and not isinstance(v, bool) and v > 0 for v in values)
        if numeric and max(values) / min(values) > 20:
            span, ticks = rate_axis([float(v) for v in values])
            axes.append({**axis, "type": "log", "range": span, **ticks})
        else:
            axes.append({**axis, "type": "linear" if numeric else "category", "autorange": True, "tickvals": None})
    return traces, {"xaxis": axes[0], "yaxis": axes[1], "annotations": [], "shapes": []}


def _text(item: Any) -> str:
    return html.escape(rate(item) if isinstance(item, float) else value(item))
