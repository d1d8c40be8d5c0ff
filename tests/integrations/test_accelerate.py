"""accelerate prepares, accumulates for, clips for, saves and restores a LionMuon."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import steepest

accelerate = pytest.importorskip("accelerate")


def make():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 3))
    optimizer = steepest.LionMuon(model, lr=0.02, sign_lr_ratio=0.2, period=3)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 60)
    x = torch.randn(64, 6, generator=torch.Generator().manual_seed(1))
    data = torch.utils.data.DataLoader(
        torch.utils.data.TensorDataset(x, x[:, :3].argmax(dim=1)), batch_size=8, shuffle=False
    )
    return model, optimizer, scheduler, data


def train(accelerator, prepared, epochs):
    model, optimizer, scheduler, data = prepared
    losses = []
    for _ in range(epochs):
        for x, y in data:
            with accelerator.accumulate(model):
                loss = nn.functional.cross_entropy(model(x), y)
                accelerator.backward(loss)
                if accelerator.sync_gradients:
                    accelerator.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
                scheduler.step()
                optimizer.zero_grad()
            losses.append(loss.item())
    return losses


def test_it_trains_and_resumes_exactly(tmp_path):
    accelerator = accelerate.Accelerator(cpu=True, gradient_accumulation_steps=2)
    prepared = accelerator.prepare(*make())
    losses = train(accelerator, prepared, 10)
    assert sum(losses[-8:]) < 0.5 * sum(losses[:8])
    optimizer = prepared[1].optimizer
    assert isinstance(optimizer, steepest.LionMuon)
    steps = {int(state["step"]) for state in optimizer.state.values()}
    assert steps == {40}  # 10 epochs of 8 batches, every second one
    assert steps.pop() % 3 != 0  # in the middle of a period
    accelerator.save_state(str(tmp_path))
    train(accelerator, prepared, 1)
    expected = [p.detach().clone() for p in prepared[0].parameters()]

    train(accelerator, prepared, 1)  # somewhere else, with another clock
    accelerator.load_state(str(tmp_path))
    train(accelerator, prepared, 1)
    for p, q in zip(prepared[0].parameters(), expected, strict=True):
        assert torch.equal(p, q)
