"""Optimizers by name, for the command line and for comparisons: how to build each on a model, and what to try first.

A method has one tuned number, its learning rate; every other rate is a ratio to it. The grids are for models of 0.1 to
10 million parameters and a few hundred to a few thousand steps: the papers' rates at 124M parameters are 5 to 30 times
smaller, and `steepest.rules.PRESETS` has them.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from steepest.lab.config import MethodConfig
from steepest.lab.errors import UserError, unknown
from steepest.lab.schedules import set_rates

Builder = Callable[[nn.Module, float, dict[str, Any]], torch.optim.Optimizer]
# Options of a rule that are the routing's business, that have a flag of their own, or that the run decides.
_NOT_OPTIONS = ("lr", "view", "total_steps", "clock")


@dataclass(frozen=True, kw_only=True)
class Method:
    """A row of `steepest optimizers`.

    Args:
        label: how tables and figures call it.
        paper: where it comes from.
        formula: one line: direction, geometry, routing.
        grid: learning rates that a comparison tries; the middle is the default of a single run.
        options: every option with its default.
        build: makes the optimizer from (model, lr, options).
    """

    name: str
    label: str
    paper: str
    formula: str
    grid: tuple[float, ...]
    options: dict[str, Any]
    build: Builder

    @property
    def lr(self) -> float:
        """The default learning rate: the middle of the grid."""
        return self.grid[(len(self.grid) - 1) // 2]


def _decay_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    # The AdamW baseline of the LionMuon paper: decay on the weights of linear layers, none on embeddings (a tied head
    # is one) and on vectors.
    embeddings = {
        id(parameter)
        for module in model.modules()
        if isinstance(module, nn.Embedding)
        for parameter in module.parameters(recurse=False)
    }
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    decayed = [parameter for parameter in parameters if parameter.ndim >= 2 and id(parameter) not in embeddings]
    chosen = {id(parameter) for parameter in decayed}
    others = [parameter for parameter in parameters if id(parameter) not in chosen]
    groups = [
        {"params": decayed, "weight_decay": weight_decay, "label": "weights"},
        {"params": others, "weight_decay": 0.0, "label": "embeddings and vectors"},
    ]
    return [group for group in groups if group["params"]]


def _adamw(model: nn.Module, lr: float, options: dict[str, Any]) -> torch.optim.Optimizer:
    groups = _decay_groups(model, options["weight_decay"])
    return torch.optim.AdamW(groups, lr=lr, betas=tuple(options["betas"]), eps=options["eps"], fused=True)


def _sgd(model: nn.Module, lr: float, options: dict[str, Any]) -> torch.optim.Optimizer:
    return torch.optim.SGD(_decay_groups(model, options["weight_decay"]), lr=lr, momentum=options["momentum"])


def _everywhere(name: str) -> Builder:
    def build(model: nn.Module, lr: float, options: dict[str, Any]) -> torch.optim.Optimizer:
        import steepest

        optimizer: torch.optim.Optimizer = getattr(steepest, name)(model, lr=lr, **options)
        return optimizer

    return build


# The AdamW beside a matrix rule. LionMuon's runs have it at 1e-3 whatever the rate of the matrices, that is at 1, 0.3
# and 0.1 of the latter for the tuned cells of period 2, 5 and 20; decay of vectors is off here (it is on there).
_REST = {"rest_lr_ratio": 0.3, "rest_betas": (0.8, 0.999), "rest_weight_decay": 0.1}
_ROUTING = {"decay_vectors": False}


def _hybrid(hidden: str, outside: str = "AdamW") -> Builder:
    """A method on the hidden matrices and a rule on all else, at `rest_lr_ratio` of the rate.

    Options that begin with "rest_" are those of the rule outside, the others those of the method.
    """

    def build(model: nn.Module, lr: float, options: dict[str, Any]) -> torch.optim.Optimizer:
        import steepest

        rest = {key.removeprefix("rest_"): value for key, value in options.items() if key.startswith("rest_")}
        own = {key: value for key, value in options.items() if not key.startswith("rest_")}
        rule = getattr(steepest.rules, outside)(lr=lr * rest.pop("lr_ratio"), **rest)
        optimizer: torch.optim.Optimizer = getattr(steepest, hidden)(model, lr=lr, rest=rule, **own)
        return optimizer

    return build


def _hybrid_options(hidden: str, outside: str, lr_ratio: float, **changed: Any) -> dict[str, Any]:
    rest = {f"rest_{key}": value for key, value in _rule_options(outside).items() if key not in _ROUTING}
    return _rule_options(hidden) | rest | {"rest_lr_ratio": lr_ratio} | changed


def _rule_options(name: str) -> dict[str, Any]:
    from steepest import rules

    fields = {field.name: field.default for field in dataclasses.fields(getattr(rules, name))}
    return {name: fields[name] for name in rules.options(getattr(rules, name)) if name not in _NOT_OPTIONS} | _ROUTING


def _methods() -> Iterator[Method]:
    yield Method(
        name="adamw",
        label="AdamW",
        paper="Loshchilov and Hutter 2019, arXiv 1711.05101 (torch.optim.AdamW, fused)",
        formula="M / sqrt(V) of bias-corrected averages; no decay on embeddings and vectors",
        grid=(2e-3, 4e-3, 8e-3, 1.6e-2),
        # The baseline of the LionMuon paper at 124M.
        options={"betas": (0.8, 0.999), "eps": 1e-8, "weight_decay": 0.1},
        build=_adamw,
    )
    yield Method(
        name="sgd",
        label="SGD",
        paper="torch.optim.SGD with momentum",
        formula="momentum; no decay on embeddings and vectors",
        grid=(0.1, 0.3, 1.0),
        options={"momentum": 0.9, "weight_decay": 0.1},
        build=_sgd,
    )
    yield Method(
        name="signum",
        label="Signum",
        paper="Bernstein et al. 2018, arXiv 1802.04434",
        formula="sign(M) on every parameter",
        grid=(4e-4, 8e-4, 1.6e-3, 3.2e-3),
        options=_rule_options("Signum"),
        build=_everywhere("Signum"),
    )
    yield Method(
        name="lion",
        label="Lion",
        paper="Chen et al. 2023, arXiv 2302.06675",
        formula="sign(b1 M + (1 - b1) G) on every parameter",
        grid=(4e-4, 8e-4, 1.6e-3, 3.2e-3),
        options=_rule_options("Lion"),
        build=_everywhere("Lion"),
    )
    yield Method(
        name="muon",
        label="Muon",
        paper="Jordan et al. 2024; scale and decay of Moonlight, arXiv 2502.16982",
        formula="polar(Nesterov M) on hidden matrices; AdamW on the rest",
        grid=(5e-3, 1e-2, 2e-2, 4e-2),
        options=_rule_options("Muon") | _REST | {"fused": "split"},
        build=_hybrid("Muon"),
    )
    yield Method(
        name="signmuon",
        label="SignMuon",
        paper="Bolatov et al. 2026, arXiv 2605.19811",
        formula="polar(M), then period - 1 times sign(M), on hidden matrices; AdamW on the rest",
        grid=(1e-2, 2e-2, 4e-2, 8e-2),
        options=_rule_options("SignMuon") | _REST | {"fused": "split"},
        build=_hybrid("SignMuon"),
    )
    yield Method(
        name="softsignum",
        label="SoftSignum",
        paper="Feoktistov et al. 2026, arXiv 2605.31371",
        formula="sign(M), softening to tanh(tau M) in the last tenth of the run, on every parameter",
        grid=(4e-4, 8e-4, 1.6e-3, 3.2e-3),
        options=_rule_options("SoftSignum") | {"transition": (0.9, 1.0)},
        build=_everywhere("SoftSignum"),
    )
    yield Method(
        name="softmuon",
        label="SoftMuon",
        paper="Feoktistov et al. 2026, arXiv 2605.31371; scale and decay of Moonlight, arXiv 2502.16982",
        formula="polar(Nesterov M), softening to M (M'M + tau^-2)^(-1/2), on hidden matrices; AdamW on the rest",
        grid=(5e-3, 1e-2, 2e-2, 4e-2),
        # Scale and decay of our Muon, so that its learning rate carries over.
        options=_rule_options("SoftMuon")
        | {"transition": (0.9, 1.0), "scale": "match_rms", "weight_decay": 0.1}
        | _REST
        | {"fused": "split"},
        build=_hybrid("SoftMuon"),
    )
    yield Method(
        name="softlionmuon",
        label="SoftLionMuon",
        paper="this library: LionMuon (arXiv 2605.19811) with the maps of SoftMuon (arXiv 2605.31371)",
        formula="LionMuon whose spectral and sign steps soften in the last tenth of the run; AdamW on the rest",
        grid=(5e-3, 1e-2, 2e-2, 4e-2),
        options=_rule_options("SoftLionMuon") | {"transition": (0.9, 1.0)} | _REST | {"fused": "split"},
        build=_hybrid("SoftLionMuon"),
    )
    yield Method(
        name="lionmuon",
        label="LionMuon",
        paper="Bolatov et al. 2026, arXiv 2605.19811",
        formula="polar(D), then period - 1 times sign(D), D = b1 M + (1 - b1) G, on hidden matrices; AdamW on the rest",
        grid=(5e-3, 1e-2, 2e-2, 4e-2),
        options=_rule_options("LionMuon") | _REST | {"fused": "split"},
        build=_hybrid("LionMuon"),
    )


def _light_methods() -> Iterator[Method]:
    yield Method(
        name="sage",
        label="SAGE",
        paper="Lee and Kim 2026, arXiv 2604.07663",
        formula="H sign(b1 M + (1 - b1) G), H a bounded damper per column, on all but hidden matrices; SinkGD on these",
        grid=(1e-3, 2e-3, 4e-3, 8e-3),
        # The released hybrid: columns of norm 1, times 10, on the hidden matrices.
        options=_hybrid_options("SinkGD", "SAGE", 1.0, alpha=10.0, target="unit", weight_decay=0.01),
        build=_hybrid("SinkGD", "SAGE"),
    )
    yield Method(
        name="sinkgd",
        label="SinkGD",
        paper="Scetbon et al. 2025, arXiv 2502.06742",
        formula="0.05 sinkhorn(G) on hidden matrices, without state; AdamW on the rest",
        grid=(1e-2, 2e-2, 4e-2, 8e-2),
        options=_hybrid_options("SinkGD", "AdamW", 0.2, rest_weight_decay=0.0),
        build=_hybrid("SinkGD", "AdamW"),
    )
    yield Method(
        name="sinkgd-lion",
        label="SinkGD + Lion",
        paper="the Lion-Hybrid of SAGE's comparison, arXiv 2604.07663",
        formula="sinkhorn(G) on hidden matrices, without state; Lion on the rest",
        grid=(1e-3, 2e-3, 4e-3, 8e-3),
        # The same step on the hidden matrices as the method sage, so that the rule of the embeddings is all there is.
        options=_hybrid_options("SinkGD", "Lion", 1.0, alpha=10.0, target="unit", weight_decay=0.01)
        | {"rest_weight_decay": 0.01},
        build=_hybrid("SinkGD", "Lion"),
    )
    yield Method(
        name="lasm",
        label="LASM",
        paper="an unreviewed preprint, aardXiv, 31 October 2025; experimental",
        formula="factor of the role x sign(M), M damped by 1 / (1 + sqrt(V)), on every parameter",
        grid=(4e-4, 8e-4, 1.6e-3, 3.2e-3),
        options={key: value for key, value in _rule_options("LASM").items() if key != "factor"},
        build=_everywhere("LASM"),
    )
    yield Method(
        name="lionmuon-sage",
        label="LionMuon + SAGE",
        paper="this library: LionMuon (arXiv 2605.19811) with the embeddings of SAGE (arXiv 2604.07663)",
        formula="LionMuon on hidden matrices; damped signs on the rest",
        grid=(5e-3, 1e-2, 2e-2, 4e-2),
        options=_hybrid_options("LionMuon", "SAGE", 0.1),
        build=_hybrid("LionMuon", "SAGE"),
    )
    yield Method(
        name="softmuon-sage",
        label="SoftMuon + SAGE",
        paper="this library: SoftMuon (arXiv 2605.31371) with the embeddings of SAGE (arXiv 2604.07663)",
        formula="SoftMuon on hidden matrices; damped signs on the rest",
        grid=(5e-3, 1e-2, 2e-2, 4e-2),
        options=_hybrid_options("SoftMuon", "SAGE", 0.1, transition=(0.9, 1.0), scale="match_rms", weight_decay=0.1),
        build=_hybrid("SoftMuon", "SAGE"),
    )


METHODS: dict[str, Method] = {method.name: method for method in (*_methods(), *_light_methods())}


def find(name: str) -> Method:
    """The method of a name; a `UserError` with the closest names if there is none."""
    if name not in METHODS:
        raise unknown("optimizer", name, METHODS)
    return METHODS[name]


def resolve(config: MethodConfig) -> MethodConfig:
    """Fill in the default learning rate and options, so that equal runs have equal configurations.

    Raises:
        UserError: an unknown optimizer or option, with the closest names.
    """
    method = find(config.name)
    for option in config.options:
        if option not in method.options:
            raise unknown(f"option of {method.name}", option, method.options)
    lr = method.lr if config.lr is None else config.lr
    return config.model_copy(update={"lr": lr, "options": method.options | config.options})


def build(config: MethodConfig, model: nn.Module, steps: int) -> torch.optim.Optimizer:
    """Build the optimizer of a (resolved or unresolved) configuration on a model, for a run of so many steps.

    Raises:
        UserError: a bad name, option or value.
    """
    config = resolve(config)
    assert config.lr is not None
    if not math.isfinite(config.lr) or config.lr <= 0:
        raise UserError(f"{config.name}: the learning rate must be a positive number, got {config.lr}.")
    options = dict(config.options)
    if "transition" in options:
        options["total_steps"] = steps
    try:
        return find(config.name).build(model, config.lr, options)
    except (TypeError, ValueError) as error:
        raise UserError(str(error)) from error


def check(config: MethodConfig, steps: int) -> None:
    """Build the optimizer on a toy model: a bad name, option or value raises its `UserError` now, not in an hour."""
    toy = nn.Sequential(nn.Embedding(4, 4), nn.Linear(4, 4), nn.LayerNorm(4), nn.Linear(4, 4, bias=False))
    build(config, toy, steps)


def state_bytes(optimizer: torch.optim.Optimizer) -> int:
    """Bytes of all distinct tensor storages in the optimizer's state."""
    return _bytes(optimizer.state)


def _bytes(state: Any) -> int:
    storages: dict[int, int] = {}
    stack: list[Any] = [state]
    while stack:
        value = stack.pop()
        if isinstance(value, torch.Tensor):
            storage = value.untyped_storage()
            storages[storage.data_ptr()] = storage.nbytes()
        elif isinstance(value, Mapping):
            stack.extend(value.values())
        elif isinstance(value, list | tuple):
            stack.extend(value)
    return sum(storages.values())


def routing_rows(
    model: nn.Module, optimizer: torch.optim.Optimizer, rates: Sequence[float] | None = None
) -> list[dict[str, Any]]:
    """One row per parameter for reports: name, shape, view, role, rule, expected RMS step, state bytes and why.

    A steepest optimizer reports its own routing; for any other one the rows say which group a parameter is in.

    Args:
        model: owns the parameters.
        optimizer: has taken a step, so that it has its state.
        rates: of the groups, for the expected steps. Default: as they are now, wherever the schedule stands.
    """
    import steepest

    groups = optimizer.param_groups
    if isinstance(optimizer, steepest.Steepest):
        now = [float(group["lr"]) for group in groups]
        set_rates(groups, rates or now, 1.0)
        rows = [dict(row) for row in optimizer.rows()]
        set_rates(groups, now, 1.0)
        return rows
    roles = steepest.roles(model)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    rows = [
        {
            "name": names[id(parameter)],
            "shape": list(parameter.shape),
            "view": None,
            "role": roles[names[id(parameter)]].kind,
            "rule": type(optimizer).__name__,
            "rms_step": None,
            "state_bytes": _bytes(optimizer.state.get(parameter, {})),
            "why": f"group {label!r}",
        }
        for label, group in zip(group_labels(model, optimizer), groups, strict=True)
        for parameter in group["params"]
    ]
    order = list(names.values())
    return sorted(rows, key=lambda row: order.index(row["name"]))


def group_labels(model: nn.Module, optimizer: torch.optim.Optimizer) -> list[str]:
    """A name for each parameter group: its "label" or rule, and the roles in it where two groups share that."""
    import steepest

    given = [str(group.get("label") or group.get("rule") or "all") for group in optimizer.param_groups]
    if len(set(given)) == len(given):
        return given
    roles = steepest.roles(model)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    labels = []
    for label, group in zip(given, optimizer.param_groups, strict=True):
        kinds = sorted({roles[names[id(parameter)]].kind for parameter in group["params"]})
        labels.append(label if given.count(label) == 1 else f"{label}: {', '.join(kinds)}")
    return [label if labels.count(label) == 1 else f"{label} {index}" for index, label in enumerate(labels)]
