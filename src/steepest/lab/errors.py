"""Errors that are the user's to fix: one clear message, no traceback."""

from __future__ import annotations

import difflib
import errno
import shutil
from collections.abc import Iterable
from pathlib import Path

_NO_SPACE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


class UserError(ValueError):
    """Something the user asked for cannot be done. The message names it and says what to do instead."""


def closest(name: str, names: Iterable[str]) -> str:
    """Return " Did you mean 'x' or 'y'?" for the `names` nearest to `name`, or an empty string when none is near."""
    matches = difflib.get_close_matches(name, list(names), n=3, cutoff=0.5)
    return f" Did you mean {' or '.join(repr(match) for match in matches)}?" if matches else ""


def unknown(kind: str, name: str, names: Iterable[str]) -> UserError:
    """Build the error for a misspelt `name`: the nearest names first, then all of them."""
    names = list(names)
    return UserError(f"unknown {kind} {name!r}.{closest(name, names)} Known: {', '.join(names) or 'none'}.")


def full_disk(error: OSError, path: Path, doing: str) -> UserError | None:
    """Translate "no space left" (or over quota, or file too large) into a `UserError`; None for other errors."""
    if error.errno not in _NO_SPACE:
        return None
    folder = path if path.is_dir() else path.parent
    free = shutil.disk_usage(folder).free / 1e6
    return UserError(
        f"the disk is full: {doing} {path} failed ({error.strerror}; {free:.1f} MB free). What was written before is "
        "intact. Free some space, or move the run folder to a larger disk, and run the same command again to go on."
    )
