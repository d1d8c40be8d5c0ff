"""Pure maps on tensors and stacks of matrices: no state, no mutation of the input, explicit compute dtype."""

from steepest.kernels.elementwise import sign
from steepest.kernels.norms import stable_rank
from steepest.kernels.polar import COEFFICIENTS, polar

__all__ = ["COEFFICIENTS", "polar", "sign", "stable_rank"]
