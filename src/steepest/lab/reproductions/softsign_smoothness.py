"""How the local smoothness along a run of SoftSignum changes when its steps soften, on the unigram softmax."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from matplotlib.figure import Figure

from steepest.lab.reproductions.base import Arm, Case, Measure, Report, Results, Setting, Settings, Study
from steepest.lab.reproductions.drawing import draw_series
from steepest.lab.reproductions.softsign_unigram import optimizer, targets
from steepest.lab.wording import listing
from steepest.theory.smoothness import SmoothnessProbe

_WINDOW = 50
_SETTLED = 400  # from here on the sign phase is on its plateau
_BLOCK = 20  # steps averaged to a point of the figure
NORMS = ("euclidean", "coordinate")


def run(settings: Settings, seed: int, report: Report) -> dict[str, float | list[float]]:
    """One run: L_k at every step in both geometries, and its means over windows of steps."""
    steps, alpha = settings["steps"], settings["alpha"]
    p = targets(settings["vocabulary"], settings["exponent"])
    random = torch.Generator().manual_seed(seed)
    logits = torch.nn.Parameter(settings["start"] * torch.randn(len(p), generator=random, dtype=torch.float64))
    method, probe = optimizer(logits, settings), SmoothnessProbe([logits])

    def gradient() -> None:
        logits.grad = torch.softmax(logits.detach(), 0) - p

    found = []
    for step in range(steps):
        if step % 20 == 0:
            report(step / steps)
        gradient()
        probe.before()
        method.step()
        found.append(probe.after(gradient))
    begin = round(alpha * steps)
    values: dict[str, float | list[float]] = {}
    for index, norm in enumerate(NORMS):
        curve = [estimate[index] for estimate in found]
        blocks = range(0, steps - _BLOCK + 1, _BLOCK)
        values |= {
            f"{norm}_last": _mean(curve[-_WINDOW:]),
            f"{norm}_plateau": _mean(curve[_SETTLED:begin]),
            f"{norm}_start": _mean(curve[begin : begin + _WINDOW]),
            f"{norm}_middle": _mean(curve[begin + round(0.6 * (steps - begin)) : begin + round(0.7 * (steps - begin))]),
            norm: [_mean(curve[block : block + _BLOCK]) for block in blocks],
            "step": [block + _BLOCK / 2 for block in blocks],
        }
    return values


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else math.nan


def _findings(results: Results) -> list[str]:
    """The second geometry in the words of the first, and the cause."""
    measure = results.study.measures[-1]
    (case,) = results.cases
    groups: dict[str, list[str]] = {"higher": [], "lower": [], "not decided": []}
    for arm in results.study.arms_of(case):
        if arm.name != results.study.baseline:
            ratio = measure.difference(results.comparison(case, arm, measure))
            groups[results.verdict(case, arm, measure)].append(f"{arm.label} ({ratio})")
    told = "; ".join(f"{word} for {listing(arms)}" for word, arms in groups.items() if arms)
    return [
        f"In the geometry of sign descent (1-norm over max-norm) against Signum: {told}.",
        "Why the Euclidean estimate rises: sign steps spread motion evenly over mostly flat coordinates, soft steps "
        "concentrate it on the steep ones. The rise is a property of the direction of the step, not necessarily of the "
        "landscape.",
    ]


def _draw(figure: Figure, results: Results, norm: str, ylabel: str) -> None:
    draw_series(figure, results, results.cases, x="step", y=norm, xlabel="step", ylabel=ylabel, log=True)


def _draw_euclidean(figure: Figure, results: Results) -> None:
    _draw(figure, results, "euclidean", "local smoothness, Euclidean norms (nats)")


def _draw_coordinate(figure: Figure, results: Results) -> None:
    _draw(figure, results, "coordinate", "local smoothness, 1-norm over max-norm (nats)")


_SMOOTHNESS: dict[str, Any] = {"unit": "nats", "geometric": True, "digits": 2, "better": ""}

STUDY = Study(
    name="softsign-smoothness",
    title="Local smoothness along a run of SoftSignum",
    paper="SoftSignum, arXiv:2605.31371 (Feoktistov et al., 2026), Figure 4",
    claim="The local smoothness along a run rises after the transition has started.",
    about="The problem is that of [softsign-unigram](../softsign-unigram/README.md): a unigram softmax over V = 1000 "
    "words with frequencies proportional to 1 / i, exact gradients in float64. The local smoothness of step k is a "
    "secant of the gradient along the step, L_k = ||grad f(x_{k+1}) - grad f(x_k)|| / ||x_{k+1} - x_k||, with "
    "Euclidean norms, and, in the geometry of sign descent, with the 1-norm of the gradients over the max-norm of the "
    "step. It is measured at every step (`steepest.theory.smoothness`) and averaged over 50 steps.",
    proxies=(
        "The paper's formula and the model of its Figure 4 are not known to us; secant and problem are ours.",
        "The objective has no mini-batches, so this is the smoothness of the objective itself.",
        "The script of the reference starts at exactly zero, in one run. Here a millionth of normal noise is added, "
        "which the chaotic dynamics of signs turns into independent runs.",
    ),
    cases=(Case("v1000", "V = 1000"),),
    arms=(
        Arm("signum", "Signum", "the sign for the whole run", {"alpha": 1}),
        *(
            Arm(
                f"soft-{alpha:g}",
                f"SoftSignum {alpha:g}",
                f"the sign for {alpha:.0%} of the run, then tanh at a falling temperature",
                {"alpha": alpha},
            )
            for alpha in (0.9, 0.5, 0.3)
        ),
    ),
    baseline="signum",
    measures=(
        Measure(key="euclidean_last", label="local smoothness, last 50 steps", tolerance=0.05, **_SMOOTHNESS),
        Measure(
            key="euclidean_plateau", label="local smoothness, sign phase from step 400", tolerance=0.05, **_SMOOTHNESS
        ),
        Measure(
            key="euclidean_start",
            label="local smoothness, first 50 steps of the transition",
            tolerance=0.05,
            **_SMOOTHNESS,
        ),
        Measure(key="euclidean_middle", label="local smoothness, p = 0.6 to 0.7", tolerance=0.05, **_SMOOTHNESS),
        Measure(key="coordinate_last", label="coordinate smoothness, last 50 steps", **_SMOOTHNESS),
    ),
    settings={
        "vocabulary": Setting(1000, "ours"),
        "exponent": Setting(1.0, "ours; Zipf's law"),
        "start": Setting(1e-6, "ours; standard deviation of the initial logits"),
        "steps": Setting(1000, "ours"),
        "lr": Setting(0.01, "as softsign-unigram"),
        "beta": Setting(0.9, "as softsign-unigram"),
        "eps": Setting(1e-4, "the paper"),
        "temperature_range": Setting((1.0, 1e9), "the paper (1); as good as infinite (1e9)"),
        "relaxation": Setting("tanh", "the paper"),
    },
    run=run,
    seeds=8,
    minutes=0.5,
    quick_seeds=2,
    references={
        ("v1000", "signum"): {"euclidean_last": 5.2e-3, "euclidean_plateau": 5.2e-3},
        ("v1000", "soft-0.9"): {"euclidean_last": 8.3e-3, "euclidean_plateau": 5.2e-3, "euclidean_start": 5.4e-3},
        ("v1000", "soft-0.5"): {"euclidean_last": 1.9e-2, "euclidean_start": 5.2e-3, "euclidean_middle": 7.7e-3},
        ("v1000", "soft-0.3"): {"euclidean_last": 9.0e-2},
    },
    reference_source="Script",
    reference_seeds=1,
    reference_note='The columns "Script" are from one run of an independent script written before this library; they '
    "are not from the paper.",
    findings=_findings,
    figures={
        "smoothness": (
            "Local smoothness against the step (means over 20 steps): median and middle half of the seeds.",
            _draw_euclidean,
        ),
        "coordinate_smoothness": ("The same in the geometry of sign descent.", _draw_coordinate),
    },
)
