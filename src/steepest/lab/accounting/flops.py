"""Floating-point operations of a model and of an optimizer step, counted where shapes are all there is.

Conventions. A product of (m, k) and (k, n) is 2 m k n operations, as everywhere; looking up an embedding is none.
Attention is counted on the plain path, with the whole square of scores (a fused causal kernel does about half of it).
Of element-wise work an operation on one element is 1 (a sum, a product, a root, a sign, a comparison); what torch does
in one call counts as what it computes: ``lerp``, ``addcmul`` and ``addcdiv`` 3, ``add`` with a factor 2, a norm 2 and
any other reduction 1 per element read. Moving, casting and drawing numbers is free. Decompositions of matrices have
their textbook counts (Golub and Van Loan, Matrix Computations, 4th ed., sections 4.2, 5.2 and 8.6).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from steepest.lab.accounting.subject import Job, cycle, give_noise, give_sample, parameters
from steepest.lab.errors import UserError
from steepest.lab.methods.accounting import unwrapped

# In which spectral rules are counted: what they take themselves where the hardware has it. In float32 ours take a form
# with fewer operations for elongated matrices.
_PRODUCTS = "bfloat16"
# Parameters of the largest model on which a step is carried out, where it does not run on the meta device.
_CARRIED_OUT = 1 << 27


class UncountableError(UserError):
    """A step does work of which nobody knows how much it is; the message says what."""


# The model -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ModelFlops:
    """Operations of one forward and backward pass.

    Attributes:
        total: of the batch, as counted; the formula's where the model does not run on the meta device.
        tokens: of the batch.
        formula: 6 x weights of all matrices that multiply, head included, x tokens + `attention`.
        attention: 12 x layers x length x heads x head size x tokens.
        note: why `total` is not a count; "" if it is one.
    """

    total: int
    tokens: int
    formula: int
    attention: int
    note: str = ""

    @property
    def per_token(self) -> float:
        """Operations per token."""
        return self.total / self.tokens


def model_flops(job: Job) -> ModelFlops:
    """Count the operations of one forward and backward pass over the batch of a workload."""
    return count_model(job.model("meta"), job.workload.batch_size, job.workload.sequence_length)


def count_model(model: nn.Module, batch_size: int, length: int) -> ModelFlops:
    """Count a pass of a causal language model that is on the meta device."""
    tokens = batch_size * length
    formula, attention = model_formula(model, batch_size, length)
    try:
        total, note = _counted_pass(model, batch_size, length), ""
    except (RuntimeError, NotImplementedError, AttributeError, TypeError) as error:
        total, note = formula, f"by formula, the model does not run without numbers ({_brief(error)})"
    return ModelFlops(total, tokens, formula, attention, note)


def model_formula(model: nn.Module, batch_size: int, length: int) -> tuple[int, int]:
    """Operations of a pass by formula, and those of attention scores among them."""
    config: Any = model.config
    tokens, heads = batch_size * length, config.num_attention_heads
    size = getattr(config, "head_dim", None) or config.hidden_size // heads
    # transformers' GPT-2 has its linear layers as Conv1D, with the weight transposed.
    linear = [m for m in model.modules() if isinstance(m, nn.Linear) or type(m).__name__ == "Conv1D"]
    weights = sum(parameter.numel() for m in linear for parameter in m.parameters() if parameter.ndim == 2)
    attention = 12 * config.num_hidden_layers * length * heads * size * tokens
    return 6 * weights * tokens + attention, attention


def _counted_pass(model: Any, batch_size: int, length: int) -> int:
    model.set_attn_implementation("eager")  # fused kernels count as nothing on some devices
    tokens = torch.zeros(batch_size, length, dtype=torch.long, device="meta")
    # A mask of its own: the model would look at numbers to find out which it needs.
    mask = torch.zeros(batch_size, 1, length, length, device="meta")
    with FlopCounterMode(display=False) as counter:
        logits = model(input_ids=tokens, attention_mask=mask, use_cache=False).logits
        nn.functional.cross_entropy(logits.flatten(0, 1), tokens.flatten(), reduction="sum").backward()
    model.zero_grad(set_to_none=True)
    return int(counter.get_total_flops())


# Decompositions ------------------------------------------------------------------------------------------------------


def _matrices(shape: Sequence[int]) -> tuple[int, int, int]:
    """How many matrices there are in a stack, the longer side and the shorter one."""
    return math.prod(shape[:-2]), max(shape[-2:]), min(shape[-2:])


def _svd(shape: Sequence[int], full: bool = False, vectors: bool = True, **_: Any) -> int:
    count, m, n = _matrices(shape)
    return count * (6 * m * n**2 + 20 * n**3 if vectors else 4 * m * n**2 - 4 * n**3 // 3)


def _qr(shape: Sequence[int], *_: Any, **__: Any) -> int:
    count, m, n = _matrices(shape)
    return count * (4 * m * n**2 - 4 * n**3 // 3)


def _eigh(shape: Sequence[int], part: str = "L", vectors: bool = True, **_: Any) -> int:
    count, n, _n = _matrices(shape)
    return count * (9 * n**3 if vectors else 4 * n**3 // 3)


def _cholesky(shape: Sequence[int], *_: Any, **__: Any) -> int:
    count, n, _n = _matrices(shape)
    return count * (n**3 // 3)


def _inverse(shape: Sequence[int], *_: Any, **__: Any) -> int:
    count, n, _n = _matrices(shape)
    return count * 2 * n**3


_DECOMPOSITIONS: dict[Any, Callable[..., int]] = {
    torch.ops.aten._linalg_svd: _svd,
    torch.ops.aten.linalg_qr: _qr,
    torch.ops.aten._linalg_eigh: _eigh,
    torch.ops.aten.linalg_cholesky_ex: _cholesky,
    torch.ops.aten.linalg_inv_ex: _inverse,
}

# Element-wise work ---------------------------------------------------------------------------------------------------

_FREE = {
    "alias", "as_strided", "cat", "clone", "contiguous", "copy", "detach", "diag_embed", "embedding", "empty",
    "empty_like", "empty_strided", "expand", "eye", "fill", "flip", "full", "full_like", "gather", "index", "index_put",
    "index_select", "lift_fresh", "local_scalar_dense", "masked_fill", "new_empty", "new_empty_strided", "new_full",
    "new_ones", "new_zeros", "normal", "ones", "ones_like", "pad", "arange", "rand", "rand_like", "randint", "randn",
    "randn_like", "randperm", "repeat", "resize", "roll", "scalar_tensor", "scatter", "set", "slice_scatter", "stack",
    "split_with_sizes_copy", "to_copy", "tril", "triu", "uniform", "unsafe_view", "zero", "zeros", "zeros_like",
    "bernoulli", "constant_pad_nd", "random", "exponential", "select_scatter", "view_as_real_copy",
}  # fmt: skip
_WEIGHTS = {"lerp": 3, "addcmul": 3, "addcdiv": 3}
_REDUCTIONS = {
    "sum": 1, "mean": 1, "prod": 1, "amax": 1, "amin": 1, "max": 1, "min": 1, "aminmax": 1, "median": 1, "kthvalue": 1,
    "sort": 1, "topk": 1, "any": 1, "all": 1, "cumsum": 1, "argmax": 1, "argmin": 1, "histc": 1, "bincount": 1,
    "nansum": 1, "count_nonzero": 1, "trace": 1, "norm": 2, "linalg_vector_norm": 2, "var": 3, "std": 3, "var_mean": 3,
    "dot": 2, "vdot": 2, "logsumexp": 2, "nanmedian": 1, "searchsorted": 1, "bucketize": 1, "nonzero": 1,
}  # fmt: skip
_NAMESPACES = ("aten", "prims", "prim", "profiler")


class Elements(TorchDispatchMode):
    """Counts element-wise operations and reductions; products are the business of torch's `FlopCounterMode`.

    Attributes:
        count: operations so far.
        opaque: names of operations of which it cannot say anything.
    """

    def __init__(self, products: FlopCounterMode) -> None:
        super().__init__()
        self.count = 0
        self.opaque: set[str] = set()
        self._products = products.flop_registry

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run an operation and count it, or the operations that it is made of."""
        with self:
            result = func.decompose(*args, **(kwargs or {}))
        if result is not NotImplemented:
            return result
        result = func(*args, **(kwargs or {}))
        if func._overloadpacket not in self._products and not func.is_view:
            self._add(func, args, kwargs or {}, result)
        return result

    def _add(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> None:
        name = func._schema.name.partition("::")[2].removeprefix("_foreach").strip("_")
        if func.namespace not in _NAMESPACES or (name.startswith("linalg_") and name not in _REDUCTIONS):
            self.opaque.add(str(func))
        elif name in _REDUCTIONS and not (name in ("max", "min") and _elements(result) == _elements(args[0])):
            self.count += _REDUCTIONS[name] * _elements(args[0])
        elif name not in _FREE and func.namespace != "profiler":
            alpha = kwargs.get("alpha", args[2] if len(args) > 2 and name in ("add", "sub") else 1)
            weight = _WEIGHTS.get(name, 1 if alpha == 1 else 2)
            # An operation on a list in place returns nothing; its first argument is what it wrote.
            self.count += weight * (_elements(result) or _elements(args[:1]))


def _elements(value: Any) -> int:
    return sum(leaf.numel() for leaf in tree_leaves(value) if isinstance(leaf, torch.Tensor))


# The optimizer -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class StepFlops:
    """Operations of an optimizer step, the mean over a cycle of its steps.

    Attributes:
        products: of products and decompositions of matrices.
        elements: of everything else.
        extra_passes: forward and backward passes of its own per step, as a part of the one it always gets.
        note: what qualifies the number; "" for nothing.
    """

    products: float
    elements: float
    extra_passes: float = 0.0
    note: str = ""

    @property
    def total(self) -> float:
        """Operations per step, without those of the model in extra passes."""
        return self.products + self.elements


def step_flops(job: Job) -> StepFlops:
    """Count a step of the optimizer of a job: on the meta device, or carried out where it has to see numbers.

    Soft rules are counted before their transition.

    Raises:
        UncountableError: the step runs in kernels of which nothing is known, or the model is too large to carry it out.
    """
    try:
        model = job.model("meta")
        return count_step(job.optimizer(model))
    except UserError:
        raise
    except Exception as error:  # whatever a package makes of tensors without numbers
        reason = _brief(error)
    size = sum(parameter.numel() for parameter in model.parameters())
    if size > _CARRIED_OUT:
        raise UncountableError(
            f"the step does not run without numbers ({reason}), and is carried out for models of up to "
            f"{_CARRIED_OUT:,} parameters only; this one has {size:,}"
        )
    model = job.model("cpu")
    flops = count_step(job.optimizer(model))
    return StepFlops(flops.products, flops.elements, flops.extra_passes, "counted in a step on random numbers")


def count_step(optimizer: torch.optim.Optimizer) -> StepFlops:
    """Count the steps of a cycle of an optimizer, whose parameters may be on the meta device; they get gradients."""
    owner: Any = unwrapped(optimizer)
    if hasattr(owner, "check_finite"):
        owner.check_finite = "none"  # part of no step, and nothing to look at on the meta device
    for group in optimizer.param_groups:  # the same mathematics, in operations that can be counted
        group.update({key: value for key, value in (("fused", False), ("foreach", True)) if key in group})
        if group.get("compute_dtype", "") is None:
            group["compute_dtype"] = _PRODUCTS
    turns = cycle(optimizer)
    first = _counted_steps(optimizer, 1)
    if turns.start > 1:
        _counted_steps(optimizer, turns.start)
    mean = _counted_steps(optimizer, turns.steps)
    if turns.seldom is None:
        return mean
    # What the first step did beyond a usual one comes again once in an interval that is too long to be carried out.
    products = max(first.products - mean.products, 0.0) / turns.seldom
    elements = max(first.elements - mean.elements, 0.0) / turns.seldom
    return StepFlops(mean.products + products, mean.elements + elements, mean.extra_passes)


def _counted_steps(optimizer: torch.optim.Optimizer, steps: int) -> StepFlops:
    """Take some steps; the mean count of one."""
    products, samples = FlopCounterMode(display=False, custom_mapping=_DECOMPOSITIONS), 0
    elements = Elements(products)
    with products:
        for step in range(steps):
            if next(iter(parameters(optimizer))).is_meta:
                for parameter in parameters(optimizer):
                    parameter.grad = torch.empty_like(parameter)
            else:
                give_noise(optimizer, step)
            samples += give_sample(optimizer)
            with elements:
                optimizer.step()
    if elements.opaque:
        raise UncountableError(f"the step runs in kernels whose work is unknown: {', '.join(sorted(elements.opaque))}")
    return StepFlops(products.get_total_flops() / steps, elements.count / steps, samples / steps)


def _brief(error: Exception) -> str:
    return " ".join(str(error).split())[:100] or type(error).__name__
