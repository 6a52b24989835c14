"""The drop-in trainer: TRL 1.16's `SFTTrainer`, on our models and the fused loss."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from transformers import TrainerCallback, TrainingArguments, set_seed

from fastrlhf.data.batches import NOT_FOR_THE_MODEL, TokenCollator
from fastrlhf.data.rows import PROMPT_COMPLETION, is_conversation
from fastrlhf.device.observe import host_waits
from fastrlhf.kernels import TokenStat, linear_cross_entropy
from fastrlhf.models.accelerate import accelerate_quietly
from fastrlhf.models.backbone import (
    MASK_LOOKED_AT,
    backbone,
    base_model,
    is_accelerated,
    joined_hidden_states,
)
from fastrlhf.models.heads import check_language_model_head, language_model_head
from fastrlhf.sft.config import SFTConfig
from fastrlhf.sft.dataset import as_dataset, check_labels, kind_of_dataset, prepare
from fastrlhf.trainers.base import BaseTrainer
from fastrlhf.trainers.loading import load_model, load_tokenizer, set_chat_template, set_special_tokens
from fastrlhf.trainers.models import accelerate_models, check_auxiliary_loss, with_adapter

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
    counters = (*BaseTrainer.counters, "total_train_tokens")
    ratios = {  # noqa: RUF012
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
        given = locals()
        for name, why in _REFUSED.items():
            if given[name] is not None:
                raise ValueError(f"{name} {why}")
        if train_dataset is None:
            raise ValueError("train_dataset is None: there is nothing to learn from")
        args = _as_config(args, model)
        set_seed(args.seed)  # adapters start at random
        model = load_model(model, args)
        tokenizer = load_tokenizer(processing_class, model, args)
        check_auxiliary_loss(model, args.router_aux_loss_coef)
        set_chat_template(tokenizer, args.chat_template_path)
        set_special_tokens(tokenizer, model, args.eos_token, args.pad_token)
        if args.accelerate:
            accelerate_models(model)
        model = with_adapter(model, peft_config)
        if args.accelerate and peft_config is not None:
            accelerate_quietly(model)  # the adapter's own layers
        check_language_model_head(model)
        if (args.gradient_checkpointing_kwargs or {}).get("use_reentrant") and peft_config is not None:
            base_model(model).enable_input_require_grads()

        self.formatting_func, self.total_train_tokens = formatting_func, 0
        train_dataset = as_dataset(train_dataset, "train_dataset")
        self.completion_only_loss = self._completion_only(train_dataset, args)
        unpadded = args.needs_unpadded or (is_accelerated(model) if args.unpadded is None else args.unpadded)
        if data_collator is None:
            data_collator = TokenCollator(
                tokenizer.pad_token_id, unpadded=unpadded, multiple_of=args.pad_to_multiple_of
            )
        elif args.needs_unpadded:
            raise ValueError(
                "data_collator is set, and padding_free=True or packing=True needs batches of its own: leave one out"
            )
        prepared = self._prepared(train_dataset, tokenizer, args, args.packing, "train_dataset")
        eval_dataset = self._prepared_eval(eval_dataset, tokenizer, args)
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

    def _prepared_eval(
        self, dataset: Any, tokenizer: Any, args: SFTConfig, name: str = "eval_dataset"
    ) -> Any:
        if dataset is None:
            return None
        if isinstance(dataset, dict):
            return {
                key: self._prepared(part, tokenizer, args, args.packs_eval, f"{name}[{key!r}]")
                for key, part in dataset.items()
            }
        return self._prepared(dataset, tokenizer, args, args.packs_eval, name)

    def _set_signature_columns_if_needed(self) -> None:
        """transformers' hook: the columns that a collator is given."""
        if self._signature_columns is None:
            self._signature_columns = ["input_ids", "labels", "seq_lengths"]

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: list[str] | None = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """Loss, entropy and token accuracy on the rows given, else on `eval_dataset`'s."""
        if isinstance(eval_dataset, dict):
            metrics = {}
            for name, part in eval_dataset.items():
                metrics |= self.evaluate(part, ignore_keys, f"{metric_key_prefix}_{name}")
            return metrics
        if eval_dataset is not None and not isinstance(eval_dataset, str):  # a name is that of prepared rows
            eval_dataset = self._prepared_eval(eval_dataset, self.processing_class, self.args)
        return super().evaluate(eval_dataset, ignore_keys, metric_key_prefix)

    # The loss

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> torch.Tensor:
        """The mean loss of the batch's targets, or its share of a step of `num_items_in_batch` targets."""
        if return_outputs:
            raise ValueError("return_outputs=True asks for logits, which are never computed")
        hidden, targets = self._states_and_targets(model, inputs)
        head = language_model_head(model)
        loss, stats = linear_cross_entropy(
            hidden.to(head.weight.dtype),
            head.weight,
            targets,
            bias=head.bias,
            softcap=head.softcap,
            ignore_index=None if "targets" in inputs else -100,
            denominator=num_items_in_batch,
            confidence_weighted=self.args.loss_type == "dft",
        )
        self.meters[self.mode].add(
            entropy=stats[TokenStat.ENTROPY],
            correct=stats[TokenStat.CORRECT],
            tokens=stats[TokenStat.TOKENS],
        )
        if self.mode == "train":
            self.total_train_tokens += _real_tokens(inputs)
        return loss

    def _states_and_targets(
        self, model: nn.Module, inputs: dict[str, Any]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Hidden states `[M, D]` and the tokens `[M]` that follow them."""
        if "lengths" in inputs:
            names = ("input_ids", "position_ids", "lengths", "longest")
            hidden = joined_hidden_states(model, *(inputs[name] for name in names))
        else:
            hidden = self._padded_states(model, inputs)
        if "targets" in inputs:
            return hidden.flatten(0, 1).index_select(0, inputs["places"]), inputs["targets"]
        return hidden[:, :-1].flatten(0, 1), inputs["labels"][:, 1:].flatten()

    @staticmethod
    def _padded_states(model: nn.Module, inputs: dict[str, Any]) -> torch.Tensor:
        """`[B, T, D]`, of our padded batches and of those that a data_collator makes."""
        passed = {name: value for name, value in inputs.items() if name not in NOT_FOR_THE_MODEL}
        with host_waits(MASK_LOOKED_AT):
            return backbone(model)(**passed, use_cache=False).last_hidden_state

    def log(self, logs: dict[str, float], *rest: Any) -> None:
        """As the base's, with the tokens seen so far."""
        if "loss" in logs:
            logs["num_tokens"] = self.total_train_tokens
        elif self.mode == "eval" and "train_runtime" not in logs:
            logs["eval_num_tokens"] = self.total_train_tokens
        super().log(logs, *rest)


def _real_tokens(inputs: dict[str, Any]) -> int:
    if "num_tokens" in inputs:
        return inputs["num_tokens"]
    mask = inputs.get("attention_mask")
    with host_waits("how many tokens a batch has"):
        return inputs["input_ids"].numel() if mask is None else int(mask.sum())


def _as_config(args: TrainingArguments | None, model: str | nn.Module) -> SFTConfig:
    """The configuration, made of transformers' arguments or of nothing where that is what was passed."""
    if isinstance(args, SFTConfig):
        return args
    if args is None:
        name = model if isinstance(model, str) else getattr(base_model(model).config, "_name_or_path", "")
        return SFTConfig(f"{name.rstrip('/').split('/')[-1] or 'model'}-SFT")
    if isinstance(args, TrainingArguments):
        return SFTConfig(**(args.to_dict() | {"hub_token": args.hub_token}))
    raise TypeError(f"args is a {type(args).__name__}, expected an SFTConfig")
