"""Soft geometries as convex regularisers: the framework of Softsign (Feoktistov et al. 2026, arXiv 2605.31371).

A step from the momentum m at temperature tau is that of a linear model with a regulariser V, and V* is its conjugate:

    d(m) = argmin_d <m, d> + V(d) / tau = -grad V*(tau m)        V*(y) = sup_d <y, d> - V(d)

| name      | V(d)                                         | on      | V*(y)             | map (V*)'(y)                |
|-----------|----------------------------------------------|---------|-------------------|-----------------------------|
| linear    | d^2 / 2                                      | R       | y^2 / 2           | y: momentum SGD             |
| tanh      | ((1 + d) ln(1 + d) + (1 - d) ln(1 - d)) / 2  | [-1, 1] | ln cosh y         | tanh y: SoftSignum          |
| algebraic | 1 - sqrt(1 - d^2)                            | [-1, 1] | sqrt(1 + y^2) - 1 | y / sqrt(1 + y^2): SoftMuon |
| clip      | d^2 / 2                                      | [-1, 1] | Huber(y)          | y within [-1, 1]            |
| sign      | 0                                            | [-1, 1] | abs y             | sign y: Signum, Lion, Muon  |

summed over the elements, or over the singular values (``spectral``). All but the last are 1-strongly convex, so that V*
is 1-smooth and the map 1-Lipschitz; sign is their limit as tau grows. ``from_conjugate`` makes another one.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from steepest.kernels import RELAXATIONS, Relaxation, sign

Function = Callable[[Tensor], Tensor]

# A soft sign must come within the default ``eps`` of the soft rules of 1 for an argument of this size.
_SATURATED, _LARGE = 1.0 - 1e-4, 1e6


@dataclass(frozen=True)
class Regularizer:
    """An even convex V with V(0) = 0 = min V, its conjugate, and the map between them; see ``check``.

    Attributes:
        name: name of the map.
        value: V of each element (of each singular value, see ``matrices``); inf outside the domain.
        conjugate: V* of each element.
        map: gradient of V*, in the shape of its argument.
        radius: V is finite for |d| < radius; 1 for a soft sign, ``math.inf`` for an unbounded map.
        matrices: the functions take stacks of matrices (..., m, n); value and conjugate return (..., min(m, n)).
    """

    name: str
    value: Function
    conjugate: Function
    map: Function
    radius: float = 1.0
    matrices: bool = False

    def relaxation(self) -> Relaxation:
        """The soft sign for ``kernels.register``.

        Raises:
            ValueError: it is none: ``check`` fails, or the map does not tend to 1, or takes matrices.
        """
        if self.matrices:
            raise ValueError(f"{self.name} maps matrices; register the regulariser of numbers that it was made of")
        check(self)
        largest = float(self.map(torch.tensor(_LARGE, dtype=torch.float64)))
        if not _SATURATED <= largest <= 1.0 + 1e-9:
            raise ValueError(
                f"{self.name} is no soft sign: its map must tend to 1 and be at least {_SATURATED} at {_LARGE:g}, but "
                f"is {largest:.6g} there; if it tends to a constant c > 0, use V*(y) / c"
            )
        return Relaxation(
            self.name,
            lambda y: self.map(y) if isinstance(y, Tensor) else y.apply(self.map),
            lambda share: float(_inverse(self.map, torch.tensor(share, dtype=torch.float64))),
        )


def _on_interval(formula: Function, radius: float = 1.0) -> Function:
    """The formula for |d| <= radius (up to rounding, for the singular values of a polar factor), else inf."""

    def value(d: Tensor) -> Tensor:
        inside = d.abs() <= radius * (1.0 + 8.0 * torch.finfo(d.dtype).eps)
        return torch.where(inside, formula(d.clamp(-radius, radius)), math.inf)

    return value


def _half_square(x: Tensor) -> Tensor:
    return x * x / 2.0


def _entropy(d: Tensor) -> Tensor:
    # The first form does not cancel at small d, the second is finite at 1.
    near = d.clamp(-0.5, 0.5)
    inner = near * near.atanh() + 0.5 * (-near * near).log1p()
    outer = 0.5 * (torch.xlogy(1.0 + d, 1.0 + d) + torch.xlogy(1.0 - d, 1.0 - d))
    return torch.where(d.abs() < 0.5, inner, outer)


def _log_cosh(y: Tensor) -> Tensor:
    # cosh^2 = 1 + sinh^2 does not cancel at small y, the other form does not overflow at large y.
    inner = 0.5 * y.clamp(-1.0, 1.0).sinh().square().log1p()
    outer = y.abs() + (-2.0 * y.abs()).exp().log1p() - math.log(2.0)
    return torch.where(y.abs() < 1.0, inner, outer)


def _huber(y: Tensor) -> Tensor:
    return torch.where(y.abs() <= 1.0, _half_square(y.clamp(-1.0, 1.0)), y.abs() - 0.5)


def _arc(d: Tensor) -> Tensor:
    return d * d / (1.0 + ((1.0 - d) * (1.0 + d)).sqrt())


def _hyperbola(y: Tensor) -> Tensor:
    return y * (y / (1.0 + torch.hypot(y, torch.ones_like(y))))


REGULARIZERS: dict[str, Regularizer] = {
    "linear": Regularizer("linear", _half_square, _half_square, torch.clone, math.inf),
    "tanh": Regularizer("tanh", _on_interval(_entropy), _log_cosh, RELAXATIONS["tanh"].map),
    "algebraic": Regularizer("algebraic", _on_interval(_arc), _hyperbola, RELAXATIONS["algebraic"].map),
    "clip": Regularizer("clip", _on_interval(_half_square), _huber, RELAXATIONS["clip"].map),
    "sign": Regularizer("sign", _on_interval(torch.zeros_like), torch.abs, sign),
}
"""The table above, by the names of the maps."""


def from_conjugate(name: str, conjugate: Function, radius: float = 1.0) -> Regularizer:
    """A new soft geometry from V* alone.

    The map is the derivative of V* by automatic differentiation, and V(d) = d y - V*(y) at the y with map(y) = d, found
    by bisection. (At |d| = radius, where V may be infinite, it is the value that rounding allows.)

    ```python
    rational = from_conjugate("rational", lambda y: y.abs() - y.abs().log1p())  # map y / (1 + |y|)
    kernels.register(rational.relaxation())
    optimizer = steepest.SoftSignum(model, relaxation="rational")
    ```

    Args:
        name: name of the map.
        conjugate: V* of each element of a tensor, differentiable by torch and without overflow at large |y|.
        radius: the limit of the map, 1 for a soft sign; ``math.inf`` for an unbounded map.

    Raises:
        ValueError: V* is not the conjugate of such a V; the message says what fails (see ``check``).
    """
    gradient = _gradient(conjugate)

    def value(d: Tensor) -> Tensor:
        size = d.double().abs()
        y = _inverse(gradient, size)
        return (size * y - conjugate(y)).to(d.dtype)

    regularizer = Regularizer(name, _on_interval(value, radius), conjugate, gradient, radius)
    check(regularizer)
    return regularizer


def _gradient(function: Function) -> Function:
    return torch.func.grad(lambda x: function(x).sum())


def _inverse(function: Function, target: Tensor) -> Tensor:
    """The least y >= 0 with function(y) >= target >= 0, to rounding; about 1e19 target if there is none.

    The function is monotone and 1-Lipschitz with value 0 at 0, so that y >= target.
    """
    low, high = target, target
    for _ in range(64):
        short = function(high) < target
        if not short.any():
            break
        low, high = torch.where(short, high, low), torch.where(short, 2.0 * high, high)
    for _ in range(54):
        middle = low + (high - low) / 2.0
        short = function(middle) < target
        low, high = torch.where(short, middle, low), torch.where(short, high, middle)
    return high


def spectral(regularizer: Regularizer) -> Regularizer:
    """The same functions of the singular values of matrices, by an SVD: for checks, not for training.

    The conjugate of V(sigma(D)) is V*(sigma(Y)), and its gradient U map(S) V' at Y = U S V' (Lewis 1996). Of
    "algebraic" at temperature tau the map is that of SoftMuon, M (M'M + I / tau^2)^(-1/2).
    """

    def matrix_map(y: Tensor) -> Tensor:
        u, s, vh = torch.linalg.svd(y, full_matrices=False)
        mapped: Tensor = u * regularizer.map(s).unsqueeze(-2) @ vh
        return mapped

    return Regularizer(
        f"spectral {regularizer.name}",
        lambda d: regularizer.value(torch.linalg.svdvals(d)),
        lambda y: regularizer.conjugate(torch.linalg.svdvals(y)),
        matrix_map,
        regularizer.radius,
        matrices=True,
    )


def check(regularizer: Regularizer, tolerance: float = 1e-9) -> None:
    """Verify in float64, at 123 numbers up to 1000 or at 12 matrices, that V, V* and the map make a soft geometry.

    In this order: V*(0) = 0; the map is odd, the gradient of V*, monotone (V* is convex), 1-Lipschitz (V* is 1-smooth,
    V 1-strongly convex) and inside the domain of V; V(d) + V*(y) >= <d, y> for all pairs, and equal at d = map(y).

    Args:
        regularizer: "sign" fails, as it must: it is not 1-Lipschitz.
        tolerance: allowed error, times 1 + ||y|| where that matters.

    Raises:
        ValueError: a condition fails; the message names it, where, and a way out if there is one.
    """
    conjugate, phi = regularizer.conjugate, regularizer.map
    y = _points(regularizer.matrices)
    slack = tolerance * (1.0 + _rows(y).norm(dim=1))

    def require(good: Tensor, message: str) -> None:
        if not good.all():
            at = y[int(torch.nonzero(~good)[0, 0])]
            where = f"a matrix of norm {float(at.norm()):.6g}" if regularizer.matrices else f"{float(at):.6g}"
            raise ValueError(f"{regularizer.name}: {message} (first fails at y = {where})")

    d, dual = phi(y), _rows(conjugate(y)).sum(1)
    require((dual + _rows(d).sum(1)).isfinite(), "V* or its derivative is not finite; write V* in a form that is")
    zero = _rows(conjugate(torch.zeros_like(y))).sum(1)
    require(zero.abs() <= tolerance, f"V*(0) must be 0, it is {float(zero[0]):.6g}; subtract it")
    require(_rows(phi(-y) + d).norm(dim=1) <= slack, "the map is not odd; V* must be even, such as a function of |y|")
    require(_rows(_gradient(conjugate)(y) - d).norm(dim=1) <= slack, "the map is not the gradient of V*")

    change_y, change_d = (_rows(x)[:, None] - _rows(x) for x in (y, d))
    decreasing = (change_y * change_d).sum(-1) < -tolerance
    require(~decreasing.any(1), "V* is not convex: its derivative decreases somewhere")
    slope = change_d.norm(dim=-1) / change_y.norm(dim=-1).clamp_min(1e-300)
    require(
        (slope <= 1.0 + tolerance).all(1),
        f"V* is not 1-smooth: the map has a slope of {float(slope.max()):.6g}; if s bounds it, use s V*(y / s)",
    )

    value = _rows(regularizer.value(d)).sum(1)
    require(value.isfinite(), f"the map leaves the domain of V, |d| <= {regularizer.radius:g}")
    gaps = value + dual[:, None] - _rows(y) @ _rows(d).T  # of every y with every d
    require(gaps.diagonal().abs() <= slack, "V(d) + V*(y) = <d, y> fails at d = map(y)")
    require((gaps >= -slack[:, None]).all(1), "V(d) + V*(y) >= <d, y> fails for a pair")


def _rows(x: Tensor) -> Tensor:
    return x.reshape(len(x), -1)


def _points(matrices: bool) -> Tensor:
    if matrices:
        normal = torch.randn(12, 3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        return normal * torch.logspace(-2, 2, 12, dtype=torch.float64).view(-1, 1, 1)
    positive = torch.logspace(-3, 3, 61, dtype=torch.float64)
    return torch.cat([positive.new_zeros(1), positive, -positive])


def direction(momentum: Tensor, temperature: float, regularizer: Regularizer) -> Tensor:
    """The step d = -map(temperature momentum), the minimiser of <m, d> + V(d) / temperature; the update is lr d."""
    _check_temperature(temperature)
    return -regularizer.map(temperature * momentum)


def progress(gradient: Tensor, temperature: float, regularizer: Regularizer, *, normalised: bool = False) -> Tensor:
    """The paper's measure of progress V*(-temperature grad f): the gradient as this geometry sees it.

    Args:
        gradient: of one tensor; of a stack of matrices for a spectral regulariser. For a model, add up its tensors.
        temperature: tau > 0, finite.
        regularizer: the geometry.
        normalised: times 2 / tau^2, which is the squared norm of the gradient where tau |gradient| << 1 (everywhere for
            "linear"), and about 2 / tau times the dual norm where it is large (sum of |gradient|, nuclear norm).

    Returns:
        0-dim tensor, the sum over all elements.
    """
    _check_temperature(temperature)
    return regularizer.conjugate(-temperature * gradient).sum() * (2.0 / temperature**2 if normalised else 1.0)


def _check_temperature(temperature: float) -> None:
    if not 0.0 < temperature < math.inf:
        raise ValueError(
            f'temperature must be positive and finite, got {temperature!r}; the limit is the geometry "sign"'
        )


def largest_step(smoothness: float, beta: float) -> float:
    """The largest gamma = learning rate * temperature of ``bound``: L gamma + (beta L gamma / (1 - beta))^2 = 1.

    Args:
        smoothness: Lipschitz constant L > 0 of the gradient in the Euclidean norm.
        beta: averaging of the momentum, in [0, 1).
    """
    if not (smoothness > 0.0 and 0.0 <= beta < 1.0):
        raise ValueError(f"need smoothness > 0 and 0 <= beta < 1, got smoothness={smoothness!r}, beta={beta!r}")
    return 2.0 / (smoothness * (1.0 + math.hypot(1.0, 2.0 * beta / (1.0 - beta))))


def step_condition(learning_rate: float, temperature: float, smoothness: float, beta: float) -> bool:
    """Whether ``bound`` holds: only the product of learning rate and temperature is restricted (our derivation).

    Practice violates it for most of a run: the hard sign has an infinite temperature, and a transition starts near it.
    """
    return learning_rate * temperature <= largest_step(smoothness, beta)


def bound(*, gap: float, steps: int, gamma: float, beta: float, noise: float = 0.0, first_error: float = 0.0) -> float:
    """Bound on the mean of E (2 / tau^2) V*(-tau grad f(x_k)), the normalised ``progress``, over the first K steps.

        2 gap / (gamma K) + first_error / ((1 - beta) K) + (1 - beta) noise^2

    Our derivation, not the theorem of the paper, which has this form and constants that we have not seen. It assumes
    that f is L-smooth and bounded below; gradients g_k are unbiased with E||g_k - grad f(x_k)||^2 <= noise^2; V is
    1-strongly convex with V(0) = 0 = min V; m_{k+1} = beta m_k + (1 - beta) g_k; x_{k+1} = x_k + lr d_k with
    d_k = direction(m_{k+1}), a fixed temperature tau and no weight decay; and ``step_condition``.

    Proof. Let e_k = m_{k+1} - grad f(x_k). (1) V(d_k) + V*(-tau grad f) + tau <grad f, d_k> is a Bregman distance of
    V*, at most tau^2 ||e_k||^2 / 2. (2) So by the descent lemma and V(d) >= ||d||^2 / 2, f(x_{k+1}) - f(x_k) <=
    -(lr / tau) V*(-tau grad f) - (lr / tau - L lr^2) ||d_k||^2 / 2 + gamma ||e_k||^2 / 2. (3) E||e_k||^2 <=
    beta E||e_{k-1}||^2 + (beta L lr)^2 / (1 - beta) E||d_{k-1}||^2 + (1 - beta)^2 noise^2. (4) In the sum over k the
    terms in ||d_k||^2 drop out by the step condition.

    With 1 - beta of order sqrt(L gap / K) / noise and the largest step, the bound is of order noise sqrt(L gap / K) +
    L gap / K, the classical rate. For "tanh", ln cosh x >= 0.433 min(x^2, |x|) translates it to gradients. The proof
    also covers a temperature that falls while every step meets the condition: then for the mean weighted by gamma_k,
    with gamma the mean of the gamma_k and first_error times gamma_0 / gamma.

    Args:
        gap: f(x_0) - min f.
        steps: K.
        gamma: learning rate * temperature.
        beta: averaging of the momentum, in [0, 1).
        noise: root of the variance of the whole gradient.
        first_error: E||e_0||^2: beta^2 ||grad f(x_0)||^2 + (1 - beta)^2 noise^2 for a momentum that starts at zero.
    """
    return 2.0 * gap / (gamma * steps) + first_error / ((1.0 - beta) * steps) + (1.0 - beta) * noise**2
