"""What cannot be meant is refused before any work is done, and a reward that fails says of what."""

from __future__ import annotations

import math

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import MixtralConfig, MixtralForCausalLM

from fastrlhf import GRPOTrainer, RLOOTrainer
from fastrlhf.ppo.rewards import RewardError
from tests.support.groups import SIDES, group_config, group_rows, group_trainer
from tests.support.tiny import CONTEXT, PAD, VOCABULARY, tiny_llama, tiny_llama_classifier, tiny_tokenizer

BAD = {
    "num_generations": (1, "expected at least 2"),
    "num_generations_eval": (0, "expected at least 1"),
    "max_completion_length": (None, "expected a number"),
    "num_iterations": (0, "expected at least 1"),
    "beta": (-0.1, "expected at least 0"),
    "epsilon": (-0.1, "expected at least 0"),
    "epsilon_high": (-0.1, "expected at least 0"),
    "temperature": (0.0, "expected more than 0"),
    "ref_model_mixup_alpha": (1.5, r"expected a number in \[0, 1\]"),
    "ref_model_sync_steps": (0, "expected at least 1"),
    "generation_kwargs": ({"num_beams": 2}, "num_beams, expected max_new_tokens"),
    "frozen_states_bytes": ("many", "expected a number of bytes"),
    "keep_last": (0, "expected at least 1"),
}
BAD_OF = {
    "grpo": {
        "loss_type": ("cispo", "expected one of grpo, dr_grpo, dapo, bnpo, luspo"),
        "scale_rewards": ("rows", "expected one of group, batch, none"),
        "importance_sampling_level": ("word", "expected one of token, sequence"),
        "multi_objective_aggregation": ("max", "expected one of sum_then_normalize"),
        "delta": (1.1, "expected more than 1.2"),
        "top_entropy_quantile": (1.2, r"expected a number in \[0, 1\]"),
        "off_policy_mask_threshold": (0.0, "expected more than 0"),
        "entropy_coef_min": (2.0, "expected at most entropy_coef_max=1.0"),
    },
    "rloo": {"reward_clip_range": ((1.0, 0.0), "expected the lowest and the highest reward")},
}


@pytest.mark.parametrize(("kind", "name"), [(kind, name) for kind in SIDES for name in BAD | BAD_OF[kind]])
def test_a_value_out_of_its_range(tmp_path, kind, name):
    value, expected = (BAD | BAD_OF[kind])[name]
    with pytest.raises(ValueError, match=f"{name}.*{expected}"):
        group_config(kind, tmp_path, **{name: value})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"generation_batch_size": 12}, "per_device_train_batch_size=8 does not divide"),
        ({"generation_batch_size": 8, "steps_per_generation": 1}, "exclude each other"),
        ({"num_generations": 3}, "num_generations=3 does not divide: a rollout has to hold whole groups"),
        (
            {"gradient_accumulation_steps": 2, "steps_per_generation": 1},
            "gradient_accumulation_steps=2 does not divide: an optimizer update has to be of one rollout",
        ),
        ({"sync_ref_model": True, "beta": 0.0}, "with beta=0 there is none"),
        ({"keep_last": 1, "save_total_limit": 2}, "set one of the two"),
        ({"rollout_correction_cap": 1.0, "reuse_rollout_logprobs": True}, "leaves nothing to compare"),
    ],
)
def test_options_that_do_not_go_together(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        group_config("grpo", tmp_path, **options)


def test_booleans_of_scale_rewards_are_trls(tmp_path):
    assert group_config("grpo", tmp_path, scale_rewards=True).scale_rewards == "group"
    assert group_config("grpo", tmp_path, scale_rewards=False).scale_rewards == "none"


@pytest.mark.parametrize(
    ("argument", "mend"),
    [
        ("quantization_config", "load the model as it is to be"),
        ("tools", "completions call no tools"),
        ("rollout_func", "override the trainer's generate_responses"),
        ("environment_factory", "a reward function sees them whole"),
    ],
)
def test_arguments_that_are_refused(argument, mend):
    with pytest.raises(ValueError, match=f"{argument} is not supported: .*{mend}"):
        GRPOTrainer(tiny_llama(), len, **{argument: [len]})


def test_arguments_of_another_kind(tmp_path):
    with pytest.raises(TypeError, match="args is a RLOOConfig, expected a GRPOConfig"):
        group_trainer("rloo", tmp_path, cls=GRPOTrainer)
    with pytest.raises(TypeError, match="args is a GRPOConfig, expected a RLOOConfig"):
        group_trainer("grpo", tmp_path, cls=RLOOTrainer)
    with pytest.raises(ValueError, match="train_dataset is None"):
        group_trainer("grpo", tmp_path, train_dataset=None)
    with pytest.raises(ValueError, match="model_init_kwargs are for a model that is given by name"):
        group_trainer("grpo", tmp_path, model_init_kwargs={"dtype": "float32"})
    with pytest.raises(TypeError, match="processing_class is a str, expected a tokenizer"):
        group_trainer("grpo", tmp_path, processing_class="tokenizer")


@pytest.mark.parametrize(
    ("rows", "error", "message"),
    [
        (
            Dataset.from_dict({"text": ["t1"]}),
            ValueError,
            r"row 0 of train_dataset is \['text'\], expected a column",
        ),
        ([{"prompt": "t1"}, {"prompt": 3}], ValueError, "`prompt` of row 1 of train_dataset is a int"),
        ([{"prompt": [{"role": "user", "content": "t1"}]}], ValueError, "and the tokenizer no chat template"),
        ([{"prompt": ""}] * 4, ValueError, "row 0 of train_dataset has no token"),
        (
            [{"prompt": " ".join(["t1"] * CONTEXT)}] * 4,
            ValueError,
            f"row 0 of train_dataset has {CONTEXT} tokens, which with max_completion_length=6 exceeds",
        ),
        ([{"prompt": "t1"}], ValueError, "train_dataset has 1 rows, fewer than the 2 of one rollout"),
        (iter([{"prompt": "t1"}]), TypeError, "whose rows cannot be counted"),
    ],
)
def test_prompts(tmp_path, rows, error, message):
    with pytest.raises(error, match=message):
        group_trainer("grpo", tmp_path, train_dataset=rows)


def test_a_held_out_prompt_too_long(tmp_path):
    rows = [{"prompt": " ".join(["t1"] * CONTEXT)}]
    with pytest.raises(ValueError, match=r"row 0 of eval_dataset\['long'\] has"):
        group_trainer("grpo", tmp_path, eval_dataset={"short": group_rows(2), "long": rows})


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"reward_funcs": None}, ValueError, "reward_funcs is None"),
        ({"reward_funcs": []}, ValueError, "reward_funcs is empty"),
        ({"reward_funcs": 3}, TypeError, "reward_funcs has a int"),
        ({"reward_funcs": torch.nn.Linear(2, 1)}, ValueError, "without a `score` head"),
        ({"reward_weights": [1.0, 2.0]}, ValueError, "reward_weights has 2 numbers for 1 rewards"),
        ({"reward_processing_classes": [None, None]}, ValueError, "has 2 elements for 1 rewards"),
    ],
)
def test_rewards_that_are_none(tmp_path, options, error, message):
    with pytest.raises(error, match=message):
        if isinstance(options.get("reward_funcs"), torch.nn.Module):
            options = {**options, "reward_processing_classes": tiny_tokenizer()}
            options["reward_funcs"].config = tiny_llama().config
        group_trainer("grpo", tmp_path, **options)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([1.0], "gave 1 rewards for 8 completions"),
        (3.0, "gave 3.0, expected a list"),
        ("12345678", "gave '12345678', expected a list"),
        ([1.0] * 7 + ["x"], "gave 'x' for completion 7, expected a finite number or None"),
        ([1.0] * 7 + [math.nan], "gave nan for completion 7"),
        ([1.0] * 7 + [math.inf], "gave inf for completion 7"),
    ],
)
def test_what_a_reward_must_not_give(tmp_path, given, message):
    def gives(**_):
        return given

    trainer = group_trainer("grpo", tmp_path, reward_funcs=gives)
    with pytest.raises(
        RewardError, match=f"reward gives {message}(.|\n)*prompt [07]: .*\n.*completion [07]: "
    ):
        trainer.train()


def test_a_reward_is_tried_twice(tmp_path):
    calls = []

    def away_once(completions, **_):
        calls.append(1)
        if len(calls) == 1:
            raise OSError("away")
        return [0.0] * len(completions)

    group_trainer("grpo", tmp_path, reward_funcs=away_once, max_steps=1).train()
    assert len(calls) == 2


def test_a_reward_may_be_a_coroutine(tmp_path):
    async def later(completions, **_):
        return [float(len(text)) for text in completions]

    trainer = group_trainer("grpo", tmp_path, reward_funcs=later, max_steps=1)
    trainer.train()
    assert trainer.state.log_history[0]["rewards/later/mean"] > 0


def test_all_rewards_silent_is_said(tmp_path):
    def silent(completions, **_):
        return [None] * len(completions)

    trainer = group_trainer("grpo", tmp_path, reward_funcs=silent, max_steps=1)
    before = trainer.policy_model.lm_head.weight.detach().clone()
    with pytest.warns(UserWarning, match="every reward gave None for completion 0"):
        trainer.train()
    assert trainer.state.log_history[0]["reward"] is None
    assert torch.equal(before, trainer.policy_model.lm_head.weight)


def test_reward_functions_get_what_trl_gives_them(tmp_path):
    seen = {}

    def looks(prompts, completions, completion_ids, number, trainer_state, **others):
        seen.update(
            prompts=prompts, completions=completions, ids=completion_ids, number=number, others=others
        )
        seen["step"] = trainer_state.global_step
        return [0.0] * len(completions)

    rows = group_rows(2)
    group_trainer(
        "grpo", tmp_path, reward_funcs=looks, train_dataset=rows, max_steps=1, shuffle_dataset=False
    ).train()
    assert seen["prompts"] == [rows[row]["prompt"] for row in (0, 0, 0, 0, 1, 1, 1, 1)]
    assert seen["number"] == [0] * 4 + [1] * 4
    decoded = tiny_tokenizer().batch_decode(seen["ids"], skip_special_tokens=True)
    assert decoded == seen["completions"] and seen["step"] == 0
    assert set(seen["others"]) == {"log_extra", "log_metric"}
    assert all(PAD not in ids for ids in seen["ids"])


def test_moving_reference_with_an_adapter(tmp_path):
    lora = LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM")
    with pytest.raises(ValueError, match="leave sync_ref_model or the adapter out"):
        group_trainer("grpo", tmp_path, peft_config=lora, beta=0.1, sync_ref_model=True)


def test_dropout_of_an_adapter(tmp_path):
    lora = LoraConfig(r=2, target_modules=["q_proj"], lora_dropout=0.1, task_type="CAUSAL_LM")
    with pytest.raises(ValueError, match="set disable_dropout=True, or lora_dropout=0"):
        group_trainer("grpo", tmp_path, peft_config=lora)
    group_trainer("grpo", tmp_path, peft_config=lora, disable_dropout=True)


def test_a_mixture_of_experts(tmp_path):
    config = MixtralConfig(
        vocab_size=VOCABULARY,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        num_local_experts=2,
        max_position_embeddings=CONTEXT,
    )
    with pytest.raises(ValueError, match=r"set router_aux_loss_coef=0\.0 to train without"):
        group_trainer("grpo", tmp_path, model=MixtralForCausalLM(config), accelerate=False)


def test_reward_model_with_its_own_tokenizer(tmp_path):
    options = {"reward_funcs": tiny_llama_classifier(), "reward_processing_classes": tiny_tokenizer()}
    trainer = group_trainer("rloo", tmp_path, **options, max_steps=1)
    seen = []
    score = trainer.score
    trainer.score = lambda rollout: seen.append(score(rollout)) or seen[-1]
    trainer.train()
    model, completed = trainer.scorer.models[0], seen[0].completed
    for row, (prompt, completion) in enumerate(zip(completed.prompts, completed.completions, strict=True)):
        ids = torch.tensor([tiny_tokenizer()(prompt + completion)["input_ids"]])
        with torch.no_grad():
            expected = model(input_ids=ids).logits[0, 0]
        torch.testing.assert_close(seen[0].rewards[row, 0], expected, rtol=1e-5, atol=1e-5)
