"""The one optimizer: groups, state, buckets, step and checkpoint. It knows no rule by name."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal, overload

import torch
from torch import Tensor, nn

from steepest import sharding
from steepest.engine import fitting
from steepest.engine import state as states
from steepest.engine.bucket import Bucket, Member
from steepest.routing import Routing, View, default_routing, report
from steepest.rules.base import Rule, by_name, check_choice, check_named, check_options, check_whole, options

CheckFinite = Literal["matrix", "all", "none"]

# Keys of a param group that are not numbers of its rule. Schedulers add the rest.
_GROUP_KEYS = ("params", "param_names", "rule", "view", "maximize", "name", "initial_lr")
# The view of a group whose parameters are viewed by their number of axes.
_BY_SHAPE = "auto"


class Steepest(torch.optim.Optimizer):
    """Steepest descent under a rule per parameter; every optimizer of the library is this class.

    Args:
        params: a model (routed: each parameter gets the rule that fits its role), a ``Routing`` from
            ``steepest.route``, or as in torch: parameters, (name, parameter) pairs, or param groups, each with an
            optional ``"rule"`` and options of the rule.
        rule: the rule of groups that have none; for a model, of its hidden matrices (or of everything, if the rule
            needs no matrices).
        embeddings: rule for token and position embeddings, and for the output head unless ``head`` is given.
        head: rule for the output head.
        vectors: rule for norm gains, biases and other vectors.
        rest: rule for what the matrix rule does not take; ``rules.AdamW`` with the same rate and decay by default.
        decay_vectors: also decay norm gains and biases. Off: their decay is 0, as usual.
        fused: "split" takes a fused query-key-value weight as three matrices; "joined" as one, as in the LionMuon runs.
        maximize: ascend.
        check_finite: refuse non-finite gradients by name before anything is changed: of rules that need whole matrices
            or sums, where one bad element would spread over all of them ("matrix"), of all ("all"), or not ("none").
            It costs one read of those gradients (not where sums are made anyway, which may not overflow either) and
            one read back from the device per step.

    The keywords from ``embeddings`` to ``fused`` need a model.

    Raises:
        TypeError: an unknown option (with the closest names), or something that is not a parameter.
        ValueError: a number out of range, no parameters, a parameter given twice, a vector under a matrix rule.
    """

    def __init__(
        self,
        params: Any,
        rule: Rule | None = None,
        *,
        embeddings: Rule | None = None,
        head: Rule | None = None,
        vectors: Rule | None = None,
        rest: Rule | None = None,
        decay_vectors: bool = False,
        fused: Literal["split", "joined"] = "split",
        maximize: bool = False,
        check_finite: CheckFinite = "matrix",
    ) -> None:
        check_choice("Steepest", "check_finite", check_finite, ("matrix", "all", "none"))
        routed = {"embeddings": embeddings, "head": head, "vectors": vectors, "rest": rest}
        if isinstance(params, nn.Module):
            if rule is None:
                raise TypeError("Steepest(model) needs a rule, e.g. Steepest(model, steepest.rules.LionMuon())")
            params = default_routing(model=params, rule=rule, **routed, decay_vectors=decay_vectors, fused=fused)
        else:
            given = [name for name, value in routed.items() if value is not None]
            if given or decay_vectors or fused != "split":
                raise TypeError(
                    f"{', '.join(given) or 'decay_vectors and fused'}: only a model can be routed by role; pass the "
                    "model instead of its parameters, or param groups with a rule each"
                )
        self.check_finite: CheckFinite = check_finite
        self._rule = rule
        self._maximize = maximize
        self._entries = {e.name: e for e in params.entries} if isinstance(params, Routing) else {}
        self._members: dict[Tensor, Member] = {}
        self._numbers: dict[Tensor, int] = {}  # in the order of adding: a wrapper may split groups for a step
        groups = _as_groups(params)
        first = _rule_with_options(groups[0], rule)
        common = {name: getattr(first, name) for name in ("lr", "betas", "weight_decay") if hasattr(first, name)}
        super().__init__(groups, common)

    # Groups and state ------------------------------------------------------------------------------------------------

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add parameters, at any time: ``{"params": ..., "rule": rules.Lion(lr=1e-4), ...}``.

        Options in the dict override the rule's. The dict is not changed. State is made at once.

        Raises:
            TypeError, ValueError: as at construction; the optimizer is then as it was.
        """
        group = dict(param_group)
        rule = _rule_with_options(group, self._rule)
        if "clock" in options(type(rule)) and "clock" not in group:  # that of the run, which may be under way
            clocks = [g["clock"] for g in self.param_groups if "clock" in g]
            rule = _rule_with_options({"clock": max(clocks)}, rule) if clocks else rule
        named = _named(group["params"], sum(len(g["params"]) for g in self.param_groups))
        _check_params(rule, named, {id(p) for g in self.param_groups for p in g["params"]})
        view = str(group.get("view") or rule.view or _BY_SHAPE)
        if view != _BY_SHAPE:
            View.parse(view)
        for name, param in named:
            if rule.needs == "matrix":
                _check_matrix(rule, name, param, _view(view, param))
            elif rule.needs == "sums" and not param.numel():
                raise ValueError(
                    f"{name!r} of shape {tuple(param.shape)} is empty, and {rule.name} needs the mean of its rows: "
                    "leave it out, or give it a rule that works element by element (rules.Lion)"
                )
        extra: dict[str, Any] = {key: group[key] for key in ("name", "initial_lr") if key in group}
        super().add_param_group(
            {
                **{name: _own(getattr(rule, name)) for name in options(type(rule))},
                "params": named,
                "rule": rule.name,
                "view": view,
                "maximize": group.get("maximize", self._maximize),
                **extra,
            }
        )
        for _, param in named:
            self._numbers[param] = len(self._numbers)
            if param.requires_grad:  # a frozen one, such as the base of a LoRA model, gets its state when unfrozen
                self.state[param] = states.create(rule, param)

    def _member(self, group: Mapping[str, Any], rule: Rule, index: int) -> Member:
        param = group["params"][index]
        view = _view(group["view"], param) if rule.needs == "matrix" else View(element=True)
        state = self.state[param] = self.state.get(param) or states.create(rule, param)  # it may have been frozen
        if param not in self._numbers:  # a trainer put its own parameters, such as sharded ones, in the groups
            self._number_all()
        return Member(group["param_names"][index], param, state, view, self._numbers[param])

    def _number_all(self) -> None:
        self._numbers = {param: i for i, param in enumerate(p for g in self.param_groups for p in g["params"])}

    # Step ------------------------------------------------------------------------------------------------------------

    @overload
    def step(self, closure: None = None) -> None: ...
    @overload
    def step(self, closure: Callable[[], float]) -> float: ...
    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Take one step for every parameter that has a gradient.

        Args:
            closure: computes the loss and the gradients anew; its result is returned.

        Raises:
            FloatingPointError: a non-finite gradient (see ``check_finite``). Nothing was changed.
            RuntimeError: a sparse gradient. Nothing was changed.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        buckets = self._buckets()
        self._refuse_non_finite(buckets)
        for bucket in fitting.fit(buckets):
            bucket.rule.update(bucket)
        counters = [m.state[states.COUNTER] for bucket in buckets for m in bucket.members]
        if counters:
            torch._foreach_add_(counters, 1)
        for group in self.param_groups:
            if "clock" in group:
                group["clock"] += 1
        return loss

    def _buckets(self) -> list[Bucket]:
        """Sort the parameters with gradients by group, step, device and dtypes; check them. Nothing is changed."""
        rules = [states.rule_of(group) for group in self.param_groups]
        found: list[tuple[int, Member]] = []
        for i, (group, rule) in enumerate(zip(self.param_groups, rules, strict=True)):
            for j, param in enumerate(group["params"]):
                if param.grad is None:
                    continue
                member = self._members.get(param)
                if member is None or member.state is not self.state.get(param):
                    member = self._members[param] = self._member(group, rule, j)
                if param.grad.layout != torch.strided:
                    raise RuntimeError(
                        f"the gradient of {member.name!r} is sparse; steepest needs dense ones: build the "
                        "embedding with sparse=False"
                    )
                found.append((i, member))
        steps = torch.stack([m.state[states.COUNTER] for _, m in found]).tolist() if found else []
        fits = fitting.saved([(rules[i], m) for i, m in found])
        sorted_in: dict[Any, list[Member]] = {}
        for (i, member), step, fit in zip(found, steps, fits, strict=True):
            param, grad = member.param, member.param.grad
            assert grad is not None
            kind = (i, step, fit, param.device, param.dtype, grad.dtype, member.layout)
            sorted_in.setdefault(kind, []).append(member)
        for (i, *_), (first, *_) in sorted_in.items():
            states.check_kept(rules[i], first.param, first.name, first.state)
        return [
            Bucket(fitting.with_fit(rules[i], fit), step, members, i, rules[i].lr, self.param_groups[i]["maximize"])
            for (i, step, fit, *_), members in sorted_in.items()
        ]

    def begin_transition(self, steps: int) -> None:
        """Let the maps of soft rules begin to soften at the next step and reach the end ``steps`` steps from there.

        For runs whose length is not known beforehand. A transition that was planned or under way is replaced.

        Args:
            steps: length of the transition, at least 2: its first step is still hard.

        Raises:
            ValueError: no rule of this optimizer softens, or ``steps`` is no whole number >= 2. Nothing was changed.
        """
        groups = [group for group in self.param_groups if "transition" in group]
        if not groups:
            raise ValueError(
                "begin_transition: no rule of this optimizer softens; use SoftSignum, SoftMuon or SoftLionMuon"
            )
        check_whole("begin_transition", "steps", steps, 2)
        for group in groups:
            group.update(transition=(group["clock"], group["clock"] + steps), total_steps=None)
            for param in group["params"]:
                if param in self.state:
                    states.forget_fit(self.state[param])

    def _refuse_non_finite(self, buckets: Sequence[Bucket]) -> None:
        if self.check_finite == "none":
            return
        read: list[tuple[Member, Tensor]] = []
        for bucket in buckets:
            if bucket.rule.needs == "sums":
                read += zip(bucket.members, bucket.column_sums, strict=True)
            elif bucket.rule.needs == "matrix" or self.check_finite == "all":
                read += [(m, sharding.local(m.gradient())) for m in bucket.members]
        params = [m.param for m, _ in read]
        # The l2 norm is the cheapest read of everything. It may overflow on finite numbers: then look closer.
        if not sharding.any_process(not _all_finite_norms(x for _, x in read if x.numel()), params):
            return
        names = [m.name for m, x in read if not bool(x.isfinite().all())]  # those of two models may collide
        if not sharding.any_process(bool(names), params):
            return
        raise FloatingPointError(
            f"non-finite gradient of {fitting.listed(names)}; nothing was changed. Skip this "
            "batch, lower the learning rate, or use a GradScaler with float16"
        )

    # Checkpoint ------------------------------------------------------------------------------------------------------

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a state dict of an optimizer with the same parameters and rules, in the declared dtypes, as copies.

        Raises:
            ValueError: it is of another method, model or version; the message names what does not fit. Nothing was
                changed.
        """
        own_names = [g["param_names"] for g in self.param_groups]
        own_backends = [g["backend"] for g in self.param_groups]  # of this machine, not of the one that saved
        loaded: dict[str, Any] = {}

        def check(_: Any, given: dict[str, Any]) -> None:
            states.check_loaded(self.param_groups, own_names, given)
            loaded.update(given)

        def adopt(_: Any) -> None:
            for i, (group, saved) in enumerate(zip(self.param_groups, loaded["param_groups"], strict=True)):
                group["param_names"], group["backend"] = own_names[i], own_backends[i]
                rule = states.rule_of(group)
                for param, index in zip(group["params"], saved["params"], strict=True):
                    if index in loaded["state"]:
                        self.state[param] = states.adopt(rule, param, loaded["state"][index])
                    else:
                        self.state.pop(param, None)
            self._members.clear()

        # After the user's hooks before loading, and before those after it: they see and make what is loaded.
        ours = (
            self.register_load_state_dict_pre_hook(check),
            self.register_load_state_dict_post_hook(adopt, prepend=True),
        )
        try:
            super().load_state_dict(state_dict)
        finally:
            for hook in ours:
                hook.remove()

    def state_dict(self) -> dict[str, Any]:
        """As in torch: tensors and plain numbers only, so that ``torch.load(..., weights_only=True)`` reads it."""
        saved = super().state_dict()
        for group in saved["param_groups"]:
            group.update({key: states.plain(value) for key, value in group.items()})
        return saved

    def __getstate__(self) -> dict[str, Any]:
        mine = {k: getattr(self, k) for k in ("check_finite", "_rule", "_maximize", "_entries")}
        return {**super().__getstate__(), **mine}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._members = {}
        self._number_all()

    # Report ----------------------------------------------------------------------------------------------------------

    def rows(self) -> list[report.Row]:
        """One plain dict for each parameter, in model order: name, shape, view, role, rule, rms_step, state_bytes, why.

        With the numbers that stand in the groups now; ``print(optimizer)`` shows them as a table.
        """
        rows = []
        for group in self.param_groups:
            rule = states.rule_of(group)
            for name, param in zip(group["param_names"], group["params"], strict=True):
                view = _view(group["view"], param) if rule.needs == "matrix" else View(element=True)
                entry = self._entries.get(name)
                role, why = (entry.role.kind, entry.why) if entry else ("", "given")
                shape, dtype = tuple(param.shape), param.dtype
                row = report.row(name=name, shape=shape, dtype=dtype, view=view, role=role, rule=rule, why=why)
                rows.append(row if param in self.state else {**row, "state_bytes": 0})
        order = {name: i for i, name in enumerate(self._entries)}
        return sorted(rows, key=lambda row: order.get(row["name"], len(order)))

    def __repr__(self) -> str:
        return f"{type(self).__name__}\n{report.text(self.rows())}"


def _all_finite_norms(tensors: Iterable[Tensor]) -> bool:
    """Whether the l2 norms are finite: one read back from each device."""
    by_device: dict[torch.device, list[Tensor]] = {}
    for tensor in tensors:
        by_device.setdefault(tensor.device, []).append(tensor)
    return all(bool(torch.stack(torch._foreach_norm(there)).isfinite().all()) for there in by_device.values())


def _as_groups(params: Any) -> list[dict[str, Any]]:
    """The groups of what a user passed, each a dict; checked to hold at least one parameter."""
    if isinstance(params, Tensor):
        raise TypeError("params must be a list of parameters or a model, got a single tensor; pass [parameter]")
    listed = _in_order(params)
    groups = listed if listed and isinstance(listed[0], dict) else [{"params": listed}]
    for i, group in enumerate(groups):
        if not isinstance(group, dict) or "params" not in group:
            raise TypeError(f"param group {i} must be a dict with 'params', got {group!r:.80}")
    groups = [
        {**g, "params": [g["params"]] if isinstance(g["params"], Tensor) else _in_order(g["params"])} for g in groups
    ]
    if not any(group["params"] for group in groups):
        raise ValueError("the parameter list is empty: was the model built, or the iterator already used up?")
    return groups


def _in_order(params: Any) -> list[Any]:
    if isinstance(params, (set, frozenset)):
        raise TypeError("params must have an order that is the same in every run and process: pass a list, not a set")
    return list(params)


def _rule_with_options(group: Mapping[str, Any], default: Rule | None) -> Rule:
    """The rule of a group: its own or the default, with the options that stand in the group."""
    rule = group.get("rule", default)
    if isinstance(rule, str):
        rule = by_name(rule)()
    if not isinstance(rule, Rule):
        raise TypeError(
            f"a param group needs a rule, e.g. {{'params': ..., 'rule': steepest.rules.Lion()}}; got {rule!r}"
        )
    check_named(type(rule))
    check_options(type(rule), group, _GROUP_KEYS)
    own = set(options(type(rule))) - {"view"}
    return replace(rule, **{key: value for key, value in group.items() if key in own})


def _own(value: Any) -> Any:
    """A number for one group: a tensor rate is copied, since schedulers write it in place, group by group."""
    return value.detach().clone() if isinstance(value, Tensor) else states.plain(value)


def _named(params: Any, start: int) -> list[tuple[str, Tensor]]:
    """(name, parameter) pairs; parameters without a name get their number."""
    named = []
    for i, entry in enumerate([params] if isinstance(params, Tensor) else params):
        name, param = entry if isinstance(entry, tuple) else (f"parameter {start + i}", entry)
        if not isinstance(param, Tensor):
            raise TypeError(f"{name} must be a tensor, got {type(param).__name__}")
        named.append((name, param))
    return named


def _check_params(rule: Rule, named: Sequence[tuple[str, Tensor]], taken: set[int]) -> None:
    for name, param in named:
        if id(param) in taken:
            raise ValueError(f"{name!r} is given twice; a parameter can have one rule only")
        taken.add(id(param))
        if not param.is_floating_point():
            hint = "; view it as real with torch.view_as_real" if param.is_complex() else ""
            raise TypeError(f"{name!r} is of dtype {param.dtype}; steepest steps real floating-point parameters{hint}")
        if rule.param_rounding != "nearest" and param.dtype.itemsize < 4 and param.dtype != torch.bfloat16:
            raise ValueError(
                f"{name!r} is of dtype {param.dtype}; param_rounding={rule.param_rounding!r} is for bfloat16 (and "
                "leaves wider parameters alone): use 'nearest' here"
            )


def _check_matrix(rule: Rule, name: str, param: Tensor, view: View) -> None:
    if view.element:
        what = "is a vector" if param.ndim < 2 else "has the view 'element'"
        raise ValueError(
            f"{name!r} of shape {tuple(param.shape)} {what} and {rule.name} needs matrices; give vectors another "
            "rule (rules.AdamW, rules.Lion), or pass the model to have this done"
        )
    try:
        view.shapes(param.shape)
    except ValueError as error:
        raise ValueError(f"{name!r}: {error}") from None


def _view(text: str, param: Tensor) -> View:
    return View.default(param.shape) if text == _BY_SHAPE else View.parse(text)
