"""Worker processes: each imports once, computes with one thread, and takes runs until it is told to end.

Two single-thread processes train two small models in the time in which one two-thread process trains one and a half.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import signal
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Any

from steepest.lab.config import TrainConfig
from steepest.lab.errors import UserError, full_disk
from steepest.lab.signals import Stop

_PRELOADED = (
    "steepest.lab.training",
    "steepest.lab.studies",
    "transformers.models.llama.modeling_llama",
    "transformers.models.gpt2.modeling_gpt2",
)
_TIMED = 4  # steps of a calibration; an even number, so that methods of period 2 are timed fairly


@dataclass(frozen=True)
class Message:
    """What a worker says.

    Kinds: "progress", "result", "fault" (a message for the user, about more than this job), "error" (of this job: a
    message about a file, or a traceback), "crash" (the process is gone).
    """

    kind: str
    worker: int
    content: Any


class Pool:
    """Worker processes that each hold at most one job. Use as a context manager."""

    def __init__(self, size: int) -> None:
        # Workers fork from a server that has imported everything once and holds no thread and no GPU.
        known = multiprocessing.get_all_start_methods()
        self._context: Any = multiprocessing.get_context("forkserver" if "forkserver" in known else "spawn")
        if "forkserver" in known:
            self._context.set_forkserver_preload(list(_PRELOADED))
        self._stop = self._context.Event()
        self._workers = [self._start() for _ in range(size)]
        self._busy: set[int] = set()

    def _start(self) -> tuple[Any, Connection]:
        ours, theirs = self._context.Pipe()
        process = self._context.Process(target=_work, args=(theirs, self._stop), daemon=True)
        with _blocked(signal.SIGTERM):
            process.start()
        theirs.close()
        return process, ours

    def __enter__(self) -> Pool:
        return self

    def __exit__(self, *exception: object) -> None:
        self.stop()
        for _, connection in self._workers:
            with contextlib.suppress(OSError):
                connection.send(None)
            connection.close()
        for process, _ in self._workers:
            process.join(timeout=10)
            if process.is_alive():
                process.kill()
                process.join()

    @property
    def idle(self) -> list[int]:
        """Workers without a job."""
        return [index for index in range(len(self._workers)) if index not in self._busy]

    @property
    def busy(self) -> bool:
        """Whether any job is running."""
        return bool(self._busy)

    def submit(self, worker: int, job: str, config: TrainConfig, out: Path) -> None:
        """Give an idle worker a job: "probe", "calibrate" or "train"."""
        self._busy.add(worker)
        with contextlib.suppress(OSError):  # it died while idle; `receive` will say so
            self._workers[worker][1].send((job, config, str(out)))

    def stop(self) -> None:
        """Ask all jobs to save and end after their current step."""
        self._stop.set()

    def kill(self, worker: int) -> None:
        """End a worker at once, whatever it does; `receive` reports the crash and replaces it."""
        self._workers[worker][0].kill()

    def receive(self, timeout: float) -> list[Message]:
        """Return what workers said within `timeout` seconds. A dead worker is replaced, its job is a crash."""
        ready = wait([connection for _, connection in self._workers], timeout)
        messages = []
        for index, (_, connection) in enumerate(list(self._workers)):
            if connection not in ready:
                continue
            kind: str
            try:
                kind, content = connection.recv()
            except (EOFError, OSError):
                process, ours = self._workers[index]
                process.join()
                ours.close()
                code = process.exitcode
                kind, content = "crash", f"the worker process ended with exit code {code}"
                self._workers[index] = self._start()
            if kind != "progress":
                was_busy = index in self._busy
                self._busy.discard(index)
                if not was_busy:
                    continue
            messages.append(Message(kind, index, content))
        return messages


@contextlib.contextmanager
def _blocked(number: int) -> Iterator[None]:
    """A process that starts in this block never gets the signal: `timeout` sends it to all, the parent decides."""
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {number})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


class _SharedStop(Stop):
    """A stop that the parent process requests for all workers, or that its death requests."""

    def __init__(self, event: Event) -> None:
        super().__init__()
        self._event = event

    @property
    def requested(self) -> bool:
        return self._orphaned or self._event.is_set()

    @requested.setter
    def requested(self, value: bool) -> None:
        self._orphaned = value


def _work(connection: Connection, event: Event) -> None:
    # Ctrl-C reaches the whole process group; the parent decides what it means.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    import torch

    from steepest.lab.training import train

    torch.set_num_threads(1)
    stop = _SharedStop(event)
    packs: dict[str, Any] = {}

    def observe(progress: Any) -> None:
        try:
            connection.send(("progress", progress))
        except OSError:
            stop.requested = True

    while True:
        try:
            job = connection.recv()
        except (EOFError, OSError):
            return
        if job is None:
            return
        kind, config, out = job
        try:
            pack = _pack(config, packs)
            if kind == "probe":
                answer: Any = _probe(config, pack)
            elif kind == "calibrate":
                answer = _calibrate(config, pack)
            else:
                answer = train(config, out, pack=pack, stop=stop, observe=observe)
            reply = ("result", answer)
        except UserError as error:
            reply = ("fault", str(error))
        except OSError as error:  # a full disk is every run's; somebody else's file in this run's folder is not
            full = full_disk(error, Path(out), "writing in")
            reply = ("error", str(error)) if full is None else ("fault", str(full))
        except Exception:
            reply = ("error", traceback.format_exc())
        try:
            connection.send(reply)
        except OSError:
            return


def _pack(config: TrainConfig, packs: dict[str, Any]) -> Any:
    from steepest.lab.workloads import open_data

    workload = config.workload
    key = f"{workload.data}|{workload.text}|{workload.tokenizer}|{workload.max_bytes}|{config.cache}"
    if key not in packs:
        packs[key] = open_data(config)
    return packs[key]


def _probe(config: TrainConfig, pack: Any) -> dict[str, Any]:
    """Describe the workload, choose its precision and time an evaluation, where the runs will be carried out."""
    import time

    from steepest.lab import models, runs
    from steepest.lab.compute import choose_precision, evaluate, pick_device
    from steepest.lab.workloads import describe, resolve

    config = resolve(config)
    workload, device = config.workload, pick_device(config.device)
    model = models.build(workload.model, pack.vocabulary_size, config.seed, workload.sequence_length, str(device))
    stream = pack.train(batch_size=workload.batch_size, length=workload.sequence_length, seed=config.seed)
    precision, seconds = choose_precision("auto", model, stream.batch(0).to(device))
    if workload.precision != "auto":
        precision = workload.precision
    tokens, rows = workload.evaluation.tokens, workload.evaluation.batch_size
    validation = pack.validation(tokens=tokens, length=workload.sequence_length, batch_size=rows)
    began = time.perf_counter()
    evaluate(model, validation, device, precision)
    return {
        "seconds_per_step": seconds.get(precision),
        "seconds_per_evaluation": time.perf_counter() - began,
        "device": device.type,
        "workload": describe(config, pack) | {"precision": precision},
        "versions": runs.versions(),
        "machine": runs.machine(),
    }


def _calibrate(config: TrainConfig, pack: Any) -> float:
    """Seconds of a step of a method: the median of a few, after as many that are not counted."""
    import statistics
    import time

    from steepest.lab import methods, models
    from steepest.lab.compute import loss_sum, pick_device

    workload, device = config.workload, pick_device(config.device)
    model = models.build(workload.model, pack.vocabulary_size, config.seed, workload.sequence_length, str(device))
    optimizer = methods.build(config.method, model, workload.steps)
    batch = pack.train(batch_size=workload.batch_size, length=workload.sequence_length, seed=config.seed).batch(0)
    tokens = batch.to(device)
    seconds = []
    for _ in range(2 * _TIMED):
        began = time.perf_counter()
        (loss_sum(model, tokens, workload.precision) / tokens.numel()).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds[_TIMED:])
