"""`steepest compare`: several optimizers on one workload, each at its tuned learning rate, with error bars."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from steepest.lab.cli import options
from steepest.lab.errors import UserError, unknown

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
    runs: Annotated[
        list[str] | None,
        typer.Argument(metavar="[RUN RUN ...]", help="Runs that exist: show what differs, and train nothing."),
    ] = None,
    *,
    root: Annotated[Path, typer.Option(help="The folder that holds these runs.")] = Path("runs"),
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
        int | None, typer.Option(help="Rates added at most where the best is on the edge. Default: 3.")
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
    bench: Annotated[bool, typer.Option(help="Account for the costs of each method after the last run.")] = True,
    report: Annotated[bool, typer.Option(help="Write the HTML report at the end.")] = True,
    config: options.Config = None,
    override: options.Override = None,
    quiet: options.Quiet = False,
) -> None:
    """Compare optimizers: tune each learning rate on one seed, then run fresh seeds, then report.

    Example: steepest compare --preset demo

    Example: steepest compare adamw-lr0.004-s1 lionmuon-lr0.01-s1     (runs that exist, side by side)

    Example: steepest compare --methods adamw,lionmuon --model mini --tokenizer bpe-4096 --steps 1000 --seeds 3

    Every method has the same weights, data, schedule and clipping per seed, which is checked. A best learning rate on
    the edge of its grid is followed outwards. Differences to the baseline are paired by seed, and a method is called
    better or worse only when the 95% interval excludes zero; with two seeds that interval is wide.

    Ctrl-C saves all runs; the same command goes on from there. Runs that exist are not repeated, so adding a method, a
    seed or a learning rate runs only what is new. The exit code is 130 when stopped.

    In a file (--config): name, workload {model, data, steps, ...}, methods [{name, label, options, grid}, ...], seeds,
    tuning_seed, extend, baseline.
    """
    from steepest.lab.cli.study_display import carry_out
    from steepest.lab.config import StudyConfig, validate
    from steepest.lab.studies import Study

    if runs:
        show_differences(runs, root)
        return
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
    carry_out(Study(validate(StudyConfig, values), out), workers, report=report, bench=bench, quiet=quiet)


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


def show_differences(names: list[str], root: Path) -> None:
    """Print settings and results of runs side by side, leaving out what is the same in all."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from steepest.lab.store import Index
    from steepest.lab.store.comparing import differences

    folders = [Path(name) if (Path(name) / "config.json").exists() else Index(root).find(name) for name in names]
    rows = differences(folders)
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("")
    for folder in folders:
        table.add_column(Text(folder.name), overflow="fold")
    for name, values in rows:
        table.add_row(Text(name), *(Text("" if value is None else str(value)) for value in values))
    Console().print(table)
