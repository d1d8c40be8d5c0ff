"""Several studies at once: performance profiles over their workloads, mean speed-ups, and what more data would do."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from steepest.lab.errors import UserError, full_disk
from steepest.lab.report.interactive.parts import Spec, control, end_labels, layout, room, rounded, tall, text, title
from steepest.lab.report.measures import Findings, baseline, isolated
from steepest.lab.report.page import render, write_tables, write_text
from steepest.lab.report.sheets import Cell, Sheet
from steepest.lab.report.static import save
from steepest.lab.report.static.parts import label_ends
from steepest.lab.report.static.parts import tall as tall_inches
from steepest.lab.results import Method, Study, headline, number, read_study
from steepest.lab.series import Style, ordered, styles_of
from steepest.lab.statistics import (
    HORIZONS,
    LIMIT,
    DataSpeedUp,
    Profile,
    SpeedUp,
    data_speedups,
    geometric_speedups,
    performance_profiles,
)
from steepest.lab.wording import DASH, compact, fixed, listing, long_name, loss_digits, short, signed, verdict

# Not tokens: in a workload they are in proportion to the steps, so the profile is the same.
_COSTS = {"steps": "Steps", "flops": "FLOPs", "seconds": "Seconds"}


@dataclass(frozen=True)
class Workloads:
    """Several studies and what they say together.

    Attributes:
        findings: by name of the study.
        baseline: label of the method that all studies compare with.
    """

    findings: dict[str, Findings]
    baseline: str

    @cached_property
    def methods(self) -> list[Method]:
        """The methods that are in every study, by label."""
        counts = Counter(label for f in self.findings.values() for label in {m.label for m in f.study.methods})
        first = next(iter(self.findings.values())).study
        return ordered(m for m in first.methods if counts[m.label] == len(self.findings))

    @cached_property
    def left_out(self) -> list[str]:
        """The methods that are not in every study."""
        shared = {m.label for m in self.methods}
        return list(
            dict.fromkeys(m.label for f in self.findings.values() for m in f.study.methods if m.label not in shared)
        )

    @cached_property
    def styles(self) -> dict[str, Style]:
        """Colours and markers by label."""
        return styles_of(self.methods)

    @cached_property
    def costs(self) -> dict[str, dict[str, dict[str, float | None]]]:
        """What reaching the target takes: quantity -> method -> study; only quantities known in every study."""
        found: dict[str, dict[str, dict[str, float | None]]] = {}
        for key in _COSTS:
            table = {m.label: {n: _cost(f, m.label, key) for n, f in self.findings.items()} for m in self.methods}
            if any(cost for row in table.values() for cost in row.values()) and _known(self, key):
                found[key] = table
        return found

    @cached_property
    def profiles(self) -> dict[str, dict[str, Profile]]:
        """Performance profiles by quantity and method."""
        return {key: performance_profiles(table) for key, table in self.costs.items()}

    @cached_property
    def speedups(self) -> dict[str, dict[str, SpeedUp]]:
        """Geometric-mean speed-ups over the baseline, by quantity and method."""
        return {
            key: geometric_speedups(table, self.baseline) for key, table in self.costs.items() if self.baseline in table
        }


def _known(w: Workloads, key: str) -> bool:
    """Seconds that were measured on a shared machine, and FLOPs that were not counted, are not compared."""
    studies = w.findings.values()
    if key == "seconds":
        return all(isolated(f.study, f.rows) for f in studies)
    if key == "flops":
        return all(math.isfinite(f.study.flops_per_step(r.method)) for f in studies for r in f.rows if r.loss.n)
    return True


def _cost(f: Findings, label: str, key: str) -> float | None:
    if f.targets is None:
        return None
    reached = f.targets[1].get(label)
    row = next((row for row in f.rows if row.method.label == label), None)
    if reached is None or row is None:
        return None
    if reached.steps is None:
        if not row.is_baseline:
            return None
        # The target is the median of its own seeds, so by definition it takes the baseline its schedule.
        steps = number(f.study.workload.get("steps"))
        per_step = {
            "steps": 1.0,
            "flops": f.study.flops_per_step(row.method),
            "seconds": f.study.step_seconds(row.method),
        }[key]
        return steps * per_step if math.isfinite(steps * per_step) else None
    return reached.steps if key == "steps" else reached.costs.get(key)


def read_workloads(folders: Sequence[str | Path]) -> Workloads:
    """Read several studies.

    Raises:
        UserError: one is no study, two are the same, or they do not share a baseline and another method.
    """
    studies = [read_study(folder) for folder in folders]
    names: Counter[str] = Counter(study.name for study in studies)
    findings: dict[str, Findings] = {}
    for study in studies:
        if study.lone:
            raise UserError(f"{study.path} is a single run; profiles are drawn over studies.")
        name = study.name if names[study.name] == 1 else f"{study.name} ({study.path})"
        if name in findings:
            raise UserError(f"{study.path} is given twice.")
        findings[name] = Findings(study, headline(study))
    bases = {name: base.method.label for name, f in findings.items() if (base := baseline(f.rows))}
    if len(set(bases.values())) != 1 or len(bases) < len(findings):
        found = "; ".join(f"{name}: {bases.get(name, 'none')}" for name in findings)
        hint = " Imported runs are shown beside a study: `steepest report STUDY --beside IMPORTED`."
        hint = hint if any(study.tier == "imported" for study in studies) else ""
        raise UserError(f"these studies do not have the same baseline ({found}), so nothing compares them.{hint}")
    workloads = Workloads(findings, next(iter(bases.values())))
    if len(workloads.methods) < 2:
        raise UserError(
            f"these studies share {listing([m.label for m in workloads.methods]) or 'no method'} alone; profiles need "
            "two methods or more that are in all of them, under the same label."
        )
    return workloads


def write_workloads(folders: Sequence[str | Path], out: str | Path | None = None) -> Path:
    """Write one page over several studies, `profiles.html`, with its figures and tables in `profiles-files/`.

    Args:
        folders: What `read_study` takes, two or more.
        out: The page, or a folder for it; by default the folder that the first study is in.

    Returns:
        The path of the page.

    Raises:
        UserError: as `read_workloads`; or the disk is full.
    """
    w = read_workloads(folders)
    first = next(iter(w.findings.values())).study.path
    page = Path(out) if out is not None else first.resolve().parent / "profiles.html"
    page = page / "profiles.html" if page.is_dir() else page
    tables = workload_sheets(w)
    try:
        files = page.with_name(f"{page.stem}-files")
        save({f"profile_{key}": partial(_draw_profile, w, key) for key in w.profiles}, files)
        write_tables(list(tables.values()), files)
        write_text(page, _page(w, tables, page))
    except OSError as error:
        raise full_disk(error, page, "writing the report") or error from None
    return page


def _page(w: Workloads, tables: Mapping[str, Sheet], page: Path) -> str:
    specs = {name: spec for name, spec in {"profile": _profile(w)}.items() if spec}
    studies = [
        {
            "name": name,
            "path": str(f.study.path),
            "tier": f.study.tier,
            "command": f.study.command,
            "sentences": verdict(f.study, f.rows)[:2],
            "problems": f.study.problems,
        }
        for name, f in w.findings.items()
    ]
    return render(
        "workloads.html.j2",
        specs,
        {
            "name": f"{len(w.findings)} studies",
            "baseline": long_name(w.baseline),
            "sheets": tables,
            "studies": studies,
            "left_out": [long_name(label) for label in w.left_out],
            "proxy": any(f.study.tier == "CPU proxy" for f in w.findings.values()),
            "limit": LIMIT,
            "files": f"{page.stem}-files",
            "problems": [f"{name}: {problem}" for name, f in w.findings.items() for problem in f.study.problems],
        },
    )


# Figures


def _profile(w: Workloads) -> Spec | None:
    if not w.profiles:
        return None
    data: list[Spec] = []
    layouts: Spec = {}
    height = tall(len(w.methods))
    for key, profiles in w.profiles.items():
        for label, profile in profiles.items():
            s = w.styles[label]
            x, y = zip(*profile.corners, strict=True)
            data.append(
                {
                    "type": "scatter",
                    "mode": "lines",
                    "x": rounded(x),
                    "y": rounded(y),
                    "line": {"color": f"@s{s.index}", "width": 2.4, "dash": s.dash, "shape": "hv"},
                    "name": text(label),
                    "hovertemplate": f"{text(label)}: %{{y:.0%}} within %{{x:.2f}} times the best<extra></extra>",
                    "meta": {"only": {"cost": key}},
                }
            )
        ends = [(p.rho(LIMIT), short(label), w.styles[label]) for label, p in profiles.items()]
        words = {"flops": "FLOPs"}.get(key, key)
        layouts[key] = {
            "xaxis": {"title": {"text": f"{words} to the target, times those of the best method"}},
            "annotations": end_labels(ends, -0.03, 1.05, height),
        }
    first = layouts[next(iter(layouts))]
    x_axis = {"title": title(first["xaxis"]["title"]["text"]), "range": [1, LIMIT]}
    y_axis = {"title": title("share of the workloads"), "range": [-0.03, 1.05], "tickformat": ".0%"}
    spec = layout(height, x_axis, y_axis, annotations=first["annotations"])
    spec["margin"]["r"] = room(m.label for m in w.methods)
    return {
        "data": data,
        "layout": spec,
        "controls": control("cost", "Cost", [(key, _COSTS[key]) for key in w.profiles]),
        "layouts": {"cost": layouts},
    }


def _draw_profile(w: Workloads, key: str, figure: Figure) -> bool:
    figure.set_size_inches(6.6, tall_inches(len(w.methods)))
    ax = figure.add_subplot()
    ends = []
    for label, profile in w.profiles[key].items():
        s = w.styles[label]
        x, y = zip(*profile.corners, strict=True)
        ax.step(x, y, where="post", color=s.color, linestyle=s.line)
        ends.append((LIMIT, profile.rho(LIMIT), short(label), s.color))
    ax.set_xlim(1, LIMIT)
    ax.set_ylim(-0.03, 1.05)
    label_ends(ax, ends, x=LIMIT)
    ax.set_xlabel(f"{key} to the target, times those of the best method")
    ax.set_ylabel("share of the workloads")
    ax.set_title(f"Performance profile over {len(w.findings)} workloads")
    return True


# Tables


def workload_sheets(w: Workloads) -> dict[str, Sheet]:
    """The tables of the page, by name."""
    found = [_differences(w), *(_scores(w, key) for key in w.profiles), *_data_speedups(w)]
    return {sheet.name: sheet for sheet in found if sheet.rows}


def _differences(w: Workloads) -> Sheet:
    lines = []
    for method in w.methods:
        cells = [Cell(long_name(method.label), method.label)]
        for f in w.findings.values():
            row = next(row for row in f.rows if row.method.label == method.label)
            digits, c = loss_digits(f.rows), row.comparison
            if row.is_baseline:
                cells.append(Cell(f"{fixed(row.loss.mean, digits)} (loss)", row.loss.mean))
            elif c is None or not c.n:
                cells.append(Cell(DASH, math.nan))
            else:
                interval = f" [{signed(c.low, digits)}, {signed(c.high, digits)}]" if c.n > 1 else ""
                cells.append(Cell(f"{signed(c.difference, digits)}{interval} {row.verdict}", c.difference))
        lines.append(cells)
    note = f"Paired differences to {w.baseline} with their 95% t interval, study by study; negative is better."
    return Sheet("differences", "Final loss in every study", ["Method", *w.findings], lines, note)


def _scores(w: Workloads, key: str) -> Sheet:
    words = _COSTS[key]
    lines = []
    speedups = w.speedups.get(key, {})
    for label, profile in sorted(w.profiles[key].items(), key=lambda item: -item[1].score.value):
        s = speedups.get(label)
        score = profile.score
        lines.append(
            [
                Cell(long_name(label), label),
                Cell(fixed(score.value, 3), score.value),
                Cell(f"{score.low:.2f} to {score.high:.2f}" if math.isfinite(score.low) else DASH),
                Cell(f"{sum(map(math.isfinite, profile.ratios.values()))} of {len(profile.ratios)}"),
                Cell("baseline" if s is None else f"{s.mean.value:.2f}" if s.workloads else DASH, s and s.mean.value),
                Cell(f"{s.mean.low:.2f} to {s.mean.high:.2f}" if s and math.isfinite(s.mean.low) else DASH),
                Cell(", ".join(s.left_out) if s and s.left_out else ""),
            ]
        )
    titles = ["Method", f"Score (0 to 1, limit {LIMIT:g})", "95% interval", "Targets reached"]
    titles += ["Mean speed-up", "95% interval of it", "Not in the mean"]
    note = (
        f"Score: the integral of the profile from 1 to {LIMIT:g} times the best. Mean speed-up: geometric mean of "
        f"{w.baseline}'s cost over the method's; a workload whose target the method did not reach is not in it, which "
        "flatters the method."
    )
    numeric = [False, True, True, True, True, True, False]
    return Sheet(f"profile-{key}", f"{words} to the loss of {w.baseline}", titles, lines, note, numeric)


def _data_speedups(w: Workloads) -> list[Sheet]:
    """Data-equivalent speed-up, where studies differ in nothing but their horizon and there are enough of these."""
    families: dict[str, dict[float, Findings]] = {}
    for f in w.findings.values():
        tokens = f.study.tokens_per_step * number(f.study.workload.get("steps"))
        if math.isfinite(tokens):
            families.setdefault(_family(f.study), {})[tokens] = f
    sheets = []
    for i, horizons in enumerate(h for h in families.values() if len(h) >= HORIZONS):
        base = {tokens: _losses(f, w.baseline) for tokens, f in horizons.items()}
        lines, note = [], ""
        for tokens in sorted(horizons):
            others = {m.label: _losses(horizons[tokens], m.label) for m in w.methods if m.label != w.baseline}
            try:
                found = data_speedups(base, others, tokens)
            except UserError as error:
                note = f"It cannot be said here: {error}"
                break
            lines += [
                [Cell(long_name(label), label), Cell(compact(tokens), tokens), *_speedup(s)]
                for label, s in found.items()
            ]
        titles = ["Method", "Tokens", "Speed-up", "95% interval", "Error of the fit"]
        words = (
            f"Tokens that {w.baseline} would need for the loss of the method, over the tokens it had; from a scaling "
            "law of its end-of-schedule losses, never used beyond its horizons."
        )
        name = "data-speedup" + (f"-{i + 1}" if i else "")
        if lines or note:
            sheets.append(Sheet(name, "Data-equivalent speed-up", titles, lines or [[note, "", "", "", ""]], words))
    return sheets


def _speedup(s: DataSpeedUp) -> list[Cell]:
    sign = {"longest": "above", "shortest": "below"}.get(s.beyond, "")
    words = f"{sign} {s.bound:.2f}" if s.value is None else f"{s.value:.2f}"
    interval = f"{s.low:.2f} to {s.high:.2f}" if math.isfinite(s.low) else DASH
    return [Cell(words, s.value if s.value is not None else math.nan), Cell(interval), Cell(f"{s.law.error:.2%}")]


def _losses(f: Findings, label: str) -> dict[int, float]:
    return next((row.losses for row in f.rows if row.method.label == label), {})


def _family(study: Study) -> str:
    """What must be equal for studies to be horizons of one another: the workload but for its length."""
    workload: dict[str, Any] = {k: v for k, v in study.workload.items() if k not in ("steps", "evaluation")}
    return json.dumps(workload, sort_keys=True, default=str)
