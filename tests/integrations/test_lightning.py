"""Lightning trains a module whose configure_optimizers returns a LionMuon and a scheduler, and resumes it exactly."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import nn

import steepest

lightning = pytest.importorskip("lightning")

EPOCHS = 10


class Module(lightning.LightningModule):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.model = nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 3))
        self.losses = []
        self.rates = []

    def training_step(self, batch, _):
        x, y = batch
        loss = nn.functional.cross_entropy(self.model(x), y)
        self.losses.append(loss.item())
        self.rates.append(self.optimizers().param_groups[0]["lr"])
        return loss

    def configure_optimizers(self):
        optimizer = steepest.LionMuon(self.model, lr=0.02, sign_lr_ratio=0.2, period=3)
        scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 8 * EPOCHS)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


def data():
    x = torch.randn(64, 6, generator=torch.Generator().manual_seed(1))
    return torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, x[:, :3].argmax(dim=1)), batch_size=8)


def fit(module, folder, epochs, checkpoint=None):
    trainer = lightning.Trainer(
        accelerator="cpu",
        devices=1,
        max_epochs=epochs,
        gradient_clip_val=1.0,
        default_root_dir=folder,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer.fit(module, data(), ckpt_path=checkpoint, weights_only=True)
    return trainer


def test_it_trains_and_resumes_exactly(tmp_path):
    whole = Module()
    trainer = fit(whole, tmp_path, EPOCHS)
    assert sum(whole.losses[-8:]) < 0.5 * sum(whole.losses[:8])
    assert len(set(whole.rates)) == 8 * EPOCHS
    (optimizer,) = trainer.optimizers
    assert {int(state["step"]) for state in optimizer.state.values()} == {8 * EPOCHS}

    half = Module()
    stopped = fit(half, tmp_path, EPOCHS // 2)  # after 40 steps, in the middle of a period
    stopped.save_checkpoint(tmp_path / "half.ckpt")
    again = Module()
    fit(again, tmp_path, EPOCHS, checkpoint=tmp_path / "half.ckpt")
    assert again.losses == whole.losses[8 * EPOCHS // 2 :]
    for p, q in zip(again.parameters(), whole.parameters(), strict=True):
        assert torch.equal(p, q)
