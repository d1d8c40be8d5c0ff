"""`steepest train`: one run."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from steepest.lab.cli import options

if TYPE_CHECKING:
    from steepest.lab.config import TrainConfig
    from steepest.lab.training import Result


def register(app: typer.Typer) -> None:
    """Add `steepest train` to the command line."""
    app.command()(train)


def train(
    *,
    model: options.Model = None,
    data: options.Data = None,
    text: options.Text = None,
    tokenizer: options.Tokenizer = None,
    optimizer: Annotated[str | None, typer.Option(help="A name of `steepest optimizers`. Default: adamw.")] = None,
    lr: Annotated[float | None, typer.Option(help="Peak learning rate. Default: the middle of its grid.")] = None,
    steps: options.Steps = None,
    batch_size: options.BatchSize = None,
    sequence_length: options.SequenceLength = None,
    micro_batch: Annotated[
        int | None, typer.Option(help="Sequences per pass; gradients accumulate. Default: all.")
    ] = None,
    schedule: options.Schedule = None,
    warmup: options.Warmup = None,
    final: options.Final = None,
    clip: options.Clip = None,
    precision: options.Precision = None,
    seed: Annotated[int | None, typer.Option(help="Of initial weights and order of data. Default: 0.")] = None,
    device: options.Device = None,
    threads: Annotated[int | None, typer.Option(help="torch threads. Default: torch's choice.")] = None,
    cache: options.Cache = None,
    out: Annotated[Path, typer.Option(help="The run's folder is made in here.")] = Path("runs"),
    config: options.Config = None,
    override: options.Override = None,
    quiet: options.Quiet = False,
) -> None:
    """Train a language model once, with checks, checkpoints and files for the report.

    Example: steepest train --model tiny --data news-wiki --optimizer lionmuon --lr 1e-2 --steps 400

    An option of the optimizer: -o method.options.period=5 (`steepest optimizers show lionmuon` lists them). Every
    other setting has a dotted name too: -o workload.schedule.decay=0.3 -o workload.evaluation.tokens=131072.

    Ctrl-C saves and stops; the same command goes on from there and ends with the same numbers. A finished run is not
    repeated. The exit code is 0 when the run is done, 3 when it diverged, 130 when it was stopped.
    """
    from steepest.lab import training
    from steepest.lab.config import TrainConfig, validate
    from steepest.lab.signals import stop_on_signals
    from steepest.lab.workloads import open_data, resolve

    values = options.gather({}, config, override, {
        "workload.model": model, "workload.data": data, "workload.text": text, "workload.tokenizer": tokenizer,
        "workload.steps": steps, "workload.batch_size": batch_size, "workload.sequence_length": sequence_length,
        "workload.schedule.kind": schedule, "workload.schedule.warmup": warmup, "workload.schedule.final": final,
        "workload.clip": clip, "workload.precision": precision, "method.name": optimizer, "method.lr": lr,
        "seed": seed, "micro_batch": micro_batch, "device": device, "threads": threads, "cache": cache,
    })  # fmt: skip
    chosen = resolve(validate(TrainConfig, values))
    pack = open_data(chosen, progress=not quiet)
    with stop_on_signals() as stop, _bar(chosen, quiet) as observe:
        result = training.train(chosen, out, pack=pack, stop=stop, observe=observe)
    _say(result)
    raise typer.Exit({"done": 0, "diverged": 3}.get(result.state, 130))


class _bar:  # noqa: N801 - used like a function
    """A progress bar with loss, tokens per second and time left; silent when quiet or not on a terminal."""

    def __init__(self, config: TrainConfig, quiet: bool) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        console = Console(stderr=True)
        self.bar = Progress(
            TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(),
            TextColumn("loss {task.fields[loss]}"), TextColumn("{task.fields[speed]} tokens/s"), TimeRemainingColumn(),
            console=console, disable=quiet or not console.is_terminal,
        )  # fmt: skip
        self.config = config

    def __enter__(self) -> Any:
        method = self.config.method
        self.bar.start()
        name = f"{method.name} lr {method.lr:g} seed {self.config.seed}"
        self.task = self.bar.add_task(name, total=self.config.workload.steps, loss="-", speed="-")
        return self._observe

    def __exit__(self, *exception: object) -> None:
        self.bar.stop()

    def _observe(self, progress: Any) -> None:
        self.bar.update(
            self.task, completed=progress.step, loss=f"{progress.loss:.3f}", speed=f"{progress.tokens_per_second:,.0f}"
        )


def _say(result: Result) -> None:
    from steepest.lab.runs import command

    final = result.final
    if final is None:
        typer.echo(f"stopped after step {result.step}; everything up to there is saved. To go on:", err=True)
        typer.echo(f"  {command()}", err=True)
    elif result.state == "diverged":
        typer.echo(f"diverged at step {result.step}: {final['reason']}. Try a smaller --lr.", err=True)
    else:
        typer.echo(
            f"validation loss {final['loss']:.4f} nats per token, perplexity {final['perplexity']:.2f}, "
            f"{final['bits_per_byte']:.4f} bits per byte, after {final['step']:,} steps ({final['tokens']:,} tokens) "
            f"in {final['seconds']:.1f} s, {final['tokens_per_second']:,.0f} tokens/s"
        )
        typer.echo(f"optimizer state {final['state_bytes']:,} bytes")
    typer.echo(f"run: {result.path}")
    if result.state == "done" and sys.stdout.isatty():
        typer.echo(f"report: steepest report {result.path}")
