"""What cannot be trained on says so at once, naming the argument or the row, and the mend."""

from __future__ import annotations

import math

import pytest
import torch
from peft import LoraConfig, get_peft_model

from fastrlhf import SFTConfig
from fastrlhf.data.validate import DataError
from fastrlhf.trainers.checkpoint import find_checkpoint
from fastrlhf.trainers.guard import TrainingStopped
from tests.sft.test_sft_bad_input import Poison, iterable, mixture
from tests.support.preferences import TRAINERS, conversations, dpo_trainer, pairs, reward_trainer
from tests.support.runs import same
from tests.support.tiny import tiny_llama, tiny_llama_classifier, tiny_tokenizer

LORA = LoraConfig(r=2, target_modules=["q_proj"])
ANSWERS = {"chosen": "t1", "rejected": "t2"}
OF_BOTH = [
    ({"train_dataset": None}, ValueError, "train_dataset is None: there is nothing to learn from"),
    ({"train_dataset": []}, DataError, "train_dataset has no row"),
    ({"train_dataset": "rows.jsonl"}, TypeError, "train_dataset is a str, expected a datasets.Dataset"),
    ({"train_dataset": iterable}, TypeError, "train_dataset is an IterableDataset, which is not supported"),
    ({"train_dataset": [ANSWERS, "t1"]}, TypeError, "row 1 of train_dataset is a str, expected named fields"),
    ({"train_dataset": [{"question": "?"}]}, DataError, "train_dataset: a row has the fields question"),
    ({"train_dataset": [{"text": "t1"}]}, DataError, "rows of the kind text, expected preferences"),
    (
        {"train_dataset": [ANSWERS, {"chosen": "t1", "rejected": "t1"}]},
        DataError,
        "row 1 of train_dataset, field 'rejected': is the same as 'chosen'",
    ),
    (
        {"train_dataset": [ANSWERS, ANSWERS | {"margin": 1.0}]},
        DataError,
        "row 0 of train_dataset: the field 'margin' is missing, which other rows have",
    ),
    (
        {"train_dataset": [ANSWERS | {"margin": "1"}]},
        DataError,
        r"row 0 of train_dataset, field 'margin': is '1' \(str\), expected a number",
    ),
    (
        {
            "train_dataset": [{"chosen_ids": [1, 2], "rejected_ids": [3]}] * 3,
            "max_length": 2,
            "eval_dataset": [],
        },
        DataError,
        "eval_dataset has no row",
    ),
    (
        {"eval_dataset": {"held": [{"chosen": 3, "rejected": "t1"}]}},
        DataError,
        r"row 0 of eval_dataset\['held'\]",
    ),
    (
        {"train_dataset": conversations, "processing_class": tiny_tokenizer},
        DataError,
        "row 0 of train_dataset: the tokenizer has no chat template",
    ),
    ({"processing_class": 3}, TypeError, "processing_class is a int, expected a tokenizer"),
    ({"data_collator": list}, ValueError, "data_collator is not supported"),
    ({"compute_metrics": print}, ValueError, "compute_metrics (works on whole logits|is not supported)"),
    ({"quantization_config": object()}, ValueError, "quantization_config is not supported"),
    ({"peft_config": "lora"}, TypeError, "peft_config is a str, expected a peft.PeftConfig"),
    ({"pad_token": "<fill>"}, ValueError, "pad_token is '<fill>', which the tokenizer does not have"),
]
OF_DPO = [
    ({"model": mixture}, ValueError, "is a mixture of experts with router_aux_loss_coef=0.001"),
    (
        {"peft_config": LoraConfig(target_modules=["lm_head"])},
        ValueError,
        "the output head of .* leave it out of target_modules",
    ),
    (
        {"peft_config": LORA, "model": lambda: get_peft_model(tiny_llama(), LORA)},
        ValueError,
        "model is a PEFT model already",
    ),
    (
        {"train_dataset": [{"prompt": "t1 " * 9, "chosen": "t2", "rejected": "t3"}], "max_length": 4},
        DataError,
        "train_dataset has no pair that fits into max_length: raise it",
    ),
]
OF_REWARD = [
    ({"model": tiny_llama}, ValueError, "model is a LlamaForCausalLM without a `score` head"),
    (
        {"model": lambda: get_peft_model(tiny_llama(), LORA)},
        ValueError,
        "model is a LlamaForCausalLM without a `score` head",
    ),
    ({"eos_token": "<end>"}, ValueError, "eos_token is '<end>', which the tokenizer does not have"),
    ({"preprocess_logits_for_metrics": print}, ValueError, "preprocess_logits_for_metrics is not supported"),
    (
        {"train_dataset": [{"prompt": "t1 " * 9, "chosen": "t2", "rejected": "t3"}], "max_length": 4},
        DataError,
        "train_dataset has no pair that fits into max_length: raise it",
    ),
]
CASES = [("dpo", *case) for case in OF_BOTH + OF_DPO] + [("reward", *case) for case in OF_BOTH + OF_REWARD]


@pytest.mark.parametrize(
    ("stage", "options", "error", "message"),
    CASES,
    ids=lambda value: str(list(value)) if isinstance(value, dict) else value if value in TRAINERS else "",
)
def test_arguments_that_cannot_be_meant(tmp_path, stage, options, error, message):
    made = {
        name: value() if callable(value) and name in ("train_dataset", "model", "processing_class") else value
        for name, value in options.items()
    }
    with pytest.raises(error, match=message):
        TRAINERS[stage](tmp_path, **made)


def test_a_reference_that_training_would_change(tmp_path):
    model = tiny_llama()
    with pytest.raises(ValueError, match="ref_model is model itself, which training changes"):
        dpo_trainer(tmp_path, model=model, ref_model=model)


def test_another_trainers_configuration(tmp_path):
    with pytest.raises(TypeError, match="args is a SFTConfig, expected DPOConfig"):
        dpo_trainer(tmp_path, config_class=SFTConfig)


def test_a_classifier_of_several_labels(tmp_path):
    with pytest.raises(ValueError, match="the `score` head of model gives 3 numbers, expected one"):
        reward_trainer(tmp_path, model=type(tiny_llama_classifier())(_three_labels()))


def _three_labels():
    config = tiny_llama_classifier().config
    config.num_labels = 3
    return config


def test_pairs_whose_prompts_fill_max_length_are_left_out(tmp_path):
    rows = [{"prompt": "t1 " * 9, **ANSWERS}, {"prompt": "t1 ", "chosen": "t2 t3", "rejected": "t4"}]
    trainer = dpo_trainer(tmp_path, train_dataset=rows, max_length=4)
    assert trainer.train_dataset["chosen_ids"] == [[2, 3, 29]]
    assert (
        len(dpo_trainer(tmp_path, train_dataset=rows, max_length=4, truncation_mode="keep_end").train_dataset)
        == 2
    )


def test_answers_of_which_nothing_counts(tmp_path):
    """Of one token, without a prompt: there is no state before it."""
    rows = [{"chosen_ids": [1], "rejected_ids": [2]}] * 2 + [
        {"chosen_ids": [1, 2], "rejected_ids": [3, 4]}
    ] * 2
    trainer = dpo_trainer(
        tmp_path,
        train_dataset=rows,
        max_steps=2,
        train_sampling_strategy="sequential",
        gradient_accumulation_steps=1,
    )
    trainer.train()
    first, second = (entry for entry in trainer.state.log_history if "loss" in entry)
    assert first["loss"] == pytest.approx(math.log(2)) and first["grad_norm"] == 0 < second["grad_norm"]
    assert first["logps/chosen"] == first["entropy"] == 0


@pytest.mark.parametrize("stage", TRAINERS)
def test_an_update_that_is_not_finite_is_left_out(tmp_path, stage):
    trainer, once = (TRAINERS[stage](tmp_path, callbacks=[Poison(2)], max_steps=steps) for steps in (2, 1))
    with pytest.warns(UserWarning, match="step 2: gradient norm nan: this update is skipped"):
        trainer.train()
    once.train()
    assert same(dict(trainer.model.state_dict()), dict(once.model.state_dict()))


@pytest.mark.parametrize("stage", TRAINERS)
def test_too_many_of_them_stop_the_run_with_its_last_good_state(tmp_path, stage):
    trainer = TRAINERS[stage](tmp_path, callbacks=[Poison(2, 3)], max_skipped_updates=2)
    with pytest.warns(UserWarning, match="2 in a row"), pytest.raises(TrainingStopped, match="after step 3"):
        trainer.train()
    assert find_checkpoint(tmp_path, True, stage).name == "checkpoint-3"
    assert all(torch.isfinite(weight).all() for weight in trainer.model.state_dict().values())


@pytest.mark.parametrize("stage", TRAINERS)
def test_no_logits_are_given(tmp_path, stage):
    trainer = TRAINERS[stage](tmp_path)
    with pytest.raises(ValueError, match="asks for logits, which are never computed"):
        trainer.compute_loss(trainer.model, {}, return_outputs=True)


@pytest.mark.parametrize("stage", TRAINERS)
def test_the_tokens_of_both_answers_are_counted(tmp_path, stage):
    trainer = TRAINERS[stage](tmp_path, train_sampling_strategy="sequential")
    trainer.train()
    lengths = [
        len((row["prompt"] + row[side]).split()) + 1 for row in pairs()[:4] for side in ("chosen", "rejected")
    ]
    assert trainer.state.log_history[0]["num_tokens"] == sum(lengths)
