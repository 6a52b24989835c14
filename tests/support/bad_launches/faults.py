"""One kernel for each fault that the compile report looks for, and one without."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from fastrlhf.device.launch import launch_triton

DEVICE = torch.device("meta")


@triton.jit
def double_kernel(source, target, count, BLOCK: tl.constexpr):
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    tl.store(target + at, 2 * tl.load(source + at, mask=at < count, other=0.0), mask=at < count)


@triton.jit
def product_kernel(a, b, target, count, INNER: tl.constexpr, SIZE: tl.constexpr):
    rows, inner = tl.arange(0, SIZE), tl.arange(0, INNER)
    total = tl.zeros((SIZE, SIZE), tl.float32)
    for start in range(0, count, INNER):
        left = tl.load(a + rows[:, None] * count + start + inner[None, :])
        right = tl.load(b + (start + inner[:, None]) * SIZE + rows[None, :])
        total = tl.dot(left, right, total, input_precision="ieee")
    tl.store(target + rows[:, None] * SIZE + rows[None, :], total)


def _double(count: int) -> None:
    numbers = torch.empty(count, device="meta")
    launch_triton(double_kernel, (1,), DEVICE, numbers, numbers, count, BLOCK=1024, num_warps=4)


def _product(dtype: torch.dtype, size: int = 64, inner: int = 64, warps: int = 4, stages: int = 2) -> None:
    numbers, total = (
        torch.empty(size, 4096, dtype=dtype, device="meta"),
        torch.empty(size, size, device="meta"),
    )
    meta = {"INNER": inner, "SIZE": size, "num_warps": warps, "num_stages": stages}
    launch_triton(product_kernel, (1,), DEVICE, numbers, numbers, total, 4096, **meta)


LAUNCHES = {
    "even": lambda: _double(32_000),
    "odd": lambda: _double(32_001),
    "fits": lambda: _product(torch.bfloat16),
    "float32": lambda: _product(torch.float32, size=32, inner=16),
    "too much shared memory": lambda: _product(torch.bfloat16, size=128, stages=5),
    "too few warps": lambda: _product(torch.bfloat16, size=128, inner=32, warps=1),
}
