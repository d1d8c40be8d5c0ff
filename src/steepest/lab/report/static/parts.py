"""What all static figures share."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator

from steepest.lab.series import log_ticks, spread
from steepest.lab.wording import compact, rate, short


def label_ends(ax: Axes, ends: Sequence[tuple[float, float, str, str]], x: float | None = None) -> None:
    """Write the label of each line at its end (x, y, label, colour), moved apart where they would touch.

    Args:
        ax: The axes; its limits must be set.
        ends: The ends.
        x: Write all labels at this x instead of at the ends.
    """
    low, high = ax.get_ylim()
    height = float(ax.figure.get_window_extent().height) / float(ax.figure.dpi)
    lines = 19 * height / 4
    places = spread([min(max(y, low), high) for _, y, _, _ in ends], (high - low) / lines, low, high)
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


def tall(labels: int, least: float = 4.0) -> float:
    """The height in inches of a plot that has so many labels beside it."""
    return max(least, 0.9 + 0.21 * labels)


def rate_axis(ax: Axes, rates: Sequence[float]) -> None:
    """A logarithmic axis with learning rates as its ticks."""
    ax.set_xscale("log")
    own = sorted(set(rates))
    ax.xaxis.set_major_locator(FixedLocator(own if len(own) <= 8 else log_ticks(own[0], own[-1])))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.xaxis.set_major_formatter(FuncFormatter(lambda v, _: rate(v)))


def compact_axis(ax: Axes) -> None:
    """An axis of large numbers, a few of them: "1.2 M"."""
    ax.xaxis.set_major_locator(MaxNLocator(6))
    ax.xaxis.set_major_formatter(FuncFormatter(lambda v, _: compact(v)))


def method_axis(ax: Axes, labels: Sequence[str]) -> None:
    """One line per method, from top to bottom."""
    ax.set_yticks(range(len(labels)), [short(label) for label in labels])
    ax.set_ylim(len(labels) - 0.4, -0.6)
    ax.grid(axis="y", visible=False)
