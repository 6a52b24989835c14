"""Log-probabilities and entropies from hidden states: a program has a block of rows and a part of the vocabulary."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from fastrlhf.device.launch import launch_triton
from fastrlhf.kernels.triton.linear_logprob_gradient import along_weight
from fastrlhf.kernels.triton.linear_logprob_tile import is_target, size_class, tile_logits

# A stage holds a block of hidden states and one of weights: 99 KB on the smallest cards.
CONFIGS = [
    {"BLOCK_N": 16, "BLOCK_V": 128, "BLOCK_D": 64, "num_warps": 4, "num_stages": 2},
    {"BLOCK_N": 128, "BLOCK_V": 128, "BLOCK_D": 64, "num_warps": 8, "num_stages": 3},
    {"BLOCK_N": 64, "BLOCK_V": 64, "BLOCK_D": 32, "num_warps": 8, "num_stages": 2},
]
# The least number of programs that the vocabulary is split for: some waves of the largest card. Of the shape alone, so
# that every card gives the same bits.
PROGRAMS = 512
MERGED_ROWS = 256


def choose_config(rows: int, dtype: torch.dtype) -> dict:
    """The flat tile for few rows; smaller ones in float32, whose products take more registers."""
    return CONFIGS[size_class(rows, dtype)]


def linear_logprob(hidden_states, weight, targets, bias, temperature, softcap, slopes):
    """See `fastrlhf.kernels.linear_logprob`. No atomics, so the same input gives the same bits.

    The slopes of a frozen head take a second pass over the logits, and a product each: as many products as recomputing
    in the backward, and one more for the entropy's.
    """
    hidden_states, weight, targets = hidden_states.contiguous(), weight.contiguous(), targets.contiguous()
    bias = bias if bias is None else bias.contiguous()
    (rows, width), words = hidden_states.shape, weight.shape[0]
    config = choose_config(rows, hidden_states.dtype)
    row_blocks, tiles = triton.cdiv(rows, config["BLOCK_N"]), triton.cdiv(words, config["BLOCK_V"])
    splits = max(1, min(tiles, PROGRAMS // max(row_blocks, 1)))
    # whole blocks of rows, so that the merge reads 16 bytes at a time whatever their number
    padded = row_blocks * config["BLOCK_N"]
    partial = hidden_states.new_empty((4, splits, padded), dtype=torch.float32)
    launch_triton(
        linear_logprob_kernel,
        (row_blocks, splits),
        hidden_states.device,
        *(hidden_states, weight, weight if bias is None else bias, targets, partial),
        *(rows, padded, words, triton.cdiv(tiles, splits), temperature, softcap or 0.0),
        WIDTH=width,
        HAS_BIAS=bias is not None,
        HAS_SOFTCAP=softcap is not None,
        **config,
    )
    logprobs, entropy, top_logprobs = (partial.new_empty(rows) for _ in range(3))
    logsumexp = partial.new_empty(rows, dtype=torch.float64)
    launch_triton(
        linear_logprob_merge_kernel,
        (triton.cdiv(rows, MERGED_ROWS),),
        hidden_states.device,
        *(partial, targets, logprobs, entropy, logsumexp, top_logprobs, rows, padded, words, splits),
        BLOCK=MERGED_ROWS,
        num_warps=2,
    )
    kept = [partial.new_empty(0) for _ in range(2)]
    if slopes:
        head = hidden_states, weight, targets, bias, entropy, logsumexp, temperature, softcap
        kept[:slopes] = along_weight(*head, outputs=slopes)
    return logprobs, entropy, logsumexp, *kept, top_logprobs


@triton.jit
def join(largest, total, moment, new_largest, new_total, new_moment):
    """Two parts of a softmax: the largest logit, and sums of e = exp(z - largest) and of e (z - largest)."""
    top = tl.maximum(largest, new_largest)
    # no logit so far: a difference of two -inf would be NaN
    rise = tl.where(largest == float("-inf"), 0.0, top - largest)
    new_rise = tl.where(new_largest == float("-inf"), 0.0, top - new_largest)
    factor, new_factor = tl.exp(-rise), tl.exp(-new_rise)
    total_moment = factor * (moment - rise * total) + new_factor * (new_moment - new_rise * new_total)
    return top, factor * total + new_factor * new_total, total_moment


@triton.jit(do_not_specialize=["rows", "words", "tiles"])
def linear_logprob_kernel(
    hidden,
    weight,
    bias,
    targets,
    partial,
    rows,
    padded,
    words,
    tiles,
    temperature,
    softcap,
    WIDTH: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    HAS_SOFTCAP: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_V: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Grid: (blocks of rows, splits of the vocabulary of `tiles` blocks of words each).

    partial `[4, splits, padded]`: what `join` joins, and the target's logit, zero where another split has it.
    """
    first_row = tl.program_id(0).to(tl.int64) * BLOCK_N
    row = first_row + tl.arange(0, BLOCK_N)
    split, splits = tl.program_id(1).to(tl.int64), tl.num_programs(1)
    target = tl.load(targets + row, mask=row < rows, other=-1)
    of_target = tl.zeros((BLOCK_N,), tl.float32)
    largest = tl.full((BLOCK_N,), float("-inf"), tl.float32)
    total, moment = tl.zeros((BLOCK_N,), tl.float32), tl.zeros((BLOCK_N,), tl.float32)
    for tile in range(tiles):
        first = (split * tiles + tile) * BLOCK_V
        logits, _ = tile_logits(
            *(hidden, weight, bias, first_row, first, rows, words, temperature, softcap),
            *(WIDTH, HAS_BIAS, HAS_SOFTCAP, BLOCK_N, BLOCK_V, BLOCK_D),
        )
        of_target += tl.sum(tl.where(is_target(target, first, BLOCK_V), logits, 0.0), axis=1)
        top = tl.max(logits, axis=1)
        below = logits - tl.where(top == float("-inf"), 0.0, top)[:, None]
        e = tl.exp(below)
        moments = tl.where(e == 0, 0.0, e * below)
        largest, total, moment = join(largest, total, moment, top, tl.sum(e, axis=1), tl.sum(moments, axis=1))
    at = partial + split * padded + row
    step = tl.cast(splits, tl.int64) * padded
    tl.store(at, largest)
    tl.store(at + step, total)
    tl.store(at + 2 * step, moment)
    tl.store(at + 3 * step, of_target)


@triton.jit(do_not_specialize=["rows", "words", "splits"])
def linear_logprob_merge_kernel(
    partial,
    targets,
    logprobs,
    entropy,
    logsumexp,
    top_logprobs,
    rows,
    padded,
    words,
    splits,
    BLOCK: tl.constexpr,
):
    """Grid: blocks of rows. Joins the splits in order."""
    row = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    written = row < padded
    largest = tl.full((BLOCK,), float("-inf"), tl.float32)
    total, moment = tl.zeros((BLOCK,), tl.float32), tl.zeros((BLOCK,), tl.float32)
    of_target = tl.zeros((BLOCK,), tl.float32)
    step = tl.cast(splits, tl.int64) * padded
    for split in range(splits):
        at = partial + tl.cast(split, tl.int64) * padded + row
        largest, total, moment = join(
            largest,
            total,
            moment,
            tl.load(at, mask=written, other=0.0),
            tl.load(at + step, mask=written, other=1.0),
            tl.load(at + 2 * step, mask=written, other=0.0),
        )
        of_target += tl.load(at + 3 * step, mask=written, other=0.0)
    inside = row < rows
    target = tl.load(targets + row, mask=inside, other=0)
    of_target = tl.where((target >= 0) & (target < words), of_target, float("nan"))
    log_total = tl.log(total)
    tl.store(logprobs + row, of_target - largest - log_total, mask=inside)
    tl.store(entropy + row, log_total - moment / total, mask=inside)
    # 0 - x and not -x: the target's, where it is the likeliest, to the bit
    tl.store(top_logprobs + row, 0.0 - log_total, mask=inside)
    # the sum of the two has more bits than a float32
    tl.store(logsumexp + row, largest.to(tl.float64) + log_total.to(tl.float64), mask=inside)
