from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from steepest.lab import checkpoints, runs
from steepest.lab.errors import UserError


def test_the_last_two_are_kept_and_the_newest_is_read(tmp_path: Path) -> None:
    for step in (1, 2, 30):
        checkpoints.save(tmp_path, step, {"x": torch.full((3,), float(step))})
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["step-000000002.pt", "step-000000030.pt"]
    found = checkpoints.load(tmp_path)
    assert found is not None
    assert (found["step"], found["x"].tolist()) == (30, [30.0] * 3)
    checkpoints.remove(tmp_path)
    assert checkpoints.load(tmp_path) is None


def test_a_damaged_checkpoint_falls_back_to_the_one_before(tmp_path: Path) -> None:
    checkpoints.save(tmp_path, 1, {"x": torch.ones(1000)})
    checkpoints.save(tmp_path, 2, {"x": torch.ones(1000)})
    newest = tmp_path / "step-000000002.pt"
    newest.write_bytes(newest.read_bytes()[:500])
    found = checkpoints.load(tmp_path)
    assert found is not None
    assert found["step"] == 1
    (tmp_path / "step-000000001.pt").write_bytes(b"")
    with pytest.raises(UserError, match=r"no checkpoint in .* can be read \(step-000000002.pt"):
        checkpoints.load(tmp_path)


def test_only_plain_values_are_read(tmp_path: Path) -> None:
    # An object that would run code when unpickled is not loaded.
    checkpoints.save(tmp_path, 1, {"x": Path("anything")})
    with pytest.raises(UserError, match="can be read"):
        checkpoints.load(tmp_path)


def test_a_crash_while_saving_leaves_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoints.save(tmp_path, 1, {"x": torch.ones(3)})

    def dies(content: Any, file: Any) -> None:
        file.write(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(torch, "save", dies)
    with pytest.raises(KeyboardInterrupt):
        checkpoints.save(tmp_path, 2, {})
    assert [path.name for path in tmp_path.glob("*.pt")] == ["step-000000001.pt"]
    found = checkpoints.load(tmp_path)
    assert found is not None
    assert found["step"] == 1


FULL_DISK = """
import resource, signal, sys, torch
from pathlib import Path
from steepest.lab import checkpoints, runs
from steepest.lab.errors import UserError
folder = Path(sys.argv[1])
checkpoints.save(folder, 1, {"x": torch.ones(10)})
runs.write_json(folder / "a.json", {"x": 1})
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
lines = runs.Lines(folder / "a.jsonl", 0)
for write in (
    lambda: checkpoints.save(folder, 2, {"x": torch.ones(100_000)}),
    lambda: runs.write_json(folder / "a.json", {"x": "y" * 200_000}),
    lambda: lines.write({"x": "y" * 200_000}),
):
    try:
        write()
    except UserError as error:
        print(error)
lines.close()
print(checkpoints.load(folder)["step"], runs.read_json(folder / "a.json"), sorted(p.name for p in folder.iterdir()))
"""


@pytest.mark.skipif(sys.platform == "win32", reason="file size limits are POSIX")
def test_a_full_disk_is_said_clearly_and_costs_nothing_saved(tmp_path: Path) -> None:
    # A limit on the size of files makes real writes fail half-way, as a full disk does.
    result = subprocess.run(
        [sys.executable, "-c", FULL_DISK, str(tmp_path)], capture_output=True, text=True, check=True
    )
    *messages, last = result.stdout.splitlines()
    assert len(messages) == 3
    for message, name in zip(messages, ("step-000000002.pt", "a.json", "a.jsonl"), strict=True):
        assert message.startswith("the disk is full")
        assert name in message
        assert "run the same command again" in message
    assert last == "1 {'x': 1} ['a.json', 'a.jsonl', 'step-000000001.pt']"


def test_lines_are_cut_back_to_the_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    lines = runs.Lines(path, 0)
    lines.write({"step": 1})
    offset = lines.offset()
    lines.write({"step": 2})
    lines.close()
    path.write_bytes(path.read_bytes() + b'{"step"')  # killed in the middle of a line
    lines = runs.Lines(path, offset)
    lines.write({"step": 22})
    lines.close()
    assert path.read_text() == '{"step": 1}\n{"step": 22}\n'
    assert runs.last_line(path) == {"step": 22}
    with pytest.raises(UserError, match="shorter"):
        runs.Lines(path, 1_000)


def test_a_run_folder_has_one_owner(tmp_path: Path) -> None:
    directory = runs.RunDirectory(tmp_path / "run")
    directory.create()
    with directory.lock(), pytest.raises(UserError, match="in use by another process"), directory.lock():
        pass
    with directory.lock():
        pass


def test_a_run_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot create the run folder .*file.* Choose another with --out"):
        runs.RunDirectory(tmp_path / "file" / "run").create()


def test_the_weights_hash_sees_every_bit_and_every_name() -> None:
    def model(bias: float, name: str = "a") -> torch.nn.Module:
        module = torch.nn.ModuleDict({name: torch.nn.Linear(2, 2)})
        torch.nn.init.constant_(module[name].weight, 0.5)
        torch.nn.init.constant_(module[name].bias, bias)
        return module

    hashes = {runs.weights_hash(model(0.0)), runs.weights_hash(model(1e-40)), runs.weights_hash(model(0.0, "b"))}
    assert len(hashes) == 3
    assert runs.weights_hash(model(0.0)) in hashes
