"""Progress bars on the terminal's error stream; silent when that is not a terminal."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, SpinnerColumn, TextColumn, TimeRemainingColumn


@contextmanager
def bytes_bar(description: str, total: float | None, *, show: bool) -> Iterator[Callable[[int], None]]:
    """Yield a function to call with the number of bytes done since the last call.

    Args:
        description: what is being done.
        total: bytes in all; None when unknown.
        show: False never draws.
    """
    console = Console(stderr=True)
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, disable=not (show and console.is_terminal), transient=True) as bar:
        task = bar.add_task(description, total=total)

        def advance(done: int) -> None:
            bar.advance(task, done)

        yield advance


@contextmanager
def waiting(description: str, *, show: bool) -> Iterator[None]:
    """Show a spinner during work of unknown length."""
    console = Console(stderr=True)
    if not (show and console.is_terminal):
        yield
        return
    with console.status(description):
        yield
