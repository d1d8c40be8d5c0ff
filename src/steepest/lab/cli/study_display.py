"""What `steepest study` and `steepest compare` show: progress while they run, and the result in the terminal."""

from __future__ import annotations

import math
import os
import shlex
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from steepest.lab.errors import UserError
from steepest.lab.signals import Stop
from steepest.lab.studies import Watcher
from steepest.lab.wording import plural

if TYPE_CHECKING:
    from rich.console import Console

    from steepest.lab.config import StudyConfig, StudyMethod, TrainConfig
    from steepest.lab.results import Study as FinishedStudy
    from steepest.lab.studies import Study
    from steepest.lab.training import Progress


# What is accounted for after the last run. Times last, when the machine has come to rest.
_ACCOUNTED = (("flops", "bytes", "update"), ("time",))


def carry_out(study: Study, workers: int | None, *, report: bool, bench: bool, quiet: bool) -> None:
    """Carry a study out in front of the user, then show its result.

    Args:
        study: what to carry out.
        workers: runs at a time; None for `default_workers`.
        report: write the page.
        bench: account for the costs of the methods first; where that fails, the report does without.
        quiet: only the result.

    Raises:
        typer.Exit: 130 when stopped, 1 when runs failed; then everything that is known has been shown.
    """
    from rich.console import Console

    from steepest.lab.results import read_study
    from steepest.lab.runs import command
    from steepest.lab.signals import stop_on_signals

    count = workers or default_workers(study.config.device)
    with stop_on_signals() as stop:
        with Display(count, quiet) as display:
            finished = study.carry_out(workers=count, watch=display, stop=stop)
        accounted = not (finished and bench) or account(study.folder, stop, quiet)
    if not finished:
        typer.echo(f"stopped; all runs are saved. To go on:\n  {command()}", err=True)
        raise typer.Exit(130)
    console = Console()
    show(read_study(study.folder), console)
    if report:
        from steepest.lab.report import write

        console.print(f"\nreport: {write(study.folder)}", soft_wrap=True, highlight=False, markup=False)
    console.print(f"runs: {study.runs}", soft_wrap=True, highlight=False, markup=False)
    if study.failed:
        typer.echo(f"\n{plural(len(study.failed), 'run')} failed, and nothing above knows their losses:", err=True)
        for name, why in study.failed.items():
            typer.echo(f"  {name}: {(why.strip().splitlines() or ['for no known reason'])[-1]}", err=True)
        typer.echo(f"The same command tries them again, and repeats no other run:\n  {command()}", err=True)
    if not accounted:
        typer.echo(f"stopped before all costs were accounted for. To go on:\n  {command()}", err=True)
        raise typer.Exit(130)
    if study.failed:
        raise typer.Exit(1)


class _Stopped(Exception):  # noqa: N818 - nothing went wrong
    """A stop was requested between two measurements."""


def account(folder: Path, stop: Stop, quiet: bool) -> bool:
    """Account for the costs of a study's methods in front of the user, one process at a time.

    Whatever goes wrong is told and raises nothing: a report without costs is better than none.

    Returns:
        False when stopped before the end.
    """
    from rich.console import Console

    from steepest.lab import accounting
    from steepest.lab.cli.bench import progress
    from steepest.lab.studies.claims import Claims

    console, again = Console(stderr=True, quiet=quiet), f"steepest bench study {shlex.quote(str(folder))}"

    def tell(words: str) -> None:
        console.print(words, soft_wrap=True, markup=False, highlight=False)

    try:
        with Claims() as claims:
            if not claims.take(folder):
                tell("another process is accounting for the costs of the methods; `steepest report` will show them")
                return True
            subject, begun = accounting.of_study(folder), False
            with progress(len(subject.methods) * len(accounting.PARTS), quiet) as show:

                def watch(label: str, part: str) -> None:
                    nonlocal begun
                    if stop.requested:
                        raise _Stopped
                    if not begun:
                        count = plural(len(subject.methods), "method")
                        tell(f"accounting for operations, memory and step times of {count} (--no-bench leaves it out)")
                    begun = True
                    show(label, part)

                for parts in _ACCOUNTED:
                    accounting.account(subject, folder, parts=parts, watch=watch)
    except _Stopped:
        return False
    except Exception as error:
        why = f"{error}" if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
        typer.echo(f"the costs of the methods are not known: {why}\nTo try again: {again}", err=True)
    return True


def default_workers(device: str) -> int:
    """As many as there are cores; 1 on a GPU, which runs would share."""
    import torch

    if device != "cpu" and torch.cuda.is_available():
        return 1
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class Display(Watcher):
    """What a comparison is doing: a line per finished run, and on a terminal a bar per worker and one for the whole."""

    def __init__(self, workers: int, quiet: bool) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

        self.console = Console(stderr=True, quiet=quiet)
        self.bars = Progress(
            TextColumn("{task.description}", markup=False), BarColumn(), TextColumn("{task.percentage:>3.0f}%"),
            TextColumn("{task.fields[state]}", markup=False), TimeRemainingColumn(),
            console=self.console, disable=quiet or not self.console.is_terminal,
        )  # fmt: skip
        self.workers = workers
        self.lines: dict[int, Any] = {}
        self.began: dict[int, float] = {}
        self.done, self.runs = 0, 0

    def __enter__(self) -> Display:
        self.bars.start()
        self.whole = self.bars.add_task("starting", total=None, state="")
        self.lines = {
            worker: self.bars.add_task("", total=1, state="", visible=False) for worker in range(self.workers)
        }
        return self

    def __exit__(self, *exception: object) -> None:
        self.bars.stop()

    def _print(self, text: str, style: str = "") -> None:
        self.bars.console.print(text, style=style, soft_wrap=True, markup=False, highlight=False)

    def planned(self, config: StudyConfig, runs_left: int, seconds: float | None) -> None:
        """Say how long it will take."""
        self.runs, self.steps = runs_left, config.workload.steps
        about = "" if seconds is None else f", about {duration(seconds * 1.3 + 10)}"
        self._print(f"{config.name}: {runs_left} runs of {self.steps:,} steps, {self.workers} at a time{about}")
        self._draw_whole()

    def _draw_whole(self) -> None:
        self.bars.update(self.whole, total=self.runs * self.steps, description=f"all runs  {self.done}/{self.runs}")

    def started(self, config: TrainConfig, worker: int) -> None:
        """Show the worker's bar."""
        self.began[worker] = time.monotonic()
        self.runs = max(self.runs, self.done + len(self.began))  # a grid has grown
        self.bars.reset(
            self.lines[worker], total=config.workload.steps, description=_title(config), state="", visible=True
        )

    def progressed(self, worker: int, progress: Progress) -> None:
        """Move the bars."""
        state = f"loss {progress.loss:.3f}  {progress.tokens_per_second:,.0f} tokens/s"
        self.bars.update(self.lines[worker], completed=progress.step, state=state)
        under_way = sum(self.bars.tasks[self.lines[worker]].completed for worker in self.began)
        self.bars.update(self.whole, completed=self.done * self.steps + under_way)

    def ended(self, config: TrainConfig, worker: int, state: str, loss: float | None, message: str) -> None:
        """Print a line."""
        seconds = time.monotonic() - self.began.pop(worker)
        self.bars.update(self.lines[worker], visible=False)
        self.done += state in ("done", "diverged")
        self._draw_whole()
        outcome = f"loss {loss:.4f}" if loss is not None else state.upper()
        self._print(f"{_title(config):<42} {outcome:<14} {seconds:5.1f} s", "" if state == "done" else "yellow")
        if message:
            self._print(message.rstrip(), "red")

    def extended(self, method: StudyMethod, axis: str, value: float) -> None:
        """Say why there are more runs."""
        name = "learning rate" if axis == "lr" else axis
        self._print(f"{method.label or method.name}: the best {name} is on the edge of the grid; trying {value:g} too")

    def waiting(self, runs: int) -> None:
        """Say why nothing happens."""
        self._print(f"waiting for {runs} runs of other processes")


_MOST_RATES = 8  # columns of learning rates in a terminal


def _title(config: TrainConfig) -> str:
    method = config.method
    return f"{method.label or method.name} lr {method.lr:g} seed {config.seed} ({config.purpose})"


def duration(seconds: float) -> str:
    """Seconds in words."""
    return (
        f"{seconds:.0f} s"
        if seconds < 90
        else f"{seconds / 60:.0f} min"
        if seconds < 5400
        else f"{seconds / 3600:.1f} h"
    )


def show(study: FinishedStudy, console: Console) -> None:
    """Print the points tried and the result of a comparison.

    With several tuned axes a learning rate has the lowest loss over the others; their best values stand behind.
    """
    from rich.table import Table
    from rich.text import Text

    from steepest.lab.report import headline, terminal_table, verdict
    from steepest.lab.results import axes
    from steepest.lab.wording import settings

    table = Table(show_header=False, box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for method in study.methods:
        cells = []
        for trial in method.by_rate[:_MOST_RATES]:
            loss = f"{trial.loss:.3f}" if math.isfinite(trial.loss) else trial.state
            chosen = math.isclose(trial.lr, method.best_lr, rel_tol=1e-6)
            cells.append(Text(f"{trial.lr:.3g}\n{loss}", "bold underline" if chosen else ""))
        left = len(method.by_rate) - _MOST_RATES
        cells += [Text(f"and {left}\nmore")] if left > 0 else []
        best = settings(method.others)
        cells += [Text(f"of {len(method.trials)} points:\n{best}")] if best else []
        table.add_row(Text(method.label), *cells, Text(f"open edge:\n{axes(method)}", "yellow") if method.edge else "")
    rows = headline(study)
    lines = [
        *verdict(study, rows),
        "Tokens per second of a worker: "
        + ", ".join(f"{row.method.label} {row.tokens_per_second:,.0f}" for row in rows if row.tokens_per_second > 0)
        + " (what else the machine was doing counts).",
    ]
    console.print(
        f"\nLearning rates tried, and their validation loss (seed {study.tuning_seed}; the best is underlined)"
    )
    console.print(table)
    console.print()
    console.print(terminal_table(study, console.width))
    for line in lines:
        console.print(line, highlight=False, markup=False)
