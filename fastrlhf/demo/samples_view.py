"""Completions before and after training, side by side in a terminal."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich.box import ROUNDED
from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from fastrlhf.demo.literal import literal
from fastrlhf.report.units import finite

# Below this width three columns would hold a word or two each.
_THREE_COLUMNS = 90


def samples_view(samples: Sequence[Mapping[str, Any]], console: Console) -> Table:
    """A table of prompts and of their completions before and after training, with the rewards where known.

    The reward after training is green where it is higher than before and red where it is lower. On a narrow
    terminal the prompt stands above its two completions.

    Args:
        samples: mappings with ``prompt``, ``before``, ``after`` and, if known, ``reward_before`` and
            ``reward_after``.
        console: where the table will be printed.
    """
    table = Table(box=ROUNDED, show_lines=True, expand=True, border_style="bright_black")
    if console.width >= _THREE_COLUMNS:
        for heading, ratio in (("Prompt", 3), ("Before training", 4), ("After training", 4)):
            table.add_column(heading, ratio=ratio, overflow="fold")
        for sample in samples:
            table.add_row(_prompt(sample, console), *_completions(sample, console))
        return table
    heading = Table.grid(padding=(0, 2, 0, 0), expand=True)
    _two_columns(heading).add_row("Before training", "After training")
    table.add_column(heading)
    for sample in samples:
        pair = Table.grid(padding=(0, 2, 0, 0), expand=True)
        _two_columns(pair).add_row(*_completions(sample, console))
        table.add_row(Group(_prompt(sample, console), pair))
    return table


def _two_columns(grid: Table) -> Table:
    for _ in range(2):
        grid.add_column(ratio=1, overflow="fold")
    return grid


def _prompt(sample: Mapping[str, Any], console: Console) -> Text:
    return literal(sample.get("prompt", ""), console, style="bright_blue")


def _completions(sample: Mapping[str, Any], console: Console) -> tuple[Text, Text]:
    before, after = finite(sample.get("reward_before")), finite(sample.get("reward_after"))
    style = "bold"
    if before is not None and after is not None and before != after:
        style = "bold green" if after > before else "bold red"
    return (
        _completion(sample.get("before", ""), before, "bold yellow", console),
        _completion(sample.get("after", ""), after, style, console),
    )


def _completion(text: str, reward: float | None, style: str, console: Console) -> Text:
    shown = Text()
    if reward is not None:
        shown.append(f"reward {reward:.2f}\n", style=style)
    # The space that most completions start with would only look like a crooked margin.
    return shown.append_text(literal(str(text).strip(), console))
