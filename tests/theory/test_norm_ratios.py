"""The norm ratios, on matrices whose norms are known."""

from __future__ import annotations

import math

import pytest
import torch

from steepest.theory.norm_ratios import Measured, norm_ratios


def test_known_matrices() -> None:
    eye, ones = torch.eye(4), torch.ones(4, 4)
    # ||I||_1 = 4, ||I||_nuc = 4, ||I||_F = 2; ||1||_1 = 16, ||1||_nuc = ||1||_2 = ||1||_F = 4, ||1||_inf = 1
    found = norm_ratios([Measured(gradient=ones, step=3 * ones, momentum=ones - eye, later=ones + 2 * eye)])
    assert found.alpha == pytest.approx(4)
    assert found.rho_nuc == pytest.approx(4 / 2)
    assert found.rho_1 == pytest.approx(4 / 2)
    assert found.l_2 == pytest.approx(8 / 12)
    assert found.l_inf == pytest.approx(8 / 3)


def test_the_median_is_over_matrices_also_of_a_stack() -> None:
    eye, ones = torch.eye(4), torch.ones(4, 4)  # alpha 1 and 4
    column = torch.zeros(4, 4)
    column[0] = torch.tensor([1.0, 1.0, 0.0, 0.0])  # ||.||_1 = 2, ||.||_nuc = sqrt 2
    stack = torch.stack([eye, ones, column])
    assert norm_ratios([Measured(stack, stack)]).alpha == pytest.approx(math.sqrt(2))
    parts = [Measured(x, x) for x in (eye, ones, column)]
    assert norm_ratios(parts) == pytest.approx(norm_ratios([Measured(stack, stack)]), nan_ok=True)
    assert norm_ratios(parts).alpha == pytest.approx(math.sqrt(2))


def test_inequalities_and_invariance() -> None:
    generator = torch.Generator().manual_seed(0)
    g, m, w, later = (torch.randn(5, 12, 7, generator=generator) for _ in range(4))
    found = norm_ratios([Measured(g, w, m, later)])
    assert 1 <= found.rho_nuc <= math.sqrt(7)
    assert 1 <= found.rho_1 <= math.sqrt(84)
    assert 1 <= found.l_inf / found.l_2 <= 84
    scaled = norm_ratios([Measured(10 * g, w / 3, 10 * m, 10 * later)])
    assert scaled == pytest.approx((found.alpha, found.rho_nuc, found.rho_1, 30 * found.l_2, 30 * found.l_inf))


def test_what_is_missing_or_zero_is_left_out() -> None:
    g = torch.ones(3, 3)
    found = norm_ratios([Measured(g, g), Measured(g, torch.zeros(3, 3), g, g)])
    assert found.alpha == pytest.approx(3)
    assert math.isnan(found.rho_nuc)  # G = M
    assert math.isnan(found.l_2)  # nothing moved
    with pytest.raises(ValueError, match="matrices is empty"):
        norm_ratios([])
