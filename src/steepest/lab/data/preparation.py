"""From the name of a corpus to an opened pack."""

from __future__ import annotations

import hashlib
import logging
import math
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path

from steepest.lab.data import tokenizers
from steepest.lab.data.corpora import corpus
from steepest.lab.data.documents import VALIDATION_PERCENT, Corpus, Document, Survey, bucket_of, limit, take
from steepest.lab.data.pack import Pack, canonical, open_pack, write_pack
from steepest.lab.data.progress import bytes_bar
from steepest.lab.data.storage import cache_directory, new_folder
from steepest.lab.errors import UserError

log = logging.getLogger(__name__)


def prepare(
    name: str | None = None,
    *,
    tokenizer: str = "bytes",
    cache: str | os.PathLike[str] | None = None,
    text: str | os.PathLike[str] | None = None,
    max_bytes: float | None = None,
    max_documents: int | None = None,
    validation_percent: int = VALIDATION_PERCENT,
    repo: str | None = None,
    config: str | None = None,
    rebuild: bool = False,
    progress: bool = True,
) -> Pack:
    """Return the pack of a corpus; make it when it is not in the cache.

    A finished pack is reused without reading the corpus again, so no network is needed then. Making one is atomic, and
    several processes may make the same one at the same time.

    Args:
        name: a name in `CORPORA` or "hf:owner/name[:config[:column]]". Default: "news-wiki".
        tokenizer: "bytes", "bpe-N" such as "bpe-4096", "gpt2", or the path of a tokenizer.json. Default "bytes".
        cache: cache folder. Default: see `cache_directory`.
        text: the user's own file or folder; it takes the place of `name`.
        max_bytes: stop after so much text. Default: no limit, but 1 MB for "synthetic" and 1 GB for streamed corpora;
            `math.inf` reads those whole (the generated one cannot be).
        max_documents: stop after so many documents. Default: no limit.
        validation_percent: documents with ``sha1(text) % 100`` below this are held out. Default 2. When a small corpus
            has none, the percentage is raised just enough, which is logged and in the manifest.
        repo: another repository for a Hugging Face name.
        config: another configuration for a Hugging Face name.
        rebuild: make the pack again and put it in the place of the old one.
        progress: show progress when on a terminal.

    Raises:
        UserError: an unknown name, no network, a wrong checksum, text that is not text, too little text, a full disk, a
            damaged pack. Nothing is left half-made.
    """
    folder = cache_directory(cache)
    chosen = corpus(name, cache=folder, text=text, repo=repo, config=config, progress=progress)
    most = limit(max_bytes, chosen.default_bytes)
    if max_documents is not None and max_documents < 1:
        raise UserError(f"max_documents must be at least 1, got {max_documents}.")
    if not 1 <= validation_percent <= 99:
        raise UserError(f"validation_percent must lie in 1 to 99, got {validation_percent}.")
    if chosen.name == "synthetic" and max_documents is None and most == math.inf:
        raise UserError("the corpus 'synthetic' has no end: give a finite max_bytes, or max_documents.")
    recipe: dict[str, object] = {
        "corpus": chosen.recipe(),
        "tokenizer": tokenizers.recipe(tokenizer),
        "max_bytes": None if most == math.inf else int(most),  # one spelling of equal numbers
        "max_documents": max_documents,
        "validation_percent": validation_percent,
    }
    target = folder / "packs" / _folder_name(chosen.name, tokenizer, recipe)
    if rebuild or not target.exists():
        with new_folder(target, replace=rebuild) as new:
            reader = _Reader(chosen, max_documents, most, progress)
            _make(
                new, reader, tokenizer, recipe, validation_percent=validation_percent, cache=folder, progress=progress
            )
    return open_pack(target)


def _folder_name(name: str, tokenizer: str, recipe: dict[str, object]) -> str:
    readable = re.sub(r"[^a-z0-9]+", "-", f"{name}-{Path(tokenizer).stem}".lower()).strip("-")
    return f"{readable}-{hashlib.sha256(canonical(recipe).encode()).hexdigest()[:12]}"


@dataclass(frozen=True)
class _Reader:
    """The documents of a corpus within the limits, and a progress bar while they are read."""

    corpus: Corpus
    max_documents: int | None
    max_bytes: float
    progress: bool

    def read(self, doing: str = "", total: float | None = None) -> Iterator[tuple[Document, int]]:
        """Yield each document and its size in bytes; `doing` names the bar, without it there is none."""
        found = take(self.corpus.documents(), self.max_documents, self.max_bytes)
        first = list(islice(found, 1))  # a download shows its own progress, so it comes before the bar
        with bytes_bar(f"{doing} {self.corpus.name}", total, show=self.progress and bool(doing)) as advance:
            for document in chain(first, found):
                size = len(document.text.encode("utf-8"))
                yield document, size
                advance(size)


def _make(
    folder: Path,
    reader: _Reader,
    tokenizer: str,
    recipe: dict[str, object],
    *,
    validation_percent: int,
    cache: Path,
    progress: bool,
) -> None:
    """Fill `folder`."""
    chosen, percent = reader.corpus, validation_percent
    total = reader.max_bytes if reader.max_bytes < math.inf else None
    if not chosen.streamed:
        survey = Survey()
        for document, _ in reader.read("Reading"):
            survey.add(document.text.encode("utf-8"))
        total, percent = survey.size, survey.smallest_percent(validation_percent)
        if percent != validation_percent:
            log.warning(
                "%s: none of its %d documents falls into the validation split (%d%%); %d%% are held out instead.",
                *(chosen.name, survey.documents, validation_percent, percent),
            )

    def training_texts() -> Iterator[str]:
        return (d.text for d, _ in reader.read() if bucket_of(d.text.encode("utf-8")) >= percent)

    written = write_pack(
        folder,
        reader.read("Tokenizing", total),
        tokenizers.make(tokenizer, training_texts, cache=cache, progress=progress),
        name=chosen.name,
        tokenizer_name=tokenizer if not tokenizer.endswith(".json") else Path(tokenizer).stem,
        sources=chosen.sources,
        validation_percent=percent,
        recipe=recipe,
    )
    if (needed := written.smallest_percent(percent)) != percent:
        raise UserError(
            f"none of the {written.documents} documents of {chosen.name} falls into the validation split "
            f"({percent}%). Take more text, or set validation_percent={needed} (--validation-percent {needed})."
        )
