from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from steepest.lab.data import Pack, prepare


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache that holds the generated corpus of `small_runs.tiny`."""
    folder = tmp_path_factory.mktemp("cache")
    prepare("synthetic", cache=folder, max_bytes=200_000, progress=False)
    return folder


@pytest.fixture
def pack(cache: Path) -> Pack:
    return prepare("synthetic", cache=cache, max_bytes=200_000, progress=False)
