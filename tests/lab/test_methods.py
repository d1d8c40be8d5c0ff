"""The package of methods: the adapter of other people's optimizers, the hooks of the loop, wrappers and presets."""

from __future__ import annotations

import copy
import math
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from small_runs import MODEL, lines, numbers, tiny
from torch import nn

import steepest
from steepest import rules
from steepest.lab import checkpoints, compute, memory, methods, models, presets
from steepest.lab.config import MethodConfig, ScheduleConfig, StudyMethod
from steepest.lab.data import Pack
from steepest.lab.errors import UserError
from steepest.lab.methods.accounting import unwrapped
from steepest.lab.training import train


def network() -> nn.Module:
    return models.build(MODEL, 257, seed=0)


def with_gradients(model: nn.Module, seed: int = 1) -> nn.Module:
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator)
    return model


def built(name: str, model: nn.Module, **options: Any) -> torch.optim.Optimizer:
    return methods.build(MethodConfig(name=name, options=options), model, 10)


# Adapter --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [name for name, method in methods.METHODS.items() if method.package])
def test_decay_is_on_weights_only_and_every_parameter_is_owned_once(name: str) -> None:
    model = network()
    groups = built(name, model, weight_decay=0.3).param_groups
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    decay = {names[id(p)]: group["weight_decay"] for group in groups for p in group["params"]}
    assert sum(len(group["params"]) for group in groups) == len(decay) == len(names)
    assert decay["model.layers.0.mlp.up_proj.weight"] == decay["model.layers.1.self_attn.o_proj.weight"] == 0.3
    assert decay["model.embed_tokens.weight"] == decay["model.norm.weight"] == 0.0


@pytest.mark.parametrize(
    "name", ["mars+adamw", "mars+lion", "mars+shampoo", "shampoo-ns", "muon-torch", "sac+mars+adamw"]
)
def test_vectors_beside_a_matrix_method_follow_its_rate(name: str) -> None:
    for factor in (1.0, 0.5, 0.0):
        model = with_gradients(network())
        before = copy.deepcopy(model)
        optimizer = built(name, model, rest_lr_ratio=0.2)
        for group in optimizer.param_groups:
            group["lr"] *= factor
        optimizer.step()
        for (key, new), old in zip(model.named_parameters(), before.parameters(), strict=True):
            step = (new - old).detach().abs()
            if new.ndim == 1:  # AdamW's first step is the rate itself
                wanted = torch.full_like(step, 0.2 * factor * methods.find(name).lr)
                torch.testing.assert_close(step, wanted, rtol=1e-3, atol=1e-7, msg=key)
            assert bool(step.any()) == (factor > 0)


@pytest.mark.parametrize(("name", "module"), [("prodigy", "prodigyopt"), ("soap", "pytorch_optimizer")])
def test_a_missing_package_is_named_with_the_extra(
    name: str, module: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from steepest.lab.cli import main

    monkeypatch.setitem(sys.modules, module, None)
    package = methods.find(name).package
    with pytest.raises(UserError, match=rf"needs the package {package}: pip install 'steepest\[baselines\]'"):
        methods.check(MethodConfig(name=name), 10)
    assert main(["optimizers"]) == 0
    assert f"-: needs {package}: pip install" in capsys.readouterr().out.replace("\n", " ")


def test_lists_of_a_file_are_the_tuples_that_packages_want() -> None:
    for betas in ([0.9, 0.92, 0.99], (0.9, 0.92, 0.99)):
        assert built("adan", network(), betas=betas).param_groups[0]["betas"] == (0.9, 0.92, 0.99)


def test_adam_mini_knows_the_heads_of_the_model() -> None:
    model = with_gradients(network())
    optimizer = built("adam-mini", model)
    optimizer.step()
    query = model.get_parameter("model.layers.0.self_attn.q_proj.weight")
    second = [value for key, value in optimizer.state[query].items() if "v" in key and torch.is_tensor(value)]
    assert max(tensor.numel() for tensor in second) == model.config.num_attention_heads == 2


def test_low_rank_methods_project_hidden_matrices_only() -> None:
    for name in ("apollo", "apollo-mini", "galore", "fira"):
        model = with_gradients(network())
        optimizer = built(name, model, rank=4)
        optimizer.step()
        ranks = {group["label"]: group.get("rank") for group in optimizer.param_groups}
        assert ranks == {"hidden matrices": 4, "embeddings and vectors": None}
        state = optimizer.state[model.get_parameter("model.layers.0.mlp.up_proj.weight")]
        assert state["exp_avg"].shape in ((48, 4), (4, 32))
        assert optimizer.state[model.get_parameter("model.embed_tokens.weight")]["exp_avg"].shape == (257, 32)


def test_bytes_in_objects_of_a_package_are_counted() -> None:
    model = with_gradients(network())
    optimizer = built("galore", model, rank=4)
    optimizer.step()
    hidden = [p for group in optimizer.param_groups if group["label"] == "hidden matrices" for p in group["params"]]
    rest = [p for group in optimizer.param_groups if group["label"] != "hidden matrices" for p in group["params"]]
    averages = 8 * sum(4 * max(p.shape) for p in hidden) + 8 * sum(p.numel() for p in rest)
    projections = 4 * sum(4 * min(p.shape) for p in hidden)
    assert methods.state_bytes(optimizer) == averages + projections


def test_torchs_muon_has_the_hidden_matrices_and_steps_like_ours() -> None:
    theirs, ours = with_gradients(network()), with_gradients(network())
    options: dict[str, Any] = {"weight_decay": 0.1, "rest_lr_ratio": 0.3}
    optimizer = built("muon-torch", theirs, **options)
    by_label = {group["label"]: len(group["params"]) for group in optimizer.param_groups}
    assert by_label == {"weights": 14, "embeddings and vectors": 6}
    reference = built("muon", ours, **options, steps=5, fused="joined")
    for _ in range(2):
        optimizer.step()
        reference.step()
    for (name, mine), other in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        # Newton-Schulz in bfloat16 here, in float32 there.
        torch.testing.assert_close(mine, other, rtol=0, atol=2e-3 if mine.ndim == 2 else 1e-5, msg=name)


def test_an_independent_lion_steps_like_ours() -> None:
    theirs, ours = with_gradients(network()), with_gradients(network())
    pair = built("lion-pytorch", theirs, weight_decay=0.0), built("lion", ours, betas=(0.9, 0.98), weight_decay=0.0)
    for seed in range(3):
        for model, optimizer in zip((theirs, ours), pair, strict=True):
            with_gradients(model, seed)
            optimizer.step()
    for mine, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(mine, other, rtol=0, atol=1e-6)


def test_memory_of_what_must_be_carried_out_has_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory.counting, "_MEASURED", 1000)
    with pytest.raises(UserError, match="prodigy: prodigyopt can only be counted by a step in memory"):
        memory.count("tiny", ["prodigy"])


# Hooks of the loop ----------------------------------------------------------------------------------------------------


def test_how_often_a_schedule_free_run_is_evaluated_changes_nothing(cache: Path, tmp_path: Path, pack: Pack) -> None:
    found = []
    for every in (12, 5):
        evaluation = {"tokens": 256, "batch_size": 4, "every": every}
        config = tiny(cache, method={"name": "schedule-free"}, workload__evaluation=evaluation)
        run = train(config, tmp_path / str(every), pack=pack)
        found.append((run, numbers(run.path)))
    (first, one), (_, other) = found
    assert one["metrics"] == other["metrics"]
    assert one["evals"][-1] == other["evals"][-1]
    # What a finished run leaves are the weights that were evaluated.
    saved = checkpoints.load(first.path / "ckpt")
    assert saved is not None
    model = network()
    model.load_state_dict(saved["model"])
    total = count = 0
    for batch in pack.validation(tokens=256, length=16, batch_size=4):
        total += float(compute.loss_sum(model, batch, "fp32").detach())
        count += batch.shape[0] * (batch.shape[1] - 1)
    assert total / count == pytest.approx(first.loss, abs=1e-6)


def test_weights_come_back_when_an_evaluation_fails() -> None:
    model = with_gradients(network())
    optimizer = built("schedule-free", model)
    for _ in range(3):
        optimizer.step()
    before = [parameter.detach().clone() for parameter in model.parameters()]

    def fail() -> None:
        assert not all(torch.equal(old, new) for old, new in zip(before, model.parameters(), strict=True))
        raise KeyError

    with pytest.raises(KeyError), methods.evaluated_weights(optimizer):
        fail()
    assert all(torch.equal(old, new) for old, new in zip(before, model.parameters(), strict=True))
    optimizer.step()  # in training mode again


def test_a_schedule_free_rate_stays_after_the_warm_up(cache: Path, tmp_path: Path, pack: Pack) -> None:
    rates = {}
    for kind in ("constant", "workload"):
        config = tiny(cache, method={"name": "schedule-free", "lr": 1e-2, "options": {"schedule": kind}})
        run = train(config, tmp_path / kind, pack=pack)
        rates[kind] = [row["lr"]["weights"] for row in lines(run.path / "metrics.jsonl")]
    assert rates["constant"][2:] == [1e-2] * 10
    assert rates["workload"][:2] == rates["constant"][:2]
    assert rates["workload"][-1] < 1e-3
    assert methods.schedule(MethodConfig(name="adamw"), ScheduleConfig(kind="wsd")).kind == "wsd"
    with pytest.raises(UserError, match="unknown schedule 'constnt'"):
        train(tiny(cache, method={"name": "schedule-free", "options": {"schedule": "constnt"}}), tmp_path, pack=pack)


class Asking(torch.optim.SGD):
    """Wants a sampled gradient at every step."""

    taken: tuple[list[torch.Tensor], int]

    def wants_sample(self) -> bool:
        return True

    def take_sample(self, gradients: list[torch.Tensor], count: int) -> None:
        self.taken = gradients, count


def test_the_gradient_of_sampled_labels_has_mean_zero_and_leaves_the_gradients_alone() -> None:
    torch.manual_seed(0)
    model = with_gradients(network())
    kept = [parameter.grad for parameter in model.parameters()]
    optimizer = Asking(model.parameters(), lr=0.1)
    pieces = torch.randint(257, (2, 2, 9)).unbind()
    draws = []
    for _ in range(60):
        methods.offer_sample(optimizer, model, pieces, "fp32")
        assert optimizer.taken[1] == 32
        draws.append(torch.cat([gradient.flatten() for gradient in optimizer.taken[0]]))
    sizes = torch.stack([draw.norm() for draw in draws])
    mean = torch.stack(draws).mean(0).norm()
    assert float(mean) == pytest.approx(float(sizes.mean()) / math.sqrt(60), rel=0.2)  # independent, around 0
    assert all(parameter.grad is old for parameter, old in zip(model.parameters(), kept, strict=True))


def test_sophia_divides_by_the_curvature_of_sampled_labels() -> None:
    model = nn.Linear(3, 1, bias=False)
    nn.init.zeros_(model.weight)
    optimizer: Any = built("sophia", model, betas=(0.9, 0.99), rho=0.5, update_period=2, weight_decay=0.0)
    rate, sampled, gradient = optimizer.param_groups[0]["lr"], torch.tensor([[2.0, 10.0, 0.1]]), torch.ones(1, 3)
    wanted, average, curvature, expected = [], torch.zeros(1, 3), torch.zeros(1, 3), torch.zeros(1, 3)
    for step in range(4):
        wanted.append(optimizer.wants_sample())
        if wanted[-1]:
            optimizer.take_sample([sampled], 8)
            curvature = 0.99 * curvature + 0.01 * 8 * sampled**2
        model.weight.grad = gradient.clone()
        optimizer.step()
        average = 0.9 * average + 0.1 * gradient
        expected = expected - rate * torch.clamp(average / (0.5 * curvature), -1, 1)
        torch.testing.assert_close(model.weight.detach(), expected, rtol=1e-5, atol=1e-9, msg=str(step))
    assert wanted == [True, False, True, False]
    with pytest.warns(RuntimeWarning, match="Sophia got no gradient of sampled labels"):
        optimizer.step()


# Wrappers -------------------------------------------------------------------------------------------------------------


def test_a_prefix_wraps_any_method_with_its_options() -> None:
    config = MethodConfig(
        name="sac+lion", lr=1e-3, options={"betas": (0.9, 0.95), "sac_gamma": 0.25, "sac_interval": 7}
    )
    optimizer = methods.build(config, network(), 10)
    assert isinstance(optimizer, steepest.SAC)
    assert isinstance(unwrapped(optimizer), steepest.Steepest)
    assert optimizer.param_groups[0]["betas"] == (0.9, 0.95)
    method = methods.find("sac+lion")
    assert method.grid == methods.find("lion").grid
    assert method.label == "SAC + Lion"
    assert method.options["sac_mode"] == "equations"
    assert methods.find("sac-constant+mars+adamw").label == "SAC (constant) + MARS + AdamW"


def test_constant_scales_are_the_control_arm() -> None:
    model, plain = with_gradients(network()), with_gradients(network())
    before = copy.deepcopy(model)
    built("sac-constant+adamw", model, weight_decay=0.0).step()
    built("adamw", plain, weight_decay=0.0).step()
    for name, factor in (("model.layers.0.mlp.up_proj.weight", 0.1), ("model.norm.weight", 1.0)):
        old = before.get_parameter(name)
        step, whole = model.get_parameter(name) - old, plain.get_parameter(name) - old
        torch.testing.assert_close(step, factor * whole, rtol=2e-3, atol=1e-7)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"name": "sac+adamww"}, "unknown optimizer 'adamww'. Did you mean 'adamw'"),
        ({"name": "sack+adamw"}, "unknown optimizer 'sack\\+adamw'. Did you mean"),
        ({"name": "sac-konstant+adamw"}, "konstant"),
        (
            {"name": "sac+adamw", "options": {"sac_gama": 1}},
            "unknown option of sac\\+adamw 'sac_gama'. Did you mean 'sac_ga",
        ),
        ({"name": "sac+adamw", "options": {"sac_statistic": "madd"}}, "madd"),
        ({"name": "adan", "options": {"betas": (0.9, 0.99, 1.5)}}, "beta"),
    ],
)
def test_mistakes_are_answered(config: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        methods.check(MethodConfig(**config), 10)


@pytest.mark.parametrize("name", ["lionmuon", "adamw"])
def test_rows_of_a_wrapped_run_are_those_of_its_base(name: str) -> None:
    found = []
    for prefix in ("", "sac+"):
        model = with_gradients(network())
        optimizer = built(prefix + name, model)
        optimizer.step()
        found.append(methods.routing_rows(model, optimizer))
    assert found[0] == found[1]


# Presets --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", presets.PAPERS)
def test_settings_of_papers_fit_the_method(name: str) -> None:
    for paper in presets.PAPERS[name]:
        for setting in paper.rates:
            rate, options = presets.find(name, setting, paper.source)
            methods.check(MethodConfig(name=name, lr=rate, options=options), 10)


def test_settings_of_papers_are_as_printed() -> None:
    assert presets.find("adamw", "130M") == (1e-3, {"betas": (0.9, 0.99), "eps": 1e-8, "weight_decay": 0.0})
    assert presets.find("prodigy", "350M")[0] == 2.0
    assert presets.find("sac+adamw", "1B")[0] == 1e-2
    assert presets.find("lion", "270M-1.3B", "SAGE")[1]["weight_decay"] == 0.01
    assert presets.find("adamw", "720M")[1]["betas"] == (0.9, 0.999)
    assert presets.find("sage", "270M-1.3B")[0] == 2e-3
    with pytest.raises(UserError, match="unknown tuned setting of adamw '13B'"):
        presets.find("adamw", "13B")
    with pytest.raises(UserError, match="unknown method with tuned settings 'lasm'"):
        presets.find("lasm", "1B")


@pytest.mark.parametrize("key", [key for key in rules.PRESETS if key.startswith(("lionmuon", "signmuon"))])
def test_the_presets_of_rules_are_presets_of_methods(key: str) -> None:
    """The optimizer that the lab builds is the one that the library builds."""
    name = key.partition("-")[0]
    model = network()
    made = methods.build(MethodConfig.model_validate({"name": name, "preset": key}), model, 10)
    kind = {"lionmuon": steepest.LionMuon, "signmuon": steepest.SignMuon}[name]
    for ours, theirs in zip(made.param_groups, kind(model, preset=key).param_groups, strict=True):
        assert {k: v for k, v in ours.items() if k != "params"} == {k: v for k, v in theirs.items() if k != "params"}


def test_a_preset_stands_for_its_rate_and_options() -> None:
    written = MethodConfig.model_validate({"name": "lion", "preset": "130M"})
    assert written == MethodConfig(
        name="lion", lr=2e-4, options={"betas": (0.9, 0.98), "weight_decay": 0.0}, preset="130M"
    )
    assert "preset" not in written.model_dump()  # so that a run has the name that it has without the word
    assert MethodConfig.model_validate({"name": "lion", "preset": "130M", "lr": 1e-3}).lr == 1e-3
    row = StudyMethod.model_validate({"name": "lion", "preset": "130M"})
    assert (row.grid, row.options) == ((2e-4,), {"betas": (0.9, 0.98), "weight_decay": 0.0})
    assert StudyMethod.model_validate({"name": "lion", "preset": "130M", "grid": [1e-3, 2e-3]}).grid == (1e-3, 2e-3)
    tuned = StudyMethod.model_validate({"name": "lion", "preset": "130M", "space": {"weight_decay": [0.0, 0.1]}})
    assert tuned.options == {"betas": (0.9, 0.98)}
    with pytest.raises(ValueError, match=r"lion: options.betas is \[0.9, 0.99\], and \(0.9, 0.98\) in the preset 130M"):
        StudyMethod.model_validate({"name": "lion", "preset": "130M", "options": {"betas": [0.9, 0.99]}})
    with pytest.raises(ValueError, match=r"unknown tuned setting of lion '130'.*Did you mean '130M'"):
        MethodConfig.model_validate({"name": "lion", "preset": "130"})
    with pytest.raises(ValueError, match=r"unknown method with tuned settings 'lionn'.*'lion'"):
        MethodConfig.model_validate({"name": "lionn", "preset": "130M"})


def test_the_page_about_methods_has_every_one() -> None:
    page = (Path(__file__).parents[2] / "docs" / "methods.md").read_text(encoding="utf-8")
    for method in methods.METHODS.values():
        assert f"| `{method.name}` | {method.formula} |" in page
