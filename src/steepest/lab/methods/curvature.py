"""Sophia-G: the Gauss-Newton-Bartlett estimate of the curvature for an optimizer that takes one from outside."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch


def gauss_newton_bartlett(kind: Any) -> Any:
    """Make of pytorch-optimizer's Sophia one that takes the estimate of Sophia-G (arXiv 2305.14342, Algorithm 2).

    With g the mean gradient over n predictions whose labels are drawn from the model, n g^2 estimates the diagonal of
    the Gauss-Newton matrix. The step is ``clip(m / (rho h), 1)``, h the average of the estimates, one every
    `update_period` steps. The package divides by h and clips at p, so p = 1 and the estimate is given times rho.
    """

    class Sophia(kind):  # type: ignore[misc]
        def __init__(self, params: Any, *, rho: float, update_period: int, **options: Any) -> None:
            super().__init__(params, update_period=update_period, p=1.0, **options)
            self._rho, self._period = rho, update_period
            self._estimate: list[torch.Tensor] | None = None

        def wants_sample(self) -> bool:
            return int(self.param_groups[0].get("step", 0)) % self._period == 0

        def take_sample(self, gradients: Sequence[torch.Tensor], count: int) -> None:
            self._estimate = [self._rho * count * gradient.square() for gradient in gradients]

        def step(self, closure: Callable[[], float] | None = None) -> Any:
            if self._estimate is None and self.wants_sample():
                warnings.warn(
                    "Sophia got no gradient of sampled labels and takes the square of the gradient itself; call "
                    "steepest.lab.methods.offer_sample before its step",
                    RuntimeWarning,
                    stacklevel=2,
                )
                parameters = [parameter for group in self.param_groups for parameter in group["params"]]
                self.take_sample([p.detach() * 0 if p.grad is None else p.grad for p in parameters], 1)
            estimate, self._estimate = self._estimate, None
            return super().step(closure, hessian=estimate)

    return Sophia
