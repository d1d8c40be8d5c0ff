"""Sentences about runs that several studies say: computed from the numbers."""

from __future__ import annotations

import itertools
import math

from steepest.lab.reproductions.base import Case, Results
from steepest.lab.wording import listing, plural, rate, signed


def paired(results: Results) -> str:
    """Whether all arms of a seed began with the same weights and read the same data."""
    for case, seed in itertools.product(results.cases, results.seeds):
        cells = [results.cells[case.name, arm.name, seed] for arm in results.study.arms_of(case)]
        finished = [cell for cell in cells if cell.numbers["loss"] is not None]  # others stopped reading
        if len({cell.numbers["weights"] for cell in cells}) > 1 or len({cell.numbers["data"] for cell in finished}) > 1:
            return f"NOT PAIRED: the arms of {case.label}, seed {seed}, had other initial weights or other data."
    return "All arms of a seed began with the same weights and read the same data (hashes compared)."


def tuning(results: Results, case: Case) -> str:
    """Which rates were chosen, out of how many, and whether one lies on the edge."""
    told, edges, counts = [], [], set()
    for arm in results.study.arms_of(case):
        cell = results.cells[case.name, arm.name, results.seeds[0]]
        counts.add(len(cell.series["trials"]))
        told.append(f"{arm.label} {rate(cell.numbers['rate'] or math.nan)}")
        edges += [arm.label] if cell.numbers["edge"] else []
    trials = plural(max(counts), "rate") if len(counts) == 1 else f"{min(counts)} to {max(counts)} rates"
    rest = f" On the edge of its grid, so perhaps not at its best: {listing(edges)}." if edges else ""
    return f"Each arm has the best of {trials} on another seed: {', '.join(told)}.{rest}"


def against(results: Results, case: Case, name: str, other: str) -> str:
    """An arm against another: difference of the first measure with its interval, and the verdict."""
    measure, arm, base = results.study.measures[0], results.study.arm(name), results.study.arm(other)
    c = results.comparison(case, arm, measure, base)
    if c is None or not c.n:
        return f"{arm.label} against {base.label}: no seed in common"
    return (
        f"{arm.label} minus {base.label} {signed(c.difference, 4)} [{signed(c.low, 4)}, {signed(c.high, 4)}] "
        f"({results.verdict(case, arm, measure, base)})"
    )
