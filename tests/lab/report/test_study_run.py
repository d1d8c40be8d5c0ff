"""What `steepest study run`, `plan` and `slurm` show and leave behind; the runs themselves are not carried out here."""

from __future__ import annotations

import json
import shlex
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import typer
import yaml
from fake_study import dump
from grid_study import ARMS, accounting_of, write_grid_study
from rich.console import Console
from small_runs import tiny

from steepest.lab import accounting
from steepest.lab.cli import main
from steepest.lab.cli.study_display import Display, account, carry_out
from steepest.lab.errors import UserError
from steepest.lab.signals import Stop
from steepest.lab.studies import Study
from steepest.lab.studies.claims import Claims


@pytest.fixture
def study(tmp_path: Path, no_figures: None, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A study whose runs are all there, in place of one that carries them out."""
    folder = write_grid_study(tmp_path / "x y", ARMS[:2], seeds=(1, 2), accounting=False, diagnostics=False)
    monkeypatch.setattr("sys.argv", ["/bin/steepest", "study", "run", "my study.toml"])
    return SimpleNamespace(
        folder=folder, runs=folder / "runs", failed={}, config=SimpleNamespace(device="cpu"), carry_out=lambda **_: True
    )


@pytest.fixture
def accounted(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The parts that were accounted for; nothing is measured, the numbers are made up."""
    calls: list[Any] = []

    def record(subject: Any, folder: Path, *, parts: Any, watch: Callable[[str, str], None]) -> None:
        watch("AdamW", parts[0])
        calls.append(parts)
        dump(folder / accounting.FILE, accounting_of(ARMS[:2]))

    monkeypatch.setattr(accounting, "of_study", lambda folder: SimpleNamespace(methods={"AdamW": None}))
    monkeypatch.setattr(accounting, "account", record)
    return calls


def run(study: Any, *, bench: bool = True, report: bool = True) -> int:
    try:
        carry_out(study, 1, report=report, bench=bench, quiet=True)
    except typer.Exit as end:
        return end.exit_code
    return 0


def test_failed_runs_are_named_and_are_no_success(study: Any, capsys: pytest.CaptureFixture[str]) -> None:
    study.failed = {"lion-lr[1]": "Traceback ...\n  File x\nRuntimeError: out of [red]memory\n", "lion-lr2": ""}
    assert run(study, bench=False) == 1
    err = capsys.readouterr().err
    assert "2 runs failed" in err
    assert "  lion-lr[1]: RuntimeError: out of [red]memory\n" in err
    assert "  lion-lr2: for no known reason\n" in err
    assert "The same command tries them again, and repeats no other run:\n  steepest study run 'my study.toml'" in err
    assert (study.folder / "report.html").exists()
    study.failed = {}
    assert run(study, bench=False) == 0
    assert "failed" not in capsys.readouterr().err


def test_costs_are_accounted_before_the_report_and_times_last(study: Any, accounted: list[Any]) -> None:
    assert run(study) == 0
    assert sorted(part for parts in accounted for part in parts) == sorted(accounting.PARTS)
    assert accounted[-1] == ("time",)
    page = (study.folder / "report.html").read_text()
    for shown in ("FLOPs, model and optimizer", "Transient bytes per parameter", "timed apart", "table-update-rms"):
        assert shown in page, shown
    accounted.clear()
    assert run(study, bench=False) == 0
    study.carry_out = lambda **_: False
    assert run(study) == 130
    assert accounted == []


@pytest.mark.parametrize(
    ("error", "told"), [(UserError("a worker is busy"), "a worker is busy\n"), (KeyError("x"), "KeyError: 'x'\n")]
)
def test_the_report_survives_an_account_that_fails(
    study: Any, error: Exception, told: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(accounting, "of_study", fail)
    assert run(study) == 0
    streams = capsys.readouterr()
    command = f"steepest bench study {shlex.quote(str(study.folder))}"
    assert f"the costs of the methods are not known: {told}To try again: {command}" in streams.err
    assert (study.folder / "report.html").exists()
    assert "report:" in streams.out


def test_a_stop_while_accounting_still_shows_the_result(
    study: Any, accounted: list[Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    stop = Stop()
    stop.requested = True
    assert not account(study.folder, stop, quiet=True)
    assert accounted == []
    monkeypatch.setattr("steepest.lab.cli.study_display.account", lambda *_: False)
    assert run(study) == 130
    assert "stopped before all costs were accounted for" in capsys.readouterr().err
    assert (study.folder / "report.html").exists()


def test_one_process_accounts_for_a_shared_study(
    study: Any, accounted: list[Any], capsys: pytest.CaptureFixture[str]
) -> None:
    with Claims() as other:
        assert other.take(study.folder)
        assert account(study.folder, Stop(), quiet=False)
    assert accounted == []
    assert "another process is accounting" in capsys.readouterr().err
    assert account(study.folder, Stop(), quiet=False)
    assert accounted
    assert not (study.folder / "claim").exists()


def test_names_are_shown_as_they_are(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = write(tmp_path, cache, name="x[red]y :smile:")

    def calibrate(self: Study) -> Any:
        self.facts = {"calibration": {"[/b] x": 0.01, "LionMuon [P=2]": 0.02}, "seconds_per_evaluation": 0.1}
        rows = [SimpleNamespace(label=name, axes={"lr": [1e-2]}, tuning=[{}]) for name in self.facts["calibration"]]
        return SimpleNamespace(rows=rows, todo=rows)

    monkeypatch.setattr(Study, "calibrate", calibrate)
    assert main(["study", "plan", file, "--out", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert "[/b] x" in out
    assert "LionMuon [P=2]" in out
    assert "x[red]y" in out


@pytest.mark.parametrize("name", ["[/b] x", "LionMuon [p=2]"])
def test_bars_show_labels_as_they_are(cache: Path, name: str) -> None:
    display = Display(1, quiet=False)
    console = Console(width=120, force_terminal=True, color_system=None)
    with display, console.capture() as shown:
        display.started(tiny(cache, method__label=name), 0)
        console.print(display.bars.make_tasks_table(display.bars.tasks))
    assert f"{name} lr 0.01 seed 0" in shown.get()


def write(folder: Path, cache: Path, **changes: Any) -> str:
    methods = [{"name": "adamw", "label": "[/b] x"}, {"name": "lionmuon", "label": "LionMuon [P=2]"}]
    values = {"workload": tiny(cache).workload.model_dump(), "methods": methods, "device": "cpu", "cache": str(cache)}
    path = folder / "it's a --no-report study.yaml"
    path.write_text(yaml.safe_dump(json.loads(json.dumps(values | changes))))
    return str(path)


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
def test_a_batch_script_repeats_the_overrides(cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, name = write(tmp_path, cache), "name=a $(touch pwned) b"
    assert main(["study", "slurm", file, "--out", str(tmp_path), "-o", "seeds=[1, 2, 3]", "-o", name]) == 0
    text = capsys.readouterr().out
    assert "#SBATCH --job-name=a---touch-pwned--b" in text
    command = next(line for line in text.splitlines() if " study run " in line).removesuffix("&")
    shown = subprocess.run(["bash", "-c", f"printf '%s\\n' {command}"], capture_output=True, text=True, check=True)
    words = shown.stdout.splitlines()
    assert words[words.index("run") + 1] == file
    assert words[-6:] == ["-o", "seeds=[1, 2, 3]", "-o", name, "--no-report", "--quiet"]
    assert not list(Path().glob("pwned"))
    assert main(["study", "slurm", file, "--out", str(tmp_path), "-o", "sedes=[1]"]) == 2
    assert "Did you mean 'seeds'" in capsys.readouterr().err
