"""Completions of held-out prompts, shown in the terminal and in experiment trackers."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass

from rich.console import Console
from rich.table import Table
from rich.text import Text

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
