"""The methods of this library."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from steepest.lab.methods.record import Builder, Method

# Options of a rule that are the routing's business, that have a flag of their own, or that the run decides.
_NOT_OPTIONS = ("lr", "view", "total_steps", "clock")


def _everywhere(name: str) -> Builder:
    def build(model: nn.Module, lr: float, options: dict[str, Any]) -> torch.optim.Optimizer:
        import steepest

        optimizer: torch.optim.Optimizer = getattr(steepest, name)(model, lr=lr, **options)
        return optimizer

    return build


# The AdamW beside a matrix rule. LionMuon's runs have it at 1e-3 whatever the rate of the matrices, that is at 1, 0.3
# and 0.1 of the latter for the tuned cells of period 2, 5 and 20; decay of vectors is off here (it is on there).
_REST = {"rest_lr_ratio": 0.3, "rest_betas": (0.8, 0.999), "rest_weight_decay": 0.1}
_ROUTING = {"decay_vectors": False}


def _hybrid(hidden: str, outside: str = "AdamW") -> Builder:
    """A method on the hidden matrices and a rule on all else, at `rest_lr_ratio` of the rate.

    Options that begin with "rest_" are those of the rule outside, the others those of the method.
    """

    def build(model: nn.Module, lr: float, options: dict[str, Any]) -> torch.optim.Optimizer:
        import steepest

        rest = {key.removeprefix("rest_"): value for key, value in options.items() if key.startswith("rest_")}
        own = {key: value for key, value in options.items() if not key.startswith("rest_")}
        rule = getattr(steepest.rules, outside)(lr=lr * rest.pop("lr_ratio"), **rest)
        optimizer: torch.optim.Optimizer = getattr(steepest, hidden)(model, lr=lr, rest=rule, **own)
        return optimizer

    return build


def _hybrid_options(hidden: str, outside: str, lr_ratio: float, **changed: Any) -> dict[str, Any]:
    rest = {f"rest_{key}": value for key, value in _rule_options(outside).items() if key not in _ROUTING}
    return _rule_options(hidden) | rest | {"rest_lr_ratio": lr_ratio} | changed


def _rule_options(name: str) -> dict[str, Any]:
    from steepest import rules

    fields = {field.name: field.default for field in dataclasses.fields(getattr(rules, name))}
    return {name: fields[name] for name in rules.options(getattr(rules, name)) if name not in _NOT_OPTIONS} | _ROUTING


def _methods() -> Iterator[Method]:
    yield Method(
        name="signum",
        label="Signum",
        paper="Bernstein et al. 2018, arXiv 1802.04434",
        formula="sign(M) on every parameter",
        grid=(4e-4, 8e-4, 1.6e-3, 3.2e-3),
        options=_rule_options("Signum"),
        build=_everywhere("Signum"),
    )
    yield Method(
        name="lion",
        label="Lion",
        paper="Chen et al. 2023, arXiv 2302.06675",
        formula="sign(b1 M + (1 - b1) G) on every parameter",
        grid=(4e-4, 8e-4, 1.6e-3, 3.2e-3),
        options=_rule_options("Lion"),
        build=_everywhere("Lion"),
    )
    yield Method(
        name="muon",
        label="Muon",
        paper="Jordan et al. 2024; scale and decay of Moonlight, arXiv 2502.16982",
        formula="polar(Nesterov M) on hidden matrices; AdamW on the rest",
        grid=(5e-3, 1e-2, 2e-2, 4e-2),
        options=_rule_options("Muon") | _REST | {"fused": "split"},
        build=_hybrid("Muon"),
    )
    yield Method(
        name="signmuon",
        label="SignMuon",
        paper="Bolatov et al. 2026, arXiv 2605.19811",
        formula="polar(M), then period - 1 times sign(M), on hidden matrices; AdamW on the rest",
        grid=(1e-2, 2e-2, 4e-2, 8e-2),
        options=_rule_options("SignMuon") | _REST | {"fused": "split"},
        build=_hybrid("SignMuon"),
    )
    yield Method(
        name="softsignum",
        label="SoftSignum",
        paper="Feoktistov et al. 2026, arXiv 2605.31371",
        formula="sign(M), softening to tanh(tau M) in the last tenth of the run, on every parameter",
        grid=(4e-4, 8e-4, 1.6e-3, 3.2e-3),
        options=_rule_options("SoftSignum") | {"transition": (0.9, 1.0)},
        build=_everywhere("SoftSignum"),
    )
    yield Method(
        name="hard-switch",
        label="HardSwitchSign",
        paper="a baseline of Feoktistov et al. 2026, arXiv 2605.31371, which does not say how it scales the rate",
        formula="sign(M); in the last tenth of the run M at the same root mean square (SGD), on every parameter",
        grid=(4e-4, 8e-4, 1.6e-3, 3.2e-3),
        options=_rule_options("SoftSignum") | {"transition": (0.9, 1.0), "relaxation": "switch"},
        build=_everywhere("SoftSignum"),
    )
    yield Method(
        name="softmuon",
        label="SoftMuon",
        paper="Feoktistov et al. 2026, arXiv 2605.31371; scale and decay of Moonlight, arXiv 2502.16982",
        formula="polar(Nesterov M), softening to M (M'M + tau^-2)^(-1/2), on hidden matrices; AdamW on the rest",
        grid=(5e-3, 1e-2, 2e-2, 4e-2),
        # Scale and decay of our Muon, so that its learning rate carries over.
        options=_rule_options("SoftMuon")
        | {"transition": (0.9, 1.0), "scale": "match_rms", "weight_decay": 0.1}
        | _REST
        | {"fused": "split"},
        build=_hybrid("SoftMuon"),
    )
    yield Method(
        name="softlionmuon",
        label="SoftLionMuon",
        paper="this library: LionMuon (arXiv 2605.19811) with the maps of SoftMuon (arXiv 2605.31371)",
        formula="LionMuon whose spectral and sign steps soften in the last tenth of the run; AdamW on the rest",
        grid=(5e-3, 1e-2, 2e-2, 4e-2),
        options=_rule_options("SoftLionMuon") | {"transition": (0.9, 1.0)} | _REST | {"fused": "split"},
        build=_hybrid("SoftLionMuon"),
    )
    yield Method(
        name="lionmuon",
        label="LionMuon",
        paper="Bolatov et al. 2026, arXiv 2605.19811",
        formula="polar(D), then period - 1 times sign(D), D = b1 M + (1 - b1) G, on hidden matrices; AdamW on the rest",
        grid=(5e-3, 1e-2, 2e-2, 4e-2),
        options=_rule_options("LionMuon") | _REST | {"fused": "split"},
        build=_hybrid("LionMuon"),
    )


def _light_methods() -> Iterator[Method]:
    yield Method(
        name="sage",
        label="SAGE",
        paper="Lee and Kim 2026, arXiv 2604.07663",
        formula="H sign(b1 M + (1 - b1) G), H a bounded damper per column, on all but hidden matrices; SinkGD on these",
        grid=(1e-3, 2e-3, 4e-3, 8e-3),
        # The released hybrid: columns of norm 1, times 10, on the hidden matrices.
        options=_hybrid_options("SinkGD", "SAGE", 1.0, alpha=10.0, target="unit", weight_decay=0.01),
        build=_hybrid("SinkGD", "SAGE"),
    )
    yield Method(
        name="sinkgd",
        label="SinkGD",
        paper="Scetbon et al. 2025, arXiv 2502.06742",
        formula="0.05 sinkhorn(G) on hidden matrices, without state; AdamW on the rest",
        grid=(1e-2, 2e-2, 4e-2, 8e-2),
        options=_hybrid_options("SinkGD", "AdamW", 0.2, rest_weight_decay=0.0),
        build=_hybrid("SinkGD", "AdamW"),
    )
    yield Method(
        name="sinkgd-lion",
        label="SinkGD + Lion",
        paper="the Lion-Hybrid of SAGE's comparison, arXiv 2604.07663",
        formula="sinkhorn(G) on hidden matrices, without state; Lion on the rest",
        grid=(1e-3, 2e-3, 4e-3, 8e-3),
        # The same step on the hidden matrices as the method sage, so that the rule of the embeddings is all there is.
        options=_hybrid_options("SinkGD", "Lion", 1.0, alpha=10.0, target="unit", weight_decay=0.01)
        | {"rest_weight_decay": 0.01},
        build=_hybrid("SinkGD", "Lion"),
    )
    yield Method(
        name="lasm",
        label="LASM",
        paper="an unreviewed preprint, aardXiv, 31 October 2025; experimental",
        formula="factor of the role x sign(M), M damped by 1 / (1 + sqrt(V)), on every parameter",
        grid=(4e-4, 8e-4, 1.6e-3, 3.2e-3),
        options={key: value for key, value in _rule_options("LASM").items() if key != "factor"},
        build=_everywhere("LASM"),
    )
    yield Method(
        name="lionmuon-sage",
        label="LionMuon + SAGE",
        paper="this library: LionMuon (arXiv 2605.19811) with the embeddings of SAGE (arXiv 2604.07663)",
        formula="LionMuon on hidden matrices; damped signs on the rest",
        grid=(5e-3, 1e-2, 2e-2, 4e-2),
        options=_hybrid_options("LionMuon", "SAGE", 0.1),
        build=_hybrid("LionMuon", "SAGE"),
    )
    yield Method(
        name="softmuon-sage",
        label="SoftMuon + SAGE",
        paper="this library: SoftMuon (arXiv 2605.31371) with the embeddings of SAGE (arXiv 2604.07663)",
        formula="SoftMuon on hidden matrices; damped signs on the rest",
        grid=(5e-3, 1e-2, 2e-2, 4e-2),
        options=_hybrid_options("SoftMuon", "SAGE", 0.1, transition=(0.9, 1.0), scale="match_rms", weight_decay=0.1),
        build=_hybrid("SoftMuon", "SAGE"),
    )


def ours() -> Iterator[Method]:
    """Every method of this library."""
    yield from _methods()
    yield from _light_methods()
