"""A run as the report sees it: plausible metrics and a full summary."""

import math
import random

import pytest

STEPS = 24


@pytest.fixture(scope="session")
def rows():
    """One row per step, every plotted metric in it; the reward rises, the KL rises to about 5 nats."""
    chance = random.Random(0)
    return [
        {
            "step": step,
            "elapsed_s": 4.5 * step,
            "objective/scores": 0.15 + 0.4 * step / STEPS + chance.gauss(0, 0.03),
            "judge/positive_rate": 0.4 + 0.4 * step / STEPS,
            "objective/kl": 5 * step / STEPS,
            "policy/entropy_avg": 3.4 - step / STEPS,
            "loss/policy_avg": -0.01 + chance.gauss(0, 0.005),
            "loss/value_avg": 0.05 + 0.3 * math.exp(-step / 8),
            "policy/clipfrac_avg": 0.1,
            "val/clipfrac_avg": 0.03,
            "time/rollout": 2.0,
            "time/reward": 0.2,
            "time/evaluate": 0.5,
            "time/update": 1.8,
            "memory/rss_mb": 1500.0 + step,
            "memory/peak_rss_mb": 1600.0 + step,
        }
        for step in range(1, STEPS + 1)
    ]


@pytest.fixture(scope="session")
def summary():
    """Every key that the report knows, with samples that try to break out of it."""
    return {
        "title": "Cheap <thrills> at $5 & $title",
        "command": 'fastrlhf demo --note "<b>&"',
        "seed": 0,
        "device": "CPU, 2 cores",
        "versions": {"torch": "2.13.0", "trans<formers>": "5.23.0"},
        "config": {"kl_coef": 0.05, "lora": {"r": 16}, "note": "</dd><script>1</script>", "seed_file": None},
        "before": {"reward": 0.15, "judge": 0.41},
        "after": {"reward": 0.56, "judge": 0.84},
        "reward_last_quarter": 0.54,
        "kl_final": 5.31,
        "kl_limit": 8.0,
        "wall_s": 636.0,
        "peak_rss_mb": 1818.0,
        "tokens_per_second": 612.4,
        "samples": [
            {
                "prompt": "<script>alert('prompt')</script>",
                "before": ' it was "okay" & \x1b[31mred\x00 \ud800 </td></table>',
                "after": " a joy.\n\nA real joy. 🎬 ${body} $$",
                "reward_before": -0.42,
                "reward_after": 0.93,
                "judge_before": 0.08,
                "judge_after": 0.97,
            },
            {
                "prompt": "The end",
                "before": "good",
                "after": "bad",
                "reward_before": 0.6,
                "reward_after": 0.5,
            },
            {"prompt": "No rewards", "before": "known", "after": "here"},
        ],
    }
