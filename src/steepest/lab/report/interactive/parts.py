"""What all interactive figures share: colours, layout, labels, controls.

A figure is a dictionary ready for JSON: "data" and "layout" for plotly.js, "controls" for the buttons above it, and
what the choices change. `templates/report.js` puts it together:

- a trace whose meta has "only", {"split": "train"}, is drawn while that button is pressed;
- a trace whose meta has "x", {"tokens": [...]}, takes its x from there, by the control "axis";
- "layouts", {"split": {"train": {...}}}, are merged into the layout.

Colours are names that the script resolves for a light, dark or printed page: "@s3" (colour 3 of the methods), "@r1" (of
the roles), "@ink", "@muted", "@line", "@card"; "@s3/0.15" is the same at an opacity. Labels are escaped, because plotly
reads a little HTML in them.
"""

from __future__ import annotations

import html
import math
from collections.abc import Iterable, Sequence
from typing import Any

from steepest.lab.series import Style, spread
from steepest.lab.wording import short

Spec = dict[str, Any]
LABEL = 17  # pixels that a label at the end of a line needs


def escaped(words: str) -> str:
    """Words that are neither HTML nor, in a hover text, a place holder of plotly's."""
    return html.escape(words).replace("%{", "%&#123;")


def text(label: str) -> str:
    """A label that fits and is harmless."""
    return escaped(short(label))


def rounded(values: Iterable[float]) -> list[float | None]:
    """Six significant digits are more than a screen shows; JSON has no NaN."""
    return [float(f"{v:.6g}") if math.isfinite(v) else None for v in values]


def layout(height: int, x: Spec, y: Spec, **rest: Any) -> Spec:
    """The layout of a figure."""
    axis = {"gridcolor": "@line", "linecolor": "@line", "zeroline": False, "automargin": True, "fixedrange": False}
    return {
        "height": height,
        "margin": {"l": 58, "r": 16, "t": 12, "b": 48},
        "paper_bgcolor": "@card",
        "plot_bgcolor": "@card",
        "font": {"color": "@ink", "size": 13},
        "hoverlabel": {"bgcolor": "@card", "bordercolor": "@line", "font": {"color": "@ink"}, "align": "left"},
        "showlegend": False,
        "hovermode": "closest",
        "xaxis": {**axis, "tickfont": {"color": "@muted"}, **x},
        "yaxis": {**axis, "tickfont": {"color": "@muted"}, **y},
        **rest,
    }


def title(words: str) -> Spec:
    """The title of an axis."""
    return {"text": words, "standoff": 12, "font": {"size": 13, "color": "@muted"}}


def control(name: str, label: str, options: Sequence[tuple[str, str]]) -> list[Spec]:
    """A group of buttons of which one is pressed; none where there is nothing to choose.

    Args:
        name: of the control.
        label: of the group, for screen readers.
        options: value and text of each button; the template escapes the texts.
    """
    return [{"name": name, "label": label, "options": [list(option) for option in options]}] if len(options) > 1 else []


def end_labels(
    ends: Sequence[tuple[float, str, Style]], low: float, high: float, height: int, xs: Sequence[float] | None = None
) -> list[Spec]:
    """Labels at the right border of the plot (or at `xs`), moved apart; the script hides them where room is short."""
    places = spread([min(max(y, low), high) for y, _, _ in ends], LABEL * (high - low) / (height - 60), low, high)
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


def tall(labels: int, least: int = 430) -> int:
    """The height of a plot that has so many labels beside it."""
    return max(least, 90 + (LABEL + 1) * labels)


def room(labels: Iterable[str], extra: str = "") -> int:
    """Pixels right of a plot for the labels of its lines."""
    return 30 + 8 * max((len(short(label)) for label in labels), default=0) + 7 * len(extra)


def method_axis(labels: Sequence[str]) -> Spec:
    """An axis with one line per method, from top to bottom."""
    return {
        "tickvals": list(range(len(labels))),
        "ticktext": [text(label) for label in labels],
        "tickfont": {"color": "@ink", "size": 13},
        "range": [len(labels) - 0.45, -0.55],
        "showgrid": False,
        "fixedrange": True,
    }


def vertical(x: float) -> Spec:
    """A dashed line through the whole plot."""
    line = {"color": "@muted", "width": 1, "dash": "dash"}
    return {"type": "line", "x0": x, "x1": x, "y0": 0, "y1": 1, "yref": "paper", "line": line, "layer": "below"}


def marker(style: Style, *, hollow: bool = False, grey: bool = False) -> Spec:
    """The marker of a method."""
    color = "@muted" if grey else f"@s{style.index}"
    return {
        "color": "@card" if hollow else color,
        "size": 11,
        "symbol": style.symbol,
        "line": {"color": color, "width": 2},
    }
