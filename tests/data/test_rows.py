from __future__ import annotations

import pytest

from fastrlhf.data.rows import KINDS, fault_of, kind_of, plain_messages

ASKED = [{"role": "user", "content": "2 + 2?"}]
ANSWERED = [{"role": "assistant", "content": "4"}]
GOOD = {
    "text": {"text": "words"},
    "messages": {"messages": ASKED + ANSWERED},
    "prompt-completion": {"prompt": "2 + 2 =", "completion": " 4"},
    "preference": {"prompt": "2 + 2 =", "chosen": " 4", "rejected": " 5"},
    "preference-tokens": {"chosen_ids": [1, 2], "rejected_ids": [1, 3], "margin": 0.5},
    "prompt": {"prompt": "2 + 2 ="},
    "tokens": {"input_ids": [1, 2], "labels": [-100, 2]},
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_row_of_each_kind(kind):
    assert kind_of(GOOD[kind]) == kind and fault_of(GOOD[kind], kind) is None


@pytest.mark.parametrize(
    ("kind", "row"),
    [
        ("preference", {"chosen": ASKED + ANSWERED, "rejected": ASKED + ASKED}),
        ("preference", {"prompt": ASKED, "chosen": ANSWERED, "rejected": ASKED}),
        ("preference-tokens", {"prompt_ids": [], "chosen_ids": [1], "rejected_ids": [2]}),
        ("prompt-completion", {"prompt": ASKED, "completion": ANSWERED}),
        ("prompt-completion", {"prompt": "", "completion": "a text from nothing"}),
        ("messages", {"conversations": [{"from": "human", "value": "2 + 2?"}]}),
        ("messages", {"messages": [{"role": "assistant", "tool_calls": [{"function": {}}]}]}),
        ("prompt", {"prompt": ASKED}),
    ],
)
def test_other_forms(kind, row):
    assert kind_of(row) == kind and fault_of(row, kind) is None


def test_a_text_under_another_name():
    assert kind_of({"body": "words"}, "body") == "text"
    assert fault_of({"body": 3}, "text", "body").field == "body"


def test_a_row_of_no_kind_names_its_fields():
    with pytest.raises(
        ValueError, match="has the fields question, answer; expected 'text', 'messages', 'prompt'"
    ):
        kind_of({"question": "2 + 2?", "answer": "4"})


@pytest.mark.parametrize(
    ("kind", "changes", "field", "problem"),
    [
        ("text", {"text": ""}, "text", "is empty"),
        ("text", {"text": 3}, "text", "is 3 (int), expected a text"),
        ("prompt-completion", {"completion": ""}, "completion", "is empty"),
        ("prompt-completion", {"completion": None}, "completion", "is missing, expected a text"),
        ("prompt-completion", {"completion": ANSWERED}, "completion", "expected two texts or two lists"),
        ("messages", {"messages": []}, "messages", "is empty"),
        ("messages", {"messages": "hello"}, "messages", "is 'hello' (str), expected a list of messages"),
        ("messages", {"messages": [*ASKED, "4"]}, "messages[1]", "is '4' (str), expected a message"),
        ("messages", {"messages": [{"role": "user"}]}, "messages[0].content", "is missing, expected a text"),
        ("messages", {"messages": [{"role": 1, "content": ""}]}, "messages[0].role", "is 1 (int)"),
        ("preference", {"rejected": " 4"}, "rejected", "is the same as 'chosen'"),
        ("preference", {"prompt": ASKED}, "chosen", "expected two texts or two lists"),
        ("preference", {"margin": "much"}, "margin", "is 'much' (str), expected a number"),
        ("preference", {"margin": float("nan")}, "margin", "is nan (float), expected a number"),
        ("preference-tokens", {"rejected_ids": [1, 2]}, "rejected_ids", "is the same as 'chosen_ids'"),
        ("preference-tokens", {"chosen_ids": []}, "chosen_ids", "is empty"),
        ("preference-tokens", {"prompt_ids": "1"}, "prompt_ids", "expected a list of whole numbers"),
        ("preference-tokens", {"margin": [1]}, "margin", "expected a number"),
        ("tokens", {"input_ids": [1, 2.5]}, "input_ids", "expected a list of whole numbers"),
        ("tokens", {"input_ids": []}, "input_ids", "is empty"),
        ("tokens", {"labels": [1]}, "labels", "has 1 entries and 'input_ids' 2"),
    ],
)
def test_a_fault_names_the_field_and_what_it_is(kind, changes, field, problem):
    fault = fault_of(GOOD[kind] | changes, kind)
    assert fault.field == field and problem in fault.problem


def test_a_missing_field_and_a_row_that_is_none():
    assert fault_of({"prompt": "2 + 2 ="}, "prompt-completion") == ("completion", "is missing")
    assert "is a list" in fault_of([1], "text").problem


def test_messages_of_two_spellings():
    spoken = [
        {"from": "human", "value": "2 + 2?"},
        {"from": "gpt", "value": "4"},
        {"from": "system", "value": "."},
    ]
    assert [message["role"] for message in plain_messages(spoken)] == ["user", "assistant", "system"]
    assert plain_messages([{"role": "user", "content": "a", "name": None}]) == [
        {"role": "user", "content": "a"}
    ]
