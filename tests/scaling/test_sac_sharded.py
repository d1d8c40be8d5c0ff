"""Two processes: SAC over sharded (FSDP2) and replicated (DDP) models is that of one process."""

from __future__ import annotations

import copy
import datetime
import time
import traceback
from pathlib import Path

import pytest
import torch
from torch import nn

import cases
import steepest
from test_sharding import WORLD, Model, sharded_model, train

STEPS = 6
TIMEOUT = 120.0

pytestmark = pytest.mark.skipif(not torch.distributed.is_available(), reason="torch without distributed")


def adamw(model):
    return torch.optim.AdamW(model.parameters(), lr=0.01, weight_decay=0.1)


RUNS = {
    "equations": lambda m: steepest.SAC(adamw(m), m, interval=2),
    "histogram": lambda m: steepest.SAC(adamw(m), m, interval=2, estimator="histogram", engine="hybrid"),
    "algorithm1": lambda m: steepest.SAC(adamw(m), m, interval=2, mode="algorithm1", engine="cpu"),
    "groups": lambda m: steepest.SAC(adamw(m), m, interval=2, granularity="P+G+L+B"),
    "update": lambda m: steepest.SAC(adamw(m), m, interval=2, apply="update"),
    "lion_muon": lambda m: steepest.SAC(steepest.LionMuon(m, lr=0.01, period=2), m, interval=2),
    "constant": lambda m: steepest.SAC(adamw(m), m, mode="constant"),
}
CHECKPOINTS = ["equations", "algorithm1"]


def run(make, model, name):
    optimizer = make(model)
    history = train(model, optimizer, STEPS)
    return {"weights": history, "scales": optimizer.scales}


def run_checkpoint(name):
    """Through torch.distributed.checkpoint's state dicts into a new optimizer, and on."""
    from torch.distributed.checkpoint.state_dict import (
        get_model_state_dict,
        get_optimizer_state_dict,
        set_model_state_dict,
        set_optimizer_state_dict,
    )

    model = sharded_model()
    optimizer = RUNS[name](model)
    train(model, optimizer, 3)
    saved = copy.deepcopy((get_model_state_dict(model), get_optimizer_state_dict(model, optimizer)))
    expected = train(model, optimizer, 3, start=3)
    twin = sharded_model()
    other = RUNS[name](twin)
    set_model_state_dict(twin, saved[0])
    set_optimizer_state_dict(twin, other, saved[1])
    return {"expected": expected, "actual": train(twin, other, 3, start=3)}


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
        for name, make in RUNS.items():
            result["sharded", name] = run(make, sharded_model(), name)
            result["replicated", name] = run(make, nn.parallel.DistributedDataParallel(Model()), name)
        for name in CHECKPOINTS:
            result["checkpoint", name] = run_checkpoint(name)
        dist.barrier()
        dist.destroy_process_group()
    except BaseException:
        (Path(folder) / f"error-{rank}.txt").write_text(traceback.format_exc(), encoding="utf-8")
        raise
    torch.save(result, Path(folder) / f"result-{rank}.pt")


@pytest.fixture(scope="module")
def results(tmp_path_factory):
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


@pytest.mark.parametrize("name", RUNS)
def test_sharded_and_replicated_are_one_process(name, results):
    alone = run(RUNS[name], Model(), name)
    assert len(set(alone["scales"].values())) > 1
    for way in ("sharded", "replicated"):
        first, second = (result[way, name] for result in results)
        cases.assert_same(first["weights"], second["weights"])
        assert first["scales"] == second["scales"] == pytest.approx(alone["scales"], rel=1e-6)
        cases.assert_close(first["weights"], alone["weights"], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_a_sharded_checkpoint_resumes_exactly(name, results):
    for result in results:
        cases.assert_same(result["checkpoint", name]["actual"], result["checkpoint", name]["expected"])
