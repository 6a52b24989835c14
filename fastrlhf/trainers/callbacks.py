"""What a trainer on transformers' loop does between its steps: signals, updates that are not finite, retried saves."""

from __future__ import annotations

import math
import warnings
from typing import TYPE_CHECKING, Any

import torch
from transformers import TrainerCallback

from fastrlhf.device.observe import host_waits

if TYPE_CHECKING:
    from fastrlhf.trainers.base import BaseTrainer


class RunCallback(TrainerCallback):
    """Stops a run with a checkpoint after a signal, and leaves out updates whose gradient is not finite."""

    def __init__(self, trainer: BaseTrainer):
        self.trainer = trainer

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Without gradients an optimizer leaves weights and state as they are."""
        trainer = self.trainer
        gradients = [p.grad for p in trainer.model.parameters() if p.grad is not None]
        with host_waits("whether the update is finite"):
            norm = torch.nn.utils.get_total_norm(gradients).item()
        if math.isfinite(norm):
            trainer.skipped_in_a_row = 0
            return
        trainer.model.zero_grad(set_to_none=True)
        trainer.skipped_updates += 1
        trainer.skipped_in_a_row += 1
        warnings.warn(
            f"step {state.global_step + 1}: gradient norm {norm}: this update is skipped "
            f"({trainer.skipped_in_a_row} in a row)",
            stacklevel=2,
        )

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        trainer = self.trainer
        too_many = trainer.skipped_in_a_row >= args.max_skipped_updates
        if trainer.interrupts.received is not None or too_many:
            control.should_save = control.should_training_stop = True
        if trainer._save_failed:
            control.should_save = True
