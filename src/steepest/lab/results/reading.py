"""Read the folder of a study or of a run, of either schema, in whatever state it is."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from steepest.lab.errors import UserError
from steepest.lab.results import files
from steepest.lab.results.records import Account, Accounting, Method, Record, Run, Study, Trial, number

_OWN_FILES = ("study.json", "accounting.json", "config.json", "final.json", "report.html")
_LEFT_BY_RUNS = ("final.json", "metrics.jsonl", "evals.jsonl", "routing.json")


def read_study(path: str | Path) -> Study:
    """Read a study directory, or a single run directory, in whatever state it is.

    Args:
        path: A folder with `study.json` or `runs/`, a run folder (`config.json`), or one of those files.

    Raises:
        UserError: There is no study or run at `path`; the message lists the studies found below it.
    """
    folder = Path(path)
    if folder.name in _OWN_FILES:
        folder = folder.parent
    if not folder.is_dir():
        raise UserError(f"there is no study or run at {path}: the folder does not exist.")
    problems: list[str] = []
    is_study = (folder / "study.json").exists()
    if is_study or (folder / "runs").is_dir():
        runs = _read_runs(folder / "runs", problems)
        if is_study or runs:
            return _read_study(folder, runs, problems)
    elif (folder / "config.json").exists():
        return _lone_run(_read_run(folder, problems), problems)
    below = sorted({p.parent for name in ("study.json", "config.json") for p in folder.glob(f"*/{name}")})
    hint = f" Below it there are: {', '.join(str(p) for p in below)}." if below else ""
    raise UserError(f"there is no study or run at {path}: neither study.json nor config.json is in that folder.{hint}")


def _read_runs(folder: Path, problems: list[str]) -> list[Run]:
    try:
        names = sorted(entry.name for entry in os.scandir(folder) if entry.is_dir())
    except FileNotFoundError:
        return []
    except OSError as error:
        problems.append(f"{folder.name} cannot be read: {error.strerror or error}.")
        return []
    runs = []
    for name in names:
        run = _read_run(folder / name, problems)
        if run.config:
            runs.append(run)
        elif any((folder / name / file).exists() for file in _LEFT_BY_RUNS):
            problems.append(f"{name}: its config.json is gone or damaged, so the run is left out.")
    return runs


def _read_run(folder: Path, problems: list[str]) -> Run:
    config = files.mapping(folder / "config.json", problems)
    final = files.mapping(folder / "final.json", problems)
    method = config.get("method")
    named = _dict(method)
    label = named.get("label") or named.get("name") or method
    purpose = config.get("purpose") or _dict(config.get("study")).get("purpose") or "final"
    seed = number(config.get("seed"), 0.0)
    run = Run(
        id=folder.name,
        path=folder,
        method=str(label or folder.name.split("-lr")[0]),
        lr=number(config.get("lr"), number(named.get("lr"))),
        seed=int(seed) if math.isfinite(seed) else 0,
        purpose=str(purpose),
        state=str(final.get("state") or "created"),
        config=config,
        final=final,
        problems=problems,
    )
    if final or not config:
        return run
    state = str(run.status.get("state") or "created")
    if state in ("done", "diverged"):
        problems.append(f"{folder.name}: {state!r} in status.json but no final.json, so the run does not count.")
        state = "interrupted"
    if state == "running":
        from steepest.lab.studies.claims import goes_on  # studies know this module

        state = state if goes_on(folder) else "interrupted"  # a killed process writes no status
    return replace(run, state=state)


def _read_study(folder: Path, runs: list[Run], problems: list[str]) -> Study:
    raw = files.mapping(folder / "study.json", problems)
    entries = [entry for entry in _list(raw.get("methods")) if isinstance(entry, dict)]
    if not entries:  # killed before study.json was written: the runs themselves say which methods there are
        entries = [{"name": name} for name in dict.fromkeys(run.method for run in runs)]
    runs = _relabelled(runs, entries)
    _missing(entries, runs, problems)
    by_label: dict[str, list[Run]] = {}
    for run in runs:
        by_label.setdefault(run.method, []).append(run)
    seeds = [int(seed) for seed in map(number, _list(raw.get("seeds"))) if math.isfinite(seed)]
    tuning_seed = number(raw.get("tuning_seed"))
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
        methods=[_method(entry, by_label.get(_label(entry), [])) for entry in entries],
        tuning_seed=int(tuning_seed) if math.isfinite(tuning_seed) else None,
        seeds=seeds or sorted({run.seed for run in runs if run.purpose != "tune"}),
        runs=runs,
        problems=problems,
        config=_dict(raw.get("config")),
        failures=_dict(raw.get("failures")),
        accounting=_accounting(folder, problems),
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


def _label(entry: Record) -> str:
    return str(entry.get("label") or entry.get("name") or "unnamed")


def _method(entry: Record, runs: Sequence[Run]) -> Method:
    trials = [_trial(raw) for raw in _list(entry.get("tuning")) if isinstance(raw, dict)]
    if not trials:  # the study was killed while tuning: its runs know
        trials = [Trial(r.lr, r.id, r.loss, r.state, {"lr": r.lr}) for r in runs if r.purpose == "tune"]
    trials = sorted((t for t in trials if math.isfinite(t.lr)), key=lambda t: t.lr)
    finished = [t for t in trials if math.isfinite(t.loss)]
    best = _dict(entry.get("best"))
    best_lr = number(best.get("lr"), number(entry.get("best_lr")))
    if math.isnan(best_lr):
        finals = [run.lr for run in runs if run.purpose != "tune"]
        winner = min(finished, key=lambda t: t.loss) if finished else None
        best_lr = finals[0] if finals else winner.lr if winner else math.nan
        best = winner.point if winner and winner.lr == best_lr else best
    axes = {str(name): values for name, values in _dict(entry.get("axes")).items()}
    open_axes = tuple(str(name) for name in _list(entry.get("open_axes")))
    edge = entry.get("edge")
    if edge is None:
        edge = bool(open_axes) or (len(trials) > 1 and best_lr in (trials[0].lr, trials[-1].lr))
    return Method(
        name=str(entry.get("name") or "unnamed"),
        label=_label(entry),
        options=_dict(entry.get("options")),
        trials=trials,
        best_lr=best_lr,
        edge=bool(edge),
        best=best or ({"lr": best_lr} if math.isfinite(best_lr) else {}),
        axes={name: values if isinstance(values, list) else [] for name, values in axes.items()},
        open_axes=open_axes or (("lr",) if edge else ()),
        search=str(entry.get("search") or "grid"),
    )


def _trial(raw: Record) -> Trial:
    point = _dict(raw.get("point"))
    lr = number(raw.get("lr"), number(point.get("lr")))
    return Trial(
        lr=lr,
        run_id=str(raw.get("run_id") or ""),
        loss=number(raw.get("loss")),
        state=str(raw.get("state") or ""),
        point=point or {"lr": lr},
        extension=int(number(raw.get("extension"), 0.0)),
    )


def _relabelled(runs: Sequence[Run], entries: Sequence[Record]) -> list[Run]:
    """Give each run the label of its method, found by run id, else by label or name and, if need be, options."""
    by_id: dict[str, Record] = {}
    by_name: dict[str, list[Record]] = {}
    for entry in entries:
        for trial in _list(entry.get("tuning")):
            by_id.setdefault(str(_dict(trial).get("run_id")), entry)
        for name in dict.fromkeys((str(entry.get("label")), str(entry.get("name")))):
            by_name.setdefault(name, []).append(entry)
    relabelled = []
    for run in runs:
        asked = _dict(run.config.get("method"))
        labelled = [entry for entry in entries if _label(entry) == run.method]
        found = [by_id[run.id]] if run.id in by_id else labelled or by_name.get(run.method, [])
        found = found or by_name.get(str(asked.get("name")), [])
        if len(found) > 1:
            options = _dict(asked.get("options"))
            exact = [e for e in found if _dict(e.get("options")) == options]
            found = exact or [e for e in found if _dict(e.get("options")).items() <= options.items()] or found
        relabelled.append(replace(run, method=_label(found[0])) if found else run)
    return relabelled


def _missing(entries: Sequence[Record], runs: Sequence[Run], problems: list[str]) -> None:
    """List the trials that study.json has and no folder."""
    there = {run.id for run in runs}
    for entry in entries:
        gone = [
            str(trial["run_id"])
            for trial in map(_dict, _list(entry.get("tuning")))
            if trial.get("state") in ("done", "diverged") and trial.get("run_id") not in there
        ]
        if gone and runs:
            problems.append(f"{_label(entry)}: study.json has trials whose folders are gone: {', '.join(gone)}.")


def _accounting(folder: Path, problems: list[str]) -> Accounting | None:
    raw = files.mapping(folder / "accounting.json", problems)
    methods = {str(label): _dict(value) for label, value in _dict(raw.get("methods")).items()}
    if not methods:
        return None
    return Accounting(
        flops_per_token=number(_dict(raw.get("model")).get("flops_per_token")),
        methods={label: _account(value) for label, value in methods.items()},
        machine=raw.get("machine"),
        command=str(raw.get("command") or ""),
    )


def _account(raw: Record) -> Account:
    seconds = _dict(raw.get("step_seconds"))
    rms = {str(role): number(value) for role, value in _dict(raw.get("update_rms")).items()}
    return Account(
        optimizer_flops=number(raw.get("optimizer_flops_per_step")),
        extra_passes=number(_dict(raw.get("optimizer_flops")).get("extra_passes"), 0.0),
        transient_bytes=number(raw.get("transient_bytes")),
        seconds=number(seconds.get("median")),
        slow_seconds=number(seconds.get("p90")),
        ratio=number(seconds.get("ratio")),
        contended=bool(seconds.get("contended")),
        update_rms=rms,
    )


def _workload(run: Run) -> Record:
    return _dict(run.config.get("workload")) or _dict(run.env.get("workload"))


def _first(runs: Sequence[Run], key: str) -> Record:
    return next((_dict(run.env[key]) for run in runs if _dict(run.env.get(key))), {})


def _dict(value: Any) -> Record:
    return value if isinstance(value, dict) else {}


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []
