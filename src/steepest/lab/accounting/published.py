"""The cost of LionMuon runs as its authors plot it, to the printed digits, for comparison with counts of ours.

Their convention (arXiv 2605.19811, released plotting code) differs from that of `flops`: 6 operations per parameter and
token, embeddings and learned positions included and attention scores not; Newton-Schulz of the hidden matrices of a
GPT-2 block, five steps of 2 min^2 (2 max + min); one operation per element of a sign step; nothing for AdamW.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class LionMuonRun:
    """The numbers of a run of the LionMuon paper that its cost depends on.

    Args:
        preset: the model of `steepest.lab.models` that it is.
        layers: number of blocks.
        width: of the residual stream.
        length: tokens of a sequence.
        batch: sequences of a step.
        steps: of the run.
        vocabulary: number of tokens, padded.
    """

    preset: str
    layers: int
    width: int
    length: int
    batch: int
    steps: int
    vocabulary: int = 50_304

    @property
    def parameters(self) -> int:
        """Their count: blocks, the tied embedding and the positions, no norms."""
        return self.layers * 12 * self.width**2 + (self.vocabulary + self.length) * self.width

    @property
    def model(self) -> int:
        """Operations of the model per step."""
        return 6 * self.parameters * self.length * self.batch

    @property
    def matrices(self) -> list[tuple[int, int]]:
        """Shapes of the hidden matrices of a block: fused queries, keys and values; output; the two of the MLP."""
        d = self.width
        return [(d, 3 * d), (d, d), (d, 4 * d), (4 * d, d)]

    @property
    def spectral(self) -> int:
        """Operations of a spectral step."""
        return self.layers * newton_schulz(self.matrices)

    @property
    def sign(self) -> int:
        """Operations of a sign step."""
        return self.layers * sum(m * n for m, n in self.matrices)

    def total(self, period: int | None) -> float:
        """Operations of the whole run; `period` None is AdamW, 1 is Muon."""
        extra = 0.0 if period is None else self.spectral / period + (1 - 1 / period) * self.sign
        return self.steps * (self.model + extra)


def newton_schulz(matrices: Sequence[tuple[int, int]], steps: int = 5) -> int:
    """Operations of plain Newton-Schulz steps on matrices: 2 m^2 n + 2 m^3 + 2 m^2 n each, m the shorter side."""
    return sum(steps * 2 * min(shape) ** 2 * (2 * max(shape) + min(shape)) for shape in matrices)


RUNS = {
    "124M": LionMuonRun(preset="lionmuon-gpt2-124m", layers=12, width=768, length=512, batch=32, steps=64_000),
    "355M": LionMuonRun(preset="lionmuon-gpt2-355m", layers=24, width=1024, length=1024, batch=512, steps=15_650),
    "720M": LionMuonRun(preset="lionmuon-gpt2-720m", layers=12, width=2048, length=512, batch=1984, steps=3500),
}
