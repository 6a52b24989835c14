"""What the kernels of `linear_logprob` share: the logits of a block of rows and a block of words."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from fastrlhf.kernels.triton.attention_tile import tanh

FEW_ROWS = 32


def size_class(rows: int, dtype: torch.dtype) -> int:
    """Which row of a table of configurations: few rows, many in half precision, many in float32."""
    if rows <= FEW_ROWS:
        return 0
    return 1 + (dtype == torch.float32)


@triton.jit
def tile_logits(
    hidden,
    weight,
    bias,
    first_row,
    first_word,
    rows,
    words,
    temperature,
    softcap,
    WIDTH: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    HAS_SOFTCAP: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_V: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Logits of BLOCK_N rows and BLOCK_V words after bias, soft-cap and temperature, -inf for a word past the last, and
    their slope: the derivative by the logit before soft-cap and temperature.

    first_row, first_word: int64; what lies within the tile is addressed in int32, which takes half the registers.
    """
    row, word = tl.arange(0, BLOCK_N), tl.arange(0, BLOCK_V)
    row_inside, word_inside = row < rows - first_row, word < words - first_word
    hidden += first_row * WIDTH
    weight += first_word * WIDTH
    sums = tl.zeros((BLOCK_N, BLOCK_V), tl.float32)
    for start in range(0, WIDTH, BLOCK_D):
        column = start + tl.arange(0, BLOCK_D)
        left = tl.load(
            hidden + row[:, None] * WIDTH + column[None, :],
            mask=row_inside[:, None] & (column < WIDTH)[None, :],
            other=0.0,
        )
        right = tl.load(
            weight + word[None, :] * WIDTH + column[:, None],
            mask=word_inside[None, :] & (column < WIDTH)[:, None],
            other=0.0,
        )
        sums = tl.dot(left, right, sums, input_precision="ieee")
    if HAS_BIAS:
        sums += tl.load(bias + first_word + word, mask=word_inside, other=0.0).to(tl.float32)[None, :]
    slope = tl.full((BLOCK_N, BLOCK_V), 1.0, tl.float32)
    if HAS_SOFTCAP:
        capped = tanh(sums / softcap)
        slope = 1.0 - capped * capped
        sums = softcap * capped
    return tl.where(word_inside[None, :], sums / temperature, float("-inf")), slope / temperature


@triton.jit
def is_target(target, first, BLOCK_V: tl.constexpr):
    """`[BLOCK_N, BLOCK_V]`: which of the words from `first` on a row's target is. Compared in int32, which takes
    half the registers."""
    place = tl.where((target >= first) & (target < first + BLOCK_V), target - first, -1).to(tl.int32)
    return tl.arange(0, BLOCK_V)[None, :] == place[:, None]
