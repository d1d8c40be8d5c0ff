"""One run, one owner: also when many ask at once, and when an owner is gone."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from steepest.lab.studies.claims import Claims, is_claimed


def test_one_of_many_gets_it(tmp_path: Path) -> None:
    everyone = [Claims() for _ in range(16)]
    won: list[int] = []

    def ask(i: int) -> None:
        for run in range(20):
            if everyone[i].take(tmp_path / str(run)):
                won.append(run)

    threads = [threading.Thread(target=ask, args=(i,)) for i in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(won) == list(range(20))


def test_a_released_run_is_free(tmp_path: Path) -> None:
    first, second = Claims(), Claims()
    assert first.take(tmp_path)
    assert not second.take(tmp_path)
    second.release(tmp_path)  # not its own
    assert is_claimed(tmp_path)
    first.release(tmp_path)
    assert not is_claimed(tmp_path)
    assert second.take(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["claim"]


def test_a_dead_process_holds_nothing(tmp_path: Path) -> None:
    code = "import sys, pathlib, steepest.lab.studies.claims as c; c.Claims().take(pathlib.Path(sys.argv[1]))"
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True)
    assert is_claimed(tmp_path)
    takers = [Claims() for _ in range(8)]
    assert [claims.take(tmp_path) for claims in takers] == [True] + [False] * 7


def of_another_machine(folder: Path, age: float) -> None:
    path = folder / "claim" / "owner.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "host": "elsewhere", "token": "theirs"}))
    os.utime(path, (time.time() - age, time.time() - age))


def test_an_owner_elsewhere_is_believed_as_long_as_it_renews(tmp_path: Path) -> None:
    here = Claims(stale=60)
    Claims().take(tmp_path)
    of_another_machine(tmp_path, age=50)
    assert not here.take(tmp_path)
    of_another_machine(tmp_path, age=70)
    assert here.take(tmp_path)


@pytest.mark.parametrize("text", ["", '{"host": "a', "[]", "5", "{}", '{"host": "a", "pid": 1}', "\\xff"])
def test_a_claim_that_names_no_owner_is_free_after_a_while(tmp_path: Path, text: str) -> None:
    path = tmp_path / "claim" / "owner.json"
    path.parent.mkdir()
    path.write_bytes(text.encode("latin-1"))
    takers = [Claims(stale=60) for _ in range(8)]
    os.utime(path, (time.time() - 50, time.time() - 50))
    assert not takers[0].take(tmp_path)
    os.utime(path, (time.time() - 70, time.time() - 70))
    assert [claims.take(tmp_path) for claims in takers] == [True] + [False] * 7
    takers[0].release(tmp_path)
    assert not list(tmp_path.iterdir())


def test_of_many_that_find_no_owner_one_gets_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "claim" / "owner.json"
    path.parent.mkdir()
    path.touch()
    os.utime(path, (0, 0))
    first, second = Claims(), Claims()
    rename = os.rename

    def meanwhile(source: Path, target: Path) -> None:
        monkeypatch.setattr(os, "rename", rename)
        assert first.take(tmp_path)  # the second has just found the claim stale
        os.rename(source, target)

    monkeypatch.setattr(os, "rename", meanwhile)
    assert not second.take(tmp_path)
    assert json.loads(path.read_text())["token"] == first._token


def test_a_claim_is_on_the_disk_before_it_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []
    for name in ("fsync", "rename"):
        real = getattr(os, name)
        monkeypatch.setattr(os, name, lambda *a, name=name, real=real: (order.append(name), real(*a)))
    assert Claims().take(tmp_path)
    assert order == ["fsync", "rename"]


def test_claims_are_renewed_and_a_lost_one_is_noticed(tmp_path: Path) -> None:
    kept, lost = tmp_path / "kept", tmp_path / "lost"
    with Claims(beat=0.02) as claims:
        assert claims.take(kept)
        assert claims.take(lost)
        owner = kept / "claim" / "owner.json"
        os.utime(owner, (0, 0))
        of_another_machine(lost, age=0)
        until = time.monotonic() + 10
        while (owner.stat().st_mtime == 0 or not claims.lost) and time.monotonic() < until:
            time.sleep(0.01)
        assert owner.stat().st_mtime > 0
        assert claims.lost == {lost}
    assert not is_claimed(kept)
    assert is_claimed(lost)  # it is somebody else's
