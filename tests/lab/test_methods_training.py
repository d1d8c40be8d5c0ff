"""Every method trains a real (tiny) model, and a run that was killed in the middle ends with the same numbers."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from small_runs import numbers, tiny

from steepest.lab import checkpoints, methods
from steepest.lab.config import TrainConfig
from steepest.lab.data import Pack
from steepest.lab.training import train

STEPS, SAVED = 40, 20
FIRST = 5.5  # nats at the start: 257 tokens, ln 257 = 5.549
# Nats below that after 40 steps at the default rate. It is little because the slowest set it: sign steps, whose best
# rates for longer runs are small, and SOAP, whose first step only measures. The fast ones reach 2.5.
GAIN = 0.9
LESS = {"lasm": 0.7}
OPTIONS = {
    "prodigy": {"d0": 1e-4},  # its d begins at 1e-6 and needs a hundred steps to grow
    "apollo": {"update_proj_gap": 8},  # so that the projections are drawn anew before and after the kill
    "apollo-mini": {"update_proj_gap": 8},
    "galore": {"update_proj_gap": 8},
    "fira": {"update_proj_gap": 8},
}
WRAPPED = [
    "sac+adamw",
    "sac+adam-mini",
    "sac+adam8bit",
    "sac+shampoo-ns",
    "sac+lion",
    "sac+lionmuon",
    "sac+muon-torch",
    "sac+mars+adamw",
    "sac+schedule-free",
    "sac+sophia",
    "sac-constant+adamw",
    "sac-algorithm1+adamw",
    "sgg+adamw",
    "sgg+lion",
    "sgg+adafactor",
    "sgg+shampoo-ns",
]


def config(cache: Path, name: str, **changes: Any) -> TrainConfig:
    return tiny(
        cache,
        workload__batch_size=8,
        workload__sequence_length=32,
        workload__steps=STEPS,
        workload__evaluation={"tokens": 1024, "batch_size": 32, "every": SAVED},
        method={"name": name, "options": OPTIONS.get(name, {})},
        checkpoint_every=SAVED,
        **changes,
    )


@pytest.mark.parametrize("name", [*methods.METHODS, *WRAPPED])
def test_it_learns_and_goes_on_after_a_kill_bit_for_bit(name: str, cache: Path, tmp_path: Path, pack: Pack) -> None:
    whole = train(config(cache, name), tmp_path / "whole", pack=pack)
    assert whole.state == "done"
    assert whole.loss is not None
    assert whole.loss < FIRST - LESS.get(name, GAIN)

    folder = tmp_path / "killed" / whole.path.name
    shutil.copytree(whole.path, folder)
    (folder / "final.json").unlink()
    (folder / "ckpt" / f"step-{STEPS:09d}.pt").unlink()
    known = torch.serialization.get_safe_globals()
    torch.serialization.clear_safe_globals()  # as in the new process that goes on
    try:
        resumed = train(config(cache, name), tmp_path / "killed", pack=pack)
    finally:
        torch.serialization.add_safe_globals(known)
    assert resumed.path == folder
    assert numbers(folder) == numbers(whole.path)
    ends = [checkpoints.load(path / "ckpt") for path in (whole.path, folder)]
    assert ends[0] is not None
    assert ends[1] is not None
    for key, value in ends[0]["model"].items():
        assert torch.equal(value, ends[1]["model"][key]), key
