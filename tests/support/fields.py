"""Shows that every field of a trainer's configuration matters: it changes something, or is refused."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset

from fastrlhf.data.validate import DataError
from fastrlhf.kernels import packed
from fastrlhf.models.backbone import is_accelerated
from fastrlhf.trainers.config import TrainerConfig
from tests.support.sft import losses
from tests.support.tiny import EOS

Check = Callable[[Path, str], bool]


def own_fields(config: type) -> set[str]:
    """The fields that TRL or fastrlhf adds to transformers'."""
    return {
        item.name
        for one in (TrainerConfig, config)
        for item in dataclasses.fields(one)
        if item.name in one.__annotations__
    }


def first_batch(trainer: Any) -> dict[str, Any]:
    """The first batch of training."""
    return next(iter(trainer.get_train_dataloader()))


class Fields:
    """Ways to show it, for one kind of trainer: each gives a check of a folder and a field's name.

    Args:
        make: makes a tiny trainer of an output folder and options.
        bad_row: a row that cannot be used.
        wrong: the field and the fault that its message names.
    """

    def __init__(self, make: Callable[..., Any], bad_row: dict[str, Any], wrong: str):
        self.make, self.bad_row, self.wrong = make, bad_row, wrong

    def changes_rows(self, value: Any, **others: Any) -> Check:
        """The option changes the rows that are trained on."""

        def rows(folder: Path, **options: Any) -> list[dict]:
            return self.make(folder, **options).train_dataset.to_list()

        return lambda folder, name: rows(folder, **others) != rows(folder, **others, **{name: value})

    def changes_losses(self, value: Any, **others: Any) -> Check:
        """The option changes the losses of two steps, or of as many as `others` says."""

        def first(folder: Path, **options: Any) -> list[float]:
            trainer = self.make(folder, **({"max_steps": 2} | options))
            trainer.train()
            return losses(trainer)

        return lambda folder, name: first(folder, **others) != first(folder, **others, **{name: value})

    def sets(self, value: Any, expected: Any, look: Callable[[Any], Any], **others: Any) -> Check:
        """The option ends up where `look` finds it in a trainer."""
        return lambda folder, name: look(self.make(folder, **others, **{name: value})) == expected

    def raises(self, value: Any, message: str, **others: Any) -> Check:
        """The option's value is refused with a reason."""

        def check(folder: Path, name: str) -> bool:
            with pytest.raises(ValueError, match=message):
                self.make(folder, **others, **{name: value})
            return True

        return check

    def of_every_trainer(self) -> dict[str, Check]:
        """How the fields that all trainers have are shown."""
        return {
            "learning_rate": self.changes_losses(1e-1),
            "logging_steps": self._logs_every,
            "gradient_checkpointing": self._recomputes,
            "bf16": self._computes_in_float32_on_a_cpu,
            "model_init_kwargs": self.raises(
                {"dtype": "float32"}, "model_init_kwargs is set and model is loaded"
            ),
            "trust_remote_code": self.sets(True, True, lambda trainer: trainer.args.trust_remote_code),
            "dataset_num_proc": self._counts_processes,
            "pad_to_multiple_of": self.sets(
                64, 0, lambda trainer: first_batch(trainer)["input_ids"].shape[1] % 64
            ),
            "pad_token": self.sets("<unk>", EOS + 2, lambda trainer: trainer.model.config.pad_token_id),
            "activation_offloading": self.raises(
                True, "activation_offloading is True, which is not supported"
            ),
            "accelerate": self.sets(False, False, lambda trainer: is_accelerated(trainer.model)),
            "unpadded": self.sets(False, False, lambda trainer: "lengths" in first_batch(trainer)),
            "packed_weight_bytes": self._packs_weights,
            "on_bad_rows": self._leaves_rows_out,
            "keep_last": self.sets(2, 2, lambda trainer: trainer.args.save_total_limit),
            "max_skipped_updates": self.raises(0, "max_skipped_updates is 0, expected at least 1"),
        }

    def _logs_every(self, folder: Path, name: str) -> bool:
        trainer = self.make(folder, max_steps=4, **{name: 2})
        trainer.train()
        return len(losses(trainer)) == 2

    def _recomputes(self, folder: Path, name: str) -> bool:
        trainer = self.make(folder, max_steps=1, **{name: True})
        trainer.train()
        return trainer.model.model.layers[0].gradient_checkpointing

    def _computes_in_float32_on_a_cpu(self, folder: Path, name: str) -> bool:
        with pytest.warns(UserWarning, match="bf16=True on a CPU computes in float32"):
            return self.make(folder, **{name: None}).args.bf16 is False

    def _counts_processes(self, folder: Path, name: str) -> bool:
        seen, real = [], Dataset.map

        def watched(dataset, *arguments, **options):
            seen.append(options.get("num_proc"))
            return real(dataset, *arguments, **options | {"num_proc": None})

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Dataset, "map", watched)
            self.make(folder, **{name: 2})
        return seen == [2]

    def _packs_weights(self, folder: Path, name: str) -> bool:
        self.make(folder, **{name: "3MB"})
        limited = packed._limit == 3_000_000
        self.make(folder)
        with pytest.raises(ValueError, match="packed_weight_bytes"):
            self.make(folder, **{name: "much"})
        return limited and packed._limit == 0

    def _leaves_rows_out(self, folder: Path, name: str) -> bool:
        rows = [*self.make(folder).train_dataset.select(range(4)).to_list(), self.bad_row]
        with pytest.raises(DataError, match=f"row 4 of train_dataset, {self.wrong}"):
            self.make(folder, train_dataset=rows)
        with pytest.warns(UserWarning, match="1 of 5 rows of train_dataset are left out"):
            return len(self.make(folder, train_dataset=rows, **{name: "skip"}).train_dataset) == 4
