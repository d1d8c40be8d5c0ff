"""SAC where a trainer steps it: accelerate, transformers and Lightning; each saves and resumes exactly."""

from __future__ import annotations

import warnings

import accelerate
import lightning
import pytest
import torch
import toys
import transformers
from torch import nn

import cases
import steepest


class Batches(torch.utils.data.Dataset):
    def __len__(self):
        return 8

    def __getitem__(self, i):
        return toys.tokens(i)[0]


class Tokens(Batches):
    def __getitem__(self, i):
        return {"input_ids": super().__getitem__(i), "labels": super().__getitem__(i)}


class Model(toys.Net):
    """As transformers has it: labels in, a loss out."""

    def forward(self, input_ids, labels=None):
        logits = super().forward(input_ids)
        loss = nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), input_ids[:, 1:].flatten())
        return {"loss": loss, "logits": logits}


def make():
    model = Model()
    optimizer = steepest.SAC(torch.optim.AdamW(model.parameters(), lr=0.01, weight_decay=0.1), model, interval=3)
    return model, optimizer, torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 20)


def weights(model):
    return [p.detach().clone() for p in model.parameters()]


def test_accelerate(tmp_path):
    accelerator = accelerate.Accelerator(cpu=True, gradient_accumulation_steps=2)
    data = torch.utils.data.DataLoader(Batches(), batch_size=1, shuffle=False)
    model, optimizer, scheduler, data = accelerator.prepare(*make(), data)

    def epoch():
        for batch in data:
            with accelerator.accumulate(model):
                accelerator.backward(model(batch)["loss"])
                if accelerator.sync_gradients:
                    accelerator.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
                scheduler.step()
                optimizer.zero_grad()

    epoch()
    assert optimizer.optimizer.own_state()["step"] == 4
    accelerator.save_state(str(tmp_path))
    scales = optimizer.optimizer.scales
    assert len(set(scales.values())) == 6
    epoch()
    expected = weights(model)
    epoch()
    accelerator.load_state(str(tmp_path))
    assert optimizer.optimizer.scales == scales
    epoch()
    cases.assert_same(weights(model), expected)


def test_hugging_face_trainer(tmp_path):
    def trainer(folder):
        model, optimizer, scheduler = make()
        arguments = transformers.TrainingArguments(
            output_dir=str(folder),
            max_steps=8,
            per_device_train_batch_size=2,
            max_grad_norm=1.0,
            save_steps=4,
            seed=1,
            report_to=[],
            disable_tqdm=True,
            use_cpu=True,
        )
        run = transformers.Trainer(model, arguments, train_dataset=Tokens(), optimizers=(optimizer, scheduler))
        return run, optimizer

    run, optimizer = trainer(tmp_path / "whole")
    run.train()
    assert optimizer.own_state()["step"] == 8
    again, other = trainer(tmp_path / "again")
    again.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-4"))
    cases.assert_same(weights(again.model), weights(run.model))
    assert other.scales == optimizer.scales


class Module(lightning.LightningModule):
    def __init__(self):
        super().__init__()
        self.model, self.made, self.schedule = make()

    def training_step(self, batch, _):
        return self.model(batch)["loss"]

    def configure_optimizers(self):
        return {"optimizer": self.made, "lr_scheduler": {"scheduler": self.schedule, "interval": "step"}}


@pytest.mark.filterwarnings("ignore")
def test_lightning(tmp_path):
    def fit(epochs, checkpoint=None):
        module = Module()
        trainer = lightning.Trainer(
            accelerator="cpu",
            devices=1,
            max_epochs=epochs,
            gradient_clip_val=1.0,
            default_root_dir=tmp_path,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        data = torch.utils.data.DataLoader(Batches(), batch_size=2)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            trainer.fit(module, data, ckpt_path=checkpoint, weights_only=True)
        return trainer, module

    _, whole = fit(4)
    assert whole.made.own_state()["step"] == 16
    stopped, _ = fit(2)
    stopped.save_checkpoint(tmp_path / "half.ckpt")
    _, again = fit(4, tmp_path / "half.ckpt")
    cases.assert_same(weights(again), weights(whole))
    assert again.made.scales == whole.made.scales
