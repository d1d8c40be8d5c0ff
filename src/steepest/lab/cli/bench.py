"""`steepest bench`: what methods cost, measured where nothing else disturbs it."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

_METHODS = "adamw,lion,muon,lionmuon"
_TITLES = {"time": "time of a step", "bytes": "memory", "flops": "operations", "update": "update RMS"}

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    help="Costs of methods: step time, memory, FLOPs.\n\nExample: steepest bench step --methods adamw,lion,muon",
)

Model = Annotated[
    str, typer.Option("--model", "-m", help="A model by name (tiny, llama-130m, ...), or a Hugging Face config.")
]
Methods = Annotated[str, typer.Option(help="Names of `steepest optimizers` with commas.")]
Baseline = Annotated[str, typer.Option(help="The method whose time is 1; it is added if it is not among them.")]
BatchSize = Annotated[int, typer.Option(min=1, help="Sequences per step.")]
SequenceLength = Annotated[int, typer.Option(min=1, help="Tokens per sequence.")]
Threads = Annotated[int, typer.Option(min=1, help="Threads of torch in each process.")]
Device = Annotated[str, typer.Option(help="cpu, cuda, cuda:1, or auto: a GPU if there is one.")]
Rounds = Annotated[int, typer.Option(min=1, help="Samples of each time.")]
Json = Annotated[bool, typer.Option("--json", help="Print the record as JSON instead of a table.")]


def register(parent: typer.Typer) -> None:
    """Add `steepest bench` to the command line."""
    parent.add_typer(app, name="bench")


@app.command()
def step(
    *,
    model: Model = "tiny",
    methods: Methods = _METHODS,
    baseline: Baseline = "adamw",
    rounds: Rounds = 21,
    threads: Threads = 1,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Time the optimizer step alone: a fresh process per method, in turns with the baseline.

    Example: steepest bench step --model llama-60m --methods adamw,lion,muon

    A time is a mean over whole periods of alternating rules. Times taken while the machine is busy are marked: trust
    their ratios, and those of CPU time more, and measure again on a quiet machine.
    """
    record = _account("time", model, methods, baseline, rounds=rounds, threads=threads, device=device)
    _show(record, ("time",), as_json)


@app.command()
def memory(
    *,
    model: Model = "tiny",
    methods: Methods = _METHODS,
    threads: Threads = 1,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Measure state and what a step allocates for a while, by carrying steps out; `steepest memory` only plans.

    Example: steepest bench memory --model mini --methods adamw,muon,soap,sac+adamw
    """
    first = methods.split(",", maxsplit=1)[0].strip()
    _show(_account("bytes", model, methods, first, threads=threads, device=device), ("bytes",), as_json)


@app.command()
def flops(
    *,
    model: Model = "tiny",
    methods: Methods = _METHODS,
    batch_size: BatchSize = 16,
    sequence_length: SequenceLength = 128,
    published: Annotated[
        bool, typer.Option("--published", help="Instead, the totals of the LionMuon paper by its own convention.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Count the operations of the model and of an optimizer step; nothing is allocated where that can be avoided.

    Example: steepest bench flops --model lionmuon-gpt2-124m --batch-size 32 --sequence-length 512

    A product of matrices of (m, k) and (k, n) is 2 m k n, an element-wise operation 1 per element. Attention scores are
    counted whole, embeddings not at all.
    """
    if published:
        _show_published(as_json)
        return
    size = {"batch_size": batch_size, "sequence_length": sequence_length}
    first = methods.split(",", maxsplit=1)[0].strip()
    _show(_account("flops", model, methods, first, workload=size, device="cpu"), ("flops",), as_json)


@app.command()
def study(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="The folder of a study, with study.json.")],
    *,
    time: Annotated[bool, typer.Option(help="Also the step time, which needs a quiet machine.")] = True,
    rounds: Rounds = 21,
    threads: Threads = 1,
    again: Annotated[bool, typer.Option("--again", help="Also what accounting.json has already.")] = False,
    as_json: Json = False,
) -> None:
    """Account for every method of a study, at the values that won, and write accounting.json beside study.json.

    Example: steepest bench study runs/first

    Give the same command again to go on; what is there is not done again.
    """
    from steepest.lab import accounting

    parts = tuple(part for part in accounting.PARTS if time or part != "time")
    subject = accounting.of_study(folder, threads)
    with progress(len(subject.methods) * len(parts)) as watch:
        record = accounting.account(subject, folder, parts=parts, rounds=rounds, again=again, watch=watch)
    _show(record, parts, as_json)
    if not as_json:
        typer.echo(f"\nwritten: {folder / accounting.FILE}")


def _account(
    part: str, model: str, names: str, baseline: str, *, workload: Mapping[str, int] | None = None, **options: Any
) -> dict[str, Any]:
    from steepest.lab import accounting, models
    from steepest.lab.config import Workload, validate

    limits = {"rounds": options.pop("rounds")} if "rounds" in options else {}
    chosen = [name.strip() for name in names.split(",") if name.strip()]
    positions = getattr(models.configuration(model), "max_position_embeddings", None)
    length = {} if workload or positions is None else {"sequence_length": min(128, positions)}
    subject = accounting.of_names(
        chosen, validate(Workload, {"model": model, **length, **(workload or {})}), baseline, **options
    )
    with progress(len(subject.methods)) as watch:
        return accounting.account(subject, parts=(part,), watch=watch, **limits)


@contextlib.contextmanager
def progress(total: int, quiet: bool = False) -> Iterator[Callable[[str, str], None]]:
    """Show on a terminal what is being measured."""
    from rich.console import Console
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
    from rich.text import Text

    console = Console(stderr=True)
    columns = (
        SpinnerColumn(),
        TextColumn("{task.completed} of {task.total}"),
        TextColumn("{task.description}", markup=False),
    )
    with Progress(
        *columns, TimeElapsedColumn(), console=console, transient=True, disable=quiet or not console.is_terminal
    ) as bar:
        task = bar.add_task("starting", total=total)
        begun = 0

        def watch(label: str, part: str) -> None:
            nonlocal begun
            bar.update(task, description=Text(f"{label}: {_TITLES[part]}").plain, completed=begun)
            begun += label != "model"

        yield watch


def _show(record: Mapping[str, Any], parts: Sequence[str], as_json: bool) -> None:
    from rich.console import Console

    from steepest.lab.accounting import output
    from steepest.lab.cli.tables import table

    if as_json:
        typer.echo(json.dumps(record, indent=1))
        return
    console, model = Console(), record["model"]
    passes = model["flops_per_token"]
    told = "" if passes is None else f"; {passes:.4g} FLOPs a token at {model['sequence_length']} tokens a sequence"
    head = f"{model['name']}: {model['parameters']:,} parameters{told}"
    console.print(head, style="bold", markup=False, highlight=False)
    if model.get("note"):
        console.print(model["note"], markup=False, highlight=False)
    for part in parts:
        console.print(table(output.ROWS[part](record)))
        for line in output.remarks(record, part):
            console.print(line, markup=False, highlight=False)
    if "time" in parts:
        console.print(
            f"{record['machine']['cpu']}, {record['machine']['threads']} threads of {record['machine']['cores']} "
            f"cores; the baseline is {record['baseline']}.",
            markup=False,
            highlight=False,
        )


def _show_published(as_json: bool) -> None:
    from rich.console import Console

    from steepest.lab import methods, models
    from steepest.lab.accounting import count_model, count_step, output
    from steepest.lab.accounting.published import RUNS
    from steepest.lab.cli.tables import table
    from steepest.lab.config import MethodConfig

    ours = {}
    for size, run in RUNS.items():
        network = models.build(run.preset, device="meta")
        muon = methods.build(MethodConfig(name="muon"), network, run.steps)
        ours[size] = (count_model(network, run.batch, run.length).total, count_step(muon).total)
    rows = output.published_rows(ours)
    if as_json:
        columns = list(zip(*rows, strict=True))
        cells = {column[0]: dict(zip(columns[0][1:], column[1:], strict=True)) for column in columns[1:]}
        typer.echo(json.dumps(cells, indent=1))
        return
    console = Console()
    console.print(table(rows))
    console.print(
        "FLOPs of the runs of LionMuon (arXiv 2605.19811) as its plots have them: 6 a parameter and token, embeddings "
        "and positions included, no attention scores. Ours counts scores, no position that is looked up, and of "
        "a step of our Muon, which splits fused queries, keys and values, what is carried out.",
        markup=False,
        highlight=False,
    )
