"""Scores of a rollout: several responses to each prompt, in order and by id."""

from __future__ import annotations

import torch

from fastrlhf.kernels.triton.group_advantages import group_advantages


def _rollout(
    prompts: int, responses: int, dtype: torch.dtype, estimator: str, *, by_id: bool = False
) -> None:
    scores = torch.empty(prompts * responses, dtype=dtype, device="meta")
    ids = torch.empty(prompts * responses, dtype=torch.int64, device="meta") if by_id else None
    mask = torch.empty(prompts * responses, dtype=torch.bool, device="meta") if by_id else None
    group_advantages(scores, mask, ids, 1 if by_id else responses, estimator, 1e-4)


LAUNCHES = {
    "512 prompts, 16 responses f32": lambda: _rollout(512, 16, torch.float32, "grpo"),
    "64 prompts, 64 responses bf16": lambda: _rollout(64, 64, torch.bfloat16, "dr_grpo"),
    "512 prompts, responses by id f32": lambda: _rollout(512, 8, torch.float32, "rloo", by_id=True),
}
