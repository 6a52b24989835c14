"""Our side of `fastrlhf bench ppo-vs-trl`: `python -m fastrlhf.bench.side_ours JOB RESULT`."""

from __future__ import annotations

import fastrlhf.device.without_triton  # isort: skip # noqa: F401 - before transformers, on both sides

from contextlib import suppress
from typing import Any

from transformers import TrainerCallback

from fastrlhf.bench import models, ppo_job
from fastrlhf.bench.sides import serve
from fastrlhf.demo.settings import Settings
from fastrlhf.ppo import PPOConfig, PPOTrainer


def measure(job: dict[str, Any]) -> dict[str, Any]:
    """Train as the job says, and return what `ppo_job` makes of it."""
    return reach(job) if job["mode"] == "time-to-reward" else step(job)


def step(job: dict[str, Any]) -> dict[str, Any]:
    """Time steps."""
    times, lengths = ppo_job.StepTimes(), Lengths()
    step_trainer(job, [times, lengths]).train()
    return ppo_job.step_result(times.steps, times.phases, lengths.means)


def step_trainer(
    job: dict[str, Any], callbacks: list[TrainerCallback], config: type[PPOConfig] = PPOConfig
) -> PPOTrainer:
    """`full` and `eos` train four separate models; `lora` has one base for all four roles."""
    shared = job["mode"] == "lora"
    policy, tokenizer = models.policy_and_tokenizer(job["model"], ending=job["mode"] == "eos")
    if shared:
        reward, value = models.scalar_model_on(policy, seed=1), None
    else:
        reward, value = (models.scalar_model(job["model"], seed=seed) for seed in (1, 2))
    return PPOTrainer(
        config(**ppo_job.step_arguments(job, tokenizer)),
        tokenizer,
        policy,
        None,
        reward,
        ppo_job.step_dataset(job, tokenizer),
        value,
        callbacks=callbacks,
        peft_config=ppo_job.lora_of_rank_8() if shared else None,
    )


def reach(job: dict[str, Any]) -> dict[str, Any]:
    """Train the demo's task until the reward is reached: an adapter on one base, with the demo's steering of the KL."""
    task = Settings()
    policy, tokenizer = models.policy_and_tokenizer(job["model"], ending=False)
    times = ppo_job.StepTimes(level=job["level"], window=job["window"], cap_s=job["cap_s"])
    trainer = PPOTrainer(
        PPOConfig(
            **ppo_job.reward_arguments(job),
            adaptive_kl_target=task.kl_target,
            adaptive_kl_horizon=task.kl_horizon,
        ),
        tokenizer,
        policy,
        None,
        ppo_job.reward_function(job),
        ppo_job.reward_dataset(job, tokenizer),
        None,
        callbacks=[times],
        peft_config=ppo_job.lora_of_the_demo(policy.config.num_hidden_layers),
    )
    with suppress(ppo_job.Reached):
        trainer.train()
    return ppo_job.reward_result(times)


class Lengths(TrainerCallback):
    """Mean response length of each step."""

    def __init__(self):
        self.means: list[float] = []

    def on_log(self, args, state, control, logs=None, **kwargs):
        if logs and "response_length" in logs:
            self.means.append(logs["response_length"])


if __name__ == "__main__":
    serve(measure)
