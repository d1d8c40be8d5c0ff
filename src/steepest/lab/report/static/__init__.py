"""The figures of a report in their static form: SVG and PDF by matplotlib, one style for all."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import matplotlib as mpl
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from steepest.lab.figures import STYLE
from steepest.lab.report.measures import Findings, is_table
from steepest.lab.report.static import costs, losses, tuning
from steepest.lab.series import axes

Drawing = Callable[[Figure], bool]


def write_figures(f: Findings, folder: Path) -> list[Path]:
    """Write every figure that the study has data for as `<name>.svg` and `<name>.pdf`.

    Args:
        f: The study and what was found.
        folder: Created if it does not exist; figures of an earlier report are overwritten.

    Returns:
        The SVG files.
    """
    drawings: dict[str, Drawing] = {
        **{f"loss_vs_{axis}": _bind(losses.draw_curves, f, axis, "validation") for axis in axes(f.study)},
        "train_loss_vs_steps": _bind(losses.draw_curves, f, "steps", "train"),
        "final_loss": _bind(losses.draw_final_loss, f),
        "learning_rates": _bind(tuning.draw_learning_rates, f),
        "basins": _bind(tuning.draw_basins, f),
        "best_of_k": _bind(tuning.draw_best_of_k, f),
        **{f"pareto_{cost.key}": _bind(costs.draw_pareto, f, cost) for cost in f.costs},
        "state_bytes_by_role": _bind(costs.draw_state_bytes, f),
        **{
            f"diagnostic_{_plain(name)}": _bind(costs.draw_diagnostic, f, name)
            for name in dict.fromkeys(name for name, _ in f.diagnostics)
        },
    }
    for s in f.surfaces:
        draw = tuning.draw_heat_map if is_table(s) else tuning.draw_dots
        drawings[f"heat_map_{_plain(s.label)}_{_plain(s.x)}_{_plain(s.y)}"] = _bind(draw, s)
    return save(drawings, folder)


def save(drawings: dict[str, Drawing], folder: Path) -> list[Path]:
    """Draw and write each figure that has something to show."""
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    with mpl.rc_context(STYLE):
        for name, draw in drawings.items():
            figure = Figure(figsize=(6.6, 4.0), layout=ConstrainedLayoutEngine(w_pad=0.08, h_pad=0.06))
            FigureCanvasAgg(figure)
            if not draw(figure):
                continue
            figure.draw_without_rendering()
            figure.set_layout_engine("none")  # laid out once, not for each file
            # No date in the files: the same study gives the same bytes.
            figure.savefig(folder / f"{name}.svg", metadata={"Date": None})
            figure.savefig(folder / f"{name}.pdf", metadata={"CreationDate": None})
            written.append(folder / f"{name}.svg")
    return written


def _bind(draw: Callable[..., bool], *args: object) -> Drawing:
    return lambda figure: draw(figure, *args)


def _plain(label: str) -> str:
    """A label as part of a file name."""
    return re.sub(r"[^A-Za-z0-9.+-]+", "_", label).strip("_.")[:60] or "unnamed"
