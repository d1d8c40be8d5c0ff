"""A small problem with layers and blocks, and the optimizers that are wrapped around it."""

from __future__ import annotations

import torch
from torch import nn

import cases
import steepest
from steepest.scaling.wrapper import Wrapper

SHAPES = {
    "embed.weight": (12, 6),
    "layers.0.attention.weight": (6, 6),
    "layers.0.attention.bias": (6,),
    "layers.0.mlp.weight": (8, 6),
    "norm.weight": (6,),
    "layers.1.attention.weight": (6, 6),
    "layers.1.mlp.weight": (6, 8),
    "head.weight": (12, 6),
}
MAPPING = [
    (r"layers\.(\d+)\.(\w+)\.weight", lambda match: (int(match[1]), match[2])),
    (r"^embed", (-1, "embedding")),
    (r"^head", (2, "head")),
]
# How much larger the gradients of a parameter are than those of the others.
SIZES = {"layers.0.attention.weight": 2.0, "layers.0.mlp.weight": 0.5, "layers.1.mlp.weight": 4.0, "head.weight": 0.2}
# Factors for tests that need some; a power of two among them, and two that are equal.
SCALES = {(-1, "embedding"): 0.7, (0, "attention"): 2.0, (0, "mlp"): 0.7, (1, "mlp"): 3.0}


def problem(steps: int = 7, sizes: dict[str, float] | None = None, **options) -> cases.Problem:
    made = cases.Problem(SHAPES, steps=steps, **options)
    for gradients in made.gradients:
        for name, size in (SIZES if sizes is None else sizes).items():
            gradients[name] = gradients[name] * size
    return made


def sac(base, of: cases.Problem, **options) -> steepest.SAC:
    return steepest.SAC(base, of.named(), partition=MAPPING, **options)


def adamw(of: cases.Problem, **options) -> torch.optim.Optimizer:
    return torch.optim.AdamW(of.params.values(), **{"lr": 0.01, "weight_decay": 0.3, **options})


def by_name(factor: dict) -> dict[str, float]:
    """The factor of each parameter, from those of the blocks."""
    found = dict.fromkeys(SHAPES, 1.0)
    for name in SHAPES:
        part, _, rest = name.partition(".")
        if part == "layers" and name.endswith("weight"):
            layer, block, _ = rest.split(".")
            found[name] = factor.get((int(layer), block), 1.0)
    found["embed.weight"] = factor.get((-1, "embedding"), 1.0)
    found["head.weight"] = factor.get((2, "head"), 1.0)
    return found


class Fixed(Wrapper):
    """Constant factors by name."""

    key = "fixed"

    def __init__(self, base, of: cases.Problem, factors, **options):
        self.given = {of.params[name]: factor for name, factor in factors.items()}
        super().__init__(base, **options)

    def factors(self):
        return self.given

    def own_state(self):
        return {"factors": [f if isinstance(f, float) else None for f in self.given.values()]}


class Net(nn.Module):
    """A residual network of two layers with two blocks each, an embedding and a head; its roles are recognised."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Embedding(16, 8)
        self.layers = nn.ModuleList(Layer() for _ in range(2))
        self.norm = nn.LayerNorm(8)
        self.head = nn.Linear(8, 16, bias=False)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x = self.embed(tokens)
        for layer in self.layers:
            x = layer(x)
        return self.head(self.norm(x))


class Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.mlp = nn.Sequential(nn.Linear(8, 12), nn.GELU(), nn.Linear(12, 8))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.attention(x, x, x, need_weights=False)[0]
        return x + self.mlp(x)


def tokens(step: int) -> torch.Tensor:
    return torch.randint(16, (4, 7), generator=torch.Generator().manual_seed(step))


def backward(model: nn.Module, step: int) -> torch.Tensor:
    logits = model(tokens(step)[:, :-1])
    loss = nn.functional.cross_entropy(logits.flatten(0, 1), tokens(step)[:, 1:].flatten())
    loss.backward()
    return loss.detach()


def train(model: nn.Module, optimizer: torch.optim.Optimizer, start: int, stop: int) -> list[dict[str, torch.Tensor]]:
    """The weights after each step."""
    history = []
    for step in range(start, stop):
        optimizer.zero_grad()
        backward(model, step)
        optimizer.step()
        history.append({name: p.detach().clone() for name, p in model.named_parameters()})
    return history
