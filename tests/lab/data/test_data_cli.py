"""The command `steepest data`."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import typer
from click.testing import Result
from typer.testing import CliRunner

from steepest.lab.cli.data import parse_size, register
from steepest.lab.data import prepare
from steepest.lab.errors import UserError

app = typer.Typer()


@app.callback()
def root() -> None:
    """Stands for the whole command."""


register(app)


def run(*arguments: object) -> Result:
    result = CliRunner().invoke(app, ["data", *map(str, arguments)], env={"COLUMNS": "200"})
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


@pytest.mark.parametrize("command", [[], ["list"], ["prepare"], ["info"]])
def test_help_shows_an_example(command: list[str]) -> None:
    output = run(*command, "--help").output
    assert "Example: steepest data" in output


def test_prepare_info_and_list(tmp_path: Path) -> None:
    options = ["synthetic", "--max-bytes", "60kB", "--cache", tmp_path]
    output = run("prepare", *options, "--tokenizer", "bpe-300").output
    pack = prepare("synthetic", tokenizer="bpe-300", max_bytes=60_000, cache=tmp_path)
    for expected in ("synthetic/bpe-300", pack.sha256, str(pack.folder), f"{pack.train_tokens:,}", "CC0-1.0"):
        assert expected in output
    assert run("prepare", *options, "--tokenizer", "bpe-300", "--rebuild").output.count("synthetic/bpe-300") == 1
    assert pack.sha256 in run("info", pack.folder).output
    assert "checksums: all files are as they were made" in run("info", pack.folder, "--verify").output
    listing = run("list", "--cache", tmp_path).output
    for expected in ("news-wiki", "fineweb-edu", "hf:owner/name[:config[:column]]", "bpe-N", pack.folder.name):
        assert expected in listing
    (pack.folder / "train.bin").write_bytes(b"")
    assert "damaged" in run("list", "--cache", tmp_path).output
    with pytest.raises(UserError, match="is damaged"):
        run("info", pack.folder)


def test_empty_list(tmp_path: Path) -> None:
    assert "none yet; try: steepest data prepare synthetic" in run("list", "--cache", tmp_path).output


def test_own_text(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("".join(f"Paragraph {i}. {'Some words. ' * 40}\n\n" for i in range(100)))
    output = run("prepare", "--text", tmp_path / "notes.txt", "--cache", tmp_path / "cache").output
    assert "text/bytes" in output
    assert "the user's own text" in output
    with pytest.raises(UserError, match=r"both the corpus 'news-wiki' and --text .*notes\.txt were given"):
        run("prepare", "news-wiki", "--text", tmp_path / "notes.txt")


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("100", 100),
        ("500kB", 5e5),
        ("20 MB", 2e7),
        ("1.5gb", 1.5e9),
        ("1_000", 1_000),
        ("1,000", 1_000),
        ("all", math.inf),
    ],
)
def test_sizes(text: str, size: float) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "much", "-5MB", "5 XB", "MB", "1.2.3"])
def test_bad_sizes(text: str) -> None:
    with pytest.raises(UserError, match="is not a size; write for example 500kB"):
        parse_size(text)
