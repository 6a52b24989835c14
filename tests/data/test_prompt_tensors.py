"""Prompts: pad tokens, tokenising, checks, collating and padding on the left."""

import pytest
import torch
from datasets import Dataset

from fastrlhf.data.prompts import (
    PromptCollator,
    check_prompts,
    ensure_pad_token,
    left_pad,
    tokenize_prompts,
)
from tests.support.toy import EOS, PAD, VOCABULARY, toy_tokenizer


def test_a_pad_token_of_its_own_stays(recwarn):
    tokenizer = toy_tokenizer()
    assert ensure_pad_token(tokenizer, VOCABULARY) == PAD
    assert not recwarn.list


@pytest.mark.parametrize(
    ("pad", "problem"), [(None, "has no pad token"), ("<eos>", "pads with its end token '<eos>'")]
)
def test_a_spare_special_token_serves(pad, problem):
    tokenizer = toy_tokenizer(pad_token=pad)
    with pytest.warns(UserWarning, match=f"the tokenizer {problem}; padding with '<unk>' instead"):
        found = ensure_pad_token(tokenizer, VOCABULARY)
    assert found == tokenizer.pad_token_id != EOS


def test_a_spare_row_of_the_embedding_serves():
    tokenizer = toy_tokenizer(pad_token=None, unk_token=None)
    with pytest.warns(UserWarning, match="padding with '<|pad|>' instead"):
        found = ensure_pad_token(tokenizer, VOCABULARY + 8)
    assert found == tokenizer.pad_token_id == VOCABULARY


def test_no_token_that_serves_is_an_error():
    with pytest.raises(ValueError, match="has no pad token, and has no spare special token; add one"):
        ensure_pad_token(toy_tokenizer(pad_token=None, unk_token=None), VOCABULARY)


def test_text_becomes_tokens_and_tokens_stay():
    text = Dataset.from_dict({"prompt": ["w1 w2", "w3"], "label": ["a", "b"]})
    assert tokenize_prompts(text, toy_tokenizer())["input_ids"][:] == [[1, 2], [3]]
    tokens = Dataset.from_dict({"input_ids": [[1, 2]], "prompt": ["w5"]})
    assert tokenize_prompts(tokens, toy_tokenizer()) is tokens
    assert tokenize_prompts(None, toy_tokenizer()) is None
    rows = [{"input_ids": [1]}]
    assert tokenize_prompts(rows, toy_tokenizer()) is rows
    with pytest.raises(ValueError, match=r"eval_dataset has columns \['text'\], expected `input_ids`"):
        tokenize_prompts(Dataset.from_dict({"text": ["w1"]}), toy_tokenizer(), "eval_dataset")


def test_conversations_become_tokens_by_the_chat_template():
    messages = [{"role": "user", "content": "w1 w2"}]
    dataset = Dataset.from_dict({"prompt": [messages]})
    tokenizer = toy_tokenizer()
    with pytest.raises(ValueError, match="the tokenizer has no chat template"):
        tokenize_prompts(dataset, tokenizer)
    tokenizer.chat_template = (
        "{% for m in messages %}w7 {{ m.content }} {% endfor %}{% if add_generation_prompt %}w8{% endif %}"
    )
    assert tokenize_prompts(dataset, tokenizer)["input_ids"][:] == [[7, 1, 2, 8]]
    assert tokenize_prompts([{"prompt": messages}], tokenizer)[0]["input_ids"] == [7, 1, 2, 8]


@pytest.mark.parametrize("kind", ["dataset", "list"])
def test_prompts_that_do_not_fit_are_refused_by_row(kind):
    def check(rows, limit):
        dataset = Dataset.from_dict({"input_ids": rows})
        check_prompts(dataset if kind == "dataset" else list(dataset), limit, response_length=4)

    check([[1], [1, 2, 3]], 7)
    check([[1], [1] * 100], None)
    with pytest.raises(
        ValueError, match=r"row 1 of train_dataset has 4 tokens.*context of 7.*to 3 tokens at most"
    ):
        check([[1], [1, 2, 3, 4]], 7)
    with pytest.raises(ValueError, match="row 2 of train_dataset has no token"):
        check([[1], [2], []], 7)


@pytest.mark.parametrize("side", ["left", "right"])
def test_the_collator_pads_on_the_left_and_leaves_text_out(side):
    collate = PromptCollator(toy_tokenizer(padding_side=side))
    batch = collate([{"input_ids": [1, 2, 3], "prompt": "w1 w2 w3"}, {"input_ids": [4], "prompt": "w4"}])
    assert set(batch) == {"input_ids", "attention_mask"}
    assert batch["input_ids"].tolist() == [[1, 2, 3], [PAD, PAD, 4]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [0, 0, 1]]


def test_left_pad_moves_padding_and_cuts_columns_without_a_token():
    ids = torch.tensor([[1, 2, 9, 9, 9], [9, 3, 4, 5, 9], [9, 9, 9, 9, 6]])
    mask = torch.tensor([[1, 1, 0, 0, 0], [0, 1, 1, 1, 0], [0, 0, 0, 0, 1]])
    moved, moved_mask = left_pad(ids, mask, PAD)
    assert moved.tolist() == [[PAD, 1, 2], [3, 4, 5], [PAD, PAD, 6]]
    assert moved_mask.tolist() == [[False, True, True], [True, True, True], [False, False, True]]


def test_left_pad_of_full_rows_and_of_no_token():
    ids = torch.tensor([[1, 2], [3, 4]])
    assert torch.equal(left_pad(ids, torch.ones_like(ids), PAD)[0], ids)
    moved, mask = left_pad(ids, torch.zeros_like(ids), PAD)
    assert moved.tolist() == [[PAD], [PAD]]
    assert not mask.any()
