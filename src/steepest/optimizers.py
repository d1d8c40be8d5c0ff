"""The optimizers by name: each is ``Steepest`` with one rule; the formula is in the rule's docstring."""

from __future__ import annotations

import inspect
from dataclasses import MISSING, fields, replace
from typing import Any, ClassVar

from torch import nn

from steepest import rules
from steepest.engine import Steepest
from steepest.rules.base import check_options, options

_ROUTING = tuple(
    p for p in inspect.signature(Steepest.__init__).parameters.values() if p.kind is inspect.Parameter.KEYWORD_ONLY
)


class _Named(Steepest):
    """An optimizer of one rule: the options of the rule are keywords."""

    rule_type: ClassVar[type[rules.Rule]]

    def __init__(self, params: Any, *, preset: str | None = None, **given: Any) -> None:
        routing = {p.name: given.pop(p.name) for p in _ROUTING if p.name in given}
        check_options(self.rule_type, given, (*(p.name for p in _ROUTING), "preset"))
        if preset is None:
            rule = self.rule_type(**given)
        else:
            chosen = rules.preset(preset)
            if type(chosen.rule) is not self.rule_type:
                raise ValueError(f"preset {preset!r} is of {type(chosen.rule).__name__}, not {self.rule_type.__name__}")
            rule = replace(chosen.rule, **given)
            if isinstance(params, nn.Module):
                routing.setdefault("rest", chosen.rest)
        super().__init__(params, rule, **routing)

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        keyword = inspect.Parameter.KEYWORD_ONLY
        own = [
            inspect.Parameter(f.name, keyword, annotation=f.type, default=f.default)
            for f in fields(cls.rule_type)
            if f.name in options(cls.rule_type) and f.default is not MISSING
        ]
        params = inspect.Parameter("params", inspect.Parameter.POSITIONAL_OR_KEYWORD, annotation="nn.Module | Iterable")
        preset = inspect.Parameter("preset", keyword, annotation="str | None", default=None)
        cls.__signature__ = inspect.Signature([params, *own, preset, *_ROUTING])  # type: ignore[attr-defined]
        cls.__doc__ = f"{cls.rule_type.__doc__}\n    {_SHARED_DOC}"


_SHARED_DOC = """Args:
        params: a model (each parameter gets the rule that fits its role), or parameters, (name, parameter) pairs or
            param groups as in torch.
        preset: tuned settings of a paper by name (``steepest.rules.PRESETS``); options override them.
        embeddings, head, vectors, rest, decay_vectors, fused, maximize, check_finite: see ``steepest.Steepest``.
        The attributes above are keywords too.
    """


class Signum(_Named):
    """See ``rules.Signum``; at run time this docstring is the rule's."""

    rule_type = rules.Signum


class Lion(_Named):
    """See ``rules.Lion``; at run time this docstring is the rule's."""

    rule_type = rules.Lion


class Muon(_Named):
    """See ``rules.Muon``; at run time this docstring is the rule's."""

    rule_type = rules.Muon


class SignMuon(_Named):
    """See ``rules.SignMuon``; at run time this docstring is the rule's."""

    rule_type = rules.SignMuon


class LionMuon(_Named):
    """See ``rules.LionMuon``; at run time this docstring is the rule's."""

    rule_type = rules.LionMuon


class SoftSignum(_Named):
    """See ``rules.SoftSignum``; at run time this docstring is the rule's."""

    rule_type = rules.SoftSignum


class SoftMuon(_Named):
    """See ``rules.SoftMuon``; at run time this docstring is the rule's."""

    rule_type = rules.SoftMuon


class SoftLionMuon(_Named):
    """See ``rules.SoftLionMuon``; at run time this docstring is the rule's."""

    rule_type = rules.SoftLionMuon


class SinkGD(_Named):
    """See ``rules.SinkGD``; at run time this docstring is the rule's."""

    rule_type = rules.SinkGD


class SAGE(_Named):
    """See ``rules.SAGE``; at run time this docstring is the rule's."""

    rule_type = rules.SAGE


class LASM(_Named):
    """See ``rules.LASM``; at run time this docstring is the rule's."""

    rule_type = rules.LASM
