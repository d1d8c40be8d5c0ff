"""What a method costs beside the loss it reaches, each number taken where nothing else can disturb it.

Operations of the model and of an optimizer step, counted on tensors without storage; bytes of the state and of what a
step allocates for a while; the time of a step alone, in turns with a baseline; and how far a step moves the weights.
`account` does it all, each method in a fresh process, and writes accounting.json.
"""

from steepest.lab.accounting.flops import ModelFlops, StepFlops, UncountableError, count_model, count_step
from steepest.lab.accounting.record import FILE, PARTS, Subject, account, of_names, of_study

__all__ = [
    "FILE",
    "PARTS",
    "ModelFlops",
    "StepFlops",
    "Subject",
    "UncountableError",
    "account",
    "count_model",
    "count_step",
    "of_names",
    "of_study",
]
