"""Frozen parameters cost no state (the base of a LoRA model is most of it), and can be unfrozen at any time."""

import io

import torch
from torch import nn

import steepest


def model() -> nn.Module:
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 3))
    layers[2].requires_grad_(False)
    return layers


def step(layers: nn.Module, optimizer: torch.optim.Optimizer, seed: int) -> None:
    optimizer.zero_grad()
    x = torch.randn(5, 4, generator=torch.Generator().manual_seed(seed))
    layers(x).square().mean().backward()
    optimizer.step()


def test_no_state_until_unfrozen_and_exact_resume_around_it():
    layers = model()
    optimizer = steepest.LionMuon(layers, lr=1e-2)
    frozen = layers[2].weight
    assert frozen not in optimizer.state
    assert next(row for row in optimizer.rows() if row["name"] == "2.weight")["state_bytes"] == 0
    measured = sum(t.nbytes for state in optimizer.state.values() for t in state.values())
    assert steepest.state_bytes(layers, "lion_muon")["total"] == measured

    before = frozen.clone()
    step(layers, optimizer, 0)
    assert torch.equal(frozen, before)

    for unfreeze in (False, True):
        if unfreeze:
            layers[2].requires_grad_(True)
            step(layers, optimizer, 1)
            assert optimizer.state[frozen]["step"] == 1
            assert not torch.equal(frozen, before)
        file = io.BytesIO()
        torch.save((layers.state_dict(), optimizer.state_dict()), file)
        file.seek(0)
        weights, state = torch.load(file, weights_only=True)
        again = model()
        again[2].requires_grad_(unfreeze)
        again.load_state_dict(weights)
        resumed = steepest.LionMuon(again, lr=1e-2)
        resumed.load_state_dict(state)
        assert (again[2].weight in resumed.state) == unfreeze
        if unfreeze:
            step(layers, optimizer, 2)
            step(again, resumed, 2)
            assert all(torch.equal(a, b) for a, b in zip(layers.parameters(), again.parameters(), strict=True))
