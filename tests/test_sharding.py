"""Two processes on one machine: sharded (FSDP2) and replicated (DDP) runs are the run of one process.

The processes are started once; each writes what it saw to a file, and the tests read the files. The gradients are the
same in all runs, so nothing but the optimizer can make a difference, and there is no tolerance.
"""

from __future__ import annotations

import datetime
import math
import time
import traceback
from pathlib import Path

import pytest
import torch
from torch import nn

import cases
import steepest
from steepest import rules

WORLD = 2
STEPS = 5
TIMEOUT = 120.0  # seconds for everything; a rank that hangs or fails ends its peer

pytestmark = pytest.mark.skipif(not torch.distributed.is_available(), reason="torch without distributed")


class Model(nn.Module):
    """Rows that two processes cannot share evenly, one row (so that a shard is empty), a convolution, vectors."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Embedding(9, 6)
        self.conv = nn.Conv1d(6, 5, 3, padding=1)
        self.up = nn.Linear(5, 7)
        self.gate = nn.Linear(7, 1, bias=False)
        self.down = nn.Linear(7, 5)
        self.norm = nn.LayerNorm(5)
        self.head = nn.Linear(5, 9, bias=False)

    def forward(self, tokens):
        x = self.conv(self.embed(tokens).mT).mT
        h = torch.tanh(self.up(x))
        x = self.norm(x + self.down(h * self.gate(h)))
        return self.head(x)


OPTIMIZERS = {
    "lion": lambda m: steepest.Lion(m, lr=0.01),
    "adamw": lambda m: steepest.Steepest(m, rules.AdamW(lr=0.01)),
    "muon": lambda m: steepest.Muon(m, lr=0.01),
    "lion_muon": lambda m: steepest.LionMuon(m, lr=0.01, period=2),
    "lion_muon narrow state": lambda m: steepest.LionMuon(m, lr=0.01, period=2, state_dtype="bfloat16"),
    "lion_muon random": lambda m: steepest.LionMuon(m, lr=0.01, period=2, trigger="random", seed=3),
    "lion_muon stable rank": lambda m: steepest.LionMuon(m, lr=0.01, trigger="stable_rank", threshold=0.45),
    "tensor rate": lambda m: steepest.LionMuon(m, lr=torch.tensor(0.01), period=2),
}


def batch(step, rank=None):
    """Tokens of a step; with a rank, its half of them."""
    tokens = torch.randint(9, (8, 6), generator=torch.Generator().manual_seed(step))
    return tokens if rank is None else tokens.chunk(WORLD)[rank]


def backward(model, tokens):
    logits = model(tokens[:, :-1])
    nn.functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten()).backward()


def whole(t):
    t = t.detach()
    return (t.full_tensor() if hasattr(t, "full_tensor") else t).clone()


def train(model, optimizer, steps=STEPS, start=0, rank=None):
    """Weights after each step, by clean name."""
    history = []
    for step in range(start, start + steps):
        optimizer.zero_grad()
        backward(model, batch(step, rank))
        optimizer.step()
        history.append({n.removeprefix("module."): whole(p) for n, p in model.named_parameters()})
    return history


def sharded_model():
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    model = Model()
    mesh = init_device_mesh("cpu", (WORLD,))
    for part in (model.up, model.down):
        fully_shard(part, mesh=mesh)
    return fully_shard(model, mesh=mesh)


def run_sharded(name):
    model = sharded_model()
    optimizer = OPTIMIZERS[name](model)
    history = train(model, optimizer)
    local = sum(
        t.to_local().numel() if hasattr(t, "to_local") else 0
        for state in optimizer.state.values()
        for key, t in state.items()
        if key != "step"
    )
    return {
        "weights": history,
        "plain state": sorted(
            {key for state in optimizer.state.values() for key, t in state.items() if not hasattr(t, "to_local")}
        ),
        "local state elements": local,
        "state": [{k: whole(t) for k, t in optimizer.state[p].items()} for p in model.parameters()],
        "report": str(optimizer),
    }


def run_replicated(name, rank):
    model = nn.parallel.DistributedDataParallel(Model())
    return {"weights": train(model, OPTIMIZERS[name](model)), "halves": halves(name, rank)}


def halves(name, rank):
    """Each process has half of the batch; DDP takes the mean."""
    model = nn.parallel.DistributedDataParallel(Model())
    return train(model, OPTIMIZERS[name](model), rank=rank)


def run_checkpoint():
    """Sharded state through torch.distributed.checkpoint's state dicts into a new optimizer, and on."""
    from torch.distributed.checkpoint.state_dict import (
        get_model_state_dict,
        get_optimizer_state_dict,
        set_model_state_dict,
        set_optimizer_state_dict,
    )

    model = sharded_model()
    optimizer = OPTIMIZERS["lion_muon"](model)
    train(model, optimizer, 3)
    # as copies: the state dicts share memory with the run that goes on
    saved = [
        torch.utils._pytree.tree_map(lambda x: x.clone() if isinstance(x, torch.Tensor) else x, state)
        for state in (get_model_state_dict(model), get_optimizer_state_dict(model, optimizer))
    ]
    expected = train(model, optimizer, 2, start=3)
    twin = sharded_model()
    other = OPTIMIZERS["lion_muon"](twin)
    train(twin, other, 1, start=50)
    set_model_state_dict(twin, saved[0])
    set_optimizer_state_dict(twin, other, saved[1])
    return {"expected": expected, "actual": train(twin, other, 2, start=3)}


def run_non_finite(rank):
    """A bad gradient in the shard of the last process alone is refused by all."""
    model = sharded_model()
    optimizer = OPTIMIZERS["lion_muon"](model)
    backward(model, batch(0))
    if rank == WORLD - 1:
        model.up.weight.grad.to_local()[-1, -1] = math.nan
    before = {n: whole(p) for n, p in model.named_parameters()}
    try:
        optimizer.step()
    except FloatingPointError as error:
        message = str(error)
    else:
        message = ""
    unchanged = all(torch.equal(whole(p), before[n]) for n, p in model.named_parameters())
    return {"message": message, "unchanged": unchanged}


def worker(rank, folder):
    import torch.distributed as dist

    torch.set_num_threads(1)
    result = {}
    try:
        dist.init_process_group(
            "gloo",
            init_method=f"file://{folder}/rendezvous",
            rank=rank,
            world_size=WORLD,
            timeout=datetime.timedelta(seconds=TIMEOUT / 2),
        )
        for name in OPTIMIZERS:
            result["sharded", name] = run_sharded(name)
            result["replicated", name] = run_replicated(name, rank)
        result["checkpoint"] = run_checkpoint()
        result["non-finite"] = run_non_finite(rank)
        dist.barrier()
        dist.destroy_process_group()
    except BaseException:
        (Path(folder) / f"error-{rank}.txt").write_text(traceback.format_exc(), encoding="utf-8")
        raise
    torch.save(result, Path(folder) / f"result-{rank}.pt")


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """What each process saw."""
    folder = tmp_path_factory.mktemp("processes")
    context = torch.multiprocessing.start_processes(
        worker, args=(str(folder),), nprocs=WORLD, join=False, start_method="spawn"
    )
    end = time.monotonic() + TIMEOUT
    try:
        while not context.join(timeout=1.0):
            if time.monotonic() > end:
                pytest.fail(f"the processes did not end within {TIMEOUT:.0f} s")
    except torch.multiprocessing.ProcessException:
        errors = "\n".join(path.read_text(encoding="utf-8") for path in sorted(folder.glob("error-*.txt")))
        pytest.fail(f"a process failed:\n{errors}")
    finally:
        for process in context.processes:
            if process.is_alive():
                process.kill()
    return [torch.load(folder / f"result-{rank}.pt", weights_only=False) for rank in range(WORLD)]


@pytest.fixture(scope="module")
def alone():
    """The runs of one process, by optimizer."""
    runs = {}
    for name, make in OPTIMIZERS.items():
        model = Model()
        optimizer = make(model)
        history = train(model, optimizer)
        state = [dict(optimizer.state[p]) for p in model.parameters()]
        runs[name] = {"weights": history, "state": state, "report": str(optimizer)}
    return runs


every_optimizer = pytest.mark.parametrize("name", OPTIMIZERS)


@every_optimizer
def test_sharded_is_unsharded_bit_for_bit(name, results, alone):
    for result in results:
        cases.assert_same(result["sharded", name]["weights"], alone[name]["weights"])
        cases.assert_same(result["sharded", name]["state"], alone[name]["state"])


@every_optimizer
def test_replicated_is_alone_bit_for_bit(name, results, alone):
    for result in results:
        cases.assert_same(result["replicated", name]["weights"], alone[name]["weights"])


@every_optimizer
def test_replicas_stay_equal_on_their_halves_of_the_batch(name, results):
    first, second = (result["replicated", name]["halves"] for result in results)
    cases.assert_same(first, second)


@pytest.mark.parametrize("name", ["lion", "muon", "lion_muon"])
def test_halves_of_the_batch_are_the_batch(name, results, alone):
    """To rounding, where the mean over processes is summed in another order; the first step, before signs can part."""
    first = results[0]["replicated", name]["halves"][0]
    for parameter, w in alone[name]["weights"][0].items():
        close = (first[parameter] - w).abs() < 1e-4
        assert close.float().mean() > 0.95, parameter


@every_optimizer
def test_state_is_sharded_like_its_parameter(name, results):
    """Every process holds its share, nothing twice, and only the step counter is replicated."""
    elements = sum(p.numel() for p in Model().parameters())
    buffers = results[0]["sharded", name]["state"]
    total = sum(t.numel() for state in buffers for key, t in state.items() if key != "step")
    assert total >= elements
    assert sum(result["sharded", name]["local state elements"] for result in results) == total
    assert all(result["sharded", name]["plain state"] == ["step"] for result in results)


@every_optimizer
def test_the_report_is_that_of_one_process(name, results, alone):
    for result in results:
        assert result["sharded", name]["report"] == alone[name]["report"]


def test_a_sharded_checkpoint_is_exact(results):
    for result in results:
        cases.assert_same(result["checkpoint"]["actual"], result["checkpoint"]["expected"])


def test_a_bad_gradient_on_one_process_is_refused_by_all(results):
    bad = results[-1]["non-finite"]
    assert "'up.weight'" in bad["message"]
    assert "another process" in results[0]["non-finite"]["message"]
    assert all(result["non-finite"]["unchanged"] for result in results)
