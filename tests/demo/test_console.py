"""The display of a run: a live bar in a terminal, plain lines elsewhere, and text that has no effect."""

import io
import re
import sys

import pytest
from rich.cells import cell_len
from rich.console import Console

from fastrlhf.demo import console as module
from fastrlhf.demo.console import TrainingDisplay, sparkline

METRICS = {
    "objective/scores": 0.15,
    "judge/positive_rate": 0.41,
    "objective/kl": 3.21,
    "tokens_per_second": 412.3,
}
LATER = METRICS | {"objective/scores": 0.52, "judge/positive_rate": 0.83, "objective/kl": 5.0}
HOSTILE = "[bold]not bold[/bold] [/red] :smile: \x1b[2J\x9b2J\x07 \ud800 \u202e"
SHOWN = "[bold]not bold[/bold] [/red] :smile: ␛[2J\ufffd2J␇ \ufffd \ufffd"
SAMPLES = [
    {
        "prompt": "I watched this film and",
        "before": " it was slow. " + HOSTILE,
        "after": " it was a joy, start to end. 🎬 漢字" * 3,
        "reward_before": -0.42,
        "reward_after": 0.93,
    },
    {"prompt": "[link]", "before": "fine", "after": "poor", "reward_before": 0.6, "reward_after": 0.5},
    {"prompt": "unscored", "before": "x" * 300, "after": ""},
]
WIDTHS = (20, 60, 100, 160)


class Terminal(io.StringIO):
    def isatty(self):
        return True


def terminal(width=100, **options):
    return Console(file=Terminal(), force_terminal=True, width=width, height=30, _environ={}, **options)


def log(width=80, file=None):
    return Console(file=file or io.StringIO(), width=width, _environ={})


def footer(display, width):
    """The lines that the display keeps at the foot of a terminal of this width."""
    console = display.console
    options = console.options.update(width=width)
    return [
        "".join(part.text for part in line).rstrip()
        for line in console.render_lines(display, options, pad=False)
    ]


@pytest.fixture
def clock(monkeypatch):
    """A clock that the test turns."""

    class Clock:
        now = 1000.0

    monkeypatch.setattr(module.time, "monotonic", lambda: Clock.now)
    return Clock


def test_a_log_gets_one_plain_line_per_step(clock):
    console = log()
    with TrainingDisplay(3, console=console) as display:
        for step, metrics in ((1, METRICS), (2, LATER), (3, LATER)):
            display.phase("rollout")
            display.phase("update")
            clock.now += 30
            display.step(step, metrics)
    assert console.file.getvalue().splitlines() == [
        "PPO step 1/3  reward 0.15  judge 41 %  KL 3.21 nats  412 tokens/s  1:00 left",
        "PPO step 2/3  reward 0.15 → 0.52  judge 41 % → 83 %  KL 5.00 nats  412 tokens/s  0:30 left",
        "PPO step 3/3  reward 0.15 → 0.52  judge 41 % → 83 %  KL 5.00 nats  412 tokens/s  1:30 in all",
    ]


def test_a_file_is_no_terminal_even_if_colours_are_forced():
    console = Console(file=io.StringIO(), width=80, _environ={"FORCE_COLOR": "1"})
    assert console.is_terminal
    with TrainingDisplay(1, console=console) as display:
        display.step(1, METRICS)
    assert re.fullmatch(r"PPO step 1/1 .* 0:00 in all\n", console.file.getvalue())


def test_a_dumb_terminal_gets_plain_lines():
    console = Console(file=Terminal(), force_terminal=True, width=80, _environ={"TERM": "dumb"})
    with TrainingDisplay(1, console=console) as display:
        display.step(1, METRICS)
    assert "\x1b" not in console.file.getvalue()
    assert console.file.getvalue().startswith("PPO step 1/1")


def test_a_terminal_gets_a_bar_that_is_redrawn_and_ends_below_it():
    console = terminal()
    with TrainingDisplay(2, console=console) as display:
        display.step(1, METRICS)
        display.note("half way")
        display.step(2, LATER)
    output = console.file.getvalue()
    assert "\x1b[?25l" in output
    assert "\x1b[?25h" in output
    assert "half way" in output
    assert "PPO step" not in output
    assert "━" in output
    last = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", output[output.rindex("2/2") :])
    assert "done" in last
    assert "reward 0.15 → 0.52" in last


def test_the_cursor_comes_back_when_the_run_fails():
    console = terminal()
    display = TrainingDisplay(2, console=console)
    with pytest.raises(RuntimeError, match="out of memory"), display:
        display.step(1, METRICS)
        raise RuntimeError("out of memory")
    assert console.file.getvalue().rstrip().endswith("\x1b[?25h")
    assert footer(display, 100)[1].startswith("stopped")


def test_the_footer_shows_progress_phase_trend_and_time(clock):
    display = TrainingDisplay(120, console=terminal())
    assert footer(display, 100)[0].endswith("0/120  0:00 elapsed")
    clock.now += 4
    display.step(1, METRICS)
    clock.now += 6
    display.step(2, LATER)
    display.phase("rollout")
    clock.now += 3
    bar, numbers = footer(display, 100)
    # Two steps took 10 s; 118 are left, 3 s into the third.
    assert bar.startswith("PPO  ━")
    assert bar.endswith("2/120  9:47 left")
    assert (
        numbers[2:] == "rollout 3 s     reward 0.15 → 0.52   judge 41 % → 83 %   KL 5.00 nats   412 tokens/s"
    )


def test_a_resumed_run_starts_where_it_stopped_and_tells_time_from_its_own_steps(clock):
    display = TrainingDisplay(100, start_step=90, console=terminal())
    assert "90/100" in footer(display, 100)[0]
    clock.now += 2
    display.step(91, METRICS)
    assert footer(display, 100)[0].endswith("91/100  0:18 left")


def test_time_left_follows_a_run_that_slows_down(clock):
    display = TrainingDisplay(141, console=terminal())
    for step in range(1, 141):
        clock.now += 1 if step <= 100 else 60
        display.step(step, METRICS)
    assert footer(display, 100)[0].endswith("140/141  1:00 left")


def test_numbers_keep_their_place_while_the_phase_changes():
    display = TrainingDisplay(2, console=terminal())
    display.step(1, METRICS)
    places = set()
    for phase in ("rollout", "evaluate", "saving"):
        display.phase(phase)
        places.add(footer(display, 100)[1].index("reward 0.15"))
    assert len(places) == 1


def test_missing_metrics_are_left_out_and_nan_is_shown():
    display = TrainingDisplay(9, console=terminal())
    display.step(1, {"objective/scores": float("nan"), "objective/kl": None, "lr": 1.0})
    assert footer(display, 100)[1].endswith("reward nan")
    display.step(2, METRICS)
    display.step(3, {"objective/scores": 0.52})
    assert footer(display, 160)[1].endswith("reward 0.15 → 0.52")
    display.step(4, {})
    assert footer(display, 160)[1][2:] == "starting 0 s"


def test_a_roomy_terminal_shows_the_curve_of_the_reward():
    display = TrainingDisplay(9, console=terminal())
    for step in range(1, 9):
        display.step(step, METRICS | {"objective/scores": step / 10})
    assert "reward 0.10 → 0.80   ▁▂▃▄▅▆▇█   judge" in footer(display, 160)[1]
    assert "▁" not in footer(display, 100)[1]


@pytest.mark.parametrize("width", WIDTHS)
def test_the_footer_fits_every_width(width):
    display = TrainingDisplay(100_000, title="a title that is quite long", console=terminal(width))
    for step in range(1, 30):
        display.step(step, LATER | {"objective/scores": -1234.5 * step, "tokens_per_second": 123456.7})
    display.phase("evaluating the reward model")
    lines = footer(display, width)
    assert max(map(cell_len, lines)) <= width
    assert len(lines) <= 6


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("make", [terminal, log])
def test_samples_stand_side_by_side_at_every_width(make, width):
    console = make(width)
    TrainingDisplay(1, console=console).samples_table(SAMPLES)
    output = re.sub(r"\x1b\[[0-9;]*m", "", console.file.getvalue())
    assert "\x1b" not in output
    assert {cell_len(line) for line in output.splitlines()} == {width}
    if width >= 60:
        assert any("reward -0.42" in line and "reward 0.93" in line for line in output.splitlines())
        assert any("Before training" in line and "After training" in line for line in output.splitlines())


@pytest.mark.parametrize("width", [60, 100])
def test_samples_are_literal(width):
    console = log(width)
    TrainingDisplay(1, console=console).samples_table([{"prompt": HOSTILE, "before": "b", "after": "a"}])
    characters = re.sub(r"[\s│╭╮╰╯─├┤┬┴┼]", "", console.file.getvalue())
    assert re.sub(r"\s", "", SHOWN[:21]) in characters
    assert "␛[2J\ufffd2J␇" in characters
    assert ":smile:" in characters
    assert "[/red]" in characters


def test_rewards_are_coloured_by_whether_they_rose():
    console = terminal(100, color_system="standard")
    TrainingDisplay(1, console=console).samples_table(SAMPLES)
    output = console.file.getvalue()
    assert "\x1b[1;32mreward 0.93" in output
    assert "\x1b[1;31mreward 0.50" in output
    assert "\x1b[1;33mreward 0.60" in output


@pytest.mark.parametrize("make", [terminal, log])
def test_notes_and_names_are_literal(make):
    console = make(160)
    with TrainingDisplay(2, title="[red]run", console=console) as display:
        display.note(HOSTILE)
        display.phase("[bold]phase")
        display.step(1, METRICS)
        lines = footer(display, 160)
    assert SHOWN in console.file.getvalue()
    assert lines[0].startswith("[red]run")
    assert "[bold]phase" in lines[1]


def test_a_long_note_is_one_line_of_a_log():
    console = log(40)
    with TrainingDisplay(1, console=console) as display:
        display.note("word " * 40)
    assert console.file.getvalue().count("\n") == 1


def test_a_terminal_that_cannot_encode_everything_gets_what_it_can():
    raw = io.BytesIO()
    console = log(60, io.TextIOWrapper(raw, encoding="latin-1", errors="strict", write_through=True))
    with TrainingDisplay(2, console=console) as display:
        display.note("ä 🎬")
        display.step(1, METRICS)
        display.step(2, LATER)
        display.samples_table(SAMPLES)
    output = raw.getvalue().decode("latin-1")
    assert output.startswith("ä ?\n")
    assert "reward 0.15 -> 0.52" in output


def test_stray_prints_do_not_tear_the_bar(monkeypatch):
    file = Terminal()
    monkeypatch.setattr(sys, "stdout", file)
    console = Console(force_terminal=True, width=100, height=30, _environ={})
    with TrainingDisplay(1, console=console) as display:
        print("a [bold]stray[/bold] print")
        display.step(1, METRICS)
    assert "a [bold]stray[/bold] print" in file.getvalue()
    assert sys.stdout is file


def test_the_number_of_steps_must_be_positive():
    with pytest.raises(ValueError, match="total_steps must be at least 1, got 0"):
        TrainingDisplay(0)


def test_sparkline_by_hand():
    assert sparkline([0.0, 1.0], 16) == "▁█"
    assert sparkline([3.0, 3.0], 16) == "▁▁"
    assert sparkline([0, 0, 7, 7, 3, 3], 3) == "▁█▄"
    assert len(sparkline(list(range(1001)), 16)) == 16
