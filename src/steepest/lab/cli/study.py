"""`steepest study`: a comparison that a file describes, by any number of workers on any number of machines."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from steepest.lab.cli import options

if TYPE_CHECKING:
    from steepest.lab.studies import Study

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    help="Studies: optimizers compared as a file says.\n\nExample: steepest study run examples/studies/first.toml",
)

File = Annotated[Path, typer.Argument(metavar="FILE", help="The study: a TOML, YAML or JSON file.")]
Out = Annotated[Path, typer.Option(help="The study's folder is made in here; share it between machines.")]


def register(parent: typer.Typer) -> None:
    """Add `steepest study` to the command line."""
    parent.add_typer(app, name="study")


@app.command()
def run(
    file: File,
    *,
    out: Out = Path("runs"),
    workers: Annotated[
        int | None, typer.Option(min=1, help="Runs at a time, one thread each. Default: the cores; 1 on a GPU.")
    ] = None,
    bench: Annotated[bool, typer.Option(help="Account for the costs of each method after the last run.")] = True,
    report: Annotated[bool, typer.Option(help="Write the HTML report at the end.")] = True,
    override: options.Override = None,
    quiet: options.Quiet = False,
) -> None:
    """Carry out a study: plan, calibrate, tune every method, run the winners on fresh seeds, report.

    Example: steepest study run examples/studies/first.toml

    Give the same command again to go on after Ctrl-C, a crash or a power cut; runs that are over are not repeated. Give
    it on other machines that see the same --out, as often as you like: they share the work. A study may grow (methods,
    seeds, values) but not change; what would change is named and refused.

    Runs are never pruned on a mid-run loss, which says little about the last one; only divergence ends a run early.

    After the last run it accounts for what each method costs, as `steepest bench study` does: operations, memory,
    update RMS and the time of a step, some seconds a method; --no-bench leaves that out. The exit code is 0 when all
    runs are over, 1 when some failed (the same command tries them again), 130 when it was stopped.
    """
    from steepest.lab.cli.study_display import carry_out

    carry_out(_study(file, out, override), workers, report=report, bench=bench, quiet=quiet)


@app.command()
def plan(file: File, out: Out = Path("runs"), override: options.Override = None) -> None:
    """Say what a study will run and what that will cost, from a calibration of a few steps per method.

    Example: steepest study plan examples/studies/first.toml
    """
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from steepest.lab.cli.study_display import default_workers, duration

    study = _study(file, out, override)
    stands = study.calibrate()
    config, table, total = study.config, Table(box=None, pad_edge=False), 0.0
    for name in ("method", "tuned", "trials", "seeds", "ms a step", "time"):
        table.add_column(name, justify="left" if name in ("method", "tuned") else "right")
    for row in stands.rows:
        seconds = study.facts["calibration"][row.label]
        trials = config.trials or len(row.tuning)
        cost = study.seconds_per_run(row.label) * (trials + len(config.seeds))
        total += cost
        axes = ", ".join(f"{n} ({len(v)})" if isinstance(v, list) else n for n, v in row.axes.items())
        cells = (row.label, axes, f"{trials}", f"{len(config.seeds)}", f"{1e3 * seconds:.1f}", duration(cost))
        table.add_row(*map(Text, cells))
    console = Console()
    console.print(table)
    count = default_workers(config.device)
    todo = len(stands.todo)
    console.print(
        f"{config.name}: {duration(total / count)} with {count} workers here, before any grid grows; {todo} runs can "
        f"start now. Start-up and checkpoints are not in it.",
        markup=False,
        highlight=False,
    )


@app.command()
def schema() -> None:
    """Print the JSON schema of a study file: every key, its type, default and meaning.

    Example: steepest study schema > study.schema.json
    """
    from steepest.lab.config import StudyConfig

    typer.echo(json.dumps(StudyConfig.model_json_schema(), indent=2))


@app.command()
def slurm(
    file: File,
    *,
    out: Out = Path("runs"),
    tasks: Annotated[int, typer.Option(min=1, help="Tasks of the array; each runs --workers runs at a time.")] = 4,
    workers: Annotated[int, typer.Option(min=1, help="Workers of a task; as many cores are asked for.")] = 8,
    time: Annotated[str, typer.Option(help="Time limit of a task; a task that is cut off is requeued.")] = "04:00:00",
    partition: Annotated[str | None, typer.Option(help="Partition of the cluster.")] = None,
    gpus: Annotated[int, typer.Option(min=0, help="GPUs of a task.")] = 0,
    override: options.Override = None,
) -> None:
    """Print a SLURM array script for a study; all tasks share the folder and need not start together.

    Example: steepest study slurm study.toml --out /shared/runs --tasks 16 > study.sbatch && sbatch study.sbatch
    """
    from steepest.lab.studies.slurm import script

    study = _study(file, out, override)
    text = script(
        study.config.name, file, out, tasks=tasks, workers=workers, time=time, partition=partition, gpus=gpus,
        overrides=override or (),
    )  # fmt: skip
    typer.echo(text, nl=False)


def _study(file: Path, out: Path, override: list[str] | None) -> Study:
    from steepest.lab.config import StudyConfig, validate
    from steepest.lab.studies import Study

    values = options.gather({"name": file.stem}, file, override, {})
    return Study(validate(StudyConfig, values), out)
