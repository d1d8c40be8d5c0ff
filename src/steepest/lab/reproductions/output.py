"""Write up a study: result.json, table.md, the figures, a README for strangers, and the same for a terminal."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text

from steepest.lab import runs
from steepest.lab.reproductions.base import Arm, Case, Measure, Results
from steepest.lab.reproductions.drawing import write_figures
from steepest.lab.wording import DASH, listing, plural

SCHEMA = 1


@dataclass(frozen=True)
class Line:
    """One arm in the table of a case, in words."""

    arm: Arm
    seeds: str
    measured: list[str]
    against: str
    verdict: str
    references: list[str]


def write(results: Results, folder: Path) -> list[Path]:
    """Write result.json, table.md, the figures and README.md into `folder`; return the files."""
    runs.write_json(folder / "result.json", record(results))
    (folder / "table.md").write_text(markdown(results), encoding="utf-8")
    figures = write_figures(results, folder)
    (folder / "README.md").write_text(readme(results), encoding="utf-8")
    return [folder / "result.json", folder / "table.md", *figures, folder / "README.md"]


# The table


def lines(results: Results, case: Case) -> list[Line]:
    """The table of a case."""
    return [_line(results, case, arm) for arm in results.study.arms_of(case)]


def _line(results: Results, case: Case, arm: Arm) -> Line:
    study, first = results.study, results.study.measures[0]
    lost = results.lost(case, arm, first)
    verdict = "baseline" if arm.name == study.baseline else results.verdict(case, arm, first)
    comparison = results.comparison(case, arm, first)
    if comparison is not None and verdict == "not decided" and not lost:
        more = comparison.more_seeds
        verdict += " (needs more seeds)" if more is None or more > 100 else f" (needs about {more} more seeds)"
    if lost:
        verdict = f"{verdict}; {lost} of {plural(len(results.seeds), 'seed')} diverged".removeprefix("; ")
    references = [results.reference(case, arm, measure) for measure in shown_references(results)]
    return Line(
        arm,
        str(len(results.seeds) - lost),
        [measure.interval(results.summary(case, arm, measure)) for measure in study.measures],
        first.difference(comparison),
        verdict or DASH,
        [
            DASH if number is None else measure.text(number)
            for number, measure in zip(references, shown_references(results), strict=True)
        ],
    )


def shown_references(results: Results) -> list[Measure]:
    """The measures for which some reference number is known."""
    known = {key for numbers in results.study.references.values() for key in numbers}
    return [measure for measure in results.study.measures if measure.key in known]


def terminal_table(results: Results, case: Case) -> Table:
    """The first measure of a case in 80 columns; table.md has the others."""
    first = results.study.measures[0]
    base = results.study.arm(results.study.baseline)
    title = f"{case.label}: {first.title}, with 95% intervals"
    table = Table(title=Text(title), title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    known = first in shown_references(results)
    table.add_column("Arm")
    for column in ("Mean", first.relation(base.label)):
        table.add_column(Text(column), justify="right", no_wrap=True)
    table.add_column("Verdict", no_wrap=True)
    if known:
        table.add_column(Text(results.study.reference_source), justify="right", no_wrap=True)
    colors = {"better": "green", "worse": "red"}
    for line in lines(results, case):
        table.add_row(
            *map(Text, (line.arm.label, first.interval(results.summary(case, line.arm, first), short=True))),
            *(Text(line.against), Text(line.verdict.partition(" (")[0], colors.get(line.verdict, ""))),
            *map(Text, line.references[:1] if known else []),
            style="bold" if line.arm == base else "",
        )
    return table


def markdown(results: Results) -> str:
    """The tables of all cases."""
    study = results.study
    base = study.arm(study.baseline).label
    titles = ["Arm", "Seeds", *(f"{measure.title} [95% interval]" for measure in study.measures)]
    titles += [f"{study.measures[0].relation(base)}, paired by seed", "Verdict"]
    titles += [f"{study.reference_source}: {measure.label}" for measure in shown_references(results)]
    parts = []
    for case in results.cases:
        rows = [
            titles,
            ["---", *["---:"] * (len(study.measures) + 2), "---", *["---:"] * len(shown_references(results))],
        ]
        rows += [
            [line.arm.label, line.seeds, *line.measured, line.against, line.verdict, *line.references]
            for line in lines(results, case)
        ]
        body = "".join(f"| {' | '.join(_escape(cell) for cell in row)} |\n" for row in rows)
        parts.append(f"### {case.label}\n\n{body}")
    return "\n".join(parts)


def _escape(text: str) -> str:
    if set(text) <= set("-:"):
        return text  # the line under the titles
    for character in "\\|<>*_`[]":
        text = text.replace(character, f"\\{character}")
    return text


# In words


def sentences(results: Results) -> list[str]:
    """The result in plain sentences, all computed; never a winner inside the noise."""
    study, measure = results.study, results.study.measures[0]
    base = study.arm(study.baseline)
    found = [f"Left out: {label} ({reason})." for label, reason in results.left_out.items()]
    if len(results.seeds) < 2:
        found.append("With one seed the noise is unknown: these are single runs, not a result.")
    else:
        found += [
            f"{case.label}, {measure.label} against {base.label} (paired, {plural(len(results.seeds), 'seed')}): "
            f"{_groups(results, case, measure)}."
            for case in results.cases
            if base in study.arms_of(case)
        ]
    return [*found, *_against_references(results), *study.findings(results)]


def _groups(results: Results, case: Case, measure: Measure) -> str:
    told = []
    for word in ("better", "worse", "lower", "higher", "not decided"):
        arms = []
        for arm in results.study.arms_of(case):
            if results.verdict(case, arm, measure) == word:
                amount = measure.difference(results.comparison(case, arm, measure)).partition(" [")[0]
                amount += " times" if measure.geometric else ""
                arms.append(arm.label if word == "not decided" else f"{arm.label} ({amount})")
        if arms:
            told.append(f"{word}: {listing(arms)}")
    return "; ".join(told) or "nothing to compare"


def _against_references(results: Results) -> list[str]:
    found = []
    for measure in shown_references(results):
        close, inside, outside = 0, 0, []
        for case in results.cases:
            for arm in results.study.arms_of(case):
                number, ours = results.reference(case, arm, measure), results.summary(case, arm, measure)
                if number is None:
                    continue
                low, high = results.reference_interval(case, arm, measure)
                if abs(ours.mean - number) <= measure.tolerance * abs(number):
                    close += 1
                elif low <= number <= high:
                    inside += 1
                else:
                    outside.append(
                        f"{arm.label} on {case.label} ({measure.text(ours.mean)} for {measure.text(number)})"
                    )
        if measure.tolerance and close + inside + len(outside):
            total, label = close + inside + len(outside), measure.label[:1].upper() + measure.label[1:]
            parts = [f"{label}: {close} of {total} reference numbers met within {measure.tolerance:.0%}"]
            parts += [f"{inside} more inside the 95% interval of the scatter over seeds"] if inside else []
            parts += [f"outside of both: {', '.join(outside)}"] if outside else []
            found.append(f"{'; '.join(parts)}.")
    return found


# Files


def record(results: Results) -> dict[str, Any]:
    """What result.json holds: everything but the series."""
    study = results.study
    cells = list(results.cells.values())
    return {
        "schema": SCHEMA,
        "name": study.name,
        "title": study.title,
        "paper": study.paper,
        "command": runs.command(),
        "date": max((cell.created for cell in cells), default=""),
        "versions": runs.versions(),
        "machine": runs.machine(),
        "seconds": round(sum(cell.seconds for cell in cells), 1),
        "seeds": list(results.seeds),
        "settings": {key: {"value": s.value, "source": s.source} for key, s in results.settings.items()},
        "cases": {case.name: {"label": case.label, "settings": dict(case.settings)} for case in results.cases},
        "left_out": dict(results.left_out),
        "arms": {
            arm.name: {"label": arm.label, "description": arm.description, "settings": dict(arm.settings)}
            for arm in study.arms
        },
        "baseline": study.baseline,
        "measures": {m.key: {"label": m.label, "unit": m.unit, "better": m.better} for m in study.measures},
        "differences_to_the_paper": list(study.proxies),
        "reference": study.reference_note,
        "sentences": sentences(results),
        "results": [_numbers(results, case, arm) for case in results.cases for arm in study.arms_of(case)],
    }


def _numbers(results: Results, case: Case, arm: Arm) -> dict[str, Any]:
    study = results.study
    cells = [results.cells[case.name, arm.name, seed] for seed in results.seeds]
    keys = dict.fromkeys(key for cell in cells for key in cell.numbers)
    summaries: dict[str, Any] = {}
    for measure in study.measures:
        s, c = results.summary(case, arm, measure), results.comparison(case, arm, measure)
        summaries[measure.key] = {
            "mean": _finite(s.mean),
            "low": _finite(s.low),
            "high": _finite(s.high),
            "geometric": measure.geometric,
            "difference": None if c is None else [_finite(c.difference), _finite(c.low), _finite(c.high)],
            "verdict": results.verdict(case, arm, measure),
            "reference": results.reference(case, arm, measure),
        }
    return {
        "case": case.name,
        "arm": arm.name,
        "summary": summaries,
        "by_seed": {key: [cell.numbers.get(key) for cell in cells] for key in keys},
    }


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def readme(results: Results) -> str:
    """A page that a stranger understands."""
    study = results.study
    date = max((cell.created for cell in results.cells.values()), default="")[:10]
    versions, machine = runs.versions(), runs.machine()
    full = {key: setting.value for key, setting in results.settings.items()}
    quick = full != {key: setting.value for key, setting in study.settings.items()}
    command = f"steepest reproduce {study.name}{' --quick' if quick else ''} --seeds {len(results.seeds)}"
    words = "better or worse" if study.measures[0].better else "higher or lower"
    intervals = (
        f"Intervals are 95% t intervals over seeds. Differences to {study.arm(study.baseline).label} are paired by "
        f"seed, and an arm is called {words} only if the interval of that difference leaves out "
        f"{'one' if study.measures[0].geometric else 'zero'}."
    )
    if study.measures[0].geometric:
        intervals += " Means are geometric, and differences are ratios."
    if study.measures[0].floor:
        intervals += f" Values below {study.measures[0].floor:g} count as {study.measures[0].floor:g}."
    lists = [("The arms", [f"**{arm.label}**: {arm.description}" for arm in study.arms])]
    lists += [("What is not the paper's", list(study.proxies))] if study.proxies else []
    parts = [
        f"# {study.title}",
        f"The paper: {study.paper}. What it reports: {study.claim}",
        study.about,
        f"Made on {date} with steepest {versions['steepest']} and torch {versions['torch']} on "
        f"{plural(machine['cores'] or 1, 'core')} ({machine['cpu']}) by",
        f"```bash\n{command}\n```",
        "## Result",
        _bullets(sentences(results)),
        *(f"![{caption}]({name}.svg)\n\n{caption}" for name, (caption, _) in study.figures.items()),
        "## Table",
        f"{intervals} {study.reference_note}".strip(),
        markdown(results).strip(),
        *(f"## {title}\n\n{_bullets(entries)}" for title, entries in lists),
        "## Settings",
        _settings(results),
        "[result.json](result.json) has the numbers of every seed; [table.md](table.md) is the table alone.",
    ]
    return "\n\n".join(parts) + "\n"


def _bullets(entries: Sequence[str]) -> str:
    return "\n".join(f"- {entry}" for entry in entries)


def _settings(results: Results) -> str:
    rows = ["| Setting | Value | Source |", "| --- | --- | --- |"]
    rows += [
        f"| {_escape(key)} | {_escape(_value(setting.value))} | {_escape(setting.source)} |"
        for key, setting in results.settings.items()
    ]
    for kind in (results.cases, results.study.arms):
        for entry in kind:
            changes = ", ".join(f"{key} = {_value(value)}" for key, value in entry.settings.items())
            if changes:
                rows.append(f"| {_escape(changes)} | {_escape(entry.label)} | |")
    return "\n".join(rows)


def _value(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return ", ".join(map(_value, value))
    return f"{value:g}" if isinstance(value, float) else str(value)
