"""Options that `train` and `compare` share, and how a configuration comes out of file, overrides and flags."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from steepest.lab.config import load_file, merge, override

Model = Annotated[
    str | None,
    typer.Option(
        "--model", "-m",
        help="tiny, mini or small (add -gpt2 or -qwen for another flavour than LLaMA), a paper's model such as "
        "llama-60m or lionmuon-gpt2-124m, or a Hugging Face config file or folder. Default: tiny.",
    ),
]  # fmt: skip
Data = Annotated[str | None, typer.Option("--data", "-d", help="A corpus of `steepest data list`. Default: news-wiki.")]
Text = Annotated[Path | None, typer.Option(help="Your own text in place of a corpus: a file or a folder.")]
Tokenizer = Annotated[
    str | None, typer.Option(help="bytes, bpe-4096, bpe-N, gpt2 or a tokenizer.json. Default: bytes.")
]
Steps = Annotated[int | None, typer.Option(help="Optimizer steps. Default: 400.")]
BatchSize = Annotated[int | None, typer.Option(help="Sequences per step. Default: 16.")]
SequenceLength = Annotated[int | None, typer.Option(help="Tokens per sequence. Default: 128.")]
Schedule = Annotated[str | None, typer.Option(help="cosine, linear, wsd or constant, after warm-up. Default: cosine.")]
Warmup = Annotated[float | None, typer.Option(help="Fraction of the run, or steps if 1 or more. Default: 0.1.")]
Final = Annotated[float | None, typer.Option(help="Last rate as a fraction of the peak. Default: 0.")]
Clip = Annotated[float | None, typer.Option(help="Largest global gradient norm; 0 for no clipping. Default: 0.5.")]
Precision = Annotated[str | None, typer.Option(help="fp32, bf16, or auto (bf16 if it is faster here). Default: auto.")]
Device = Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1. Default: a GPU if there is one.")]
Cache = Annotated[Path | None, typer.Option(help="Folder of prepared data. Default: as in `steepest data`.")]
Config = Annotated[Path | None, typer.Option("--config", "-c", help="A YAML, TOML or JSON file; flags win over it.")]
Override = Annotated[
    list[str] | None,
    typer.Option("--override", "-o", metavar="KEY=VALUE", help="Any key by its dotted name; may be repeated."),
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress, only the result.")]


def gather(
    defaults: Mapping[str, Any], config: Path | None, overrides: list[str] | None, flags: Mapping[str, Any]
) -> dict[str, Any]:
    """Merge, each winning over the one before: defaults, a file, -o overrides, flags (None: not given)."""
    values: dict[str, Any] = override(dict(defaults), ())
    if config is not None:
        _update(values, load_file(config))
    values = override(values, overrides or ())
    for key, value in flags.items():
        if value is not None:
            merge(values, key.split("."), str(value) if isinstance(value, Path) else value)
    workload = values.get("workload")
    if isinstance(workload, dict) and workload.get("clip") == 0:
        workload["clip"] = None
    return values


def _update(values: dict[str, Any], changes: Mapping[str, Any]) -> None:
    for key, value in changes.items():
        if isinstance(value, Mapping) and isinstance(values.get(key), dict):
            _update(values[key], value)
        else:
            values[key] = value
