"""Batches out of a token file: training windows in a shuffled order, and the fixed windows of an evaluation."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray

from steepest.lab.data.order import Permutation, offset
from steepest.lab.errors import UserError

Tokens = NDArray[np.uint16] | NDArray[np.uint32]


class TokenStream:
    """Training batches; the batch of a step is a pure function of (tokens, seed, step, batch size, length).

    An epoch cuts the tokens into non-overlapping windows from a new random offset on and visits each window once in a
    new random order. Batches follow each other through this order and across epochs, so nothing is dropped and there is
    no state to save: a resumed run asks for its next step. How many processes or micro-batches share a batch changes
    nothing, they ask for their `rows` of it.

    Args:
        tokens: the training split, usually a memory map.
        batch_size: windows per step, over all processes.
        length: predicted tokens per window.
        seed: chooses the order.
        name: what the tokens are, for messages.

    Raises:
        UserError: the tokens do not fill one batch.
    """

    def __init__(
        self, tokens: Tokens, *, batch_size: int, length: int, seed: int = 0, name: str = "the corpus"
    ) -> None:
        _check_positive(batch_size=batch_size, length=length)
        # Whatever the offset (0 to length - 1), this many windows of length + 1 tokens fit.
        self.windows = max(0, (len(tokens) - length) // length)
        if self.windows < batch_size:
            raise UserError(
                f"the training split of {name} is smaller than one batch: {len(tokens):,} tokens make {self.windows:,} "
                f"windows of {length:,} tokens, a batch needs {batch_size:,}. Use a smaller batch_size or length (now "
                f"{batch_size:,} and {length:,}), or more text: {(batch_size + 1) * length:,} tokens are needed."
            )
        self._tokens = tokens
        self.batch_size = batch_size
        self.length = length
        self.seed = seed
        self._orders: dict[int, tuple[Permutation, int]] = {}

    @property
    def tokens_per_step(self) -> int:
        """Predicted tokens in one batch."""
        return self.batch_size * self.length

    def batch(self, step: int, rows: slice | None = None) -> torch.Tensor:
        """Return an int64 tensor (rows, length + 1): inputs are ``[:, :-1]``, targets ``[:, 1:]``.

        Args:
            step: 0, 1, 2, ...
            rows: part of the batch, such as ``slice(0, 4)``; default all of it.
        """
        starts = self._starts(self.indices(step, rows))
        return _windows(self._tokens, starts, self.length)

    def indices(self, step: int, rows: slice | None = None) -> NDArray[np.int64]:
        """Numbers, counted from the start of training, of the windows in a batch (or some rows of it)."""
        if step < 0:
            raise ValueError(f"step must be 0 or more, got {step}.")
        first = step * self.batch_size
        return np.arange(first, first + self.batch_size, dtype=np.int64)[rows or slice(None)]

    def hash_upto(self, step: int) -> str:
        """Hash of all batches before `step`: what a `RunningHash` that saw them says. Reads them again."""
        running = RunningHash()
        for earlier in range(step):
            running.update(self.indices(earlier), self.batch(earlier))
        return str(running)

    def _starts(self, indices: NDArray[np.int64]) -> NDArray[np.int64]:
        """Where windows begin in the token file."""
        starts = np.empty_like(indices)
        epochs = indices // self.windows
        for epoch in np.unique(epochs):
            permutation, shift = self._order(int(epoch))
            here = epochs == epoch
            starts[here] = shift + self.length * permutation(indices[here] % self.windows)
        return starts

    def _order(self, epoch: int) -> tuple[Permutation, int]:
        if epoch not in self._orders:
            key = f"steepest/{self.seed}/{epoch}"
            # At most two epochs meet in a batch, because a batch is no larger than an epoch.
            self._orders = {e: order for e, order in self._orders.items() if e == epoch - 1}
            self._orders[epoch] = (Permutation(self.windows, f"{key}/order"), offset(self.length, f"{key}/offset"))
        return self._orders[epoch]


class RunningHash:
    """A cheap hash of the windows seen so far, to assert that two runs saw the same data in the same steps.

    It is a sum over windows of a hash of (number of the window, its tokens), so micro-batches and processes may add
    their rows in any order: the values of all processes, added modulo 2**64, are the value of one process.

    Args:
        value: the value to go on from, out of a checkpoint. Default 0.
    """

    def __init__(self, value: int = 0) -> None:
        self.value = value

    def update(self, indices: NDArray[np.int64], batch: torch.Tensor) -> None:
        """Add the rows of `batch` (rows, length + 1), whose numbers are `indices` (`TokenStream.indices`)."""
        rows = batch.cpu().numpy().astype("<u4")
        for index, row in zip(indices.tolist(), rows, strict=True):
            digest = hashlib.blake2b(row.tobytes(), digest_size=8, salt=index.to_bytes(16, "little")).digest()
            self.value = (self.value + int.from_bytes(digest, "big")) % (1 << 64)

    def __str__(self) -> str:
        return f"{self.value:016x}"


class Evaluation:
    """A fixed set of windows, the same each time: evenly spread over a split, so every source has its part.

    Args:
        tokens: the split.
        wanted: predicted tokens to evaluate, at most, in whole windows; the whole split when it is smaller.
        length: predicted tokens per window.
        batch_size: windows per batch; the last batch may be smaller.
        name: what the tokens are, for messages.

    Raises:
        UserError: the split is shorter than one window, or `wanted` is.
    """

    def __init__(self, tokens: Tokens, *, wanted: int, length: int, batch_size: int, name: str = "the corpus") -> None:
        _check_positive(tokens=wanted, length=length, batch_size=batch_size)
        available = max(0, (len(tokens) - 1) // length)
        count = min(available, wanted // length)
        if count < 1:
            raise UserError(
                f"the evaluation of {name} has no whole window: the split has {len(tokens):,} tokens, {wanted:,} were "
                f"asked for, and one window takes {length:,} and one more. Use a smaller length, more evaluation "
                "tokens, more text, or a larger validation_percent (--validation-percent)."
            )
        self._tokens = tokens
        self._starts = np.arange(count, dtype=np.int64) * available // count * length
        self.length = length
        self.batch_size = batch_size

    @property
    def tokens(self) -> int:
        """Predicted tokens in all: what the sum of losses is divided by."""
        return len(self._starts) * self.length

    def __len__(self) -> int:
        """Return the number of batches."""
        return math.ceil(len(self._starts) / self.batch_size)

    def batch(self, index: int) -> torch.Tensor:
        """Return batch number `index` as an int64 tensor (rows, length + 1)."""
        if not 0 <= index < len(self):
            raise IndexError(f"batch {index} of an evaluation of {len(self)} batches.")
        return _windows(self._tokens, self._starts[index * self.batch_size :][: self.batch_size], self.length)

    def __iter__(self) -> Iterator[torch.Tensor]:
        """Iterate over the batches."""
        return (self.batch(index) for index in range(len(self)))


def _windows(tokens: Tokens, starts: NDArray[np.int64], length: int) -> torch.Tensor:
    return torch.from_numpy(tokens[starts[:, None] + np.arange(length + 1)].astype(np.int64))


def _check_positive(**values: int) -> None:
    for name, value in values.items():
        if value < 1:
            raise UserError(f"{name} must be at least 1, got {value}.")
