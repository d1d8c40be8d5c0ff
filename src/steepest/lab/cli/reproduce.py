"""`steepest reproduce`: repeat, in small, what a paper reports."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from steepest.lab.cli import options

if TYPE_CHECKING:
    from steepest.lab.reproductions.execution import Watcher


def register(app: typer.Typer) -> None:
    """Add `steepest reproduce` to the command line."""
    app.command()(reproduce)


def reproduce(
    *,
    name: Annotated[str | None, typer.Argument(metavar="[NAME]", help="A study; without it, all are listed.")] = None,
    seeds: Annotated[int | None, typer.Option(help="Seeds per arm. Default: those of the study.")] = None,
    quick: Annotated[bool, typer.Option("--quick", help="A quick look: fewer seeds, smaller problems.")] = False,
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Folder of the results. Default: runs/NAME (runs/NAME-quick).")
    ] = None,
    workers: Annotated[int | None, typer.Option(help="Processes, one thread each. Default: the cores.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Compute everything anew.")] = False,
    quiet: options.Quiet = False,
) -> None:
    """Repeat what a paper reports, on problems small enough for two cores, with error bars and in honest words.

    Example: steepest reproduce

    Example: steepest reproduce softsign-unigram

    The folder gets result.json (all numbers, settings with their source, versions), table.md, figures as SVG and a
    README. Ctrl-C stops; the same command goes on from there, and what is finished is not computed again. The exit code
    is 130 when stopped.
    """
    if name is None:
        _list()
        return
    from rich.console import Console

    from steepest.lab.reproductions import find
    from steepest.lab.reproductions.execution import carry_out, cores, plan
    from steepest.lab.reproductions.output import sentences, terminal_table, write
    from steepest.lab.runs import command
    from steepest.lab.signals import stop_on_signals

    study = find(name)
    planned = plan(study, seeds, quick)
    folder = out or Path("runs") / (f"{name}-quick" if quick else name)
    count = workers or cores()
    with stop_on_signals() as stop, _display(study.name, quiet) as watch:
        results = carry_out(planned, folder, workers=count, force=force, stop=stop, watch=watch)
    if results is None:
        typer.echo("stopped; what is finished is saved. To go on:", err=True)
        typer.echo(f"  {command().replace(' --force', '')}", err=True)
        raise typer.Exit(130)
    console = Console()
    console.print(f"{study.title} ({study.paper})", style="bold", markup=False, highlight=False)
    for case in results.cases:
        console.print(terminal_table(results, case))
    for sentence in sentences(results):
        console.print(f"- {sentence}", markup=False, highlight=False)
    write(results, folder)
    console.print(f"\nresults: {folder / 'README.md'}", soft_wrap=True, highlight=False, markup=False)


def _list() -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from steepest.lab.reproductions import MODULES, find

    table = Table(title="Studies", box=None, pad_edge=False, title_justify="left", padding=(0, 2, 0, 0))
    table.add_column("name", no_wrap=True)
    table.add_column("what it shows", ratio=3)
    table.add_column("paper", ratio=2)
    table.add_column("min", justify="right", no_wrap=True)
    for study in map(find, MODULES):
        table.add_row(*map(Text, (study.name, study.title, study.paper, f"{study.minutes:g}")))
    console = Console()
    console.print(table)
    console.print(
        f"\nmin: minutes on two cores; --quick is faster.\nExample: steepest reproduce {next(iter(MODULES))}",
        highlight=False,
    )


@contextlib.contextmanager
def _display(name: str, quiet: bool) -> Iterator[Watcher]:
    """One bar for all cells; without a terminal, a line when it begins."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    from steepest.lab.reproductions.execution import Watcher

    console = Console(stderr=True, quiet=quiet)
    bars = Progress(
        TextColumn("{task.description}", markup=False), BarColumn(),
        TextColumn("{task.completed:.0f}/{task.total:.0f}"), TextColumn("{task.fields[state]}", markup=False),
        TimeRemainingColumn(),
        console=console, disable=quiet or not console.is_terminal,
    )  # fmt: skip

    class Display(Watcher):
        done = 0

        def planned(self, total: int, left: int) -> None:
            self.done = total - left
            self.bar = bars.add_task(name, total=total, completed=self.done, state="")
            finished = f", {self.done} are finished already" if self.done else ""
            console.print(f"{name}: {total} runs{finished}", highlight=False, markup=False)

        def progressed(self, label: str, fraction: float) -> None:
            bars.update(self.bar, completed=self.done + fraction, state=label)

        def ended(self, label: str, seconds: float) -> None:
            self.done += 1
            bars.update(self.bar, completed=self.done, state=label)

    with bars:
        yield Display()
