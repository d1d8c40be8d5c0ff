"""The computed shuffle: a permutation for any size, keyed, spread out, and free of memory."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from steepest.lab.data.order import Permutation, offset


@given(size=st.integers(1, 5_000), key=st.text(max_size=20))
@settings(max_examples=60, deadline=None)
def test_is_a_permutation(size: int, key: str) -> None:
    entries = Permutation(size, key)(np.arange(size))
    assert np.array_equal(np.sort(entries), np.arange(size))


@pytest.mark.parametrize("size", [1, 2, 255, 256, 257, 65_536, 65_537, 1 << 18])
def test_is_a_permutation_at_the_edges_of_powers_of_two(size: int) -> None:
    entries = Permutation(size, "key")(np.arange(size))
    assert np.array_equal(np.sort(entries), np.arange(size))


@given(size=st.integers(1, 2_000), data=st.data())
@settings(max_examples=30, deadline=None)
def test_an_entry_does_not_depend_on_what_is_asked_beside_it(size: int, data: st.DataObject) -> None:
    permutation = Permutation(size, "key")
    whole = permutation(np.arange(size))
    some = np.array(data.draw(st.lists(st.integers(0, size - 1), max_size=20)), dtype=np.int64)
    assert np.array_equal(permutation(some), whole[some])


def test_the_key_decides() -> None:
    positions = np.arange(1_000)
    first = Permutation(1_000, "a")(positions)
    assert np.array_equal(first, Permutation(1_000, "a")(positions))
    other = Permutation(1_000, "b")(positions)
    assert (first != other).mean() > 0.9
    assert (first != positions).mean() > 0.9


def test_golden_values_never_change() -> None:
    # A change here changes the data order of every run ever made.
    assert Permutation(1_000, "steepest")(np.arange(8)).tolist() == [77, 512, 460, 706, 161, 912, 921, 90]
    assert [offset(128, f"steepest/{epoch}") for epoch in range(6)] == [96, 50, 76, 84, 20, 77]


def test_ten_billion_entries_cost_nothing() -> None:
    size = 10_000_000_000
    permutation = Permutation(size, "key")
    positions = np.random.default_rng(0).integers(0, size, size=20_000)
    entries = permutation(positions)
    assert entries.min() >= 0
    assert entries.max() < size
    assert len(np.unique(entries)) == len(np.unique(positions))
    assert abs(entries.mean() / size - 0.5) < 0.02
    held = [value for value in vars(permutation).values() if isinstance(value, np.ndarray)]
    assert sum(array.nbytes for array in held) < 1_000


def test_every_place_is_equally_likely() -> None:
    keys, size = 400, 40
    counts = np.zeros((size, size))
    for key in range(keys):
        counts[np.arange(size), Permutation(size, str(key))(np.arange(size))] += 1
    # 1,600 cells of about 10; chi-square with 39 x 39 degrees of freedom, 99.99th percentile.
    assert ((counts - keys / size) ** 2 / (keys / size)).sum() < 1_736


def test_neighbours_are_not_neighbours_any_more() -> None:
    size = 10_000
    entries = Permutation(size, "key")(np.arange(size)).astype(float)
    assert abs(np.corrcoef(entries[:-1], entries[1:])[0, 1]) < 0.05
    assert abs(np.corrcoef(entries, np.arange(size))[0, 1]) < 0.05


def test_refuses_what_is_outside() -> None:
    with pytest.raises(ValueError, match="size=0"):
        Permutation(0, "key")
    for wrong in (-1, 10):
        with pytest.raises(IndexError, match=r"range\(10\)"):
            Permutation(10, "key")(np.array([wrong]))


def test_offsets_cover_the_range() -> None:
    assert {offset(7, str(key)) for key in range(200)} == set(range(7))
    assert offset(1, "key") == 0
