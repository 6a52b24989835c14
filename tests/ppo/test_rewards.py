"""Scores from models and functions, their errors, and the rewards made of them."""

import math

import pytest
import torch
from torch import nn

from fastrlhf.ppo.rewards import KLController, RewardError, Scorer, function_scores, token_rewards
from tests.support.toy import PAD, exact, row_tokens, toy_model, toy_rollout, toy_tokenizer


def test_token_rewards_by_hand():
    rollout = toy_rollout(rows=3, width=4)  # lengths 0, 4, 1
    logprobs = torch.tensor([[-1.0] * 4, [-1.0, -2.0, -3.0, -4.0], [-1.0, -9.0, -9.0, -9.0]])
    reference = torch.tensor([[-3.0] * 4, [-2.0, -2.0, -1.0, -4.0], [-3.0, 0.0, 0.0, 0.0]])
    shaped = token_rewards(
        logprobs,
        reference,
        torch.tensor([10.0, 20.0, 30.0]),
        rollout,
        kl_coef=0.5,
        kl_estimator="k1",
        reward_position="end",
    )
    assert shaped.kl.tolist() == [[0, 0, 0, 0], [1, 0, -2, 0], [2, 0, 0, 0]]
    assert (shaped.penalty == -0.5 * shaped.kl).all()
    assert shaped.rewards.tolist() == [[10, 0, 0, 0], [-0.5, 0, 1, 20], [29, 0, 0, 0]]


@pytest.mark.parametrize(
    ("estimator", "expected"),
    [("k1", [1, 0, -2]), ("k2", [0.5, 0, 2]), ("k3", [math.exp(-1), 0, math.exp(2) - 3])],
)
def test_every_kl_estimator_in_the_reward_by_hand(estimator, expected):
    rollout = toy_rollout(rows=3, width=4)  # the second row is kept whole
    logprobs, reference = torch.zeros(2, 3, 4)
    reference[1] = torch.tensor([-1.0, 0.0, 2.0, 0.0])
    shaped = token_rewards(
        logprobs,
        reference,
        torch.tensor([0.0, 7.0, 0.0]),
        rollout,
        kl_coef=0.1,
        kl_estimator=estimator,
        reward_position="end",
    )
    assert shaped.kl[1].tolist() == pytest.approx([*expected, 0])
    assert shaped.rewards[1].tolist() == pytest.approx([*(-0.1 * kl for kl in expected), 7])


def test_junk_at_padding_does_not_matter():
    rollout = toy_rollout(rows=3, width=4)
    logprobs = torch.zeros(3, 4).masked_fill(~rollout.mask, float("nan"))
    shaped = token_rewards(
        logprobs,
        torch.zeros(3, 4),
        torch.zeros(3),
        rollout,
        kl_coef=1.0,
        kl_estimator="k3",
        reward_position="after_end",
    )
    assert not shaped.rewards.any()


@pytest.mark.parametrize("batch_size", [1, 3, 64])
@pytest.mark.parametrize("shape", ["llama", "gpt2"])
def test_model_scores_are_those_of_rows_alone(shape, batch_size):
    model, rollout = toy_model(shape, 3, scorer=True), toy_rollout(left=2)
    scores = Scorer(model, None, toy_tokenizer())(rollout, batch_size)
    for row, score in enumerate(scores):
        ids, _ = row_tokens(rollout, row)  # of an empty response: the prompt
        with torch.no_grad():
            states = getattr(exact(model), model.base_model_prefix)(input_ids=ids).last_hidden_state
            expected = exact(model).score(states[0, -1])[0]
        torch.testing.assert_close(score.double(), expected, rtol=1e-5, atol=1e-5)


def test_weights_add_models_and_functions_up():
    model, rollout = toy_model(seed=3, scorer=True), toy_rollout()
    alone = Scorer(model, None, toy_tokenizer())(rollout, 8)

    def length(prompts, completions):
        return torch.tensor([float(len(completion)) for completion in completions])

    both = Scorer([model, length], [2.0, -0.5], toy_tokenizer())
    expected = 2 * alone - 0.5 * length(*both.decode(rollout))
    torch.testing.assert_close(both(rollout, 8), expected)
    assert both.models == [model]


def test_decode_leaves_padding_and_special_tokens_out():
    rollout = toy_rollout(rows=3, width=4)
    prompts, completions = Scorer(len, None, toy_tokenizer()).decode(rollout)
    assert completions[0] == ""
    for row, (prompt, completion) in enumerate(zip(prompts, completions, strict=True)):
        ids, count = row_tokens(rollout, row)
        words = [f"w{token}" for token in ids[0].tolist()]
        assert prompt.split() == words[:count]
        assert completion.split() == [word for word in words[count:] if word != "w21"]
    assert PAD == 22


@pytest.mark.parametrize(
    ("rewards", "weights", "error", "message"),
    [
        ([], None, ValueError, "reward_model is an empty list"),
        (3, None, TypeError, "reward_model is a int, expected a model, a function or a list"),
        (None, None, TypeError, "reward_model is a NoneType"),
        ([len, len], [1.0], ValueError, "reward_weights has 1 numbers for 2 rewards"),
        (nn.Linear(2, 2), None, ValueError, "reward_model is a Linear without a `score` head"),
    ],
)
def test_what_cannot_score_is_refused(rewards, weights, error, message):
    with pytest.raises(error, match=message):
        Scorer(rewards, weights, toy_tokenizer())


def test_a_language_model_is_no_reward_model():
    with pytest.raises(ValueError, match="reward_model is a LlamaForCausalLM without a `score` head"):
        Scorer(toy_model(), None, toy_tokenizer())


def test_a_function_is_tried_twice():
    calls = []

    def away(prompts, completions):
        calls.append(1)
        if len(calls) == 1:
            raise ConnectionError("away")
        return (1, 2.5)

    assert function_scores(away, ["a", "b"], ["c", "d"]).tolist() == [1.0, 2.5]


def test_a_function_that_raises_is_named_with_the_row():
    def picky(prompts, completions):
        if "bad" in completions:
            raise KeyError("bad")
        return [0.0] * len(prompts)

    with pytest.raises(RewardError, match=r"(?s)picky raised KeyError: 'bad', twice.*completion 1: 'bad'"):
        function_scores(picky, ["a", "b"], ["good", "bad"])


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([1.0], "gave 1 rewards for 2 completions"),
        (["x", "y"], "gave 'x' for completion 0, expected a finite number"),
        ([[1.0], [2.0]], r"gave \[1.0\] for completion 0, expected a finite number"),
    ],
)
def test_what_is_no_list_of_numbers_is_an_error(given, message):
    with pytest.raises(RewardError, match=message):
        function_scores(lambda prompts, completions: given, ["a", "b"], ["c", "d"])


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), None])
def test_a_score_that_is_not_finite_is_an_error(bad):
    scorer = Scorer(lambda prompts, completions: [0.0, bad, 0.0], None, toy_tokenizer())
    with pytest.raises(RewardError, match="for completion 1, expected a finite number"):
        scorer(toy_rollout(rows=3), 8)


def test_a_fixed_coefficient_stays():
    controller = KLController(0.2, target=None, horizon=10)
    controller.update(100.0, 8)
    assert controller.kl_coef == 0.2


def test_a_kl_that_is_not_finite_does_not_steer():
    controller = KLController(0.2, target=6.0, horizon=10)
    for kl in (float("nan"), float("inf")):
        controller.update(kl, 8)
    assert controller.kl_coef == 0.2
