"""What is known of devices: the only file with numbers and choices that depend on one."""

from __future__ import annotations

import functools

import torch

# Elements of one piece of a large tensor in an element-wise step. On a CPU a piece of every operand must fit the caches
# together, and a fresh temporary of tens of MB would be paid in page faults; a GPU wants few launches instead.
_PIECE = {"cpu": 1 << 18}
_PIECE_ELSEWHERE = 1 << 24
# A tensor of at least this many elements is worth its own calls (or a compiled kernel); smaller ones go as a list.
_LARGE = {"cpu": 1 << 16}
_LARGE_ELSEWHERE = 1 << 24
# Elements of one stack of matrices: on a CPU large matrices are faster one by one, small ones together.
_STACK = {"cpu": 1 << 18}
_STACK_ELSEWHERE = 1 << 27


def piece_elements(device: torch.device) -> int:
    """Number of elements of a tensor that an element-wise step takes at a time."""
    return _PIECE.get(device.type, _PIECE_ELSEWHERE)


def large_elements(device: torch.device) -> int:
    """Number of elements from which a tensor is stepped on its own."""
    return _LARGE.get(device.type, _LARGE_ELSEWHERE)


def stack_elements(device: torch.device) -> int:
    """Number of elements of the matrices that are mapped in one stack."""
    return _STACK.get(device.type, _STACK_ELSEWHERE)


@functools.cache
def product_dtype(device: torch.device, dtype: torch.dtype) -> torch.dtype:
    """The dtype in which this device multiplies matrices of ``dtype`` fast and well enough for Newton-Schulz.

    float64 stays. Otherwise bfloat16 where the hardware has it (never float16: on a CPU it is a hundred times slower).
    """
    if dtype == torch.float64:
        return dtype
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float32
    if device.type == "cpu":
        probes = (getattr(torch.cpu, f"_is_{feature}_supported", None) for feature in ("avx512_bf16", "amx_tile"))
        return torch.bfloat16 if any(probe() for probe in probes if probe is not None) else torch.float32
    return torch.float32


def slow_tanh(device: torch.device) -> bool:
    """Whether tanh costs ten times the logistic function, as in the CPU build of torch."""
    return device.type == "cpu"
