"""Every option changes what is computed, or is refused: a table of all fields."""

from __future__ import annotations

import dataclasses

import pytest

from fastrlhf import DPOConfig, DPOTrainer
from tests.support.fields import Fields, first_batch, own_fields
from tests.support.preferences import dpo_trainer
from tests.support.tiny import tiny_gpt2

FIELDS = Fields(dpo_trainer, {"chosen_ids": [], "rejected_ids": [1]}, "field 'chosen_ids': is empty")


def without_padding(folder, name):
    batches = [first_batch(dpo_trainer(folder, accelerate=False, **{name: value})) for value in (False, True)]
    return ["lengths" in batch for batch in batches] == [False, True]


def finds_the_reference_first(folder, name):
    trainer = dpo_trainer(folder, **{name: True})
    return trainer.ref_model is None and "ref_chosen_logps" in trainer.train_dataset.column_names


def so_many_at_once(folder, name):
    sizes = []

    class Watched(DPOTrainer):
        def _reference_logps(self, inputs):
            sizes.append(self.items(inputs))
            return super()._reference_logps(inputs)

    dpo_trainer(folder, trainer_class=Watched, precompute_ref_log_probs=True, **{name: 10})
    return sizes == [10, 10, 4]


def leaves_dropout(folder, name):
    probability = dpo_trainer(folder, model=tiny_gpt2(), **{name: False}).model.transformer.drop.p
    return probability > 0 == dpo_trainer(folder, model=tiny_gpt2()).model.transformer.drop.p


SHOWN = FIELDS.of_every_trainer() | {
    "router_aux_loss_coef": FIELDS.raises(0.1, r"router_aux_loss_coef is 0\.1, expected one of None, 0\.0"),
    "disable_dropout": leaves_dropout,
    "max_length": FIELDS.changes_losses(7),
    "truncation_mode": FIELDS.changes_losses("keep_end", max_length=7),
    "padding_free": without_padding,
    "precompute_ref_log_probs": finds_the_reference_first,
    "precompute_ref_batch_size": so_many_at_once,
    "loss_type": FIELDS.changes_losses("ipo"),
    "loss_weights": FIELDS.changes_losses([0.5]),
    "ld_alpha": FIELDS.raises(0.5, r"ld_alpha is 0\.5, which is not supported"),
    "f_divergence_type": FIELDS.raises("forward_kl", "f_divergence_type is 'forward_kl', which is not"),
    "f_alpha_divergence_coef": FIELDS.raises(0.4, r"f_alpha_divergence_coef is 0\.4, which belongs to"),
    "label_smoothing": FIELDS.changes_losses(0.1),
    "beta": FIELDS.changes_losses(0.5),
    "use_weighting": FIELDS.raises(True, "use_weighting is True, which is not supported"),
    "discopop_tau": FIELDS.raises(0.1, r"discopop_tau is 0\.1, which belongs to a loss"),
    "sync_ref_model": FIELDS.raises(True, "sync_ref_model is True, which is not supported"),
    "ref_model_mixup_alpha": FIELDS.raises(0.5, r"ref_model_mixup_alpha is 0\.5, which belongs to sync_ref"),
    "ref_model_sync_steps": FIELDS.raises(64, "ref_model_sync_steps is 64, which belongs to sync_ref_model"),
}


def test_the_table_has_every_field():
    assert SHOWN.keys() == own_fields(DPOConfig)


@pytest.mark.parametrize("name", SHOWN)
def test_each_field_changes_something_or_is_refused(tmp_path, name):
    assert SHOWN[name](tmp_path, name)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"loss_type": "hinge"}, r"loss_type is \['hinge'\], expected of 'sigmoid', 'ipo'"),
        ({"loss_type": ["sigmoid", "robust"]}, r"loss_type is \['sigmoid', 'robust'\]"),
        ({"loss_type": []}, r"loss_type is \[\]"),
        ({"loss_weights": [1.0, 2.0]}, "loss_weights has 2 entries and loss_type 1"),
        ({"label_smoothing": 0.5}, r"label_smoothing is 0\.5, expected at least 0 and below 0\.5"),
        ({"label_smoothing": -0.1}, r"label_smoothing is -0\.1"),
        ({"label_smoothing": 0.1, "loss_type": "ipo"}, r"label_smoothing is 0\.1, which changes the sigmoid"),
        ({"beta": 0.0}, r"beta is 0\.0, expected more than 0"),
        ({"truncation_mode": "middle"}, "truncation_mode is 'middle'"),
        ({"max_length": 1}, "max_length is 1, expected at least 2"),
        ({"precompute_ref_batch_size": 0}, "precompute_ref_batch_size is 0, expected at least 1"),
        ({"unpadded": False, "padding_free": True}, "unpadded=False and padding_free=True contradict"),
        ({"fp16": True}, "fp16 is True, which needs loss scaling"),
    ],
    ids=str,
)
def test_values_that_cannot_be_meant(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        DPOConfig(str(tmp_path), use_cpu=True, **options)


def test_every_field_has_help():
    own = own_fields(DPOConfig)
    assert all(item.metadata.get("help") for item in dataclasses.fields(DPOConfig) if item.name in own)
