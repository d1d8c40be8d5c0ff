"""Memory of one optimizer step on GPT-2 124M's parameters: state, peak of what a step allocates, largest temporary.

python benchmarks/memory.py --out docs/results/memory.json
python benchmarks/memory.py --quick --only "steepest Lion*"

Each candidate runs in a process of its own. The numbers come from torch's allocator (every allocation and release
during one measured step, after two warm-up steps; of an alternating method one period) and do not depend on how busy
the machine is. What a math library takes from the system by itself is seen only in "resident growth" (Linux).
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from candidates import FULL, QUICK, Candidate, make_parameters, select, state_bytes
from machine import describe
from torch.profiler import ProfilerActivity, profile

MEGABYTE = 1e6


def status_bytes(field: str) -> int | None:
    """A memory field of this process (Linux), in bytes."""
    try:
        for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
            if line.startswith(field + ":"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return None


def allocations(optimizer: torch.optim.Optimizer, steps: int) -> list[int]:
    """Bytes of every allocation (positive) and release (negative) of some steps, in order of time."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        for _ in range(steps):
            optimizer.step()
    assert recorded.profiler is not None
    events = [event for event in recorded.profiler.kineto_results.events() if event.name() == "[memory]"]
    return [event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())]


def peak(changes: list[int]) -> int:
    """Highest running total."""
    total = highest = 0
    for change in changes:
        total += change
        highest = max(highest, total)
    return highest


def resident_growth(optimizer: torch.optim.Optimizer, steps: int) -> int | None:
    """How far the resident memory rises above its start during some steps (Linux), a coarse check from outside."""
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")  # resets the high-water mark
    except OSError:
        return None
    before = status_bytes("VmRSS")
    for _ in range(steps):
        optimizer.step()
    after = status_bytes("VmHWM")
    return None if before is None or after is None else max(0, after - before)


def measure(candidate: Candidate, quick: bool) -> dict[str, Any]:
    """All numbers of one candidate, in this process."""
    parameters = make_parameters(QUICK if quick else FULL)
    optimizer = candidate.make(parameters)
    for _ in range(2 * candidate.steps):
        optimizer.step()
    growth = resident_growth(optimizer, candidate.steps)
    changes = allocations(optimizer, candidate.steps)
    return {
        "name": candidate.name,
        "family": candidate.family,
        "state_bytes": state_bytes(optimizer),
        "peak_bytes": peak(changes),
        "largest_bytes": max(changes, default=0),
        "allocations": sum(change > 0 for change in changes),
        "resident_growth_bytes": growth,
    }


def in_own_process(candidate: Candidate, arguments: argparse.Namespace) -> dict[str, Any] | None:
    """``measure`` in a fresh process; None, with the reason printed, when it fails."""
    command = [sys.executable, __file__, "--one", candidate.name, "--threads", str(arguments.threads)]
    done = subprocess.run(
        command + ["--quick"] * arguments.quick, capture_output=True, text=True, encoding="utf-8", check=False
    )
    if done.returncode != 0:
        reason = done.stderr.strip().splitlines()
        print(f"  {candidate.name}: skipped ({reason[-1] if reason else 'no reason given'})")
        return None
    row: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    print(f"  {candidate.name}: {row['peak_bytes'] / MEGABYTE:.1f} MB", flush=True)
    return row


def markdown(report: dict[str, Any]) -> str:
    """The report as a table."""
    model = "small shapes (smoke run, no result)" if report["quick"] else "GPT-2 124M, float32"
    lines = [
        "# Memory of one optimizer step",
        "",
        f"{model}; elementwise methods step all tensors, spectral ones the hidden matrices; "
        f"torch {report['versions']['torch']}; {report['created'][:10]}. Made by `{report['command']}`.",
        "",
        "| optimizer | family | state, MB | peak, MB | largest temporary, MB | allocations | resident growth, MB |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in sorted(report["rows"], key=lambda row: (row["family"], row["peak_bytes"])):
        growth = row["resident_growth_bytes"]
        lines.append(
            f"| {row['name']} | {row['family']} | {row['state_bytes'] / MEGABYTE:.0f} "
            f"| **{row['peak_bytes'] / MEGABYTE:.1f}** | {row['largest_bytes'] / MEGABYTE:.1f} | {row['allocations']} "
            f"| {'' if growth is None else f'{growth / MEGABYTE:.0f}'} |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="JSON file to write; the table goes to the same name with .md")
    parser.add_argument("--threads", type=int, default=2, help="threads of torch (default 2)")
    parser.add_argument("--only", default="*", help='candidates by name, such as "steepest Lion*|lion-pytorch*"')
    parser.add_argument("--quick", action="store_true", help="small shapes: does everything run?")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)

    if arguments.one is not None:
        (candidate,) = [c for c in select(arguments.one) if c.name == arguments.one]
        print(json.dumps(measure(candidate, arguments.quick)))
        return
    rows = [row for c in select(arguments.only) if (row := in_own_process(c, arguments)) is not None]
    report = {**describe(arguments.threads), "quick": arguments.quick, "rows": rows}
    print("\n" + markdown(report))
    if arguments.out is not None:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
        arguments.out.with_suffix(".md").write_text(markdown(report), encoding="utf-8")
        print(f"written: {arguments.out} and {arguments.out.with_suffix('.md')}")


if __name__ == "__main__":
    main()
