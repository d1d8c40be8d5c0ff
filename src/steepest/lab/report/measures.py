"""What the page says beyond the headline table: noise, costs, targets, tuning, variants, diagnostics."""

from __future__ import annotations

import contextlib
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations
from typing import Any

import numpy as np

from steepest.lab.results import Method, Record, Row, Run, Study, number
from steepest.lab.series import SPLITS, Curve, Style, curves, ordered, styles
from steepest.lab.statistics import (
    WITHIN,
    Basin,
    BestOfK,
    Comparison,
    Interval,
    LossCurve,
    Noise,
    Target,
    ToTarget,
    basin_width,
    compare,
    divergence_rate,
    expected_best_of_k,
    noise_floor,
    target_loss,
    to_target,
)
from steepest.theory.norm_ratios import NormRatios
from steepest.theory.period import TradeOff

_DIAGNOSTIC_POINTS = 60
_MOST_CELLS = 15  # values of an axis up to which a grid is drawn as a table of cells


def baseline(rows: Sequence[Row]) -> Row | None:
    """The row of the baseline."""
    return next((row for row in rows if row.is_baseline), None)


def noise(rows: Sequence[Row]) -> Noise | None:
    """The noise floor of the study, measured from the seeds of the baseline; None with fewer than two."""
    base = baseline(rows)
    if base is None or base.loss.n < 2:
        return None
    return noise_floor({base.method.label: list(base.losses.values())}, base.method.label)


# Costs


@dataclass(frozen=True)
class Cost:
    """Something that a method costs.

    Attributes:
        key: "state", "flops" or "seconds".
        name: for a button.
        title: for an axis.
        unit: for a hover text.
        values: by label, only those that are known.
        note: what the numbers are not; empty if there is nothing to say.
    """

    key: str
    name: str
    title: str
    unit: str
    values: dict[str, float]
    note: str = ""


def isolated(study: Study, rows: Sequence[Row]) -> bool:
    """Whether the optimizer steps of all finished methods were timed apart, so that times can be compared."""
    return all(math.isfinite(study.step_seconds(row.method)) for row in rows if row.loss.n)


def costs(study: Study, rows: Sequence[Row]) -> list[Cost]:
    """What the final runs cost, as far as at least two methods are known."""
    rows = [row for row in rows if row.loss.n]
    steps = number(study.workload.get("steps"))
    state = {row.method.label: row.bytes_per_parameter for row in rows}
    flops = {row.method.label: steps * study.flops_per_step(row.method) for row in rows}
    apart = isolated(study, rows)
    if apart:
        seconds = {row.method.label: steps * study.step_seconds(row.method) for row in rows}
        crowded = [row.method.label for row in rows if (a := study.account(row.method)) and a.contended]
        note = (
            "Time of a run: its steps times the time of the optimizer step, measured in a process of its own, and of "
            f"the model ({1e3 * study.model_seconds:.3g} ms a pass, the same for all: what is left of a step in the "
            "runs, in the median)."
        )
        note += f" Timed on a busy machine, so not to be trusted: {', '.join(crowded)}." if crowded else ""
    else:
        seconds = {row.method.label: _mean(run.final.get("seconds") for run in row.runs) for row in rows}
        note = "Time of training while other runs shared the machine: an impression, not a benchmark."
    found = [
        Cost("state", "State bytes", "optimizer state (bytes per parameter)", "bytes per parameter", state),
        Cost("flops", "FLOPs", "FLOPs of a run, model and optimizer", "FLOPs", flops),
        Cost(
            "seconds", "Seconds", "training time of a run" + ("" if apart else ", machine shared"), "s", seconds, note
        ),
    ]
    found = [Cost(c.key, c.name, c.title, c.unit, _finite(c.values), c.note) for c in found]
    return [cost for cost in found if len(cost.values) > 1]


def _finite(values: Mapping[str, float]) -> dict[str, float]:
    return {label: value for label, value in values.items() if math.isfinite(value)}


def _mean(values: Iterable[Any]) -> float:
    known = [v for v in map(number, values) if math.isfinite(v)]
    return sum(known) / len(known) if known else math.nan


# Targets


def targets(study: Study, rows: Sequence[Row]) -> tuple[Target, dict[str, ToTarget]] | None:
    """What each method needs to reach the median final loss of the baseline; None without a baseline."""
    base = baseline(rows)
    if base is None or not base.loss.n:
        return None
    target = target_loss([math.inf if run.state == "diverged" else run.loss for run in base.runs])
    if not math.isfinite(target.loss):
        return None
    found = {}
    for row in rows:
        curves = [curve for run in row.runs if (curve := _loss_curve(study, row.method, run))]
        if curves:
            found[row.method.label] = to_target(curves, target.loss)
    return target, found


def _loss_curve(study: Study, method: Method, run: Run) -> LossCurve | None:
    if run.state not in ("done", "diverged") or not run.evals:
        return None
    steps = [number(r.get("step")) for r in run.evals]
    losses = [number(r.get("loss")) for r in run.evals]
    costs: dict[str, Sequence[float]] = {"tokens": [s * study.tokens_per_step for s in steps]}
    if math.isfinite(study.flops_per_step(method)):
        costs["flops"] = [s * study.flops_per_step(method) for s in steps]
    apart = study.step_seconds(method)
    costs["seconds"] = [s * apart for s in steps] if math.isfinite(apart) else [_seconds(r) for r in run.evals]
    return LossCurve(steps, losses, {name: v for name, v in costs.items() if all(map(math.isfinite, v))})


def _seconds(record: Record) -> float:
    return number(record.get("seconds"))


# Tuning


@dataclass(frozen=True)
class Tuning:
    """What tuning a method took and found.

    Attributes:
        diverged: Share of all its finished runs, tuning and final, that diverged.
        basins: Widths of the learning-rate basin at the distances `WITHIN`; empty if there is no grid of rates.
        best_of_k: Expected best of k of its trials.
    """

    method: Method
    diverged: Interval
    lost: int
    finished: int
    basins: list[Basin]
    best_of_k: BestOfK


def tunings(study: Study) -> list[Tuning]:
    """One record per method that was tuned, in the order of the figures."""
    ceiling = untrained_loss(study)
    found = []
    for method in ordered(study.methods):
        if not method.trials:
            continue
        states = [t.state for t in method.trials] + [run.state for run in study.finals(method)]
        lost = states.count("diverged")
        finished = lost + states.count("done")
        rates = method.by_rate
        scattered = method.search != "grid" and len(method.tuned) > 1
        tell = len(rates) > 1 and not scattered and all(t.lr > 0 for t in rates)
        basins = [basin_width([t.lr for t in rates], [t.outcome for t in rates], w) for w in WITHIN] if tell else []
        best = expected_best_of_k([t.outcome for t in method.trials], ceiling)
        found.append(Tuning(method, divergence_rate(lost, finished), lost, finished, basins, best))
    return found


def untrained_loss(study: Study) -> float:
    """The log of the vocabulary, the loss of a model that knows nothing: what a diverged trial counts as."""
    model = study.workload.get("model")
    if not isinstance(model, dict):
        return math.inf
    size = number(model.get("vocabulary_size"), number(model.get("vocabulary")))
    return math.log(size) if size > 1 else math.inf


@dataclass(frozen=True)
class Cell:
    """What was found at one place of a surface; NaN and "diverged" if every run there diverged."""

    x: int
    y: int
    loss: float
    state: str


@dataclass(frozen=True)
class Surface:
    """The loss of a method over two of its tuned axes, the best over the others.

    Attributes:
        xs: Values of the axis `x`, sorted if they are numbers; `ys` those of `y`.
        cells: What was tried, by place in `xs` and `ys`.
        best: The place of the best point; None if all diverged.
        open: Those of the two axes on whose edge the best point lies.
    """

    label: str
    x: str
    y: str
    xs: list[Any]
    ys: list[Any]
    cells: list[Cell]
    best: tuple[int, int] | None
    open: tuple[str, ...]


def surfaces(study: Study) -> list[Surface]:
    """Every pair of tuned axes of every method, learning rates first."""
    found = []
    for method in ordered(study.methods):
        names = sorted(method.tuned, key=lambda name: name != "lr")
        found += [s for x, y in combinations(names, 2) if (s := _surface(method, x, y))]
    return found


def _surface(method: Method, x: str, y: str) -> Surface | None:
    trials = [t for t in method.trials if x in t.point and y in t.point]
    xs, ys = (_sorted(t.point[name] for t in trials) for name in (x, y))
    cells: dict[tuple[int, int], Cell] = {}
    for t in trials:
        place = (xs.index(t.point[x]), ys.index(t.point[y]))
        there = cells.get(place)
        if there is None or t.loss < there.loss or (math.isnan(there.loss) and math.isfinite(t.loss)):
            cells[place] = Cell(*place, t.loss, t.state)
    best = None
    if x in method.best and y in method.best and method.best[x] in xs and method.best[y] in ys:
        best = (xs.index(method.best[x]), ys.index(method.best[y]))
    opened = tuple(name for name in method.open_axes if name in (x, y))
    return Surface(method.label, x, y, xs, ys, list(cells.values()), best, opened) if cells else None


def is_table(surface: Surface) -> bool:
    """Whether it is drawn as cells; a search that sampled its points is drawn as dots."""
    return max(len(surface.xs), len(surface.ys)) <= _MOST_CELLS and len(surface.cells) > max(
        len(surface.xs), len(surface.ys)
    )


def _sorted(values: Iterable[Any]) -> list[Any]:
    unique: list[Any] = []
    for item in values:
        if item not in unique:
            unique.append(item)
    numbers = all(isinstance(v, (int, float)) and not isinstance(v, bool) for v in unique)
    return sorted(unique) if numbers else unique


# Variants


@dataclass(frozen=True)
class Variant:
    """A variant of a method beside the full one: same name, other options.

    Attributes:
        changed: Options in which it differs, with its values (None: the default).
        comparison: To the full one, paired by seed; negative is better.
    """

    row: Row
    full: Row
    changed: dict[str, Any]
    comparison: Comparison


def variants(rows: Sequence[Row]) -> list[Variant]:
    """Every method that is in the study more than once, against that with the fewest options, in the study's terms.

    A wrapped method ("sac+adamw") is a variant of the one that it wraps, if that is there.
    """
    families: dict[str, list[Row]] = {}
    for row in rows:
        families.setdefault(row.method.name, []).append(row)
    found = []
    for name, family in families.items():
        full = min(family, key=lambda row: len(row.method.options))
        inner = families.get(name.partition("+")[2], [])
        others = [(row, full) for row in family if row is not full]
        if inner:
            others.append((full, min(inner, key=lambda row: len(row.method.options))))
        for row, reference in others:
            if row.losses and reference.losses:
                own, full_options = row.method.options, reference.method.options
                names = dict.fromkeys([*own, *full_options])
                changed = {n: own.get(n) for n in names if own.get(n) != full_options.get(n)}
                found.append(Variant(row, reference, changed, compare(row.losses, reference.losses)))
    return found


# Diagnostics


@dataclass(frozen=True)
class Trace:
    """A diagnostic of a method along a run: mean over its finished seeds."""

    label: str
    steps: list[float]
    values: list[float]


def diagnostics(study: Study) -> dict[tuple[str, str], list[Trace]]:
    """Diagnostics by quantity and role ("all" where there is none), if the runs measured any."""
    found: dict[tuple[str, str], list[Trace]] = {}
    for method in ordered(study.methods):
        series: dict[tuple[str, str], dict[float, list[float]]] = {}
        for run in study.finals(method):
            for record in run.metrics if run.state == "done" else ():
                measured = record.get("diagnostics")
                if not isinstance(measured, dict):
                    continue
                for name, by_role in measured.items():
                    for role, value in (by_role if isinstance(by_role, dict) else {"all": by_role}).items():
                        if math.isfinite(number(value)):
                            table = series.setdefault((str(name), str(role)), {})
                            table.setdefault(number(record["step"]), []).append(number(value))
        for key, table in series.items():
            steps = np.asarray(sorted(table), dtype=np.float64)
            means = np.asarray([np.mean(table[step]) for step in sorted(table)], dtype=np.float64)
            chunks = np.array_split(np.arange(len(steps)), min(len(steps), _DIAGNOSTIC_POINTS))
            found.setdefault(key, []).append(
                Trace(method.label, [float(steps[c].mean()) for c in chunks], [float(means[c].mean()) for c in chunks])
            )
    return found


def trade_offs(traces: Mapping[tuple[str, str], Sequence[Trace]]) -> dict[str, TradeOff]:
    """What LionMuon's theory makes of the norm ratios along the runs, by label; none where the runs measured none.

    Args:
        traces: `diagnostics`; of each ratio the median counts.
    """
    ratios: dict[str, dict[str, float]] = {}
    for name in NormRatios._fields:
        for trace in traces.get((name, "all"), ()):
            ratios.setdefault(trace.label, {})[name] = statistics.median(trace.values)
    made = {}
    for label, found in ratios.items():
        if len(found) == len(NormRatios._fields):
            with contextlib.suppress(ValueError, ArithmeticError):  # a ratio of zero: there is no such number
                made[label] = TradeOff.of(**found)
    return made


# All of it


@dataclass(frozen=True)
class Findings:
    """A study, its headline rows, and everything above about them, each worked out once."""

    study: Study
    rows: list[Row]

    @cached_property
    def base(self) -> Row | None:
        """The row of the baseline."""
        return baseline(self.rows)

    @cached_property
    def noise(self) -> Noise | None:
        """`noise`."""
        return noise(self.rows)

    @cached_property
    def costs(self) -> list[Cost]:
        """`costs`."""
        return costs(self.study, self.rows)

    @cached_property
    def targets(self) -> tuple[Target, dict[str, ToTarget]] | None:
        """`targets`."""
        return targets(self.study, self.rows)

    @cached_property
    def tunings(self) -> list[Tuning]:
        """`tunings`."""
        return tunings(self.study)

    @cached_property
    def surfaces(self) -> list[Surface]:
        """`surfaces`."""
        return surfaces(self.study)

    @cached_property
    def variants(self) -> list[Variant]:
        """`variants`."""
        return variants(self.rows)

    @cached_property
    def diagnostics(self) -> dict[tuple[str, str], list[Trace]]:
        """`diagnostics`."""
        return diagnostics(self.study)

    @cached_property
    def trade_offs(self) -> dict[str, TradeOff]:
        """`trade_offs`."""
        return trade_offs(self.diagnostics)

    @cached_property
    def curves(self) -> dict[str, list[Curve]]:
        """The curves of each split that has any."""
        groups = {split: curves(self.study, split) for split in SPLITS}
        return {split: group for split, group in groups.items() if group}

    @cached_property
    def styles(self) -> dict[str, Style]:
        """Colours and markers by label."""
        return styles(self.study)
