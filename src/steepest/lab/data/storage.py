"""Where data lives on disk, and how a folder appears there whole or not at all."""

from __future__ import annotations

import errno
import os
import shutil
import socket
import sys
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from steepest.lab.errors import UserError

_NO_SPACE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_TEMPORARY = ".tmp-"


def cache_directory(cache: str | os.PathLike[str] | None = None) -> Path:
    """Return the folder for downloads and packs.

    Args:
        cache: an explicit folder. Default: ``$STEEPEST_CACHE``, else ``steepest`` in the user's cache folder
            (``$XDG_CACHE_HOME`` or ``~/.cache``; ``~/Library/Caches`` on macOS, ``%LOCALAPPDATA%`` on Windows).
    """
    chosen = cache or os.environ.get("STEEPEST_CACHE")
    if chosen:
        return Path(chosen).expanduser().absolute()
    if sys.platform == "darwin":
        base = Path.home() / "Library" / "Caches"
    elif sys.platform == "win32":
        base = Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
    else:
        base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return base.absolute() / "steepest"


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turn the two usual disk failures under `path`, no space and no permission, into a clear error."""
    try:
        yield
    except OSError as error:
        if error.errno in _NO_SPACE:
            raise disk_full(path, error.strerror or "no space left") from error
        if error.errno in {errno.EACCES, errno.EPERM, errno.EROFS}:
            raise UserError(
                f"cannot write below {path} ({error.strerror}: {error.filename}). Choose another cache folder: set "
                "STEEPEST_CACHE, or give cache= (--cache)."
            ) from error
        raise


def disk_full(path: Path, why: str) -> UserError:
    """Build the error for a full disk at `path`; its caller sees to it that unfinished files are removed."""
    existing = next(folder for folder in [path, *path.parents] if folder.exists())
    free = shutil.disk_usage(existing).free / 1e6
    return UserError(
        f"the disk is full: {why} while writing below {path} ({free:,.1f} MB free). The unfinished files were removed. "
        "Free some space, or put the cache on a larger disk (STEEPEST_CACHE, cache= or --cache), and run again."
    )


@contextmanager
def temporary_folder(parent: Path) -> Iterator[Path]:
    """Yield an empty folder in `parent`, removed at the end whatever happens; `parent` is made when missing.

    Folders left behind by processes that were killed are removed on the way in.
    """
    with disk_errors(parent):
        parent.mkdir(parents=True, exist_ok=True)
        _remove_abandoned(parent)
        folder = parent / f"{_TEMPORARY}{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:8]}"
        folder.mkdir()
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def new_folder(target: Path, *, replace: bool = False) -> Iterator[Path]:
    """Yield an empty temporary folder that becomes `target` when the block ends without an error.

    The rename is atomic, so `target` is complete or absent at every instant. When another process has made `target` in
    the meantime, its folder stays and ours is dropped: both were made from the same recipe. On any error, an interrupt
    included, what was written is removed.

    Args:
        target: the folder to make.
        replace: put ours in the place of an existing `target`.
    """
    with temporary_folder(target.parent) as temporary:
        folder = temporary / "new"
        folder.mkdir()
        yield folder
        if replace and target.exists():
            os.rename(target, temporary / "old")
        try:
            os.rename(folder, target)
        except OSError:
            # A folder that is not empty cannot be renamed over: another process was first.
            if not target.is_dir():
                raise
        _sync(target.parent)


def write_file(path: Path, content: bytes) -> None:
    """Write a small file and force it to the disk."""
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _sync(folder: Path) -> None:
    """Force a rename to the disk, where the platform lets a folder be opened."""
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _remove_abandoned(folder: Path) -> None:
    """Remove temporary folders of processes of this machine that no longer run (killed, or a power cut)."""
    if os.name != "posix":  # elsewhere signal 0 is not a question
        return
    prefix = f"{_TEMPORARY}{socket.gethostname()}-"
    for path in folder.glob(f"{prefix}*"):
        owner = path.name[len(prefix) :].partition("-")[0]
        if not owner.isdigit():
            continue
        try:
            os.kill(int(owner), 0)
        except ProcessLookupError:
            shutil.rmtree(path, ignore_errors=True)
        except PermissionError:
            pass  # it runs, as another user
