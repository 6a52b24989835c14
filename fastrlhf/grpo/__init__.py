"""Group-relative policy optimisation and its kin: several completions of a prompt take the place of a critic."""

from fastrlhf.grpo.config import GRPOConfig, RLOOConfig
from fastrlhf.grpo.rloo import RLOOTrainer
from fastrlhf.grpo.trainer import GRPOTrainer

__all__ = ["GRPOConfig", "GRPOTrainer", "RLOOConfig", "RLOOTrainer"]
