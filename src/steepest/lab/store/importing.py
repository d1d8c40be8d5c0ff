"""Runs of other harnesses, taken in to be drawn beside ours: `summary.json` of llm-baselines and LionMuon.

Such a file has the curves `train_loss` (the last micro-batch every `log_interval` steps), `val_loss` (at step 0, every
`eval_interval` steps and at the last one), the wall time, and all arguments of the run. What it does not have (hashes
of data and weights, seconds per step, state bytes) is left out, so nothing of ours is compared with it seed by seed.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from steepest.lab import runs
from steepest.lab.errors import UserError

FILE = "summary.json"
# Their names of optimizers that we have too, and the argument that is our learning rate.
_NAMES = {
    "lion_muon": "lionmuon", "lionmuon": "lionmuon", "signmuon": "signmuon", "muon": "muon", "d-muon": "muon",
    "adamw": "adamw", "lion": "lion", "signum": "signum", "signsgd": "signum", "sgd": "sgd", "soap": "soap",
}  # fmt: skip
NOTES = (
    "The loss is the mean over a fixed part of the validation set. The papers report its least value along a run; "
    "shown here is the last one (final.json has both).",
    "The training loss is that of the last micro-batch of the first process.",
    "Wall time includes evaluation and what else the machine did.",
)


def import_summaries(folder: Path, out: Path) -> dict[str, list[str]]:
    """Write a study for each workload found below a folder.

    Args:
        folder: has `summary.json` files somewhere below, each in a folder named after its run.
        out: studies are made in here; one that exists gets the runs that it does not have.

    Returns:
        By study the names of its runs.

    Raises:
        UserError: there is none, or one cannot be read; nothing was written.
    """
    found = sorted(folder.rglob(FILE))
    if not found:
        raise UserError(f"there is no {FILE} below {folder}; each run of llm-baselines writes one at its end.")
    summaries = [(path, _read(path)) for path in found]
    studies: dict[str, dict[str, tuple[Path, dict[str, Any]]]] = {}
    for path, summary in summaries:
        study = studies.setdefault(_workload_name(summary["args"]), {})
        name = path.parent.name
        study[name if name not in study else f"{path.parent.parent.name}-{name}"] = (path, summary)
    for study_name, members in studies.items():
        _write_study(out / study_name, study_name, members)
    return {name: list(members) for name, members in studies.items()}


def _read(path: Path) -> dict[str, Any]:
    try:
        summary = json.loads(path.read_text(encoding="utf-8"))
        args, losses = summary["args"], [float(loss) for loss in summary["val_loss"]]
        for key in ("iterations", "eval_interval", "batch_size", "sequence_length"):
            args[key] = int(args[key])
        if not losses:
            raise ValueError("val_loss is empty")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is no summary of llm-baselines ({type(error).__name__}: {error}).") from None
    return {**summary, "val_loss": losses}


def _workload_name(args: Mapping[str, Any]) -> str:
    return f"{args.get('dataset', 'data')}-{args.get('model', 'model')}-d{args.get('n_embd', '')}-{args['iterations']}"


def _tokens_per_step(args: Mapping[str, Any]) -> int:
    sequences = args["batch_size"] * int(args.get("acc_steps") or 1) * int(args.get("world_size") or 1)
    return int(sequences * args["sequence_length"])


def _write_study(folder: Path, name: str, members: Mapping[str, tuple[Path, dict[str, Any]]]) -> None:
    entries = []
    for label, (path, summary) in members.items():
        args = summary["args"]
        # Their Muon family has the spectral rate in `muon_lr_factor`, and `lr` is that of the AdamW beside it.
        spectral = str(args.get("opt", "")).replace("_", "") in ("lionmuon", "signmuon", "muon")
        lr = float(args.get("muon_lr_factor") if spectral and args.get("muon_lr_factor") else args.get("lr", math.nan))
        method = {
            "name": _NAMES.get(str(args.get("opt")), str(args.get("opt"))),
            "label": label,
            "lr": lr,
            "options": {},
        }
        directory = runs.RunDirectory(folder / "runs" / label)
        if directory.final() is None:
            _write_run(directory, method, path, summary)
        entries.append(
            {"name": method["name"], "label": label, "options": {}, "best_lr": lr, "tuning": [], "trials": 0}
        )
    first = next(iter(members.values()))[1]["args"]
    baseline = next((e["label"] for e in entries if e["name"] == "adamw"), entries[0]["label"])
    runs.write_json(folder / "study.json", {
        "schema": 2, "name": name, "command": runs.command(), "created": runs.now(), "versions": {}, "machine": {},
        "tier": "imported", "notes": list(NOTES), "workload": _workload(first), "baseline": baseline,
        "methods": entries,
        "tuning_seed": None, "seeds": sorted({int(s["args"].get("seed") or 0) for _, s in members.values()}),
    })  # fmt: skip


def _workload(args: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "model": f"{args.get('model')} ({args.get('n_layer')} layers, width {args.get('n_embd')})",
        "data": str(args.get("dataset")),
        "tokenizer": str(args.get("tokenizer")),
        "batch_size": _tokens_per_step(args) // args["sequence_length"],
        "sequence_length": args["sequence_length"],
        "steps": args["iterations"],
        "tokens_per_step": _tokens_per_step(args),
        "clip": args.get("grad_clip") or None,
        "precision": str(args.get("dtype")),
        "schedule": {"kind": str(args.get("scheduler")), "warmup": args.get("warmup_steps")},
    }


def _write_run(directory: runs.RunDirectory, method: Mapping[str, Any], path: Path, summary: Mapping[str, Any]) -> None:
    args, losses = summary["args"], summary["val_loss"]
    directory.create()
    per_step, seed, steps = _tokens_per_step(args), int(args.get("seed") or 0), args["iterations"]
    directory.write("config", {"workload": _workload(args), "method": method, "seed": seed, "purpose": "final"})
    source = {
        "imported": {"from": str(path.parent.name), "format": "llm-baselines", "args": args, "notes": list(NOTES)}
    }
    directory.write("env", {"versions": {}, "machine": {}, **source})
    wall = float(summary.get("wall_time") or math.nan)
    evals = [
        {**_position(step, per_step, wall, steps), "loss": loss, "perplexity": _exp(loss), "bits_per_byte": None}
        for step, loss in zip(_steps(args["eval_interval"], steps, len(losses)), losses, strict=False)
    ]
    every = int(args.get("log_interval") or 1)
    metrics = [
        {**_position((i + 1) * every, per_step, wall, steps), "loss": float(loss)}
        for i, loss in enumerate(summary.get("train_loss") or [])
    ]
    for name, rows in (("evals", evals), ("metrics", metrics)):
        with (directory.path / f"{name}.jsonl").open("w", encoding="utf-8") as file:
            file.writelines(json.dumps(_finite(row)) + "\n" for row in rows)
    last, best = losses[-1], min((x for x in losses if math.isfinite(x)), default=None)
    state = "done" if math.isfinite(last) else "diverged"
    directory.status(state, steps)
    final = {"state": state, **_position(steps, per_step, wall, steps), "loss": last, "best_loss": best}
    final |= {"perplexity": _exp(last), "bits_per_byte": None, "state_bytes": None, "imported": True}
    directory.write("final", _finite(final))


def _steps(every: int, steps: int, count: int) -> Iterator[int]:
    """The steps of their evaluations: 0, then every so many; the last one is the last step."""
    for i in range(count):
        yield steps if i == count - 1 else i * every


def _position(step: int, per_step: int, wall: float, steps: int) -> dict[str, Any]:
    return {"step": step, "tokens": step * per_step, "seconds": wall * step / steps if steps else math.nan}


def _exp(loss: float) -> float:
    return math.exp(loss) if loss < 700 else math.inf


def _finite(row: Mapping[str, Any]) -> dict[str, Any]:
    return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in row.items()}
