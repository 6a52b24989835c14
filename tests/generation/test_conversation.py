"""Conversations as tokens, with a chat template and without."""

from __future__ import annotations

import pytest

from fastrlhf.generation.conversation import Conversation
from tests.support.tiny import tiny_tokenizer

TURNS = (
    "{% for m in messages %}{% if m.role == 'system' %}{% if m.content == 't9' %}{{ raise_exception('no') }}{% endif %}"
    "t7 {{ m.content }} {% elif m.role == 'user' %}t0 {{ m.content }} {% else %}t1 {{ m.content }} {% endif %}"
    "{% endfor %}{% if add_generation_prompt %}t1{% endif %}"
)


def talk(template=TURNS, **options):
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = template
    return Conversation(tokenizer, **options)


def test_turns_go_through_the_template():
    conversation = talk(system="t5")
    assert conversation.ask("t2 t3") == [7, 5, 0, 2, 3, 1]
    conversation.answer("t4")
    assert conversation.ask("t6") == [7, 5, 0, 2, 3, 1, 4, 0, 6, 1]
    conversation.reset()
    assert conversation.ask("t8") == [7, 5, 0, 8, 1]
    conversation.take_back()
    assert conversation.ask("t2") == [7, 5, 0, 2, 1]


def test_without_a_template_the_model_goes_on_with_the_text():
    conversation = talk(None, system="t5")
    assert conversation.ask("t2 t3") == [5, 2, 3]
    conversation.answer(" t4")
    assert conversation.ask("t6") == [5, 2, 3, 4, 6]


def test_the_oldest_turns_are_forgotten_where_all_are_too_long():
    conversation = talk(system="t5", longest=9)
    conversation.ask("t2 t3")
    conversation.answer("t4")
    assert conversation.ask("t6") == [7, 5, 0, 6, 1] and conversation.forgotten == 1
    conversation.answer("t8")
    assert conversation.ask("t10") == [7, 5, 0, 6, 1, 8, 0, 10, 1] and conversation.forgotten == 1


def test_a_turn_that_is_too_long_alone_is_taken_back():
    conversation = talk(longest=4)
    with pytest.raises(ValueError, match="this takes 5 tokens, and 4 is the most"):
        conversation.ask("t2 t3 t4")
    assert conversation.ask("t2") == [0, 2, 1]


def test_a_template_that_refuses():
    conversation = talk(system="t9")
    with pytest.raises(ValueError, match="the chat template refuses the conversation: no"):
        conversation.ask("t2")
