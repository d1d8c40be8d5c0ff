"""Methods as frozen values: ``rules.LionMuon(lr=1e-3)``. One file each; the formula is in the docstring."""

from steepest.rules.adamw import AdamW
from steepest.rules.base import SCALES, Gate, Geometry, Phase, Rule, by_name, options
from steepest.rules.geometry import Identity, Polar, Sign
from steepest.rules.lasm import LASM
from steepest.rules.lion import Lion
from steepest.rules.lionmuon import LionMuon
from steepest.rules.momentum import MomentumRule, nesterov
from steepest.rules.muon import Muon, SpectralRule
from steepest.rules.presets import PRESETS, Preset, preset
from steepest.rules.sage import SAGE
from steepest.rules.signmuon import SignMuon
from steepest.rules.signum import Signum
from steepest.rules.sinkgd import SinkGD
from steepest.rules.softened import Softened
from steepest.rules.softlionmuon import SoftLionMuon
from steepest.rules.softmuon import SoftMuon
from steepest.rules.softsignum import SoftSignum

__all__ = [
    "LASM",
    "PRESETS",
    "SAGE",
    "SCALES",
    "AdamW",
    "Gate",
    "Geometry",
    "Identity",
    "Lion",
    "LionMuon",
    "MomentumRule",
    "Muon",
    "Phase",
    "Polar",
    "Preset",
    "Rule",
    "Sign",
    "SignMuon",
    "Signum",
    "SinkGD",
    "SoftLionMuon",
    "SoftMuon",
    "SoftSignum",
    "Softened",
    "SpectralRule",
    "by_name",
    "nesterov",
    "options",
    "preset",
]
