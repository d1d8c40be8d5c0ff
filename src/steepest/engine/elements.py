"""How an element-wise step runs over many tensors, so that no large temporary is made and few calls are."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import FunctionType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from steepest.engine.body import Body
from steepest.engine.compiler import attempt
from steepest.engine.precision import Half, Kept, Operands, compute_dtype, packed, pairs, together, unpacked
from steepest.kernels.device import large_elements, piece_elements
from steepest.kernels.rounding import lanes
from steepest.rules.base import Geometry, Numbers, Phase, Rule

if TYPE_CHECKING:
    from steepest.engine.bucket import Bucket, Member

# A list of small tensors holds at most this many times the elements of one piece.
_LIST_PIECES = 4
# What a compiled step makes noise of: lanes, and the counters of the parameter (under no name) and of its buffers.
Noises = tuple[Tensor, Mapping[str, Sequence[Tensor]]]


def run(bucket: Bucket, phase: Phase, members: Sequence[Member]) -> None:
    """Step the members by their local shards: one by one ("single"), or small ones in lists, large ones in pieces."""
    rule, numbers = bucket.rule, bucket.numbers(phase)
    body = Body(rule, phase.geometry, bucket.maximize)
    every = [each for each in map(bucket.operands, members) if each.numel]
    if rule.backend == "single":
        for each in every:
            body(each.param, each.grad, each.state, numbers)
        return
    small: list[Operands[Tensor]] = []
    large: list[Operands[Tensor]] = []
    for each in every:
        (large if each.numel >= large_elements(each.device) else small).append(each)
    for group in _lists(small):
        lists = together(group)
        body(lists.param, lists.grad, lists.state, numbers)
    if rule.backend == "compile":
        large = _run_compiled(body, large, numbers)
    for each in large:
        for part in _pieces(each, piece_elements(each.device)):
            body(part.param, part.grad, part.state, numbers)


def trial_directions(bucket: Bucket) -> Iterator[Tensor]:
    """The directions that the step will map, of the local shards, piece by piece; buffers stay as they are."""
    phase = bucket.rule.phase(bucket.step)
    numbers, body = bucket.numbers(phase), Body(bucket.rule, phase.geometry, bucket.maximize)
    for each in map(bucket.operands, bucket.members):
        like = each.tensors[0].new_empty(0, dtype=compute_dtype(each.tensors[0].dtype))
        for part in _pieces(each, piece_elements(each.device)):
            yield body.direction(like, part.grad, part.state, numbers, trial=True)


def _lists(every: Sequence[Operands[Tensor]]) -> Iterator[list[Operands[Tensor]]]:
    """Cut a list of small tensors so that the temporaries of a list stay small."""
    group: list[Operands[Tensor]] = []
    room = 0
    for each in every:
        size = each.numel
        if group and size > room:
            yield group
            group = []
        if not group:
            room = _LIST_PIECES * piece_elements(each.device)
        group.append(each)
        room -= size
    if group:
        yield group


def _pieces(each: Operands[Tensor], size: int) -> Iterator[Operands[Tensor]]:
    """Matching pieces of tensors of one shape: flat where all are contiguous, else along the first axis."""
    if each.numel <= size:
        yield each
        return
    if _flat(each):
        length = size
        parts = [t.view(-1).split(size) for t in each.tensors]
    else:
        rows = max(1, size * len(each.tensors[0]) // each.numel)
        length = rows * (each.numel // len(each.tensors[0]))
        parts = [t.split(rows) for t in each.tensors]
    for i, part in enumerate(zip(*parts, strict=True)):
        yield each.piece(part, i * length)


def _flat(each: Operands[Tensor]) -> bool:
    """Whether the same place in memory is the same element in all of them, and the noise is that of a run of them."""
    shape = each.tensors[0].shape
    return each.places[0].contiguous and all(t.is_contiguous() and t.shape == shape for t in each.tensors)


# Compiled ------------------------------------------------------------------------------------------------------------


class PlainLerp(TorchFunctionMode):
    """An average by one formula: the built-in one chooses between two by its weight, element by element if compiled."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """``x + weight (end - x)``."""
        if func is Tensor.lerp:
            x, end, weight = args
            return x + weight * (end - x)
        if func is Tensor.lerp_:
            x, end, weight = args
            return x.add_(weight * (end - x))
        return func(*args, **(kwargs or {}))


@functools.cache
def _compiled(rule: type[Rule], geometry: Geometry, maximize: bool, paired: bool) -> Callable[..., None]:
    """One graph for flat tensors of any length; every number is a tensor argument, so nothing is compiled twice."""
    body = Body(rule(), geometry, maximize)

    def step(param: Tensor, grad: Tensor, state: Mapping[str, Tensor], numbers: Numbers) -> None:
        with PlainLerp():
            body(Kept(param), grad, {name: Kept(buffer) for name, buffer in state.items()}, numbers)

    def step_of_pairs(
        param: Tensor, grad: Tensor, state: Mapping[str, Tensor], numbers: Numbers, noise: Noises
    ) -> None:
        lanes, counters = noise
        tensors = {"": param, **state}
        halves = {name: [Half(values) for values in unpacked(tensor)] for name, tensor in tensors.items()}
        for side, g in enumerate(unpacked(grad)):
            with PlainLerp():
                body(halves[""][side], g, {name: halves[name][side] for name in state}, numbers)
        for name, tensor in tensors.items():
            first, second = halves[name]
            tensor.copy_(packed(first.values, second.values, tensor.dtype, (lanes, counters.get(name))))

    chosen = step_of_pairs if paired else step
    # The compiler counts its graphs by code object and gives up after some: each rule gets a code object of its own.
    own = FunctionType(chosen.__code__.replace(co_name=f"step_{rule.name}"), globals(), closure=chosen.__closure__)
    return torch.compile(own, dynamic=True, fullgraph=True)


def _run_compiled(body: Body, large: list[Operands[Tensor]], numbers: Numbers) -> list[Operands[Tensor]]:
    """Step the large tensors that are flat in memory; return those that are left for the ordinary path."""
    if not large:
        return large
    paired = large[0].rounded  # all of a bucket are kept alike
    views = [(pairs(each) if paired else [t.view(-1) for t in each.tensors]) if _flat(each) else None for each in large]
    left = [each for each, tensors in zip(large, views, strict=True) if tensors is None]
    flat = [(each, tensors) for each, tensors in zip(large, views, strict=True) if tensors is not None]
    if not flat:
        return large
    step = _compiled(type(body.rule), body.geometry, body.maximize, paired)  # type: ignore[arg-type]
    dtype = compute_dtype(large[0].tensors[0].dtype)
    scalars = {name: torch.as_tensor(value, dtype=dtype, device="cpu") for name, value in numbers.items()}
    # The compiler plans its threads for the first tensor it sees, so the largest goes first.
    flat.sort(key=lambda one: -one[0].numel)
    for i, (each, (param, grad, *state)) in enumerate(flat):
        counters = {name: kept.noise.counters() for name, kept in each.kept().items() if kept.noise is not None}
        noise = [(lanes(param.shape[-1], param.device), counters)] if paired else []
        if not attempt(each.device, step, param, grad, dict(zip(each.keys, state, strict=True)), scalars, *noise):
            return left + [each for each, _ in flat[i:]]
    return left
