"""What a terminal shows of a run: how far it is, what it is doing, and whether the reward rises."""

import time
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

from rich.console import Console, ConsoleOptions, RenderResult
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from fastrlhf.demo.literal import literal
from fastrlhf.demo.samples_view import samples_view
from fastrlhf.report.units import clock, finite, number, share

# Metric, label, how a value is written, and whether it is a score: shown with its start, green above it.
_SHOWN = (
    ("objective/scores", "reward ", number, True),
    ("judge/positive_rate", "judge ", share, True),
    ("objective/kl", "KL ", lambda value: f"{number(value)} nats", False),
    ("tokens_per_second", "", lambda value: f"{number(value)} tokens/s", False),
)
# Time left is told from this many steps: enough to be calm, few enough to follow a run that slows down.
_RECENT = 20
# Redraws per second; more would take time from a run on few cores.
_REFRESH = 4
_FRAMES = "⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏"
# The numbers stand still while the phase in front of them changes: "⠋ evaluate 12 s" has 15 cells.
_ACTIVITY_WIDTH = 15
_SPARKS = "▁▂▃▄▅▆▇█"
# The reward's curve is drawn where there is room for it, and once it has a shape.
_SPARKLINE_FROM_WIDTH, _SPARKLINE_FROM_STEPS, _SPARKLINE_LENGTH = 115, 4, 16


class TrainingDisplay:
    """A bar with the time left, the phase that is running and the numbers that matter, at a terminal's foot.

    Where the output is no interactive terminal (a file, a CI log) it writes one plain line per step instead.
    Text is shown as it is: markup, control codes and escape sequences in it have no effect.

    Use it as a context manager::

        with TrainingDisplay(config.total_steps) as display:
            for step in range(1, config.total_steps + 1):
                display.phase("rollout")
                ...
                display.step(step, metrics)

    Args:
        total_steps: how many steps the whole run has, at least 1.
        title: a word for the run, in front of the bar.
        start_step: the last step already done, for a resumed run.
        console: where to write; standard output by default.

    Raises:
        ValueError: if `total_steps` is below 1.
    """

    def __init__(
        self,
        total_steps: int,
        *,
        title: str = "PPO",
        start_step: int = 0,
        console: Console | None = None,
    ) -> None:
        if total_steps < 1:
            raise ValueError(f"total_steps must be at least 1, got {total_steps}.")
        self.total_steps = total_steps
        self.title = title
        self.console = console or Console()
        self._step = start_step
        self._first: dict[str, float] = {}
        self._last: dict[str, float] = {}
        self._rewards: list[float] = []
        self._live: Live | None = None
        self._start_clock()

    def __enter__(self) -> "TrainingDisplay":
        self._start_clock()
        # FORCE_COLOR makes rich call a file a terminal, but a bar that is redrawn in a file is only noise.
        if self.console.is_interactive and self.console.file.isatty():
            self._live = Live(self, console=self.console, refresh_per_second=_REFRESH)
            self._live.start()
        return self

    def __exit__(self, kind, error, traceback) -> None:
        self.phase("done" if error is None and self._step >= self.total_steps else "stopped")
        if self._live is not None:
            self._live.stop()
            self._live = None

    def phase(self, name: str) -> None:
        """Say what the run is doing now: "rollout", "reward", "evaluate", "update" or "saving"."""
        self._phase = name
        self._phase_started = time.monotonic()

    def step(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Show a finished step.

        Args:
            step: its number; the first one is 1.
            metrics: the row of the metrics file; of it, ``objective/scores``, ``judge/positive_rate``,
                ``objective/kl`` (nats) and ``tokens_per_second`` are shown, and what is missing is left out.
        """
        self._step = step
        self._ends = [*self._ends, time.monotonic()][-_RECENT - 1 :]
        # NaN is shown too: whoever watches should see that a metric stopped being a number.
        values = {name: metrics.get(name) for name, *_ in _SHOWN}
        self._last = {name: float(value) for name, value in values.items() if isinstance(value, int | float)}
        for name, value in self._last.items():
            if finite(value) is not None:
                self._first.setdefault(name, value)
        reward = finite(self._last.get("objective/scores"))
        if reward is not None:
            self._rewards.append(reward)
        if self._live is None:
            parts = [f"{self.title} step {step}/{self.total_steps}", *self._numbers(), self._times()]
            self._print("  ".join(str(part) for part in parts))

    def note(self, text: str) -> None:
        """Print a line that stays, above the bar."""
        self._print(text)

    def samples_table(self, samples: Sequence[Mapping[str, Any]]) -> None:
        """Print completions before and after training side by side, above the bar.

        Args:
            samples: mappings with ``prompt``, ``before``, ``after`` and, if known, ``reward_before`` and
                ``reward_after``.
        """
        self.console.print(samples_view(samples, self.console))

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """The lines at the foot of the terminal, at the width that it has now."""
        line = Table.grid(padding=(0, 2, 0, 0), pad_edge=False, expand=True)
        line.add_column(no_wrap=True, max_width=options.max_width // 3)
        line.add_column(ratio=1)
        line.add_column(no_wrap=True, justify="right")
        line.add_row(
            literal(self.title, console, style="bold"),
            ProgressBar(self.total_steps, self._step, style="bright_black", complete_style="cyan"),
            Text(f"{self._step}/{self.total_steps}  {self._times()}"),
        )
        yield line
        parts = [self._activity(options.ascii_only), *self._numbers()]
        roomy = options.max_width >= _SPARKLINE_FROM_WIDTH and not options.ascii_only
        if roomy and "objective/scores" in self._last and len(self._rewards) >= _SPARKLINE_FROM_STEPS:
            # Behind the reward, which stands behind the phase.
            parts.insert(2, Text(sparkline(self._rewards, _SPARKLINE_LENGTH), style="green"))
        yield from _packed(parts, options.max_width)

    def _start_clock(self) -> None:
        self._started = time.monotonic()
        self._ends = [self._started]
        self.phase("starting")

    def _print(self, text: str) -> None:
        # In a file a line stays one line, however long; a search should find all of it.
        self.console.print(literal(text, self.console), soft_wrap=self._live is None)

    def _activity(self, ascii_only: bool) -> Text:
        """What the run is doing, and for how long."""
        if self._phase in ("done", "stopped"):
            return Text(self._phase, style="bold green" if self._phase == "done" else "bold red")
        now = time.monotonic()
        mark = "*" if ascii_only else _FRAMES[int(now * _REFRESH) % len(_FRAMES)]
        phase = literal(self._phase, self.console, "cyan")
        activity = Text.assemble((mark, "cyan"), " ", phase, (f" {now - self._phase_started:.0f} s", "dim"))
        activity.pad_right(max(0, _ACTIVITY_WIDTH - activity.cell_len))
        return activity

    def _numbers(self) -> list[Text]:
        """The latest metrics, each with its label."""
        arrow = "->" if self.console.options.ascii_only else "→"
        numbers = []
        for name, label, show, is_score in _SHOWN:
            if name not in self._last:
                continue
            value = self._last[name]
            first = self._first.get(name, value) if is_score else value
            start = f"{show(first)} {arrow} " if show(first) != show(value) else ""
            style = "bold green" if value > first else "bold red" if value < first else "bold"
            numbers.append(Text.assemble((label, "dim"), (start, "dim"), (show(value), style)))
        return numbers

    def _times(self) -> str:
        """How long the run has taken and, from the recent steps, how long it will yet."""
        elapsed = clock(time.monotonic() - self._started)
        left = self.total_steps - self._step
        if left <= 0:
            return f"{elapsed} in all"
        if len(self._ends) < 2:
            return f"{elapsed} elapsed"
        per_step = (self._ends[-1] - self._ends[0]) / (len(self._ends) - 1)
        return f"{clock(left * per_step - (time.monotonic() - self._ends[-1]))} left"


def sparkline(values: Sequence[float], length: int) -> str:
    """A curve of block characters, from the lowest value to the highest.

    Args:
        values: finite, at least one.
        length: how many characters at most; each stands for the mean of a stretch of the values.
    """
    length = min(length, len(values))
    cuts = [index * len(values) // length for index in range(length + 1)]
    means = [sum(values[first:last]) / (last - first) for first, last in pairwise(cuts)]
    low, high = min(means), max(means)
    top = len(_SPARKS) - 1
    return "".join(_SPARKS[round(top * (mean - low) / (high - low)) if high > low else 0] for mean in means)


def _packed(parts: Sequence[Text], width: int) -> list[Text]:
    """The parts in as few lines of `width` cells as hold them, none of them broken over two lines."""
    lines: list[Text] = []
    for part in parts:
        if lines and lines[-1].cell_len + 3 + part.cell_len <= width:
            lines[-1].append("   ").append_text(part)
        else:
            part.truncate(width, overflow="ellipsis")
            lines.append(part)
    return lines
