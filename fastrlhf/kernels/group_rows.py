"""The rows of each group, for kernels that read a group at a time."""

from __future__ import annotations

import torch


def group_rows(groups: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """From the group of each row, `[B]`, to the rows of each group, without making the host wait.

    Returns:
        order `[B]` and starts `[B + 1]`, int64: the rows of group g are `order[starts[g]:starts[g + 1]]`, in ascending
        order. Rows whose group is outside of [0, B) are in none.
    """
    sorted_groups, order = torch.sort(groups, stable=True)
    ids = torch.arange(groups.shape[0] + 1, device=groups.device)
    return order, torch.searchsorted(sorted_groups, ids)
