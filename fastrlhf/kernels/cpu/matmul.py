"""Launcher of the C++ matrix product of many rows, with a product of low rank in the same pass."""

from __future__ import annotations

from typing import NamedTuple

import torch

from fastrlhf.kernels import native
from fastrlhf.kernels.cpu.pool import empty


class LowRank(NamedTuple):
    """`scaling (a down) up`, down `[depth, rank]` and up `[rank, columns]`."""

    down: torch.Tensor
    up: torch.Tensor
    scaling: float


def matmul(
    a: torch.Tensor, b: torch.Tensor, bias: torch.Tensor | None = None, low_rank: LowRank | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """`a b + bias + hidden up` `[rows, columns]` and `hidden = scaling a down` `[rows, rank]`, rank 0 without low_rank.

    Bit for bit the same for every number of threads.

    Args:
        a, b: `[rows, depth]` and `[depth, columns]`, float32 on the CPU, contiguous or the transpose of a matrix that
            is: either is read as it lies.
        bias: `[columns]`, contiguous.
    """
    (rows, depth), columns = a.shape, b.shape[1]
    down, up, scaling = low_rank or (a.new_empty(depth, 0), a.new_empty(0, columns), 0.0)
    rank = down.shape[1]
    assert b.shape[0] == depth and down.shape[0] == depth and up.shape == (rank, columns)
    assert bias is None or (bias.shape == (columns,) and bias.is_contiguous())
    c, hidden = empty((rows, columns)), empty((rows, rank))
    orders = [_order(matrix) for matrix in (a, b, down, up)]
    module, threads, sizes = native.module("_cpu"), torch.get_num_threads(), (rows, columns, depth, rank)
    scratch = empty((module.matmul_scratch(sizes, threads),))
    bias_address = 0 if bias is None else bias.data_ptr()
    module.matmul(
        [
            a.data_ptr(),
            b.data_ptr(),
            down.data_ptr(),
            up.data_ptr(),
            bias_address,
            c.data_ptr(),
            hidden.data_ptr(),
        ],
        [stride for stride, _ in orders],
        [transposed for _, transposed in orders],
        sizes,
        scaling,
        scratch.data_ptr(),
        threads,
    )
    return c, hidden


def _order(matrix: torch.Tensor) -> tuple[int, bool]:
    """Elements from one row to the next, or from one column to the next of a transposed matrix, and which it is."""
    if matrix.is_contiguous():
        return matrix.shape[1], False
    assert matrix.T.is_contiguous()
    return matrix.shape[0], True
