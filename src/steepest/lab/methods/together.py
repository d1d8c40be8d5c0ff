"""Two optimizers, each on its own parameters, as one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch


class Together(torch.optim.Optimizer):
    """Steps every member on its own groups, and is one optimizer to schedulers, checkpoints and wrappers.

    Args:
        members: optimizers by name; the groups of each get the name as "label" and "member".
    """

    def __init__(self, members: dict[str, torch.optim.Optimizer]) -> None:
        self._members = members
        groups = [group for member in members.values() for group in member.param_groups]
        for name, member in members.items():
            for group in member.param_groups:
                group["member"] = name
                group.setdefault("label", name)
        super().__init__(groups, {})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Take a step of every member; the groups may have been split or changed since the last one."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for name, member in self._members.items():
            member.state = self.state
            member.param_groups = [group for group in self.param_groups if group["member"] == name]
            if member.param_groups:
                member.step()
        return loss

    def __getstate__(self) -> dict[str, Any]:
        """Keep the members when copied or pickled."""
        return {**super().__getstate__(), "_members": self._members}
