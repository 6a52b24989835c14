"""Direct preference optimization."""

from fastrlhf.dpo.config import DPOConfig
from fastrlhf.dpo.trainer import DPOTrainer

__all__ = ["DPOConfig", "DPOTrainer"]
