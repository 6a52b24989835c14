"""Proximal policy optimisation for language models."""

import fastrlhf.device.without_triton  # isort: skip # noqa: F401 - before transformers

from fastrlhf.ppo.config import PPOConfig
from fastrlhf.ppo.trainer import PPOTrainer

__all__ = ["PPOConfig", "PPOTrainer"]
