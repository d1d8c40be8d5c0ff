"""From a configuration to things: its data, its defaults filled in, its description for reports."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from steepest.lab import events, methods, models, runs
from steepest.lab.config import TrainConfig, identity, plain
from steepest.lab.data import Pack, prepare


def open_data(config: TrainConfig, progress: bool = False) -> Pack:
    """Prepare (or find in the cache) the data of a run."""
    workload = config.workload
    return prepare(
        workload.data if workload.text is None else None,
        tokenizer=workload.tokenizer,
        cache=config.cache,
        text=workload.text,
        max_bytes=workload.max_bytes,
        progress=progress,
    )


def resolve(config: TrainConfig) -> TrainConfig:
    """Fill in everything that names leave open: the method's defaults, the contents of a model's configuration file.

    Raises:
        UserError: an unknown model, optimizer or option, or a bad value of one; or something that it needs is not
            installed.
    """
    if config.tensorboard:
        events.writer_type()
    methods.check(config.method, config.workload.steps)
    workload = config.workload.model_copy(update={"model": models.inline(config.workload.model)})
    return config.model_copy(update={"workload": workload, "method": methods.resolve(config.method)})


def describe(config: TrainConfig, pack: Pack) -> dict[str, Any]:
    """The workload as reports show it: the configuration with the facts about its model and data."""
    workload = config.workload
    return {
        **workload.model_dump(include={"batch_size", "sequence_length", "steps", "clip", "precision"}),
        "tokens_per_step": workload.tokens_per_step,
        "schedule": workload.schedule.model_dump(),
        "evaluation": workload.evaluation.model_dump(),
        "model": models.describe(workload.model, pack.vocabulary_size),
        "data": {
            "name": workload.data if workload.text is None else Path(workload.text).name,
            "tokenizer": workload.tokenizer,
            "sha256": pack.sha256,
            "train_tokens": pack.train_tokens,
            "validation_tokens": pack.validation_tokens,
            "bytes_per_token": pack.bytes_per_token["validation"],
        },
    }


def record_start(
    directory: runs.RunDirectory, config: TrainConfig, pack: Pack, facts: dict[str, Any], step: int
) -> None:
    """Write config.json and env.json. A run that goes on from a later step keeps its env.json and adds itself to it."""
    now = runs.environment()
    environment = directory.read("env") if step else None
    if environment is None:
        environment = {**now, **facts, "resumes": []}
    else:
        again = {key: now[key] for key in ("created", "load_average", "command")}
        environment["resumes"].append({"step": step, **again})
    directory.write("env", environment)
    values = plain(config.model_dump())
    content = {
        "method": values["method"],
        "lr": config.method.lr,
        "seed": config.seed,
        "purpose": config.purpose,
        "workload": describe(config, pack),
        "identity": identity(config, pack.sha256),
        "config": values,
    }
    directory.write("config", content)
