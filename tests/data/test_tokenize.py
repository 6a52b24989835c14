from __future__ import annotations

import pytest

from fastrlhf.data.tokenize import (
    IGNORED,
    messages_tokens,
    preference_tokens,
    prompt_completion_tokens,
    split_preference,
    text_tokens,
)
from tests.support.tiny import EOS, tiny_tokenizer

# Roles are the words t0 (user) and t1 (assistant); an answer ends in the end token, and a t2 follows.
TURNS = (
    "{% for m in messages %}{% if m.role == 'user' %}t0 {{ m.content }} t2 {% else %}"
    "t1 {{ m.content }} <eos> t2 {% endif %}{% endfor %}{% if add_generation_prompt %}t1 {% endif %}"
)
MARKED = TURNS.replace("{{ m.content }} <eos>", "{% generation %}{{ m.content }} <eos>{% endgeneration %}", 1)
ASKED, ANSWERED = {"role": "user", "content": "t5 t6"}, {"role": "assistant", "content": "t7"}
AGAIN = [ASKED, ANSWERED, ASKED, ANSWERED]


@pytest.fixture
def tokenizer():
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = TURNS
    return tokenizer


def test_a_text_ends_in_the_end_token_once(tokenizer):
    assert text_tokens(tokenizer, "t3 t4 ")["input_ids"] == [3, 4, EOS]
    assert text_tokens(tokenizer, "t3 t4 <eos>")["input_ids"] == [3, 4, EOS]


def test_a_conversation(tokenizer):
    assert messages_tokens(tokenizer, {"messages": [ASKED, ANSWERED]}) == {
        "input_ids": [0, 5, 6, 2, 1, 7, EOS, 2]
    }
    spoken = [{"from": "human", "value": "t5 t6"}, {"from": "gpt", "value": "t7"}]
    assert messages_tokens(tokenizer, {"conversations": spoken})["input_ids"] == [0, 5, 6, 2, 1, 7, EOS, 2]


@pytest.mark.parametrize("template", [TURNS, MARKED], ids=["told by rendering", "marked"])
def test_the_assistants_tokens_alone(tokenizer, template):
    tokenizer.chat_template = template
    tokens = messages_tokens(tokenizer, {"messages": AGAIN}, assistant_only=True)
    turn = [IGNORED] * 5 + [7, EOS] + [IGNORED]
    assert tokens["labels"] == turn + turn
    assert tokens["input_ids"] == [0, 5, 6, 2, 1, 7, EOS, 2] * 2


def test_conversations_in_which_they_cannot_be_told(tokenizer):
    with pytest.raises(ValueError, match="no token is the assistant's"):
        messages_tokens(tokenizer, {"messages": [ASKED]}, assistant_only=True)
    tokenizer.chat_template = "t{{ messages | length }} " + TURNS
    with pytest.raises(ValueError, match="up to message 1 in another way once it goes on"):
        messages_tokens(tokenizer, {"messages": AGAIN}, assistant_only=True)
    tokenizer.chat_template = None
    with pytest.raises(ValueError, match="has no chat template: set chat_template_path"):
        messages_tokens(tokenizer, {"messages": AGAIN})


def test_what_a_row_gives_to_the_template(tokenizer):
    tokenizer.chat_template = "{{ first }} t{{ tools | length }} {{ messages[0].content }}"
    row = {"messages": [ASKED], "chat_template_kwargs": {"first": "t9"}, "tools": '[{"a": 1}, {"b": 2}]'}
    assert messages_tokens(tokenizer, row)["input_ids"] == [9, 2, 5, 6]


@pytest.mark.parametrize(
    ("options", "labels"),
    [
        ({}, [IGNORED, IGNORED, 5, EOS]),
        ({"completion_only": False}, None),
    ],
)
def test_a_prompt_and_its_completion(tokenizer, options, labels):
    tokens = prompt_completion_tokens(tokenizer, {"prompt": "t3 t4 ", "completion": "t5 "}, **options)
    assert tokens["input_ids"] == [3, 4, 5, EOS] and tokens.get("labels") == labels


def test_a_conversation_and_its_completion(tokenizer):
    row = {"prompt": AGAIN[:3], "completion": [ANSWERED]}
    tokens = prompt_completion_tokens(tokenizer, row)
    assert tokens["labels"] == [IGNORED] * 13 + [7, EOS, 2]
    assert prompt_completion_tokens(tokenizer, row, assistant_only=True)["labels"] == [IGNORED] * 13 + [
        7,
        EOS,
        IGNORED,
    ]
    both = prompt_completion_tokens(tokenizer, row, assistant_only=True, completion_only=False)
    assert [label for label in both["labels"] if label != IGNORED] == [7, EOS, 7, EOS]


def test_where_a_token_goes_across_the_completion_begins_before_it(tokenizer):
    # the words "t1" and "1" are one word together: the prompt's last token is not in the whole
    tokens = prompt_completion_tokens(tokenizer, {"prompt": "t3 t1", "completion": "1 t5 "})
    assert tokens["input_ids"] == [3, 11, 5, EOS] and tokens["labels"] == [IGNORED, 11, 5, EOS]


def test_preferences_of_texts(tokenizer):
    explicit = {"prompt": "t3 t4", "chosen": " t5 ", "rejected": " t6 t7 "}
    assert preference_tokens(tokenizer, explicit) == ([3, 4], [5, EOS], [6, 7, EOS])
    implicit = {"chosen": "t3 t4 t5 ", "rejected": "t3 t4 t6 t7 "}
    assert preference_tokens(tokenizer, implicit) == preference_tokens(tokenizer, explicit)
    assert split_preference({"chosen": "same start", "rejected": "same stop"}) == ("same", " start", " stop")
    assert split_preference({"chosen": "yes", "rejected": "no"}) == ("", "yes", "no")


def test_preferences_of_conversations(tokenizer):
    other = {"role": "assistant", "content": "t8 t9"}
    implicit = {"chosen": [ASKED, ANSWERED], "rejected": [ASKED, other]}
    explicit = {"prompt": [ASKED], "chosen": [ANSWERED], "rejected": [other]}
    for row in (implicit, explicit):
        assert preference_tokens(tokenizer, row) == ([0, 5, 6, 2, 1], [7, EOS, 2], [8, 9, EOS, 2])
