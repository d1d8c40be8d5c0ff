"""SGG, Scaling with Gradient Grouping: the step of each element scaled by the cluster that its momentum is in."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from steepest import sharding
from steepest.rules.base import check_choice, check_range, check_whole
from steepest.scaling import sampling
from steepest.scaling.applying import Factor
from steepest.scaling.checks import check_bounds, check_number, known_options
from steepest.scaling.clusters import cluster_bounds
from steepest.scaling.partition import Partition
from steepest.scaling.places import BlockMapping
from steepest.scaling.placing import Recipe, placed
from steepest.scaling.wrapper import Wrapper, check_base

MOMENTUM = ("exp_avg", "momentum", "momentum_buffer")
"""What optimizers call their first moment."""


@dataclass
class _Memory:
    """What SGG remembers.

    Attributes:
        row: for each weight, by name, its row in ``scales``.
        scales: float32 (weights, K), on the device of the first weight.
        step: number of the step.
        ids: by name, the cluster of each element; never changed in place.
        seen: those of the elements that the medians are made from, and the names of the weights they are of.
    """

    row: dict[str, int]
    scales: Tensor
    step: int = 0
    ids: dict[str, Tensor] = field(default_factory=dict)
    seen: tuple[list[str], list[Tensor]] | None = None


class SGG(Wrapper):
    """Scale the step of each element by the cluster of its momentum inside its weight (Li et al. 2025, 2506.01049).

    A wrapper of any torch optimizer: ``SGG(torch.optim.AdamW(model.parameters(), lr=1e-3), model)``. It is the baseline
    of SAC; SAC has one number for a block, SGG one byte for an element. After the base has formed the momentum m of a
    weight, and before its step is final::

        every `recluster` steps: clusters C of the elements by K-means on m
        D_c = median over c of |m - mean(m)|      D = median of all D_c of the model
        S_c = beta S_c + (1 - beta) clamp(D / (D_c + eps), bounds)              (from S = 1)
        step of an element x S of its cluster

    The authors' released code differs: it clusters |m| and takes ratios of means. Nothing of that is here.

    Args:
        base: the optimizer to wrap. Its momentum is what it keeps as one of ``MOMENTUM`` in a floating dtype, else the
            gradient.
        model: the model whose parameters it has; or its (name, parameter) pairs, with ``partition``.
        clusters: K, at most 255; default 3 (paper).
        recluster: steps between clusterings; default 500 (paper; 1 to 10 % of a run). The first is at the first step.
        interval: steps between updates of the scales; default 1, as the paper's list of steps reads.
        beta: of the moving average of the scales, in [0, 1); default 0.99 (paper; 0.9 in the comparison of SAC).
        bounds: of what enters the average; default (0.1, 10) (paper).
        eps: default 1e-8 (paper).
        values: cluster by "signed" momentum (default) or its "magnitude".
        pool: D is the median over "clusters" (default) or over all "elements" of |m - mean|; the paper leaves it open.
        samples: elements of each weight that the medians are made from; default 4096 (the average smooths what error
            they have: 3 % each); None for all of them.
        cluster_samples: elements of each weight that K-means sees; default 65536; None for all.
        storage: where the clusters are kept, a byte an element: "device" (default) or "cpu".
        seed: of the places that are read.
        partition: as for ``SAC``. Only what is in the partition is scaled: no norms, biases and other vectors.
        embedding, head, router: "scale" or "exclude"; as for ``SAC``.

    The factors are tensors, so they are applied to the update, at the price of one copy of the parameters during the
    step. Weight decay is part of the update and is scaled along, element by element, also where it is decoupled; to
    keep it as it is, set that of the base to 0 and shrink the weights beside it. Frozen parameters take part when they
    are unfrozen. Through ``torch.distributed.checkpoint`` only the base goes; clusters then begin anew.

    Raises:
        TypeError: the base is no optimizer or needs a closure, or an option or model that is none.
        ValueError: an option is out of range, or parameters of the optimizer are not of the model.
    """

    key: ClassVar[str] = "sgg"

    @known_options
    def __init__(
        self,
        base: torch.optim.Optimizer,
        model: nn.Module | Iterable[tuple[str, Tensor]],
        *,
        clusters: int = 3,
        recluster: int = 500,
        interval: int = 1,
        beta: float = 0.99,
        bounds: tuple[float, float] = (0.1, 10.0),
        eps: float = 1e-8,
        values: str = "signed",
        pool: str = "clusters",
        samples: int | None = 1 << 12,
        cluster_samples: int | None = 1 << 16,
        storage: str = "device",
        seed: int = 0,
        partition: Partition | BlockMapping | None = None,
        embedding: str = "scale",
        head: str = "scale",
        router: str = "exclude",
    ) -> None:
        check_base("SGG", base, self.key)
        check_whole("SGG", "clusters", clusters, 1)
        if clusters > 255:
            raise ValueError(f"SGG: clusters must be at most 255, one byte for each element, got {clusters}")
        for name, value in (("recluster", recluster), ("interval", interval)):
            check_whole("SGG", name, value, 1)
        for name, count in (("samples", samples), ("cluster_samples", cluster_samples)):
            if count is not None:
                check_whole("SGG", name, count, sampling.RUN)
        sampling.check_seed("SGG", seed)
        check_range("SGG", "beta", beta, 0.0, 1.0, open_high=True)
        check_number("SGG", "eps", eps, 0.0)
        check_bounds("SGG", "bounds", bounds)
        check_choice("SGG", "values", values, ("signed", "magnitude"))
        check_choice("SGG", "pool", pool, ("clusters", "elements"))
        check_choice("SGG", "storage", storage, ("device", "cpu"))
        self.options: dict[str, Any] = {
            "clusters": clusters, "recluster": recluster, "interval": interval, "beta": beta, "bounds": tuple(bounds),
            "eps": eps, "values": values, "pool": pool, "samples": samples, "cluster_samples": cluster_samples,
            "storage": storage, "seed": seed,
        }  # fmt: skip
        policies = {"embedding": embedding, "head": head, "router": router}
        self._recipe = Recipe.of("SGG", model, partition, policies)
        self._memory = _Memory({}, torch.ones(0, clusters))
        self._fresh = True
        self.regrouped(base.param_groups)
        super().__init__(base, apply="update")

    def regrouped(self, groups: Sequence[Mapping[str, Any]]) -> None:
        """Find what is scaled of these groups; new weights begin at 1.

        Raises:
            ValueError: a parameter is not of the model, or none is to be scaled.
        """
        found = placed("SGG", self._recipe, groups)
        members = {m.parameter: m.name for of_block in found.blocks.values() for m in of_block}
        old, names = self._memory, list(members.values())
        home = next((sharding.local(p).device for p in members), torch.device("cpu"))
        scales = torch.ones(len(names), self.options["clusters"], device=home)
        row = {name: i for i, name in enumerate(names)}
        kept = [name for name in names if name in old.row]
        scales[[row[name] for name in kept]] = old.scales[[old.row[name] for name in kept]].to(home)
        self._placed, self._members = found, members
        self._memory = replace(old, row=row, scales=scales)

    @property
    def scales(self) -> dict[str, tuple[float, ...]]:
        """The scale of each cluster by name of the weight, in ascending order of the momentum; 1 before any step."""
        rows = self._memory.scales.tolist()
        return {name: tuple(rows[i]) for name, i in self._memory.row.items()}

    # Step ------------------------------------------------------------------------------------------------------------

    def factors(self) -> Mapping[Tensor, Factor]:
        """Functions that give the factors when the base has formed the momentum of this step."""
        if self._placed.thawed():
            self.regrouped(self.base.param_groups)
        self._fresh = False
        params = [p for p in self._members if p.grad is not None and p.numel()]

        def factor_of(param: Tensor) -> Factor:
            def factor() -> Tensor:
                if not self._fresh:
                    self._renew(params)
                    self._fresh = True
                name = self._members[param]
                here = sharding.local(param)
                scales = self._memory.scales[self._memory.row[name]].to(here)
                ids = sharding.local(self._memory.ids[name]).to(here.device, non_blocking=True)
                # K is small: as many passes over a byte each are cheaper than a gather with indices of eight
                made = scales[0].expand(here.shape).clone()
                for c in range(1, len(scales)):
                    made.masked_fill_(ids == c, scales[c])
                return made

            return factor

        return {param: factor_of(param) for param in params}

    def stepped(self) -> None:
        """The step is complete."""
        self._memory.step += 1

    def _renew(self, params: Sequence[Tensor]) -> None:
        """Cluster and renew the scales, where it is time; a weight that is new is clustered at once."""
        step, options = self._memory.step, self.options
        momenta = {self._members[p]: self._momentum(p) for p in params}
        due = step % options["recluster"] == 0
        new = [name for name in momenta if due or name not in self._memory.ids]
        if new:
            self._cluster({name: momenta[name] for name in new})
        if step % options["interval"] == 0 and momenta:
            self._average(momenta)

    def _momentum(self, param: Tensor) -> Tensor:
        state = self.base.state.get(param, {})
        found = (state[name] for name in MOMENTUM if isinstance(state.get(name), Tensor))
        own = next((x for x in found if x.shape == param.shape and x.is_floating_point()), param.grad)
        assert own is not None
        return (own if own.layout == torch.strided else own.to_dense()).detach()

    def _cluster(self, momenta: Mapping[str, Tensor]) -> None:
        names, options = list(momenta), self.options
        self._memory.seen = None
        sample = self._sample(list(momenta.values()), options["cluster_samples"])
        for rows in sample:
            seen = rows.values.abs() if options["values"] == "magnitude" else rows.values
            bounds = cluster_bounds(seen, options["clusters"]).float()
            for owner, midpoints in zip(rows.owner.tolist(), bounds, strict=True):
                name = names[owner]
                momentum = momenta[name]
                ids = torch.zeros_like(momentum, dtype=torch.uint8)
                x = sharding.local(momentum).float()
                x = x.abs() if options["values"] == "magnitude" else x
                sharding.local(ids).copy_(torch.bucketize(x, midpoints.to(x.device)))
                self._memory.ids[name] = ids.cpu() if options["storage"] == "cpu" else ids

    def _average(self, momenta: Mapping[str, Tensor]) -> None:
        """S <- beta S + (1 - beta) clamp(D / (D_c + eps)); an empty cluster keeps its scale. No read-back."""
        options, memory = self.options, self._memory
        sample = self._sample(list(momenta.values()), options["samples"])
        home = sample[0].values.device
        row_of = torch.tensor([memory.row[name] for name in momenta]).to(home, non_blocking=True)
        found, pooled = [], []
        for rows, ids in zip(sample, self._seen(momenta), strict=True):
            x = rows.values
            there = x.isfinite()
            mean = torch.where(there, x, 0.0).double().sum(-1, keepdim=True) / there.sum(-1, keepdim=True)
            distance = torch.where(there, (x - mean).abs().float(), torch.inf)
            inside = [_lower_median(torch.where(ids == c, distance, torch.inf)) for c in range(options["clusters"])]
            found.append(torch.stack(inside, -1).double())
            pooled.append(distance.flatten())
        own = torch.cat(found)
        whole = own.flatten() if options["pool"] == "clusters" else torch.cat(pooled)
        ratio = _lower_median(whole.clone()[None])[0].double() / (own + options["eps"])
        which = row_of[torch.cat([rows.owner for rows in sample])].to(memory.scales.device)
        old = memory.scales[which]
        new = torch.lerp(ratio.clamp(*options["bounds"]).to(old), old, options["beta"])
        memory.scales = memory.scales.index_copy(0, which, torch.where(own.isfinite().to(old.device), new, old))

    def _seen(self, momenta: Mapping[str, Tensor]) -> list[Tensor]:
        """The clusters of the elements in the sample of these momenta, which stay until there are others."""
        memory, names = self._memory, list(momenta)
        if memory.seen is None or memory.seen[0] != names:
            ids = [memory.ids[name].to(sharding.local(x).device) for name, x in momenta.items()]
            memory.seen = names, [of.values.to(torch.uint8) for of in self._sample(ids, self.options["samples"])]
        return memory.seen[1]

    def _sample(self, tensors: Sequence[Tensor], samples: int | None) -> list[sampling.Rows]:
        size = max(x.numel() for x in tensors) if samples is None else samples
        return sampling.gather([[x] for x in tensors], max(size, sampling.RUN), self.options["seed"])

    # Checkpoint ------------------------------------------------------------------------------------------------------

    def own_state(self) -> dict[str, Any]:
        """Step, scales, and the cluster of each element; keyed by the names of the weights."""
        memory = self._memory
        return {
            "options": {**self.options, "bounds": list(self.options["bounds"])},
            "step": memory.step,
            "scales": {name: memory.scales[memory.row[name]].clone() for name in memory.ids},
            "ids": dict(memory.ids),
        }

    def check_own_state(self, saved: Mapping[str, Any]) -> None:
        """Refuse the state of another model or another number of clusters."""
        shapes = {name: tuple(p.shape) for p, name in self._members.items()}
        shapes |= {name: tuple(p.shape) for name, p in self._placed.frozen.items()}
        for name, ids in saved["ids"].items():
            if shapes.get(name) != tuple(ids.shape):
                raise ValueError(
                    f"the checkpoint of SGG has clusters of {name!r} in the shape {tuple(ids.shape)}, here it is "
                    f"{shapes.get(name)}; build SGG with the same model, or take 'sgg' out of the checkpoint"
                )
        if saved["options"]["clusters"] != self.options["clusters"]:
            raise ValueError(
                f"the checkpoint of SGG has {saved['options']['clusters']} clusters, here there are "
                f"{self.options['clusters']}; give clusters={saved['options']['clusters']}"
            )

    def load_own_state(self, saved: Mapping[str, Any] | None) -> None:
        """Take what was saved; without it the scales begin at 1."""
        row, scales = self._memory.row, torch.ones_like(self._memory.scales)
        self._memory = _Memory(row, scales)
        if saved is None:
            return
        by_name = {name: p for p, name in self._members.items()}
        on_host = self.options["storage"] == "cpu"
        for name in saved["ids"].keys() & row.keys():  # the rest is frozen here
            ids = saved["ids"][name]
            self._memory.ids[name] = ids.cpu() if on_host else ids.to(by_name[name].device, copy=True)
            scales[row[name]] = saved["scales"][name].to(scales.device)
        self._memory.step = saved["step"]

    def __getstate__(self) -> dict[str, Any]:
        # a copy of the optimizer is none of the model
        return {**super().__getstate__(), "_recipe": Recipe(None, self._placed.partition, {})}

    def _shown(self) -> str:
        return ", ".join(f"{name}={value!r}" for name, value in self.options.items())


def _lower_median(x: Tensor) -> Tensor:
    """Of each row without its infinite values; infinite if there are no others. It may sort them in place."""
    ordered = sampling.ascending(x)
    count = ordered.isfinite().sum(-1, keepdim=True)
    return ordered.gather(-1, ((count - 1) // 2).clamp(min=0)).squeeze(-1)
