"""softsign-imbalance: macro-F1 on images whose classes differ in size, over many seeds (Figure 3 of the paper)."""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Callable, Mapping

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import nn

from steepest.lab import methods, schedules
from steepest.lab.config import MethodConfig, canonical
from steepest.lab.data.images import Images, Split, imbalanced_split, load_images
from steepest.lab.data.storage import cache_directory
from steepest.lab.reproductions.base import TUNING_SEED, Arm, Case, Measure, Report, Results, Setting, Settings, Study
from steepest.lab.reproductions.drawing import color, marker
from steepest.lab.statistics import Comparison, compare, holm
from steepest.lab.studies import choose
from steepest.lab.wording import listing, plural, rate

RATIOS = (1, 10, 20, 50, 100)
RATES = ("constant", "cosine")
_RAREST = 3  # classes in the measure of the tail
_HEAVY = 100  # where the paper's order turns
_END = 0.02  # the part of the run whose steps are measured
_CHECK_EVERY = 100

Numbers = dict[str, float]
Interval = tuple[float, float, float]  # mean, low, high


def run(settings: Settings, seed: int, report: Report) -> Mapping[str, float]:
    """Tune the learning rate of the arm for its schedule (once a process), then train with it."""
    lr, edge = tuned(canonical({key: value for key, value in settings.items() if key != "ratio"}))
    return train(settings, lr, seed, report) | {"rate": lr, "edge": float(edge)}


@functools.cache
def tuned(settings_json: str) -> tuple[float, bool]:
    """Choose the learning rate with the best macro-F1, averaged over the tuning seeds at every tuning ratio.

    One rate for all ratios: tuned for each alone, on as many runs, arms that hardly differ got rates a factor 2 apart,
    and the luck of that draw was ten times the difference between the arms.

    Args:
        settings_json: the settings without "ratio", as JSON so that the choice can be remembered.

    Returns:
        The rate, and whether it lies on the edge of the grid.
    """
    settings = json.loads(settings_json)
    seeds = range(TUNING_SEED, TUNING_SEED + settings["tuning_seeds"])
    tasks = [{**settings, "ratio": ratio} for ratio in settings["tuning_ratios"]]
    means = {lr: float(np.mean([train(t, lr, s)["f1"] for t in tasks for s in seeds])) for lr in settings["grid"]}
    losses = {lr: -score if math.isfinite(score) else None for lr, score in means.items()}
    best, edge, _ = choose(settings["grid"], losses)
    return settings["grid"][0] if best is None else best, edge


def train(settings: Settings, lr: float, seed: int, report: Report = lambda fraction: None) -> Numbers:
    """Train once. The seed fixes the images, the order of the classes, the initial weights and the batches.

    Returns:
        Macro-F1 of all classes ("f1") and of the three rarest ones ("tail"), in percent, the loss on the training
        images ("loss"), and the mean size of the last 2 % of the steps in units of the learning rate ("step": at most 1
        for sign steps); NaN when it diverged.
    """
    split = task(settings, seed)
    model = network(settings, split, seed)
    pixels, labels = torch.from_numpy(split.train.pixels), torch.from_numpy(split.train.labels)
    steps = settings["steps"]
    method = MethodConfig(name=settings["method"], lr=lr, options={"weight_decay": 0.0, **settings["options"]})
    optimizer = methods.build(method, model, steps)
    base = [float(group["lr"]) for group in optimizer.param_groups]
    schedule = schedules.Schedule(kind=settings["schedule"], steps=steps, warmup=0.0)
    end = steps - max(1, round(_END * steps))
    path = rates = 0.0
    for step, batch in enumerate(batches(settings, len(labels), seed)):
        schedules.set_rates(optimizer.param_groups, base, schedule.factor(step))
        loss = nn.functional.cross_entropy(model(pixels[batch]), labels[batch])
        if not math.isfinite(loss.item()):
            return dict.fromkeys(("f1", "tail", "loss", "step"), math.nan)
        optimizer.zero_grad()
        loss.backward()
        if step < end:
            optimizer.step()
        else:
            before = nn.utils.parameters_to_vector(model.parameters()).detach().clone()
            optimizer.step()
            path += float((nn.utils.parameters_to_vector(model.parameters()).detach() - before).abs().mean())
            rates += lr * schedule.factor(step)
        if step % _CHECK_EVERY == 0:
            report(step / steps)
    return {**scores(model, split), "step": path / rates}


def task(settings: Settings, seed: int) -> Split:
    """The images of a seed."""
    return imbalanced_split(
        _images(settings["images"]),
        ratio=settings["ratio"],
        largest=settings["largest"],
        test=settings["test"],
        seed=seed,
    )


@functools.lru_cache(maxsize=1)
def _images(name: str) -> Images:
    return load_images(name, cache_directory())


def network(settings: Settings, split: Split, seed: int) -> nn.Module:
    """A perceptron with one hidden layer; its weights follow from the seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        width, inputs, classes = settings["width"], split.train.pixels.shape[1], split.train.classes
        return nn.Sequential(nn.Linear(inputs, width), nn.ReLU(), nn.Linear(width, classes))


def batches(settings: Settings, images: int, seed: int) -> torch.Tensor:
    """The images of every step, (steps, batch), drawn with replacement."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(images, (settings["steps"], settings["batch"]), generator=generator)


@torch.no_grad()
def scores(model: nn.Module, split: Split) -> Numbers:
    """Macro-F1 on the test images, its part from the rarest classes, and the loss on the training images."""
    from sklearn.metrics import f1_score

    train, test = split.train, split.test
    guesses = model(torch.from_numpy(test.pixels)).argmax(1).numpy()
    by_class = 100.0 * f1_score(test.labels, guesses, labels=range(test.classes), average=None, zero_division=0.0)
    rarest = np.argsort(split.counts, kind="stable")[:_RAREST]
    loss = nn.functional.cross_entropy(model(torch.from_numpy(train.pixels)), torch.from_numpy(train.labels))
    return {"f1": float(by_class.mean()), "tail": float(by_class[rarest].mean()), "loss": float(loss)}


def prepare(settings: Settings) -> None:
    """Fetch the images, so that workers find them."""
    _images(settings["images"])


# What the numbers say


def findings(results: Results) -> list[str]:
    """Where the soft arms gain and where they do not, per schedule and over all ratios, with Holm's correction."""
    found = []
    for schedule in RATES:
        cases = [case for case in results.cases if case.settings["schedule"] == schedule]
        if not cases or len(results.seeds) < 2:
            continue
        for name, other in (("soft", "signum"), ("soft-half", "signum"), ("soft", "switch")):
            found.append(_over_ratios(results, cases, name, other))
        found += [_of_the_paper(results, cases), _last_steps(results, cases)]
    return [*found, _rates(results)]


def _over_ratios(results: Results, cases: list[Case], name: str, other: str) -> str:
    """One arm against another at every ratio, corrected for having asked at each."""
    measure, arm, base = results.study.measures[0], results.study.arm(name), results.study.arm(other)
    groups: dict[str, list[str]] = {"better": [], "worse": [], "not decided": []}
    for case, word in zip(cases, _decided(results, cases, arm, base), strict=True):
        difference = measure.difference(results.comparison(case, arm, measure, base)).partition(" [")[0]
        groups[word].append(f"{case.settings['ratio']:g} ({difference})")
    told = "; ".join(f"{word} at k = {listing(ratios)}" for word, ratios in groups.items() if ratios)
    average = measure.difference(_mean_over(results, cases, arm, base))
    return (
        f"{arm.label} against {base.label}, {cases[0].settings['schedule']} rate, in points of macro-F1: {average} in "
        f"the mean over the ratios; one by one, with Holm's correction for {plural(len(cases), 'ratio')}, {told}."
    )


def _decided(results: Results, cases: list[Case], arm: Arm, base: Arm) -> list[str]:
    """Say "better", "worse" or "not decided" for each case, corrected for having asked at each (Holm, 5 %)."""
    compared = [results.comparison(case, arm, results.study.measures[0], base) for case in cases]
    adjusted = holm([math.nan if c is None else c.p for c in compared])
    return [
        "not decided" if c is None or not p < 0.05 else "better" if c.difference > 0 else "worse"
        for c, p in zip(compared, adjusted, strict=True)
    ]


def _of_the_paper(results: Results, cases: list[Case]) -> str:
    """Whether the two findings of the paper are seen."""
    words = _decided(results, cases, results.study.arm("soft"), results.study.arm("signum"))
    decided = {case.settings["ratio"]: word for case, word in zip(cases, words, strict=True)}
    first = _seen({k: word for k, word in decided.items() if 1 < k < _HEAVY}, "better")
    second = _seen({k: word for k, word in decided.items() if k >= _HEAVY}, "worse")
    return (
        f"What the paper reports, with a {cases[0].settings['schedule']} rate: SoftSignum 0.9 ahead of Signum at "
        f"moderate imbalance: {first}; behind it from k = {_HEAVY} on: {second}."
    )


def _seen(decided: Mapping[float, str], wanted: str) -> str:
    found = [f"{k:g}" for k, word in decided.items() if word == wanted]
    return f"seen at k = {listing(found)}" if found else "not seen" if decided else "not tried"


def _mean_over(results: Results, cases: list[Case], arm: Arm, base: Arm) -> Comparison:
    """Two arms compared by their means over the cases, seed by seed."""
    key = results.study.measures[0].key
    means = []
    for one in (arm, base):
        values = [results.values(case, one, key) for case in cases]
        means.append({seed: float(np.mean([v[seed] for v in values])) for seed in results.seeds})
    return compare(*means)


def _last_steps(results: Results, cases: list[Case]) -> str:
    """Whether the soft steps are small at the end at all."""
    measure = Measure(key="step", label="size of the last steps", better="", digits=2)
    told = []
    for name in ("signum", "soft", "soft-half", "switch"):
        arm = results.study.arm(name)
        sizes = [results.summary(case, arm, measure).mean for case in cases]
        told.append(f"{arm.label} {measure.text(min(sizes))} to {measure.text(max(sizes))}")
    return (
        f"Mean size of the last 2 % of the steps, over the ratios, {cases[0].settings['schedule']} rate, in units of "
        f"the learning rate: {listing(told)}."
    )


def _rates(results: Results) -> str:
    """The learning rates, and those at the edge of their grids."""
    told = []
    for schedule in RATES:
        case = next((case for case in results.cases if case.settings["schedule"] == schedule), None)
        if case is None:
            continue
        rates = []
        for arm in results.study.arms_of(case):
            numbers = results.cells[case.name, arm.name, results.seeds[0]].numbers
            edge = " (on the edge of its grid)" if numbers["edge"] else ""
            rates.append(f"{arm.label} {rate(numbers['rate'] or math.nan)}{edge}")
        told.append(f"{schedule}: {listing(rates)}")
    return f"Learning rates, each the best of as many trials as every other arm had. {'; '.join(told)}."


def draw_means(figure: Figure, results: Results) -> None:
    """Macro-F1 against the ratio."""
    measure = results.study.measures[0]

    def interval(case: Case, arm: Arm) -> Interval:
        s = results.summary(case, arm, measure)
        return s.mean, s.low, s.high

    _panels(figure, results, interval, measure.title)


def draw_differences(figure: Figure, results: Results) -> None:
    """The paired difference to the baseline against the ratio."""
    measure, base = results.study.measures[0], results.study.arm(results.study.baseline)

    def interval(case: Case, arm: Arm) -> Interval | None:
        c = results.comparison(case, arm, measure)
        return None if c is None else (c.difference, c.low, c.high)

    _panels(figure, results, interval, f"{measure.label} minus that of {base.label} (points)")
    for ax in figure.axes:
        ax.axhline(0.0, color="#9aa1ab", linewidth=1.0, zorder=1)


def _panels(figure: Figure, results: Results, interval: Callable[[Case, Arm], Interval | None], ylabel: str) -> None:
    """Draw a number with its interval: a panel per schedule, the ratios along x, an arm per colour and marker."""
    shown = [name for name in RATES if any(case.settings["schedule"] == name for case in results.cases)]
    figure.set_size_inches(4.6 * len(shown) if len(shown) > 1 else 6.6, 4.6)
    panels = figure.subplots(1, len(shown), sharey=True, squeeze=False)[0]
    arms = [arm for arm in results.study.arms if any(interval(case, arm) for case in results.cases)]
    for ax, schedule in zip(panels, shown, strict=True):
        cases = [case for case in results.cases if case.settings["schedule"] == schedule]
        for index, arm in enumerate(arms):
            offset = 0.6 * ((index + 0.5) / len(arms) - 0.5)
            for place, case in enumerate(cases):
                mean, low, high = interval(case, arm) or (math.nan,) * 3
                ax.vlines(place + offset, low, high, color=color(results, arm), zorder=3)
                ax.plot(
                    place + offset, mean, marker(results, arm), color=color(results, arm),
                    markeredgecolor="white", zorder=4,
                )  # fmt: skip
            ax.plot([], [], marker(results, arm), color=color(results, arm), label=arm.label)
        ax.set_xticks(range(len(cases)), [f"{case.settings['ratio']:g}" for case in cases])
        ax.set_xlabel("imbalance k: largest class / smallest class")
        ax.set_title(f"{schedule} learning rate")
        ax.grid(axis="x", visible=False)
    panels[0].set_ylabel(ylabel)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3)


# The study


def cases(ratios: tuple[int, ...]) -> tuple[Case, ...]:
    """A case for each schedule and ratio."""
    return tuple(
        Case(f"{schedule}-k{ratio}", f"k = {ratio}, {schedule} rate", {"ratio": ratio, "schedule": schedule})
        for schedule in RATES
        for ratio in ratios
    )


def _grid(first: float) -> list[float]:
    return [first * 2**power for power in range(7)]


_SIGN = {"grid": _grid(2.5e-4)}
_SOFT = {"method": "softsignum", "options": {"transition": [0.9, 1.0]}, **_SIGN}

STUDY = Study(
    name="softsign-imbalance",
    title="SoftSignum on classes of different size",
    paper="Softsign, arXiv 2605.31371, Figure 3",
    claim=(
        "the smooth transition has the best F1 where classes are moderately imbalanced; from k = 100 on, Signum beats "
        "SoftSignum; mean of 40 runs on CIFAR-10."
    ),
    about=(
        "A classifier learns from few images of some classes and many of others, and is tested on equally many of "
        "each, so that rare classes count as much as frequent ones (macro-F1). The class sizes fall exponentially from "
        "the most frequent class to the rarest, which is k times smaller; the seed decides which class is which. "
        "Signum steps by a fixed amount and keeps oscillating at the end of training; SoftSignum lets its steps shrink "
        "there. A falling (cosine) learning rate shrinks all steps as well, so both schedules are run."
    ),
    proxies=(
        "The images are the 1,797 digits of scikit-learn (8 x 8 pixels) and the model a perceptron of 4,810 weights; "
        "the paper has CIFAR-10 and a CNN.",
        "The paper's class sizes, batch, steps, schedule, grids and the split are not known to us; all are our own.",
        "The largest class has 140 training images, so the ratios end at 100, where the rarest class has one image.",
        "In 400 steps a transition of 10 % has 40, and its temperature falls most in the last 10 of them; the paper's "
        "runs are longer by an unknown factor.",
        "The paper tunes the learning rate, weight decay, momentum and the share of hard steps; here only the learning "
        "rate is tuned, and the share is 0.9 or 0.5.",
        "How the paper's hard switch scales its rate is not known; here the size of the step does not jump there.",
    ),
    cases=cases(RATIOS),
    arms=(
        Arm("signum", "Signum", "the sign of the momentum throughout", {"method": "signum", "options": {}, **_SIGN}),
        Arm("soft", "SoftSignum 0.9", "Signum for 90 % of the steps, then tanh at a falling temperature", _SOFT),
        Arm(
            "soft-half",
            "SoftSignum 0.5",
            "the transition takes the second half of the run",
            {**_SOFT, "options": {"transition": [0.5, 1.0]}},
        ),
        Arm(
            "switch",
            "Hard switch 0.9",
            "Signum for 90 % of the steps, then momentum SGD with steps of the same size at the switch",
            {**_SOFT, "options": {"transition": [0.9, 1.0], "relaxation": "switch"}},
        ),
        Arm(
            "sgd",
            "SGD",
            "with heavy-ball momentum 0.9",
            {"method": "sgd", "options": {"momentum": 0.9}, "grid": _grid(0.0125)},
        ),
        Arm(
            "adamw",
            "AdamW",
            "betas 0.9 and 0.999",
            {"method": "adamw", "options": {"betas": [0.9, 0.999]}, "grid": _grid(1.25e-3)},
        ),
    ),
    baseline="signum",
    measures=(
        Measure(key="f1", label="macro-F1", unit="%", better="higher", digits=2),
        Measure(key="tail", label="F1 of the three rarest classes", unit="%", better="higher", digits=1),
        Measure(key="loss", label="training loss", geometric=True, digits=2, floor=1e-12),
    ),
    settings={
        "images": Setting("digits", "ours (scikit-learn)"),
        "largest": Setting(140, "ours: training images of the most frequent class; every class has 174 or more"),
        "test": Setting(30, "ours: test images of each class"),
        "width": Setting(64, "ours"),
        "batch": Setting(64, "ours"),
        "steps": Setting(400, "ours"),
        "tuning_ratios": Setting(list(RATIOS), "ours: one learning rate for an arm and schedule, tuned on all of them"),
        "tuning_seeds": Setting(3, "ours: runs per learning rate and ratio, on seeds that are not used again"),
    },
    run=run,
    seeds=40,
    minutes=6,
    quick={"steps": 60, "tuning_seeds": 1, "tuning_ratios": [10]},
    quick_cases=("constant-k10", "cosine-k10"),
    findings=findings,
    figures={
        "differences": (
            "Macro-F1 on the balanced test set minus that of Signum, paired by seed, with 95 % intervals.",
            draw_differences,
        ),
        "macro_f1": ("Macro-F1 on the balanced test set: mean and 95 % interval over seeds.", draw_means),
    },
    prepare=prepare,
)
