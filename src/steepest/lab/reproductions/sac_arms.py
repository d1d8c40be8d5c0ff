"""What the studies of SAC share: their arms, the factors through a run, training of language models, sentences.

An arm has three settings: "base", the name of a method of the lab; "wrapper", "" for the bare base, "sac" or "sgg"; and
"options", those of the base by their names and those of the wrapper with its name before them ("sac_mode"). Where the
base is a case of the study, the case has "base" and "base_options".
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, cast

import numpy as np
import torch
from torch import nn

import steepest
from steepest.lab import methods
from steepest.lab.config import MethodConfig
from steepest.lab.errors import UserError
from steepest.lab.reproductions.base import Arm, Case, Measure, Report, Results, Setting, Settings
from steepest.lab.reproductions.sentences import against
from steepest.lab.reproductions.small_language_model import MODEL, QUICK, Observe, train, tuned
from steepest.lab.wording import fixed, rate

Build = Callable[[nn.Module], torch.optim.Optimizer]
_POINTS = 60

# The arms

# Averages of the paper's Table 1. No weight decay: the paper names none for C4, and the harness that it uses has none.
BASES: Mapping[str, Mapping[str, Any]] = {
    "adamw": {"betas": [0.9, 0.99], "weight_decay": 0.0},
    "adam-mini": {"betas": [0.9, 0.99], "weight_decay": 0.0},
    "shampoo-ns": {"betas": [0.9, 0.999], "weight_decay": 0.0, "rest_weight_decay": 0.0},
    "lion": {"betas": [0.9, 0.98], "weight_decay": 0.0},
    "muon": {"weight_decay": 0.0, "rest_weight_decay": 0.0},
    "lionmuon": {"weight_decay": 0.0, "rest_weight_decay": 0.0},
}
# What stands around a base, by the name of the arm: (wrapper, its options).
WRAPPINGS: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "bare": ("", {}),
    "sac": ("sac", {}),
    "algorithm1": ("sac", {"mode": "algorithm1"}),
    "constant": ("sac", {"mode": "constant"}),
    "sgg": ("sgg", {}),
}


def arm(name: str, label: str, text: str, base: str | None, wrapping: str = "bare", **options: Any) -> Arm:
    """An arm: a base with its `BASES` options (None: that of the case) in a wrapping, whose own are the keywords."""
    wrapper, own = WRAPPINGS[wrapping]
    settings = {f"{wrapper}_{key}": value for key, value in {**own, **options}.items()}
    if base is None:
        return Arm(name, label, text, {"wrapper": wrapper, "options": settings})
    return Arm(name, label, text, {"base": base, "wrapper": wrapper, "options": {**BASES.get(base, {}), **settings}})


def method(settings: Settings, lr: float) -> MethodConfig:
    """The method of an arm at a learning rate, as `steepest train` would be told."""
    base, wrapper = settings["base"], settings["wrapper"]
    options = {**settings.get("base_options", {}), **settings["options"]}
    return MethodConfig(name=f"{wrapper}+{base}" if wrapper else base, lr=lr, options=options)


def build(settings: Settings, lr: float) -> Build:
    """What makes the optimizer of an arm; `settings` has "steps", "base", "wrapper" and "options"."""
    return lambda model: methods.build(method(settings, lr), model, settings["steps"])


def missing(*bases: str) -> str:
    """Why an arm of these bases cannot be run here: a package that is not installed; "" if they can."""
    toy, told = nn.Sequential(nn.Linear(4, 4)), []
    for base in bases:
        if methods.find(base).package:
            try:
                methods.build(MethodConfig(name=base), toy, 1)
            except UserError as error:
                told.append(str(error))
    return " ".join(told)


# The factors through a run


class Factors:
    """The factors of SAC or SGG through a run, as the step before had them.

    Attributes:
        rows: "step", and of SAC for each block "S LAYER BLOCK" and, in the modes that measure, "c LAYER" and
            "s LAYER BLOCK"; of SGG "S WEIGHT CLUSTER".
        means: geometric mean of S over the elements of each kind of layer (as `Partition.kinds` has them).
        inside: share of the factors that are strictly within the bounds.
    """

    def __init__(self, steps: int) -> None:
        self.every = max(1, steps // _POINTS)
        self.rows: list[dict[str, float]] = []
        self.means: dict[str, list[float]] = {}
        self.inside: list[float] = []

    def watch(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> Observe:
        """What is called before each step."""

        def observe(step: int) -> None:
            if step == 0 or (step - 1) % self.every:
                return
            if isinstance(optimizer, steepest.SAC):
                self._look(step - 1, optimizer)
            elif isinstance(optimizer, steepest.SGG):
                scales = optimizer.scales.items()
                clusters = {f"S {name} {k}": scale for name, each in scales for k, scale in enumerate(each)}
                self.rows.append({"step": step - 1, **clusters})

        return observe

    def _look(self, step: int, sac: steepest.SAC) -> None:
        scales, kinds, last = sac.scales, sac.partition.kinds(), sac.statistics()
        of_kind: dict[str, list[tuple[float, int]]] = {}
        for key, scale in scales.items():
            size = sum(member.parameter.numel() for member in sac.partition.blocks[key])
            of_kind.setdefault(kinds[key[0]], []).append((math.log(scale), size))
        for kind, pairs in of_kind.items():
            logarithms, sizes = zip(*pairs, strict=True)
            self.means.setdefault(kind, []).append(math.exp(np.average(logarithms, weights=sizes)))
        row = {"step": float(step)} | {f"S {layer} {block}": scale for (layer, block), scale in scales.items()}
        if last is not None:
            low, high = sac.options["bounds"] or (0.0, math.inf)
            self.inside.append(float(np.mean([low < scale < high for scale in scales.values()])))
            row |= {f"c {layer}": c for layer, c in last.factors.layers.items()}
            row |= {f"s {layer} {block}": s for (layer, block), s in last.factors.blocks.items()}
        self.rows.append(row)

    def record(self) -> dict[str, float | list[float]]:
        """Over the run: "mean factor" of the hidden layers, "tokenizer factor", "head factor", and "inside"; or NaN."""
        kinds = {"mean factor": "hidden", "tokenizer factor": "tokenizer", "head factor": "head"}
        means = {name: self.means.get(kind, [math.nan]) for name, kind in kinds.items()}
        return {
            **{name: math.exp(float(np.mean(np.log(values)))) for name, values in means.items()},
            "inside": float(np.mean(self.inside)) if self.inside else math.nan,
        }

    def series(self) -> dict[str, list[float]]:
        """The rows as columns; NaN where a block had no gradient yet."""
        keys = dict.fromkeys(key for row in self.rows for key in row)
        return {key: [row.get(key, math.nan) for row in self.rows] for key in keys}


# One run

GROWTHS = Setting(3, "ours, as in `steepest study`: rates that are added beyond an edge, at most")
Numbers = dict[str, "float | list[float]"]


def tune_and_train(
    settings: Settings, seed: int, report: Report, train: Callable[..., Numbers]
) -> tuple[Numbers, dict[str, list[float]]]:
    """Tune the learning rate of the arm (once, on a seed of its own), then train at it on this seed.

    Args:
        settings: of the arm in its case.
        seed: of the run.
        report: of its progress.
        train: takes settings, rate, seed, report and, on the final run, the `Factors` that look on.

    Returns:
        The numbers of the run, of the tuning and of the factors; and the series of the factors S.
    """

    def run_at(lr: float, seed: int, report: Report) -> Numbers:
        return train(settings, lr, seed, report)

    lr, record = tuned(settings, report, run_at)
    factors = Factors(settings["steps"])
    numbers = train(settings, lr, seed, report, factors) | record | factors.record()
    return numbers, {key: line for key, line in factors.series().items() if key.startswith(("step", "S "))}


# Language models

LANGUAGE: dict[str, Setting] = {
    **MODEL,
    "model": Setting(
        {"preset": "tiny", "num_hidden_layers": 3, "tie_word_embeddings": False},
        "ours: LLaMA, 3 layers, width 64, untied as in the paper",
    ),
    "tokenizer": Setting("bpe-1024", "ours: a step touches about a third of the rows of the embedding, as in C4"),
    "batch_size": Setting(8, "ours"),
    "clip": Setting(None, "the harness of the paper's C4 runs does not clip"),
    "lowest": Setting(4e-3, "ours: the lowest learning rate that is tried"),
    "multiples": Setting([1, 2, 4, 8, 16, 32], "ours: the rates that are tried, times the lowest"),
    "growths": GROWTHS,
}
LANGUAGE_QUICK: dict[str, Any] = {
    **QUICK,
    "model": {**QUICK["model"], "tie_word_embeddings": False},
    "steps": 12,
    "validation_tokens": 512,
    "multiples": [1, 4],
    "growths": 0,
}
LANGUAGE_PROXY = (
    "{size} parameters, {tokens} tokens of news and Wikipedia and a vocabulary of 1,024, where the paper has 60M to 3B "
    "(its LLaMA models), 1.3B tokens of C4 and more, and 32,000: what is seen here says that the methods work, not how "
    "they do at scale."
)
HALF_DECADES = [1.0, 3.2, 10.0, 32.0]
LOSS = Measure(key="loss", label="validation loss", unit="nats per token", digits=4)
PERPLEXITY = Measure(key="perplexity", label="perplexity", digits=2)
STATE = Measure(key="state", label="optimizer state", unit="kB", digits=1)
RATE = Measure(key="rate", label="tuned rate", better="", geometric=True, digits=2)
FACTOR = Measure(key="mean factor", label="mean factor of hidden matrices", better="", geometric=True, digits=3)
TOKENIZER_FACTOR = Measure(
    key="tokenizer factor", label="mean factor of the embedding", better="", geometric=True, digits=3
)


def run_language(settings: Settings, seed: int, report: Report) -> Mapping[str, float | list[float]]:
    """Tune the learning rate of the arm, or of that whose rate it has ("rate_of"), once; then train on this seed."""
    numbers, _ = run_and_watch(settings, seed, report)
    return numbers


def run_and_watch(settings: Settings, seed: int, report: Report) -> tuple[dict[str, float | list[float]], Factors]:
    """`run_language`, and the factors through the run on this seed."""
    arm = {key: value for key, value in settings.items() if key != "rate_of"} | settings.get("rate_of", {})
    lowest, multiples = arm.pop("lowest"), arm.pop("multiples")
    arm["grid"] = [lowest * multiple for multiple in multiples]

    def run_at(lr: float, seed: int, report: Report) -> dict[str, float | list[float]]:
        return train_language(arm, lr, seed, report)

    lr, record = tuned(arm, report, run_at)
    factors = Factors(settings["steps"])
    return train_language(settings, lr, seed, report, factors) | record | factors.record(), factors


def train_language(
    settings: Settings, lr: float, seed: int, report: Report, factors: Factors | None = None
) -> dict[str, float | list[float]]:
    """Train a language model with the arm's optimizer at a learning rate; `factors` looks on."""
    watch = None if factors is None else cast("Any", factors.watch)
    return train(settings, seed, report, cast("Any", build(settings, lr)), watch)


# Sentences


def control(results: Results, case: Case, base: str, sac: str, constant: str) -> str:
    """Whether SAC is better than its base, and whether constant factors are not as good."""
    measure = results.study.measures[0]
    arms = {name: results.study.arm(name) for name in (base, sac, constant)}
    gain = results.verdict(case, arms[sac], measure, arms[base])
    rest = results.verdict(case, arms[sac], measure, arms[constant])
    told = "; ".join(against(results, case, *pair) for pair in ((sac, base), (constant, base), (sac, constant)))
    if gain == "better":
        means = {
            "better": "SAC is better than its base, and constant factors do not explain it",
            "worse": "SAC is better than its base, but constant factors are better still",
        }.get(rest, "SAC is better than its base; that this is more than constant factors give is not decided")
    elif gain == "worse":
        means = "SAC is worse than its base, the opposite of what the paper reports"
    else:
        means = "the paper's gain of SAC over its base does not show"
    return f"{case.label}: {told}. Here {means}."


def claim(results: Results, case: Case, better: str, worse: str, paper: str) -> str:
    """What the paper reports of two arms (`paper`: its numbers), and what is seen here."""
    word = results.verdict(case, results.study.arm(better), results.study.measures[0], results.study.arm(worse))
    seen = {"better": "as in the paper", "worse": "the opposite of the paper"}.get(word, "not decided here")
    return f"{against(results, case, better, worse)}; the paper has {paper}: {seen}"


def effective(results: Results, case: Case) -> str:
    """The tuned rate of each arm times its mean factor, of hidden matrices and of the embedding."""
    told = []
    for arm in results.study.arms_of(case):
        found = [results.values(case, arm, key) for key in ("rate", "mean factor", "tokenizer factor")]
        lr, *factors = (float(np.mean(list(values.values()))) for values in found)
        hidden, table = (lr if math.isnan(factor) else lr * factor for factor in factors)
        told.append(f"{arm.label} {rate(hidden)} and {rate(table)}")
    return (
        f"{case.label}, tuned rate times mean factor, of the hidden matrices and of the embedding: {'; '.join(told)}."
    )


def factor_range(results: Results, case: Case) -> str:
    """Between what the factors of SAC lay in a case, and their mean on hidden matrices; "" if there are none."""
    sac = results.study.arm("sac")
    lines = [results.series(case, sac, key).ravel() for key in blocks(results, case)]
    if not lines:
        return ""
    values, mean = np.concatenate(lines), results.summary(case, sac, FACTOR).mean
    low, high = float(np.nanmin(values)), float(np.nanmax(values))
    return f"{case.label} {fixed(low, 2)} to {fixed(high, 2)}, mean {fixed(mean, 2)}"


def blocks(results: Results, case: Case) -> list[str]:
    """The series of SAC's factors in a case, "S LAYER BLOCK"."""
    return [key for key in results.cells[case.name, "sac", results.seeds[0]].series if key.startswith("S ")]
