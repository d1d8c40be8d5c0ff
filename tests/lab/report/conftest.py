from __future__ import annotations

from pathlib import Path

import pytest
from fake_study import write_messy_study, write_study
from grid_study import write_grid_study

from steepest.lab import report


@pytest.fixture(scope="session")
def clean(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished study of six methods and four seeds. Read only."""
    return write_study(tmp_path_factory.mktemp("clean"), edge=("lion",))


@pytest.fixture(scope="session")
def messy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study in which everything goes wrong. Read only."""
    return write_messy_study(tmp_path_factory.mktemp("messy"))


@pytest.fixture(scope="session")
def grid(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study of schema 2 with several tuned axes, variants, accounting and diagnostics. Read only."""
    return write_grid_study(tmp_path_factory.mktemp("grid"))


@pytest.fixture
def no_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out the static figures, which take most of the time of a report."""
    monkeypatch.setattr("steepest.lab.report.page.write_figures", lambda *_: [])


@pytest.fixture(scope="session")
def clean_report(clean: Path) -> Path:
    """`clean` with its report beside it."""
    report.write(clean)
    return clean


@pytest.fixture(scope="session")
def messy_report(messy: Path) -> Path:
    """`messy` with its report beside it."""
    report.write(messy)
    return messy


@pytest.fixture(scope="session")
def grid_report(grid: Path) -> Path:
    """`grid` with its report beside it."""
    report.write(grid)
    return grid
