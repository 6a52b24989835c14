"""Tensors as kernels address them: rows or heads at fixed distances, with unit stride inside."""

from __future__ import annotations

import torch


def as_rows(tensor: torch.Tensor) -> torch.Tensor:
    """`[..., D]` as `[N, D]`: a view where its strides allow one, else a copy."""
    return with_dense_rows(tensor.flatten(0, -2) if tensor.dim() > 1 else tensor.unsqueeze(0))


def as_tokens(heads: torch.Tensor) -> torch.Tensor:
    """`[..., H, D]` as `[T, H, D]`: a view where its strides allow one, else a copy."""
    return with_dense_rows(heads.flatten(0, -3) if heads.dim() > 2 else heads.unsqueeze(0))


def as_one_row(*tensors: torch.Tensor) -> list[torch.Tensor]:
    """Tensors of one shape as `[1, N D]` where all lie in one piece, else as `as_rows` gives them."""
    if all(tensor.is_contiguous() for tensor in tensors):
        return [tensor.view(1, -1) for tensor in tensors]
    return [as_rows(tensor) for tensor in tensors]


def with_dense_rows(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor itself where the numbers of a row lie side by side, a contiguous copy elsewhere."""
    return tensor if tensor.stride(-1) == 1 or tensor.shape[-1] <= 1 else tensor.contiguous()
