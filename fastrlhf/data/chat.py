"""Conversations as tokens by a tokenizer's chat template, and which of them the assistant wrote."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

_MARK = re.compile(r"\{%-?\s*generation\b")


def chat_tokens(
    tokenizer: Any, messages: list[dict[str, Any]], row: Mapping[str, Any], **options: Any
) -> list[int]:
    """The tokens of a conversation.

    Args:
        row: where the messages are from; its `tools` and `chat_template_kwargs` go to the template.
        options: for `apply_chat_template`.

    Raises:
        ValueError: the tokenizer has no chat template.
    """
    return _apply(tokenizer, messages, row, **options)["input_ids"]


def conversation_tokens(
    tokenizer: Any, messages: list[dict[str, Any]], row: Mapping[str, Any]
) -> tuple[list[int], list[int]]:
    """The tokens of a conversation, and 1 for each that the assistant wrote, its end of turn among them.

    A template that marks them itself (`{% generation %}`) says which they are. Any other is rendered up to each of the
    assistant's messages and through it: what the message adds is the assistant's, up to its last end token.

    Raises:
        ValueError: no chat template, no message of the assistant, or a template that renders the beginning of a
            conversation in another way once it goes on.
    """
    if _MARK.search(tokenizer.chat_template or ""):
        rendered = _apply(tokenizer, messages, row, return_assistant_tokens_mask=True)
        input_ids, mask = rendered["input_ids"], rendered["assistant_masks"]
    else:
        input_ids = _apply(tokenizer, messages, row)["input_ids"]
        mask = _assistant_mask(tokenizer, messages, row, input_ids)
    if 1 not in mask:
        raise ValueError("no token is the assistant's: a message with the role 'assistant' is needed")
    return input_ids, mask


def _assistant_mask(
    tokenizer: Any, messages: list[dict[str, Any]], row: Mapping[str, Any], input_ids: list[int]
) -> list[int]:
    mask = [0] * len(input_ids)
    for number, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        before = chat_tokens(tokenizer, messages[:number], row, add_generation_prompt=True) if number else []
        through = chat_tokens(tokenizer, messages[: number + 1], row)
        if input_ids[: len(through)] != through or through[: len(before)] != before:
            raise ValueError(
                f"the chat template renders the conversation up to message {number} in another way once it goes on, "
                "so that the assistant's tokens cannot be told: mark them in the template with {% generation %} ... "
                "{% endgeneration %}"
            )
        written = range(len(before), len(through))
        ends = [at for at in written if through[at] == tokenizer.eos_token_id]
        for at in range(len(before), ends[-1] + 1 if ends else len(through)):
            mask[at] = 1
    return mask


def _apply(tokenizer: Any, messages: list[dict[str, Any]], row: Mapping[str, Any], **options: Any) -> Any:
    if tokenizer.chat_template is None:
        raise ValueError(
            "the tokenizer has no chat template: set chat_template_path, or tokenizer.chat_template, or give texts"
        )
    tools = row.get("tools")
    return tokenizer.apply_chat_template(
        messages,
        tools=json.loads(tools) if isinstance(tools, str) else tools,
        tokenize=True,
        return_dict=True,
        **(row.get("chat_template_kwargs") or {}),
        **options,
    )
