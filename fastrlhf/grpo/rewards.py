"""Rewards as TRL calls them: functions of prompts, completions and the dataset's other columns, and reward models."""

from __future__ import annotations

import asyncio
import inspect
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from fastrlhf.grpo.data import is_conversation
from fastrlhf.models.backbone import base_model, hidden_states
from fastrlhf.models.heads import check_score_head
from fastrlhf.ppo.rewards import RewardError, reward_name, show_row


@dataclass
class Completed:
    """Completions with what rewards look at, one of each a row.

    Attributes:
        rows: of the dataset.
        prompts, completions: texts; or lists of messages, where the prompts are conversations.
        completion_ids: tokens, the end token among them.
        metrics, extra: what the reward functions said through `log_metric` and `log_extra`.
    """

    rows: list[Mapping[str, Any]]
    prompts: list[Any]
    completions: list[Any]
    completion_ids: list[list[int]]
    metrics: dict[str, list[float]] = field(default_factory=dict)
    extra: dict[str, list[Any]] = field(default_factory=dict)

    def said(self) -> dict[str, float]:
        """The mean of each metric that the reward functions gave."""
        return {name: sum(values) / len(values) for name, values in self.metrics.items()}

    def columns(self) -> dict[str, list[Any]]:
        """The dataset's other columns."""
        names = [name for name in self.rows[0] if name not in ("prompt", "completion", "completion_ids")]
        return {name: [row[name] for row in self.rows] for name in names}


class Rewards:
    """Calls the rewards of a trainer.

    Args:
        functions: reward models (with a `score` head) and functions, which are called with the keyword arguments
            prompts, completions, completion_ids, the dataset's other columns, trainer_state, log_extra and log_metric,
            and return a number, or None where they have nothing to say, for each completion. They may be coroutines.
        processing_classes: the tokenizer of each model; None for a function.
        weights: one number a reward; all one if None.
        chat_template_kwargs: for the tokenizers of models.
        packing: see `hidden_states`.

    Raises:
        ValueError, TypeError: something that is neither, or another number of weights or tokenizers than of rewards.
    """

    def __init__(
        self,
        functions: list[nn.Module | Callable],
        processing_classes: list[Any],
        weights: Sequence[float] | None,
        chat_template_kwargs: dict[str, Any],
        packing: bool | None = None,
    ):
        if not functions:
            raise ValueError("reward_funcs is empty: pass at least one reward")
        for function in functions:
            if isinstance(function, nn.Module):
                check_score_head(function, "reward_funcs", "or a function")
            elif not callable(function):
                raise TypeError(
                    f"reward_funcs has a {type(function).__name__}, expected functions, models or their names"
                )
        if len(processing_classes) != len(functions):
            raise ValueError(
                f"reward_processing_classes has {len(processing_classes)} elements for {len(functions)} rewards"
            )
        self.functions, self.processing_classes = functions, processing_classes
        weights = [1.0] * len(functions) if weights is None else list(weights)
        if len(weights) != len(functions):
            raise ValueError(f"reward_weights has {len(weights)} numbers for {len(functions)} rewards")
        self.weights = torch.tensor(weights, dtype=torch.float32)
        self.chat_template_kwargs, self.packing = chat_template_kwargs, packing
        self.names = [_short_name(function) for function in functions]

    @property
    def models(self) -> list[nn.Module]:
        """The rewards that are models."""
        return [function for function in self.functions if isinstance(function, nn.Module)]

    def __call__(self, completed: Completed, trainer_state: Any, batch_size: int) -> torch.Tensor:
        """`[B, rewards]`, float32; NaN where a function has nothing to say.

        Raises:
            RewardError: a function raised (twice), gave another number of rewards, or one that is not finite.
        """
        arguments = {
            "prompts": completed.prompts,
            "completions": completed.completions,
            "completion_ids": completed.completion_ids,
            **completed.columns(),
            "trainer_state": trainer_state,
            "log_extra": lambda column, values: completed.extra.setdefault(column, []).extend(values),
            "log_metric": lambda name, value: completed.metrics.setdefault(name, []).append(value),
        }
        columns = [
            self._model_scores(function, tokenizer, completed, batch_size)
            if isinstance(function, nn.Module)
            else torch.tensor(_called(function, arguments))
            for function, tokenizer in zip(self.functions, self.processing_classes, strict=True)
        ]
        return torch.stack([column.float().cpu() for column in columns], dim=1)

    @torch.no_grad()
    def _model_scores(
        self, model: nn.Module, tokenizer: Any, completed: Completed, batch_size: int
    ) -> torch.Tensor:
        """`[B]`: the model's output at the last token of prompt and completion, as its own tokenizer reads them."""
        texts = self._texts(tokenizer, completed)
        device = self.weights.device  # the models' may be away from theirs
        scores = []
        for start in range(0, len(texts), batch_size):
            batch = tokenizer(
                text=texts[start : start + batch_size],
                return_tensors="pt",
                padding=True,
                padding_side="right",
                add_special_tokens=False,
            ).to(device)
            mask = batch["attention_mask"].bool()
            hidden = hidden_states(model, batch["input_ids"], mask, self.packing)
            last = hidden[torch.arange(len(mask), device=device), mask.sum(dim=1) - 1]
            scores.append(model.score(last).squeeze(-1).float())
        return torch.cat(scores)

    def _texts(self, tokenizer: Any, completed: Completed) -> list[str]:
        pairs = zip(completed.prompts, completed.completions, strict=True)
        if not is_conversation(completed.prompts[0]):
            return [prompt + completion for prompt, completion in pairs]
        return [
            tokenizer.apply_chat_template([*prompt, *completion], tokenize=False, **self.chat_template_kwargs)
            for prompt, completion in pairs
        ]


def _short_name(function: Any) -> str:
    if isinstance(function, nn.Module):
        return base_model(function).config._name_or_path.split("/")[-1] or type(function).__name__
    return getattr(function, "__name__", type(function).__name__)


def _called(function: Callable, arguments: dict[str, Any]) -> list[float]:
    """What a function gives, tried once more if it raises (a service may have been away); NaN for None."""
    prompts, completions = arguments["prompts"], arguments["completions"]
    try:
        scores = _outcome(function, arguments)
    except Exception:
        try:
            scores = _outcome(function, arguments)
        except Exception as error:
            raise RewardError(
                f"{reward_name(function)} raised {type(error).__name__}: {error}, twice\n"
                + show_row(0, prompts, completions)
            ) from error
    scores = scores.tolist() if hasattr(scores, "tolist") else scores
    if isinstance(scores, (str, bytes, Mapping)) or not isinstance(scores, Iterable):
        raise RewardError(
            f"{reward_name(function)} gave {scores!r}, expected a list with a number or None for each of the "
            f"{len(prompts)} completions\n{show_row(0, prompts, completions)}"
        )
    scores = list(scores)
    if len(scores) != len(prompts):
        raise RewardError(
            f"{reward_name(function)} gave {len(scores)} rewards for {len(prompts)} completions, expected one each\n"
            + show_row(0, prompts, completions)
        )
    return [_number(function, score, row, prompts, completions) for row, score in enumerate(scores)]


def _outcome(function: Callable, arguments: dict[str, Any]) -> Any:
    given = function(**arguments)
    return asyncio.run(given) if inspect.iscoroutine(given) else given


def _number(function: Callable, score: Any, row: int, prompts: list[Any], completions: list[Any]) -> float:
    if score is None:
        return math.nan
    try:
        number = math.nan if isinstance(score, (str, bytes)) else float(score)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise RewardError(
            f"{reward_name(function)} gave {score!r} for completion {row}, expected a finite number or None\n"
            + show_row(row, prompts, completions)
        )
    return number
