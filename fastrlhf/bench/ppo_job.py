"""What both trainers are given, and how their steps are timed: the same for the two sides."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from typing import Any

from datasets import Dataset
from peft import LoraConfig
from transformers import TrainerCallback

from fastrlhf.bench.models import SHAPES, TEMPERATURE, prompts, stop_token_id
from fastrlhf.demo.prompts import review_prompts
from fastrlhf.demo.reward import vader_reward
from fastrlhf.demo.settings import Settings

LINEAR_MAPS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


PLAIN = {
    "gradient_checkpointing": False,
    "bf16": False,
    "use_cpu": True,
    "num_sample_generations": 0,
    "save_strategy": "no",
    "report_to": [],
    "disable_tqdm": True,
}


def step_arguments(job: dict[str, Any], tokenizer: Any) -> dict[str, Any]:
    """Arguments of both PPOConfigs in the modes that time steps.

    float32, no gradient checkpointing, one minibatch of all rows, 4 epochs; learning rate, KL and clipping are TRL's
    defaults.
    """
    shape = SHAPES[job["model"]]
    return {
        "output_dir": job["folder"],
        "per_device_train_batch_size": shape.rows,
        "gradient_accumulation_steps": 1,
        "num_mini_batches": 1,
        "num_ppo_epochs": 4,
        "local_rollout_forward_batch_size": shape.rows,
        "total_episodes": shape.rows * (1 + job["steps"]),
        "response_length": shape.response,
        "stop_token_id": stop_token_id(job["model"], tokenizer) if job["mode"] == "eos" else None,
        "temperature": TEMPERATURE,
        "seed": job["seed"],
        **PLAIN,
    }


def reward_arguments(job: dict[str, Any]) -> dict[str, Any]:
    """Arguments of both PPOConfigs in the mode `time-to-reward`: the demo's task, at a constant learning rate."""
    task = Settings()
    return {
        "output_dir": job["folder"],
        "per_device_train_batch_size": task.prompts_per_step,
        "gradient_accumulation_steps": 1,
        "num_mini_batches": task.minibatches,
        "num_ppo_epochs": task.epochs,
        "local_rollout_forward_batch_size": task.prompts_per_step,
        "total_episodes": task.prompts_per_step * job["most_steps"],
        "response_length": task.response_length,
        "stop_token": "eos",
        "temperature": task.temperature,
        "learning_rate": job["learning_rate"],
        "lr_scheduler_type": "constant",
        "kl_coef": task.kl_coef,
        "vf_coef": task.vf_coef,
        "seed": job["seed"],
        **PLAIN,
    }


def step_dataset(job: dict[str, Any], tokenizer: Any) -> Dataset:
    """The prompts of all steps, each once."""
    count = SHAPES[job["model"]].rows * (1 + job["steps"])
    return Dataset.from_dict({"input_ids": prompts(job["model"], count, tokenizer)})


def reward_dataset(job: dict[str, Any], tokenizer: Any) -> Dataset:
    """The demo's prompts, each once while there are enough of them; for a random model random ones."""
    task = Settings()
    count = min(5_900, task.prompts_per_step * job["most_steps"])
    if SHAPES[job["model"]].config is not None:
        return Dataset.from_dict({"input_ids": prompts(job["model"], count, tokenizer)})
    texts = review_prompts(count, seed=job["seed"], words=task.prompt_words)
    return Dataset.from_dict({"input_ids": tokenizer(texts)["input_ids"]})


def reward_function(job: dict[str, Any]) -> Callable[[list[str], list[str]], list[float]]:
    """The demo's reward; for a random model, whose words are numbered, the share of words with an even number."""
    return vader_reward if SHAPES[job["model"]].config is None else even_words


def even_words(prompts: list[str], completions: list[str]) -> list[float]:
    """The share of the words of each completion that end in an even digit; 0 for one without words."""
    words = [completion.split() for completion in completions]
    return [sum(word[-1] in "02468" for word in some) / max(1, len(some)) for some in words]


def lora_of_rank_8() -> LoraConfig:
    """The adapter of the mode `lora`: rank 8 on every linear map, no dropout."""
    return LoraConfig(
        r=8, lora_alpha=16, lora_dropout=0.0, target_modules=list(LINEAR_MAPS), task_type="CAUSAL_LM"
    )


def lora_of_the_demo(layers: int) -> LoraConfig:
    """The demo's adapter, on the top layers of a model that has `layers` of them."""
    task = Settings()
    return LoraConfig(
        r=task.lora_rank,
        lora_alpha=task.lora_alpha,
        lora_dropout=0.0,
        target_modules=list(LINEAR_MAPS),
        layers_to_transform=list(range(max(0, layers - task.lora_top_layers), layers)),
        task_type="CAUSAL_LM",
    )


class Reached(Exception):
    """The running mean of the reward has reached its level, or the time is up: `train()` need not go on."""


class StepTimes(TrainerCallback):
    """Seconds of each step, from the end of the one before (or from the beginning of `train()`).

    Args:
        level, window, cap_s: end the run with `Reached` when the mean score of the last `window` steps is at least
            `level`, or after `cap_s` seconds. None: the run ends by itself.
    """

    def __init__(self, *, level: float | None = None, window: int = 1, cap_s: float = float("inf")):
        self.level, self.window, self.cap_s = level, window, cap_s
        self.steps: list[float] = []
        self.scores: list[float] = []
        self.phases: list[dict[str, float]] = []
        self.reached_s: float | None = None
        self._recent: deque[float] = deque(maxlen=window)

    @property
    def elapsed_s(self) -> float:
        """Seconds of all steps so far."""
        return sum(self.steps)

    def on_train_begin(self, args, state, control, **kwargs):
        self._last = time.perf_counter()

    def on_log(self, args, state, control, logs=None, **kwargs):
        if logs and "objective/scores" in logs:
            self.scores.append(logs["objective/scores"])
            self._recent.append(logs["objective/scores"])
            phases = {name.removeprefix("time/"): logs[name] for name in logs if name.startswith("time/")}
            phases.pop("step", None)
            if phases:
                self.phases.append(phases)

    def on_step_end(self, args, state, control, **kwargs):
        now = time.perf_counter()
        self.steps.append(now - self._last)
        self._last = now
        if self.level is None:
            return
        if len(self._recent) == self.window and sum(self._recent) / self.window >= self.level:
            self.reached_s = self.elapsed_s
            raise Reached
        if self.elapsed_s >= self.cap_s:
            raise Reached


def reward_result(times: StepTimes) -> dict[str, Any]:
    """What a side of the mode `time-to-reward` measured."""
    return {
        "reached_s": times.reached_s,
        "elapsed_s": times.elapsed_s,
        "steps": len(times.steps),
        "scores": times.scores,
    }


def step_result(steps: list[float], phases: list[dict[str, float]], lengths: list[float]) -> dict[str, Any]:
    """What a side measured, its first step, in which caches fill, left out.

    Args:
        steps: seconds of each step.
        phases: seconds of each step by phase.
        lengths: mean response length of each step, tokens up to the stop token.
    """
    return {"steps_s": steps[1:], "phases_s": phases[1:], "lengths": lengths[1:]}
