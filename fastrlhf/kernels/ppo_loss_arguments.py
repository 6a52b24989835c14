"""What the launchers of the compiled `ppo_loss` kernels hand over, and what comes back."""

from __future__ import annotations

from typing import NamedTuple

import torch

from fastrlhf.kernels.kl import KL_ESTIMATORS
from fastrlhf.kernels.ppo_loss import Stat


class PPOLossArguments(NamedTuple):
    """Held until the kernel is launched: a contiguous copy among the inputs dies with its last reference.

    The order of `addresses` is that of `PPOLossArrays` in csrc/ppo_loss_arrays.h, of `numbers` that of
    csrc/ppo_loss_binding.h.
    """

    inputs: tuple[torch.Tensor | None, ...]
    outputs: tuple[torch.Tensor, ...]
    tokens: int
    numbers: tuple[float, ...]
    kl_estimator: int

    @property
    def addresses(self) -> list[int]:
        return [0 if tensor is None else tensor.data_ptr() for tensor in (*self.inputs, *self.outputs)]


def ppo_loss_arguments(*args) -> PPOLossArguments:
    """From the arguments of `ppo_loss` (see `fastrlhf.kernels.reference.ppo_loss`), with the outputs allocated.

    The outputs are those of the operation: loss float32, stats float64 `[10]`, and the gradients in the inputs' dtype.
    """
    *tensors, denominators = args[:13]
    *numbers, kl_estimator = args[13:]
    logprobs, values, entropy = tensors[0], tensors[4], tensors[8]
    assert all(tensor is None or tensor.shape == logprobs.shape for tensor in tensors)
    assert denominators.dtype == torch.float64 and denominators.shape == (2,)
    inputs = (
        *(None if tensor is None else tensor.contiguous() for tensor in tensors),
        denominators.contiguous(),
    )
    loss = torch.empty((), dtype=torch.float32, device=logprobs.device)
    stats = torch.empty(len(Stat), dtype=torch.float64, device=logprobs.device)
    gradients = (
        logprobs.new_empty(0) if tensor is None else torch.empty_like(inputs[0])
        for tensor in (logprobs, values, entropy)
    )
    return PPOLossArguments(
        inputs,
        (loss, stats, *gradients),
        logprobs.numel(),
        tuple(numbers),
        KL_ESTIMATORS.index(kl_estimator) + 1,
    )
