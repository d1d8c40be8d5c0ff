"""Tuned settings of papers, by name, each with its source."""

from __future__ import annotations

import math
from dataclasses import dataclass

from steepest.rules.adamw import AdamW
from steepest.rules.base import Rule, closest
from steepest.rules.lion import Lion
from steepest.rules.lionmuon import LionMuon
from steepest.rules.muon import Muon
from steepest.rules.signmuon import SignMuon
from steepest.rules.signum import Signum


@dataclass(frozen=True)
class Preset:
    """A rule, what goes beside it, and where the numbers stand.

    Attributes:
        rule: for the hidden matrices (or for every parameter, for a sign method).
        rest: for the other parameters.
        source: paper, table and setting.
    """

    rule: Rule
    rest: Rule
    source: str


_V1 = "LionMuon v1 (arXiv 2605.19811), run configurations at 124M, 64k steps of 16k tokens, all corpora"
_V2 = "LionMuon revised (arXiv 2609.35297), cell tuned over the full horizon, FineWeb, 124M, 64k steps of 16k tokens"
_REST = AdamW(lr=1e-3, betas=(0.8, 0.999), eps=1e-8, weight_decay=0.1)


def _lion_muon(lr: float, sign_lr: float, period: float) -> LionMuon:
    return LionMuon(lr=lr, sign_lr_ratio=sign_lr / lr, period=period)


def _sign_muon(lr: float, sign_lr: float, period: float) -> SignMuon:
    return SignMuon(lr=lr, sign_lr_ratio=sign_lr / lr, period=period)


PRESETS: dict[str, Preset] = {
    "lionmuon-v1-p1": Preset(LionMuon(lr=7e-4, period=1), _REST, _V1),
    "lionmuon-v1-p2": Preset(_lion_muon(1e-3, 5e-5, 2), _REST, _V1),
    "lionmuon-v1-p5": Preset(_lion_muon(2e-3, 5e-5, 5), _REST, _V1),
    "lionmuon-v1-p20": Preset(_lion_muon(5e-3, 5e-5, 20), _REST, _V1),
    "lionmuon-v1-p100": Preset(_lion_muon(7e-3, 5e-5, 100), _REST, _V1),
    "signmuon-v1-p2": Preset(_sign_muon(2e-3, 5e-5, 2), _REST, _V1),
    "signmuon-v1-p5": Preset(_sign_muon(3e-3, 5e-5, 5), _REST, _V1),
    "signmuon-v1-p20": Preset(_sign_muon(1e-2, 5e-5, 20), _REST, _V1),
    "signmuon-v1-p100": Preset(_sign_muon(1e-2, 1e-4, 100), _REST, _V1),
    "muon-v1": Preset(Muon(lr=1e-3, betas=(0.9, 0.9)), _REST, _V1),
    "lion-v1": Preset(LionMuon(lr=5e-5, sign_lr_ratio=1.0, period=math.inf), _REST, _V1),
    "signum-v1": Preset(SignMuon(lr=1e-4, sign_lr_ratio=1.0, period=math.inf), _REST, _V1),
    "lionmuon-v2-p1": Preset(LionMuon(lr=1e-3, period=1), _REST, _V2),
    "lionmuon-v2-p2": Preset(LionMuon(lr=1e-3, sign_lr_ratio=1 / 10, period=2), _REST, _V2),
    "lionmuon-v2-p5": Preset(LionMuon(lr=3e-3, sign_lr_ratio=1 / 30, period=5), _REST, _V2),
    "lionmuon-v2-p20": Preset(LionMuon(lr=1e-2, sign_lr_ratio=1 / 100, period=20), _REST, _V2),
    "signmuon-v2-p2": Preset(SignMuon(lr=3e-3, sign_lr_ratio=1 / 30, period=2), _REST, _V2),
    "signmuon-v2-p5": Preset(SignMuon(lr=1e-2, sign_lr_ratio=1 / 300, period=5), _REST, _V2),
    "signmuon-v2-p20": Preset(SignMuon(lr=1e-2, sign_lr_ratio=1 / 100, period=20), _REST, _V2),
    "muon-v2": Preset(Muon(lr=1e-3, betas=(0.9, 0.9)), _REST, _V2),
    "lion-v2": Preset(LionMuon(lr=3e-4, sign_lr_ratio=1.0, period=math.inf), _REST, _V2),
    "signum-v2": Preset(SignMuon(lr=3e-4, sign_lr_ratio=1.0, period=math.inf), _REST, _V2),
    "lion-2023": Preset(Lion(lr=1e-4), Lion(lr=1e-4), "Lion (arXiv 2302.06675), the sign step on every parameter"),
    "signum-2018": Preset(Signum(lr=1e-4), Signum(lr=1e-4), "Signum (arXiv 1802.04434), the sign step everywhere"),
}
"""The two versions of the LionMuon paper are never mixed: "-v1-" and "-v2-" name them. Their runs keep fused
query-key-value weights joined and decay norm gains: pass ``fused="joined", decay_vectors=True`` for parity."""


def preset(name: str) -> Preset:
    """The preset of a name.

    Raises:
        ValueError: there is none; the message gives the closest names.
    """
    if name not in PRESETS:
        raise ValueError(f"unknown preset {name!r}{closest(name, PRESETS)}")
    return PRESETS[name]
