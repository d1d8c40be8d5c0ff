"""The memory tables of papers, counted anew with `steepest.state_bytes`."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

import steepest
from steepest.lab.memory.architectures import meta_model
from steepest.lab.memory.counting import UNITS, hybrid, torch_dtype


@dataclass(frozen=True, kw_only=True)
class Published:
    """A table of a paper, counted anew.

    Attributes:
        title: what it shows and whose it is.
        unit: "GiB" or "GB".
        dtype: of everything, one of `DTYPES`.
        weights: count the weights, too.
        models: presets by title of their column.
        arms: (label, method as for `hybrid`).
        printed: what the paper prints, as text, by (label, title of the model).
        note: about the sources.
        tables: matrices of vocabulary x width that the paper counts besides.
    """

    title: str
    unit: str
    dtype: str
    weights: bool
    models: dict[str, str]
    arms: tuple[tuple[str, str], ...]
    printed: dict[tuple[str, str], str]
    note: str
    tables: int = 0


_HYBRIDS = (
    ("SinkGD-Hybrid", "hidden=sinkgd+rest=adamw"),
    ("Lion-Hybrid", "hidden=sinkgd+embeddings=lion+vectors=adamw"),
    ("SAGE-Hybrid", "hidden=sinkgd+rest=sage"),
)
_ARMS = (("AdamW", "hidden=adamw"), ("Lion", "hidden=lion"), *_HYBRIDS)
_C4 = {"60M": "llama-60m", "130M": "llama-130m", "350M": "llama-350m", "1.3B": "llama-1b", "7B": "llama-7b"}
_SIZES = "LLaMA models of the C4 harness of GaLore (vocabulary 32,000, untied)"
_OURS = "No paper prints these numbers; they are counted here."
_BF16 = (
    f"{_OURS} SAGE's S stays in float32, and has as many numbers as a vector: so SAGE-Hybrid is more than half of its "
    "float32, by 0.0005 GiB at 7B."
)
_SAC = {
    "AdamW": ("0.25", "0.55", "1.43", "5.11", "10.2"),
    "Lion": ("0.14", "0.30", "0.75", "2.62", None),
    "Muon": ("0.14", "0.30", "0.75", "2.62", "5.2"),
}
_SAC_MODELS = {"60M": "llama-60m", "130M": "llama-130m", "350M": "llama-350m", "1B": "llama-1b", "3B": "llama-3b"}

PUBLISHED = (
    Published(
        title="SAGE, arXiv 2604.07663, table of results: optimizer state",
        unit="GiB",
        dtype="fp32",
        weights=False,
        models={"270M": "llama-270m-sage", "1.3B": "llama-1.3b-sage"},
        arms=_ARMS,
        printed={
            ("AdamW", "270M"): "2.1",
            ("Lion", "270M"): "1.0",
            ("SinkGD-Hybrid", "270M"): "0.9",
            ("SAGE-Hybrid", "270M"): "0.5",
            ("AdamW", "1.3B"): "9.83",
            ("Lion", "1.3B"): "4.9",
            ("SinkGD-Hybrid", "1.3B"): "1.9",
            ("SAGE-Hybrid", "1.3B"): "0.98",
        },
        note="As others quote the paper. The layouts of the models are inferred from these numbers; it gives none.",
    ),
    Published(
        title="SAGE, arXiv 2604.07663, Figure 2c: optimizer state",
        unit="GiB",
        dtype="fp32",
        weights=False,
        models={"1.3B": "llama-1.3b-sage"},
        arms=_ARMS,
        printed={
            ("AdamW", "1.3B"): "9.84",
            ("Lion", "1.3B"): "4.93",
            ("SinkGD-Hybrid", "1.3B"): "1.97",
            ("Lion-Hybrid", "1.3B"): "0.99",
            ("SAGE-Hybrid", "1.3B"): "0.99",
        },
        note="Read off the bars of the figure, to about 0.01.",
    ),
    *(
        Published(
            title=f"{_SIZES}: optimizer state in {dtype}",
            unit="GiB",
            dtype=dtype,
            weights=False,
            models=_C4,
            arms=_ARMS,
            printed={},
            note=note,
        )
        for dtype, note in (("fp32", _OURS), ("bf16", _BF16))
    ),
    Published(
        title=f"{_SIZES}: weights and optimizer state in bf16",
        unit="GB",
        dtype="bf16",
        weights=True,
        models=_C4,
        arms=(("Adam", "hidden=adamw"), ("SinkGD", "hidden=sinkgd+rest=adamw")),
        printed={},
        note=f"As SinkGD, arXiv 2502.06742, and GaLore count. {_OURS}",
    ),
    Published(
        title="SAC, OpenReview EB92tITeNq, Tables 1 and 4: optimizer state in bf16 and a matrix of vocabulary x width",
        unit="GiB",
        dtype="bf16",
        weights=False,
        models=_SAC_MODELS,
        arms=(("AdamW", "hidden=adamw"), ("Lion", "hidden=lion"), ("Muon", "hidden=muon")),
        printed={
            (label, size): text
            for label, texts in _SAC.items()
            for size, text in zip(_SAC_MODELS, texts, strict=True)
            if text is not None
        },
        note="The paper says that weights are counted; what meets its numbers is the state and one more matrix of "
        "vocabulary x width, so both are here. It prints the same for SAC + AdamW, whose own state is plain numbers. "
        "It gives Muon one buffer for all; ours has AdamW's two on embeddings, head and vectors.",
        tables=1,
    ),
    Published(
        title="Qwen of 134M as LASM trains, fp32: optimizer state",
        unit="GiB",
        dtype="fp32",
        weights=False,
        models={"134M": "qwen-134m"},
        arms=(("AdamW", "hidden=adamw"), ("LASM", "hidden=lasm")),
        printed={},
        note=f"LASM keeps two buffers, as much as AdamW, though its paper says that it is light on memory. {_OURS}",
    ),
)


def published() -> list[dict[str, Any]]:
    """Every cell of `PUBLISHED`: where it is, its bytes, the number in its unit, and how it meets the printed one."""
    found = []
    networks: dict[tuple[str, str], nn.Module] = {}
    for table in PUBLISHED:
        divisor = {name: size for pair in UNITS for size, name in pair}[table.unit]
        for column, preset in table.models.items():
            key = (preset, table.dtype)
            if key not in networks:
                networks[key] = meta_model(preset).to(torch_dtype(table.dtype))
            network = networks[key]
            weights = sum(parameter.nbytes for parameter in network.parameters()) * table.weights
            matrix = network.get_input_embeddings().weight.nbytes * table.tables  # type: ignore[operator]
            for label, method in table.arms:
                rule, routing = hybrid(method)
                size = steepest.state_bytes(network, rule, **routing)["total"] + weights + matrix
                text = table.printed.get((label, column))
                found.append(
                    {
                        "table": table.title,
                        "method": label,
                        "rules": method,
                        "model": column,
                        "preset": preset,
                        "bytes": size,
                        "unit": table.unit,
                        "counted": size / divisor,
                        "printed": text,
                        "agreement": agreement(size / divisor, text),
                    }
                )
    return found


def agreement(value: float, printed: str | None) -> str:
    """How a number meets the digits that a paper prints: "equal", "cut off" (not rounded), a difference, or ""."""
    if printed is None:
        return ""
    digits = len(printed.partition(".")[2])
    if f"{value:.{digits}f}" == printed:
        return "equal"
    if math.floor(value * 10**digits) == round(float(printed) * 10**digits):
        return "cut off"
    return f"{value / float(printed) - 1:+.1%}"


def published_tables(cells: Sequence[Mapping[str, Any]]) -> list[tuple[str, list[list[str]], str]]:
    """(title, rows of text with the titles first, sentences below) of each table."""
    tables = []
    for table in PUBLISHED:
        own = [cell for cell in cells if cell["table"] == table.title]
        rows = [[table.unit, *table.models]]
        for label, _ in table.arms:
            texts = [(f"{cell['counted']:.4f}", cell["printed"]) for cell in own if cell["method"] == label]
            rows.append([label, *(f"{ours} [{theirs}]" if theirs else ours for ours, theirs in texts)])
        met = [cell["agreement"] for cell in own if cell["printed"]]
        other = [text for text in met if text not in ("equal", "cut off")]
        parts = [f"{met.count('equal')} of {len(met)} printed numbers [in brackets] are met"] if met else []
        parts += [f"{met.count('cut off')} are cut off instead of rounded"] if "cut off" in met else []
        parts += [f"{len(other)} differ, ours by {', '.join(other)}"] if other else []
        tables.append((table.title, rows, f"{table.note} {'; '.join(parts)}{'.' if parts else ''}".strip()))
    return tables
