"""What the figures of a report show: curves, colours, ranges and places of labels.

Both forms of the figures of a report, the static one and the interactive one, draw from here, from `report.measures`
and from the rows of the headline table, so they cannot disagree.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from steepest.lab.results import Method, Record, Row, Run, Study, number

# Colours (light page, dark page), chosen by search: the first six are 11 units of OKLab distance (0 to 100) or more
# apart for normal, deuteranope, protanope and tritanope eyes (Machado 2009), with a contrast of 3 to the page. Markers
# differ too.
PALETTE = (
    ("#33383f", "#d5dae1"),
    ("#d2790e", "#fa6e1d"),
    ("#75621b", "#fdc010"),
    ("#2b5bc2", "#467ef7"),
    ("#33a182", "#42c599"),
    ("#a32384", "#bc6cab"),
    ("#6c4747", "#d33e23"),
    ("#8c8af1", "#9999f3"),
    ("#5b8092", "#3bd1f5"),
    ("#155700", "#94e282"),
    ("#a96655", "#947261"),
)
ROLE_PALETTE = (
    ("#4e79a7", "#5b8fc7"),
    ("#a0cbe8", "#b5d6f2"),
    ("#f1a340", "#e39a3b"),
    ("#7b6ca8", "#a493d6"),
    ("#59a14f", "#6fb865"),
    ("#b07aa1", "#8f5f84"),
    ("#9c755f", "#b98f76"),
    ("#bab0ac", "#7c7572"),
)
# (plotly, matplotlib); the cross is kept for runs that diverged.
MARKERS = (
    ("circle", "o"),
    ("square", "s"),
    ("diamond", "D"),
    ("triangle-up", "^"),
    ("triangle-down", "v"),
    ("pentagon", "p"),
    ("hexagon", "h"),
    ("star", "*"),
    ("triangle-left", "<"),
    ("triangle-right", ">"),
    ("hourglass", "d"),
)
ORDER = (
    *("adamw", "signum", "lion", "muon", "signmuon", "lionmuon", "sgd", "lasm", "softsignum", "softmuon"),
    *("softlionmuon", "sinkgd", "sage", "sinkgdlion", "lionmuonsage", "softmuonsage", "muontorch", "lionpytorch"),
    *("nadam", "radam", "adabelief", "adamp", "lamb", "adan", "prodigy", "schedulefree", "sophia"),
    *("mars+adamw", "mars+lion", "mars+shampoo", "adam8bit", "adammini", "adafactor", "came", "apollo", "apollomini"),
    *("galore", "fira", "shampoo", "shampoons", "soap"),
)
ROLES = ("embedding", "position", "head", "attention", "mlp", "expert", "conv", "mixer", "norm", "bias")
AXES = ("steps", "tokens", "flops", "seconds")
SPLITS = ("validation", "train")
# The height of a plot is chosen for what comes after this part of a run: the fall from ln(vocabulary) would flatten it.
_FIRST_SHOWN = 0.2
_TRAIN_POINTS = 80
# Where there are more methods than colours, lines of the same colour differ in their dashes: (plotly, matplotlib).
_DASHES: tuple[tuple[str, Any], ...] = (
    ("solid", "-"),
    ("dash", (0, (5, 2))),
    ("dashdot", "-."),
    ("longdash", (0, (9, 2))),
)


@dataclass(frozen=True)
class Style:
    """Colour (index into `PALETTE`), markers and dashes of one method, each for plotly and for matplotlib."""

    index: int
    symbol: str
    marker: str
    dash: str = "solid"
    line: Any = "-"

    @property
    def color(self) -> str:
        """Colour on white."""
        return PALETTE[self.index][0]


@dataclass(frozen=True)
class Curve:
    """Loss against steps, tokens, FLOPs (NaN where they were not counted) and seconds.

    It is the mean over the finished seeds of a method with the range over them, or, if `state` is not "done", one run
    that did not finish.
    """

    label: str
    state: str
    seeds: int
    steps: list[float]
    tokens: list[float]
    flops: list[float]
    seconds: list[float]
    mean: list[float]
    low: list[float]
    high: list[float]

    def x(self, axis: str) -> list[float]:
        """The values of one of `AXES`."""
        return {"steps": self.steps, "tokens": self.tokens, "flops": self.flops, "seconds": self.seconds}[axis]


def ordered(methods: Iterable[Method]) -> list[Method]:
    """Methods in the fixed order of all figures; unknown ones last, as the study lists them."""
    return sorted(methods, key=lambda m: _place(m.name))


def styles(study: Study) -> dict[str, Style]:
    """A style by label. The six methods of the first family keep theirs in every report; others take free ones."""
    return styles_of(ordered(study.methods))


def styles_of(methods: Sequence[Method]) -> dict[str, Style]:
    """A style by label, for methods in their order."""
    taken: dict[str, int] = {}
    for method in methods:
        place = _place(method.name)[0]
        if place < 6 and place not in taken.values():
            taken[method.label] = int(place)
    free = [i for i in range(len(PALETTE)) if i not in taken.values()]
    found = {label: (i, 0) for label, i in taken.items()}
    for i, label in enumerate(m.label for m in methods if m.label not in taken):
        # first the free colours, then all of them again with other markers and dashes
        lap, color = (0, free[i]) if i < len(free) else divmod(i - len(free), len(PALETTE))
        found[label] = (color, lap if i < len(free) else lap + 1)
    return {
        label: Style(color, *MARKERS[(color + 4 * lap) % len(MARKERS)], *_DASHES[lap % len(_DASHES)])
        for label, (color, lap) in found.items()
    }


def _place(name: str) -> tuple[float, str]:
    plain = name.lower().replace("_", "").replace("-", "")
    if plain in ORDER:
        return ORDER.index(plain), ""
    wrapper, plus, inner = plain.partition("+")  # sac+adamw: behind all that are not wrapped, as its inner method
    if plus and inner in ORDER:
        return len(ORDER) + 1 + ORDER.index(inner), wrapper
    return len(ORDER), ""


def axes(study: Study) -> list[str]:
    """Those of `AXES` for which there are numbers."""
    counted = any(math.isfinite(study.flops_per_step(method)) for method in study.methods)
    return [axis for axis in AXES if axis != "flops" or counted]


def curves(study: Study, split: str) -> list[Curve]:
    """The curves of one of `SPLITS`: per method the mean of its finished final runs, and every other final run singly.

    Training losses are averaged over windows of steps; without that their noise hides the difference between methods.
    """
    result = []
    for method in ordered(study.methods):
        runs = study.finals(method)
        done = [run for run in runs if run.state == "done"]
        single = [(run.state, [run]) for run in runs if run.state != "done"]
        for state, group in ([("done", done)] if done else []) + single:
            curve = _curve(method.label, state, group, split, study.flops_per_step(method))
            if curve:
                result.append(curve)
    return result


def _curve(label: str, state: str, runs: Sequence[Run], split: str, flops: float) -> Curve | None:
    tables = [{p[0]: p for p in _points(run.evals if split == "validation" else run.metrics)} for run in runs]
    steps = sorted(set.intersection(*(set(table) for table in tables)))
    if not steps:
        return None
    x = np.asarray(
        [[table[step] for step in steps] for table in tables]
    )  # runs x steps x (step, tokens, seconds, loss)
    if split == "train":
        chunks = np.array_split(np.arange(len(steps)), min(len(steps), _TRAIN_POINTS))
        x = np.stack([x[:, chunk].mean(axis=1) for chunk in chunks], axis=1)
    step, tokens, seconds = (x[..., i].mean(0) for i in range(3))
    loss = x[..., 3]
    columns = [step, tokens, flops * step, seconds, loss.mean(0), loss.min(0), loss.max(0)]
    return Curve(label, state, len(runs), *(column.tolist() for column in columns))


def _points(records: Iterable[Record]) -> list[tuple[float, float, float, float]]:
    points = [tuple(number(r.get(key)) for key in ("step", "tokens", "seconds", "loss")) for r in records]
    return [(a, b, c, d) for a, b, c, d in points if math.isfinite(d)]


def window(group: Sequence[Curve]) -> tuple[float, float]:
    """The range of losses worth looking at: what comes after the first fifth of a run, diverged runs left out."""
    shown = [c for c in group if c.state == "done"] or [c for c in group if c.state != "diverged"] or list(group)
    last = max((c.steps[-1] for c in shown), default=0.0)
    late = [
        v
        for c in shown
        for s, lo, hi in zip(c.steps, c.low, c.high, strict=True)
        if s >= _FIRST_SHOWN * last
        for v in (lo, hi)
    ]
    if not late:
        return 0.0, 1.0
    return padded(min(late), max(late))


def padded(low: float, high: float, part: float = 0.05) -> tuple[float, float]:
    """A range widened by a part of its length on both sides; never empty."""
    pad = part * (high - low) or 0.05 * abs(high) or 1.0
    return low - pad, high + pad


def spread(values: Sequence[float], gap: float, low: float = -math.inf, high: float = math.inf) -> list[float]:
    """Move values as little as possible so that neighbours are at least `gap` apart: places for the labels of lines.

    They stay between `low` and `high` as long as there is room for all of them.
    """
    blocks: list[list[int]] = []

    def centre(block: list[int]) -> float:
        return sum(values[i] for i in block) / len(block)

    for i in sorted(range(len(values)), key=lambda i: values[i]):
        blocks.append([i])
        while (
            len(blocks) > 1 and centre(blocks[-1]) - centre(blocks[-2]) < gap * (len(blocks[-1]) + len(blocks[-2])) / 2
        ):
            blocks[-2:] = [blocks[-2] + blocks[-1]]
    placed = {i: centre(b) + gap * (k - (len(b) - 1) / 2) for b in blocks for k, i in enumerate(b)}
    order = [i for block in blocks for i in block]
    for k, i in enumerate(order):
        placed[i] = max(placed[i], low + k * gap)
    for k, i in enumerate(reversed(order)):
        placed[i] = min(placed[i], high - k * gap)
    return [placed[i] for i in range(len(values))]


def bytes_by_role(study: Study) -> dict[str, dict[str, float]]:
    """Optimizer state in bytes: label -> role -> bytes, from the routing tables of the runs."""
    result: dict[str, dict[str, float]] = {}
    for method in ordered(study.methods):
        table = routing(study, method)
        if table:
            sums: dict[str, float] = {}
            for row in table:
                role = str(row.get("role") or "other")
                sums[role] = sums.get(role, 0.0) + number(row.get("state_bytes"), 0.0)
            result[method.label] = sums
    return result


def routing(study: Study, method: Method) -> list[Record]:
    """The routing table of a method: that of its first final run that has one, else of any of its runs."""
    runs = [*study.finals(method), *(run for run in study.runs if run.method == method.label)]
    return next((run.routing for run in runs if run.routing), [])


def roles_in_order(table: dict[str, dict[str, float]]) -> list[str]:
    """The roles that hold any state, in a fixed order."""
    found = {role for sums in table.values() for role, size in sums.items() if size > 0}
    return sorted(found, key=lambda role: (ROLES.index(role) if role in ROLES else len(ROLES), role))


def front(points: Sequence[tuple[float, float]]) -> list[int]:
    """Indices of the points that no other point beats on both coordinates, from left to right (smaller is better)."""
    best, kept = math.inf, []
    for i in sorted(range(len(points)), key=lambda i: points[i]):
        if points[i][1] < best:
            kept.append(i)
            best = points[i][1]
    return kept


def trial_window(study: Study) -> tuple[float, float, dict[str, float]]:
    """The range of the learning-rate figure, and the height at which each method has its crosses.

    The range holds all losses except those far above the bulk. Runs that diverged have no loss: their crosses stand
    above, one line a method.
    """
    losses = [t.loss for m in study.methods for t in m.by_rate if math.isfinite(t.loss)]
    low, high = (min(losses), max(losses)) if losses else (0.0, 1.0)
    if len(losses) > 4:
        high = min(high, low + 4 * (float(np.median(losses)) - low))
    low, high = padded(low, high, 0.06)
    lost = [m.label for m in ordered(study.methods) if any(t.state == "diverged" for t in m.by_rate)]
    gap = min(0.035, 0.3 / max(len(lost), 1)) * (high - low)
    return low, high + gap * len(lost), {label: high + gap * (i + 0.5) for i, label in enumerate(reversed(lost))}


def interval_window(
    centres: Sequence[float], ends: Sequence[float], origin: float | None = None
) -> tuple[float, float]:
    """A range that shows all centres, and interval ends unless they are so far away that the centres would coincide."""
    values = [*centres, *([origin] if origin is not None else [])]
    low, high = min(values), max(values)
    room = 0.8 * ((high - low) or abs(high) or 1.0)
    ends = [v for v in ends if math.isfinite(v)]
    return padded(max(low - room, min([low, *ends])), min(high + room, max([high, *ends])))


def log_ticks(low: float, high: float) -> list[float]:
    """1, 2 and 5 times the powers of ten in a range of learning rates."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    digits = (1, 2, 5) if high / low < 200 else (1, 3) if high / low < 3e4 else (1,)
    return [d * 10.0**p for p in powers for d in digits if 0.99 * low <= d * 10.0**p <= 1.01 * high]


def baseline_label(rows: Sequence[Row]) -> str:
    """The label of the baseline."""
    return next((row.method.label for row in rows if row.is_baseline), "the baseline")
