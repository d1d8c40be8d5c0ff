"""Writes studies of schema 2: several tuned axes, variants, accounting, diagnostics; losses are known formulas."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from fake_study import INITIAL, dump, routing, seed_of, workload

STEPS = 400
TOKENS = 4096
FLOPS_PER_TOKEN = 6e6
MODEL_SECONDS = 0.4  # of a pass; what a run's clock shows beyond it and the optimizer step is the shared machine


@dataclass
class Arm:
    """A method of a study: where its best point is and how much worse others are, per octave squared."""

    name: str
    label: str
    loss: float
    axes: Mapping[str, Sequence[Any]]
    best: Mapping[str, Any]
    options: Mapping[str, Any] = field(default_factory=dict)
    defaults: Mapping[str, Any] = field(default_factory=dict)
    slope: float = 0.03
    noise: float = 0.004
    open_axes: Sequence[str] = ()
    extensions: int = 0
    flops: float = 1e8
    seconds: float = 0.1
    crowd: float = 0.0
    extra_passes: float = 0.0
    diverges_above: float = math.inf

    def excess(self, point: Mapping[str, Any]) -> float:
        """How much worse a point is than the best."""
        return sum(
            self.slope * math.log2(point[a] / self.best[a]) ** 2 if isinstance(point[a], (int, float)) else
            0.05 * (point[a] != self.best[a])
            for a in self.axes
        )  # fmt: skip


RATES = (2.5e-3, 5e-3, 1e-2, 2e-2)
ARMS = (
    Arm("adamw", "AdamW", 4.70, {"lr": RATES}, {"lr": 5e-3}, seconds=0.100),
    Arm("lion", "Lion", 4.69, {"lr": RATES}, {"lr": 1e-2}, seconds=0.098, noise=0.02, crowd=0.3),
    Arm(
        "lionmuon", "LionMuon", 4.50, {"lr": RATES, "sign_lr_ratio": (0.05, 0.1, 0.2), "period": (2, 5)},
        {"lr": 1e-2, "sign_lr_ratio": 0.1, "period": 2}, defaults={"weight_decay": 0.1}, flops=9e8, seconds=0.112,
        diverges_above=1.5e-2,
    ),
    Arm(
        "lionmuon", "LionMuon no decay", 4.53, {"lr": RATES, "sign_lr_ratio": (0.05, 0.1, 0.2)},
        {"lr": 1e-2, "sign_lr_ratio": 0.2}, options={"weight_decay": 0.0}, defaults={"period": 2},
        open_axes=("sign_lr_ratio",), extensions=3, flops=9e8, seconds=0.111,
    ),
    Arm("muon", "Muon", 4.55, {"lr": RATES}, {"lr": 2e-2}, open_axes=("lr",), extensions=3, flops=1.7e9, seconds=0.12),
)  # fmt: skip


def final_loss(arm: Arm, point: Mapping[str, Any], seed: int) -> float:
    shared = np.random.default_rng(seed_of(seed)).normal(0, 0.02)
    own = np.random.default_rng(seed_of(arm.label, sorted(point.items()), seed)).normal(0, arm.noise)
    return float(arm.loss + arm.excess(point) + shared + own)


def write_grid_run(
    folder: Path,
    arm: Arm,
    point: Mapping[str, Any],
    seed: int,
    *,
    purpose: str,
    lines: int = 40,
    diagnostics: bool = False,
) -> dict[str, Any]:
    """One run; returns its final.json."""
    steps, diverged = STEPS, point["lr"] > arm.diverges_above
    last = steps // 4 if diverged else steps
    options = {**arm.defaults, **arm.options, **{k: v for k, v in point.items() if k != "lr"}}
    method = {"name": arm.name, "label": arm.label, "lr": point["lr"], "options": options}
    dump(
        folder / "config.json",
        {"method": method, "seed": seed, "purpose": purpose, "workload": workload(steps, TOKENS)},
    )
    dump(folder / "env.json", {"versions": {"torch": "2.13.0"}, "machine": {"cpu": "Example CPU", "cores": 2}})
    dump(folder / "status.json", {"state": "diverged" if diverged else "done", "step": last})
    dump(folder / "routing.json", routing({"lionmuon": "lion_muon"}.get(arm.name, arm.name)))
    end = final_loss(arm, point, seed)

    def curve(step: float) -> float:
        fall = (1 + step / 12) ** -0.75 - (1 + steps / 12) ** -0.75 * step / steps
        return end + (INITIAL - end) * fall if not diverged else INITIAL + 0.02 * step

    clock = MODEL_SECONDS * (1 + arm.extra_passes) + arm.seconds + arm.crowd

    def at(step: int) -> dict[str, Any]:
        return {"step": step, "tokens": step * TOKENS, "seconds": step * clock}

    with (folder / "metrics.jsonl").open("w") as f:
        for i, step in enumerate(range(max(1, steps // lines), last + 1, max(1, steps // lines))):
            record = {**at(step), "loss": curve(step), "lr": {arm.name: point["lr"]}, "grad_norm": 0.5}
            if diagnostics and i % 4 == 0:
                rms = {"attention": point["lr"] * 0.2, "mlp": point["lr"] * 0.3}
                record["diagnostics"] = {"noise_scale": 10.0 + step, "polar_residual": {"mlp": 0.1}, "update_rms": rms}
            f.write(json.dumps(record) + "\n")
    with (folder / "evals.jsonl").open("w") as f:
        for step in range(0, last + 1, steps // 10):
            f.write(json.dumps({**at(step), "loss": curve(step)}) + "\n")
    words = " ".join(f"-o method.options.{k}={v}" for k, v in options.items())
    final = {
        **at(last),
        "state": "diverged" if diverged else "done",
        "loss": None if diverged else end,
        "perplexity": None if diverged else math.exp(end),
        "bits_per_byte": None if diverged else end / math.log(2) / 3.7,
        "state_bytes": sum(row["state_bytes"] for row in routing({"lionmuon": "lion_muon"}.get(arm.name, arm.name))),
        "tokens_per_second": TOKENS / clock,
        "data_hash": f"data {seed} {last}",
        "init_hash": f"init {seed}",
        "command": f"steepest train --optimizer {arm.name} --lr {point['lr']:g} --seed {seed} {words}".strip(),
    }
    dump(folder / "final.json", final)
    return final


def run_id(arm: Arm, point: Mapping[str, Any], seed: int) -> str:
    return f"{arm.name}-lr{point['lr']:g}-s{seed}-{seed_of(arm.label, sorted(point.items()), seed):08x}"


def write_grid_study(
    folder: Path,
    arms: Sequence[Arm] = ARMS,
    seeds: Sequence[int] = (1, 2, 3, 4, 5),
    *,
    name: str = "two rates and a period",
    accounting: bool = True,
    diagnostics: bool = True,
    lines: int = 40,
    search: str = "grid",
) -> Path:
    """Every combination of the axes at seed 0, the best point at `seeds`."""
    entries = []
    for arm in arms:
        points = [dict(zip(arm.axes, values, strict=True)) for values in itertools.product(*arm.axes.values())]
        tuning = []
        for point in points:
            at = folder / "runs" / run_id(arm, point, 0)
            final = write_grid_run(at, arm, point, 0, purpose="tune", lines=lines)
            extended = arm.extensions if any(point.get(a) == arm.axes.get(a, [None])[-1] for a in arm.open_axes) else 0
            tuning.append(
                {"point": point, "lr": point["lr"], "extension": extended, "run_id": at.name, "loss": final["loss"],
                 "state": final["state"]}
            )  # fmt: skip
        best = min((t for t in tuning if t["loss"] is not None), key=lambda t: t["loss"])["point"]
        for seed in seeds:
            at = folder / "runs" / run_id(arm, best, seed)
            write_grid_run(at, arm, best, seed, purpose="final", lines=lines, diagnostics=diagnostics)
        entries.append(
            {
                "name": arm.name,
                "label": arm.label,
                "options": dict(arm.options),
                "search": search,
                "axes": {a: list(values) for a, values in arm.axes.items()},
                "tuning": tuning,
                "best": best,
                "best_lr": best["lr"],
                "open_axes": list(arm.open_axes),
                "edge": bool(arm.open_axes),
                "trials": len(tuning),
            }
        )
    dump(
        folder / "study.json",
        {
            "schema": 2,
            "name": name,
            "command": "steepest study run study.toml --out runs",
            "created": "2026-11-22T10:00:00Z",
            "versions": {"python": "3.11.2", "torch": "2.13.0", "steepest": "0.1.0"},
            "machine": {"cpu": "Example CPU @ 2.00GHz", "cores": 2, "threads": 1, "gpus": []},
            "seconds_per_step": 0.1,
            "tier": "CPU proxy",
            "workload": workload(STEPS, TOKENS),
            "baseline": "adamw",
            "methods": entries,
            "tuning_seed": 0,
            "seeds": list(seeds),
            "failures": {},
            "config": {"name": name, "seeds": list(seeds), "methods": [{"name": arm.name} for arm in arms]},
        },
    )
    if accounting:
        dump(folder / "accounting.json", accounting_of(arms))
    return folder


def accounting_of(arms: Sequence[Arm]) -> dict[str, Any]:
    return {
        "model": {"flops_per_token": FLOPS_PER_TOKEN},
        "methods": {
            arm.label: {
                "optimizer_flops_per_step": arm.flops,
                "optimizer_flops": {"extra_passes": arm.extra_passes},
                "transient_bytes": 1e6,
                "step_seconds": {
                    "median": arm.seconds,
                    "p90": arm.seconds * 1.1,
                    "ratio": arm.seconds / 0.1,
                    "contended": False,
                },
                "update_rms": {"mlp": 0.2},
            }
            for arm in arms
        },
        "baseline": "AdamW",
        "machine": {"cpu": "Example CPU"},
        "command": "steepest bench study runs/x",
    }
