"""Completions of held-out prompts, and what the rewards say of them."""

from __future__ import annotations

from typing import Any

from torch.utils.data import DataLoader

from fastrlhf.grpo.advantages import total_rewards
from fastrlhf.grpo.measures import Pending, length_measures


class EvaluatesGroups:
    """The part of a trainer that completes prompts of `eval_dataset` and scores the completions."""

    def get_eval_dataloader(self, eval_dataset: Any = None) -> DataLoader | None:
        """Batches of prompts of `eval_dataset`, in its order; None without one."""
        dataset = self.eval_dataset if eval_dataset is None else eval_dataset
        if dataset is None:
            return None
        copies = self.args.num_generations_eval or self.plan.num_generations
        prompts = max(1, self.args.per_device_eval_batch_size // copies)
        return DataLoader(dataset, batch_size=prompts, collate_fn=self.data_collator)

    def show_completions_when_due(self) -> None:
        """Evaluate where it is due."""
        if self.control.should_evaluate:
            self.evaluate()

    def evaluate(self, eval_dataset: Any = None, ignore_keys: Any = None, metric_key_prefix: str = "eval"):
        """Rewards and lengths of completions of the whole `eval_dataset`, logged as `eval_reward` and so on."""
        dataset = self.eval_dataset if eval_dataset is None else eval_dataset
        if isinstance(dataset, dict):
            found = {}
            for key, part in dataset.items():
                found |= self.evaluate(part, ignore_keys, f"{metric_key_prefix}_{key}")
            return found
        loader = self.get_eval_dataloader(dataset)
        if loader is None:
            return {}
        copies, gathered = self.args.num_generations_eval or self.plan.num_generations, Pending()
        for batch in loader:
            rollout = self.rollout(batch, copies=copies)
            scored = self.score(rollout)
            total = total_rewards(scored.rewards, self.scorer.weights)
            gathered.add(length_measures(rollout, scored.truncated))
            gathered.add(scored.completed.said())
            gathered.add(self._reward_measures(scored, total, copies))
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in gathered.flush().items()}
        self.log(dict(metrics))
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics
