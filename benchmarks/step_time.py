"""Time of one optimizer step on GPT-2 124M's parameters, next to other optimizers.

python benchmarks/step_time.py --out docs/results/step_time.json     full size, a few minutes, needs 8 GB of memory
python benchmarks/step_time.py --quick                               small shapes, a smoke run

Every round runs every candidate once, in random order, on the same parameters and gradients, and a candidate is
compared with the base of its family inside the round only: a machine that is slower for a while slows both.
"""

from __future__ import annotations

import argparse
import gc
import json
import random
import statistics
import time
import warnings
from pathlib import Path
from typing import Any

import torch
from candidates import BASES, FULL, QUICK, Candidate, make_parameters, select, state_bytes
from machine import BUSY, Load, describe

# What the project promises: (candidate, compared with, at most).
PEERS = ("pytorch-optimizer Lion (loop)", "torch-optimi Lion (loop)", "lion-pytorch Lion")
CLAIMS = [
    ("steepest Lion (foreach)", "torch AdamW (fused)", 1.5),
    ("steepest Signum (foreach)", "torch AdamW (fused)", 1.5),
    ("steepest Lion (compile)", "torch AdamW (fused)", 0.9),
    ("steepest Signum (compile)", "torch AdamW (fused)", 0.9),
    *[("steepest Lion (foreach)", peer, 1.0) for peer in PEERS],
    ("steepest Signum (foreach)", "pytorch-optimizer SignSGD (loop)", 1.0),
    ("steepest Muon", "torch Muon", 1.0),
    ("steepest LionMuon, period 2", "torch Muon", 0.55),
    *[
        (f"steepest SoftSignum, soft phase, p = {p} ({backend})", f"steepest SoftSignum, sign phase ({backend})", 1.3)
        for backend in ("foreach", "compile")
        for p in (0.05, 0.5)
    ],
    ("steepest SoftSignum, fit and step (foreach)", "torch AdamW (fused)", 5.0),
    ("soft_polar, fitted, temperature x s_1 = 10", "polar, 5 steps, float32", 1.0),
    ("steepest SAGE", "torch AdamW (fused), embedding", 1.3),
    ("steepest SAGE (compile)", "torch AdamW (fused), embedding", 1.3),
    ("steepest SinkGD (compile)", "torch AdamW (fused), hidden", 1.5),
    ("steepest LASM (compile)", "torch AdamW (fused)", 1.2),
    ("steepest Lion, bf16 momentum (compile)", "steepest Lion (compile)", 1.0),
]
ENOUGH_QUIET_ROUNDS = 5

Samples = dict[str, list[dict[str, float]]]


def sample(candidate: Candidate, optimizer: torch.optim.Optimizer) -> dict[str, float]:
    """Wall and CPU seconds per step."""
    wall, cpu = time.perf_counter(), time.process_time()
    for _ in range(candidate.steps):
        optimizer.step()
    return {
        "wall": (time.perf_counter() - wall) / candidate.steps,
        "cpu": (time.process_time() - cpu) / candidate.steps,
    }


def measure(family: str, candidates: list[Candidate], quick: bool, rounds: int, seed: int) -> dict[str, Any]:
    """All rounds of one family."""
    parameters = make_parameters(QUICK if quick else FULL)
    optimizers: dict[str, torch.optim.Optimizer] = {}
    rows: dict[str, dict[str, Any]] = {}
    for candidate in candidates:
        try:
            optimizer = candidate.make(parameters)
            first = sample(candidate, optimizer)
            sample(candidate, optimizer)
        except Exception as error:  # one that cannot run here (no compiler, not installed) must not stop the others
            reason = f"{type(error).__name__}: {error}".partition("\n")[0]
            print(f"  {candidate.name}: skipped ({reason})")
            continue
        optimizers[candidate.name] = optimizer
        rows[candidate.name] = {
            "name": candidate.name,
            "steps_per_sample": candidate.steps,
            "first_step_seconds": first["wall"] * candidate.steps,
            "state_bytes": state_bytes(optimizer),
        }
        print(f"  {candidate.name}: ready")
    order = [candidate for candidate in candidates if candidate.name in optimizers]
    samples: Samples = {candidate.name: [] for candidate in order}
    shares: list[float | None] = []
    shuffler, load = random.Random(seed), Load()
    for number in range(rounds):
        for candidate in shuffler.sample(order, len(order)):
            samples[candidate.name].append(sample(candidate, optimizers[candidate.name]))
        shares.append(load.share())
        busy = "" if shares[-1] is None else f", others used {shares[-1]:.0%} of the machine"
        print(f"  round {number + 1} of {rounds}{busy}", flush=True)
    return {"family": family, "base": BASES[family], "rows": rows, "samples": samples, "others": shares}


def used_rounds(others: list[float | None]) -> list[int]:
    """The quiet rounds if there are enough of them, else all."""
    quiet = [i for i, share in enumerate(others) if share is None or share <= BUSY]
    return quiet if len(quiet) >= ENOUGH_QUIET_ROUNDS else list(range(len(others)))


def ratio(samples: Samples, name: str, base: str, clock: str, rounds: list[int]) -> tuple[float, float, float]:
    """Median and quartiles over rounds of time(name) / time(base) in the same round."""
    values = [samples[name][i][clock] / max(samples[base][i][clock], 1e-9) for i in rounds]
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else values * 3
    return middle, low, high


def summarise(result: dict[str, Any]) -> None:
    """Add medians and ratios to the rows of a family."""
    rounds = used_rounds(result["others"])
    result["rounds_used"] = rounds
    for name, row in result["rows"].items():
        row["milliseconds"] = 1e3 * statistics.median(result["samples"][name][i]["wall"] for i in rounds)
        for clock in ("wall", "cpu"):
            middle, low, high = ratio(result["samples"], name, result["base"], clock, rounds)
            row[f"{clock}_ratio"], row[f"{clock}_quartiles"] = middle, [low, high]


def check_claims(families: list[dict[str, Any]], selected: set[str]) -> list[dict[str, Any]]:
    """Every promise whose two sides were selected; one that could not be measured does not hold."""
    checked = []
    for name, base, limit in CLAIMS:
        if not {name, base} <= selected:
            continue
        claim: dict[str, Any] = {"name": name, "base": base, "at_most": limit, "holds": False}
        for family in families:
            if {name, base} <= set(family["rows"]):
                for clock in ("wall", "cpu"):
                    claim[f"{clock}_ratio"] = ratio(family["samples"], name, base, clock, family["rounds_used"])[0]
                claim["holds"] = claim["wall_ratio"] <= limit
        checked.append(claim)
    return checked


def markdown(report: dict[str, Any]) -> str:
    """The report as tables."""
    machine, versions = report["machine"], report["versions"]
    model = "small shapes (smoke run, no result)" if report["quick"] else "GPT-2 124M, 148 tensors, float32"
    lines = [
        "# Time of one optimizer step",
        "",
        f"{model}; {machine['cpu']}, {machine['threads']} threads of {machine['cores']} cores; "
        f"torch {versions['torch']}; {report['created'][:10]}. Made by `{report['command']}`.",
        "A ratio is the median over rounds of time / time of the base in the same round; quartiles in brackets.",
    ]
    for family in report["families"]:
        what = {"elementwise": "all tensors", "embedding": "the token embedding"}.get(
            family["family"], "the 48 hidden matrices"
        )
        what = what if not report["quick"] else what.replace("the 48 ", "the ")
        shares = [share for share in family["others"] if share is not None]
        busy = f"; other processes used {statistics.median(shares):.0%} of the machine" if shares else ""
        lines += [
            "",
            f"## {family['family'].capitalize()}: {what}, against {family['base']}",
            "",
            f"{len(family['rounds_used'])} of {len(family['others'])} rounds used{busy}.",
            "",
            "| optimizer | ratio, wall clock | ratio, CPU time | ms | state, MB | first step, s |",
            "|---|---|---|---|---|---|",
        ]
        for row in sorted(family["rows"].values(), key=lambda row: row["wall_ratio"]):
            low, high = row["wall_quartiles"]
            lines.append(
                f"| {row['name']} | **{row['wall_ratio']:.2f}** [{low:.2f}, {high:.2f}] | {row['cpu_ratio']:.2f} "
                f"| {row['milliseconds']:.1f} | {row['state_bytes'] / 1e6:.0f} | {row['first_step_seconds']:.1f} |"
            )
    if report["claims"]:
        lines += [
            "",
            "## Promises",
            "",
            "| optimizer | compared with | at most | measured | holds |",
            "|---|---|---|---|---|",
        ]
        for claim in report["claims"]:
            holds = "yes" if claim["holds"] else "**no**"
            measured = f"{claim['wall_ratio']:.2f}" if "wall_ratio" in claim else "not measured"
            lines.append(f"| {claim['name']} | {claim['base']} | {claim['at_most']:.2f} | {measured} | {holds} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="JSON file to write; the tables go to the same name with .md")
    parser.add_argument("--threads", type=int, default=2, help="threads of torch (default 2)")
    parser.add_argument("--rounds", type=int, help="rounds (default 21 elementwise, 9 spectral; 3 with --quick)")
    parser.add_argument("--only", default="*", help='candidates by name, such as "steepest Lion*|lion-pytorch*"')
    parser.add_argument("--quick", action="store_true", help="small shapes: does everything run?")
    parser.add_argument("--check", action="store_true", help="exit with 1 when a promise is not kept")
    parser.add_argument("--seed", type=int, default=0, help="of the order of the candidates (default 0)")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    warnings.filterwarnings("ignore", module=r"(pytorch_optimizer|optimi|lion_pytorch)\b")

    report: dict[str, Any] = {**describe(arguments.threads), "quick": arguments.quick, "families": []}
    for family, default_rounds in (("elementwise", 21), ("spectral", 9), ("embedding", 21), ("kernels", 9)):
        chosen = [candidate for candidate in select(arguments.only) if candidate.family == family]
        if not chosen:
            continue
        print(f"{family}:")
        rounds = arguments.rounds or (3 if arguments.quick else default_rounds)
        result = measure(family, chosen, arguments.quick, rounds, arguments.seed)
        summarise(result)
        report["families"].append(result)
        gc.collect()
    # Small shapes measure the cost of a call, not of a step, so nothing is promised of them.
    selected = set() if arguments.quick else {candidate.name for candidate in select(arguments.only)}
    report["claims"] = check_claims(report["families"], selected)

    print("\n" + markdown(report))
    shares = [share for family in report["families"] for share in family["others"] if share is not None]
    if shares and statistics.median(shares) > BUSY:
        print(
            f"WARNING: other processes used {statistics.median(shares):.0%} of the machine (more than {BUSY:.0%}). "
            "Trust the CPU-time ratios more than the wall-clock ones, and run again on a quiet machine."
        )
    if arguments.out is not None:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
        arguments.out.with_suffix(".md").write_text(markdown(report), encoding="utf-8")
        print(f"written: {arguments.out} and {arguments.out.with_suffix('.md')}")
    if arguments.check and not all(claim["holds"] for claim in report["claims"]):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
