"""lasm-ablation: what is left of LASM when its parts are taken away, and when its gradients are large."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import nn

import steepest
from steepest import rules
from steepest.lab.reproductions.base import Arm, Case, Measure, Report, Results, Setting, Settings, Study
from steepest.lab.reproductions.drawing import draw_rows, draw_series
from steepest.lab.reproductions.sentences import against, paired, tuning
from steepest.lab.reproductions.small_language_model import (
    BUCKET_MEASURES,
    MODEL,
    QUICK,
    Observe,
    prepare,
    train,
    tuned,
)
from steepest.rules.base import by_name

_POINTS = 60


def run(settings: Settings, seed: int, report: Report) -> Mapping[str, float | list[float]]:
    """Tune the learning rate of the arm, or of that whose rate it has (once), then train at it on this seed."""
    arm = {key: value for key, value in settings.items() if key != "rate_of"} | settings["rate_of"]

    def run_at(lr: float, seed: int, report: Report) -> dict[str, float | list[float]]:
        return train(arm, seed, report, lambda model: optimizer(model, arm, lr))

    lr, record = tuned(arm, report, run_at)
    damping = Damping(settings["steps"])
    watch = damping.watch if settings["rule"] == "lasm" else None
    numbers = train(settings, seed, report, lambda model: optimizer(model, settings, lr), watch)
    return numbers | record | damping.record()


def optimizer(model: nn.Module, settings: Settings, lr: float) -> steepest.Steepest:
    """The optimizer of an arm: one rule, or that rule with LASM's factor of each role (`"factors"`) on its rate.

    As in LASM, the decay of the weights does not take the factor, and vectors have none.
    """
    rule = by_name(settings["rule"])(lr=lr, **settings["options"])
    if not settings["factors"]:
        return steepest.Steepest(model, rule)
    roles = steepest.roles(model)
    groups = []
    for name, parameter in model.named_parameters():
        of_role = rules.LASM().for_role(roles[name])
        assert isinstance(of_role, rules.LASM)
        factor = of_role.factor
        decay = rule.weight_decay / factor if parameter.ndim > 1 else 0.0
        groups.append({"params": [(name, parameter)], "rule": replace(rule, lr=lr * factor, weight_decay=decay)})
    return steepest.Steepest(groups)


class Damping:
    """The damping 1 / (1 + sqrt(V)) of all parameters through a run: its mean and its least value."""

    def __init__(self, steps: int) -> None:
        self.every = max(1, steps // _POINTS)
        self.series: dict[str, list[float]] = {"step": [], "damping": [], "lowest": []}

    def watch(self, model: nn.Module, method: steepest.Steepest) -> Observe:
        """What looks at each step that is about to be taken: V is that of the step before."""
        states = [method.state[parameter] for parameter in model.parameters()]

        def observe(step: int) -> None:
            if step and step % self.every == 0:
                values = torch.cat([state["variance"].flatten() for state in states]).sqrt_().add_(1.0).reciprocal_()
                for line, value in zip(
                    self.series.values(), (step, float(values.double().mean()), float(values.amin())), strict=True
                ):
                    line.append(value)

        return observe

    def record(self) -> dict[str, float | list[float]]:
        """The series; the mean over the run, and the least value of any element at any of its points; NaN if empty."""
        mean = float(np.mean(self.series["damping"])) if self.series["damping"] else math.nan
        return {**self.series, "mean damping": mean, "least damping": min(self.series["lowest"], default=math.nan)}


# What the numbers say


def findings(results: Results) -> list[str]:
    """Whether the damping does anything, whether the factors do, and what it takes for the damping to matter."""
    case = results.cases[0]
    found = [paired(results), tuning(results, case)]
    if len(results.seeds) > 1:
        found += [
            f"{title}: {'; '.join(against(results, case, *pair) for pair in pairs)}."
            for title, pairs in (
                ("The damping, with the best rate of each and with LASM's rate in both (nothing else differs)",
                 (("lasm", "control"), ("lasm", "control-same-rate"))),
                ("The factors", (("lasm", "lasm-no-roles"), ("control", "signum"))),
                ("Gradients 1,000 times as large, against the same without (no clipping in both)",
                 (("lasm-scaled", "lasm-unclipped"),)),
                ("The baselines", (("lasm", "adamw"), ("lasm", "lion"))),
            )
        ]  # fmt: skip
    return [*found, _damping(results, case), _published(results, case)]


def _damping(results: Results, case: Case) -> str:
    """The factor that is said to make the method."""
    told = []
    for arm in results.study.arms_of(case):
        cells = [results.cells[case.name, arm.name, seed].numbers for seed in results.seeds]
        found = [numbers for numbers in cells if numbers.get("mean damping") is not None]
        if found:
            mean = float(np.mean([numbers["mean damping"] or math.nan for numbers in found]))
            least = min(numbers["least damping"] or math.nan for numbers in found)
            told.append(f"{arm.label} {mean:.4f} (least of any element {least:.3g})")
    first = [results.cells[case.name, "lasm", seed].numbers.get("mean damping") for seed in results.seeds]
    mean = float(np.mean([value if value is not None else math.nan for value in first]))
    verdict = (
        "at least 0.99, so LASM is Signum with factors, and its second buffer buys nothing"
        if mean >= 0.99
        else "below the 0.99 that was expected: the damping is not idle at this scale"
    )
    return f"Mean damping 1 / (1 + sqrt(V)) over the run: {'; '.join(told)}. For LASM it is {verdict}."


def _published(results: Results, case: Case) -> str:
    """The gaps that the preprint prints, beside ours."""
    measure, lasm = results.study.measures[0], results.study.arm("lasm")
    told = []
    for name in ("control", "lasm-no-roles", "adamw", "lion"):
        arm = results.study.arm(name)
        ours = results.summary(case, arm, measure).mean - results.summary(case, lasm, measure).mean
        theirs = PUBLISHED[name] - PUBLISHED["lasm"]
        told.append(f"{arm.label} {ours:+.3f} here, {theirs:+.3f} there")
    return f"Loss above LASM's, here and in the preprint: {'; '.join(told)}."


# Figures


def draw_damping(figure: Figure, results: Results) -> None:
    """The mean damping over training."""
    draw_series(
        figure, results, results.cases, x="step", y="damping", xlabel="step",
        ylabel="mean of 1 / (1 + sqrt(V)) over the parameters",
        arms=("lasm", "lasm-no-roles", "lasm-unclipped", "lasm-scaled"),
    )  # fmt: skip
    figure.axes[0].set_ylim(0, 1.03)


def draw_loss(figure: Figure, results: Results) -> None:
    """The loss of each arm with its interval."""
    draw_rows(figure, results, results.study.measures[:1])


# The study

PUBLISHED = {"lasm": 4.703, "lasm-no-roles": 4.812, "control": 4.791, "adamw": 4.927, "lion": 6.114}

_LASM = {"betas": [0.9, 0.95], "weight_decay": 0.1}
_SIGNUM = {"betas": [0.9, 0.9], "weight_decay": 0.1}


def _arm(name: str, label: str, text: str, rule: str, *, options: dict[str, Any], **more: Any) -> Arm:
    return Arm(name, label, text, {"rule": rule, "options": options, "factors": False, "rate_of": {}, **more})


STUDY = Study(
    name="lasm-ablation",
    title="LASM: is there more to it than Signum with a factor for each layer?",
    paper='LASM, an unreviewed preprint signed "Aardvark", aardXiv, 31 October 2025',
    claim=(
        "Signs of a variance-damped momentum with factors for attention, MLP and embedding end at 4.703, below AdamW "
        "(4.927) and Lion (6.114); without the damping they end at 4.791, without the factors at 4.812."
    ),
    about=(
        "The damping 1 / (1 + sqrt(V)) depends on the scale of the gradient: with gradients clipped at norm 1 their "
        "elements are far below one, the damping is one to two or more digits, and the rule is Signum (beta 0.9) with "
        "a factor for each role. The control arm is just that. To see the damping at work, one arm has gradients 1,000 "
        "times as large and no clipping; beside it stands LASM without clipping.\n\n"
        "The model is that of sage-embedding-dilemma: 2 layers, a tied vocabulary of 1,024 byte-pair tokens, 300 steps "
        "on news and Wikipedia, cosine rate, 10% warm-up. Each arm has the best of the same number of rates. LASM "
        "keeps two buffers, as much as AdamW; Signum and Lion keep one."
    ),
    proxies=(
        "166 thousand parameters and 307 thousand tokens, where the preprint has 134M; its 4M-token batches and 50,000 "
        "steps would be 200 billion tokens, with which a model of that size should be far below 4.7.",
        "Schedule, warm-up, clipping, sequence length and tokenizer are ours: the preprint gives none.",
        "Rates are tuned for each arm; the preprint gives one rate (3e-4) and no tuning, and its Lion at 6.114 points "
        "to a rate that does not suit it.",
        "Rates are tuned on one seed, and sign methods scatter much here, so that two arms that are all but the same "
        "may get other rates by chance: that is why the control is also run at LASM's rate.",
        "The tied embedding has the factor 0.5; weight decay is decoupled, not multiplied by the factor, and spares "
        "vectors: the preprint does not say.",
        "Smaller models have larger gradients per element at the same norm: the damping is closer to one at 134M.",
    ),
    cases=(Case("language", "language model"),),
    arms=(
        _arm("control", "Signum + factors", "LASM with the damping off", "signum", options=_SIGNUM, factors=True),
        _arm(
            "control-same-rate",
            "Signum + factors at LASM's rate",
            "Signum with the factors at the rate that is best for LASM, so that the damping is all that differs",
            "signum",
            options=_SIGNUM,
            factors=True,
            rate_of={"rule": "lasm", "options": _LASM, "factors": False},
        ),
        _arm("lasm", "LASM", "as the preprint has it", "lasm", options=_LASM),
        _arm(
            "lasm-no-roles",
            "LASM no factors",
            "all factors are 1",
            "lasm",
            options={**_LASM, "attention": 1.0, "mlp": 1.0, "embedding": 1.0},
        ),
        _arm("signum", "Signum", "neither damping nor factors", "signum", options=_SIGNUM),
        _arm(
            "lion",
            "Lion",
            "betas 0.9 and 0.99",
            "lion",
            options={"betas": [0.9, 0.99], "weight_decay": 0.1},
        ),
        _arm(
            "adamw",
            "AdamW",
            "betas 0.9 and 0.95",
            "adamw",
            options={"betas": [0.9, 0.95], "weight_decay": 0.1},
            grid=[1e-3, 2e-3, 4e-3, 8e-3, 1.6e-2],
        ),
        _arm("lasm-unclipped", "LASM no clipping", "gradients as they are", "lasm", options=_LASM, clip=None),
        _arm(
            "lasm-scaled",
            "LASM x 1,000",
            "the loss times 1,000 and no clipping; a sign method would not notice",
            "lasm",
            options=_LASM,
            clip=None,
            gradient_scale=1e3,
        ),
    ),
    baseline="control",
    measures=(
        Measure(key="loss", label="validation loss", unit="nats per token", digits=4),
        Measure(key="mean damping", label="mean damping", better="", digits=4),
        Measure(key="state", label="optimizer state", unit="kB", digits=1),
        *BUCKET_MEASURES,
        Measure(key="rate", label="tuned rate", better="", geometric=True, digits=2),
    ),
    settings={**MODEL, "grid": Setting([5e-4, 1e-3, 2e-3, 4e-3, 8e-3], "ours: rates that are tried")},
    run=run,
    seeds=3,
    minutes=6,
    quick=QUICK,
    references={("language", name): {"loss": value} for name, value in PUBLISHED.items()},
    reference_source="Preprint, 134M, FineWeb",
    reference_note=(
        "The last column is what the preprint prints for 134M parameters on FineWeb (its row without variance scaling "
        "beside our control arm): another model, tokenizer and text, so that no number can be compared with ours, only "
        'gaps. Its row "fixed learning rates" (4.847) is not reproduced, as its meaning is unclear.'
    ),
    findings=findings,
    figures={
        "loss": ("Validation loss with 95 % intervals; the grey line is Signum with factors.", draw_loss),
        "damping": (
            "The damping over training, mean over all parameters; median and middle half of the seeds.",
            draw_damping,
        ),
    },
    prepare=prepare,
)
