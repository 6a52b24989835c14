"""The real run of `fastrlhf bench capacity`: `python -m fastrlhf.bench.side_capacity JOB RESULT`.

Trains blocks of 4 MB for a few steps on this machine, in the memory that the job gives, and says what came out to the
bit. The operating system counts: Python, PyTorch's libraries, activations and buffers are in its figure.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from fastrlhf.bench.sides import serve
from fastrlhf.memory.offload import offload

WIDTH, BLOCKS, STEPS = 1024, 96, 3


class Block(nn.Module):
    """A residual block."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(WIDTH, WIDTH)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return hidden + torch.tanh(self.linear(hidden))


def measure(job: dict[str, Any]) -> dict[str, Any]:
    """Train with `offload(**job["options"])`.

    Returns:
        losses: of each step. last: the sum of the last block's weights. state_mb: parameters, gradients and moments.
    """
    with torch.device("meta"):
        model = nn.Sequential(*(Block() for _ in range(BLOCKS)))
    parameters = list(model.parameters())
    optimizer = offload(model, torch.optim.AdamW(parameters, lr=1e-3), **job["options"])
    torch.manual_seed(0)
    for block in model:
        with optimizer.manager.use(block, writes=True):
            block.linear.reset_parameters()
    losses = []
    for _ in range(STEPS):
        loss = (model(torch.randn(8, WIDTH)) / 30 - 1).square().mean()
        loss.backward()
        optimizer.clip_grad_norm_(1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    with optimizer.manager.use(model[-1]):
        last = model[-1].linear.weight.double().sum().item()
    state = 16e-6 * sum(parameter.numel() for parameter in parameters)
    return {"losses": losses, "last": last, "state_mb": state}


if __name__ == "__main__":
    serve(measure)
