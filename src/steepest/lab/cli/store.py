"""`steepest ls | show | tail | gc | export | import`: all runs below a folder."""

from __future__ import annotations

import json
import os
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from steepest.lab.errors import UserError

if TYPE_CHECKING:
    from steepest.lab.store import Entry

Root = Annotated[Path, typer.Option("--root", "-r", help="The folder that holds the runs.")]
Study = Annotated[str, typer.Option(help="Only of studies of this name (a pattern: 'demo*').")]
MethodName = Annotated[str, typer.Option(help="Only of methods of this name or label (a pattern).")]
State = Annotated[str, typer.Option(help="Only in this state: done, diverged, running, interrupted, failed.")]
_ROOT = Path("runs")


def register(app: typer.Typer) -> None:
    """Add the commands to the command line."""
    for name, command in (("ls", ls), ("show", show), ("tail", tail), ("gc", gc), ("export", export)):
        app.command(name=name)(command)
    app.command(name="import")(import_)


def ls(
    root: Annotated[Path, typer.Argument(help="The folder that holds the runs.")] = _ROOT,
    *,
    study: Study = "*",
    method: MethodName = "*",
    state: State = "*",
    text: Annotated[str, typer.Option(help="Only runs whose path has this in it.")] = "",
    sort: Annotated[str, typer.Option(help="loss, updated, label, lr, seed, seconds, step, study, state.")] = "updated",
    descending: Annotated[bool, typer.Option("--descending", help="Largest first.")] = False,
    limit: Annotated[int, typer.Option(min=0, help="Show so many, of runs by update the last; 0 for all.")] = 40,
    rescan: Annotated[
        bool, typer.Option("--rescan", help="Read every run again, not only those that changed.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="All fields, one JSON object a line.")] = False,
) -> None:
    """List runs.

    Example: steepest ls runs --study first --state done --sort loss
    """
    from steepest.lab.store import Index

    index = Index(root, rescan)
    entries = index.list(study=study, method=method, state=state, text=text, order=sort, descending=descending)
    _say(index.problems)
    newest = sort == "updated" and not descending  # stand at the end
    shown = (entries[-limit:] if newest else entries[:limit]) if limit else entries
    if as_json:
        for each in shown:
            typer.echo(json.dumps(asdict(each)))
        return
    _table(shown)
    more = len(entries) - len(shown)
    part = f"the {'last' if newest else 'first'} {len(shown)} are shown (--limit 0 for all)"
    typer.echo(f"{len(entries)} runs" + (f", {part}" if more else ""))


def _say(problems: list[str]) -> None:
    """What could not be read, apart from what was asked for."""
    for problem in problems:
        typer.echo(f"note: {problem}", err=True)


def _table(entries: list[Entry]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("study", "method", "lr", "seed", "purpose", "state", "step", "loss", "run"):
        table.add_column(name, justify="right" if name in ("lr", "seed", "step", "loss") else "left", no_wrap=True)
    for e in entries:
        step = "" if e.step is None else f"{e.step}" if e.steps in (None, e.step) else f"{e.step}/{e.steps}"
        cells = [
            e.study, e.label, "" if e.lr is None else f"{e.lr:g}", "" if e.seed is None else f"{e.seed}", e.purpose,
            e.state + (" !" if e.problem else ""), step, "" if e.loss is None else f"{e.loss:.4f}", e.run_id,
        ]  # fmt: skip
        style = {"diverged": "yellow", "failed": "red", "running": "cyan"}.get(e.state, "")
        table.add_row(*(Text(cell, style) for cell in cells))
    # Piped, a line is as long as it is; on a terminal it is cut.
    console = Console()
    Console(width=None if console.is_terminal else 300).print(table)


def show(
    run: Annotated[str, typer.Argument(help="A run: its folder, its id, or a part of that.")], *, root: Root = _ROOT
) -> None:
    """Show all that is known about a run: what was asked for, where it stands, what came out, how to repeat it.

    Example: steepest show lionmuon-lr0.01-s1
    """
    from rich.console import Console

    from steepest.lab.results import files
    from steepest.lab.store.index import entry, judged

    folder = _folder(run, root)
    place = folder.resolve()
    study = place.parent.parent
    found = judged(entry(place, study if (study / "study.json").exists() else place.parent), folder)
    console = Console()
    problems = [found.problem]  # with config, status and final

    def line(name: str, value: Any) -> None:
        if value not in (None, "", {}, []):
            text = json.dumps(value) if isinstance(value, dict | list) else str(value)
            console.print(f"{name:<14}{text}", highlight=False, markup=False, soft_wrap=True)

    config, final = files.mapping(folder / "config.json", []), files.mapping(folder / "final.json", [])
    environment = files.mapping(folder / "env.json", problems)
    method, imported = config.get("method"), environment.get("imported")
    line("run", folder)
    for name in ("study", "method", "label", "lr", "seed", "purpose", "state", "step"):
        line(name, getattr(found, name))
    line("problem", "; ".join(filter(None, problems)))
    line("options", method.get("options") if isinstance(method, dict) else None)
    line("workload", config.get("workload"))
    for name in ("loss", "perplexity", "bits_per_byte", "tokens", "seconds", "state_bytes", "reason"):
        line(name, final.get(name))
    line("versions", environment.get("versions"))
    line("machine", environment.get("machine"))
    line("imported", imported.get("format") if isinstance(imported, dict) else None)
    line("to repeat", final.get("command") or environment.get("command"))


def tail(
    run: Annotated[str, typer.Argument(help="A run: its folder, its id, or a part of that.")],
    *,
    root: Root = _ROOT,
    lines: Annotated[int, typer.Option("--lines", "-n", min=1, help="How many lines.")] = 10,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until the run is over.")] = False,
) -> None:
    """Show the last steps of a run, and wait for more with -f.

    Example: steepest tail lionmuon-lr0.01-s1 -f
    """
    from steepest.lab.results import files
    from steepest.lab.store.index import entry, judged

    folder = _folder(run, root)
    seen: set[float] = set()
    said: set[str] = set()
    while True:
        # Before the lines, so that none is missed that was written in between.
        state = judged(entry(folder, folder.parent), folder).state
        problems: list[str] = []
        new = [row for row in files.lines(folder / "metrics.jsonl", problems) if float(row["step"]) not in seen]
        _say([problem for problem in problems if problem not in said])
        for row in new if seen else new[-lines:]:
            typer.echo(_step(row))
        seen.update(float(row["step"]) for row in new)
        said.update(problems)
        if not seen and (problems or not follow):
            raise UserError(f"{folder} ({state}) has no step to show{'' if problems else ' yet'}.")
        if not follow or state in ("done", "diverged", "interrupted", "failed"):
            return
        time.sleep(1)


def _folder(run: str, root: Path) -> Path:
    from steepest.lab.store import Index

    return Path(run) if os.path.exists(Path(run) / "config.json") else Index(root).find(run)


def _step(row: dict[str, Any]) -> str:
    """A line of metrics for a reader; what is not a number in it is shown as it stands."""

    def words(value: Any, form: str) -> str:
        return f"{value:{form}}" if isinstance(value, int | float) else json.dumps(value)

    text = f"step {float(row['step']):>8.0f}"
    if row.get("loss") is not None:
        text += f"  loss {words(row['loss'], '.4f')}"
    lr = row.get("lr") or {}
    rates = " ".join(
        f"{name} {words(rate, '.3g')}" for name, rate in (lr if isinstance(lr, dict) else {"lr": lr}).items()
    )
    return f"{text}  {words(row.get('tokens_per_second') or 0, ',.0f'):>9} tokens/s  {rates}".rstrip()


def gc(
    root: Annotated[Path, typer.Argument(help="The folder that holds the runs.")] = _ROOT,
    *,
    delete: Annotated[bool, typer.Option("--delete", help="Delete what is listed; without it nothing is.")] = False,
    keep_checkpoints: Annotated[bool, typer.Option(help="Leave checkpoints of finished runs.")] = False,
) -> None:
    """List what can go without losing a number, and how much that is: checkpoints of finished runs, leftovers.

    Example: steepest gc runs --delete
    """
    from steepest.lab.store import cleaning

    if not root.is_dir():
        raise UserError(f"there is no folder {root}.")
    items = cleaning.garbage(root, keep_checkpoints)
    for item in items:
        typer.echo(f"{item.bytes / 1e6:10.1f} MB  {item.path}  ({item.why})")
    total = sum(item.bytes for item in items)
    if delete:
        cleaning.delete(items)
    verb = "deleted" if delete else "could go; add --delete to delete it"
    typer.echo(f"{total / 1e6:10.1f} MB in {len(items)} places {verb}")


def export(
    root: Annotated[Path, typer.Argument(help="The folder that holds the runs.")] = _ROOT,
    *,
    out: Annotated[Path, typer.Option(help="Folder for the files.")] = Path("export"),
    kind: Annotated[str, typer.Option("--format", help="parquet or tensorboard.")] = "parquet",
    study: Study = "*",
    method: MethodName = "*",
    state: State = "*",
) -> None:
    """Write runs, metrics and evaluations as Parquet tables, or as events for TensorBoard.

    Example: steepest export runs --study first --out tables

    Example: steepest export runs --format tensorboard --out events && tensorboard --logdir events
    """
    from steepest.lab.errors import unknown
    from steepest.lab.store import Index, exporting

    writers = {"parquet": exporting.parquet, "tensorboard": exporting.tensorboard}
    if kind not in writers:
        raise unknown("format", kind, writers)
    index = Index(root)
    entries = index.list(study=study, method=method, state=state)
    _say(index.problems)
    if not entries:
        raise UserError(f"no run below {root} fits; `steepest ls {root}` lists all.")
    written = writers[kind](entries, root, out)
    typer.echo(f"{len(entries)} runs: {', '.join(str(path) for path in written[:3])}{', ...' if written[3:] else ''}")


def import_(
    folder: Annotated[Path, typer.Argument(help="Has summary.json files somewhere below it.")],
    *,
    out: Annotated[Path, typer.Option(help="Studies are made in here.")] = _ROOT,
) -> None:
    """Take in published runs of llm-baselines or LionMuon (summary.json), to report them beside ours.

    Example: steepest import lion-muon/exps --out published && steepest report published/fineweb-base-d768-64000
    """
    from steepest.lab.store.importing import import_summaries

    for name, members in import_summaries(folder, out).items():
        typer.echo(f"{out / name}: {len(members)} runs")
