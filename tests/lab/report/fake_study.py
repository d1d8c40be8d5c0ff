"""Writes run directories as training does, with plausible numbers and no training: raw material of the report tests."""

from __future__ import annotations

import hashlib
import json
import math
from pathlib import Path

import numpy as np

from steepest.lab.processes import here

# label, loss at the best learning rate, that rate, bytes of state per (matrix, other) parameter, relative speed
METHODS = {
    "adamw": ("AdamW", 4.684, 8e-3, (8, 8), 1.00),
    "signum": ("Signum", 4.777, 1e-3, (4, 4), 1.05),
    "lion": ("Lion", 4.781, 1e-3, (4, 4), 1.04),
    "muon": ("Muon", 4.441, 1e-2, (4, 8), 0.90),
    "sign_muon": ("SignMuon", 4.566, 1e-2, (4, 8), 0.95),
    "lion_muon": ("LionMuon", 4.549, 1e-2, (4, 8), 0.94),
}
VOCABULARY, WIDTH, LAYERS, HIDDEN = 4096, 128, 4, 352
INITIAL = math.log(VOCABULARY)


def parameters() -> list[tuple[str, tuple[int, ...], str]]:
    rows = [("model.embed_tokens.weight", (VOCABULARY, WIDTH), "embedding")]
    for i in range(LAYERS):
        block = f"model.layers.{i}"
        rows += [(f"{block}.self_attn.{x}_proj.weight", (WIDTH, WIDTH), "attention") for x in "qkvo"]
        rows += [(f"{block}.mlp.{x}_proj.weight", (HIDDEN, WIDTH), "mlp") for x in ("gate", "up")]
        rows += [(f"{block}.mlp.down_proj.weight", (WIDTH, HIDDEN), "mlp")]
        rows += [(f"{block}.{x}_layernorm.weight", (WIDTH,), "norm") for x in ("input", "post_attention")]
    return [*rows, ("model.norm.weight", (WIDTH,), "norm")]


PARAMETERS = sum(math.prod(shape) for _, shape, _ in parameters())


def routing(method: str) -> list[dict]:
    matrix, other = METHODS.get(method, METHODS["adamw"])[3]
    rows = []
    for name, shape, role in parameters():
        hidden = role in ("attention", "mlp")
        spectral = "muon" in method
        rows.append(
            {
                "name": name,
                "shape": list(shape),
                "view": "whole" if hidden else None,
                "role": role,
                "rule": method if hidden or not spectral else "adamw",
                "rms_step": 1.2345678901234567e-3 if hidden else 1e-3,
                "state_bytes": math.prod(shape) * (matrix if hidden else other),
                "why": "hidden matrix" if hidden else f"{role}: not a hidden matrix",
            }
        )
    return rows


def workload(steps: int, tokens_per_step: int = 4096) -> dict:
    return {
        "model": {
            "preset": "mini",
            "family": "llama",
            "layers": LAYERS,
            "width": WIDTH,
            "vocabulary": VOCABULARY,
            "parameters": PARAMETERS,
            "non_embedding_parameters": PARAMETERS - VOCABULARY * WIDTH,
        },
        "data": {
            "name": "news-wiki",
            "tokenizer": "bpe-4096",
            "sha256": hashlib.sha256(b"corpus").hexdigest(),
            "train_tokens": 4_412_345,
            "validation_tokens": 131_072,
            "bytes_per_token": 3.7123,
        },
        "batch_size": 32,
        "sequence_length": 128,
        "steps": steps,
        "tokens_per_step": tokens_per_step,
        "schedule": {"kind": "cosine", "warmup": 0.05, "final": 0.0},
        "clip": 1.0,
        "precision": "fp32",
    }


def dump(path: Path, value: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=1), encoding="utf-8")


def seed_of(*parts: object) -> int:
    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:4], "little")


def write_run(
    folder: Path,
    method: str,
    lr: float,
    seed: int,
    *,
    steps: int = 400,
    purpose: str = "final",
    stop: int | None = None,
) -> dict:
    """Write one run, return its final.json (empty if stopped at step `stop`). A rate far above the best diverges."""
    _, loss, best, _, speed = METHODS[method]
    off = math.log2(lr / best)
    diverged = off > 2.5
    # Most of the noise belongs to the seed and is shared by all methods, so that pairing pays.
    noise = np.random.default_rng(seed_of(seed)).normal(0, 0.02) + np.random.default_rng(
        seed_of(method, lr, seed)
    ).normal(0, 0.006)
    end = loss + 0.035 * off**2 + noise
    jitter = np.random.default_rng(seed_of("jitter", method, lr, seed))
    tokens_per_step, rate = 4096, 13_000 * speed * (1 + 0.01 * seed)
    last = stop or (steps // 4 if diverged else steps)

    def curve(step: int) -> float:
        if diverged and step > 30:
            return INITIAL + 0.02 * (step - 30)
        x = step / steps
        return end + (INITIAL - end) * ((1 + step / 12) ** -0.75 - (1 + steps / 12) ** -0.75 * x)

    folder.mkdir(parents=True, exist_ok=True)
    dump(
        folder / "config.json",
        {"method": {"name": method, "lr": lr}, "lr": lr, "seed": seed, "purpose": purpose, "workload": workload(steps)},
    )
    dump(
        folder / "env.json",
        {
            "argv": ["steepest", "train", "--method", method, "--lr", f"{lr:g}", "--seed", str(seed)],
            "versions": {"python": "3.11.2", "torch": "2.13.0", "steepest": "0.1.0", "transformers": "5.1.0"},
            "machine": {"cpu": "Example CPU", "cores": 2, "threads": 1},
        },
    )
    dump(folder / "routing.json", routing(method))
    with (folder / "metrics.jsonl").open("w") as f:
        for step in range(1, last + 1, 2):
            record = {
                "step": step,
                "tokens": step * tokens_per_step,
                "seconds": step * tokens_per_step / rate,
                "loss": curve(step) + float(jitter.normal(0, 0.06)),
                "lr": {method: lr},
                "grad_norm": 0.5,
                "tokens_per_second": rate,
            }
            f.write(json.dumps(record) + "\n")
    with (folder / "evals.jsonl").open("w") as f:
        for step in sorted({*range(0, last + 1, max(1, steps // 20)), last}):
            value = curve(step)
            record = {
                "step": step,
                "tokens": step * tokens_per_step,
                "seconds": step * tokens_per_step / rate,
                "loss_sum": value * 131_072,
                "count": 131_072,
                "loss": value,
                "perplexity": math.exp(value),
                "bits_per_byte": value / math.log(2) / 3.7123,
            }
            f.write(json.dumps(record) + "\n")
    state = "interrupted" if stop else "diverged" if diverged else "done"
    dump(folder / "status.json", {"state": state, "step": last, "pid": 4711, "updated": "2026-11-02T10:00:00Z"})
    if stop:
        return {}
    value = curve(last)
    final = {
        "state": state,
        "step": last,
        "tokens": last * tokens_per_step,
        "seconds": last * tokens_per_step / rate,
        "loss": value,
        "perplexity": math.exp(value),
        "bits_per_byte": value / math.log(2) / 3.7123,
        "state_bytes": sum(row["state_bytes"] for row in routing(method)),
        "tokens_per_second": rate,
        "data_hash": hashlib.sha256(f"data {seed} {last}".encode()).hexdigest(),
        "init_hash": hashlib.sha256(f"init {seed}".encode()).hexdigest(),
        "command": f"steepest train --method {method} --lr {lr:g} --seed {seed}",
    }
    dump(folder / "final.json", final)
    return final


def write_study(
    folder: Path,
    methods: tuple[str, ...] = tuple(METHODS),
    seeds: tuple[int, ...] = (1, 2, 3, 4),
    *,
    steps: int = 400,
    edge: tuple[str, ...] = (),
    labels: dict[str, str] | None = None,
) -> Path:
    """Write a study: a five-point grid per method at seed 0 (its largest rate diverges), then the best rate at `seeds`.

    For a method in `edge` the grid ends at the best rate.
    """
    labels = labels or {}
    entries = []
    for method in methods:
        label, _, best, _, _ = METHODS[method]
        grid = [best * 2.0**k for k in ((-4, -3, -2, -1, 0) if method in edge else (-2, -1, 0, 1, 3))]
        tuning = []
        for lr in grid:
            run_id = f"{method}-lr{lr:g}-s0-{seed_of(method, lr, 0):08x}"
            final = write_run(folder / "runs" / run_id, method, lr, 0, steps=steps, purpose="tune")
            loss = final["loss"] if final["state"] == "done" else None
            tuning.append({"lr": lr, "run_id": run_id, "loss": loss, "state": final["state"]})
        for seed in seeds:
            write_run(folder / "runs" / final_id(method, seed), method, best, seed, steps=steps)
        entries.append(
            {
                "name": method,
                "label": labels.get(method, label),
                "options": {"weight_decay": 0.1},
                "grid": grid,
                "tuning": tuning,
                "best_lr": best,
                "edge": method in edge,
            }
        )
    dump(
        folder / "study.json",
        {
            "schema": 1,
            "name": "six methods on news-wiki",
            "command": "steepest compare --methods adamw,signum,lion,muon,sign_muon,lion_muon --out runs/demo",
            "created": "2026-11-02T10:00:00Z",
            "versions": {"python": "3.11.2", "torch": "2.13.0", "steepest": "0.1.0", "transformers": "5.1.0"},
            "machine": {"cpu": "Example CPU @ 2.00GHz", "cores": 2, "threads": 1},
            "tier": "CPU proxy",
            "workload": workload(steps),
            "baseline": "adamw",
            "methods": entries,
            "tuning_seed": 0,
            "seeds": list(seeds),
        },
    )
    return folder


def final_id(method: str, seed: int) -> str:
    best = METHODS[method][2]
    return f"{method}-lr{best:g}-s{seed}-{seed_of(method, best, seed):08x}"


EVIL = "<script>alert('x')</script> $a_b$ & \"q\" | %{x}"


def write_messy_study(folder: Path) -> Path:
    """Everything that goes wrong at once.

    One seed of AdamW has no final.json, one of LionMuon diverged, one of Muon was interrupted and left a torn line in
    evals.jsonl, Lion's best rate is at the edge, Signum has a harmful label, and SignMuon has no finished seed.
    """
    write_study(folder, edge=("lion",), labels={"signum": EVIL})
    runs = folder / "runs"
    (runs / final_id("adamw", 4) / "final.json").unlink()
    diverged = runs / final_id("lion_muon", 3)
    final = json.loads((diverged / "final.json").read_text())
    dump(diverged / "final.json", {**final, "state": "diverged", "loss": 8.0, "perplexity": None, "step": 210})
    for name in ("evals.jsonl", "metrics.jsonl"):
        records = [json.loads(line) for line in (diverged / name).read_text().splitlines()]
        records = [{**r, "loss": r["loss"] + max(0, r["step"] - 150) * 0.05} for r in records if r["step"] <= 210]
        (diverged / name).write_text("".join(json.dumps(r) + "\n" for r in records))
    interrupted = runs / final_id("muon", 2)
    for file in interrupted.iterdir():
        file.unlink()
    write_run(interrupted, "muon", METHODS["muon"][2], 2, stop=180)
    with (interrupted / "evals.jsonl").open("a") as f:
        f.write('{"step": 200, "tokens": 8192')
    for seed in (1, 2, 3, 4):
        (runs / final_id("sign_muon", seed) / "final.json").unlink()
        dump(runs / final_id("sign_muon", seed) / "status.json", {"state": "running", "step": 100, **here()})
    return folder
