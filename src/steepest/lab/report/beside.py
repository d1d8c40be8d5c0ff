"""Published numbers beside ours: one table per published one that has enough of our methods, never mixed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from steepest.lab.published import Ours, Protocol, Published, beside, order, protocol_differences, relevant
from steepest.lab.report.measures import Findings
from steepest.lab.report.sheets import Cell, Sheet
from steepest.lab.results import Row, Study, number
from steepest.lab.statistics import RankCorrelation
from steepest.lab.wording import DASH, compact, data_name, fixed, long_name, model_name, signed, total_tokens


@dataclass(frozen=True)
class Beside:
    """A published table beside ours: the numbers, in what the protocols differ, and whether the orders agree."""

    table: Published
    sheet: Sheet
    differences: list[str]
    order: str


def published(f: Findings, asked: Sequence[Published] = ()) -> list[Beside]:
    """The tables that were asked for, and all published ones that share three methods or more with the study."""
    if f.study.lone and not asked:
        return []
    ours = _comparable([row for row in f.rows if row.loss.n])
    protocol = our_protocol(f.study)
    found = []
    for table in (*asked, *relevant(ours)):
        pairs = beside(table, ours, protocol)
        titles = [
            "Method",
            "Their loss",
            "Their difference to AdamW",
            "Our loss",
            "Our difference (95% interval)",
            "Verdict",
        ]
        if table.galore:
            titles[1:2] = ["Their perplexity, as printed", "Corrected for its bias"]
        lines = []
        for pair in pairs:
            own = pair.ours
            theirs = [Cell(fixed(pair.theirs, 4), pair.theirs)]
            if table.galore:
                low, high = table.corrected(own.method)
                printed = table.values[own.method]
                theirs = [Cell(fixed(printed, 2), printed), Cell(f"{low:.1f} to {high:.1f}")]
            known = math.isfinite(own.low)
            interval = f" [{signed(own.low, 3)}, {signed(own.high, 3)}]" if known else ""
            lines.append(
                [
                    Cell(long_name(own.label), own.label),
                    *theirs,
                    Cell(signed(pair.difference, 4), pair.difference),
                    Cell(fixed(own.loss, 4), own.loss),
                    Cell(signed(own.difference, 3) + interval, own.difference),
                    Cell(pair.verdict),
                ]
            )
        protocol_line = protocol_differences(table.protocol, protocol)
        note = f"Source: {table.source}. Tuning there: {table.protocol.tuning}."
        if table.galore:
            note += (
                " The evaluation behind these perplexities divides the sum of n batch losses L by n + 1, so the true "
                "one is exp(L (n + 1) / n), with n from 45 to 363 by the batches used; differences are of the biased "
                "losses."
            )
        numeric = [False] + [True] * (len(titles) - 2) + [False]
        sheet = Sheet(f"published-{table.key}", table.title, titles, lines, note, numeric)
        found.append(Beside(table, sheet, protocol_line, _order(order(pairs))))
    return found


def _order(found: RankCorrelation) -> str:
    if not math.isfinite(found.tau):
        return ""
    p = f", p = {found.p:.2g}" if math.isfinite(found.p) else ""
    return f"Order of the {found.n} common methods: Kendall's tau {found.tau:.2f}{p}."


def _comparable(rows: Sequence[Row]) -> list[Ours]:
    """One entry per method: of variants that a paper does not tell apart, the one with the fewest options."""
    plain: dict[str, Row] = {}
    for row in rows:
        name = named(row)
        if name not in plain or len(row.method.options) < len(plain[name].method.options):
            plain[name] = row
    return [_ours(row) for row in rows if plain[named(row)] is row]


def _ours(row: Row) -> Ours:
    c = row.comparison
    nothing = 0.0 if row.is_baseline else math.nan
    return Ours(
        method=named(row),
        label=row.method.label,
        loss=row.loss.mean,
        difference=c.difference if c else nothing,
        low=c.low if c else math.nan,
        high=c.high if c else math.nan,
    )


def named(row: Row) -> str:
    """The name of the method, with its period where it has one."""
    config = row.runs[0].config.get("method") if row.runs else None
    options = config.get("options") if isinstance(config, dict) else None
    period = number((options or row.method.options).get("period"))
    return f"{row.method.name} P={period:.0f}" if math.isfinite(period) else row.method.name


def our_protocol(study: Study) -> Protocol:
    """The protocol of a study in the terms of a published one."""
    workload = study.workload
    schedule, evaluation = workload.get("schedule"), workload.get("evaluation")
    words = ""
    if isinstance(schedule, dict):
        final = number(schedule.get("final"), 0.0)
        words = f"{schedule.get('kind')} to {final:.0%}" if final else f"{schedule.get('kind')} to 0"
    tokens = number(evaluation.get("tokens")) if isinstance(evaluation, dict) else math.nan
    size = f", {compact(study.parameters)} parameters" if math.isfinite(study.parameters) else ""
    return Protocol(
        model=model_name(workload) + size,
        data=data_name(workload),
        tokens=total_tokens(workload),
        batch=study.tokens_per_step,
        schedule=words,
        evaluation=f"{tokens:,.0f} tokens" if math.isfinite(tokens) else DASH,
        seeds=len(study.seeds),
        value="last",
    )
