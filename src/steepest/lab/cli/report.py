"""`steepest report`: the page, the figures and the table of a comparison or a single run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def register(app: typer.Typer) -> None:
    """Add `steepest report` to the command line."""
    app.command()(report)


def report(
    study_or_run: Annotated[
        Path, typer.Argument(metavar="STUDY_OR_RUN", help="Folder of a comparison (runs/demo) or of a single run.")
    ],
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="FILE", help="Write the page here. Default: report.html in the folder."),
    ] = None,
    open_: Annotated[bool, typer.Option("--open/--no-open", help="Open the page in a browser.")] = False,
) -> None:
    """Write the report of a comparison or a single run: one HTML page that needs no network, figures, tables.

    Example: steepest report runs/demo

    Example: steepest report runs/demo --out demo.html --open

    It can be asked for at any time: runs that have not finished are shown, but count in no mean. Beside report.html the
    folder gets figures/*.png and *.svg, table.csv and table.md.
    """
    from rich.console import Console

    from steepest.lab.report import headline, read_study, terminal_table, verdict, write

    page = write(study_or_run, out)
    study = read_study(study_or_run)
    console = Console()
    console.print(terminal_table(study))
    for sentence in verdict(study, headline(study)):
        console.print(sentence, highlight=False, markup=False)
    typer.echo(f"report: {page}")
    if open_:
        typer.launch(page.resolve().as_uri())
