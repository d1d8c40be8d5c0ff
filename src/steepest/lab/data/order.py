"""The order of data: a shuffle that is computed, not stored."""

from __future__ import annotations

import hashlib

import numpy as np
from numpy.typing import NDArray

_ROUNDS = 8


class Permutation:
    """A keyed permutation of ``range(size)`` that gives any entry in constant time and memory.

    A Feistel network permutes the numbers of 2k bits; a result outside the range is sent through again until it falls
    inside, which keeps it a permutation. Integer arithmetic only, so it is the same on every machine and under every
    NumPy release.

    Args:
        size: number of entries, at least 1; ten billion cost as much as ten.
        key: chooses the permutation.
    """

    def __init__(self, size: int, key: str) -> None:
        if size < 1:
            raise ValueError(f"a permutation needs at least one entry, got size={size}.")
        self.size = size
        bits = max(8, (size - 1).bit_length())
        self._half = np.uint64((bits + 1) // 2)
        self._mask = np.uint64((1 << int(self._half)) - 1)
        digest = hashlib.blake2b(key.encode(), digest_size=8 * _ROUNDS).digest()
        self._keys = np.frombuffer(digest, dtype="<u8").astype(np.uint64)

    def __call__(self, positions: NDArray[np.int64]) -> NDArray[np.int64]:
        """Entries at `positions`, an int64 array of any length with values in ``range(size)``."""
        if positions.size and (positions.min() < 0 or positions.max() >= self.size):
            raise IndexError(f"positions must lie in range({self.size}).")
        entries = self._network(positions.astype(np.uint64))
        while (outside := entries >= self.size).any():
            entries[outside] = self._network(entries[outside])
        return entries.astype(np.int64)

    def _network(self, x: NDArray[np.uint64]) -> NDArray[np.uint64]:
        left, right = x >> self._half, x & self._mask
        for key in self._keys:
            left, right = right, left ^ (_mix(right + key) & self._mask)
        entries: NDArray[np.uint64] = (left << self._half) | right
        return entries


def _mix(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The finalizer of SplitMix64 (Steele, Lea and Flood 2014): every input bit reaches every output bit."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed: NDArray[np.uint64] = x ^ (x >> np.uint64(31))
    return mixed


def offset(length: int, key: str) -> int:
    """A number in ``range(length)`` chosen by `key`."""
    return int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest(), "big") % length
