"""`steepest data`: list corpora, prepare one, look at a prepared one."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from steepest.lab.errors import UserError

if TYPE_CHECKING:
    from steepest.lab.data import Pack

_UNITS = {"": 1.0, "B": 1.0, "KB": 1e3, "MB": 1e6, "GB": 1e9, "TB": 1e12}

data_app = typer.Typer(
    no_args_is_help=True,
    help="Text for training: list corpora, prepare one, look at a prepared one.\n\n"
    "Example: steepest data prepare news-wiki --tokenizer bpe-4096",
)

Cache = Annotated[
    Path | None,
    typer.Option(help="Cache folder. Default: $STEEPEST_CACHE, else ~/.cache/steepest."),
]


def register(app: typer.Typer) -> None:
    """Add `steepest data` to the command line."""
    app.add_typer(data_app, name="data")


@data_app.command("list")
def list_(cache: Cache = None) -> None:
    """List corpora, tokenizers, and the packs in the cache.

    Example: steepest data list
    """
    from rich.console import Console
    from rich.table import Table

    from steepest.lab.data import CORPORA, TOKENIZERS, cache_directory, open_pack

    console = Console()
    for title, entries in (("corpus", CORPORA), ("tokenizer", TOKENIZERS)):
        table = Table(title, "what it is", box=None, pad_edge=False)
        for name, about in entries.items():
            table.add_row(name, about, style=None)
        console.print(table, markup=False)
        console.print()
    packs = cache_directory(cache) / "packs"
    console.print(f"Packs in {packs}:", soft_wrap=True, markup=False)
    folders = sorted(path for path in packs.glob("*") if path.is_dir() and not path.name.startswith("."))
    for folder in folders:
        try:
            pack = open_pack(folder)
            line = f"{pack.train_tokens:,} + {pack.validation_tokens:,} tokens, {pack.sha256[:12]}"
        except UserError:
            line = "damaged; `steepest data info` says why"
        console.print(f"  {folder.name}  {line}", soft_wrap=True, markup=False)
    if not folders:
        console.print("  none yet; try: steepest data prepare synthetic")


@data_app.command()
def prepare(
    name: Annotated[
        str | None,
        typer.Argument(
            help="A corpus of `steepest data list`, or hf:owner/name[:config[:column]]. Default: news-wiki."
        ),
    ] = None,
    *,
    tokenizer: Annotated[str, typer.Option(help="bytes, bpe-N, gpt2, or the path of a tokenizer.json.")] = "bytes",
    text: Annotated[
        Path | None,
        typer.Option(help="Your own text in place of a corpus: a file, or a folder of .txt .md .jsonl (also .gz)."),
    ] = None,
    max_bytes: Annotated[
        str | None,
        typer.Option(help="Take so much text: 500kB, 20MB, 1GB, or all. Default: all; 1GB of a streamed corpus."),
    ] = None,
    max_documents: Annotated[
        int | None,
        typer.Option(help="Take so many documents. Default: all."),
    ] = None,
    validation_percent: Annotated[int, typer.Option(help="Percentage of documents held out, by their hash.")] = 2,
    repo: Annotated[
        str | None,
        typer.Option(help="Another Hugging Face repository for a known name."),
    ] = None,
    config: Annotated[
        str | None,
        typer.Option(help="Another configuration of the Hugging Face repository."),
    ] = None,
    cache: Cache = None,
    rebuild: Annotated[
        bool, typer.Option("--rebuild", help="Make it again, in the place of the one in the cache.")
    ] = False,
) -> None:
    """Fetch, clean, split and tokenize a corpus; a finished one is reused.

    Example: steepest data prepare news-wiki --tokenizer bpe-4096

    Example: steepest data prepare --text my_notes/ --tokenizer bytes
    """
    from steepest.lab.data import prepare as prepare_pack

    if name is not None and name != "text" and text is not None:
        raise UserError(f"both the corpus {name!r} and --text {text} were given; choose one of them.")
    pack = prepare_pack(
        name,
        tokenizer=tokenizer,
        cache=cache,
        text=text,
        max_bytes=None if max_bytes is None else parse_size(max_bytes),
        max_documents=max_documents,
        validation_percent=validation_percent,
        repo=repo,
        config=config,
        rebuild=rebuild,
    )
    _show(pack)


@data_app.command()
def info(
    path: Annotated[Path, typer.Argument(help="The folder of a pack, as `steepest data prepare` prints it.")],
    verify: Annotated[bool, typer.Option("--verify", help="Also compare every file with its checksum.")] = False,
) -> None:
    """Show what is in a pack; sizes are always checked.

    Example: steepest data info ~/.cache/steepest/packs/news-wiki-bytes-b8835979156a --verify
    """
    from steepest.lab.data import open_pack

    _show(open_pack(path, verify=verify))
    if verify:
        typer.echo("checksums: all files are as they were made")


def parse_size(text: str) -> float:
    """Read "500kB", "20MB", "1GB", a number of bytes, or "all"; units are powers of 1,000."""
    if text.strip().lower() == "all":
        return math.inf
    match = re.fullmatch(r"\s*([0-9][0-9_,]*(?:\.[0-9]+)?)\s*([a-zA-Z]*)\s*", text)
    if not match or match[2].upper() not in _UNITS:
        raise UserError(f"--max-bytes {text!r} is not a size; write for example 500kB, 20MB, 1GB, or all.")
    return float(re.sub("[_,]", "", match[1])) * _UNITS[match[2].upper()]


def _show(pack: Pack) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console()
    manifest, tokenizer = pack.manifest, pack.manifest["tokenizer"]
    table = Table("", "documents", "bytes", "tokens", "bytes/token", title=pack.name, title_justify="left", box=None)
    for column in table.columns[1:]:
        column.justify = "right"

    def add(label: str, counts: dict[str, int]) -> None:
        ratio = f"{counts['bytes'] / counts['tokens']:.3f}" if counts["tokens"] else "-"
        table.add_row(label, *(f"{counts[key]:,}" for key in ("documents", "bytes", "tokens")), ratio)

    for split, counts in manifest["splits"].items():
        add(split, counts)
        if len(manifest["sources"]) > 1:
            for source in manifest["sources"]:
                add(f"  {source['name']}", source[split])
    console.print(table)
    lines = [
        f"vocabulary   {pack.vocabulary_size:,} ids, end of text {pack.end_of_text}, stored as {manifest['dtype']}",
        f"held out     {manifest['validation_percent']}% of the documents, by their hash",
        f"sha256       {pack.sha256}",
        f"tokenizer    {tokenizer['sha256']}",
        *(f"source       {source['name']}: {source['origin']}; {source['licence']}" for source in manifest["sources"]),
        f"made         {manifest['created']} by steepest {manifest['versions']['steepest']}",
        f"folder       {pack.folder}",
    ]
    for line in lines:
        console.print(line, soft_wrap=True, markup=False, highlight=False)
