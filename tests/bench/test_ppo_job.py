from __future__ import annotations

import time

import pytest

from fastrlhf.bench import ppo_job
from fastrlhf.bench.ppo_job import Reached, StepTimes


def run(times: StepTimes, scores: list[float]) -> int:
    """Feeds the scores as a trainer would; returns how many steps were made."""
    times.on_train_begin(None, None, None)
    for number, score in enumerate(scores, 1):
        times.on_log(
            None, None, None, logs={"objective/scores": score, "time/rollout": 0.5, "time/step": 0.7}
        )
        try:
            times.on_step_end(None, None, None)
        except Reached:
            return number
    return len(scores)


def test_seconds_go_from_the_end_of_a_step_to_the_end_of_the_next(monkeypatch):
    clock = iter([10.0, 11.0, 13.5])
    monkeypatch.setattr(time, "perf_counter", lambda: next(clock))
    times = StepTimes()
    assert run(times, [0.1, 0.2]) == 2
    assert times.steps == [1.0, 2.5]
    assert times.phases == [{"rollout": 0.5}] * 2
    assert times.scores == [0.1, 0.2]


def test_it_ends_when_the_mean_of_the_window_reaches_the_level():
    times = StepTimes(level=0.5, window=2)
    assert run(times, [0.9, 0.0, 0.4, 0.6, 0.9]) == 4
    assert times.reached_s == times.elapsed_s == sum(times.steps)


def test_one_high_score_is_no_window():
    times = StepTimes(level=0.5, window=3)
    assert run(times, [0.9, 0.9]) == 2
    assert times.reached_s is None


def test_it_ends_at_the_cap_without_having_reached():
    times = StepTimes(level=2.0, cap_s=0.0)
    assert run(times, [0.9, 0.9]) == 1
    assert times.reached_s is None


def test_a_log_that_is_not_a_steps_is_not_counted():
    times = StepTimes()
    times.on_log(None, None, None, logs={"eval_loss": 1.0})
    assert times.scores == [] and times.phases == []


def test_the_first_step_is_left_out():
    result = ppo_job.step_result([9.0, 1.0, 2.0], [{"rollout": 5.0}, {"rollout": 0.5}], [7.0, 8.0, 9.0])
    assert result == {"steps_s": [1.0, 2.0], "phases_s": [{"rollout": 0.5}], "lengths": [8.0, 9.0]}


def test_the_random_models_reward_is_the_share_of_even_words():
    assert ppo_job.even_words(["", "", ""], ["w12 w7 w4 w9", "w10", ""]) == [0.5, 1.0, 0.0]


@pytest.mark.parametrize("mode", ["full", "eos", "lora"])
def test_only_the_mode_eos_has_a_stop_token(mode):
    arguments = ppo_job.step_arguments(
        {"mode": mode, "model": "tiny", "steps": 2, "seed": 7, "folder": "x"}, None
    )
    assert (arguments["stop_token_id"] is not None) == (mode == "eos")
    assert arguments["seed"] == 7
    assert arguments["total_episodes"] == 3 * arguments["per_device_train_batch_size"]
