"""softsign-language: a small language model trained with hard, soft, switched and truncated maps."""

from __future__ import annotations

import math
import tempfile
import warnings
from collections.abc import Mapping
from typing import Any

from matplotlib.figure import Figure

from steepest.lab import methods
from steepest.lab import training as lab
from steepest.lab.config import TrainConfig, canonical, validate
from steepest.lab.reproductions.base import TUNING_SEED, Arm, Case, Measure, Report, Results, Setting, Settings, Study
from steepest.lab.reproductions.sentences import paired
from steepest.lab.series import PALETTE
from steepest.lab.statistics import Comparison
from steepest.lab.studies import choose
from steepest.lab.wording import listing, rate, signed
from steepest.lab.workloads import open_data

# What distinguishes the arms of a parent, which all have its tuned learning rate.
_OF_THE_ARM = ("soft", "options")
_LINEAR = 0.01  # nats up to which the figure is linear

_tuned: dict[str, tuple[float, bool]] = {}  # what this process has tuned


def run(settings: Settings, seed: int, report: Report) -> Mapping[str, float]:
    """Train with the learning rate of the parent, which is tuned first (once a process) on a seed of its own."""
    lr, edge = parent_rate(settings, report)
    return train(settings, lr, seed, report) | {"rate": lr, "edge": float(edge)}


def parent_rate(settings: Settings, report: Report) -> tuple[float, bool]:
    """Return the learning rate with which the hard parent has the lowest loss, and whether it is on the grid's edge."""
    parent = {key: value for key, value in settings.items() if key not in _OF_THE_ARM} | {"soft": False, "options": {}}
    key = canonical(parent)
    if key not in _tuned:
        grid = parent["grid"]
        losses = {lr: train(parent, lr, TUNING_SEED, report)["loss"] for lr in grid}
        best, edge, _ = choose(grid, {lr: loss if math.isfinite(loss) else None for lr, loss in losses.items()})
        _tuned[key] = (grid[0] if best is None else best, edge)
    return _tuned[key]


def train(settings: Settings, lr: float, seed: int, report: Report) -> dict[str, float]:
    """Carry out one run of the lab.

    Returns:
        The validation loss ("loss", NaN when it diverged), and the beginning of the hashes of the initial weights and
        of the training data as numbers ("weights", "data"): paired arms must agree in them.
    """
    with tempfile.TemporaryDirectory(prefix="steepest-") as folder, warnings.catch_warnings():
        # The arm "truncated-alone" asks for a temperature that never falls, and knows it.
        warnings.filterwarnings("ignore", message=".*highest temperature.*binds")
        result = lab.train(
            configuration(settings, lr, seed), folder, observe=lambda progress: report(progress.step / progress.steps)
        )
    assert result.final is not None  # nobody asks it to stop: `report` raises instead
    return {
        "loss": math.nan if result.loss is None else result.loss,
        "weights": float(int(result.final["init_hash"][:8], 16)),
        "data": float(int(result.final["data_hash"][:8], 16)),
    }


def configuration(settings: Settings, lr: float, seed: int) -> TrainConfig:
    """The run of a cell, as `steepest train` would be told."""
    steps = settings["steps"]
    workload = {
        "model": settings["model"],
        "data": settings["data"],
        "max_bytes": settings["max_bytes"],
        "steps": steps,
        "batch_size": settings["batch_size"],
        "sequence_length": settings["sequence_length"],
        "schedule": {"kind": settings["schedule"], "warmup": 0.1},
        "precision": "fp32",
        "evaluation": {"tokens": settings["validation_tokens"], "every": steps},
    }
    method = {"name": settings["parent"], "lr": lr, "options": {}}
    if settings["soft"]:
        method = {"name": f"soft{settings['parent']}", "lr": lr, "options": soft_options(settings)}
    return validate(
        TrainConfig,
        {
            "workload": workload, "method": method, "seed": seed, "threads": 1, "device": "cpu",
            "checkpoint_every": steps, "log_every": max(1, steps // 100), "keep_checkpoint": False,
        },
    )  # fmt: skip


def soft_options(settings: Settings) -> dict[str, Any]:
    """Return every option of the parent unchanged, the transition, and what the arm adds."""
    parent, soft = (methods.find(name).options for name in (settings["parent"], f"soft{settings['parent']}"))
    inherited = {key: value for key, value in parent.items() if key in soft}
    return {**inherited, "transition": (settings["hard_share"], 1.0), **settings["options"]}


def prepare(settings: Settings) -> None:
    """Fetch and pack the corpus, so that workers find it."""
    open_data(configuration({**settings, "parent": "signum", "soft": False, "schedule": "constant"}, 1e-3, 0))


# What the numbers say


def findings(results: Results) -> list[str]:
    """Whether the gain outlives a falling rate, and whether it comes from the temperature or from the truncation."""
    found = [paired(results), _rates(results)]
    if len(results.seeds) > 1:
        found += [_schedules(results, parent) for parent in ("signum", "muon")]
        found += [_scale(results, schedule) for schedule in ("constant", "cosine")]
        found += [_cause(results, case) for case in results.cases if case.settings["parent"] == "muon"]
    return [sentence for sentence in found if sentence]


def _rates(results: Results) -> str:
    told = []
    for case in results.cases:
        cell = results.cells[case.name, results.study.baseline, results.seeds[0]]
        lr, edge = cell.numbers["rate"] or math.nan, cell.numbers["edge"]
        told.append(f"{rate(lr)} ({case.label}{', on the edge of the grid' if edge else ''})")
    return f"Learning rates, tuned for the hard map on another seed and inherited by the rest: {listing(told)}."


def _difference(results: Results, case: Case, name: str) -> Comparison | None:
    return results.comparison(case, results.study.arm(name), results.study.measures[0])


def _interval(c: Comparison) -> str:
    return f"{signed(c.difference, 4)} [{signed(c.low, 4)}, {signed(c.high, 4)}]"


def _schedules(results: Results, parent: str) -> str:
    """How the soft map changes the loss with each schedule."""
    told = []
    for case in results.cases:
        c = _difference(results, case, "soft")
        if case.settings["parent"] == parent and c is not None:
            word = results.verdict(case, results.study.arm("soft"), results.study.measures[0])
            told.append(f"{_interval(c)} nats with a {case.settings['schedule']} rate ({word})")
    name = {"signum": "SoftSignum", "muon": "SoftMuon"}[parent]
    return f"{name} against its parent: {listing(told)}." if told else ""


def _scale(results: Results, schedule: str) -> str:
    """How large the differences are beside the noise of the seeds: with pairing, tiny ones can be decided too."""
    measure, base = results.study.measures[0], results.study.arm(results.study.baseline)
    cases = [case for case in results.cases if case.settings["schedule"] == schedule]
    compared = [results.comparison(case, arm, measure) for case in cases for arm in results.study.arms_of(case)]
    found = [abs(c.difference) for c in compared if c is not None and math.isfinite(c.difference)]
    if not found:
        return ""
    noise = [results.summary(case, base, measure).sd for case in cases]
    return (
        f"For scale, {schedule} rate: no arm ends further than {max(found):.4f} nats from its parent in the mean, "
        f"whose loss varies over seeds with a standard deviation of {min(noise):.4f} to {max(noise):.4f}."
    )


def _cause(results: Results, case: Case) -> str:
    """The question of the released code: is it the temperature or the truncated iteration?"""
    measure, names = results.study.measures[0], ("soft", "truncated-alone", "truncated")
    told = []
    for name in names:
        c, arm = _difference(results, case, name), results.study.arm(name)
        if c is None:
            return ""
        told.append(f"{arm.label} {_interval(c)} ({results.verdict(case, arm, measure)})")
    alone, full = results.study.arm("truncated-alone"), results.study.arm("truncated")
    apart = results.comparison(case, full, measure, alone)
    rest = "" if apart is None else f"; its temperature adds {_interval(apart)} to truncation alone"
    return f"Temperature or truncation ({case.label}): {listing(told)}{rest}."


def draw(figure: Figure, results: Results) -> None:
    """Differences to the hard parent with their intervals: a panel per parent, a row per arm, a colour per schedule."""
    measure, base = results.study.measures[0], results.study.baseline
    panels: dict[str, list[Case]] = {}
    for case in results.cases:
        panels.setdefault(case.settings["parent"], []).append(case)
    figure.set_size_inches(4.8 * len(panels) if len(panels) > 1 else 6.6, 3.6)
    axes = figure.subplots(1, len(panels), squeeze=False)[0]
    for ax, (parent, cases) in zip(axes, panels.items(), strict=True):
        arms = [arm for arm in results.study.arms_of(cases[0]) if arm.name != base]
        ax.axvline(0.0, color="#9aa1ab", linewidth=1.0, zorder=1)
        for index, case in enumerate(cases):
            color = PALETTE[(1, 3)[index % 2]][0]
            for place, arm in enumerate(arms):
                c = results.comparison(case, arm, measure)
                if c is None or not c.n:
                    continue
                y = place + 0.24 * (index - (len(cases) - 1) / 2)
                if c.n > 1:
                    ax.hlines(y, c.low, c.high, color=color, linewidth=2.0, zorder=3)
                ax.plot(c.difference, y, "os"[index % 2], color=color, markeredgecolor="white", zorder=4)
            ax.plot([], [], "os"[index % 2], color=color, label=f"{case.settings['schedule']} learning rate")
        ax.set_yticks(range(len(arms)), [arm.label for arm in arms])
        ax.set_ylim(len(arms) - 0.5, -0.5)
        ax.set_title(f"against {methods.find(parent).label}")
        # The switch is far off, the others are near zero.
        ax.margins(x=0.1)
        ax.set_xscale("symlog", linthresh=_LINEAR, linscale=2.0)
        ticks = [-_LINEAR, -_LINEAR / 2, 0.0, _LINEAR / 2, _LINEAR, 10 * _LINEAR]
        ax.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        ax.set_xlabel(f"difference in loss (nats; logarithmic beyond {_LINEAR:g})")
        ax.grid(axis="y", visible=False)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=2)


# The study

_SIGN = ("hard", "soft", "algebraic", "switch")
_SPECTRAL = ("hard", "soft", "eps", "truncated-alone", "truncated", "switch")

STUDY = Study(
    name="softsign-language",
    title="Soft maps at the end of language-model training",
    paper="Softsign, arXiv 2605.31371, sections 5.1 and 5.3, Appendix E.3.1",
    claim=(
        "SoftSignum and SoftMuon follow Signum and Muon until the transition and end below them, with the "
        "hyper-parameters of their parents: perplexity 16.216 for 16.362 with SoftMuon at 720M parameters."
    ),
    about=(
        "A byte-level language model of 117 thousand parameters is trained 400 steps on news and Wikipedia. The last "
        "10 % of the steps are the transition: the hard map (the sign, or the polar factor of each matrix) becomes a "
        "soft one. Controls take its place: a switch to momentum SGD, and for SoftMuon the map of the released code, "
        "which stops its iteration early, so that steps shrink at once whatever the temperature. Each parent's "
        "learning rate is tuned, and all its arms have it. A falling (cosine) rate shrinks the last steps as well, so "
        "both schedules are run."
    ),
    proxies=(
        "117 thousand parameters and 819 thousand tokens, where the paper has 130M to 720M and billions: what is seen "
        "here says that the methods work, not how they do at scale.",
        "The corpus is news-wiki (see `steepest data list`), where the paper has C4 and FineWeb-Edu.",
        "The paper's rates fall (cosine); the constant rate is ours, because there the end of training matters most.",
        "The temperature of SoftMuon is fitted to the matrices that are mapped, where the released code takes the raw "
        "gradient; the arm with the released schedule does as that code does.",
    ),
    cases=tuple(
        Case(
            f"{parent}-{schedule}",
            f"{methods.find(parent).label}, {schedule} rate",
            {"parent": parent, "schedule": schedule, "grid": list(methods.find(parent).grid)},
            arms,
        )
        for parent, arms in (("signum", _SIGN), ("muon", _SPECTRAL))
        for schedule in ("constant", "cosine")
    ),
    arms=(
        Arm("hard", "Hard map", "the parent: Signum or Muon to the end", {"soft": False, "options": {}}),
        Arm(
            "soft",
            "Soft map",
            "SoftSignum (tanh) or SoftMuon (algebraic, by the exact augmented polar factor)",
            {"soft": True, "options": {}},
        ),
        Arm(
            "algebraic",
            "Algebraic soft map",
            "SoftSignum with z / sqrt(1 + z^2) for tanh",
            {"soft": True, "options": {"relaxation": "algebraic"}},
        ),
        Arm(
            "eps",
            "Soft map (eps 0.02)",
            "SoftMuon with a margin as small as that of tanh, so that it softens earlier",
            {"soft": True, "options": {"eps": 2e-2}},
        ),
        Arm(
            "truncated-alone",
            "Truncated map (hard)",
            "the released code's 5 coupled iterations at temperature 1e9 throughout, so nothing softens",
            {"soft": True, "options": {"relaxation": "truncated", "temperature_range": [1e9, 1e9]}},
        ),
        Arm(
            "truncated",
            "Truncated map (softening)",
            "the released code's 5 coupled iterations, with the temperature fitted to the raw gradient as there",
            {"soft": True, "options": {"relaxation": "truncated", "sample": "gradient"}},
        ),
        Arm(
            "switch",
            "Hard switch",
            "momentum SGD from the start of the transition, its steps of the same size at the switch",
            {"soft": True, "options": {"relaxation": "switch"}},
        ),
    ),
    baseline="hard",
    measures=(
        Measure(key="loss", label="validation loss", unit="nats per byte", better="lower", digits=4),
        Measure(key="rate", label="learning rate", better="", geometric=True, digits=2),
    ),
    settings={
        "model": Setting("tiny", "ours: the model of `steepest compare --preset demo`"),
        "data": Setting("news-wiki", "ours"),
        "max_bytes": Setting(None, "ours: the whole corpus"),
        "steps": Setting(400, "ours: the demo's"),
        "batch_size": Setting(16, "ours: the demo's"),
        "sequence_length": Setting(128, "ours: the demo's"),
        "validation_tokens": Setting(65_536, "ours: the demo's"),
        "hard_share": Setting(0.9, "the paper's alpha_sign"),
    },
    run=run,
    seeds=3,
    minutes=13,
    quick={
        "model": {"preset": "tiny", "hidden_size": 32, "intermediate_size": 48, "head_dim": 16},
        "data": "synthetic",
        "max_bytes": 200_000,
        "steps": 40,
        "batch_size": 4,
        "sequence_length": 32,
        "validation_tokens": 2_048,
    },
    findings=findings,
    figures={
        "differences": (
            "Validation loss of each arm minus that of its hard parent, with 95 % intervals, paired by seed.",
            draw,
        )
    },
    prepare=prepare,
)
