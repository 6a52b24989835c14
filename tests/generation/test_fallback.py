"""Models without a description generate with their own forward, under the same rules, and say so once."""

from __future__ import annotations

import warnings

import pytest
import torch
from transformers import OPTConfig

import fastrlhf
from fastrlhf.generation import run
from tests.models.test_accelerate import model_of
from tests.support.toy import EOS, toy_model, toy_tokenizer

PROMPTS = [[1, 2, 3], [4], [5, 6], [7] * 9, [8, 9]]


@pytest.fixture(autouse=True)
def forget_what_was_said():
    run._say_once.cache_clear()


def hooked(shape="llama"):
    """A model whose forward somebody watches."""
    model = toy_model(shape)
    model.register_forward_hook(lambda *_: None)
    return model


def completions(model, **options):
    return [each.tokens for each in fastrlhf.generate(model, PROMPTS, **{"max_new_tokens": 8, **options})]


@pytest.mark.parametrize("shape", ["llama", "gpt2"])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"temperature": 0.0, "repetition_penalty": 1.4},
        {"min_new_tokens": 5, "top_k": 6},
        {"num_samples": 2, "seed": [1, 2, 3, 4, 5]},
    ],
    ids=str,
)
def test_as_on_our_kernels(shape, options):
    expected = completions(toy_model(shape), **options)
    with pytest.warns(
        UserWarning, match="generates with its own forward, which is slower: .* has forward hooks"
    ):
        assert completions(hooked(shape), batch_size=2, **options) == expected


@pytest.mark.filterwarnings("ignore:.*generates with its own forward")
def test_stop_strings_and_streams():
    options = {
        "tokenizer": toy_tokenizer(),
        "max_new_tokens": 3,
        "stop_strings": ["w15"],
        "stop_token_ids": (),
    }
    expected = fastrlhf.generate(toy_model(), PROMPTS, **options)
    assert {each.finish_reason for each in expected} == {"stop", "length"}
    found = fastrlhf.generate(hooked(), PROMPTS, **options)
    assert [(each.tokens, each.text) for each in found] == [(each.tokens, each.text) for each in expected]
    events = list(fastrlhf.generate(hooked(), PROMPTS[:1], stream=True, **options))
    assert [event.token for event in events] == expected[0].tokens


def test_a_family_that_is_not_known_says_so_once():
    config = OPTConfig(
        vocab_size=61,
        hidden_size=48,
        ffn_dim=80,
        num_hidden_layers=1,
        num_attention_heads=4,
        word_embed_proj_dim=48,
    )
    model = model_of(config)
    with pytest.warns(UserWarning, match="OPTForCausalLM generates with its own forward.*'opt' is not known"):
        found = completions(model, temperature=0.0, stop_token_ids=())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        completions(model)
    for prompt, tokens in zip(PROMPTS, found, strict=True):
        expected = model.generate(
            torch.tensor([prompt]), max_new_tokens=8, do_sample=False, eos_token_id=None
        )
        assert tokens == expected[0, len(prompt) :].tolist()


@pytest.mark.filterwarnings("ignore:.*generates with its own forward")
def test_rows_that_end_leave_the_batch():
    model, sizes = toy_model(), []
    model.register_forward_pre_hook(
        lambda module, args, kwargs: sizes.append(len(kwargs["input_ids"])), with_kwargs=True
    )
    found = completions(model, stop_token_ids=range(0, EOS, 2))
    lengths = [len(each) for each in found]
    assert sizes == [sum(length > step for length in lengths) for step in range(max(lengths))]


@pytest.mark.filterwarnings("ignore:.*generates with its own forward")
def test_int8_is_refused():
    with pytest.raises(ValueError, match="weights is 'int8', which the model's own forward cannot"):
        completions(hooked(), weights="int8")
