"""The drop-in trainer: TRL 1.16's `SFTTrainer`, on our models and the fused loss."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import nn
from transformers import TrainerCallback, TrainingArguments, set_seed

from fastrlhf.data.batches import TokenCollator
from fastrlhf.data.rows import PROMPT_COMPLETION, is_conversation
from fastrlhf.kernels import TokenStat, linear_cross_entropy
from fastrlhf.models.heads import check_language_model_head, language_model_head
from fastrlhf.sft.config import SFTConfig
from fastrlhf.sft.dataset import check_labels, kind_of_dataset, prepare
from fastrlhf.trainers.base import BaseTrainer
from fastrlhf.trainers.config import as_config, check_arguments
from fastrlhf.trainers.dataset import as_dataset, each_dataset
from fastrlhf.trainers.forward import batch_states, states_at_places
from fastrlhf.trainers.loading import load_model, load_tokenizer, set_chat_template, set_special_tokens
from fastrlhf.trainers.models import check_auxiliary_loss, is_unpadded, prepare_model

# Arguments of TRL's trainer that need whole logits, or another way to load a model: why they are refused.
_REFUSED = {
    "compute_loss_func": "works on whole logits, which are never computed: override compute_loss",
    "compute_metrics": "works on whole logits, which are never computed: evaluate() gives loss, entropy and accuracy",
    "preprocess_logits_for_metrics": "works on whole logits, which are never computed",
    "quantization_config": "is not supported: load the model yourself, and train an adapter on it",
}


class SFTTrainer(BaseTrainer):
    """Fine-tune a language model on texts, conversations, or prompts with completions.

    Signature, defaults and logged metrics are those of `trl==1.16.0`'s `SFTTrainer`, so that a script written for it
    runs when its import line changes; `docs/differences.md` lists where the two differ. Batches are computed without
    padding where the attention is ours, and the loss without whole logits.

    Args:
        model: a causal language model, a PEFT model around one, or a name or path.
        args: an `SFTConfig`.
        data_collator: makes `input_ids`, `attention_mask` and `labels` (-100 does not count) of a list of rows.
        train_dataset: a `datasets.Dataset` or a list of rows: texts, `messages`, `prompt` with `completion`, or tokens
            (see `fastrlhf.data.rows.kind_of`).
        eval_dataset: the same, or several by name.
        processing_class: the tokenizer; the model's own if None.
        callbacks, optimizers, optimizer_cls_and_kwargs: as `transformers.Trainer`'s.
        peft_config: adapts the model, which must not be a PEFT model yet.
        formatting_func: makes a text of each row.
        compute_loss_func, compute_metrics, preprocess_logits_for_metrics, quantization_config: refused.

    Raises:
        ValueError, TypeError: an argument that cannot be meant; the message names it and the mend.
        DataError: rows that cannot be used.
    """

    _tag_names = ("fastrlhf", "sft")
    checkpoint_name = "sft"
    ratios: ClassVar = {
        "entropy": ("entropy", "tokens"),
        "mean_token_accuracy": ("correct", "tokens"),
    }

    def __init__(
        self,
        model: str | nn.Module,
        args: SFTConfig | TrainingArguments | None = None,
        data_collator: Callable[[list[dict]], dict[str, torch.Tensor]] | None = None,
        train_dataset: Any = None,
        eval_dataset: Any = None,
        processing_class: Any = None,
        compute_loss_func: Callable | None = None,
        compute_metrics: Callable | None = None,
        callbacks: list[TrainerCallback] | None = None,
        optimizers: tuple[torch.optim.Optimizer | None, Any] = (None, None),
        optimizer_cls_and_kwargs: tuple[type[torch.optim.Optimizer], dict[str, Any]] | None = None,
        preprocess_logits_for_metrics: Callable | None = None,
        quantization_config: Any = None,
        peft_config: Any = None,
        formatting_func: Callable[[dict], str] | None = None,
    ):
        check_arguments(locals(), _REFUSED)
        args = as_config(SFTConfig, args, model, "SFT")
        set_seed(args.seed)  # adapters start at random
        model = load_model(model, args)
        tokenizer = load_tokenizer(processing_class, model, args)
        check_auxiliary_loss(model, args.router_aux_loss_coef)
        set_chat_template(tokenizer, args.chat_template_path)
        set_special_tokens(tokenizer, model, args.eos_token, args.pad_token)
        model = prepare_model(model, args, peft_config)
        check_language_model_head(model)

        self.formatting_func = formatting_func
        train_dataset = as_dataset(train_dataset, "train_dataset")
        self.completion_only_loss = self._completion_only(train_dataset, args)
        if data_collator is None:
            data_collator = TokenCollator(
                tokenizer.pad_token_id,
                unpadded=is_unpadded(model, args, args.needs_unpadded),
                multiple_of=args.pad_to_multiple_of,
            )
        elif args.needs_unpadded:
            raise ValueError(
                "data_collator is set, and padding_free=True or packing=True needs batches of its own: leave one out"
            )
        prepared = self._prepared(train_dataset, tokenizer, args, args.packing, "train_dataset")
        eval_dataset = each_dataset(
            eval_dataset,
            "eval_dataset",
            lambda rows, name: self._prepared(rows, tokenizer, args, args.packs_eval, name),
        )
        super().__init__(
            model=model,
            args=args,
            data_collator=data_collator,
            train_dataset=prepared,
            eval_dataset=eval_dataset,
            processing_class=tokenizer,
            callbacks=callbacks,
            optimizers=optimizers,
            optimizer_cls_and_kwargs=optimizer_cls_and_kwargs,
        )

    # Data

    def _completion_only(self, dataset: Any, args: SFTConfig) -> bool:
        if self.formatting_func is not None:
            if args.completion_only_loss:
                raise ValueError(
                    "formatting_func makes texts, which have no completion: leave out completion_only_loss=True"
                )
            return False
        if args.skips_preparation:
            return False
        kind, row = kind_of_dataset(dataset, args, "train_dataset"), dataset[0]
        conversation = any(
            is_conversation(row.get(name)) for name in ("messages", "conversations", "completion")
        )
        if args.assistant_only_loss and not conversation:
            raise ValueError("assistant_only_loss=True, and train_dataset has no conversations: leave it out")
        if args.completion_only_loss is None:
            return kind == PROMPT_COMPLETION
        if args.completion_only_loss and kind != PROMPT_COMPLETION and "completion_mask" not in row:
            raise ValueError(
                "completion_only_loss=True, and the rows of train_dataset have no prompt and completion: leave it out"
            )
        return args.completion_only_loss

    def _prepared(self, dataset: Any, tokenizer: Any, args: SFTConfig, packing: bool, name: str) -> Any:
        dataset = as_dataset(dataset, name)
        if args.skips_preparation:
            check_labels(dataset, name)
            return dataset
        return prepare(
            dataset,
            tokenizer,
            args,
            packing=packing,
            completion_only=self.completion_only_loss,
            name=name,
            formatting_func=self.formatting_func,
        )

    def _set_signature_columns_if_needed(self) -> None:
        """transformers' hook: the columns that a collator is given."""
        if self._signature_columns is None:
            self._signature_columns = ["input_ids", "labels", "seq_lengths"]

    def prepared_rows(self, dataset: Any, name: str) -> Any:
        """Rows of tokens, packed where the evaluation's are."""
        return self._prepared(dataset, self.processing_class, self.args, self.args.packs_eval, name)

    # The loss

    def batch_loss(
        self, model: nn.Module, inputs: dict[str, Any], denominator: torch.Tensor | int | None
    ) -> torch.Tensor:
        """The cross-entropy of the batch's targets."""
        hidden, targets = self._states_and_targets(model, inputs)
        head = language_model_head(model)
        loss, stats = linear_cross_entropy(
            hidden.to(head.weight.dtype),
            head.weight,
            targets,
            bias=head.bias,
            softcap=head.softcap,
            ignore_index=None if "targets" in inputs else -100,
            denominator=denominator,
            confidence_weighted=self.args.loss_type == "dft",
        )
        self.meters[self.mode].add(
            entropy=stats[TokenStat.ENTROPY],
            correct=stats[TokenStat.CORRECT],
            tokens=stats[TokenStat.TOKENS],
        )
        return loss

    def _states_and_targets(
        self, model: nn.Module, inputs: dict[str, Any]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Hidden states `[M, D]` and the tokens `[M]` that follow them."""
        if "targets" in inputs:
            return states_at_places(model, inputs), inputs["targets"]
        return batch_states(model, inputs)[:, :-1].flatten(0, 1), inputs["labels"][:, 1:].flatten()
