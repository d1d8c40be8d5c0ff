"""sac-robustness: how wide the range of good learning rates is, with SAC and without, at two batch sizes."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
from matplotlib.figure import Figure

from steepest.lab.reproductions import sac_arms
from steepest.lab.reproductions.base import Arm, Case, Measure, Report, Results, Setting, Settings, Study
from steepest.lab.reproductions.drawing import BAND, color, marker
from steepest.lab.reproductions.sac_arms import arm
from steepest.lab.reproductions.sentences import paired
from steepest.lab.reproductions.small_language_model import prepare
from steepest.lab.series import log_ticks
from steepest.lab.statistics import basin_width
from steepest.lab.wording import listing, signed

WIDTH = Measure(key="octaves", label="width of the basin", unit="octaves of the rate", better="higher", digits=2)


def run(settings: Settings, seed: int, report: Report) -> Mapping[str, float | list[float]]:
    """Train at every rate on this seed: the lowest loss, its rate, and how wide the range of nearly as good ones is."""
    grid, runs = settings["rates"], []
    for lr in grid:
        runs.append(sac_arms.train_language(settings, lr, seed, report))
    losses = [_number(numbers["loss"]) for numbers in runs]
    basin = basin_width(grid, [loss if math.isfinite(loss) else math.inf for loss in losses], settings["within"])
    best = min(range(len(grid)), key=lambda i: losses[i] if math.isfinite(losses[i]) else math.inf)
    return {
        **{key: runs[best][key] for key in ("loss", "perplexity", "weights", "data")},
        "octaves": basin.octaves,
        "open": float(basin.open_low or basin.open_high),
        "best rate": grid[best],
        "diverged": float(sum(not math.isfinite(loss) for loss in losses)),
        "rate": list(grid),
        "losses": losses,
    }


def _number(value: float | list[float]) -> float:
    assert isinstance(value, float)
    return value


# What the numbers say


def findings(results: Results) -> list[str]:
    """Pairing, widths with their verdicts, open ends, lowest losses, and how the best rate moves with the batch."""
    found = [paired(results)]
    for case in results.cases:
        if len(results.seeds) > 1:
            found.append(widths(results, case))
        found.append(ends(results, case))
        if len(results.seeds) > 1:
            found.append(lowest(results, case))
    return [*found, moved(results)]


def widths(results: Results, case: Case) -> str:
    """Whether SAC's basin is wider than that of its base, and than that of constant factors."""
    sac, told = results.study.arm("sac"), []
    words = {}
    for name in ("adamw", "constant"):
        other = results.study.arm(name)
        c = results.comparison(case, sac, WIDTH, other)
        words[name] = results.verdict(case, sac, WIDTH, other)
        if c is not None and c.n:
            interval = f"[{signed(c.low, 2)}, {signed(c.high, 2)}]"
            told.append(f"minus that of {other.label} {signed(c.difference, 2)} {interval} octaves ({words[name]})")
    means = {
        "better": "SAC is more robust to the rate than AdamW, as the paper says",
        "worse": "SAC is less robust to the rate than AdamW, the opposite of what the paper says",
    }.get(words["adamw"], "it does not show that SAC is more robust to the rate")
    rest = ""
    if words["adamw"] == "better":
        rest = (
            ", and more than constant factors" if words["constant"] == "better" else ", not more than constant factors"
        )
    return f"{case.label}, width of the basin of SAC {'; '.join(told)}. Here {means}{rest}."


def ends(results: Results, case: Case) -> str:
    """Basins that go beyond the grid, and runs that diverged."""
    open_ones, told = [], []
    for each in results.study.arms_of(case):
        cells = [results.cells[case.name, each.name, seed].numbers for seed in results.seeds]
        open_ones += [each.label] if any(numbers["open"] for numbers in cells) else []
        lost = sum(int(numbers["diverged"] or 0) for numbers in cells)
        told += [f"{each.label} {lost}"] if lost else []
    wider = f"basins that reach an end of the grid, so may be wider: {listing(open_ones) if open_ones else 'none'}"
    return f"{case.label}: {wider}; runs that diverged: {', '.join(told) or 'none'}."


def lowest(results: Results, case: Case) -> str:
    """The lowest losses over the grid, SAC against the others."""
    told = []
    for name in ("adamw", "constant"):
        sac, other = results.study.arm("sac"), results.study.arm(name)
        c = results.comparison(case, sac, sac_arms.LOSS, other)
        if c is not None and c.n:
            word = results.verdict(case, sac, sac_arms.LOSS, other)
            told.append(
                f"SAC minus {other.label} {signed(c.difference, 4)} [{signed(c.low, 4)}, {signed(c.high, 4)}] ({word})"
            )
    how = "the lowest of each seed, which flatters all arms"
    return f"{case.label}, lowest loss over the rates ({how}): {'; '.join(told)}."


def moved(results: Results) -> str:
    """By how many octaves the best rate moves from one batch size to the other."""
    if len(results.cases) < 2:
        return ""
    told, (small, large) = [], (results.cases[0], results.cases[-1])
    for each in results.study.arms:
        rates = [np.log2(list(results.values(case, each, "best rate").values())).mean() for case in (small, large)]
        told.append(f"{each.label} {signed(float(rates[1] - rates[0]), 1)}")
    return f"From {small.label} to {large.label} the best rate moves by so many octaves: {', '.join(told)}."


# Figures


def draw_basins(figure: Figure, results: Results) -> None:
    """Loss against rate: a panel per batch size, a line per arm."""
    figure.set_size_inches(4.4 * len(results.cases), 4.4)
    panels = figure.subplots(1, len(results.cases), sharey=True, squeeze=False)[0]
    for ax, case in zip(panels, results.cases, strict=True):
        for each in results.study.arms_of(case):
            lines, rates = results.series(case, each, "losses"), results.series(case, each, "rate")
            if not lines.size:
                continue
            style = {"color": color(results, each), "marker": marker(results, each)}
            ax.plot(rates[0], np.nanmedian(lines, axis=0), label=each.label, **style)
            if len(lines) > 1:
                low, high = np.nanquantile(lines, BAND, axis=0)
                ax.fill_between(rates[0], low, high, color=color(results, each), alpha=0.16, linewidth=0)
        ax.set_xscale("log")
        ticks = log_ticks(*ax.get_xlim())
        ax.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        ax.minorticks_off()
        ax.set_title(case.label)
        ax.set_xlabel("learning rate")
    panels[0].set_ylabel(sac_arms.LOSS.title)
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=4)


# The study


def _case(batch: int) -> Case:
    return Case(f"batch{batch}", f"batch of {batch} x 64 tokens", {"batch_size": batch})


_ARMS: tuple[Arm, ...] = (
    arm("adamw", "AdamW", "the base alone", "adamw"),
    arm("sac", "SAC+AdamW", "layer and block factors", "adamw", "sac"),
    arm("constant", "Constant", "hidden matrices and head at 0.1, the embedding and gains at 1", "adamw", "constant"),
)
_SHARED = {key: value for key, value in sac_arms.LANGUAGE.items() if key not in ("lowest", "multiples", "growths")}

STUDY = Study(
    name="sac-robustness",
    title="SAC: does it need less exact a learning rate?",
    paper="SAC, OpenReview EB92tITeNq (anonymous ICLR 2026 submission)",
    claim="With SAC, AdamW is robust to the learning rate and to the batch size.",
    about=(
        "The model, text and schedule of sac-granularity, 200 steps, at two batch sizes and six rates in half decades. "
        "The basin of an arm is the range of rates around its best one whose loss is within 0.1 nats of it, linear in "
        "between on the logarithm of the rate; its width is in octaves, factors of two.\n\n"
        "Constant factors move the rate of the hidden matrices down by ten, and with it the basin: what counts is the "
        "width, not the place."
    ),
    proxies=(
        sac_arms.LANGUAGE_PROXY.format(size="282 thousand", tokens="51 to 205 thousand"),
        "Batches of 4 and 16 sequences; the paper has 131,072 tokens.",
        "As many steps at both batch sizes, so four times as many tokens at the larger.",
        "0.1 nats is our choice; basins are narrower and noisier for less.",
    ),
    cases=(_case(4), _case(16)),
    arms=_ARMS,
    baseline="adamw",
    measures=(
        WIDTH,
        sac_arms.LOSS,
        Measure(key="best rate", label="best rate", better="", geometric=True, digits=2),
    ),
    settings={
        **_SHARED,
        "steps": Setting(200, "ours"),
        "rates": Setting([1e-3, 3.2e-3, 1e-2, 3.2e-2, 1e-1, 3.2e-1], "ours: half decades"),
        "within": Setting(0.1, "ours: nats above the lowest loss"),
    },
    run=run,
    seeds=4,
    minutes=6,
    quick={
        **{
            key: value
            for key, value in sac_arms.LANGUAGE_QUICK.items()
            if key not in ("multiples", "growths", "batch_size")
        },
        "rates": [3.2e-3, 1e-2, 3.2e-2],
    },
    findings=findings,
    figures={"basins": ("Loss against rate; median and middle half of the seeds.", draw_basins)},
    prepare=prepare,
)
