"""How an element-wise step runs over many tensors, so that no large temporary is made and few calls are."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import FunctionType
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from steepest import sharding
from steepest.engine.body import Body, compute_dtype
from steepest.engine.tensors import TensorList
from steepest.kernels.device import large_elements, piece_elements
from steepest.rules.base import Geometry, Numbers, Phase, Rule

if TYPE_CHECKING:
    from steepest.engine.bucket import Bucket, Member

# Parameter, gradient, then the buffers in the order the rule declares them: whole tensors or matching pieces.
Operands = Sequence[Tensor]

# A list of small tensors holds at most this many times the elements of one piece.
_LIST_PIECES = 4


def run(bucket: Bucket, phase: Phase, members: Sequence[Member]) -> None:
    """Step the members by their local shards: one by one ("single"), or small ones in lists, large ones in pieces."""
    rule, numbers = bucket.rule, bucket.numbers(phase)
    body = Body(rule, phase.geometry, bucket.maximize)
    every = [operands(member, rule) for member in members]
    every = [each for each in every if each[0].numel()]
    if rule.backend == "single":
        for each in every:
            body(each[0], each[1], _state(rule, each), numbers)
        return
    large = [each for each in every if each[0].numel() >= large_elements(each[0].device)]
    small = [each for each in every if each[0].numel() < large_elements(each[0].device)]
    for group in _lists(small):
        columns = [TensorList(column) for column in zip(*group, strict=True)]
        body(columns[0], columns[1], dict(zip(rule.buffers, columns[2:], strict=True)), numbers)
    if rule.backend == "compile":
        large = _run_compiled(body, large, numbers)
    for each in large:
        for part in _pieces(each, piece_elements(each[0].device)):
            body(part[0], part[1], _state(rule, part), numbers)


def trial_directions(bucket: Bucket) -> Iterator[Tensor]:
    """The directions that the step will map, of the local shards, piece by piece; buffers stay as they are."""
    phase = bucket.rule.phase(bucket.step)
    numbers, body = bucket.numbers(phase), Body(bucket.rule, phase.geometry, bucket.maximize)
    for member in bucket.members:
        each = operands(member, bucket.rule)
        like = each[0].new_empty(0, dtype=compute_dtype(each[0].dtype))
        for part in _pieces(each, piece_elements(each[0].device)):
            trial = {name: buffer.clone() for name, buffer in _state(bucket.rule, part).items()}
            yield body.direction(like, part[1], trial, numbers)


def operands(member: Member, rule: Rule) -> Operands:
    """The local shards of a parameter, its gradient and its buffers."""
    return [sharding.local(t) for t in (member.param, member.gradient(), *(member.state[n] for n in rule.buffers))]


def _state(rule: Rule, each: Operands) -> dict[str, Tensor]:
    return dict(zip(rule.buffers, each[2:], strict=True))


def _lists(every: Sequence[Operands]) -> Iterator[list[Operands]]:
    """Cut a list of small tensors so that the temporaries of a list stay small."""
    group: list[Operands] = []
    room = 0
    for each in every:
        if group and each[0].numel() > room:
            yield group
            group = []
        if not group:
            room = _LIST_PIECES * piece_elements(each[0].device)
        group.append(each)
        room -= each[0].numel()
    if group:
        yield group


def _pieces(each: Operands, size: int) -> Iterator[Operands]:
    """Matching pieces of tensors of one shape: flat where all are contiguous, else along the first axis."""
    if each[0].numel() <= size:
        yield each
    elif _flat(each):
        yield from zip(*(t.view(-1).split(size) for t in each), strict=True)
    else:
        rows = max(1, size * each[0].shape[0] // each[0].numel())
        yield from zip(*(t.split(rows) for t in each), strict=True)


def _flat(each: Operands) -> bool:
    return all(t.is_contiguous() for t in each)


# Compiled ------------------------------------------------------------------------------------------------------------


@functools.cache
def _compiled(rule: type[Rule], geometry: Geometry, maximize: bool) -> Callable[..., None]:
    """One graph for flat tensors of any length; every number is a tensor argument, so nothing is compiled twice."""
    body = Body(rule(), geometry, maximize)

    def step(param: Tensor, grad: Tensor, state: Mapping[str, Tensor], numbers: Numbers) -> None:
        body(param, grad, state, numbers)

    # The compiler counts its graphs by code object and gives up after some: each rule gets a code object of its own.
    own = FunctionType(step.__code__.replace(co_name=f"step_{rule.name}"), globals(), closure=step.__closure__)
    return torch.compile(own, dynamic=True, fullgraph=True)


def _run_compiled(body: Body, large: list[Operands], numbers: Numbers) -> list[Operands]:
    """Step the large tensors that are flat in memory; return those that are left for the ordinary path."""
    # The compiler plans its threads for the first tensor it sees, so the largest goes first.
    flat = sorted(filter(_flat, large), key=lambda each: -each[0].numel())
    left = [each for each in large if not _flat(each)]
    if not flat or flat[0][0].device.type in _without_compiler:
        return large
    step = _compiled(type(body.rule), body.geometry, body.maximize)  # type: ignore[arg-type]
    dtype = compute_dtype(flat[0][0].dtype)
    scalars = {name: torch.as_tensor(value, dtype=dtype, device="cpu") for name, value in numbers.items()}
    for i, each in enumerate(flat):
        views = [t.view(-1) for t in each]
        try:
            step(views[0], views[1], _state(body.rule, views), scalars)
        except torch._dynamo.exc.BackendCompilerFailed as error:
            _without_compiler.add(each[0].device.type)  # trying again at each step would cost seconds each time
            warnings.warn(_NO_COMPILER.format(reason=str(error).splitlines()[0]), stacklevel=2)
            return left + flat[i:]
    return left


_without_compiler: set[str] = set()
_NO_COMPILER = (
    "steepest: backend='compile' needs a working compiler (g++ on a CPU, Triton on a GPU); taking the 'foreach' path "
    "instead. {reason}"
)
