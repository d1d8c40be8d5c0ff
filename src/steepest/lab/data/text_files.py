"""The user's own text: a file, or a folder walked in sorted order."""

from __future__ import annotations

import gzip
import hashlib
import json
import math
import os
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, cast

from steepest.lab.data.documents import Document, Source
from steepest.lab.errors import UserError

SUFFIXES = (".txt", ".md", ".jsonl", ".txt.gz", ".md.gz", ".jsonl.gz")
# A plain file longer than this is cut at paragraph or line ends, so that one long book has a validation part too.
PIECE = 4096
_BLOCK = 1 << 20


@dataclass(frozen=True)
class TextFiles:
    """Plain text (.txt, .md, or any single file) and JSON lines with a "text" field (.jsonl), all of them also gzipped.

    A short plain file is one document, a longer one becomes documents of about 4 kB, a JSON line is one document.

    Args:
        path: file or folder. In a folder, hidden files and files with other suffixes are left alone.

    Raises:
        UserError: the path does not exist, or a folder has no text file.
    """

    path: Path

    name = "text"
    streamed = False
    default_bytes = math.inf

    def __post_init__(self) -> None:
        if not self.path.exists():
            raise UserError(f"--text {self.path}: there is no such file or folder.")
        if not self.files():
            raise UserError(
                f"--text {self.path}: no file in this folder ends in {', '.join(SUFFIXES)}. Give such files."
            )

    @property
    def sources(self) -> tuple[Source, ...]:
        """One source for all files."""
        return (Source(name=self.name, origin=str(self.path), licence="the user's own text"),)

    def files(self) -> list[Path]:
        """Return the files to read, sorted by their path below the folder."""
        if not self.path.is_dir():
            return [self.path]
        found = []
        for folder, folders, names in os.walk(self.path):
            folders[:] = [name for name in folders if not name.startswith(".")]
            found += [Path(folder) / name for name in names if name.lower().endswith(SUFFIXES) and name[0] != "."]
        return sorted(found, key=lambda path: path.relative_to(self.path).as_posix())

    def recipe(self) -> dict[str, object]:
        """Names, sizes and times of change of the files: an edited file makes a new pack."""
        digest = hashlib.sha256()
        for path in self.files():
            status = path.stat()
            relative = path.relative_to(self.path).as_posix() if self.path.is_dir() else path.name
            digest.update(f"{relative}\0{status.st_size}\0{status.st_mtime_ns}\n".encode())
        return {"name": self.name, "path": str(self.path.absolute()), "files": digest.hexdigest(), "piece": PIECE}

    def documents(self) -> Iterator[Document]:
        """Yield the documents, file by file.

        Raises:
            UserError: a file that is not UTF-8 text (with the file and the byte), broken gzip, or a bad JSON line.
        """
        for path in self.files():
            lines = path.name.lower().removesuffix(".gz").endswith(".jsonl")
            for text in json_texts(path) if lines else cut(read_text(path)):
                yield Document(text, self.name)


def read_text(path: Path) -> Iterator[str]:
    """Yield the text of a file in blocks, checked to be UTF-8 without NUL bytes; a byte-order mark is dropped."""
    rest, position = b"", 0  # `position` is the offset of rest[0] in the (unpacked) file
    for block in _blocks(path):
        data = rest + block
        if (nul := data.find(0)) >= 0:
            raise _not_text(path, position + nul, "a NUL byte")
        try:
            text, rest = data.decode("utf-8"), b""
        except UnicodeDecodeError as error:
            cut_by_block = error.end == len(data) and len(data) - error.start < 4 and "end of data" in error.reason
            if not cut_by_block:
                raise _not_text(path, position + error.start, f"the byte 0x{data[error.start]:02x}") from None
            text, rest = data[: error.start].decode("utf-8"), data[error.start :]
        yield text.removeprefix("\ufeff") if position == 0 else text
        position += len(data) - len(rest)
    if rest:
        raise _not_text(path, position, "an incomplete character at the end")


def json_texts(path: Path) -> Iterator[str]:
    """Yield the "text" field of every JSON line."""
    for number, line in enumerate(_lines(read_text(path)), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            text = row["text"]
            text.encode("utf-8")  # JSON can spell half a character, which no text file can hold
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise UserError(
                f'{path}, line {number}: expected a JSON object with a string "text", as {{"text": "..."}} '
                f"({type(error).__name__}: {error})."
            ) from None
        yield text


def cut(blocks: Iterator[str]) -> Iterator[str]:
    """Cut running text into documents of about `PIECE` characters, at a blank line, else a line end, else a space."""
    text = ""
    for block in blocks:
        text += block
        start = 0
        while len(text) - start > 2 * PIECE:
            end = _cutting_point(text, start + PIECE // 2, start + PIECE)
            yield text[start:end]
            start = end
        text = text[start:]
    if text:
        yield text


def _cutting_point(text: str, low: int, high: int) -> int:
    for mark in ("\n\n", "\n", " "):
        if (found := text.rfind(mark, low, high)) >= 0:
            return found + len(mark)
    return high


def _lines(blocks: Iterator[str]) -> Iterator[str]:
    parts: list[str] = []
    for block in blocks:
        *whole, last = block.split("\n")
        for line in whole:
            yield "".join([*parts, line])
            parts = []
        parts.append(last)
    yield "".join(parts)


def _blocks(path: Path) -> Iterator[bytes]:
    packed = path.name.lower().endswith(".gz")
    try:
        with cast(BinaryIO, gzip.open(path)) if packed else path.open("rb") as file:
            while block := file.read(_BLOCK):
                yield block
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise UserError(
            f"{path} is not a whole gzip file ({error}). Pack it again, or unpack it and use the text."
        ) from error
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}.") from error


def _not_text(path: Path, position: int, what: str) -> UserError:
    inside = " of the unpacked text" if path.name.lower().endswith(".gz") else ""
    return UserError(
        f"{path} is not UTF-8 text: {what} at byte {position:,}{inside}. Convert it (for example "
        "`iconv -f LATIN1 -t UTF-8 OLD > NEW`, or UTF-16 for files from Windows), or leave it out."
    )
