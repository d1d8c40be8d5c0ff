"""Interactive figures of costs: Pareto fronts, optimizer state by role, diagnostics along a run."""

from __future__ import annotations

import html
import textwrap

from steepest.lab.report.interactive.parts import (
    LABEL,
    Spec,
    control,
    escaped,
    layout,
    marker,
    method_axis,
    rounded,
    tall,
    text,
    title,
)
from steepest.lab.report.measures import Findings
from steepest.lab.results import Row
from steepest.lab.series import ROLE_PALETTE, bytes_by_role, front, padded, roles_in_order, spread
from steepest.lab.wording import byte_unit, rate, settings


def pareto(f: Findings) -> Spec | None:
    """Loss against what it costs; what another method beats on both is grey."""
    if not f.costs:
        return None
    data: list[Spec] = []
    layouts: Spec = {}
    rows = [row for row in f.rows if row.loss.n]
    height = tall(len(rows), 400)
    for cost in f.costs:
        own = [row for row in rows if row.method.label in cost.values]
        points = [(cost.values[row.method.label], row.loss.mean) for row in own]
        kept = front(points)
        low, high = padded(min(y for _, y in points), max(y for _, y in points), 0.14)
        only = {"only": {"cost": cost.key}}
        line = {"color": "@muted", "width": 1.2, "dash": "dash"}
        data.append(
            {
                "type": "scatter",
                "mode": "lines",
                "x": rounded(points[i][0] for i in kept),
                "y": rounded(points[i][1] for i in kept),
                "line": line,
                "hoverinfo": "skip",
                "meta": only,
            }
        )
        places = spread([y for _, y in points], LABEL * (high - low) / (height - 60), low, high)
        labels = []
        for i, row in enumerate(own):
            beaten = i not in kept
            hover = _hover(row, f"%{{x:.4s}} {cost.unit}", "another method is better on both" if beaten else "")
            data.append(
                {
                    "type": "scatter",
                    "mode": "markers",
                    "x": rounded([points[i][0]]),
                    "y": rounded([points[i][1]]),
                    "marker": marker(f.styles[row.method.label], hollow=beaten, grey=beaten),
                    "hovertemplate": hover,
                    "meta": only,
                }
            )
            labels.append(
                {
                    "x": points[i][0],
                    "y": float(f"{places[i]:.6g}"),
                    "text": text(row.method.label),
                    "showarrow": False,
                    "xanchor": "left",
                    "xshift": 10,
                    "font": {"color": "@muted" if beaten else f"@s{f.styles[row.method.label].index}", "size": 13},
                }
            )
        left, right = min(x for x, _ in points), max(x for x, _ in points)
        near = left > 0.5 * right  # close together: a range from zero would crowd them
        span = (
            (left - 0.15 * (right - left or right), right + 0.5 * (right - left or right)) if near else (0, 1.3 * right)
        )
        layouts[cost.key] = {
            "xaxis": {"title": {"text": cost.title}, "range": rounded(span)},
            "yaxis": {"range": rounded((low, high))},
            "annotations": labels,
        }
    first = layouts[f.costs[0].key]
    x = {"title": title(first["xaxis"]["title"]["text"]), "range": first["xaxis"]["range"]}
    y = {"title": title("final validation loss"), "range": first["yaxis"]["range"]}
    return {
        "data": data,
        "layout": layout(height, x, y, annotations=first["annotations"]),
        "controls": control("cost", "Cost", [(cost.key, cost.name) for cost in f.costs]),
        "layouts": {"cost": layouts},
    }


def _hover(row: Row, cost: str, beaten: str) -> str:
    """Configuration and command of a point, in lines of a readable length."""
    method = row.method
    lines = [f"<b>{text(method.label)}</b>", cost, "loss %{y:.4f}"]
    lines += [f"learning rate {rate(row.lr)}"] + [escaped(settings(method.others))] * bool(method.others)
    lines += [escaped(settings(method.options))] * bool(method.options) + [beaten] * bool(beaten)
    command = next((run.command for run in row.runs if run.command), "")
    if command:
        lines.append("<br>".join(escaped(part) for part in textwrap.wrap(command, 70)))
    return "<br>".join(lines) + "<extra></extra>"


def state_bytes(f: Findings) -> Spec | None:
    """Optimizer state by role of the parameters."""
    table = bytes_by_role(f.study)
    roles = roles_in_order(table)
    if not roles:
        return None
    unit, name = byte_unit(max(sum(sums.values()) for sums in table.values()))
    data = [
        {
            "type": "bar",
            "orientation": "h",
            "name": html.escape(role),
            "x": rounded(sums.get(role, 0.0) / unit for sums in table.values()),
            "y": list(range(len(table))),
            "customdata": [f"{sums.get(role, 0.0):,.0f}" for sums in table.values()],
            "marker": {"color": f"@r{i % len(ROLE_PALETTE)}", "line": {"color": "@card", "width": 1}},
            "hovertemplate": f"{html.escape(role)}: %{{customdata}} bytes<extra></extra>",
        }
        for i, role in enumerate(roles)
    ]
    spec = layout(
        130 + (40 if len(table) <= 8 else 28) * len(table),
        {"title": title(f"optimizer state ({name})")},
        method_axis(list(table)),
        barmode="stack",
        bargap=0.35,
        showlegend=True,
        legend={"orientation": "h", "y": 1, "yanchor": "bottom", "x": 0, "traceorder": "normal"},
    )
    return {"data": data, "layout": spec}


def diagnostics(f: Findings) -> Spec | None:
    """What the steps did along the runs, by quantity and role."""
    if not f.diagnostics:
        return None
    data: list[Spec] = []
    names = list(dict.fromkeys(name for name, _ in f.diagnostics))
    roles = list(dict.fromkeys(role for _, role in f.diagnostics))
    labels = list(dict.fromkeys(trace.label for traces in f.diagnostics.values() for trace in traces))
    height = tall(len(labels), 400)
    for (name, role), traces in f.diagnostics.items():
        for trace in traces:
            s = f.styles[trace.label]
            data.append(
                {
                    "type": "scatter",
                    "mode": "lines",
                    "x": rounded(trace.steps),
                    "y": rounded(trace.values),
                    "line": {"color": f"@s{s.index}", "width": 2, "dash": s.dash},
                    "name": text(trace.label),
                    "legendgroup": html.escape(trace.label),
                    "hovertemplate": f"{text(trace.label)}: %{{y:.4g}}<extra></extra>",
                    # a quantity without roles ("all") is shown whichever role is chosen
                    "meta": {"only": {"quantity": name, **({"role": role} if role != "all" else {})}},
                }
            )
    y = {"title": title(_words(names[0])), "rangemode": "normal"}
    spec = layout(height, {"title": title("steps"), "rangemode": "tozero"}, y, showlegend=True)
    spec["legend"] = {"orientation": "h", "y": -0.2, "yanchor": "top", "x": 0}
    spec["height"] += 20 * (1 + len(labels) // 6)
    return {
        "data": data,
        "layout": spec,
        "controls": control("quantity", "Quantity", [(name, name.replace("_", " ")) for name in names])
        + control("role", "Role", [(role, role) for role in roles if role != "all"]),
        "layouts": {"quantity": {name: {"yaxis": {"title": {"text": _words(name)}}} for name in names}},
    }


def _words(name: str) -> str:
    return html.escape(name.replace("_", " "))
