"""softsign-imbalance-fashion: the study of `softsign_imbalance` on Fashion-MNIST, which it downloads."""

from __future__ import annotations

import dataclasses

from steepest.lab.reproductions.base import Setting
from steepest.lab.reproductions.softsign_imbalance import STUDY as DIGITS
from steepest.lab.reproductions.softsign_imbalance import cases

RATIOS = (1, 10, 20, 50, 100, 200)

STUDY = dataclasses.replace(
    DIGITS,
    name="softsign-imbalance-fashion",
    title="SoftSignum on classes of different size: Fashion-MNIST",
    proxies=(
        "The images are Fashion-MNIST (28 x 28 pixels, at most 1,000 per class) and the model a perceptron of 50,890 "
        "weights; the paper has CIFAR-10 and a CNN.",
        *DIGITS.proxies[1:2],
        *DIGITS.proxies[4:],
    ),
    cases=cases(RATIOS),
    settings={
        **DIGITS.settings,
        "images": Setting("fashion-mnist", "ours (the Debian package dataset-fashion-mnist, 31 MB)"),
        "largest": Setting(1_000, "ours: training images of the most frequent class; the rarest has 5 at k = 200"),
        "test": Setting(200, "ours: test images of each class"),
        "steps": Setting(1_000, "ours"),
        "tuning_ratios": Setting([1, 20, 200], "ours: one learning rate for an arm and schedule, tuned on all of them"),
        "tuning_seeds": Setting(2, "ours: runs per learning rate and ratio, on seeds that are not used again"),
    },
    seeds=10,
    minutes=8,
)
