"""Short runs of a toy trainer, and when two of them are the same."""

from __future__ import annotations

import pytest
import torch

from tests.support.toy import toy_model, toy_prompts, toy_trainer

# Metrics that measure time, or what the machine did.
UNLIKE = ("time/", "memory/", "eps", "elapsed_s", "tokens_per_second")


def run(folder, **options):
    """Metrics of each step of a short run, and the weights at its end."""
    settings = {
        "total_episodes": 16,
        "num_ppo_epochs": 2,
        "ref_model": toy_model(options.get("shape", "llama"), 9),
        "model": toy_model(options.pop("shape", "llama")),
        "dataset": toy_prompts(16),
        "response_length": 5,
        # AdamW divides by the root of a squared gradient, which magnifies rounding where it is near zero
        "adam_epsilon": 1e-3,
        **options,
    }
    trainer = toy_trainer(folder, **settings)
    trainer.train()
    history = [row for row in trainer.state.log_history if "objective/kl" in row]
    metrics = [{k: v for k, v in row.items() if not k.startswith(UNLIKE)} for row in history]
    return metrics, {name: tensor.clone() for name, tensor in trainer.model.state_dict().items()}


def assert_same_run(actual, expected):
    """The same metrics and weights, but for float32 rounding through two steps of AdamW."""
    for here, there in zip(actual[0], expected[0], strict=True):
        assert here == pytest.approx(there, rel=1e-3, abs=1e-4, nan_ok=True)
    assert actual[1].keys() == expected[1].keys()
    for name, tensor in actual[1].items():
        torch.testing.assert_close(tensor, expected[1][name], rtol=1e-4, atol=1e-4)


def cut(micro_batch):
    """A batch of eight, so many rows a micro-batch."""
    return {
        "per_device_train_batch_size": micro_batch,
        "gradient_accumulation_steps": 8 // micro_batch,
    }
