from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import steepest
from steepest.lab import methods, models
from steepest.lab.accounting import UncountableError, count_model, count_step, flops
from steepest.lab.accounting.flops import Elements, StepFlops, step_flops
from steepest.lab.accounting.subject import Cycle, Job, cycle
from steepest.lab.config import MethodConfig, Workload

# The model -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "model",
    [
        "tiny-llama",
        "tiny-gpt2",
        "tiny-qwen",  # groups its queries
        "small-gpt2",  # asks for fused attention
        {"preset": "tiny-llama", "tie_word_embeddings": False, "head_dim": 48},
        {"preset": "tiny-llama", "num_hidden_layers": 3, "vocab_size": 77},
    ],
)
def test_counter_and_formula_agree_to_the_operation(model: Any) -> None:
    counted = count_model(models.build(model, device="meta"), 3, 24)
    assert counted.note == ""
    assert counted.total == counted.formula
    assert counted.tokens == 72
    assert 0 < counted.attention < counted.total
    assert counted.per_token == counted.total / 72


def test_the_formula_by_hand() -> None:
    counted = count_model(models.build("tiny-llama", device="meta"), 2, 10)
    matrices = 2 * (4 * 64 * 64 + 3 * 64 * 176) + 256 * 64  # the head is the embedding, and multiplies
    assert counted.total == 20 * (6 * matrices + 12 * 2 * 10 * 64)
    assert counted.attention == 20 * 12 * 2 * 10 * 64


def test_looking_up_an_embedding_costs_nothing() -> None:
    tied = count_model(models.build("tiny", device="meta"), 2, 8)
    untied = count_model(models.build({"preset": "tiny", "tie_word_embeddings": False}, device="meta"), 2, 8)
    assert tied.total == untied.total


def test_a_model_that_does_not_run_without_numbers_has_the_formula(monkeypatch: pytest.MonkeyPatch) -> None:
    model = models.build("tiny", device="meta")
    exact = count_model(model, 2, 8)

    def forward(**_: Any) -> Any:
        raise RuntimeError("Tensor.item() cannot be called on meta tensors")

    monkeypatch.setattr(model, "forward", forward)
    found = count_model(model, 2, 8)
    assert found.total == exact.total
    assert "Tensor.item()" in found.note


# Element-wise work and decompositions --------------------------------------------------------------------------------


def counted(action: Callable[[], Any]) -> tuple[int, int]:
    """Products and element-wise operations of an action."""
    products = FlopCounterMode(display=False, custom_mapping=flops._DECOMPOSITIONS)
    with products, Elements(products) as elements:
        action()
    return int(products.get_total_flops()), elements.count


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_elements_count_as_documented(device: str) -> None:
    x, y, v = torch.ones(6, 4, device=device), torch.ones(6, 4, device=device), torch.ones(4, device=device)
    table: list[tuple[Callable[[], Any], int]] = [
        (lambda: x + v, 24),
        (lambda: torch.add(x, y, alpha=2.0), 48),
        (lambda: x.sub_(y, alpha=0.5), 48),
        (lambda: torch.lerp(x, y, 0.5), 72),
        (lambda: x.addcmul(y, y, value=0.1), 72),
        (lambda: x.addcdiv_(y, y, value=0.1), 72),
        (lambda: torch._foreach_addcmul_([x, v], [y, v], [y, v], 0.1), 3 * 28),
        (lambda: torch._foreach_mul_([x, v], 0.5), 28),
        (lambda: torch._foreach_lerp([x, v], [y, v], 0.5), 3 * 28),
        (lambda: x.sign().sqrt(), 48),
        (lambda: torch.where(x > 0, x, y), 48),
        (lambda: x.sum(0), 24),
        (x.norm, 48),
        (lambda: torch.linalg.vector_norm(x, dim=1), 48),
        (lambda: torch.max(x), 24),
        (lambda: torch.max(x, dim=0).values, 24),
        (lambda: torch.maximum(x, y), 24),
        (lambda: x.t().reshape(-1).clone(), 0),
        (lambda: x.to(torch.bfloat16), 0),
        (lambda: torch.zeros_like(x).copy_(y), 0),
        (lambda: torch.randn_like(x), 0),
        (lambda: torch.cat([x, y]).view(3, -1)[1:], 0),
    ]
    for number, (action, expected) in enumerate(table):
        assert counted(action) == (0, expected), number


def test_products_are_not_element_wise() -> None:
    x, y = torch.ones(3, 5, 4, device="meta"), torch.ones(3, 4, 6, device="meta")
    assert counted(lambda: x @ y) == (2 * 3 * 5 * 4 * 6, 0)
    assert counted(lambda: torch.addmm(x[0, :, :1], x[0], y[0])) == (2 * 5 * 4 * 6, 0)


@pytest.mark.parametrize(
    ("action", "expected"),
    [
        (torch.linalg.qr, 4 * 12 * 25 - 4 * 125 // 3),
        (lambda x: torch.linalg.svd(x, full_matrices=False), 6 * 12 * 25 + 20 * 125),
        (lambda x: torch.linalg.eigh(x.mT @ x), 2 * 5 * 5 * 12 + 9 * 125),
    ],
)
def test_decompositions_have_their_textbook_counts(action: Callable[[torch.Tensor], Any], expected: int) -> None:
    assert counted(lambda: action(torch.empty(12, 5, device="meta")))[0] == expected


# Optimizers ----------------------------------------------------------------------------------------------------------


def on_meta(*shapes: tuple[int, ...]) -> list[nn.Parameter]:
    return [nn.Parameter(torch.empty(shape, device="meta")) for shape in shapes]


@pytest.mark.parametrize(("m", "n"), [(8, 8), (8, 20), (20, 8)])
def test_newton_schulz_to_the_operation(m: int, n: int) -> None:
    step = count_step(torch.optim.Muon(on_meta((m, n)), lr=0.1, ns_steps=5))
    short, long = min(m, n), max(m, n)
    assert step.products == 5 * (4 * short**2 * long + 2 * short**3)


@pytest.mark.parametrize("fused", [True, False])
def test_adamw_is_the_same_however_it_runs(fused: bool) -> None:
    parameters = on_meta((30, 10), (7,))
    step = count_step(torch.optim.AdamW(parameters, lr=0.1, fused=fused, foreach=None if fused else True))
    # decay 1, first average 3, second 1 + 3, root 1, correction 1, epsilon 1, step 3; two step counters
    assert step == StepFlops(0.0, 14.0 * 307 + 2)
    real = [nn.Parameter(torch.ones(30, 10)), nn.Parameter(torch.ones(7))]
    assert count_step(torch.optim.AdamW(real, lr=0.1)) == step


def products_of(optimizer: torch.optim.Optimizer) -> float:
    return count_step(optimizer).products


def test_alternating_rules_are_averaged_over_their_period() -> None:
    model = models.build("tiny", device="meta")
    muon = products_of(steepest.Muon(model, lr=0.1))
    assert muon > 0
    for period in (1, 2, 5):
        optimizer = steepest.LionMuon(model, lr=0.1, period=period)
        assert cycle(optimizer) == Cycle(steps=period)
        assert products_of(optimizer) == pytest.approx(muon / period, rel=1e-12)
    assert products_of(steepest.LionMuon(model, lr=0.1, period=math.inf)) == 0


class Refreshing(torch.optim.SGD):
    """SGD that multiplies matrices every `update_proj_gap` steps, the first one included."""

    def __init__(self, parameters: list[nn.Parameter], gap: int) -> None:
        super().__init__([{"params": parameters, "update_proj_gap": gap}], lr=0.1)
        self.number = 0

    def step(self, closure: Any = None) -> Any:
        if self.number % self.param_groups[0]["update_proj_gap"] == 0:
            grad = self.param_groups[0]["params"][0].grad
            assert grad is not None
            grad @ grad
        self.number += 1
        return super().step(closure)


@pytest.mark.parametrize("gap", [1, 8, 200])
def test_what_comes_seldom_counts_with_its_share(gap: int) -> None:
    step = count_step(Refreshing(on_meta((10, 10)), gap))
    assert step.products == pytest.approx(2000 / gap)
    assert step.elements == 200.0


def test_cycle_reads_wrappers_and_starts() -> None:
    model = models.build("tiny", device="meta")
    assert cycle(methods.build(MethodConfig(name="sac+lionmuon"), model, 10)) == Cycle(steps=10)
    optimizer = torch.optim.SGD(on_meta((2, 2)), lr=0.1)
    assert cycle(optimizer) == Cycle()
    optimizer.param_groups[0].update(preconditioning_compute_steps=4, period=6, start_preconditioning_step=7)
    assert cycle(optimizer) == Cycle(steps=12, start=7)
    optimizer.param_groups[0].update(update_proj_gap=200, period=True, interval="of the mode")
    assert cycle(optimizer) == Cycle(steps=4, seldom=200, start=7)


class Numbers(torch.optim.SGD):
    """Looks at a number, which the meta device has not."""

    def step(self, closure: Any = None) -> Any:
        float(self.param_groups[0]["params"][0].grad.sum())
        return super().step(closure)


def job(name: str) -> Job:
    return Job(method=MethodConfig(name=name), workload=Workload(model="tiny"))


def test_a_step_that_needs_numbers_is_carried_out(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = step_flops(job("sgd"))
    assert plain.note == ""
    monkeypatch.setattr(Job, "optimizer", lambda self, model: Numbers(list(model.parameters()), lr=0.1, momentum=0.9))
    found = step_flops(job("sgd"))
    assert found.note == "counted in a step on random numbers"
    embedding = 256 * 64
    assert plain.elements - 2 * (117_056 - 64 * 5 - embedding) + embedding == found.elements  # decay; the sum
    monkeypatch.setattr(flops, "_CARRIED_OUT", 1000)
    with pytest.raises(UncountableError, match=r"does not run without numbers .*1,000 parameters only.*117,056"):
        step_flops(job("sgd"))


@torch.library.custom_op("steepest_tests::opaque", mutates_args={"x"})
def opaque(x: torch.Tensor) -> None:
    """Do nothing that anybody knows."""


@opaque.register_fake
def _(x: torch.Tensor) -> None:
    return None


class Opaque(torch.optim.SGD):
    def step(self, closure: Any = None) -> Any:
        for parameter in self.param_groups[0]["params"]:
            opaque(parameter.detach())


def test_kernels_of_unknown_work_are_named() -> None:
    with pytest.raises(UncountableError, match=r"unknown: steepest_tests\.opaque"):
        count_step(Opaque(on_meta((2, 2)), lr=0.1))


def test_sophia_adds_a_tenth_of_a_pass() -> None:
    pytest.importorskip("pytorch_optimizer")
    step = step_flops(job("sophia"))
    assert step.extra_passes == pytest.approx(0.1)
    assert step.products == 0


def test_all_our_methods_are_counted_without_numbers() -> None:
    for name in ("signum", "softmuon", "softlionmuon", "sage", "sinkgd", "lasm"):
        step = step_flops(job(name))
        assert step.total > 117_056, name
        assert step.note == "", name
        assert (step.products > 0) == (name not in ("signum", "lasm")), name
