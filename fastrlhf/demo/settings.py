"""The demo's settings, found by runs of three seeds on two CPU cores."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Settings:
    """What a run of the demo is made of.

    Attributes:
        steps: PPO steps; each prompt is seen once.
        prompts_per_step, prompt_words, response_length: the shape of a rollout (prompts, words, tokens).
        judged: held-out prompts completed before and after training.
        temperature: of sampling and of every log-probability.
        learning_rate: for the adapter and the value head alike, falling linearly to zero.
        lora_rank, lora_alpha: of the adapter on every linear map of the top `lora_top_layers` layers.
        micro_batch: sequences per forward and backward; what it holds is most of the demo's memory.
        kl_coef, kl_target, kl_horizon: KL penalty at the start, KL per sequence (nats) that it is steered to, and over
            how many episodes.
        epochs, minibatches: passes over a batch and optimizer updates in each.
        reward_margin, kl_limit: what a run is expected to reach, and stay under (nats per sequence).
    """

    steps: int = 40
    prompts_per_step: int = 16
    prompt_words: int = 6
    response_length: int = 16
    judged: int = 128
    temperature: float = 0.8
    learning_rate: float = 1e-3
    lora_rank: int = 16
    lora_alpha: int = 32
    lora_top_layers: int = 15
    micro_batch: int = 8
    kl_coef: float = 0.06
    kl_target: float = 5.5
    kl_horizon: int = 64
    epochs: int = 2
    minibatches: int = 1
    vf_coef: float = 0.5
    reward_margin: float = 0.25
    kl_limit: float = 8.0

    def last_quarter(self) -> slice:
        """The steps whose mean reward is compared with the mean before training."""
        return slice(self.steps - max(1, self.steps // 4), self.steps)
