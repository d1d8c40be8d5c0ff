"""Text for training: corpora by name, tokenizers, packs of tokens on disk, and batches out of them.

Example::

    from steepest.lab.data import prepare

    pack = prepare("news-wiki", tokenizer="bpe-4096")
    stream = pack.train(batch_size=8, length=128, seed=0)
    batch = stream.batch(step=0)                            # int64 (8, 129): inputs batch[:, :-1], targets batch[:, 1:]
    for batch in pack.validation(tokens=65_536, length=128, batch_size=16):
        ...
"""

from __future__ import annotations

from steepest.lab.data.corpora import CORPORA
from steepest.lab.data.documents import Document, Source
from steepest.lab.data.pack import Pack, open_pack
from steepest.lab.data.preparation import prepare
from steepest.lab.data.storage import cache_directory
from steepest.lab.data.stream import Evaluation, RunningHash, TokenStream
from steepest.lab.data.tokenizers import TOKENIZERS

__all__ = [
    "CORPORA",
    "TOKENIZERS",
    "Document",
    "Evaluation",
    "Pack",
    "RunningHash",
    "Source",
    "TokenStream",
    "cache_directory",
    "open_pack",
    "prepare",
]
