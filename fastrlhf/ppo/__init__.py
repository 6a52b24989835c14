"""Proximal policy optimisation for language models."""

from fastrlhf.ppo.config import PPOConfig
from fastrlhf.ppo.trainer import PPOTrainer

__all__ = ["PPOConfig", "PPOTrainer"]
