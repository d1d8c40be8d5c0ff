"""Public corpora through Hugging Face `datasets`, streamed, for a machine with a network."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from steepest.lab.data.documents import Document, Source
from steepest.lab.errors import UserError

# Enough for 200 million GPT-2 tokens; a whole web corpus is hundreds of gigabytes and must be asked for.
STREAM_BYTES = 1e9
_SHUFFLE_ROWS = 10_000


@dataclass(frozen=True)
class HuggingFace:
    """One dataset repository, its training split.

    Rows are shuffled with a fixed seed in a buffer of 10,000, so that part of a corpus is not its first shard. Rows
    that are lines are joined to articles and keep their order.

    Args:
        name: name of the corpus.
        repo: "owner/name", or a local folder of text, JSON or Parquet files.
        config: configuration of the repository; None for its only one.
        column: the column with the text.
        licence: of the text, for the manifest.
        articles: rows are lines and " = Title = " starts an article (WikiText).
    """

    name: str
    repo: str
    config: str | None = None
    column: str = "text"
    licence: str = "see the dataset's card"
    articles: bool = False

    streamed = True
    default_bytes = STREAM_BYTES

    @property
    def sources(self) -> tuple[Source, ...]:
        """The repository."""
        origin = f"Hugging Face {self.repo}" + (f", {self.config}" if self.config else "")
        return (Source(name=self.name, origin=origin, licence=self.licence),)

    def recipe(self) -> dict[str, object]:
        """Repository, configuration and column; the owner of a repository can still change it."""
        return {"name": self.name, "repo": self.repo, "config": self.config, "column": self.column}

    def documents(self) -> Iterator[Document]:
        """Yield the text of each row, or each article.

        Raises:
            UserError: `datasets` is not installed, the dataset cannot be reached, or it has no such column.
        """
        texts = self._column(self._rows())
        for text in join_articles(texts) if self.articles else texts:
            yield Document(text, self.name)

    def _rows(self) -> Iterator[dict[str, Any]]:
        try:
            from datasets import load_dataset
        except ImportError as error:
            raise UserError(
                f"the corpus {self.name!r} needs the package datasets: pip install 'steepest[hf]'. {_FALLBACK}"
            ) from error
        try:
            rows = load_dataset(self.repo, self.config, split="train", streaming=True)
            if not self.articles:
                rows = rows.shuffle(seed=0, buffer_size=_SHUFFLE_ROWS)
            yield from rows
        except Exception as error:  # the boundary to another library, whose errors come from many packages
            raise UserError(
                f"cannot read {self.repo}{f' ({self.config})' if self.config else ''} from Hugging Face: "
                f"{type(error).__name__}: {error}. Check the network (HF_HUB_OFFLINE, proxy) and the names; "
                f"repository and configuration can be given (--repo, --config). {_FALLBACK}"
            ) from error

    def _column(self, rows: Iterable[dict[str, Any]]) -> Iterator[str]:
        for row in rows:
            text = row.get(self.column)
            if not isinstance(text, str):
                columns = ", ".join(row)
                raise UserError(
                    f"{self.repo} has no text in a column {self.column!r}; its columns are: {columns}. "
                    f"Choose one with hf:{self.repo}:{self.config or ''}:COLUMN."
                )
            yield text


_FALLBACK = (
    "Nothing was put in its place. Without a network, use the packaged corpus 'news-wiki', or your own text (--text)."
)

_WIKITEXT = "CC BY-SA 3.0 and GFDL (Wikipedia)"
# Repository and configuration by name; when an owner moves one, give repo= and config=.
PRESETS = {
    "fineweb": HuggingFace("fineweb", "HuggingFaceFW/fineweb", "sample-10BT", licence="ODC-By 1.0"),
    "fineweb-edu": HuggingFace("fineweb-edu", "HuggingFaceFW/fineweb-edu", "sample-10BT", licence="ODC-By 1.0"),
    "c4": HuggingFace("c4", "allenai/c4", "en", licence="ODC-By 1.0"),
    "slimpajama": HuggingFace("slimpajama", "cerebras/SlimPajama-627B"),
    "wikitext103": HuggingFace(
        "wikitext103", "Salesforce/wikitext", "wikitext-103-raw-v1", licence=_WIKITEXT, articles=True
    ),
}

_TITLE = re.compile(r" = [^=].*[^=] = \s*")


def join_articles(lines: Iterable[str]) -> Iterator[str]:
    """Join the lines of WikiText to articles; each begins with a line " = Title = "."""
    article: list[str] = []
    for line in lines:
        if _TITLE.fullmatch(line) and article:
            yield "".join(article)
            article = []
        article.append(line if line.endswith("\n") else line + "\n")
    yield "".join(article)


def parse(name: str) -> HuggingFace:
    """Read "hf:owner/name[:config[:column]]"; an empty config means the repository's only one."""
    repo, _, rest = name.removeprefix("hf:").partition(":")
    config, _, column = rest.partition(":")
    if not repo or ":" in column:
        raise UserError(
            f"cannot read the corpus {name!r}; write hf:owner/name, hf:owner/name:config or "
            "hf:owner/name:config:column."
        )
    return HuggingFace(repo.rstrip("/").split("/")[-1].lower(), repo, config or None, column or "text")
