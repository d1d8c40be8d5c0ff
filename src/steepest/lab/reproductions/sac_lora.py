"""sac-lora: SAC on LoRA adapters of a trained language model: SmolLM2-135M on news, and a tiny model (Table 5)."""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import json
import math
from collections.abc import Mapping
from itertools import islice

import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from torch import nn

from steepest.lab import models
from steepest.lab.config import canonical
from steepest.lab.data import Evaluation, Pack, RunningHash, TokenStream, cache_directory
from steepest.lab.data import prepare as prepare_pack
from steepest.lab.data.smollm2 import load, quietly, smollm2
from steepest.lab.data.stream import Tokens
from steepest.lab.data.synthetic import Synthetic
from steepest.lab.data.tokenizers import ByteTokenizer
from steepest.lab.errors import UserError
from steepest.lab.reproductions import sac_arms
from steepest.lab.reproductions.base import Case, Measure, Report, Results, Setting, Settings, Study
from steepest.lab.reproductions.drawing import color, marker
from steepest.lab.reproductions.sac_arms import Numbers, blocks, factor_range
from steepest.lab.reproductions.sentences import paired, tuning
from steepest.lab.reproductions.small_language_model import token_losses, tuning_folder
from steepest.lab.runs import chain
from steepest.lab.schedules import Schedule, set_rates
from steepest.lab.series import ROLE_PALETTE
from steepest.lab.training import DIVERGED_ABOVE
from steepest.lab.wording import fixed

# The generated languages (seeds of `Synthetic`): one to train the tiny model on, another to fine-tune it to.
_FIRST_LANGUAGE, _SECOND_LANGUAGE = 0, 1
_HELD_OUT = 0.1
_LOWEST = 0.1  # the factor of the control on all that is trained


# The models and their texts


def missing_tiny() -> str:
    """Why nothing of this study can be run here; "" if it can."""
    return "" if importlib.util.find_spec("peft") else "it needs the package peft: pip install peft"


@functools.cache
def missing_smollm2() -> str:
    """Why the trained model or its text is not here and cannot be fetched; "" if both are here now."""
    try:
        news()
    except UserError as error:
        return str(error)
    return missing_tiny()


def news() -> Pack:
    """News articles in the tokens of SmolLM2."""
    folder = smollm2(cache_directory())
    return prepare_pack("news-wiki", tokenizer=str(folder / "tokenizer.json"), max_bytes=2e6, progress=False)


@functools.cache
def generated(language: int, size: int) -> tuple[Tokens, Tokens]:
    """So many bytes of a generated language, to train on and held out: other documents."""
    tokenizer, texts, total = ByteTokenizer(), [], 0
    for document in islice(Synthetic(language).documents(), size):
        (ids,) = tokenizer.encode([document.text])
        texts.append(np.append(ids, tokenizer.end_of_text))
        total += len(ids)
        if total >= size:
            break
    held_out = max(1, round(_HELD_OUT * len(texts)))
    return np.concatenate(texts[held_out:]), np.concatenate(texts[:held_out])


def text(settings: Settings, seed: int) -> tuple[TokenStream, Evaluation]:
    """Batches to fine-tune on, in the order of the seed, and what is held out."""
    length, batch = settings["sequence_length"], settings["batch_size"]
    if settings["model"] == "smollm2":
        pack = news()
        held_out = pack.validation(tokens=settings["validation_tokens"], length=length, batch_size=batch)
        return pack.train(batch_size=batch, length=length, seed=seed), held_out
    train_part, rest = generated(_SECOND_LANGUAGE, settings["pretraining"]["bytes"])
    held_out = Evaluation(rest, wanted=settings["validation_tokens"], length=length, batch_size=batch)
    return TokenStream(train_part, batch_size=batch, length=length, seed=seed), held_out


def trained_model(settings: Settings) -> nn.Module:
    """The model before fine-tuning."""
    if settings["model"] == "smollm2":
        return load(smollm2(cache_directory()))
    pretraining = settings["pretraining"]
    file = tuning_folder() / f"tiny-{hashlib.sha256(canonical(pretraining).encode()).hexdigest()[:24]}.pt"
    model = models.build(pretraining["model"], ByteTokenizer.vocabulary_size, 0)
    if file.exists():
        model.load_state_dict(torch.load(file))
    else:
        _pretrain(model, pretraining)
        unfinished = file.with_suffix(".tmp")
        torch.save(model.state_dict(), unfinished)
        unfinished.replace(file)
    return model


def _pretrain(model: nn.Module, settings: Settings) -> None:
    """Train the tiny model on the first language."""
    train_part, _ = generated(_FIRST_LANGUAGE, settings["bytes"])
    stream = TokenStream(train_part, batch_size=settings["batch_size"], length=settings["sequence_length"], seed=0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=settings["lr"])
    schedule = Schedule(steps=settings["steps"])
    for step in range(settings["steps"]):
        token_losses(model, stream.batch(step)).mean().backward()
        set_rates(optimizer.param_groups, [settings["lr"]], schedule.factor(step))
        optimizer.step()
        optimizer.zero_grad()


def adapted(settings: Settings, seed: int) -> nn.Module:
    """The trained model with LoRA adapters in all its linear layers but the head; only these are trained."""
    rank, model = settings["rank"], trained_model(settings)
    with quietly(), torch.random.fork_rng(devices=[]):
        from peft import LoraConfig, get_peft_model

        torch.manual_seed(seed)
        config = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules="all-linear", task_type="CAUSAL_LM")
        adapters: nn.Module = get_peft_model(model, config)
    return adapters


def prepare(settings: Settings) -> None:
    """Train the tiny model, where workers find it."""
    trained_model({**settings, "model": "tiny"})


# One run


def run(settings: Settings, seed: int, report: Report) -> Mapping[str, float | list[float]]:
    """Tune the learning rate of the arm for the case (once, on a seed of its own), then fine-tune on this seed."""
    numbers, scales = sac_arms.tune_and_train(settings, seed, report, train)
    return {**numbers, **scales, "before": before(settings)}


def train(settings: Settings, lr: float, seed: int, report: Report, factors: sac_arms.Factors | None = None) -> Numbers:
    """Fine-tune once. The seed fixes the adapters and the order of the text.

    Returns:
        The held-out loss ("loss", NaN when it diverged), the number of trained weights ("trained"), and the beginning
        of the hashes of the adapters at the start and of the data as numbers ("weights", "data").
    """
    model, (stream, held_out), steps = adapted(settings, seed), text(settings, seed), settings["steps"]
    own = {name: p for name, p in model.named_parameters() if p.requires_grad}
    weights = functools.reduce(lambda digest, item: chain(f"{digest}{item[0]}", item[1].reshape(-1)), own.items(), "")
    optimizer = sac_arms.build(settings, lr)(model)
    observe = factors.watch(model, optimizer) if factors is not None else None
    rates, schedule = [float(group["lr"]) for group in optimizer.param_groups], Schedule(steps=steps)
    seen, highest, diverged = RunningHash(), math.inf, False
    for step in range(steps):
        report(step / steps)
        batch = stream.batch(step)
        seen.update(stream.indices(step), batch)
        loss = token_losses(model, batch).mean()
        if not loss.item() <= highest:  # also true of NaN
            diverged = True
            break
        highest = loss.item() + DIVERGED_ABOVE if step == 0 else highest
        loss.backward()
        if observe is not None:
            observe(step)
        set_rates(optimizer.param_groups, rates, schedule.factor(step))
        optimizer.step()
        optimizer.zero_grad()
    return {
        "loss": math.nan if diverged else mean_loss(model, held_out),
        "trained": float(sum(p.numel() for p in own.values())),
        "weights": float(int(weights[:8], 16)),
        "data": float(int(str(seen)[:8], 16)),
    }


@torch.no_grad()
def mean_loss(model: nn.Module, held_out: Evaluation) -> float:
    """Mean loss over the held-out tokens."""
    return float(torch.cat([token_losses(model, batch) for batch in held_out]).double().mean())


def before(settings: Settings) -> float:
    """The held-out loss without fine-tuning."""
    keys = ("model", "pretraining", "batch_size", "sequence_length", "validation_tokens")
    return _before(canonical({key: settings[key] for key in keys}))


@functools.cache
def _before(settings_json: str) -> float:
    settings = json.loads(settings_json)
    return mean_loss(trained_model(settings), text(settings, 0)[1])


# What the numbers say


def findings(results: Results) -> list[str]:
    """Whether fine-tuning does anything, SAC against AdamW and the control, what the control is here, the factors."""
    found = [paired(results)]
    for case in results.cases:
        found += [tuning(results, case), _gain(results, case)]
        if len(results.seeds) > 1:
            found.append(sac_arms.control(results, case, "adamw", "sac", "constant"))
        found += [f"Factors of SAC, and their geometric mean: {factor_range(results, case)}."]
        found += _control_is_a_rate(results, case)
    return found


def _gain(results: Results, case: Case) -> str:
    """The loss before and after."""
    measure, base = results.study.measures[0], results.study.arm(results.study.baseline)
    first = results.values(case, base, "before")[results.seeds[0]]
    after = results.summary(case, base, measure).mean
    return f"{case.label}: {fixed(first, 4)} before fine-tuning, {fixed(after, 4)} after it with {base.label}."


def _control_is_a_rate(results: Results, case: Case) -> list[str]:
    """Constant factors on adapters are AdamW at a lower rate: compare the tuning runs that should be equal."""
    adamw, constant = (results.cells[case.name, name, results.seeds[0]].series for name in ("adamw", "constant"))
    gaps = [
        abs(a - b)
        for low, a in zip(adamw["grid"], adamw["trials"], strict=True)
        for high, b in zip(constant["grid"], constant["trials"], strict=True)
        if low and high and a and b and math.isclose(low, _LOWEST * high)  # a run that diverged has no loss
    ]
    if not gaps:
        return []
    same = "are the same" if not any(gaps) else f"differ by at most {max(gaps):.1g}"
    return [
        f"{case.label}: all that is trained is in hidden layers, so that constant factors of {_LOWEST:g} are nothing "
        f"but a lower rate: in tuning the losses of the control and of AdamW at {_LOWEST:g} times its rate {same}."
    ]


def draw_differences(figure: Figure, results: Results) -> None:
    """Held-out loss minus that of AdamW: a panel per case, a row per arm."""
    measure, base = results.study.measures[0], results.study.arm(results.study.baseline)
    arms = [arm for arm in results.study.arms if arm != base]
    figure.set_size_inches(4.2 * len(results.cases) + 1.6, 0.4 * len(arms) + 1.3)
    panels = figure.subplots(1, len(results.cases), sharey=True, squeeze=False)[0]
    for ax, case in zip(panels, results.cases, strict=True):
        for place, arm in enumerate(arms):
            c = results.comparison(case, arm, measure) if arm in results.study.arms_of(case) else None
            if c is not None and c.n:
                ax.hlines(place, c.low, c.high, color=color(results, arm), linewidth=2.0)
                ax.plot(
                    c.difference, place, marker(results, arm), color=color(results, arm), markeredgecolor="white",
                    markersize=8, zorder=4,
                )  # fmt: skip
        ax.axvline(0.0, color="#9aa1ab", linewidth=1.0, zorder=1)
        ax.set_title(case.label)
        ax.set_xlabel(f"{measure.label} minus that of {base.label} ({measure.unit})")
        ax.xaxis.set_major_locator(MaxNLocator(4))
        ax.grid(axis="y", visible=False)
    panels[0].set_yticks(range(len(arms)), [arm.label for arm in arms])
    panels[0].set_ylim(len(arms) - 0.5, -0.5)


def draw_factors(figure: Figure, results: Results) -> None:
    """The last factors of SAC by layer: a panel per case, a line per block."""
    figure.set_size_inches(4.2 * len(results.cases) + 0.8, 3.6)
    panels = figure.subplots(1, len(results.cases), sharey=True, squeeze=False)[0]
    sac = results.study.arm("sac")
    for ax, case in zip(panels, results.cases, strict=True):
        lines: dict[str, list[tuple[int, float]]] = {}
        for key in blocks(results, case):
            _, layer, block = key.split(maxsplit=2)
            last = results.series(case, sac, key)[:, -1:]
            lines.setdefault(block, []).append((int(layer), float(np.nanmedian(last)) if last.size else math.nan))
        for (block, points), shades in zip(lines.items(), ROLE_PALETTE[::3], strict=False):
            ax.plot(*zip(*points, strict=True), "o-", color=shades[0], markersize=4, label=block)
        ax.axhline(1.0, color="#9aa1ab", linewidth=1.0, zorder=1)
        ax.set_title(case.label)
        ax.set_xlabel("layer")
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    panels[0].set_ylabel("factor of SAC at the end")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4)


# The study

STUDY = Study(
    name="sac-lora",
    title="SAC on LoRA adapters",
    paper="SAC, OpenReview EB92tITeNq (ICLR 2026 submission), Table 5",
    claim=(
        "on LLaMA-7B, LoRA with SAC reaches a mean of 77.7 % on eight commonsense tasks, with AdamW 74.7 %; SGG 77.6 %."
    ),
    about=(
        "LoRA freezes a trained model and learns two thin matrices beside each of its weights; the second begins at "
        "zero, so that at first the first has no gradient. Only adapters in hidden layers are trained here: no "
        "embedding, head or norm, whose different gradients are half of what SAC evens out elsewhere.\n\n"
        "SmolLM2-135M-Instruct (30 layers, out of a published Python package) is fine-tuned on news articles of 2016 "
        "and 2017 for 20 steps. A tiny model (4 layers, 0.25 million weights) is trained for a minute on a generated "
        "language and fine-tuned to another one, with other words; this case needs no download. Rank 8 on all linear "
        "layers but the head. The control has constant factors, 0.1 for all that is trained."
    ),
    proxies=(
        "135 million and 0.25 million weights, and the loss on held-out text; the paper has 7 billion and the accuracy "
        "on eight tasks, rank 32, rate 1e-4, batches of 32 and three epochs of 170 thousand examples.",
        "20 steps of 256 tokens with SmolLM2: differences are those of the first minutes of a fine-tuning.",
        "The weights of SmolLM2 come rounded to 4 bits, and its held-out loss is of 1,024 tokens.",
        "The paper does not say how it splits adapters into layers and blocks, nor its gamma, beta, rho and interval; "
        "here an adapter is where its weight is, and statistics are made every 5 steps.",
        "The fine-tuning preset has the only bounds that the paper gives for AdamW, (0.5, 1.0), for LLaVA (Table A3); "
        "of its interval of 500 steps nothing would be left here, so it is 5, too.",
        "Rates are tuned on one seed, by the held-out loss.",
    ),
    cases=(
        Case(
            "smollm2",
            "SmolLM2-135M on news",
            {
                **{"model": "smollm2", "steps": 20, "batch_size": 2, "sequence_length": 128},
                **{"validation_tokens": 1_024, "grid": [1e-3, 3e-3, 1e-2, 3e-2]},
            },
            arms=("adamw", "sac", "constant"),
            missing=missing_smollm2,
        ),
        Case("tiny", "tiny model on a second language", {"model": "tiny"}, missing=missing_tiny),
    ),
    arms=(
        sac_arms.arm("adamw", "AdamW", "betas 0.9 and 0.99, no decay", "adamw"),
        sac_arms.arm("sac", "SAC+AdamW", "Equations 4 to 9, gamma and beta 0.5", "adamw", "sac", interval=5),
        sac_arms.arm("constant", "Constant factors", "0.1 for all adapters", "adamw", "constant"),
        sac_arms.arm(
            "sft",
            "SAC+AdamW (paper-sft)",
            "Algorithm 1 with bounds 0.5 and 1",
            "adamw",
            "sac",
            mode="paper-sft",
            interval=5,
        ),
        sac_arms.arm(
            "sgg", "SGG+AdamW", "three clusters of the momentum, anew every 5 steps", "adamw", "sgg", recluster=5
        ),
    ),
    baseline="adamw",
    measures=(
        Measure(key="loss", label="held-out loss", unit="nats per token", digits=4),
        sac_arms.RATE,
        sac_arms.FACTOR,
    ),
    settings={
        "steps": Setting(60, "ours"),
        "batch_size": Setting(8, "ours"),
        "sequence_length": Setting(64, "ours"),
        "validation_tokens": Setting(8_192, "ours"),
        "rank": Setting(8, "ours; lora_alpha is twice that"),
        "grid": Setting(
            [1e-3, 3e-3, 1e-2, 3e-2, 1e-1], "ours: rates that are tried; wide, for the control needs ten times more"
        ),
        "growths": sac_arms.GROWTHS,
        "pretraining": Setting(
            {
                "model": {"preset": "tiny", "num_hidden_layers": 4},
                **{"bytes": 1_000_000, "steps": 600, "batch_size": 16, "sequence_length": 64, "lr": 4e-3},
            },
            "ours: how the tiny model is made, LLaMA of width 64 on bytes; the second language has as many",
        ),
    },
    run=run,
    seeds=3,
    minutes=8,
    quick={
        **{"steps": 6, "validation_tokens": 512, "grid": [1e-3, 1e-2], "growths": 0},
        "pretraining": {
            "model": {"preset": "tiny", "hidden_size": 16, "intermediate_size": 24, "head_dim": 8},
            **{"bytes": 20_000, "steps": 20, "batch_size": 4, "sequence_length": 64, "lr": 4e-3},
        },
    },
    quick_cases=("tiny",),
    findings=findings,
    figures={
        "differences": ("Held-out loss minus that of AdamW, paired by seed, with 95 % intervals.", draw_differences),
        "factors": ("Factors of SAC at the end of the run by layer, median over seeds.", draw_factors),
    },
    prepare=prepare,
)
