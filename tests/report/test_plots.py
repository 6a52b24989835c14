"""The pictures: the right ones, of the right size, with the right lines in them."""

import sys

import numpy as np
import pytest

pytest.importorskip("matplotlib")

from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from PIL import Image

from fastrlhf.report.panels import draw_panel
from fastrlhf.report.plots import PLOTS, draw_plots
from fastrlhf.report.series import running_mean
from fastrlhf.report.theme import DARK, LIGHT

NAMES = [plot.name for plot in PLOTS]
PANELS = {plot.name: plot.panels for plot in PLOTS}


def drawn(name, rows, summary=None):
    """The axes of a plot's first panel."""
    axes = Figure().subplots()
    draw_panel(axes, PANELS[name][0], rows, summary or {}, LIGHT)
    return axes


def pixels(path):
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


@pytest.fixture(scope="module")
def files(rows, summary, tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        # Importing pyplot raises now: nothing of its global state can be in use.
        patch.setitem(sys.modules, "matplotlib.pyplot", None)
        return draw_plots(rows, tmp_path_factory.mktemp("run") / "plots", summary=summary)


def test_every_plot_is_drawn_when_everything_was_measured(files):
    assert list(files) == [*NAMES, "overview"]
    assert all(path.name == f"{name}.png" and path.is_file() for name, path in files.items())


@pytest.mark.parametrize("name", [*NAMES, "overview"])
def test_pictures_have_their_size_and_something_in_them(files, name):
    picture = pixels(files[name])
    assert picture.shape == ((1104, 2080, 3) if name == "overview" else (576, 1024, 3))
    assert to_hex(picture[0, 0] / 255) == LIGHT.paper
    line = np.array([int(LIGHT.lines[0][place : place + 2], 16) for place in (1, 3, 5)])
    assert (picture == line).all(axis=-1).sum() > 500
    # Lines and letters reach into every half.
    ink = (picture < 200).any(axis=-1)
    halves = [*np.array_split(ink, 2), *np.array_split(ink, 2, axis=1)]
    assert all(half.mean() > 0.002 for half in halves)


def test_the_same_run_gives_the_same_bytes(files, rows, summary, tmp_path):
    kl = [{"step": row["step"], "objective/kl": row["objective/kl"]} for row in rows]
    first = draw_plots(kl, tmp_path / "a", summary=summary)["kl"].read_bytes()
    assert draw_plots(kl, tmp_path / "b", summary=summary)["kl"].read_bytes() == first
    assert files["kl"].read_bytes() == first


def test_dark_pictures_are_light_on_dark(rows, tmp_path):
    kl = [{"step": row["step"], "objective/kl": row["objective/kl"]} for row in rows]
    picture = pixels(draw_plots(kl, tmp_path, dark=True)["kl"])
    assert to_hex(picture[0, 0] / 255) == DARK.paper
    assert np.median(picture) < 40


@pytest.mark.parametrize("rows", [[], [{}], [{"step": 1, "objective/kl": None, "lr": 1.0}]], ids=repr)
def test_nothing_measured_draws_nothing(rows, tmp_path):
    assert draw_plots(rows, tmp_path / "plots") == {}
    assert list((tmp_path / "plots").iterdir()) == []


def test_a_metric_that_was_not_measured_is_left_out(tmp_path):
    rows = [{"step": step, "objective/kl": 0.1 * step, "objective/scores": float("nan")} for step in range(9)]
    files = draw_plots(rows, tmp_path)
    assert list(files) == ["kl", "overview"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["kl.png", "overview.png"]


def test_one_of_two_losses_is_drawn_alone(tmp_path):
    files = draw_plots([{"step": 1, "loss/value_avg": 0.5}, {"step": 2, "loss/value_avg": 0.4}], tmp_path)
    assert list(files) == ["losses", "overview"]


def test_a_single_step_is_a_visible_dot_or_a_bar_among_space(rows, summary):
    axes = drawn("kl", rows[:1], summary)
    assert axes.get_lines()[0].get_marker() == "o"
    assert axes.get_ylim()[1] > 8.5
    axes = drawn("time", rows[:1])
    assert axes.containers[0][0].get_width() < 0.3 * np.ptp(axes.get_xlim())
    assert list(axes.get_xticks()) == [1]


def test_reference_lines_below_and_above_the_curve_are_in_the_picture():
    rows = [{"step": step, "objective/scores": 0.5 + step / 100} for step in range(9)]
    low, high = drawn("reward", rows, {"before": {"reward": -3.0}, "after": {"reward": 2.0}}).get_ylim()
    assert low < -3.0
    assert high > 2.2


def test_the_running_mean_lies_over_the_faint_line_of_every_step(rows):
    each, mean = drawn("reward", rows).get_lines()
    values = np.array([row["objective/scores"] for row in rows])
    np.testing.assert_allclose(each.get_ydata(), values)
    np.testing.assert_allclose(mean.get_ydata(), running_mean(values, 3))
    assert each.get_alpha() < 0.5
    assert mean.get_label() == "mean of 3 steps"


def references(axes):
    """Height of each dashed line across the axes."""
    return [line.get_ydata()[0] for line in axes.get_lines() if line.get_linestyle() == "--"]


def labels(axes):
    return [text.get_text() for text in axes.texts]


def test_reference_lines_stand_where_the_summary_says(rows, summary):
    reward, judge, kl = (drawn(name, rows, summary) for name in ("reward", "judge", "kl"))
    assert references(reward) == [0.15, 0.56]
    assert labels(reward) == ["before training 0.15", "after training 0.56"]
    assert labels(judge) == ["before training 41 %", "after training 84 %"]
    assert references(kl) == [8.0]
    assert labels(kl) == ["limit 8 nats"]
    assert kl.get_ylim()[1] > 8.5


@pytest.mark.parametrize(
    "summary", [{}, {"before": None}, {"before": {"reward": None}, "after": {}}], ids=repr
)
def test_no_reference_line_without_a_value(rows, summary):
    assert references(drawn("reward", rows, summary)) == []
    assert references(drawn("kl", rows, summary)) == []


@pytest.mark.parametrize("plot", PLOTS, ids=lambda plot: plot.name)
def test_axes_are_labelled_with_units(plot, rows):
    axes = drawn(plot.name, rows)
    assert axes.get_xlabel() == "step"
    assert axes.get_ylabel() == plot.panels[0].unit != ""
    assert axes.get_title(loc="left").startswith(plot.panels[0].title)
    assert axes.get_legend() is not None


def test_bars_stack_the_phases_of_a_step(rows):
    axes = drawn("time", rows)
    tops = {}
    for bars in axes.containers:
        tops[bars.get_label()] = bars[0].get_y() + bars[0].get_height()
    assert tops == pytest.approx({"rollout": 2.0, "reward": 2.2, "evaluate": 2.7, "update": 4.5})
    assert len(axes.containers[0]) == len(rows)


def test_many_steps_share_bars_that_keep_the_mean():
    rows = [{"step": step, "time/rollout": 1.0, "time/update": float(step % 2)} for step in range(1, 1201)]
    axes = drawn("time", rows)
    assert len(axes.containers[0]) == 60
    assert axes.get_title(loc="left") == "Time per phase (mean of 20 steps)"
    assert axes.containers[1][0].get_height() == pytest.approx(0.5)


def test_sizes_start_at_zero_and_negative_values_stay_in_the_picture(rows):
    assert drawn("memory", rows).get_ylim()[0] == 0
    dipping = [{"step": step, "objective/kl": step / 4 - 0.5} for step in range(10)]
    assert drawn("kl", dipping).get_ylim()[0] < -0.5


def test_without_matplotlib_the_error_names_the_mend(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match=r"pip install fastrlhf\[report\]"):
        draw_plots([], tmp_path)
