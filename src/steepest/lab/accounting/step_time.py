"""Time of an optimizer step alone: in a process of its own, in turns with the baseline in another one.

Every round takes a sample of the method and one of the baseline; ratios are taken inside a round, so that a machine
that is slower for a while slows both. A sample is a whole number of cycles of the method's steps, so an alternating
rule is timed with all its kinds of steps; median and 90th percentile are over samples. Weights go back to where they
were before every sample, outside the clock. The gradients are noise, and nothing is computed between the steps: what a
step finds in the caches after a forward and backward pass is not part of this.
"""

from __future__ import annotations

import math
import os
import random
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch

from steepest.lab.accounting.processes import FreshProcess
from steepest.lab.accounting.subject import Job, cycle, give_noise, give_sample, parameters

ROUNDS = 21
SPREAD = 1.5  # 90th percentile over median, above which a time is not to be trusted
_SAMPLE = 0.02  # seconds that a sample takes at least
_WARM = 16  # most steps that are taken before the clock runs

Sample = dict[str, float]  # "wall" and "cpu" seconds of one step


class Stopwatch:
    """An optimizer with its gradients, and a clock; made in the process that is timed."""

    def __init__(self, job: Job) -> None:
        torch.set_num_threads(job.threads)
        model = job.model()
        self._optimizer = job.optimizer(model)
        give_noise(self._optimizer)
        self._start = [parameter.detach().clone() for parameter in parameters(self._optimizer)]
        turns = cycle(self._optimizer)
        self.steps = turns.steps
        began = time.perf_counter()
        self._run()  # makes the state, and compiles what is compiled
        self.first = time.perf_counter() - began
        for _ in range(math.ceil(min(turns.start + 1, _WARM) / self.steps)):
            self._run()
        seconds = min(self()["wall"] for _ in range(2)) * self.steps
        self.steps *= max(1, math.ceil(_SAMPLE / max(seconds, 1e-9)))

    def _run(self) -> None:
        for _ in range(self.steps):
            give_sample(self._optimizer)
            self._optimizer.step()

    def __call__(self, request: Any = None) -> Sample:
        """Take a sample; the request "steps" is for how many steps one has, and the seconds of the first cycle."""
        if request == "steps":
            return {"steps": self.steps, "first": self.first}
        with torch.no_grad():
            for parameter, value in zip(parameters(self._optimizer), self._start, strict=True):
                parameter.copy_(value)
        _wait()
        wall, cpu = time.perf_counter(), time.process_time()
        self._run()
        _wait()
        return {
            "wall": (time.perf_counter() - wall) / self.steps,
            "cpu": (time.process_time() - cpu) / self.steps,
        }


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def measure(
    job: Job,
    baseline: Job | None,
    rounds: int = ROUNDS,
    watch: Callable[[int], None] | None = None,
) -> dict[str, Any]:
    """Time the step of a job, and that of the baseline beside it.

    Args:
        job: what is timed.
        baseline: what it is compared with; None for the baseline itself.
        rounds: samples of each.
        watch: is told how many rounds are done.

    Returns:
        The record of `summarize`.

    Raises:
        MeasurementError: one of the two cannot take a step.
    """
    load = load_average()
    if baseline is None:
        with FreshProcess(Stopwatch, job) as process:
            facts = process.ask("steps")
            samples = []
            for number in range(rounds):
                samples.append(process.ask())
                _tell(watch, number)
            return summarize(samples, None, load, os.cpu_count()) | _facts(facts)
    order = random.Random(0)
    with FreshProcess(Stopwatch, job) as process, FreshProcess(Stopwatch, baseline) as other:
        facts = process.ask("steps")
        other.ask("steps")
        pairs = {0: (process, []), 1: (other, [])}  # type: dict[int, tuple[FreshProcess, list[Sample]]]
        for number in range(rounds):
            for which in order.sample((0, 1), 2):
                asked, into = pairs[which]
                into.append(asked.ask())
            _tell(watch, number)
    return summarize(pairs[0][1], pairs[1][1], load, os.cpu_count()) | _facts(facts)


def _facts(facts: Sample) -> dict[str, Any]:
    return {"steps_per_sample": int(facts["steps"]), "first_seconds": facts["first"]}


def _tell(watch: Callable[[int], None] | None, number: int) -> None:
    if watch is not None:
        watch(number + 1)


def summarize(
    samples: Sequence[Sample], baseline: Sequence[Sample] | None, load: float | None, cores: int | None
) -> dict[str, Any]:
    """Condense the samples of a method and of the baseline in the same rounds.

    Returns:
        "median", "p90" and "cpu_median" (seconds a step), "rounds"; "ratio", "ratio_quartiles" and "cpu_ratio" to the
        baseline and its "baseline_median" (1 and none of it for the baseline itself); "contended", "why" and "load".
    """
    wall = [sample["wall"] for sample in samples]
    why = contention(wall, load, cores)
    record: dict[str, Any] = {
        "median": statistics.median(wall),
        "p90": percentile(wall, 90),
        "cpu_median": statistics.median(sample["cpu"] for sample in samples),
        "rounds": len(wall),
        "ratio": 1.0,
        "ratio_quartiles": [1.0, 1.0],
        "cpu_ratio": 1.0,
    }
    if baseline is not None:
        ratios = [mine["wall"] / max(other["wall"], 1e-12) for mine, other in zip(samples, baseline, strict=True)]
        cpu = [mine["cpu"] / max(other["cpu"], 1e-12) for mine, other in zip(samples, baseline, strict=True)]
        other_wall = [sample["wall"] for sample in baseline]
        why += [f"baseline: {reason}" for reason in contention(other_wall, None, None)]
        record["ratio"], record["cpu_ratio"] = statistics.median(ratios), statistics.median(cpu)
        record["ratio_quartiles"] = [percentile(ratios, 25), percentile(ratios, 75)]
        record["baseline_median"] = statistics.median(other_wall)
    return {**record, "contended": bool(why), "why": "; ".join(why), "load": load}


def contention(seconds: Sequence[float], load: float | None, cores: int | None) -> list[str]:
    """Why a time is not to be trusted: a load average above the cores at the start, or samples too far apart."""
    why = []
    if load is not None and cores is not None and load > cores:
        why.append(f"load average {load:.1f} on {cores} cores at the start")
    middle, high = statistics.median(seconds), percentile(seconds, 90)
    if high > SPREAD * middle:
        why.append(f"the 90th percentile is {high / middle:.1f} times the median")
    return why


def percentile(values: Sequence[float], percent: int) -> float:
    """Percentile with linear interpolation between the values."""
    if len(values) == 1:
        return values[0]
    return statistics.quantiles(values, n=100, method="inclusive")[percent - 1]


def load_average() -> float | None:
    """Processes that wanted to run during the last minute; None where the system does not say."""
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else None
