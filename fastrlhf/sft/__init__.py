"""Supervised fine-tuning."""

from fastrlhf.sft.config import SFTConfig
from fastrlhf.sft.trainer import SFTTrainer

__all__ = ["SFTConfig", "SFTTrainer"]
