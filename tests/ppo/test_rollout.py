"""Rollouts: where responses end, and what models read of them."""

import pytest
import torch

from fastrlhf.ppo.rollout import Rollout, finish_responses
from tests.support.toy import EOS, PAD


def rollout_of(lengths, width=4, prompts=((1, 1),)):
    """Rows of token 1 with given lengths."""
    rows = len(lengths)
    prompt_mask = torch.tensor(prompts * rows if len(prompts) == 1 else prompts).bool()
    lengths = torch.tensor(lengths)
    ids = torch.ones(rows, width, dtype=torch.int64).masked_fill(torch.arange(width) >= lengths[:, None], PAD)
    return Rollout(torch.full(prompt_mask.shape, 2).masked_fill(~prompt_mask, PAD), prompt_mask, ids, lengths)


def test_masks_by_hand():
    rollout = rollout_of([0, 1, 4])
    assert rollout.mask.int().tolist() == [[0, 0, 0, 0], [1, 0, 0, 0], [1, 1, 1, 1]]
    assert rollout.state_mask.int().tolist() == [[1, 0, 0, 0], [1, 1, 0, 0], [1, 1, 1, 1]]


@pytest.mark.parametrize(
    ("row", "stops", "expected", "length"),
    [
        ([4, 5, EOS, 6], (EOS,), [4, 5, EOS, PAD], 3),
        ([EOS, EOS, EOS, EOS], (EOS,), [EOS, PAD, PAD, PAD], 1),
        ([4, 5, 6, 7], (EOS,), [4, 5, 6, 7], 4),
        ([4, 5, 6, EOS], (EOS,), [4, 5, 6, EOS], 4),
        ([PAD, 5, EOS, 6], (EOS,), [PAD, PAD, PAD, PAD], 0),
        ([4, PAD, EOS, 6], (EOS,), [4, PAD, PAD, PAD], 1),
        ([4, EOS, 5, 6], (), [4, EOS, 5, 6], 4),
        ([4, 5, EOS, 6], (5, EOS), [4, 5, PAD, PAD], 2),
    ],
)
def test_finish_responses_by_hand(row, stops, expected, length):
    tokens = torch.tensor([row])
    finished, lengths = finish_responses(tokens, stops, PAD)
    assert finished.tolist() == [expected]
    assert lengths.tolist() == [length]
    assert tokens.tolist() == [row]  # the argument is not written to


def test_finish_one_token():
    finished, lengths = finish_responses(torch.tensor([[4], [EOS], [PAD]]), (EOS,), PAD)
    assert finished.tolist() == [[4], [EOS], [PAD]]
    assert lengths.tolist() == [1, 1, 0]


def test_contains_looks_at_real_tokens_only():
    rollout = rollout_of([2, 4])
    assert rollout.contains(1).tolist() == [True, True]
    assert rollout.contains(PAD).tolist() == [False, False]
    assert rollout.contains(None).tolist() == [False, False]


def test_responses_cut_columns_that_are_padding_in_every_row():
    rollout = rollout_of([1, 2, 4], prompts=((0, 0, 1), (0, 1, 1), (1, 1, 1)))
    responses = rollout.responses(slice(0, 2))
    assert responses.prompt_length == 2
    # one column more than the longest response, for the state after its end
    assert responses.input_ids.tolist() == [[PAD, 2, 1, PAD, PAD], [2, 2, 1, 1, PAD]]
    assert responses.attention_mask.int().tolist() == [[0, 1, 1, 0, 0], [1, 1, 1, 1, 0]]
    assert responses.mask.int().tolist() == [[1, 0, 0], [1, 1, 0]]
    assert rollout.responses(slice(None)).input_ids.shape == (3, 7)


def test_responses_by_index_and_everywhere():
    rollout = rollout_of([1, 2, 4], prompts=((0, 0, 1), (0, 1, 1), (1, 1, 1)))
    assert torch.equal(
        rollout.responses(torch.tensor([1, 0])).input_ids, rollout.responses(slice(0, 2)).input_ids.flip(0)
    )
    everywhere = rollout.responses(slice(0, 1), everywhere=True)
    assert everywhere.prompt_length == 3
    assert everywhere.input_ids.tolist() == [[PAD, PAD, 2, 1, PAD, PAD, PAD]]
    assert everywhere.attention_mask.int().tolist() == [[0, 0, 1, 1, 0, 0, 0]]
    assert everywhere.mask.all()


def test_empty_responses_keep_the_state_after_the_prompt():
    responses = rollout_of([0, 0]).responses(slice(None))
    assert responses.input_ids.tolist() == [[2, 2, PAD]] * 2
    assert not responses.mask.any()
