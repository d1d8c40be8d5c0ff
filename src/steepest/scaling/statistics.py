"""How widely the gradients of blocks, of layers and of the model are dispersed: nine statistics, as plain numbers.

The statistics are written in quantiles and means of pools of blocks; ``summaries`` has what gives these. Nothing is
read back from the device until everything is in one tensor.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass, field
from typing import Any

import torch
from torch import Tensor

from steepest.rules.base import check_choice, check_whole
from steepest.scaling import sampling
from steepest.scaling.places import Key
from steepest.scaling.summaries import ESTIMATORS, Pools, Summary, merge, summarize, summarize_blocks

__all__ = [
    "AGGREGATES",
    "BLOCK_SCALES",
    "CENTRES",
    "ESTIMATORS",
    "STATISTICS",
    "BlockNumbers",
    "Key",
    "Measure",
    "Numbers",
    "Packed",
    "PoolNumbers",
    "dispersion",
    "dispersions",
    "measure",
    "measured",
    "merge",
    "summarize",
    "summarize_blocks",
]

STATISTICS = ("mad", "huber", "iqr", "mean_deviation", "l1", "std", "rms", "variance", "maximum")
CENTRES = ("median", "mean")
AGGREGATES = ("pooled", "block_median", "block_mean")
BLOCK_SCALES = ("mad", "mad_of_distances")

CONSISTENT = 1.4826
"""What makes the MAD of Gaussian numbers their standard deviation; only the Huber scale uses it."""


@dataclass(frozen=True, kw_only=True)
class Measure:
    """What is measured, and how. The defaults are the recommended ones; the paper gives none but the MAD.

    Args:
        statistic: the dispersion D of a pool, one of the nine of the paper's ablation (Table 8); x are its elements,
            m their median and mu their mean. A quantile is the smallest element that as many do not exceed.
            "mad" median |x - m|; "huber" with u = (x - m) / (1.4826 MAD), 1.4826 MAD sqrt(2 mean rho(u)), rho(u) =
            u^2 / 2 up to |u| = 1 and |u| - 1/2 above; "iqr" the upper less the lower quartile; "mean_deviation"
            mean |x - mu|; "l1" mean |x|; "std" sqrt mean (x - mu)^2; "rms" sqrt mean x^2; "variance" the square
            of "std"; "maximum" max |x|.
        centre: "median", or "mean" to measure "mad" and "huber" from mu.
        aggregate: "pooled" takes the elements of a layer (of the model) together; "block_median" the median of the
            dispersions of the blocks, weighted by their size; "block_mean" their plain mean.
        block_scale: what Algorithm 1 divides by in each block: "mad" the dispersion of the block (as printed),
            "mad_of_distances" median |d - median d| with d = |x - mu| (as in the released code). None, the default,
            leaves out what only Algorithm 1 asks for.
        estimator: "sample", "histogram" or "exact", see above.
        samples: elements that "sample" reads of each block, at fixed places; a smaller block is read whole. The
            standard error of the MAD of Gaussian numbers is 1.17 / sqrt(samples), that of their RMS 0.71 /
            sqrt(samples): 0.65 % and 0.39 % for 32768, the default. Runs of 16 neighbours are read. On gradients of a
            small language model, heavier in the tails, the MAD of a block was 0.6 % off, that of a layer of two
            blocks 0.5 %, of the model 0.25 %, and the RMS of a block 0.55 %. The maximum is that of the sample.
        seed: another seed reads at other places.
        scope: layers whose blocks make the dispersion of the model; None is all.
        nonzero_rows: blocks (embeddings) of which only rows with a gradient count. "sample" looks at 4096 rows of a
            large one (at ``samples`` = 32768), two runs of each, and reads runs of those with a gradient; of a table
            where 5 % of the rows had one, of very different sizes, the MAD was 7 % off, at 30 % it was 3 %.
        owner: whose options these are, for messages.

    Raises:
        ValueError: an option is not one of its values.
    """

    statistic: str = "mad"
    centre: str = "median"
    aggregate: str = "pooled"
    block_scale: str | None = None
    estimator: str = "sample"
    samples: int = 1 << 15
    seed: int = 0
    scope: frozenset[int] | None = None
    nonzero_rows: frozenset[Key] = frozenset()
    owner: str = field(default="statistics", compare=False, repr=False)

    def __post_init__(self) -> None:
        owner = self.owner
        check_choice(owner, "statistic", self.statistic, STATISTICS)
        check_choice(owner, "centre", self.centre, CENTRES)
        check_choice(owner, "aggregate", self.aggregate, AGGREGATES)
        check_choice(owner, "estimator", self.estimator, ESTIMATORS)
        check_choice(owner, "block_scale", self.block_scale, (None, *BLOCK_SCALES))
        check_whole(owner, "samples", self.samples, sampling.RUN)
        sampling.check_seed(owner, self.seed)


@dataclass(frozen=True)
class BlockNumbers:
    """One block.

    Attributes:
        count: finite elements, without the rows that are left out.
        rms: their root mean square.
        dispersion: of the block alone; nan if nothing asked for it.
        spread: what Algorithm 1 divides by; nan if it was not asked for.
        score: mean log(1 + |x - mu| / spread) of Algorithm 1; nan if it was not asked for or spread is 0.
    """

    count: float
    rms: float
    dispersion: float = math.nan
    spread: float = math.nan
    score: float = math.nan


@dataclass(frozen=True)
class PoolNumbers:
    """A layer or the model: finite elements and dispersion."""

    count: float
    dispersion: float


@dataclass(frozen=True)
class Numbers:
    """The statistics of one step as plain numbers: all that the factors are made from.

    Attributes:
        blocks: every block that had a gradient.
        layers: every layer that had a gradient.
        model: the layers of ``Measure.scope`` together.
        non_finite: infinite and nan elements that were seen (with "sample", among those that were read). If it is not
            0, the scales should stay what they are.
    """

    blocks: dict[Key, BlockNumbers]
    layers: dict[int, PoolNumbers]
    model: PoolNumbers
    non_finite: float = 0.0

    def plain(self) -> dict[str, Any]:
        """The same in lists and numbers, for a checkpoint."""
        return {
            "blocks": [[*key, *astuple(block)] for key, block in self.blocks.items()],
            "layers": [[layer, *astuple(pool)] for layer, pool in self.layers.items()],
            "model": list(astuple(self.model)),
            "non_finite": self.non_finite,
        }

    @classmethod
    def of_plain(cls, plain: Mapping[str, Any]) -> Numbers:
        """From what ``plain`` returned."""
        return cls(
            {(layer, block): BlockNumbers(*values) for layer, block, *values in plain["blocks"]},
            {layer: PoolNumbers(*values) for layer, *values in plain["layers"]},
            PoolNumbers(*plain["model"]),
            plain["non_finite"],
        )


def dispersions(  # noqa: PLR0911
    summary: Summary, pools: Pools, statistic: str = "mad", centre: str = "median"
) -> Tensor:
    """The dispersion of each pool, float64 (pools,); see ``Measure`` for the statistics. 0 for an empty pool."""
    if statistic in ("mad", "huber"):
        middle = summary.quantile(0.5, pools) if centre == "median" else summary.mean(_identity, pools)
        mad = summary.quantile(0.5, pools, [middle])
        mad = mad if centre == "median" else _resolved(mad, middle)
        if statistic == "mad":
            return mad
        unit = CONSISTENT * mad
        return unit * (2.0 * summary.mean(_huber, pools, middle, unit.where(unit > 0, 1.0))).sqrt()
    if statistic == "iqr":
        return summary.quantile(0.75, pools) - summary.quantile(0.25, pools)
    if statistic == "maximum":
        zero = torch.zeros(pools.number, dtype=torch.float64, device=pools.member.device)
        return summary.quantile(1.0, pools, [zero])
    if statistic == "l1":
        return summary.mean(torch.abs, pools)
    if statistic == "rms":
        return summary.mean(torch.square, pools).sqrt()
    mean = summary.mean(_identity, pools)
    if statistic == "mean_deviation":
        return _resolved(summary.mean(lambda x, mu: (x - mu).abs(), pools, mean), mean)
    std = _resolved(summary.mean(lambda x, mu: (x - mu).square(), pools, mean).sqrt(), mean)
    return std if statistic == "std" else std.square()


def _resolved(spread: Tensor, centre: Tensor) -> Tensor:
    """0 for a spread that is nothing but the rounding of a centre that is not one of the elements."""
    return spread.where(spread > 2.0**-22 * centre.abs(), 0.0)


def _identity(x: Tensor) -> Tensor:
    return x


def _huber(x: Tensor, centre: Tensor, unit: Tensor) -> Tensor:
    u = ((x - centre) / unit).abs()
    return torch.where(u <= 1.0, 0.5 * u.square(), u - 0.5)


def dispersion(summary: Summary, statistic: str = "mad", centre: str = "median") -> float:
    """The dispersion of all blocks of a summary together; see ``Measure`` for the arguments.

    Raises:
        ValueError: an unknown statistic or centre.
    """
    Measure(statistic=statistic, centre=centre)
    blocks = len(summary.count)
    return float(dispersions(summary, Pools([[0] * blocks], 1, summary.count.device), statistic, centre))


class Packed:
    """The numbers of one step, in one float64 tensor on the device of the summary.

    Args:
        summary: of the blocks.
        keys: the blocks, in the order of the summary.
        what: what is measured.
    """

    def __init__(self, summary: Summary, keys: Sequence[Key], what: Measure) -> None:
        self.keys = list(keys)
        self.what = what
        self.layers = list(dict.fromkeys(layer for layer, _ in self.keys))
        with torch.no_grad():
            columns = self._columns(summary)
        self.sizes = {name: len(column) for name, column in columns.items()}
        self.tensor = torch.cat(list(columns.values()))

    def _columns(self, summary: Summary) -> dict[str, Tensor]:
        what, device, blocks = self.what, summary.count.device, len(self.keys)
        alone = Pools([range(blocks)], blocks, device)
        columns = {"non_finite": summary.non_finite[None], "count": summary.count}
        columns["rms"] = summary.mean(torch.square, alone).sqrt()
        if what.aggregate == "pooled":
            number = len(self.layers) + 1  # the last one is the model
            index = {layer: i for i, layer in enumerate(self.layers)}
            layer = [index[key[0]] for key in self.keys]
            model = [number - 1 if self._in_scope(key) else number for key in self.keys]
            pools = Pools([layer, model], number, device)
            columns["pool_count"] = pools.sums(summary.count)
            columns["pool"] = dispersions(summary, pools, what.statistic, what.centre)
        if what.aggregate != "pooled" or what.block_scale == "mad":
            columns["dispersion"] = dispersions(summary, alone, what.statistic, what.centre)
        if what.block_scale is not None:
            mean = summary.mean(_identity, alone)
            if what.block_scale == "mad":
                columns["spread"] = columns["dispersion"]
            else:
                middle = summary.quantile(0.5, alone, [mean])
                columns["spread"] = _resolved(summary.quantile(0.5, alone, [mean, middle]), middle)
            columns["score"] = summary.mean(_score, alone, mean, columns["spread"])
        return columns

    def _in_scope(self, key: Key) -> bool:
        return self.what.scope is None or key[0] in self.what.scope

    def numbers(self) -> Numbers:
        """Read them, by one transfer."""
        rest = iter(self.tensor.tolist())
        columns = {name: list(itertools.islice(rest, size)) for name, size in self.sizes.items()}
        own = ("count", "rms", "dispersion", "spread", "score")
        blocks = {
            key: BlockNumbers(**{name: columns[name][i] for name in own if name in columns})
            for i, key in enumerate(self.keys)
        }
        if self.what.aggregate == "pooled":
            *of_layers, model = map(PoolNumbers, columns["pool_count"], columns["pool"])
            layers = dict(zip(self.layers, of_layers, strict=True))
        else:
            weighted = self.what.aggregate == "block_median"
            of_layer = {layer: [b for key, b in blocks.items() if key[0] == layer] for layer in self.layers}
            layers = {layer: _aggregated(members, weighted) for layer, members in of_layer.items()}
            model = _aggregated([b for key, b in blocks.items() if self._in_scope(key)], weighted)
        return Numbers(blocks, layers, model, columns["non_finite"][0])


def _aggregated(blocks: Sequence[BlockNumbers], median: bool) -> PoolNumbers:
    """From the dispersions of the blocks that have elements: the lower median weighted by size, or the plain mean."""
    full = sorted((b for b in blocks if b.count > 0), key=lambda b: b.dispersion)
    count = sum(b.count for b in full)
    if not full:
        return PoolNumbers(0.0, 0.0)
    if not median:
        return PoolNumbers(count, math.fsum(b.dispersion for b in full) / len(full))
    ends = itertools.accumulate(b.count for b in full)
    return PoolNumbers(count, next(b.dispersion for b, end in zip(full, ends, strict=True) if end >= count / 2))


def _score(x: Tensor, mean: Tensor, spread: Tensor) -> Tensor:
    return ((x - mean).abs() / spread).log1p()


def measured(gradients: Mapping[Key, Sequence[Tensor]], what: Measure) -> Packed:
    """Measure gradients, on the device where they are and without waiting for it.

    Args:
        gradients: those of each block; a block without any is left out.
        what: what is measured. Sharded gradients make this a collective call.

    Raises:
        ValueError: a gradient is not of a floating dtype.
    """
    keys = [key for key, block in gradients.items() if len(block)]
    blocks = [gradients[key] for key in keys]
    summary = summarize_blocks(
        blocks, what.estimator, what.samples, what.seed, [key in what.nonzero_rows for key in keys]
    )
    return Packed(summary, keys, what)


def measure(gradients: Mapping[Key, Sequence[Tensor]], what: Measure) -> Numbers:
    """The numbers at once; see ``measured``."""
    return measured(gradients, what).numbers()
