"""What SAC adds to a step of the optimizer that it wraps, fused AdamW on GPT-2 124M's parameters.

python benchmarks/sac_overhead.py --out docs/results/sac_overhead.json     full size, a few minutes, needs 4 GB
python benchmarks/sac_overhead.py --quick                                  small shapes, a smoke run

Every round runs every candidate once, in random order, on the same parameters, gradients and optimizer state, and a
candidate is compared with the bare optimizer inside the round only: a machine that is slower for a while slows both.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from candidates import DECAY, FULL, LR, QUICK, make_parameters
from machine import BUSY, Load, describe
from step_time import ratio, used_rounds
from torch import nn

import steepest

INTERVAL = 10
BASE = "torch AdamW (fused)"
BETWEEN, STATISTICS, AMORTISED = "SAC, between statistics", "SAC, statistics step", f"SAC, every {INTERVAL} steps"
LIMITS = {STATISTICS: 1.25, AMORTISED: 1.05}  # what the project promises
MAPPING = [
    (r"^h\.(\d+)\.(attn|mlp)\..*weight", lambda match: (int(match[1]), match[2])),
    (r"^w[tp]e", (-1, "embedding")),
]
NEVER = 10**9

Parameters = dict[str, nn.Parameter]


@dataclass(frozen=True)
class Candidate:
    """A way to step.

    Attributes:
        options: of SAC; None for the bare optimizer.
        steps: steps per sample; times are per step.
    """

    options: dict[str, Any] | None
    steps: int = 1


CANDIDATES = {
    BASE: Candidate(None, steps=INTERVAL),
    AMORTISED: Candidate({"interval": INTERVAL}, steps=INTERVAL),
    BETWEEN: Candidate({"interval": NEVER}),
    STATISTICS: Candidate({"interval": 1}),
    "SAC, statistics step, histogram": Candidate({"interval": 1, "estimator": "histogram"}),
    "SAC, statistics step, exact": Candidate({"interval": 1, "estimator": "exact"}),
    "SAC, statistics step, algorithm 1": Candidate({"interval": 1, "mode": "algorithm1"}),
    "SAC, statistics step, engine hybrid": Candidate({"interval": 1, "engine": "hybrid"}),
    "SAC, statistics step, engine cpu": Candidate({"interval": 1, "engine": "cpu"}),
    "SAC, between statistics, update": Candidate({"interval": NEVER, "apply": "update"}),
}


def build(candidate: Candidate, parameters: Parameters, shared: Any) -> torch.optim.Optimizer:
    """The optimizer of a candidate; all have one state, so that they need the memory of one."""
    base = torch.optim.AdamW(parameters.values(), lr=LR, weight_decay=DECAY, fused=True)
    base.state = shared
    if candidate.options is None:
        return base
    return steepest.SAC(base, parameters, partition=MAPPING, **candidate.options)


def sample(optimizer: torch.optim.Optimizer, steps: int) -> dict[str, float]:
    """Wall and CPU seconds per step, after one that is not timed.

    What the last candidate left in the caches and in the allocator is not the cost of this one.
    """
    optimizer.step()
    wall, cpu = time.perf_counter(), time.process_time()
    for _ in range(steps):
        optimizer.step()
    return {"wall": (time.perf_counter() - wall) / steps, "cpu": (time.process_time() - cpu) / steps}


def measure(quick: bool, rounds: int, seed: int) -> dict[str, Any]:
    """All rounds."""
    parameters = make_parameters(QUICK if quick else FULL)
    shared = torch.optim.AdamW(parameters.values()).state
    optimizers = {name: build(candidate, parameters, shared) for name, candidate in CANDIDATES.items()}
    for name, optimizer in optimizers.items():  # warm up: the first step of SAC makes statistics
        sample(optimizer, CANDIDATES[name].steps)
    samples: dict[str, list[dict[str, float]]] = {name: [] for name in CANDIDATES}
    shares: list[float | None] = []
    shuffler, load = random.Random(seed), Load()
    for number in range(rounds):
        for name in shuffler.sample(list(CANDIDATES), len(CANDIDATES)):
            samples[name].append(sample(optimizers[name], CANDIDATES[name].steps))
        shares.append(load.share())
        busy = "" if shares[-1] is None else f", others used {shares[-1]:.0%} of the machine"
        print(f"round {number + 1} of {rounds}{busy}", flush=True)
    used = used_rounds(shares)
    rows = {}
    for name in CANDIDATES:
        row: dict[str, Any] = {"milliseconds": 1e3 * statistics.median(samples[name][i]["wall"] for i in used)}
        for clock in ("wall", "cpu"):
            middle, low, high = ratio(samples, name, BASE, clock, used)
            row[f"{clock}_ratio"], row[f"{clock}_quartiles"] = middle, [low, high]
        rows[name] = row
    wrapped = optimizers[AMORTISED]
    return {
        "rows": rows,
        "samples": samples,
        "others": shares,
        "rounds_used": used,
        "state_bytes": state_bytes(wrapped),
        "blocks": len(wrapped.scales),
        "parts": len({1.0, *wrapped.scales.values()}),
    }


def state_bytes(optimizer: Any) -> dict[str, int]:
    """Bytes of the state of the base, and numbers that SAC keeps (of 8 bytes each)."""
    own = optimizer.own_state()
    tensors = [value for state in optimizer.state.values() for value in state.values()]
    return {
        "base": sum(t.numel() * t.element_size() for t in tensors),
        "sac": 8 * (len(own["scales"]) + len(own["layers"]) + 1),
    }


def markdown(report: dict[str, Any]) -> str:
    """The report as a table."""
    machine = report["machine"]
    model = "small shapes (smoke run, no result)" if report["quick"] else "GPT-2 124M, 148 tensors, float32"
    shares = [share for share in report["others"] if share is not None]
    busy = f"; other processes used {statistics.median(shares):.0%} of the machine" if shares else ""
    state = report["state_bytes"]
    lines = [
        "# What SAC adds to a step",
        "",
        f"{model}, {report['blocks']} blocks, so {report['parts']} param groups during a step; {machine['cpu']}, "
        f"{machine['threads']} threads of {machine['cores']} cores; torch {report['versions']['torch']}; "
        f"{report['created'][:10]}. Made by `{report['command']}`.",
        "A ratio is the median over rounds of time / time of the bare optimizer in the same round; quartiles in "
        f"brackets. {len(report['rounds_used'])} of {len(report['others'])} rounds used{busy}.",
        f"State: {state['base'] / 1e6:.0f} MB of the base, and {state['sac']} bytes of SAC.",
        "",
        "| step | ratio, wall clock | ratio, CPU time | ms | at most | holds |",
        "|---|---|---|---|---|---|",
    ]
    for name, row in report["rows"].items():
        low, high = row["wall_quartiles"]
        limit = report["limits"].get(name)
        judged = ("", "") if limit is None else (f"{limit:.2f}", "yes" if row["wall_ratio"] <= limit else "**no**")
        lines.append(
            f"| {name} | **{row['wall_ratio']:.3f}** [{low:.3f}, {high:.3f}] | {row['cpu_ratio']:.3f} "
            f"| {row['milliseconds']:.1f} | {judged[0]} | {judged[1]} |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="JSON file to write; the table goes to the same name with .md")
    parser.add_argument("--threads", type=int, default=2, help="threads of torch (default 2)")
    parser.add_argument("--rounds", type=int, help="rounds (default 21; 3 with --quick)")
    parser.add_argument("--quick", action="store_true", help="small shapes: does everything run?")
    parser.add_argument("--check", action="store_true", help="exit with 1 when a promise is not kept")
    parser.add_argument("--seed", type=int, default=0, help="of the order of the candidates (default 0)")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)

    rounds = arguments.rounds or (3 if arguments.quick else 21)
    # Small shapes measure the cost of a call, not of a step, so nothing is promised of them.
    report: dict[str, Any] = {**describe(arguments.threads), "quick": arguments.quick}
    report["limits"] = {} if arguments.quick else LIMITS
    report |= measure(arguments.quick, rounds, arguments.seed)
    print("\n" + markdown(report))
    shares = [share for share in report["others"] if share is not None]
    if shares and statistics.median(shares) > BUSY:
        print(f"WARNING: other processes used more than {BUSY:.0%} of the machine; run again on a quiet one.")
    if arguments.out is not None:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
        arguments.out.with_suffix(".md").write_text(markdown(report), encoding="utf-8")
        print(f"written: {arguments.out} and {arguments.out.with_suffix('.md')}")
    if arguments.check and any(report["rows"][name]["wall_ratio"] > limit for name, limit in report["limits"].items()):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
