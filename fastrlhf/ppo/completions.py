"""Completions of held-out prompts, scored, and shown in the terminal and in experiment trackers."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from rich.text import Text
from torch.utils.data import DataLoader

SHOWN = 5


@dataclass
class Completions:
    """Prompts, their completions and the completions' scores, one list each."""

    prompts: list[str]
    completions: list[str]
    scores: list[float]

    def extend(self, prompts: list[str], completions: list[str], scores: list[float]) -> None:
        """Add a batch."""
        self.prompts += prompts
        self.completions += completions
        self.scores += scores

    def rows(self) -> list[tuple[str, str, float]]:
        """One row a completion."""
        return list(zip(self.prompts, self.completions, self.scores, strict=True))


def show_completions(found: Completions, report_to: list[str]) -> None:
    """Print the first few as a table, and send all to Weights & Biases where a run is open."""
    table = Table("query", "model response", "score", show_lines=True)
    for prompt, completion, score in found.rows()[:SHOWN]:
        table.add_row(Text(prompt), Text(completion), f"{score:.3f}")
    Console().print(table)
    if "wandb" in report_to and importlib.util.find_spec("wandb"):
        import wandb

        if wandb.run is not None:
            columns = ["query", "model response", "score"]
            wandb.log({"completions": wandb.Table(columns=columns, data=[list(row) for row in found.rows()])})


class ShowsCompletions:
    """The part of a trainer that completes prompts of `eval_dataset`, scores and shows them."""

    def get_eval_dataloader(self, eval_dataset: Any = None) -> DataLoader | None:
        """Batches of `eval_dataset` in its order; None without one. A dict of datasets is read one after the other."""
        dataset = self.eval_dataset if eval_dataset is None else eval_dataset
        if dataset is None:
            return None
        if isinstance(dataset, dict):
            dataset = torch.utils.data.ConcatDataset(list(dataset.values()))
        return DataLoader(
            dataset, batch_size=self.args.per_device_eval_batch_size, collate_fn=self.data_collator
        )

    def show_completions_when_due(self) -> None:
        """Evaluate, or show some completions, where it is due."""
        args = self.args
        if self.control.should_evaluate:
            self.evaluate()
        elif self.eval_dataset is not None and args.num_sample_generations > 0:
            every = max(1, args.num_total_batches // args.num_sample_generations)
            if (self.state.global_step - 1) % every == 0:
                self.generate_completions(sampling=True)

    def generate_completions(self, sampling: bool = False) -> Completions | None:
        """Show completions of `eval_dataset`, nearly greedy, with their scores; None without one.

        Args:
            sampling: stop after the first batch.
        """
        loader = self.get_eval_dataloader()
        if loader is None:
            return None
        found = Completions([], [], [])
        for batch in loader:
            rollout = self.rollout(
                batch, lambda ids, mask: self._generate(ids, mask, temperature=0.01), copies=1
            )
            scores = self.scorer(rollout, self.args.local_rollout_forward_batch_size).tolist()
            found.extend(*self.scorer.decode(rollout), scores)
            if sampling:
                break
        if self.is_world_process_zero():
            show_completions(found, self.args.report_to)
        return found

    def evaluate(self, *_, **__) -> dict[str, float]:
        """Mean score of completions of the whole `eval_dataset`, logged as `eval/scores`."""
        found = self.generate_completions()
        metrics = {} if found is None else {"eval/scores": sum(found.scores) / len(found.scores)}
        if metrics:
            self.log(dict(metrics))
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics
