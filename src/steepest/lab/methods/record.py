"""What a method is: one row of `steepest optimizers`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

Builder = Callable[[nn.Module, float, dict[str, Any]], torch.optim.Optimizer]


@dataclass(frozen=True, kw_only=True)
class Method:
    """A row of `steepest optimizers`.

    Args:
        label: how tables and figures call it.
        paper: where it comes from.
        formula: one line: direction, geometry, routing.
        grid: learning rates that a comparison tries; the middle is the default of a single run.
        options: every option with its default.
        build: makes the optimizer from (model, lr, options).
        package: whose code it is, as pip knows it; None for what torch and this library have.
    """

    name: str
    label: str
    paper: str
    formula: str
    grid: tuple[float, ...]
    options: dict[str, Any]
    build: Builder
    package: str | None = None

    @property
    def lr(self) -> float:
        """The default learning rate: the middle of the grid."""
        return self.grid[(len(self.grid) - 1) // 2]


def decay_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Groups with decay on the weights of linear layers, none on embeddings (a tied head is one) and on vectors.

    That is the AdamW baseline of the LionMuon paper, and what every baseline here has.
    """
    embeddings = {
        id(parameter)
        for module in model.modules()
        if isinstance(module, nn.Embedding)
        for parameter in module.parameters(recurse=False)
    }
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    decayed = [parameter for parameter in parameters if parameter.ndim >= 2 and id(parameter) not in embeddings]
    chosen = {id(parameter) for parameter in decayed}
    others = [parameter for parameter in parameters if id(parameter) not in chosen]
    groups = [
        {"params": decayed, "weight_decay": weight_decay, "label": "weights"},
        {"params": others, "weight_decay": 0.0, "label": "embeddings and vectors"},
    ]
    return [group for group in groups if group["params"]]
