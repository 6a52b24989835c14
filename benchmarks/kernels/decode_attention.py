"""One new token a row over a paged cache: does it pay against scaled_dot_product_attention over a padded one?"""

from __future__ import annotations

import pytest
import torch

from benchmarks.contenders import beside
from fastrlhf import kernels

OPERATION = "decode_attention"
BLOCK_SIZE = 16

# rows, positions, heads, key-value heads, head dimension: SmolLM2-135M in a rollout, in its whole context, one row
SHAPES = [(8, 64, 9, 3, 64), (16, 512, 9, 3, 64), (1, 8192, 9, 3, 64)]


def plain(query, keys, values, mask):
    """PyTorch's own over caches `[B, Hk, L, D]` that lie in order, padded on the left."""
    grouped = query.shape[1] != keys.shape[1]
    return torch.nn.functional.scaled_dot_product_attention(
        query[:, :, None], keys, values, attn_mask=mask, enable_gqa=grouped
    )


# scaled_dot_product_attention is one operation to the compiler too.
@beside(compiled=False)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@torch.inference_mode()
def bench_decode_attention(measure, device, shape):
    torch.manual_seed(0)
    rows, positions, heads, key_heads, width = shape
    blocks = positions // BLOCK_SIZE
    query = torch.randn(rows, heads, width, device=device)
    caches = torch.randn(2, rows * blocks, BLOCK_SIZE, key_heads, width, device=device).unbind(0)
    lengths = torch.randint(positions // 2, positions + 1, (rows,), dtype=torch.int32, device=device)
    table = torch.randperm(rows * blocks, device=device).to(torch.int32).view(rows, blocks)
    padded = torch.randn(2, rows, key_heads, positions, width, device=device).unbind(0)
    mask = (torch.arange(positions, device=device) >= positions - lengths[:, None])[:, None, None]
    measure(
        f"{rows} x {positions} positions, {heads}/{key_heads} heads",
        lambda: kernels.decode_attention(query, *caches, table, lengths),
        eager=lambda: plain(query, *padded, mask),
    )
