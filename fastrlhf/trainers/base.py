"""A trainer on transformers' loop, with our models, checkpoints, signals and guard: the base of SFT and its like."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from torch import nn
from transformers import Trainer

from fastrlhf.device.observe import host_waits
from fastrlhf.kernels.packed import limit_packed
from fastrlhf.memory.resident import peak_resident_mb, resident_mb
from fastrlhf.memory.sizes import parse_size
from fastrlhf.trainers.callbacks import RunCallback
from fastrlhf.trainers.config import TrainerConfig, take_back_bfloat16
from fastrlhf.trainers.guard import TrainingStopped
from fastrlhf.trainers.interrupt import Interrupts
from fastrlhf.trainers.meters import Meters
from fastrlhf.trainers.optimizer import HasOurAdamW
from fastrlhf.trainers.saving import SavesWhole


class BaseTrainer(SavesWhole, HasOurAdamW, Trainer):
    """`transformers.Trainer` for a loss that is computed from hidden states and divided by the whole batch's targets.

    A subclass sets `checkpoint_name` and `ratios`, gives batches of which `items` knows how many things the loss is a
    mean of, prepares rows with `prepared_rows`, and computes the loss with `batch_loss`, which adds what it logs to
    `meters`.
    """

    checkpoint_name: str
    counters: tuple[str, ...] = ("skipped_updates", "total_train_tokens")
    ratios: dict[str, tuple[str, str]]
    loss_is_scaled_for_ga = True

    def __init__(self, model: Any, args: TrainerConfig, **options: Any):
        if (processes := PartialState().num_processes) > 1:
            raise ValueError(f"{processes} processes: training on more than one is not supported yet")
        take_back_bfloat16(args)
        limit_packed(parse_size("packed_weight_bytes", args.packed_weight_bytes))
        super().__init__(model=model, args=args, **options)
        if args.n_gpu > 1:
            raise ValueError(
                f"{args.n_gpu} GPUs are visible to one process, which is not supported yet: set "
                "CUDA_VISIBLE_DEVICES to one of them"
            )
        self.model_accepts_loss_kwargs = True  # what loss_is_scaled_for_ga is called before transformers 5.19
        self.meters = {mode: Meters(self.ratios) for mode in ("train", "eval")}
        self.interrupts = Interrupts()
        self.skipped_updates = self.skipped_in_a_row = self.total_train_tokens = 0
        self.add_callback(RunCallback(self))

    @property
    def mode(self) -> str:
        """ "train" or "eval": whose meters a loss counts for."""
        return "train" if self.model.training else "eval"

    # The run

    def train(self, resume_from_checkpoint: str | Path | bool | None = None, **options: Any) -> Any:
        """Run transformers' loop to its end.

        Args:
            resume_from_checkpoint: a checkpoint's folder, or True for the newest whole one in `args.output_dir`. On a
                CPU the resumed run computes what the uninterrupted one would have, to the bit.
            options: transformers' own.

        Raises:
            CheckpointError: the checkpoint is not whole or not of this run, or one could not be written.
            TrainingStopped: too many updates in a row were not finite; a checkpoint holds the last good state.
            SystemExit: SIGINT or SIGTERM came; the step was finished and a checkpoint written.
        """
        self.skipped_in_a_row, self._save_failed = 0, False
        path = str(self.take_up(resume_from_checkpoint)) if resume_from_checkpoint else None
        with self.interrupts:
            result = super().train(resume_from_checkpoint=path, **options)
            if self._save_failed or (self.interrupts.received is not None and not self._is_saved()):
                self._save_required()
        if self.interrupts.received is not None:
            number, self.interrupts.received = self.interrupts.received, None
            raise SystemExit(128 + number)
        if self.skipped_in_a_row >= self.args.max_skipped_updates:
            raise TrainingStopped(
                f"after step {self.state.global_step}: {self.skipped_in_a_row} updates in a row were not finite\nThe "
                f"last good state is in {self.args.output_dir}; when the cause is mended, go on with "
                "train(resume_from_checkpoint=True)"
            )
        return result

    def batch_loss(
        self, model: nn.Module, inputs: dict[str, Any], denominator: torch.Tensor | int | None
    ) -> torch.Tensor:
        """The sum of a batch's losses divided by `denominator`; their mean where that is None."""
        raise NotImplementedError

    @staticmethod
    def items(batch: dict[str, Any]) -> int | None:
        """How many things the loss of a batch is a mean of; None where that is left to transformers to count."""
        return len(batch["targets"]) if "targets" in batch else None

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, *rest: Any) -> tuple[list, Any]:
        """A step's micro-batches, and how many items they have: the loss's denominator."""
        batches, counted = super().get_batch_samples(epoch_iterator, num_batches, *rest)
        items = [self.items(batch) for batch in batches]
        return batches, counted if not items or None in items else sum(items)

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> torch.Tensor:
        """The mean loss of the batch, or its share of a step of `num_items_in_batch`."""
        if return_outputs:
            raise ValueError("return_outputs=True asks for logits, which are never computed")
        loss = self.batch_loss(model, inputs, num_items_in_batch)
        if self.mode == "train":
            self.total_train_tokens += _real_tokens(inputs)
        return loss

    def compute_loss_context_manager(self) -> ExitStack:
        """bfloat16 on a GPU where `args.bf16` says so: the loss does not go through the model's own forward."""
        stack = super().compute_loss_context_manager()
        if self.args.bf16:
            stack.enter_context(torch.autocast(self.args.device.type, torch.bfloat16))
        return stack

    def prepared_rows(self, dataset: Any, name: str) -> Any:
        """Rows as an evaluation takes them, of what was passed as `name`."""
        raise NotImplementedError

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: list[str] | None = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """Loss and metrics on the rows given, else on `eval_dataset`'s."""
        if isinstance(eval_dataset, dict):
            metrics = {}
            for name, part in eval_dataset.items():
                metrics |= self.evaluate(part, ignore_keys, f"{metric_key_prefix}_{name}")
            return metrics
        if eval_dataset is not None and not isinstance(eval_dataset, str):  # a name is that of prepared rows
            eval_dataset = self.prepared_rows(eval_dataset, "eval_dataset")
        return super().evaluate(eval_dataset, ignore_keys, metric_key_prefix)

    @torch.no_grad()
    def prediction_step(
        self, model: Any, inputs: dict[str, Any], prediction_loss_only: bool, ignore_keys: Any = None
    ) -> tuple[torch.Tensor, None, None]:
        """The loss of an evaluation's batch; there are no logits to give."""
        inputs = self._prepare_inputs(inputs)
        with self.compute_loss_context_manager():
            return self.compute_loss(model, inputs).detach().mean(), None, None

    def log(self, logs: dict[str, float], *rest: Any) -> None:
        """transformers' log, with the meters' ratios, the tokens seen so far and the memory of the process."""
        prefix = "eval_" if self.mode == "eval" else ""
        logs |= {prefix + name: value for name, value in self.meters[self.mode].take().items()}
        if "loss" in logs or (prefix and "train_runtime" not in logs):
            logs[f"{prefix}num_tokens"] = self.total_train_tokens
        if "loss" in logs:
            logs |= {
                "train/skipped_updates": self.skipped_updates,
                "memory/rss_mb": resident_mb(),
                "memory/peak_rss_mb": peak_resident_mb(),
            }
        super().log(logs, *rest)


def _real_tokens(inputs: dict[str, Any]) -> int:
    if "num_tokens" in inputs:
        return inputs["num_tokens"]
    mask = inputs.get("attention_mask")
    with host_waits("how many tokens a batch has"):
        return inputs["input_ids"].numel() if mask is None else int(mask.sum())
