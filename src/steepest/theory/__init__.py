"""Formulas and measurements from the papers: no optimizer needs them, an experiment may."""

from steepest.theory import relaxation, smoothness

__all__ = ["relaxation", "smoothness"]
