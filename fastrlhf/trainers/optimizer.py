"""Which optimizer a trainer makes."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import Trainer, TrainingArguments

from fastrlhf.memory.adamw import DTYPES as ADAMW_DTYPES
from fastrlhf.memory.adamw import AdamW


class HasOurAdamW:
    """The part of a trainer that makes optimizers."""

    @staticmethod
    def get_optimizer_cls_and_kwargs(
        args: TrainingArguments, model: nn.Module | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """transformers' choice, but for AdamW of PyTorch's ours, which clips in the pass that updates."""
        optimizer, options = Trainer.get_optimizer_cls_and_kwargs(args, model)
        trained = [] if model is None else [p for p in model.parameters() if p.requires_grad]
        if optimizer is not torch.optim.AdamW or any(p.dtype not in ADAMW_DTYPES for p in trained):
            return optimizer, options
        return AdamW, {name: value for name, value in options.items() if name != "fused"}
