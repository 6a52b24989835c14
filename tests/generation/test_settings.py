"""Where a response ends, what settings do, and which cannot be meant."""

from __future__ import annotations

import pytest
import torch

import fastrlhf
from fastrlhf.generation.batches import generate
from fastrlhf.generation.text import ResponseText
from fastrlhf.kernels import using
from tests.support.toy import EOS, PAD, VOCABULARY, toy_model, toy_tokenizer

PROMPTS = [[1, 2, 3], [4], [5, 6]]


def tokens(prompts=PROMPTS, model=None, **options):
    options = {"max_new_tokens": 8, "stop_token_ids": (), **options}
    return [found.tokens for found in fastrlhf.generate(model or toy_model(), prompts, **options)]


def test_prompts_as_texts_lists_and_tensors():
    tokenizer = toy_tokenizer()
    expected = tokens()
    texts = fastrlhf.generate(
        toy_model(), ["w1 w2 w3", "w4", "w5 w6"], tokenizer=tokenizer, max_new_tokens=8, stop_token_ids=()
    )
    assert [found.tokens for found in texts] == expected
    assert texts[0].text == tokenizer.decode(expected[0], skip_special_tokens=True)
    padded = torch.tensor([[1, 2, 3], [PAD, 4, PAD], [PAD, 5, 6]])
    assert tokens(padded, attention_mask=padded != PAD) == expected
    assert tokens(torch.tensor([[1, 2, 3]])) == expected[:1]
    (one,) = fastrlhf.generate(
        toy_model(), "w1 w2 w3", tokenizer=tokenizer, max_new_tokens=8, stop_token_ids=()
    )
    assert one.tokens == expected[0] and one.finish_reason == "length"
    assert len(one.logprobs) == len(one.entropy) == 8 and max(one.logprobs) < 0 < min(one.entropy)


def test_more_samples_than_rows():
    model = toy_model()
    found = tokens(num_samples=3, model=model)
    assert len(found) == 9 and len({tuple(each) for each in found}) == 9
    assert tokens(num_samples=3, model=model, batch_size=2) == found


def test_each_prompt_has_its_length_and_seed():
    whole = tokens(seed=5)
    assert [len(each) for each in tokens(max_new_tokens=[1, 8, 3])] == [1, 8, 3]
    mixed = tokens(seed=[5, 6, 5])
    assert (mixed[0], mixed[2]) == (whole[0], whole[2]) and mixed[1] != whole[1]


def test_end_tokens_of_the_model_end_a_response():
    model = toy_model()
    found = [each for seed in range(9) for each in tokens(model=model, stop_token_ids=None, seed=seed)]
    assert all(EOS not in each[:-1] for each in found)
    assert any(each[-1] == EOS for each in found)


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_no_response_ends_before_it_may(backend):
    stops = tuple(range(0, VOCABULARY, 2))
    with using(backend):
        found = tokens(stop_token_ids=stops, min_new_tokens=4, num_samples=4)
    assert all(not set(stops) & set(each[:4]) for each in found)
    assert {len(each) for each in found} - {8} and min(map(len, found)) > 4


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_filters_and_penalties_are_those_of_the_operation(backend):
    with using(backend):
        greedy = tokens(temperature=0.0)
        assert tokens(top_k=1) == tokens(top_p=1e-6) == tokens(min_p=1.0) == greedy
        penalised = tokens(temperature=0.0, repetition_penalty=1e6)
    for prompt, response in zip(PROMPTS, penalised, strict=True):
        assert len(set(response)) == len(response) and not set(prompt) & set(response)


def test_repetition_penalty_is_that_of_transformers():
    model = toy_model()
    for prompt, found in zip(
        PROMPTS, tokens(model=model, temperature=0.0, repetition_penalty=1.5), strict=True
    ):
        expected = model.generate(
            torch.tensor([prompt]),
            max_new_tokens=8,
            do_sample=False,
            repetition_penalty=1.5,
            eos_token_id=None,
            pad_token_id=PAD,
        )
        assert found == expected[0, len(prompt) :].tolist()


def test_a_stop_string_ends_the_text_before_it():
    tokenizer, model = toy_tokenizer(), toy_model()
    options = {"tokenizer": tokenizer, "max_new_tokens": 8, "stop_token_ids": (), "seed": 1}
    (whole,) = fastrlhf.generate(model, [[1, 2]], **options)
    words = whole.text.split()
    stop = f"{words[3]} {words[4]}"
    (cut,) = fastrlhf.generate(model, [[1, 2]], stop_strings=["never", stop], **options)
    assert cut.text == whole.text[: whole.text.index(stop)] and cut.finish_reason == "stop"
    texts = [tokenizer.decode(whole.tokens[:count], skip_special_tokens=True) for count in range(9)]
    assert cut.tokens == whole.tokens[: next(count for count, text in enumerate(texts) if stop in text)]
    (other,) = fastrlhf.generate(model, [[1, 2]], stop_strings=["a text that never comes"], **options)
    assert other == whole


def test_streams_tokens_and_text_as_they_come():
    tokenizer, model = toy_tokenizer(), toy_model()
    options = {"tokenizer": tokenizer, "max_new_tokens": 8, "batch_size": 2}
    whole = fastrlhf.generate(model, PROMPTS, **options)
    events = list(fastrlhf.generate(model, PROMPTS, stream=True, **options))
    for number, completion in enumerate(whole):
        own = [event for event in events if event.request == number]
        assert [event.token for event in own] == completion.tokens
        assert "".join(event.text for event in own) == completion.text
        assert [event.finished for event in own] == [False] * (len(own) - 1) + [True]
    assert [event.request for event in events[:4]] == [0, 1, 0, 1]


class Characters:
    """A tokenizer whose tokens are bytes."""

    def decode(self, tokens, skip_special_tokens):
        return bytes(tokens).decode(errors="replace")


def pieces(text, stop_strings=()):
    response, found = ResponseText(Characters(), stop_strings), []
    given = text.encode()
    for place, token in enumerate(given):
        response.push(token)
        found.append(response.piece(last=place + 1 == len(given)))
        if response.stopped:
            break
    return found


def test_a_character_of_several_tokens_comes_whole():
    assert pieces("aé漢") == ["a", "", "é", "", "", "漢"]


def test_what_may_begin_a_stop_string_is_held_back():
    assert pieces("abcde", ("cdx",)) == ["", "", "a", "b", "cde"]
    assert pieces("abcdefg", ("cde", "zz")) == ["", "", "a", "b", ""]


BAD = [
    ({"temperature": -1.0}, "temperature is -1.0"),
    ({"temperature": float("nan")}, "temperature is nan"),
    ({"top_p": 0.0}, r"top_p is 0.0, expected a number in \(0, 1\]"),
    ({"top_p": 1.5}, r"top_p is 1.5, expected a number in \(0, 1\]"),
    ({"min_p": -0.1}, r"min_p is -0.1, expected a number in \[0, 1\]"),
    ({"top_k": -1}, "top_k is -1"),
    ({"repetition_penalty": 0.0}, "repetition_penalty is 0.0"),
    ({"max_new_tokens": 0}, "max_new_tokens is 0"),
    ({"max_new_tokens": [1, 2]}, "max_new_tokens has 2 numbers, expected one or as many as prompts: 3"),
    ({"min_new_tokens": 9}, "min_new_tokens is 9, expected at most max_new_tokens=8"),
    ({"num_samples": 0}, "num_samples is 0"),
    ({"batch_size": 0}, "max_rows is 0"),
    ({"weights": "int3"}, "weights is 'int3'"),
    ({"stop_strings": ["x"]}, "stop_strings need a tokenizer"),
    ({"stop_strings": [""], "tokenizer": toy_tokenizer()}, "stop_strings has an empty string"),
    ({"attention_mask": torch.ones(1)}, "attention_mask is given"),
    ({"seed": -1}, "seed is -1"),
    ({"seed": 2**64}, "seed is 18446744073709551616, expected less than"),
]


@pytest.mark.parametrize(("options", "message"), BAD, ids=lambda value: str(value)[:40])
def test_settings_that_cannot_be_meant(options, message):
    with pytest.raises(ValueError, match=message):
        tokens(**options)


@pytest.mark.parametrize(
    ("prompts", "message"),
    [
        ([], "there are no prompts"),
        ([[1], []], "prompt 1 is empty"),
        (["w1"], "prompts are texts, which need a tokenizer"),
        ([[1], [2] * 41], "prompt 1 has 41 tokens, which with max_new_tokens=8 is more than the 48"),
        (
            [[1, VOCABULARY]],
            rf"prompt 0 holds token 1 or {VOCABULARY}, expected tokens in \[0, {VOCABULARY}\)",
        ),
        ([[-1, 2]], "prompt 0 holds token -1 or 2"),
        (torch.ones(2), r"prompts has shape \[2\]"),
        (torch.ones(2, 2).long(), None),
    ],
    ids=lambda value: str(value)[:40],
)
def test_prompts_that_cannot_be_meant(prompts, message):
    if message is None:
        with pytest.raises(ValueError, match=r"attention_mask has shape \[1\]"):
            tokens(prompts, attention_mask=torch.ones(1))
        return
    with pytest.raises(ValueError, match=message):
        tokens(prompts)


def test_the_largest_seed_and_a_padded_batch_with_stop_strings():
    assert tokens(seed=2**64 - 1) != tokens(seed=2**63)
    ids = torch.tensor([[1, 2]])
    with pytest.raises(ValueError, match=r"use fastrlhf\.generate"):
        generate(toy_model(), ids, ids > 0, max_new_tokens=2, pad_token_id=PAD, stop_strings=("x",))


def test_a_prompt_that_just_fits():
    assert len(tokens([[2] * 40])[0]) == 8


def spoiled(part, value):
    model = toy_model(tie_word_embeddings=False)
    with torch.no_grad():
        part(model)[...] = value
    return model


@pytest.mark.parametrize("backend", ["cpu", "reference"])
@pytest.mark.parametrize(
    ("part", "where"),
    [
        (lambda model: model.model.layers[1].mlp.down_proj.weight[3], "layer 1"),
        (lambda model: model.model.layers[0].self_attn.v_proj.weight[0], "layer 0"),
        (lambda model: model.model.embed_tokens.weight[5], "layer 0"),
        (lambda model: model.lm_head.weight[2], "the head"),
    ],
    ids=["layer 1", "layer 0", "embedding", "head"],
)
def test_nan_logits_name_the_row_the_step_and_the_layer(part, where, backend):
    model = spoiled(part, float("nan"))
    with using(backend), pytest.raises(FloatingPointError) as error:
        tokens(model=model, max_new_tokens=4)
    assert f"that is not finite is that of {where}" in str(error.value)
    assert "are NaN at step 0" in str(error.value)


def test_the_row_that_breaks_is_named():
    model = spoiled(lambda model: model.model.embed_tokens.weight[5], float("nan"))
    with pytest.raises(FloatingPointError, match="the logits of row 2 are NaN at step 0"):
        tokens(model=model, temperature=0.0, max_new_tokens=1)
