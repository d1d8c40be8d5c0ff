"""The record as tables of text, the titles first."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from steepest.lab.accounting.published import RUNS, LionMuonRun
from steepest.lab.wording import DASH

_BATCHES = (16_384, 131_072, 524_288)  # tokens: LionMuon's at 124M, and those of larger runs
_MIB = 2**20
_READING = {
    "flops": "FLOPs of an optimizer step, the mean over its cycle; passes: those over the model that it adds; % of the "
    "model's at batches of so many tokens, extra passes included.",
    "update": "RMS of the change of a weight in a step, decay excluded, after ten steps at the full learning rate.",
    "bytes": "a step: the most that one allocates beside the state, and gives back.",
    "time": "ratio: to the baseline in the same round, with quartiles; CPU: that of CPU time; first: seconds until all "
    "kinds of steps were taken once.",
}


def step_rows(record: Mapping[str, Any]) -> list[list[str]]:
    """Time of a step by method."""
    rows = [["method", "ms", "p90", "ratio", "quartiles", "CPU", "first, s", "busy"]]
    for label, entry in record["methods"].items():
        time = entry.get("step_seconds")
        if time is None:
            rows.append([label, *[DASH] * 7])
            continue
        low, high = time["ratio_quartiles"]
        rows.append(
            [
                label,
                f"{1e3 * time['median']:.3f}",
                f"{1e3 * time['p90']:.3f}",
                f"{time['ratio']:.2f}",
                f"{low:.2f} to {high:.2f}",
                f"{time['cpu_ratio']:.2f}",
                f"{time['first_seconds']:.2f}",
                "yes" if time["contended"] else "no",
            ]
        )
    return rows


def memory_rows(record: Mapping[str, Any]) -> list[list[str]]:
    """State by role and what a step allocates, by method."""
    entries, parameters = record["methods"], record["model"]["parameters"]
    roles = list(
        dict.fromkeys(role for e in entries.values() for role in e.get("state_bytes") or {} if role != "total")
    )
    rows = [["MiB", *roles, "state", "B/param", "a step"]]
    for label, entry in entries.items():
        state = entry.get("state_bytes")
        if state is None:
            rows.append([label, *[DASH] * (len(roles) + 3)])
            continue
        sizes = [f"{state.get(role, 0) / _MIB:.3f}" for role in [*roles, "total"]]
        rows.append([label, *sizes, f"{state['total'] / parameters:.2f}", f"{entry['transient_bytes'] / _MIB:.3f}"])
    return rows


def update_rows(record: Mapping[str, Any]) -> list[list[str]]:
    """Update RMS by method and role."""
    entries = record["methods"]
    roles = list(dict.fromkeys(role for entry in entries.values() for role in entry.get("update_rms") or {}))
    found = {label: entry.get("update_rms") or {} for label, entry in entries.items()}
    cells = {label: [f"{rms[role]:.3g}" if role in rms else DASH for role in roles] for label, rms in found.items()}
    return [["update RMS", *roles], *([label, *row] for label, row in cells.items())]


def flops_rows(record: Mapping[str, Any]) -> list[list[str]]:
    """Operations of a step by method, and their share of the model's at several batches."""
    model = record["model"]
    rows = [["method", "a step", "products", "passes"]]
    rows[0] += [f"% at {tokens // 1000}k" for tokens in _BATCHES]
    for label, entry in record["methods"].items():
        step = entry.get("optimizer_flops")
        if step is None:
            rows.append([label, *[DASH] * (len(rows[0]) - 1)])
            continue
        total = entry["optimizer_flops_per_step"]
        row = [label, f"{total:.4g}", f"{step['products']:.4g}"]
        row.append(f"{step['extra_passes']:g}" if step["extra_passes"] else "0")
        passes = model["flops_per_token"]
        shares = [step["extra_passes"] + total / (passes * tokens) if passes else None for tokens in _BATCHES]
        rows.append([*row, *(DASH if share is None else f"{100 * share:.3g}" for share in shares)])
    return rows


def published_rows(ours: Mapping[str, tuple[float, float]]) -> list[list[str]]:
    """The totals of the LionMuon paper by its own convention, beside counts of ours.

    Args:
        ours: operations of the model and of our Muon in a step, by the size.
    """
    rows: list[list[str]] = [["", *RUNS]]

    def add(title: str, cell: Callable[[LionMuonRun], str]) -> None:
        rows.append([title, *(cell(run) for run in RUNS.values())])

    add("parameters", lambda run: f"{run.parameters / 1e6:.2f} M")
    add("model, a step", lambda run: f"{run.model:.4e}")
    add("spectral, a step", lambda run: f"{run.spectral:.4e}")
    add("spectral, %", lambda run: f"{100 * run.spectral / run.model:.3g}")
    add("total, AdamW", lambda run: f"{run.total(None):.4e}")
    for period in (1, 2, 5, 20):
        add(f"total, P = {period}", lambda run, period=period: f"{run.total(period):.4e}")  # type: ignore[misc]
    for place, title in enumerate(("ours: model, a step", "ours: Muon, a step")):
        rows.append([title, *(f"{ours[size][place]:.4e}" for size in RUNS)])
    return rows


def remarks(record: Mapping[str, Any], part: str) -> list[str]:
    """What did not work and what qualifies a number, one line each."""
    notes: dict[str, list[str]] = {}
    for label, entry in record["methods"].items():
        time, step = entry.get("step_seconds"), entry.get("optimizer_flops")
        found = [entry["reasons"].get(part, "")]
        if part == "time" and time and time["contended"]:
            found.append(f"not to be trusted, {time['why']}")
        if part == "flops" and step:
            found.append(step["note"])
        for note in filter(None, found):
            notes.setdefault(note, []).append(label)
    return [*(f"{', '.join(labels)}: {note}." for note, labels in notes.items()), _READING[part]]


ROWS: dict[str, Callable[[Mapping[str, Any]], list[list[str]]]] = {
    "flops": flops_rows,
    "bytes": memory_rows,
    "update": update_rows,
    "time": step_rows,
}
