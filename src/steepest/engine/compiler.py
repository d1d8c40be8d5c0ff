"""Calls of compiled functions, and what happens where nothing can be compiled: the ordinary path, with one warning."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import torch

# Types of devices for which compiling failed; trying again at each step would cost seconds each time.
missing: set[str] = set()


def attempt(device: torch.device, function: Callable[..., object], *args: object) -> bool:
    """Call a compiled function; whether it ran. False, and nothing is done, where there is no compiler."""
    if device.type in missing:
        return False
    try:
        function(*args)
    except torch._dynamo.exc.BackendCompilerFailed as error:
        missing.add(device.type)
        warnings.warn(
            "steepest: backend='compile' needs a working compiler (g++ on a CPU, Triton on a GPU); taking the "
            f"'foreach' path instead. {str(error).splitlines()[0]}",
            stacklevel=2,
        )
        return False
    return True
