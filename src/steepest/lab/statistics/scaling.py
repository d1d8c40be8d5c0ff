"""How much data a method saves: a scaling law of the baseline, inverted, and one with an exponent shared by all.

Both rest on losses at the *end* of a schedule: every horizon is a run of its own with its own complete schedule (or a
cool-down forked from a common trunk), never a point in the middle of a longer run.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import optimize

from steepest.lab.errors import UserError, unknown
from steepest.lab.statistics.intervals import Array, generator, percentile_interval

# Three numbers are fitted, so fewer horizons than this leave nothing to judge the fit by (the lab's protocol).
HORIZONS = 4
# Residuals of log loss above this count linearly, not squared (Hoffmann et al. 2022, arXiv:2203.15556, approach 3).
HUBER_DELTA = 1e-3
RESAMPLES = 399
# Starts of the fit: part of the lowest loss that is taken as irreducible.
_STARTS = (0.1, 0.5, 0.8, 0.95)
# Bounds of the fit, far beyond any use: log a at the middle of the horizons, b, and the logarithm of a multiplier.
_SCALES = (-50.0, 50.0)
_EXPONENTS = (1e-3, 10.0)
_MULTIPLIERS = (-20.0, 20.0)
_PRECISE = {"maxiter": 2_000, "ftol": 1e-13, "gtol": 1e-9}

# Final losses: tokens of the horizon -> seed -> nats per token.
Horizons = Mapping[float, Mapping[int, float]]


@dataclass(frozen=True)
class ScalingLaw:
    """L(D) = a D^-b + c for the loss L in nats per token at the end of a schedule of D tokens.

    Within the horizons it was fitted to, the curve is well determined even where a, b and c singly are not: they trade
    against each other, so none of them is a result.

    Attributes:
        a: Scale; positive.
        b: Exponent; positive.
        c: Irreducible loss; 0 or more.
        shortest: Shortest horizon of the fit in tokens.
        longest: Longest.
        error: Root mean square of the residuals of log L; about the relative error of a loss.
    """

    a: float
    b: float
    c: float
    shortest: float
    longest: float
    error: float

    def loss(self, tokens: float) -> float:
        """Loss at the end of a schedule of so many tokens."""
        return self.a * math.pow(tokens, -self.b) + self.c

    def tokens(self, loss: float) -> float:
        """Tokens after which the loss is reached, wherever that is; infinite at and below the irreducible loss."""
        if not loss > self.c:
            return math.inf
        logarithm = (math.log(self.a) - math.log(loss - self.c)) / self.b
        return math.exp(logarithm) if logarithm < 700 else math.inf


@dataclass(frozen=True)
class DataSpeedUp:
    """How many times more tokens the baseline needs for the loss of a method; above 1 the method is better.

    Attributes:
        tokens: Tokens the method was trained on.
        loss: Its mean final loss in nats.
        value: The speed-up; None if the baseline would have to be extrapolated beyond the horizons it was run at.
        low: Lower end of the 95% bootstrap interval over seeds; NaN if any mean rests on fewer than two seeds. The ends
            stop at the range of horizons.
        high: Upper end.
        law: The scaling law of the baseline; its `error` says how well it fits.
        beyond: "" within the horizons. "longest": better than the baseline is expected to be at its longest horizon,
            so the speed-up is above `bound`. "shortest": worse than at the shortest, so it is below `bound`.
        bound: Speed-up at the end of the range that `beyond` names; NaN if there is none.
    """

    tokens: float
    loss: float
    value: float | None
    low: float
    high: float
    law: ScalingLaw
    beyond: str
    bound: float


def fit_scaling_law(baseline: Horizons) -> ScalingLaw:
    """Fit L(D) = a D^-b + c to all seeds of all horizons: Huber loss of the residuals in log L, several starts.

    Args:
        baseline: Final losses of a method tuned at each horizon. Losses that are not finite are left out.

    Raises:
        UserError: Fewer than four horizons have a finished run, more tokens do not lower the loss beyond the error of
            the fit, or a horizon or loss is not positive.
    """
    groups = _finite(baseline)
    _enough(groups, "the baseline")
    law = _law(groups, _fit(_points([groups])))
    _falls(law)
    return law


def data_speedups(
    baseline: Horizons, methods: Mapping[str, Mapping[int, float]], tokens: float, resamples: int = RESAMPLES
) -> dict[str, DataSpeedUp]:
    """Data-equivalent speed-up of methods: tokens the tuned baseline needs for their loss, over the tokens they had.

    L(D) = a D^-b + c is fitted to the baseline at four or more horizons and inverted at the mean loss of the method. It
    is never used beyond those horizons, so choose them around `tokens`. The interval is a percentile bootstrap over
    seeds that repeats the fit; where all have the same seeds they are resampled together, so what a seed does to all
    runs alike cancels.

    Args:
        baseline: Final losses of the tuned baseline: tokens -> seed -> nats. Losses that are not finite are left out.
        methods: Final losses of the methods by seed, all trained on `tokens` tokens. A method without a finite loss is
            not in the result.
        tokens: Their horizon.
        resamples: Resamples of the bootstrap; each repeats the fit.

    Raises:
        UserError: Fewer than four horizons have a finished run, more tokens do not lower the loss beyond the error of
            the fit, or a horizon or loss is not positive.

    Source: Wen et al. 2025, Fantastic pretraining optimizers and where to find them (arXiv:2509.02046).
    """
    groups = _finite(baseline)
    _enough(groups, "the baseline")
    losses = {name: group for name, own in methods.items() if (group := _finite({tokens: own}).get(tokens))}
    start = _fit(_points([groups]))
    law = _law(groups, start)
    _falls(law)
    equal = {name: law.tokens(float(np.mean(list(own.values())))) for name, own in losses.items()}
    replicates: dict[str, list[float]] = {name: [] for name in losses}
    for drawn in _resampled([*groups.values(), *losses.values()], resamples):
        horizons, rest = dict(zip(groups, drawn, strict=False)), drawn[len(groups) :]
        again = _law(horizons, _fit(_points([horizons]), start))
        for name, own in zip(losses, rest, strict=True):
            found = again.tokens(float(np.mean(list(own.values()))))
            replicates[name].append(min(max(found, law.shortest), law.longest) / tokens)
    result = {}
    for name, own in losses.items():
        beyond = "longest" if equal[name] > law.longest else "shortest" if equal[name] < law.shortest else ""
        low, high = _ends(replicates[name], [*groups.values(), own])
        end = {"longest": law.longest, "shortest": law.shortest}.get(beyond, math.nan)
        value = None if beyond else equal[name] / tokens
        loss = float(np.mean(list(own.values())))
        result[name] = DataSpeedUp(tokens, loss, value, low, high, law, beyond, end / tokens)
    return result


@dataclass(frozen=True)
class Multiplier:
    """Tokens a method needs per token of the baseline for the same loss: 0.72 means 0.72 times as many.

    Attributes:
        value: The multiplier; 1 for the baseline. Its inverse is the data-equivalent speed-up.
        low: Lower end of the 95% bootstrap interval over seeds; NaN if any horizon has fewer than two seeds.
        high: Upper end.
        beyond: Every horizon of the method corresponds to one outside those of the baseline, so the number rests on
            an extrapolation of the baseline.
    """

    value: float
    low: float
    high: float
    beyond: bool


@dataclass(frozen=True)
class SharedLaw:
    """L_m(D) = a (D / k_m)^-b + c: a, b and c are those of all methods, the multiplier k_m is 1 for the baseline."""

    law: ScalingLaw
    multipliers: dict[str, Multiplier]


def fit_shared_law(results: Mapping[str, Horizons], baseline: str, resamples: int = RESAMPLES) -> SharedLaw:
    """Fit one scaling law with a multiplier of the tokens per method, at one model size.

    Separate laws per method are ill-conditioned: three numbers from a handful of horizons each. Sharing the exponent
    and the irreducible loss leaves one number per method, and that is the one asked for (arXiv:2602.07712). The term
    of the model size of L = E + A N^-alpha + B D^-beta is a constant at one size and part of c.

    Args:
        results: method -> tokens -> seed -> final loss in nats, tuned at each horizon. Losses that are not finite are
            left out, and methods without any other.
        baseline: The method whose multiplier is 1; it has four or more horizons, the others at least one.
        resamples: Resamples of the bootstrap over seeds; each repeats the fit.

    Raises:
        UserError: `baseline` is not among the methods, has fewer than four horizons, or is not lowered by more tokens
            beyond the error of the fit; or a horizon or loss is not positive.
    """
    if baseline not in results:
        raise unknown("method", baseline, results)
    tables = {name: _finite(results[name]) for name in [baseline, *(m for m in results if m != baseline)]}
    _enough(tables[baseline], f"the baseline {baseline}")
    tables = {name: table for name, table in tables.items() if table}
    start = _fit(_points(list(tables.values())))
    law = _law(tables[baseline], start)
    _falls(law)
    groups = [own for table in tables.values() for own in table.values()]
    replicates = []
    for drawn in _resampled(groups, resamples):
        rest = iter(drawn)
        again = [{tokens: next(rest) for tokens in table} for table in tables.values()]
        replicates.append(np.exp(_fit(_points(again), start)[3:]))
    multipliers = {baseline: Multiplier(1.0, 1.0, 1.0, False)}
    for i, (name, table) in enumerate(list(tables.items())[1:]):
        value = float(np.exp(start[3 + i]))
        low, high = _ends([float(r[i]) for r in replicates], groups)
        beyond = not any(law.shortest <= tokens / value <= law.longest for tokens in table)
        multipliers[name] = Multiplier(value, low, high, beyond)
    return SharedLaw(law, multipliers)


def _finite(horizons: Horizons) -> dict[float, dict[int, float]]:
    """The finite losses, by increasing horizon; horizons without any are left out."""
    found = {}
    for tokens in sorted(horizons):
        own = {seed: loss for seed, loss in horizons[tokens].items() if math.isfinite(loss)}
        if own and not (tokens > 0 and min(own.values()) > 0):
            raise UserError(f"a scaling law needs positive tokens and losses, got {own} after {tokens} tokens.")
        if own:
            found[float(tokens)] = own
    return found


def _enough(groups: Mapping[float, object], who: str) -> None:
    if len(groups) < HORIZONS:
        have = ", ".join(f"{tokens:g}" for tokens in groups) or "none"
        raise UserError(
            f"a scaling law needs finished runs of {who} at {HORIZONS} or more horizons, got {len(groups)} (tokens: "
            f"{have}). Run it with other numbers of steps, each with its own complete schedule."
        )


def _falls(law: ScalingLaw) -> None:
    """Refuse a law that cannot be inverted: one that is flat to within its error, or to 0.1%."""
    fall = 1 - law.loss(law.longest) / law.loss(law.shortest)
    if fall <= max(2 * law.error, 1e-3):
        raise UserError(
            f"the baseline's loss falls by {fall:.2%} from {law.shortest:g} to {law.longest:g} tokens, with an error "
            f"of the fit of {law.error:.2%}: that does not say how much data a difference in loss is worth. Run the "
            "baseline at more distant horizons, tuned at each."
        )


@dataclass(frozen=True)
class _Points:
    """log D, log L and the index of the method of every run."""

    x: Array
    y: Array
    method: NDArray[np.int64]
    methods: int


def _points(tables: Sequence[Mapping[float, Mapping[int, float]]]) -> _Points:
    rows = [
        (math.log(tokens), math.log(loss), i)
        for i, table in enumerate(tables)
        for tokens, own in table.items()
        for loss in own.values()
    ]
    x, y, method = (np.asarray(column) for column in zip(*rows, strict=True))
    return _Points(x, y, method, len(tables))


def _fit(points: _Points, start: Array | None = None) -> Array:
    """Least Huber loss over (log a, log b, c, log k_1, ...); the first method has k = 1.

    Each start is first improved by plain least squares, which is dependable from afar; then the Huber loss is
    minimised with its gradient. scipy's `least_squares(loss="huber")` was tried and stops early on most of these.
    """
    own = points.method[:, None] == np.arange(1, points.methods)  # runs x multipliers
    # log a is fitted at the mean of log D, where it is least entangled with b
    centre = float(points.x.mean())
    x = points.x - centre
    lowest = float(np.exp(points.y.min()))

    def model(theta: Array) -> tuple[Array, Array]:
        """Residuals of log L, and their derivatives."""
        b, distance = math.exp(theta[1]), x - own @ theta[3:]
        power = np.exp(np.minimum(theta[0] - b * distance, 300.0))
        total = power + theta[2]
        share = power / total
        columns = [share, -share * b * distance, 1 / total]
        return np.log(total) - points.y, np.column_stack([*columns, own * (share * b)[:, None]])

    def huber(theta: Array) -> tuple[float, Array]:
        r, jacobian = model(theta)
        r = r / HUBER_DELTA
        size = np.abs(r)
        return float(np.where(size <= 1, r * r / 2, size - 0.5).sum()), jacobian.T @ np.clip(r, -1, 1) / HUBER_DELTA

    bounds = [_SCALES, (math.log(_EXPONENTS[0]), math.log(_EXPONENTS[1])), (0.0, lowest)]
    bounds += [_MULTIPLIERS] * (points.methods - 1)
    low, high = np.asarray(bounds).T
    if start is None:
        starts = list(_starts(x, points, own, lowest))
    else:
        shift = np.asarray([-centre * math.exp(start[1]), *[0.0] * (start.size - 1)])
        starts = [start + shift]
    best, least = starts[0], math.inf
    for theta in starts:
        inside = np.clip(theta, low + 1e-9, high - 1e-9)
        near = optimize.least_squares(
            lambda t: model(t)[0], inside, lambda t: model(t)[1], bounds=(low, high), x_scale="jac", max_nfev=200
        ).x
        found = optimize.minimize(huber, near, jac=True, method="L-BFGS-B", bounds=bounds, options=_PRECISE)
        if found.fun < least:
            best, least = found.x, float(found.fun)
    return np.asarray(best + np.asarray([centre * math.exp(best[1]), *[0.0] * (best.size - 1)]), dtype=np.float64)


def _starts(x: Array, points: _Points, own: Array, lowest: float) -> Iterator[Array]:
    """A straight line through log(L - c) of the first method for several c; multipliers from the distance to it."""
    first = points.method == 0
    for part in _STARTS:
        c = part * lowest
        rest = np.log(np.exp(points.y) - c)
        slope, height = np.polyfit(x[first], rest[first], 1)
        b = float(np.clip(-slope, 0.02, 3.0))
        ahead = x + (rest - height) / b  # log k that would put each run on the line
        yield np.asarray([height, math.log(b), c, *(ahead @ own / own.sum(axis=0))])


def _law(groups: Mapping[float, Mapping[int, float]], theta: Array) -> ScalingLaw:
    a, b, c = float(np.exp(theta[0])), float(np.exp(theta[1])), float(theta[2])
    residuals = [math.log(loss / (a * tokens**-b + c)) for tokens, own in groups.items() for loss in own.values()]
    error = math.sqrt(sum(r * r for r in residuals) / len(residuals))
    return ScalingLaw(a, b, c, min(groups), max(groups), error)


def _resampled(groups: Sequence[Mapping[int, float]], resamples: int) -> Iterator[list[dict[int, float]]]:
    """Draw seeds with repetition: the same in every group that has the seeds of the first, others by themselves."""
    rng = generator()
    seeds = sorted(groups[0])
    for _ in range(resamples):
        together = rng.choice(seeds, len(seeds))
        drawn = []
        for group in groups:
            keys = sorted(group)
            picked = together if keys == seeds else rng.choice(keys, len(keys))
            drawn.append({i: group[int(seed)] for i, seed in enumerate(picked)})
        yield drawn


def _ends(replicates: Sequence[float], groups: Sequence[Mapping[int, float]]) -> tuple[float, float]:
    if not replicates or min(len(group) for group in groups) < 2:
        return math.nan, math.nan
    low, high = percentile_interval(np.asarray(replicates, dtype=np.float64))
    return float(low), float(high)
