"""Where a study stands: a pure function of its configuration and of the runs that are over.

Any process that looks at the folder comes to the same plan, so no process is in charge, and a study that was stopped or
killed goes on where it was.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from steepest.lab.config import StudyMethod
from steepest.lab.studies.search import Tuning
from steepest.lab.studies.spaces import Point, key

Outcome = dict[str, Any]
"""{"run_id", "loss" (None unless it ended well), "state" ("created" until it is over)}"""


@dataclass(frozen=True)
class Wanted:
    """A run that can be carried out now."""

    method: StudyMethod
    point: Point
    seed: int
    purpose: str


@dataclass
class Row:
    """One method of a study.

    Attributes:
        tuning: the points tried, each with its run: {"point", "lr", "extension", "run_id", "loss", "state"}.
        best: the point of the least loss; None before all are over, or when all diverged.
        open_axes: axes on whose edge it lies, with no extension left.
    """

    method: StudyMethod
    label: str
    axes: dict[str, Any]
    tuning: list[dict[str, Any]] = field(default_factory=list)
    best: Point | None = None
    open_axes: tuple[str, ...] = ()


@dataclass
class Plan:
    """Where a study stands: per method, what can be run now, and how many runs it has in all as far as is known."""

    rows: list[Row]
    todo: list[Wanted]
    total: int


def make_plan(
    tunings: Mapping[str, tuple[StudyMethod, Tuning]],
    tuning_seed: int,
    seeds: tuple[int, ...],
    outcome: Callable[[Wanted], Outcome],
) -> Plan:
    """Derive the plan. A winner is run on fresh seeds once all its rivals are over.

    Args:
        tunings: method and tuning by label.
        tuning_seed: of all tuning runs.
        seeds: of the final runs.
        outcome: what became of a run.
    """
    plan = Plan([], [], 0)
    for label, (method, tuning) in tunings.items():
        row = Row(method, label, tuning.axes())
        while True:
            tries = [Wanted(method, point, tuning_seed, "tune") for point in tuning.points()]
            outcomes = [outcome(wanted) for wanted in tries]
            row.tuning = [
                {"point": w.point, "lr": w.point["lr"], "extension": tuning.extension(w.point), **o}
                for w, o in zip(tries, outcomes, strict=True)
            ]
            missing = [w for w, o in zip(tries, outcomes, strict=True) if o["state"] == "created"]
            plan.todo += missing
            if missing:
                break
            # A run that failed says nothing about its point: where the best one lies is not known.
            failed = any(t["state"] == "failed" for t in row.tuning)
            found, more = tuning.judge({key(t["point"]): t["loss"] for t in row.tuning}, grow=not failed)
            if not more:
                row.best, row.open_axes = found.best, found.open_axes
                break
            if len(tuning.points()) == len(tries):  # a sampler has points to draw, when a worker is free
                break
        row.axes = tuning.axes()
        if row.best is not None:
            finals = [Wanted(method, row.best, seed, "final") for seed in seeds]
            plan.todo += [wanted for wanted in finals if outcome(wanted)["state"] == "created"]
        plan.rows.append(row)
        plan.total += len(row.tuning) + len(seeds)
    return plan
