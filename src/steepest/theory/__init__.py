"""Formulas and measurements from the papers: no optimizer needs them, an experiment may."""

from steepest.theory import norm_ratios, period, relaxation, smoothness

__all__ = ["norm_ratios", "period", "relaxation", "smoothness"]
