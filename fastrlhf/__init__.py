"""FastRLHF: train language models from feedback, several times faster and in a fraction of the memory."""

from __future__ import annotations

import importlib

from fastrlhf.version import __version__

__all__ = [
    "DPOConfig",
    "DPOTrainer",
    "GRPOConfig",
    "GRPOTrainer",
    "PPOConfig",
    "PPOTrainer",
    "RLOOConfig",
    "RLOOTrainer",
    "RewardConfig",
    "RewardTrainer",
    "SFTConfig",
    "SFTTrainer",
    "__version__",
    "accelerate",
    "generate",
    "load",
    "offload",
]

_HOMES = {
    "GRPOConfig": "fastrlhf.grpo",
    "GRPOTrainer": "fastrlhf.grpo",
    "RLOOConfig": "fastrlhf.grpo",
    "RLOOTrainer": "fastrlhf.grpo",
    "DPOConfig": "fastrlhf.dpo",
    "DPOTrainer": "fastrlhf.dpo",
    "PPOConfig": "fastrlhf.ppo",
    "PPOTrainer": "fastrlhf.ppo",
    "RewardConfig": "fastrlhf.reward",
    "RewardTrainer": "fastrlhf.reward",
    "SFTConfig": "fastrlhf.sft",
    "SFTTrainer": "fastrlhf.sft",
    "accelerate": "fastrlhf.models.accelerate",
    "generate": "fastrlhf.generation.api",
    "load": "fastrlhf.models.load",
    "offload": "fastrlhf.memory.offload",
}


def __getattr__(name: str):
    """Import the public names when they are used: `fastrlhf --help` must not wait seconds for torch."""
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'fastrlhf' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
