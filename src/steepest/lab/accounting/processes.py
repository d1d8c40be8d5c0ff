"""A fresh process for every measurement: what one method allocates, loads or warms up is no other one's."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import warnings
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

from steepest.lab.errors import UserError

# What a fresh process shares with its siblings: imported code, and nothing that was computed.
_PRELOADED = ("steepest.lab.accounting.record", "transformers.models.llama.modeling_llama")


class MeasurementError(Exception):
    """What was asked of a process could not be done; the message is the reason."""


class FreshProcess:
    """A process that calls ``make(job)`` and answers requests with what that returned. Use as a context manager.

    Args:
        make: a function or class at the top of a module.
        job: its argument; can be pickled.
    """

    def __init__(self, make: Callable[[Any], Callable[[Any], Any]], job: Any) -> None:
        known = multiprocessing.get_all_start_methods()
        context: Any = multiprocessing.get_context("forkserver" if "forkserver" in known else "spawn")
        if "forkserver" in known:
            context.set_forkserver_preload(list(_PRELOADED))
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, make, job), daemon=True)
        self._process.start()
        theirs.close()

    def __enter__(self) -> FreshProcess:
        return self

    def __exit__(self, *exception: object) -> None:
        self._connection.close()
        self._process.terminate()
        self._process.join()

    def ask(self, request: Any = None) -> Any:
        """Send a request and wait for the answer.

        Raises:
            MeasurementError: making or answering raised, or the process is gone.
        """
        try:
            self._connection.send(request)
            done, answer = self._connection.recv()
        except (EOFError, OSError):
            self._process.join()
            raise MeasurementError(f"the process ended with exit code {self._process.exitcode}") from None
        if not done:
            raise MeasurementError(answer)
        return answer


def _serve(connection: Connection, make: Callable[[Any], Callable[[Any], Any]], job: Any) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent decides what it means
    warnings.simplefilter("ignore")
    with open(os.devnull, "w") as nowhere:  # packages print, and torch's profiler does so past Python
        os.dup2(nowhere.fileno(), 1)
        os.dup2(nowhere.fileno(), 2)
    act: Callable[[Any], Any] | None = None
    while True:
        try:
            request = connection.recv()
        except (EOFError, OSError):
            return
        try:
            act = make(job) if act is None else act
            answer = (True, act(request))
        except Exception as error:
            told = " ".join(str(error).split())[:300]
            answer = (False, told if isinstance(error, UserError) else f"{type(error).__name__}: {told}".rstrip(": "))
        with contextlib.suppress(OSError):
            connection.send(answer)
