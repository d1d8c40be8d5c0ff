"""What the template of the page needs beside figures and tables: facts, cells of the headline, sections of text."""

from __future__ import annotations

import json
import math
from typing import Any

from steepest.lab.report.measures import Findings
from steepest.lab.results import Method, Row, Run, Study, fairness, number
from steepest.lab.series import ordered, routing
from steepest.lab.statistics import minimum_detectable_effect
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
    not_after_holm,
    plural,
    rate,
    settings,
    signed,
    total_tokens,
    value,
    verdict,
    whole,
)

_TIMES = "\u00d7"


def content(f: Findings) -> dict[str, Any]:
    """Everything by its name in the template."""
    study, rows, base = f.study, f.rows, f.base
    digits = loss_digits(rows)
    checks = fairness(study)
    tables = [_routing(study, m, f.styles[m.label].index) for m in ordered(study.methods) if routing(study, m)]
    return {
        "study": study,
        "created": study.created[:16].replace("T", " "),
        "verdict": verdict(study, rows),
        "facts": _facts(f),
        "base": long_name(base.method.label) if base else "",
        "rows": [_cells(row, digits, f.styles[row.method.label].index) for row in rows],
        "holm_note": _holm_note(f),
        "noise_note": _noise_note(f),
        "several_axes": any(len(m.tuned) > 1 for m in study.methods),
        "diverged_as": _diverged_as(f),
        "clock": "isolated" if any(c.key == "seconds" and "shared" not in c.title for c in f.costs) else "shared",
        "routing": tables,
        "checks": checks,
        "unfair": any(check.init_equal is False or check.data_equal is False for check in checks),
        "trial_counts": [(long_name(m.label), len(m.trials)) for m in ordered(study.methods) if m.trials],
        "workload": _workload(study),
        "environment": [(key, value(v)) for key, v in {**study.versions, **study.machine}.items() if v],
        "failures": [(str(run), str(why).strip().splitlines()[-1:]) for run, why in study.failures.items()],
        "commands": _commands(study),
        "config": json.dumps(study.config, indent=1, default=str) if study.config else "",
    }


def _facts(f: Findings) -> list[tuple[str, str, str]]:
    """(number, unit, what it is) for the strip under the verdict."""
    study, rows, base = f.study, f.rows, f.base
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
    if base and f.noise:
        interval = f"95% interval {f.noise.low:.2g} to {f.noise.high:.2g}"
        facts.append(
            (f"{f.noise.sd:.2g}", "nats of noise", f"over seeds of {long_name(base.method.label)}; {interval}")
        )
        effect = minimum_detectable_effect(base.loss.sd, base.loss.n)
        facts.append((f"{effect:.2g}", "nats detectable", "smallest effect seen without pairing, at 80% power"))
    trials = sum(len(m.trials) for m in study.methods)
    if trials:
        facts.append((str(len(study.runs)), "runs", f"{trials} of them for tuning"))
    if study.lone and rows and rows[0].loss.n:
        facts.append((fixed(rows[0].loss.mean, 3), "nats per token", "final validation loss"))
        facts.append((fixed(rows[0].perplexity, 1), "perplexity", "at the end of the schedule"))
    return facts


def _cells(row: Row, digits: int, color: int) -> dict[str, Any]:
    c = row.comparison
    return {
        "label": long_name(row.method.label),
        "color": color,
        "is_baseline": row.is_baseline,
        "options": settings(row.method.options),
        "badges": [badge for badge in badges(row) if badge[0] != "power"],
        "lr": rate(row.lr),
        "point": settings(row.method.others),
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
        "sign": {"better": "\u2193 ", "worse": "\u2191 "}.get(row.verdict, ""),
        "power": [badge for badge in badges(row) if badge[0] == "power"],
        "note": row.reason or not_after_holm(row),
    }


def _holm_note(f: Findings) -> str:
    """How many of the verdicts survive being asked together."""
    compared = [row for row in f.rows if math.isfinite(row.p_holm)]
    decided = [row for row in compared if row.verdict in ("better", "worse")]
    if len(compared) < 2 or not decided:
        return ""
    kept = sum(row.p_holm < 0.05 for row in decided)
    return (
        f"Every interval holds at 95% on its own. Taken together ({len(compared)} comparisons, Holm's correction), "
        f"{kept or 'none'} of the {plural(len(decided), 'decided difference')} would still be decided."
    )


def _noise_note(f: Findings) -> str:
    if f.noise is None or f.base is None:
        return ""
    return (
        f"Noise of a final loss: {f.noise.sd:.2g} nats (deviation over the seeds of {long_name(f.base.method.label)})."
    )


def _diverged_as(f: Findings) -> str:
    from steepest.lab.report.measures import untrained_loss

    loss = untrained_loss(f.study)
    if not any(t.state == "diverged" for m in f.study.methods for t in m.trials):
        return ""
    if math.isinf(loss):
        return "Where k trials may all have diverged there is no expectation, and the line begins later."
    return f"A trial that diverged counts as {loss:.2f} nats, the loss of a model that knows nothing."


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


def _workload(study: Study) -> list[tuple[str, str]]:
    """Every field of the workload, nested ones one level deep, with the derived numbers a reader asks for."""
    words = {"sha256": "SHA-256", "non_embedding_parameters": "parameters without embeddings"}
    lines: list[tuple[str, str]] = []
    first: dict[str, Any] = {key: study.workload[key] for key in ("model", "data") if key in study.workload}
    for key, item in {**first, **study.workload}.items():
        inner = item.items() if isinstance(item, dict) and key in ("model", "data") else [("", item)]
        for name, v in inner:
            text = f"{key} {words.get(name, name)}".strip().replace("_", " ")
            lines.append((text[0].upper() + text[1:], value(v)))
    tokens = total_tokens(study.workload)
    if math.isfinite(tokens):
        lines.append(("Tokens a run", f"{tokens:,.0f}"))
        if math.isfinite(study.parameters):
            lines.append(("Tokens per parameter", f"{tokens / study.parameters:.3g}"))
    return lines


def _commands(study: Study) -> list[tuple[str, str]]:
    """(what it repeats, lines for a shell): the study, its final runs, its tuning runs."""
    finals = [run for method in ordered(study.methods) for run in study.finals(method)]
    ids = {run.id for run in finals}
    blocks = [
        ("The whole study", study.command if not study.lone else ""),
        ("Each final run on its own", _lines(finals)),
        ("Each tuning run on its own", _lines([run for run in study.runs if run.id not in ids])),
    ]
    if study.accounting and study.accounting.command not in ("", study.command):
        blocks.insert(1, ("The accounting of FLOPs, memory and step time", study.accounting.command))
    return [(what, lines) for what, lines in blocks if lines]


def _lines(runs: list[Run]) -> str:
    """One command per line, each under a comment; a name must not end the comment."""
    known = [run for run in runs if run.command]
    if len(known) == 1:
        return known[0].command
    return "\n".join(f"# {' '.join(run.method.split())}, seed {run.seed}\n{run.command}" for run in known)
