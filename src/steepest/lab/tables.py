"""The headline table of a study for a terminal, as CSV and as Markdown."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence
from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text

from steepest.lab.results import Row, Study, headline
from steepest.lab.statistics import holm
from steepest.lab.wording import (
    DASH,
    difference,
    fixed,
    judgement,
    long_name,
    loss_digits,
    notes,
    rate,
    short,
    signed,
    spread,
    whole,
)


def terminal_table(study: Study) -> Table:
    """The headline table for a terminal of 80 columns, best first; what qualifies a row stands in the caption."""
    rows = headline(study)
    digits = loss_digits(rows)
    base = next((row for row in rows if row.is_baseline), None)
    lines = [Text(f"{short(row.method.label)}: {note}") for row in rows for note in notes(row)]
    table = Table(
        title=Text(study.name),
        title_justify="left",
        caption=Text("\n").join(lines) if lines else None,
        caption_justify="left",
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
    )
    table.add_column("Method", overflow="ellipsis", no_wrap=True)
    against = [f"vs {short(base.method.label)} ± 95%"] if base else []
    for title in ("LR", "Val loss", *against, "PPL", "B/param"):
        table.add_column(Text(title), justify="right", no_wrap=True)
    if base:
        table.add_column("Verdict")
    for row in rows:
        cells = [short(row.method.label), rate(row.lr), spread(row, digits)]
        c = row.comparison
        if base:
            half = f" ± {c.high - c.difference:.{digits}f}" if c and c.n > 1 else ""
            cells.append(f"{signed(c.difference, digits)}{half}" if c else DASH)
        cells += [fixed(row.perplexity, 1), fixed(row.bytes_per_parameter, 2)]
        color = {"better": "green", "worse": "red"}.get(row.verdict, "")
        verdicts = [Text(judgement(row), style=color)] if base else []
        table.add_row(*(Text(cell) for cell in cells), *verdicts, style="bold" if row.is_baseline else "")
    return table


def csv_table(rows: Sequence[Row]) -> str:
    """The headline table with the numbers that stand behind it, six significant digits each."""
    adjusted = holm([row.comparison.p if row.comparison else math.nan for row in rows])
    records: list[dict[str, Any]] = []
    for row, p in zip(rows, adjusted, strict=True):
        c = row.comparison
        records.append(
            {
                "method": row.method.name,
                "label": row.method.label,
                "learning_rate": row.lr,
                "edge": str(row.method.edge).lower(),
                "seeds": row.loss.n,
                "diverged": row.states["diverged"],
                "unfinished": len(row.runs) - row.states["diverged"] - row.states["done"],
                "loss": row.loss.mean,
                "loss_sd": row.loss.sd,
                "loss_low": row.loss.low,
                "loss_high": row.loss.high,
                "difference": c and c.difference,
                "difference_sd": c and c.sd,
                "difference_low": c and c.low,
                "difference_high": c and c.high,
                "p_t": c and c.p,
                "p_t_holm": p,
                "p_sign_flip": c and c.p_sign_flip,
                "verdict": judgement(row),
                "reason": row.reason,
                "more_seeds": c and c.more_seeds,
                "perplexity": row.perplexity,
                "bits_per_byte": row.bits_per_byte,
                "state_bytes_per_parameter": row.bytes_per_parameter,
                "tokens_per_second": row.tokens_per_second,
            }
        )
    file = io.StringIO()
    writer = csv.DictWriter(file, list(records[0]) if records else [], lineterminator="\n")
    writer.writeheader()
    for record in records:
        writer.writerow({key: _cell(value) for key, value in record.items()})
    return file.getvalue()


def _cell(value: Any) -> Any:
    if isinstance(value, float):
        return f"{value:.6g}" if math.isfinite(value) else ""
    return "" if value is None else value


def markdown_table(rows: Sequence[Row]) -> str:
    """The headline table for a README or an issue."""

    def cell(text: str) -> str:
        for character in "\\|<>*_`[]":
            text = text.replace(character, f"\\{character}")
        return text

    base = next((row for row in rows if row.is_baseline), None)
    digits = loss_digits(rows)
    titles = ["Method", "Learning rate", "Seeds", "Validation loss"]
    titles += [f"Difference to {base.method.label} (95% interval)"] if base else []
    titles += ["Perplexity", "Bits per byte", "State bytes per parameter", "Tokens per second", "Verdict"]
    lines = [" | ".join(map(cell, titles)), " | ".join(["---"] + ["---:"] * (len(titles) - 2) + ["---"])]
    for row in rows:
        cells = [long_name(row.method.label), rate(row.lr), str(row.loss.n), spread(row, digits)]
        cells += [difference(row, digits)] if base else []
        cells += [fixed(row.perplexity, 1), fixed(row.bits_per_byte, 3), fixed(row.bytes_per_parameter, 2)]
        cells += [whole(row.tokens_per_second), "; ".join([judgement(row), *notes(row)])]
        lines.append(" | ".join(map(cell, cells)))
    return "".join(f"| {line} |\n" for line in lines)
