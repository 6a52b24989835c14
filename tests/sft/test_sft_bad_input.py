"""What cannot be trained on says so at once, naming the argument or the row, and the mend."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from transformers import MixtralConfig, MixtralForCausalLM, TrainerCallback

from fastrlhf.data.validate import DataError
from fastrlhf.trainers import base
from fastrlhf.trainers.checkpoint import find_checkpoint
from fastrlhf.trainers.guard import TrainingStopped
from tests.support.runs import same
from tests.support.sft import completions, conversations, losses, sft_trainer, texts
from tests.support.tiny import llama_config, tiny_llama, tiny_tokenizer

LORA = LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM")


def iterable():
    return Dataset.from_list(texts()).to_iterable_dataset()


def without_template():
    return tiny_tokenizer()


def mixture():
    options = llama_config().to_dict() | {"num_local_experts": 2, "num_experts_per_tok": 1}
    names = MixtralConfig().to_dict().keys() - {"model_type", "architectures", "rope_parameters", "head_dim"}
    return MixtralForCausalLM(MixtralConfig(**{name: options[name] for name in names & options.keys()}))


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"train_dataset": None}, ValueError, "train_dataset is None: there is nothing to learn from"),
        ({"train_dataset": []}, DataError, "train_dataset has no row"),
        ({"train_dataset": "rows.jsonl"}, TypeError, "train_dataset is a str, expected a datasets.Dataset"),
        (
            {"train_dataset": iterable},
            TypeError,
            "train_dataset is an IterableDataset, which is not supported",
        ),
        ({"train_dataset": [{"question": "?"}]}, DataError, "train_dataset: a row has the fields question"),
        (
            {"train_dataset": [{"prompt": "t1"}]},
            DataError,
            "rows of the kind prompt, expected texts, messages",
        ),
        (
            {"train_dataset": [{"chosen": "t1", "rejected": "t2"}]},
            DataError,
            "rows of the kind preference, expected texts",
        ),
        ({"eval_dataset": []}, DataError, "eval_dataset has no row"),
        (
            {"eval_dataset": {"held": [{"text": 3}]}},
            DataError,
            r"row 0 of eval_dataset\['held'\], field 'text'",
        ),
        ({"processing_class": 3}, TypeError, "processing_class is a int, expected a tokenizer"),
        ({"processing_class": None}, ValueError, "model does not say where it is from: pass its tokenizer"),
        ({"compute_loss_func": print}, ValueError, "compute_loss_func works on whole logits"),
        ({"compute_metrics": print}, ValueError, "compute_metrics works on whole logits"),
        ({"preprocess_logits_for_metrics": print}, ValueError, "preprocess_logits_for_metrics works on"),
        ({"quantization_config": object()}, ValueError, "quantization_config is not supported"),
        ({"peft_config": "lora"}, TypeError, "peft_config is a str, expected a peft.PeftConfig"),
        (
            {"peft_config": LORA, "model": lambda: get_peft_model(tiny_llama(), LORA)},
            ValueError,
            "model is a PEFT model already",
        ),
        (
            {"peft_config": LoraConfig(target_modules=["lm_head"], task_type="CAUSAL_LM")},
            ValueError,
            "the output head of .* leave it out of target_modules",
        ),
        ({"eos_token": "<end>"}, ValueError, "eos_token is '<end>', which the tokenizer does not have"),
        ({"pad_token": "<fill>"}, ValueError, "pad_token is '<fill>', which the tokenizer does not have"),
        ({"assistant_only_loss": True}, ValueError, "train_dataset has no conversations: leave it out"),
        ({"completion_only_loss": True}, ValueError, "have no prompt and completion: leave it out"),
        (
            {"completion_only_loss": True, "train_dataset": completions, "formatting_func": lambda row: "t1"},
            ValueError,
            "formatting_func makes texts, which have no completion",
        ),
        ({"data_collator": list, "packing": True}, ValueError, "data_collator is set, and padding_free=True"),
        (
            {"train_dataset": conversations, "processing_class": without_template},
            DataError,
            "row 0 of train_dataset: the tokenizer has no chat template",
        ),
        ({"model": mixture}, ValueError, "is a mixture of experts with router_aux_loss_coef=0.001"),
        (
            {"train_dataset": [{"prompt": "t1 " * 9, "completion": "t2"}], "max_length": 4},
            DataError,
            "train_dataset has no row in which a token counts: raise max_length",
        ),
        (
            {"train_dataset": [{"input_ids": [1, 2], "labels": [1]}]},
            DataError,
            "row 0 of train_dataset, field 'labels': has 1 entries and 'input_ids' 2",
        ),
        (
            {
                "train_dataset": [{"input_ids": [1, 2], "completion_mask": [0, 1]}],
                "dataset_kwargs": {"skip_prepare_dataset": True},
            },
            DataError,
            "train_dataset has completion_mask and no labels, and skip_prepare_dataset=True makes none",
        ),
    ],
    ids=lambda value: str(list(value)) if isinstance(value, dict) else "",
)
def test_arguments_that_cannot_be_meant(tmp_path, options, error, message):
    made = {
        name: value() if callable(value) and name in ("train_dataset", "model", "processing_class") else value
        for name, value in options.items()
    }
    with pytest.raises(error, match=message):
        sft_trainer(tmp_path, **made)


def test_a_mixture_of_experts_without_its_auxiliary_loss(tmp_path):
    with pytest.warns(UserWarning, match="does not know the family 'mixtral'"):
        trainer = sft_trainer(tmp_path, model=mixture(), router_aux_loss_coef=0.0)
    trainer.train()
    assert all(math.isfinite(loss) for loss in losses(trainer))


def test_several_processes(tmp_path, monkeypatch):
    monkeypatch.setattr(base, "PartialState", lambda: SimpleNamespace(num_processes=2))
    with pytest.raises(ValueError, match="2 processes: training on more than one is not supported yet"):
        sft_trainer(tmp_path)


def test_rows_whose_prompts_fill_max_length_are_left_out(tmp_path):
    rows = [{"prompt": "t1 " * 9, "completion": "t2"}, {"prompt": "t1 ", "completion": "t2 t3"}]
    trainer = sft_trainer(tmp_path, train_dataset=rows, max_length=4)
    assert trainer.train_dataset["input_ids"] == [[1, 2, 3, 29]]


def test_a_bad_first_row_is_left_out_as_any_other(tmp_path):
    rows = [{"text": None}, {"text": "t1 t2"}]
    with pytest.warns(UserWarning, match=r"row 0 of train_dataset, field 'text': is missing"):
        trainer = sft_trainer(tmp_path, train_dataset=rows, on_bad_rows="skip")
    assert len(trainer.train_dataset) == 1


def test_texts_by_a_function(tmp_path):
    trainer = sft_trainer(
        tmp_path,
        train_dataset=completions(),
        formatting_func=lambda row: row["completion"] + " " + row["prompt"],
    )
    expected = completions()[0]
    tokens = trainer.processing_class(expected["completion"] + " " + expected["prompt"] + "<eos>")[
        "input_ids"
    ]
    assert trainer.train_dataset[0]["input_ids"] == tokens


def test_a_batch_in_which_nothing_counts(tmp_path):
    rows = [{"input_ids": [1, 2, 3], "labels": [1, -100, -100]}] * 3 + [
        {"input_ids": [1, 2], "labels": [1, 2]}
    ]
    trainer = sft_trainer(
        tmp_path,
        train_dataset=rows,
        per_device_train_batch_size=1,
        gradient_accumulation_steps=1,
        max_steps=4,
    )
    trainer.train()
    assert sorted(losses(trainer))[:3] == [0, 0, 0] and max(losses(trainer)) > 0


class Poison(TrainerCallback):
    """NaN in a gradient of these steps."""

    def __init__(self, *steps):
        self.steps = steps

    def on_substep_end(self, args, state, control, model, **_):
        if state.global_step + 1 in self.steps:
            next(p for p in model.parameters() if p.grad is not None).grad[0] = math.nan


def test_an_update_that_is_not_finite_is_left_out(tmp_path):
    trainer = sft_trainer(tmp_path, callbacks=[Poison(2)], max_steps=2)
    once = sft_trainer(tmp_path, callbacks=[Poison(2)], max_steps=1)
    with pytest.warns(UserWarning, match=r"step 2: gradient norm nan: this update is skipped \(1 in a row\)"):
        trainer.train()
    once.train()
    assert same(dict(trainer.model.state_dict()), dict(once.model.state_dict()))
    assert trainer.state.log_history[1]["train/skipped_updates"] == 1


def test_too_many_of_them_stop_the_run_with_its_last_good_state(tmp_path):
    trainer = sft_trainer(tmp_path, callbacks=[Poison(2, 4, 5, 6)], max_skipped_updates=2)
    with (
        pytest.warns(UserWarning, match="2 in a row"),
        pytest.raises(TrainingStopped, match="after step 5: 2 updates"),
    ):
        trainer.train()
    assert find_checkpoint(tmp_path, True, "sft").name == "checkpoint-5"
    assert all(torch.isfinite(weight).all() for weight in trainer.model.state_dict().values())
    mended = sft_trainer(tmp_path)
    mended.train(resume_from_checkpoint=True)
    assert mended.skipped_updates == 3 and mended.state.global_step == 6


def test_no_logits_are_given(tmp_path):
    trainer = sft_trainer(tmp_path)
    with pytest.raises(ValueError, match="asks for logits, which are never computed"):
        trainer.compute_loss(trainer.model, {}, return_outputs=True)
