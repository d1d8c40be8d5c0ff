"""Odd quintics fitted to an interval of singular values: the fewest Newton-Schulz steps for a given error."""

from __future__ import annotations

import functools
import math

import numpy as np

from steepest.kernels.polar import Step

# Steps are added until no singular value is further from 1.
_ERROR = 0.01
# Intervals start here or above, as for the table "polar_express": smaller singular values are not worth the steps.
_LOWEST = 1e-3
# Intervals per factor of two, so that a slowly changing temperature does not ask for new quintics at each step.
_GRID = 4


def fitted(lowest: float, steps: int) -> list[Step]:
    """The composition of best quintics that takes singular values in [lowest, 1] to within 1 % of 1.

    Each step is the best one for the interval that those before it leave, which is also the best composition (Polar
    Express, Amsel et al. 2025, arXiv 2505.16932).

    Args:
        lowest: lower end of the interval, in [0, 1]; taken as 1e-3 if it is less.
        steps: largest number of steps. If it is too small the error is the least possible one.

    Returns:
        The (a, b, c) of each step.
    """
    return list(_composed(max(1, math.ceil(-_GRID * math.log2(max(lowest, _LOWEST)))), steps))


@functools.cache
def _composed(grid: int, steps: int) -> tuple[Step, ...]:
    table: list[Step] = []
    lower, upper, error = 2.0 ** (-grid / _GRID), 1.0, 1.0
    while len(table) < steps and error > _ERROR:
        step, error = best_quintic(lower, upper)
        table.append(step)
        lower, upper = 1.0 - error, 1.0 + error
    return tuple(table)


def best_quintic(lower: float, upper: float) -> tuple[Step, float]:
    """The p(s) = a s + b s^3 + c s^5 with the smallest max |1 - p(s)| on [lower, upper], and that error (Remez)."""
    # The error is attained with alternating signs at both ends and at the turning points a + 3 b s^2 + 5 c s^4 = 0.
    s = lower + (upper - lower) * np.array([0.0, 0.25, 0.75, 1.0])
    for _ in range(20):
        system = np.stack([s, s**3, s**5, np.array([1.0, -1.0, 1.0, -1.0])], axis=1)
        a, b, c, error = np.linalg.solve(system, np.ones(4))
        root = math.sqrt(9.0 * b * b - 20.0 * a * c)
        s[1:3] = np.sqrt(np.array([-3.0 * b - root, -3.0 * b + root]) / (10.0 * c))
    return (float(a), float(b), float(c)), float(error)
