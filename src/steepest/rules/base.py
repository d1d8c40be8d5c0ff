"""What a method is: a frozen set of numbers, a direction, and for each step a phase."""

from __future__ import annotations

import dataclasses
import difflib
import math
import numbers
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol

import torch
from torch import Tensor

from steepest.kernels.rounding import scales_shape

if TYPE_CHECKING:
    from steepest.engine.bucket import Bucket
    from steepest.routing.roles import Role

Need = Literal["element", "sums", "matrix"]
Rate = float | Tensor
Numbers = Mapping[str, "float | Tensor"]
Backend = Literal["auto", "single", "foreach", "compile"]

# What a fit is made to: the elements of the directions of all tensors, or the singular values of all matrices.
FitKind = Literal["elements", "singular_values"]
Fit = tuple[float, float]  # centre and spread
# Metadata of a field that is no option: the optimizer measures it and keeps it in the state of each parameter.
KEPT = {"kept": True}

DTYPES = {
    "float64": torch.float64,
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}
STATE_DTYPES = {**DTYPES, "int8": torch.int8}
Rounding = Literal["nearest", "stochastic", "kahan"]
ROUNDINGS = ("nearest", "stochastic", "kahan")
# Key of the state of a parameter under Kahan compensation: what its bfloat16 lacks of a float32.
REMAINDER = "param_remainder"

SCALES: dict[str, Callable[[int, int], float]] = {
    "match_rms": lambda m, n: 0.2 * math.sqrt(max(m, n)),
    "keller": lambda m, n: math.sqrt(max(1.0, m / n)),
    "spectral": lambda m, n: math.sqrt(m / n),
    "none": lambda m, n: 1.0,
}
"""Factor on the step of an (m, n) = (out, in) matrix, by name: an AdamW-like RMS of 0.2 (Moonlight, LionMuon), the one
of the original Muon, steepest descent under the RMS-to-RMS operator norm, or none."""


class Geometry(Protocol):
    """The map from a direction to a step; ``needs`` tells the engine how much of a tensor it must see at once."""

    needs: ClassVar[Need]

    def __call__(self, x: Tensor, numbers: Numbers) -> Tensor:
        """Map ``x`` (any shape for an element map, else a stack of matrices) to a new tensor; ``x`` is not changed."""

    def rms(self, m: int, n: int) -> float:
        """Root mean square of an element of the result for a full-rank (m, n) matrix."""


@dataclass(frozen=True)
class Gate:
    """A choice made for each matrix from its direction: take the phase where the stable rank is small."""

    threshold: float
    seed: int


@dataclass(frozen=True)
class Phase:
    """What one step does after the direction is formed.

    Attributes:
        geometry: the map.
        lr_ratio: the rate of this step as a ratio to the ``lr`` of the group, so that one scheduler moves all rates.
        decay_ratio: the same for the weight decay; None for that of the step.
        scale: key of ``SCALES``.
        gate: take this phase only for matrices that pass, else ``otherwise``.
        otherwise: the phase of the matrices that do not pass the gate.
    """

    geometry: Geometry
    lr_ratio: float = 1.0
    decay_ratio: float | None = None
    scale: str = "none"
    gate: Gate | None = None
    otherwise: Phase | None = None


@dataclass(frozen=True, kw_only=True)
class Rule:
    """A method as a value. Subclasses add numbers, a ``direction`` and a ``phase``; the engine does the rest.

    A direction is a pure function of its arguments apart from updating the buffers in place; every number that a user
    or a scheduler may change reaches it through ``numbers``, so that a compiled step is never compiled again.

    Class variables: ``name``; ``needs``, how much of a tensor a step must see at once; ``buffers``, the names of the
    state; ``whole``, those that every process holds whole; ``coded``, those that may be kept in 8 bits (averages
    of gradients, not of squares, whose small values would become zero); ``takes``, the part of a model that the rule is
    for (the hidden matrices, if it needs matrices, or else all of it; or the rest); ``fitted``, what the optimizer
    measures over all tensors of the rule where ``wants_fit`` says so (see ``rules.Softened``).

    Values kept in few bits are rounded at random, so that the expectation is exact and no decay is lost. The randomness
    is a function of ``seed``, the step, the number of the parameter in the optimizer, the buffer, and the place of the
    element in the whole tensor: a resumed run repeats bit for bit, and so does a sharded one.

    Attributes:
        lr: learning rate, >= 0; a number or a 0-dim tensor.
        weight_decay: decoupled decay, multiplied by the rate of the step taken.
        view: how a tensor is a stack of (out, in) matrices, as text; None lets the routing or the shape decide.
        state_dtype: dtype of the buffers: "float64", "float32", "bfloat16" (rounded at random), "float16" (rounded to
            nearest), or "int8" (8-bit codes of blocks of 256 elements of a row, rounded at random, and a float32 scale
            for each block; rows of up to 4 elements, so vectors, in float32); None for that of the parameter. On a CPU
            bfloat16 is faster than float32 with the backend "compile", and slower with the others.
        param_rounding: how bfloat16 parameters are stored after a step: "nearest" (as torch does: updates and decay
            below half a unit in the last place, 2^-9 of a weight, are lost), "stochastic" (at random, decay and update
            together), or "kahan" (with the missing 16 bits of float32 kept in the state). Wider ones lose nothing.
        seed: of all that is random, 0; the same on all processes.
        backend: "single" (one tensor at a time, the specification), "foreach" (many tensors at a time, large ones in
            cache-sized pieces), "compile" (torch.compile for large tensors) or "auto".
    """

    name: ClassVar[str] = ""
    needs: ClassVar[Need] = "element"
    buffers: ClassVar[tuple[str, ...]] = ()
    whole: ClassVar[tuple[str, ...]] = ()
    coded: ClassVar[tuple[str, ...]] = ()
    takes: ClassVar[Literal["all", "hidden", "rest"]] = "all"
    fitted: ClassVar[tuple[FitKind, ...]] = ()

    lr: Rate = 1e-3
    weight_decay: float = 0.0
    view: str | None = None
    state_dtype: str | None = None
    param_rounding: Rounding = "nearest"
    seed: int = 0
    backend: Backend = "auto"

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "needs" in cls.__dict__ and "takes" not in cls.__dict__:
            cls.takes = "hidden" if cls.needs == "matrix" else "all"
        if "name" in cls.__dict__:
            other = _REGISTRY.setdefault(cls.name, cls)
            if (other.__module__, other.__qualname__) != (cls.__module__, cls.__qualname__):
                raise TypeError(
                    f"{cls.__qualname__}: the name {cls.name!r} is that of {other.__qualname__}; choose another"
                )
            _REGISTRY[cls.name] = cls  # the same class again: a cell of a notebook that was run twice

    def __post_init__(self) -> None:
        check_range(self.name, "lr", self.lr, 0.0, math.inf)
        check_range(self.name, "weight_decay", self.weight_decay, 0.0, math.inf)
        check_choice(self.name, "backend", self.backend, ("auto", "single", "foreach", "compile"))
        check_choice(self.name, "param_rounding", self.param_rounding, ROUNDINGS)
        if self.param_rounding != "nearest" and type(self).update is not Rule.update:
            raise ValueError(f"{self.name}: it takes its own steps, to which param_rounding does not apply")
        if isinstance(self.seed, bool) or not isinstance(self.seed, int) or not 0 <= self.seed < 1 << 32:
            raise ValueError(f"{self.name}: seed must be a whole number from 0 to 2**32 - 1, got {self.seed!r}")
        if self.state_dtype is not None:
            check_choice(self.name, "state_dtype", self.state_dtype, STATE_DTYPES)
        if self.state_dtype == "int8":
            self._check_codes()

    def _check_codes(self) -> None:
        lost = [name for name in self.buffers if name not in (*self.coded, *self.whole)]
        if lost:
            raise ValueError(
                f"{self.name}: state_dtype='int8' cannot represent {' and '.join(map(repr, lost))}: 8-bit codes hold "
                "averages of gradients, not of their squares; use 'bfloat16', or a rule that keeps momentum alone"
            )

    def numbers(self, step: int) -> dict[str, float]:
        """The numbers that ``direction`` and the geometry read at a 0-based step."""
        raise NotImplementedError

    def direction(self, g: Tensor, state: Mapping[str, Tensor], numbers: Numbers) -> Tensor:
        """Form the direction of the step and update the buffers in place.

        Neither ``g`` nor the result is changed later.

        Args:
            g: gradient, in the compute dtype. The arguments may also be matching pieces of tensors.
            state: the declared buffers, in the compute dtype.
            numbers: the result of ``numbers(step)``; floats, or 0-dim tensors in a compiled step.
        """
        raise NotImplementedError

    def trial(self, g: Tensor, state: Mapping[str, Tensor], numbers: Numbers) -> Tensor:
        """The direction of the step, with all buffers as they were; a rule may know it without copies of them."""
        return self.direction(g, {name: x.clone() for name, x in state.items()}, numbers)

    def phase(self, step: int) -> Phase:
        """The map, rate and scale of a 0-based step: a pure function of the step and of the rule's own numbers."""
        raise NotImplementedError

    def buffer_specs(self, shape: torch.Size, dtype: torch.dtype) -> dict[str, tuple[torch.Size, torch.dtype]]:
        """Shape and dtype of each declared buffer of a parameter."""
        kept = dtype if self.state_dtype is None else STATE_DTYPES[self.state_dtype]
        if kept == torch.int8 and not worth_codes(shape):
            kept = torch.float32
        return dict.fromkeys(self.buffers, (shape, kept))

    def state_specs(self, shape: torch.Size, dtype: torch.dtype) -> dict[str, tuple[torch.Size, torch.dtype]]:
        """The buffers, the scales of those in 8 bits, and what Kahan compensation keeps."""
        specs = self.buffer_specs(shape, dtype)
        coded = [name for name in self.coded if self.state_dtype == "int8" and specs[name][1] == torch.int8]
        specs = {**specs, **{scales_key(name): (scales_shape(shape), torch.float32) for name in coded}}
        if self.param_rounding == "kahan" and dtype == torch.bfloat16:
            specs[REMAINDER] = (shape, torch.int16)
        return specs

    def period_steps(self) -> int:
        """Number of steps after which the phases repeat (what a report averages over)."""
        return 1

    def expected_rms(self, m: int, n: int) -> float:
        """RMS of an element of the step on a full-rank (m, n) matrix, lr x scale, averaged over the period.

        Not a number for a method that overrides ``update`` and declares no phases.
        """
        if type(self).phase is Rule.phase:
            return math.nan
        phases = [self.phase(t) for t in range(self.period_steps())]
        steps = [p.lr_ratio * SCALES[p.scale](m, n) * p.geometry.rms(m, n) for p in phases]
        return float(self.lr) * sum(steps) / len(steps)

    def companion(self) -> Rule:
        """The rule for what this one leaves of a model: itself if it takes everything, else AdamW at the same rate.

        With the scale "match_rms" the steps of the two are of one size.
        """
        if self.takes == "all":
            return self
        return by_name("adamw")(lr=self.lr, weight_decay=self.weight_decay, **self.rounding())

    def rounding(self) -> dict[str, Any]:
        """How the parameters of a model are stored, for a rule beside this one."""
        return {"param_rounding": self.param_rounding, "seed": self.seed}

    def for_role(self, role: Role) -> Rule:
        """The rule for parameters of a role: itself, if it makes no difference."""
        return self

    def wants_fit(self) -> bool:
        """Whether this step must begin with a fit of what ``fitted`` names, over all tensors of the rule."""
        return False

    def update(self, bucket: Bucket) -> None:
        """Take one step for the tensors of a bucket; override for a method that the grammar cannot say."""
        bucket.descend()


def scales_key(buffer: str) -> str:
    """Key of the state that holds the scales of a buffer of 8-bit codes."""
    return f"{buffer}_scales"


def worth_codes(shape: torch.Size) -> bool:
    """Whether codes and scales of a tensor take less than the two bytes per element of a bfloat16."""
    return scales_shape(shape).numel() * torch.float32.itemsize < shape.numel() and len(shape) > 1


_REGISTRY: dict[str, type[Rule]] = {}


def by_name(name: str) -> type[Rule]:
    """The rule class of a name such as "lion_muon".

    Raises:
        ValueError: there is none; the message gives the closest names.
    """
    if name not in _REGISTRY:
        raise ValueError(f"unknown rule {name!r}{closest(name, _REGISTRY)}")
    return _REGISTRY[name]


def check_named(cls: type[Rule]) -> None:
    """Refuse a class that its name does not lead to: param groups and checkpoints hold the name alone."""
    if _REGISTRY.get(cls.name) is not cls:
        raise TypeError(
            f"{cls.__qualname__} needs a name of its own, e.g. name: ClassVar[str] = {cls.__name__.lower()!r}"
        )


def options(cls: type[Rule]) -> tuple[str, ...]:
    """Names of the numbers of a rule class, in order."""
    return tuple(f.name for f in dataclasses.fields(cls) if not f.metadata.get("kept"))


def closest(name: str, known: Any) -> str:
    """The end of an error message: the likeliest names, or all of them."""
    near = difflib.get_close_matches(str(name), [str(k) for k in known], n=3, cutoff=0.5)
    return (
        f"; did you mean {' or '.join(map(repr, near))}?" if near else f"; known: {', '.join(sorted(map(str, known)))}"
    )


def check_options(cls: type[Rule], given: Any, extra: tuple[str, ...] = ()) -> None:
    """Refuse options that a rule does not have."""
    known = (*options(cls), *extra)
    for name in given:
        if name not in known:
            raise TypeError(f"{cls.__name__} has no option {name!r}{closest(name, known)}")


def check_range(rule: str, option: str, value: Any, low: float, high: float, *, open_high: bool = False) -> None:
    """Refuse a number outside [low, high] or [low, high), and anything that is not a number.

    A tensor on another device than the CPU is let through unread: reading it would wait for the device at each step.
    """
    if isinstance(value, Tensor) and value.ndim == 0:
        if value.device.type != "cpu":
            return
        value = value.item()
    wanted = f"in [{low:g}, {high:g}{')' if open_high else ']'}" if high < math.inf else f">= {low:g} and finite"
    number = isinstance(value, numbers.Real) and not isinstance(value, bool)
    if not number or not (low <= value < high or (value == high and not open_high and high < math.inf)):
        raise ValueError(f"{rule}: {option} must be a number {wanted}, got {value!r}")


def check_whole(rule: str, option: str, value: Any, least: int) -> None:
    """Refuse anything but a whole number from ``least`` on."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ValueError(f"{rule}: {option} must be a whole number >= {least}, got {value!r}")


def check_betas(rule: str, betas: Any) -> None:
    """Refuse anything but a pair of numbers in [0, 1)."""
    if not isinstance(betas, (tuple, list)) or len(betas) != 2:
        raise ValueError(f"{rule}: betas must be a pair (direction, buffer), got {betas!r}; an average has equal ones")
    for i, beta in enumerate(betas):
        check_range(rule, f"betas[{i}]", beta, 0.0, 1.0, open_high=True)


def check_choice(rule: str, option: str, value: Any, known: Any) -> None:
    """Refuse a name that is not known."""
    if value not in known:
        raise ValueError(f"{rule}: unknown {option} {value!r}{closest(str(value), known)}")
