"""The command line. Each file beside this one adds its commands with `register(app)`."""

from __future__ import annotations

import importlib
import os
import sys
from typing import Annotated

import typer

from steepest._version import __version__
from steepest.lab.errors import UserError

app = typer.Typer(
    name="steepest",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help=(
        "Pretrain language models with any optimizer and compare optimizers with error bars.\n\n"
        "A first comparison (minutes, two cores):  steepest compare --preset demo\n\n"
        "A first run:  steepest train --optimizer lionmuon --lr 1e-2"
    ),
)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"steepest {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
    debug: Annotated[
        bool, typer.Option("--debug", help="Show the traceback of an error (anywhere on the line).")
    ] = False,
) -> None:
    pass


for _name in (
    "train",
    "compare",
    "study",
    "report",
    "reproduce",
    "memory",
    "bench",
    "optimizers",
    "data",
    "store",
    "doctor",
):
    importlib.import_module(f"steepest.lab.cli.{_name}").register(app)


def main(arguments: list[str] | None = None) -> int:
    """Run the command line.

    Args:
        arguments: without the program's name; default those of the process.

    Returns:
        0; 1 for a fault of the program; 2 for something the user can mend; 130 when interrupted.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in arguments or bool(os.environ.get("STEEPEST_DEBUG"))
    arguments = [argument for argument in arguments if argument != "--debug"]
    try:
        app(arguments, prog_name="steepest")
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except (UserError, OSError) as error:
        if debug:
            raise
        print(f"error: {error}\n(add --debug for the traceback)", file=sys.stderr)
        return 2
    return 0
