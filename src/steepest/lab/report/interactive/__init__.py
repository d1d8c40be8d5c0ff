"""The figures of a report in their interactive form: specifications for plotly.js, as plain dictionaries."""

from steepest.lab.report.interactive.parts import Spec
from steepest.lab.report.measures import Findings


def charts(f: Findings) -> dict[str, Spec]:
    """All figures the study has data for, by name: {"data": traces, "layout": layout, ...} ready for JSON."""
    from steepest.lab.report.interactive import costs, losses, tuning

    specs = {
        "curves": losses.curves(f),
        "final-loss": losses.final_loss(f),
        "differences": losses.differences(f),
        "learning-rates": tuning.learning_rates(f),
        "basins": tuning.basins(f),
        "best-of-k": tuning.best_of_k(f),
        "heat-maps": tuning.heat_maps(f),
        "pareto": costs.pareto(f),
        "state-bytes": costs.state_bytes(f),
        "diagnostics": costs.diagnostics(f),
    }
    return {name: spec for name, spec in specs.items() if spec}
