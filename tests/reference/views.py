"""How a tensor is a list of matrices ``(out, in)``: split it, treat each matrix alone, join the results.

A view is a pair of functions, ``split(w) -> [matrix, ...]`` and ``join([matrix, ...], shape) -> w``.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import NamedTuple

import numpy as np


class View(NamedTuple):
    split: Callable[[np.ndarray], list[np.ndarray]]
    join: Callable[[list[np.ndarray], tuple[int, ...]], np.ndarray]


#: One matrix; a tensor of more dimensions (a convolution (out, in, kh, kw)) keeps its first and flattens the rest.
FLAT = View(
    split=lambda w: [w.reshape(w.shape[0], -1)],
    join=lambda matrices, shape: matrices[0].reshape(shape),
)

#: A matrix stored as (in, out), for example the Conv1D of GPT-2 in transformers.
TRANSPOSED = View(
    split=lambda w: [w.T],
    join=lambda matrices, shape: matrices[0].T.reshape(shape),
)

#: (experts, out, in): one matrix an expert.
EXPERTS = View(
    split=lambda w: [w[i] for i in range(w.shape[0])],
    join=lambda matrices, shape: np.stack(matrices).reshape(shape),
)


def rows(sizes: list[int]) -> View:
    """Matrices stacked along the rows, for example a fused query-key-value projection."""
    edges = np.cumsum([0, *sizes])
    return View(
        split=lambda w: [w[a:b] for a, b in itertools.pairwise(edges)],
        join=lambda matrices, shape: np.concatenate(matrices).reshape(shape),
    )


def per_matrix(function: Callable[[np.ndarray], np.ndarray], w: np.ndarray, view: View = FLAT) -> np.ndarray:
    """``function`` on every matrix of ``w`` seen through ``view``."""
    return view.join([function(matrix) for matrix in view.split(w)], w.shape)
