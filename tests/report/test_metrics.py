"""The metrics file survives kills, resumption and numbers that JSON has no word for."""

import json
import os

import numpy as np
import pytest
import torch

from fastrlhf.report.metrics import MetricsWriter, read_metrics


@pytest.fixture
def path(tmp_path):
    return tmp_path / "run" / "metrics.jsonl"


def strict_lines(path):
    """Every line, read by a parser that takes JSON by the letter."""

    def refuse(name):
        raise AssertionError(f"{name} is not JSON")

    return [json.loads(line, parse_constant=refuse) for line in path.read_text().splitlines()]


def test_each_step_is_one_line_on_the_disk_when_write_returns(path):
    writer = MetricsWriter(path)
    writer.write(1, {"objective/kl": 0.5, "lr": 1e-5, "note": "line\nend \ud800"})
    assert path.read_text().endswith("\n")
    assert path.read_text().count("\n") == 1
    writer.write(2, {"objective/kl": 0.75})
    assert read_metrics(path) == [
        {"step": 1, "objective/kl": 0.5, "lr": 1e-5, "note": "line\nend \ud800"},
        {"step": 2, "objective/kl": 0.75},
    ]


def test_nothing_is_created_before_the_first_write(path):
    MetricsWriter(path)
    assert not path.parent.exists()


def test_the_step_argument_wins_over_a_step_among_the_metrics(path):
    MetricsWriter(path).write(3, {"step": 99, "lr": 1.0})
    assert read_metrics(path) == [{"step": 3, "lr": 1.0}]


@pytest.mark.parametrize(
    "value",
    [
        float("nan"),
        float("inf"),
        -float("inf"),
        np.float32("nan"),
        np.float64("inf"),
        torch.tensor(float("nan")),
        torch.tensor([float("inf")], dtype=torch.bfloat16),
    ],
    ids=repr,
)
def test_a_number_that_is_not_finite_is_written_as_null(path, value):
    MetricsWriter(path).write(1, {"loss": value, "nested": {"list": [1.0, value]}})
    assert strict_lines(path) == [{"step": 1, "loss": None, "nested": {"list": [1.0, None]}}]


@pytest.mark.parametrize(
    ("value", "written"),
    [
        (torch.tensor(0.5), 0.5),
        (torch.tensor([7]), 7),
        (torch.tensor(True), True),
        (np.float32(0.25), 0.25),
        (np.int64(3), 3),
        (np.array(2.5), 2.5),
        (None, None),
        ("text", "text"),
    ],
    ids=repr,
)
def test_tensors_and_numpy_scalars_are_numbers(path, value, written):
    MetricsWriter(path).write(np.int64(1), {"metric": value})
    row = strict_lines(path)[0]
    assert row == {"step": 1, "metric": written}
    assert type(row["metric"]) is type(written)


@pytest.mark.parametrize(
    "value", [torch.zeros(2), np.zeros(3), object(), {1, 2}], ids=lambda v: type(v).__name__
)
def test_a_value_that_is_no_number_is_refused_by_name_and_leaves_no_line(path, value):
    writer = MetricsWriter(path)
    writer.write(1, {})
    with pytest.raises(TypeError, match="'val/ratio'"):
        writer.write(2, {"lr": 1.0, "val/ratio": value})
    assert read_metrics(path) == [{"step": 1}]


def test_a_kill_at_any_byte_costs_at_most_the_line_it_fell_in(path):
    writer = MetricsWriter(path)
    for step in (1, 2, 3):
        writer.write(step, {"objective/kl": step / 8})
    whole = path.read_bytes()
    rows = read_metrics(path)
    # A line is whole from its closing brace on, with or without the line end behind it.
    ends = [place for place, byte in enumerate(whole, 1) if byte == ord("}")]
    for length in range(len(whole) + 1):
        path.write_bytes(whole[:length])
        kept = rows[: sum(end <= length for end in ends)]
        assert read_metrics(path) == kept, length
        writer.write(9, {})
        assert read_metrics(path) == [*kept, {"step": 9}], length
        assert strict_lines(path) == [*kept, {"step": 9}], length


def test_a_last_line_of_zero_bytes_left_by_a_power_cut_is_passed_over(path):
    MetricsWriter(path).write(1, {})
    with open(path, "ab") as file:
        file.write(b"\x00" * 40)
    assert read_metrics(path) == [{"step": 1}]
    MetricsWriter(path).write(2, {})
    assert read_metrics(path) == [{"step": 1}, {"step": 2}]


@pytest.mark.parametrize("line", [b'{"step": 2', b"[1, 2]", b"\xff\xfe", b"7", b"step 2"], ids=repr)
def test_any_other_bad_line_is_named_by_file_and_line(path, line):
    path.parent.mkdir()
    path.write_bytes(b'{"step": 1}\n\n' + line + b'\n{"step": 3}\n')
    with pytest.raises(ValueError, match=r"metrics\.jsonl:3: "):
        read_metrics(path)
    with pytest.raises(ValueError, match=r"metrics\.jsonl:3: "):
        MetricsWriter(path).truncate_after(1)
    assert line in path.read_bytes()


def test_the_nan_of_other_writers_is_read_as_none(path):
    path.parent.mkdir()
    path.write_text('{"step": 1, "loss": NaN, "lr": -Infinity}\n')
    assert read_metrics(path) == [{"step": 1, "loss": None, "lr": None}]


def test_a_missing_file_is_an_error_and_an_empty_one_has_no_rows(path):
    with pytest.raises(FileNotFoundError):
        read_metrics(path)
    path.parent.mkdir()
    path.touch()
    assert read_metrics(path) == []


def test_truncate_after_drops_later_steps_and_a_torn_line(path):
    writer = MetricsWriter(path)
    for step in range(1, 6):
        writer.write(step, {"lr": 0.1})
    with open(path, "ab") as file:
        file.write(b'{"step": 6, "lr"')
    kept = b"".join(path.read_bytes().splitlines(keepends=True)[:3])
    assert writer.truncate_after(3) == 3
    assert path.read_bytes() == kept
    writer.write(4, {"lr": 0.2})
    assert [row["step"] for row in read_metrics(path)] == [1, 2, 3, 4]
    assert os.listdir(path.parent) == ["metrics.jsonl"]


def test_truncate_after_keeps_rows_without_a_step_and_needs_no_file(path):
    writer = MetricsWriter(path)
    assert writer.truncate_after(0) == 0
    assert not path.exists()
    path.parent.mkdir()
    path.write_text('{"about": "the run"}\n{"step": 0}\n{"step": 1}\n')
    assert writer.truncate_after(0) == 1
    assert read_metrics(path) == [{"about": "the run"}, {"step": 0}]


def test_truncate_after_leaves_the_file_alone_when_there_is_nothing_to_drop(path):
    writer = MetricsWriter(path)
    writer.write(1, {})
    before = path.stat().st_ino
    assert writer.truncate_after(1) == 0
    assert path.stat().st_ino == before


def test_a_kill_during_truncate_after_leaves_the_old_file(path, monkeypatch):
    writer = MetricsWriter(path)
    for step in (1, 2, 3):
        writer.write(step, {})
    before = path.read_bytes()

    def kill(*args):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", kill)
        with pytest.raises(KeyboardInterrupt):
            writer.truncate_after(1)
    assert path.read_bytes() == before
    # What the kill left beside it does not stop the next run.
    assert writer.truncate_after(1) == 2
    assert read_metrics(path) == [{"step": 1}]
