"""Tensors as kernels address them: rows or heads at fixed distances, with unit stride inside."""

from __future__ import annotations

from collections.abc import Sequence

import torch


def as_rows(tensor: torch.Tensor) -> torch.Tensor:
    """`[..., D]` as `[N, D]`: a view where its strides allow one, else a copy."""
    if tensor.dim() == 2:
        return with_dense_rows(tensor)
    return with_dense_rows(tensor.flatten(0, -2) if tensor.dim() > 1 else tensor.unsqueeze(0))


def as_tokens(heads: torch.Tensor) -> torch.Tensor:
    """`[..., H, D]` as `[T, H, D]`: a view where its strides allow one, else a copy."""
    if heads.dim() == 3:
        return with_dense_rows(heads)
    return with_dense_rows(heads.flatten(0, -3) if heads.dim() > 2 else heads.unsqueeze(0))


def as_one_row(*tensors: torch.Tensor) -> tuple[Sequence[torch.Tensor], list[int], tuple[int, int]]:
    """Tensors of one shape as a kernel of elements takes them: one row where all lie in one piece, else `as_rows`.

    Returns:
        The tensors (to be held until the kernel returns: some may be copies), the distance of the rows of each, and
        (rows, columns).
    """
    for tensor in tensors:
        if not tensor.is_contiguous():
            rows = [as_rows(tensor) for tensor in tensors]
            return rows, [tensor.stride(0) for tensor in rows], tuple(rows[0].shape)
    columns = tensors[0].numel()
    return tensors, [columns] * len(tensors), (1, columns)


def with_dense_rows(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor itself where the numbers of a row lie side by side, a contiguous copy elsewhere."""
    if tensor.is_contiguous() or tensor.stride(-1) == 1 or tensor.shape[-1] <= 1:
        return tensor
    return tensor.contiguous()
