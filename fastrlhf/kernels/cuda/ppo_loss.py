"""Launcher of the CUDA kernel of the clipped PPO objective."""

from __future__ import annotations

import torch

from fastrlhf.device.launch import launch
from fastrlhf.kernels import native
from fastrlhf.kernels.ppo_loss import Stat
from fastrlhf.kernels.ppo_loss_arguments import ppo_loss_arguments


def ppo_loss(*args):
    """See `fastrlhf.kernels.ppo_loss`; arguments as `reference`. The same bits on every card."""
    given, module = ppo_loss_arguments(*args), native.module("_cuda")
    logprobs = given.inputs[0]
    scratch_rows = module.ppo_loss_scratch_rows(given.tokens)
    sums = len(Stat) + 1  # and the objective
    scratch = torch.empty(scratch_rows, sums, dtype=torch.float64, device=logprobs.device)
    launch(
        module,
        "ppo_loss",
        logprobs.device,
        logprobs.dtype == torch.bfloat16,
        given.addresses,
        scratch.data_ptr(),
        given.tokens,
        given.numbers,
        given.kl_estimator,
    )
    return given.outputs
