"""transformers.Trainer trains with a LionMuon that it is given, and resumes it exactly."""

from __future__ import annotations

import pytest
import torch

import steepest

transformers = pytest.importorskip("transformers")
pytest.importorskip("accelerate")

STEPS = 12


class Tokens(torch.utils.data.Dataset):
    """A short cycle of tokens from changing starts: easy to learn."""

    def __len__(self):
        return 64

    def __getitem__(self, i):
        tokens = (torch.arange(12) + i) % 5
        return {"input_ids": tokens, "labels": tokens}


def make():
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=8,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=16,
    )
    model = transformers.LlamaForCausalLM(config)
    optimizer = steepest.LionMuon(model, lr=0.02, sign_lr_ratio=0.2, period=3)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / (2 * STEPS))
    return model, optimizer, scheduler


def trainer(folder, steps=STEPS, **options):
    model, optimizer, scheduler = make()
    arguments = transformers.TrainingArguments(
        output_dir=str(folder),
        max_steps=steps,
        per_device_train_batch_size=4,
        gradient_accumulation_steps=2,
        max_grad_norm=1.0,
        logging_steps=1,
        save_steps=5,
        seed=1,
        report_to=[],
        disable_tqdm=True,
        use_cpu=True,
        **options,
    )
    return transformers.Trainer(
        model=model, args=arguments, train_dataset=Tokens(), optimizers=(optimizer, scheduler)
    ), optimizer


def losses(run):
    return [entry["loss"] for entry in run.state.log_history if "loss" in entry]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    run, optimizer = trainer(folder)
    run.train()
    return folder, run, optimizer


def test_it_trains(whole):
    _, run, optimizer = whole
    assert len(losses(run)) == STEPS
    assert losses(run)[-1] < 0.7 * losses(run)[0]
    assert {group["rule"] for group in optimizer.param_groups} == {"lion_muon", "adamw"}
    assert {int(state["step"]) for state in optimizer.state.values()} == {STEPS}
    assert all(group["lr"] == pytest.approx(0.02 * 0.5) for group in optimizer.param_groups)


def test_it_resumes_exactly(whole, tmp_path):
    """From a checkpoint in the middle of a period (step 5 of period 3) to the same weights."""
    folder, run, _ = whole
    again, _ = trainer(tmp_path)
    again.train(resume_from_checkpoint=str(folder / "checkpoint-5"))
    for (name, p), q in zip(run.model.named_parameters(), again.model.parameters(), strict=True):
        assert torch.equal(p, q), name
