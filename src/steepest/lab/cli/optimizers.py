"""`steepest optimizers`: what can be compared, and what each optimizer is."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from steepest.lab.methods import Method

optimizers_app = typer.Typer(invoke_without_command=True)


def register(app: typer.Typer) -> None:
    """Add `steepest optimizers` to the command line."""
    app.add_typer(optimizers_app, name="optimizers")


@optimizers_app.callback()
def list_(context: typer.Context) -> None:
    """List the optimizers, or show one with all its options.

    Example: steepest optimizers

    Example: steepest optimizers show lionmuon
    """
    if context.invoked_subcommand is not None:
        return
    from rich.console import Console
    from rich.table import Table

    from steepest.lab.errors import UserError
    from steepest.lab.methods import METHODS

    table = Table(title="Optimizers", box=None, pad_edge=False, title_justify="left", padding=(0, 2, 0, 0))
    table.add_column("name", no_wrap=True)
    table.add_column("step", ratio=3)
    table.add_column("state", no_wrap=True)
    table.add_column("lr", no_wrap=True)
    table.add_column("paper", ratio=2)
    missing = set()
    for method in METHODS.values():
        try:
            state = " / ".join(_bytes(method))
        except UserError:
            state = "-"
            missing.add(str(method.package))
        table.add_row(method.name, method.formula, state, f"{method.lr:g}", method.paper)
    console = Console()
    console.print(table, markup=False)
    console.print(
        "\nstate: bytes per parameter of hidden matrices / of the rest, at 256 x 256. lr: the default, for models of "
        "0.1 to 10 million parameters.\n"
        "Options, rates to try and tuned settings of papers: steepest optimizers show lionmuon\n"
        "Any of them in a wrapper: sac+NAME, sac-MODE+NAME (constant, algorithm1, ...), sgg+NAME",
        highlight=False,
    )
    if missing:
        console.print(f"-: needs {', '.join(sorted(missing))}: pip install 'steepest[baselines]'", markup=False)


@optimizers_app.command()
def show(name: Annotated[str, typer.Argument(help="A name of `steepest optimizers`.")]) -> None:
    """Show what an optimizer is, its options and their defaults.

    Example: steepest optimizers show lionmuon
    """
    from rich.console import Console
    from rich.table import Table

    from steepest.lab.methods import find
    from steepest.lab.presets import PAPERS, of_rules

    method = find(name)
    console = Console()
    console.print(f"{method.label} ({method.name})", style="bold")
    console.print(f"step:   {method.formula}", markup=False, highlight=False)
    console.print(f"source: {method.paper}", markup=False, highlight=False)
    hidden, rest = _bytes(method)
    console.print(f"state:  {hidden} bytes per parameter of hidden matrices, {rest} of the rest", highlight=False)
    console.print(f"rates:  {', '.join(f'{lr:g}' for lr in method.grid)} (the default of one run is {method.lr:g})")
    table = Table("option", "default", box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for option, value in method.options.items():
        table.add_row(option, str(value))
    console.print()
    console.print(table, markup=False)
    if presets := of_rules(name):
        console.print("\nTuned settings of papers (steepest.rules.PRESETS):")
        for source in dict.fromkeys(preset.source for preset in presets.values()):
            console.print(f"  {source}:", markup=False, highlight=False)
            for key in [key for key, preset in presets.items() if preset.source == source]:
                console.print(f"    {key}  lr {presets[key].rule.lr:g}", markup=False, highlight=False)
    for paper in PAPERS.get(name, ()):
        console.print(f"\nTuned in {paper.source}:", markup=False, highlight=False)
        console.print(f"  {_settings(paper.options)}" if paper.options else "  options as above", markup=False)
        for setting, rate in paper.rates.items():
            changes = paper.changes.get(setting, {})
            console.print(f"    {setting}  lr {rate:g}  {_settings(changes)}".rstrip(), markup=False, highlight=False)
    console.print(f"\nExample: steepest train --optimizer {name} --lr {method.lr:g}", markup=False, highlight=False)
    settings = [*(key for paper in PAPERS.get(name, ()) for key in paper.rates), *presets]
    if settings:
        given = f"-o method.name={name} -o method.preset={settings[0]}"
        console.print(f"Example: steepest train {given}", markup=False, highlight=False)


def _settings(options: dict[str, object]) -> str:
    return ", ".join(f"{option} {value}" for option, value in options.items())


def _bytes(method: Method) -> tuple[str, str]:
    """State bytes per parameter, measured on a toy model: of a hidden matrix, and of the embedding."""
    import torch
    from torch import nn

    from steepest.lab.config import MethodConfig
    from steepest.lab.methods import build, routing_rows

    hidden, size = "1", 256 * 256
    model = nn.Sequential(nn.Embedding(256, 256), nn.Linear(256, 256, bias=False), nn.Linear(256, 256, bias=False))
    optimizer = build(MethodConfig(name=method.name), model, steps=10)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    with warnings.catch_warnings():  # a step by itself, which not every one is made for
        warnings.simplefilter("ignore")
        optimizer.step()
    rows = {row["name"].split(".")[0]: row["state_bytes"] / size for row in routing_rows(model, optimizer)}
    return f"{rows[hidden]:.2g}", f"{rows['0']:.2g}"
