"""One record per rule, and the small problem that the generic tests run on: a new rule is tested by adding a record.

Nothing here trains a model: gradients are drawn once and do not depend on the weights, so that two optimizers that
should do the same can be compared step by step.
"""

from __future__ import annotations

import copy
import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import steepest
from steepest import rules


@dataclass(frozen=True)
class Knob:
    """Another value of an option, the settings under which the option acts, and what it then changes.

    ``effect`` is "trajectory", or the name of a documented effect that is tested in its own test.
    """

    value: Any
    given: Mapping[str, Any] = field(default_factory=dict)
    effect: str = "trajectory"


@dataclass(frozen=True)
class Record:
    """A rule with numbers that are far from its defaults, and what generic tests must know of it.

    Attributes:
        rule: the rule.
        optimizer: the optimizer of its name, if there is one.
        period: steps after which the phases repeat.
        knobs: another value for every option.
        scale_free: a constant factor on all gradients of a run changes nothing.
        clocked: what a step does depends on its number.

    A soft rule is ``pooled``: its fit is made over all tensors, so that they are not independent of each other.
    """

    rule: rules.Rule
    knobs: Mapping[str, Knob]
    optimizer: type[steepest.Steepest] | None = None
    period: int = 1
    scale_free: bool = True
    clocked: bool = False

    def __str__(self) -> str:
        return self.rule.name

    @property
    def pooled(self) -> bool:
        return bool(self.rule.fitted)

    @property
    def takes_vectors(self) -> bool:
        return self.rule.needs != "matrix"


COMMON = {
    "lr": Knob(0.03),
    "weight_decay": Knob(0.5),
    "state_dtype": Knob("bfloat16"),
    "param_rounding": Knob("stochastic", effect="of bfloat16 parameters: see test_low_precision.py"),
    "seed": Knob(5, given={"state_dtype": "bfloat16"}),
    "backend": Knob("single", effect="same step another way"),
}
ELEMENT = {**COMMON, "view": Knob("transposed", effect="none: an element-wise rule sees no matrices")}
SPECTRAL = {
    **COMMON,
    "view": Knob("heads=2"),
    "steps": Knob(3),
    "coefficients": Knob("polar_express"),
    "scale": Knob("keller"),
    "compute_dtype": Knob("bfloat16"),
}
ALTERNATING = {
    **SPECTRAL,
    "sign_lr_ratio": Knob(0.5),
    "period": Knob(2),
    "offset": Knob(1),
    "trigger": Knob("random"),
    "seed": Knob(5, given={"trigger": "random"}),
    "threshold": Knob(1.0, given={"trigger": "stable_rank"}),
}
# The options of soft rules act from the start of the transition on: records begin it at step 2 of 7.
SOFT = {
    "transition": Knob((1, 6)),
    "total_steps": Knob(6, given={"transition": (0.2, 1.0), "total_steps": 10}),
    "eps": Knob(1e-2),
    "temperature_range": Knob((1e3, math.inf)),
    "pool": Knob("tensor"),
    "refresh_every": Knob(2),
    "clock": Knob(1),
}
# The default clip depends on the scale of the gradients, which the generic tests change.
NO_CLIP: dict[str, Any] = {"temperature_range": (1e-30, math.inf)}
# The default depends on the machine (bfloat16 where its hardware has it); records must not.
PRODUCTS: dict[str, Any] = {"compute_dtype": "float32"}

RECORDS = [
    Record(
        rules.Signum(lr=0.02, betas=(0.8, 0.8), weight_decay=0.2),
        {**ELEMENT, "betas": Knob((0.5, 0.5))},
        steepest.Signum,
    ),
    Record(
        rules.Lion(lr=0.02, betas=(0.7, 0.9), weight_decay=0.2), {**ELEMENT, "betas": Knob((0.7, 0.8))}, steepest.Lion
    ),
    Record(
        rules.Muon(lr=0.02, betas=(0.7, 0.9), weight_decay=0.2, **PRODUCTS),
        {**SPECTRAL, "betas": Knob((0.7, 0.8))},
        steepest.Muon,
    ),
    Record(
        rules.SignMuon(lr=0.02, sign_lr_ratio=0.3, betas=(0.8, 0.8), period=3, weight_decay=0.2, **PRODUCTS),
        {**ALTERNATING, "betas": Knob((0.5, 0.5))},
        steepest.SignMuon,
        period=3,
        clocked=True,
    ),
    Record(
        rules.LionMuon(lr=0.02, sign_lr_ratio=0.3, betas=(0.7, 0.9), period=3, weight_decay=0.2, **PRODUCTS),
        {**ALTERNATING, "betas": Knob((0.7, 0.8))},
        steepest.LionMuon,
        period=3,
        clocked=True,
    ),
    Record(
        rules.SoftSignum(lr=0.02, betas=(0.8, 0.8), weight_decay=0.2, transition=(2, 6), **NO_CLIP),
        {**ELEMENT, **SOFT, "betas": Knob((0.5, 0.5)), "relaxation": Knob("algebraic")},
        steepest.SoftSignum,
    ),
    Record(
        rules.SoftMuon(
            lr=0.02, betas=(0.7, 0.9), weight_decay=0.2, scale="match_rms", transition=(2, 6), **NO_CLIP, **PRODUCTS
        ),
        {
            **SPECTRAL,
            **SOFT,
            "betas": Knob((0.7, 0.8)),
            "relaxation": Knob("switch"),
            "sample": Knob("gradient"),
        },
        steepest.SoftMuon,
    ),
    Record(
        rules.SoftLionMuon(
            lr=0.02,
            sign_lr_ratio=0.3,
            betas=(0.7, 0.9),
            period=3,
            weight_decay=0.2,
            transition=(2, 6),
            **NO_CLIP,
            **PRODUCTS,
        ),
        {
            **ALTERNATING,
            **SOFT,
            "betas": Knob((0.7, 0.8)),
            "relaxation": Knob("switch"),
            "sign_relaxation": Knob("algebraic"),
        },
        steepest.SoftLionMuon,
        period=3,
        clocked=True,
    ),
    Record(
        rules.SinkGD(lr=0.5, weight_decay=0.2, betas=(0.7, 0.9)),
        {
            **COMMON,
            "view": Knob("heads=2"),
            "betas": Knob((0.7, 0.8)),
            "alpha": Knob(0.2),
            "rounds": Knob(1),
            "target": Knob("unit"),
        },
        steepest.SinkGD,
    ),
    Record(
        rules.SAGE(lr=0.02, betas=(0.7, 0.9), eps=0.0, weight_decay=0.2),
        {
            **ELEMENT,
            "betas": Knob((0.7, 0.8)),
            "eps": Knob(1.0),
            "order": Knob("released"),
            "instantaneous": Knob(False),
            "axis": Knob(1),
        },
        steepest.SAGE,
    ),
    Record(
        rules.LASM(lr=0.02, betas=(0.7, 0.9), weight_decay=0.2, factor=1.5),
        {
            **ELEMENT,
            "betas": Knob((0.7, 0.8)),
            **{kind: Knob(3.0, effect="routing") for kind in ("attention", "mlp", "embedding")},
            "factor": Knob(0.5),
            "scale_decay": Knob(True),
        },
        steepest.LASM,
        scale_free=False,
    ),
    Record(
        rules.AdamW(lr=0.02, betas=(0.7, 0.9), eps=1e-3, weight_decay=0.2),
        {**ELEMENT, "betas": Knob((0.7, 0.8)), "eps": Knob(1e-1)},
        scale_free=False,
        clocked=True,
    ),
]
BY_NAME = {str(record): record for record in RECORDS}

every_rule = pytest.mark.parametrize("record", RECORDS, ids=str)
element_rules = pytest.mark.parametrize("record", [r for r in RECORDS if r.rule.needs == "element"], ids=str)
matrix_rules = pytest.mark.parametrize("record", [r for r in RECORDS if not r.takes_vectors], ids=str)
spectral_rules = pytest.mark.parametrize("record", [r for r in RECORDS if "compute_dtype" in r.knobs], ids=str)
independent_rules = pytest.mark.parametrize("record", [r for r in RECORDS if not r.pooled], ids=str)
named_optimizers = pytest.mark.parametrize("record", [r for r in RECORDS if r.optimizer], ids=str)

MATRICES = {"wide": (4, 6), "wide too": (4, 6), "tall": (8, 3), "conv": (4, 2, 3, 3), "row": (2, 5)}
VECTORS = {"vector": (5,), "scalar": ()}

Named = Mapping[str, torch.Tensor]


class Problem:
    """Named parameters and, for each step, their gradients; the same numbers for the same arguments."""

    def __init__(
        self,
        shapes: Record | Mapping[str, tuple[int, ...]],
        *,
        steps: int = 7,
        dtype: torch.dtype = torch.float32,
        seed: int = 0,
    ) -> None:
        if isinstance(shapes, Record):
            shapes = {**MATRICES, **VECTORS} if shapes.takes_vectors else MATRICES
        generator = torch.Generator().manual_seed(seed)

        def draw(shape: tuple[int, ...]) -> torch.Tensor:
            return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)

        self.params = {name: torch.nn.Parameter(draw(shape)) for name, shape in shapes.items()}
        self.gradients: list[dict[str, torch.Tensor | None]] = [
            {name: draw(shape) for name, shape in shapes.items()} for _ in range(steps)
        ]

    def named(self) -> list[tuple[str, torch.nn.Parameter]]:
        return list(self.params.items())

    def load(self, step: int) -> None:
        """Put the gradients of a step on the parameters, as copies."""
        for name, param in self.params.items():
            g = self.gradients[step].get(name)
            param.grad = None if g is None else g.clone()

    def run(
        self, optimizer: torch.optim.Optimizer, start: int = 0, stop: int | None = None
    ) -> list[dict[str, torch.Tensor]]:
        """Take the steps from ``start`` to ``stop``; return the weights after each."""
        history = []
        for step in range(start, len(self.gradients) if stop is None else stop):
            self.load(step)
            optimizer.step()
            history.append(self.weights())
        return history

    def weights(self) -> dict[str, torch.Tensor]:
        return {name: p.detach().clone() for name, p in self.params.items()}


def build(rule: rules.Rule, problem: Problem, **options: Any) -> steepest.Steepest:
    return steepest.Steepest(problem.named(), rule, **options)


def trajectory(rule: rules.Rule, problem: Problem, **options: Any) -> list[dict[str, torch.Tensor]]:
    """The weights after each step of the rule on the problem."""
    return problem.run(build(rule, problem, **options))


def changed(record: Record, option: str) -> tuple[rules.Rule, rules.Rule]:
    """The rule under which an option acts, and the same with the other value of the option."""
    knob = record.knobs[option]
    before = replace(record.rule, **knob.given)
    return before, replace(before, **{option: knob.value})


def option_names(rule: rules.Rule) -> list[str]:
    return list(rules.options(type(rule)))


# --- observations


class Calls(TorchDispatchMode):
    """Counts the operators that reach the dispatcher."""

    def __init__(self) -> None:
        super().__init__()
        self.count: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count[str(func)] += 1
        return func(*args, **(kwargs or {}))


def through_distributed_checkpoint(saved: Any, target: Any, folder: Path, *, flatten: bool) -> None:
    """Save a (model, optimizer) by ``torch.distributed.checkpoint`` and load it into another."""
    import torch.distributed.checkpoint as dcp
    from torch.distributed.checkpoint import state_dict as dcp_state

    options = dcp_state.StateDictOptions(flatten_optimizer_state_dict=flatten)

    def states(model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
        return {
            "model": dcp_state.get_model_state_dict(model),
            "optimizer": dcp_state.get_optimizer_state_dict(model, optimizer, options=options),
        }

    dcp.save(states(*saved), checkpoint_id=folder, no_dist=True)
    loaded = states(*target)
    dcp.load(loaded, checkpoint_id=folder, no_dist=True)
    dcp_state.set_model_state_dict(target[0], loaded["model"])
    dcp_state.set_optimizer_state_dict(*target, loaded["optimizer"], options=options)


# --- comparisons


def assert_same(actual: Any, expected: Any) -> None:
    """Bit for bit, for one tensor, dicts of tensors, and lists of these."""
    if isinstance(expected, torch.Tensor):
        torch.testing.assert_close(actual, expected, rtol=0, atol=0, equal_nan=True)
    elif isinstance(expected, Mapping):
        assert list(actual) == list(expected)
        for name in expected:
            assert_same(actual[name], expected[name])
    elif isinstance(expected, list):
        assert len(actual) == len(expected)
        for a, e in zip(actual, expected, strict=True):
            assert_same(a, e)
    else:
        assert actual == expected or (actual != actual and expected != expected)  # noqa: PLR0124 (NaN)


def assert_close(actual: Any, expected: Any, rtol: float = 1e-5, atol: float = 1e-6) -> None:
    torch.testing.assert_close(actual, expected, rtol=rtol, atol=atol)


def differ(a: Any, b: Any) -> bool:
    """Whether anything at all is different."""
    try:
        assert_same(a, b)
    except AssertionError:
        return True
    return False


def snapshot(optimizer: torch.optim.Optimizer) -> Any:
    """Everything that a refused call must leave alone: weights, gradients, state and groups, as copies."""
    params = [p for group in optimizer.param_groups for p in group["params"]]
    return copy.deepcopy(
        {
            "weights": [p.detach() for p in params],
            "gradients": [p.grad.to_dense() if p.grad is not None else None for p in params],
            "state": [dict(optimizer.state[p]) for p in params],
            "groups": [{k: v for k, v in g.items() if k != "params"} for g in optimizer.param_groups],
            "sizes": [len(g["params"]) for g in optimizer.param_groups],
            "other state": [k for k in optimizer.state if not isinstance(k, torch.Tensor)],
        }
    )


def storages(tensors: Iterable[torch.Tensor]) -> list[int]:
    """Addresses of the memory of the tensors that have any."""
    return [t.untyped_storage().data_ptr() for t in tensors if t.numel()]
