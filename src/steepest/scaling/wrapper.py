"""A wrapper of any torch optimizer that multiplies the step of each parameter by a factor: what SAC and SGG share."""

from __future__ import annotations

import inspect
import json
import math
import weakref
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from steepest.rules.base import check_choice
from steepest.scaling import applying
from steepest.scaling.applying import Factor, Group, Shape
from steepest.scaling.checks import check_flag

Apply = Literal["auto", "rates", "update"]
WeightDecay = Literal["auto", "decoupled", "coupled"]

# By class name, of any package: the step is no multiple of the learning rate of the step, since the optimizer finds a
# rate itself, keeps one in its state, or returns to where it was. All others of torch, pytorch-optimizer, bitsandbytes,
# schedulefree and prodigyopt were tested to be linear.
NOT_LINEAR = frozenset(
    [
        *("Adafactor", "AdaFactor", "Prodigy"),
        *("DAdaptAdaGrad", "DAdaptAdam", "DAdaptAdan", "DAdaptAdanIP", "DAdaptLion", "DAdaptSGD"),
        *("AdamWScheduleFree", "RAdamScheduleFree", "SGDScheduleFree"),
        *("AdamWScheduleFreeReference", "AdamWScheduleFreeClosure", "RAdamScheduleFreeClosure"),
        *("SGDScheduleFreeReference", "SGDScheduleFreeClosure"),
        *("ScheduleFreeAdamW", "ScheduleFreeRAdam", "ScheduleFreeSGD", "ScheduleFreeWrapper"),
        *("AccSGD", "AdaBound", "AdaGO", "AdaMod", "AdamG", "Amos", "ApolloDQN", "ASGD", "AvaGrad", "FTRL", "Fromage"),
        *("Gravity", "LaProp", "Lookahead", "MADGRAD", "Magma", "Nero", "Ranger", "Ranger21", "Rprop", "SRMM"),
        "SpectralSphere",
    ]
)
# By class name: weight decay is added to the gradient, and no flag in the param group says so.
COUPLED = frozenset(["SGD", "Adagrad", "Adadelta", "Adamax", "LARS", "RMSprop", "Rprop", "ASGD", "SparseAdam"])
# By class name: the step asks the closure for gradients (of AliG, for the loss) and raises without one. What has the
# closure as a required parameter is known by that.
NEEDS_CLOSURE = frozenset(["AliG", "BSAM", "FriendlySAM", "GSAM", "LookSAM", "SAM", "WSAM"])
# Flags of param groups that say whether the decay is decoupled.
FLAGS = ("decoupled_weight_decay", "weight_decouple", "decouple")


class Wrapper(torch.optim.Optimizer):
    """A torch optimizer around another one, the base, that scales the step of each parameter.

    To schedulers, ``GradScaler``, trainers and ``torch.distributed.checkpoint`` it is an optimizer: ``param_groups``,
    ``state`` and ``defaults`` are those of the base, the same objects, with unscaled rates. What else the base offers
    (``train``, ``eval``, ``begin_transition``) is reached through the wrapper. The base must then not be stepped
    itself; that raises.

    A subclass gives the factors: ``factors``, called at each step before that of the base. It may keep something:
    ``own_state``, ``plain_state``, ``check_own_state`` and ``load_own_state``; and ``regrouped``. Its ``__init__``
    calls this one last, when it has checked everything: from then on the base is closed.

    Args:
        base: the optimizer to wrap, over any of its param groups.
        apply: how a factor S reaches the step. "rates": the base steps with param groups that are split by factor,
            with ``lr`` times S; exact for every optimizer whose step is linear in ``lr``. "update": the base steps, and
            the change of each parameter is multiplied by S; for all others, at the price of one copy of the scaled
            parameters during the step (a step of AdamW on a CPU then took 2.4 to 4 times as long). "auto": "update" for
            the classes in ``NOT_LINEAR``, for groups without a number as ``lr``, and for soft rules with
            ``pool="group"``, which look at a group as a whole; else "rates". A factor that is a tensor is always
            applied to the update.
        weight_decay: whether the decay of the base is "decoupled" from the gradient, a shrinkage by
            ``lr weight_decay``, which under "rates" is then kept as it is without the factor; or "coupled", added to
            the gradient, where there is nothing to keep. "auto": by a flag in the param group (``FLAGS``), else
            coupled for ``COUPLED`` and decoupled for all others. Under "update" a decoupled decay is scaled along.
        scale_weight_decay: let a decoupled decay be scaled along under "rates" too.

    A base that sums something over parameters (a clip of the norm of its whole update, one estimate for a group) does
    this over all parameters as always if it sums over all its groups, but part by part if it sums within a group: with
    ``apply="update"`` its groups stay whole.

    Raises:
        TypeError: ``base`` is no torch optimizer, or needs a closure.
        ValueError: an unknown option, a base that is wrapped already (at any depth by one with the same ``key``, whose
            state would be overwritten), or one without rates under "rates".
    """

    key: ClassVar[str] = "wrapper"
    """Key of the wrapper's own state in the state dict."""

    def __init__(
        self,
        base: torch.optim.Optimizer,
        *,
        apply: Apply = "auto",
        weight_decay: WeightDecay = "auto",
        scale_weight_decay: bool = False,
    ) -> None:
        name = type(self).__name__
        check_base(name, base, self.key)
        if str(apply).startswith("grad"):
            raise ValueError(
                f"{name} never scales gradients: Adam, Lion, Muon and LAMB would cancel the factor; use apply='rates' "
                "or 'update'"
            )
        check_choice(name, "apply", apply, ("auto", "rates", "update"))
        check_choice(name, "weight_decay", weight_decay, ("auto", "decoupled", "coupled"))
        check_flag(name, "scale_weight_decay", scale_weight_decay)
        pooled = any(group.get("pool") == "group" for group in base.param_groups)
        rated = _rates_can_be_scaled(base)
        if apply == "rates" and not rated:
            raise ValueError(
                f"{name}: apply='rates' needs a number as 'lr' in every param group; {type(base).__name__} has none "
                "that could be scaled: use apply='update'"
            )
        if apply == "rates" and pooled:
            raise ValueError(
                f"{name}: apply='rates' splits param groups, and pool='group' of {type(base).__name__} makes one fit "
                "over each: use apply='update', or pool='rule'"
            )
        super().__init__([{"params": []}], {})  # for the hooks; there is no base yet, so the rest of it is dropped
        self.base = base
        by_rates = rated and not pooled and not _is_one_of(base, NOT_LINEAR)
        self.apply: Literal["rates", "update"] = apply if apply != "auto" else "rates" if by_rates else "update"
        self.weight_decay: WeightDecay = weight_decay
        self.scale_weight_decay = scale_weight_decay
        self._close()

    # For subclasses --------------------------------------------------------------------------------------------------

    def factors(self) -> Mapping[Tensor, Factor]:
        """The factors of this step by parameter; one that is not there has the factor 1.

        Called once in each step, without autograd, when the gradients are final (after the closure) and before the
        base steps. A factor is a positive number; or a tensor of them that broadcasts to the parameter (of a sharded
        one: is sharded as it is, or broadcasts to the part on this process); or a function that returns one of these
        and is called when the base has stepped, so that it sees the buffers of this step; or a pair of a number and one
        of the latter two, for their product. Gradients are not to be changed.
        """
        return {}

    def regrouped(self, groups: Sequence[Mapping[str, Any]]) -> None:
        """Called with all param groups when some are added, and when the base was given some without the wrapper.

        Raises:
            ValueError: one cannot be scaled; nothing was changed.
        """

    def stepped(self) -> None:
        """Called when a step is complete; not called when the base raised."""

    def own_state(self) -> dict[str, Any]:
        """What the wrapper keeps, in tensors and plain numbers, strings, lists and dicts with keys that are strings.

        It stands in the state dict under ``key``.
        """
        return {}

    def plain_state(self) -> dict[str, Any]:
        """What of it ``torch.distributed.checkpoint`` is to keep; nothing of it is kept if there are tensors here."""
        return self.own_state()

    def check_own_state(self, saved: Mapping[str, Any]) -> None:
        """Raise ``ValueError`` if what was saved does not fit; nothing is changed yet."""

    def load_own_state(self, saved: Mapping[str, Any] | None) -> None:
        """Take what was saved and checked; None: the checkpoint is of the base alone, so begin anew."""

    # The base's own --------------------------------------------------------------------------------------------------

    @property
    def param_groups(self) -> list[Group]:
        """The param groups of the base, as the user made them and schedulers move them: never scaled."""
        groups: list[Group] = self.base.param_groups
        return groups

    @param_groups.setter
    def param_groups(self, groups: list[Group]) -> None:
        self._set("param_groups", groups)

    @property
    def state(self) -> Any:
        """The state of the base."""
        return self.base.state

    @state.setter
    def state(self, state: Any) -> None:
        self._set("state", state)

    @property
    def defaults(self) -> dict[str, Any]:
        """The defaults of the base."""
        return self.base.defaults

    @defaults.setter
    def defaults(self, defaults: dict[str, Any]) -> None:
        self._set("defaults", defaults)

    def _set(self, name: str, value: Any) -> None:
        if "base" in self.__dict__:  # not yet while torch's constructor runs
            setattr(self.base, name, value)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_") or "base" not in self.__dict__:
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        try:
            return getattr(self.base, name)
        except AttributeError:
            kinds = f"{type(self).__name__!r} object and its {type(self.base).__name__!r}"
            raise AttributeError(f"{kinds} have no attribute {name!r}") from None

    # A fused base could unscale inside its kernel; GradScaler must do it before, since statistics see the gradients.
    _step_supports_amp_scaling = False

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a param group to the base.

        Raises:
            ValueError: the base or the wrapper refuses it; nothing was changed.
        """
        if "base" not in self.__dict__:
            return
        params = param_group["params"]
        group = {**param_group, "params": [params] if isinstance(params, Tensor) else list(params)}
        before = dict(self.__dict__)
        self.regrouped([*self.base.param_groups, group])
        try:
            self.base.add_param_group(group)
        except BaseException:
            self.__dict__.update(before)
            raise
        self._count = _count(self.base)

    def zero_grad(self, set_to_none: bool = True) -> None:
        """As the base does it."""
        self.base.zero_grad(set_to_none)

    # Step ------------------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None, **options: Any) -> Any:
        """Take one step of the base, scaled.

        Args:
            closure: computes the loss and the gradients anew; called once, here, and not by the base.
            options: go to the ``step`` of the base.

        Returns:
            What the closure returned; without one, what the base returned.

        Raises:
            ValueError: the base was given parameters that are not of the model; nothing was changed.
        """
        self._notice_groups()
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        rates, updates = self._sorted(self.factors())
        with ExitStack() as stack:
            stack.enter_context(self._guard.opened())
            if updates:
                stack.enter_context(applying.scaled_update(updates))
            if rates:
                groups = self.base.param_groups
                stack.enter_context(applying.scaled_rates(groups, rates, self._keeps_decay, self.key))
            result = self.base.step(**options)
        self.stepped()
        return result if closure is None else loss

    def _sorted(self, factors: Mapping[Tensor, Factor]) -> tuple[dict[Tensor, float], dict[Tensor, float | Shape]]:
        """The factors that reach the step by the rates, and those that do by the update."""
        numbers: dict[Tensor, float] = {}
        updates: dict[Tensor, float | Shape] = {}
        for param, factor in factors.items():
            number: float = 1.0
            shape: Shape | None = None
            if isinstance(factor, tuple):
                number, shape = factor
            elif isinstance(factor, (int, float)):
                number = factor
            else:
                shape = factor
            if not (number > 0.0 and math.isfinite(number)):
                raise ValueError(f"the factor of a parameter of shape {tuple(param.shape)} must be > 0, got {number}")
            if shape is not None:
                updates[param] = shape if self.apply == "rates" or number == 1.0 else _product(number, shape)
            if number != 1.0 and (shape is None or self.apply == "rates"):
                numbers[param] = float(number)
        return (numbers, updates) if self.apply == "rates" else ({}, {**numbers, **updates})

    def _notice_groups(self) -> None:
        """See whether the base was given parameters directly, by its own ``add_param_group``."""
        if _count(self.base) != self._count:
            self.regrouped(self.base.param_groups)
            self._count = _count(self.base)

    def _keeps_decay(self, group: Group) -> bool:
        """Whether the decay of a group is a shrinkage by ``lr weight_decay`` that is to stay as it is."""
        if self.scale_weight_decay or group.get("fixed_decay") or not _is_rate(group.get(applying.DECAY)):
            return False
        if self.weight_decay != "auto":
            return self.weight_decay == "decoupled"
        flags = [bool(group[flag]) for flag in FLAGS if flag in group]
        return flags[0] if flags else type(self.base).__name__ not in COUPLED

    # Checkpoint ------------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """The state dict of the base, which alone the base can load, and under ``key`` the wrapper's own state.

        ``torch.distributed.checkpoint`` keeps no more of an optimizer than state and groups. For it, what is plain is
        also written, as one string, into the first param group, and read from there if it is it that loads.
        """
        for hook in self._optimizer_state_dict_pre_hooks.values():
            hook(self)
        first = self.base.param_groups[0]
        try:
            first[self.key] = _as_text(self.plain_state())
            saved: dict[str, Any] = {**self.base.state_dict(), self.key: self.own_state()}
        finally:
            first[self.key] = ""
        for post_hook in self._optimizer_state_dict_post_hooks.values():
            saved = post_hook(self, saved) or saved
        return saved

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a state dict of such a wrapper, or of the base alone: then the factors begin anew.

        Raises:
            ValueError: it does not fit; nothing was changed if it was the wrapper's part.
        """
        self._notice_groups()
        given = dict(state_dict)
        for hook in self._optimizer_load_state_dict_pre_hooks.values():
            given = hook(self, given) or given
        own = given.pop(self.key, None)
        if own is None:
            own = _carried(given, self.key)
        if own is not None:
            self.check_own_state(own)
        self.base.load_state_dict(given)
        self.base.param_groups[0][self.key] = ""
        self.load_own_state(own)
        for post_hook in self._optimizer_load_state_dict_post_hooks.values():
            post_hook(self)

    def __getstate__(self) -> dict[str, Any]:
        # Hooks are not copied, as in torch; nor is `step` when a scheduler has put its own before it.
        left_out = {"step", "_guard"} | {name for name in self.__dict__ if name.startswith("_optimizer_")}
        return {name: value for name, value in self.__dict__.items() if name not in left_out}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        for moment in ("state_dict_pre", "state_dict_post", "load_state_dict_pre", "load_state_dict_post"):
            self.__dict__.setdefault(f"_optimizer_{moment}_hooks", OrderedDict())
        self._close()

    def _close(self) -> None:
        self._guard = _Guard(self)
        self._count = _count(self.base)
        self.base.param_groups[0][self.key] = ""  # a place for the wrapper's state, see ``state_dict``
        hooks = self.base._optimizer_step_pre_hooks
        for handle in [handle for handle, hook in hooks.items() if isinstance(hook, _Guard)]:
            del hooks[handle]  # of a wrapper that is gone
        self.base.register_step_pre_hook(self._guard)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._shown()}) over {self.base!r}"

    def _shown(self) -> str:
        """The options, for people."""
        return f"apply={self.apply!r}"


class _Guard:
    """Hook on the base that lets it step only from inside the wrapper, even when that is gone."""

    def __init__(self, wrapper: Wrapper) -> None:
        self.wrapper = weakref.ref(wrapper)  # gone, also when its construction failed later: the base is free then
        self._wrapper = type(wrapper).__name__
        self._open = False

    def __call__(self, base: torch.optim.Optimizer, *_: Any) -> None:
        # torch.distributed.checkpoint makes the state of a new optimizer by a step with all rates 0, which is harmless.
        rates = [group.get(applying.RATE) for group in base.param_groups]
        if not self._open and not all(isinstance(rate, float) and rate == 0.0 for rate in rates):
            raise RuntimeError(
                f"this {type(base).__name__} was stepped outside the {self._wrapper} that wraps it, so its step would "
                f"not be scaled; call step() of the {self._wrapper}, and give that one to GradScaler and trainers too"
            )

    @contextmanager
    def opened(self) -> Iterator[None]:
        self._open = True
        try:
            yield
        finally:
            self._open = False


def check_base(name: str, base: Any, key: str) -> None:
    """Refuse what cannot be wrapped by a wrapper of this name that keeps its state under this key."""
    if not isinstance(base, torch.optim.Optimizer):
        raise TypeError(
            f"{name} wraps a torch optimizer, e.g. {name}(torch.optim.AdamW(model.parameters(), lr=1e-3), model); got "
            f"{base!r:.80}"
        )
    kind = type(base).__name__
    hooks = getattr(base, "_optimizer_step_pre_hooks", {}).values()
    if any(isinstance(hook, _Guard) and hook.wrapper() is not None for hook in hooks):
        raise ValueError(f"{name}: this {kind} is wrapped already; build a new one for each wrapper")
    inside = list(_inside(base))
    if any(isinstance(one, Wrapper) and one.key == key for one in inside):
        raise ValueError(
            f"{name}: the {type(inside[-1]).__name__} is inside a {name} already, and both would keep their state as "
            f"{key!r} in the state dict; wrap it once"
        )
    asking = next((type(one).__name__ for one in inside if _needs_closure(one)), None)
    if asking is not None:
        within = f" with a {asking} inside" if asking != kind else ""
        raise TypeError(
            f"{name} cannot wrap {kind}{within}: {asking} evaluates the closure itself, in its step, and the wrapper "
            "measures the gradients before that; wrap an optimizer that steps without a closure, such as AdamW, or "
            f"use {kind} without {name}"
        )


def _needs_closure(one: torch.optim.Optimizer) -> bool:
    """Whether it cannot step without a closure."""
    closure = inspect.signature(one.step).parameters.get("closure")
    required = closure is not None and closure.default is inspect.Parameter.empty
    return required or _is_one_of(one, NEEDS_CLOSURE)


def _is_one_of(one: torch.optim.Optimizer, names: frozenset[str]) -> bool:
    """Whether its class or one that it derives from has one of these names."""
    return any(cls.__name__ in names for cls in type(one).__mro__)


def _inside(base: torch.optim.Optimizer) -> Iterator[torch.optim.Optimizer]:
    """An optimizer and those that it has as attributes, at any depth."""
    waiting, seen = [base], set()
    while waiting:
        one = waiting.pop()
        if id(one) not in seen:
            seen.add(id(one))
            yield one
            waiting += [value for value in vars(one).values() if isinstance(value, torch.optim.Optimizer)]


def _count(base: torch.optim.Optimizer) -> int:
    return sum(len(group["params"]) for group in base.param_groups)


def _product(number: float, shape: Shape) -> Shape:
    return shape * number if isinstance(shape, Tensor) else lambda: number * shape()


def _is_rate(value: Any) -> bool:
    return isinstance(value, (int, float, Tensor)) and not isinstance(value, bool)


def _rates_can_be_scaled(base: torch.optim.Optimizer) -> bool:
    """Whether every group has a rate, and the groups are one list that the base reads at each step."""
    return base.param_groups is base.param_groups and all(_is_rate(g.get(applying.RATE)) for g in base.param_groups)


def _carried(state_dict: Mapping[str, Any], key: str) -> Any:
    """The wrapper's own state in the first group of a state dict of torch.distributed.checkpoint, if there is one.

    Such a one has names of parameters for their numbers. In any other the string may be an old one: a bare base that
    loaded the state dict of a wrapper keeps it.
    """
    for group in state_dict.get("param_groups", [])[:1]:
        if group.get(key) and all(isinstance(param, str) for param in group["params"]):
            return json.loads(group[key])
    return None


def _as_text(own: Mapping[str, Any]) -> str:
    """As JSON, which gives every number back exactly; nothing if there are tensors in it."""
    try:
        return json.dumps(own)
    except TypeError:
        return ""
