"""sac-scales: what factors SAC and SGG give, layer by layer, while a small language model is trained."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from steepest.lab.reproductions import sac_arms
from steepest.lab.reproductions.base import Case, Measure, Report, Results, Setting, Settings, Study
from steepest.lab.reproductions.drawing import BAND
from steepest.lab.reproductions.sac_arms import arm
from steepest.lab.reproductions.sentences import against, paired, tuning
from steepest.lab.reproductions.small_language_model import prepare
from steepest.lab.series import PALETTE, log_ticks
from steepest.lab.wording import fixed

LAYERS = 6
_SHADES = ("#cfe0f5", "#a8c6ec", "#7fa9df", "#5489cf", "#2f69b8", "#123f80")  # from the first layer to the last
_ENDS = {"embedding": PALETTE[1][0], "head": PALETTE[5][0]}
_LINES = {"attention": "-", "mlp": (0, (4, 1.5)), "embedding": "-", "head": "-"}


def run(settings: Settings, seed: int, report: Report) -> Mapping[str, float | list[float]]:
    """Train at the tuned rate of the bare base, and keep the factors through the run."""
    numbers, factors = sac_arms.run_and_watch(settings, seed, report)
    return numbers | factors.series()


# What the numbers say


def findings(results: Results) -> list[str]:
    """Pairing, the rate, the losses, and the factors of the second half of the run."""
    case = results.cases[0]
    found = [paired(results), tuning(results, case)]
    if len(results.seeds) > 1:
        found.append(
            "All arms at the rate of AdamW: "
            f"{'; '.join(against(results, case, name, 'adamw') for name in ('equations', 'algorithm1', 'sgg'))}."
        )
    found += [factors(results, case, name) for name in ("equations", "algorithm1")]
    return [*found, magnitude(results, case), clusters(results, case)]


def mean(results: Results, case: Case, name: str, key: str) -> float:
    """Geometric mean of a factor over the second half of the run and over seeds."""
    lines = results.series(case, results.study.arm(name), key)
    if not lines.size:
        return math.nan
    return math.exp(float(np.nanmean(np.log(lines[:, lines.shape[1] // 2 :]))))


def keys(results: Results, case: Case, name: str, symbol: str) -> list[str]:
    """The series of a symbol that an arm has, in the order of the model."""
    cell = results.cells[case.name, name, results.seeds[0]]
    return [key for key in cell.series if key.startswith(f"{symbol} ")]


def factors(results: Results, case: Case, name: str) -> str:
    """The factors c from the first to the last layer, s of attention and MLP, and S of embedding and head."""
    label = results.study.arm(name).label
    ends = {key.split()[-1]: key for key in keys(results, case, name, "S") if key.split()[-1] in _ENDS}
    outer = {key.split()[1] for key in ends.values()}
    layers = [key for key in keys(results, case, name, "c") if key.split()[1] not in outer]
    told = [
        f"c {', '.join(fixed(mean(results, case, name, key), 2) for key in layers)} from the first layer to the last"
    ]
    for block in ("attention", "mlp"):
        values = [mean(results, case, name, key) for key in keys(results, case, name, "s") if key.endswith(block)]
        if values:
            told.append(f"s of {block} {fixed(min(values), 2)} to {fixed(max(values), 2)}")
    told += [f"S of the {block} {fixed(mean(results, case, name, key), 2)}" for block, key in ends.items()]
    inside = np.mean(list(results.values(case, results.study.arm(name), "inside").values()))
    return f"{label}, second half of the run: {'; '.join(told)}; {inside:.0%} of the factors are within their bounds."


def magnitude(results: Results, case: Case) -> str:
    """What each mode does to the rate of the hidden matrices as a whole."""
    told = [
        f"{results.study.arm(name).label} {results.summary(case, results.study.arm(name), sac_arms.FACTOR).mean:.2f}"
        for name in ("equations", "algorithm1")
    ]
    return (
        f"Mean factor of the hidden matrices: {', '.join(told)}. A model of equal Gaussian gradients would have 1 "
        "under the equations and 0.70 under Algorithm 1."
    )


def clusters(results: Results, case: Case) -> str:
    """The scales of SGG at the end."""
    ends = last_scales(results, case)
    if not ends:
        return "SGG has no scales."
    told = ", ".join(f"{np.median(values):.2f} ({min(values):.2f} to {max(values):.2f})" for values in ends.values())
    return f"SGG at the end of the run, by cluster from the lowest momentum to the highest, median of weights: {told}."


def last_scales(results: Results, case: Case) -> dict[str, list[float]]:
    """By cluster the last scale of every weight and seed."""
    found: dict[str, list[float]] = {}
    for key in keys(results, case, "sgg", "S"):
        values = results.series(case, results.study.arm("sgg"), key)
        found.setdefault(key.split()[-1], []).extend(values[:, -1].tolist() if values.size else [])
    return {cluster: values for cluster, values in found.items() if values}


# Figures


def draw_factors(figure: Figure, results: Results) -> None:
    """c, s and S of each layer and block over training: a row for each mode."""
    figure.set_size_inches(9.6, 6.6)
    panels, case = figure.subplots(2, 3, sharex=True, squeeze=False), results.cases[0]
    titles = ("c of the layer", "s of the block", "S = c s, within the bounds")
    for row, name in zip(panels, ("equations", "algorithm1"), strict=True):
        for ax, symbol, title in zip(row, "csS", titles, strict=True):
            for key in keys(results, case, name, symbol):
                _line(ax, results, case, name, key)
            if name == "equations":
                ax.set_title(title)
            else:
                ax.set_xlabel("step")
            _log_axis(ax)
            ax.margins(x=0)
        row[0].set_ylabel(results.study.arm(name).label)
    ax = panels[0][0]
    for index, shade in enumerate(_SHADES):
        ax.plot([], [], color=shade, label=f"layer {index}")
    for block in ("attention", "mlp"):
        ax.plot([], [], color="#33383f", linestyle=_LINES[block], label=block)
    for block, shade in _ENDS.items():
        ax.plot([], [], color=shade, label=block)
    figure.legend(*ax.get_legend_handles_labels(), loc="outside lower center", ncols=5, columnspacing=1.4)


def _line(ax: Axes, results: Results, case: Case, name: str, key: str) -> None:
    """One factor: the median of the seeds."""
    lines, steps = (results.series(case, results.study.arm(name), each) for each in (key, "step"))
    if not lines.size:
        return
    words = key.split()
    scaled = {each.split()[1]: each.split()[-1] for each in keys(results, case, name, "S")}
    block = words[-1] if len(words) == 3 else scaled[words[1]]
    layer = int(words[1])
    color = _ENDS.get(block, _SHADES[layer % len(_SHADES)])
    style: dict[str, Any] = {"color": color, "linestyle": _LINES.get(block, ":") if len(words) == 3 else "-"}
    ax.plot(steps[0], np.nanmedian(lines, axis=0), linewidth=1.5, **style)


def draw_clusters(figure: Figure, results: Results) -> None:
    """The scales of SGG: for each cluster the median and the middle half of the weights."""
    figure.set_size_inches(6.6, 4.2)
    ax, case, sgg = figure.add_subplot(), results.cases[0], results.study.arm("sgg")
    steps = results.series(case, sgg, "step")
    found: dict[str, list[Any]] = {}
    for key in keys(results, case, "sgg", "S"):
        found.setdefault(key.split()[-1], []).append(results.series(case, sgg, key))
    for place, (cluster, arrays) in enumerate(found.items()):
        lines, (color, _) = np.concatenate(arrays), PALETTE[(0, 3, 1)[place % 3]]
        ax.plot(steps[0], np.median(lines, axis=0), color=color, label=f"cluster {cluster}")
        ax.fill_between(steps[0], *np.quantile(lines, BAND, axis=0), color=color, alpha=0.16, linewidth=0)
    _log_axis(ax)
    ax.set_xlabel("step")
    ax.set_ylabel("scale")
    ax.margins(x=0)
    figure.legend(*ax.get_legend_handles_labels(), loc="outside lower center", ncols=3)


def _log_axis(ax: Axes) -> None:
    """Logarithmic, with numbers; at least from 0.5 to 2."""
    low, high = ax.dataLim.intervaly
    ax.set_yscale("log")
    ax.set_ylim(min(low / 1.1, 0.5), max(high * 1.1, 2.0))
    ax.yaxis.set_major_locator(FixedLocator(log_ticks(*ax.get_ylim())))
    ax.yaxis.set_minor_locator(NullLocator())
    ax.yaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}"))
    ax.axhline(1.0, color="#9aa1ab", linewidth=1.0, zorder=1)


_RATE_OF = {"wrapper": "", "options": dict(sac_arms.BASES["adamw"])}

STUDY = Study(
    name="sac-scales",
    title="The factors of SAC by layer and block over training",
    paper="SAC, OpenReview EB92tITeNq (anonymous ICLR 2026 submission); SGG, arXiv 2506.01049",
    claim=(
        "Layers and blocks differ in the dispersion of their gradients, so that factors made from it should differ, "
        "too, and settle while the model is trained."
    ),
    about=(
        f"A LLaMA of {LAYERS} layers with an untied head is trained 300 steps on news and Wikipedia, with the rate "
        "that is best for AdamW in every arm, so that the factors are seen at the same rate. c is the factor of a "
        "layer, s that of a block in its layer, S their product within the bounds 0.1 and 10. SAC has a factor for a "
        "block, SGG one for each of three clusters of the momentum in each weight."
    ),
    proxies=(
        sac_arms.LANGUAGE_PROXY.format(size="433 thousand", tokens="154 thousand"),
        "gamma, beta and rho are not in the paper: with gamma 0.5 the factors c are the square roots of the ratios.",
        "Statistics every 10 steps; the released code has 500, which would be once here.",
        "SGG clusters anew every 10% of the run and has the average 0.9, as in SAC's comparison.",
    ),
    cases=(Case("language", "language model"),),
    arms=(
        arm("adamw", "AdamW", "the base alone", "adamw"),
        arm("equations", "SAC by equations", "Equations 4 to 9", "adamw", "sac"),
        arm("algorithm1", "SAC by Algorithm 1", "Algorithm 1 as printed", "adamw", "algorithm1"),
        arm("sgg", "SGG", "three clusters of the momentum in each weight", "adamw", "sgg", recluster=30, beta=0.9),
    ),
    baseline="adamw",
    measures=(
        sac_arms.LOSS,
        sac_arms.FACTOR,
        sac_arms.TOKENIZER_FACTOR,
        Measure(key="inside", label="factors within the bounds", better="", digits=3),
        sac_arms.RATE,
    ),
    settings={
        **sac_arms.LANGUAGE,
        "model": Setting(
            {"preset": "tiny", "num_hidden_layers": LAYERS, "tie_word_embeddings": False},
            f"ours: LLaMA, {LAYERS} layers, width 64, untied",
        ),
        "multiples": Setting(sac_arms.HALF_DECADES, "ours: half decades"),
        "rate_of": Setting(_RATE_OF, "all arms have the tuned rate of AdamW alone"),
    },
    run=run,
    seeds=4,
    minutes=3,
    quick=sac_arms.LANGUAGE_QUICK,
    findings=findings,
    figures={
        "factors": (
            "c, s and S over training under the equations (above) and Algorithm 1 (below); medians over seeds.",
            draw_factors,
        ),
        "clusters": ("Scales of SGG over training: median and middle half of the weights, by cluster.", draw_clusters),
    },
    prepare=prepare,
)
