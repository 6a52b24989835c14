"""Every option changes what is computed, or is refused: a table of all fields."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from transformers import TrainingArguments

from fastrlhf import SFTConfig
from fastrlhf.trainers.config import REFUSED
from tests.support.fields import Fields, first_batch, own_fields
from tests.support.sft import TURNS, completions, conversations, sft_config, sft_trainer, texts
from tests.support.tiny import EOS, PAD, tiny_tokenizer

FIELDS = Fields(sft_trainer, {"input_ids": []}, "field 'input_ids': is empty")


def reads_a_template(folder, name):
    path = folder / "template.jinja"
    path.write_text(TURNS + "t9")
    with pytest.raises(ValueError, match=r"chat_template_path is 'name', expected a \.jinja file"):
        sft_trainer(folder, **{name: "name"})
    trainer = sft_trainer(folder, train_dataset=conversations(), **{name: str(path)})
    return trainer.train_dataset[0]["input_ids"][-1] == 9


def other_eval(folder, name):
    options = {"eval_dataset": texts(6), "max_length": 40}
    return len(sft_trainer(folder, **options).eval_dataset) > len(
        sft_trainer(folder, **options, **{name: True}).eval_dataset
    )


def without_padding(folder, name):
    batches = [first_batch(sft_trainer(folder, accelerate=False, **{name: value})) for value in (False, True)]
    return ["lengths" in batch for batch in batches] == [False, True]


# How each of our fields, and of TRL's, is shown to matter.
SHOWN = FIELDS.of_every_trainer() | {
    "router_aux_loss_coef": FIELDS.raises(0.1, r"router_aux_loss_coef is 0\.1, expected one of None, 0\.0"),
    "chat_template_path": reads_a_template,
    "dataset_text_field": FIELDS.changes_rows(
        "other", train_dataset=[{"text": "t1 t2", "other": "t3 t4"}] * 4
    ),
    "dataset_kwargs": FIELDS.changes_rows(
        {"skip_prepare_dataset": True}, train_dataset=[{"input_ids": [1, 2, 3]}] * 4
    ),
    "eos_token": FIELDS.changes_rows("<unk>"),
    "max_length": FIELDS.changes_rows(5),
    "truncation_mode": FIELDS.changes_rows("keep_end", max_length=5),
    "shuffle_dataset": FIELDS.changes_rows(True),
    "packing": FIELDS.changes_rows(True, max_length=40),
    "packing_strategy": FIELDS.changes_rows("wrapped", packing=True, max_length=12),
    "padding_free": without_padding,
    "eval_packing": other_eval,
    "completion_only_loss": FIELDS.changes_losses(False, train_dataset=completions()),
    "assistant_only_loss": FIELDS.changes_losses(True, train_dataset=conversations()),
    "loss_type": FIELDS.changes_losses("dft"),
}
OWN = own_fields(SFTConfig)


def test_the_table_has_every_field():
    assert SHOWN.keys() == OWN


@pytest.mark.parametrize("name", SHOWN)
def test_each_field_changes_something_or_is_refused(tmp_path, name):
    assert SHOWN[name](tmp_path, name)


# A value of each refused option of transformers that nobody means by accident.
MEANT = {
    "fp16": True,
    "use_liger_kernel": True,
    "torch_compile": True,
    "deepspeed": {"zero_optimization": {"stage": 2}},
    "fsdp": "full_shard",
    "fsdp_config": {"min_num_params": 3},
    "parallelism_config": object(),
    "label_smoothing_factor": 0.1,
    "auto_find_batch_size": True,
    "activation_offloading": True,
}


def test_every_refused_option_is_tried():
    assert MEANT.keys() == REFUSED.keys()


@pytest.mark.parametrize("name", MEANT)
def test_options_of_transformers_that_would_be_ignored_are_refused(tmp_path, name):
    if name not in {item.name for item in dataclasses.fields(TrainingArguments)}:
        pytest.skip("this version of transformers has no such option")
    with pytest.raises(
        ValueError, match=f"{name} is .*, which .*(not supported|leave it out|bf16=True|batch size)"
    ):
        SFTConfig(str(tmp_path), **{name: MEANT[name]})


# What transformers' own loop does with its options, of which some are looked at: it is not ours.
INHERITED = {
    "weight_decay": FIELDS.changes_losses(0.9, max_steps=6, learning_rate=0.1),
    "max_grad_norm": FIELDS.changes_losses(1e-3),
    "lr_scheduler_type": FIELDS.changes_losses("cosine", max_steps=6),
    "warmup_steps": FIELDS.changes_losses(2),
    "gradient_accumulation_steps": FIELDS.changes_losses(1),
    "per_device_train_batch_size": FIELDS.changes_losses(3),
    "seed": FIELDS.changes_losses(1),
    "data_seed": FIELDS.changes_losses(1),
    "optim": FIELDS.changes_losses("sgd"),
    "adam_beta1": FIELDS.changes_losses(0.5, max_steps=6),
    "neftune_noise_alpha": FIELDS.changes_losses(5.0),
    "dataloader_drop_last": FIELDS.sets(True, True, lambda trainer: trainer.args.dataloader_drop_last),
}


@pytest.mark.parametrize("name", INHERITED)
def test_options_of_transformers_reach_its_loop(tmp_path, name):
    assert INHERITED[name](tmp_path, name)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_length": 1}, "max_length is 1, expected at least 2"),
        ({"max_length": None, "packing": True}, "max_length is None and packing=True"),
        ({"loss_type": "hinge"}, "loss_type is 'hinge', expected one of nll, dft"),
        ({"truncation_mode": "middle"}, "truncation_mode is 'middle'"),
        ({"packing_strategy": "ffd"}, "packing_strategy is 'ffd'"),
        ({"dataset_kwargs": {"skip": True}}, "dataset_kwargs has skip, expected skip_prepare_dataset alone"),
        ({"unpadded": False, "packing": True}, "unpadded=False, and padding_free=True or packed rows"),
        ({"keep_last": 2, "save_total_limit": 3}, "keep_last is 2 and save_total_limit 3"),
        ({"on_bad_rows": "ignore"}, "on_bad_rows is 'ignore', expected one of stop, skip"),
        ({"pad_to_multiple_of": 0}, "pad_to_multiple_of is 0"),
    ],
    ids=str,
)
def test_values_that_cannot_be_meant(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        sft_config(tmp_path, **options)


def test_trls_old_names(tmp_path):
    config = sft_config(
        tmp_path, loss_type="chunked_nll", packing_strategy="bfd-requeue", pad_to_multiple_of="none"
    )
    assert (config.loss_type, config.packing_strategy, config.pad_to_multiple_of) == (
        "nll",
        "bfd_split",
        None,
    )


def test_every_field_has_help():
    assert all(item.metadata.get("help") for item in dataclasses.fields(SFTConfig) if item.name in OWN)


def test_the_end_token_of_the_model_is_that_of_its_tokenizer(tmp_path):
    trainer = sft_trainer(tmp_path, eos_token="<unk>", processing_class=tiny_tokenizer(pad_token=None))
    config, generation = trainer.model.config, trainer.model.generation_config
    assert config.eos_token_id == EOS + 2 and generation.eos_token_id == [EOS + 2, EOS]
    assert config.pad_token_id == EOS + 2, "the end token pads where nothing else does"
    assert generation.pad_token_id != PAD and torch.tensor(trainer.data_collator.pad_token_id) == EOS + 2
