from __future__ import annotations

import builtins
import importlib.util
import json
import os
import re
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import typer
from small_runs import MODEL, lines
from typer.main import get_command

from steepest import __main__ as entry
from steepest import __version__
from steepest.lab import doctor, methods, training
from steepest.lab.cli import app, main
from steepest.lab.errors import UserError

TRAIN = ["train", "--data", "synthetic", "--steps", "6", "--batch-size", "4", "--sequence-length", "16"]


def train_arguments(cache: Path, out: Path, *more: str) -> list[str]:
    settings = [f"workload.model={json.dumps(MODEL)}", "workload.max_bytes=200000", "workload.evaluation.tokens=256"]
    overrides = [word for setting in settings for word in ("-o", setting)]
    places = ["--cache", str(cache), "--out", str(out), "--precision", "fp32", "--threads", "1", "--device", "cpu"]
    return [*TRAIN, *overrides, *places, *more]


def test_train_runs_and_says_where(cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = train_arguments(
        cache, tmp_path, "--optimizer", "lionmuon", "--lr", "1e-2", "-o", "method.options.period=3"
    )
    assert main(arguments) == 0
    out = capsys.readouterr().out
    path = Path(re.search(r"run: (.*)", out)[1])  # type: ignore[index]
    assert path.name.startswith("lionmuon-lr0.01-s0-")
    loss = json.loads((path / "final.json").read_text())["loss"]
    assert f"validation loss {loss:.4f}" in out
    assert "perplexity" in out
    assert "bits per byte" in out
    config = json.loads((path / "config.json").read_text())
    assert config["method"]["options"]["period"] == 3
    assert main(arguments) == 0
    assert f"validation loss {loss:.4f}" in capsys.readouterr().out


def test_tensorboard_gets_what_a_run_logs(
    cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    plain = train_arguments(cache, tmp_path / "plain", "-o", "diagnostics_every=3")
    assert main(plain) == 0
    wanted = train_arguments(cache, tmp_path / "wanted", "-o", "diagnostics_every=3", "-o", "tensorboard=true")
    assert main(wanted) == 0
    (one,), (other,) = ((tmp_path / name).iterdir() for name in ("plain", "wanted"))
    assert one.name == other.name
    assert not (one / "events").exists()
    events = EventAccumulator(str(other / "events"))
    events.Reload()
    tags = events.Tags()["scalars"]
    assert {"train/grad_norm", "train/tokens_per_second", "validation/perplexity"} <= set(tags)
    for group in ("train/lr.", "train/diagnostics.update_rms."):
        assert any(tag.startswith(group) for tag in tags), group
    for tag, name in (("train/loss", "metrics"), ("validation/loss", "evals")):
        logged = [(row["step"], pytest.approx(row["loss"])) for row in lines(other / f"{name}.jsonl")]
        assert [(event.step, event.value) for event in events.Scalars(tag)] == logged
    final = [json.loads((run / "final.json").read_text()) for run in (one, other)]
    assert [f["loss"] for f in final] == [final[0]["loss"]] * 2
    assert final[0]["command"] == final[1]["command"]

    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    capsys.readouterr()
    assert main(train_arguments(cache, tmp_path / "none", "-o", "tensorboard=true")) == 2
    assert "pip install 'steepest[tensorboard]'" in capsys.readouterr().err
    assert not (tmp_path / "none").exists()


def test_a_diverged_and_a_stopped_run_have_their_own_exit_codes(
    cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    wild = train_arguments(cache, tmp_path, "--optimizer", "sgd", "--lr", "1e5", "--clip", "0", "--warmup", "0")
    assert main(wild) == 3
    assert "diverged at step" in capsys.readouterr().err

    def stopped(config: Any, out: Any, **_: Any) -> training.Result:
        return training.Result("interrupted", 4, None, Path("somewhere"), None)

    monkeypatch.setattr(training, "train", stopped)
    monkeypatch.setattr("sys.argv", ["/bin/steepest", "train", "--steps", "6", "-o", "workload.clip=1 "])
    assert main(train_arguments(cache, tmp_path)) == 130
    err = capsys.readouterr().err
    assert "stopped after step 4" in err
    assert "steepest train --steps 6 -o 'workload.clip=1 '" in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "--model", "tinny"], "unknown model 'tinny'. Did you mean 'tiny'"),
        (["train", "--optimizer", "lionmoun"], "unknown optimizer 'lionmoun'. Did you mean 'lionmuon'"),
        (["train", "-o", "method.options.beta=1"], "unknown option of adamw 'beta'. Did you mean 'betas'"),
        (["train", "--schedule", "cosin"], "unknown schedule 'cosin'. Did you mean 'cosine'"),
        (["train", "--lr", "-1"], "method.lr"),
        (["train", "-o", "workload.stesp=3"], "Did you mean 'steps'"),
        (["train", "--config", "missing.yaml"], "no configuration file at missing.yaml"),
        (["train", "--data", "synthetik"], "synthetic"),
        (["compare", "--preset", "demmo"], "unknown preset 'demmo'. Did you mean 'demo'"),
        (["compare", "--methods", "adamw,lionn"], "unknown optimizer 'lionn'. Did you mean 'lion'"),
        (["compare", "--methods", "adamw", "--grid", "lion=1e-3"], "unknown method in --grid 'lion'"),
        (["compare", "--methods", "adamw", "--grid", "adamw=1e-3,x"], "--grid is NAME=LR,LR"),
        (["compare"], "nothing to compare"),
        (["optimizers", "show", "adam"], "unknown optimizer 'adam'. Did you mean 'radam' or 'nadam' or 'adamw'"),
    ],
)
def test_mistakes_get_one_message_and_exit_code_2(
    arguments: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("STEEPEST_CACHE", str(tmp_path / "cache"))
    assert main(arguments) == 2
    streams = capsys.readouterr()
    assert message in streams.err
    assert "Traceback" not in streams.err
    assert not streams.out
    assert not (tmp_path / "runs").exists()


def test_debug_shows_the_traceback_wherever_it_stands() -> None:
    for arguments in (["--debug", "train", "--model", "tinny"], ["train", "--model", "tinny", "--debug"]):
        with pytest.raises(UserError, match="tinny"):
            main(arguments)


def test_a_fault_of_ours_is_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(methods, "METHODS", None)
    with pytest.raises(TypeError):
        main(["optimizers", "show", "adamw"])


def commands() -> list[tuple[str, ...]]:
    """Every command and subcommand."""
    found: list[tuple[str, ...]] = []

    def walk(command: Any, path: tuple[str, ...]) -> None:
        for name, child in getattr(command, "commands", {}).items():
            found.append((*path, name))
            walk(child, (*path, name))

    walk(get_command(app), ())
    return found


@pytest.mark.parametrize("path", commands(), ids=" ".join)
def test_every_help_shows_an_example(path: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*path, "--help"]) == 0
    assert f"Example: steepest {path[0]}" in capsys.readouterr().out


def test_the_commands_of_the_plan_are_there(capsys: pytest.CaptureFixture[str]) -> None:
    assert {path[0] for path in commands()} == {
        *("train", "compare", "study", "report", "reproduce", "memory", "bench", "optimizers", "data", "doctor"),
        *("ls", "show", "tail", "gc", "export", "import"),
    }
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.strip() == f"steepest {__version__}"
    assert isinstance(app, typer.Typer)


def test_optimizers_are_listed_with_their_state(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["optimizers"]) == 0
    out = capsys.readouterr().out
    assert all(name in out for name in methods.METHODS)
    assert main(["optimizers", "show", "lionmuon"]) == 0
    out = capsys.readouterr().out
    assert "2605.19811" in out
    assert "4 bytes per parameter of hidden matrices, 8 of the rest" in out
    assert "sign_lr_ratio" in out


def test_without_the_lab_the_command_says_how_to_install_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "typer" else find(name))
    real = builtins.__import__

    def refuse(name: str, *rest: Any, **more: Any) -> Any:
        assert not name.startswith("steepest.lab")
        return real(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", refuse)
    assert entry.main() == 1
    err = capsys.readouterr().err
    assert "typer is not installed" in err
    assert 'pip install "steepest[lab]"' in err


def test_the_doctor_is_content_here_and_names_remedies(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main(["doctor", "--cache", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    for topic in (
        "Python",
        "torch",
        "threads",
        "bf16",
        "GPU",
        "compiler",
        "distributed",
        str(tmp_path),
        "working folder",
    ):
        assert topic in out
    assert "pypi" not in out

    locked = tmp_path / "locked"
    locked.mkdir()
    monkeypatch.setattr(doctor.os, "access", lambda path, mode: Path(path) != locked or mode != os.W_OK)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1_000)
    monkeypatch.setattr(doctor.shutil, "which", lambda name: None)
    assert main(["doctor", "--cache", str(locked)]) == 1
    out = capsys.readouterr().out
    assert re.search(r"FAIL  cache folder .*locked is not writable\n +-> set STEEPEST_CACHE", out)
    assert re.search(r"warn  torch uses 1000 threads on \d+ cores\n +-> set OMP_NUM_THREADS", out)
    assert re.search(r"warn  no C\+\+ compiler.*\n +-> ", out)


def test_the_network_is_touched_only_when_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Any] = []

    def connect(address: Any, timeout: float) -> Any:
        calls.append(address)
        raise OSError("no route")

    monkeypatch.setattr(doctor.socket, "create_connection", connect)
    doctor.examine()
    assert not calls
    found = doctor.examine(network=True)
    assert calls
    assert any(f.level == "warn" and "no route" in f.what and "--text" in f.remedy for f in found)


def test_micro_batches_and_seeds_have_flags(cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(train_arguments(cache, tmp_path, "--micro-batch", "2", "--seed", "3", "--quiet")) == 0
    path = Path(re.search(r"run: (.*)", capsys.readouterr().out)[1])  # type: ignore[index]
    assert "-s3-" in path.name
    assert json.loads((path / "env.json").read_text())["micro_batch"] == 2
    assert len(lines(path / "metrics.jsonl")) == 6
