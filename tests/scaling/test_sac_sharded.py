"""Two processes: SAC and SGG over sharded (FSDP2) and replicated (DDP) models are those of one process."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import cases
import processes
import steepest
from test_sharding import Model, sharded_model, train

STEPS = 6

pytestmark = processes.needs_processes


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
    "sgg": lambda m: steepest.SGG(adamw(m), m, recluster=2, beta=0.5),
    "sgg sampled": lambda m: steepest.SGG(adamw(m), m, beta=0.5, samples=16, cluster_samples=32, storage="cpu"),
    "sgg elements": lambda m: steepest.SGG(adamw(m), m, beta=0.5, pool="elements", values="magnitude"),
}
CHECKPOINTS = ["equations", "algorithm1"]


def run(make, model, name):
    optimizer = make(model)
    history = train(model, optimizer, STEPS)
    numbers = {key: scale if isinstance(scale, tuple) else (scale,) for key, scale in optimizer.scales.items()}
    return {"weights": history, "scales": {(key, i): x for key, of in numbers.items() for i, x in enumerate(of)}}


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


def work(rank):
    result = {}
    for name, make in RUNS.items():
        result["sharded", name] = run(make, sharded_model(), name)
        result["replicated", name] = run(make, nn.parallel.DistributedDataParallel(Model()), name)
    for name in CHECKPOINTS:
        result["checkpoint", name] = run_checkpoint(name)
    return result


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    return processes.run(work, tmp_path_factory.mktemp("processes"))


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
