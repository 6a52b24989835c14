"""Checkpoints of trainers on transformers' loop: whole or not there, and checked before anything is loaded."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerState
from transformers.trainer_callback import ExportableState
from transformers.trainer_utils import SaveStrategy

from fastrlhf.kernels import products
from fastrlhf.trainers.checkpoint import CheckpointError, find_checkpoint, save_checkpoint

TRAINER_STATE, PRODUCTS, PROGRESS = "trainer_state.json", "products.pt", "progress.json"


class SavesWhole:
    """The part of a trainer that writes checkpoints and reads them.

    What is in one is transformers' own (`from_pretrained` loads the model, or the adapter), and beside it the products
    that were chosen for this machine, so that a resumed run computes the same bits, and what must not differ.
    """

    _save_failed = False

    def take_up(self, asked: str | Path | bool) -> Path:
        """The checkpoint to resume from, whole and of a run like this one; its counters and products are taken up.

        Raises:
            CheckpointError: there is none, or it is of another seed, batch or dataset.
        """
        path = find_checkpoint(Path(self.args.output_dir), asked, self.checkpoint_name)
        progress = json.loads((path / PROGRESS).read_text())
        for name, here in self._must_match().items():
            there = progress["must_match"].get(name)
            if there != here:
                raise CheckpointError(
                    f"{path} was written with {name}={there}, and this run has {name}={here}: set it back to "
                    "resume, or train without resume_from_checkpoint"
                )
        if not (path / "optimizer.pt").is_file():
            raise CheckpointError(f"{path} was written with save_only_model=True: it cannot be resumed from")
        products.import_table(torch.load(path / PRODUCTS, weights_only=True))
        for name, value in progress["counters"].items():
            setattr(self, name, value)
        return path

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """transformers' hook. A checkpoint that fails in the middle of a run is tried again after the next step."""
        run_dir, step = Path(self._get_output_dir(trial)), self.state.global_step
        self.store_flos()
        best = self.state.best_global_step
        spared = run_dir / f"checkpoint-{best}" if best else None
        if self.args.save_strategy != SaveStrategy.NO and best and (best == step or spared.is_dir()):
            self.state.best_model_checkpoint = str(spared)
        try:
            path = save_checkpoint(
                run_dir,
                step,
                self._write_state,
                self.args.save_total_limit,
                trainer=self.checkpoint_name,
                spared=spared,
            )
        except CheckpointError as error:
            if self._save_failed:
                raise
            self._save_failed = True
            warnings.warn(f"{error}; training goes on, and the next step tries again", stacklevel=2)
            return
        self._save_failed = False
        if self.args.push_to_hub:
            self._push_from_checkpoint(str(path))

    def _is_saved(self) -> bool:
        return (Path(self.args.output_dir) / f"checkpoint-{self.state.global_step}").is_dir()

    def _save_required(self) -> None:
        """Write a checkpoint at the end of a run, which nothing can try again after."""
        self._save_failed = True
        self._save_checkpoint(self.model, None)

    def _write_state(self, folder: Path) -> None:
        self.save_model(str(folder), _internal_call=True)
        if not self.args.save_only_model:
            self._save_optimizer_and_scheduler(str(folder))
            self._save_rng_state(str(folder))
        callbacks = [*self.callback_handler.callbacks, self.control]
        self.state.stateful_callbacks = TrainerState(
            stateful_callbacks=[callback for callback in callbacks if isinstance(callback, ExportableState)]
        ).stateful_callbacks
        self.state.save_to_json(str(folder / TRAINER_STATE))
        torch.save(products.export_table(), folder / PRODUCTS)
        progress = {
            "must_match": self._must_match(),
            "counters": {name: getattr(self, name) for name in self.counters},
        }
        (folder / PROGRESS).write_text(json.dumps(progress, indent=1))

    def _must_match(self) -> dict[str, Any]:
        """What must not differ where a run goes on."""
        args = self.args
        return {
            "seed": args.seed,
            "data_seed": args.data_seed,
            "per_device_train_batch_size": args.per_device_train_batch_size,
            "gradient_accumulation_steps": args.gradient_accumulation_steps,
            "rows": len(self.train_dataset),
        }
