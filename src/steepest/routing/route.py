"""Routing: which rule takes which parameter, by patterns or by role, as param groups with a record of every choice."""

from __future__ import annotations

import difflib
import fnmatch
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import nn

from steepest.routing import report
from steepest.routing.roles import HIDDEN, KINDS, Role, claim, unknown_message
from steepest.routing.views import View

if TYPE_CHECKING:
    from steepest.rules.base import Rule

Pattern = "str | Callable[[str, nn.Parameter, Role], bool]"
_KINDS_OF = {"embeddings": ("embedding", "position"), "head": ("head",), "vectors": ("norm", "bias", "vector")}
_Test = Callable[[str, nn.Parameter, Role], "str | None"]


@dataclass(frozen=True, kw_only=True)
class Entry:
    """What became of one parameter.

    Attributes:
        name: clean name, without traces of wrappers.
        shape: global shape.
        dtype: of the parameter.
        view: how the rule sees it; ``element`` for a rule that works on elements.
        role: what it is.
        rule: what steps it; None for a parameter that cannot be trained (integers), which is in no group.
        why: what decided about the role and about the rule.
        frozen: whether it needs no gradient now. It is in a group all the same, so that it can be unfrozen later.
    """

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    view: View
    role: Role
    rule: Rule | None
    why: str
    frozen: bool = False


class Routing(list[dict[str, Any]]):
    """Param groups, ready for ``steepest.Steepest``: one for each pair of a rule and a view, in the order of the model.

    A group is ``{"params": [(name, parameter), ...], "rule": rule, "view": text}``.

    Attributes:
        entries: one for each parameter, in the order of the model.
    """

    def __init__(self, routed: Iterable[tuple[Entry, nn.Parameter]]) -> None:
        super().__init__()
        self.entries: list[Entry] = []
        groups: dict[tuple[Rule, str], list[tuple[str, nn.Parameter]]] = {}
        for entry, parameter in routed:
            self.entries.append(entry)
            if entry.rule is not None:
                groups.setdefault((entry.rule, str(entry.view)), []).append((entry.name, parameter))
        self.extend({"params": params, "rule": rule, "view": view} for (rule, view), params in groups.items())

    def rows(self) -> list[report.Row]:
        """One plain dict for each parameter: name, shape, view, role, rule, rms_step, state_bytes, why."""
        return [
            report.row(name=e.name, shape=e.shape, dtype=e.dtype, view=e.view, role=e.role.kind, rule=e.rule, why=e.why)
            for e in self.entries
        ]

    def report(self) -> str:
        """The routing report as text, layers that are alike in one line."""
        return report.text(self.rows())


def route(model: nn.Module, patterns: Sequence[tuple[Any, Rule]]) -> Routing:
    """Give each parameter of a model the rule of the first pattern that matches it.

    ```python
    route(model, [
        ("*embed*|lm_head*", rules.Lion(lr=1e-4)),
        (lambda name, p, role: role.kind == "norm", rules.AdamW(lr=3e-4, weight_decay=0.0)),
        (lambda name, p, role: role.view.is_matrix, rules.LionMuon(lr=1e-3)),
        ("*", rules.AdamW(lr=1e-3)),
    ])
    ```

    Args:
        model: any module, wrapped (DDP, compile, FSDP2, PEFT) or not.
        patterns: (pattern, rule) pairs. A pattern is a glob over the whole clean name (case counts), with "|" between
            alternatives, or a callable (name, parameter, role) -> bool. A parameter with several names (a tied one)
            is matched under each of them. The view of a rule, if it has one, goes before that of the role.

    Raises:
        ValueError: a pattern that matches no parameter (with the closest names), a parameter that no pattern matches, a
            parameter without a matrix view under a rule that needs matrices, or a view that does not fit.
        TypeError: something that is not a pattern or a rule.
    """
    claims = list(claim(model))
    if not claims:
        raise ValueError(f"{type(model).__name__} has no parameters")
    tests = [(_test(pattern), rule, str(pattern)) for pattern, rule in _checked(patterns)]
    matched = [False] * len(tests)
    routed: list[tuple[Entry, nn.Parameter]] = []
    unclaimed: list[str] = []
    for name, parameter, role in claims:
        chosen: Rule | None = None
        why = ""
        for i, (test, rule, _) in enumerate(tests):
            if chosen is not None and matched[i]:
                continue
            reason = test(name, parameter, role)
            if reason is not None:
                matched[i] = True
                if chosen is None:
                    chosen, why = rule, reason
        if chosen is None:
            unclaimed.append(name)
        else:
            routed.append((_entry(name, parameter, role, chosen, why), parameter))
    for hit, (_, _, pattern) in zip(matched, tests, strict=True):
        if not hit:
            raise ValueError(f"pattern {pattern!r} matches no parameter{_closest(pattern, [n for n, _, _ in claims])}")
    if unclaimed:
        more = f" and {len(unclaimed) - 5} more" if len(unclaimed) > 5 else ""
        raise ValueError(
            f"no pattern matches {', '.join(map(repr, unclaimed[:5]))}{more}; end the list with ('*', rule) to give a "
            "rule to everything else"
        )
    return Routing(routed)


def default_routing(
    model: nn.Module,
    rule: Rule,
    *,
    embeddings: Rule | None = None,
    head: Rule | None = None,
    vectors: Rule | None = None,
    rest: Rule | None = None,
    decay_vectors: bool = False,
    fused: Literal["split", "joined"] = "split",
) -> Routing:
    """Give each parameter of a model a rule by its role.

    A rule that works on elements takes every parameter. Any other takes the hidden matrices (attention, mlp, conv,
    mixer, expert, adapter, linear), and ``rest`` the others: embeddings, position tables, the output head, routers,
    norms, biases and other vectors.

    Args:
        model: any module, wrapped (DDP, compile, FSDP2, PEFT) or not.
        rule: see above.
        embeddings: rule for embeddings and position tables, and for an untied output head unless ``head`` is given.
        head: rule for the untied output head. A tied one is an embedding.
        vectors: rule for norms, biases and other vectors, taken as it is.
        rest: rule for all that is no hidden matrix and has no rule of its own. Default: ``rule.companion()``, which is
            ``rule`` itself if it works on elements, else ``rules.AdamW`` with the lr and weight decay of ``rule``.
        decay_vectors: let norms, biases and other vectors have the weight decay of ``rule`` or ``rest``. By default
            they have none: they set scales and offsets, and there is no reason to pull these to zero.
        fused: "split" takes the parts of a fused weight (query, key, value; gate and up; gates of a recurrent layer) as
            matrices of their own, "joined" as one, as the LionMuon paper does.

    Raises:
        ValueError: a keyword whose parameters the model does not have, no hidden matrix for a rule that needs matrices,
            a parameter that fits no role under such a rule, or a view of the rule that does not fit.
        TypeError: something that is not a rule.
    """
    given = {"embeddings": embeddings, "head": head, "vectors": vectors, "rest": rest}
    for option, value in {"rule": rule, **given}.items():
        if value is not None or option == "rule":
            _check_rule(value, option)
    if fused not in ("split", "joined"):
        raise ValueError(f"fused must be 'split' or 'joined', got {fused!r}")
    claims = list(claim(model))
    _check_present(model, claims, rule, given)
    everywhere = rule.takes == "all"
    other = rest if rest is not None else rule.companion()
    hidden, outside = (rule, "hidden matrix"), (other, "not a hidden matrix" if rest is None else "rest=")
    if rule.takes == "rest":
        hidden, outside = (other, "hidden matrix" if rest is None else "rest="), (rule, "not a hidden matrix")
    elif everywhere and rest is None:
        hidden = outside = rule, f"{rule.name} takes every parameter"
    choices = {**dict.fromkeys((*KINDS, "unknown"), outside), **dict.fromkeys(HIDDEN, hidden)}
    if _decays(outside[0]) and not decay_vectors:
        undecayed = replace(outside[0], weight_decay=0.0), f"{outside[1]}, no decay on scales and offsets"
        choices.update(dict.fromkeys(_KINDS_OF["vectors"], undecayed))
    if embeddings is not None:
        choices.update(dict.fromkeys((*_KINDS_OF["embeddings"], "head"), (embeddings, "embeddings=")))
    if head is not None:
        choices["head"] = head, "head="
    if vectors is not None:
        choices.update(dict.fromkeys(_KINDS_OF["vectors"], (vectors, "vectors=")))
    routed = []
    for name, parameter, role in claims:
        if role.kind == "unknown" and not everywhere:
            raise ValueError(unknown_message(name, parameter))
        seen = replace(role, view=role.view.joined()) if fused == "joined" else role
        chosen, why = choices[role.kind]
        routed.append((_entry(name, parameter, seen, chosen.for_role(role), why), parameter))
    return Routing(routed)


def _entry(name: str, parameter: nn.Parameter, role: Role, rule: Rule, why: str) -> Entry:
    """Record a choice, after checking that the rule can take the parameter."""
    shape = tuple(parameter.shape)
    frozen = not parameter.requires_grad
    element = View(element=True)
    entry = Entry(
        name=name, shape=shape, dtype=parameter.dtype, view=element, role=role, rule=rule, why=role.why, frozen=frozen
    )
    if not (parameter.is_floating_point() or parameter.is_complex()):
        return replace(entry, rule=None, why=f"{role.why}; {parameter.dtype} cannot be trained")
    entry = replace(entry, why=f"{role.why}; {why}{', frozen' if frozen else ''}")
    if rule.needs != "matrix":
        return entry
    view = role.view if rule.view is None else View.parse(rule.view)
    if view.element:
        if role.kind == "unknown":
            raise ValueError(unknown_message(name, parameter))
        stack = f", or say how it is one: {rule.name} with view={str(View.default(shape))!r}" if len(shape) > 1 else ""
        raise ValueError(
            f"parameter {name!r} of shape {shape} ({role.kind}: {role.why}) is no matrix, and {rule.name} needs "
            f"matrices; give it a rule that works on elements (rules.AdamW, rules.Lion) by an earlier pattern{stack}"
        )
    try:
        view.shapes(shape)
    except ValueError as error:
        raise ValueError(f"parameter {name!r}, rule {rule.name}: {error}") from None
    return replace(entry, view=view)


def _check_present(
    model: nn.Module, claims: list[tuple[str, nn.Parameter, Role]], rule: Rule, given: dict[str, Rule | None]
) -> None:
    """Refuse keywords that would change nothing, and a matrix rule without matrices."""
    kinds = {role.kind for _, _, role in claims}
    model_name = type(model).__name__
    if not claims:
        raise ValueError(f"{model_name} has no parameters")
    for option, of_kinds in _KINDS_OF.items():
        if given[option] is not None and kinds.isdisjoint(of_kinds):
            tied = [name for name, _, role in claims if role.kind == "embedding" and role.tied]
            hint = f": its output head is tied to {tied[0]!r}, use embeddings=" if option == "head" and tied else ""
            raise ValueError(f"{option}= matches no parameter of {model_name}{hint or '; leave it out'}")
    if rule.takes == "hidden" and not kinds & HIDDEN and "unknown" not in kinds:
        raise ValueError(
            f"{model_name} has no hidden matrix for {rule.name}, only {', '.join(sorted(kinds))}; use a rule "
            "that works on elements, or steepest.route(model, [(pattern, rule), ...]) to choose by hand"
        )


def _decays(rule: Rule) -> bool:
    return not isinstance(rule.weight_decay, (int, float)) or rule.weight_decay != 0


def _checked(patterns: Sequence[tuple[Any, Rule]]) -> list[tuple[Any, Rule]]:
    if isinstance(patterns, (str, dict)) or not patterns:
        raise TypeError(f"patterns must be a list of (pattern, rule) pairs, got {patterns!r}")
    for pair in patterns:
        if not isinstance(pair, (tuple, list)) or len(pair) != 2:
            raise TypeError(f"patterns must be (pattern, rule) pairs, got {pair!r}")
        pattern, rule = pair
        if not isinstance(pattern, str) and not callable(pattern):
            raise TypeError(
                f"a pattern is a glob such as '*attn*' or a callable (name, parameter, role), got {pattern!r}"
            )
        _check_rule(rule, f"the rule of pattern {pattern!r}")
    return [(pattern, rule) for pattern, rule in patterns]


def _check_rule(rule: Any, what: str) -> None:
    if isinstance(rule, type) or not hasattr(rule, "needs"):
        raise TypeError(f"{what} must be a rule such as steepest.rules.Lion(lr=1e-4), got {rule!r}")


def _test(pattern: Any) -> _Test:
    """A pattern as a function that gives the reason for a match, or None."""
    if not isinstance(pattern, str):
        label = getattr(pattern, "__name__", "callable")
        return lambda name, parameter, role: f"predicate {label}" if pattern(name, parameter, role) else None
    glob = re.compile("|".join(fnmatch.translate(alternative.strip()) for alternative in pattern.split("|")))

    def test(name: str, parameter: nn.Parameter, role: Role) -> str | None:
        if glob.match(name):
            return f"pattern {pattern!r}"
        alias = next((alias for alias in role.tied if glob.match(alias)), None)
        return None if alias is None else f"pattern {pattern!r} as {alias}"

    return test


def _closest(pattern: str, names: Sequence[str]) -> str:
    """The end of the message for a pattern that matches nothing."""
    parts = {part for name in names for part in name.split(".")} - {"weight", "bias"}
    words = [word for word in re.split(r"[*?|\[\]]+|\.(?=$)", pattern) if word]
    near = [m for word in words for m in difflib.get_close_matches(word, [*names, *sorted(parts)], n=3, cutoff=0.6)]
    if near:
        return f"; the closest names are {', '.join(map(repr, dict.fromkeys(near)))}"
    return f"; names look like {', '.join(map(repr, names[:3]))}"
