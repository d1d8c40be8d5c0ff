"""One run, one owner: also when many ask at once, and when an owner is gone."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

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
