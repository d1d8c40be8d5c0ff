"""The secant estimate of the local smoothness: exact on quadratics, without side effects, and on the unigram model."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from steepest import kernels
from steepest.theory import smoothness
from steepest.theory.smoothness import SmoothnessProbe

EIGENVALUES = torch.tensor([0.01, 0.3, 2.0, 7.0, 50.0], dtype=torch.float64)


class Quadratic:
    """x' H x / 2 over two tensors of different shapes, H with the eigenvalues above."""

    def __init__(self, dtype: torch.dtype = torch.float64) -> None:
        random = torch.from_numpy(np.random.default_rng(0).standard_normal((5, 5)))
        self.vectors = torch.linalg.qr(random)[0]
        self.hessian = (self.vectors * EIGENVALUES) @ self.vectors.T
        self.tensors = [
            torch.ones(2, 1, dtype=dtype, requires_grad=True),
            torch.ones(3, dtype=dtype, requires_grad=True),
        ]

    def backward(self) -> None:
        x = torch.cat([t.flatten() for t in self.tensors])
        (x @ self.hessian.to(x.dtype) @ x / 2).backward()

    def move(self, step: Tensor) -> None:
        with torch.no_grad():
            self.tensors[0] += step[:2].view(2, 1).to(self.tensors[0].dtype)
            self.tensors[1] += step[2:].to(self.tensors[1].dtype)

    def measure(self, step: Tensor, dtype: torch.dtype = torch.float64) -> smoothness.Smoothness:
        probe = SmoothnessProbe(self.tensors, dtype)
        self.backward()
        probe.before()
        self.move(step)
        return probe.after(self.backward)


@pytest.mark.parametrize("index", range(5))
def test_along_an_eigenvector_it_is_the_eigenvalue(index):
    problem = Quadratic()
    estimate = problem.measure(1e-2 * problem.vectors[:, index])
    assert estimate.euclidean == pytest.approx(float(EIGENVALUES[index]), rel=1e-9)


def test_on_a_quadratic_both_versions_are_exact_and_independent_of_length_and_sign():
    for seed in range(20):
        step = torch.from_numpy(np.random.default_rng(seed).standard_normal(5))
        change = Quadratic().hessian @ step
        euclidean, coordinate = float(change.norm() / step.norm()), float(change.abs().sum() / step.abs().max())
        assert float(EIGENVALUES[0]) < euclidean < float(EIGENVALUES[-1])
        for factor in (1.0, -1e-3, 1e3):
            estimate = Quadratic().measure(factor * step)
            assert estimate == pytest.approx((euclidean, coordinate), rel=1e-9)


@pytest.mark.parametrize("accumulate", [torch.float64, torch.float32])
@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    [(torch.float64, 1e-5), (torch.float32, 1e-5), (torch.bfloat16, 0.05), (torch.float16, 0.01)],
)
def test_dtypes(dtype, tolerance, accumulate):
    step = torch.tensor([0.5, -0.25, 1.0, 0.125, -2.0], dtype=torch.float64)  # exact in every dtype
    change = Quadratic().hessian @ step
    expected = (float(change.norm() / step.norm()), float(change.abs().sum() / 2.0))
    assert Quadratic(dtype).measure(step, accumulate) == pytest.approx(expected, rel=tolerance)


def test_pieces_layouts_and_mixed_dtypes_do_not_matter(monkeypatch):
    """A quadratic whose Hessian is diagonal, in one tensor or in three, in pieces or whole."""
    scale = torch.from_numpy(np.random.default_rng(0).uniform(0.1, 3.0, 60))
    step = torch.from_numpy(np.random.default_rng(1).standard_normal(60)).float().double()

    def estimate(make) -> smoothness.Smoothness:
        tensors = [t.detach().clone().requires_grad_() for t in make(torch.zeros(60, dtype=torch.float64))]
        probe = SmoothnessProbe(iter(tensors))

        def backward() -> None:
            for t in tensors:
                t.grad = None
            sum((s * t.double().square()).sum() / 2 for s, t in zip(make(scale), tensors, strict=True)).backward()

        backward()
        probe.before()
        with torch.no_grad():
            for t, s in zip(tensors, make(step), strict=True):
                t.add_(s)
        return probe.after(backward)

    whole = estimate(lambda x: [x])
    assert whole.euclidean == pytest.approx(float((scale * step).norm() / step.norm()), rel=1e-12)
    assert estimate(lambda x: [x[:20].float(), x[20:50].view(5, 6).T, x[50:]]) == pytest.approx(whole, rel=1e-6)
    monkeypatch.setattr(smoothness, "piece_elements", lambda device: 7)
    assert estimate(lambda x: [x[:20], x[20:50].view(5, 6).T, x[50:]]) == pytest.approx(whole, rel=1e-12)


def test_parameters_and_gradients_are_left_as_they_were():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1))
    model[0].bias.requires_grad_(False)  # frozen: no gradient before or after
    x = torch.randn(16, 4)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = model(x).square().mean()
        loss.backward()
        return loss

    closure()
    probe = SmoothnessProbe(model.parameters())
    probe.before()
    optimizer.step()
    parameters = [p.detach().clone() for p in model.parameters()]
    gradients = [p.grad for p in model.parameters()]
    values = [None if g is None else g.clone() for g in gradients]
    with torch.no_grad():  # as in a logging callback
        estimate = probe.after(closure)
    assert 0.0 < estimate.euclidean < math.inf
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), parameters, strict=True))
    for p, g, value in zip(model.parameters(), gradients, values, strict=True):
        assert p.grad is g
        assert value is None or torch.equal(g, value)


def test_gradients_come_back_when_the_closure_fails():
    problem = Quadratic()
    problem.backward()
    gradients = [t.grad for t in problem.tensors]
    probe = SmoothnessProbe(problem.tensors)
    probe.before()
    with pytest.raises(ZeroDivisionError):
        probe.after(lambda: 1 / 0)
    assert all(t.grad is g for t, g in zip(problem.tensors, gradients, strict=True))


def test_clipping_after_before_does_not_matter():
    step = torch.ones(5, dtype=torch.float64)
    expected, problem = Quadratic().measure(step), Quadratic()
    probe = SmoothnessProbe(problem.tensors)
    problem.backward()
    probe.before()
    nn.utils.clip_grad_norm_(problem.tensors, 1e-3)
    problem.move(step)
    assert probe.after(problem.backward) == expected


def test_a_tensor_that_gets_its_first_gradient_counts_from_zero():
    a, b = (torch.zeros(1, dtype=torch.float64, requires_grad=True) for _ in range(2))
    a.sum().backward()
    probe = SmoothnessProbe([a, b])
    probe.before()
    with torch.no_grad():
        a += 2.0
    estimate = probe.after(lambda: (a + 3.0 * b).sum().backward())
    assert estimate == pytest.approx((1.5, 1.5))


def test_no_step_gives_nan():
    assert all(math.isnan(x) for x in Quadratic().measure(torch.zeros(5)))


def test_misuse_is_named():
    with pytest.raises(ValueError, match="parameters is empty"):
        SmoothnessProbe([])
    problem = Quadratic()
    probe = SmoothnessProbe(problem.tensors)
    with pytest.raises(RuntimeError, match="call before\\(\\)"):
        probe.after(problem.backward)
    probe.before()
    with pytest.raises(RuntimeError, match="the closure left no gradient"):
        probe.after(lambda: None)
    with pytest.raises(RuntimeError, match="call before\\(\\)"):  # one measurement for each before()
        probe.after(problem.backward)


def test_sign_descent_on_the_unigram_model_has_the_published_plateau():
    """Softmax with targets 1/i (V = 1000), lr 0.01, beta 0.9: 5.1e-3 to 5.3e-3 in 50-step means from step 400 on."""
    target = 1.0 / torch.arange(1, 1001, dtype=torch.float64)
    target /= target.sum()
    theta, momentum = torch.zeros(1000, dtype=torch.float64, requires_grad=True), torch.zeros(1000, dtype=torch.float64)
    probe, estimates = SmoothnessProbe([theta]), []

    def backward() -> None:
        theta.grad = None
        (-(target * theta.log_softmax(0)).sum()).backward()

    for _ in range(600):
        backward()
        probe.before()
        assert theta.grad is not None
        momentum.lerp_(theta.grad, 0.1)
        with torch.no_grad():
            theta -= 0.01 * kernels.sign(momentum)
        estimates.append(probe.after(backward).euclidean)
    means = np.reshape(estimates[400:], (-1, 50)).mean(1)
    assert means.min() > 5.05e-3
    assert means.max() < 5.35e-3
