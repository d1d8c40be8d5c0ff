"""sac-vision: SAC on small DeiT, Swin, ConvNeXt and ResNet models, on digits and on Fashion-MNIST (Table 2)."""

from __future__ import annotations

import functools
import hashlib
import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from steepest.lab.data.images import Images, Split, imbalanced_split, load_images
from steepest.lab.data.storage import cache_directory
from steepest.lab.errors import UserError
from steepest.lab.reproductions import sac_arms
from steepest.lab.reproductions.base import Arm, Case, Measure, Report, Results, Setting, Settings, Study
from steepest.lab.reproductions.drawing import color, marker
from steepest.lab.reproductions.sac_arms import Numbers, blocks, factor_range
from steepest.lab.reproductions.sentences import paired
from steepest.lab.reproductions.small_language_model import tuning_folder
from steepest.lab.runs import weights_hash
from steepest.lab.schedules import Schedule, set_rates
from steepest.lab.series import ROLE_PALETTE
from steepest.lab.statistics import compare, holm
from steepest.lab.wording import listing, plural, signed

# Side of the images as the models see them; those of Fashion-MNIST (28) get a black frame.
SIDES = {"digits": 8, "fashion-mnist": 32}
_SETS = {"digits": "digits", "fashion-mnist": "Fashion-MNIST"}
_TESTED_AT_ONCE = 500
# Narrow models begin too near zero with the usual 0.02; this is 0.02 sqrt(768 / width), as in `lab.models`.
_INITIAL = 0.08

# Name -> (classes in transformers begin with, in tables, options). Patches are a part of the side of the image.
MODELS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "deit": (
        "DeiT",
        "DeiT",
        {"hidden_size": 48, "num_hidden_layers": 3, "num_attention_heads": 3, "intermediate_size": 192, "patches": 4},
    ),
    "swin": (
        "Swin",
        "Swin",
        {
            **{"embed_dim": 24, "depths": [1, 2], "num_heads": [2, 4], "window_size": 4, "mlp_ratio": 2.0},
            **{"drop_path_rate": 0.0, "patches": 8},
        },
    ),
    "convnext": (
        "ConvNext",
        "ConvNeXt",
        {
            **{"num_stages": 2, "hidden_sizes": [24, 48], "depths": [1, 2]},
            **{"drop_path_rate": 0.0, "layer_scale_init_value": 0.1, "patches": 8},
        },
    ),
    "resnet": (
        "ResNet",
        "ResNet",
        {"embedding_size": 16, "hidden_sizes": [32, 64], "depths": [1, 2], "layer_type": "bottleneck"},
    ),
}

# What the paper calls a block, and its colour.
_KINDS = {
    **{"embedding": "tokenizer", "attention": "token mixer", "conv": "token mixer"},
    **{"mlp": "channel mixer", "head": "head"},
}
_COLORS = {
    kind: ROLE_PALETTE[index][0]
    for kind, index in (("tokenizer", 0), ("token mixer", 2), ("channel mixer", 4), ("head", 3))
}


# One run


def run(settings: Settings, seed: int, report: Report) -> Mapping[str, float | list[float]]:
    """Tune the learning rate of the arm for the case (once, on a seed of its own), then train at it on this seed."""
    numbers, scales = sac_arms.tune_and_train(settings, seed, report, train)
    return numbers | (scales if settings["wrapper"] == "sac" else {})


def train(settings: Settings, lr: float, seed: int, report: Report, factors: sac_arms.Factors | None = None) -> Numbers:
    """Train once. The seed fixes the split of the images, the initial weights and the batches.

    Returns:
        Accuracy in percent and loss on the test images (NaN when it diverged), and the beginning of the hashes of the
        initial weights and of the images read as numbers ("weights", "data").
    """
    split, steps = task(settings, seed), settings["steps"]
    model = network(settings["model"], settings["images"], seed)
    weights, seen = weights_hash(model), hashlib.sha256()
    optimizer = sac_arms.build(settings, lr)(model)
    observe = factors.watch(model, optimizer) if factors is not None else None
    rates, schedule = [float(group["lr"]) for group in optimizer.param_groups], Schedule(steps=steps)
    pixels, labels = pictures(split.train), torch.from_numpy(split.train.labels)
    order = torch.Generator().manual_seed(seed)
    numbers: Numbers = {"accuracy": math.nan, "loss": math.nan, "weights": float(int(weights[:8], 16))}
    model.train()
    for step in range(steps):
        if step % 10 == 0:
            report(step / steps)
        batch = torch.randint(len(labels), (settings["batch"],), generator=order)
        seen.update(pixels[batch].numpy().tobytes())
        loss = nn.functional.cross_entropy(model(pixels[batch]).logits, labels[batch])
        if not math.isfinite(loss.item()):
            break
        optimizer.zero_grad()
        loss.backward()
        if observe is not None:
            observe(step)
        set_rates(optimizer.param_groups, rates, schedule.factor(step))
        optimizer.step()
    else:
        numbers |= scores(model, split.test)
    return {**numbers, "data": float(int(seen.hexdigest()[:8], 16))}


def network(name: str, images: str, seed: int) -> nn.Module:
    """A small model of transformers for one-channel images and ten classes; its weights follow from the seed."""
    import transformers

    prefix, _, options = MODELS[name]
    options = {**options, "num_channels": 1, "num_labels": 10}
    if patches := options.pop("patches", None):
        options |= {"patch_size": SIDES[images] // patches, "initializer_range": _INITIAL}
    if name in ("deit", "swin"):
        # torch's fused attention is slower than plain matmuls at these sizes.
        options |= {"image_size": SIDES[images], "attn_implementation": "eager"}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        config = getattr(transformers, f"{prefix}Config")(**options)
        model: nn.Module = getattr(transformers, f"{prefix}ForImageClassification")(config)
    return model


def task(settings: Settings, seed: int) -> Split:
    """The images of a seed: as many of each class, in both parts."""
    images = _images(settings["images"])
    return imbalanced_split(images, ratio=1, largest=settings["largest"], test=settings["test"], seed=seed)


@functools.lru_cache(maxsize=2)
def _images(name: str) -> Images:
    return load_images(name, cache_directory())


def pictures(images: Images) -> Tensor:
    """Images as (images, 1, side, side), centred on zero."""
    pixels = torch.from_numpy(images.pixels)
    side, wanted = math.isqrt(pixels.shape[1]), SIDES[images.name]
    frame = (wanted - side) // 2
    return nn.functional.pad(pixels.view(-1, 1, side, side), [frame] * 4) * 2.0 - 1.0


@torch.no_grad()
def scores(model: nn.Module, test: Images) -> Numbers:
    """Accuracy in percent and mean loss on the test images."""
    model.eval()
    logits = torch.cat([model(part).logits for part in pictures(test).split(_TESTED_AT_ONCE)])
    labels = torch.from_numpy(test.labels)
    right = (logits.argmax(1) == labels).double().mean()
    return {"accuracy": 100.0 * float(right), "loss": float(nn.functional.cross_entropy(logits, labels))}


def prepare(settings: Settings) -> None:
    """Make the place where workers share what they tune."""
    tuning_folder()


@functools.cache
def fashion_missing() -> str:
    """Why Fashion-MNIST is not here and cannot be fetched; "" if it is here now."""
    try:
        _images("fashion-mnist")
    except UserError as error:
        return str(error)
    return ""


# What the numbers say


def findings(results: Results) -> list[str]:
    """Every wrapper against AdamW and SAC against the constant control, over all cases; factors; rates at an edge."""
    accuracy, loss = results.study.measures[:2]
    found = [paired(results)]
    if len(results.seeds) > 1:
        pairs = (
            ("sac", "adamw"),
            ("constant", "adamw"),
            ("sac", "constant"),
            ("algorithm1", "adamw"),
            ("sgg", "adamw"),
        )
        found += [over_cases(results, *pair, accuracy) for pair in pairs]
        found += [over_cases(results, *pair, loss) for pair in pairs[:3]]
        found.append(_published_gains(results))
    return [*found, _factors(results), _edges(results)]


def over_cases(results: Results, name: str, other: str, measure: Measure) -> str:
    """One arm against another in every case, corrected for having asked in each, and in the mean over the cases."""
    arm, base = results.study.arm(name), results.study.arm(other)
    cases = [case for case in results.cases if all(one in results.study.arms_of(case) for one in (arm, base))]
    compared = [results.comparison(case, arm, measure, base) for case in cases]
    adjusted = holm([math.nan if c is None else c.p for c in compared])
    groups: dict[str, list[str]] = {"better": [], "worse": [], "not decided": []}
    for case, c, p in zip(cases, compared, adjusted, strict=True):
        word = results.verdict(case, arm, measure, base) if p < 0.05 else "not decided"
        groups[word].append(f"{case.label} ({signed(math.nan if c is None else c.difference, measure.digits)})")
    told = "; ".join(f"{word}: {listing(labels)}" for word, labels in groups.items() if labels)
    means = [
        {
            seed: float(np.mean([results.values(case, one, measure.key)[seed] for case in cases]))
            for seed in results.seeds
        }
        for one in (arm, base)
    ]
    average = measure.difference(compare(*means))
    return (
        f"{arm.label} minus {base.label}, {measure.title}: {average} in the mean over {plural(len(cases), 'case')}; "
        f"one by one, with Holm's correction, {told}."
    )


def _published_gains(results: Results) -> str:
    """The paper's gain of SAC over AdamW beside ours."""
    measure, sac, base = results.study.measures[0], results.study.arm("sac"), results.study.arm("adamw")
    told = []
    for case in results.cases:
        theirs = PUBLISHED[case.settings["model"]]
        ours = results.comparison(case, sac, measure)
        told.append(
            f"{case.label} {signed(theirs['sac'] - theirs['adamw'], 2)} there and "
            f"{signed(math.nan if ours is None else ours.difference, 2)} here"
        )
    return f"Gain of SAC over {base.label} in points of accuracy, the paper's on its own images: {'; '.join(told)}."


def _factors(results: Results) -> str:
    """What the factors of SAC were in each case."""
    told = [text for case in results.cases if (text := factor_range(results, case))]
    return (
        "Factors of SAC over all blocks and steps, and their geometric mean over hidden matrices (below 1, SAC also "
        f"lowers the rate of the model): {'; '.join(told)}."
    )


def _edges(results: Results) -> str:
    """The arms whose rate lies at the edge of the grid."""
    found = [
        f"{arm.label} on {case.label} ({results.cells[case.name, arm.name, results.seeds[0]].numbers['rate']:g})"
        for case in results.cases
        for arm in results.study.arms_of(case)
        if results.cells[case.name, arm.name, results.seeds[0]].numbers["edge"]
    ]
    told = f"on the edge of the grid, so perhaps not at their best: {listing(found)}" if found else "none on its edge"
    grid = ", ".join(f"{lr:g}" for lr in results.settings["grid"].value) + "; beyond, where the best lay on an edge"
    return f"Each arm has in each case the best of the same rates ({grid}), by the test loss on another seed; {told}."


def draw_differences(figure: Figure, results: Results) -> None:
    """Accuracy minus that of AdamW: a panel per set of images, the models along x."""
    shown = [name for name in SIDES if any(case.settings["images"] == name for case in results.cases)]
    figure.set_size_inches(5.0 * len(shown) if len(shown) > 1 else 6.6, 4.6)
    panels = figure.subplots(1, len(shown), squeeze=False)[0]
    measure, base = results.study.measures[0], results.study.arm(results.study.baseline)
    arms = [arm for arm in results.study.arms if arm != base]
    for ax, name in zip(panels, shown, strict=True):
        cases = [case for case in results.cases if case.settings["images"] == name]
        for index, arm in enumerate(arms):
            shade, sign = color(results, arm), marker(results, arm)
            for place, case in enumerate(cases):
                c = results.comparison(case, arm, measure) if arm in results.study.arms_of(case) else None
                if c is None or not c.n:
                    continue
                x = place + 0.6 * ((index + 0.5) / len(arms) - 0.5)
                ax.vlines(x, c.low, c.high, color=shade, zorder=3)
                ax.plot(x, c.difference, sign, color=shade, markeredgecolor="white", zorder=4)
            ax.plot([], [], sign, color=shade, label=arm.label)
        ax.axhline(0.0, color="#9aa1ab", linewidth=1.0, zorder=1)
        ax.set_xticks(range(len(cases)), [MODELS[case.settings["model"]][1] for case in cases])
        ax.set_title(_SETS[name])
        ax.grid(axis="x", visible=False)
    panels[0].set_ylabel(f"{measure.label} minus that of {base.label} (points)")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=2 * len(shown))


def draw_factors(figure: Figure, results: Results) -> None:
    """The factors of SAC over training: a panel per model, a line per layer and block (the larger set of images)."""
    last = results.cases[-1].settings["images"]
    cases = [case for case in results.cases if case.settings["images"] == last]
    figure.set_size_inches(2.9 * len(cases) + 0.8, 4.2)
    panels = figure.subplots(1, len(cases), sharey=True, squeeze=False)[0]
    sac = results.study.arm("sac")
    for ax, case in zip(panels, cases, strict=True):
        keys = blocks(results, case)
        deepest = max((int(key.split()[1]) for key in keys), default=0)
        for key in keys:
            _, layer, block = key.split(maxsplit=2)
            lines, steps = results.series(case, sac, key), results.series(case, sac, "step")
            if lines.size:
                # Deeper layers are darker.
                ax.plot(
                    steps[0], np.nanmedian(lines, axis=0), color=_COLORS[_KINDS[block]], linewidth=1.4,
                    alpha=0.5 + 0.5 * max(int(layer), 0) / max(deepest, 1),
                )  # fmt: skip
        ax.axhline(1.0, color="#9aa1ab", linewidth=1.0, zorder=1)
        ax.set_yscale("log", base=2)
        ax.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
        ax.set_title(MODELS[case.settings["model"]][1])
        ax.set_xlabel("step")
        ax.margins(x=0)
    panels[0].set_ylabel("factor of SAC")
    for kind, shade in _COLORS.items():
        panels[0].plot([], [], color=shade, label=kind)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(_COLORS))


# The study

# Table 2, top-1 in percent: CIFAR-100 (DeiT-S, Swin-T, ConvNeXt-T) and ImageNet-1K (ResNet-50).
PUBLISHED = {
    "deit": {"adamw": 72.15, "sac": 76.05},
    "swin": {"adamw": 81.30, "sac": 83.43},
    "convnext": {"adamw": 83.52, "sac": 84.58},
    "resnet": {"adamw": 79.88, "sac": 80.12},
}


def _arm(name: str, label: str, text: str, wrapping: str = "bare", **options: Any) -> Arm:
    """An AdamW arm with the averages of AdamW's authors and the decay of the paper's vision baselines."""
    made = sac_arms.arm(name, label, text, "adamw", wrapping, **options)
    return replace(
        made,
        settings={
            **made.settings,
            "options": {**made.settings["options"], "betas": [0.9, 0.999], "weight_decay": 0.05},
        },
    )


def _case(images: str, model: str) -> Case:
    sizes = {"digits": {"largest": 124, "test": 50}, "fashion-mnist": {"largest": 2_000, "test": 200}}
    return Case(
        f"{images}-{model}",
        f"{MODELS[model][1]}, {_SETS[images]}",
        {"images": images, "model": model, **sizes[images]},
        arms=() if images == "digits" else ("adamw", "sac", "algorithm1", "constant"),
        missing=fashion_missing if images == "fashion-mnist" else lambda: "",
    )


STUDY = Study(
    name="sac-vision",
    title="SAC on image classification",
    paper="SAC, OpenReview EB92tITeNq (ICLR 2026 submission), Table 2",
    claim=(
        "SAC+AdamW is better than AdamW on every backbone: by 3.90, 2.13 and 1.06 points of accuracy on CIFAR-100 "
        "(DeiT-S, Swin-T, ConvNeXt-T) and by 0.24 on ImageNet-1K (ResNet-50)."
    ),
    about=(
        "SAC scales the step of each layer and block by how its gradients are dispersed. Four kinds of network "
        "classify small images: DeiT (attention), Swin (attention in windows), ConvNeXt (depthwise convolutions) and "
        "ResNet (convolutions), with 14 to 90 thousand weights, from the classes of transformers.\n\n"
        "Beside AdamW and SAC stand the paper's other description (Algorithm 1, which also lowers the rate of the "
        "whole model), and a control: constant factors, 0.1 for hidden matrices and head and 1 for all else, the "
        "pattern at which the authors' released code ends. What SAC gains only counts as its own if the control does "
        "not gain it. "
        "On the digits there is SGG, too, which scales by clusters of the momentum. Every arm has, in every case, the "
        "best of the same learning rates."
    ),
    proxies=(
        "The images are the 1,797 digits of scikit-learn (8 x 8 pixels) and 20,000 of Fashion-MNIST (28 x 28 in a "
        "frame of 32 x 32); the paper has CIFAR-100 for 200 epochs and ImageNet-1K for 300, and models of 22 to 29 "
        "million weights. No accuracy here can be compared with the paper's, only the sign of a gain.",
        "200 steps of 32 images without augmentation: five epochs of the digits, a third of one of Fashion-MNIST.",
        "The paper gives no rate, decay, bounds or interval for SAC on images, and no value of gamma, beta and rho at "
        "all; ours are the defaults of steepest.SAC, with statistics every 10 steps for Algorithm 1, too.",
        "The paper's AdamW on CIFAR-100 is a number of another benchmark (rate 5e-4 or 2e-4, decay 0.05); here its "
        "rate is tuned, the decay is 0.05 for all. The decay does not take the factors of SAC; under SGG it does.",
        "ConvNeXt begins with layer scales of 0.1, not 1e-6, with which its blocks would do nothing in so short a run; "
        "drop path is off.",
        "Rates are tuned on one seed with its own split; images tested there may be trained on under another seed.",
    ),
    cases=tuple(_case(images, model) for images in SIDES for model in MODELS),
    arms=(
        _arm("adamw", "AdamW", "betas 0.9 and 0.999, decay 0.05"),
        _arm("sac", "SAC+AdamW", "Equations 4 to 9, gamma and beta 0.5, statistics every 10 steps", "sac"),
        _arm("algorithm1", "SAC+AdamW (Alg. 1)", "the paper's Algorithm 1 with bounds 0.1 and 10", "algorithm1"),
        _arm("constant", "Constant factors", "0.1 for hidden matrices and head, 1 for all else", "constant"),
        _arm(
            "sgg",
            "SGG+AdamW",
            "three clusters of the momentum in each weight, anew every 25 steps",
            "sgg",
            recluster=25,
        ),
    ),
    baseline="adamw",
    measures=(
        Measure(key="accuracy", label="accuracy", unit="%", better="higher", digits=2),
        Measure(key="loss", label="test loss", unit="nats", digits=4),
        sac_arms.RATE,
        sac_arms.FACTOR,
    ),
    settings={
        "steps": Setting(200, "ours"),
        "batch": Setting(32, "ours"),
        "grid": Setting(
            [1e-3, 3e-3, 1e-2, 3e-2, 1e-1], "ours: rates that are tried; wide, for the control needs ten times more"
        ),
        "growths": sac_arms.GROWTHS,
    },
    run=run,
    seeds=5,
    minutes=8,
    quick={"steps": 30, "grid": [3e-3, 1e-2], "growths": 0},
    quick_cases=tuple(f"digits-{model}" for model in MODELS),
    references={
        (f"{images}-{model}", arm): {"accuracy": value}
        for images in SIDES
        for model, numbers in PUBLISHED.items()
        for arm, value in numbers.items()
    },
    reference_source="Paper, other images",
    reference_note=(
        "The last column is the paper's Table 2: top-1 accuracy of DeiT-S, Swin-T and ConvNeXt-T on CIFAR-100 (200 "
        "epochs) and of ResNet-50 on ImageNet-1K (300 epochs), other models on other images."
    ),
    findings=findings,
    figures={
        "differences": ("Accuracy minus that of AdamW, paired by seed, with 95 % intervals.", draw_differences),
        "factors": (
            "Factors of SAC by layer and block over training, median over seeds; darker lines are deeper layers.",
            draw_factors,
        ),
    },
    prepare=prepare,
)
