"""What a PPO for language models must get right, point by point; each test fails when its point is broken."""

import math

import pytest
import torch
from transformers import OPTConfig, OPTForCausalLM

from fastrlhf import PPOTrainer
from fastrlhf.data.order import PromptOrder
from fastrlhf.kernels import kl_estimate
from fastrlhf.models.actor_critic import ActorCritic
from fastrlhf.models.backbone import final_hidden_states, position_ids
from fastrlhf.models.heads import RewardHead, ValueHead
from fastrlhf.ppo.experience import make_experience
from fastrlhf.ppo.rewards import KLController, token_rewards
from fastrlhf.ppo.rollout import Rollout, finish_responses
from tests.support.toy import (
    EOS,
    PAD,
    VOCABULARY,
    assert_same_gradients,
    exact,
    plain_logprobs,
    plain_update,
    plain_values,
    row_tokens,
    taken_update,
    toy_experience,
    toy_lora,
    toy_model,
    toy_prompts,
    toy_rollout,
    toy_tokenizer,
    toy_trainer,
)

# float32 sums over a few dozen terms against the same sums in float64
CLOSE = {"rtol": 1e-5, "atol": 1e-5}
SHAPES = ("llama", "gpt2")
LLAMA_DROPOUT = {"attention_dropout": 0.5}
GPT2_DROPOUT = {"attn_pdrop": 0.5, "resid_pdrop": 0.5, "embd_pdrop": 0.5}


class GivenResponses(PPOTrainer):
    """A trainer whose generator answers with `given`, whatever the prompts."""

    given: torch.Tensor

    def generate_responses(self, input_ids, attention_mask):
        return self.given


def opt_model(dropout: float) -> OPTForCausalLM:
    """A model that keeps its dropout probabilities as plain numbers, outside of nn.Dropout."""
    torch.manual_seed(0)
    return OPTForCausalLM(
        OPTConfig(
            vocab_size=VOCABULARY,
            hidden_size=16,
            ffn_dim=24,
            num_hidden_layers=2,
            num_attention_heads=2,
            max_position_embeddings=48,
            word_embed_proj_dim=16,
            dropout=dropout,
            attention_dropout=dropout,
            layerdrop=dropout,
            init_std=0.4,
            pad_token_id=PAD,
            eos_token_id=EOS,
            bos_token_id=None,
        )
    )


def hand_experience(rewards_scores, logprobs, ref_logprobs, values, lengths, **options) -> object:
    """`make_experience` on hand-written numbers; the tokens do not matter."""
    width = len(logprobs[0])
    rows = len(lengths)
    rollout = Rollout(
        torch.zeros(rows, 1, dtype=torch.int64),
        torch.ones(rows, 1, dtype=torch.bool),
        torch.zeros(rows, width, dtype=torch.int64),
        torch.tensor(lengths),
        options.pop("sampled_logprobs", None),
    )
    defaults = {
        "kl_coef": 0.0,
        "kl_estimator": "k1",
        "reward_position": "end",
        "whiten_rewards": False,
        "gamma": 1.0,
        "lam": 0.95,
        "correction_cap": None,
    }
    tensors = (torch.tensor(given) for given in (rewards_scores, logprobs, ref_logprobs, values))
    return make_experience(rollout, *tensors, **{**defaults, **options})


@pytest.mark.parametrize(
    ("make", "peft_config"),
    [
        (lambda p: toy_model("llama", **dict.fromkeys(LLAMA_DROPOUT, p)), None),
        (lambda p: toy_model("gpt2", **dict.fromkeys(GPT2_DROPOUT, p)), None),
        (opt_model, None),
        (lambda p: toy_model("llama", attention_dropout=p), toy_lora(lora_dropout=0.5)),
    ],
    ids=["llama", "gpt2", "opt", "lora"],
)
def test_01_dropout_is_off(tmp_path, make, peft_config):
    model = make(0.5).train()
    trainer = toy_trainer(tmp_path, model=model, peft_config=peft_config)
    rollout = toy_rollout()
    responses = rollout.responses(slice(None))
    assert trainer.model.training
    with torch.no_grad():
        first, second = (trainer.model(responses, 1.0) for _ in range(2))
        trainer.model.eval()
        without = trainer.model(responses, 1.0)
    for once, again, off in zip(first, second, without, strict=True):
        assert torch.equal(once, again)
        assert torch.equal(once, off)


def test_01_dropout_is_off_in_critic_reference_and_reward_model(tmp_path):
    critic = toy_model("gpt2", 2, scorer=True, **GPT2_DROPOUT)
    reward = toy_model("gpt2", 3, scorer=True, **GPT2_DROPOUT)
    reference = toy_model("gpt2", 4, **GPT2_DROPOUT).train()
    trainer = toy_trainer(
        tmp_path,
        model=toy_model("gpt2", **GPT2_DROPOUT),
        ref_model=reference,
        reward_model=reward.train(),
        value_model=critic,
    )
    rollout = toy_rollout()
    for _ in range(2):
        experience = toy_experience(trainer, rollout)
        torch.testing.assert_close(
            experience.ref_logprobs.double(), plain_logprobs(reference.eval(), rollout, 0.8), **CLOSE
        )
        trainer.model.eval()
        values = torch.where(rollout.state_mask, plain_values(trainer.model, rollout), 0.0)
        trainer.model.train()
        torch.testing.assert_close(experience.values.double(), values, **CLOSE)
    assert torch.equal(trainer.score(rollout), trainer.score(rollout))


def test_02_positions_count_real_tokens():
    mask = torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 0, 0], [0, 1, 1, 1, 0]]).bool()
    expected = torch.tensor([[0, 0, 0, 1, 2], [0, 1, 2, 3, 3], [0, 0, 1, 2, 3]])
    assert torch.equal(position_ids(mask), expected)


@pytest.mark.parametrize("left", [0, 7])
def test_02_left_padding_does_not_shift_positions(tmp_path, left):
    # GPT-2's positions are absolute: shifted ones change every log-probability.
    trainer = toy_trainer(tmp_path, model=toy_model("gpt2"))
    rollout = toy_rollout(left=left)
    expected = plain_logprobs(trainer.policy_model, toy_rollout(), 0.8)
    torch.testing.assert_close(toy_experience(trainer, rollout).logprobs.double(), expected, **CLOSE)


@pytest.mark.parametrize("temperature", [0.5, 1.7])
def test_03_temperature_divides_old_reference_and_new_logits_alike(tmp_path, temperature):
    trainer = toy_trainer(tmp_path, ref_model=toy_model(seed=9), temperature=temperature)
    rollout, rows = toy_rollout(), torch.arange(8)
    experience = toy_experience(trainer, rollout)
    old = plain_logprobs(trainer.policy_model, rollout, temperature)
    reference = plain_logprobs(trainer.ref_model, rollout, temperature)
    torch.testing.assert_close(experience.logprobs.double(), old, **CLOSE)
    torch.testing.assert_close(experience.ref_logprobs.double(), reference, **CLOSE)
    _, gradients = taken_update(trainer, experience, rows)
    assert_same_gradients(gradients, plain_update(trainer, experience, rows)[1], rtol=1e-4)


def test_03_the_generator_samples_at_the_same_temperature(tmp_path):
    trainer = toy_trainer(tmp_path, temperature=0.5)
    rollout = trainer.rollout(next(iter(trainer.get_train_dataloader())))
    expected = plain_logprobs(trainer.policy_model, rollout, 0.5)
    actual = torch.where(rollout.mask, rollout.sampled_logprobs, 0.0)
    torch.testing.assert_close(actual.double(), expected, **CLOSE)


def test_04_log_softmax_in_float32():
    model = toy_model().to(torch.bfloat16)
    responses = toy_rollout().responses(slice(None))
    with torch.no_grad():
        output = ActorCritic(model, ValueHead(16))(responses, 0.7)
        states = final_hidden_states(model, responses.input_ids, responses.attention_mask)
        states = states[:, responses.prompt_length - 1 : -1][responses.mask]
        logits = torch.nn.functional.linear(states, model.lm_head.weight)
    assert logits.dtype == torch.bfloat16
    log_p = torch.log_softmax(logits.double() / 0.7, dim=-1)
    tokens = responses.input_ids[:, responses.prompt_length :][responses.mask]
    expected = log_p.gather(1, tokens[:, None])[:, 0]
    assert output.logprobs.dtype == output.entropy.dtype == output.values.dtype == torch.float32
    # bfloat16's own log-softmax is off by up to 2^-8 of the value
    torch.testing.assert_close(output.logprobs[responses.mask].double(), expected, **CLOSE)
    entropy = -(log_p.exp() * log_p).sum(dim=-1)
    torch.testing.assert_close(output.entropy[responses.mask].double(), entropy, **CLOSE)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("own_critic", [False, True], ids=["shared", "own"])
def test_05_value_is_read_where_the_token_is_predicted(tmp_path, shape, own_critic):
    critic = toy_model(shape, 4, scorer=True) if own_critic else None
    trainer = toy_trainer(tmp_path, model=toy_model(shape), value_model=critic)
    rollout = toy_rollout()
    values = toy_experience(trainer, rollout).values
    expected = torch.where(rollout.state_mask, plain_values(trainer.model, rollout), 0.0)
    torch.testing.assert_close(values.double(), expected, **CLOSE)
    # by hand for one row: the value of the state before the first token is read at the prompt's last token
    ids, prompt = row_tokens(rollout, 1)
    model = exact(trainer.value_model if own_critic else trainer.policy_model)
    backbone = model.get_decoder() if hasattr(model, "get_decoder") else model.base_model
    with torch.no_grad():
        state = backbone(input_ids=ids[:, :prompt]).last_hidden_state[0, -1]
        score = exact(trainer.value_model).score
        first = state @ score.weight[0] + (0.0 if score.bias is None else score.bias[0])
    torch.testing.assert_close(values[1, 0].double(), first, **CLOSE)


def test_06_cut_after_the_first_stop_token_then_pad():
    tokens = torch.tensor([[4, EOS, 5, EOS], [EOS, 4, 4, 4], [4, 5, 6, 7], [4, PAD, 5, EOS]])
    responses, lengths = finish_responses(tokens, (EOS,), PAD)
    assert responses.tolist() == [
        [4, EOS, PAD, PAD],
        [EOS, PAD, PAD, PAD],
        [4, 5, 6, 7],
        [4, PAD, PAD, PAD],
    ]
    assert lengths.tolist() == [2, 1, 4, 1]


def test_06_the_trainer_cuts_what_its_generator_gives(tmp_path):
    trainer = toy_trainer(tmp_path, cls=GivenResponses, dataset=toy_prompts(2), per_device_train_batch_size=2)
    trainer.given = torch.tensor([[4, EOS, 5, 6, 7, 8], [1, 2, 3, 4, 5, EOS]])
    rollout = trainer.rollout(next(iter(trainer.get_train_dataloader())))
    assert rollout.response_ids.tolist() == [[4, EOS, PAD, PAD, PAD, PAD], [1, 2, 3, 4, 5, EOS]]
    assert rollout.mask.sum(dim=1).tolist() == [2, 6]


def test_07_pad_is_not_the_end_token(tmp_path):
    tokenizer = toy_tokenizer(pad_token="<eos>", additional_special_tokens=["<pad>"])
    assert tokenizer.pad_token_id == tokenizer.eos_token_id
    with pytest.warns(UserWarning, match="pads with its end token"):
        trainer = toy_trainer(
            tmp_path,
            cls=GivenResponses,
            tokenizer=tokenizer,
            dataset=toy_prompts(2),
            per_device_train_batch_size=2,
        )
    assert trainer.pad_token_id != EOS
    assert tokenizer.pad_token_id == trainer.pad_token_id
    trainer.given = torch.tensor([[4, EOS, 5, 6], [1, 2, 3, 4]])
    rollout = trainer.rollout(next(iter(trainer.get_train_dataloader())))
    assert rollout.lengths.tolist() == [2, 4]  # the end token is one of the response's tokens
    assert rollout.contains(EOS).tolist() == [True, False]


def test_08_the_truncated_text_is_scored(tmp_path):
    seen = []

    def reward(prompts, completions):
        seen.extend(zip(prompts, completions, strict=True))
        return [0.0] * len(prompts)

    scorer = toy_model("gpt2", 6, scorer=True)
    trainer = toy_trainer(
        tmp_path,
        cls=GivenResponses,
        reward_model=[reward, scorer],
        dataset=toy_prompts(2),
        per_device_train_batch_size=2,
    )
    trainer.given = torch.tensor([[4, EOS, 5, 6, 7, 8], [1, 2, 3, 4, 5, 6]])
    rollout = trainer.rollout(next(iter(trainer.get_train_dataloader())))
    scores = trainer.score(rollout)
    texts = [" ".join(f"w{token}" for token in tokens) for tokens in trainer.train_dataset["input_ids"]]
    assert sorted(prompt for prompt, _ in seen) == sorted(texts)
    assert [completion for _, completion in seen] == ["w4", "w1 w2 w3 w4 w5 w6"]
    for row in range(2):
        ids, _ = row_tokens(rollout, row)
        with torch.no_grad():
            expected = exact(scorer)(input_ids=ids).logits[0, 0]
        torch.testing.assert_close(scores[row].double(), expected, **CLOSE)


@pytest.mark.parametrize("penalty", [None, 1.5])
def test_09_a_response_without_an_end_token_is_penalised(tmp_path, penalty):
    trainer = toy_trainer(
        tmp_path,
        cls=GivenResponses,
        reward_model=lambda prompts, completions: [2.0] * len(prompts),
        missing_eos_penalty=penalty,
        dataset=toy_prompts(3),
        per_device_train_batch_size=3,
        total_episodes=3,
    )
    trainer.given = torch.tensor([[4, EOS, 5], [1, 2, 3], [1, 2, EOS]])
    rollout = trainer.rollout(next(iter(trainer.get_train_dataloader())))
    assert trainer.score(rollout).tolist() == [2.0, 2.0 if penalty is None else 0.5, 2.0]


@pytest.mark.parametrize(
    ("position", "places"), [("end", [0, 1, 3, 0]), ("after_end", [1, 2, 3, 0])], ids=["end", "after_end"]
)
def test_10_the_score_lands_on_the_end_token_or_one_later(position, places):
    rollout = Rollout(
        torch.zeros(4, 1, dtype=torch.int64),
        torch.ones(4, 1, dtype=torch.bool),
        torch.zeros(4, 4, dtype=torch.int64),
        torch.tensor([1, 2, 4, 0]),
    )
    scores = torch.tensor([1.0, 2.0, 3.0, 4.0])
    zeros = torch.zeros(4, 4)
    shaped = token_rewards(
        zeros, zeros, scores, rollout, kl_coef=0.0, kl_estimator="k1", reward_position=position
    )
    expected = torch.zeros(4, 4)
    for row, place in enumerate(places):
        expected[row, place] = row + 1
    assert torch.equal(shaped.rewards, expected)


@pytest.mark.parametrize(("response_length", "states"), [(3, [3, 3]), (4, [3, 4])], ids=["full", "room"])
def test_10_the_default_is_one_later_where_response_length_leaves_room(tmp_path, response_length, states):
    # Room is what response_length leaves, not what the batch's longest response does: rows must not meddle.
    trainer = toy_trainer(
        tmp_path,
        cls=GivenResponses,
        dataset=toy_prompts(2),
        per_device_train_batch_size=2,
        kl_coef=0.0,
        response_length=response_length,
    )
    trainer.given = torch.tensor([[4, EOS, PAD], [1, 2, EOS]])
    rollout = trainer.rollout(next(iter(trainer.get_train_dataloader())))
    experience = toy_experience(trainer, rollout)
    assert rollout.state_mask.sum(dim=1).tolist() == states
    # the return of the last state is the reward that stands there
    last = rollout.state_mask.sum(dim=1) - 1
    assert experience.returns[torch.arange(2), last].tolist() == pytest.approx([-1.0, 2.0])
    assert experience.values[0, 2] != 0


@pytest.mark.parametrize(
    ("estimator", "expected"),
    [("k1", math.log(2)), ("k2", math.log(2) ** 2 / 2), ("k3", 0.5 - 1 + math.log(2))],
)
def test_11_kl_estimators(estimator, expected):
    # the policy gives a token probability 1/2, the reference 1/4: r = log(1/4) - log(1/2) = -log 2
    logprobs, reference = torch.tensor([0.5]).log(), torch.tensor([0.25]).log()
    assert kl_estimate(logprobs, reference, estimator).item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("estimator", ["k1", "k3"])
def test_11_the_kl_is_taken_from_the_reward(tmp_path, estimator):
    trainer = toy_trainer(tmp_path, ref_model=toy_model(seed=9), kl_coef=0.3, kl_estimator=estimator)
    rollout = toy_rollout()
    experience = toy_experience(trainer, rollout)
    r = plain_logprobs(trainer.ref_model, rollout, 0.8) - plain_logprobs(trainer.policy_model, rollout, 0.8)
    kl = torch.where(rollout.mask, -r if estimator == "k1" else r.exp() - 1 - r, 0.0)
    torch.testing.assert_close(experience.kl.double(), kl, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(experience.penalty.double(), -0.3 * kl, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("kl", "factor"), [(100.0, 1.02), (0.0, 0.98), (6.6, 1.01), (6.0, 1.0)], ids=["high", "low", "in", "on"]
)
def test_12_adaptive_kl_clips_the_error_and_knows_its_horizon(kl, factor):
    controller = KLController(0.2, target=6.0, horizon=1000)
    controller.update(kl, episodes=100)  # error in [-0.2, 0.2] times 100 / 1000
    assert controller.kl_coef == pytest.approx(0.2 * factor)


def test_12_a_run_steers_its_coefficient(tmp_path):
    options = {"adaptive_kl_target": 0.5, "adaptive_kl_horizon": 40, "kl_coef": 0.3, "total_episodes": 24}
    trainer = toy_trainer(tmp_path, ref_model=toy_model(seed=9), **options)
    trainer.train()
    history = [row for row in trainer.state.log_history if "objective/kl" in row]
    coefficient = 0.3
    for row in history:
        assert row["objective/kl_coef"] == pytest.approx(coefficient)
        error = min(max(row["objective/kl"] / 0.5 - 1, -0.2), 0.2)
        coefficient *= 1 + error * 8 / 40
    assert len(history) == 3
    assert coefficient != 0.3


def test_13_whitening_rewards_keeps_their_mean():
    # gamma 0 and values 0: returns are the rewards, on the tokens and on the state after the end
    experience = hand_experience(
        [4.0, 8.0],
        [[0.0, 0.0, 0.0], [0.0, 0.0, 0.0]],
        [[1.0, 3.0, 9.0], [1.0, 2.0, 4.0]],
        [[0.0] * 3] * 2,
        [1, 3],
        kl_coef=1.0,
        gamma=0.0,
        reward_position="after_end",
        whiten_rewards=True,
    )
    rewards = torch.tensor([1.0, 4.0, 1.0, 2.0, 12.0], dtype=torch.float64)  # -kl = reference - policy
    spread = rewards.var(unbiased=True).add(1e-8).sqrt()
    expected = (rewards - rewards.mean()) / spread + rewards.mean()
    actual = experience.returns[torch.tensor([[1, 1, 0], [1, 1, 1]]).bool()]
    torch.testing.assert_close(actual.double(), expected, **CLOSE)
    assert actual.mean().item() == pytest.approx(4.0, rel=1e-6)


def hand_gae(rewards, values, gamma, lam):
    """Advantages of one row, the equation read backwards with plain numbers."""
    advantages, following, worth = [], 0.0, 0.0
    for reward, value in zip(reversed(rewards), reversed(values), strict=True):
        following = reward + gamma * worth - value + gamma * lam * following
        worth = value
        advantages.insert(0, following)
    return advantages


def test_14_gae_bootstraps_with_zero_at_the_end():
    values = [[0.5, -1.0, 2.0, 100.0], [1.0, 100.0, 100.0, 100.0], [0.5, 0.25, -0.5, 2.0]]
    experience = hand_experience(
        [3.0, -1.0, 2.0],
        [[0.0] * 4] * 3,
        [[0.1] * 4] * 3,
        values,
        [2, 0, 4],
        kl_coef=1.0,
        gamma=0.9,
        lam=0.8,
        reward_position="after_end",
    )
    rows = [
        (
            [0.1, 0.1, 3.0],
            [0.5, -1.0, 2.0],
        ),  # two tokens and the state after them; what stands later is nothing
        ([-1.0], [1.0]),  # no token
        ([0.1, 0.1, 0.1, 2.1], [0.5, 0.25, -0.5, 2.0]),  # no room after the end
    ]
    for row, (rewards, worth) in enumerate(rows):
        advantages = hand_gae(rewards, worth, 0.9, 0.8)
        expected = [a + v for a, v in zip(advantages, worth, strict=True)] + [0.0] * (4 - len(worth))
        assert experience.returns[row].tolist() == pytest.approx(expected, rel=1e-5, abs=1e-6)


def test_15_returns_come_before_whitening_and_the_variance_is_unbiased():
    experience = hand_experience(
        [3.0, -1.0], [[0.0] * 3] * 2, [[0.0] * 3] * 2, [[0.5, -1.0, 9.0], [0.5, 0.25, -0.5]], [2, 3]
    )
    # the state after a response's end is in the scan, but is no token: it does not enter the moments
    first = hand_gae([0.0, 3.0, 0.0], [0.5, -1.0, 9.0], 1.0, 0.95)
    second = hand_gae([0.0, 0.0, -1.0], [0.5, 0.25, -0.5], 1.0, 0.95)
    raw = torch.tensor([*first[:2], *second], dtype=torch.float64)
    mean, variance = raw.sum() / 5, (raw - raw.sum() / 5).square().sum() / 4
    mask = torch.tensor([[1, 1, 0], [1, 1, 1]]).bool()
    torch.testing.assert_close(
        experience.advantages[mask].double(), (raw - mean) / (variance + 1e-8).sqrt(), **CLOSE
    )
    assert experience.advantages[0, 2] == 0
    expected = [a + v for a, v in zip(second, [0.5, 0.25, -0.5], strict=True)]
    assert experience.returns[1].tolist() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("micro_batch", [1, 3, 8])
def test_16_means_are_over_the_whole_minibatch(tmp_path, micro_batch):
    # Ragged lengths: a mean of micro-batch means weighs tokens of short responses more.
    trainer = toy_trainer(
        tmp_path,
        per_device_train_batch_size=micro_batch,
        gradient_accumulation_steps=8 // micro_batch,
        total_episodes=8,
        entropy_coef=0.1,
        vf_coef=0.7,
    )
    rows = torch.arange(8)
    experience = toy_experience(trainer, toy_rollout(), off_policy=0.3)
    loss, gradients = taken_update(trainer, experience, rows)
    expected_loss, expected = plain_update(trainer, experience, rows)
    torch.testing.assert_close(loss.double(), expected_loss, **CLOSE)
    assert_same_gradients(gradients, expected, rtol=1e-4)


@pytest.mark.parametrize(
    ("value", "target", "expected"),
    [
        (1.0, 2.0, 0.5 * 1.8**2),  # clipped to 0.2, farther from the target: the clipped square
        (1.0, -2.0, 0.5 * 3.0**2),  # clipped to 0.2, nearer to the target: the square
        (0.1, 2.0, 0.5 * 1.9**2),  # inside the clip range
    ],
)
def test_17_value_loss_is_half_the_larger_square(tmp_path, value, target, expected):
    trainer = toy_trainer(tmp_path, vf_coef=1.0, cliprange_value=0.2)
    experience = toy_experience(trainer, toy_rollout())
    for name in ("advantages", "values"):
        setattr(experience, name, torch.zeros_like(experience.values))
    experience.returns = torch.full_like(experience.values, target)
    with torch.no_grad():
        trainer.value_model.score.weight.zero_()
        trainer.value_model.score.bias.fill_(value)
    loss, _ = taken_update(trainer, experience, torch.arange(8))
    assert loss.item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"log_ratio_clamp": 0.3},
        {"dual_clip": 1.3},
        {"cliprange_high": 0.6},
        {"log_ratio_clamp": 1.0, "dual_clip": 1.5, "cliprange": 0.1},
    ],
    ids=lambda options: "-".join(options) or "none",
)
def test_18_log_ratio_clamp_and_dual_clip(tmp_path, options):
    trainer = toy_trainer(tmp_path, **options)
    rows = torch.arange(8)
    experience = toy_experience(trainer, toy_rollout(), off_policy=0.8)
    loss, gradients = taken_update(trainer, experience, rows)
    expected_loss, expected = plain_update(trainer, experience, rows)
    torch.testing.assert_close(loss.double(), expected_loss, **CLOSE)
    assert_same_gradients(gradients, expected, rtol=1e-4)
    if options:  # the option changes something here
        plain = toy_trainer(tmp_path)
        assert taken_update(plain, experience, rows)[0].item() != pytest.approx(loss.item(), rel=1e-3)


def test_19_the_value_head_starts_at_zero(tmp_path):
    head = ValueHead(16)
    assert not head.score.weight.any()
    assert not head.score.bias.any()
    assert head(torch.randn(2, 3, 16)).tolist() == [[0.0] * 3] * 2
    trainer = PPOTrainer(
        toy_trainer(tmp_path).args,
        toy_tokenizer(),
        toy_model(),
        None,
        lambda prompts, completions: [0.0] * len(prompts),
        toy_prompts(),
        None,
    )
    assert not toy_experience(trainer, toy_rollout()).values.any()


def test_19_the_reward_head_has_its_standard_deviation():
    torch.manual_seed(0)
    head = RewardHead(
        4095
    )  # 1 / sqrt(4096) = 1/64; the estimate from 4,095 weights is off by 1.1 % (one sigma)
    assert head.bias is None
    assert head.weight.std().item() == pytest.approx(1 / 64, rel=0.05)


@pytest.mark.parametrize("epsilon", [1e-5, 1e-8])
def test_20_adam_epsilon_reaches_the_optimizer(tmp_path, epsilon):
    trainer = toy_trainer(tmp_path, adam_epsilon=epsilon)
    assert [group["eps"] for group in trainer.optimizer.param_groups] == [epsilon] * len(
        trainer.optimizer.param_groups
    )


def test_21_every_rank_sees_one_order_and_its_own_part_of_it():
    whole = iter(PromptOrder(20, 8, seed=3))
    parts = [iter(PromptOrder(20, 8, seed=3, rank=rank, world_size=4)) for rank in range(4)]
    for _ in range(5):
        batch = next(whole)
        shares = [next(part) for part in parts]
        assert [len(share) for share in shares] == [2] * 4
        assert [row for share in shares for row in share] == batch
        assert len(set(batch)) == 8


def test_21_the_order_is_seeded_alike_on_all_ranks_and_sampling_is_not(tmp_path, monkeypatch):
    trainer = toy_trainer(tmp_path)
    seeds, orders = set(), set()
    for rank in range(3):
        monkeypatch.setattr(type(trainer.args), "process_index", rank)
        seeds.add(trainer.sampling_seed)
        orders.add(trainer.data_seed)
    assert len(seeds) == 3
    assert len(orders) == 1


def test_21_other_seed_other_order(tmp_path):
    assert next(iter(PromptOrder(20, 8, seed=3))) != next(iter(PromptOrder(20, 8, seed=4)))
    first = toy_trainer(tmp_path, seed=1).rollout({"input_ids": torch.tensor([[1, 2]] * 4)})
    other = toy_trainer(tmp_path, seed=2).rollout({"input_ids": torch.tensor([[1, 2]] * 4)})
    assert first.response_ids.tolist() != other.response_ids.tolist()


@pytest.mark.parametrize("cap", [None, 2.0, 1.1])
def test_22_off_policy_correction(tmp_path, cap):
    trainer = toy_trainer(tmp_path, rollout_correction_cap=cap)
    rollout, rows = toy_rollout(), torch.arange(8)
    noise = 0.7 * torch.randn(rollout.response_ids.shape, generator=torch.Generator().manual_seed(1))
    rollout.sampled_logprobs = plain_logprobs(trainer.policy_model, rollout, 0.8).float() + noise
    experience = toy_experience(trainer, rollout)
    if cap is None:
        assert experience.weights is None
    else:
        expected = torch.where(rollout.mask, (-noise.double()).exp().clamp(max=cap), 1.0)
        torch.testing.assert_close(experience.weights.double(), expected, **CLOSE)
        assert (expected[rollout.mask] == cap).any()
        assert (expected[rollout.mask] < 1).any()
    _, gradients = taken_update(trainer, experience, rows)
    assert_same_gradients(gradients, plain_update(trainer, experience, rows)[1], rtol=1e-4)
