"""Tuned settings of papers for the methods by name: betas, epsilon and learning rates by model size, with the source.

They are for the papers' own runs; the grids of the methods are for tiny models. `steepest optimizers show NAME` prints
them, and the key `preset` of a method in a study or a run takes one.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from steepest import rules
from steepest.lab.errors import unknown


@dataclass(frozen=True)
class Paper:
    """What a paper found best for a method.

    Attributes:
        source: paper and table.
        rates: learning rate by setting: a model size or a data set and model.
        options: by the names of the method's options; those of the rates' settings are the same unless `changes` has
            them.
        changes: options of single settings.
    """

    source: str
    rates: dict[str, float]
    options: dict[str, Any] = field(default_factory=dict)
    changes: dict[str, dict[str, Any]] = field(default_factory=dict)


_SIZES = ("60M", "130M", "350M", "1B", "3B")
C4 = "SAC (OpenReview EB92tITeNq), Tables 1 and A2: LLaMA on C4, 131,072 tokens a step; no decay as in GaLore's runs"
VISION = "BOCB, whose settings SAC's Table 2 borrows: CIFAR-100, 200 epochs"
SFT = "SAC (OpenReview EB92tITeNq), Table A3: LLaVA-v1.5-7B, one epoch of instruction tuning; no decay"
LION_MUON = "LionMuon v1 (arXiv 2605.19811), run configurations, FineWeb"
SAGE = "SAGE (arXiv 2604.07663), released script: The Pile, all sizes, not tuned by size"
SINKGD = "SinkGD (arXiv 2502.06742), as in SAGE's code: LLaMA on C4, 131,072 tokens a step, all sizes"


def _c4(rates: str, betas: tuple[float, ...] | None, **options: Any) -> Paper:
    given = {} if betas is None else {"betas": betas}
    by_size = dict(zip(_SIZES, (float(rate) for rate in rates.split()), strict=True))
    return Paper(C4, by_size, given | options | {"weight_decay": 0.0})


def _vision(deit: tuple[float, float], swin: tuple[float, float], convnext: tuple[float, float]) -> Paper:
    cells = {"DeiT-S": deit, "Swin-T": swin, "ConvNeXt-T": convnext}
    changes = {name: {"weight_decay": decay} for name, (_, decay) in cells.items()}
    return Paper(VISION, {name: rate for name, (rate, _) in cells.items()}, changes=changes)


def _sft(rate: float, **options: Any) -> Paper:
    return Paper(SFT, {"7B": rate}, {"betas": (0.9, 0.999)} | options | {"weight_decay": 0.0})


PAPERS: dict[str, tuple[Paper, ...]] = {
    "adamw": (
        _c4("3e-3 1e-3 1e-3 5e-4 5e-4", (0.9, 0.99), eps=1e-8),
        _vision((5e-4, 0.05), (2e-4, 0.05), (5e-4, 0.05)),
        _sft(2e-5),
        Paper(
            LION_MUON,
            {"124M": 5e-4, "355M": 5e-3, "720M": 1e-3},
            {"betas": (0.8, 0.999), "weight_decay": 0.1},
            {"720M": {"betas": (0.9, 0.999)}},
        ),
        Paper(SAGE, {"270M-1.3B": 1e-4}, {"betas": (0.9, 0.999), "weight_decay": 0.01}),
    ),
    "adam8bit": (_c4("3e-3 1e-3 5e-4 5e-4 5e-4", (0.9, 0.99), eps=1e-8),),
    "adam-mini": (_c4("3e-3 1e-3 5e-4 5e-4 1e-3", (0.9, 0.99), eps=1e-8),),
    "adabelief": (
        _c4("1e-2 1e-2 1e-2 1e-3 1e-3", (0.9, 0.999), eps=1e-12),
        _vision((5e-3, 0.01), (5e-3, 0.02), (5e-3, 0.01)),
    ),
    "adafactor": (
        # Only the first beta is printed; the second is not used.
        _c4("2e-3 2e-3 1e-3 5e-4 5e-4", (0.9, 0.999), eps1=1e-30),
        _vision((2e-4, 0.01), (5e-4, 0.02), (5e-4, 0.05)),
        _sft(2e-5),
    ),
    "adamp": (
        _c4("5e-3 1e-3 1e-3 5e-4 5e-4", (0.9, 0.98), eps=1e-8),
        _vision((1e-3, 0.05), (5e-4, 0.05), (5e-3, 0.02)),
    ),
    "adan": (
        _c4("3e-3 3e-3 3e-3 1e-3 1e-3", (0.9, 0.92, 0.99), eps=1e-8),
        _vision((2e-3, 0.05), (5e-3, 0.05), (5e-3, 0.05)),
        _sft(2e-5, betas=(0.98, 0.92, 0.99)),
    ),
    "apollo": (_c4("2e-2 1e-2 1e-2 1e-2 1e-2", (0.9, 0.99), eps=1e-6),),
    "apollo-mini": (
        Paper(SAGE + "; only the matrices of the MLP were projected", {"270M-1.3B": 1e-4}, {"rank": 1, "scale": 128.0}),
    ),
    # The third beta is not printed.
    "came": (_c4("5e-3 2e-3 1e-3 5e-4 5e-4", (0.9, 0.98, 0.9999)), _sft(4e-5, betas=(0.9, 0.999, 0.9999))),
    "lamb": (
        _c4("5e-3 3e-3 1e-3 1e-3 1e-3", (0.9, 0.99), eps=1e-6),
        _vision((5e-3, 0.05), (5e-3, 0.02), (5e-3, 0.05)),
        _sft(2e-4),
    ),
    "lion": (
        _c4("2e-4 2e-4 2e-4 1e-4 1e-4", (0.9, 0.98)),
        _vision((5e-5, 1e-3), (5e-5, 1e-8), (5e-4, 0.0)),
        _sft(2e-6, betas=(0.9, 0.98)),
        Paper(SAGE, {"270M-1.3B": 1e-4}, {"betas": (0.9, 0.99), "weight_decay": 0.01}),
    ),
    "mars+adamw": (
        _c4("5e-3 5e-3 5e-3 1e-3 1e-3", (0.95, 0.99), eps=1e-8),  # Table 1 prints betas (0.9, 0.99)
        _sft(2e-5),
    ),
    "mars+lion": (_c4("5e-4 2e-4 2e-4 1e-4 1e-4", (0.9, 0.98), eps=1e-8),),
    "mars+shampoo": (
        _c4("5e-2 2e-2 1e-2 1e-2 1e-2", (0.95, 0.99), eps=1e-8),  # Table 1 prints betas (0.9, 0.99)
        _sft(1e-4),
    ),
    "muon-torch": (
        # Of the rest no rate is given.
        Paper(
            C4,
            dict(zip(_SIZES, (4e-3, 2e-3, 1e-3, 1e-3, 1e-3), strict=True)),
            {"rest_betas": (0.9, 0.95), "weight_decay": 0.0, "rest_weight_decay": 0.0},
        ),
    ),
    "nadam": (
        _c4("1e-3 1e-3 1e-3 5e-4 5e-4", (0.9, 0.99), eps=1e-8),
        _vision((1e-4, 0.0), (5e-4, 1e-4), (2e-3, 1e-8)),
        _sft(2e-5),
    ),
    "prodigy": (_c4("0.5 1 2 2 1", (0.9, 0.95), eps=1e-8),),
    "radam": (
        _c4("3e-3 1e-3 1e-3 5e-4 5e-4", (0.9, 0.99), eps=1e-8),
        _vision((1e-4, 1e-8), (1e-4, 1e-4), (2e-3, 1e-8)),
        _sft(2e-5),
    ),
    "sage": (Paper(SAGE, {"270M-1.3B": 2e-3}, {"rest_betas": (0.9, 0.99), "rest_weight_decay": 0.01, "alpha": 10.0}),),
    "sgd": (Paper(SFT, {"7B": 1e-5}, {"momentum": 0.99, "weight_decay": 1e-5}),),
    "shampoo-ns": (_c4("5e-2 5e-2 2e-2 1e-2 1e-2", (0.9, 0.999), eps=1e-8), _sft(2e-5)),
    "sinkgd": (Paper(SINKGD, {"60M-1.3B": 0.02}, {"alpha": 0.05, "rounds": 5, "weight_decay": 0.0}),),
    "sinkgd-lion": (
        Paper(SAGE, {"270M-1.3B": 1e-4}, {"rest_betas": (0.9, 0.99), "rest_weight_decay": 0.01, "alpha": 100.0}),
    ),
    "soap": (_c4("3e-3 2e-3 1e-3 5e-4 5e-4", (0.9, 0.95), eps=1e-8), _sft(2e-5)),
    # Table 1 has epsilon 1e-8, which a step that divides by rho h does not need.
    "sophia": (
        _c4("2e-4 2e-4 2e-4 1e-4 1e-4", (0.9, 0.99)),
        _vision((1e-4, 0.2), (5e-5, 0.1), (5e-4, 0.2)),
        _sft(2e-6),
    ),
    "sgg+adamw": (
        _c4("3e-3 1e-3 1e-3 1e-3 1e-3", (0.9, 0.99), eps=1e-8, sgg_beta=0.9),  # 0.99 in SGG's own paper
        _sft(2e-5, sgg_recluster=1000, sgg_clusters=5, sgg_beta=0.9),
    ),
    "sgg+adafactor": (_sft(2e-5, sgg_recluster=1000, sgg_clusters=3, sgg_beta=0.95),),
    "sgg+shampoo-ns": (_sft(2e-5, sgg_recluster=1000, sgg_clusters=5, sgg_beta=0.9, sgg_bounds=(0.5, 10.0)),),
    # Which of its two forms SAC used is not said; the released code is nearer to Algorithm 1.
    "sac+adamw": (
        _c4("1e-2 1e-2 1e-2 1e-2 1e-2", (0.9, 0.99), eps=1e-8, sac_mode="paper-c4"),
        _sft(2e-5, sac_mode="paper-sft"),
    ),
    "sac+adam-mini": (_c4("1e-2 5e-3 5e-3 5e-3 5e-3", (0.9, 0.99), eps=1e-8, sac_mode="paper-c4"),),
    "sac+shampoo-ns": (
        _c4("5e-2 5e-2 3e-2 1e-2 1e-2", (0.9, 0.999), eps=1e-8, sac_mode="paper-c4"),
        _sft(2e-5, sac_mode="paper-c4"),  # bounds (0.1, 10)
    ),
}


def find(name: str, setting: str, source: str = "") -> tuple[float, dict[str, Any]]:
    """Learning rate and options of a method as a paper tuned it.

    Args:
        name: of the method.
        setting: a key of `Paper.rates`, for example "130M", or a name of `steepest.rules.PRESETS` of this method.
        source: a part of `Paper.source`, where two papers have the same setting; else the first is taken.

    Raises:
        UserError: there is none; the message has the closest.
    """
    papers, own = PAPERS.get(name, ()), of_rules(name)
    if not papers and not own:
        raise unknown("method with tuned settings", name, [*PAPERS, *map(_method, rules.PRESETS.values())])
    for paper in papers:
        if setting in paper.rates and source in paper.source:
            return paper.rates[setting], paper.options | paper.changes.get(setting, {})
    if setting not in own:
        raise unknown(f"tuned setting of {name}", setting, [*(key for paper in papers for key in paper.rates), *own])
    preset, default = own[setting], type(own[setting].rule)()
    rate, rest = float(preset.rule.lr), preset.rest
    options = {key: value for key, value in vars(preset.rule).items() if value != getattr(default, key) and key != "lr"}
    if preset.rule.takes == "hidden":
        options["rest_lr_ratio"] = float(rest.lr) / rate
        options |= {f"rest_{key}": getattr(rest, key) for key in ("betas", "weight_decay")}
    return rate, options


def of_rules(name: str) -> dict[str, rules.Preset]:
    """Those of `steepest.rules.PRESETS` that are of a method of the lab."""
    return {key: preset for key, preset in rules.PRESETS.items() if _method(preset) == name}


def _method(preset: rules.Preset) -> str:
    return preset.rule.name.replace("_", "")
