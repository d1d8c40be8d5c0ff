"""The examples run as they stand."""

import runpy
from pathlib import Path

EXAMPLES = Path(__file__).parent.parent / "examples"


def test_train_loop(capsys):
    first, last = runpy.run_path(str(EXAMPLES / "train_loop.py"))["main"](steps=60)
    assert last < 0.6 * first
    assert "lion_muon" in capsys.readouterr().out


def test_wrap_sac(capsys, tmp_path):
    script = EXAMPLES / "wrap_sac.py"
    first, last = runpy.run_path(str(script))["main"](steps=60)
    assert last < 0.5 * first
    assert "(1, 'mlp')" in capsys.readouterr().out
    # Without the one line it is a script for AdamW that runs as well.
    (line,) = (line for line in script.read_text(encoding="utf-8").splitlines(keepends=True) if "steepest.SAC" in line)
    bare = tmp_path / "bare.py"
    bare.write_text(script.read_text(encoding="utf-8").replace(line, ""), encoding="utf-8")
    assert runpy.run_path(str(bare))["main"](steps=2)[0] == first
    assert "(1, 'mlp')" not in capsys.readouterr().out
