"""Numbers and verdicts in words: what the page, the terminal and the tables of a report say, said in one place."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from steepest.lab.results import Row, Study, axes, number
from steepest.lab.statistics import compare

DASH = "\u2013"
MINUS = "\u2212"


def short(label: str, length: int = 22) -> str:
    """A label that fits beside a line."""
    return label if len(label) <= length else label[: length - 1] + "…"


def clock(seconds: float) -> tuple[float, str]:
    """The unit in which a duration reads well: (seconds per unit, name)."""
    for size, name in ((3600.0, "hours"), (60.0, "minutes")):
        if seconds >= 3 * size:
            return size, name
    return 1.0, "seconds"


def compact(value: float) -> str:
    """1300000 as "1.3 M"."""
    for size, unit in ((1e12, " T"), (1e9, " B"), (1e6, " M"), (1e3, " k")):
        if abs(value) >= size:
            return f"{value / size:.3g}{unit}"
    return f"{value:.3g}"


def rate(lr: float) -> str:
    """A learning rate, short: 0.008, 3e-05."""
    return f"{lr:.3g}" if math.isfinite(lr) else DASH


def value(item: Any) -> str:
    """A setting or a value of an axis, short."""
    if isinstance(item, bool) or item is None:
        return {True: "yes", False: "no", None: "none"}[item]
    if isinstance(item, float):
        return f"{item:.6g}"
    if isinstance(item, int):
        return f"{item:,}" if abs(item) >= 10_000 else str(item)
    if isinstance(item, Mapping):
        return ", ".join(f"{key} {value(v)}" for key, v in item.items())
    if isinstance(item, (list, tuple)):
        return ", ".join(value(v) for v in item) or "none"
    return str(item)


def axis_name(name: str) -> str:
    """A tuned axis in words."""
    return "learning rate" if name == "lr" else name.replace("_", " ")


def settings(options: Mapping[str, Any]) -> str:
    """Options or a point: "sign lr ratio 0.1, period 2"."""
    return ", ".join(f"{axis_name(str(name))} {value(item)}" for name, item in options.items())


def byte_unit(largest: float) -> tuple[float, str]:
    """The decimal unit in which a number of bytes reads well."""
    for size, name in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if largest >= size:
            return size, name
    return 1.0, "bytes"


def fixed(value: float, digits: int) -> str:
    """A number with so many decimals; a dash if there is none."""
    return f"{value:.{digits}f}" if math.isfinite(value) else DASH


def signed(value: float, digits: int) -> str:
    """A difference with its sign."""
    return f"{value:+.{digits}f}".replace("-", MINUS) if math.isfinite(value) else DASH


def loss_digits(rows: Sequence[Row]) -> int:
    """Decimals of a loss: three, or four where the seeds agree so well that the fourth means something."""
    spreads = [row.loss.sd for row in rows if math.isfinite(row.loss.sd)]
    return 4 if spreads and min(spreads) < 0.002 else 3


def plural(n: int, word: str) -> str:
    """1 seed, 2 seeds."""
    return f"{n} {word}" if n == 1 else f"{n} {word}s"


def listing(words: Sequence[str]) -> str:
    """a, b and c."""
    return " and ".join(([", ".join(words[:-1])] if len(words) > 1 else []) + list(words[-1:]))


def long_name(label: str) -> str:
    """A label for a sentence or a table."""
    return label if len(label) <= 60 else label[:59] + "…"


def whole(value: float) -> str:
    """A whole number with thousands separated."""
    return f"{value:,.0f}" if math.isfinite(value) else DASH


def spread(row: Row, digits: int) -> str:
    """Mean and standard deviation of the final loss."""
    if not row.loss.n:
        return DASH
    sd = f" ± {row.loss.sd:.{digits}f}" if row.loss.n > 1 else ""
    return f"{row.loss.mean:.{digits}f}{sd}"


def difference(row: Row, digits: int) -> str:
    """Difference to the baseline with its interval."""
    c = row.comparison
    if c is None or not c.n:
        return DASH
    interval = f" [{signed(c.low, digits)}, {signed(c.high, digits)}]" if c.n > 1 else ""
    return f"{signed(c.difference, digits)}{interval}"


def judgement(row: Row) -> str:
    """The verdict of a row, in the words of a table."""
    if row.is_baseline:
        return "baseline"
    if not row.loss.n:
        tried = row.runs or row.method.trials
        return "diverged" if tried and all(t.state == "diverged" for t in tried) else "unfinished"
    return row.verdict or DASH


def seeds_needed(row: Row) -> str:
    """What an undecided comparison lacks; empty if it lacks nothing."""
    c = row.comparison
    if c is None or row.verdict != "not decided" or row.reason:
        return ""
    if c.n < 2:
        return f"needs at least {plural(c.more_seeds or 1, 'more seed')}"
    if c.more_seeds is None or c.more_seeds > 100:
        return "needs more than 100 more seeds"
    return f"needs about {plural(c.more_seeds, 'more seed')}"


def not_after_holm(row: Row) -> str:
    """Said of a verdict that does not survive the correction for all comparisons of the study; else empty."""
    if row.verdict not in ("better", "worse") or not row.p_holm >= 0.05:
        return ""
    return f"on its own; not among all comparisons together (Holm p = {row.p_holm:.2g})"


def badges(row: Row) -> list[tuple[str, str, str]]:
    """(kind, text, explanation) of everything that qualifies a row."""
    found = []
    if row.method.edge and math.isfinite(row.lr):
        name = axes(row.method)
        why = f"The best {name} is at the edge of the grid; a better one may lie outside: a provisional row."
        found.append(("edge", "open edge" if name == "learning rate" else f"open edge: {name}", why))
    total = len(row.runs)
    if row.states["diverged"]:
        text = f"{row.states['diverged']} of {total} diverged"
        found.append(("diverged", text, "Seeds that diverged; they are in no mean."))
    unfinished = total - row.states["done"] - row.states["diverged"]
    if unfinished:
        found.append(("unfinished", f"{unfinished} of {total} unfinished", "Runs that have not reached the end."))
    missing = seeds_needed(row)
    if missing:
        why = "Under-powered: with a difference and noise of this size, so many seeds would decide at 80% power."
        found.append(("power", missing, why))
    return found


def notes(row: Row) -> list[str]:
    """Everything that qualifies a row, in words."""
    found = [text for _, text, _ in badges(row)] + [row.reason, not_after_holm(row)]
    return [note for note in found if note]


def model_name(workload: Mapping[str, Any]) -> str:
    """Preset and family of the model."""
    model = workload.get("model")
    if not isinstance(model, dict):
        return str(model or "model")
    name = str(model.get("preset") or model.get("name") or "")
    family = str(model.get("family") or model.get("model_type") or "")
    return " ".join(word for word in (name, family if family not in name else "") if word) or "model"


def data_name(workload: Mapping[str, Any]) -> str:
    """Name of the corpus."""
    data = workload.get("data")
    return str((data.get("name") if isinstance(data, dict) else data) or "its data")


def total_tokens(workload: Mapping[str, Any]) -> float:
    """Tokens of one run; NaN if unknown."""
    return number(workload.get("steps")) * number(workload.get("tokens_per_step"))


def _workload_sentence(study: Study) -> str:
    size = f"{compact(study.parameters)}-parameter " if math.isfinite(study.parameters) else ""
    tokens = total_tokens(study.workload)
    read = f"{compact(tokens)} tokens of " if math.isfinite(tokens) else ""
    return f"{size}{model_name(study.workload)} on {read}{data_name(study.workload)}"


def verdict(study: Study, rows: Sequence[Row]) -> list[str]:
    """The result in plain sentences, the most important first; never a winner inside the noise."""
    ranked = [row for row in rows if row.loss.n]
    if not ranked:
        states = (
            ", ".join(f"{n} {state}" for state, n in sorted(Counter(run.state for run in study.runs).items()))
            or "none started"
        )
        return [f"No final run has finished yet, so nothing is compared. {plural(len(study.runs), 'run')}: {states}."]
    digits, leader = loss_digits(rows), ranked[0]
    name = long_name(leader.method.label)
    if study.lone or len(ranked) == 1:
        loss = spread(leader, digits)
        return [
            f"{name} reached a validation loss of {loss} nats per token ({_workload_sentence(study)}).",
            *_caveats(rows),
        ]
    sentences = [
        f"On this workload ({_workload_sentence(study)}, {plural(max(row.loss.n for row in ranked), 'seed')}), {name} "
        f"reached the lowest validation loss: {spread(leader, digits)} nats per token{_lead(leader, rows, digits)}."
    ]
    tied = [row for row in ranked[1:] if compare(leader.losses, row.losses).verdict != "better"]
    if max(row.loss.n for row in ranked) < 2:
        sentences.append(
            "With one seed per method the noise is unknown: this is an order of single runs, not a result."
        )
    elif leader.states["diverged"]:
        sentences.append("Some of its seeds diverged, so it is not declared the winner.")
    elif tied:
        names = listing([long_name(row.method.label) for row in tied])
        sentences.append(f"Its lead over {names} is within the noise, so no single winner is declared.")
    else:
        sentences.append(f"Its lead over every other method is outside the noise{_doubt(leader, ranked)}.")
    return [*sentences, *_against_baseline(ranked, digits), *_caveats(rows)]


def _doubt(leader: Row, ranked: Sequence[Row]) -> str:
    """Which leads do not survive the correction for all comparisons with the baseline; empty if all do."""
    lost = [row for row in (ranked[1:] if leader.is_baseline else [leader]) if row.p_holm >= 0.05]
    if not lost:
        return ""
    behind = lost if leader.is_baseline else [row for row in ranked if row.is_baseline]
    names = listing([long_name(row.method.label) for row in behind])
    p = max(row.p_holm for row in lost)
    return f" on its own; not that over {names} among all comparisons together (Holm p = {p:.2g})"


def _lead(leader: Row, rows: Sequence[Row], digits: int) -> str:
    """How far the leader is from the baseline, with the interval."""
    base, c = next((row for row in rows if row.is_baseline), None), leader.comparison
    if base is None or c is None or c.n < 2:
        return ""
    interval = f"95% interval {signed(c.low, digits)} to {signed(c.high, digits)}, paired by seed"
    return f", {signed(c.difference, digits)} against {long_name(base.method.label)} ({interval})"


def _against_baseline(ranked: Sequence[Row], digits: int) -> list[str]:
    base = next((row for row in ranked if row.is_baseline), None)
    if base is None:
        return ["The baseline has no finished run, so nothing is compared with it."]
    groups: dict[str, list[str]] = {"better": [], "worse": [], "not decided": []}
    for row in ranked:
        if row.verdict:
            c = row.comparison
            amount = f" ({signed(c.difference, digits)})" if c and row.verdict != "not decided" else ""
            groups[row.verdict].append(f"{long_name(row.method.label)}{amount}")
    name = long_name(base.method.label)
    parts = [
        f"better: {listing(groups['better'])}" if groups["better"] else "",
        f"worse: {listing(groups['worse'])}" if groups["worse"] else "",
        f"not decided: {listing(groups['not decided'])}" if groups["not decided"] else "",
    ]
    told = "; ".join(part for part in parts if part)
    return [f"Against {name}, seed by seed: {told}."] if told else []


def _caveats(rows: Sequence[Row]) -> list[str]:
    caveats = []
    edges: dict[str, list[str]] = {}
    for row in rows:
        if row.method.edge and math.isfinite(row.lr):
            edges.setdefault(axes(row.method), []).append(long_name(row.method.label))
    for name, labels in edges.items():
        lie = "lie" if " and " in name else "lies"
        caveats.append(f"Tuning is open for {listing(labels)}: the best {name} {lie} at the edge of the grid.")
    trials = {len(row.method.trials) for row in rows if row.method.trials}
    if len(trials) > 1:
        caveats.append(
            f"The methods had different numbers of tuning trials ({min(trials)} to {max(trials)}; grids that grew at "
            "an edge count all their points)."
        )
    lost = [(row, row.states["diverged"]) for row in rows]
    waiting = [(row, len(row.runs) - row.states["done"] - row.states["diverged"]) for row in rows]
    for what, counts in (("diverged", lost), ("have not finished", waiting)):
        told = [f"{n} of {len(row.runs)} of {long_name(row.method.label)}" for row, n in counts if n]
        if told:
            caveats.append(f"Final runs that {what}: {', '.join(told)}.")
    return caveats
