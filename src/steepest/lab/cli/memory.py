"""`steepest memory`: what a model and its optimizer take in memory, before anything is allocated."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

_METHODS = "adamw,lion,muon,lionmuon,sinkgd,sage"


def register(app: typer.Typer) -> None:
    """Add `steepest memory` to the command line."""
    app.command()(memory)


def memory(
    *,
    model: Annotated[
        str,
        typer.Option(
            "--model",
            "-m",
            help="A model by name (llama-1b, llama-7b, llama-3-70b, lionmuon-gpt2-124m, tiny, ...), or a Hugging Face "
            "config: a config.json or its folder.",
        ),
    ] = "llama-1b",
    methods: Annotated[
        str,
        typer.Option(
            help="Names of `steepest optimizers` with commas. Rules by part of the model make one of your own: "
            "hidden=lion_muon+embeddings=sage+vectors=lion; the parts are hidden, embeddings, head, vectors and rest."
        ),
    ] = _METHODS,
    override: Annotated[
        list[str] | None,
        typer.Option(
            "--override", "-o", metavar="KEY=VALUE", help="A key of the model's Hugging Face config; may be repeated."
        ),
    ] = None,
    vocabulary: Annotated[int | None, typer.Option(min=1, help="Number of tokens, in place of the model's.")] = None,
    dtype: Annotated[
        str,
        typer.Option(
            help="fp32 (master weights, as `steepest train` has them) or bf16; or three for weights,gradients,states, "
            "as bf16,bf16,fp32. States may be int8 for rules that have it."
        ),
    ] = "fp32",
    shards: Annotated[
        int, typer.Option(min=1, help="Bytes of one process where so many share everything evenly (FSDP2, ZeRO-3).")
    ] = 1,
    published: Annotated[
        bool, typer.Option("--published", help="Also the memory tables of papers, counted anew beside what they print.")
    ] = False,
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Write table.md, table.csv, memory.json and memory.svg there.")
    ] = None,
) -> None:
    """Count weights, gradients and optimizer state to the byte, for models of any size; nothing is allocated.

    Example: steepest memory --model llama-7b --methods adamw,lion,muon

    Example: steepest memory --model llama-3-70b --dtype bf16,bf16,fp32 --shards 64

    Example: steepest memory --model path/to/config.json -o num_hidden_layers=40 --vocabulary 128256

    Example: steepest memory --methods adamw,hidden=muon+embeddings=sage --out runs/memory

    What a step allocates for a while is an estimate, and said to be one. Activations depend on batch and length and are
    not counted.
    """
    from rich.console import Console

    from steepest.lab import memory as counting
    from steepest.lab.cli.tables import table

    names = [name.strip() for name in methods.split(",") if name.strip()]
    report = counting.count(model, names, changes=override or (), vocabulary=vocabulary, dtype=dtype, shards=shards)
    console = Console()
    console.print(counting.headline(report), style="bold", markup=False, highlight=False)
    console.print(table(counting.totals(report)))
    console.print(table(counting.by_role(report)))
    for remark in counting.remarks(report):
        console.print(remark, markup=False, highlight=False)
    cells = counting.published() if published else []
    for title, rows, below in counting.published_tables(cells) if cells else []:
        console.print(f"\n{title}", style="bold", markup=False, highlight=False)
        console.print(table(rows))
        console.print(below, markup=False, highlight=False)
    if out is not None:
        files = counting.write(report, out, cells)
        console.print(f"\nwritten: {', '.join(map(str, files))}", soft_wrap=True, markup=False, highlight=False)
