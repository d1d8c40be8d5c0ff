"""`steepest report`: the page, the figures and the tables of a study or a single run; of several studies, profiles."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from steepest.lab.errors import UserError


def register(app: typer.Typer) -> None:
    """Add `steepest report` to the command line."""
    app.command()(report)


def report(
    studies_or_runs: Annotated[
        list[Path],
        typer.Argument(metavar="STUDY_OR_RUN...", help="Folder of a study (runs/demo) or of a single run; or several."),
    ],
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="FILE", help="Write the page here. Default: report.html in the folder."),
    ] = None,
    open_: Annotated[bool, typer.Option("--open/--no-open", help="Open the page in a browser.")] = False,
    beside: Annotated[
        list[Path] | None,
        typer.Option("--beside", metavar="IMPORTED", help="Show imported runs, too (`steepest import`); repeatable."),
    ] = None,
    figures: Annotated[
        bool, typer.Option("--figures/--no-figures", help="Write the static figures, most of the time of a report.")
    ] = True,
) -> None:
    """Write the report of a study or a single run: one HTML page that needs no network, figures, tables.

    Example: steepest report runs/demo

    Example: steepest report runs/demo --out demo.html --open

    Example: steepest report runs/small runs/large

    Example: steepest report runs/demo --beside published/fineweb-base-d768-64000

    It can be asked for at any time: runs that have not finished are shown, but count in no mean. Beside report.html the
    folder gets figures/*.svg and *.pdf, and tables/*.md, *.tex and *.csv. Of several studies it draws performance
    profiles over their workloads, into profiles.html beside the first.
    """
    if beside and len(studies_or_runs) > 1:
        raise UserError("--beside goes with one study; of several, `steepest report` draws performance profiles.")
    if len(studies_or_runs) > 1:
        from steepest.lab.report.workloads import write_workloads

        page = write_workloads(studies_or_runs, out)
    else:
        page = _report_one(studies_or_runs[0], out, figures, beside or [])
    typer.echo(f"report: {page}")
    if open_:
        typer.launch(page.resolve().as_uri())


def _report_one(study_or_run: Path, out: Path | None, figures: bool, beside: list[Path]) -> Path:
    from rich.console import Console

    from steepest.lab.report import headline, read_study, terminal_table, verdict, write

    page = write(study_or_run, out, figures, beside)
    study = read_study(study_or_run)
    console = Console()
    console.print(terminal_table(study, console.width))
    for sentence in verdict(study, headline(study)):
        console.print(sentence, highlight=False, markup=False)
    return page
