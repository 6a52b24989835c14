"""The drop-in trainer: TRL 1.16's `RewardTrainer`, on our models, chosen and rejected in one pass."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import nn
from transformers import AutoModelForSequenceClassification, TrainerCallback, TrainingArguments, set_seed

from fastrlhf.data.batches import TokenCollator
from fastrlhf.data.preferences import ScoreCollator
from fastrlhf.models.backbone import base_model, disable_dropout
from fastrlhf.models.heads import check_score_head
from fastrlhf.reward.config import RewardConfig
from fastrlhf.reward.loss import pairwise_loss
from fastrlhf.trainers.base import BaseTrainer
from fastrlhf.trainers.config import as_config, check_arguments
from fastrlhf.trainers.dataset import each_dataset
from fastrlhf.trainers.forward import states_at_places
from fastrlhf.trainers.loading import load_model, load_tokenizer, set_chat_template, set_special_tokens
from fastrlhf.trainers.models import is_unpadded, prepare_model
from fastrlhf.trainers.preferences import kept, preferences

# Arguments of TRL's trainer that are refused, and why.
_REFUSED = {
    "data_collator": "is not supported: both sequences of a pair are batched for one pass",
    "compute_metrics": "is not supported: evaluate() gives loss, accuracy, margin and rewards",
    "preprocess_logits_for_metrics": "is not supported: there is no compute_metrics to prepare for",
    "quantization_config": "is not supported: load the model yourself, and train an adapter on it",
}


class RewardTrainer(BaseTrainer):
    """Train a model to score the chosen sequence of a pair above the rejected one.

    Signature, defaults and logged metrics are those of `trl==1.16.0`'s `RewardTrainer`, so that a script written for it
    runs when its import line changes; `docs/differences.md` lists where the two differ. The backbone runs once for all
    sequences of a batch, without padding where the attention is ours, and the head on their last states alone.

    Args:
        model: an `AutoModelForSequenceClassification` with `num_labels=1`, a PEFT model around one, or a name or path
            (of a language model too, which gets a head that starts at random).
        args: a `RewardConfig`.
        train_dataset: a `datasets.Dataset` or a list of rows with `chosen` and `rejected`, texts or conversations, and
            perhaps `prompt` and `margin`; or with `chosen_ids` and `rejected_ids`.
        eval_dataset: the same, or several by name.
        processing_class: the tokenizer; the model's own if None.
        callbacks, optimizers, optimizer_cls_and_kwargs: as `transformers.Trainer`'s.
        peft_config: adapts the model, which must not be a PEFT model yet; a head that starts at random has to be
            trained too: `task_type="SEQ_CLS"` sees to it, or `modules_to_save=["score"]`.
        data_collator, compute_metrics, preprocess_logits_for_metrics, quantization_config: refused.

    Raises:
        ValueError, TypeError: an argument that cannot be meant; the message names it and the mend.
        DataError: rows that cannot be used.
    """

    _tag_names = ("fastrlhf", "reward-trainer")
    checkpoint_name = "reward"
    ratios: ClassVar = {
        "min_reward": ("least", "batches"),
        "mean_reward": ("rewards", "sequences"),
        "max_reward": ("most", "batches"),
        "accuracy": ("correct", "pairs"),
        "margin": ("margins", "pairs"),
    }

    def __init__(
        self,
        model: str | nn.Module,
        args: RewardConfig | TrainingArguments | None = None,
        data_collator: Callable[[list[dict]], dict[str, torch.Tensor]] | None = None,
        train_dataset: Any = None,
        eval_dataset: Any = None,
        processing_class: Any = None,
        compute_metrics: Callable | None = None,
        callbacks: list[TrainerCallback] | None = None,
        optimizers: tuple[torch.optim.Optimizer | None, Any] = (None, None),
        optimizer_cls_and_kwargs: tuple[type[torch.optim.Optimizer], dict[str, Any]] | None = None,
        preprocess_logits_for_metrics: Callable | None = None,
        quantization_config: Any = None,
        peft_config: Any = None,
    ):
        check_arguments(locals(), _REFUSED)
        args = as_config(RewardConfig, args, model, "Reward")
        set_seed(args.seed)  # heads and adapters start at random
        model = load_model(model, args, AutoModelForSequenceClassification, num_labels=1)
        tokenizer = load_tokenizer(processing_class, model, args)
        check_score_head(base_model(model), "model", "or its name or path")
        set_chat_template(tokenizer, args.chat_template_path)
        set_special_tokens(tokenizer, model, args.eos_token, args.pad_token)
        model = prepare_model(model, args, peft_config)
        if args.disable_dropout:
            disable_dropout(model)
        tokens = TokenCollator(
            tokenizer.pad_token_id,
            unpadded=is_unpadded(model, args),
            multiple_of=args.pad_to_multiple_of,
        )
        super().__init__(
            model=model,
            args=args,
            data_collator=ScoreCollator(tokens),
            train_dataset=_prepared(train_dataset, tokenizer, args, "train_dataset"),
            eval_dataset=each_dataset(
                eval_dataset, "eval_dataset", lambda rows, name: _prepared(rows, tokenizer, args, name)
            ),
            processing_class=tokenizer,
            callbacks=callbacks,
            optimizers=optimizers,
            optimizer_cls_and_kwargs=optimizer_cls_and_kwargs,
        )

    def prepared_rows(self, dataset: Any, name: str) -> Any:
        """Rows of tokens."""
        return _prepared(dataset, self.processing_class, self.args, name)

    def _set_signature_columns_if_needed(self) -> None:
        """transformers' hook: the columns that a collator is given."""
        if self._signature_columns is None:
            self._signature_columns = ["chosen_ids", "rejected_ids", "margin"]

    @staticmethod
    def items(batch: dict[str, Any]) -> int:
        """The pairs of a batch."""
        return len(batch["places"]) // 2

    def batch_loss(
        self, model: nn.Module, inputs: dict[str, Any], denominator: torch.Tensor | int | None
    ) -> torch.Tensor:
        """The pairwise loss of the batch's pairs."""
        rewards = base_model(model).score(states_at_places(model, inputs)).squeeze(-1).float()
        chosen, rejected = rewards.chunk(2)
        losses = pairwise_loss(chosen, rejected, inputs.get("margin"), self.args.center_rewards_coefficient)
        pairs = torch.full_like(chosen.sum(), len(chosen))
        self.meters[self.mode].add(
            least=rewards.min(),
            most=rewards.max(),
            batches=torch.ones_like(pairs),
            rewards=rewards.sum(),
            sequences=2 * pairs,
            correct=(chosen > rejected).sum(),
            margins=(chosen - rejected).sum(),
            pairs=pairs,
        )
        return losses.sum() / (len(losses) if denominator is None else denominator)


def _prepared(rows: Any, tokenizer: Any, args: RewardConfig, name: str) -> Any:
    """`chosen_ids` and `rejected_ids`, whole sequences of at most max_length tokens, and `margin` if it is there."""
    dataset = preferences(rows, tokenizer, args, name, joined=True)
    longest = args.max_length or float("inf")
    return kept(dataset, lambda row: max(len(row["chosen_ids"]), len(row["rejected_ids"])) <= longest, name)
