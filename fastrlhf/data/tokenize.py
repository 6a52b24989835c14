"""Rows as tokens: texts and conversations, prompts with completions, preferences; and which tokens count in a loss."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from fastrlhf.data.chat import chat_tokens, conversation_tokens
from fastrlhf.data.rows import is_conversation, plain_messages

IGNORED = -100


class Preference(NamedTuple):
    """A preference's tokens: the prompt's, and what follows it in either answer."""

    prompt_ids: list[int]
    chosen_ids: list[int]
    rejected_ids: list[int]


def text_tokens(tokenizer: Any, text: str) -> dict[str, list[int]]:
    """`input_ids` of a text that ends in the end token; all count."""
    return {"input_ids": tokenizer(text=_ended(tokenizer, text))["input_ids"]}


def messages_tokens(
    tokenizer: Any,
    row: Mapping[str, Any],
    *,
    assistant_only: bool = False,
) -> dict[str, list[int]]:
    """`input_ids` of a conversation, and `labels` where the assistant's tokens alone count.

    Raises:
        ValueError: `assistant_only`, and no message is the assistant's (see `conversation_tokens`).
    """
    messages = plain_messages(row["messages"] if "messages" in row else row["conversations"])
    if not assistant_only:
        return {"input_ids": chat_tokens(tokenizer, messages, row)}
    input_ids, mask = conversation_tokens(tokenizer, messages, row)
    return {"input_ids": input_ids, "labels": masked_labels(input_ids, mask)}


def prompt_completion_tokens(
    tokenizer: Any,
    row: Mapping[str, Any],
    *,
    completion_only: bool = True,
    assistant_only: bool = False,
) -> dict[str, list[int]]:
    """`input_ids` of prompt and completion as one, and `labels` where not all of them count.

    Where the prompt's tokens are no beginning of them (a token goes across, or the template renders the prompt alone in
    another way) the completion begins where the two part.
    """
    prompt, completion = row["prompt"], row["completion"]
    mask = None
    if is_conversation(completion):
        prompt, completion = plain_messages(prompt), plain_messages(completion)
        prompt_ids = chat_tokens(tokenizer, prompt, row, add_generation_prompt=True)
        if assistant_only:
            input_ids, mask = conversation_tokens(tokenizer, prompt + completion, row)
        else:
            input_ids = chat_tokens(tokenizer, prompt + completion, row)
    else:
        prompt_ids = tokenizer(text=prompt)["input_ids"]
        input_ids = tokenizer(text=prompt + _ended(tokenizer, completion))["input_ids"]
    if completion_only:
        begins = common_prefix(prompt_ids, input_ids)
        mask = [int(at >= begins and (mask is None or mask[at])) for at in range(len(input_ids))]
    if mask is None:
        return {"input_ids": input_ids}
    return {"input_ids": input_ids, "labels": masked_labels(input_ids, mask)}


def preference_tokens(tokenizer: Any, row: Mapping[str, Any]) -> Preference:
    """The tokens of a preference.

    Texts end in the end token. Without `prompt` the prompt is what the two conversations begin with (all messages that
    they share), or, of texts, what they share up to the last space.
    """
    prompt, chosen, rejected = split_preference(row)
    if is_conversation(chosen):
        prompt_ids = chat_tokens(tokenizer, prompt, row, add_generation_prompt=True) if prompt else []
        both = [chat_tokens(tokenizer, prompt + answer, row) for answer in (chosen, rejected)]
    else:
        prompt_ids = tokenizer(text=prompt)["input_ids"] if prompt else []
        both = [
            tokenizer(text=prompt + _ended(tokenizer, answer))["input_ids"] for answer in (chosen, rejected)
        ]
    begins = min(common_prefix(prompt_ids, tokens) for tokens in both)
    return Preference(both[0][:begins], both[0][begins:], both[1][begins:])


def split_preference(row: Mapping[str, Any]) -> tuple[Any, Any, Any]:
    """Prompt, chosen and rejected, as texts or as lists of messages, whether the prompt is a field or is implied."""
    chosen, rejected, prompt = row["chosen"], row["rejected"], row.get("prompt")
    conversation = is_conversation(chosen)
    if conversation:
        chosen, rejected = plain_messages(chosen), plain_messages(rejected)
    if prompt is not None:
        return plain_messages(prompt) if conversation else prompt, chosen, rejected
    shared = common_prefix(chosen, rejected)
    if conversation:
        shared = min(shared, len(chosen) - 1, len(rejected) - 1)
    else:
        shared = chosen.rfind(" ", 0, shared) if shared < min(len(chosen), len(rejected)) else shared
        shared = max(shared, 0)
    return chosen[:shared], chosen[shared:], rejected[shared:]


def masked_labels(input_ids: list[int], *masks: list[int]) -> list[int]:
    """`input_ids`, and `IGNORED` where a mask says zero."""
    return [token if all(bits) else IGNORED for token, *bits in zip(input_ids, *masks, strict=True)]


def common_prefix(one: Any, other: Any) -> int:
    """How many elements two sequences begin with alike."""
    for at, (here, there) in enumerate(zip(one, other, strict=False)):
        if here != there:
            return at
    return min(len(one), len(other))


def _ended(tokenizer: Any, text: str) -> str:
    end = tokenizer.eos_token or ""
    return text if text.endswith(end) else text + end
