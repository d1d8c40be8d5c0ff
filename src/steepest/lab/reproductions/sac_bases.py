"""sac-bases: SAC and constant factors around five optimizers (Table 1)."""

from __future__ import annotations

import functools
import math

from matplotlib.figure import Figure

from steepest.lab.reproductions import sac_arms
from steepest.lab.reproductions.base import Case, Results, Setting, Study
from steepest.lab.reproductions.drawing import draw_measure
from steepest.lab.reproductions.sentences import paired, tuning
from steepest.lab.reproductions.small_language_model import prepare
from steepest.lab.wording import fixed, listing, signed

# Perplexity of LLaMA 130M and 350M on C4, (bare, with SAC), Table 1. Lion and LionMuon are not in the paper with SAC.
PUBLISHED = {
    "adamw": ((22.64, 21.85), (16.97, 16.16)),
    "adam-mini": ((23.08, 22.62), (19.25, 16.66)),
    "shampoo-ns": ((22.01, 21.96), (16.71, 16.61)),
}
# Name -> label, and the lowest rate that is tried.
_BASES = {
    "adamw": ("AdamW", 4e-3),
    "adam-mini": ("Adam-mini", 4e-3),
    "shampoo-ns": ("Shampoo (Newton-Schulz)", 1e-2),
    "lion": ("Lion", 4e-4),
    "lionmuon": ("LionMuon", 5e-3),
}


def findings(results: Results) -> list[str]:
    """For each base whether SAC is better than it and than constant factors; then what the paper has."""
    found = [paired(results)]
    for case in results.cases:
        found.append(f"{case.label}: {tuning(results, case)}")
        if len(results.seeds) > 1:
            found.append(sac_arms.control(results, case, "bare", "sac", "constant"))
        found.append(sac_arms.effective(results, case))
    return [*found, *([count(results)] if len(results.seeds) > 1 else []), gains(results)]


def count(results: Results) -> str:
    """On how many bases SAC is better than the bare base, and than constant factors."""
    words = {}
    for other in ("bare", "constant"):
        by = results.study.arm(other)
        verdicts = [results.verdict(case, results.study.arm("sac"), sac_arms.LOSS, by) for case in results.cases]
        words[other] = ", ".join(f"{word} on {verdicts.count(word)}" for word in ("better", "worse", "not decided"))
    return f"Of {len(results.cases)} bases, SAC against the bare base: {words['bare']}; against constant factors: " + (
        f"{words['constant']}."
    )


def gains(results: Results) -> str:
    """Perplexity with SAC over that without, here and in the paper."""
    told, absent = [], []
    for case in results.cases:
        bare, sac = (results.summary(case, results.study.arm(name), sac_arms.LOSS).mean for name in ("bare", "sac"))
        text = f"{case.label} {fixed(math.exp(sac - bare), 3)}"
        if case.name in PUBLISHED:
            text += f" ({' and '.join(f'{with_sac / alone:.3f}' for alone, with_sac in PUBLISHED[case.name])})"
        else:
            absent.append(case.label)
        told.append(text)
    rest = f" The paper has no SAC on {listing(absent)}." if absent else ""
    return f"Perplexity with SAC over that without, here (and in the paper at 130M and 350M): {'; '.join(told)}.{rest}"


def draw_loss(figure: Figure, results: Results) -> None:
    """Loss of each base bare and in both wrappings."""
    draw_measure(figure, results, sac_arms.LOSS, results.cases, "base optimizer")
    figure.set_size_inches(8.6, 4.6)


_MINUS = [signed(small[1] - small[0], 2) for small, _ in PUBLISHED.values()]

STUDY = Study(
    name="sac-bases",
    title="SAC around five optimizers, beside constant factors",
    paper="SAC, OpenReview EB92tITeNq (anonymous ICLR 2026 submission), Table 1",
    claim=(
        f"SAC lowers the perplexity of LLaMA 130M on C4 over each of its bases: AdamW by {_MINUS[0]}, Adam-mini by "
        f"{_MINUS[1]}, Shampoo by {_MINUS[2]}."
    ),
    about=(
        "The model, text and schedule of sac-granularity: 3 layers, untied, 300 steps. Each base is run bare, with SAC "
        "(Equations 4 to 9, our defaults) and with constant factors: 0.1 for hidden matrices and the head, 1 for the "
        "embedding and gains, which is where the factors of the authors' released code end up. Each arm has the best "
        "of the same four rates of its base, in half decades, and of up to three beyond an edge.\n\n"
        "Lion and LionMuon are what the paper leaves to future work."
    ),
    proxies=(
        sac_arms.LANGUAGE_PROXY.format(size="282 thousand", tokens="154 thousand"),
        "The paper's Shampoo is, in its released code, an orthogonalised momentum (Newton-Schulz): so is ours.",
        "LionMuon takes AdamW on embedding, head and gains at 0.3 of the rate; SAC scales these steps, too.",
        "Rates are half decades apart and tuned on one seed; small differences between arms of unequal rates may be "
        "of the grid.",
    ),
    cases=tuple(
        Case(
            name,
            label,
            {"base": name, "base_options": sac_arms.BASES[name], "lowest": lowest},
            missing=functools.partial(sac_arms.missing, name),
        )
        for name, (label, lowest) in _BASES.items()
    ),
    arms=(
        sac_arms.arm("bare", "Bare", "the base alone", None),
        sac_arms.arm("sac", "SAC", "layer and block factors", None, "sac"),
        sac_arms.arm("constant", "Constant", "hidden matrices and head at 0.1, the rest at 1", None, "constant"),
    ),
    baseline="bare",
    measures=(sac_arms.LOSS, sac_arms.PERPLEXITY, sac_arms.FACTOR, sac_arms.STATE, sac_arms.RATE),
    settings={
        **sac_arms.LANGUAGE,
        "multiples": Setting(sac_arms.HALF_DECADES, "ours: half decades, from the same for all arms of a base"),
    },
    run=sac_arms.run_language,
    seeds=4,
    minutes=6,
    quick=sac_arms.LANGUAGE_QUICK,
    quick_cases=("adamw", "lion"),
    references={
        (name, arm): {"perplexity": value}
        for name, (small, _) in PUBLISHED.items()
        for arm, value in zip(("bare", "sac"), small, strict=True)
    }
    | {("lion", "bare"): {"perplexity": 24.95}},
    reference_source="SAC paper, LLaMA 130M, C4",
    reference_note=(
        "The last column is the paper's perplexity on C4 at 130M (Table 1), without seeds: another model, text and "
        "tokenizer, so that only differences can be compared. It trains SAC+AdamW at ten times the rate of AdamW."
    ),
    findings=findings,
    figures={"loss": ("Validation loss of each base with 95 % intervals.", draw_loss)},
    prepare=prepare,
)
