"""The contender of `fastrlhf bench capacity`: a PPO step in plain PyTorch, with all of it on the device.

Four models of transformers in float32 with checkpointed activations, PyTorch's attention, whole logits, and
`torch.optim.AdamW` without temporaries of the model's size: what a careful user has without any library for memory. It
is given its responses, so that no cache of keys and values counts.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from fastrlhf.device import simulated
from fastrlhf.models.backbone import checkpoint_activations
from fastrlhf.ppo.dry_run import Job, hollow_model

CLIP, VALUE_WEIGHT = 0.2, 0.1


def plain_peak(job: Job, capacity: float) -> int:
    """Device bytes that the step holds at most.

    Raises:
        torch.OutOfMemoryError: more than `capacity`.
    """
    with simulated.registered(capacity, values=False) as device:
        policy, reference = (hollow_model(AutoModelForCausalLM, job, "sim", ours=False) for _ in range(2))
        critic, judge = (
            hollow_model(AutoModelForSequenceClassification, job, "sim", ours=False) for _ in range(2)
        )
        for trained in (policy, critic):
            checkpoint_activations(trained, {"use_reentrant": False})
        for frozen in (reference, judge):
            frozen.eval().requires_grad_(False)
        shape = job.rows, job.prompt + job.response
        tokens = torch.randint(job.config.vocab_size, shape).to("sim")
        step(policy, reference, critic, judge, tokens, job.prompt, job.epochs)
        return device.peak


def step(
    policy: nn.Module,
    reference: nn.Module,
    critic: nn.Module,
    judge: nn.Module,
    tokens: torch.Tensor,
    start: int,
    epochs: int,
) -> None:
    """Score responses, which begin at `start`, and update policy and critic `epochs` times on the whole batch."""
    optimizer = torch.optim.AdamW([*policy.parameters(), *critic.parameters()], lr=1e-6, foreach=False)
    with torch.no_grad():
        old, ref = (_logprobs(model, tokens, start) for model in (policy, reference))
        values = _values(critic, tokens, start)
        rewards = 0.05 * (ref - old)
        rewards[:, -1] += judge(input_ids=tokens).logits[:, 0]
        returns = rewards.flip(1).cumsum(1).flip(1)
        advantages = returns - values
    for _ in range(epochs):
        ratio = (_logprobs(policy, tokens, start) - old).exp()
        clipped = ratio.clamp(1 - CLIP, 1 + CLIP)
        loss = -torch.minimum(ratio * advantages, clipped * advantages).mean()
        loss = loss + VALUE_WEIGHT * functional.mse_loss(_values(critic, tokens, start), returns)
        loss.backward()
        nn.utils.clip_grad_norm_([*policy.parameters(), *critic.parameters()], 1.0, foreach=False)
        optimizer.step()
        optimizer.zero_grad()


def _logprobs(model: nn.Module, tokens: torch.Tensor, start: int) -> torch.Tensor:
    """`[B, R]` of the response tokens."""
    logits = model(input_ids=tokens, use_cache=False).logits[:, start - 1 : -1]
    return functional.log_softmax(logits, dim=-1).gather(2, tokens[:, start:, None])[..., 0]


def _values(critic: nn.Module, tokens: torch.Tensor, start: int) -> torch.Tensor:
    hidden = critic.model(input_ids=tokens, use_cache=False).last_hidden_state
    return critic.score(hidden[:, start - 1 : -1])[..., 0]
