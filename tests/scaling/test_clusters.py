"""K-means on a line: against Lloyd's algorithm in numpy, and against the best clustering of all."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from reference import sgg as reference
from steepest.scaling.clusters import cluster_bounds


def clusters_of(x: np.ndarray, k: int) -> np.ndarray:
    bounds = cluster_bounds(torch.from_numpy(x)[None], k)[0]
    return torch.bucketize(torch.from_numpy(x), bounds).numpy()


@pytest.mark.parametrize("k", [1, 2, 3, 5])
def test_it_is_lloyds_algorithm_from_quantiles(k: int) -> None:
    x = np.random.default_rng(k).standard_t(3, 400)
    start = np.sort(x)[((np.arange(k) + 0.5) / k * len(x)).astype(int)]
    expected = reference.nearest(x, reference.lloyd(x, start, rounds=30))
    assert (clusters_of(x, k) == expected).all()


@pytest.mark.parametrize("k", [2, 3, 4])
def test_groups_that_stand_apart_are_found(k: int) -> None:
    random = np.random.default_rng(0)
    x = np.concatenate([random.normal(10 * i, 0.5, 15 + 2 * i) for i in range(k)])
    assert (clusters_of(x, k) == reference.best_clusters(x, k)).all()


def test_it_comes_near_the_best_of_all() -> None:
    for seed in range(5):
        x = np.random.default_rng(seed).standard_normal(60)
        ids = clusters_of(x, 3)
        assert reference.within(x, ids) <= 1.1 * reference.within(x, reference.best_clusters(x, 3))


def test_every_row_alone_and_padding_left_out() -> None:
    random = np.random.default_rng(0)
    rows = [random.standard_normal(n) * scale for n, scale in ((50, 1.0), (31, 100.0), (7, 1e-6))]
    padded = torch.full((3, 64), torch.inf, dtype=torch.float64)
    for row, values in zip(padded, rows, strict=True):
        row[: len(values)] = torch.from_numpy(values)
    together = cluster_bounds(padded, 3)
    for bounds, values in zip(together, rows, strict=True):
        assert torch.equal(bounds, cluster_bounds(torch.from_numpy(values)[None], 3)[0])


def test_degenerate_rows() -> None:
    same = cluster_bounds(torch.full((1, 8), 2.5), 3)
    assert torch.equal(same, torch.full((1, 2), 2.5, dtype=torch.float64))
    assert int(torch.bucketize(torch.tensor(2.5), same[0])) == 0  # one cluster
    assert cluster_bounds(torch.full((1, 8), torch.inf), 3).isnan().all()
    two = cluster_bounds(torch.tensor([[1.0, 2.0]]), 3)
    assert torch.bucketize(torch.tensor([1.0, 2.0]), two[0]).diff() >= 1


def test_scale_and_shift() -> None:
    x = torch.randn(2, 300, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    expected = torch.stack([torch.bucketize(a, b) for a, b in zip(x, cluster_bounds(x, 4), strict=True)])
    moved = 1e-7 * (x + 3)
    found = torch.stack([torch.bucketize(a, b) for a, b in zip(moved, cluster_bounds(moved, 4), strict=True)])
    assert torch.equal(found, expected)
