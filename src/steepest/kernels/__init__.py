"""Pure maps on tensors and stacks of matrices: no state, no mutation of the input, explicit compute dtype."""

from steepest.kernels.elementwise import sign
from steepest.kernels.folded_cauchy import folded_cauchy_quantile, temperature
from steepest.kernels.norms import stable_rank
from steepest.kernels.order_statistics import Histogram, Statistics, median_and_mad
from steepest.kernels.polar import COEFFICIENTS, polar
from steepest.kernels.sinkhorn import column_damper, sinkhorn
from steepest.kernels.soft import RELAXATIONS, Relaxation, register, soft_sign
from steepest.kernels.soft_polar import coupled_soft_polar, soft_polar

__all__ = [
    "COEFFICIENTS",
    "RELAXATIONS",
    "Histogram",
    "Relaxation",
    "Statistics",
    "column_damper",
    "coupled_soft_polar",
    "folded_cauchy_quantile",
    "median_and_mad",
    "polar",
    "register",
    "sign",
    "sinkhorn",
    "soft_polar",
    "soft_sign",
    "stable_rank",
    "temperature",
]
