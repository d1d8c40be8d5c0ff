"""Checks of options that SAC, SGG and what they are made of share, beside those of ``rules.base``.

Each refuses by a message that names who is asked, the option, what was given and what it may be.
"""

from __future__ import annotations

import functools
import inspect
import math
import numbers
from collections.abc import Callable
from typing import Any, ParamSpec

from steepest.rules.base import closest

P = ParamSpec("P")


def known_options(init: Callable[P, None]) -> Callable[P, None]:
    """Decorate ``__init__`` to refuse an option that it does not have with the closest names, as rules do.

    Signature and types stay those of ``init``.
    """
    known = [name for name in inspect.signature(init).parameters if name != "self"]

    @functools.wraps(init)
    def checked(*args: P.args, **given: P.kwargs) -> None:
        for name in given:
            if name not in known:
                raise TypeError(f"{type(args[0]).__name__} has no option {name!r}{closest(name, known)}")
        init(*args, **given)

    return checked


def check_flag(owner: str, option: str, value: Any) -> None:
    """Refuse anything but a bool."""
    if not isinstance(value, bool):
        raise ValueError(f"{owner}: {option} must be True or False, got {value!r}")


def check_number(
    owner: str, option: str, value: Any, low: float, high: float = math.inf, *, open_low: bool = False
) -> None:
    """Refuse anything but a finite number in [low, high] or (low, high]."""
    if not _is_number(value) or not (low < value <= high or (value == low and not open_low)):
        if high == math.inf:
            wanted = f"a finite number {'>' if open_low else '>='} {low:g}"
        else:
            wanted = f"a number in {'(' if open_low else '['}{low:g}, {high:g}]"
        raise ValueError(f"{owner}: {option} must be {wanted}, got {value!r}")


def check_bounds(owner: str, option: str, bounds: Any, *, optional: bool = False) -> None:
    """Refuse anything but a pair of finite numbers with 0 < smallest <= largest; None too if not ``optional``."""
    if bounds is None and optional:
        return
    if (
        not isinstance(bounds, (tuple, list))
        or len(bounds) != 2
        or not all(_is_number(bound) and bound > 0 for bound in bounds)
    ):
        none = f"; {option}=None is for no bounds" if optional else ""
        raise ValueError(
            f"{owner}: {option} must be a pair (smallest, largest) of finite numbers > 0, got {bounds!r}{none}"
        )
    low, high = bounds
    if low > high:
        raise ValueError(f"{owner}: {option} are reversed: {bounds!r}; give ({high:g}, {low:g})")


def _is_number(value: Any) -> bool:
    """Whether it is a finite number."""
    return isinstance(value, numbers.Real) and math.isfinite(value) and not isinstance(value, bool)
