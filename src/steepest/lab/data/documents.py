"""What every corpus yields, and the two rules that hold for all of them: how to cut off and how to split."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import NamedTuple, Protocol

from steepest.lab.errors import UserError

# One document in fifty is held out for validation.
VALIDATION_PERCENT = 2


class Document(NamedTuple):
    """One text and the name of the source it comes from."""

    text: str
    source: str


@dataclass(frozen=True, kw_only=True)
class Source:
    """Where text comes from: goes into the manifest of every pack.

    Args:
        name: the name its documents carry.
        origin: package, dataset or files.
        licence: what may be done with the text.
        sha256: checksum of the archive, when there is one.
    """

    name: str
    origin: str
    licence: str
    sha256: str | None = None

    def as_dict(self) -> dict[str, str | None]:
        """Fields as a plain dictionary."""
        return asdict(self)


class Corpus(Protocol):
    """A named, ordered collection of documents. Iterating twice gives the same documents."""

    @property
    def name(self) -> str:
        """Short name, used in folder names and reports."""

    @property
    def sources(self) -> tuple[Source, ...]:
        """Where the text comes from. Documents of one source follow each other."""

    @property
    def streamed(self) -> bool:
        """True when reading costs a download each time, so that it is read as few times as possible."""

    @property
    def default_bytes(self) -> float:
        """How much text to take when the caller sets no limit."""

    def recipe(self) -> dict[str, object]:
        """Everything that decides what the documents are; equal recipes mean equal documents."""

    def documents(self) -> Iterator[Document]:
        """Yield the documents in their fixed order."""


def bucket_of(text: bytes) -> int:
    """Bucket 0 to 99 of a document: ``sha1(text) % 100``.

    The split depends on the text alone, never on its position, so adding or reordering documents moves no other
    document between training and validation, and equal documents are always on the same side.
    """
    return int.from_bytes(hashlib.sha1(text, usedforsecurity=False).digest(), "big") % 100


def take(documents: Iterator[Document], max_documents: int | None, max_bytes: float) -> Iterator[Document]:
    """Yield whole documents, without empty ones, until either limit is reached; the last may pass `max_bytes`."""
    count, size = 0, 0
    for document in documents:
        if not document.text.strip():
            continue
        yield document
        count += 1
        size += len(document.text.encode("utf-8", "surrogatepass"))
        if size >= max_bytes or (max_documents is not None and count >= max_documents):
            return


@dataclass
class Survey:
    """Counts of one pass over a corpus.

    Args:
        documents: number of documents.
        size: bytes of UTF-8 text.
        buckets: documents per split bucket.
    """

    documents: int = 0
    size: int = 0
    buckets: list[int] = field(default_factory=lambda: [0] * 100)

    def add(self, text: bytes) -> int:
        """Count one document and return its split bucket."""
        bucket = bucket_of(text)
        self.documents += 1
        self.size += len(text)
        self.buckets[bucket] += 1
        return bucket

    def smallest_percent(self, percent: int) -> int:
        """Smallest validation percentage, `percent` or more, that leaves a document on both sides of the split.

        Raises:
            UserError: no percentage does.
        """
        for candidate in range(percent, 100):
            if any(self.buckets[:candidate]) and any(self.buckets[candidate:]):
                return candidate
        raise UserError(
            f"the text has {self.documents} document(s) ({self.size:,} bytes), which cannot be split into training "
            "and validation. Give at least two different documents: files, lines of a .jsonl, or one longer file."
        )


def limit(value: float | None, default: float) -> float:
    """Return a checked `max_bytes`: None gives the corpus's own default, infinity no limit at all."""
    if value is None:
        return default
    if not value >= 1:  # not a number, too
        raise UserError(f"max_bytes must be at least 1 (or None for the default of the corpus), got {value}.")
    return value
