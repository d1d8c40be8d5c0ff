"""Engines: the same numbers wherever they are computed, at a fixed step, and nothing left behind."""

from __future__ import annotations

import copy
import math
import threading

import pytest
import torch

from steepest.scaling import engines
from steepest.scaling.engines import ENGINES, Engine
from steepest.scaling.statistics import ESTIMATORS, Measure, measure

each_engine = pytest.mark.parametrize("name", ENGINES)
EMBEDDING = (-1, "embedding")


def gradients(seed=0):
    generator = torch.Generator().manual_seed(seed)

    def x(*shape):
        return 1e-4 * torch.randn(shape, generator=generator) ** 3

    embedding = x(200, 16)
    embedding[::3] = 0.0
    return {EMBEDDING: [embedding], (0, "a"): [x(90, 40), x(30)], (0, "b"): [x(50, 70).bfloat16()], (1, "a"): []}


def spoil(blocks):
    for block in blocks.values():
        for g in block:
            g.fill_(math.nan)


@pytest.fixture(autouse=True)
def _no_thread_stays():
    yield
    for thread in threading.enumerate():
        if thread.name == "steepest statistics":
            thread.join(10.0)
    assert not [t for t in threading.enumerate() if t.name == "steepest statistics"]


@each_engine
@pytest.mark.parametrize("wait", [True, False])
@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("samples", [512, 1 << 16])
def test_all_engines_give_the_same_numbers(name, wait, estimator, samples):
    """To the last bit, and of the gradients as they were when they were submitted."""
    if (name, estimator) == ("hybrid", "exact"):
        pytest.skip("refused, see below")
    what = Measure(
        estimator=estimator, samples=samples, block_scale="mad_of_distances", nonzero_rows=frozenset({EMBEDDING})
    )
    engine = Engine(name, what, wait=wait)
    given = gradients()
    engine.submit(7, given)
    spoil(given)
    late = name != "device" and not wait
    now, later = engine.ready(7), engine.ready(8)
    assert (now is None, later is None) == (late, not late)
    assert str(later if late else now) == str(measure(gradients(), what))
    assert engine.ready(9) is None


@each_engine
def test_a_statistics_step_after_another(name):
    """Each is used at its step, although the next one is submitted before."""
    engine = Engine(name, Measure())
    used = []
    for step in range(4):
        engine.submit(step, gradients(step))
        used.append(engine.ready(step))
    expected = [measure(gradients(step), Measure()) for step in range(4)]
    if name == "device":
        assert used == expected
    else:
        assert used == [None, *expected[:3]]
        assert engine.ready(4) == expected[3]


@each_engine
def test_steps_without_statistics_use_the_last(name):
    engine = Engine(name, Measure())
    engine.submit(0, gradients(0))
    engine.submit(1, gradients(1))
    assert engine.ready(5) == measure(gradients(1), Measure())
    assert engine.ready(6) is None


@each_engine
@pytest.mark.parametrize("wait", [True, False])
def test_a_checkpoint_holds_what_is_under_way(name, wait, tmp_path):
    what = Measure(block_scale="mad")  # everything, as nan is not equal to nan
    engine = Engine(name, what, wait=wait)
    engine.submit(3, gradients())
    torch.save(engine.state_dict(), tmp_path / "engine.pt")
    resumed = Engine(name, what, wait=wait)
    resumed.load_state_dict(torch.load(tmp_path / "engine.pt", weights_only=True))
    twin = copy.deepcopy(engine)
    used = []
    for step in (3, 4):
        expected = engine.ready(step)
        assert resumed.ready(step) == expected
        assert twin.ready(step) == expected
        used.append(expected)
    assert measure(gradients(), what) in used
    assert engine.state_dict() == {"pending": []}


@each_engine
def test_a_failure_is_raised_with_its_step_where_the_numbers_are_used(name, monkeypatch):
    engine = Engine(name, Measure())
    if name != "device":  # there it is an ordinary error of submit

        def fail(*_):
            raise ArithmeticError("broken")

        monkeypatch.setattr(engines, "Packed", fail)
        engine.submit(11, gradients())
        assert engine.ready(11) is None
        with pytest.raises(RuntimeError, match=f"engine '{name}': the statistics of step 11 failed") as caught:
            engine.finish()
        assert isinstance(caught.value.__cause__, ArithmeticError)
        with pytest.raises(RuntimeError, match="step 11"):
            engine.ready(12)
        monkeypatch.undo()
    engine.submit(12, gradients())
    assert engine.ready(13) == measure(gradients(), Measure())


def test_the_worker_runs_beside_the_caller(monkeypatch):
    """``submit`` and the ``ready`` of the same step do not wait for it; ``finish`` does."""
    go = threading.Event()
    where = []
    packed = engines.Packed

    def slow(*arguments):
        go.wait(20.0)
        where.append(threading.current_thread().name)
        return packed(*arguments)

    monkeypatch.setattr(engines, "Packed", slow)
    for name in ("cpu", "hybrid"):
        go.clear()
        engine = Engine(name, Measure())
        engine.submit(0, gradients())
        assert engine.ready(0) is None
        go.set()
        engine.finish()
        assert engine.ready(1) == measure(gradients(), Measure())
    assert where == ["steepest statistics"] * 2


@each_engine
def test_no_gradients_and_bad_ones(name):
    engine = Engine(name, Measure(), wait=True)
    engine.submit(0, {(0, "a"): []})
    assert engine.ready(0).blocks == {}
    bad = gradients()
    bad[0, "a"][0][3, 4] = math.inf
    engine.submit(1, bad)
    assert engine.ready(1).non_finite == 1


def test_bad_names():
    with pytest.raises(ValueError, match="statistics: unknown engine 'gpu'; did you mean 'cpu'"):
        Engine("gpu", Measure())
    with pytest.raises(ValueError, match="estimator='exact' makes none: choose engine='device'"):
        Engine("hybrid", Measure(estimator="exact"))


@pytest.mark.skipif(not torch.distributed.is_available(), reason="torch without distributed")
def test_whole_shards_are_not_copied():
    """What a thread would have to exchange is refused; a sample is exchanged before."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Shard, distribute_tensor
    from torch.testing._internal.distributed.fake_pg import FakeStore

    torch.distributed.init_process_group("fake", store=FakeStore(), rank=0, world_size=1)
    try:
        g = distribute_tensor(torch.randn(8, 4), init_device_mesh("cpu", (1,)), [Shard(0)])
        engine = Engine("cpu", Measure(estimator="histogram"))
        with pytest.raises(ValueError, match="copies whole gradients, and these are sharded: choose"):
            engine.submit(0, {(0, "a"): [g]})
        assert engine.ready(1) is None
        engine = Engine("cpu", Measure())
        engine.submit(0, {(0, "a"): [g]})
        assert engine.ready(1) == measure({(0, "a"): [g.to_local()]}, Measure())
    finally:
        torch.distributed.destroy_process_group()
