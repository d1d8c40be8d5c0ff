"""Scale factors from dispersion statistics: the two descriptions of SAC, as pure functions of plain numbers.

The paper describes the method twice, by equations (5 to 9) and by its Algorithm 1, and the two differ in formula and
in size. Both are here. They share what to do where the formulas have no answer: a layer of fewer than 16 elements, or
without dispersion, has the factor 1, and a block without a gradient (or with one that is all zero, as of LoRA's A at
the first step) is not in the result at all, so that it may keep what it had.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass

import numpy as np
import torch

from steepest.rules.base import check_choice
from steepest.scaling.checks import check_bounds, check_number
from steepest.scaling.places import Key
from steepest.scaling.statistics import BLOCK_SCALES, CONSISTENT, STATISTICS, Numbers, PoolNumbers

GRANULARITIES: dict[str, frozenset[str]] = {
    "P+B": frozenset({"block"}),
    "P+L": frozenset({"layer"}),
    "P+L+B": frozenset({"layer", "block"}),
    "G+L+B": frozenset({"layer", "block"}),
    "P+G+L+B": frozenset({"group", "layer", "block"}),
}
"""The factors of each row of the paper's Table 7. P and a G without P are of the base optimizer (AdamW, Adam-mini)."""

FACTORS = ("layer", "block", "group")

_TINY = torch.finfo(torch.float32).tiny


@dataclass(frozen=True)
class Factors:
    """What a statistics step gives.

    Attributes:
        layers: the factor of each layer that was measured; in equations mode the moving average.
        blocks: the factor of each block that was measured.
        scales: the product within the bounds, for the same blocks: it multiplies their learning rate.
        memory: equations mode: the moving average of each layer that ever had one, for the next call.
    """

    layers: dict[int, float]
    blocks: dict[Key, float]
    scales: dict[Key, float]
    memory: dict[int, float]


def equations(
    numbers: Numbers,
    memory: Mapping[int, float] | None = None,
    *,
    gamma: float = 0.5,
    beta: float = 0.5,
    rho: float = 0.1,
    eps: float = 1e-12,
    bounds: tuple[float, float] | None = (0.1, 10.0),
    factors: Collection[str] = ("layer", "block"),
    least: int = 16,
) -> Factors:
    """Equations 4 to 9: a layer factor (D_model / D_layer)^gamma, and a budget that the blocks of a layer share.

    c = ((D_model + eps) / (D_layer + eps))^gamma; c~ = (1 - rho) c~ + rho c, from the first c that is seen on;
    s = B softmax(beta log(RMS + eps)) over the B blocks of the layer that have a gradient, with mean 1; and the scale
    is c~ s. The paper gives no value for gamma, beta, rho and eps: the defaults are recommendations, and moderate.

    Args:
        numbers: of one step.
        memory: what the last call returned as ``memory``.
        gamma: strength of the layer factor, in [0, 1]; 0 gives 1.
        beta: strength of the block factor, not negative; 0 gives 1.
        rho: weight of the new value in the moving average, in (0, 1]; 1 is no average.
        eps: see above, in units of the gradient.
        bounds: the smallest and largest scale; None for none. The equations have none.
        factors: "layer" and "block", or one of them; the other is 1.
        least: a layer of fewer elements has the factor 1, and so has one without dispersion; its average stays.

    Raises:
        ValueError: an argument is out of its range.
    """
    check_number("equations", "gamma", gamma, 0.0, 1.0)
    check_number("equations", "beta", beta, 0.0)
    check_number("equations", "rho", rho, 0.0, 1.0, open_low=True)
    check_number("equations", "eps", eps, 0.0)
    _check("equations", bounds, factors)
    remembered = dict(memory or {})
    measured = _measured(numbers)
    layers: dict[int, float] = {}
    blocks: dict[Key, float] = {}
    for layer, keys in measured.items():
        layers[layer] = 1.0
        if "layer" in factors and _ratio(numbers, layer, least) is not None:
            own = numbers.layers[layer].dispersion
            new = ((numbers.model.dispersion + eps) / (own + eps)) ** gamma
            old = remembered.get(layer, new)
            layers[layer] = remembered[layer] = old + rho * (new - old)
        weights = [beta * math.log(numbers.blocks[key].rms + eps) for key in keys]
        shares = [math.exp(w - max(weights)) for w in weights]
        for key, share in zip(keys, shares, strict=True):
            blocks[key] = len(keys) * share / sum(shares) if "block" in factors else 1.0
    return Factors(layers, blocks, _scales(layers, blocks, bounds), remembered)


def algorithm1(
    numbers: Numbers,
    *,
    bounds: tuple[float, float] | None = (0.1, 10.0),
    factors: Collection[str] = ("layer", "block"),
    gaussian: float = 1.0,
    least: int = 16,
) -> Factors:
    """Algorithm 1: (D_model / D_layer) mean log(1 + |x - mu| / MAD_block), within the bounds.

    As printed it makes all steps smaller: a model of Gaussian gradients gets 0.702 everywhere. ``gaussian`` takes
    that out.

    Args:
        numbers: of one step, measured with a ``block_scale``.
        bounds: the smallest and largest scale; None for none. The default is that of the released code; the paper
            names (0.5, 1.0) and (0.1, 10) for fine-tuning.
        factors: "layer" and "block", or one of them; the other is 1.
        gaussian: what block factors are divided by: 1 as printed, or ``gaussian_score``.
        least: a layer of fewer elements has the factor 1, and so has one without dispersion.

    Raises:
        ValueError: an argument is out of its range, or the numbers were measured without a ``block_scale``.
    """
    _check("algorithm1", bounds, factors)
    check_number("algorithm1", "gaussian", gaussian, 0.0, open_low=True)
    layers: dict[int, float] = {}
    blocks: dict[Key, float] = {}
    for layer, keys in _measured(numbers).items():
        ratio = _ratio(numbers, layer, least)
        layers[layer] = 1.0 if ratio is None or "layer" not in factors else ratio
        for key in keys:
            block = numbers.blocks[key]
            if math.isnan(block.spread):
                raise ValueError("algorithm1 needs numbers that were measured with a block_scale")
            blocks[key] = block.score / gaussian if block.spread >= _TINY and "block" in factors else 1.0
    return Factors(layers, blocks, _scales(layers, blocks, bounds), {})


def granularity(name: str) -> frozenset[str]:
    """The factors of a row of the paper's Table 7, by its name: "P+B", "P+L", "P+L+B", "G+L+B" or "P+G+L+B".

    Raises:
        ValueError: there is no such row.
    """
    check_choice("SAC", "granularity", name, tuple(GRANULARITIES))
    return GRANULARITIES[name]


@functools.cache
def gaussian_score(statistic: str = "mad", block_scale: str = "mad") -> float:
    """The block factor of Algorithm 1 for Gaussian gradients: E log(1 + |z| / k), with k the statistic of z.

    0.702 for the MAD, 0.535 for the standard deviation, 0.975 for the MAD of the distances.

    Raises:
        ValueError: the statistic of Gaussian numbers depends on their size ("variance") or number ("maximum").
    """
    z, weight = _normal_law()
    normal_mad = 0.6744897501960817
    unit = CONSISTENT * normal_mad
    huber = np.where(z <= unit, 0.5 * (z / unit) ** 2, z / unit - 0.5)
    known = {
        "mad": normal_mad,
        "huber": unit * math.sqrt(2.0 * float(huber @ weight)),
        "iqr": 2.0 * normal_mad,
        "mean_deviation": math.sqrt(2.0 / math.pi),
        "l1": math.sqrt(2.0 / math.pi),
        "std": 1.0,
        "rms": 1.0,
    }
    check_choice("gaussian_score", "block_scale", block_scale, BLOCK_SCALES)
    check_choice("gaussian_score", "statistic", statistic, STATISTICS)
    if block_scale == "mad_of_distances":
        scale = 0.3990915958297283  # median ||z| - 0.6745|
    elif statistic in known:
        scale = known[statistic]
    else:
        raise ValueError(
            f"SAC: normalize_block needs a statistic with a value for all Gaussian numbers, not {statistic!r}; choose "
            f"from {', '.join(map(repr, known))}"
        )
    return float(np.log1p(z / scale) @ weight)


def _normal_law() -> tuple[np.ndarray, np.ndarray]:
    """|z| of a standard normal z as points with weights that add up to 1: Gauss-Legendre on [0, 12]."""
    points, weights = np.polynomial.legendre.leggauss(200)
    z = 6.0 * (points + 1.0)
    weight = weights * np.exp(-0.5 * z * z)
    return z, weight / weight.sum()


def _measured(numbers: Numbers) -> dict[int, list[Key]]:
    """The blocks of each layer that have a gradient that is not all zero."""
    found: dict[int, list[Key]] = {}
    for key, block in numbers.blocks.items():
        if block.count > 0 and block.rms >= _TINY:
            found.setdefault(key[0], []).append(key)
    return found


def _ratio(numbers: Numbers, layer: int, least: int) -> float | None:
    """D_model / D_layer; None where it means nothing."""

    def usable(pool: PoolNumbers) -> bool:
        return pool.count >= least and pool.dispersion >= _TINY

    own = numbers.layers[layer]
    return numbers.model.dispersion / own.dispersion if usable(own) and usable(numbers.model) else None


def _scales(
    layers: Mapping[int, float], blocks: Mapping[Key, float], bounds: tuple[float, float] | None
) -> dict[Key, float]:
    low, high = bounds or (0.0, math.inf)
    return {key: min(max(layers[key[0]] * block, low), high) for key, block in blocks.items()}


def _check(owner: str, bounds: tuple[float, float] | None, factors: Collection[str]) -> None:
    check_bounds(owner, "bounds", bounds, optional=True)
    for name in factors:
        check_choice(owner, "factors", name, FACTORS)
