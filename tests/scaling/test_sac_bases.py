"""SAC around the optimizers of torch, steepest and other packages."""

from __future__ import annotations

import contextlib
import copy
import io
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import adam_mini
import bitsandbytes
import prodigyopt
import pytest
import pytorch_optimizer
import schedulefree
import torch
import toys
from torch import nn

import cases
import steepest
from steepest import rules

LR, DECAY = 0.01, 0.3


@dataclass(frozen=True)
class Base:
    """An optimizer to wrap.

    Attributes:
        build: from (name, parameter) pairs and options.
        decay: whether it has a weight decay.
        coupled: whether that is added to the gradient.
        apply: what "auto" is to choose.
        exact: a parameter steps on its own, so that splitting groups moves no bit.
        vectors: it takes vectors.
    """

    build: Callable[..., torch.optim.Optimizer]
    decay: bool = True
    coupled: bool = False
    apply: str = "rates"
    exact: bool = True
    vectors: bool = True

    def __call__(self, of: cases.Problem, scale: float = 1.0, decay: float = DECAY) -> torch.optim.Optimizer:
        """With a rate that is ``scale`` times as large and the same decay per step."""
        named = [(n, p) for n, p in of.named() if self.vectors or p.ndim > 1]
        options = {"weight_decay": decay if self.coupled else decay / scale} if self.decay else {}
        return self.build(named, lr=LR * scale, **options)


def of_tensors(cls: type[torch.optim.Optimizer], **fixed: Any) -> Callable[..., torch.optim.Optimizer]:
    return lambda named, **options: cls([p for _, p in named], **fixed, **options)


def torch_base(name: str, **options: Any) -> Base:
    fixed = {"foreach": True} if name == "AdamW" else {}
    return Base(of_tensors(getattr(torch.optim, name), **fixed), **options)


def rule_base(rule: type[rules.Rule], **fixed: Any) -> Base:
    def build(named, lr, weight_decay):
        return steepest.Steepest(named, rule(lr=lr, weight_decay=weight_decay, **fixed))

    # Matrices of one shape are multiplied together, and other companions may move the last bit.
    return Base(build, exact=rule.needs != "matrix", vectors=rule.needs != "matrix")


def other(name: str, **options: Any) -> Base:
    return Base(of_tensors(getattr(pytorch_optimizer, name)), **options)


def of_schedule_free(named, lr, weight_decay):
    optimizer = schedulefree.AdamWScheduleFree([p for _, p in named], lr=lr, weight_decay=weight_decay)
    optimizer.train()
    return optimizer


def of_adam_mini(named, **options):
    with contextlib.redirect_stdout(io.StringIO()):  # it prints what it finds
        return adam_mini.Adam_mini(named, dim=6, n_heads=2, **options)


def of_prodigy(named, lr, weight_decay):
    with contextlib.redirect_stdout(io.StringIO()):
        return prodigyopt.Prodigy([p for _, p in named], lr=100 * lr, weight_decay=weight_decay)


def of_lookahead(named, **options):
    params = [p for _, p in named]
    return pytorch_optimizer.Lookahead(torch.optim.AdamW(params, **options), k=2, params=params)


BASES = {
    "torch AdamW": torch_base("AdamW"),
    "torch AdamW, fused": Base(of_tensors(torch.optim.AdamW, fused=True)),
    "torch AdamW, amsgrad": Base(of_tensors(torch.optim.AdamW, amsgrad=True)),
    "torch NAdam": torch_base("NAdam", coupled=True),
    "torch RAdam": torch_base("RAdam", coupled=True),
    **{f"torch {n}": torch_base(n, coupled=True) for n in ("Adam", "Adagrad", "Adadelta", "Adamax", "RMSprop")},
    "torch SGD": Base(of_tensors(torch.optim.SGD, momentum=0.9, nesterov=True), coupled=True),
    "torch ASGD": torch_base("ASGD", coupled=True, apply="update"),
    "torch Rprop": torch_base("Rprop", decay=False, apply="update"),
    "torch Adafactor": torch_base("Adafactor", apply="update"),
    "torch Muon": torch_base("Muon", vectors=False),
    "steepest Signum": rule_base(rules.Signum),
    "steepest Lion": rule_base(rules.Lion),
    "steepest LASM": rule_base(rules.LASM),
    "steepest SAGE": rule_base(rules.SAGE),
    "steepest AdamW": rule_base(rules.AdamW),
    "steepest SinkGD": rule_base(rules.SinkGD),
    "steepest SoftSignum": rule_base(rules.SoftSignum, transition=(1, 5)),
    "steepest Muon": rule_base(rules.Muon, compute_dtype="float32"),
    "steepest SignMuon": rule_base(rules.SignMuon, period=3, compute_dtype="float32"),
    "steepest LionMuon": rule_base(rules.LionMuon, period=2, sign_lr_ratio=0.3, compute_dtype="float32"),
    "steepest SoftMuon": rule_base(rules.SoftMuon, transition=(1, 5), compute_dtype="float32"),
    "steepest SoftLionMuon": rule_base(
        rules.SoftLionMuon, period=2, sign_lr_ratio=0.3, transition=(1, 5), compute_dtype="float32"
    ),
    **{f"pytorch-optimizer {n}": other(n) for n in ("AdaBelief", "Lion", "Lamb", "CAME", "StableAdamW", "AdamP")},
    **{f"pytorch-optimizer {n}": other(n, coupled=True) for n in ("Adan", "ADOPT", "Shampoo")},
    "pytorch-optimizer SOAP": other("SOAP", exact=False),
    "pytorch-optimizer MARS": other("MARS"),
    "pytorch-optimizer AdaFactor": other("AdaFactor", apply="update"),
    "pytorch-optimizer MADGRAD": other("MADGRAD", apply="update"),
    "pytorch-optimizer Prodigy": other("Prodigy", apply="update"),
    "pytorch-optimizer Lookahead": Base(of_lookahead, apply="update"),
    "pytorch-optimizer ScheduleFreeAdamW": other("ScheduleFreeAdamW", apply="update"),
    "adam-mini": Base(of_adam_mini),
    "bitsandbytes AdamW": Base(of_tensors(bitsandbytes.optim.AdamW)),
    "bitsandbytes AdamW8bit": Base(of_tensors(bitsandbytes.optim.AdamW8bit, min_8bit_size=16)),
    "bitsandbytes Lion": Base(of_tensors(bitsandbytes.optim.Lion)),
    "schedulefree AdamW": Base(of_schedule_free, apply="update"),
    "prodigyopt Prodigy": Base(of_prodigy, apply="update"),
}
every_base = pytest.mark.parametrize("base", BASES.values(), ids=BASES)
linear_bases = pytest.mark.parametrize(
    "base", [b for b in BASES.values() if b.apply == "rates"], ids=[n for n, b in BASES.items() if b.apply == "rates"]
)
update_bases = pytest.mark.parametrize(
    "base", [b for b in BASES.values() if b.apply == "update"], ids=[n for n, b in BASES.items() if b.apply == "update"]
)


@every_base
def test_factors_of_one_are_the_base_bit_for_bit(base):
    bare, wrapped = toys.problem(), toys.problem()
    inner = base(wrapped)
    optimizer = toys.sac(inner, wrapped, interval=2, gamma=0.0, beta=0.0)
    assert optimizer.apply == base.apply
    plain = base(bare)
    cases.assert_same(wrapped.run(optimizer), bare.run(plain))
    assert optimizer.statistics() is not None
    for mine, theirs in zip(inner.param_groups, plain.param_groups, strict=True):
        assert set(mine) - {"sac"} == set(theirs)


@linear_bases
def test_a_factor_is_a_rate_for_its_parameters_alone(base):
    """A run in which a parameter has the factor S is, for it, the run of the base with the rate lr S."""
    wrapped = toys.problem()
    actual = wrapped.run(toys.sac(base(wrapped), wrapped, mode="constant", scales=toys.SCALES))
    runs = {}
    for scale in {1.0, *toys.SCALES.values()}:
        alone = toys.problem()
        runs[scale] = alone.run(base(alone, scale))
    same = cases.assert_same if base.exact else cases.assert_close
    for name, scale in toys.by_name(toys.SCALES).items():
        same([weights[name] for weights in actual], [weights[name] for weights in runs[scale]])


@linear_bases
def test_the_update_can_be_scaled_as_well(base):
    """To rounding; without decay, which is not scaled by the one and is by the other."""
    runs = []
    for apply in ("rates", "update"):
        of = toys.problem()
        wrapped = toys.sac(base(of, decay=0.0), of, mode="constant", scales=toys.SCALES, apply=apply)
        runs.append(of.run(wrapped, 0, 3)[-1])
    before = toys.problem().weights()
    for name in before:
        moved = float((runs[0][name] - before[name]).abs().max())
        cases.assert_close(runs[1][name], runs[0][name], rtol=1e-5, atol=1e-3 * moved + 1e-7)


@update_bases
def test_the_update_is_scaled_where_rates_cannot_be(base):
    """The first step from the same point."""
    bare, wrapped = toys.problem(), toys.problem()
    optimizer = toys.sac(base(wrapped), wrapped, mode="constant", scales=toys.SCALES)
    before = bare.weights()
    inner = base(bare)
    if hasattr(optimizer, "train"):
        optimizer.train()
    for step in range(3):
        for name, p in bare.params.items():
            p.data.copy_(before[name])
            wrapped.params[name].data.copy_(before[name])
        (plain,), (actual,) = bare.run(inner, step, step + 1), wrapped.run(optimizer, step, step + 1)
        for name, scale in toys.by_name(toys.SCALES).items():
            expected = scale * (plain[name] - before[name])
            cases.assert_close(actual[name] - before[name], expected, rtol=1e-3, atol=1e-6)
            if scale == 1.0:
                cases.assert_same(actual[name], plain[name])


@every_base
def test_it_resumes_exactly(base):
    def make():
        of = toys.problem()
        return of, toys.sac(base(of), of, interval=3)

    of, optimizer = make()
    of.run(optimizer, 0, 4)
    file = io.BytesIO()
    torch.save((of.weights(), optimizer.state_dict()), file)
    expected = of.run(optimizer, 4)
    weights, saved = torch.load(io.BytesIO(file.getvalue()), weights_only=False)
    again, other_one = make()
    again.run(other_one, 2, 3)
    for name, p in again.params.items():
        p.data.copy_(weights[name])
    other_one.load_state_dict(saved)
    cases.assert_same(again.run(other_one, 4), expected)
    alone = toys.problem()
    base(alone).load_state_dict(copy.deepcopy(saved))


# --- steepest: what is common to the parameters of a run


def test_the_noise_of_rounding_does_not_depend_on_how_the_groups_are_split():
    """It is a function of a parameter's number, which SAC, splitting the groups at each step, must not change."""

    def make():
        of = toys.problem(steps=8)
        rule = rules.AdamW(lr=1e-2, state_dtype="bfloat16", seed=3)
        return of, toys.sac(steepest.Steepest(of.named(), rule), of, interval=1, engine="cpu")  # whole groups first

    of, whole = make()
    expected = of.run(whole, 0, 8)
    for stop in range(1, 8):
        of, optimizer = make()
        of.run(optimizer, 0, stop)
        weights, saved = of.weights(), copy.deepcopy(optimizer.state_dict())
        again, resumed = make()
        for name, p in again.params.items():
            p.data.copy_(weights[name])
        resumed.load_state_dict(saved)
        cases.assert_same(again.run(resumed, stop, 8), expected[stop:])


@pytest.mark.parametrize("pool", ["rule", "tensor"])
@pytest.mark.parametrize("rule", [rules.SoftSignum, rules.SoftMuon, rules.SoftLionMuon])
def test_the_fit_of_a_soft_rule_is_not_split_by_rate(rule, pool):
    fits = []
    for wrap in (False, True):
        of = toys.problem()
        named = [(n, p) for n, p in of.named() if p.ndim > 1]
        optimizer = steepest.Steepest(named, rule(lr=LR, transition=(2, 6), refresh_every=2, pool=pool))
        if wrap:
            optimizer = toys.sac(optimizer, of, mode="constant", scales=toys.SCALES)
        of.run(optimizer, 0, 5)
        fits.append({n: optimizer.state[p]["fit"] for n, p in named})
    cases.assert_same(fits[1], fits[0])
    assert len({tuple(fit.flatten().tolist()) for fit in fits[0].values()}) == (1 if pool == "rule" else len(fits[0]))


def test_clock_counters_and_phases_of_a_model():
    """Two rates, a period, two rules and a transition that begins while the run is under way."""

    def make(wrap):
        model = toys.Net()
        base = steepest.SoftLionMuon(
            model, lr=LR, period=2, sign_lr_ratio=0.1, weight_decay=0.1, compute_dtype="float32"
        )
        blocks = {(0, "attention"): 0.5, (1, "mlp"): 2.0, (-1, "embedding"): 0.25}
        return model, steepest.SAC(base, model, mode="constant", scales=blocks) if wrap else base

    seen = []
    for wrap in (False, True):
        model, optimizer = make(wrap)
        toys.train(model, optimizer, 0, 3)
        optimizer.begin_transition(4)
        toys.train(model, optimizer, 3, 6)
        clocks = [group.get("clock") for group in optimizer.param_groups]
        steps = {int(state["step"]) for state in optimizer.state.values()}
        transitions = [group.get("transition") for group in optimizer.param_groups]
        seen.append((clocks, steps, transitions, [group["lr"] for group in optimizer.param_groups]))
    assert seen[0] == seen[1]
    assert seen[1][1] == {6}
    assert 6 in seen[1][0]
    assert (3, 7) in seen[1][2]


def test_a_model_trains_with_statistics_over_lion_muon():
    model = toys.Net()
    optimizer = steepest.SAC(steepest.LionMuon(model, lr=0.02, period=3), model, interval=4)
    losses = []
    for step in range(40):
        optimizer.zero_grad()
        losses.append(float(toys.backward(model, step % 4)))
        optimizer.step()
    assert sum(losses[-4:]) < 0.85 * sum(losses[:4])
    assert {g["rule"] for g in optimizer.param_groups} == {"lion_muon", "adamw"}
    assert len(set(optimizer.scales.values())) == 6


def test_schedule_free_is_trained_and_evaluated_through_the_wrapper():
    of = toys.problem()
    optimizer = toys.sac(of_schedule_free(of.named(), 0.01, 0.0), of, interval=2)
    of.run(optimizer)
    training = of.weights()
    optimizer.eval()
    assert cases.differ(of.weights(), training)
    optimizer.train()
    cases.assert_close(of.weights(), training)


def test_fused_modules_of_a_model_with_adam_mini():
    model = toys.Net()
    with contextlib.redirect_stdout(io.StringIO()):
        base = adam_mini.Adam_mini(model.named_parameters(), lr=0.01, dim=8, n_heads=2)
    optimizer = steepest.SAC(base, model, interval=2)
    toys.train(model, optimizer, 0, 4)
    assert optimizer.apply == "rates"
    assert all(group["lr"] == 0.01 for group in optimizer.param_groups)
    assert isinstance(model.head, nn.Linear)


def test_a_soft_rule_fits_over_whole_groups():
    """pool="group": parts of a group with rates of their own would each be fitted alone."""

    def fits(wrap, **options):
        model = toys.Net()
        base = steepest.SoftSignum(model.parameters(), lr=0.01, transition=(1, 4), **options)
        toys.train(model, wrap(base, model), 0, 3)
        return [tuple(base.state[p]["fit"].flatten().tolist()) for p in model.parameters()], wrap

    constant = {"mode": "constant", "bounds": (0.5, 1.0)}
    for pool in ("rule", "group"):
        found, _ = fits(lambda base, model: steepest.SAC(base, model, **constant), pool=pool)
        assert len(set(found)) == 1, pool
    model = toys.Net()
    base = steepest.SoftSignum(model.parameters(), lr=0.01, transition=(1, 4), pool="group")
    with pytest.raises(ValueError, match=r"pool='group' .* SoftSignum .* use apply='update'"):
        steepest.SAC(base, model, apply="rates")
    assert steepest.SAC(base, model).apply == "update"


def of_gsam(params):
    base = torch.optim.SGD(params, lr=LR)
    rate = torch.optim.lr_scheduler.ConstantLR(base)
    rho = pytorch_optimizer.ProportionScheduler(rate, max_lr=LR, max_value=0.1)
    return pytorch_optimizer.GSAM(params, base, nn.Linear(2, 2), rho)


ASKING = {
    **{
        name: lambda params, name=name: getattr(pytorch_optimizer, name)(params, torch.optim.SGD, lr=LR)
        for name in ("SAM", "FriendlySAM", "LookSAM")
    },
    "WSAM": lambda params: pytorch_optimizer.WSAM(nn.Linear(2, 2), params, torch.optim.SGD, lr=LR),
    "BSAM": lambda params: pytorch_optimizer.BSAM(params, num_data=4),
    "GSAM": of_gsam,
    "AliG": lambda params: pytorch_optimizer.AliG(params, max_lr=LR),
    "LBFGS": lambda params: torch.optim.LBFGS(params, lr=LR),
}


@pytest.mark.parametrize("name", ASKING)
def test_a_base_that_asks_the_closure_itself_is_refused(name):
    """Also where it has a closure=None in its signature, for which it then raises."""
    of = toys.problem()
    params = list(of.params.values())
    base = ASKING[name](params)
    with pytest.raises(
        TypeError, match=f"SAC cannot wrap {name}: {name} evaluates the closure itself, .*such as AdamW"
    ):
        toys.sac(base, of)
    assert not base._optimizer_step_pre_hooks  # not closed
    around = pytorch_optimizer.Lookahead(ASKING[name](params))
    with pytest.raises(TypeError, match=f"SAC cannot wrap Lookahead with a {name} inside: {name} evaluates"):
        toys.sac(around, of)


def test_what_inherits_from_such_a_base_is_refused():
    class Mine(pytorch_optimizer.SAM):
        pass

    of = toys.problem()
    with pytest.raises(TypeError, match="SAC cannot wrap Mine: Mine evaluates the closure"):
        toys.sac(Mine(of.params.values(), torch.optim.SGD, lr=LR), of)
