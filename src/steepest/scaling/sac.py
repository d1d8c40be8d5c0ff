"""SAC, Scaling with Architectural Constraints: the step of every block scaled by how its gradients are dispersed."""

from __future__ import annotations

import math
import warnings
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from steepest import sharding
from steepest.engine.fitting import listed
from steepest.rules.base import check_choice
from steepest.scaling import factors as formulas
from steepest.scaling.applying import Factor
from steepest.scaling.checks import known_options
from steepest.scaling.engines import Engine
from steepest.scaling.factors import Factors
from steepest.scaling.grouping import broadcast, group_factors, group_rms, groups_of
from steepest.scaling.partition import Partition
from steepest.scaling.places import BlockMapping, Key
from steepest.scaling.placing import Recipe, placed
from steepest.scaling.settings import OF_THE_MODE, check_settings, constant_scales, settings, used_factors
from steepest.scaling.statistics import Measure, Numbers
from steepest.scaling.wrapper import Apply, WeightDecay, Wrapper, check_base


@dataclass(frozen=True)
class Statistics:
    """What the last statistics step saw and made of it, for figures.

    Attributes:
        step: the step of the optimizer, from 0, at which the numbers came into use.
        numbers: dispersions and sizes of the gradients.
        factors: c of each layer, s of each block, and their product.
    """

    step: int
    numbers: Numbers
    factors: Factors


@dataclass(frozen=True)
class _Memory:
    """What SAC remembers; replaced as a whole when a step is complete."""

    step: int = 0
    scales: Mapping[Key, float] = field(default_factory=dict)
    layers: Mapping[int, float] = field(default_factory=dict)
    shapes: Mapping[Tensor, Tensor] = field(default_factory=dict)  # the group factors of each tensor
    coming: Mapping[Tensor, Tensor] = field(default_factory=dict)  # those that were measured with what is not ready yet
    last: Statistics | None = None


class SAC(Wrapper):
    """Scale the step of each block of a model by a factor that is made from the dispersion of gradients.

    A wrapper of any torch optimizer: ``SAC(torch.optim.AdamW(model.parameters(), lr=1e-3), model)``. At every
    ``interval``-th step, before that of the base, the dispersion D of the gradients of each layer l and of the model g,
    and the size of the gradients of each block b are measured (paper: anonymous ICLR 2026 submission, OpenReview
    EB92tITeNq). The paper describes the factors twice, by Equations 4-9 and by Algorithm 1, and they differ.

    "equations" (Eqs 5-9; the factors of a model whose blocks have equal gradients are 1)::

        c_l = ((D_g + eps) / (D_l + eps))^gamma                 c~_l = (1 - rho) c~_l + rho c_l
        s_b = |B_l| softmax_b(beta log(RMS_b + eps))            S_b = clamp(c~_l s_b, bounds)

    "algorithm1" (where they are 0.7 for Gaussian gradients, so that it also lowers the rate of the model)::

        S_b = clamp(D_g / D_l  mean log(1 + |G - mean G| / MAD_b), bounds)

    Parameters outside of the partition (norms, biases, other vectors, the router) have the factor 1. The moments of
    the base never see a factor.

    Presets: "paper-c4" is "algorithm1" every 500 steps (the interval is that of the authors' released code; the paper
    trained with lr = 1e-2 where AdamW had 1e-3); "paper-sft" the same with bounds (0.5, 1.0), the only ones for AdamW
    in the paper (Table A3); "equations-raw" is Eqs 4-9 alone: gamma, beta, rho = 1 and no bounds. "constant" is the
    control arm: constant factors.

    Args:
        base: the optimizer to wrap.
        model: the model whose parameters it has, possibly wrapped, sharded or compiled; or its (name, parameter) pairs,
            with ``partition``.
        mode: "equations" (default), "algorithm1", a preset, or "constant".
        factors: which factors are used: some of "layer" (c), "block" (s) and "group" (a light factor for each head or
            row inside a tensor, of our own definition, see ``scaling.grouping``; it needs ``apply`` of the update and
            one copy of the parameters during the step).
        granularity: the same by its name in Table 7 of the paper: "P+B", "P+L", "P+L+B" (default), "G+L+B" (the same
            factors; G is a base such as Adam-mini) or "P+G+L+B".
        statistic: the dispersion D: "mad" (default, Eq 4), "huber", "iqr", "mean_deviation", "l1", "std", "rms",
            "variance" or "maximum" (Table 8).
        centre: "median" (default) or "mean", of the MAD.
        aggregate: "pooled" (default): D of a layer is over all its elements; "block_median", "block_mean".
        gamma: exponent of the layer factor, in [0, 1]; default 0.5. The paper gives no value of gamma, beta and rho;
            the defaults are ours. gamma = beta = 0 is the base optimizer bit for bit.
        beta: how much the larger gradients of a layer raise the rate of their block, >= 0; default 0.5.
        rho: weight of the new c in its moving average, in (0, 1]; default 0.1. It begins with the first c.
        interval: steps from one statistics step to the next; default 10, or as the preset says.
        bounds: smallest and largest factor; None for no bounds. Default (0.1, 10), that of the released code. For
            "constant" the lower one is the default factor.
        eps: guards the ratio and the logarithm; default 1e-12, on float32 statistics.
        block_scale: what Algorithm 1 divides by: "mad", as printed (default), or "mad_of_distances", as released.
        normalize_block: divide the block factor of Algorithm 1 by its value for Gaussian gradients.
        estimator: "sample" (default), "histogram" or "exact"; see ``scaling.statistics``.
        samples: elements of each block that are read under "sample".
        seed: of the places that are read.
        engine: where the statistics are made: "device" (default), "cpu" (beside the training) or "hybrid".
        wait: let "cpu" and "hybrid" give the numbers in the same step; else they are used from the next one on.
        partition: a ``Partition``, or the mapping of ``scaling.partition``, for models whose parts are not recognised.
        embedding: "nonzero_rows" (default): the statistics of embeddings are of the rows that have a gradient; "raw":
            of all, for which a sparse gradient is made dense; "exclude": embeddings have the factor 1.
        head: "scale" (default) the output head, or "exclude" it.
        router: "exclude" (default) the routers of mixtures of experts, or "scale" them.
        scope: whose gradients make D_g: those of "hidden" layers (default), or "all" of the partition, as printed.
        group_by: what a group is: "heads" (default; rows where there are none), "rows" or "columns".
        group_beta: exponent of the group factor; default 0.25.
        group_bounds: its bounds; default (0.5, 2).
        scales: for "constant": {(layer, block): factor}; blocks that are not there have 1. None is the pattern of the
            released code, in which hidden matrices and the head stay at the lower bound: ``bounds[0]`` for these, 1
            elsewhere.
        apply, weight_decay, scale_weight_decay: see ``Wrapper``.

    A block without gradients keeps its last factor, however long. Frozen parameters take part from the first statistics
    step after they are unfrozen.

    When an element that the statistics read is not finite, all factors stay what they are; this warns once.
    "histogram" and "exact" read every element. "sample" reads a sample, and what is not finite outside of it goes
    unnoticed: the factors are made from the sample as ever, so they stay finite and within the bounds, and the base
    gets the gradient as it is. A look at all elements is left out for its price, 0.30 of a step of AdamW at each
    statistics step (124M parameters, 2 CPU cores) beside 0.19 for the statistics; where it is wanted,
    ``clip_grad_norm_(..., error_if_nonfinite=True)`` before the step is one.

    Raises:
        TypeError: the base is no optimizer or needs a closure, an option that SAC or the mode does not have,
            or a model that is none.
        ValueError: an option is unknown or out of range, or parameters of the optimizer are not of the model.
    """

    key: ClassVar[str] = "sac"

    @known_options
    def __init__(
        self,
        base: torch.optim.Optimizer,
        model: nn.Module | Iterable[tuple[str, Tensor]],
        *,
        mode: str = "equations",
        factors: Collection[str] | None = None,
        granularity: str | None = None,
        statistic: str = "mad",
        centre: str = "median",
        aggregate: str = "pooled",
        gamma: float = OF_THE_MODE,
        beta: float = OF_THE_MODE,
        rho: float = OF_THE_MODE,
        interval: int = OF_THE_MODE,
        bounds: tuple[float, float] | None = OF_THE_MODE,
        eps: float = OF_THE_MODE,
        block_scale: str = OF_THE_MODE,
        normalize_block: bool = OF_THE_MODE,
        estimator: str = "sample",
        samples: int = 1 << 15,
        seed: int = 0,
        engine: str = "device",
        wait: bool = False,
        partition: Partition | BlockMapping | None = None,
        embedding: Literal["nonzero_rows", "raw", "exclude"] = "nonzero_rows",
        head: Literal["scale", "exclude"] = "scale",
        router: Literal["scale", "exclude"] = "exclude",
        scope: Literal["hidden", "all"] = "hidden",
        group_by: Literal["heads", "rows", "columns"] = "heads",
        group_beta: float = 0.25,
        group_bounds: tuple[float, float] = (0.5, 2.0),
        scales: Mapping[Key, float] | None = OF_THE_MODE,
        apply: Apply = "auto",
        weight_decay: WeightDecay = "auto",
        scale_weight_decay: bool = False,
    ) -> None:
        check_base("SAC", base, self.key)
        own: dict[str, Any] = {
            "gamma": gamma, "beta": beta, "rho": rho, "interval": interval, "bounds": bounds, "eps": eps,
            "block_scale": block_scale, "normalize_block": normalize_block, "scales": scales,
        }  # fmt: skip
        self.mode = mode
        self.formula, self.options = settings(mode, own)
        self.used = used_factors(factors, granularity)
        self.grouping = (group_by, group_beta, group_bounds)
        check_settings(self.options, self.grouping)
        check_choice("SAC", "embedding", embedding, ("nonzero_rows", "raw", "exclude"))
        check_choice("SAC", "scope", scope, ("hidden", "all"))
        policies = {"embedding": "exclude" if embedding == "exclude" else "scale", "head": head, "router": router}
        self._recipe = Recipe.of("SAC", model, partition, policies)
        self._measure = Measure(
            statistic=statistic,
            centre=centre,
            aggregate=aggregate,
            block_scale=self.options.get("block_scale"),
            estimator=estimator,
            samples=samples,
            seed=seed,
            owner="SAC",
        )
        normal = self.options.get("normalize_block")
        self._gaussian = formulas.gaussian_score(statistic, self.options["block_scale"]) if normal else 1.0
        self._embedding, self._scope = embedding, scope
        self._engine_name, self._wait = engine, wait
        self._engine = Engine(engine, self._measure, wait=wait)
        self._memory = _Memory()
        self._warned = False
        self._place(base.param_groups)
        super().__init__(base, apply=apply, weight_decay=weight_decay, scale_weight_decay=scale_weight_decay)

    # What is scaled --------------------------------------------------------------------------------------------------

    @property
    def partition(self) -> Partition:
        """What is scaled together."""
        return self._placed.partition

    @property
    def scales(self) -> dict[Key, float]:
        """The factor of each block that the optimizer has, {(layer, block): factor}; 1 before the first statistics."""
        return {key: self._memory.scales.get(key, 1.0) for key in self._blocks}

    def statistics(self) -> Statistics | None:
        """The last statistics and what they were made into; None before the first, and after a checkpoint is loaded."""
        return self._memory.last

    def _place(self, groups: Iterable[Mapping[str, Any]]) -> None:
        """Find the block of every parameter of these groups.

        Raises:
            ValueError: there is one that the model does not have, or none to scale. Nothing was changed.
        """
        where = placed("SAC", self._recipe, groups)
        found, blocks = where.partition, where.blocks
        constant = self.formula == "constant"
        scales = constant_scales(self.options, found) if constant else self._memory.scales
        kinds = found.kinds()
        hidden = frozenset(layer for layer, _ in blocks if kinds[layer] == "hidden")
        tables = frozenset(key for key in blocks if kinds[key[0]] == "tokenizer")
        measure = replace(
            self._measure,
            scope=hidden if self._scope == "hidden" and hidden else None,
            nonzero_rows=tables if self._embedding == "nonzero_rows" else frozenset(),
        )
        cuts = {
            m.parameter: groups_of(m, self.grouping[0])
            for members in blocks.values()
            for m in members
            if "group" in self.used and not constant
        }
        if self._engine.measure != measure:
            self._engine = Engine(self._engine_name, measure, wait=self._wait)
        self._placed, self._blocks, self._cuts = where, blocks, cuts
        self._memory = replace(self._memory, scales=scales)
        self._plan: tuple[Any, Any, dict[Tensor, Factor]] = (None, None, {})

    def _notice_unfrozen(self) -> None:
        if self._placed.thawed():
            self._place(self.base.param_groups)

    def regrouped(self, groups: Sequence[Mapping[str, Any]]) -> None:
        """Place the parameters of these groups.

        Raises:
            ValueError: one is not of the model.
        """
        self._place(groups)

    # Step ------------------------------------------------------------------------------------------------------------

    def factors(self) -> Mapping[Tensor, Factor]:
        """The factors of this step; at a statistics step from gradients that are measured now."""
        self._next, step = self._memory, self._memory.step
        if self.formula != "constant":
            self._take(self._engine.ready(step))  # what was measured before
            if step % self.options["interval"] == 0:
                self._measure_now()
                self._take(self._engine.ready(step))  # by engines that give it at once
        scales, shapes = self._next.scales, self._next.shapes
        if self._plan[0] is not scales or self._plan[1] is not shapes:
            self._plan = (scales, shapes, self._factors(scales, shapes))
        return self._plan[2]

    def stepped(self) -> None:
        """The step is complete: remember what was made for it."""
        self._memory = replace(self._next, step=self._next.step + 1)

    def _measure_now(self) -> None:
        self._notice_unfrozen()
        gradients: dict[Key, list[Tensor]] = {}
        for key, members in self._blocks.items():
            stored = key in self._engine.measure.nonzero_rows  # what a sparse gradient has not are rows of zeros
            found = [_dense(m.parameter.grad, stored) for m in members if m.parameter.grad is not None]
            if found:
                gradients[key] = found
        self._engine.submit(self._memory.step, gradients)
        if self._cuts:
            self._next = replace(self._next, coming=self._shapes())

    def _shapes(self) -> dict[Tensor, Tensor]:
        """The group factors of all tensors that have a gradient; the last ones of the others."""
        shapes = dict(self._next.shapes)
        _, beta, bounds = self.grouping
        for members in self._blocks.values():
            params = [m.parameter for m in members if m.parameter.grad is not None]
            if not params:
                continue
            cuts = [self._cuts[p] for p in params]
            rms = group_rms([p.grad for p in params if p.grad is not None], cuts)
            sizes = [p.numel() // max(math.prod(cut.counts(p.shape)), 1) for p, cut in zip(params, cuts, strict=True)]
            shapes.update(zip(params, group_factors(rms, sizes, beta=beta, bounds=bounds), strict=True))
        return shapes

    def _take(self, numbers: Numbers | None) -> None:
        """Make factors of what was measured, if it is ready and finite."""
        if numbers is None:
            return
        shapes, self._next = self._next.coming, replace(self._next, coming={})
        if numbers.non_finite:
            self._warn_non_finite()
            return
        used = self.used - {"group"}
        options = self.options
        if self.formula == "equations":
            names = ("gamma", "beta", "rho", "eps", "bounds")
            made = formulas.equations(
                numbers, self._next.layers, **{name: options[name] for name in names}, factors=used
            )
        else:
            made = formulas.algorithm1(numbers, bounds=options["bounds"], factors=used, gaussian=self._gaussian)
        self._next = replace(
            self._next,
            scales={**self._next.scales, **made.scales},
            layers=dict(made.memory),
            shapes=shapes or self._next.shapes,
            last=Statistics(self._memory.step, numbers, made),
        )

    def _factors(self, scales: Mapping[Key, float], shapes: Mapping[Tensor, Tensor]) -> dict[Tensor, Factor]:
        found: dict[Tensor, Factor] = {}
        for key, members in self._blocks.items():
            scale = scales.get(key, 1.0)
            for param in (m.parameter for m in members):
                shape = shapes.get(param)
                found[param] = scale if shape is None else (scale, broadcast(shape, self._cuts[param], param))
        return found

    def _warn_non_finite(self) -> None:
        if self._warned:
            return
        self._warned = True
        names = [
            member.name
            for members in self._blocks.values()
            for member in members
            if member.parameter.grad is not None
            and not bool(sharding.local(_dense(member.parameter.grad, True)).isfinite().all())
        ]
        where = (
            f"the gradient of {listed(names)} is" if names else "a gradient on another process or of the last step is"
        )
        warnings.warn(
            f"SAC: {where} not finite, so all scale factors keep their last values; this is said once", stacklevel=7
        )

    # Checkpoint ------------------------------------------------------------------------------------------------------

    def own_state(self) -> dict[str, Any]:
        """Step, factors, moving averages, and for people mode and options; keyed by layer and block."""
        memory = self._memory
        state: dict[str, Any] = {
            "mode": self.mode,
            "options": {name: value for name, value in self.options.items() if name != "scales"},
            "partition": self._names(),
            "step": memory.step,
            "scales": {_text(key): scale for key, scale in memory.scales.items()},
            "layers": {str(layer): c for layer, c in memory.layers.items()},
            "engine": self._engine.state_dict(),
        }
        by_name = {m.parameter: m.name for members in self._blocks.values() for m in members}
        for name, shapes in (("groups", memory.shapes), ("groups coming", memory.coming)):
            if shapes:
                state[name] = {by_name[p]: shape.clone() for p, shape in shapes.items()}
        return state

    def plain_state(self) -> dict[str, Any]:
        """All but the group factors: a run that goes on from there has none until the next statistics."""
        return {name: value for name, value in self.own_state().items() if not name.startswith("groups")}

    def _names(self) -> dict[str, list[str]]:
        return {_text(key): [m.name for m in members] for key, members in self._blocks.items()}

    def check_own_state(self, saved: Mapping[str, Any]) -> None:
        """Refuse the state of another partition; what is new here begins at 1, and what is frozen here may come back.

        Raises:
            ValueError: a parameter of the checkpoint is in another block here, or in none.
        """
        self._notice_unfrozen()
        here = {name: text for text, names in self._names().items() for name in names}
        differ = []
        for text, names in saved["partition"].items():
            for name in names:
                if here.get(name) == text or name in self._placed.frozen:
                    continue
                why = self._placed.partition.outside.get(name)
                place = f"in {here[name]!r} here" if name in here else f"not scaled here ({why or 'no such parameter'})"
                differ.append(f"{name!r} is in {text!r} there, and {place}")
        if differ:
            more = f", and {len(differ) - 3} more" if len(differ) > 3 else ""
            raise ValueError(
                f"the checkpoint has another SAC partition: {'; '.join(differ[:3])}{more}. Build SAC with the same "
                "model and mapping, or take 'sac' out of the checkpoint to begin anew"
            )

    def load_own_state(self, saved: Mapping[str, Any] | None) -> None:
        """Take what was saved; without it factors begin at 1."""
        self._warned = False
        self._engine = Engine(self._engine_name, self._engine.measure, wait=self._wait)
        fresh = _Memory(scales=self._memory.scales if self.formula == "constant" else {})
        if saved is None:
            self._memory = fresh
            return
        members = {m.name: m.parameter for members in self._blocks.values() for m in members if self._cuts}

        def shapes(name: str) -> dict[Tensor, Tensor]:
            found = {members[n]: shape for n, shape in saved.get(name, {}).items() if n in members}
            return {p: shape.to(p.device) for p, shape in found.items()}

        self._memory = replace(
            fresh,
            step=saved["step"],
            scales=fresh.scales or {_key(text): scale for text, scale in saved["scales"].items()},
            layers={int(layer): c for layer, c in saved["layers"].items()},
            shapes=shapes("groups"),
            coming=shapes("groups coming"),
        )
        self._engine.load_state_dict(saved["engine"])

    def __getstate__(self) -> dict[str, Any]:
        # a copy of the optimizer is none of the model
        return {**super().__getstate__(), "_recipe": Recipe(None, self._placed.partition, {})}

    def _shown(self) -> str:
        options = ", ".join(f"{name}={value!r}" for name, value in self.options.items())
        return f"mode={self.mode!r}, factors={sorted(self.used)}, {options}, apply={self.apply!r}"


def _dense(gradient: Tensor, stored: bool) -> Tensor:
    """A sparse gradient as the rows that it has stored, or with all the others, which are zero."""
    if gradient.layout != torch.sparse_coo:
        return gradient
    return gradient.coalesce().values() if stored else gradient.to_dense()


def _text(key: Key) -> str:
    return f"{key[0]} {key[1]}"


def _key(text: str) -> Key:
    layer, _, block = text.partition(" ")
    return int(layer), block
