"""Prompts as tensors: tokenising, collating, padding on the left, and what is wrong with them."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping
from typing import Any

import torch

from fastrlhf.data.chat import chat_tokens
from fastrlhf.data.rows import is_conversation, plain_messages

COLUMNS = ("input_ids", "attention_mask")


def ensure_pad_token(tokenizer: Any, vocab_size: int) -> int:
    """The id of a pad token that is not an end token, chosen with a notice where the tokenizer has none.

    A pad token equal to the end token makes every mask derived from it drop the token that ends a response.

    Args:
        tokenizer: a Hugging Face tokenizer; its pad token is set.
        vocab_size: rows of the model's embedding.

    Raises:
        ValueError: no token can serve: the tokenizer has no spare special token, and the embedding no spare row.
    """
    pad, eos = tokenizer.pad_token_id, tokenizer.eos_token_id
    if pad is not None and pad != eos:
        return pad
    problem = "has no pad token" if pad is None else f"pads with its end token {tokenizer.eos_token!r}"
    in_use = {eos, tokenizer.bos_token_id}
    specials = [
        token
        for token in tokenizer.all_special_tokens
        if tokenizer.convert_tokens_to_ids(token) not in in_use
    ]
    if specials:
        tokenizer.pad_token = specials[-1]
    elif len(tokenizer) < vocab_size:
        tokenizer.add_special_tokens({"pad_token": "<|pad|>"})
    else:
        raise ValueError(
            f"the tokenizer {problem}, and has no spare special token; add one and give the model a row for it: "
            "tokenizer.add_special_tokens({'pad_token': '<|pad|>'}); model.resize_token_embeddings(len(tokenizer))"
        )
    warnings.warn(
        f"the tokenizer {problem}; padding with {tokenizer.pad_token!r} instead", UserWarning, stacklevel=3
    )
    return tokenizer.pad_token_id


def tokenize_prompts(dataset: Any, tokenizer: Any, name: str = "train_dataset") -> Any:
    """`dataset` with an `input_ids` column: as it is if it has one, else tokenised from its `prompt` column.

    A prompt is a text, or messages that the tokenizer's chat template makes a text of.

    Raises:
        ValueError: neither column is there (the message lists those that are), or messages without a chat template.
    """
    if isinstance(dataset, dict):
        return {key: tokenize_prompts(part, tokenizer, f"{name}[{key!r}]") for key, part in dataset.items()}
    columns = _columns(dataset)
    if columns is None or "input_ids" in columns:
        return dataset
    if "prompt" not in columns:
        raise ValueError(f"{name} has columns {columns}, expected `input_ids` (tokens) or `prompt` (text)")
    if not hasattr(dataset, "map"):
        return [{**row, "input_ids": _prompt_tokens(tokenizer, row)} for row in dataset]
    return dataset.map(lambda row: {"input_ids": _prompt_tokens(tokenizer, row)}, desc=f"Tokenizing {name}")


def _prompt_tokens(tokenizer: Any, row: Mapping[str, Any]) -> list[int]:
    if not is_conversation(row["prompt"]):
        return tokenizer(row["prompt"])["input_ids"]
    return chat_tokens(tokenizer, plain_messages(row["prompt"]), row, add_generation_prompt=True)


def _columns(dataset: Any) -> list[str] | None:
    """Names of a dataset's columns, by its first row where it does not say; None where it has none."""
    if getattr(dataset, "column_names", None):
        return list(dataset.column_names)
    if dataset is None or not hasattr(dataset, "__len__") or len(dataset) == 0:
        return None
    return list(dataset[0]) if isinstance(dataset[0], Mapping) else None


def check_prompts(
    dataset: Iterable[dict],
    limit: int | None,
    response_length: int,
    name: str = "train_dataset",
    length_name: str = "response_length",
) -> None:
    """Raise ValueError at the first row that is empty or leaves no room for a response in `limit` tokens."""
    if isinstance(dataset, dict):
        for key, part in dataset.items():
            check_prompts(part, limit, response_length, f"{name}[{key!r}]", length_name)
        return
    for row, tokens in enumerate(_token_lists(dataset)):
        if len(tokens) == 0:
            raise ValueError(f"row {row} of {name} has no token: remove empty prompts")
        if limit is not None and len(tokens) + response_length > limit:
            raise ValueError(
                f"row {row} of {name} has {len(tokens)} tokens, which with {length_name}={response_length} exceeds "
                f"the model's context of {limit}: shorten the prompt to {limit - response_length} tokens at most"
            )


def longest_prompt(dataset: Iterable[dict]) -> list[int]:
    """The tokens of the longest prompt."""
    return list(max(_token_lists(dataset), key=len))


def _token_lists(dataset: Iterable[dict]) -> Iterable[Any]:
    if getattr(dataset, "column_names", None):
        return dataset["input_ids"]
    return (row["input_ids"] for row in dataset)


class PromptCollator:
    """Pads the tokens of a batch and leaves its other columns out (a text column cannot become a tensor)."""

    def __init__(self, tokenizer: Any):
        self.tokenizer = tokenizer

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        kept = [{name: row[name] for name in COLUMNS if name in row} for row in rows]
        return self.tokenizer.pad(kept, padding=True, padding_side="left", return_tensors="pt")


def left_pad(
    input_ids: torch.Tensor, attention_mask: torch.Tensor, pad_token_id: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """The same prompts with all padding on the left, and no column that is padding in every row.

    Args:
        input_ids, attention_mask: `[B, P]`, padded on any side.

    Returns:
        input_ids `[B, P']` and attention_mask `[B, P']` (bool), P' the longest prompt.
    """
    mask = attention_mask.bool()
    order = mask.long().argsort(dim=1, stable=True)  # padding first, the tokens after it in their order
    mask = mask.gather(1, order)
    input_ids = input_ids.gather(1, order).masked_fill(~mask, pad_token_id)
    longest = max(1, int(mask.sum(dim=1).max()))
    return input_ids[:, -longest:], mask[:, -longest:]
