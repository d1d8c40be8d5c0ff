"""Where and when the statistics are computed: on the device, on the CPU beside the training, or half and half.

======== ========================================== ==================================== ==============
engine   on the device                              on the host, beside the training     used
======== ========================================== ==================================== ==============
device   everything; the numbers are copied         nothing                              in this step
hybrid   reads the gradients into summaries         quantiles and means of the summaries from the next
cpu      copies the sample (or whole gradients)     everything else                      from the next
======== ========================================== ==================================== ==============

All give the same numbers. "From the next step" holds however fast the host is, so that a run can be repeated, and so
that all processes of a run change their scales together; the next step waits where it must.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from steepest import sharding
from steepest.rules.base import check_choice
from steepest.scaling import sampling
from steepest.scaling.checks import check_flag
from steepest.scaling.places import Key
from steepest.scaling.statistics import Measure, Numbers, Packed
from steepest.scaling.summaries import Points, summarize_blocks

ENGINES = ("device", "hybrid", "cpu")


class Engine:
    """Measures gradients. On every step, first ``submit`` if statistics are wanted, and then ``ready``.

    Args:
        name: "device", "hybrid" or "cpu".
        measure: what is measured.
        wait: the numbers are ready in the step they are of, as with "device" they always are.

    Raises:
        ValueError: an unknown name, "hybrid" with an estimator that makes no summary, or ``wait`` is not a bool.
    """

    def __init__(self, name: str, measure: Measure, *, wait: bool = False) -> None:
        check_choice(measure.owner, "engine", name, ENGINES)
        check_flag(measure.owner, "wait", wait)
        if name == "hybrid" and measure.estimator == "exact":
            raise ValueError(
                f"{measure.owner}: engine='hybrid' sends summaries to the host, and estimator='exact' makes none: "
                "choose engine='device' or 'cpu', or estimator='histogram'"
            )
        self.name = name
        self.measure = measure
        self.delay = 0 if wait or name == "device" else 1
        self._jobs: deque[_Job] = deque()

    def submit(self, step: int, gradients: Mapping[Key, Sequence[Tensor]]) -> None:
        """Measure the gradients of a step. They may change as soon as this returns.

        Args:
            step: its number.
            gradients: those of each block; a block without any is left out. For sharded ones this is a collective call.

        Raises:
            ValueError: a gradient is not of a floating dtype, or is sharded where the engine can only copy whole ones.
        """
        keys = [key for key, block in gradients.items() if len(block)]
        with torch.no_grad():
            compute = self._start(keys, [gradients[key] for key in keys])
        job = _Job(step, step + self.delay, compute, f"engine {self.name!r}: the statistics of step {step} failed")
        if self.name != "device":
            job.start()
        self._jobs.append(job)

    def _start(self, keys: Sequence[Key], blocks: Sequence[Sequence[Tensor]]) -> Callable[[], Numbers]:
        """What is done now, and what remains to be computed."""
        what = self.measure
        device = sampling.home(blocks)
        only = [key in what.nonzero_rows for key in keys]

        def summary_of(given: Sequence[Sequence[Tensor]]) -> Packed:
            return Packed(summarize_blocks(given, what.estimator, what.samples, what.seed, only), keys, what)

        if self.name == "device":
            return summary_of(blocks).numbers
        copy = _Copy(device)
        if self.name == "hybrid":
            summary = summarize_blocks(blocks, what.estimator, what.samples, what.seed, only)
            assert isinstance(summary, Points)
            points = summary.moved(copy)
            return copy.then(lambda: Packed(points, keys, what).numbers())
        if what.estimator == "sample":
            rows = [r.moved(copy) for r in sampling.gather(blocks, what.samples, what.seed, only)]
            return copy.then(lambda: Packed(Points.of_sample(rows, len(keys)), keys, what).numbers())
        if any(sharding.is_sharded(g) for block in blocks for g in block):
            raise ValueError(
                f"engine='cpu' with estimator={what.estimator!r} copies whole gradients, and these are sharded: choose "
                "estimator='sample' or another engine"
            )
        copies = [[copy(g.detach(), always=True) for g in block] for block in blocks]
        return copy.then(lambda: summary_of(copies).numbers())

    def ready(self, step: int) -> Numbers | None:
        """The numbers that are to be used from this step on, once; None if there are no new ones.

        Raises:
            RuntimeError: their computation failed.
        """
        numbers = None
        while self._jobs and self._jobs[0].due <= step:
            numbers = self._jobs.popleft().result()
        return numbers

    def finish(self) -> None:
        """Wait for all that is under way; ``ready`` gives it at its step.

        Raises:
            RuntimeError: a computation failed.
        """
        for job in self._jobs:
            job.result()

    def state_dict(self) -> dict[str, Any]:
        """What was submitted and not used yet, as plain numbers, for a checkpoint. Waits for it."""
        return {"pending": [[job.step, job.due, job.result().plain()] for job in self._jobs]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what ``state_dict`` gave; what is under way is dropped."""
        self._jobs.clear()
        for step, due, plain in state["pending"]:
            self._jobs.append(_Job(step, due, None, "", Numbers.of_plain(plain)))

    def __getstate__(self) -> dict[str, Any]:
        self.finish()
        return self.__dict__


@dataclass
class _Job:
    """A computation, in a thread if it was started, else when its result is asked for."""

    step: int
    due: int
    compute: Callable[[], Numbers] | None
    context: str
    numbers: Numbers | None = None
    error: Exception | None = None
    thread: threading.Thread | None = None

    def start(self) -> None:
        self.thread = threading.Thread(target=self._run, name="steepest statistics")
        self.thread.start()

    def _run(self) -> None:
        assert self.compute is not None
        try:
            with torch.no_grad():  # which is of each thread
                self.numbers = self.compute()
        except Exception as error:  # to be raised where the result is asked for
            self.error = error
        self.compute = None  # and what it keeps alive

    def result(self) -> Numbers:
        if self.thread is not None:
            self.thread.join()
            self.thread = None
        elif self.compute is not None:
            self._run()
        if self.error is not None:
            raise RuntimeError(self.context) from self.error
        assert self.numbers is not None
        return self.numbers


class _Copy:
    """Copies tensors to the host; from a GPU into pinned memory, without waiting.

    Args:
        device: where they come from.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def __call__(self, x: Tensor, always: bool = False) -> Tensor:
        if x.device.type == "cpu":
            return x.clone() if always else x
        if x.device.type != "cuda":
            return x.cpu()
        return torch.empty_like(x, device="cpu", pin_memory=True).copy_(x, non_blocking=True)

    def then(self, compute: Callable[[], Numbers]) -> Callable[[], Numbers]:
        """``compute`` after all copies that were made so far."""
        if self.device.type != "cuda":
            return compute
        copied = torch.cuda.Event()
        copied.record(torch.cuda.current_stream(self.device))

        def wait_and_compute() -> Numbers:
            copied.synchronize()
            return compute()

        return wait_and_compute
