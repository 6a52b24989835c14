"""The drop-in trainer: TRL 1.16's `DPOTrainer`, on our models, chosen and rejected in one pass and without logits."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, ClassVar

import torch
from datasets import Dataset
from torch import nn
from transformers import TrainerCallback, TrainingArguments, set_seed

from fastrlhf.data.batches import TokenCollator
from fastrlhf.data.preferences import AnswerCollator
from fastrlhf.dpo.config import DPOConfig
from fastrlhf.dpo.loss import preference_loss
from fastrlhf.kernels import LinearPreference, PreferenceStat, linear_preference
from fastrlhf.models.backbone import disable_dropout, evaluation_mode, reference_mode
from fastrlhf.models.heads import check_language_model_head, language_model_head
from fastrlhf.trainers.base import BaseTrainer
from fastrlhf.trainers.config import as_config, check_arguments
from fastrlhf.trainers.dataset import each_dataset
from fastrlhf.trainers.forward import states_at_places
from fastrlhf.trainers.loading import load_model, load_tokenizer, set_special_tokens
from fastrlhf.trainers.models import check_auxiliary_loss, frozen_copy, is_unpadded, prepare_model
from fastrlhf.trainers.preferences import COLUMNS, kept, preferences

# Arguments of TRL's trainer that are refused, and why.
_REFUSED = {
    "data_collator": "is not supported: both sequences of a pair are batched for one pass",
    "compute_metrics": "works on whole logits, which are never computed: evaluate() gives loss, rewards and accuracy",
    "quantization_config": "is not supported: load the model yourself, and train an adapter on it",
}
REFERENCE = ("ref_chosen_logps", "ref_rejected_logps")


class DPOTrainer(BaseTrainer):
    """Make a language model prefer the chosen answer of a pair to the rejected one, more than a reference does.

    Signature, defaults and logged metrics are those of `trl==1.16.0`'s `DPOTrainer`, so that a script written for it
    runs when its import line changes; `docs/differences.md` lists where the two differ. All answers of a batch are
    computed in one pass, without padding where the attention is ours, and the loss without whole logits.

    Args:
        model: a causal language model, a PEFT model around one, or a name or path.
        ref_model: the reference. None: what `model` is before training; a copy of it (of an adapter alone, where that
            is what is trained), or, with `peft_config`, the model with its adapter off.
        args: a `DPOConfig`.
        train_dataset: a `datasets.Dataset` or a list of rows with `chosen` and `rejected`, texts or conversations, and
            perhaps `prompt`; or with `prompt_ids`, `chosen_ids` and `rejected_ids`.
        eval_dataset: the same, or several by name.
        processing_class: the tokenizer; the model's own if None.
        callbacks, optimizers: as `transformers.Trainer`'s.
        peft_config: adapts the model, which must not be a PEFT model yet.
        data_collator, compute_metrics, quantization_config: refused.

    Raises:
        ValueError, TypeError: an argument that cannot be meant; the message names it and the mend.
        DataError: rows that cannot be used.
    """

    _tag_names = ("fastrlhf", "dpo")
    checkpoint_name = "dpo"
    ratios: ClassVar = {
        "entropy": ("entropy", "tokens"),
        "mean_token_accuracy": ("correct", "chosen_tokens"),
        "logits/chosen": ("chosen_logits", "chosen_tokens"),
        "logits/rejected": ("rejected_logits", "rejected_tokens"),
        "logps/chosen": ("chosen_logps", "pairs"),
        "logps/rejected": ("rejected_logps", "pairs"),
        "rewards/chosen": ("chosen_rewards", "pairs"),
        "rewards/rejected": ("rejected_rewards", "pairs"),
        "rewards/accuracies": ("preferred", "pairs"),
        "rewards/margins": ("margins", "pairs"),
    }

    def __init__(
        self,
        model: str | nn.Module,
        ref_model: nn.Module | None = None,
        args: DPOConfig | TrainingArguments | None = None,
        data_collator: Callable[[list[dict]], dict[str, torch.Tensor]] | None = None,
        train_dataset: Any = None,
        eval_dataset: Any = None,
        processing_class: Any = None,
        compute_metrics: Callable | None = None,
        callbacks: list[TrainerCallback] | None = None,
        optimizers: tuple[torch.optim.Optimizer | None, Any] = (None, None),
        quantization_config: Any = None,
        peft_config: Any = None,
    ):
        check_arguments(locals(), _REFUSED)
        if ref_model is not None and ref_model is model:
            raise ValueError(
                "ref_model is model itself, which training changes: leave it out, for a copy of it"
            )
        args = as_config(DPOConfig, args, model, "DPO")
        set_seed(args.seed)  # adapters start at random
        model = load_model(model, args)
        tokenizer = load_tokenizer(processing_class, model, args)
        check_auxiliary_loss(model, args.router_aux_loss_coef)
        set_special_tokens(tokenizer, model, None, args.pad_token)
        model = prepare_model(model, args, peft_config)
        if ref_model is not None:
            ref_model = prepare_model(ref_model, args, None)
        for one in (model, *([] if ref_model is None else [ref_model])):
            check_language_model_head(one)
            if args.disable_dropout:
                disable_dropout(one)
        tokens = TokenCollator(
            tokenizer.pad_token_id,
            unpadded=is_unpadded(model, args, args.padding_free),
            multiple_of=args.pad_to_multiple_of,
        )
        super().__init__(
            model=model,
            args=args,
            data_collator=AnswerCollator(
                tokens, args.max_length, keep_end=args.truncation_mode == "keep_end"
            ),
            train_dataset=_prepared(train_dataset, tokenizer, args, "train_dataset"),
            eval_dataset=each_dataset(
                eval_dataset, "eval_dataset", lambda rows, name: _prepared(rows, tokenizer, args, name)
            ),
            processing_class=tokenizer,
            callbacks=callbacks,
            optimizers=optimizers,
        )
        self.adapter_off = ref_model is None and peft_config is not None
        if ref_model is None and not (self.adapter_off or args.precompute_ref_log_probs):
            ref_model = frozen_copy(model)
        if ref_model is not None:
            ref_model.eval().requires_grad_(False).to(args.device)
        self.ref_model = ref_model
        if args.precompute_ref_log_probs:
            self.train_dataset = self._with_reference(
                self.train_dataset, args.precompute_ref_batch_size or args.per_device_train_batch_size
            )
            self.eval_dataset = each_dataset(self.eval_dataset, "", lambda rows, _: self._evaluated(rows))

    # Data

    def prepared_rows(self, dataset: Any, name: str) -> Any:
        """Rows of tokens, with the reference's log-probabilities where they are to be found beforehand."""
        return self._evaluated(_prepared(dataset, self.processing_class, self.args, name))

    def _evaluated(self, dataset: Dataset) -> Dataset:
        args = self.args
        if not args.precompute_ref_log_probs:
            return dataset
        return self._with_reference(
            dataset, args.precompute_ref_batch_size or args.per_device_eval_batch_size
        )

    def _with_reference(self, dataset: Dataset, batch_size: int) -> Dataset:
        """The rows with the log-probabilities of their answers under the reference."""
        if self.state.global_step and self.ref_model is None and not self.adapter_off:
            raise ValueError(
                "precompute_ref_log_probs=True keeps no reference, and the model has been trained: pass these rows as "
                "eval_dataset, or pass ref_model"
            )
        found: dict[str, list[float]] = {name: [] for name in REFERENCE}
        for start in range(0, len(dataset), batch_size):
            rows = dataset.select(range(start, min(start + batch_size, len(dataset)))).to_list()
            inputs = self._prepare_inputs(self.data_collator(rows))
            with self.compute_loss_context_manager():
                for name, logps in zip(REFERENCE, self._reference_logps(inputs), strict=True):
                    found[name] += logps.tolist()
        for name, logps in found.items():
            dataset = dataset.add_column(name, logps)
        return dataset

    def _set_signature_columns_if_needed(self) -> None:
        """transformers' hook: the columns that a collator is given."""
        if self._signature_columns is None:
            self._signature_columns = [*COLUMNS, *REFERENCE]

    # The loss

    @staticmethod
    def items(batch: dict[str, Any]) -> int:
        """The pairs of a batch."""
        return len(batch["counts"]) // 2

    def batch_loss(
        self, model: nn.Module, inputs: dict[str, Any], denominator: torch.Tensor | int | None
    ) -> torch.Tensor:
        """The loss of the batch's pairs."""
        args = self.args
        policy = _logps(model, inputs)
        if REFERENCE[0] in inputs:
            reference = tuple(inputs[name] for name in REFERENCE)
        else:
            reference = self._reference_logps(inputs)
        chosen, rejected = policy.chosen - reference[0], policy.rejected - reference[1]
        losses = sum(
            weight
            * preference_loss(
                chosen,
                rejected,
                inputs["counts"],
                loss_type=loss_type,
                beta=args.beta,
                label_smoothing=args.label_smoothing,
            )
            for loss_type, weight in zip(
                args.loss_type, args.loss_weights or [1.0] * len(args.loss_type), strict=True
            )
        )
        self._measure(model, policy, args.beta * chosen.detach(), args.beta * rejected.detach())
        return losses.sum() / (len(losses) if denominator is None else denominator)

    @torch.no_grad()
    def _reference_logps(self, inputs: dict[str, Any]) -> tuple[torch.Tensor, torch.Tensor]:
        with self._as_reference() as model:
            return _logps(model, inputs)[:2]

    @contextmanager
    def _as_reference(self) -> Iterator[nn.Module]:
        """The reference; without one of its own the model before it is trained is it, or the model without adapter."""
        if self.ref_model is not None:
            yield self.ref_model
            return
        with evaluation_mode(self.model):
            if self.adapter_off:
                with reference_mode(self.model):
                    yield self.model
            else:
                yield self.model

    def _measure(
        self, model: nn.Module, policy: LinearPreference, chosen: torch.Tensor, rejected: torch.Tensor
    ) -> None:
        """Add to the meters; chosen and rejected are the implicit rewards."""
        sums = {name: policy.stats[stat] for name, stat in _STATS.items()}
        if language_model_head(model).softcap is not None:  # the mean logits are not known
            del sums["chosen_logits"], sums["rejected_logits"]
        self.meters[self.mode].add(
            **sums,
            chosen_logps=policy.chosen.sum(),
            rejected_logps=policy.rejected.sum(),
            chosen_rewards=chosen.sum(),
            rejected_rewards=rejected.sum(),
            preferred=(chosen > rejected).sum(),
            margins=(chosen - rejected).sum(),
            pairs=torch.full_like(chosen.sum(), len(chosen)),
        )


_STATS = {
    "entropy": PreferenceStat.ENTROPY,
    "tokens": PreferenceStat.TOKENS,
    "correct": PreferenceStat.CHOSEN_CORRECT,
    "chosen_tokens": PreferenceStat.CHOSEN_TOKENS,
    "rejected_tokens": PreferenceStat.REJECTED_TOKENS,
    "chosen_logits": PreferenceStat.CHOSEN_LOGITS,
    "rejected_logits": PreferenceStat.REJECTED_LOGITS,
}


def _logps(model: nn.Module, inputs: dict[str, Any]) -> LinearPreference:
    """Log-probabilities of a batch's answers under a model."""
    head = language_model_head(model)
    return linear_preference(
        states_at_places(model, inputs).to(head.weight.dtype),
        head.weight,
        inputs["targets"],
        inputs["counts"],
        bias=head.bias,
        softcap=head.softcap,
    )


def _prepared(rows: Any, tokenizer: Any, args: DPOConfig, name: str) -> Dataset:
    """Prompts and answers as tokens; without the pairs whose prompt leaves no room for an answer."""
    dataset = preferences(rows, tokenizer, args, name)
    if args.max_length is None or args.truncation_mode == "keep_end":
        return dataset
    return kept(dataset, lambda row: len(row["prompt_ids"]) < args.max_length, name)
