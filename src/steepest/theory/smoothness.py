"""How curved the objective is along a run: the change of the gradient over a step, divided by the step."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from steepest.kernels.device import piece_elements


class Smoothness(NamedTuple):
    """A secant estimate over all tensors together; nan where nothing moved.

    Attributes:
        euclidean: ||change of the gradient||_2 / ||step||_2.
        coordinate: ||change of the gradient||_1 / ||step||_inf, the smoothness in the geometry of sign descent.
    """

    euclidean: float
    coordinate: float


class SmoothnessProbe:
    """Measures the smoothness of the loss of one mini-batch along one step of any optimizer.

    L_k = ||grad f_B(x_{k+1}) - grad f_B(x_k)|| / ||x_{k+1} - x_k||, the mini-batch B being the same in both gradients.
    Softsign (Feoktistov et al. 2026, arXiv 2605.31371) plots a local smoothness; its formula is not known to us. A rise
    may only say that the steps turn to steeper directions, not that the landscape changes.

    ```python
    probe = SmoothnessProbe(model.parameters())
    loss(batch).backward()
    probe.before()  # ahead of clipping, which would change the gradient
    optimizer.step()
    estimate = probe.after(lambda: loss(batch).backward())
    ```

    A measured step costs one more backward pass, and a copy of parameters and gradients between the two calls. Both are
    left as they were. What else the closure does is the caller's: dropout must draw the same mask twice (or be off).

    Args:
        parameters: tensors of any floating-point dtypes and devices; one without a gradient counts with zero.
        dtype: of differences and sums; float32 for devices without float64.

    Raises:
        ValueError: there are no parameters.
    """

    def __init__(self, parameters: Iterable[Tensor], dtype: torch.dtype = torch.float64) -> None:
        self._parameters = list(parameters)
        if not self._parameters:
            raise ValueError("parameters is empty; give the tensors that the optimizer steps")
        self._dtype = dtype
        self._before: list[tuple[Tensor, Tensor | None]] | None = None

    def before(self) -> None:
        """Remember the parameters and their gradients: call it after ``backward`` and before ``step``."""
        self._before = [
            (p.detach().clone(), None if p.grad is None else p.grad.detach().clone()) for p in self._parameters
        ]

    def after(self, closure: Callable[[], object]) -> Smoothness:
        """Measure: call it after ``step``.

        Args:
            closure: runs ``backward`` for the same mini-batch as before the step, as often and with the same scale.

        Raises:
            RuntimeError: ``before`` was not called for this step, or the closure made no gradient.
        """
        if self._before is None:
            raise RuntimeError("call before() ahead of optimizer.step(), then after(closure)")
        before, self._before = self._before, None
        gradients = self._fresh_gradients(closure)
        return secant(
            [
                (
                    torch.zeros_like(p) if g is None else g,
                    torch.zeros_like(p) if old_g is None else old_g,
                    p.detach(),
                    old_p,
                )
                for p, g, (old_p, old_g) in zip(self._parameters, gradients, before, strict=True)
            ],
            self._dtype,
        )

    def _fresh_gradients(self, closure: Callable[[], object]) -> list[Tensor | None]:
        kept = [p.grad for p in self._parameters]
        try:
            for p in self._parameters:
                p.grad = None
            with torch.enable_grad():
                closure()
            gradients = [p.grad for p in self._parameters]
        finally:
            for p, g in zip(self._parameters, kept, strict=True):
                p.grad = g
        if all(g is None for g in gradients):
            raise RuntimeError(
                "the closure left no gradient; it must run backward() on the loss of the same mini-batch"
            )
        return gradients


def secant(changes: Sequence[tuple[Tensor, Tensor, Tensor, Tensor]], dtype: torch.dtype = torch.float64) -> Smoothness:
    """The estimate from gradients and parameters after and before a step.

    Args:
        changes: of each tensor (gradient after, gradient before, parameter after, parameter before).
        dtype: of differences and sums; float32 for devices without float64.
    """
    parts: list[tuple[Tensor, ...]] = []
    for tensors in changes:
        columns = (x.reshape(-1).split(piece_elements(x.device)) for x in tensors)
        for new, old, here, there in zip(*columns, strict=True):
            change, step = new.to(dtype) - old, here.to(dtype) - there
            parts.append((change.norm(2), change.norm(1), step.norm(2), step.norm(math.inf)))
    # The norm of all from the norms of the pieces; the values are read back from the device once.
    device = parts[0][0].device
    orders = (2.0, 1.0, 2.0, math.inf)
    stacked = (torch.stack([x.to(device) for x in column]) for column in zip(*parts, strict=True))
    norms = torch.stack([column.norm(order) for column, order in zip(stacked, orders, strict=True)])
    change_2, change_1, step_2, step_max = norms.tolist()
    return Smoothness(change_2 / step_2 if step_2 else math.nan, change_1 / step_max if step_max else math.nan)
