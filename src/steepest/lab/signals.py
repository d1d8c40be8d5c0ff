"""Stopping in an orderly way: Ctrl-C and SIGTERM become a request that the training loop honours after its step."""

from __future__ import annotations

import contextlib
import signal
import threading
import time
from collections.abc import Iterator
from types import FrameType
from typing import Any

AGAIN = 2.0  # seconds within which a signal that is repeated is the same request


class Stop:
    """A request to stop after the current step."""

    def __init__(self) -> None:
        self.requested = False


@contextlib.contextmanager
def stop_on_signals() -> Iterator[Stop]:
    """Turn the first Ctrl-C or SIGTERM into a request to stop; one more than `AGAIN` later does what it always does.

    `timeout`, for one, sends the same signal to the process and then to its group: that is one request.
    """
    stop, began = Stop(), 0.0
    previous: dict[int, Any] = {}

    def restore() -> None:
        while previous:
            number, handler = previous.popitem()
            signal.signal(number, handler)

    def handle(number: int, frame: FrameType | None) -> None:
        nonlocal began
        if not stop.requested:
            stop.requested, began = True, time.monotonic()
        elif time.monotonic() - began > AGAIN:
            restore()
            signal.raise_signal(number)

    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGINT, signal.SIGTERM):
            previous[number] = signal.signal(number, handle)
    try:
        yield stop
    finally:
        restore()
