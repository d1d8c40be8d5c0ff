"""Batches: a pure function of seed and step, each window once per epoch, the same for any number of readers."""

from __future__ import annotations

import copy
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from steepest.lab.data.stream import Evaluation, RunningHash, TokenStream
from steepest.lab.errors import UserError

# Distinct ids, so that a window shows where it was taken from.
TOKENS = np.arange(1_003, dtype=np.uint16)


def stream(batch_size: int = 7, length: int = 10, seed: int = 0, tokens: np.ndarray = TOKENS) -> TokenStream:
    return TokenStream(tokens, batch_size=batch_size, length=length, seed=seed)


def test_a_batch_is_shifted_windows_of_int64() -> None:
    batch = stream().batch(0)
    assert batch.dtype == torch.int64
    assert batch.shape == (7, 11)
    assert torch.equal(batch[:, 1:], batch[:, :-1] + 1)


def test_pure_function_of_seed_and_step() -> None:
    expected = [stream().batch(step) for step in range(60)]
    again = stream()
    for step in np.random.default_rng(0).permutation(60):  # in any order, and twice
        assert torch.equal(again.batch(int(step)), expected[step])
        assert torch.equal(again.batch(int(step)), expected[step])
    assert torch.equal(copy.deepcopy(again).batch(33), expected[33])
    assert not torch.equal(stream(seed=1).batch(0), expected[0])
    assert not torch.equal(expected[1], expected[0])


def test_nothing_random_of_the_process_matters() -> None:
    torch.manual_seed(1)
    np.random.seed(1)
    first = stream().batch(5)
    torch.manual_seed(2)
    np.random.seed(2)
    assert torch.equal(stream().batch(5), first)


def test_golden_batches_never_change() -> None:
    # A change here changes the data order of every run ever made.
    assert stream(batch_size=4).batch(0)[:, 0].tolist() == [489, 769, 879, 379]
    assert stream(batch_size=4).batch(40)[:, 0].tolist() == [890, 540, 980, 420]


@given(
    n=st.integers(150, 500),
    length=st.integers(1, 12),
    batch_size=st.integers(1, 11),
    seed=st.integers(0, 2**40),
)
@settings(max_examples=15, deadline=None)
def test_an_epoch_visits_each_window_once_and_windows_do_not_overlap(
    n: int, length: int, batch_size: int, seed: int
) -> None:
    tokens = np.arange(n, dtype=np.uint16)
    windows = (n - length) // length
    data = stream(batch_size, length, seed, tokens)
    assert data.windows == windows
    steps = -(-3 * windows // batch_size)
    rows = torch.cat([data.batch(step) for step in range(steps)])[: 3 * windows]
    for epoch in range(3):
        inputs = rows[epoch * windows : (epoch + 1) * windows, :-1]
        assert inputs.unique().numel() == windows * length


def test_each_epoch_has_a_new_offset_and_a_new_order() -> None:
    data = stream(batch_size=1)
    starts = [[int(data.batch(e * data.windows + i)[0, 0]) for i in range(data.windows)] for e in range(12)]
    assert len({start % 10 for first, *_ in starts for start in [first]}) > 4
    assert all(len({start % 10 for start in epoch}) == 1 for epoch in starts)
    orders = {tuple(start // 10 for start in epoch) for epoch in starts}
    assert len(orders) == 12


def test_rows_are_slices_of_the_global_batch() -> None:
    data, step = stream(batch_size=8), 13
    whole = data.batch(step)
    for parts in (1, 2, 4, 8):
        size = 8 // parts
        pieces = [data.batch(step, rows=slice(i * size, (i + 1) * size)) for i in range(parts)]
        assert torch.equal(torch.cat(pieces), whole)
    assert torch.equal(data.batch(step, rows=slice(1, 8, 3)), whole[1::3])
    assert data.batch(step, rows=slice(0, 0)).shape == (0, 11)


def test_batch_size_does_not_change_the_order_of_windows() -> None:
    small = torch.cat([stream(batch_size=2).batch(step) for step in range(60)])
    large = torch.cat([stream(batch_size=12).batch(step) for step in range(10)])
    assert torch.equal(small, large)


def test_targets_may_reach_the_last_token_and_never_beyond() -> None:
    for n in range(20, 45, 3):
        data = stream(batch_size=1, length=10, tokens=np.arange(n, dtype=np.uint16))
        for step in range(8):
            assert data.batch(step).shape == (1, 11)
    tokens = np.arange(40, dtype=np.uint16)
    seen = {int(stream(1, 10, seed, tokens).batch(0).max()) for seed in range(60)}
    assert min(seen) < 13
    assert max(seen) == 39


def test_corpus_smaller_than_a_batch() -> None:
    with pytest.raises(UserError, match=r"smaller than one batch.*1,003 tokens.*99 windows.*needs 100.*more text"):
        stream(batch_size=100)
    assert stream(batch_size=99).batch(0).shape == (99, 11)
    with pytest.raises(UserError, match="0 windows"):
        stream(batch_size=1, length=2_000)
    # The number of tokens that the message asks for is enough.
    stream(batch_size=100, tokens=np.arange(1_010, dtype=np.uint16))


@pytest.mark.parametrize("wrong", [{"batch_size": 0}, {"length": 0}, {"batch_size": -3}])
def test_bad_sizes(wrong: dict[str, int]) -> None:
    with pytest.raises(UserError, match=r"(batch_size|length) must be at least 1"):
        stream(**wrong)
    with pytest.raises(ValueError, match="step must be 0 or more"):
        stream().batch(-1)


def test_uint32_tokens() -> None:
    tokens = np.arange(70_000, 71_003, dtype=np.uint32)
    assert torch.equal(stream(tokens=tokens).batch(3), stream().batch(3) + 70_000)


def test_running_hash_is_the_same_for_any_division_of_the_work() -> None:
    data = stream(batch_size=8)
    expected = data.hash_upto(6)
    one, halves, later = RunningHash(), [RunningHash(), RunningHash()], RunningHash()
    for step in range(6):
        one.update(data.indices(step), data.batch(step))
        for half, rows in zip(halves, (slice(0, 4), slice(4, 8)), strict=True):
            half.update(data.indices(step, rows), data.batch(step, rows))
        if step == 2:
            later = RunningHash(one.value)  # a resumed run
        if step > 2:
            later.update(data.indices(step), data.batch(step))
    assert str(one) == str(later) == expected
    assert sum(half.value for half in halves) % 2**64 == one.value
    assert len(expected) == 16


def test_running_hash_sees_a_changed_token_and_a_changed_order() -> None:
    data = stream(batch_size=8)
    reference = data.hash_upto(2)
    assert data.hash_upto(1) != reference
    assert stream(batch_size=8, seed=1).hash_upto(2) != reference
    changed, swapped = RunningHash(), RunningHash()
    for step in range(2):
        batch = data.batch(step)
        swapped.update(data.indices(step), data.batch(1 - step))
        batch[3, 5] += step
        changed.update(data.indices(step), batch)
    assert str(changed) != reference
    assert str(swapped) != reference


def evaluation(wanted: int = 500, length: int = 10, batch_size: int = 16, n: int = 1_003) -> Evaluation:
    return Evaluation(TOKENS[:n], wanted=wanted, length=length, batch_size=batch_size)


def test_evaluation_is_fixed_spread_out_and_counted() -> None:
    first, second = list(evaluation()), list(evaluation())
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert [tuple(batch.shape) for batch in first] == [(16, 11)] * 3 + [(2, 11)]
    assert len(evaluation()) == 4
    rows = torch.cat(first)
    assert evaluation().tokens == rows[:, 1:].numel() == 500
    assert rows[:, :-1].unique().numel() == 500  # no overlap
    starts = rows[:, 0].tolist()
    assert starts == sorted(starts)
    assert starts[0] == 0
    assert starts[-1] > 950  # the end of the split counts too
    assert max(Counter(start // 100 for start in starts).values()) <= 6
    assert evaluation().batch(3).shape == (2, 11)
    with pytest.raises(IndexError):
        evaluation().batch(4)


def test_evaluation_windows_do_not_depend_on_the_batch_size() -> None:
    assert torch.equal(torch.cat(list(evaluation(batch_size=3))), torch.cat(list(evaluation(batch_size=50))))


def test_evaluation_takes_at_most_the_split() -> None:
    everything = evaluation(wanted=10**9)
    assert everything.tokens == 1_000
    assert torch.cat(list(everything))[:, 1:].flatten().tolist() == list(range(1, 1_001))


def test_evaluation_without_one_window() -> None:
    with pytest.raises(UserError, match="10 tokens, 500 were asked for"):
        evaluation(n=10)
    assert evaluation(n=11).tokens == 10
    with pytest.raises(UserError, match="no whole window"):
        evaluation(wanted=9)
    with pytest.raises(UserError, match="tokens must be at least 1"):
        evaluation(wanted=0)
