"""The training loop: one run, from its configuration to final.json. It knows no optimizer by name.

A run can be killed at any instant and started again with the same command: it goes on from its last checkpoint and
ends with the same numbers, bit for bit, as if nothing had happened (same machine, same number of threads).
"""

from __future__ import annotations

import contextlib
import functools
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from steepest.lab import checkpoints, methods, models, runs, schedules
from steepest.lab.compute import backward, choose_precision, evaluate, pick_device, threads
from steepest.lab.config import PARTS, TrainConfig, command_line, run_id
from steepest.lab.data import Pack, RunningHash
from steepest.lab.diagnostics import Diagnostics
from steepest.lab.errors import UserError
from steepest.lab.events import FOLDER, Events
from steepest.lab.signals import Stop
from steepest.lab.workloads import open_data, record_start, resolve

DIVERGED_ABOVE = 1.0  # nats above the first loss: further than that no run of a proper schedule comes back
_LINES = 1_000  # at most so many lines of metrics a run, unless log_every says otherwise


@dataclass(frozen=True)
class Progress:
    """What an observer hears after every logged step; `loss` is the mean since the last one."""

    step: int
    steps: int
    loss: float
    tokens_per_second: float


@dataclass(frozen=True)
class Result:
    """How a run ended: "done", "diverged" or "interrupted". `loss` is the validation loss of a run that is done."""

    state: str
    step: int
    loss: float | None
    path: Path
    final: dict[str, Any] | None


def train(
    config: TrainConfig,
    out: str | Path,
    *,
    pack: Pack | None = None,
    stop: Stop | None = None,
    observe: Callable[[Progress], None] | None = None,
) -> Result:
    """Carry out one run in `<out>/<run_id>`, or go on with it, or report it when it is already over.

    Args:
        config: the run.
        out: parent of the run's folder.
        pack: its data; None prepares what the configuration names.
        stop: polled after every step; when requested, the run is saved and ends as "interrupted".
        observe: called after every logged step.

    Raises:
        UserError: something in the configuration, on the disk or in the data is wrong; the message says what.
    """
    config = resolve(config)
    pack = pack if pack is not None else open_data(config)
    directory = runs.RunDirectory(Path(out) / run_id(config, pack.sha256))
    final = directory.final()
    if final is None:
        with threads(config.threads):
            directory.create()
            with directory.lock():
                final = directory.final() or _Training(config, directory, pack).run(stop or Stop(), observe)
    if final is None:
        return Result("interrupted", directory.read("status")["step"], None, directory.path, None)
    return Result(final["state"], final["step"], final["loss"], directory.path, final)


class _Training:
    """The state of one run in this process."""

    def __init__(self, config: TrainConfig, directory: runs.RunDirectory, pack: Pack) -> None:
        workload, self.config, self.directory = config.workload, config, directory
        self.device = pick_device(config.device)
        self.steps, self.tokens_per_step = workload.steps, workload.tokens_per_step
        self.micro_batch = config.micro_batch or workload.batch_size
        self.every = workload.evaluate_every
        self.checkpoint_every = config.checkpoint_every or max(self.steps // PARTS, 1)
        self.log_every = config.log_every or math.ceil(self.steps / _LINES)
        # The weights exist before the optimizer does, so they cannot depend on it.
        self.model = models.build(
            workload.model, pack.vocabulary_size, config.seed, workload.sequence_length, str(self.device)
        )
        self.init_hash = runs.weights_hash(self.model)
        self.parameters = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        self.optimizer = methods.build(config.method, self.model, self.steps)
        groups = self.optimizer.param_groups
        self.base_rates = [float(group["lr"]) for group in groups]
        self.labels = methods.group_labels(self.model, self.optimizer)
        self.schedule = methods.schedule(config.method, workload.schedule).build(self.steps)
        self.stream = pack.train(batch_size=workload.batch_size, length=workload.sequence_length, seed=config.seed)
        self.validation = pack.validation(
            tokens=workload.evaluation.tokens,
            length=workload.sequence_length,
            batch_size=workload.evaluation.batch_size,
        )
        self.bytes_per_token = float(pack.bytes_per_token["validation"])
        # What a checkpoint holds beside model and optimizer.
        self.step, self.seconds, self.data_hash = 0, 0.0, RunningHash()
        self.began, self.first_loss = 0.0, math.nan
        self.window: list[float] = []
        self.measured: dict[str, Any] = {}  # of the last measured step
        self.precision, timings, offsets = self._restore()
        gradients = functools.partial(backward, self.model, precision=self.precision)
        self.diagnostics = Diagnostics(self.model, self.optimizer, gradients, config.diagnostics_every)
        self.evals = runs.Lines(directory.path / "evals.jsonl", offsets["evals"])
        self.metrics = runs.Lines(directory.path / "metrics.jsonl", offsets["metrics"])
        self.events = Events(directory.path / FOLDER, self.step) if config.tensorboard else None
        facts = {
            "device": str(self.device),
            "precision": {"wanted": workload.precision, "used": self.precision, "seconds_per_step": timings},
            "micro_batch": self.micro_batch,
        }
        record_start(directory, config, pack, facts, self.step)

    def run(self, stop: Stop, observe: Callable[[Progress], None] | None) -> dict[str, Any] | None:
        """Train to the end; the content of final.json, or None when a stop was requested first."""
        self.directory.status("running", self.step)
        try:
            fault = self._loop(stop, observe)
        except BaseException:
            with contextlib.suppress(Exception):  # the first fault is the one to report, a full disk often causes both
                self.directory.status("failed", self.step)
            raise
        finally:
            self.metrics.close()
            self.evals.close()
            if self.events is not None:
                self.events.close()
        if fault is None and self.step < self.steps:
            self.directory.status("interrupted", self.step)
            return None
        return self._finish(fault)

    def _loop(self, stop: Stop, observe: Callable[[Progress], None] | None) -> str | None:
        """Take the remaining steps. Returns why the run diverged, or None when it ended or was stopped."""
        self.model.train()
        self.optimizer.zero_grad(set_to_none=True)
        logged_at, logged_step = self.seconds, self.step
        self.began = time.perf_counter() - self.seconds
        stopping = stop.requested
        while self.step < self.steps and not stopping:
            factor = self.schedule.factor(self.step)
            schedules.set_rates(self.optimizer.param_groups, self.base_rates, factor)
            loss, norm, fault = self._step()
            if math.isnan(self.first_loss):
                self.first_loss = loss
            if fault is None and not loss <= self.first_loss + DIVERGED_ABOVE:  # also true of NaN
                fault = f"the loss is {loss:.4g} after a first loss of {self.first_loss:.4g}"
            if self.step == 1:  # now the optimizer has its state
                self.directory.write("routing", methods.routing_rows(self.model, self.optimizer, self.base_rates))
            self.window.append(loss)
            self.seconds = time.perf_counter() - self.began
            if self.step % self.log_every == 0 or self.step == self.steps or fault:
                speed = (self.step - logged_step) * self.tokens_per_step / max(self.seconds - logged_at, 1e-9)
                mean = sum(self.window) / len(self.window)
                self._log(mean, norm, speed)
                if observe is not None:
                    observe(Progress(self.step, self.steps, mean, speed))
                self.window.clear()
                logged_at, logged_step = self.seconds, self.step
            if fault:
                return fault
            with self._clock_stopped():
                if self.step % self.every == 0 or self.step == self.steps:
                    self._evaluate()
                stopping = stop.requested
                if self.step % self.checkpoint_every == 0 or self.step == self.steps or stopping:
                    self._save()
        return None

    @contextlib.contextmanager
    def _clock_stopped(self) -> Iterator[None]:
        """Measurements, evaluation and checkpoints are not training."""
        stopped = time.perf_counter()
        yield
        self.began += time.perf_counter() - stopped

    def _step(self) -> tuple[float, float, str | None]:
        """One optimizer step: mean loss, gradient norm before clipping, and a fault of the optimizer, if any."""
        batch = self.stream.batch(self.step)
        self.data_hash.update(self.stream.indices(self.step), batch)
        pieces = [rows.to(self.device) for rows in batch.split(self.micro_batch)]
        total = backward(self.model, pieces, self.precision)
        measured = self.diagnostics.due(self.step)
        if measured:
            with self._clock_stopped():
                self.diagnostics.before(pieces)
        clip = self.config.workload.clip
        norm = float(nn.utils.clip_grad_norm_(self.parameters, math.inf if clip is None else clip))
        fault = None
        try:
            methods.offer_sample(self.optimizer, self.model, pieces, self.precision)
            self.optimizer.step()
        except (ArithmeticError, ValueError, RuntimeError) as error:
            if math.isfinite(norm):
                raise
            fault = f"the optimizer refused the gradients: {error}"
        if measured and fault is None:
            with self._clock_stopped():
                self.measured = self.diagnostics.after(pieces)
        self.optimizer.zero_grad(set_to_none=True)
        self.step += 1
        return float(total), norm, fault

    def _log(self, loss: float, norm: float, speed: float) -> None:
        rates = (float(group["lr"]) for group in self.optimizer.param_groups)
        row = {
            **self._position(),
            "loss": _finite(loss),
            "lr": dict(zip(self.labels, rates, strict=True)),
            "grad_norm": _finite(norm),
            "tokens_per_second": round(speed, 1),
            **({"diagnostics": self.measured} if self.measured else {}),
        }
        self.metrics.write(row)
        if self.events is not None:
            self.events.write("train", row)
        self.measured = {}

    def _position(self) -> dict[str, Any]:
        return {"step": self.step, "tokens": self.step * self.tokens_per_step, "seconds": round(self.seconds, 4)}

    def _evaluate(self) -> None:
        """Append the loss on the fixed validation tokens, as a sum over tokens and their count."""
        with methods.evaluated_weights(self.optimizer):
            total, count = evaluate(self.model, self.validation, self.device, self.precision)
        row = {**self._position(), "loss_sum": _finite(total), "count": count, **self._scores(total / count)}
        self.evals.write(row)
        if self.events is not None:
            self.events.write("validation", row)

    def _scores(self, loss: float) -> dict[str, float | None]:
        return {
            "loss": _finite(loss),
            "perplexity": _finite(math.exp(loss) if loss < 700 else math.inf),
            "bits_per_byte": _finite(loss / math.log(2) / self.bytes_per_token),
        }

    def _save(self) -> None:
        # The weights of a finished run are those that were evaluated; before, those that go on.
        with methods.evaluated_weights(self.optimizer, self.step == self.steps):
            content = {
                **checkpoints.parts(self.model, self.optimizer, self.device),
                "counters": {"seconds": self.seconds, "data_hash": self.data_hash.value, "first_loss": self.first_loss},
                "window": self.window,
                "measured": self.measured,
                "init_hash": self.init_hash,
                "precision": self.precision,
                "offsets": {"metrics": self.metrics.offset(), "evals": self.evals.offset()},
            }
            checkpoints.save(self.directory.checkpoints, self.step, content)
        self.directory.status("running", self.step)

    def _restore(self) -> tuple[str, dict[str, float], dict[str, int]]:
        """Go back to the last checkpoint, if any. Returns precision, its timings and lengths of the line files."""
        saved = checkpoints.load(self.directory.checkpoints, str(self.device))
        if saved is None:
            tokens = self.stream.batch(0)[: self.micro_batch].to(self.device)
            precision, timings = choose_precision(self.config.workload.precision, self.model, tokens)
            torch.manual_seed(self.config.seed)
            return precision, timings, {"metrics": 0, "evals": 0}
        if saved["init_hash"] != self.init_hash:
            raise UserError(
                f"{self.directory.path} was begun with other initial weights (another version of torch or "
                "transformers?). Remove the folder to start the run again."
            )
        checkpoints.put_back(saved, self.model, self.optimizer, self.device)
        counters = saved["counters"]
        self.step, self.seconds, self.data_hash = saved["step"], counters["seconds"], RunningHash(counters["data_hash"])
        self.first_loss, self.window = counters["first_loss"], list(saved["window"])
        self.measured = saved.get("measured", {})
        return saved["precision"], {}, saved["offsets"]

    def _finish(self, fault: str | None) -> dict[str, Any]:
        last = runs.last_line(self.directory.path / "evals.jsonl") if fault is None else None
        scores = last or dict.fromkeys(("loss", "perplexity", "bits_per_byte"))
        state = "diverged" if fault or scores["loss"] is None else "done"
        final = {
            "state": state,
            **self._position(),
            **{key: scores[key] for key in ("loss", "perplexity", "bits_per_byte")},
            "reason": fault,
            "state_bytes": methods.state_bytes(self.optimizer),
            "tokens_per_second": round(self.step * self.tokens_per_step / max(self.seconds, 1e-9), 1),
            "data_hash": str(self.data_hash),
            "init_hash": self.init_hash,
            "precision": self.precision,
            "command": command_line(self.config, methods.find(self.config.method.name).options),
        }
        self.directory.status(state, self.step)
        self.directory.write("final", final)
        if not self.config.keep_checkpoint:
            checkpoints.remove(self.directory.checkpoints)
        return final


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
