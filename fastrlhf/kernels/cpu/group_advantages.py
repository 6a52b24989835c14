"""Launcher of the C++ kernel of group-relative advantages."""

from __future__ import annotations

import torch

from fastrlhf.kernels import native
from fastrlhf.kernels.group_advantages import GROUP_ESTIMATORS


def group_advantages(scores, mask, groups, group_size, estimator, epsilon):
    """See `fastrlhf.kernels.group_advantages`."""
    # Held by name until the kernel returns: a contiguous copy dies with its last reference.
    inputs = [None if tensor is None else tensor.contiguous() for tensor in (scores, mask, groups)]
    assert all(tensor is None or tensor.shape == scores.shape for tensor in inputs)
    advantages, moments = torch.empty_like(inputs[0]), torch.empty(3, dtype=torch.float64)
    addresses = [0 if tensor is None else tensor.data_ptr() for tensor in (*inputs, advantages, moments)]
    native.module("_cpu").group_advantages(
        *addresses, scores.shape[0], group_size, GROUP_ESTIMATORS.index(estimator) + 1, epsilon
    )
    return advantages, moments
