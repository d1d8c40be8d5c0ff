"""`steepest compare`: several optimizers on one workload, each at its tuned learning rate, with error bars."""

from __future__ import annotations

import math
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from steepest.lab.cli import options
from steepest.lab.compare import Watcher
from steepest.lab.errors import UserError, unknown

if TYPE_CHECKING:
    from rich.console import Console

    from steepest.lab.config import StudyConfig, StudyMethod, TrainConfig
    from steepest.lab.results import Study
    from steepest.lab.training import Progress

PRESETS: dict[str, dict[str, Any]] = {
    # What `make demo` runs: a few minutes on two cores.
    "demo": {
        "name": "demo",
        "workload": {
            "model": "tiny",
            "data": "news-wiki",
            "tokenizer": "bytes",
            "steps": 400,
            "evaluation": {"every": 80},
        },
        "methods": ["adamw", "signum", "lion", "muon", "signmuon", "lionmuon"],
        "seeds": [1, 2],
        "extend": 1,
    },
}


def register(app: typer.Typer) -> None:
    """Add `steepest compare` to the command line."""
    app.command()(compare)


def compare(
    *,
    preset: Annotated[str | None, typer.Option(help=f"A ready-made comparison: {', '.join(PRESETS)}.")] = None,
    methods: Annotated[str | None, typer.Option(help="Names of `steepest optimizers`, with commas.")] = None,
    grid: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=LR,LR", help="Learning rates to try for a method; may be repeated."),
    ] = None,
    seeds: Annotated[
        int | None, typer.Option(help="Fresh seeds per method, after tuning on another. Default: 2.")
    ] = None,
    extend: Annotated[
        int | None, typer.Option(help="Rates added at most where the best is on the edge. Default: 2.")
    ] = None,
    baseline: Annotated[str | None, typer.Option(help="What the others are compared with. Default: adamw.")] = None,
    name: Annotated[str | None, typer.Option(help="Of the comparison and its folder. Default: compare.")] = None,
    model: options.Model = None,
    data: options.Data = None,
    text: options.Text = None,
    tokenizer: options.Tokenizer = None,
    steps: options.Steps = None,
    batch_size: options.BatchSize = None,
    sequence_length: options.SequenceLength = None,
    schedule: options.Schedule = None,
    warmup: options.Warmup = None,
    final: options.Final = None,
    clip: options.Clip = None,
    precision: options.Precision = None,
    device: options.Device = None,
    cache: options.Cache = None,
    out: Annotated[Path, typer.Option(help="The comparison's folder is made in here.")] = Path("runs"),
    workers: Annotated[
        int | None, typer.Option(help="Runs at a time, one thread each. Default: the cores; 1 on a GPU.")
    ] = None,
    report: Annotated[bool, typer.Option(help="Write the HTML report at the end.")] = True,
    config: options.Config = None,
    override: options.Override = None,
    quiet: options.Quiet = False,
) -> None:
    """Compare optimizers: tune each learning rate on one seed, then run fresh seeds, then report.

    Example: steepest compare --preset demo

    Example: steepest compare --methods adamw,lionmuon --model mini --tokenizer bpe-4096 --steps 1000 --seeds 3

    Every method has the same weights, data, schedule and clipping per seed, which is checked. A best learning rate on
    the edge of its grid is followed outwards. Differences to the baseline are paired by seed, and a method is called
    better or worse only when the 95% interval excludes zero; with two seeds that interval is wide.

    Ctrl-C saves all runs; the same command goes on from there. Runs that exist are not repeated, so adding a method, a
    seed or a learning rate runs only what is new. The exit code is 130 when stopped.

    In a file (--config): name, workload {model, data, steps, ...}, methods [{name, label, options, grid}, ...], seeds,
    tuning_seed, extend, baseline.
    """
    from rich.console import Console

    from steepest.lab.compare import Study
    from steepest.lab.config import StudyConfig, validate
    from steepest.lab.results import read_study
    from steepest.lab.runs import command
    from steepest.lab.signals import stop_on_signals

    if preset is not None and preset not in PRESETS:
        raise unknown("preset", preset, PRESETS)
    values = options.gather(PRESETS.get(preset or "", {}), config, override, {
        "name": name, "methods": None if methods is None else [word.strip() for word in methods.split(",")],
        "baseline": baseline, "extend": extend, "device": device, "cache": cache,
        "workload.model": model, "workload.data": data, "workload.text": text, "workload.tokenizer": tokenizer,
        "workload.steps": steps, "workload.batch_size": batch_size, "workload.sequence_length": sequence_length,
        "workload.schedule.kind": schedule, "workload.schedule.warmup": warmup, "workload.schedule.final": final,
        "workload.clip": clip, "workload.precision": precision,
    })  # fmt: skip
    if seeds is not None:
        tuning = int(values.get("tuning_seed", 0))
        values["seeds"] = [seed for seed in range(seeds + 1) if seed != tuning][:seeds]
    _set_grids(values, grid or [])
    study = Study(validate(StudyConfig, values), out)
    count = workers or _workers(study.config.device)
    with stop_on_signals() as stop, _Display(count, quiet) as display:
        finished = study.carry_out(workers=count, watch=display, stop=stop)
    if not finished:
        typer.echo("stopped; all runs are saved. To go on:", err=True)
        typer.echo(f"  {command()}", err=True)
        raise typer.Exit(130)
    console = Console()
    show(read_study(study.folder), console)
    if report:
        from steepest.lab.report import write

        console.print(f"\nreport: {write(study.folder)}", soft_wrap=True, highlight=False, markup=False)
    console.print(f"runs: {study.runs}", soft_wrap=True, highlight=False, markup=False)


def _set_grids(values: dict[str, Any], grids: list[str]) -> None:
    entries: list[Any] = values.get("methods", [])
    methods: list[dict[str, Any]] = [{"name": e} if isinstance(e, str) else dict(e) for e in entries]
    by_name = {str(method.get("label") or method.get("name")): method for method in methods}
    for text in grids:
        name, _, rates = text.partition("=")
        if name not in by_name:
            raise unknown("method in --grid", name, by_name)
        try:
            by_name[name]["grid"] = [float(rate) for rate in rates.split(",")]
        except ValueError:
            raise UserError(f"--grid is NAME=LR,LR, for example lionmuon=5e-3,1e-2,2e-2; got {text!r}.") from None
    values["methods"] = methods


def _workers(device: str) -> int:
    import torch

    if device != "cpu" and torch.cuda.is_available():
        return 1  # runs would share one GPU; with more, start one comparison per device
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class _Display(Watcher):
    """What a comparison is doing: a line per finished run, and on a terminal a bar per worker and one for the whole."""

    def __init__(self, workers: int, quiet: bool) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

        self.console = Console(stderr=True, quiet=quiet)
        self.bars = Progress(
            TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:>3.0f}%"),
            TextColumn("{task.fields[state]}"), TimeRemainingColumn(),
            console=self.console, disable=quiet or not self.console.is_terminal,
        )  # fmt: skip
        self.workers = workers
        self.lines: dict[int, Any] = {}
        self.began: dict[int, float] = {}
        self.done, self.runs = 0, 0

    def __enter__(self) -> _Display:
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
        about = "" if seconds is None else f", about {_duration(seconds * 1.3 + 10)}"
        self._print(f"{config.name}: {runs_left} runs of {self.steps:,} steps, {self.workers} at a time{about}")
        self._draw_whole()

    def _draw_whole(self) -> None:
        self.bars.update(self.whole, total=self.runs * self.steps, description=f"all runs  {self.done}/{self.runs}")

    def started(self, config: TrainConfig, worker: int) -> None:
        """Show the worker's bar."""
        self.began[worker] = time.monotonic()
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

    def extended(self, method: StudyMethod, lr: float) -> None:
        """Say why there is one more run."""
        self.runs += 1
        self._draw_whole()
        self._print(
            f"{method.label or method.name}: the best learning rate is on the edge of the grid; trying {lr:g} too"
        )


def _title(config: TrainConfig) -> str:
    method = config.method
    return f"{method.label or method.name} lr {method.lr:g} seed {config.seed} ({config.purpose})"


def _duration(seconds: float) -> str:
    return (
        f"{seconds:.0f} s"
        if seconds < 90
        else f"{seconds / 60:.0f} min"
        if seconds < 5400
        else f"{seconds / 3600:.1f} h"
    )


def show(study: Study, console: Console) -> None:
    """Print the learning rates tried and the result of a comparison."""
    from rich.table import Table
    from rich.text import Text

    from steepest.lab.report import headline, terminal_table, verdict

    table = Table(show_header=False, box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for method in study.methods:
        cells = []
        for trial in method.trials:
            loss = f"{trial.loss:.3f}" if math.isfinite(trial.loss) else trial.state
            cells.append(Text(f"{trial.lr:g}\n{loss}", "bold underline" if trial.lr == method.best_lr else ""))
        table.add_row(method.label, *cells, Text("best on\nthe edge", "yellow") if method.edge else "")
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
    console.print(terminal_table(study))
    for line in lines:
        console.print(line, highlight=False, markup=False)
