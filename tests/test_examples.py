"""The examples run as they stand."""

import runpy
from pathlib import Path

EXAMPLES = Path(__file__).parent.parent / "examples"


def test_train_loop(capsys):
    first, last = runpy.run_path(str(EXAMPLES / "train_loop.py"))["main"](steps=60)
    assert last < 0.6 * first
    assert "lion_muon" in capsys.readouterr().out
