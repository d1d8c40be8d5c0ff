"""Formulas and measurements from the papers: no optimizer needs them, an experiment may."""

from steepest.theory import period, relaxation, smoothness

__all__ = ["period", "relaxation", "smoothness"]
