"""sac-granularity: which factors of SAC help a small language model, and whether constant ones would do (Table 7)."""

from __future__ import annotations

import math

from matplotlib.figure import Figure

from steepest.lab.reproductions import sac_arms
from steepest.lab.reproductions.base import Arm, Case, Results, Study
from steepest.lab.reproductions.drawing import draw_rows
from steepest.lab.reproductions.sac_arms import arm, claim
from steepest.lab.reproductions.sentences import against, paired, tuning
from steepest.lab.reproductions.small_language_model import prepare
from steepest.lab.wording import fixed, signed

# Perplexity on C4, (130M, 350M): Table 7, and Table 1 for the bases.
PUBLISHED = {
    "adamw": (22.64, 16.97),
    "block": (21.92, 16.78),
    "layer": (22.03, 17.12),
    "both": (21.85, 16.16),
    "mini": (23.08, 19.25),
    "mini-both": (22.62, 16.66),
    "group": (21.68, 16.05),
}


def findings(results: Results) -> list[str]:
    """Pairing, tuning, each claim of Table 7 and what is seen of it, the control, and what the embedding does."""
    case = results.cases[0]
    found = [paired(results), tuning(results, case), sac_arms.effective(results, case)]
    if len(results.seeds) > 1:
        pairs = (
            ("block", "adamw"), ("block", "layer"), ("both", "block"), ("group", "both"), ("mini-both", "mini"),
        )  # fmt: skip
        found += [
            f"Claims of Table 7: {'; '.join(claim(results, case, *pair, paper=published(*pair)) for pair in pairs)}.",
            f"Layers alone: {against(results, case, 'layer', 'adamw')}; the paper has {published('layer', 'adamw')}.",
            sac_arms.control(results, case, "adamw", "both", "constant"),
            f"{sac_arms.control(results, case, 'adamw', 'matrices', 'constant')} (SAC without the embedding.)",
            f"The embedding: {against(results, case, 'matrices', 'both')}. The embedding alone is scaled in the one "
            "and not in the other.",
            f"The other description of the method: {against(results, case, 'algorithm1', 'both')}.",
        ]
    return [*found, gains(results, case)]


def published(better: str, worse: str) -> str:
    """The difference that the paper prints, at 130M and at 350M."""
    small, large = (a - b for a, b in zip(PUBLISHED[better], PUBLISHED[worse], strict=True))
    return f"{signed(small, 2)} and {signed(large, 2)} of perplexity at 130M and 350M"


def gains(results: Results, case: Case) -> str:
    """Perplexities as fractions of AdamW's, here and in the paper."""
    base, told = results.study.arm("adamw"), []
    for name, (small, large) in PUBLISHED.items():
        mean = results.summary(case, results.study.arm(name), sac_arms.LOSS).mean
        ratio = math.exp(mean - results.summary(case, base, sac_arms.LOSS).mean)
        theirs = f"{small / PUBLISHED['adamw'][0]:.3f} and {large / PUBLISHED['adamw'][1]:.3f}"
        told.append(f"{results.study.arm(name).label} {fixed(ratio, 3)} ({theirs})")
    return f"Perplexity over that of AdamW, here (and in the paper at 130M and 350M): {'; '.join(told)}."


def draw_loss(figure: Figure, results: Results) -> None:
    """The loss of each arm with its interval."""
    draw_rows(figure, results, [sac_arms.LOSS, sac_arms.TOKENIZER_FACTOR, sac_arms.FACTOR])


_ARMS: tuple[Arm, ...] = (
    arm("adamw", "AdamW", "the base alone", "adamw"),
    arm("block", "P+B", "block factors only", "adamw", "sac", granularity="P+B"),
    arm("layer", "P+L", "layer factors only", "adamw", "sac", granularity="P+L"),
    arm("both", "P+L+B", "SAC+AdamW: layer and block factors", "adamw", "sac", granularity="P+L+B"),
    arm("group", "P+G+L+B", "and a light factor for each head or row (ours)", "adamw", "sac", granularity="P+G+L+B"),
    arm("mini", "Adam-mini", "the base with one second moment a head or row", "adam-mini"),
    arm("mini-both", "G+L+B", "SAC+Adam-mini: layer and block factors", "adam-mini", "sac", granularity="G+L+B"),
    arm("constant", "Constant", "hidden matrices and head at 0.1, the embedding and gains at 1", "adamw", "constant"),
    arm("matrices", "P+L+B without embedding", "the embedding has the factor 1", "adamw", "sac", embedding="exclude"),
    arm("algorithm1", "P+L+B by Algorithm 1", "the factors of the paper's Algorithm 1", "adamw", "algorithm1"),
)

STUDY = Study(
    name="sac-granularity",
    title="SAC: which of its factors help, and would constant ones do?",
    paper="SAC, OpenReview EB92tITeNq (anonymous ICLR 2026 submission), Table 7",
    claim=(
        "Scaling AdamW's steps by the dispersion of gradients of layers and blocks lowers the perplexity of LLaMA on "
        "C4 (22.64 to 21.85 at 130M); blocks bring most of it, layers alone can hurt, groups inside tensors add a "
        "little."
    ),
    about=(
        "A LLaMA of 3 layers with an untied head is trained 300 steps on news and Wikipedia: cosine rate, 10% warm-up, "
        "no clipping, no weight decay. P is AdamW, whose rates are per parameter; G without P is Adam-mini. Factors "
        "are those of Equations 4 to 9 with our defaults (gamma and beta 0.5, rho 0.1, every 10 steps), as the paper "
        "gives none; one arm has those of its Algorithm 1.\n\n"
        "The constant arm is the control. The factors of the authors' released code sit at their lower bound, 0.1, for "
        "all hidden matrices and the head, while the embedding has 1 or more, and the paper's rates are ten times "
        "those of its AdamW: that is AdamW with a larger rate of the embedding and the gains. What SAC gains has to be "
        "more than such constants give.\n\n"
        "Every arm has the best of the same six rates, and of up to three beyond an edge, on a seed of its own."
    ),
    proxies=(
        sac_arms.LANGUAGE_PROXY.format(size="282 thousand", tokens="154 thousand"),
        "gamma, beta, rho, eps and the interval are not in the paper; ours are moderate.",
        "The group factor is not defined in the paper; ours is a power of the gradient's RMS, mean 1 in a block.",
        "D of the model is over the hidden layers, that of the embedding over the rows that have a gradient: as "
        "printed it would be zero, with factors of 10 million.",
        "The paper's rates are tuned, its numbers without seeds; here rates are tuned on one seed, in factors of two.",
    ),
    cases=(Case("language", "language model", missing=lambda: sac_arms.missing("adam-mini")),),
    arms=_ARMS,
    baseline="adamw",
    measures=(
        sac_arms.LOSS,
        sac_arms.PERPLEXITY,
        sac_arms.FACTOR,
        sac_arms.TOKENIZER_FACTOR,
        sac_arms.STATE,
        sac_arms.RATE,
    ),
    settings=sac_arms.LANGUAGE,
    run=sac_arms.run_language,
    seeds=4,
    minutes=5,
    quick=sac_arms.LANGUAGE_QUICK,
    references={("language", name): {"perplexity": small} for name, (small, _) in PUBLISHED.items()},
    reference_source="SAC paper, LLaMA 130M, C4",
    reference_note=(
        "The last column is the paper's perplexity on C4 at 130M (Table 7; bases from Table 1): another model, text "
        "and tokenizer, so that only differences can be compared. At 350M it has AdamW 16.97, P+B 16.78, P+L 17.12, "
        "P+L+B 16.16, Adam-mini 19.25, G+L+B 16.66, P+G+L+B 16.05. Its text gives 21.38 and 16.41 for the full "
        "hierarchy and 21.63 for blocks alone, which are not the numbers of its table."
    ),
    findings=findings,
    figures={
        "loss": (
            "Validation loss with 95 % intervals (the grey line is AdamW), and the mean factors of the embedding and "
            "of the hidden matrices.",
            draw_loss,
        )
    },
    prepare=prepare,
)
