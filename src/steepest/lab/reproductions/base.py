"""What a study is: cases (problems) times arms (methods) times seeds, the numbers of each, and what they say.

A study is a record; `execution` computes its cells and `output` writes them up. All conclusions rest on differences
to the baseline arm paired by seed (`lab.statistics`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from steepest.lab.statistics import Comparison, Summary, compare, summarize
from steepest.lab.wording import DASH, fixed, signed

# The first seed of tuning runs, far from those of the final ones (0, 1, 2, ...).
TUNING_SEED = 10_000

Settings = Mapping[str, Any]
Report = Callable[[float], None]
Run = Callable[[Settings, int, Report], Mapping[str, "float | Sequence[float]"]]


@dataclass(frozen=True)
class Setting:
    """A value that is the same in the whole study, and where it comes from."""

    value: Any
    source: str


@dataclass(frozen=True)
class Case:
    """A problem on which the arms are compared; each case gets a table of its own.

    Attributes:
        name: for file names: letters, digits, "-" and ".".
        label: for tables and figures.
        settings: what it adds to, or changes in, the settings of the study.
        arms: names of the arms that are run on it; empty means all.
        missing: returns why the case cannot be run here (a package that is not installed), or "" if it can. A case
            that cannot be run is left out, and the output says so.
    """

    name: str
    label: str
    settings: Settings = field(default_factory=dict)
    arms: tuple[str, ...] = ()
    missing: Callable[[], str] = lambda: ""


@dataclass(frozen=True)
class Arm:
    """A method: a name for files, a label for tables, a sentence, and what it adds to the settings (these win)."""

    name: str
    label: str
    description: str
    settings: Settings = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Measure:
    """A number that `run` returns, and how it is read.

    Attributes:
        key: in what `run` returns.
        label: for tables, without the unit.
        unit: "" for a pure number.
        better: "lower", "higher", or "" if neither is better (then verdicts say "lower" and "higher").
        geometric: the number is positive and spans orders of magnitude: geometric means, and ratios to the baseline.
        digits: decimals; significant digits if geometric.
        floor: values below are rounding noise and shown as "< floor".
        tolerance: how far from a reference number counts as the same, as a fraction; 0 to not count.
    """

    key: str
    label: str
    unit: str = ""
    better: Literal["lower", "higher", ""] = "lower"
    geometric: bool = False
    digits: int = 3
    floor: float = 0.0
    tolerance: float = 0.0

    @property
    def title(self) -> str:
        """Label and unit."""
        return f"{self.label} ({self.unit})" if self.unit else self.label

    def text(self, value: float) -> str:
        """The value as a table shows it."""
        if not math.isfinite(value):
            return DASH
        if value < self.floor:
            return f"< {self.floor:g}"
        return f"{value:.{self.digits - 1}e}" if self.geometric else fixed(value, self.digits)

    def interval(self, summary: Summary, short: bool = False) -> str:
        """Mean and 95 % interval; `short`: as "± half of it" (in percent, if geometric)."""
        text = self.text(summary.mean)
        if summary.n < 2 or summary.mean < self.floor:
            return text
        if not short:
            return f"{text} [{self.text(summary.low)}, {self.text(summary.high)}]"
        half = math.sqrt(summary.high / summary.low) - 1 if self.geometric else summary.high - summary.mean
        return f"{text} ± {f'{half:.0%}' if self.geometric else fixed(half, self.digits)}"

    def difference(self, comparison: Comparison | None) -> str:
        """Difference to the baseline (ratio, if geometric) with its 95 % interval."""
        if comparison is None or not comparison.n:
            return DASH
        values = (comparison.difference, comparison.low, comparison.high)
        middle, low, high = _ratios(values) if self.geometric else (signed(v, self.digits) for v in values)
        return f"{middle} [{low}, {high}]" if comparison.n > 1 else middle

    def relation(self, baseline: str) -> str:
        """What `difference` is, as a column's title."""
        return f"{'Ratio' if self.geometric else 'Difference'} to {baseline}"


def _ratios(logarithms: Sequence[float]) -> list[str]:
    """Ratios in words: near one with as many decimals as it takes to see that they are not one."""
    ratios = [math.exp(min(v, 700.0)) for v in logarithms]
    away = max((abs(r - 1) for r in ratios if math.isfinite(r)), default=1.0)
    if away < 0.5:
        return [fixed(r, 3 if away >= 0.01 else 5) for r in ratios]
    return [f"{r:#.3g}".rstrip(".") if math.isfinite(r) else DASH for r in ratios]


@dataclass(frozen=True, kw_only=True)
class Study:
    """A reproduction.

    Attributes:
        name: what the command line calls it.
        title: a headline.
        paper: with its arXiv number.
        claim: what the paper reports, in one sentence.
        about: paragraphs for a stranger: the problem, the method, what is a proxy for what.
        proxies: how the protocol differs from the paper's, or what of the paper's is unknown, one sentence each.
        cases: the problems.
        arms: the methods; colours follow this order.
        baseline: name of the arm that the others are compared with.
        measures: the first one is judged; the others are shown beside it.
        settings: by name; a case, then an arm, may override them.
        run: `run(settings, seed, report)` computes one cell, a pure function of settings and seed: a float for each
            measure (and any other scalars) and lists for figures. It calls `report(fraction)` now and then, which
            draws the progress and raises when the user wants to stop. A module-level function (workers import it). A
            number that is not finite means that the cell diverged.
        seeds: how many by default; they are 0, 1, 2, ...
        minutes: on two cores, roughly.
        quick: settings of a quick look; with `quick_cases` (default all) and `quick_seeds`.
        references: published or otherwise known numbers, (case, arm) -> {measure key: number}.
        reference_source: whose they are, as a table's column title.
        reference_note: a sentence on where they come from.
        reference_seeds: of how many seeds each is the mean; 0 for an exact number.
        findings: further sentences, computed from the results.
        figures: file name -> (caption, function that draws into a figure).
        prepare: called once before any cell, for data that workers must not fetch twice.
    """

    name: str
    title: str
    paper: str
    claim: str
    about: str
    proxies: tuple[str, ...]
    cases: tuple[Case, ...]
    arms: tuple[Arm, ...]
    baseline: str
    measures: tuple[Measure, ...]
    settings: Mapping[str, Setting]
    run: Run
    seeds: int
    minutes: float
    quick: Settings = field(default_factory=dict)
    quick_cases: tuple[str, ...] = ()
    quick_seeds: int = 2
    references: Mapping[tuple[str, str], Mapping[str, float]] = field(default_factory=dict)
    reference_source: str = "Reference"
    reference_note: str = ""
    reference_seeds: int = 0
    findings: Callable[[Results], list[str]] = lambda results: []
    figures: Mapping[str, tuple[str, Callable[[Figure, Results], None]]] = field(default_factory=dict)
    prepare: Callable[[Settings], None] = lambda settings: None

    def arm(self, name: str) -> Arm:
        """The arm of a name."""
        return next(arm for arm in self.arms if arm.name == name)

    def arms_of(self, case: Case) -> list[Arm]:
        """The arms that are run on a case."""
        return [arm for arm in self.arms if not case.arms or arm.name in case.arms]


@dataclass(frozen=True)
class Cell:
    """One finished (case, arm, seed): its numbers and series (None: not finite)."""

    case: str
    arm: str
    seed: int
    settings: dict[str, Any]
    numbers: dict[str, float | None]
    series: dict[str, list[float | None]]
    seconds: float
    created: str
    versions: dict[str, str]


@dataclass(frozen=True)
class Results:
    """All cells of a study, and what they say.

    `cases` are those that were run; `left_out` maps the labels of the others to the reason.
    """

    study: Study
    settings: Mapping[str, Setting]
    cases: tuple[Case, ...]
    seeds: tuple[int, ...]
    cells: Mapping[tuple[str, str, int], Cell]
    left_out: Mapping[str, str] = field(default_factory=dict)

    def values(self, case: Case, arm: Arm, key: str) -> dict[int, float]:
        """A number by seed; NaN where the cell diverged."""
        found = {seed: self.cells[case.name, arm.name, seed] for seed in self.seeds}
        return {seed: _number(cell.numbers.get(key)) for seed, cell in found.items()}

    def series(self, case: Case, arm: Arm, key: str) -> NDArray[np.float64]:
        """A series as (seeds, points); cells that diverged are left out, and all are cut to the shortest."""
        first = self.study.measures[0].key
        lines = [
            self.cells[case.name, arm.name, seed].series[key]
            for seed, value in self.values(case, arm, first).items()
            if math.isfinite(value)
        ]
        points = min(map(len, lines), default=0)
        return np.asarray([line[:points] for line in lines], dtype=np.float64).reshape(len(lines), points)

    def lost(self, case: Case, arm: Arm, measure: Measure) -> int:
        """How many seeds diverged."""
        return sum(not math.isfinite(value) for value in self.values(case, arm, measure.key).values())

    def summary(self, case: Case, arm: Arm, measure: Measure) -> Summary:
        """Mean over seeds with its 95 % t interval. Geometric measures: geometric mean, `sd` that of the logarithm."""
        s = summarize(list(self._scaled(case, arm, measure).values()))
        return Summary(s.n, math.exp(s.mean), s.sd, math.exp(s.low), math.exp(s.high)) if measure.geometric else s

    def comparison(self, case: Case, arm: Arm, measure: Measure, other: Arm | None = None) -> Comparison | None:
        """Arm minus `other` (default: the baseline), paired by seed; difference of logarithms for a geometric measure.

        None for the baseline itself and where it was not run. Its own verdict takes lower for better: use `verdict`.
        """
        base = other or self.study.arm(self.study.baseline)
        if arm == base or base not in self.study.arms_of(case):
            return None
        return compare(self._scaled(case, arm, measure), self._scaled(case, base, measure))

    def verdict(self, case: Case, arm: Arm, measure: Measure, other: Arm | None = None) -> str:
        """One of "better", "worse" ("lower", "higher" if neither is better), "not decided"; "" without a comparison."""
        c = self.comparison(case, arm, measure, other)
        if c is None:
            return ""
        low, high = {"lower": ("better", "worse"), "higher": ("worse", "better"), "": ("lower", "higher")}[
            measure.better
        ]
        word = {"better": low, "worse": high}.get(c.verdict, "not decided")
        # The mean of the seeds that survived is no proof of being better.
        return "not decided" if word == "better" and self.lost(case, arm, measure) else word

    def reference(self, case: Case, arm: Arm, measure: Measure) -> float | None:
        """The known number to show beside ours; None if there is none."""
        return self.study.references.get((case.name, arm.name), {}).get(measure.key)

    def reference_interval(self, case: Case, arm: Arm, measure: Measure) -> tuple[float, float]:
        """Where 95 % of such reference numbers lie if they are of the law of ours; theirs are means of few seeds."""
        s = summarize(list(self._scaled(case, arm, measure).values()))
        theirs = self.study.reference_seeds
        half = (s.high - s.mean) * math.sqrt(1.0 + (s.n / theirs if theirs else 0.0))
        low, high = s.mean - half, s.mean + half
        return (math.exp(low), math.exp(high)) if measure.geometric else (low, high)

    def _scaled(self, case: Case, arm: Arm, measure: Measure) -> dict[int, float]:
        values = self.values(case, arm, measure.key)
        if not measure.geometric:
            return values
        least = measure.floor or 5e-324
        return {seed: math.log(max(v, least)) if math.isfinite(v) else v for seed, v in values.items()}


def _number(value: float | None) -> float:
    return math.nan if value is None else value
