"""The optimizers and the parameter set that the benchmarks share."""

from __future__ import annotations

import fnmatch
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

LR, DECAY = 1e-6, 0.1  # so small that thousands of steps leave the shared parameters as they were; equal work for all


def gpt2_shapes(
    layers: int = 12, width: int = 768, vocabulary: int = 50257, positions: int = 1024
) -> list[tuple[str, tuple[int, ...]]]:
    """(name, shape) of every tensor of GPT-2 with a tied head, in the (in, out) layout of its `Conv1D` modules.

    The defaults are GPT-2 124M: 148 tensors, 124,439,808 parameters, 84,934,656 of them in the 48 hidden matrices.
    """
    shapes: list[tuple[str, tuple[int, ...]]] = [("wte", (vocabulary, width)), ("wpe", (positions, width))]
    for i in range(layers):
        for name, shape in {
            "attn.c_attn": (width, 3 * width),
            "attn.c_proj": (width, width),
            "mlp.c_fc": (width, 4 * width),
            "mlp.c_proj": (4 * width, width),
        }.items():
            shapes += [(f"h.{i}.{name}.weight", shape), (f"h.{i}.{name}.bias", shape[1:])]
        shapes += [(f"h.{i}.{norm}.{part}", (width,)) for norm in ("ln_1", "ln_2") for part in ("weight", "bias")]
    return [*shapes, ("ln_f.weight", (width,)), ("ln_f.bias", (width,))]


FULL = gpt2_shapes()
QUICK = gpt2_shapes(layers=2, width=64, vocabulary=512, positions=64)


def is_hidden(name: str, shape: tuple[int, ...]) -> bool:
    """Whether a tensor is one of the hidden matrices, which a spectral method steps."""
    return name.startswith("h.") and len(shape) == 2


def make_parameters(shapes: list[tuple[str, tuple[int, ...]]]) -> dict[str, nn.Parameter]:
    """Parameters with gradients: fixed Gaussian numbers."""
    generator = torch.Generator().manual_seed(0)
    parameters = {}
    for name, shape in shapes:
        parameters[name] = nn.Parameter(torch.randn(shape, generator=generator).mul_(0.02))
        parameters[name].grad = torch.randn(shape, generator=generator).mul_(1e-3)
    return parameters


@dataclass(frozen=True)
class Candidate:
    """One optimizer to measure.

    Attributes:
        name: shown in the tables.
        family: "elementwise" steps every tensor, "spectral" the hidden matrices, "embedding" the token embedding, and
            "kernels" maps the gradients of the hidden matrices.
        build: makes the optimizer from a list of parameters; imports its package late, so that one process loads only
            what it measures.
        steps: steps per sample, a full period of an alternating method; times are per step.
    """

    name: str
    family: str
    build: Callable[[list[nn.Parameter]], torch.optim.Optimizer]
    steps: int = 1

    def make(self, parameters: dict[str, nn.Parameter]) -> torch.optim.Optimizer:
        """The optimizer over the parameters of its family."""
        if self.family == "embedding":
            return self.build([parameters["wte"]])
        chosen = [p for n, p in parameters.items() if self.family == "elementwise" or is_hidden(n, tuple(p.shape))]
        return self.build(chosen)


def _steepest(name: str, **options: object) -> Callable[[list[nn.Parameter]], torch.optim.Optimizer]:
    def build(parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
        import steepest

        return getattr(steepest, name)(parameters, lr=LR, weight_decay=DECAY, **options)

    return build


def _torch(name: str, **options: object) -> Callable[[list[nn.Parameter]], torch.optim.Optimizer]:
    return lambda parameters: getattr(torch.optim, name)(parameters, lr=LR, weight_decay=DECAY, **options)


def _other(module: str, name: str, **options: object) -> Callable[[list[nn.Parameter]], torch.optim.Optimizer]:
    def build(parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
        import importlib

        return getattr(importlib.import_module(module), name)(parameters, lr=LR, weight_decay=DECAY, **options)

    return build


class Mapped:
    """Has the ``step`` and ``state`` of an optimizer, and maps the gradients by a kernel of the library."""

    def __init__(self, parameters: list[nn.Parameter], kernel: Callable[[torch.Tensor], torch.Tensor]) -> None:
        self.gradients = [p.grad for p in parameters if p.grad is not None]
        self.kernel = kernel
        self.state: dict[nn.Parameter, dict[str, torch.Tensor]] = {}

    def step(self) -> None:
        """Map all of them."""
        for gradient in self.gradients:
            self.kernel(gradient)


def _polar(**options: object) -> Callable[[list[nn.Parameter]], Mapped]:
    def build(parameters: list[nn.Parameter]) -> Mapped:
        from steepest import kernels

        return Mapped(parameters, lambda g: kernels.polar(g, 5, **options))

    return build


def _soft_polar(level: float, **options: object) -> Callable[[list[nn.Parameter]], Mapped]:
    """At a temperature of ``level`` over the largest singular value."""

    def build(parameters: list[nn.Parameter]) -> Mapped:
        from steepest import kernels

        def soft(g: torch.Tensor) -> torch.Tensor:
            largest = 1e-3 * (g.shape[0] ** 0.5 + g.shape[1] ** 0.5)  # of such a Gaussian matrix
            return kernels.soft_polar(g, level / largest, 5, **options)

        return Mapped(parameters, soft)

    return build


# Within a long transition the temperature hardly moves from step to step: early in it most elements are saturated.
EARLY = {"transition": (0, 1_000_000), "clock": 50_000}
SOFT = {"transition": (0, 1_000_000), "clock": 500_000}
# A transition that makes its fit anew at every step.
FITTING = {"transition": (0, 1_000_000), "refresh_every": 1}
BASES = {
    "elementwise": "torch AdamW (fused)",
    "spectral": "torch Muon",
    "embedding": "torch AdamW (fused), embedding",
    "kernels": "polar, 5 steps, float32",
}
CANDIDATES = [
    Candidate("torch AdamW (fused)", "elementwise", _torch("AdamW", fused=True)),
    Candidate("steepest Signum (foreach)", "elementwise", _steepest("Signum", backend="foreach")),
    Candidate("steepest Signum (compile)", "elementwise", _steepest("Signum", backend="compile")),
    Candidate("steepest Lion (foreach)", "elementwise", _steepest("Lion", backend="foreach")),
    Candidate("steepest Lion (compile)", "elementwise", _steepest("Lion", backend="compile")),
    *[
        Candidate(
            f"steepest SoftSignum, {phase} ({backend})", "elementwise", _steepest("SoftSignum", backend=backend, **o)
        )
        for backend in ("foreach", "compile")
        for phase, o in (("sign phase", {}), ("soft phase, p = 0.05", EARLY), ("soft phase, p = 0.5", SOFT))
    ],
    Candidate("steepest SoftSignum, fit and step (foreach)", "elementwise", _steepest("SoftSignum", **FITTING)),
    Candidate("steepest LASM (foreach)", "elementwise", _steepest("LASM", backend="foreach")),
    Candidate("steepest LASM (compile)", "elementwise", _steepest("LASM", backend="compile")),
    *[
        Candidate(
            f"steepest Lion, {bits} momentum ({backend})",
            "elementwise",
            _steepest("Lion", backend=backend, state_dtype=dtype),
        )
        for bits, dtype, backend in (
            ("bf16", "bfloat16", "foreach"),
            ("bf16", "bfloat16", "compile"),
            ("8-bit", "int8", "foreach"),
        )
    ],
    Candidate("pytorch-optimizer SignSGD (loop)", "elementwise", _other("pytorch_optimizer", "SignSGD", foreach=False)),
    Candidate("pytorch-optimizer Lion (loop)", "elementwise", _other("pytorch_optimizer", "Lion", foreach=False)),
    Candidate("pytorch-optimizer Lion (foreach)", "elementwise", _other("pytorch_optimizer", "Lion", foreach=True)),
    Candidate("torch-optimi Lion (loop)", "elementwise", _other("optimi", "Lion", foreach=False, triton=False)),
    Candidate("torch-optimi Lion (foreach)", "elementwise", _other("optimi", "Lion", foreach=True, triton=False)),
    Candidate("lion-pytorch Lion", "elementwise", _other("lion_pytorch", "Lion")),
    Candidate("torch Muon", "spectral", _torch("Muon")),
    Candidate("steepest Muon", "spectral", _steepest("Muon")),
    Candidate("steepest SoftMuon, hard phase", "spectral", _steepest("SoftMuon")),
    Candidate("steepest SoftMuon, soft phase", "spectral", _steepest("SoftMuon", **SOFT)),
    Candidate("steepest SoftMuon, fit and step", "spectral", _steepest("SoftMuon", **FITTING)),
    Candidate("steepest SignMuon, period 2", "spectral", _steepest("SignMuon", period=2), steps=2),
    Candidate("steepest LionMuon, period 2", "spectral", _steepest("LionMuon", period=2), steps=2),
    Candidate("torch AdamW (fused), hidden", "spectral", _torch("AdamW", fused=True)),
    Candidate("steepest SinkGD", "spectral", _steepest("SinkGD")),
    Candidate("steepest SinkGD (compile)", "spectral", _steepest("SinkGD", backend="compile")),
    Candidate("torch AdamW (fused), embedding", "embedding", _torch("AdamW", fused=True)),
    Candidate("steepest SAGE", "embedding", _steepest("SAGE")),
    Candidate("steepest SAGE (compile)", "embedding", _steepest("SAGE", backend="compile")),
    Candidate("steepest Lion, embedding", "embedding", _steepest("Lion")),
    Candidate("polar, 5 steps, float32", "kernels", _polar()),
    Candidate("soft_polar, 5 steps, float32", "kernels", _soft_polar(10.0)),
    Candidate("soft_polar, fitted, temperature x s_1 = 10", "kernels", _soft_polar(10.0, coefficients="fitted")),
    Candidate("soft_polar, fitted, temperature x s_1 = 1", "kernels", _soft_polar(1.0, coefficients="fitted")),
]


def select(pattern: str) -> list[Candidate]:
    """Candidates whose name matches a shell pattern ("*Lion*|*Muon"), and the bases of their families.

    Raises:
        SystemExit: nothing matches.
    """
    chosen = [c for c in CANDIDATES if any(fnmatch.fnmatch(c.name, p) for p in pattern.split("|"))]
    if not chosen:
        raise SystemExit(
            f"no candidate matches {pattern!r}; the names are:\n  " + "\n  ".join(c.name for c in CANDIDATES)
        )
    bases = {BASES[c.family] for c in chosen}
    return [c for c in CANDIDATES if c in chosen or c.name in bases]


def state_bytes(optimizer: torch.optim.Optimizer) -> int:
    """Bytes of all state tensors."""
    tensors = (value for state in optimizer.state.values() for value in state.values())
    return sum(t.numel() * t.element_size() for t in tensors if isinstance(t, torch.Tensor))
