from __future__ import annotations

import json
import math
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from small_runs import lines, numbers, tiny
from torch import nn

from steepest.lab import checkpoints, compute, methods, models, processes, signals, training
from steepest.lab.config import TrainConfig
from steepest.lab.data import Pack
from steepest.lab.errors import UserError
from steepest.lab.signals import Stop, stop_on_signals
from steepest.lab.training import Progress, Result, train


def stop_at(steps: set[int]) -> tuple[Stop, Callable[[Progress], None]]:
    stop = Stop()

    def observe(progress: Progress) -> None:
        if progress.step in steps:
            stop.requested = True

    return stop, observe


def run_with_stops(config: TrainConfig, out: Path, steps: tuple[int, ...]) -> Result:
    """Run to the end, stopped after each of `steps` and started again."""
    for step in steps:
        stop, observe = stop_at({step})
        result = train(config, out, stop=stop, observe=observe)
        assert (result.state, result.step, result.final) == ("interrupted", step, None)
        assert json.loads((result.path / "status.json").read_text())["state"] == "interrupted"
    return train(config, out)


def test_a_run_learns_and_writes_its_files(cache: Path, pack: Pack, tmp_path: Path) -> None:
    heard: list[Progress] = []
    config = tiny(cache, workload__steps=40)
    result = train(config, tmp_path, observe=heard.append)
    assert result.state == "done"
    files = {"config", "env", "routing", "status", "final"}
    assert {path.stem for path in result.path.glob("*.json")} == files
    metrics, evals, final = (*(lines(result.path / f"{n}.jsonl") for n in ("metrics", "evals")), result.final)
    assert final is not None
    assert [row["step"] for row in metrics] == list(range(1, 41)) == [progress.step for progress in heard]
    assert metrics[0]["loss"] == pytest.approx(math.log(257), abs=0.1)
    assert metrics[-1]["loss"] < metrics[0]["loss"] - 0.5
    assert [row["tokens"] for row in metrics] == [64 * step for step in range(1, 41)]
    assert [row["step"] for row in evals] == list(range(4, 41, 4))
    last = evals[-1]
    assert last["count"] == 256
    assert last["loss"] == last["loss_sum"] / 256 == final["loss"] == result.loss
    assert last["perplexity"] == pytest.approx(math.exp(last["loss"]))
    assert last["bits_per_byte"] == pytest.approx(last["loss"] / math.log(2) / pack.bytes_per_token["validation"])
    assert json.loads((result.path / "status.json").read_text())["state"] == "done"
    assert json.loads((result.path / "env.json").read_text())["precision"]["used"] == "fp32"
    assert final["data_hash"] == pack.train(batch_size=4, length=16, seed=0).hash_upto(40)
    assert final["command"].startswith("steepest train ")
    assert final["state_bytes"] > 0


def test_the_schedule_reaches_every_group_to_its_end(cache: Path, tmp_path: Path) -> None:
    config = tiny(cache, method={"name": "lionmuon", "lr": 1e-2}, workload__schedule={"final": 0.1, "warmup": 2})
    rows = [row["lr"] for row in lines(train(config, tmp_path).path / "metrics.jsonl")]
    assert len(rows[0]) >= 3
    for label, peak in rows[2].items():
        assert rows[0][label] == pytest.approx(0.01 * peak)
        assert rows[11][label] == pytest.approx(config.workload.schedule.build(12).factor(11) * peak)


def test_the_validation_loss_is_the_mean_over_all_its_tokens(cache: Path, pack: Pack, tmp_path: Path) -> None:
    # 5 windows in batches of 4: a mean of batch means would weigh the last one four times.
    evaluation = {"tokens": 80, "batch_size": 4}
    config = tiny(cache, workload__evaluation=evaluation)
    result = train(config, tmp_path)
    model = models.build(config.workload.model, pack.vocabulary_size, 0)
    saved = checkpoints.load(result.path / "ckpt")
    assert saved is not None
    model.load_state_dict(saved["model"])
    tokens = torch.cat(list(pack.validation(tokens=80, length=16, batch_size=4)))
    assert tokens.shape == (5, 17)
    with torch.no_grad():
        logits = model(input_ids=tokens[:, :-1]).logits.double()
    expected = nn.functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())
    assert result.loss == pytest.approx(float(expected), rel=1e-6)


def test_accumulated_gradients_are_those_of_the_whole_batch(cache: Path, tmp_path: Path) -> None:
    whole = train(tiny(cache), tmp_path / "whole")
    parts = train(tiny(cache, micro_batch=1), tmp_path / "parts")
    assert whole.path.name == parts.path.name
    losses = [[row["loss"] for row in lines(result.path / "metrics.jsonl")] for result in (whole, parts)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    assert whole.final is not None
    assert parts.final is not None
    assert whole.final["data_hash"] == parts.final["data_hash"]


def test_clipping_bounds_the_gradient_and_reports_its_norm(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[float] = []

    class Spy(torch.optim.SGD):
        def step(self, closure: Any = None) -> Any:
            seen.append(float(nn.utils.get_total_norm([p.grad for g in self.param_groups for p in g["params"]])))
            return super().step(closure)

    monkeypatch.setattr(methods, "build", lambda config, model, steps: Spy(model.parameters(), lr=0.0))
    for clip in (0.01, None):
        seen.clear()
        rows = lines(train(tiny(cache, workload__clip=clip), tmp_path).path / "metrics.jsonl")
        expected = [clip or row["grad_norm"] for row in rows]
        assert seen == pytest.approx(expected, rel=1e-3)


# Odd steps, so that every method with period 2 is met in both phases; 11 is the last but one, 12 the very end.
@pytest.mark.parametrize("method", ["adamw", "lionmuon"])
@pytest.mark.parametrize("log_every", [1, 5])
def test_a_stopped_run_repeats_the_unbroken_one_bit_for_bit(
    cache: Path, tmp_path: Path, method: str, log_every: int
) -> None:
    config = tiny(cache, method={"name": method, "lr": 1e-2}, log_every=log_every, checkpoint_every=6)
    unbroken = train(config, tmp_path / "unbroken")
    stops = (1, 2, 5, 7, 11) if log_every == 1 else (5, 10)
    broken = run_with_stops(config, tmp_path / "broken", stops)
    assert numbers(broken.path) == numbers(unbroken.path)
    weights = [checkpoints.load(result.path / "ckpt") for result in (broken, unbroken)]
    assert weights[0] is not None
    assert weights[1] is not None
    assert all(torch.equal(weights[0]["model"][key], value) for key, value in weights[1]["model"].items())
    assert weights[0]["counters"]["first_loss"] == weights[1]["counters"]["first_loss"]
    assert len(json.loads((broken.path / "env.json").read_text())["resumes"]) == len(stops)


def test_a_stopped_run_with_dropout_draws_the_same_numbers(cache: Path, tmp_path: Path) -> None:
    model = {"preset": "tiny-gpt2", "n_embd": 32, "n_layer": 1, "n_positions": 16, "resid_pdrop": 0.5}
    config = tiny(cache, workload__model=model, workload__steps=6)
    unbroken = train(config, tmp_path / "unbroken")
    broken = run_with_stops(config, tmp_path / "broken", (3,))
    assert numbers(broken.path) == numbers(unbroken.path)


def test_dropout_is_off_in_the_evaluation(cache: Path, tmp_path: Path) -> None:
    model = {"preset": "tiny-gpt2", "n_embd": 32, "n_layer": 1, "n_positions": 16, "resid_pdrop": 0.5}
    once = tiny(cache, workload__model=model, workload__steps=2, workload__schedule={"start": 0.0, "warmup": 2})
    result = train(once.model_copy(update={"method": once.method.model_copy(update={"lr": 1e-30})}), tmp_path)
    first, second = (row["loss"] for row in lines(result.path / "evals.jsonl"))
    assert first == second


def test_a_window_of_losses_survives_a_stop_in_its_middle(cache: Path, tmp_path: Path, monkeypatch: Any) -> None:
    config = tiny(cache, log_every=5)
    unbroken = train(config, tmp_path / "unbroken")
    stop = Stop()
    step = training._Training._step

    def stop_in_step_7(self: Any) -> Any:
        stop.requested = self.step == 6
        return step(self)

    with monkeypatch.context() as patch:
        patch.setattr(training._Training, "_step", stop_in_step_7)
        assert train(config, tmp_path / "broken", stop=stop).step == 7
    assert numbers(train(config, tmp_path / "broken").path) == numbers(unbroken.path)


KILLED = """
import os, signal, sys
sys.path.insert(0, sys.argv[1])
import torch
import re
torch.set_num_threads(1)
from pathlib import Path
from small_runs import tiny
from steepest.lab.training import train

def observe(progress):
    if progress.step == int(sys.argv[4]):
        os.kill(os.getpid(), signal.SIGKILL)

config = tiny(Path(sys.argv[2]), method={"name": "lionmuon", "lr": 1e-2}, checkpoint_every=3)
train(config, sys.argv[3], observe=observe)
"""


@pytest.mark.parametrize("step", [8])
def test_a_killed_run_repeats_the_unbroken_one_bit_for_bit(cache: Path, tmp_path: Path, step: int) -> None:
    here = str(Path(__file__).parent)
    arguments = [sys.executable, "-c", KILLED, here, str(cache), str(tmp_path / "killed"), str(step)]
    assert subprocess.run(arguments, check=False).returncode == -signal.SIGKILL
    config = tiny(cache, method={"name": "lionmuon", "lr": 1e-2}, checkpoint_every=3)
    folder = next((tmp_path / "killed").iterdir())
    assert json.loads((folder / "status.json").read_text()) | {"pid": 0, "updated": ""} == {
        "state": "running", "step": 6, **processes.here(), "pid": 0, "updated": "",
    }  # fmt: skip
    assert len(lines(folder / "metrics.jsonl")) == 8  # two lines past the checkpoint, to be cut
    killed, unbroken = train(config, tmp_path / "killed"), train(config, tmp_path / "unbroken")
    assert killed.path == folder
    assert numbers(killed.path) == numbers(unbroken.path)


def test_a_run_killed_before_final_json_is_finished_without_another_step(cache: Path, tmp_path: Path) -> None:
    config = tiny(cache)
    first = train(config, tmp_path)
    before = numbers(first.path)
    (first.path / "final.json").unlink()
    heard: list[Progress] = []
    again = train(config, tmp_path, observe=heard.append)
    assert not heard
    assert numbers(again.path) == before


def test_a_finished_run_is_not_repeated(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = train(tiny(cache), tmp_path)
    monkeypatch.setattr(training, "_Training", None)
    assert train(tiny(cache), tmp_path) == first


def test_a_checkpoint_of_other_weights_is_refused(cache: Path, tmp_path: Path) -> None:
    stop, observe = stop_at({3})
    path = train(tiny(cache), tmp_path, stop=stop, observe=observe).path
    saved = checkpoints.load(path / "ckpt")
    assert saved is not None
    saved["init_hash"] = "other"
    checkpoints.save(path / "ckpt", saved.pop("step"), saved)
    with pytest.raises(UserError, match="other initial weights"):
        train(tiny(cache), tmp_path)


def test_a_diverging_run_is_recorded_and_not_an_error(cache: Path, tmp_path: Path) -> None:
    config = tiny(cache, method={"name": "sgd", "lr": 1e4}, workload__clip=None, workload__schedule={"warmup": 0})
    result = train(config, tmp_path)
    assert (result.state, result.loss) == ("diverged", None)
    assert result.final is not None
    assert result.step < 12
    assert "after a first loss of 5.5" in result.final["reason"]
    assert result.final["perplexity"] is None
    assert json.loads((result.path / "status.json").read_text())["state"] == "diverged"
    assert lines(result.path / "metrics.jsonl")[-1]["step"] == result.step
    assert train(config, tmp_path) == result


class _Poisoned(torch.optim.SGD):
    """An optimizer that meets a bad gradient at its third step."""

    def __init__(self, model: nn.Module, value: float, complain: type[Exception] | None) -> None:
        super().__init__(model.parameters(), lr=1e-3)
        self.model, self.value, self.complain, self.calls = model, value, complain, 0

    def step(self, closure: Any = None) -> Any:
        self.calls += 1
        if self.calls == 3:
            if self.complain is not None:
                raise self.complain("the gradient of layer 7 is not finite")
            next(self.model.parameters()).data.mul_(self.value)
        return super().step(closure)


@pytest.mark.parametrize("factor", [math.nan, 1e3])
def test_a_loss_that_explodes_or_is_not_finite_diverges(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, factor: float
) -> None:
    monkeypatch.setattr(methods, "build", lambda config, model, steps: _Poisoned(model, factor, None))
    result = train(tiny(cache), tmp_path)
    assert (result.state, result.step) == ("diverged", 4)
    loss = lines(result.path / "metrics.jsonl")[-1]["loss"]
    assert loss is None if math.isnan(factor) else loss > 10


@pytest.mark.parametrize("kind", [FloatingPointError, ValueError])
def test_an_optimizer_that_refuses_bad_gradients_diverges(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: type[Exception]
) -> None:
    monkeypatch.setattr(methods, "build", lambda config, model, steps: _Poisoned(model, 0.0, kind))
    monkeypatch.setattr(nn.utils, "clip_grad_norm_", lambda *_: torch.tensor(math.inf))
    result = train(tiny(cache), tmp_path)
    assert (result.state, result.step) == ("diverged", 3)
    assert result.final is not None
    assert "layer 7 is not finite" in result.final["reason"]


def test_a_fault_of_an_optimizer_with_good_gradients_is_an_error(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(methods, "build", lambda config, model, steps: _Poisoned(model, 0.0, ValueError))
    with pytest.raises(ValueError, match="layer 7"):
        train(tiny(cache), tmp_path)
    assert json.loads((next(tmp_path.iterdir()) / "status.json").read_text())["state"] == "failed"


def test_too_little_text_is_said_before_anything_is_written(cache: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="smaller than one batch"):
        train(tiny(cache, workload__batch_size=100_000), tmp_path)
    assert not list(tmp_path.glob("*/*.json"))


def test_the_first_signal_stops_and_a_later_one_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    both = (signal.SIGINT, signal.SIGTERM)
    before = [signal.getsignal(number) for number in both]
    with stop_on_signals() as stop:
        assert not any(signal.getsignal(number) == old for number, old in zip(both, before, strict=True))
        assert not stop.requested
        signal.raise_signal(signal.SIGTERM)
        assert stop.requested
        monkeypatch.setattr(signals, "AGAIN", 1e9)
        for number in both:  # `timeout` sends to the process, then to its group
            signal.raise_signal(number)
        monkeypatch.setattr(signals, "AGAIN", -1.0)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        assert [signal.getsignal(number) for number in both] == before
    assert [signal.getsignal(number) for number in both] == before


def test_precision_is_measured_once_and_kept(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = tiny(cache, workload__precision="auto")
    monkeypatch.setattr(compute, "time_precisions", lambda model, tokens: {"fp32": 1.0, "bf16": 0.5})
    stop, observe = stop_at({4})
    train(config, tmp_path, stop=stop, observe=observe)
    monkeypatch.setattr(compute, "time_precisions", lambda model, tokens: {"fp32": 0.5, "bf16": 1.0})
    result = train(config, tmp_path)
    assert result.final is not None
    assert result.final["precision"] == "bf16"
    environment = json.loads((result.path / "env.json").read_text())
    assert environment["precision"] == {
        "wanted": "auto",
        "used": "bf16",
        "seconds_per_step": {"fp32": 1.0, "bf16": 0.5},
    }


def test_measuring_precision_leaves_no_trace(cache: Path, pack: Pack, tmp_path: Path) -> None:
    model = models.build(tiny(cache).workload.model, 257, 0)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    random = torch.get_rng_state()
    seconds = compute.time_precisions(model, pack.train(batch_size=4, length=16, seed=0).batch(0))
    assert set(seconds) == {"fp32", "bf16"}
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert torch.equal(random, torch.get_rng_state())


def test_the_loss_is_float32_from_logits_of_any_precision(pack: Pack, cache: Path) -> None:
    model = models.build(tiny(cache).workload.model, 257, 0)
    tokens = pack.train(batch_size=4, length=16, seed=0).batch(0)
    exact, rough = (compute.loss_sum(model, tokens, precision).detach() for precision in ("fp32", "bf16"))
    assert exact.dtype == rough.dtype == torch.float32
    assert exact != rough
    assert float(exact) == pytest.approx(float(rough), rel=1e-2)
    assert float(exact) == pytest.approx(64 * math.log(257), rel=0.02)


def test_an_unusable_device_is_named(cache: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="device 'cuba' cannot be used here"):
        train(tiny(cache, device="cuba"), tmp_path)


def test_checkpoints_go_when_nobody_keeps_them(cache: Path, tmp_path: Path) -> None:
    kept = train(tiny(cache), tmp_path / "a")
    gone = train(tiny(cache, keep_checkpoint=False), tmp_path / "b")
    assert len(list((kept.path / "ckpt").iterdir())) == 2
    assert not (gone.path / "ckpt").exists()
    shutil.rmtree(kept.path)


def test_the_loop_knows_no_optimizer_by_name() -> None:
    source = Path(training.__file__).read_text().lower()
    assert not [name for name in methods.METHODS if re.search(rf"\b{re.escape(name)}\b", source)]
    assert len(source.splitlines()) <= 320
