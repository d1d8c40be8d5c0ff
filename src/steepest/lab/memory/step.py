"""An estimate of what a step of an optimizer allocates: taken on the meta device, with the sizes that a GPU gets."""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import steepest
from steepest.kernels.rounding import noise, noise_key

# Elements of tensors of one shape that are traced. The layers of a model repeat, and these fill the largest batches of
# a step; two of matrices, since what one leaves may be there while the next is mapped.
_TRACED = 1 << 28
# In which a GPU multiplies the matrices of spectral rules, unless a rule says otherwise.
_PRODUCTS = "bfloat16"


class _Allocations(TorchDispatchMode):
    """Keeps account of the storages on the meta device that operations make, from their first to their last tensor."""

    def __init__(self, existing: Iterable[Tensor]) -> None:
        super().__init__()
        self.peak = self._live = 0
        self._known = weakref.WeakSet(tensor.untyped_storage() for tensor in existing)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run an operation and note what it has allocated."""
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor) and tensor.is_meta and tensor.untyped_storage() not in self._known:
                storage = tensor.untyped_storage()
                self._known.add(storage)
                weakref.finalize(storage, self._release, storage.nbytes())
                self._live += storage.nbytes()
                self.peak = max(self.peak, self._live)
        return result

    def _release(self, size: int) -> None:
        self._live -= size


def planned(optimizer: steepest.Steepest, state_dtype: str | None) -> steepest.Steepest:
    """The same optimizer, with what a GPU chooses, and with another dtype of the state of every rule or as it is."""
    groups = []
    for group in optimizer.param_groups:
        changes: dict[str, Any] = {} if state_dtype is None else {"state_dtype": state_dtype}
        if "compute_dtype" in group and group["compute_dtype"] is None:
            changes["compute_dtype"] = _PRODUCTS
        changes["params"] = list(zip(group["param_names"], group["params"], strict=True))
        groups.append({**group, **changes})
    return steepest.Steepest(groups, check_finite="none")  # what is on the meta device cannot be looked at


def step_of_steepest(optimizer: steepest.Steepest) -> int | None:
    """Estimate a step of a `planned` optimizer from some tensors of each kind, which get gradients."""
    for group in optimizer.param_groups:
        given: Counter[torch.Size] = Counter()
        for parameter in group["params"]:
            if given[parameter.shape] < _TRACED:
                given[parameter.shape] += parameter.numel()
                parameter.grad = torch.empty_like(parameter)
    return _traced(optimizer)


def step_of_torch(optimizer: torch.optim.Optimizer) -> int | None:
    """Estimate a step of another optimizer, after a first one that makes its state; all parameters get gradients.

    A fused step allocates nothing, and does not run on the meta device; otherwise a GPU takes lists of tensors.
    """
    fused = any(group.get("fused") for group in optimizer.param_groups)
    for group in optimizer.param_groups:
        group.update({key: value for key, value in (("fused", False), ("foreach", True)) if key in group})
        for parameter in group["params"]:
            parameter.grad = torch.empty_like(parameter)
    optimizer.step()
    return 0 if fused else _traced(optimizer)


def carried_out(optimizer: torch.optim.Optimizer) -> None:
    """Take a real step with random numbers everywhere, for an optimizer that cannot do without."""
    with torch.no_grad():
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                parameter.normal_()
                parameter.grad = torch.randn_like(parameter)
    optimizer.step()


def _traced(optimizer: torch.optim.Optimizer) -> int | None:
    """Highest sum of what a step allocates; None for one that reads or draws numbers, which do not exist here."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    state = [tensor for tensor in tree_leaves(list(optimizer.state.values())) if isinstance(tensor, Tensor)]
    table = noise(1, noise_key(0, 0), "meta")  # a view of all noise: 2 MiB, made once for a step, which are left out
    allocations = _Allocations([*parameters, *gradients, *state, table])
    try:
        with allocations:
            optimizer.step()
    except RuntimeError:
        return None
    return allocations.peak
