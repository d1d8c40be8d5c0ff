"""One row per method: what its final runs say, alone and against the baseline."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

from steepest.lab.results.records import Method, Run, Study, number
from steepest.lab.statistics import Comparison, Summary, compare, holm, summarize


@dataclass(frozen=True)
class Row:
    """One method in the headline table.

    Attributes:
        comparison: To the baseline; None for the baseline itself and where there is none.
        verdict: What may be said: "better", "worse" or "not decided" than the baseline; empty without a comparison.
        reason: Why a difference that the seeds do decide is nevertheless not decided; usually empty.
        p_holm: p of the paired t test, corrected for all comparisons of the study (Holm); NaN without one.
    """

    method: Method
    is_baseline: bool
    runs: list[Run]
    losses: dict[int, float]
    loss: Summary
    perplexity: float
    bits_per_byte: float
    bytes_per_parameter: float
    tokens_per_second: float
    comparison: Comparison | None
    verdict: str = ""
    reason: str = ""
    p_holm: float = math.nan

    @property
    def states(self) -> Counter[str]:
        """How many of the final runs are in which state."""
        return Counter(run.state for run in self.runs)

    @property
    def lr(self) -> float:
        """The learning rate of the final runs."""
        return self.method.best_lr


def headline(study: Study) -> list[Row]:
    """One row per method, lowest mean loss first; methods without a finished run come last, in the study's order."""
    baseline = next((m for m in study.methods if study.baseline in (m.name, m.label)), None)
    reference = _losses(study, baseline) if baseline and not study.lone else {}
    rows = [_row(study, method, method is baseline and not study.lone, reference) for method in study.methods]
    rows = [_judged(row, baseline) for row in rows]
    adjusted = holm([row.comparison.p if row.comparison else math.nan for row in rows])
    rows = [replace(row, p_holm=p) for row, p in zip(rows, adjusted, strict=True)]
    return sorted(rows, key=lambda row: row.loss.mean if row.loss.n else math.inf)


def _judged(row: Row, baseline: Method | None) -> Row:
    """What the seeds say, unless the comparison itself is not a fair one."""
    if row.comparison is None or baseline is None:
        return row
    verdict, reason = row.comparison.verdict, ""
    if verdict == "better" and row.states["diverged"]:
        reason = "some of its seeds diverged; the mean is that of the others"
    elif verdict == "better" and baseline.edge:
        reason = f"the best {axes(baseline)} of {baseline.label} is at the edge of its grid, so it may do better"
    elif verdict == "worse" and row.method.edge:
        reason = f"its best {axes(row.method)} is at the edge of its grid, so it may do better"
    return replace(row, verdict="not decided" if reason else verdict, reason=reason)


def axes(method: Method) -> str:
    """The open axes of a method in words: "learning rate", "learning rate and period"."""
    words = ["learning rate" if name == "lr" else name.replace("_", " ") for name in method.open_axes or ("lr",)]
    return " and ".join(words)


def _losses(study: Study, method: Method) -> dict[int, float]:
    return {run.seed: run.loss for run in study.finals(method) if math.isfinite(run.loss)}


def _row(study: Study, method: Method, is_baseline: bool, reference: dict[int, float]) -> Row:
    runs = study.finals(method)
    done = [run for run in runs if run.state == "done"]
    losses = _losses(study, method)
    state_bytes = [run.state_bytes for run in runs if math.isfinite(run.state_bytes)]
    return Row(
        method=method,
        is_baseline=is_baseline,
        runs=runs,
        losses=losses,
        loss=summarize(list(losses.values())),
        perplexity=_mean(run.final.get("perplexity") for run in done),
        bits_per_byte=_mean(run.final.get("bits_per_byte") for run in done),
        bytes_per_parameter=state_bytes[0] / study.parameters if state_bytes else math.nan,
        tokens_per_second=_mean(run.final.get("tokens_per_second") for run in done),
        comparison=compare(losses, reference) if reference and losses and not is_baseline else None,
    )


def _mean(values: Iterable[Any]) -> float:
    return summarize([number(value) for value in values]).mean


@dataclass(frozen=True)
class SeedCheck:
    """Did the runs of one seed begin from equal weights and read equal tokens? None if fewer than two can tell."""

    seed: int
    runs: int
    init_equal: bool | None
    data_equal: bool | None
    init_hash: str
    data_hash: str


def fairness(study: Study) -> list[SeedCheck]:
    """Compare the hashes of initial weights and of the token stream over all finished runs, seed by seed."""
    by_seed: dict[int, list[Run]] = {}
    for run in study.runs:
        by_seed.setdefault(run.seed, []).extend([run] if run.final else [])
    checks = []
    for seed, runs in sorted(by_seed.items()):
        inits = [str(run.final["init_hash"]) for run in runs if run.final.get("init_hash")]
        # The hash runs along with the data: only runs that stopped at the same step have read the same amount.
        last = max((number(run.final.get("step"), 0.0) for run in runs), default=0.0)
        ends = [run for run in runs if number(run.final.get("step"), 0.0) == last]
        data = [str(run.final["data_hash"]) for run in ends if run.final.get("data_hash")]
        checks.append(
            SeedCheck(
                seed=seed,
                runs=len(runs),
                init_equal=len(set(inits)) == 1 if len(inits) > 1 else None,
                data_equal=len(set(data)) == 1 if len(data) > 1 else None,
                init_hash=inits[0] if inits else "",
                data_hash=data[0] if data else "",
            )
        )
    return checks
