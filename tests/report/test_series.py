"""From rows to arrays: gaps, order, means."""

import numpy as np
import pytest

from fastrlhf.report.series import binned, running_mean, series, smoothing_window

NAN = np.nan


def test_null_is_a_gap_and_a_missing_metric_is_no_point():
    rows = [{"step": 1, "m": 1.0}, {"step": 2, "m": None}, {"step": 3}, {"step": 4, "m": 4}]
    steps, values = series(rows, "m")
    np.testing.assert_array_equal(steps, [1, 2, 4])
    np.testing.assert_array_equal(values, [1, NAN, 4])


def test_rows_are_ordered_by_step_and_those_without_one_are_passed_over():
    steps, values = series(
        [{"step": 3, "m": 30}, {"m": 7}, {"step": None, "m": 7}, {"step": 1, "m": 10}], "m"
    )
    np.testing.assert_array_equal(steps, [1, 3])
    np.testing.assert_array_equal(values, [10, 30])


@pytest.mark.parametrize(
    "rows", [[], [{}], [{"step": 1}], [{"step": 1, "m": None}], [{"step": 1, "m": "high"}]], ids=repr
)
def test_a_metric_without_a_finite_value_has_no_points(rows):
    steps, values = series(rows, "m")
    assert len(steps) == len(values) == 0


def test_running_mean_by_hand():
    np.testing.assert_allclose(running_mean(np.array([1.0, 2.0, 6.0, 4.0]), 3), [1.5, 3.0, 4.0, 5.0])
    np.testing.assert_allclose(running_mean(np.array([1.0, NAN, 6.0]), 3), [1.0, 3.5, 6.0])
    np.testing.assert_array_equal(running_mean(np.array([NAN, NAN, 5.0]), 1), [NAN, NAN, 5.0])


@pytest.mark.parametrize("window", [0, 2, -1])
def test_running_mean_refuses_a_window_without_a_middle(window):
    with pytest.raises(ValueError, match=f"got {window}"):
        running_mean(np.ones(3), window)


def test_the_smoothing_window_is_odd_and_no_longer_than_the_series():
    for count in range(1, 3000):
        window = smoothing_window(count)
        assert window % 2 == 1
        assert window <= count
    assert smoothing_window(1000) == 101


def test_binned_by_hand():
    np.testing.assert_allclose(binned(np.array([1.0, 3.0, 5.0, NAN, 9.0]), 2), [2.0, 2.5, 9.0])
    assert len(binned(np.zeros(0), 4)) == 0
