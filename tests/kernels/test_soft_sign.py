"""The soft sign: limits, accuracy, in place, names."""

from __future__ import annotations

import math

import pytest
import torch

from steepest import kernels
from steepest.engine.tensors import TensorList

MAPS = {
    "tanh": torch.tanh,
    "algebraic": lambda y: y / (1 + y * y).sqrt(),
    "clip": lambda y: y.clamp(-1, 1),
}
X = torch.cat([torch.randn(1001, generator=torch.Generator().manual_seed(k)) * 10.0**k for k in (-8, -3, 0, 5, 30)])


@pytest.mark.parametrize("temperature", [1e-3, 1.0, 7.5, 1e9])
@pytest.mark.parametrize("name", MAPS)
def test_values(name, temperature):
    """Within 2e-7 in float32 (the logistic form), to rounding in float64."""
    expected = MAPS[name]((X.double() * temperature).clamp(-1e100, 1e100))
    for x, atol in ((X, 2e-7), (X.double(), 1e-15)):
        y = kernels.soft_sign(x, temperature, name)
        assert y.dtype == x.dtype
        torch.testing.assert_close(y.double(), expected, rtol=1e-6 if atol > 1e-10 else 0.0, atol=atol)
        assert (y.abs() <= 1).all()


@pytest.mark.parametrize("name", MAPS)
def test_the_input_stays_unless_it_may_be_overwritten(name):
    kept = X.clone()
    y = kernels.soft_sign(X, 3.0, name)
    torch.testing.assert_close(X, kept, rtol=0, atol=0)
    torch.testing.assert_close(kernels.soft_sign(X.clone(), 3.0, name, overwrite=True), y, rtol=0, atol=0)
    parts = TensorList([X[:1000].clone(), X[1000:].clone()])
    together = kernels.soft_sign(parts, 3.0, name)
    torch.testing.assert_close(torch.cat(together.tensors), y, rtol=0, atol=2e-7)
    torch.testing.assert_close(torch.cat(parts.tensors), kept, rtol=0, atol=0)


def test_limits():
    x = torch.tensor([-2.0, -0.0, 0.0, 1e-30, 3.0])
    for name in MAPS:
        assert torch.equal(kernels.soft_sign(x, math.inf, name), x.sign())
        assert torch.equal(kernels.soft_sign(x, torch.tensor(2.0), name), kernels.soft_sign(x, 2.0, name))
        small = kernels.soft_sign(x.double(), 1e-9, name)
        torch.testing.assert_close(small, 1e-9 * x.double(), rtol=1e-6, atol=1e-16)


@pytest.mark.usefixtures("working_compiler")
@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")  # the compiler of torch itself
def test_compiled_tanh():
    """Relative error below 5e-7 for every size, odd, never above 1, and exactly the sign from 7.9 on."""
    compiled = torch.compile(kernels.soft_sign, dynamic=True)
    x = torch.cat([torch.logspace(-30, 0.9, 200_001), torch.linspace(6.0, 20.0, 200_001)])
    y = compiled(x, torch.tensor(1.0))
    torch.testing.assert_close(y.double(), torch.tanh(x.double()), rtol=5e-7, atol=0.0)
    assert torch.equal(compiled(-x, torch.tensor(1.0)), -y)
    assert (y <= 1).all()
    assert (y[x >= 7.9] == 1).all()
    odd = torch.tensor([0.0, math.inf, -math.inf, 1e30, math.nan])
    torch.testing.assert_close(compiled(odd, torch.tensor(1.0)), odd.clamp(-1, 1), rtol=0, atol=0, equal_nan=True)
    assert torch.equal(compiled(X, torch.tensor(1e30)), X.sign())
    torch.testing.assert_close(
        compiled(x.double(), torch.tensor(1.0).double()), torch.tanh(x.double()), rtol=0, atol=1e-15
    )


def test_margins_are_those_of_the_paper():
    assert kernels.RELAXATIONS["tanh"].inverse(1 - 1e-4) == pytest.approx(4.951718776, abs=5e-10)
    assert kernels.RELAXATIONS["algebraic"].inverse(1 - 1e-4) == pytest.approx(70.70537471, abs=5e-9)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: kernels.soft_sign(X, 0.0), "temperature must be positive"),
        (lambda: kernels.soft_sign(X, math.nan), "temperature must be positive"),
        (lambda: kernels.soft_sign(X, 1.0, "tahn"), "unknown relaxation 'tahn'; choose one of tanh"),
        (lambda: kernels.register(kernels.Relaxation("tanh", torch.tanh, math.atanh)), "'tanh' is one of the library"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()
