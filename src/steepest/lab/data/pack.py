"""A pack: tokenized text on disk, a folder with two token files and a manifest.

``train.bin`` and ``validation.bin`` hold ids as little-endian uint16 (uint32 when the vocabulary exceeds 65,535), each
document followed by the end-of-text id. ``tokenizer.json`` is the tokenizer. ``manifest.json`` says what everything is,
with checksums.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import datetime, timezone
from functools import cached_property
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from steepest._version import __version__
from steepest.lab.data.documents import Document, Source, Survey
from steepest.lab.data.fetch import sha256_of
from steepest.lab.data.storage import write_file
from steepest.lab.data.stream import Evaluation, Tokens, TokenStream
from steepest.lab.data.tokenizers import Tokenizer, from_json, identity
from steepest.lab.errors import UserError

SCHEMA = 1
SPLITS = ("train", "validation")
_ENCODE_BYTES = 1 << 20


@dataclass(frozen=True)
class Pack:
    """An opened pack; make one with `prepare` or `open_pack`.

    Args:
        folder: where it is.
        manifest: the content of its manifest.json.
    """

    folder: Path
    manifest: dict[str, Any]

    @property
    def name(self) -> str:
        """Corpus and tokenizer, such as "news-wiki/bpe-4096"."""
        return f"{self.manifest['name']}/{self.manifest['tokenizer']['name']}"

    @property
    def sha256(self) -> str:
        """Identity of the token files, the split and the tokenizer: equal values mean equal data."""
        return str(self.manifest["sha256"])

    @property
    def vocabulary_size(self) -> int:
        """Number of ids, end of text included."""
        return int(self.manifest["tokenizer"]["vocabulary_size"])

    @property
    def end_of_text(self) -> int:
        """The id after each document."""
        return int(self.manifest["tokenizer"]["end_of_text"])

    @property
    def train_tokens(self) -> int:
        """Tokens in the training split."""
        return int(self.manifest["splits"]["train"]["tokens"])

    @property
    def validation_tokens(self) -> int:
        """Tokens in the validation split."""
        return int(self.manifest["splits"]["validation"]["tokens"])

    @property
    def bytes_per_token(self) -> dict[str, float]:
        """UTF-8 bytes of text per token (end of text counted) of each split.

        Bits per byte are ``loss / ln(2) / bytes_per_token["validation"]`` for a loss in nats per token.
        """
        return {name: split["bytes"] / split["tokens"] for name, split in self.manifest["splits"].items()}

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer."""
        path = self.folder / "tokenizer.json"
        return from_json(path.read_text(encoding="utf-8"), str(path))

    def encode(self, text: str) -> list[int]:
        """Ids of a text."""
        return [int(i) for i in self.tokenizer.encode([text])[0]]

    def decode(self, ids: Iterable[int]) -> str:
        """Text of ids: a sequence or a one-dimensional tensor."""
        return self.tokenizer.decode([int(i) for i in ids])

    def tokens(self, split: str) -> Tokens:
        """Read-only memory map of all ids of "train" or "validation"."""
        entry = self.manifest["splits"][split]
        dtype = np.dtype(self.manifest["dtype"]).newbyteorder("<")
        return np.memmap(self.folder / entry["file"], dtype=dtype, mode="r", shape=(entry["tokens"],))

    def train(self, *, batch_size: int, length: int, seed: int = 0) -> TokenStream:
        """Shuffled training batches; see `TokenStream`.

        Raises:
            UserError: the training split is smaller than one batch.
        """
        tokens = self.tokens("train")
        return TokenStream(tokens, batch_size=batch_size, length=length, seed=seed, name=self.name)

    def validation(
        self, *, tokens: int = 65_536, length: int = 128, batch_size: int = 16, source: str | None = None
    ) -> Evaluation:
        """Fixed evaluation windows; see `Evaluation`.

        Args:
            tokens: how many predicted tokens, at most. Default 65,536.
            length: predicted tokens per window. Default 128.
            batch_size: windows per batch. Default 16.
            source: only the text of this source (a name in the manifest). Default: all.

        Raises:
            UserError: fewer tokens than one window, or no such source.
        """
        data = self.tokens("validation")
        name = self.name
        if source is not None:
            parts = {entry["name"]: entry["validation"] for entry in self.manifest["sources"]}
            if source not in parts:
                raise UserError(f"{self.name} has no source {source!r}; its sources are: {', '.join(parts)}.")
            start = parts[source]["start"]
            data = data[start : start + parts[source]["tokens"]]
            name = f"{self.name} ({source})"
        return Evaluation(data, wanted=tokens, length=length, batch_size=batch_size, name=name)

    def verify(self) -> None:
        """Compare every file with its checksum.

        Raises:
            UserError: a file was changed.
        """
        expected = {entry["file"]: entry["sha256"] for entry in self.manifest["splits"].values()}
        expected["tokenizer.json"] = self.manifest["tokenizer"]["sha256"]
        for name, checksum in expected.items():
            if (actual := sha256_of(self.folder / name)) != checksum:
                raise _damaged(
                    self.folder, f"{name} has SHA-256 {actual[:12]}..., the manifest says {checksum[:12]}..."
                )
        if identity_of(self.manifest) != self.sha256:
            raise _damaged(self.folder, "manifest.json was edited: its own checksum does not fit its content")

    def __reduce__(self) -> tuple[Any, ...]:
        # Without this a pickled pack would carry the tokenizer, and open elsewhere without a check.
        return (open_pack, (str(self.folder),))


def open_pack(folder: str | os.PathLike[str], *, verify: bool = False) -> Pack:
    """Open a pack, after comparing the sizes of its files with the manifest.

    Args:
        folder: the pack.
        verify: also compare the checksums, which reads everything once.

    Raises:
        UserError: not a pack, made by a newer release, or truncated, edited or incomplete; the message says what to do.
    """
    folder = Path(folder)
    try:
        manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        if (folder / "train.bin").exists():
            raise _damaged(folder, "manifest.json is missing") from None
        hint = " It is what `steepest data prepare` prints." if not folder.is_dir() else ""
        raise UserError(f"{folder} is not a pack: it has no manifest.json. Give the folder of a pack.{hint}") from None
    except ValueError as error:
        raise _damaged(folder, f"manifest.json is not JSON ({error})") from None
    schema = manifest.get("schema") if isinstance(manifest, dict) else None
    if schema != SCHEMA:
        raise UserError(
            f"{folder} has the manifest schema {schema!r}, this release reads {SCHEMA}. Use the release that made it, "
            "or prepare the corpus again in another cache folder."
        )
    try:
        sizes = {
            split["file"]: split["tokens"] * np.dtype(manifest["dtype"]).itemsize
            for split in manifest["splits"].values()
        }
        _ = manifest["sha256"], manifest["tokenizer"]["sha256"], manifest["sources"]
    except (KeyError, TypeError, AttributeError) as error:
        raise _damaged(folder, f"manifest.json lacks an entry ({error})") from None
    for name, size in sizes.items():
        path = folder / name
        actual = path.stat().st_size if path.is_file() else None
        if actual != size:
            found = "is missing" if actual is None else f"has {actual:,} bytes"
            raise _damaged(folder, f"{name} {found}, the manifest says {size:,} bytes")
    if not (folder / "tokenizer.json").is_file():
        raise _damaged(folder, "tokenizer.json is missing")
    pack = Pack(folder, manifest)
    if verify:
        pack.verify()
    return pack


def _damaged(folder: Path, what: str) -> UserError:
    return UserError(
        f"the pack {folder} is damaged: {what}. Delete this folder and run the same command again, it makes the pack "
        "anew (`steepest data prepare ... --rebuild` does both)."
    )


def identity_of(manifest: dict[str, Any]) -> str:
    """SHA-256 of what decides the training data: the token files, their type and the tokenizer."""
    parts = {
        "dtype": manifest["dtype"],
        "tokenizer": manifest["tokenizer"]["sha256"],
        "splits": {name: [split["tokens"], split["sha256"]] for name, split in manifest["splits"].items()},
    }
    return hashlib.sha256(canonical(parts).encode()).hexdigest()


def canonical(value: object) -> str:
    """JSON with one spelling for equal values."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


class _SplitWriter:
    """Writes one token file and counts what goes in, in all and per source."""

    def __init__(self, file: BinaryIO, dtype: np.dtype[Any], sources: Sequence[str]) -> None:
        self._file = file
        self._dtype = dtype
        self._digest = hashlib.sha256()
        self.total = {"tokens": 0, "documents": 0, "bytes": 0}
        self.sources = {name: {"start": 0, "tokens": 0, "documents": 0, "bytes": 0} for name in sources}

    def write(self, ids: NDArray[np.int64], source: str, size: int) -> None:
        content = ids.astype(self._dtype).tobytes()
        self._file.write(content)
        self._digest.update(content)
        part = self.sources[source]
        if not part["documents"]:
            part["start"] = self.total["tokens"]
        for counts in (self.total, part):
            counts["tokens"] += len(ids)
            counts["documents"] += 1
            counts["bytes"] += size

    def finish(self) -> dict[str, Any]:
        self._file.flush()
        os.fsync(self._file.fileno())
        return {**self.total, "sha256": self._digest.hexdigest()}


def write_pack(
    folder: Path,
    documents: Iterator[tuple[Document, int]],
    tokenizer: Tokenizer,
    *,
    name: str,
    tokenizer_name: str,
    sources: Sequence[Source],
    validation_percent: int,
    recipe: dict[str, object],
) -> Survey:
    """Tokenize documents into `folder`; the manifest is written last.

    Args:
        folder: an empty folder.
        documents: each with its size in bytes.
        tokenizer: encodes them.
        name: of the corpus.
        tokenizer_name: of the tokenizer.
        sources: every source that occurs.
        validation_percent: documents in the buckets below this are held out.
        recipe: for the manifest.

    Returns:
        Counts of what was read.
    """
    dtype = np.dtype("<u2" if tokenizer.vocabulary_size <= 65_535 else "<u4")
    survey, corpus = Survey(), hashlib.sha256()
    end = np.array([tokenizer.end_of_text])
    with ExitStack() as stack:
        writers = {}
        for split in SPLITS:
            file = stack.enter_context((folder / f"{split}.bin").open("wb"))
            writers[split] = _SplitWriter(file, dtype, [source.name for source in sources])
        for group in _groups(documents):
            encoded = tokenizer.encode([document.text for document in group])
            for document, ids in zip(group, encoded, strict=True):
                text = document.text.encode("utf-8")
                corpus.update(hashlib.sha256(text).digest())
                split = "validation" if survey.add(text) < validation_percent else "train"
                writers[split].write(np.concatenate([ids, end]), document.source, len(text))
        splits = {split: {"file": f"{split}.bin", **writer.finish()} for split, writer in writers.items()}
    content = tokenizer.to_json()
    write_file(folder / "tokenizer.json", content.encode("utf-8"))
    manifest: dict[str, Any] = {
        "schema": SCHEMA,
        "name": name,
        "dtype": {"<u2": "uint16", "<u4": "uint32"}[dtype.str],
        "tokenizer": {
            "name": tokenizer_name,
            "sha256": identity(tokenizer),
            "vocabulary_size": tokenizer.vocabulary_size,
            "end_of_text": tokenizer.end_of_text,
        },
        "splits": splits,
        "validation_percent": validation_percent,
        "corpus_sha256": corpus.hexdigest(),
        "sources": [
            {**source.as_dict(), **{split: writers[split].sources[source.name] for split in SPLITS}}
            for source in sources
        ],
        "recipe": recipe,
        "versions": _versions(),
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }
    manifest["sha256"] = identity_of(manifest)
    write_file(folder / "manifest.json", (json.dumps(manifest, indent=2, ensure_ascii=False) + "\n").encode("utf-8"))
    return survey


def _groups(documents: Iterator[tuple[Document, int]]) -> Iterator[list[Document]]:
    """Groups of about a megabyte: enough to keep the tokenizer's threads busy, little enough to hold."""
    group: list[Document] = []
    total = 0
    for document, size in documents:
        group.append(document)
        total += size
        if total >= _ENCODE_BYTES:
            yield group
            group, total = [], 0
    if group:
        yield group


def _versions() -> dict[str, str | None]:
    found: dict[str, str | None] = {"steepest": __version__, "python": platform.python_version()}
    for package in ("numpy", "tokenizers", "datasets"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = None
    return found
