"""A real run in little real memory, as the operating system counts it."""

from __future__ import annotations

import pytest

from fastrlhf.bench.sides import run_side


def run(**options):
    return run_side("fastrlhf.bench.side_capacity", {"options": options}, threads=1)


@pytest.mark.slow
def test_parameters_gradients_and_adam_state_of_three_times_the_memory_train_to_the_same_bits(tmp_path):
    """The limit counts everything: Python, PyTorch's libraries, activations, buffers."""
    plenty = run()
    little = run(device_memory="40MB", disk=str(tmp_path))
    assert little["losses"] == plenty["losses"] and little["last"] == plenty["last"]
    assert plenty["peak_rss_mb"] > plenty["state_mb"]
    assert 3 * little["peak_rss_mb"] < little["state_mb"]
