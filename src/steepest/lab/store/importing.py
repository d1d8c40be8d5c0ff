"""Runs of other harnesses, taken in to be drawn beside ours: `summary.json` of llm-baselines and LionMuon.

Such a file has the curves `train_loss` (the last micro-batch every `log_interval` steps), `val_loss` (at step 0, every
`eval_interval` steps and at the last one), the wall time, and all arguments of the run. What it does not have (hashes
of data and weights, seconds per step, state bytes) is left out, so nothing of ours is compared with it seed by seed.
"""

from __future__ import annotations

import itertools
import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from steepest.lab import runs
from steepest.lab.errors import UserError
from steepest.lab.results import files

FILE = "summary.json"
TIER = "imported"
# Their names of optimizers that we have too.
_NAMES = {
    "lion_muon": "lionmuon", "lionmuon": "lionmuon", "signmuon": "signmuon", "signmuon_fixed": "signmuon",
    "muon": "muon", "d-muon": "muon",
    "adamw": "adamw", "lion": "lion", "signum": "signum", "signsgd": "signum", "sgd": "sgd", "soap": "soap",
}  # fmt: skip
NOTES = (
    "The loss is the mean over a fixed part of the validation set. The papers report its least value along a run; "
    "shown here is the last one (final.json has both).",
    "The training loss is that of the last micro-batch of the first process.",
    "Wall time includes evaluation and what else the machine did.",
)
# Arguments that say where a run was made or kept, not what it was; and its seed.
_ASIDE = re.compile(
    r"(.*_)?(dir|folder|path|prefix)|(exp|experiment|run)_name|resume_from|device|local_rank|wandb.*|(data_)?seed"
)
_SAME = ("model", "data", "tokenizer", "batch_size", "sequence_length", "steps")


@dataclass(frozen=True)
class _Run:
    """A run of a study: where it comes from, or None if it is there already."""

    name: str
    label: str
    args: Mapping[str, Any]
    loss: float | None
    source: tuple[Path, Mapping[str, Any]] | None = None

    @property
    def what(self) -> tuple[str, int, float | None]:
        """Equal for a run that is taken in again."""
        return self.recipe, self.args["seed"], self.loss

    @property
    def recipe(self) -> str:
        """All arguments but seed and paths, as text: equal for runs that are seeds of one method."""
        kept = {
            key: value
            for key, value in self.args.items()
            if not (_ASIDE.fullmatch(key) or (isinstance(value, str) and value.startswith(("/", "./", "~"))))
        }
        return json.dumps(kept, sort_keys=True)

    @property
    def method(self) -> dict[str, Any]:
        """Its method, as ours are described."""
        return {**_method(self.args), "label": self.label}


def import_summaries(folder: Path, out: Path) -> dict[str, list[str]]:
    """Write a study for each workload found below a folder.

    Runs that differ in nothing but their seed (and paths) are the seeds of one method.

    Args:
        folder: has `summary.json` files somewhere below, each in a folder named after its run.
        out: studies are made in here; one that exists gets the runs that it does not have.

    Returns:
        By study the names of its runs, those included that were there.

    Raises:
        UserError: there is none, or one cannot be read; runs of one study differ in their workload; or a study of that
            name is there that is not of imported runs. Nothing was written.
    """
    found = sorted(folder.rglob(FILE))
    if not found:
        raise UserError(f"there is no {FILE} below {folder}; each run of llm-baselines writes one at its end.")
    members: dict[str, list[tuple[Path, dict[str, Any]]]] = {}
    for path in found:
        summary = _read(path)
        members.setdefault(_study_name(summary["args"]), []).append((path.resolve(), summary))
    studies = {name: _members(out / name, summaries) for name, summaries in members.items()}
    for name, all_runs in studies.items():
        _write_study(out / name, name, all_runs)
    return {name: [run.name for run in all_runs] for name, all_runs in studies.items()}


def _read(path: Path) -> dict[str, Any]:
    """What a study needs of a summary, every number of it checked; what is not finite is None."""
    try:
        summary = json.loads(path.read_text(encoding="utf-8"), parse_constant=lambda _: None)
        args, losses = _arguments(summary["args"]), [_loss(loss) for loss in summary["val_loss"]]
        if not losses:
            raise ValueError("val_loss is empty")
        training = [_loss(loss) for loss in summary.get("train_loss") or []]
        wall = float(summary.get("wall_time") or math.nan)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is no summary of llm-baselines ({type(error).__name__}: {error}).") from None
    return {"args": args, "val_loss": losses, "train_loss": training, "wall_time": wall}


def _arguments(given: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of a run, those checked that are needed."""
    args = dict(given)
    for key in ("iterations", "eval_interval", "batch_size", "sequence_length"):
        args[key] = int(args[key])
    for key, default in (("acc_steps", 1), ("world_size", 1), ("log_interval", 1), ("seed", 0)):
        args[key] = int(args.get(key) or default)
    if min(args[key] for key in ("iterations", "batch_size", "sequence_length", "acc_steps", "world_size")) < 1:
        raise ValueError("a run has at least one step of one token")
    _method(args)
    return args


def _loss(value: Any) -> float:
    return math.nan if value is None else float(value)


def _method(args: Mapping[str, Any]) -> dict[str, Any]:
    """Name, learning rate and, where it has one, the period of a method by the arguments of its run."""
    opt = str(args.get("opt"))
    name, options = _NAMES.get(opt, opt), {}
    # Their Muon family has the spectral rate in `muon_lr_factor`, and `lr` is that of the AdamW beside it.
    spectral = name in ("lionmuon", "signmuon", "muon") and args.get("muon_lr_factor")
    if name in ("lionmuon", "signmuon") and args.get("muon_every_k"):
        period = int(args["muon_every_k"])
        # Their Lion and Signum are this class with a period that no run reaches.
        name = name if period <= args["iterations"] else {"lionmuon": "lion", "signmuon": "signum"}[name]
        options = {"period": period} if period <= args["iterations"] else {}
    return {"name": name, "lr": float(spectral or args["lr"]), "options": options}


def _study_name(args: Mapping[str, Any]) -> str:
    words = f"{args.get('dataset', 'data')}-{args.get('model', 'model')}-d{args.get('n_embd', '')}-{args['iterations']}"
    return re.sub(r"[^\w.+-]+", "-", words).strip(".-")  # one folder, whatever stands in the arguments


def _tokens_per_step(args: Mapping[str, Any]) -> int:
    return int(args["batch_size"] * args["acc_steps"] * args["world_size"] * args["sequence_length"])


# What a study will have --------------------------------------------------------------------------------------------


def _members(folder: Path, summaries: Iterable[tuple[Path, dict[str, Any]]]) -> list[_Run]:
    """The runs of a study: those that are there, and those of the summaries that are not."""
    found = _there(folder)
    for path, summary in summaries:
        args, loss = summary["args"], _finite({"loss": summary["val_loss"][-1]})["loss"]
        taken = {run.name: run for run in found}
        for name in _names(path):
            new = _Run(name, "", args, loss, (path, summary))
            if name not in taken:
                found.append(replace(new, label=_label_of(new, found)))
                break
            if taken[name].what == new.what:
                break  # and not another run of the same name
    for run in found:
        for key in _SAME:
            ours, first = _workload(run.args)[key], _workload(found[0].args)[key]
            if ours != first:
                raise UserError(
                    f"the runs of {folder.name} are not comparable: {key} is {first} in {found[0].name} and {ours} in "
                    f"{run.name}. Import them one by one, each kind into an --out of its own."
                )
    return found


def _there(folder: Path) -> list[_Run]:
    """The runs that an earlier import wrote; those that it did not finish are written again."""
    refusal = UserError(f"{folder} is there and is not of imported runs. Choose another folder with --out.")
    study = folder / "study.json"
    if study.exists() and files.mapping(study, []).get("tier") != TIER:
        raise refusal
    found = []
    for path in sorted((folder / "runs").glob("*/config.json")):
        final = files.mapping(path.with_name("final.json"), [])
        try:
            args = _arguments(files.mapping(path.with_name("env.json"), [])["imported"]["args"])
        except (KeyError, TypeError, ValueError):
            raise refusal from None
        if final:
            label = str(files.mapping(path, [])["method"]["label"])
            found.append(_Run(path.parent.name, label, args, final.get("loss")))
    return found


def _names(path: Path) -> Iterator[str]:
    """Names for the folder of a run, the best first."""
    own = path.parent.name
    yield own
    yield f"{path.parent.parent.name}-{own}"
    yield from (f"{own}-{i}" for i in itertools.count(2))


def _label_of(run: _Run, others: Sequence[_Run]) -> str:
    """The label of the runs that it is another seed of, else its name without the seed, else its name."""
    seed = rf"(^|[-_.])(seed|s)[-_.=]?0*{run.args['seed']}(?=$|[-_.])|[-_.]0*{run.args['seed']}$"
    own = re.sub(seed, "", run.name).strip("-_.")
    taken: dict[str, set[int]] = {}
    for other in others:
        taken.setdefault(other.label, set()).add(other.args["seed"])
    same = {other.label for other in others if other.recipe == run.recipe}
    same = {label for label in same if run.args["seed"] not in taken[label]}
    if same:
        return own if own in same else min(same)
    numbered = (f"{run.name}-{i}" for i in itertools.count(2))
    return next(label for label in itertools.chain((own, run.name), numbered) if label and label not in taken)


# Writing it --------------------------------------------------------------------------------------------------------


def _write_study(folder: Path, name: str, members: Sequence[_Run]) -> None:
    for run in members:
        if run.source is not None:
            _write_run(runs.RunDirectory(folder / "runs" / run.name), run, *run.source)
    entries: dict[str, dict[str, Any]] = {}
    for run in members:
        m = run.method
        entries.setdefault(run.label, {
            "name": m["name"], "label": run.label, "options": m["options"], "best_lr": m["lr"],
            "tuning": [], "trials": 0,
        })  # fmt: skip
    names = {entry["name"] for entry in entries.values()}
    # A label that is also the name of others comes first: who looks for it by label or name finds it before them.
    entries = dict(sorted(entries.items(), key=lambda item: item[0] not in names))
    baseline = next((label for label, entry in entries.items() if entry["name"] == "adamw"), next(iter(entries)))
    before = files.mapping(folder / "study.json", [])
    commands = dict.fromkeys([*str(before.get("command") or "").splitlines(), runs.command()])
    runs.write_json(folder / "study.json", {
        "schema": 2, "name": name, "command": "\n".join(commands), "created": before.get("created") or runs.now(),
        "versions": {}, "machine": {}, "tier": TIER, "notes": list(NOTES), "workload": _workload(members[0].args),
        "baseline": baseline, "methods": list(entries.values()),
        "tuning_seed": None, "seeds": sorted({int(run.args["seed"]) for run in members}),
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


def _write_run(directory: runs.RunDirectory, run: _Run, path: Path, summary: Mapping[str, Any]) -> None:
    args, losses, wall = summary["args"], summary["val_loss"], summary["wall_time"]
    directory.create()
    per_step, seed, steps = _tokens_per_step(args), args["seed"], args["iterations"]
    source = {"from": path.parent.name, "format": "llm-baselines", "args": args, "notes": list(NOTES)}
    # Before the configuration, which makes it a run: so every run says where it is from.
    directory.write("env", {"versions": {}, "machine": {}, "imported": source})
    directory.write("config", {"workload": _workload(args), "method": run.method, "seed": seed, "purpose": "final"})
    evals = [
        {**_position(step, per_step, wall, steps), "loss": loss, "perplexity": _exp(loss), "bits_per_byte": None}
        for step, loss in zip(_steps(args["eval_interval"], steps, len(losses)), losses, strict=False)
    ]
    metrics = [
        {**_position((i + 1) * args["log_interval"], per_step, wall, steps), "loss": loss}
        for i, loss in enumerate(summary["train_loss"])
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
