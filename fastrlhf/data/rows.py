"""The kinds of rows that trainers take, and what can be wrong with one."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

TEXT, MESSAGES, PROMPT_COMPLETION, PREFERENCE, PREFERENCE_TOKENS, PROMPT, TOKENS = (
    "text",
    "messages",
    "prompt-completion",
    "preference",
    "preference-tokens",
    "prompt",
    "tokens",
)
KINDS = (TEXT, MESSAGES, PROMPT_COMPLETION, PREFERENCE, PREFERENCE_TOKENS, PROMPT, TOKENS)


class Fault(NamedTuple):
    """What is wrong with a row: the field, and what that field is or lacks."""

    field: str
    problem: str


def kind_of(row: Mapping[str, Any], text_field: str = "text") -> str:
    """Which of `KINDS` a row is, by its fields.

    - tokens: `input_ids`, and perhaps `labels`;
    - preference: `chosen` and `rejected`, texts or conversations, and perhaps `prompt`, which is otherwise what the
      two begin with, and `margin`, a number: by how much one is better;
    - preference-tokens: `chosen_ids` and `rejected_ids`, and perhaps `prompt_ids`, which come before both, and
      `margin`;
    - prompt-completion: `prompt` and `completion`, texts or conversations;
    - messages: `messages`, or `conversations` (`from` and `value` in place of `role` and `content`);
    - text: `text_field`;
    - prompt: `prompt` alone.

    Raises:
        ValueError: none of them; the message lists the fields.
    """
    if "input_ids" in row:
        return TOKENS
    if "chosen_ids" in row or "rejected_ids" in row:
        return PREFERENCE_TOKENS
    if "chosen" in row or "rejected" in row:
        return PREFERENCE
    if "completion" in row:
        return PROMPT_COMPLETION
    if "messages" in row or "conversations" in row:
        return MESSAGES
    if text_field in row:
        return TEXT
    if "prompt" in row:
        return PROMPT
    raise ValueError(
        f"a row has the fields {', '.join(row) or '(none)'}; expected {text_field!r}, 'messages', 'prompt' (with "
        "'completion', or with 'chosen' and 'rejected'), 'input_ids', or 'chosen_ids' and 'rejected_ids'"
    )


def fault_of(row: Any, kind: str, text_field: str = "text") -> Fault | None:
    """What is wrong with a row that is to be of this kind, or None."""
    if not isinstance(row, Mapping):
        return Fault("", f"is a {type(row).__name__}, expected an object with named fields")
    return _CHECKS[kind](row, text_field)


def is_conversation(value: Any) -> bool:
    """Whether a value is meant as messages and not as a text."""
    return isinstance(value, list) and bool(value) and isinstance(value[0], Mapping)


def plain_messages(messages: list[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Messages with `role` and `content`, also of ones with `from` and `value` (ShareGPT's)."""
    named = {"human": "user", "gpt": "assistant"}
    return [
        {"role": named.get(message["from"], message["from"]), "content": message["value"]}
        if "from" in message
        else {name: value for name, value in message.items() if value is not None}
        for message in messages
    ]


def _text_fault(row: Mapping[str, Any], field: str, *, may_be_empty: bool = False) -> Fault | None:
    if field not in row:
        return Fault(field, "is missing")
    value = row[field]
    if not isinstance(value, str):
        return Fault(field, f"is {_described(value)}, expected a text")
    return Fault(field, "is empty") if not value and not may_be_empty else None


def _messages_fault(row: Mapping[str, Any], field: str) -> Fault | None:
    if field not in row:
        return Fault(field, "is missing")
    messages = row[field]
    if not isinstance(messages, list):
        return Fault(field, f"is {_described(messages)}, expected a list of messages")
    if not messages:
        return Fault(field, "is empty")
    for number, message in enumerate(messages):
        if not isinstance(message, Mapping):
            return Fault(f"{field}[{number}]", f"is {_described(message)}, expected a message")
        role, content = ("from", "value") if "from" in message else ("role", "content")
        if not isinstance(message.get(role), str):
            return Fault(f"{field}[{number}].{role}", f"is {_described(message.get(role))}, expected a text")
        if not isinstance(message.get(content), str) and not message.get("tool_calls"):
            return Fault(
                f"{field}[{number}].{content}", f"is {_described(message.get(content))}, expected a text"
            )
    return None


def _either_fault(row: Mapping[str, Any], field: str, *, may_be_empty: bool = False) -> Fault | None:
    """A text, or messages."""
    if isinstance(row.get(field), list):
        return _messages_fault(row, field)
    return _text_fault(row, field, may_be_empty=may_be_empty)


def _same_form(row: Mapping[str, Any], *fields: str) -> Fault | None:
    forms = {field: isinstance(row[field], list) for field in fields}
    first, *others = fields
    for other in others:
        if forms[other] != forms[first]:
            one, two = (_described(row[field]) for field in (other, first))
            return Fault(
                other, f"is {one} and {first!r} is {two}, expected two texts or two lists of messages"
            )
    return None


def _messages(row: Mapping[str, Any], _: str) -> Fault | None:
    return _messages_fault(row, "messages" if "messages" in row else "conversations")


def _prompt_completion(row: Mapping[str, Any], _: str) -> Fault | None:
    return (
        _either_fault(row, "prompt", may_be_empty=True)
        or _either_fault(row, "completion")
        or _same_form(row, "prompt", "completion")
    )


def _preference(row: Mapping[str, Any], _: str) -> Fault | None:
    prompt = ("prompt",) if row.get("prompt") is not None else ()
    for field in (*prompt, "chosen", "rejected"):
        if fault := _either_fault(row, field, may_be_empty=field == "prompt"):
            return fault
    if fault := _same_form(row, *prompt, "chosen", "rejected"):
        return fault
    return _same_fault(row, "chosen", "rejected") or _margin_fault(row)


def _preference_tokens(row: Mapping[str, Any], _: str) -> Fault | None:
    if row.get("prompt_ids") and (fault := _numbers_fault(row, "prompt_ids")):
        return fault
    for field in ("chosen_ids", "rejected_ids"):
        if fault := _numbers_fault(row, field):
            return fault
    return _same_fault(row, "chosen_ids", "rejected_ids") or _margin_fault(row)


def _same_fault(row: Mapping[str, Any], one: str, other: str) -> Fault | None:
    return Fault(other, f"is the same as {one!r}") if row[one] == row[other] else None


def _margin_fault(row: Mapping[str, Any]) -> Fault | None:
    margin = row.get("margin")
    if margin is None or (isinstance(margin, (int, float)) and math.isfinite(margin)):
        return None
    return Fault("margin", f"is {_described(margin)}, expected a number")


def _numbers_fault(row: Mapping[str, Any], field: str) -> Fault | None:
    if field not in row:
        return Fault(field, "is missing")
    value = row[field]
    if not isinstance(value, list) or not all(type(number) is int for number in value):
        return Fault(field, f"is {_described(value)}, expected a list of whole numbers")
    return None if value else Fault(field, "is empty")


def _tokens(row: Mapping[str, Any], _: str) -> Fault | None:
    for field in ("input_ids", "labels", "completion_mask", "assistant_masks"):
        if field not in row:
            continue
        if fault := _numbers_fault(row, field):
            return fault
        value = row[field]
        if len(value) != len(row["input_ids"]):
            return Fault(field, f"has {len(value)} entries and 'input_ids' {len(row['input_ids'])}")
    return None


_CHECKS: dict[str, Callable[[Mapping[str, Any], str], Fault | None]] = {
    TEXT: lambda row, field: _text_fault(row, field),
    MESSAGES: _messages,
    PROMPT_COMPLETION: _prompt_completion,
    PREFERENCE: _preference,
    PREFERENCE_TOKENS: _preference_tokens,
    PROMPT: lambda row, _: _either_fault(row, "prompt"),
    TOKENS: _tokens,
}


def _described(value: Any) -> str:
    if value is None:
        return "missing"
    text = repr(value)
    return f"{text if len(text) <= 40 else text[:37] + '...'} ({type(value).__name__})"
