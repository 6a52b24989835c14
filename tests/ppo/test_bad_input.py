"""What cannot be meant is refused before any work is done, with a message that names it and the mend."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, PromptTuningConfig, get_peft_model

from fastrlhf.ppo.rewards import RewardError
from tests.support.tiny import (
    CONTEXT,
    EOS,
    PAD,
    UNKNOWN,
    VOCABULARY,
    tiny_config,
    tiny_gpt2,
    tiny_gpt2_classifier,
    tiny_llama,
    tiny_llama_classifier,
    tiny_prompts,
    tiny_reward,
    tiny_tokenizer,
    tiny_trainer,
)


def prompts(*rows):
    return Dataset.from_dict({"input_ids": [list(row) for row in rows]})


def lora(**options):
    return LoraConfig(**{"r": 2, "target_modules": ["q_proj"], "task_type": "CAUSAL_LM", **options})


# Prompts


@pytest.mark.parametrize("empty", [[], prompts(), Dataset.from_dict({})], ids=["list", "columns", "nothing"])
def test_empty_dataset(tmp_path, empty):
    with pytest.raises(ValueError, match="train_dataset"):
        tiny_trainer(tmp_path, train_dataset=empty)


def test_no_dataset(tmp_path):
    with pytest.raises(ValueError, match="train_dataset is None"):
        tiny_trainer(tmp_path, train_dataset=None)


def test_dataset_smaller_than_a_batch(tmp_path):
    with pytest.raises(ValueError, match="7 rows, fewer than one batch of 8"):
        tiny_trainer(tmp_path, train_dataset=tiny_prompts(7))


def test_dataset_of_one_batch_is_enough(tmp_path):
    trainer = tiny_trainer(tmp_path, train_dataset=tiny_prompts(8), total_episodes=16)
    trainer.train()
    assert trainer.state.global_step == 2


@pytest.mark.parametrize("name", ["train_dataset", "eval_dataset"])
def test_prompt_too_long(tmp_path, name):
    longest = CONTEXT - 6
    fits = prompts(*[range(2)] * 7, [1] * longest)
    too_long = prompts(*[range(2)] * 7, [1] * (longest + 1))
    tiny_trainer(tmp_path, **{name: fits})
    with pytest.raises(
        ValueError, match=f"row 7 of {name} has {longest + 1} tokens.*{longest} tokens at most"
    ):
        tiny_trainer(tmp_path, **{name: too_long})


@pytest.mark.parametrize("make", [tiny_llama, tiny_gpt2], ids=["llama", "gpt2"])
def test_longest_prompt_trains(tmp_path, make):
    rows = prompts(*[range(2)] * 7, [1] * (CONTEXT - 6))
    trainer = tiny_trainer(tmp_path, model=make(), train_dataset=rows, total_episodes=8)
    trainer.train()
    assert math.isfinite(trainer.state.log_history[0]["loss/policy_avg"])


def test_empty_prompt(tmp_path):
    with pytest.raises(ValueError, match="row 3 of train_dataset has no token"):
        tiny_trainer(tmp_path, train_dataset=prompts([1], [2], [3], [], *[[1]] * 8))


@pytest.mark.parametrize(
    "rows", [Dataset.from_dict({"text": ["t1"] * 8}), [{"text": "t1"}] * 8], ids=["dataset", "list"]
)
def test_dataset_without_prompts(tmp_path, rows):
    with pytest.raises(ValueError, match=r"train_dataset has columns \['text'\], expected `input_ids`"):
        tiny_trainer(tmp_path, train_dataset=rows)


@pytest.mark.parametrize(
    "rows", [Dataset.from_dict({"prompt": ["t1 t2"] * 8}), [{"prompt": "t1 t2"}] * 8], ids=["dataset", "list"]
)
def test_prompts_as_text(tmp_path, rows):
    trainer = tiny_trainer(tmp_path, train_dataset=rows)
    assert trainer.train_dataset[0]["input_ids"] == [1, 2]
    assert next(iter(trainer.get_train_dataloader()))["input_ids"].tolist() == [[1, 2]] * 8


def test_several_eval_datasets_are_tokenised(tmp_path):
    held_out = {"a": Dataset.from_dict({"prompt": ["t1"]}), "b": Dataset.from_dict({"prompt": ["t2"]})}
    trainer = tiny_trainer(tmp_path, eval_dataset=held_out)
    assert trainer.generate_completions().prompts == ["t1", "t2"]


def test_batch_not_divisible_by_num_mini_batches(tmp_path):
    with pytest.raises(ValueError, match="num_mini_batches is 3, which does not divide the batch of 8"):
        tiny_trainer(tmp_path, num_mini_batches=3)


# Tokenizer


@pytest.mark.parametrize("pad", [None, "<eos>"], ids=["no-pad", "pad-is-eos"])
def test_pad_token_is_mended_with_a_notice(tmp_path, pad):
    tokenizer = tiny_tokenizer(pad_token=pad)
    with pytest.warns(UserWarning, match="padding with '<unk>' instead"):
        trainer = tiny_trainer(tmp_path, processing_class=tokenizer, total_episodes=8)
    assert trainer.pad_token_id == tokenizer.pad_token_id == UNKNOWN


def test_pad_token_without_spare_special_token(tmp_path):
    tokenizer = tiny_tokenizer(pad_token=None, unk_token=None)
    with pytest.raises(ValueError, match="has no pad token, and has no spare special token; add one"):
        tiny_trainer(tmp_path, processing_class=tokenizer)
    model = tiny_llama(vocab_size=VOCABULARY + 1)
    with pytest.warns(UserWarning, match="padding with"):
        trainer = tiny_trainer(tmp_path, processing_class=tokenizer, model=model)
    assert trainer.pad_token_id == VOCABULARY


@pytest.mark.filterwarnings("ignore:the tokenizer")
@pytest.mark.parametrize("pad", [None, "<eos>", "<pad>"], ids=["no-pad", "pad-is-eos", "pad"])
def test_the_end_token_counts_as_part_of_the_response(tmp_path, pad):
    """A reward of one for the end token, and its log-probability, must reach the loss."""
    trainer = tiny_trainer(tmp_path, processing_class=tiny_tokenizer(pad_token=pad))
    fixed = torch.tensor(
        [[1, EOS, 3, 4, 5, 6], [EOS, 1, 1, 1, 1, 1], [1, 2, 3, 4, 5, 6]] + [[1, 2, 3, 4, 5, EOS]] * 5
    )
    trainer.generate_responses = lambda ids, mask: fixed
    batch = next(trainer.prompt_batches())
    rollout = trainer.rollout(batch)
    assert rollout.lengths.tolist() == [2, 1, 6] + [6] * 5
    assert rollout.mask[0].tolist() == [True, True, False, False, False, False]
    assert rollout.response_ids[0].tolist() == [1, EOS] + [trainer.pad_token_id] * 4
    assert rollout.contains(EOS).tolist() == [True, True, False] + [True] * 5
    assert rollout.prompt_mask.sum(dim=1).tolist() == batch["attention_mask"].sum(dim=1).tolist()


@pytest.mark.filterwarnings("ignore:the tokenizer")
def test_prompts_that_hold_the_end_token_keep_it(tmp_path):
    rows = prompts(*[[1, EOS, 2, EOS]] * 7, [1])
    trainer = tiny_trainer(tmp_path, processing_class=tiny_tokenizer(pad_token="<eos>"), train_dataset=rows)
    rollout = trainer.rollout(next(trainer.prompt_batches()))
    assert sorted(rollout.prompt_mask.sum(dim=1).tolist()) == [1] + [4] * 7


def test_stop_at_an_end_token_that_is_not_there(tmp_path):
    with pytest.raises(ValueError, match="stop_token is 'eos' and the tokenizer has no end token"):
        tiny_trainer(tmp_path, processing_class=tiny_tokenizer(eos_token=None))


# Models


def test_reference_of_another_vocabulary(tmp_path):
    with pytest.raises(ValueError, match="ref_model has a vocabulary of 40 tokens and model one of 32"):
        tiny_trainer(tmp_path, ref_model=tiny_llama(vocab_size=40))


def test_reference_is_the_model(tmp_path):
    model = tiny_llama()
    with pytest.raises(ValueError, match="ref_model is the same object as model: pass a copy"):
        tiny_trainer(tmp_path, model=model, ref_model=model)


def test_critic_is_the_reward_model(tmp_path):
    """It would be frozen as a reward, and never learn as a critic."""
    both = tiny_llama_classifier()
    for reward in (both, [tiny_reward, both]):
        with pytest.raises(ValueError, match="value_model is trained and must be a model of its own"):
            tiny_trainer(tmp_path, value_model=both, reward_model=reward)


@pytest.mark.parametrize("name", ["value_model", "reward_model"])
@pytest.mark.parametrize(
    "make", [tiny_llama, lambda: torch.nn.Linear(2, 2)], ids=["language-model", "no-transformer"]
)
def test_model_without_a_score_head(tmp_path, name, make):
    with pytest.raises(ValueError, match=f"{name} is a .* without a `score` head; pass an AutoModelFor"):
        tiny_trainer(tmp_path, **{name: make()})


@pytest.mark.parametrize("name", ["value_model", "reward_model"])
def test_score_head_of_several_numbers(tmp_path, name):
    model = tiny_llama_classifier()
    model.score = torch.nn.Linear(16, 2, bias=False)
    with pytest.raises(ValueError, match=f"`score` head of {name} gives 2 numbers, expected one"):
        tiny_trainer(tmp_path, **{name: model})


@pytest.mark.parametrize("reward", [None, 3, "reward"])
def test_reward_that_is_neither_model_nor_function(tmp_path, reward):
    with pytest.raises(TypeError, match=r"reward_model is a .*, expected a model, a function or a list"):
        tiny_trainer(tmp_path, reward_model=reward)


def test_empty_list_of_rewards(tmp_path):
    with pytest.raises(ValueError, match="reward_model is an empty list"):
        tiny_trainer(tmp_path, reward_model=[])


@pytest.mark.parametrize(
    "options", [{"target_modules": ["lm_head"]}, {"modules_to_save": ["lm_head"]}], ids=["lora", "whole"]
)
def test_adapter_on_the_head(tmp_path, options):
    with pytest.raises(ValueError, match=r"output head .* leave it out of target_modules"):
        tiny_trainer(tmp_path, peft_config=lora(**options))


def test_prompt_learning_adapter(tmp_path):
    config = PromptTuningConfig(num_virtual_tokens=2, task_type="CAUSAL_LM")
    with pytest.raises(ValueError, match=r"prompt-learning adapters .* use LoRA"):
        tiny_trainer(tmp_path, peft_config=config)


def test_adapter_configuration_of_a_wrong_type(tmp_path):
    with pytest.raises(TypeError, match=r"peft_config is a dict, expected a peft\.PeftConfig"):
        tiny_trainer(tmp_path, peft_config={"r": 2})


def test_adapter_whose_bias_is_trained_is_no_reference(tmp_path):
    with pytest.raises(ValueError, match="bias='lora_only', which PEFT cannot turn off"):
        tiny_trainer(tmp_path, peft_config=lora(bias="lora_only"))
    tiny_trainer(tmp_path, peft_config=lora(bias="lora_only"), ref_model=tiny_llama())


def test_adapter_on_an_adapter(tmp_path):
    with pytest.raises(ValueError, match="model is a PEFT model already"):
        tiny_trainer(tmp_path, model=get_peft_model(tiny_llama(), lora()), peft_config=lora())


def test_head_check_is_not_fooled_by_dropout(tmp_path):
    model = tiny_gpt2(resid_pdrop=0.5)
    assert model.training
    trainer = tiny_trainer(tmp_path, model=model)
    assert trainer.policy_model.training


# Configuration


REFUSED = {
    "stop_token": ["pad"],
    "kl_estimator": ["k9"],
    "reward_position": ["start"],
    "num_mini_batches": [0],
    "num_ppo_epochs": [0],
    "response_length": [0],
    "local_rollout_forward_batch_size": [0],
    "num_sample_generations": [-1],
    "kl_coef": [-0.1, math.nan],
    "cliprange": [-0.1, math.nan],
    "cliprange_value": [-0.1],
    "vf_coef": [-0.1],
    "missing_eos_penalty": [-1.0],
    "total_episodes": [0],
    "max_skipped_updates": [0],
    "adaptive_kl_horizon": [0],
    "keep_last": [0],
    "temperature": [0, -1, math.nan],
    "dual_clip": [1],
    "log_ratio_clamp": [0],
    "adaptive_kl_target": [0],
    "rollout_correction_cap": [0],
    "gamma": [-0.1, 1.1, math.nan],
    "lam": [-0.1, 1.1],
}


@pytest.mark.parametrize(("name", "value"), [(name, value) for name in REFUSED for value in REFUSED[name]])
def test_option_out_of_range(tmp_path, name, value):
    with pytest.raises(ValueError, match=f"^{name} is {value!r}.*, expected"):
        tiny_config(tmp_path, **{"stop_token": None, name: value})


ACCEPTED = {
    "num_sample_generations": 0,
    "kl_coef": 0,
    "cliprange": 0,
    "vf_coef": 0,
    "missing_eos_penalty": 0,
    "gamma": 0,
    "lam": 1,
    "keep_last": 1,
}


@pytest.mark.parametrize(("name", "value"), ACCEPTED.items())
def test_option_at_its_bound(tmp_path, name, value):
    tiny_config(tmp_path, **{name: value})


def test_two_stop_tokens(tmp_path):
    with pytest.raises(ValueError, match="stop_token and stop_token_id exclude each other"):
        tiny_config(tmp_path, stop_token="eos", stop_token_id=3)


def test_two_limits_of_checkpoints(tmp_path):
    with pytest.raises(ValueError, match="keep_last is 1 and save_total_limit 2"):
        tiny_config(tmp_path, keep_last=1, save_total_limit=2)
    assert tiny_config(tmp_path, keep_last=2, save_total_limit=2).save_total_limit == 2


def test_fp16(tmp_path):
    with pytest.raises(ValueError, match="fp16"):
        tiny_config(tmp_path, fp16=True, bf16=None)


def test_bf16_on_a_cpu_is_said_and_left_off(tmp_path):
    with pytest.warns(UserWarning, match="bf16=True on a CPU"):
        assert not tiny_trainer(tmp_path, bf16=True).args.bf16


# Rewards


def constant(value):
    def reward(prompts, completions):
        return [0.5, value, *[0.5] * (len(prompts) - 2)]

    return reward


WRONG = {
    "nan": (constant(math.nan), "gave nan for completion 1"),
    "inf": (constant(math.inf), "gave inf for completion 1"),
    "none": (constant(None), "gave None for completion 1"),
    "word": (constant("good"), "gave 'good' for completion 1"),
    "number-as-text": (constant("0.5"), "gave '0.5' for completion 1"),
    "nested": (constant([0.5]), r"gave \[0.5\] for completion 1"),
    "too-few": (lambda prompts, completions: [0.5] * 3, "gave 3 rewards for 8 completions"),
    "too-many": (lambda prompts, completions: [0.5] * 9, "gave 9 rewards for 8 completions"),
    "all-none": (lambda prompts, completions: None, "gave None, expected a list"),
    "all-text": (lambda prompts, completions: "01234567", "gave '01234567', expected a list"),
    "one-number": (lambda prompts, completions: 0.5, "gave 0.5, expected a list"),
    "scalar-tensor": (lambda prompts, completions: torch.tensor(0.5), "gave 0.5, expected a list"),
    "dict": (lambda prompts, completions: dict.fromkeys(range(8), 0.5), "expected a list"),
}


@pytest.mark.parametrize(("reward", "message"), WRONG.values(), ids=WRONG)
def test_wrong_rewards(tmp_path, reward, message):
    trainer = tiny_trainer(tmp_path, reward_model=reward)
    with pytest.raises(RewardError, match=message) as caught:
        trainer.train()
    row = 1 if "completion 1" in message else 0
    assert f"prompt {row}: 't" in str(caught.value)
    assert f"completion {row}: " in str(caught.value)
    assert (tmp_path / "checkpoint-0").is_dir()
    assert str(tmp_path / "checkpoint-0") in str(caught.value)


def test_reward_model_that_gives_nan(tmp_path):
    model = tiny_gpt2_classifier()
    torch.nn.init.constant_(model.score.weight, math.nan)
    with pytest.raises(RewardError, match="GPT2ForSequenceClassification gave nan for completion 0"):
        tiny_trainer(tmp_path, reward_model=model).train()


RIGHT = {
    "list": list,
    "tuple": tuple,
    "numpy": np.array,
    "numpy-scalars": lambda scores: [np.float32(score) for score in scores],
    "tensor": torch.tensor,
    "tensor-with-gradient": lambda scores: torch.tensor(scores, requires_grad=True),
    "scalar-tensors": lambda scores: [torch.tensor(score) for score in scores],
    "generator": lambda scores: (score for score in scores),
    "booleans": lambda scores: [score > 0.25 for score in scores],
}


@pytest.mark.parametrize("convert", RIGHT.values(), ids=RIGHT)
def test_kinds_of_results(tmp_path, convert):
    def reward(prompts, completions):
        return convert([row / 16 for row in range(len(completions))])

    trainer = tiny_trainer(tmp_path, reward_model=reward)
    scores = trainer.score(trainer.rollout(next(trainer.prompt_batches())))
    expected = [row / 16 for row in range(8)]
    if convert is RIGHT["booleans"]:
        expected = [float(score > 0.25) for score in expected]
    assert scores.tolist() == expected
    assert scores.dtype == torch.float32


def test_a_reward_cannot_change_what_the_next_one_sees(tmp_path):
    def greedy(prompts, completions):
        scores = [1.0] * len(prompts)
        prompts.clear()
        completions.clear()
        return scores

    trainer = tiny_trainer(tmp_path, reward_model=[greedy, greedy], total_episodes=8)
    trainer.train()
    assert trainer.state.log_history[0]["objective/scores"] == 2.0


def test_weighted_list_of_a_model_and_functions(tmp_path):
    def lengths(prompts, completions):
        return [len(completion) for completion in completions]

    model = tiny_gpt2_classifier()
    options = {"reward_model": [model, lengths, tiny_reward], "reward_weights": [2.0, 0.0, -1.0]}
    trainer = tiny_trainer(tmp_path, **options)
    rollout = trainer.rollout(next(trainer.prompt_batches()))
    prompts, completions = trainer.scorer.decode(rollout)
    ends = rollout.prompt_mask.shape[1] + rollout.lengths - 1
    with torch.no_grad():
        alone = [
            model(input_ids=torch.cat([ids[mask], answer[:length]])[None]).logits[0, 0]
            for ids, mask, answer, length in zip(
                rollout.prompt_ids, rollout.prompt_mask, rollout.response_ids, rollout.lengths, strict=True
            )
        ]
    expected = 2 * torch.stack(alone) - torch.tensor(tiny_reward(prompts, completions))
    assert ends.min() > 0
    torch.testing.assert_close(trainer.score(rollout), expected, rtol=1e-5, atol=1e-6)
    assert not model.training
    assert not any(parameter.requires_grad for parameter in model.parameters())


def test_wrong_number_of_weights(tmp_path):
    with pytest.raises(ValueError, match="reward_weights has 3 numbers for 2 rewards"):
        tiny_trainer(tmp_path, reward_model=[tiny_reward] * 2, reward_weights=[1.0] * 3)


def test_pad_sampled_at_once_is_an_empty_response(tmp_path):
    trainer = tiny_trainer(tmp_path, total_episodes=8, reward_model=lambda p, c: [float(len(x)) for x in c])
    trainer.generate_responses = lambda ids, mask: torch.full((len(ids), 1), PAD)
    trainer.train()
    row = trainer.state.log_history[0]
    assert row["response_length"] == 0
    assert all(math.isfinite(value) for name, value in row.items() if name != "val/ratio_var")
