"""What soft rules measure over all their tensors: before a step, from what it will map, and kept in the state."""

from __future__ import annotations

import logging
import math
import warnings
from collections.abc import Hashable, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from steepest import sharding
from steepest.engine import elements, matrices
from steepest.engine.bucket import Bucket, Member
from steepest.engine.state import FIT
from steepest.kernels import Statistics, median_and_mad
from steepest.kernels.device import piece_elements

if TYPE_CHECKING:
    from steepest.rules.base import Fit, FitKind, Rule

_log = logging.getLogger("steepest")


def saved(members: Sequence[tuple[Rule, Member]]) -> list[tuple[Fit, ...] | None]:
    """The fits in the state of each member; None for one that has none yet, or whose rule makes none."""
    kept = [m.state[FIT] for rule, m in members if rule.fitted]
    rows = iter(torch.cat(kept).tolist() if kept else [])
    fits = [tuple((row[0], row[1]) for row in (next(rows) for _ in rule.fitted)) for rule, _ in members]
    return [fit if fit and not math.isnan(fit[0][0]) else None for fit in fits]


def with_fit(rule: Any, fit: tuple[Fit, ...] | None) -> Any:
    """The rule with its fits, if it has any."""
    return rule if fit is None else replace(rule, fit=fit)


def fit(buckets: Sequence[Bucket]) -> list[Bucket]:
    """Make the fits that this step needs and keep them; return the buckets with the fitted rules.

    Raises:
        FloatingPointError: a non-finite momentum, by name. Nothing was changed.
    """
    wanting = [b for b in buckets if b.rule.wants_fit()]
    if not wanting:
        return list(buckets)
    ready = [b for b in buckets if not b.rule.wants_fit()]
    known = {_pool(b): _rule(b).fit for b in ready if b.rule.fitted}
    pools: dict[Hashable, list[Bucket]] = {}
    for bucket in wanting:
        alone = _rule(bucket).pool == "tensor"
        for part in [replace(bucket, members=[m]) for m in bucket.members] if alone else [bucket]:
            pools.setdefault(_pool(part), []).append(part)
    made, first = [], []
    for key, pool in pools.items():  # all fits before the first is written
        before = _rule(pool[0]).fit
        if before is None:
            found = known.get(key) or _fit(pool)  # with fellows: it had no gradient when they were fitted
        else:  # a sample without spread says nothing new
            found = tuple(new if new[1] > 0.0 else old for new, old in zip(_fit(pool), before, strict=True))
        done = [replace(b, rule=with_fit(b.rule, found)) for b in pool]
        made += done
        first += done if before is None else []
    _warn(first)
    for bucket in made:
        rows = torch.tensor(_rule(bucket).fit, dtype=torch.float64)
        for member in bucket.members:
            member.state[FIT].copy_(rows)
    return ready + made


def _rule(bucket: Bucket) -> Any:
    """The rule, which is a ``rules.Softened``; this file reads its fields ``fit`` and ``pool``."""
    return bucket.rule


def _pool(bucket: Bucket) -> Hashable:
    """What is equal for buckets that share a fit."""
    own = {"rule": None, "group": bucket.group, "tensor": id(bucket.members[0].param)}[_rule(bucket).pool]
    return (_rule(bucket).company(), own)


def _fit(pool: Sequence[Bucket]) -> tuple[Fit, ...]:
    rule = _rule(pool[0])
    fits = []
    for kind in rule.fitted:
        found = _statistics(pool, kind)
        if found.non_finite:
            raise FloatingPointError(
                f"{rule.name}: non-finite {kind.replace('_', ' ')} of the momentum of {listed(_non_finite(pool))}; "
                "nothing was changed. Go back to a checkpoint from before"
            )
        if found.zeros_left_out:
            _log.info("%s: fit without the %d of %d %s that are zero", rule.name, found.zeros, found.count, kind)
        fits.append(rule.measure(kind, found))
    return tuple(fits)


def _warn(made: Sequence[Bucket]) -> None:
    """Say which parameters stay hard, and where the highest temperature is all there is: once for each method."""
    hard: dict[tuple[str, str], list[str]] = {}
    capped: dict[tuple[str, float, tuple[Fit, ...]], list[str]] = {}
    for bucket in made:
        rule = _rule(bucket)
        names = [m.name for m in bucket.members if m.param.numel()]
        for kind, (_, spread) in zip(rule.fitted, rule.fit, strict=True):
            if names and not spread > 0.0:
                hard.setdefault((rule.name, kind.replace("_", " ")), []).extend(names)
            elif names and rule.capped(kind):
                capped.setdefault((rule.name, rule.temperature_range[1], rule.fit), []).extend(names)
    for (name, kind), names in hard.items():
        warnings.warn(
            f"{name}: the momentum of {listed(names)} is all zero or constant at the start of the transition, so there "
            f"is nothing to fit a temperature of {kind} to: its steps stay hard",
            stacklevel=3,
        )
    for (name, highest, fits), names in capped.items():
        warnings.warn(
            f"{name}: the highest temperature, {highest:g}, binds to the end of the transition and replaces the "
            f"schedule of {listed(names)}; the fit (centre, spread) is {fits}: raise temperature_range[1]",
            stacklevel=3,
        )


def _statistics(pool: Sequence[Bucket], kind: FitKind) -> Statistics:
    """Median, spread and size of what a step will map, over all tensors of the pool and all processes."""
    if kind == "singular_values":
        spectra = list(_spectra(pool))
        return median_and_mad(lambda: iter(spectra))
    params = [m.param for bucket in pool for m in bucket.members]
    # A rule for whole matrices sees the same on all processes; of an element-wise one each has its own shards.
    if pool[0].rule.needs == "matrix" or not any(map(sharding.is_sharded, params)):
        return median_and_mad(lambda: _merged(_elements(pool)))
    here = iter(sharding.counted_here(params))
    mine = [replace(bucket, members=[m for m in bucket.members if next(here)]) for bucket in pool]
    return median_and_mad(lambda: _merged(_elements(mine)), partial(sharding.summed, params=params))


def _elements(pool: Sequence[Bucket]) -> Iterator[Tensor]:
    """The directions, piece by piece; the buffers stay as they are."""
    for bucket in pool:
        if bucket.rule.needs == "matrix":
            yield from (direction for _, direction in matrices.trial_directions(bucket))
        else:
            yield from elements.trial_directions(bucket)


def _spectra(pool: Sequence[Bucket]) -> Iterator[Tensor]:
    """The singular values of every matrix; those that are zero but for rounding are exactly zero."""
    for bucket in pool:
        of_gradient = getattr(bucket.rule, "sample", "direction") == "gradient"
        for member, direction in matrices.trial_directions(bucket):
            whole = sharding.full(sharding.local(member.gradient()), member.param) if of_gradient else direction
            yield from map(_singular_values, member.view.split(whole.to(direction.dtype)))


def _singular_values(x: Tensor) -> Tensor:
    """Of a stack of matrices; nan for one that is not finite, which the decomposition would refuse without a name."""
    if not x.numel():
        return x.new_empty(0)
    peak = x.abs().amax((-2, -1), keepdim=True)
    # A power of two goes first, because the decomposition scales small and large matrices by other numbers.
    exponent = torch.frexp(peak).exponent.clamp(-120, 120)
    unit = torch.ldexp(torch.where(peak.isfinite(), x, 0.0), -exponent)
    values = torch.linalg.svdvals(unit)
    tiny = max(x.shape[-2:]) * torch.finfo(torch.float32).eps * values.amax(-1, keepdim=True)
    values = torch.ldexp(values.where(values > tiny, 0.0), exponent.squeeze(-1))
    return values.where(peak.squeeze(-1).isfinite(), math.nan)


def _merged(pieces: Iterable[Tensor]) -> Iterator[Tensor]:
    """Join small pieces: a hundred thousand small tensors must not be as many calls."""
    waiting: list[Tensor] = []
    room = 0
    for piece in pieces:
        if waiting and waiting[0].device != piece.device:
            yield torch.cat(waiting)
            waiting = []
        room = room if waiting else piece_elements(piece.device)
        waiting.append(piece.flatten())
        room -= piece.numel()
        if room <= 0:
            yield torch.cat(waiting) if len(waiting) > 1 else waiting[0]
            waiting = []
    if waiting:
        yield torch.cat(waiting)


def _non_finite(pool: Sequence[Bucket]) -> list[str]:
    """Names of the parameters whose direction is not finite; slow, for the message of an error."""
    return [
        member.name
        for bucket in pool
        for member in bucket.members
        if not all(bool(d.isfinite().all()) for d in _elements([replace(bucket, members=[member])]))
    ]


def listed(names: Sequence[str]) -> str:
    """The first few names, for a message."""
    shown = ", ".join(map(repr, names[:5])) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
    return shown or "a parameter on another process"
