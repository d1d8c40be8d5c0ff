"""An ordinary training script with AdamW, clipping, a schedule and checkpoints, in which SAC is one changed line.

Run it with ``python examples/wrap_sac.py``; it needs nothing but torch and steepest, and takes a few seconds.
"""

import io
import math

import torch
from torch import nn

import steepest


class Block(nn.Module):
    """Pre-norm attention and MLP."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = nn.MultiheadAttention(width, heads, batch_first=True, bias=False)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (batch, length, width) to the same shape, each position seeing the earlier ones."""
        mask = nn.Transformer.generate_square_subsequent_mask(x.shape[1])
        h = self.norm1(x)
        x = x + self.attention(h, h, h, attn_mask=mask, need_weights=False)[0]
        return x + self.mlp(self.norm2(x))


def build() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Embedding(64, 64), Block(64, 4), Block(64, 4), nn.LayerNorm(64), nn.Linear(64, 64, bias=False)
    )


def batch(step: int) -> torch.Tensor:
    """Sequences that count upwards by a stride: the model has to find the stride."""
    generator = torch.Generator().manual_seed(step)
    start = torch.randint(0, 64, (16, 1), generator=generator)
    stride = torch.randint(1, 6, (16, 1), generator=generator)
    return (start + stride * torch.arange(25)) % 64


def main(steps: int = 120) -> tuple[float, float]:
    model = build()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.1)
    optimizer = steepest.SAC(optimizer, model)  # the one line that is new
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda t: 0.5 * (1 + math.cos(math.pi * t / steps)))
    losses = []
    for step in range(steps):
        tokens = batch(step)
        loss = nn.functional.cross_entropy(model(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten())
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        losses.append(loss.item())
        if step % 20 == 0:
            print(f"step {step:4d}  loss {losses[-1]:.3f}")

    # A checkpoint is that of AdamW with one more key: each of the two can load it.
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    optimizer.load_state_dict(torch.load(file, weights_only=True))

    if hasattr(optimizer, "scales"):
        print("factors of (layer, block):", {key: round(scale, 2) for key, scale in optimizer.scales.items()})
    print(f"loss {losses[0]:.3f} -> {losses[-1]:.3f}")
    return losses[0], losses[-1]


if __name__ == "__main__":
    main()
