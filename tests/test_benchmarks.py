"""The benchmarks run, measure what they say, and never time anything in this suite."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture(autouse=True)
def _importable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))


def run(script: str, *arguments: str) -> str:
    command = [sys.executable, str(BENCHMARKS / script), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, encoding="utf-8", check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_parameters_are_those_of_gpt2_124m() -> None:
    from candidates import FULL, is_hidden

    assert len(FULL) == len(dict(FULL)) == 148
    assert sum(math.prod(shape) for _, shape in FULL) == 124_439_808
    hidden = [shape for name, shape in FULL if is_hidden(name, shape)]
    assert len(hidden) == 48
    assert sum(math.prod(shape) for shape in hidden) == 84_934_656


def test_parameters_are_those_of_transformers() -> None:
    from candidates import gpt2_shapes
    from transformers import GPT2Config, GPT2LMHeadModel

    model = GPT2LMHeadModel(GPT2Config(n_layer=2, n_embd=64, n_head=2, vocab_size=512, n_positions=64))
    theirs = {name.removeprefix("transformer."): tuple(p.shape) for name, p in model.named_parameters()}
    ours = {n + ".weight" * (n in {"wte", "wpe"}): s for n, s in gpt2_shapes(2, 64, 512, 64)}
    assert ours == theirs


def test_step_time_writes_a_report(tmp_path: Path) -> None:
    out = tmp_path / "results" / "step_time.json"
    only = "steepest Lion (foreach)|steepest LionMuon*|pytorch-optimizer Lion (loop)"
    run("step_time.py", "--quick", "--rounds", "2", "--threads", "1", "--only", only, "--out", str(out))
    report: dict[str, Any] = json.loads(out.read_text(encoding="utf-8"))
    elementwise, spectral = report["families"]
    assert set(elementwise["rows"]) == {
        "torch AdamW (fused)",
        "steepest Lion (foreach)",
        "pytorch-optimizer Lion (loop)",
    }
    assert set(spectral["rows"]) == {"torch Muon", "steepest LionMuon, period 2"}
    for family in report["families"]:
        assert family["rows"][family["base"]]["wall_ratio"] == 1.0
        assert all(len(samples) == 2 for samples in family["samples"].values())
    assert report["claims"] == []  # nothing is promised of small shapes
    assert "| steepest Lion (foreach) |" in out.with_suffix(".md").read_text(encoding="utf-8")


def test_ratio_is_the_median_of_ratios_inside_rounds() -> None:
    from step_time import ratio, used_rounds

    # A machine that slows down tenfold from round to round changes no ratio.
    samples = {
        "base": [{"wall": 1.0}, {"wall": 10.0}, {"wall": 100.0}],
        "x": [{"wall": 0.5}, {"wall": 6.0}, {"wall": 70.0}],
    }
    assert ratio(samples, "x", "base", "wall", [0, 1, 2])[0] == pytest.approx(0.6)
    assert ratio(samples, "x", "base", "wall", [2])[0] == pytest.approx(0.7)
    assert used_rounds([0.5, 0.01, 0.02, 0.0, 0.1, None]) == [1, 2, 3, 4, 5]
    assert used_rounds([0.5, 0.01, 0.6]) == [0, 1, 2]


def test_promises_are_checked() -> None:
    from step_time import check_claims

    def family(muon: float, lion_muon: float) -> dict[str, Any]:
        times = {"torch Muon": 1.0, "steepest Muon": muon, "steepest LionMuon, period 2": lion_muon}
        samples = {name: [{"wall": t, "cpu": t}] * 3 for name, t in times.items()}
        return {"rows": dict.fromkeys(times), "samples": samples, "rounds_used": [0, 1, 2]}

    selected = {"torch Muon", "steepest Muon", "steepest LionMuon, period 2"}
    assert [claim["holds"] for claim in check_claims([family(0.9, 0.5)], selected)] == [True, True]
    assert [claim["holds"] for claim in check_claims([family(1.1, 0.6)], selected)] == [False, False]
    assert [claim["holds"] for claim in check_claims([], selected)] == [False, False]  # could not run
    assert check_claims([family(1.1, 0.6)], {"torch Muon"}) == []


def test_sac_overhead_writes_a_report(tmp_path: Path) -> None:
    out = tmp_path / "sac_overhead.json"
    run("sac_overhead.py", "--quick", "--rounds", "2", "--threads", "1", "--out", str(out))
    report: dict[str, Any] = json.loads(out.read_text(encoding="utf-8"))
    assert report["rows"]["torch AdamW (fused)"]["wall_ratio"] == 1.0
    assert all(len(samples) == 2 for samples in report["samples"].values())
    assert (report["blocks"], report["limits"]) == (5, {})  # nothing is promised of small shapes
    assert report["state_bytes"]["sac"] == 8 * (5 + 3 + 1)
    assert "| SAC, statistics step |" in out.with_suffix(".md").read_text(encoding="utf-8")


def test_memory_of_one_step(tmp_path: Path) -> None:
    out = tmp_path / "memory.json"
    run("memory.py", "--quick", "--threads", "1", "--only", "steepest Lion (foreach)", "--out", str(out))
    rows = {row["name"]: row for row in json.loads(out.read_text(encoding="utf-8"))["rows"]}
    from candidates import QUICK

    numbers = sum(math.prod(shape) for _, shape in QUICK)
    assert rows["steepest Lion (foreach)"]["state_bytes"] in range(4 * numbers, 4 * numbers + 8 * len(QUICK) + 1)
    assert rows["torch AdamW (fused)"]["peak_bytes"] < 4096


def test_peak_counts_what_is_alive_together() -> None:
    from memory import allocations, peak

    class TwoTemporaries(torch.optim.Optimizer):
        """Two temporaries of 4 MB alive together, then, after their release, one of 6 MB."""

        def __init__(self) -> None:
            super().__init__([torch.zeros(1, requires_grad=True)], {})

        def step(self, closure: Any = None) -> None:
            first, second = torch.empty(1_000_000), torch.empty(1_000_000)
            del first, second
            torch.empty(1_500_000)

    changes = allocations(TwoTemporaries(), 1)
    assert peak(changes) == pytest.approx(8_000_000, rel=0.01)
    assert max(changes) == pytest.approx(6_000_000, rel=0.01)


def test_a_pattern_that_matches_nothing_lists_the_names() -> None:
    from candidates import select

    with pytest.raises(SystemExit, match="torch Muon"):
        select("no such optimizer")
