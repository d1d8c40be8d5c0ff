"""What a step does, measured along a run: cheap, optional, and without any influence on the run's numbers.

At a measured step two more backward passes are made (on half of the batch before the step, on all of it after), and
the hidden matrices get a singular value decomposition each. Their gradients and steps are copied meanwhile.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from steepest import kernels, roles
from steepest.routing import View
from steepest.routing.roles import HIDDEN
from steepest.theory.norm_ratios import Measured, norm_ratios
from steepest.theory.smoothness import Smoothness, secant

_MOMENTUM = ("momentum", "exp_avg", "momentum_buffer")  # what optimizers call it
_SATURATED = 0.95  # of the largest element: such elements of a step count as saturated


@dataclass(frozen=True)
class _Tensor:
    name: str
    parameter: nn.Parameter
    kind: str
    view: View


class Diagnostics:
    """Measures steps of any optimizer.

    The result is a mapping by quantity; those by role have a mapping by kind of parameter ("attention", "mlp", ...)::

        update_rms, weight_rms, update_to_weight    root mean squares of the step (decay in it) and of the weights
        saturation      share of elements that are within 5% of the largest of their tensor: 1 for a sign step (where
                        weight decay moves no element by that much of it)
        stable_rank     mean of ||U||_F^2 / ||U||_2^2 over the matrices of the step, over their smaller side
        polar_residual  RMS over s_i / mean(s) - 1 of its singular values: 0 for an exact polar factor
        gradient_noise, gradient_squared            tr(Sigma) of a sequence's gradient, and |G|^2 of the mean one, both
                        without bias from the squared norms of this batch and of its half, for all parameters
        noise_scale     their ratio, the batch size in sequences at which noise and gradient are equal (McCandlish et
                        al. 2018, arXiv 1812.06162, appendix A.1). One step says little: average both terms first
        alpha, rho_nuc, rho_1, l_2, l_inf           `steepest.theory.norm_ratios`
        smoothness, smoothness_sign                 `steepest.theory.smoothness`, in the l2 and the sign geometry

    Args:
        model: owns the parameters.
        optimizer: steps them.
        backward: leaves the gradient of the mean loss of the pieces of a mini-batch that it is given.
        every: steps between measurements; 0 for none.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        backward: Callable[[Sequence[Tensor]], object],
        every: int,
    ) -> None:
        self.every, self._optimizer, self._backward = every, optimizer, backward
        found = roles(model)
        self._tensors = [
            _Tensor(name, parameter, found[name].kind, found[name].view)
            for name, parameter in model.named_parameters()
            if parameter.requires_grad
        ]
        self._before: list[tuple[Tensor, Tensor, Tensor | None]] = []
        self._half: float = math.nan
        self._sizes = (0, 0)

    def due(self, step: int) -> bool:
        """Whether the step with this number (from 0) is measured. Both kinds of an alternation get their turn."""
        return self.every > 0 and (step % self.every == 0 or step % self.every == 1 % self.every)

    def before(self, batch: Sequence[Tensor]) -> None:
        """Call it when the gradients are there, ahead of clipping.

        Args:
            batch: the pieces of the mini-batch that made the gradients.
        """
        self._before = [
            (t.parameter.detach().clone(), _gradient(t.parameter).clone(), self._momentum(t)) for t in self._tensors
        ]
        rows = torch.cat(list(batch))
        half = max(1, len(rows) // 2)
        self._half = math.nan
        if half < len(rows):
            self._half = _squared_norm(self._fresh([rows[:half]]))
        self._sizes = (half, len(rows))

    def after(self, batch: Sequence[Tensor]) -> dict[str, Any]:
        """Call it after the step, with the same pieces; returns what was measured, as plain numbers."""
        later = self._fresh(batch)
        by_role: dict[str, dict[str, list[Tensor]]] = {}
        matrices: list[Measured] = []
        secants: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []
        for t, (weight, gradient, momentum), g in zip(self._tensors, self._before, later, strict=True):
            step = t.parameter.detach() - weight
            sums = by_role.setdefault(t.kind, {})
            for name, value in _by_role(t, weight, step).items():
                sums.setdefault(name, []).append(value)
            secants.append((g, gradient, t.parameter.detach(), weight))
            if t.kind in HIDDEN:
                matrices += _measured(t.view, gradient, step, momentum, g)
        found: dict[str, Any] = {name: {} for name in _READ}
        for kind, sums in by_role.items():
            total = {name: torch.stack(values).sum(0).tolist() for name, values in sums.items()}
            for name, read in _READ.items():
                number = read(total)
                if number is not None:
                    found[name][kind] = number
        smooth: Smoothness = secant(secants)
        found |= self._noise()
        found |= {"smoothness": smooth.euclidean, "smoothness_sign": smooth.coordinate}
        if matrices:
            found |= norm_ratios(matrices)._asdict()
        self._before = []
        return {name: _plain(value) for name, value in found.items()}

    def _fresh(self, batch: Sequence[Tensor]) -> list[Tensor]:
        """The gradients of a batch; those that are there, and the random numbers, stay as they are."""
        kept = [t.parameter.grad for t in self._tensors]
        try:
            for t in self._tensors:
                t.parameter.grad = None
            with torch.random.fork_rng():
                self._backward(batch)
            return [_gradient(t.parameter) for t in self._tensors]
        finally:
            for t, gradient in zip(self._tensors, kept, strict=True):
                t.parameter.grad = gradient

    def _momentum(self, tensor: _Tensor) -> Tensor | None:
        state = self._optimizer.state.get(tensor.parameter, {})
        found = next((state[name] for name in _MOMENTUM if isinstance(state.get(name), Tensor)), None)
        return found.detach().clone() if found is not None and found.shape == tensor.parameter.shape else None

    def _noise(self) -> dict[str, float]:
        """E|g_B|^2 = |G|^2 + tr(Sigma) / B, solved for both terms from two batch sizes."""
        small, big = self._sizes
        full = _squared_norm([g for _, g, _ in self._before])
        if small == big:
            return dict.fromkeys(("gradient_noise", "gradient_squared", "noise_scale"), math.nan)
        squared = (big * full - small * self._half) / (big - small)
        noise = (self._half - full) / (1 / small - 1 / big)
        scale = noise / squared if squared else math.inf
        return {"gradient_noise": noise, "gradient_squared": squared, "noise_scale": scale}


def _squared_norm(gradients: Sequence[Tensor]) -> float:
    return float(torch.stack([g.double().square().sum() for g in gradients]).sum())


def _gradient(parameter: nn.Parameter) -> Tensor:
    return torch.zeros_like(parameter) if parameter.grad is None else parameter.grad.detach()


def _by_role(tensor: _Tensor, weight: Tensor, step: Tensor) -> dict[str, Tensor]:
    """Of one tensor, by quantity: (sum, count), which add up over the tensors of a role."""
    weight, step = weight.float(), step.float()
    size = step.abs()
    saturated = (size >= _SATURATED * size.max()) & (size > 0)
    parts = {"step": step.square(), "weight": weight.square(), "saturated": saturated.float()}
    if tensor.kind in HIDDEN:
        stacks = [x for x in tensor.view.split(step) if x.numel()]
        ranks = [kernels.stable_rank(x, x.new_ones(x.shape[-1])) / min(x.shape[-2:]) for x in stacks]
        values = [torch.linalg.svdvals(x) for x in stacks]
        spread = [(s / s.mean(-1, keepdim=True) - 1).square().mean(-1) for s in values]
        parts |= {"rank": _joined(ranks), "residual": _joined(spread)}
    return {name: torch.stack([x.sum().double(), x.new_tensor(x.numel()).double()]) for name, x in parts.items()}


def _joined(parts: Sequence[Tensor]) -> Tensor:
    joined = torch.cat([x.flatten() for x in parts])
    return joined[joined.isfinite()]


def _measured(view: View, gradient: Tensor, step: Tensor, momentum: Tensor | None, later: Tensor) -> list[Measured]:
    gradients = view.split(gradient)
    momenta = [None] * len(gradients) if momentum is None else view.split(momentum)
    columns = zip(gradients, view.split(step), momenta, view.split(later), strict=True)
    return [Measured(*parts) for parts in columns if parts[0].numel()]


def _mean(total: Mapping[str, Sequence[float]], name: str) -> float | None:
    numerator, count = total.get(name, (0.0, 0.0))
    return numerator / count if count else None


def _root(total: Mapping[str, Sequence[float]], name: str) -> float | None:
    mean = _mean(total, name)
    return None if mean is None else math.sqrt(mean)


def _ratio(total: Mapping[str, Sequence[float]]) -> float | None:
    step, weight = _root(total, "step"), _root(total, "weight")
    return step / weight if step is not None and weight else None


_READ: dict[str, Callable[[Mapping[str, Sequence[float]]], float | None]] = {
    "update_rms": lambda total: _root(total, "step"),
    "weight_rms": lambda total: _root(total, "weight"),
    "update_to_weight": _ratio,
    "saturation": lambda total: _mean(total, "saturated"),
    "stable_rank": lambda total: _mean(total, "rank"),
    "polar_residual": lambda total: _root(total, "residual"),
}


def _plain(value: Any) -> Any:
    """Numbers that JSON can say: what is not finite is null."""
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    return value if math.isfinite(value) else None
