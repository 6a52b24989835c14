"""Reward models from preferences."""

from fastrlhf.reward.config import RewardConfig
from fastrlhf.reward.trainer import RewardTrainer

__all__ = ["RewardConfig", "RewardTrainer"]
