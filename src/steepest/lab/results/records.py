"""What is known about a study: its runs, its methods with their tuning, and what its steps cost."""

from __future__ import annotations

import math
import shlex
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from steepest.lab.results import files

Record = dict[str, Any]
Point = dict[str, Any]
"""A value for each tuned axis: "lr" and options."""


def number(value: Any, missing: float = math.nan) -> float:
    """`value` as a float; `missing` for None and for anything that is not a number."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return missing
    return float(value)


@dataclass(frozen=True)
class Run:
    """One training run.

    Its small files are read at once, the others when somebody asks for them: a study of thousands of runs is read in
    seconds, and only what a figure shows is read from the lines that its runs left.

    Attributes:
        state: "done" or "diverged" if the run finished and otherwise the last state it reported ("running",
            "interrupted", "failed", ...).
        problems: where a file that cannot be read is listed: the problems of the study.
    """

    id: str
    path: Path
    method: str
    lr: float
    seed: int
    purpose: str
    state: str
    config: Record
    final: Record
    problems: list[str] = field(default_factory=list, repr=False, compare=False)

    @cached_property
    def env(self) -> Record:
        """Versions, machine and command."""
        return files.mapping(self.path / "env.json", self.problems)

    @cached_property
    def status(self) -> Record:
        """State and step as the run last reported them."""
        return files.mapping(self.path / "status.json", self.problems)

    @cached_property
    def routing(self) -> list[Record]:
        """One record per parameter."""
        return [row for row in files.items(self.path / "routing.json", self.problems) if isinstance(row, dict)]

    @cached_property
    def evals(self) -> list[Record]:
        """One record per evaluation, sorted by step."""
        return files.lines(self.path / "evals.jsonl", self.problems)

    @cached_property
    def metrics(self) -> list[Record]:
        """One record per logged step, sorted by step."""
        return files.lines(self.path / "metrics.jsonl", self.problems)

    @property
    def loss(self) -> float:
        """Validation loss at the end of the schedule in nats per token; NaN unless the run is done."""
        return number(self.final.get("loss")) if self.state == "done" else math.nan

    @property
    def step(self) -> float:
        """The last step; NaN if unknown."""
        return number(self.final.get("step") if self.final else self.status.get("step"))

    @property
    def command(self) -> str:
        """The command line that repeats this run."""
        argv = self.final.get("command") or self.env.get("argv") or self.env.get("command") or ""
        return argv if isinstance(argv, str) else shlex.join(str(word) for word in argv)

    @property
    def state_bytes(self) -> float:
        """Bytes of optimizer state, from `final.json` or else from the routing table; NaN if neither is there."""
        value = self.final.get("state_bytes")
        if isinstance(value, Mapping):
            value = value.get("total", sum(number(v, 0.0) for v in value.values()))
        if value is None and self.routing:
            value = sum(number(row.get("state_bytes"), 0.0) for row in self.routing)
        return number(value)


@dataclass(frozen=True)
class Trial:
    """One point that was tried; `loss` is NaN if the run diverged or has not finished."""

    lr: float
    run_id: str
    loss: float
    state: str
    point: Point = field(default_factory=dict)
    extension: int = 0

    @property
    def outcome(self) -> float:
        """The loss as the statistics want it: infinite if diverged, NaN if not finished."""
        return math.inf if self.state == "diverged" else self.loss


@dataclass(frozen=True)
class Method:
    """A method of a study: its tuning trials (sorted by learning rate) and the point they chose.

    Attributes:
        best_lr: The learning rate of the best point; NaN if there is none yet.
        edge: The best point lies on an edge of the grid, so a better one may lie outside.
        best: The best point, all tuned axes of it.
        axes: The values that were tried, by axis; empty for an axis that a sampler drew from a range.
        open_axes: The axes on whose edge the best point lies.
        search: "grid", "random", "quasi-random" or "tpe".
    """

    name: str
    label: str
    options: Record
    trials: list[Trial]
    best_lr: float
    edge: bool
    best: Point = field(default_factory=dict)
    axes: dict[str, list[Any]] = field(default_factory=dict)
    open_axes: tuple[str, ...] = ()
    search: str = "grid"

    @property
    def tuned(self) -> list[str]:
        """The axes of which more than one value was tried."""
        names = dict.fromkeys(name for trial in self.trials for name in trial.point)
        return [name for name in names if len({str(trial.point.get(name)) for trial in self.trials}) > 1]

    @property
    def others(self) -> Point:
        """The best point without its learning rate: the values of the other tuned axes."""
        return {name: value for name, value in self.best.items() if name != "lr" and name in self.tuned}

    @property
    def by_rate(self) -> list[Trial]:
        """One trial per learning rate, the best over the other axes; of a rate that never finished any one."""
        found: dict[float, Trial] = {}
        for trial in self.trials:
            there = found.get(trial.lr)
            if there is None or trial.loss < there.loss or (math.isnan(there.loss) and math.isfinite(trial.loss)):
                found[trial.lr] = trial
        return [found[lr] for lr in sorted(found)]

    @property
    def chosen(self) -> Trial | None:
        """The trial of the best point."""
        same = [t for t in self.trials if t.point and files.same(t.point, self.best)]
        same = same or [t for t in self.trials if math.isclose(t.lr, self.best_lr, rel_tol=1e-6)]
        return next(iter(sorted(same, key=lambda t: (math.isnan(t.loss), t.loss))), None)


@dataclass(frozen=True)
class Account:
    """What one step of a method costs, measured apart from any run; NaN where it was not.

    Attributes:
        optimizer_flops: Of `optimizer.step()`.
        extra_passes: Forward and backward passes over the model that it takes beyond the one of every method.
        transient_bytes: Allocated at most during it, beyond the state.
        seconds: Median time of `optimizer.step()` alone, in a process of its own.
        slow_seconds: The 90% quantile.
        ratio: `seconds` over those of the baseline in the same round.
        contended: Something else was using the machine, so the times are not to be trusted.
        update_rms: Root mean square of what a step changes a weight by, by role; see `accounting.update_rms`.
    """

    optimizer_flops: float
    extra_passes: float
    transient_bytes: float
    seconds: float
    slow_seconds: float
    ratio: float
    contended: bool
    update_rms: dict[str, float]


@dataclass(frozen=True)
class Accounting:
    """The content of accounting.json: FLOPs per trained token (forward and backward), and an `Account` by label."""

    flops_per_token: float
    methods: dict[str, Account]
    machine: Any
    command: str


@dataclass(frozen=True)
class Study:
    """Everything that is on disk about a study, or about a lone run (then `lone` is True and there is one method).

    `problems` grows while files are read; ask for it last.
    """

    path: Path
    name: str
    command: str
    created: str
    versions: Record
    machine: Record
    tier: str
    workload: Record
    baseline: str
    methods: list[Method]
    tuning_seed: int | None
    seeds: list[int]
    runs: list[Run]
    lone: bool = False
    problems: list[str] = field(default_factory=list)
    config: Record = field(default_factory=dict)
    failures: Record = field(default_factory=dict)
    accounting: Accounting | None = None

    def finals(self, method: Method) -> list[Run]:
        """The runs whose losses are compared: `method` at its best point, one run per seed of the study."""
        return self._finals[method.label]

    @cached_property
    def _finals(self) -> dict[str, list[Run]]:
        labelled: dict[str, list[Run]] = {}
        recipes: dict[str, list[Run]] = {}
        for run in self.runs:
            labelled.setdefault(run.method, []).append(run)
            recipes.setdefault(files.recipe(run.config), []).append(run)
        by_id = {run.id: run for run in self.runs}
        found = {}
        for method in self.methods:
            runs = labelled.get(method.label, [])
            if not self.lone:
                trial = method.chosen
                tried = by_id.get(trial.run_id) if trial else None
                # The configuration that won, with every option filled in, is that of the final runs: two variants may
                # share a run, and a label or a learning rate alone would not tell them apart.
                same = recipes.get(files.recipe(tried.config), []) if tried else []
                runs = _one_per_seed(same, self.seeds) or _one_per_seed(
                    [run for run in runs if math.isclose(run.lr, method.best_lr, rel_tol=1e-6)], self.seeds
                )
            found[method.label] = runs
        return found

    @property
    def parameters(self) -> float:
        """Number of model parameters; NaN if unknown."""
        model = self.workload.get("model")
        stated = number(model.get("parameters")) if isinstance(model, dict) else math.nan
        if math.isfinite(stated):
            return stated
        table = next((run.routing for run in self.runs if run.routing), [])
        return float(sum(math.prod(row.get("shape") or [0]) for row in table)) or math.nan

    @property
    def tokens_per_step(self) -> float:
        """Tokens of a step; NaN if unknown."""
        return number(self.workload.get("tokens_per_step"))

    def account(self, method: Method) -> Account | None:
        """What was measured about the steps of a method, if anything."""
        return self.accounting.methods.get(method.label) if self.accounting else None

    @property
    def model_flops(self) -> float:
        """FLOPs of one forward and backward pass over a batch; NaN unless accounting.json has them."""
        return self.accounting.flops_per_token * self.tokens_per_step if self.accounting else math.nan

    def flops_per_step(self, method: Method) -> float:
        """Model and optimizer; NaN unless accounting.json has both."""
        account = self.account(method)
        return (1 + account.extra_passes) * self.model_flops + account.optimizer_flops if account else math.nan

    def step_seconds(self, method: Method) -> float:
        """Time of a training step: the model's, which is the same for all methods, and the optimizer's measured apart.

        NaN unless accounting.json has the latter.
        """
        account = self.account(method)
        return (1 + account.extra_passes) * self.model_seconds + account.seconds if account else math.nan

    @cached_property
    def model_seconds(self) -> float:
        """Time of a forward and backward pass: the median of what is left of the steps of the finished final runs.

        These runs shared a machine, but all methods have this number in common.
        """
        left = []
        for method in self.methods:
            account = self.account(method)
            for run in self.finals(method) if account else ():
                step = number(run.final.get("seconds")) / (run.step or math.nan)
                if account and run.state == "done" and math.isfinite(step - account.seconds):
                    left.append((step - account.seconds) / (1 + account.extra_passes))
        return max(0.0, statistics.median(left)) if left else math.nan


def _one_per_seed(runs: Sequence[Run], seeds: Sequence[int]) -> list[Run]:
    by_seed: dict[int, Run] = {}
    for run in sorted(runs, key=lambda r: (r.purpose == "final", r.state == "done")):
        if run.seed in seeds:
            by_seed[run.seed] = run  # where a seed was used for tuning too, the run made for the final numbers wins
    return [by_seed[seed] for seed in sorted(by_seed)]
