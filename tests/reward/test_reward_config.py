"""Every option changes what is computed, or is refused: a table of all fields."""

from __future__ import annotations

import dataclasses

import pytest

from fastrlhf import RewardConfig
from tests.support.fields import Fields, own_fields
from tests.support.preferences import conversations, reward_trainer
from tests.support.sft import TURNS
from tests.support.tiny import tiny_gpt2_classifier

FIELDS = Fields(reward_trainer, {"chosen_ids": [], "rejected_ids": [1]}, "field 'chosen_ids': is empty")


def leaves_dropout(folder, name):
    model, other = tiny_gpt2_classifier(), tiny_gpt2_classifier()
    probability = reward_trainer(folder, model=model, **{name: False}).model.transformer.drop.p
    return probability > 0 == reward_trainer(folder, model=other).model.transformer.drop.p


def reads_a_template(folder, name):
    path = folder / "template.jinja"
    path.write_text(TURNS + "t9")
    trainer = reward_trainer(folder, train_dataset=conversations(), **{name: str(path)})
    return trainer.train_dataset[0]["chosen_ids"][-1] == 9


SHOWN = FIELDS.of_every_trainer() | {
    "chat_template_path": reads_a_template,
    "disable_dropout": leaves_dropout,
    "eos_token": FIELDS.changes_rows("<unk>"),
    "max_length": FIELDS.changes_rows(12),
    "center_rewards_coefficient": FIELDS.changes_losses(0.1),
}


def test_the_table_has_every_field():
    assert SHOWN.keys() == own_fields(RewardConfig)


@pytest.mark.parametrize("name", SHOWN)
def test_each_field_changes_something_or_is_refused(tmp_path, name):
    assert SHOWN[name](tmp_path, name)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"center_rewards_coefficient": -0.1}, r"center_rewards_coefficient is -0\.1, expected at least 0"),
        ({"max_length": 1}, "max_length is 1, expected at least 2"),
        ({"pad_to_multiple_of": 0}, "pad_to_multiple_of is 0, expected at least 1"),
        ({"use_liger_kernel": True}, "use_liger_kernel is True, which replaces the operations"),
    ],
    ids=str,
)
def test_values_that_cannot_be_meant(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        RewardConfig(str(tmp_path), use_cpu=True, **options)


def test_every_field_has_help():
    own = own_fields(RewardConfig)
    assert all(item.metadata.get("help") for item in dataclasses.fields(RewardConfig) if item.name in own)
