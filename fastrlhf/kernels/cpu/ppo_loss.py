"""Launcher of the C++ kernel of the clipped PPO objective."""

from __future__ import annotations

from fastrlhf.kernels import native
from fastrlhf.kernels.ppo_loss_arguments import ppo_loss_arguments


def ppo_loss(*args):
    """See `fastrlhf.kernels.ppo_loss`; arguments as `reference`. The same bits for every number of threads."""
    given = ppo_loss_arguments(*args)
    native.module("_cpu").ppo_loss(given.addresses, given.tokens, given.numbers, given.kl_estimator)
    return given.outputs
