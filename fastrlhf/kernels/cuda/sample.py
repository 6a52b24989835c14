"""Launcher of the CUDA kernel that samples the next token."""

from __future__ import annotations

import torch

from fastrlhf.device.launch import launch
from fastrlhf.kernels import native
from fastrlhf.kernels.sample_arguments import sample_call


def sample(*args):
    """See `fastrlhf.kernels.sample`; arguments as `reference`. The same bits on every card."""
    call = sample_call(*args)
    logits = call.inputs[0]
    launch(
        native.module("_cuda"),
        "sample",
        logits.device,
        logits.dtype == torch.bfloat16,
        *call.arguments,
    )
    return call.outputs
