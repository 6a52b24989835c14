"""TRL's side of `fastrlhf bench ppo-vs-trl`: `python -m fastrlhf.bench.side_trl JOB RESULT`, with TRL on the path."""

from __future__ import annotations

import fastrlhf.device.without_triton  # isort: skip # noqa: F401 - before transformers, on both sides

import time
from contextlib import suppress
from typing import Any

import torch
import trl
from torch import nn
from transformers import TrainerCallback
from trl.experimental.ppo import PPOConfig, PPOTrainer, ppo_trainer

from fastrlhf.bench import models, ppo_job
from fastrlhf.bench.function_reward import FunctionReward
from fastrlhf.bench.peers import TRL
from fastrlhf.bench.sides import serve


def measure(job: dict[str, Any]) -> dict[str, Any]:
    """Train as the job says, and return what `ppo_job` makes of it."""
    if trl.__version__ != TRL.version:
        raise SystemExit(f"this is TRL {trl.__version__} at {trl.__file__}, expected {TRL.version}")
    return reach(job) if job["mode"] == "time-to-reward" else step(job)


def step(job: dict[str, Any]) -> dict[str, Any]:
    """Time steps."""
    times = ppo_job.StepTimes()
    trainer = step_trainer(job, [times])
    watch = PhaseWatch(trainer.reward_model)
    trainer.add_callback(watch)
    trainer.train()
    return ppo_job.step_result(times.steps, watch.phases, watch.lengths)


def step_trainer(
    job: dict[str, Any], callbacks: list[TrainerCallback], config: type[PPOConfig] = PPOConfig
) -> PPOTrainer:
    """TRL needs a reward and a value model of their own in every mode; with PEFT no reference model."""
    policy, tokenizer = models.policy_and_tokenizer(job["model"], ending=job["mode"] == "eos")
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
        peft_config=ppo_job.lora_of_rank_8() if job["mode"] == "lora" else None,
    )


def reach(job: dict[str, Any]) -> dict[str, Any]:
    """Train the demo's task until the reward is reached, all weights or the demo's adapter."""
    policy, tokenizer = models.policy_and_tokenizer(job["model"], ending=False)
    times = ppo_job.StepTimes(level=job["level"], window=job["window"], cap_s=job["cap_s"])
    reward = FunctionReward(ppo_job.reward_function(job), tokenizer)
    layers = policy.config.num_hidden_layers
    trainer = PPOTrainer(
        PPOConfig(**ppo_job.reward_arguments(job)),
        tokenizer,
        policy,
        None,
        reward,
        ppo_job.reward_dataset(job, tokenizer),
        models.scalar_model(job["model"], seed=2),
        callbacks=[times, PhaseWatch(reward)],
        peft_config=ppo_job.lora_of_the_demo(layers) if job["peft"] else None,
    )
    with suppress(ppo_job.Reached):
        trainer.train()
    return ppo_job.reward_result(times)


class PhaseWatch(TrainerCallback):
    """Seconds of each step by phase, and response lengths, seen where TRL's loop calls its helpers.

    The generation is the rollout, the reward model's call the reward; the rest until the first forward pass with
    gradients is the evaluation under reference and critic, and what follows is the update.
    """

    def __init__(self, reward: nn.Module):
        self.reward = reward
        self.phases: list[dict[str, float]] = []
        self.lengths: list[float] = []
        self._generation = ppo_trainer.batch_generation
        self._get_reward = ppo_trainer.get_reward
        self._forward = ppo_trainer.forward
        ppo_trainer.batch_generation = self.batch_generation
        ppo_trainer.get_reward = self.get_reward
        ppo_trainer.forward = self.forward
        self._begin()

    def _begin(self) -> None:
        self._seconds = {"rollout": 0.0, "reward": 0.0, "evaluate": 0.0, "update": 0.0}
        self._generated = self._updating = None
        self._counted, self._rows = 0, 0

    def batch_generation(self, *arguments):
        began = time.perf_counter()
        result = self._generation(*arguments)
        self._generated = time.perf_counter()
        self._seconds["rollout"] += self._generated - began
        return result

    def get_reward(self, model, query_responses, pad_token_id, context_length):
        began = time.perf_counter()
        if isinstance(model, FunctionReward):
            model.prompt_length = context_length
        result = self._get_reward(model, query_responses, pad_token_id, context_length)
        if model is self.reward:
            self._seconds["reward"] += time.perf_counter() - began
            lengths = result[2] - context_length + 1
            self._counted, self._rows = self._counted + int(lengths.sum()), self._rows + len(lengths)
        return result

    def forward(self, *arguments):
        if torch.is_grad_enabled() and self._updating is None:
            self._updating = time.perf_counter()
            self._seconds["evaluate"] = self._updating - self._generated - self._seconds["reward"]
        return self._forward(*arguments)

    def on_step_end(self, args, state, control, **kwargs):
        self._seconds["update"] = time.perf_counter() - self._updating
        self.phases.append(self._seconds)
        self.lengths.append(self._counted / self._rows)
        self._begin()


if __name__ == "__main__":
    serve(measure)
