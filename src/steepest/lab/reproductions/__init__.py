"""Studies that repeat what a paper reports, small enough for two cores: `steepest reproduce`.

Each module listed in `MODULES` has a record `STUDY` (a `base.Study`). To read: `base` (what a study is and what its
numbers mean), `execution` (cells, workers, going on after a stop), `output` (table, sentences, files), `drawing`. For
several studies: `small_language_model` (training with rules of their own, tuning), `sentences` and `sac_arms`.
"""

from __future__ import annotations

import importlib
from typing import cast

from steepest.lab.errors import unknown
from steepest.lab.reproductions.base import Study

# Name of the study -> module beside this file.
MODULES = {
    "softsign-unigram": "softsign_unigram",
    "softsign-smoothness": "softsign_smoothness",
    "softsign-imbalance": "softsign_imbalance",
    "softsign-imbalance-fashion": "softsign_imbalance_fashion",
    "softsign-language": "softsign_language",
    "sage-embedding-dilemma": "sage_embedding_dilemma",
    "lasm-ablation": "lasm_ablation",
    "sac-vision": "sac_vision",
    "sac-lora": "sac_lora",
    "sac-granularity": "sac_granularity",
    "sac-dispersion": "sac_dispersion",
    "sac-bases": "sac_bases",
    "sac-robustness": "sac_robustness",
    "sac-scales": "sac_scales",
    "sac-gated-deltanet": "sac_gated_deltanet",
}


def find(name: str) -> Study:
    """The study of a name.

    Raises:
        UserError: there is none; the message lists the names.
    """
    if name not in MODULES:
        raise unknown("study", name, MODULES)
    return cast("Study", importlib.import_module(f"{__name__}.{MODULES[name]}").STUDY)
