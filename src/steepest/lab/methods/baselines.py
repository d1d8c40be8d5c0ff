"""Other people's methods: every row of SAC's Table 1 and every baseline of the other papers.

Defaults are those of SAC's Table 1 (betas and epsilon) where it has the method, with the weight decay of the AdamW
baseline on the same parameters; `presets` has the papers' learning rates. What a package calls differently keeps the
package's name, so that its own documentation applies.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from steepest.lab.methods.adapter import Adapter, by_name, hidden_matrices, low_rank, matrices
from steepest.lab.methods.curvature import gauss_newton_bartlett
from steepest.lab.methods.record import Method, decay_groups

_DECAY = {"weight_decay": 0.1}
_PROJECTOR = ("apollo_torch.random_projector:GradientProjector",)
_SVD = ("pytorch_optimizer.optimizer.utils.galore:GaLoreProjector",)


def _rest(lr_ratio: float, betas: tuple[float, float] = (0.9, 0.95)) -> dict[str, Any]:
    """Options of the AdamW beside a method that does not take every parameter."""
    return {"rest_lr_ratio": lr_ratio, "rest_betas": betas, "rest_eps": 1e-8, "rest_weight_decay": 0.1}


def _adamw(model: nn.Module, lr: float, options: dict[str, Any]) -> torch.optim.Optimizer:
    groups = decay_groups(model, options["weight_decay"])
    return torch.optim.AdamW(groups, lr=lr, betas=tuple(options["betas"]), eps=options["eps"], fused=True)


def _sgd(model: nn.Module, lr: float, options: dict[str, Any]) -> torch.optim.Optimizer:
    return torch.optim.SGD(decay_groups(model, options["weight_decay"]), lr=lr, momentum=options["momentum"])


def _row(  # noqa: PLR0917 (a table reads better without its keywords)
    name: str,
    label: str,
    paper: str,
    formula: str,
    grid: tuple[float, ...],
    source: str,
    options: dict[str, Any],
    **adapter: Any,
) -> Method:
    """A method whose optimizer is a class of a package; `source` is "package module:Class"."""
    package, _, place = source.rpartition(" ")
    build = Adapter(source=place, package=package or None, **adapter)
    paper = f"{paper} ({package or 'torch'}, {place.partition(':')[2]})"
    return Method(
        name=name,
        label=label,
        paper=paper,
        formula=formula,
        grid=grid,
        options=options,
        build=build,
        package=package or None,
    )


def _pytorch_optimizer(kind: str) -> str:
    return f"pytorch-optimizer pytorch_optimizer:{kind}"


def _of_torch() -> Iterator[Method]:
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
    yield _row(
        "nadam",
        "NAdam",
        "Dozat 2016, ICLR workshop",
        "AdamW with Nesterov's momentum",
        (2e-3, 4e-3, 8e-3, 1.6e-2),
        "torch.optim:NAdam",
        {"betas": (0.9, 0.99), "eps": 1e-8, "momentum_decay": 4e-3} | _DECAY,
        fixed={"decoupled_weight_decay": True},
    )
    yield _row(
        "radam",
        "RAdam",
        "Liu et al. 2020, arXiv 1908.03265",
        "AdamW whose first steps are damped by the variance of 1 / sqrt(V)",
        (4e-3, 8e-3, 1.6e-2, 3.2e-2),
        "torch.optim:RAdam",
        {"betas": (0.9, 0.99), "eps": 1e-8} | _DECAY,
        fixed={"decoupled_weight_decay": True},
    )
    yield _row(
        "muon-torch",
        "Muon (torch)",
        "Jordan et al. 2024; scale and decay of Moonlight, arXiv 2502.16982",
        "polar(Nesterov M) in bfloat16 on hidden matrices, fused ones as they are; AdamW on the rest",
        (5e-3, 1e-2, 2e-2, 4e-2),
        "torch.optim:Muon",
        {"momentum": 0.95, "nesterov": True, "ns_steps": 5, "adjust_lr_fn": "match_rms_adamw"}
        | _DECAY
        | _rest(0.3, betas=(0.8, 0.999)),  # as beside our Muon, so that one learning rate means the same
        takes=hidden_matrices,
    )


def _elementwise() -> Iterator[Method]:
    yield _row(
        "adabelief",
        "AdaBelief",
        "Zhuang et al. 2020, arXiv 2010.07468",
        "AdamW with V of G - M",
        (2e-3, 4e-3, 8e-3, 1.6e-2),
        _pytorch_optimizer("AdaBelief"),
        {"betas": (0.9, 0.999), "eps": 1e-12} | _DECAY,
        fixed={"rectify": False},
    )
    yield _row(
        "adamp",
        "AdamP",
        "Heo et al. 2021, arXiv 2006.08217",
        "AdamW less the radial part on weights whose scale does nothing",
        (2e-3, 4e-3, 8e-3, 1.6e-2),
        _pytorch_optimizer("AdamP"),
        {"betas": (0.9, 0.98), "eps": 1e-8, "delta": 0.1, "wd_ratio": 0.1} | _DECAY,
    )
    yield _row(
        "lamb",
        "LAMB",
        "You et al. 2020, arXiv 1904.00962",
        "AdamW times norm(W) / norm(update) of each tensor",
        (8e-3, 1.6e-2, 3.2e-2, 6.4e-2),
        _pytorch_optimizer("Lamb"),
        # Clips the whole gradient to norm 1 itself, as the paper does: without effect under the lab's own clipping.
        {"betas": (0.9, 0.99), "eps": 1e-6, "max_grad_norm": 1.0} | _DECAY,
    )
    yield _row(
        "adan",
        "Adan",
        "Xie et al. 2022, arXiv 2208.06677",
        "averages of G, of its change and of the square of both",
        (4e-3, 8e-3, 1.6e-2, 3.2e-2),
        _pytorch_optimizer("Adan"),
        {"betas": (0.9, 0.92, 0.99), "eps": 1e-8} | _DECAY,
        fixed={"weight_decouple": True},
    )
    yield _row(
        "prodigy",
        "Prodigy",
        "Mishchenko and Defazio 2024, arXiv 2306.06101",
        "AdamW times d, an estimate of the distance to the solution; lr only multiplies it",
        (0.5, 1.0, 2.0),
        "prodigyopt prodigyopt:Prodigy",
        {"betas": (0.9, 0.95), "eps": 1e-8, "d0": 1e-6, "d_coef": 1.0, "safeguard_warmup": True} | _DECAY,
        # The lab warms up; then the package asks for its safeguard, which keeps d from shrinking with the rate.
        fixed={"decouple": True},
    )
    yield _row(
        "schedule-free",
        "Schedule-free AdamW",
        "Defazio et al. 2024, arXiv 2405.15682",
        "AdamW whose weights are averaged; warm-up and then a constant rate",
        (4e-3, 8e-3, 1.6e-2, 3.2e-2),
        "schedulefree schedulefree:AdamWScheduleFree",
        # schedule: of the rate after the workload's warm-up; "workload" for the workload's own.
        {"betas": (0.9, 0.99), "eps": 1e-8, "schedule": "constant"} | _DECAY,
    )
    yield _row(
        "lion-pytorch",
        "Lion (lion-pytorch)",
        "Chen et al. 2023, arXiv 2302.06675",
        "sign(b1 M + (1 - b1) G): an implementation that is not ours",
        (4e-4, 8e-4, 1.6e-3, 3.2e-3),
        "lion-pytorch lion_pytorch:Lion",
        {"betas": (0.9, 0.98)} | _DECAY,
    )
    yield _row(
        "sophia",
        "Sophia",
        "Liu et al. 2023, arXiv 2305.14342, Sophia-G",
        "clip(M / (rho H), 1), H from labels drawn from the model every 10 steps: a second pass in those",
        (5e-4, 1e-3, 2e-3, 4e-3),
        _pytorch_optimizer("SophiaH"),
        # rho: 0.04 of the released training script; the paper has 0.05.
        {"betas": (0.9, 0.99), "eps": 1e-12, "rho": 0.04, "update_period": 10} | _DECAY,
        extend=gauss_newton_bartlett,
    )


def _variance_reduced() -> Iterator[Method]:
    paper, source = "Yuan et al. 2024, arXiv 2411.10438", _pytorch_optimizer("MARS")
    yield _row(
        "mars+adamw",
        "MARS + AdamW",
        paper,
        "AdamW of G + gamma (G - last G) on matrices and embeddings; AdamW on vectors",
        (2e-3, 4e-3, 8e-3, 1.6e-2),
        source,
        {"betas": (0.9, 0.99), "eps": 1e-8, "gamma": 0.025} | _DECAY | _rest(1.0),
        fixed={"mars_type": "adamw"},
        takes=matrices,
    )
    yield _row(
        "mars+lion",
        "MARS + Lion",
        paper,
        "sign of the average of G + gamma (G - last G) on matrices and embeddings; AdamW on vectors",
        (8e-4, 1.6e-3, 3.2e-3, 6.4e-3),
        source,
        {"betas": (0.9, 0.98), "eps": 1e-8, "gamma": 0.025} | _DECAY | _rest(3.0),
        fixed={"mars_type": "lion"},
        takes=matrices,
    )
    yield _row(
        "mars+shampoo",
        "MARS + Shampoo",
        paper,
        "polar(average of G + gamma (G - last G)) on matrices and embeddings; AdamW on vectors",
        (2e-2, 4e-2, 8e-2, 1.6e-1),
        source,
        {"betas": (0.9, 0.99), "eps": 1e-8, "gamma": 0.025} | _DECAY | _rest(0.1),
        fixed={"mars_type": "shampoo"},
        takes=matrices,
    )


def _light() -> Iterator[Method]:
    yield _row(
        "adam8bit",
        "Adam8bit",
        "Dettmers et al. 2022, arXiv 2110.02861",
        "AdamW with both averages in 8 bits, blocks of 256; tensors below min_8bit_size in 32 bits",
        (2e-3, 4e-3, 8e-3, 1.6e-2),
        "bitsandbytes bitsandbytes.optim:AdamW8bit",
        {"betas": (0.9, 0.99), "eps": 1e-8, "min_8bit_size": 4096} | _DECAY,
    )
    yield _row(
        "adam-mini",
        "Adam-mini",
        "Zhang et al. 2024, arXiv 2406.16793",
        "AdamW with one second moment a head of Q and K, a row of other matrices; by names of LLaMA's kind",
        (2e-3, 4e-3, 8e-3, 1.6e-2),
        "adam-mini adam_mini:Adam_mini",
        {"betas": (0.9, 0.99), "eps": 1e-8} | _DECAY,
        groups=by_name,
        fixed={"verbose": False},
    )
    yield _row(
        "adafactor",
        "Adafactor",
        "Shazeer and Stern 2018, arXiv 1804.04235; settings of GaLore",
        "M of G / sqrt(rank-one V), clipped to RMS 1; no relative steps",
        (2e-3, 4e-3, 8e-3, 1.6e-2),
        _pytorch_optimizer("AdaFactor"),
        # The second beta is not used: V decays by 1 - t^-0.8.
        {"betas": (0.9, 0.999), "decay_rate": -0.8, "clip_threshold": 1.0, "eps1": 1e-30} | _DECAY,
        fixed={"scale_parameter": False, "relative_step": False, "momentum_dtype": torch.float32},
    )
    yield _row(
        "came",
        "CAME",
        "Luo et al. 2023, arXiv 2307.02047",
        "Adafactor's M times a rank-one confidence",
        (1.25e-4, 2.5e-4, 5e-4, 1e-3),
        _pytorch_optimizer("CAME"),
        {"betas": (0.9, 0.98, 0.9999), "eps1": 1e-30, "eps2": 1e-16, "clip_threshold": 1.0} | _DECAY,
    )
    # The rank is a quarter of the width of the model `tiny`, as in the paper, and sqrt(scale) makes up for a small one.
    low = {"rank": 16, "scale": 1.0, "update_proj_gap": 200, "proj": "random", "proj_type": "std"}
    channels, whole = {"scale_type": "channel"}, {"scale_type": "tensor"}
    apollo = {"betas": (0.9, 0.99), "eps": 1e-6}
    yield _row(
        "apollo",
        "APOLLO",
        "Zhu et al. 2024, arXiv 2412.05270",
        "G of hidden matrices scaled by channel as AdamW would in a random subspace; AdamW on the rest",
        (1e-2, 2e-2, 4e-2, 8e-2),
        "apollo-torch apollo_torch:APOLLOAdamW",
        apollo | low | channels | _DECAY,
        groups=low_rank(*low, *channels),
        objects=_PROJECTOR,
    )
    yield _row(
        "apollo-mini",
        "APOLLO-Mini",
        "Zhu et al. 2024, arXiv 2412.05270",
        "APOLLO with rank 1 and one scale a matrix",
        (5e-3, 1e-2, 2e-2, 4e-2),
        "apollo-torch apollo_torch:APOLLOAdamW",
        apollo | low | {"rank": 1, "scale": 128.0} | whole | _DECAY,
        groups=low_rank(*low, *whole),
        objects=_PROJECTOR,
    )
    svd = {"rank": 16, "scale": 0.25, "update_proj_gap": 200, "projection_type": "std"}
    yield _row(
        "galore",
        "GaLore",
        "Zhao et al. 2024, arXiv 2403.03507",
        "AdamW of hidden matrices in the leading singular subspace of G; AdamW on the rest",
        (2e-2, 4e-2, 8e-2, 1.6e-1),
        _pytorch_optimizer("GaLore"),
        {"betas": (0.9, 0.999), "eps": 1e-6} | svd | _DECAY,
        groups=low_rank(*svd),
        objects=_SVD,
    )
    yield _row(
        "fira",
        "Fira",
        "Chen et al. 2024, arXiv 2410.01623",
        "GaLore, and what the subspace leaves out scaled like it",
        (5e-3, 1e-2, 2e-2, 4e-2),
        _pytorch_optimizer("Fira"),
        {"betas": (0.9, 0.999), "eps": 1e-6} | svd | _DECAY,
        groups=low_rank(*svd),
        objects=_SVD,
    )


def _preconditioned() -> Iterator[Method]:
    yield _row(
        "shampoo",
        "Shampoo",
        "Gupta et al. 2018, arXiv 1802.09568; blocks and grafting of Anil et al. 2020, arXiv 2002.09018",
        "L^-1/4 M R^-1/4 with root mean square 1, in blocks of 512",
        (2e-3, 4e-3, 8e-3, 1.6e-2),
        _pytorch_optimizer("ScalableShampoo"),
        {
            "betas": (0.9, 0.999),
            "matrix_eps": 1e-6,
            "block_size": 512,
            "start_preconditioning_step": 10,
            "preconditioning_compute_steps": 10,
        }
        | _DECAY,
        fixed={"graft_type": 4, "moving_average_for_momentum": True, "decoupled_weight_decay": True},
        objects=(
            "pytorch_optimizer.optimizer.utils.preconditioner:PreConditioner",
            "pytorch_optimizer.optimizer.utils.preconditioner:PreConditionerType",
            "pytorch_optimizer.optimizer.utils.partition:BlockPartitioner",
            "pytorch_optimizer.optimizer.utils.graft:SQRTNGraft",
        ),
    )
    yield _row(
        "shampoo-ns",
        "Shampoo (Newton-Schulz)",
        "the row of SAC's Table 1, which its code makes of Newton-Schulz steps; MARS without its correction",
        "polar(M) on matrices and embeddings; AdamW on vectors",
        (2e-2, 4e-2, 8e-2, 1.6e-1),
        _pytorch_optimizer("MARS"),
        {"betas": (0.9, 0.999), "eps": 1e-8} | _DECAY | _rest(0.1),
        fixed={"mars_type": "shampoo", "gamma": 0.0},
        takes=matrices,
    )
    yield _row(
        "soap",
        "SOAP",
        "Vyas et al. 2024, arXiv 2409.11321",
        "AdamW in the eigenbasis of Shampoo's factors; the first step only measures",
        (8e-3, 1.6e-2, 3.2e-2, 6.4e-2),
        _pytorch_optimizer("SOAP"),
        {"betas": (0.9, 0.95), "eps": 1e-8, "precondition_frequency": 10, "max_precondition_dim": 10_000} | _DECAY,
    )


def baselines() -> Iterator[Method]:
    """Every method that is not ours."""
    yield from _of_torch()
    yield from _elementwise()
    yield from _variance_reduced()
    yield from _light()
    yield from _preconditioned()
