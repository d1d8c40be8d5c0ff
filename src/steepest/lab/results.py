"""Read what a study left on disk, and condense it to one row per method.

The files of a run directory are the truth and nothing else is consulted. A run may be half finished, diverged or killed
at any instant: whatever can be read is read, whatever cannot is listed in `Study.problems`, and only runs that reached
the end of their schedule (`final.json` says "done") count in a mean.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from steepest.lab.errors import UserError
from steepest.lab.statistics import Comparison, Summary, compare, summarize

Record = dict[str, Any]


@dataclass(frozen=True)
class Run:
    """One training run.

    `state` is "done" or "diverged" if the run finished and otherwise the last state it reported ("running",
    "interrupted", "failed", ...). `evals` and `metrics` are sorted by step, one record a step.
    """

    id: str
    path: Path
    method: str
    lr: float
    seed: int
    purpose: str
    state: str
    config: Record
    env: Record
    status: Record
    final: Record
    routing: list[Record]
    evals: list[Record]
    metrics: list[Record]

    @property
    def loss(self) -> float:
        """Validation loss at the end of the schedule in nats per token; NaN unless the run is done."""
        return number(self.final.get("loss")) if self.state == "done" else math.nan

    @property
    def command(self) -> str:
        """The command line that repeats this run."""
        argv = self.final.get("command") or self.env.get("argv") or self.env.get("command") or ""
        return argv if isinstance(argv, str) else " ".join(str(word) for word in argv)

    @property
    def state_bytes(self) -> float:
        """Bytes of optimizer state, from `final.json` or else from the routing table; NaN if neither is there."""
        value = self.final.get("state_bytes")
        if isinstance(value, Mapping):
            value = value.get("total", sum(number(v, 0.0) for v in value.values()))
        if value is None and self.routing:
            value = sum(number(row.get("state_bytes"), 0.0) for row in self.routing)
        return number(value)


@dataclass(frozen=True)
class Trial:
    """One learning rate that was tried; `loss` is NaN if the run diverged or has not finished."""

    lr: float
    run_id: str
    loss: float
    state: str


@dataclass(frozen=True)
class Method:
    """A method of a study: its tuning trials (sorted by learning rate) and the learning rate they chose.

    `edge` is True if that rate is at an end of the grid, so a better one may lie outside.
    """

    name: str
    label: str
    options: Record
    trials: list[Trial]
    best_lr: float
    edge: bool


@dataclass(frozen=True)
class Study:
    """Everything that is on disk about a study, or about a lone run (then `lone` is True and there is one method)."""

    path: Path
    name: str
    command: str
    created: str
    versions: Record
    machine: Record
    tier: str
    workload: Record
    baseline: str
    methods: list[Method]
    tuning_seed: int | None
    seeds: list[int]
    runs: list[Run]
    lone: bool = False
    problems: list[str] = field(default_factory=list)

    def finals(self, method: Method) -> list[Run]:
        """The runs whose losses are compared: `method` at its best learning rate, one run per seed of the study."""
        runs = [run for run in self.runs if run.method == method.label]
        if self.lone:
            return runs
        runs = [run for run in runs if math.isclose(run.lr, method.best_lr, rel_tol=1e-6) and run.seed in self.seeds]
        by_seed: dict[int, Run] = {}
        for run in sorted(runs, key=lambda r: (r.purpose == "final", r.state == "done")):
            by_seed[run.seed] = run  # where a seed was used for tuning too, the run made for the final numbers wins
        return [by_seed[seed] for seed in sorted(by_seed)]

    @property
    def parameters(self) -> float:
        """Number of model parameters; NaN if unknown."""
        stated = number(_dict(self.workload.get("model")).get("parameters"))
        table = next((run.routing for run in self.runs if run.routing), [])
        counted = float(sum(math.prod(row.get("shape") or [0]) for row in table))
        return stated if math.isfinite(stated) else counted or math.nan


@dataclass(frozen=True)
class Row:
    """One method in the headline table.

    Attributes:
        comparison: To the baseline; None for the baseline itself and where there is none.
        verdict: What may be said: "better", "worse" or "not decided" than the baseline; empty without a comparison.
        reason: Why a difference that the seeds do decide is nevertheless not decided; usually empty.
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

    @property
    def states(self) -> Counter[str]:
        """How many of the final runs are in which state."""
        return Counter(run.state for run in self.runs)

    @property
    def lr(self) -> float:
        """The learning rate of the final runs."""
        return self.method.best_lr


def number(value: Any, missing: float = math.nan) -> float:
    """`value` as a float; `missing` for None and for anything that is not a number."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return missing
    return float(value)


def headline(study: Study) -> list[Row]:
    """One row per method, lowest mean loss first; methods without a finished run come last, in the study's order."""
    baseline = next((m for m in study.methods if study.baseline in (m.name, m.label)), None)
    reference = _losses(study, baseline) if baseline and not study.lone else {}
    rows = [_row(study, method, method is baseline and not study.lone, reference) for method in study.methods]
    rows = [_judged(row, baseline) for row in rows]
    return sorted(rows, key=lambda row: row.loss.mean if row.loss.n else math.inf)


def _judged(row: Row, baseline: Method | None) -> Row:
    """What the seeds say, unless the comparison itself is not a fair one."""
    if row.comparison is None or baseline is None:
        return row
    verdict, reason = row.comparison.verdict, ""
    if verdict == "better" and row.states["diverged"]:
        reason = "some of its seeds diverged; the mean is that of the others"
    elif verdict == "better" and baseline.edge:
        reason = f"the learning rate of {baseline.label} is at the edge of its grid, so {baseline.label} may do better"
    elif verdict == "worse" and row.method.edge:
        reason = "its learning rate is at the edge of its grid, so it may do better"
    return replace(row, verdict="not decided" if reason else verdict, reason=reason)


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


def _mean(values: Any) -> float:
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
    checks = []
    for seed in sorted({run.seed for run in study.runs}):
        runs = [run for run in study.runs if run.seed == seed and run.final]
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


# Reading


def read_study(path: str | Path) -> Study:
    """Read a study directory, or a single run directory, in whatever state it is.

    Args:
        path: A folder with `study.json` or `runs/`, a run folder (`config.json`), or one of those files.

    Raises:
        UserError: There is no study or run at `path`; the message lists the studies found below it.
    """
    folder = Path(path)
    if folder.name in ("study.json", "config.json", "final.json", "report.html"):
        folder = folder.parent
    if not folder.is_dir():
        raise UserError(f"there is no study or run at {path}: the folder does not exist.")
    problems: list[str] = []
    if (folder / "study.json").exists() or (folder / "runs").is_dir():
        runs = [_read_run(p, problems) for p in sorted((folder / "runs").glob("*")) if (p / "config.json").exists()]
        if (folder / "study.json").exists() or runs:
            return _read_study(folder, runs, problems)
    elif (folder / "config.json").exists():
        return _lone_run(_read_run(folder, problems), problems)
    below = sorted({p.parent for name in ("study.json", "config.json") for p in folder.glob(f"*/{name}")})
    hint = f" Below it there are: {', '.join(str(p) for p in below)}." if below else ""
    raise UserError(f"there is no study or run at {path}: neither study.json nor config.json is in that folder.{hint}")


def _read_study(folder: Path, runs: list[Run], problems: list[str]) -> Study:
    raw = _json(folder / "study.json", problems)
    entries = [entry for entry in raw.get("methods") or [] if isinstance(entry, dict)]
    if not entries:  # killed before study.json was written: the runs themselves say which methods there are
        entries = [{"name": name} for name in dict.fromkeys(run.method for run in runs)]
    runs = [_relabel(run, entries) for run in runs]
    methods = [_method(entry, runs) for entry in entries]
    seeds = [int(seed) for seed in raw.get("seeds") or sorted({run.seed for run in runs if run.purpose != "tune"})]
    tuning_seed = raw.get("tuning_seed")
    return Study(
        path=folder,
        name=str(raw.get("name") or folder.resolve().name),
        command=str(raw.get("command") or ""),
        created=str(raw.get("created") or ""),
        versions=_dict(raw.get("versions")) or _first(runs, "versions"),
        machine=_dict(raw.get("machine")) or _first(runs, "machine"),
        tier=str(raw.get("tier") or ""),
        workload=_dict(raw.get("workload")) or next((w for w in map(_workload, runs) if w), {}),
        baseline=str(raw.get("baseline") or "adamw"),
        methods=methods,
        tuning_seed=int(tuning_seed) if tuning_seed is not None else None,
        seeds=seeds,
        runs=runs,
        problems=problems,
    )


def _lone_run(run: Run, problems: list[str]) -> Study:
    options = _dict(run.config.get("method"))
    return Study(
        path=run.path,
        name=run.id,
        command=run.command,
        created=str(run.env.get("created") or ""),
        versions=_first([run], "versions"),
        machine=_first([run], "machine"),
        tier="CPU proxy" if str(run.env.get("device")).startswith("cpu") else "",
        workload=_workload(run),
        baseline="",
        methods=[Method(run.method, run.method, options, [], run.lr, edge=False)],
        tuning_seed=None,
        seeds=[run.seed],
        runs=[run],
        lone=True,
        problems=problems,
    )


def _method(entry: Record, runs: Sequence[Run]) -> Method:
    name = str(entry.get("name") or "unnamed")
    label = str(entry.get("label") or name)
    trials = [
        Trial(
            lr=number(t.get("lr")),
            run_id=str(t.get("run_id") or ""),
            loss=number(t.get("loss")),
            state=str(t.get("state") or ""),
        )
        for t in entry.get("tuning") or []
        if isinstance(t, dict)
    ]
    if not trials:  # the study was killed while tuning: its runs know
        trials = [Trial(r.lr, r.id, r.loss, r.state) for r in runs if r.method == label and r.purpose == "tune"]
    trials = sorted((t for t in trials if math.isfinite(t.lr)), key=lambda t: t.lr)
    finished = [t for t in trials if math.isfinite(t.loss)]
    best = number(entry.get("best_lr"))
    if math.isnan(best):
        finals = [run.lr for run in runs if run.method == label and run.purpose != "tune"]
        best = finals[0] if finals else min(finished, key=lambda t: t.loss).lr if finished else math.nan
    edge = entry.get("edge")
    if edge is None:
        edge = len(trials) > 1 and best in (trials[0].lr, trials[-1].lr)
    return Method(name, label, _dict(entry.get("options")), trials, best, bool(edge))


def _relabel(run: Run, entries: Sequence[Record]) -> Run:
    """Give a run the label of the method it belongs to: by run id, else by name and, if need be, options."""
    asked = _dict(run.config.get("method"))
    found = [e for e in entries if any(_dict(t).get("run_id") == run.id for t in e.get("tuning") or [])]
    found = found or [e for e in entries if run.method in (e.get("label"), e.get("name"))]
    if len(found) > 1:
        found = [e for e in found if _dict(e.get("options")) == _dict(asked.get("options"))] or found
    label = str(found[0].get("label") or found[0].get("name")) if found else run.method
    return replace(run, method=label)


def _read_run(folder: Path, problems: list[str]) -> Run:
    config = _json(folder / "config.json", problems)
    status, final = _json(folder / "status.json", problems), _json(folder / "final.json", problems)
    method = config.get("method")
    named = _dict(method)
    label = named.get("label") or named.get("name") or method
    state = str(final.get("state") or status.get("state") or "created")
    if not final and state in ("done", "diverged"):
        problems.append(f"{folder.name}: {state!r} in status.json but no final.json, so the run does not count.")
        state = "interrupted"
    purpose = config.get("purpose") or _dict(config.get("study")).get("purpose") or "final"
    return Run(
        id=folder.name,
        path=folder,
        method=str(label or folder.name.split("-lr")[0]),
        lr=number(config.get("lr"), number(named.get("lr"))),
        seed=int(number(config.get("seed"), 0.0)),
        purpose=str(purpose),
        state=state,
        config=config,
        env=_json(folder / "env.json", problems),
        status=status,
        final=final,
        routing=[row for row in _json_list(folder / "routing.json", problems) if isinstance(row, dict)],
        evals=_json_lines(folder / "evals.jsonl", problems),
        metrics=_json_lines(folder / "metrics.jsonl", problems),
    )


def _workload(run: Run) -> Record:
    return _dict(run.config.get("workload")) or _dict(run.env.get("workload"))


def _first(runs: Sequence[Run], key: str) -> Record:
    return next((_dict(run.env[key]) for run in runs if _dict(run.env.get(key))), {})


def _dict(value: Any) -> Record:
    return value if isinstance(value, dict) else {}


def _json(path: Path, problems: list[str]) -> Record:
    return _dict(_load(path, problems))


def _json_list(path: Path, problems: list[str]) -> list[Any]:
    value = _load(path, problems)
    return value if isinstance(value, list) else []


def _load(path: Path, problems: list[str]) -> Any:
    if not path.exists():
        return None
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        problems.append(f"{path.parent.name}/{path.name} cannot be read: {error}.")
        return None


def _json_lines(path: Path, problems: list[str]) -> list[Record]:
    """Records by step. A torn last line is what a killed run leaves: dropped. A bad line elsewhere is reported."""
    if not path.exists():
        return []
    records: dict[float, Record] = {}
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    for i, line in enumerate(lines):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
            records[float(record["step"])] = record  # of a step that was repeated after a resume the last one counts
        except (ValueError, TypeError, KeyError):
            if i < len(lines) - 1:
                problems.append(f"{path.parent.name}/{path.name}: line {i + 1} cannot be read and is left out.")
    return [records[step] for step in sorted(records)]
