"""Completions with their rewards and advantages, shown in the terminal and written to a file at each log."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from fastrlhf.grpo.experience import GroupExperience


class CompletionLog:
    """Keeps the completions since the last log.

    Args:
        names: of the rewards.
        most: how many are printed; all if None.
        unique_prompts: log one completion of each prompt alone.
    """

    def __init__(self, names: list[str], most: int | None, unique_prompts: bool):
        self.names, self.most, self.unique_prompts = names, most, unique_prompts
        self.rows: list[dict[str, Any]] = []

    def add(self, experience: GroupExperience) -> None:
        """Keep a rollout's."""
        completed, seen = experience.scored.completed, set()
        rewards, advantages = experience.scored.rewards.tolist(), experience.advantages.tolist()
        for row, (prompt, completion) in enumerate(
            zip(completed.prompts, completed.completions, strict=True)
        ):
            if self.unique_prompts and str(prompt) in seen:
                continue
            seen.add(str(prompt))
            extra = {
                column: values[row] if row < len(values) else None
                for column, values in completed.extra.items()
            }
            of_row = dict(zip(self.names, rewards[row], strict=True))
            self.rows.append(
                {"prompt": prompt, "completion": completion, **of_row, **extra, "advantage": advantages[row]}
            )

    def write(self, folder: Path, step: int, report_to: list[str]) -> None:
        """Print some, write all to `folder/completions_<step>.parquet`, and send them to Weights & Biases."""
        import pandas

        rows, self.rows = [{"step": step, **row} for row in self.rows], []
        if not rows:
            return
        columns = list(rows[0])
        table = Table(*columns[1:], show_lines=True, title=f"step {step}")
        for row in rows[: self.most]:
            table.add_row(*(Text(_shown(row[column])) for column in columns[1:]))
        Console().print(table)
        folder.mkdir(parents=True, exist_ok=True)
        frame = pandas.DataFrame(rows)
        frame.to_parquet(folder / f"completions_{step:05d}.parquet")
        if "wandb" in report_to and importlib.util.find_spec("wandb"):
            import wandb

            if wandb.run is not None:
                wandb.log({"completions": wandb.Table(dataframe=frame)})


def _shown(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.3f}"
    if isinstance(value, list):
        return "\n".join(f"{message['role']}: {message['content']}" for message in value)
    return str(value)
