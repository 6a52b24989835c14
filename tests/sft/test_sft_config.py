"""Every option changes what is computed, or is refused: a table of all fields."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from transformers import TrainingArguments

from fastrlhf import SFTConfig
from fastrlhf.data.validate import DataError
from fastrlhf.kernels import packed
from fastrlhf.models.backbone import is_accelerated
from fastrlhf.trainers.config import REFUSED, TrainerConfig
from tests.support.sft import TURNS, completions, conversations, losses, sft_config, sft_trainer, texts
from tests.support.tiny import EOS, PAD, tiny_tokenizer


def rows_of(folder, **options):
    return sft_trainer(folder, **options).train_dataset.to_list()


def first_losses(folder, **options):
    trainer = sft_trainer(folder, **({"max_steps": 2} | options))
    trainer.train()
    return losses(trainer)


def changes_rows(value, **others):
    """The option changes the rows that are trained on."""
    return lambda folder, name: rows_of(folder, **others) != rows_of(folder, **others, **{name: value})


def changes_losses(value, **others):
    """The option changes the losses of two steps."""
    return lambda folder, name: (
        first_losses(folder, **others) != first_losses(folder, **others, **{name: value})
    )


def sets(value, expected, look):
    """The option ends up where `look` finds it in a trainer."""
    return lambda folder, name: look(sft_trainer(folder, **{name: value})) == expected


def raises(value, message, **others):
    """The option's value is refused with a reason."""

    def check(folder, name):
        with pytest.raises(ValueError, match=message):
            sft_trainer(folder, **others, **{name: value})
        return True

    return check


def logs_every(folder, name):
    trainer = sft_trainer(folder, max_steps=4, **{name: 2})
    trainer.train()
    return len(losses(trainer)) == 2


def recomputes(folder, name):
    trainer = sft_trainer(folder, max_steps=1, **{name: True})
    trainer.train()
    return trainer.model.model.layers[0].gradient_checkpointing


def computes_in_float32_on_a_cpu(folder, name):
    with pytest.warns(UserWarning, match="bf16=True on a CPU computes in float32"):
        return sft_trainer(folder, **{name: None}).args.bf16 is False


def reads_a_template(folder, name):
    path = folder / "template.jinja"
    path.write_text(TURNS + "t9")
    with pytest.raises(ValueError, match=r"chat_template_path is 'name', expected a \.jinja file"):
        sft_trainer(folder, **{name: "name"})
    trainer = sft_trainer(folder, train_dataset=conversations(), **{name: str(path)})
    return trainer.train_dataset[0]["input_ids"][-1] == 9


def refuses_kwargs_for_a_model(folder, name):
    with pytest.raises(ValueError, match="model_init_kwargs is set and model is loaded already"):
        sft_trainer(folder, **{name: {"dtype": "float32"}})
    return True


def counts_processes(folder, name):
    from datasets import Dataset

    seen, real = [], Dataset.map

    def watched(self, *arguments, **options):
        seen.append(options.get("num_proc"))
        return real(self, *arguments, **options | {"num_proc": None})

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Dataset, "map", watched)
        sft_trainer(folder, **{name: 2})
    return seen == [2]


def other_eval(folder, name):
    options = {"eval_dataset": texts(6), "max_length": 40}
    return len(sft_trainer(folder, **options).eval_dataset) > len(
        sft_trainer(folder, **options, **{name: True}).eval_dataset
    )


def without_padding(folder, name):
    batches = [
        next(iter(sft_trainer(folder, accelerate=False, **{name: value}).get_train_dataloader()))
        for value in (False, True)
    ]
    return ["lengths" in batch for batch in batches] == [False, True]


def fills(folder, name):
    batch = next(iter(sft_trainer(folder, **{name: 64}).get_train_dataloader()))
    return batch["input_ids"].shape[1] % 64 == 0


def packs_weights(folder, name):
    sft_trainer(folder, **{name: "3MB"})
    limited = packed._limit == 3_000_000
    sft_trainer(folder)
    with pytest.raises(ValueError, match="packed_weight_bytes"):
        sft_config(folder, **{name: "much"})
    return limited and packed._limit == 0


def leaves_rows_out(folder, name):
    rows = [*texts(4), {"text": ""}]
    with pytest.raises(DataError, match=r"row 4 of train_dataset, field 'text': is empty"):
        sft_trainer(folder, train_dataset=rows)
    with pytest.warns(UserWarning, match="1 of 5 rows of train_dataset are left out"):
        return len(sft_trainer(folder, train_dataset=rows, **{name: "skip"}).train_dataset) == 4


# How each of our fields, and of TRL's, is shown to matter.
SHOWN = {
    "learning_rate": changes_losses(1e-1),
    "logging_steps": logs_every,
    "gradient_checkpointing": recomputes,
    "bf16": computes_in_float32_on_a_cpu,
    "model_init_kwargs": refuses_kwargs_for_a_model,
    "trust_remote_code": sets(True, True, lambda trainer: trainer.args.trust_remote_code),
    "router_aux_loss_coef": raises(0.1, r"router_aux_loss_coef is 0\.1, expected one of None, 0\.0"),
    "chat_template_path": reads_a_template,
    "dataset_text_field": changes_rows("other", train_dataset=[{"text": "t1 t2", "other": "t3 t4"}] * 4),
    "dataset_kwargs": changes_rows(
        {"skip_prepare_dataset": True}, train_dataset=[{"input_ids": [1, 2, 3]}] * 4
    ),
    "dataset_num_proc": counts_processes,
    "eos_token": changes_rows("<unk>"),
    "max_length": changes_rows(5),
    "truncation_mode": changes_rows("keep_end", max_length=5),
    "shuffle_dataset": changes_rows(True),
    "packing": changes_rows(True, max_length=40),
    "packing_strategy": changes_rows("wrapped", packing=True, max_length=12),
    "padding_free": without_padding,
    "pad_to_multiple_of": fills,
    "eval_packing": other_eval,
    "completion_only_loss": changes_losses(False, train_dataset=completions()),
    "assistant_only_loss": changes_losses(True, train_dataset=conversations()),
    "loss_type": changes_losses("dft"),
    "activation_offloading": raises(True, "activation_offloading is True, which is not supported"),
    "pad_token": sets("<unk>", EOS + 2, lambda trainer: trainer.data_collator.pad_token_id),
    "accelerate": sets(False, False, lambda trainer: is_accelerated(trainer.model)),
    "unpadded": sets(False, False, lambda trainer: trainer.data_collator.unpadded),
    "packed_weight_bytes": packs_weights,
    "on_bad_rows": leaves_rows_out,
    "keep_last": sets(2, 2, lambda trainer: trainer.args.save_total_limit),
    "max_skipped_updates": raises(0, "max_skipped_updates is 0, expected at least 1"),
}
OWN = {
    item.name
    for config in (TrainerConfig, SFTConfig)
    for item in dataclasses.fields(config)
    if item.name in config.__annotations__
}


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
    "weight_decay": changes_losses(0.9, max_steps=6, learning_rate=0.1),
    "max_grad_norm": changes_losses(1e-3),
    "lr_scheduler_type": changes_losses("cosine", max_steps=6),
    "warmup_steps": changes_losses(2),
    "gradient_accumulation_steps": changes_losses(1),
    "per_device_train_batch_size": changes_losses(3),
    "seed": changes_losses(1),
    "data_seed": changes_losses(1),
    "optim": changes_losses("sgd"),
    "adam_beta1": changes_losses(0.5, max_steps=6),
    "neftune_noise_alpha": changes_losses(5.0),
    "dataloader_drop_last": sets(True, True, lambda trainer: trainer.args.dataloader_drop_last),
}


@pytest.mark.parametrize("name", INHERITED)
def test_options_of_transformers_reach_its_loop(tmp_path, name):
    assert INHERITED[name](tmp_path, name)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_length": 1}, "max_length is 1, expected at least 2"),
        ({"max_length": None, "packing": True}, "max_length is None and packing=True"),
        ({"loss_type": "hinge"}, "loss_type is 'hinge', expected one of 'nll', 'dft'"),
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
