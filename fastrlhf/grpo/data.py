"""Prompts for groups: texts or conversations, tokenised, each with its row of the dataset for the reward functions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from fastrlhf.data.prompts import check_prompts


def is_conversation(prompt: Any) -> bool:
    """Whether a prompt is a list of messages."""
    return (
        isinstance(prompt, list) and bool(prompt) and isinstance(prompt[0], Mapping) and "role" in prompt[0]
    )


class PromptRows(torch.utils.data.Dataset):
    """The rows of a dataset, each with the tokens of its `prompt`.

    Args:
        dataset: rows with a column `prompt`: all texts, or all conversations, which the chat template makes a text of.
        tokenizer: of the policy.
        chat_template_kwargs: for the tokenizer's `apply_chat_template`.
        name: what messages call the dataset.

    Raises:
        TypeError, ValueError: rows that cannot be counted, or without a prompt; the message names the first.
    """

    def __init__(
        self, dataset: Any, tokenizer: Any, chat_template_kwargs: dict[str, Any], name: str = "train_dataset"
    ):
        if not hasattr(dataset, "__len__") or not hasattr(dataset, "__getitem__"):
            raise TypeError(
                f"{name} is a {type(dataset).__name__}, whose rows cannot be counted: pass a Dataset or a list"
            )
        self.dataset, self.name = dataset, name
        self.tokens = []
        for number in range(len(dataset)):
            row = dataset[number]
            if not isinstance(row, Mapping) or "prompt" not in row:
                has = list(row) if isinstance(row, Mapping) else type(row).__name__
                raise ValueError(f"row {number} of {name} is {has}, expected a column `prompt`")
            tokens = self._tokenise(row["prompt"], number, tokenizer, chat_template_kwargs)
            self.tokens.append(np.asarray(tokens, dtype=np.int32))

    def _tokenise(
        self, prompt: Any, number: int, tokenizer: Any, chat_template_kwargs: dict[str, Any]
    ) -> list[int]:
        if isinstance(prompt, str):
            return tokenizer(prompt)["input_ids"]
        if not is_conversation(prompt):
            raise ValueError(
                f"`prompt` of row {number} of {self.name} is a {type(prompt).__name__}, expected a text or a list of "
                "messages with role and content"
            )
        if tokenizer.chat_template is None:
            raise ValueError(f"{self.name} has conversations, and the tokenizer no chat template: set one")
        return tokenizer.apply_chat_template(
            prompt, add_generation_prompt=True, tokenize=True, return_dict=True, **chat_template_kwargs
        )["input_ids"]

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, number: int) -> dict[str, Any]:
        return {"row": self.dataset[number], "input_ids": self.tokens[number].tolist()}

    def check(self, limit: int | None, max_completion_length: int) -> None:
        """Raise ValueError at the first prompt that is empty or leaves no room for a completion in `limit` tokens."""
        rows = ({"input_ids": tokens} for tokens in self.tokens)
        check_prompts(rows, limit, max_completion_length, self.name, "max_completion_length")


class RowCollator:
    """Pads the tokens of a batch on the left, and keeps its rows."""

    def __init__(self, tokenizer: Any):
        self.tokenizer = tokenizer

    def __call__(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        padded = self.tokenizer.pad(
            [{"input_ids": example["input_ids"]} for example in examples],
            padding=True,
            padding_side="left",
            return_tensors="pt",
        )
        return {**padded, "rows": [example["row"] for example in examples]}
