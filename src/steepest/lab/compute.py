"""Where and how numbers are computed: the loss, the precision, the device, the threads."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import nn

from steepest.lab.errors import UserError

BF16_GAIN = 0.95  # bf16 is chosen when its step takes less than this part of the fp32 one


def loss_sum(model: nn.Module, tokens: torch.Tensor, precision: str) -> torch.Tensor:
    """Cross-entropy of the next token summed over (batch, length + 1) tokens: float32 from logits in any precision."""
    with torch.autocast(tokens.device.type, dtype=torch.bfloat16, enabled=precision == "bf16"):
        logits = model(input_ids=tokens[:, :-1], use_cache=False).logits
    return nn.functional.cross_entropy(logits.float().flatten(0, 1), tokens[:, 1:].flatten(), reduction="sum")


def backward(model: nn.Module, pieces: Sequence[torch.Tensor], precision: str) -> torch.Tensor:
    """Add the gradient of the mean loss over all tokens of the pieces of a batch; returns that loss."""
    count = sum(rows.shape[0] * (rows.shape[1] - 1) for rows in pieces)
    total = torch.zeros((), device=pieces[0].device)
    for rows in pieces:
        loss = loss_sum(model, rows, precision) / count
        loss.backward()
        total += loss.detach()
    return total


@torch.no_grad()
def evaluate(
    model: nn.Module, batches: Iterable[torch.Tensor], device: torch.device, precision: str
) -> tuple[float, int]:
    """The sum of the token losses over all batches, and their number; the model is in training mode afterwards."""
    model.eval()
    total, count = 0.0, 0
    for batch in batches:
        total += float(loss_sum(model, batch.to(device), precision))
        count += batch.shape[0] * (batch.shape[1] - 1)
    model.train()
    return total, count


def time_precisions(model: nn.Module, tokens: torch.Tensor, rounds: int = 3) -> dict[str, float]:
    """Seconds of one forward and backward pass in fp32 and bf16 autocast: the best of interleaved rounds."""
    best: dict[str, float] = {}
    supported = tokens.device.type != "cuda" or torch.cuda.is_bf16_supported()
    for attempt in range(rounds + 1):
        for precision in ("fp32", "bf16") if supported else ("fp32",):
            began = time.perf_counter()
            loss = loss_sum(model, tokens, precision)
            loss.backward()
            float(loss.detach())  # waits for a GPU
            if attempt:  # the first round allocates
                best[precision] = min(best.get(precision, math.inf), time.perf_counter() - began)
    model.zero_grad(set_to_none=True)
    return best


def choose_precision(wanted: str, model: nn.Module, tokens: torch.Tensor) -> tuple[str, dict[str, float]]:
    """Resolve "auto" by measurement: the precision, and the seconds measured (empty when nothing had to be)."""
    if wanted != "auto":
        return wanted, {}
    seconds = time_precisions(model, tokens)
    return ("bf16" if seconds.get("bf16", math.inf) < BF16_GAIN * seconds["fp32"] else "fp32"), seconds


def pick_device(name: str) -> torch.device:
    """The device of a name; "auto" is CUDA when there is one."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UserError(
            f"device {name!r} cannot be used here: {str(error).splitlines()[0]} Use --device cpu."
        ) from None
    return device


@contextlib.contextmanager
def threads(count: int | None) -> Iterator[None]:
    """Use so many torch threads inside the block; None leaves them alone."""
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)
