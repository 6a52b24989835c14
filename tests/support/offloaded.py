"""A small language model with what a memory manager has to cope with, and a training loop as anybody writes it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

import fastrlhf

WIDTH, VOCABULARY = 16, 11


class Block(nn.Module):
    """A residual block; its matrices and vectors are of several sizes."""

    def __init__(self, width: int):
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.up = nn.Linear(width, 2 * width)
        self.down = nn.Linear(2 * width, width)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return hidden + self.down(torch.tanh(self.up(self.norm(hidden))))


class Net(nn.Module):
    """Tied embeddings, a parameter of its own beside the blocks, one block used twice, and one never trained."""

    def __init__(self, width: int = WIDTH, blocks: int = 4):
        super().__init__()
        self.embed = nn.Embedding(VOCABULARY, width)
        self.scale = nn.Parameter(torch.ones(width))
        self.layers = nn.ModuleList(Block(width) for _ in range(blocks))
        self.layers[1].requires_grad_(False)
        self.unused = nn.Linear(width, width)
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, VOCABULARY, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        hidden = self.embed(tokens) * self.scale
        for layer in (*self.layers, self.layers[0]):
            hidden = layer(hidden)
        return self.head(self.norm(hidden))


def net(seed: int = 0, dtype: torch.dtype = torch.float32, **options: Any) -> Net:
    """A model of these weights."""
    torch.manual_seed(seed)
    return Net(**options).to(dtype)


def adamw(model: nn.Module, **options: Any) -> torch.optim.AdamW:
    """An AdamW with two groups, as trainers make it: no decay for vectors."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [each for each in trained if each.dim() > 1], "weight_decay": 0.1},
        {"params": [each for each in trained if each.dim() < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, **{"lr": 1e-2, **options})


def train(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    device: str = "cpu",
    steps: int = 5,
    micro_batches: int = 2,
    max_norm: float = 0.5,
    after_step: Callable[[], None] = lambda: None,
) -> list[float]:
    """Train on random tokens; returns the losses."""
    generator = torch.Generator().manual_seed(1)
    losses = []
    for _ in range(steps):
        for _ in range(micro_batches):
            tokens = torch.randint(0, VOCABULARY, (3, 7), generator=generator).to(device)
            logits = model(tokens[:, :-1])
            loss = nn.functional.cross_entropy(logits.flatten(0, 1).float(), tokens[:, 1:].flatten())
            loss.backward()
            losses.append(loss.item())
        optimizer.clip_grad_norm_(max_norm)
        optimizer.step()
        optimizer.zero_grad()
        after_step()
    return losses


def trained(
    device: str = "cpu", dtype: torch.dtype = torch.float32, loop: dict | None = None, **options: Any
):
    """Train a model offloaded with `options`; returns its weights, the losses and the optimizer."""
    model = net(dtype=dtype)
    optimizer = fastrlhf.offload(model, adamw(model), device=device, **options)
    losses = train(model, optimizer, device, **(loop or {}))
    return weights(model), losses, optimizer


def weights(model: nn.Module) -> dict[str, torch.Tensor]:
    """A copy of the state dict on the CPU."""
    return {name: value.cpu().clone() for name, value in model.state_dict().items()}


def assert_same(actual: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    """The same names with the same bits."""
    assert actual.keys() == expected.keys()
    differ = [name for name, value in expected.items() if not torch.equal(actual[name], value)]
    assert not differ
