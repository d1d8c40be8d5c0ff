"""Small language models for studies that train with rules of their own: text, training, loss by token, tuning."""

from __future__ import annotations

import atexit
import hashlib
import math
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

import steepest
from steepest.lab import methods, models
from steepest.lab.config import canonical
from steepest.lab.data import Pack, RunningHash
from steepest.lab.data import prepare as prepare_pack
from steepest.lab.reproductions.base import TUNING_SEED, Measure, Report, Setting, Settings
from steepest.lab.runs import read_json, weights_hash, write_json
from steepest.lab.schedules import Schedule, set_rates
from steepest.lab.studies import choose
from steepest.lab.training import DIVERGED_ABOVE

# Buckets of target tokens, by how often they occur in the training text: the most frequent tokens that make up half of
# the text, those that make up the next 40 %, and the rest.
BUCKETS = {"head": 0.5, "middle": 0.9, "tail": 1.0}
_TUNING_FOLDER = "STEEPEST_TUNING_FOLDER"  # environment variable: worker processes inherit it

Build = Callable[[nn.Module], steepest.Steepest]
Observe = Callable[[int], None]
Watch = Callable[[nn.Module, steepest.Steepest], Observe]


# Settings

MODEL: dict[str, Setting] = {
    "model": Setting("tiny", "ours: LLaMA, 2 layers, width 64, tied; its vocabulary is that of the tokenizer"),
    "data": Setting("news-wiki", "ours"),
    "tokenizer": Setting("bpe-1024", "ours: so that the embedding's share is between the paper's 20% and 46%"),
    "max_bytes": Setting(None, "ours: the whole corpus"),
    "steps": Setting(300, "ours"),
    "batch_size": Setting(16, "ours"),
    "sequence_length": Setting(64, "ours"),
    "validation_tokens": Setting(32_768, "ours"),
    "clip": Setting(1.0, "the default of the released training script's trainer"),
    "gradient_scale": Setting(1.0, "the loss is multiplied by it"),
}
QUICK: dict[str, Any] = {
    "model": {"preset": "tiny", "hidden_size": 16, "intermediate_size": 24, "head_dim": 8},
    "data": "synthetic",
    "tokenizer": "bytes",
    "max_bytes": 200_000,
    "steps": 30,
    "batch_size": 4,
    "sequence_length": 32,
    "validation_tokens": 2_048,
}

BUCKET_MEASURES = tuple(
    Measure(key=key, label=f"loss, {text}", unit="nats per token", digits=3)
    for key, text in (("head", "head tokens"), ("middle", "middle tokens"), ("tail", "tail tokens"))
)


# One run


def train(
    settings: Settings, seed: int, report: Report, build: Build, watch: Watch | None = None
) -> dict[str, float | list[float]]:
    """Train a model and evaluate it.

    Args:
        settings: model, data, steps, batch_size, sequence_length, validation_tokens, clip (None: off) and
            gradient_scale (the loss is multiplied by it).
        seed: of the initial weights and of the order of the data.
        report: told how far the run is.
        build: makes the optimizer of a model.
        watch: given model and optimizer, returns what is called at each step, between the (clipped) gradient and the
            step of the optimizer.

    Returns:
        The validation loss ("loss", NaN when the run diverged) and its perplexity, the loss of the target tokens of
        each bucket, the bytes of optimizer state in kB ("state"), the parameters and the share of the embedding in
        them, and the beginning of the hashes of the initial weights and of the data as numbers ("weights", "data").
    """
    pack, steps = open_data(settings), settings["steps"]
    model = models.build(settings["model"], pack.vocabulary_size, seed, settings["sequence_length"])
    weights = weights_hash(model)
    optimizer = build(model)
    observe = watch(model, optimizer) if watch is not None else None
    rates, schedule = [float(group["lr"]) for group in optimizer.param_groups], Schedule(steps=steps, warmup=0.1)
    stream = pack.train(batch_size=settings["batch_size"], length=settings["sequence_length"], seed=seed)
    seen, highest, diverged = RunningHash(), math.inf, False
    clip = math.inf if settings["clip"] is None else settings["clip"]
    for step in range(steps):
        if step % 5 == 0:
            report(step / steps)
        batch = stream.batch(step)
        seen.update(stream.indices(step), batch)
        loss = token_losses(model, batch).mean()
        if not loss.item() <= highest:  # also true of NaN
            diverged = True
            break
        highest = min(highest, loss.item() + DIVERGED_ABOVE) if step == 0 else highest
        (loss * settings["gradient_scale"]).backward()
        nn.utils.clip_grad_norm_(model.parameters(), clip)
        if observe is not None:
            observe(step)
        set_rates(optimizer.param_groups, rates, schedule.factor(step))
        optimizer.step()
        optimizer.zero_grad()
    losses = dict.fromkeys(("loss", *BUCKETS), math.nan) if diverged else evaluate(model, pack, settings)
    size = sum(parameter.numel() for parameter in model.parameters())
    return {
        **losses,
        "perplexity": math.exp(losses["loss"]),
        "state": methods.state_bytes(optimizer) / 1e3,
        "parameters": float(size),
        "share": embedding(model).numel() / size,
        "weights": float(int(weights[:8], 16)),
        "data": float(int(str(seen)[:8], 16)),
    }


def open_data(settings: Settings) -> Pack:
    """The text, from the cache if it is there."""
    return prepare_pack(
        settings["data"], tokenizer=settings["tokenizer"], max_bytes=settings["max_bytes"], progress=False
    )


def embedding(model: nn.Module) -> nn.Parameter:
    """The token embedding, which is the output head, too."""
    weight = model.get_input_embeddings().weight  # type: ignore[operator]
    assert isinstance(weight, nn.Parameter)
    return weight


def token_losses(model: nn.Module, batch: Tensor) -> Tensor:
    """Cross-entropy of each target token of a batch (rows, length + 1), in nats: (rows * length,)."""
    logits = model(batch[:, :-1]).logits
    return functional.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten(), reduction="none")


def bucket_of_token(pack: Pack) -> NDArray[np.int64]:
    """For each token of the vocabulary the number of its bucket, by the counts in the training text."""
    counts = np.bincount(pack.tokens("train"), minlength=pack.vocabulary_size)
    order = np.argsort(-counts, kind="stable")
    before = np.concatenate(([0], np.cumsum(counts[order])[:-1])) / counts.sum()
    buckets = np.empty(len(counts), dtype=np.int64)
    buckets[order] = np.searchsorted(list(BUCKETS.values())[:-1], before, side="right")
    return buckets


@torch.no_grad()
def evaluate(model: nn.Module, pack: Pack, settings: Settings) -> dict[str, float]:
    """The mean loss over fixed validation text: of all tokens, and of the tokens of each bucket."""
    buckets = torch.from_numpy(bucket_of_token(pack))
    sums, counts = torch.zeros(2, len(BUCKETS), dtype=torch.float64)
    windows = pack.validation(
        tokens=settings["validation_tokens"], length=settings["sequence_length"], batch_size=settings["batch_size"]
    )
    model.eval()
    for batch in windows:
        losses, places = token_losses(model, batch).double(), buckets[batch[:, 1:].flatten()]
        sums.index_add_(0, places, losses)
        counts.index_add_(0, places, torch.ones_like(losses))
    model.train()
    parts = (sums / counts).tolist()
    return {"loss": float(sums.sum() / counts.sum()), **dict(zip(BUCKETS, parts, strict=True))}


# Tuning


def tune(settings: Settings, loss_at: Callable[[float], float]) -> tuple[float, bool, dict[float, float]]:
    """Choose the learning rate of an arm out of `settings["grid"]`, once for all its seeds and all workers.

    While the best lies on an edge, the grid grows by one rate beyond it, `settings["growths"]` times (0) at most.

    Args:
        settings: of the arm; another value of any is another arm.
        loss_at: trains at a rate on `TUNING_SEED` and returns the validation loss.

    Returns:
        The best rate, whether it lies on the edge of what was tried, and the loss by rate.
    """
    arm = {key: value for key, value in settings.items() if key not in ("grid", "growths")}
    losses: dict[float, float | None] = {}
    waiting, growths = list(settings["grid"]), settings.get("growths", 0)
    while waiting:
        lr = waiting.pop(0)
        file = tuning_folder() / f"{hashlib.sha256(canonical({**arm, 'lr': lr}).encode()).hexdigest()[:24]}.json"
        trial = read_json(file)
        if trial is None:
            found = loss_at(lr)
            trial = {"loss": found if math.isfinite(found) else None}
            write_json(file, trial)
        losses[lr] = trial["loss"]
        if not waiting:
            best, edge, beyond = choose(sorted(losses), losses)
            if beyond is not None and growths:
                waiting, growths = [beyond], growths - 1
    told = {lr: math.nan if (loss := losses[lr]) is None else loss for lr in sorted(losses)}
    return settings["grid"][0] if best is None else best, edge, told


def tuning_folder() -> Path:
    """Where this process and its workers leave what they have tuned; removed when the process ends that began it."""
    if _TUNING_FOLDER not in os.environ:
        os.environ[_TUNING_FOLDER] = tempfile.mkdtemp(prefix="steepest-tuning-")
        atexit.register(shutil.rmtree, os.environ[_TUNING_FOLDER], ignore_errors=True)
    return Path(os.environ[_TUNING_FOLDER])


def tuned(
    settings: Settings, report: Report, run_at: Callable[[float, int, Report], dict[str, float | list[float]]]
) -> tuple[float, dict[str, float | list[float]]]:
    """The learning rate of an arm, and what is recorded of its tuning: "rate", "edge", and the series of trials."""

    def loss_at(lr: float) -> float:
        loss = run_at(lr, TUNING_SEED, report)["loss"]
        assert isinstance(loss, float)
        return loss

    lr, edge, losses = tune(settings, loss_at)
    return lr, {"rate": lr, "edge": float(edge), "grid": list(losses), "trials": list(losses.values())}


def prepare(settings: Settings) -> None:
    """Fetch and pack the corpus, and make the place where workers share what they tune."""
    open_data(settings)
    tuning_folder()
