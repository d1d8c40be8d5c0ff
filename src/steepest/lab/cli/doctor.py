"""`steepest doctor`: can this machine do it, and what to change if not."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

_MARKS = {"ok": ("ok  ", "green"), "warn": ("warn", "yellow"), "fail": ("FAIL", "red")}


def register(app: typer.Typer) -> None:
    """Add `steepest doctor` to the command line."""
    app.command()(doctor)


def doctor(
    cache: Annotated[Path | None, typer.Option(help="Look at this cache folder instead of the usual one.")] = None,
    network: Annotated[
        bool, typer.Option("--network", help="Also ask whether the package index can be reached.")
    ] = False,
) -> None:
    """Check Python, torch, threads, processor, GPU, compiler, disk and cache; every fault comes with its remedy.

    Example: steepest doctor

    Touches no network unless --network is given. The exit code is 1 when something fails.
    """
    from rich.console import Console
    from rich.text import Text

    from steepest.lab.doctor import examine

    console = Console()
    findings = examine(cache=cache, network=network)
    for finding in findings:
        mark, colour = _MARKS[finding.level]
        line = Text.assemble((mark, colour), f"  {finding.what}")
        if finding.remedy:
            line.append(f"\n      -> {finding.remedy}")
        console.print(line, highlight=False, soft_wrap=True)
    raise typer.Exit(int(any(finding.level == "fail" for finding in findings)))
