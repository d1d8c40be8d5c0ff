"""The tables of a study: the headline for page, files and terminal, and those that stand behind it."""

from __future__ import annotations

import math
from collections.abc import Sequence

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from steepest.lab.report.measures import Findings, baseline
from steepest.lab.report.sheets import Cell, Sheet
from steepest.lab.results import Row, Study, headline, number
from steepest.lab.series import ordered, roles_in_order
from steepest.lab.statistics import WITHIN, Basin, bootstrap_interval, paired_differences
from steepest.lab.wording import (
    DASH,
    axis_name,
    compact,
    difference,
    fixed,
    judgement,
    long_name,
    loss_digits,
    notes,
    rate,
    settings,
    short,
    signed,
    spread,
    value,
    whole,
)
from steepest.theory.period import PERIODS, WARNING

# What a narrow terminal does without, so that the verdict stays whole: columns, and how long a label may be.
_FEWER: tuple[tuple[str, ...], ...] = ((), ("PPL",), ("PPL", "B/param"), ("PPL", "B/param", "LR"))
_NARROWER = (_FEWER[0], 22), (_FEWER[1], 22), (_FEWER[1], 12), (_FEWER[2], 12), (_FEWER[3], 12), (_FEWER[3], 6)


def terminal_table(study: Study, width: int = 80) -> Table:
    """The headline table for a terminal, best first; what qualifies a row stands in the caption.

    Args:
        study: what was compared.
        width: columns of the terminal. If there are too few for the whole table, perplexity goes first, then long
            labels are cut, then bytes and learning rates go; the tables of the report have them all.
    """
    rows = headline(study)
    for left_out, length in _NARROWER:
        table = _terminal_table(study, rows, left_out, length)
        if Console(width=1_000).measure(table).maximum <= width:
            break
    return table


def _terminal_table(study: Study, rows: Sequence[Row], left_out: Sequence[str], length: int) -> Table:
    digits = loss_digits(rows)
    base = baseline(rows)
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
    against = f"vs {short(base.method.label, length)} ± 95%" if base else ""
    titles = ["LR", "Val loss", *([against] if base else []), "PPL", "B/param"]
    kept = [title for title in titles if title not in left_out]
    for title in kept:
        table.add_column(Text(title), justify="right", no_wrap=True)
    if base:
        table.add_column("Verdict", no_wrap=True)
    for row in rows:
        c = row.comparison
        half = f" ± {c.high - c.difference:.{digits}f}" if c and c.n > 1 else ""
        cells = {
            "LR": rate(row.lr),
            "Val loss": spread(row, digits),
            against: f"{signed(c.difference, digits)}{half}" if c else DASH,
            "PPL": fixed(row.perplexity, 1),
            "B/param": fixed(row.bytes_per_parameter, 2),
        }
        color = {"better": "green", "worse": "red"}.get(row.verdict, "")
        verdicts = [Text(judgement(row), style=color)] if base else []
        shown = [short(row.method.label, length), *(cells[title] for title in kept)]
        table.add_row(*map(Text, shown), *verdicts, style="bold" if row.is_baseline else "")
    return table


def sheets(f: Findings) -> dict[str, Sheet]:
    """Every table that the study has data for, by name."""
    found = [
        headline_sheet(f.rows),
        numbers(f.rows),
        tests(f.rows),
        target_sheet(f),
        cost_sheet(f),
        update_sheet(f),
        period_sheet(f),
        variant_sheet(f),
        tuning_sheet(f),
        trials(f.study),
        every_run(f.study),
    ]
    return {sheet.name: sheet for sheet in found if sheet and sheet.rows}


def headline_sheet(rows: Sequence[Row]) -> Sheet:
    """The headline table in words."""
    base, digits = baseline(rows), loss_digits(rows)
    titles = ["Method", "Learning rate", "Seeds", "Validation loss"]
    titles += [f"Difference to {base.method.label} (95% interval)"] if base else []
    titles += ["Perplexity", "Bits per byte", "State bytes per parameter", "Tokens per second", "Verdict"]
    lines = []
    for row in rows:
        point = "; ".join(part for part in (rate(row.lr), settings(row.method.others)) if part)
        cells = [long_name(row.method.label), point, str(row.loss.n), spread(row, digits)]
        cells += [difference(row, digits)] if base else []
        cells += [fixed(row.perplexity, 1), fixed(row.bits_per_byte, 3), fixed(row.bytes_per_parameter, 2)]
        cells += [whole(row.tokens_per_second), "; ".join([judgement(row), *notes(row)])]
        lines.append(cells)
    numeric = [False] + [True] * (len(titles) - 2) + [False]
    return Sheet("headline", "Final validation loss of each method", titles, lines, numeric=numeric)


def numbers(rows: Sequence[Row]) -> Sheet:
    """The numbers that stand behind the headline table, for machines: one column each."""
    lines = []
    columns: dict[str, object] = {}
    for row in rows:
        c, states = row.comparison, row.states
        columns = {
            "method": row.method.name,
            "label": row.method.label,
            "learning_rate": row.lr,
            "point": settings(row.method.others),
            "edge": str(row.method.edge).lower(),
            "open_axes": " ".join(row.method.open_axes),
            "trials": len(row.method.trials),
            "seeds": row.loss.n,
            "diverged": states["diverged"],
            "unfinished": len(row.runs) - states["diverged"] - states["done"],
            "loss": row.loss.mean,
            "loss_sd": row.loss.sd,
            "loss_low": row.loss.low,
            "loss_high": row.loss.high,
            "difference": c and c.difference,
            "difference_sd": c and c.sd,
            "difference_low": c and c.low,
            "difference_high": c and c.high,
            "p_t": c and c.p,
            "p_t_holm": row.p_holm,
            "p_sign_flip": c and c.p_sign_flip,
            "verdict": judgement(row),
            "reason": row.reason,
            "more_seeds": c and c.more_seeds,
            "perplexity": row.perplexity,
            "bits_per_byte": row.bits_per_byte,
            "state_bytes_per_parameter": row.bytes_per_parameter,
            "tokens_per_second": row.tokens_per_second,
        }
        lines.append([Cell("" if item is None else value(item), item) for item in columns.values()])
    return Sheet("numbers", "Numbers behind the headline table", list(columns), lines)


def tests(rows: Sequence[Row]) -> Sheet | None:
    """The tests behind the verdicts: one line per compared method."""
    base, digits = baseline(rows), loss_digits(rows) + 1
    if base is None:
        return None
    lines = []
    for row in rows:
        c = row.comparison
        if c is None or not c.n:
            continue
        boot = bootstrap_interval(paired_differences(row.losses, base.losses))
        lines.append(
            [
                Cell(long_name(row.method.label), row.method.label),
                Cell(str(c.n), c.n),
                Cell(signed(c.difference, digits), c.difference),
                Cell(fixed(c.sd, digits), c.sd),
                *_interval(c.low, c.high, digits),
                *_interval(boot.low, boot.high, digits),
                Cell(_p(c.p), c.p),
                Cell(_p(row.p_holm), row.p_holm),
                Cell(_p(c.p_sign_flip) if c.p_sign_flip is not None else "needs 6 seeds", c.p_sign_flip or math.nan),
            ]
        )
    titles = ["Method", "Seeds", "Mean difference", "Deviation", "95% t interval", "95% bootstrap interval"]
    titles += ["p (paired t)", "p (Holm)", "p (sign flips)"]
    return Sheet("tests", f"Paired differences to {base.method.label} and their tests", titles, lines)


def _interval(low: float, high: float, digits: int) -> list[Cell]:
    known = math.isfinite(low)
    return [
        Cell(
            f"{signed(low, digits)} to {signed(high, digits)}" if known else DASH,
            f"{low:.6g} to {high:.6g}" if known else "",
        )
    ]


def _p(p: float) -> str:
    if not math.isfinite(p):
        return DASH
    return f"{p:.2g}" if p >= 1e-4 else "< 0.0001"


def target_sheet(f: Findings) -> Sheet | None:
    """What each method needs to reach the target loss."""
    found, base, rows = f.targets, f.base, f.rows
    if found is None or base is None or len(found[1]) < 2:
        return None
    target, reached = found
    flops = any("flops" in r.costs for r in reached.values())
    titles = [
        "Method",
        "Steps",
        "95% interval",
        "Of the schedule",
        "Tokens",
        *(["FLOPs"] if flops else []),
        "Seconds",
    ]
    steps = number(f.study.workload.get("steps"))
    lines = []
    for row in rows:
        r = reached.get(row.method.label)
        if r is None:
            continue
        part = r.steps / steps if r.steps else math.nan
        ends = [f"{end:,.0f}" if math.isfinite(end) else "never" for end in (r.low, r.high)]
        known = math.isfinite(r.low) and not math.isnan(r.high)
        cells = [
            Cell(long_name(row.method.label), row.method.label),
            Cell(whole(r.steps) if r.steps else "not reached", math.nan if r.steps is None else r.steps),
            Cell(" to ".join(ends) if known else DASH),
            Cell(f"{part:.0%}" if math.isfinite(part) else DASH, part),
        ]
        for name in ("tokens", *(["flops"] if flops else []), "seconds"):
            cost = r.costs.get(name)
            cells.append(Cell(compact(cost) if cost else DASH, cost if cost else math.nan))
        lines.append(cells)
    kind = f"median of {target.seeds} seeds of {base.method.label}" + (
        "; provisional, fewer than five seeds" if target.provisional else ""
    )
    note = (
        f"The target is a loss of {target.loss:.4f} nats, the {kind}. The stopping step is the same for all seeds: "
        "where their mean reaches it. Most of the fall comes as the learning rate decays, so a step in the middle of a "
        "schedule is not what a shorter schedule would need."
    )
    return Sheet("targets", "What it takes to reach the final loss of the baseline", titles, lines, note)


def cost_sheet(f: Findings) -> Sheet | None:
    """Loss and everything that is known about costs: the data of the Pareto figures."""
    study, found = f.study, f.costs
    shown = [row for row in f.rows if row.loss.n]
    if not found or not shown:
        return None
    accounts = {row.method.label: study.account(row.method) for row in shown}
    measured = any(accounts.values())
    base = f.base
    titles = ["Method", "Validation loss", *(cost.title[0].upper() + cost.title[1:] for cost in found)]
    titles += [
        "Optimizer's share of FLOPs",
        "Transient bytes per parameter",
        "Optimizer step, ms",
        "90% of steps, ms",
        f"Optimizer step, times that of {base.method.label}" if base else "Optimizer step, ratio",
    ] * measured
    lines = []
    for row in shown:
        cells = [Cell(long_name(row.method.label), row.method.label), Cell(fixed(row.loss.mean, 4), row.loss.mean)]
        for cost in found:
            x = cost.values.get(row.method.label, math.nan)
            cells.append(Cell(_short_number(x), x))
        if measured:
            a = accounts[row.method.label]
            share = 1 - study.model_flops / study.flops_per_step(row.method) if a else math.nan
            transient = a.transient_bytes / study.parameters if a else math.nan
            times = (1e3 * a.seconds, 1e3 * a.slow_seconds) if a else (math.nan, math.nan)
            cells += [
                Cell(f"{share:.2%}" if math.isfinite(share) else DASH, share),
                Cell(fixed(transient, 2), transient),
            ]
            cells += [Cell(fixed(t, 2) + " *" * bool(a and a.contended), t) for t in times]
            ratio = a.ratio if a else math.nan
            cells.append(Cell(fixed(ratio, 2), ratio))
        lines.append(cells)
    note = " ".join(cost.note for cost in found if cost.note)
    return Sheet("costs", "Loss and costs of each method", titles, lines, note)


def update_sheet(f: Findings) -> Sheet | None:
    """How far a step moves the weights, by role."""
    accounts = {row.method.label: f.study.account(row.method) for row in f.rows}
    found = {label: a.update_rms if a else {} for label, a in accounts.items()}
    roles = roles_in_order(found)
    lines = [
        [Cell(long_name(label), label), *(_precise(rms.get(role, math.nan)) for role in roles)]
        for label, rms in found.items()
        if rms
    ]
    note = (
        "Root mean square of what a step changes a weight by, at the full learning rate that won; weight decay is not "
        "in it. Measured apart from the runs, over a cycle of steps after ten others, on the data of the study. "
        "Learning rates of two methods cannot be compared, these numbers can: they say how far each method really "
        "moves the weights of a role."
    )
    return Sheet("update-rms", "Effective update RMS by role", ["Method", *roles], lines, note) if roles else None


def period_sheet(f: Findings) -> Sheet | None:
    """phi(P) of LionMuon's theory, from the norm ratios that were measured along the runs of each method."""
    lines = []
    for label, t in f.trade_offs.items():
        numbers = [t.smoothness_ratio, t.noise_ratio, *(t.phi(period) for period in PERIODS)]
        parent = Cell("Muon" if t.cheaper == 1 else "Lion")
        lines.append([Cell(long_name(label), label), *map(_precise, numbers), parent])
    titles = ["Method", "r_L", "r_rho", *(f"phi({'inf' if math.isinf(p) else f'{p:g}'})" for p in PERIODS), "Cheaper"]
    note = (
        "A diagnostic, and no choice of a period. phi(P) is the cost that the theory of LionMuon (arXiv 2605.19811) "
        "predicts for period P, over that of Muon (P = 1), on the landscape that the runs of a method passed "
        "through; Lion is P = inf. r_L = L_inf / (alpha^2 L_2) and r_rho = rho_1 / (alpha rho_nuc) come from the "
        f"medians of the diagnostics along these runs; a spectral step costs five sign steps. {WARNING}"
    )
    numeric = [False, *(True for _ in titles[2:]), False]
    title = "phi(P): what the theory of LionMuon says about the period"
    return Sheet("period", title, titles, lines, note, numeric) if lines else None


def _precise(x: float) -> Cell:
    return Cell(f"{x:.3g}" if math.isfinite(x) else DASH, x)


def _short_number(x: float) -> str:
    if not math.isfinite(x):
        return DASH
    return f"{x:.2f}" if abs(x) < 1000 else compact(x)


def variant_sheet(f: Findings) -> Sheet | None:
    """The ablation table: each variant of a method against the full one."""
    study, found, digits = f.study, f.variants, loss_digits(f.rows) + 1
    if not found:
        return None
    lines = []
    for v in found:
        c, method = v.comparison, v.row.method
        cost = study.flops_per_step(method) / study.flops_per_step(v.full.method)
        time = study.step_seconds(method) / study.step_seconds(v.full.method)
        bytes_ = v.row.bytes_per_parameter - v.full.bytes_per_parameter
        changed = settings({n: "default" if x is None else x for n, x in v.changed.items()})
        lines.append(
            [
                Cell(long_name(method.label), method.label),
                Cell(long_name(v.full.method.label), v.full.method.label),
                Cell(changed or (f"wraps {v.full.method.label}" if "+" in method.name else DASH)),
                Cell(str(c.n), c.n),
                Cell(signed(c.difference, digits), c.difference),
                *_interval(c.low, c.high, digits),
                Cell(c.verdict),
                Cell(signed(bytes_, 2), bytes_),
                Cell(fixed(cost, 3), cost),
                Cell(fixed(time, 2), time),
            ]
        )
    titles = ["Variant", "Full method", "Changed", "Seeds", "Difference", "95% interval", "Verdict"]
    titles += ["State bytes per parameter", "FLOPs, ratio", "Time, ratio"]
    note = (
        "Loss of the variant minus that of the full method, paired by seed: negative is better. Each is at its own "
        "best point."
    )
    numeric = [False, False, False, True, True, True, False, True, True, True]
    return Sheet("variants", "Variants of a method against the full one", titles, lines, note, numeric)


def tuning_sheet(f: Findings) -> Sheet | None:
    """What was tried for each method, and how exactly its learning rate must be tuned."""
    lines = []
    for t in f.tunings:
        m, best = t.method, min((x.loss for x in t.method.trials if math.isfinite(x.loss)), default=math.nan)
        basins = {b.within: b for b in t.basins}
        grown = max((x.extension for x in m.trials), default=0)
        low, high = rate(m.trials[0].lr), rate(m.trials[-1].lr)
        tried = f"learning rate {low} to {high}" if low != high else f"learning rate {low}"
        others = [f"{axis_name(a)}: {len(_values(m.axes.get(a, []))) or 'drawn'}" for a in m.tuned if a != "lr"]
        lines.append(
            [
                Cell(long_name(m.label), m.label),
                Cell("; ".join([tried, *others])),
                Cell(m.search),
                Cell(str(len(m.trials)), len(m.trials)),
                Cell(str(grown) if grown else DASH, grown),
                Cell(
                    settings(m.best) + (f" (open: {' and '.join(map(axis_name, m.open_axes))})" if m.edge else "")
                    or DASH
                ),
                Cell(fixed(best, 4), best),
                *(Cell(_basin(basins.get(w)), basins[w].octaves if w in basins else math.nan) for w in WITHIN),
                Cell(f"{t.lost} of {t.finished}", t.diverged.value),
                Cell(f"{t.diverged.low:.0%} to {t.diverged.high:.0%}" if t.finished else DASH),
            ]
        )
    titles = ["Method", "Tried", "Search", "Trials", "Extensions", "Best point", "Loss there"]
    titles += [f"Octaves of learning rate within {w} nats" for w in WITHIN]
    titles += ["Runs that diverged", "95% interval of that share"]
    note = (
        "An octave is a factor of 2. At least: the basin reaches the end of the grid. With several tuned axes the loss "
        "at a rate is the lowest over the others."
    )
    numeric = [False, False, False, True, True, False, True, False, False, True, True]
    return Sheet("tuning", "Tuning of each method", titles, lines, note, numeric)


def _values(axis: Sequence[object]) -> Sequence[object]:
    return axis if isinstance(axis, list) else []


def _basin(basin: Basin | None) -> str:
    if basin is None or math.isnan(basin.octaves):
        return DASH
    least = "at least " if basin.open_low or basin.open_high else ""
    return f"{least}{basin.octaves:.1f} ({rate(basin.low)} to {rate(basin.high)})"


def trials(study: Study) -> Sheet | None:
    """Every point that was tried: the data of the learning-rate figure and of the heat maps."""
    names = list(dict.fromkeys(n for m in ordered(study.methods) for n in m.tuned if n != "lr"))
    lines = [
        [
            Cell(long_name(m.label), m.label),
            Cell(rate(t.lr), t.lr),
            *(Cell(value(t.point[n]) if n in t.point else "", t.point.get(n)) for n in names),
            Cell(fixed(t.loss, 4), t.loss),
            Cell(t.state),
            Cell("chosen" if t is m.chosen else ""),
        ]
        for m in ordered(study.methods)
        for t in m.trials
    ]
    titles = [
        "Method",
        "Learning rate",
        *(axis_name(n).capitalize() for n in names),
        "Validation loss",
        "State",
        "Chosen",
    ]
    numeric = [False, True, *(True for _ in names), True, False, False]
    return Sheet("trials", "Every point that was tried in tuning", titles, lines, numeric=numeric)


def every_run(study: Study) -> Sheet | None:
    """Every run, those that diverged or did not finish included."""
    if study.lone:
        return None
    lines = [
        [
            Cell(run.id),
            Cell(long_name(run.method), run.method),
            Cell({"tune": "tuning"}.get(run.purpose, run.purpose)),
            Cell(rate(run.lr), run.lr),
            Cell(str(run.seed), run.seed),
            Cell(run.state),
            Cell(whole(run.step), run.step),
            Cell(fixed(run.loss, 4), run.loss),
        ]
        for run in study.runs
    ]
    titles = ["Run", "Method", "For", "Learning rate", "Seed", "State", "Steps", "Final loss"]
    return Sheet("runs", "Every run", titles, lines, numeric=[False, False, False, True, True, False, True, True])
