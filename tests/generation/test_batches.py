"""The generator against transformers', against a training forward, and against itself in other batches."""

import pytest
import torch

from fastrlhf.generation.batches import generate
from fastrlhf.models.actor_critic import reference_logprobs
from fastrlhf.ppo.rollout import Rollout, finish_responses
from tests.support.toy import EOS, PAD, VOCABULARY, WORDS, toy_lora, toy_model

SHAPES = ("llama", "gpt2")


def ragged_prompts(rows=6, longest=5):
    """Left-padded prompts of 1 to `longest` words."""
    random = torch.Generator().manual_seed(2)
    lengths = torch.tensor([1 + row % longest for row in range(rows)])
    mask = torch.arange(longest) >= (longest - lengths)[:, None]
    ids = torch.randint(0, WORDS, (rows, longest), generator=random)
    return ids.masked_fill(~mask, PAD), mask


def rows_that_end(model, **options):
    """A seed under which some rows end early and others do not, and what it gives."""
    ids, mask = ragged_prompts()
    for seed in range(100):
        found = generate(
            model, ids, mask, max_new_tokens=8, pad_token_id=PAD, stop_token_ids=(EOS,), seed=seed, **options
        )
        ended = (found.tokens == EOS).any(dim=1)
        if 1 < int(ended.sum()) < len(ids):
            return seed, found
    raise AssertionError("no seed under which some rows end and others do not")


def batch_sizes(model):
    """A list that grows by the number of rows of each forward."""
    sizes = []
    model.register_forward_pre_hook(
        lambda module, args, kwargs: sizes.append(len(kwargs["input_ids"])), with_kwargs=True
    )
    return sizes


@pytest.mark.parametrize("shape", SHAPES)
def test_greedy_is_what_transformers_generates(shape):
    model = toy_model(shape)
    ids, mask = ragged_prompts()
    stop = int(generate(model, ids, mask, max_new_tokens=4, pad_token_id=PAD, temperature=0.0).tokens[0, 2])
    actual = generate(
        model, ids, mask, max_new_tokens=8, pad_token_id=PAD, stop_token_ids=(stop,), temperature=0.0
    )
    expected = model.generate(
        input_ids=ids,
        attention_mask=mask.long(),
        max_new_tokens=8,
        do_sample=False,
        pad_token_id=PAD,
        eos_token_id=stop,
    )[:, ids.shape[1] :]
    assert actual.tokens.tolist() == expected.tolist()


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("temperature", [0.7, 1.0])
def test_kept_logprobs_are_those_of_a_training_forward(shape, temperature):
    model = toy_model(shape)
    _, found = rows_that_end(model, temperature=temperature)
    ids, mask = ragged_prompts()
    tokens, lengths = finish_responses(found.tokens, (EOS,), PAD)
    rollout = Rollout(ids, mask, tokens, lengths)
    with torch.no_grad():
        trained = reference_logprobs(model, rollout.responses(slice(None)), temperature)
    width = trained.shape[1]
    kept = torch.where(rollout.mask, found.logprobs, 0.0)[:, :width]
    # a cache and a whole forward sum the same float32 products in another order
    torch.testing.assert_close(kept, trained, rtol=0, atol=1e-5)


def test_logprobs_are_of_the_distribution_before_top_k_and_top_p():
    model = toy_model()
    ids, mask = ragged_prompts()
    found = generate(model, ids, mask, max_new_tokens=1, pad_token_id=PAD, top_k=1)
    with torch.no_grad():
        position_ids = mask.long().cumsum(dim=1) - mask.long()
        logits = model(ids, attention_mask=mask.long(), position_ids=position_ids).logits[:, -1]
    log_p = torch.log_softmax(logits, dim=-1)
    torch.testing.assert_close(found.logprobs[:, 0], log_p.max(dim=-1).values, rtol=0, atol=1e-5)
    assert torch.equal(found.tokens[:, 0], logits.argmax(dim=-1))


@pytest.mark.filterwarnings("ignore:.*generates with its own forward")
@pytest.mark.parametrize("shape", SHAPES)
def test_rows_that_ended_leave_and_the_others_do_not_change(shape):
    model = toy_model(shape)
    seed, found = rows_that_end(model)
    ids, mask = ragged_prompts()
    sizes = batch_sizes(model)
    options = {"max_new_tokens": 8, "pad_token_id": PAD, "seed": seed}
    again = generate(model, ids, mask, stop_token_ids=(EOS,), **options)
    ends = [row.index(EOS) if EOS in row else 8 for row in found.tokens.tolist()]
    assert sizes == [sum(end >= step for end in ends) for step in range(8)]
    unstopped = generate(model, ids, mask, **options)
    for row, end in enumerate(ends):
        kept = min(end + 1, 8)
        assert again.tokens[row, :kept].tolist() == unstopped.tokens[row, :kept].tolist()
        assert (again.tokens[row, kept:] == PAD).all()
        assert (again.logprobs[row, kept:] == 0).all()
        assert (again.logprobs[row, :kept] < 0).all()


@pytest.mark.filterwarnings("ignore:.*generates with its own forward")
def test_it_ends_when_every_row_has():
    model = toy_model()
    ids, mask = ragged_prompts()
    sizes = batch_sizes(model)
    found = generate(model, ids, mask, max_new_tokens=40, pad_token_id=PAD, stop_token_ids=range(VOCABULARY))
    assert sizes == [6]
    assert found.tokens.shape == found.logprobs.shape == (6, 1)


def test_several_stop_tokens():
    model = toy_model()
    ids, mask = ragged_prompts()
    stops = tuple(range(0, VOCABULARY, 2))
    found = generate(model, ids, mask, max_new_tokens=8, pad_token_id=PAD, stop_token_ids=stops)
    for row in found.tokens.tolist():
        first = next((place for place, token in enumerate(row) if token in stops), len(row))
        assert all(token == PAD for token in row[first + 1 :])


@pytest.mark.parametrize("shape", SHAPES)
def test_a_row_draws_the_same_tokens_whatever_batch_it_stands_in(shape):
    model = toy_model(shape)
    seed, whole = rows_that_end(model)
    ids, mask = ragged_prompts()
    options = {"max_new_tokens": 8, "pad_token_id": PAD, "stop_token_ids": (EOS,), "seed": seed}
    for row in range(len(ids)):
        prompt = ids[row : row + 1, -int(mask[row].sum()) :]  # alone, and without padding
        alone = generate(model, prompt, torch.ones_like(prompt).bool(), first_row_id=row, **options)
        length = alone.tokens.shape[1]
        assert alone.tokens[0].tolist() == whole.tokens[row, :length].tolist()
        torch.testing.assert_close(alone.logprobs[0], whole.logprobs[row, :length], rtol=0, atol=1e-5)
    other = generate(model, ids, mask, first_row_id=100, **options)
    assert other.tokens.tolist() != whole.tokens.tolist()


def test_another_seed_draws_others():
    model = toy_model()
    ids, mask = ragged_prompts()
    draws = [
        generate(model, ids, mask, max_new_tokens=4, pad_token_id=PAD, seed=seed).tokens.tolist()
        for seed in (1, 1, 2)
    ]
    assert draws[0] == draws[1] != draws[2]


def test_one_token_and_one_row():
    model = toy_model()
    found = generate(
        model,
        torch.tensor([[3]]),
        torch.tensor([[True]]),
        max_new_tokens=1,
        pad_token_id=PAD,
        temperature=0.0,
    )
    with torch.no_grad():
        logits = model(torch.tensor([[3]])).logits[0, -1]
    assert found.tokens.tolist() == [[int(logits.argmax())]]
    expected = torch.log_softmax(logits, dim=-1).max()
    torch.testing.assert_close(found.logprobs[0, 0], expected, rtol=0, atol=1e-5)


def test_padding_does_not_matter_and_an_integer_mask_serves():
    model = toy_model()
    ids, mask = ragged_prompts()
    options = {"max_new_tokens": 4, "pad_token_id": PAD, "seed": 5}
    expected = generate(model, ids, mask, **options)
    junk = ids.masked_fill(~mask, 7)
    assert torch.equal(generate(model, junk, mask.long(), **options).tokens, expected.tokens)


def test_a_peft_model_generates_with_its_adapter():
    from peft import get_peft_model

    model = toy_model()
    ids, mask = ragged_prompts()
    options = {"max_new_tokens": 6, "pad_token_id": PAD, "temperature": 0.0}
    plain = generate(model, ids, mask, **options).tokens
    torch.manual_seed(0)
    adapted = get_peft_model(model, toy_lora(lora_alpha=64)).eval()
    assert not torch.equal(generate(adapted, ids, mask, **options).tokens, plain)
    with adapted.disable_adapter():
        assert torch.equal(generate(adapted, ids, mask, **options).tokens, plain)


@pytest.mark.parametrize(
    ("ids", "mask", "tokens", "message"),
    [
        (torch.zeros(0, 3), torch.zeros(0, 3), 4, r"input_ids has shape \[0, 3\]"),
        (torch.zeros(2, 0), torch.zeros(2, 0), 4, r"input_ids has shape \[2, 0\]"),
        (torch.zeros(3), torch.ones(3), 4, r"input_ids has shape \[3\], expected \[B, P\]"),
        (
            torch.zeros(2, 3),
            torch.ones(2, 2),
            4,
            r"attention_mask has shape \[2, 2\], expected that of input_ids: \[2, 3\]",
        ),
        (torch.zeros(2, 3), torch.ones(2, 3), 0, "max_new_tokens is 0, expected at least 1"),
        (torch.zeros(2, 3), torch.tensor([[0, 1, 1], [1, 1, 0]]), 4, "row 1 of input_ids is empty or padded"),
        (torch.zeros(2, 3), torch.tensor([[0, 0, 0], [1, 1, 1]]), 4, "row 0 of input_ids is empty or padded"),
    ],
)
def test_what_cannot_be_generated_from_is_refused(ids, mask, tokens, message):
    with pytest.raises(ValueError, match=message):
        generate(toy_model(), ids.long(), mask.bool(), max_new_tokens=tokens, pad_token_id=PAD)


@pytest.mark.filterwarnings("ignore:.*generates with its own forward")
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_nan_logits_are_an_error_that_names_the_row_and_the_step(temperature):
    model = toy_model()
    ids, mask = ragged_prompts()
    calls = []

    def spoil(module, args, output):
        calls.append(1)
        if len(calls) == 3:
            output.logits[4] = float("nan")
        return output

    model.register_forward_hook(spoil)
    with pytest.raises(FloatingPointError, match="logits of row 4 are NaN at step 2"):
        generate(model, ids, mask, max_new_tokens=8, pad_token_id=PAD, temperature=temperature)


@pytest.mark.filterwarnings("ignore:.*generates with its own forward")
def test_the_named_row_is_the_batchs_where_others_have_left():
    model = toy_model()
    seed, found = rows_that_end(model)
    ids, mask = ragged_prompts()
    ends = [row.index(EOS) if EOS in row else 8 for row in found.tokens.tolist()]
    step = min(ends) + 1
    left = [row for row, end in enumerate(ends) if end >= step]
    calls = []

    def spoil(module, args, output):
        calls.append(1)
        if len(calls) == step + 1:
            output.logits[-1] = float("nan")
        return output

    model.register_forward_hook(spoil)
    with pytest.raises(FloatingPointError, match=f"row {left[-1]} are NaN at step {step}"):
        generate(model, ids, mask, max_new_tokens=8, pad_token_id=PAD, stop_token_ids=(EOS,), seed=seed)
