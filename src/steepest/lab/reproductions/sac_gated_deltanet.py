"""sac-gated-deltanet: AdamW, Muon and SAC on a tiny Gated DeltaNet language model (Table 3)."""

from __future__ import annotations

from collections.abc import Mapping

import transformers
from matplotlib.figure import Figure

from steepest.lab.reproductions import sac_arms
from steepest.lab.reproductions.base import Case, Report, Results, Setting, Settings, Study
from steepest.lab.reproductions.drawing import draw_rows
from steepest.lab.reproductions.sac_arms import arm, claim
from steepest.lab.reproductions.sentences import against, paired, tuning
from steepest.lab.reproductions.small_language_model import prepare

# Perplexity on WikiText of the 1.3B models, Table 3: (Gated DeltaNet, its hybrid with attention).
PUBLISHED = {"adamw": (16.42, 16.07), "muon": (16.31, 15.98), "sac": (15.95, 15.70)}

# Qwen3-Next in transformers: three layers of Gated DeltaNet, then one of attention; dense MLPs.
MODEL = {
    "model_type": "qwen3_next", "num_hidden_layers": 4, "hidden_size": 64, "intermediate_size": 176, "num_experts": 0,
    "num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 32,
    "linear_num_key_heads": 2, "linear_num_value_heads": 2, "linear_key_head_dim": 16, "linear_value_head_dim": 32,
    "linear_conv_kernel_dim": 4, "max_position_embeddings": 128, "initializer_range": 0.069,
    "tie_word_embeddings": False, "use_cache": False, "bos_token_id": None, "eos_token_id": None,
}  # fmt: skip
_QUICK = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "head_dim": 8,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
}


def run(settings: Settings, seed: int, report: Report) -> Mapping[str, float | list[float]]:
    """As for the other language models, without the model's warning that it runs in torch's own, slower code."""
    before = transformers.utils.logging.get_verbosity()
    transformers.utils.logging.set_verbosity_error()
    try:
        return sac_arms.run_language(settings, seed, report)
    finally:
        transformers.utils.logging.set_verbosity(before)


def findings(results: Results) -> list[str]:
    """Pairing, tuning, the paper's order, the control, and the embedding."""
    case = results.cases[0]
    found = [paired(results), tuning(results, case), sac_arms.effective(results, case)]
    if len(results.seeds) > 1:
        pairs = (("muon", "adamw"), ("sac", "adamw"), ("sac", "muon"))
        told = (claim(results, case, *pair, paper=published(*pair)) for pair in pairs)
        found += [
            f"Claims of Table 3: {'; '.join(told)}.",
            sac_arms.control(results, case, "adamw", "sac", "constant"),
            f"SAC without the embedding: {against(results, case, 'matrices', 'adamw')}; "
            f"{against(results, case, 'matrices', 'sac')}.",
        ]
    return found


def published(better: str, worse: str) -> str:
    """The perplexities that the paper prints."""
    a, b = PUBLISHED[better], PUBLISHED[worse]
    return f"{a[0]} against {b[0]} (hybrid {a[1]} against {b[1]})"


def draw_loss(figure: Figure, results: Results) -> None:
    """The loss of each arm with its interval."""
    draw_rows(figure, results, [sac_arms.LOSS])


STUDY = Study(
    name="sac-gated-deltanet",
    title="SAC on a small Gated DeltaNet",
    paper="SAC, OpenReview EB92tITeNq (anonymous ICLR 2026 submission), Table 3",
    claim=(
        "On Gated DeltaNet models of 1.3B parameters and 100B tokens, SAC has a lower perplexity on WikiText (15.95) "
        "than Muon (16.31) and AdamW (16.42), and a little higher accuracies."
    ),
    about=(
        "The model is transformers' Qwen3-Next made tiny: three layers of Gated DeltaNet and one of gated attention, "
        "width 64, dense MLPs, untied head, in torch's own code on the CPU. It is trained 200 steps on news and "
        "Wikipedia: cosine rate, 10% warm-up, gradients clipped at norm 1 as in the paper. The token mixer of a layer, "
        "linear or not, is a block, its MLP the other; convolutions of the mixer are in the mixer's block, decay rates "
        "and gates that are vectors are not scaled.\n\n"
        "Every arm has the best of the same four rates, in half decades, and of up to three beyond an edge; those of "
        "Muon are of its hidden matrices, and AdamW has 0.3 of them on the rest."
    ),
    proxies=(
        sac_arms.LANGUAGE_PROXY.format(size="339 thousand", tokens="102 thousand").replace(
            "60M to 3B (its LLaMA models), 1.3B tokens of C4 and more", "1.3B, 100B tokens of FineWeb-Edu"
        ),
        "Loss and perplexity on held-out text; the paper's accuracies on tasks mean nothing at this size.",
        "No weight decay; the paper has 0.1 and epsilon 1e-15.",
        "The paper gives one rate, 4e-4, and does not say whether it is that of SAC.",
    ),
    cases=(Case("gdn", "Gated DeltaNet"),),
    arms=(
        arm("adamw", "AdamW", "betas 0.9 and 0.99", "adamw"),
        arm("muon", "Muon", "Muon on hidden matrices, AdamW on the rest", "muon"),
        arm("sac", "SAC+AdamW", "layer and block factors", "adamw", "sac"),
        arm("constant", "Constant", "hidden matrices and head at 0.1, the rest at 1", "adamw", "constant"),
        arm("matrices", "SAC without embedding", "the embedding has the factor 1", "adamw", "sac", embedding="exclude"),
    ),
    baseline="adamw",
    measures=(sac_arms.LOSS, sac_arms.PERPLEXITY, sac_arms.FACTOR, sac_arms.STATE, sac_arms.RATE),
    settings={
        **sac_arms.LANGUAGE,
        "model": Setting(MODEL, "ours: Qwen3-Next with 3 layers of Gated DeltaNet and 1 of attention, width 64"),
        "steps": Setting(200, "ours"),
        "clip": Setting(1.0, "the paper"),
        "multiples": Setting(sac_arms.HALF_DECADES, "ours: half decades; equal for all arms"),
    },
    run=run,
    seeds=4,
    minutes=4,
    quick={**sac_arms.LANGUAGE_QUICK, "model": {**MODEL, **_QUICK}},
    references={("gdn", name): {"perplexity": pure} for name, (pure, _) in PUBLISHED.items()},
    reference_source="SAC paper, Gated DeltaNet 1.3B, WikiText",
    reference_note=(
        "The last column is the paper's perplexity on WikiText of its pure Gated DeltaNet (Table 3); its hybrid has "
        "AdamW 16.07, Muon 15.98, SAC 15.70. Another model, text and tokenizer: only orders can be compared."
    ),
    findings=findings,
    figures={"loss": ("Validation loss with 95 % intervals; the grey line is AdamW.", draw_loss)},
    prepare=prepare,
)
