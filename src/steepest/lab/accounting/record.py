"""All accounts of all methods in one record, which is kept in a file and grows from call to call."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from steepest.lab import methods, models, runs
from steepest.lab.accounting import bytes as memory
from steepest.lab.accounting import flops, step_time, update_rms
from steepest.lab.accounting.processes import FreshProcess, MeasurementError
from steepest.lab.accounting.subject import Job
from steepest.lab.config import MethodConfig, StudyConfig, Workload, hash8, plain, validate
from steepest.lab.errors import UserError, unknown
from steepest.lab.studies.claims import STALE

FILE = "accounting.json"
SCHEMA = 1
PARTS = ("flops", "bytes", "update", "time")
# The keys of a method's record that a part writes.
_KEYS = {
    "flops": ("optimizer_flops_per_step", "optimizer_flops"),
    "bytes": ("state_bytes", "transient_bytes", "transient_source"),
    "update": ("update_rms",),
    "time": ("step_seconds",),
}

Record = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Subject:
    """What is accounted.

    Args:
        methods: by the label that tables have for them.
        workload: what they are accounted on.
        baseline: label of the method whose time is 1; it is accounted too.
        vocabulary: number of tokens; None for the model's own.
        seed: of weights and batches.
        device: "auto", "cpu", "cuda", ...
        threads: of torch in each process.
        cache: folder of prepared data; None for the default.
        data: take gradients for the update RMS on the workload's data; otherwise on random tokens.
    """

    methods: Mapping[str, MethodConfig]
    workload: Workload
    baseline: str
    vocabulary: int | None = None
    seed: int = 0
    device: str = "auto"
    threads: int = 1
    cache: str | None = None
    data: bool = False

    def __post_init__(self) -> None:
        if not self.methods:
            raise UserError("nothing to account: name at least one method, for example --methods adamw,lionmuon.")
        if self.baseline not in self.methods:
            raise unknown("baseline", self.baseline, self.methods)
        for method in self.methods.values():
            methods.check(method, self.workload.steps)
        models.configuration(self.workload.model, self.vocabulary, self.workload.sequence_length)
        if self.threads < 1:
            raise UserError(f"threads must be at least 1, got {self.threads}.")

    def job(self, label: str) -> Job:
        """A method of it for a process of its own."""
        return Job(
            method=methods.resolve(self.methods[label]),
            workload=self.workload.model_copy(update={"model": models.inline(self.workload.model)}),
            vocabulary=self.vocabulary,
            seed=self.seed,
            device=self.device,
            threads=self.threads,
            cache=self.cache,
            data=self.data,
        )


def of_names(names: Sequence[str], workload: Workload, baseline: str = "adamw", **options: Any) -> Subject:
    """A subject of methods by name, with their defaults; the baseline comes first if it is not among them."""
    unique = list(dict.fromkeys(names if baseline in names or not names else [baseline, *names]))
    labels = {name: methods.find(name).label for name in unique}
    chosen = {labels[name]: MethodConfig(name=name) for name in unique}
    return Subject(methods=chosen, workload=workload, baseline=labels.get(baseline, baseline), **options)


def of_study(folder: str | Path, threads: int = 1) -> Subject:
    """The methods of a study at the values that won, or their defaults before any did, on its workload.

    Raises:
        UserError: there is no study in the folder, or an old one without its configuration.
    """
    path = Path(folder) / "study.json"
    study = runs.read_json(path)
    if not isinstance(study, dict):
        raise UserError(f"there is no study at {folder}: {path} does not exist.")
    try:
        config = validate(StudyConfig, study["config"])
        size = int(study["workload"]["model"]["vocabulary_size"])
        chosen = {str(entry["label"]): _winner(entry) for entry in study["methods"]}
        labels = [
            str(entry["label"]) for entry in study["methods"] if config.baseline in (entry["name"], entry["label"])
        ]
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{path} does not say what was run ({type(error).__name__}: {error}); run the study again with this "
            "version."
        ) from None
    return Subject(
        methods=chosen,
        workload=config.workload,
        baseline=labels[0] if labels else config.baseline,
        vocabulary=size,
        seed=config.tuning_seed,
        device=config.device,
        threads=threads,
        cache=config.cache,
        data=True,
    )


def _winner(entry: Mapping[str, Any]) -> MethodConfig:
    best = dict(entry.get("best") or ({"lr": entry["best_lr"]} if entry.get("best_lr") else {}))
    lr = best.pop("lr", None)
    return MethodConfig(name=entry["name"], label=entry["label"], lr=lr, options={**entry["options"], **best})


def account(
    subject: Subject,
    folder: str | Path | None = None,
    *,
    parts: Sequence[str] = PARTS,
    rounds: int = step_time.ROUNDS,
    again: bool = False,
    watch: Callable[[str, str], None] | None = None,
) -> Record:
    """Account for every method of a subject, each in processes of its own.

    A method that cannot do something gets the reason in "reasons", and the others go on. The record is written after
    every method, and what it has already (of the same method, workload, threads and versions) is not done again.

    Args:
        subject: what is accounted.
        folder: where accounting.json is; None writes nothing.
        parts: of `PARTS`: operations, memory, update RMS, step time.
        rounds: samples of the step time.
        again: do what the file has already once more.
        watch: is told the label and the part that begin.

    Raises:
        UserError: an unknown part, a study that is running in the folder (times would be wrong), or a damaged file.
    """
    for part in parts:
        if part not in PARTS:
            raise unknown("part", part, PARTS)
    if rounds < 1:
        raise UserError(f"rounds must be at least 1, got {rounds}.")
    path = None if folder is None else Path(folder) / FILE
    if folder is not None and "time" in parts:
        refuse_running(Path(folder))
    known = (runs.read_json(path) if path is not None else None) or {}
    if not isinstance(known, dict) or not isinstance(known.get("methods", {}), dict):
        raise UserError(f"{path} is no record of an account; remove it, and run the command again.")
    record = _head(subject, known, watch)
    kept: dict[str, Record] = {} if again and set(parts) == set(PARTS) else known.get("methods", {})
    record["methods"] = {label: entry for label, entry in kept.items() if label in subject.methods}
    for label in subject.methods:
        identity = _identity(subject, label)
        entry = record["methods"].get(label, {})
        if entry.get("identity") != identity:
            entry = {"identity": identity, "name": subject.methods[label].name, "reasons": {}}
        missing = [part for part in parts if again or not _has(entry, part)]
        for part in missing:
            if watch is not None:
                watch(label, part)
            entry["reasons"].pop(part, None)
            entry |= dict.fromkeys(_KEYS[part])
            try:
                entry |= _part(part, subject, label, rounds)
            except MeasurementError as error:
                entry["reasons"][part] = str(error)
        record["methods"][label] = entry
        if path is not None:
            runs.write_json(path, record)
    record["methods"] = {label: record["methods"][label] for label in subject.methods}
    if path is not None:
        runs.write_json(path, record)
    return record


def _has(entry: Record, part: str) -> bool:
    return part in entry["reasons"] or all(key in entry for key in _KEYS[part])


def _identity(subject: Subject, label: str) -> str:
    job = asdict(subject.job(label)) | {"method": None, "workload": None}
    method, workload = methods.resolve(subject.methods[label]), subject.job(label).workload
    versions = {name: runs.versions().get(name) for name in ("steepest", "torch")}
    told = {**job, "method": plain(method.model_dump(exclude={"label"})), "workload": plain(workload.model_dump())}
    return hash8({**told, "baseline": subject.baseline, "versions": versions})


def _head(subject: Subject, known: Record, watch: Callable[[str, str], None] | None) -> Record:
    """Everything but the methods; the model is counted unless the file has it."""
    job = subject.job(subject.baseline)
    facts = {"model": plain(job.workload.model), "vocabulary": subject.vocabulary}
    size = {"batch_size": subject.workload.batch_size, "sequence_length": subject.workload.sequence_length}
    of = hash8({**facts, **size})
    model = known.get("model")
    if not isinstance(model, dict) or model.get("identity") != of:
        if watch is not None:
            watch("model", "flops")
        with FreshProcess(_measurement, job) as process:
            try:
                counted = process.ask("model")
            except MeasurementError as error:
                counted = {"flops_per_token": None, "flops_per_step": None, "note": str(error)}
        model = {"identity": of, **models.describe(subject.workload.model, subject.vocabulary), **size, **counted}
    environment = runs.environment()
    return {
        "schema": SCHEMA,
        "command": environment["command"],
        "created": environment["created"],
        "versions": environment["versions"],
        "machine": {**environment["machine"], "threads": subject.threads},
        "device": subject.device,
        "gradients": "the workload's data" if subject.data else "random tokens",
        "baseline": subject.baseline,
        "model": model,
    }


def _part(part: str, subject: Subject, label: str, rounds: int) -> Record:
    job = subject.job(label)
    if part == "time":
        baseline = None if label == subject.baseline else subject.job(subject.baseline)
        return {"step_seconds": step_time.measure(job, baseline, rounds)}
    with FreshProcess(_measurement, job) as process:
        answer: Record = process.ask(part)
    return answer


def _measurement(job: Job) -> Callable[[str], Record]:
    """What a fresh process answers: the record of a part."""
    import torch

    torch.set_num_threads(job.threads)

    def answer(part: str) -> Record:
        if part == "model":
            return model_record(flops.model_flops(job))
        if part == "flops":
            step = flops.step_flops(job)
            return {"optimizer_flops_per_step": step.total, "optimizer_flops": asdict(step)}
        if part == "bytes":
            return memory.measure(job)
        return {"update_rms": update_rms.measure(job)}

    return answer


def model_record(counted: flops.ModelFlops) -> Record:
    """The operations of a model as the record has them."""
    return {
        "flops_per_token": counted.per_token,
        "flops_per_step": counted.total,
        "tokens_per_step": counted.tokens,
        "formula_flops_per_step": counted.formula,
        "attention_flops_per_step": counted.attention,
        "note": counted.note,
    }


def refuse_running(folder: Path) -> None:
    """Raise a `UserError` while a run of a study is carried out: neither its times nor ours would mean anything."""
    for owner in folder.glob("runs/*/claim/owner.json"):
        try:
            age = time.time() - owner.stat().st_mtime
        except OSError:
            continue
        if age < STALE:
            raise UserError(
                f"a worker is carrying out {owner.parents[1].name} in {folder}: a step is timed on a machine that does "
                "nothing else. Wait for the study, or leave the times out with --no-time."
            )
