"""The report of a study: one HTML page that opens offline, static figures, and the headline table as CSV and Markdown.

Everything is derived from the files of the study (see `results.py`), at any moment: a study that is still running gives
a report of what is there. The page holds its script, style and data, and its content security policy forbids a browser
to load anything else or to run any other script.
"""

from __future__ import annotations

import base64
import hashlib
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from steepest._version import __version__
from steepest.lab.charts import charts
from steepest.lab.errors import full_disk
from steepest.lab.figures import write_figures
from steepest.lab.results import Method, Row, Run, Study, fairness, headline, number, read_study
from steepest.lab.series import PALETTE, ROLE_PALETTE, ordered, routing, styles
from steepest.lab.statistics import holm, minimum_detectable_effect
from steepest.lab.tables import csv_table, markdown_table, terminal_table
from steepest.lab.wording import (
    DASH,
    badges,
    byte_unit,
    compact,
    data_name,
    fixed,
    judgement,
    listing,
    long_name,
    loss_digits,
    model_name,
    plural,
    rate,
    seeds_needed,
    signed,
    total_tokens,
    verdict,
    whole,
)

__all__ = ["Study", "headline", "read_study", "terminal_table", "verdict", "write"]

_TEMPLATES = Path(__file__).parent / "templates"
_TIMES = "\u00d7"
# A learning rate is "as good" as the best within this many nats; the width of that range is the basin.
_BASIN = 0.05


def write(study_dir: str | Path, out: str | Path | None = None) -> Path:
    """Write the report of a study or a single run.

    Writes `report.html`, `figures/*.png|svg` and `table.csv|md` into the folder of the study, over those of an earlier
    report.

    Args:
        study_dir: What `read_study` takes.
        out: Where to write the page instead: a file, or a folder. Figures and tables stay in the study.

    Returns:
        The path of the page.

    Raises:
        UserError: There is no study at `study_dir`, or the disk is full.
    """
    study = read_study(study_dir)
    rows = headline(study)
    page = Path(out) if out is not None else study.path / "report.html"
    page = page / "report.html" if page.is_dir() else page
    try:
        write_figures(study, rows, study.path / "figures")
        _write(study.path / "table.csv", csv_table(rows))
        _write(study.path / "table.md", markdown_table(rows))
        _write(page, _html(study, rows))
    except OSError as error:
        raise full_disk(error, page, "writing the report") or error from None
    return page


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_text(text, encoding="utf-8", newline="\n")
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _html(study: Study, rows: Sequence[Row]) -> str:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup
    from plotly.offline import get_plotlyjs

    environment = Environment(
        loader=FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.policies["json.dumps_kwargs"] = {"sort_keys": False, "allow_nan": False, "separators": (",", ":")}
    script = (_TEMPLATES / "report.js").read_text(encoding="utf-8")
    plotly = get_plotlyjs()
    digests = [base64.b64encode(hashlib.sha256(code.encode()).digest()).decode() for code in (plotly, script)]
    policy = [
        "default-src 'none'",
        "script-src " + " ".join(f"'sha256-{digest}'" for digest in digests),
        "style-src 'unsafe-inline'",
        "img-src data: blob:",
        "base-uri 'none'",
        "form-action 'none'",
    ]
    return environment.get_template("report.html.j2").render(
        **_context(study, rows),
        charts=charts(study, rows),
        policy="; ".join(policy),
        plotly=Markup(plotly),
        script=Markup(script),
        style=Markup((_TEMPLATES / "report.css").read_text(encoding="utf-8")),
        palette=PALETTE,
        role_palette=ROLE_PALETTE,
        version=__version__,
    )


def _context(study: Study, rows: Sequence[Row]) -> dict[str, Any]:
    digits, style = loss_digits(rows), styles(study)
    base = next((row for row in rows if row.is_baseline), None)
    checks = fairness(study)
    return {
        "study": study,
        "created": study.created[:16].replace("T", " "),
        "verdict": verdict(study, rows),
        "facts": _headline_facts(study, rows, base),
        "base": long_name(base.method.label) if base else "",
        "rows": [_row_cells(row, digits, style[row.method.label].index) for row in rows],
        "statistics": _statistics(rows, digits),
        "holm_note": _holm_note(rows),
        "tuning": [_tuning(m) for m in ordered(study.methods) if m.trials],
        "routing": [_routing(study, m, style[m.label].index) for m in ordered(study.methods) if routing(study, m)],
        "checks": checks,
        "unfair": any(check.init_equal is False or check.data_equal is False for check in checks),
        "workload": _workload(study),
        "environment": [(key, _value(value)) for key, value in {**study.versions, **study.machine}.items() if value],
        "runs": [_run(study, run) for run in study.runs],
        "commands": _commands(study),
    }


def _headline_facts(study: Study, rows: Sequence[Row], base: Row | None) -> list[tuple[str, str, str]]:
    """(number, unit, what it is) for the strip under the verdict."""
    facts = []
    if math.isfinite(study.parameters):
        facts.append((compact(study.parameters), "parameters", model_name(study.workload)))
    tokens = total_tokens(study.workload)
    if math.isfinite(tokens):
        facts.append((compact(tokens), "tokens a run", data_name(study.workload)))
    if not study.lone:
        facts.append(
            (str(len(study.seeds)), "seed" if len(study.seeds) == 1 else "seeds", "fresh: not used for tuning")
        )
    if base and base.loss.n > 1:
        facts.append(
            (f"{base.loss.sd:.2g}", "nats of noise", f"deviation of {long_name(base.method.label)} over seeds")
        )
        effect = minimum_detectable_effect(base.loss.sd, base.loss.n)
        facts.append((f"{effect:.2g}", "nats detectable", "without pairing, at 80% power"))
    trials = sum(len(m.trials) for m in study.methods)
    if trials:
        facts.append((str(len(study.runs)), "runs", f"{trials} of them for tuning"))
    if study.lone and rows and rows[0].loss.n:
        facts.append((fixed(rows[0].loss.mean, 3), "nats per token", "final validation loss"))
        facts.append((fixed(rows[0].perplexity, 1), "perplexity", "at the end of the schedule"))
    return facts


def _row_cells(row: Row, digits: int, color: int) -> dict[str, Any]:
    c = row.comparison
    return {
        "label": long_name(row.method.label),
        "color": color,
        "is_baseline": row.is_baseline,
        "options": ", ".join(f"{key} = {_value(value)}" for key, value in row.method.options.items()),
        "badges": badges(row),
        "lr": rate(row.lr),
        "n": row.loss.n,
        "loss": fixed(row.loss.mean, digits),
        "sd": fixed(row.loss.sd, digits) if row.loss.n > 1 else "",
        "loss_raw": f"{row.loss.mean:.9g}" if row.loss.n else "",
        "difference": signed(c.difference, digits) if c and c.n else "",
        "interval": f"{signed(c.low, digits)} to {signed(c.high, digits)}" if c and c.n > 1 else "",
        "perplexity": fixed(row.perplexity, 1),
        "bits_per_byte": fixed(row.bits_per_byte, 3),
        "bytes": fixed(row.bytes_per_parameter, 2),
        "speed": whole(row.tokens_per_second),
        "verdict": judgement(row),
        "kind": {"better": "good", "worse": "bad"}.get(row.verdict, "open"),
        "note": row.reason or seeds_needed(row),
    }


def _statistics(rows: Sequence[Row], digits: int) -> list[list[str]]:
    """The folded table of tests: one line per compared method."""
    compared = [(row, row.comparison) for row in rows if row.comparison and row.comparison.n]
    adjusted = holm([c.p for _, c in compared])
    return [
        [
            long_name(row.method.label),
            str(c.n),
            signed(c.difference, digits + 1),
            fixed(c.sd, digits + 1),
            f"{signed(c.low, digits + 1)} to {signed(c.high, digits + 1)}" if c.n > 1 else DASH,
            _p(c.p),
            _p(p),
            _p(c.p_sign_flip) if c.p_sign_flip is not None else "needs 6 seeds",
        ]
        for (row, c), p in zip(compared, adjusted, strict=True)
    ]


def _p(p: float) -> str:
    if not math.isfinite(p):
        return DASH
    return f"{p:.2g}" if p >= 1e-4 else "< 0.0001"


def _holm_note(rows: Sequence[Row]) -> str:
    """How many of the verdicts survive being asked together."""
    compared = [row for row in rows if row.comparison and math.isfinite(row.comparison.p)]
    adjusted = holm([row.comparison.p for row in compared if row.comparison])
    decided = [p for row, p in zip(compared, adjusted, strict=True) if row.verdict in ("better", "worse")]
    if len(compared) < 2 or not decided:
        return ""
    kept = sum(p < 0.05 for p in decided)
    return (
        f"Every interval holds at 95% on its own. Taken together ({len(compared)} comparisons, Holm's correction), "
        f"{kept or 'none'} of the {plural(len(decided), 'decided difference')} would still be decided."
    )


def _tuning(method: Method) -> list[str]:
    """Name, rates tried, diverged, chosen, loss, basin of one method."""
    done = [t for t in method.trials if math.isfinite(t.loss)]
    lost = sum(t.state == "diverged" for t in method.trials)
    best = min((t.loss for t in done), default=math.nan)
    basin = [t.lr for t in done if t.loss <= best + _BASIN]
    return [
        long_name(method.label),
        f"{rate(method.trials[0].lr)} to {rate(method.trials[-1].lr)}",
        str(len(method.trials)),
        str(lost),
        rate(method.best_lr) + (" (edge)" if method.edge else ""),
        fixed(best, 4),
        (rate(basin[0]) if len(basin) == 1 else f"{rate(basin[0])} to {rate(basin[-1])}") if basin else DASH,
    ]


def _bytes(size: float) -> str:
    if not math.isfinite(size):
        return DASH
    unit, name = byte_unit(size)
    return f"{size / unit:,.4g} {name}"


def _routing(study: Study, method: Method, color: int) -> dict[str, Any]:
    table = routing(study, method)
    rows = [
        {
            "name": row.get("name", ""),
            "shape": f" {_TIMES} ".join(str(n) for n in row.get("shape") or []) or "scalar",
            "view": row.get("view") or "",
            "role": row.get("role") or "",
            "rule": row.get("rule") or "",
            "rms_step": f"{number(row.get('rms_step')):.2e}" if math.isfinite(number(row.get("rms_step"))) else DASH,
            "state_bytes": _bytes(number(row.get("state_bytes"))),
            "why": row.get("why") or "",
        }
        for row in table
    ]
    rules: dict[str, int] = {}
    for row in table:
        rule = str(row.get("rule") or "?")
        rules[rule] = rules.get(rule, 0) + 1
    total = sum(number(row.get("state_bytes"), 0.0) for row in table)
    shares = listing([f"{plural(n, 'tensor')} by {rule}" for rule, n in rules.items()])
    return {
        "label": long_name(method.label),
        "color": color,
        "rows": rows,
        "summary": f"{shares}; {_bytes(total)} of state",
    }


def _value(value: Any) -> str:
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: "none"}[value]
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, int):
        return f"{value:,}" if abs(value) >= 10_000 else str(value)
    if isinstance(value, dict):
        return ", ".join(f"{key} {_value(v)}" for key, v in value.items())
    if isinstance(value, (list, tuple)):
        return ", ".join(_value(v) for v in value) or "none"
    return str(value)


def _workload(study: Study) -> list[tuple[str, str]]:
    """Every field of the workload, nested ones one level deep, with the derived numbers a reader asks for."""
    words = {"sha256": "SHA-256", "non_embedding_parameters": "parameters without embeddings"}
    lines: list[tuple[str, str]] = []
    first: dict[str, Any] = {key: study.workload[key] for key in ("model", "data") if key in study.workload}
    for key, value in {**first, **study.workload}.items():
        inner = value.items() if isinstance(value, dict) and key in ("model", "data") else [("", value)]
        for name, v in inner:
            text = f"{key} {words.get(name, name)}".strip().replace("_", " ")
            lines.append((text[0].upper() + text[1:], _value(v)))
    tokens = total_tokens(study.workload)
    if math.isfinite(tokens):
        lines.append(("Tokens a run", f"{tokens:,.0f}"))
        if math.isfinite(study.parameters):
            lines.append(("Tokens per parameter", f"{tokens / study.parameters:.3g}"))
    return lines


def _run(study: Study, run: Run) -> dict[str, str]:
    step = number(run.final.get("step"), number(run.status.get("step")))
    return {
        "id": run.id,
        "method": long_name(run.method),
        "purpose": {"tune": "tuning", "final": "final"}.get(run.purpose, run.purpose),
        "lr": rate(run.lr),
        "seed": str(run.seed),
        "state": run.state,
        "step": whole(step),
        "loss": fixed(run.loss, 4),
    }


def _commands(study: Study) -> list[tuple[str, str]]:
    """(what it repeats, command line): the study, then each final run."""
    commands = [("The whole study", study.command)] if study.command and not study.lone else []
    for method in ordered(study.methods):
        commands += [
            (f"{long_name(run.method)}, seed {run.seed}", run.command) for run in study.finals(method) if run.command
        ]
    return commands
