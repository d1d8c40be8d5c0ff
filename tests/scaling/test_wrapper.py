"""What every wrapper is: an optimizer like its base, whose steps are scaled, and nothing else changed."""

from __future__ import annotations

import contextlib
import copy
import io
import pickle
import warnings

import pytest
import torch
import toys
from torch.optim import lr_scheduler

import cases
from steepest.scaling.wrapper import Wrapper

TWO = ("rates", "update")
FACTORS = {"embed.weight": 0.5, "layers.0.mlp.weight": 2.0, "layers.1.mlp.weight": 0.5, "head.weight": 3.0}

both = pytest.mark.parametrize("apply", TWO)


def sgd(of, **options):
    return torch.optim.SGD(of.named(), **{"lr": 0.1, **options})


class Counting(torch.optim.Optimizer):
    """Sign descent that keeps numbers in its param groups, as some optimizers do."""

    def __init__(self, params, lr=0.1, **defaults):
        super().__init__(params, {"lr": lr, "step": 0, "ticks": torch.zeros(()), **defaults})
        self.seen = []
        self.fail = False

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            self.seen.append(group)
            group["step"] += 1
            group["ticks"].add_(1)
            for p in group["params"]:
                if p.grad is not None:
                    p.add_(p.grad.sign(), alpha=-group["lr"])
            if self.fail:
                raise RuntimeError("of the base")
        return "of the base"

    def reset(self):
        return "reset"


# --- how the factor reaches the step


@both
@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_the_step_is_multiplied_and_nothing_else(apply, momentum):
    bare, wrapped = toys.problem(), toys.problem()
    base, inner = sgd(bare, momentum=momentum), sgd(wrapped, momentum=momentum)
    optimizer = toys.Fixed(inner, wrapped, FACTORS, apply=apply)
    before = bare.weights()
    for step, after in enumerate(bare.run(base)):
        for name, p in wrapped.params.items():  # from the same point, so that a step is compared with a step
            p.data.copy_(before[name])
        (actual,) = wrapped.run(optimizer, step, step + 1)
        for name in actual:
            moved = (after[name] - before[name]) * FACTORS.get(name, 1.0)
            cases.assert_close(actual[name] - before[name], moved, rtol=1e-4, atol=1e-6)
            if name not in FACTORS:
                cases.assert_same(actual[name], after[name])
        before = after
    for name, p in wrapped.params.items():  # the buffers never see a factor
        cases.assert_same(optimizer.state[p], base.state[bare.params[name]])


@both
@pytest.mark.parametrize("decay", [0.0, 0.3])
def test_a_factor_of_one_is_the_base_bit_for_bit(apply, decay):
    bare, wrapped = toys.problem(), toys.problem()
    optimizer = toys.Fixed(
        toys.adamw(wrapped, weight_decay=decay), wrapped, dict.fromkeys(toys.SHAPES, 1.0), apply=apply
    )
    cases.assert_same(wrapped.run(optimizer), bare.run(toys.adamw(bare, weight_decay=decay)))


def test_decoupled_decay_is_kept_under_rates():
    """p - lr wd p - S u, where u is what AdamW does without decay."""
    plain, wrapped = toys.problem(), toys.problem()
    optimizer = toys.Fixed(toys.adamw(wrapped), wrapped, FACTORS)
    assert optimizer.apply == "rates"
    base = toys.adamw(plain, weight_decay=0.0)
    for step in range(4):
        before = wrapped.weights()
        for name, p in plain.params.items():
            p.data.copy_(before[name])
        (free,) = plain.run(base, step, step + 1)
        (actual,) = wrapped.run(optimizer, step, step + 1)
        for name, factor in {**dict.fromkeys(toys.SHAPES, 1.0), **FACTORS}.items():
            expected = before[name] * (1 - 0.01 * 0.3) + factor * (free[name] - before[name])
            cases.assert_close(actual[name], expected)


@both
def test_decay_can_be_scaled_along(apply):
    bare, wrapped = toys.problem(), toys.problem()
    optimizer = toys.Fixed(toys.adamw(wrapped), wrapped, FACTORS, apply=apply, scale_weight_decay=True)
    before = bare.weights()
    (after,), (actual,) = bare.run(toys.adamw(bare), 0, 1), wrapped.run(optimizer, 0, 1)
    for name, factor in FACTORS.items():
        cases.assert_close(actual[name], before[name] + factor * (after[name] - before[name]))


@pytest.mark.parametrize(
    ("make", "kept"),
    [
        (torch.optim.SGD, False),
        (torch.optim.Adam, False),
        (torch.optim.AdamW, True),
        (torch.optim.NAdam, False),
        (lambda params, **o: torch.optim.Adam(params, decoupled_weight_decay=True, **o), True),
        (lambda params, **o: torch.optim.NAdam(params, decoupled_weight_decay=True, **o), True),
        (torch.optim.RMSprop, False),
    ],
)
def test_what_weight_decay_is_kept(make, kept):
    of = toys.problem()
    seen = []
    base = make(list(of.params.values()), lr=0.01, weight_decay=0.3)
    base.register_step_post_hook(lambda b, *_: seen.extend((g["lr"], g["weight_decay"]) for g in b.param_groups))
    of.run(toys.Fixed(base, of, {"embed.weight": 2.0}), 0, 1)
    assert seen == [(0.02, 0.15 if kept else 0.3), (0.01, 0.3)]


@pytest.mark.parametrize(("says", "decay"), [("coupled", 0.3), ("decoupled", 0.15)])
def test_what_the_decay_is_can_be_said(says, decay):
    of = toys.problem()
    base = sgd(of, weight_decay=0.3)
    seen = []
    base.register_step_post_hook(lambda b, *_: seen.append(b.param_groups[0]["weight_decay"]))
    of.run(toys.Fixed(base, of, {"embed.weight": 2.0}, weight_decay=says), 0, 1)
    assert seen == [decay]


@both
def test_factors_that_are_tensors_functions_and_pairs(apply):
    bare, wrapped = toys.problem(), toys.problem()
    rows = torch.linspace(0.5, 2.0, 12)[:, None]
    elements = torch.rand(6, 6, generator=torch.Generator().manual_seed(0)) + 0.5
    steps = []

    def late():
        steps.append(len(optimizer.state[wrapped.params["layers.0.mlp.weight"]]))
        return torch.full((8, 1), 2.0)

    given = {
        "embed.weight": rows,
        "layers.0.attention.weight": elements,
        "layers.0.mlp.weight": late,
        "layers.1.mlp.weight": (0.5, lambda: torch.tensor(3.0)),
        "head.weight": (2.0, rows),
        "norm.weight": lambda: 0.25,
    }
    factors = {
        **{k: v for k, v in given.items() if isinstance(v, torch.Tensor)},
        "layers.0.mlp.weight": 2.0,
        "layers.1.mlp.weight": 1.5,
        "head.weight": 2.0 * rows,
        "norm.weight": 0.25,
    }
    optimizer = toys.Fixed(sgd(wrapped, momentum=0.9), wrapped, given, apply=apply)
    before = bare.weights()
    (after,), (actual,) = bare.run(sgd(bare, momentum=0.9), 0, 1), wrapped.run(optimizer, 0, 1)
    for name in toys.SHAPES:
        cases.assert_close(actual[name], before[name] + factors.get(name, 1.0) * (after[name] - before[name]))
    assert steps == [1]  # called once, when the base had made its momentum


def test_the_mechanisms_agree_in_bfloat16_to_its_precision():
    made = {apply: toys.problem(dtype=torch.bfloat16) for apply in TWO}
    runs = [of.run(toys.Fixed(sgd(of), of, FACTORS, apply=a)) for a, of in made.items()]
    for name in toys.SHAPES:
        cases.assert_close(runs[0][-1][name], runs[1][-1][name], rtol=0.05, atol=0.05)


def test_parameters_without_gradient_stay():
    of = toys.problem()
    for gradients in of.gradients:
        gradients["embed.weight"] = None
    before = of.weights()["embed.weight"]
    for apply in TWO:
        cases.assert_same(of.run(toys.Fixed(sgd(of), of, FACTORS, apply=apply))[-1]["embed.weight"], before)


# --- the groups of the user


def test_groups_state_and_defaults_are_those_of_the_base():
    of = toys.problem()
    base = toys.adamw(of)
    optimizer = toys.Fixed(base, of, FACTORS)
    of.run(optimizer)
    assert isinstance(optimizer, torch.optim.Optimizer)
    assert optimizer.param_groups is base.param_groups
    assert optimizer.state is base.state
    assert optimizer.defaults is base.defaults
    assert [len(g["params"]) for g in optimizer.param_groups] == [len(toys.SHAPES)]
    assert (base.param_groups[0]["lr"], base.param_groups[0]["weight_decay"]) == (0.01, 0.3)


def test_the_base_steps_with_split_groups_and_what_it_counts_is_written_back():
    of = toys.problem()
    base = Counting([{"params": of.named()[:3]}, {"params": of.named()[3:], "lr": 0.2}])
    own, ticks = list(base.param_groups), base.param_groups[0]["ticks"]
    optimizer = toys.Fixed(base, of, FACTORS)
    of.run(optimizer, 0, 3)
    assert len(base.seen) == 3 * (2 + 4)
    first = base.seen[:6]
    assert [group["lr"] for group in first] == pytest.approx([0.05, 0.1, 0.4, 0.2, 0.1, 0.6])
    assert [n for group in first for n in group["param_names"]] == [
        *("embed.weight", "layers.0.attention.weight", "layers.0.attention.bias", "layers.0.mlp.weight"),
        *("norm.weight", "layers.1.attention.weight", "layers.1.mlp.weight", "head.weight"),
    ]
    assert all(len(group["param_names"]) == len(group["params"]) for group in first)
    assert all(a is b for a, b in zip(base.param_groups, own, strict=True))
    assert [group["step"] for group in own] == [3, 3]
    assert [group["ticks"].item() for group in own] == [3, 3]
    assert own[0]["ticks"] is ticks
    assert [group["lr"] for group in own] == [0.1, 0.2]


def test_a_group_of_which_nothing_is_scaled_is_used_itself():
    of = toys.problem()
    base = Counting([{"params": of.named()[1:3]}, {"params": of.named()[3:]}])
    of.run(toys.Fixed(base, of, {"head.weight": 2.0}), 0, 1)
    assert base.seen[0] is base.param_groups[0]
    assert len(base.seen) == 3


def test_the_groups_are_back_when_the_base_raises():
    of = toys.problem()
    base = Counting(of.named())
    (own,) = base.param_groups
    optimizer = toys.Fixed(base, of, FACTORS)
    base.fail = True
    with pytest.raises(RuntimeError, match="of the base"):
        of.run(optimizer, 0, 1)
    assert len(base.param_groups) == 1
    assert base.param_groups[0] is own
    assert own["step"] == 0
    base.fail = False
    of.run(optimizer, 0, 1)
    assert own["step"] == 1


@pytest.mark.parametrize("change", ["number", "rate"])
def test_a_base_that_is_not_linear_in_the_rate_is_noticed(change):
    class Adaptive(Counting):
        def step(self, closure=None):
            super().step()
            for group in self.param_groups:
                group["lr" if change == "rate" else "largest"] = group["lr"] * 1.1

    of = toys.problem()
    base = Adaptive(of.named(), largest=0.0)
    with pytest.raises(RuntimeError, match=r"changed '(lr|largest)' .* apply='update'"):
        of.run(toys.Fixed(base, of, FACTORS), 0, 1)
    again = toys.problem()
    other = Adaptive(again.named(), largest=0.0)
    again.run(toys.Fixed(other, again, FACTORS, apply="update"), 0, 2)
    assert len(other.param_groups) == 1


def test_a_part_without_gradients_does_not_decide():
    class Lazy(Counting):
        def step(self, closure=None):
            for group in self.param_groups:
                group["step"] += any(p.grad is not None for p in group["params"])

    of = toys.problem()
    for gradients in of.gradients:
        gradients["head.weight"] = None
    base = Lazy(of.named())
    of.run(toys.Fixed(base, of, FACTORS), 0, 3)
    assert base.param_groups[0]["step"] == 3


def test_a_tensor_rate_is_scaled_without_being_read_or_written():
    bare, wrapped = toys.problem(), toys.problem()
    rate = torch.tensor(0.01)
    options = {"lr": rate, "weight_decay": 0.0, "foreach": False}
    base = torch.optim.AdamW(wrapped.params.values(), **options)
    optimizer = toys.Fixed(base, wrapped, dict.fromkeys(toys.SHAPES, 2.0))
    before = bare.weights()
    (after,) = bare.run(torch.optim.AdamW(bare.params.values(), **options), 0, 1)
    with cases.Calls() as calls:
        (actual,) = wrapped.run(optimizer, 0, 1)
    for name in toys.SHAPES:
        cases.assert_close(actual[name] - before[name], 2.0 * (after[name] - before[name]), rtol=1e-4)
    assert optimizer.param_groups[0]["lr"] is rate
    assert rate.item() == pytest.approx(0.01)
    assert calls.count["aten::_local_scalar_dense"] == 0


# --- an optimizer like any other


SCHEDULERS = {
    "LambdaLR": lambda o: lr_scheduler.LambdaLR(o, lambda t: 1 / (1 + t)),
    "CosineAnnealingLR": lambda o: lr_scheduler.CosineAnnealingLR(o, 7),
    "OneCycleLR": lambda o: lr_scheduler.OneCycleLR(o, 0.05, total_steps=10),
    "ReduceLROnPlateau": lambda o: lr_scheduler.ReduceLROnPlateau(o, patience=0),
    "SequentialLR": lambda o: lr_scheduler.SequentialLR(
        o, [lr_scheduler.LinearLR(o), lr_scheduler.ExponentialLR(o, 0.5)], [3]
    ),
}


@both
@pytest.mark.parametrize("name", SCHEDULERS)
@pytest.mark.parametrize("of_base", [False, True])
def test_schedulers_move_the_unscaled_rate(apply, name, of_base):
    def run(factors):
        of = toys.problem()
        base = toys.adamw(of, weight_decay=0.0)
        optimizer = base if factors is None else toys.Fixed(base, of, factors, apply=apply)
        scheduler = SCHEDULERS[name](base if of_base else optimizer)
        rates, history = [], []
        for step in range(7):
            history += of.run(optimizer, step, step + 1)
            with warnings.catch_warnings():
                warnings.simplefilter("error")  # "lr_scheduler.step() before optimizer.step()"
                scheduler.step(1.0) if name == "ReduceLROnPlateau" else scheduler.step()
            rates.append((optimizer.param_groups[0]["lr"], optimizer.param_groups[0]["betas"]))
        return rates, history

    bare, ones, scaled = run(None), run({}), run(FACTORS)
    assert len({rate for rate, _ in bare[0]}) > 3
    assert ones[0] == scaled[0] == bare[0]
    cases.assert_same(ones[1], bare[1])
    cases.assert_same(scaled[1][-1]["norm.weight"], bare[1][-1]["norm.weight"])
    start = toys.problem().weights()
    for key, factor in FACTORS.items():  # Adam's step does not depend on where it is
        cases.assert_close(scaled[1][-1][key] - start[key], factor * (bare[1][-1][key] - start[key]), 1e-3, 1e-5)


@pytest.mark.parametrize("fused", [False, True])
def test_grad_scaler(fused):
    """Gradients are unscaled before the wrapper sees them; a step with an infinite one is left out."""

    def run(wrap):
        of = toys.problem()
        base = torch.optim.AdamW(of.params.values(), lr=0.01, fused=fused)
        optimizer = toys.Fixed(base, of, FACTORS) if wrap else base
        scaler = torch.amp.GradScaler("cpu", init_scale=16.0)
        seen = []
        if wrap:
            optimizer.factors = lambda: (
                seen.append(of.params["norm.weight"].grad.clone()),
                dict.fromkeys(of.params.values(), 1.0),
            )[1]
        history = []
        for step in range(4):
            of.load(step)
            scaler.scale(torch.zeros(()))  # as of the loss
            for p in of.params.values():
                p.grad.mul_(scaler.get_scale())
            if step == 2:
                of.params["norm.weight"].grad[0] = float("inf")
            scaler.unscale_(optimizer)
            scaler.step(optimizer)
            scaler.update()
            history.append(of.weights())
        return history, seen, scaler.get_scale(), of

    (bare, _, scale, of), (wrapped, seen, same, _) = run(False), run(True)
    cases.assert_same(wrapped, bare)
    assert scale == same == 8.0
    cases.assert_close(seen, [of.gradients[step]["norm.weight"] for step in (0, 1, 3)])


@both
def test_a_closure_is_evaluated_once_with_gradients_and_before_the_factors(apply):
    of = toys.problem()
    calls = []
    optimizer = toys.Fixed(sgd(of), of, FACTORS, apply=apply)
    given = optimizer.factors
    optimizer.factors = lambda: (calls.append(all(p.grad is not None for p in of.params.values())), given())[1]

    def closure():
        optimizer.zero_grad()
        loss = sum((p * of.gradients[0][name]).sum() for name, p in of.params.items())
        loss.backward()
        calls.append("closure")
        return loss

    loss = optimizer.step(closure)
    assert loss.requires_grad
    assert calls == ["closure", True]
    expected = toys.problem()
    cases.assert_close(of.weights(), expected.run(toys.Fixed(sgd(expected), expected, FACTORS, apply=apply), 0, 1)[0])


def test_what_the_base_returns_and_takes():
    class Options(Counting):
        def step(self, closure=None, *, extra=0):
            super().step()
            return extra

    of = toys.problem()
    assert toys.Fixed(Options(of.named()), of, FACTORS).step(extra=5) == 5


def test_hooks_of_both():
    of = toys.problem()
    base = sgd(of)
    optimizer = toys.Fixed(base, of, FACTORS)
    calls = []
    base.register_step_pre_hook(lambda o, *_: calls.append(("base before", type(o).__name__, len(o.param_groups))))
    base.register_step_post_hook(lambda o, *_: calls.append(("base after", type(o).__name__, len(o.param_groups))))
    optimizer.register_step_pre_hook(lambda o, *_: calls.append(("before", type(o).__name__, len(o.param_groups))))
    optimizer.register_step_post_hook(lambda o, *_: calls.append(("after", type(o).__name__, len(o.param_groups))))
    of.run(optimizer, 0, 1)
    assert calls == [("before", "Fixed", 1), ("base before", "SGD", 4), ("base after", "SGD", 4), ("after", "Fixed", 1)]


def test_what_else_the_base_has_is_reached():
    of = toys.problem()
    optimizer = toys.Fixed(Counting(of.named()), of, FACTORS)
    assert optimizer.reset() == "reset"
    assert not hasattr(optimizer, "train")
    with pytest.raises(AttributeError, match=r"'Fixed' object and its 'Counting' have no attribute 'nothing'"):
        optimizer.nothing  # noqa: B018


def test_zero_grad_and_new_groups_are_those_of_the_base():
    of = toys.problem()
    optimizer = toys.Fixed(sgd(of), of, FACTORS)
    of.load(0)
    optimizer.zero_grad()
    assert all(p.grad is None for p in of.params.values())
    new = torch.nn.Parameter(torch.ones(2, 2))
    optimizer.add_param_group({"params": [("new", new)], "lr": 0.5})
    assert [g["lr"] for g in optimizer.base.param_groups] == [0.1, 0.5]
    new.grad = torch.ones(2, 2)
    of.run(optimizer, 0, 1)
    cases.assert_same(new.detach(), torch.full((2, 2), 0.5))


@pytest.mark.parametrize("way", ["deepcopy", "pickle"])
def test_copies_go_on_alike_and_apart(way):
    of = toys.problem()
    optimizer = toys.Fixed(sgd(of, momentum=0.9), of, FACTORS)
    lr_scheduler.ConstantLR(optimizer, 1.0)  # puts its own step before that of the optimizer
    of.run(optimizer, 0, 3)
    pair = (of, optimizer)
    twin_of, twin = copy.deepcopy(pair) if way == "deepcopy" else pickle.loads(pickle.dumps(pair))
    assert twin.base is not optimizer.base
    cases.assert_same(twin_of.run(twin, 3), of.run(optimizer, 3))
    with pytest.raises(RuntimeError, match="outside the Fixed"):
        twin.base.step()
    twin.state_dict()


# --- checkpoints


@both
def test_a_checkpoint_resumes_exactly_and_is_one_of_the_base(apply):
    def make():
        of = toys.problem()
        return of, toys.Fixed(sgd(of, momentum=0.9), of, FACTORS, apply=apply)

    of, optimizer = make()
    of.run(optimizer, 0, 3)
    file = io.BytesIO()
    torch.save({"weights": of.weights(), "optimizer": optimizer.state_dict()}, file)
    expected = of.run(optimizer, 3)
    saved = torch.load(io.BytesIO(file.getvalue()), weights_only=True)
    assert set(saved["optimizer"]) == {"state", "param_groups", "fixed"}
    again, other = make()
    again.run(other, 5)  # somewhere else
    for name, p in again.params.items():
        p.data.copy_(saved["weights"][name])
    other.load_state_dict(saved["optimizer"])
    cases.assert_same(again.run(other, 3), expected)

    bare = toys.problem()
    base = sgd(bare, momentum=0.9)
    base.load_state_dict(saved["optimizer"])
    bare.run(base, 3, 4)
    other.load_state_dict(base.state_dict())


class Remembering(toys.Fixed):
    """Writes down what it is told of its state."""

    log = ()

    def check_own_state(self, saved):
        if saved["factors"] != self.own_state()["factors"]:
            raise ValueError("other factors")

    def load_own_state(self, saved):
        self.log = (*self.log, saved)


def test_what_is_loaded_where():
    of = toys.problem()
    optimizer = Remembering(sgd(of, momentum=0.9), of, FACTORS)
    of.run(optimizer, 0, 2)
    saved = optimizer.state_dict()
    assert optimizer.param_groups[0]["fixed"] == ""  # what is written there for others is gone again
    bare = optimizer.base.state_dict()
    kept = copy.deepcopy(saved)
    optimizer.load_state_dict(saved)
    assert saved.keys() == kept.keys()  # not changed
    assert saved["param_groups"][0]["fixed"] == kept["param_groups"][0]["fixed"] != ""
    optimizer.load_state_dict({key: saved[key] for key in ("state", "param_groups")})
    optimizer.load_state_dict(bare)
    own = {"factors": list(FACTORS.values())}
    assert optimizer.log == (own, None, None)

    before = cases.snapshot(optimizer)
    with pytest.raises(ValueError, match="other factors"):
        optimizer.load_state_dict({**saved, "fixed": {"factors": []}})
    cases.assert_same(cases.snapshot(optimizer), before)
    with pytest.raises(ValueError, match="parameter group"):
        optimizer.load_state_dict({**saved, "param_groups": []})
    assert len(optimizer.log) == 3


def test_hooks_of_state_dicts():
    of = toys.problem()
    optimizer = toys.Fixed(sgd(of), of, FACTORS)
    calls = []
    optimizer.register_state_dict_pre_hook(lambda o: calls.append("before saving"))
    optimizer.register_state_dict_post_hook(lambda o, d: {**d, "more": len(d)})
    optimizer.register_load_state_dict_pre_hook(lambda o, d: (calls.append(d.pop("more")), d)[1])
    optimizer.register_load_state_dict_post_hook(lambda o: calls.append("after loading"))
    optimizer.load_state_dict(optimizer.state_dict())
    assert calls == ["before saving", 3, "after loading"]


@pytest.mark.parametrize("flatten", [False, True])
@pytest.mark.parametrize("fresh", [False, True])
def test_through_distributed_checkpoint(flatten, fresh, tmp_path):
    """Its state dicts keep no top-level keys, and what is plain goes through all the same."""

    def make(start, stop):
        model = toys.Net()
        base = torch.optim.AdamW(model.parameters(), lr=0.01)
        of = toys.problem()
        of.params = dict(model.named_parameters())
        optimizer = Remembering(base, of, {"embed.weight": 0.5, "head.weight": 2.0})
        return model, optimizer, toys.train(model, optimizer, start, stop)

    model, optimizer, _ = make(0, 3)
    target = make(7, 7 if fresh else 9)
    cases.through_distributed_checkpoint((model, optimizer), target[:2], tmp_path, flatten=flatten)
    assert target[1].log == ({"factors": [0.5, 2.0]},)
    cases.assert_same(toys.train(*target[:2], 3, 5), toys.train(model, optimizer, 3, 5))


def test_distributed_checkpoint_of_the_base_alone(tmp_path):
    model = toys.Net()
    of = toys.problem()
    of.params = dict(model.named_parameters())
    optimizer = toys.Fixed(torch.optim.AdamW(model.parameters(), lr=0.01), of, {})
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict

    get_optimizer_state_dict(model, optimizer.base)  # makes the state by a step with the rate 0
    cases.assert_same(dict(model.named_parameters()), before)
    assert len(optimizer.state) == len(before)


# --- what is refused


def test_the_base_cannot_be_stepped_itself():
    of = toys.problem()
    optimizer = toys.Fixed(sgd(of), of, FACTORS)
    of.load(0)
    before = cases.snapshot(optimizer)
    with pytest.raises(RuntimeError, match=r"SGD was stepped outside the Fixed .* call step\(\) of the Fixed"):
        optimizer.base.step()
    cases.assert_same(cases.snapshot(optimizer), before)
    optimizer.step()
    with pytest.raises(RuntimeError, match="outside"):  # closed again
        optimizer.base.step()


def test_a_base_is_wrapped_once_and_a_refused_wrapper_leaves_it_free():
    of = toys.problem()
    base = sgd(of)
    with pytest.raises(ValueError, match="unknown apply 'rate'; did you mean 'rates'"):
        toys.Fixed(base, of, {}, apply="rate")
    with pytest.raises(ValueError, match="unknown weight_decay 'copled'"):
        toys.Fixed(base, of, {}, weight_decay="copled")
    with pytest.raises(ValueError, match="Fixed: scale_weight_decay must be True or False, got 1"):
        toys.Fixed(base, of, {}, scale_weight_decay=1)
    with pytest.raises(ValueError, match=r"never scales gradients: .* cancel"):
        toys.Fixed(base, of, {}, apply="gradients")
    base.step()
    wrapper = toys.Fixed(base, of, {})
    with pytest.raises(ValueError, match="SGD is wrapped already"):
        toys.Fixed(base, of, {})
    assert wrapper.base is base


def test_a_construction_that_fails_late_leaves_the_base_free():
    class Failing(toys.Fixed):
        def __init__(self, *arguments, **options):
            super().__init__(*arguments, **options)
            raise KeyError("something of its own")

    class NoGroups(torch.optim.SGD):
        missing = False

        @property
        def param_groups(self):
            return [] if self.missing else self.groups

        @param_groups.setter
        def param_groups(self, groups):
            self.groups = groups

    of = toys.problem()
    base = sgd(of)
    with contextlib.suppress(KeyError):  # which, other than pytest.raises, keeps nothing of it alive
        Failing(base, of, {})
    toys.Fixed(base, of, {}).step()
    empty = NoGroups(of.params.values(), lr=0.1)
    empty.missing = True
    with pytest.raises(IndexError):
        toys.Fixed(empty, of, {})
    empty.missing = False
    toys.Fixed(empty, of, {}).step()


def test_a_base_whose_wrapper_is_gone_still_does_not_step_alone():
    of = toys.problem()
    base = sgd(of)
    of.load(0)
    toys.Fixed(base, of, {})
    with pytest.raises(RuntimeError, match="SGD was stepped outside the Fixed that wraps it"):
        base.step()
    wrapper = toys.Fixed(base, of, {})
    wrapper.step()
    with pytest.raises(RuntimeError, match="outside"):
        base.step()
    with pytest.raises(ValueError, match="wrapped already"):
        toys.Fixed(base, of, {})


def test_what_is_no_base():
    of = toys.problem()
    for thing in (None, torch.optim.AdamW, of.params):
        with pytest.raises(TypeError, match=r"Fixed wraps a torch optimizer, e\.g\. Fixed\(torch"):
            toys.Fixed(thing, of, {})
    with pytest.raises(TypeError, match=r"Fixed cannot wrap LBFGS: LBFGS evaluates the closure itself"):
        toys.Fixed(torch.optim.LBFGS(of.params.values()), of, {})


def test_a_base_without_rates_is_updated():
    class Own(Counting):
        def step(self, closure=None):
            for group in self.param_groups:
                for p in group["params"]:
                    p.data.sub_(p.grad)

    of = toys.problem()
    assert toys.Fixed(Own(of.named(), lr=None), of, {}).apply == "update"
    with pytest.raises(ValueError, match=r"needs a number as 'lr' in every param group; Own .* apply='update'"):
        toys.Fixed(Own(of.named(), lr=None), of, {}, apply="rates")


@pytest.mark.parametrize("factor", [0.0, -1.0, float("nan"), float("inf")])
def test_a_factor_must_be_positive(factor):
    of = toys.problem()
    optimizer = toys.Fixed(sgd(of), of, {"head.weight": factor})
    of.load(0)
    before = cases.snapshot(optimizer)
    with pytest.raises(ValueError, match=r"shape \(12, 6\) must be > 0"):
        optimizer.step()
    cases.assert_same(cases.snapshot(optimizer), before)


def test_repr():
    of = toys.problem()
    assert repr(toys.Fixed(sgd(of), of, {})).startswith("Fixed(apply='rates') over SGD (\nParameter Group 0")
    assert issubclass(toys.Fixed, Wrapper)
