"""SoftSignum on the smallest language model, the unigram softmax, whose optimum is known."""

from __future__ import annotations

import itertools
import math
import warnings
from collections.abc import Callable
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor

import steepest
from steepest.lab.reproductions.base import Arm, Case, Measure, Report, Results, Setting, Settings, Study
from steepest.lab.reproductions.drawing import draw_series
from steepest.lab.schedules import Schedule, set_rates
from steepest.lab.wording import listing

PAPER = "SoftSignum, arXiv:2605.31371 (Feoktistov et al., 2026), Figure 5"
# The gap is a sum of about ten thousand float64 terms: below this it is rounding.
ROUNDING = 1e-14
_TAIL = 50
_POINTS = 100


def targets(vocabulary: int, exponent: float) -> Tensor:
    """Frequencies p_i = i^-exponent / Z of the words, float64."""
    weights = torch.arange(1, vocabulary + 1, dtype=torch.float64) ** -exponent
    return weights / weights.sum()


def gap(logits: Tensor, p: Tensor) -> float:
    """Cross-entropy of softmax(logits) against p minus the entropy of p: the KL divergence, in nats."""
    return float((p * (p.log() - torch.log_softmax(logits, 0))).sum())


def optimizer(parameter: torch.nn.Parameter, settings: Settings) -> steepest.Steepest:
    """The optimizer of an arm: `alpha` is the fraction of the run with the hard sign; 0 means tanh at one temperature.

    Args:
        parameter: the logits.
        settings: of the cell: `alpha`, `steps`, `lr`, `beta`, `eps`, `temperature_range`, `relaxation`.
    """
    betas = (settings["beta"], settings["beta"])
    steps, alpha = settings["steps"], settings["alpha"]
    if alpha == 1:
        return steepest.Signum([parameter], lr=settings["lr"], betas=betas, weight_decay=0.0)
    soft = {"eps": settings["eps"], "relaxation": settings["relaxation"], "betas": betas, "lr": settings["lr"]}
    if alpha == 0:
        # The first step of a transition is hard: it lies one step before the run.
        return steepest.SoftSignum(
            [parameter], transition=(0, steps + 1), clock=1, temperature_range=(1.0, 1.0), **soft
        )
    bounds = (round(alpha * steps), steps)
    return steepest.SoftSignum([parameter], transition=bounds, temperature_range=settings["temperature_range"], **soft)


def run(settings: Settings, seed: int, report: Report) -> dict[str, float | list[float]]:
    """One run: the gap at the end, its mean over the last 50 steps, and its curve."""
    steps, draws = settings["steps"], settings["draws"]
    p = targets(settings["vocabulary"], settings["exponent"])
    random = torch.Generator().manual_seed(seed)
    start = settings["start"] * torch.randn(len(p), generator=random, dtype=torch.float64)
    logits = torch.nn.Parameter(start)
    method = optimizer(logits, settings)
    schedule = Schedule(kind=settings["schedule"], steps=steps, warmup=0)
    gaps = []
    with torch.no_grad(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "soft_signum: the highest temperature")  # SGD-only: meant to be constant
        for step in range(steps):
            if step % 20 == 0:
                report(step / steps)
            seen = p
            if draws:
                drawn = torch.multinomial(p, draws, replacement=True, generator=random)
                seen = torch.bincount(drawn, minlength=len(p)) / draws
            logits.grad = torch.softmax(logits, 0) - seen
            set_rates(method.param_groups, [settings["lr"]], schedule.factor(step))
            method.step()
            gaps.append(gap(logits, p))
    every = max(1, steps // _POINTS)
    return {
        "tail": sum(gaps[-_TAIL:]) / len(gaps[-_TAIL:]),
        "final": gaps[-1],
        "step": [float(step) for step in range(every, steps + 1, every)],
        "gap": gaps[every - 1 :: every],
    }


def _arms() -> tuple[Arm, ...]:
    soft = [
        Arm(
            f"soft-{alpha:g}",
            f"SoftSignum {alpha:g}",
            f"the sign for {alpha:.0%} of the run, then tanh at a falling temperature",
            {"alpha": alpha},
        )
        for alpha in (0.9, 0.5, 0.3)
    ]
    switch = [
        Arm(
            f"switch-{alpha:g}",
            f"hard switch {alpha:g}",
            f"control: the sign for {alpha:.0%} of the run, then momentum SGD, its step as large (RMS) at the switch; "
            "with exact gradients the momentum is so small by then that this rate is far beyond what SGD bears",
            {"alpha": alpha, "relaxation": "switch"},
        )
        for alpha in (0.9, 0.5)
    ]
    sgd = [
        Arm(
            f"sgd-{lr:g}",
            f"SGD lr {lr:g}",
            f"tanh at temperature 1 from the first step (so nearly momentum SGD), at the rate {lr:g}",
            {"alpha": 0, "lr": float(lr)},
        )
        for lr in (10, 30, 100)
    ]
    return (Arm("signum", "Signum", "the sign for the whole run", {"alpha": 1}), *soft, *switch, *sgd)


def _references() -> dict[tuple[str, str], dict[str, float]]:
    arms = ("signum", "soft-0.9", "soft-0.5", "soft-0.3", "sgd-10", "sgd-30", "sgd-100")
    final = {
        "v1000": (6.4e-5, 2.8e-5, 1.9e-5, 2.4e-7, 1.5e-4, 1.0e-7),
        "v10000": (5.8e-5, 3.6e-5, 1.8e-5, 1.3e-7, 4.7e-2, 8.1e-3, 3.4e-4),
        "sampled": (1.8e-2, 1.6e-2, 1.2e-2, 1.1e-2),
        "sampled-cosine": (4.414e-3, 4.413e-3, math.nan, 4.25e-3),
    }
    tail = {"v1000": (6.2e-5, 4.8e-5, 3.4e-5, 8.6e-6), "v10000": (5.9e-5, 5.0e-5, 3.5e-5, 4.9e-6)}
    found: dict[tuple[str, str], dict[str, float]] = {}
    for key, table in (("final", final), ("tail", tail)):
        for case, values in table.items():
            for arm, value in zip(arms, values, strict=False):
                if math.isfinite(value):
                    found.setdefault((case, arm), {})[key] = value
    return found


# What the numbers say


def _findings(results: Results) -> list[str]:
    return [*_orders(results), *_vanishing(results), *_cosine(results), *_sgd(results)]


def _orders(results: Results) -> list[str]:
    """Does more softening mean a smaller gap, and are the steps of that order outside the noise?"""
    measure = results.study.measures[0]
    chain = [results.study.arm(name) for name in ("soft-0.3", "soft-0.5", "soft-0.9", "signum")]
    firm: list[str] = []
    means: list[str] = []
    broken: list[str] = []
    for case in results.cases:
        values = [results.summary(case, arm, measure).mean for arm in chain]
        decided = all(results.verdict(case, a, measure, b) == "better" for a, b in itertools.pairwise(chain))
        (broken if sorted(values) != values else firm if decided else means).append(case.label)
    parts = [
        f"holds, every step of it outside the noise, on {listing(firm)}" if firm else "",
        f"holds in the means, with a step inside the noise, on {listing(means)}" if means else "",
        f"does not hold on {listing(broken)}" if broken else "",
    ]
    return [f"The order SoftSignum 0.3 < 0.5 < 0.9 < Signum {'; '.join(part for part in parts if part)}."]


def _vanishing(results: Results) -> list[str]:
    """What the paper's setting, the last tenth of the run, is worth on each problem."""
    arm, measure = results.study.arm("soft-0.9"), results.study.measures[0]
    parts = []
    for case in results.cases:
        c = results.comparison(case, arm, measure)
        if c is not None and c.n > 1:
            decided = results.verdict(case, arm, measure) != "not decided"
            small = ", though outside the noise" if decided else ", and within the noise"
            word = (
                f"less than 1%{small}"
                if abs(math.expm1(c.difference)) < 0.01
                else ""
                if decided
                else "within the noise"
            )
            parts.append(f"{measure.difference(c)} on {case.label}{f' ({word})' if word else ''}")
    text = "Softening over the last tenth of the run, the paper's setting, multiplies the gap of Signum by"
    return [f"{text} {listing(parts)}."] if parts else []


def _sgd(results: Results) -> list[str]:
    """Where one of the three rates of SGD is better than every sign-based arm."""
    measure = results.study.measures[0]
    groups: dict[str, list[str]] = {"better": [], "worse": [], "not decided": []}
    for case in results.cases:
        ranked = sorted(results.study.arms_of(case), key=lambda arm: results.summary(case, arm, measure).mean)
        sgd = next(arm for arm in ranked if arm.name.startswith("sgd"))
        other = next(arm for arm in ranked if not arm.name.startswith(("sgd", "switch")))
        groups[results.verdict(case, sgd, measure, other)].append(f"{case.label} ({sgd.label} and {other.label})")
    told = "; ".join(f"{word} on {listing(cases)}" for word, cases in groups.items() if cases)
    return [f"The best of three rates of SGD against the best of Signum and SoftSignum: {told}."]


def _cosine(results: Results) -> list[str]:
    """What a falling rate does for Signum alone."""
    measure, signum = results.study.measures[0], results.study.arm("signum")
    names = {case.name: case for case in results.cases}
    found = []
    for plain, falling in (("v1000", "cosine"), ("sampled", "sampled-cosine")):
        if plain in names and falling in names:
            before, after = (results.summary(names[name], signum, measure).mean for name in (plain, falling))
            found.append(f"from {measure.text(before)} to {measure.text(after)} nats ({names[falling].label})")
    return [f"A cosine rate alone takes the gap of Signum {listing(found)}."] if found else []


# The hard switch leaves every reasonable axis where it diverges; the tables have it.
_SIGNS = ("signum", "soft-0.9", "soft-0.5", "soft-0.3")
_SHOWN = (*_SIGNS, "sgd-10", "sgd-30", "sgd-100")


def _drawing(
    names: tuple[str, ...], start: float, lowest: float, shared: bool = True, arms: tuple[str, ...] = _SHOWN
) -> Callable[[Figure, Results], None]:
    def draw(figure: Figure, results: Results) -> None:
        cases = [case for case in results.cases if case.name in names]
        labels = {"xlabel": "step", "ylabel": "gap to the optimum (nats)"}
        if cases:
            draw_series(
                figure, results, cases, x="step", y="gap", log=True,
                arms=arms, start=start, lowest=lowest, shared=shared, **labels,
            )  # fmt: skip

    return draw


_GAP: dict[str, Any] = {"unit": "nats", "geometric": True, "digits": 2, "floor": ROUNDING, "tolerance": 0.05}

STUDY = Study(
    name="softsign-unigram",
    title="Signum, SoftSignum and SGD on a unigram softmax: where softening helps",
    paper=PAPER,
    claim="Signum falls fast and then oscillates at a floor set by its rate, SGD is slow on rare words, and SoftSignum "
    "keeps the fast fall and removes the floor.",
    about="The problem is the smallest language model: one logit for each word of a vocabulary of V words, no context. "
    "Word i has the frequency p_i proportional to 1 / i, the loss is the cross-entropy, the gradient softmax - p, and "
    "the gap is the loss minus its least value, the entropy of p (so the KL divergence). Everything is float64. Signum "
    "moves every logit by the same amount at every step and so cannot settle; SoftSignum lets steps shrink at the end, "
    "those of small momentum first.\n\n"
    "Besides the exact gradient and a constant rate (V = 1000 and 10000) there are three variants with V = 1000 in "
    "which the floor has other causes or other cures: a rate that falls to zero by a cosine, gradients estimated from "
    "256 drawn words, and both.",
    proxies=(
        "Of the paper's experiment only the objective and the three kinds of curve are known to us; dimension, "
        "exponent, steps, rates and momentum are ours.",
        "The temperature comes from the closed form of the quantile, not from the Newton iteration of the released "
        "code, and its only bounds are 1 and 1e9.",
        "The rates are those of a coarse grid for constant rate and exact gradients; they were not tuned for the "
        "variants.",
    ),
    cases=(
        Case("v1000", "V = 1000", {"vocabulary": 1000}),
        Case("v10000", "V = 10000", {"vocabulary": 10000}),
        Case("cosine", "cosine rate", {"schedule": "cosine"}),
        Case("sampled", "sampled gradients", {"draws": 256}),
        Case("sampled-cosine", "sampled, cosine rate", {"draws": 256, "schedule": "cosine"}),
    ),
    arms=_arms(),
    baseline="signum",
    measures=(
        Measure(key="tail", label="mean gap of the last 50 steps", **_GAP),
        Measure(key="final", label="final gap", **_GAP),
    ),
    settings={
        "vocabulary": Setting(1000, "ours"),
        "exponent": Setting(1.0, "ours; Zipf's law"),
        "start": Setting(1e-3, "ours; standard deviation of the initial logits"),
        "steps": Setting(1000, "ours"),
        "schedule": Setting("constant", "ours"),
        "draws": Setting(0, "ours; 0: the exact gradient"),
        "lr": Setting(0.01, "ours; best of 1e-3 to 1e-1 for Signum"),
        "beta": Setting(0.9, "ours"),
        "eps": Setting(1e-4, "the paper"),
        "temperature_range": Setting((1.0, 1e9), "the paper (1); as good as infinite (1e9)"),
        "relaxation": Setting("tanh", "the paper"),
    },
    run=run,
    seeds=8,
    minutes=2,
    quick={},
    quick_cases=("v1000", "sampled-cosine"),
    quick_seeds=3,
    references=_references(),
    reference_source="Script",
    reference_seeds=8,
    reference_note='The columns "Script" are from an independent script with the same setting and 8 seeds, written '
    "before this library; they are not from the paper. Sign dynamics are chaotic, so both scatter over seeds.",
    findings=_findings,
    figures={
        "gap": (
            "Gap to the optimum against the step with the exact gradient and a constant rate: median and middle half "
            "of the seeds. Gaps below 1e-8 are drawn there.",
            _drawing(("v1000", "v10000"), 0, 1e-8),
        ),
        "end": ("The last 150 steps of the same, without SGD.", _drawing(("v1000", "v10000"), 850, 1e-7, arms=_SIGNS)),
        "variants": (
            "V = 1000 with a cosine rate, with sampled gradients, and with both; the second half of the run. Gaps "
            "below 1e-14 are rounding.",
            _drawing(("cosine", "sampled", "sampled-cosine"), 500, ROUNDING, False),
        ),
    },
)
