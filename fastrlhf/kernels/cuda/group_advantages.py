"""Launcher of the CUDA kernel of group-relative advantages."""

from __future__ import annotations

import torch

from fastrlhf.device.launch import launch
from fastrlhf.kernels import native
from fastrlhf.kernels.group_advantages import GROUP_ESTIMATORS
from fastrlhf.kernels.group_rows import group_rows


def group_advantages(scores, mask, groups, group_size, estimator, epsilon):
    """See `fastrlhf.kernels.group_advantages`. The moments are those of the advantages before they are rounded."""
    rows, (order, starts) = scores.shape[0], (None, None) if groups is None else group_rows(groups)
    count = rows // group_size if groups is None else rows
    # Held by name until the launch; the caching allocator keeps a freed copy for this stream's next kernels alone.
    inputs = [None if t is None else t.contiguous() for t in (scores, mask, order, starts)]
    # NaN stays where a row's group does not exist.
    advantages = torch.empty_like(inputs[0]) if groups is None else torch.full_like(inputs[0], torch.nan)
    moments = torch.empty(3, dtype=torch.float64, device=scores.device)
    scratch = torch.empty(count, 3, dtype=torch.float64, device=scores.device)
    launch(
        native.module("_cuda"),
        "group_advantages",
        scores.device,
        scores.dtype == torch.bfloat16,
        [0 if tensor is None else tensor.data_ptr() for tensor in (*inputs, advantages, moments)],
        scratch.data_ptr(),
        count,
        group_size,
        GROUP_ESTIMATORS.index(estimator) + 1,
        epsilon,
    )
    return advantages, moments
