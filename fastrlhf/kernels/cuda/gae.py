"""Launcher of the CUDA kernel of generalised advantage estimation."""

from __future__ import annotations

import torch

from fastrlhf.device.launch import launch
from fastrlhf.kernels import native


def gae(rewards, values, mask, moments_mask, gamma, lam):
    """See `fastrlhf.kernels.gae`. The moments are those of the advantages before they are rounded to bfloat16."""
    # Held by name until the launch; the caching allocator keeps a freed copy for this stream's next kernels alone.
    inputs = [tensor.contiguous() for tensor in (rewards, values, mask, moments_mask)]
    assert all(tensor.shape == rewards.shape for tensor in inputs)
    rows, columns = rewards.shape
    advantages, returns = torch.empty_like(inputs[0]), torch.empty_like(inputs[0])
    moments = torch.empty(3, dtype=torch.float64, device=rewards.device)
    scratch = torch.empty(rows, 3, dtype=torch.float64, device=rewards.device)
    launch(
        native.module("_cuda"),
        "gae",
        rewards.device,
        rewards.dtype == torch.bfloat16,
        [tensor.data_ptr() for tensor in (*inputs, advantages, returns, moments)],
        scratch.data_ptr(),
        rows,
        columns,
        gamma,
        gamma * lam,
    )
    return advantages, returns, moments
