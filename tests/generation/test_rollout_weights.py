"""Weights in 8 bits for a rollout alone."""

from __future__ import annotations

import pytest
import torch

from fastrlhf.generation.batches import generate
from fastrlhf.generation.rollout_weights import quantised, quantised_bytes
from fastrlhf.kernels import QuantizedWeight, dequantize, using
from fastrlhf.models.describe import describe
from tests.generation.test_families import PAD, prompts
from tests.models.test_accelerate import CONFIGS, families, model_of
from tests.support.toy import toy_model


def through_int8(model):
    """The model with each quantised weight as int8 rounds it; the embedding stays as it is."""
    described = describe(model)
    rounded = quantised(described)
    with torch.no_grad():
        for weight, codes in zip(described.projections(), rounded.projections(), strict=True):
            value = dequantize(codes.weight)
            if weight.weight.data_ptr() != described.embedding.data_ptr():
                weight.weight.copy_(value.T if weight.transposed else value)
    return model


@families
@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_int8_is_the_model_of_the_rounded_weights(family, backend):
    ids, mask = prompts()
    options = {"max_new_tokens": 6, "pad_token_id": PAD, "temperature": 0.0}
    model = model_of(CONFIGS[family])
    model.lm_head.weight = torch.nn.Parameter(
        model.lm_head.weight.clone()
    )  # untied: the head alone is rounded
    exact = generate(model, ids, mask, **options)
    with using(backend):
        found = generate(model, ids, mask, weights="int8", **options)
    expected = generate(through_int8(model), ids, mask, **options)
    assert torch.equal(found.tokens, expected.tokens)
    torch.testing.assert_close(found.logprobs, expected.logprobs, rtol=0, atol=1e-5)
    assert not torch.equal(found.logprobs, exact.logprobs)


@pytest.mark.parametrize(
    ("spoil", "where"),
    [
        (lambda model: model.model.layers[1].mlp.down_proj.weight[3], "layer 1"),
        (lambda model: model.lm_head.weight[2], "the head"),
    ],
    ids=["layer 1", "head"],
)
def test_weights_that_are_not_finite_name_the_layer(spoil, where):
    model, ids = toy_model(tie_word_embeddings=False), torch.tensor([[1, 2]])
    with torch.no_grad():
        spoil(model)[...] = float("nan")
    with pytest.raises(FloatingPointError, match=f"a weight of {where} is NaN or infinite"):
        generate(model, ids, ids > 0, max_new_tokens=2, pad_token_id=0, weights="int8")


def test_copies_are_counted_and_made_anew_for_each_rollout():
    model = toy_model()
    decoder = quantised(describe(model))
    weights = [part.weight for part in decoder.projections()]
    assert all(isinstance(weight, QuantizedWeight) for weight in weights)
    numbers = sum(part.weight.numel() for part in describe(model).projections())
    rows = sum(part.out_features for part in describe(model).projections())
    assert quantised_bytes(decoder) == numbers + 4 * rows
    ids = torch.tensor([[1, 2]])
    options = {"max_new_tokens": 8, "pad_token_id": 0, "weights": "int8", "seed": 1}
    before = generate(model, ids, ids > 0, **options).logprobs
    with torch.no_grad():
        model.model.layers[0].mlp.up_proj.weight.mul_(2)
    assert not torch.equal(generate(model, ids, ids > 0, **options).logprobs, before)
