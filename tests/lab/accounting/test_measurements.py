from __future__ import annotations

import math
import os
from collections.abc import Callable
from typing import Any

import pytest
import torch
from small_runs import MODEL
from torch import nn

import steepest
from steepest.lab import methods, models
from steepest.lab.accounting import bytes as memory
from steepest.lab.accounting import step_time, update_rms
from steepest.lab.accounting.processes import FreshProcess, MeasurementError
from steepest.lab.accounting.subject import Job, give_noise
from steepest.lab.config import MethodConfig, Workload
from steepest.lab.errors import UserError

WORKLOAD = Workload(model=MODEL, batch_size=4, sequence_length=16, steps=12)


def job(name: str, **changes: Any) -> Job:
    method = MethodConfig(name=name, lr=changes.pop("lr", None), options=changes.pop("options", {}))
    return Job(method=method, workload=WORKLOAD.model_copy(update=changes.pop("workload", {})), **changes)


# Bytes ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["adamw", "lionmuon", "sage", "muon-torch", "sac+lion"])
def test_state_is_every_storage_once(name: str) -> None:
    model = job(name).model("cpu")
    optimizer = job(name).optimizer(model)
    give_noise(optimizer)
    optimizer.step()
    found = memory.state_by_role(optimizer, model)
    inside = {
        tensor.untyped_storage()._cdata: tensor.untyped_storage().nbytes()
        for state in optimizer.state.values()
        for tensor in methods.tensors(state)
    }
    assert found["total"] == methods.state_bytes(optimizer)
    assert found["total"] - found.get("shared", 0) == sum(inside.values()) > 0
    assert sum(found.values()) == 2 * found["total"]
    assert {role.kind for role in steepest.roles(model).values()} <= set(found)


def test_state_of_adamw_by_role() -> None:
    model = job("adamw").model("cpu")
    optimizer = job("adamw").optimizer(model)
    give_noise(optimizer)
    optimizer.step()
    found = memory.state_by_role(optimizer, model)
    assert found["embedding"] == 2 * 4 * 256 * 32 + 4  # two averages and a step counter
    assert found["attention"] == 2 * 4 * (2 * 4 * 32 * 32) + 8 * 4
    assert "shared" not in found


def test_what_belongs_to_no_parameter_is_shared() -> None:
    model = nn.Sequential(nn.Embedding(4, 4), nn.Linear(4, 4, bias=False))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    give_noise(optimizer)
    optimizer.step()
    plain = memory.state_by_role(optimizer, model)
    optimizer.state["factors"] = {"of all": torch.ones(10)}  # type: ignore[index]
    assert memory.state_by_role(optimizer, model) == {**plain, "shared": 40, "total": plain["total"] + 40}


class Temporary(torch.optim.SGD):
    """Allocates `first` floats and, after giving them back, `second`, beside `kept` that stay."""

    def __init__(self, parameters: Any, first: int, second: int, kept: int = 0) -> None:
        super().__init__(parameters, lr=0.1)
        self.sizes, self.kept = (first, second), kept
        self.held: list[torch.Tensor] = []

    def step(self, closure: Any = None) -> Any:
        self.held.append(torch.empty(self.kept))
        for size in self.sizes:
            torch.empty(size).zero_()


def test_transient_of_a_known_step() -> None:
    parameters = [nn.Parameter(torch.ones(3))]
    assert memory.transient(Temporary(parameters, 10_000, 30_000))[0] == 120_000
    assert memory.transient(Temporary(parameters, 30_000, 10_000, kept=50_000))[0] == 320_000
    peak, source = memory.transient(Temporary(parameters, 0, 0))
    assert peak == 0
    assert "profiler" in source


def test_lists_cost_what_they_hold_at_once() -> None:
    def of(foreach: bool) -> int:
        parameters = [nn.Parameter(torch.ones(1000)) for _ in range(5)]
        optimizer = torch.optim.SGD(parameters, lr=0.1, weight_decay=0.1, foreach=foreach)
        give_noise(optimizer)
        return memory.transient(optimizer)[0]

    assert of(foreach=True) == 5 * of(foreach=False) == 20_000  # the gradients with the decay


# Update RMS ----------------------------------------------------------------------------------------------------------


def test_a_sign_step_moves_every_weight_by_the_rate() -> None:
    found = update_rms.measure(job("signum", lr=1e-3))
    assert found == pytest.approx(dict.fromkeys(("embedding", "attention", "mlp", "norm"), 1e-3), rel=1e-3)


def test_alternating_steps_are_taken_together() -> None:
    def of(period: int) -> float:
        options = {"period": period, "sign_lr_ratio": 0.05}
        return update_rms.measure(job("lionmuon", lr=1e-3, options=options))["mlp"]

    spectral, sign = of(1), 1e-3 * 0.05
    assert of(2) == pytest.approx(math.sqrt((spectral**2 + sign**2) / 2), rel=0.03)
    assert of(4) == pytest.approx(math.sqrt((spectral**2 + 3 * sign**2) / 4), rel=0.03)


def test_weight_decay_is_no_update() -> None:
    weak = update_rms.measure(job("sgd", lr=1e-3, options={"weight_decay": 0.0}), before=1)
    strong = update_rms.measure(job("sgd", lr=1e-3, options={"weight_decay": 0.9}), before=1)
    assert strong == weak
    optimizer = torch.optim.SGD([nn.Parameter(torch.ones(2))], lr=0.1, weight_decay=0.1)
    optimizer.param_groups[0].update(weight_decay_1d=0.3, weight_decouple=True)
    update_rms.without_decay(optimizer)
    group = optimizer.param_groups[0]
    assert (group["weight_decay"], group["weight_decay_1d"], group["weight_decouple"]) == (0.0, 0.0, True)


def test_gradients_are_clipped_as_in_a_run() -> None:
    free = update_rms.measure(job("sgd", lr=0.1, workload={"clip": None}), before=0)
    clipped = update_rms.measure(job("sgd", lr=0.1, workload={"clip": 1e-2}), before=0)
    sizes: dict[str, int] = {}
    model = job("sgd").model("cpu")
    roles = steepest.roles(model)
    for name, parameter in model.named_parameters():
        sizes[roles[name].kind] = sizes.get(roles[name].kind, 0) + parameter.numel()
    norm = math.sqrt(sum(clipped[kind] ** 2 * size for kind, size in sizes.items()))
    assert norm == pytest.approx(0.1 * 1e-2, rel=1e-3)  # the rate times the norm
    assert free["mlp"] > 10 * clipped["mlp"]


def test_weights_that_are_not_finite_are_refused() -> None:
    with pytest.raises(ArithmeticError, match="no longer finite after"):
        update_rms.measure(job("sgd", lr=1e30))


def test_batches_of_the_data_are_those_of_a_run(cache: Any) -> None:
    from steepest.lab.config import TrainConfig
    from steepest.lab.workloads import open_data

    workload = {"data": "synthetic", "max_bytes": 200_000}
    real = job("sgd", workload=workload, cache=str(cache), data=True, vocabulary=257)
    model = real.model("cpu")
    stream = open_data(TrainConfig(workload=real.workload, cache=str(cache))).train(batch_size=4, length=16, seed=0)
    assert torch.equal(real.batches(model)(3), stream.batch(3))
    drawn = job("sgd").batches(model)
    assert drawn(0).shape == (4, 17)
    assert not torch.equal(drawn(0), drawn(1))
    assert torch.equal(drawn(1), job("sgd").batches(model)(1))
    long = job("sgd", workload={"sequence_length": 1000, "batch_size": 64})
    assert long.batches(model)(0).shape == (4, 1001)


# Time ----------------------------------------------------------------------------------------------------------------


def test_percentiles() -> None:
    values = [float(value) for value in range(101)]
    assert [step_time.percentile(values, p) for p in (25, 50, 90)] == [25.0, 50.0, 90.0]
    assert step_time.percentile([1.0, 2.0], 90) == pytest.approx(1.9)
    assert step_time.percentile([3.0], 90) == 3.0


@pytest.mark.parametrize(
    ("seconds", "load", "cores", "reasons"),
    [
        ([1.0] * 10, 1.9, 2, []),
        ([1.0] * 10, 2.0, 2, []),
        ([1.0] * 10, 2.1, 2, ["load average 2.1 on 2 cores"]),
        ([1.0] * 10, None, 2, []),
        ([1.0] * 10, 9.0, None, []),
        ([1.0] * 9 + [100.0], 0.0, 2, ["90th percentile is 10.9 times"]),  # interpolated
        ([1.0] * 19 + [100.0], 0.0, 2, []),  # one interruption in twenty
        ([1.0] * 8 + [1.4] * 2, 0.0, 2, []),
        ([1.0] * 6 + [1.6] * 4, 3.0, 2, ["load average", "1.6 times"]),
    ],
)
def test_contention(seconds: list[float], load: float | None, cores: int | None, reasons: list[str]) -> None:
    found = step_time.contention(seconds, load, cores)
    assert len(found) == len(reasons)
    for told, part in zip(found, reasons, strict=True):
        assert part in told


def samples(*wall: float, cpu: float = 1.0) -> list[step_time.Sample]:
    return [{"wall": seconds, "cpu": cpu} for seconds in wall]


def test_ratios_are_taken_inside_a_round() -> None:
    # Every round is twice as slow as the one before; the method always takes three times the baseline.
    record = step_time.summarize(samples(3, 6, 12, cpu=0.5), samples(1, 2, 4, cpu=0.25), 0.0, 2)
    assert record["ratio"] == 3.0
    assert record["ratio_quartiles"] == [3.0, 3.0]
    assert record["cpu_ratio"] == 2.0
    assert (record["median"], record["baseline_median"], record["rounds"]) == (6.0, 2.0, 3)
    assert record["contended"] is True
    assert "baseline: the 90th percentile" in record["why"]


def test_a_quiet_baseline_alone() -> None:
    record = step_time.summarize(samples(1, 1, 1.1), None, 0.5, 2)
    assert record["contended"] is False
    assert (record["ratio"], record["why"], record["load"]) == (1.0, "", 0.5)
    assert record["p90"] == pytest.approx(1.08)


def test_a_sample_is_whole_cycles_from_the_same_weights() -> None:
    watch = step_time.Stopwatch(job("lionmuon", options={"period": 3}))
    assert watch.steps % 3 == 0
    before = [parameter.detach().clone() for parameter in watch._start]
    first = watch()
    after = [p.detach().clone() for p in step_time.parameters(watch._optimizer)]
    watch()
    assert set(first) == {"wall", "cpu"}
    assert all(torch.equal(a, b) for a, b in zip(before, watch._start, strict=True))
    distance = [(p - s).abs().max() for p, s in zip(after, before, strict=True)]
    again = [(p - s).abs().max() for p, s in zip(step_time.parameters(watch._optimizer), before, strict=True)]
    assert max(again) < 1.5 * max(distance)  # not twice as far


# Processes -----------------------------------------------------------------------------------------------------------


def answers(start: int) -> Callable[[Any], Any]:
    """Answer with the sum; the words end or fail."""

    def answer(request: Any) -> Any:
        if request == "die":
            os._exit(7)
        if request == "refuse":
            raise UserError("rank must be positive")
        if request == "fault":
            raise RuntimeError("no such\nkernel")
        print("noise")
        return (start + request, os.getpid())

    return answer


def test_a_fresh_process_answers_fails_and_dies() -> None:
    with FreshProcess(answers, 40) as process, FreshProcess(answers, 1) as other:
        total, pid = process.ask(2)
        assert total == 42
        assert pid not in (os.getpid(), other.ask(1)[1])
        with pytest.raises(MeasurementError, match=r"^rank must be positive$"):
            process.ask("refuse")
        with pytest.raises(MeasurementError, match=r"^RuntimeError: no such kernel$"):
            process.ask("fault")
        assert process.ask(3) == (43, pid)
        with pytest.raises(MeasurementError, match="exit code 7"):
            process.ask("die")
        assert other.ask(2)[0] == 3


def test_the_model_of_a_job_is_that_of_a_run() -> None:
    real = job("sgd", seed=3, vocabulary=300)
    expected = models.build(MODEL, 300, 3, 16)
    for mine, theirs in zip(real.model("cpu").parameters(), expected.parameters(), strict=True):
        assert torch.equal(mine, theirs)
