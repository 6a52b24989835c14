"""Gradients of the logits, a part of the vocabulary at a time, and their products with the head's weight and states."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from fastrlhf.device.launch import launch_triton
from fastrlhf.kernels.triton.linear_logprob_product import product
from fastrlhf.kernels.triton.linear_logprob_tile import is_target, size_class, tile_logits

CONFIGS = [
    {"BLOCK_N": 16, "BLOCK_V": 128, "BLOCK_D": 64, "num_warps": 4, "num_stages": 2},
    {"BLOCK_N": 128, "BLOCK_V": 128, "BLOCK_D": 64, "num_warps": 8, "num_stages": 3},
    {"BLOCK_N": 64, "BLOCK_V": 64, "BLOCK_D": 32, "num_warps": 8, "num_stages": 2},
]
# Logits whose gradients are held at once. In half precision 16 MB: the second-level cache of a large card holds it.
HELD = 1 << 23
# What every block of words divides, so that blocks of a part of the vocabulary fill whole lines.
UNIT = 128


def choose_config(rows: int, dtype: torch.dtype) -> dict:
    """As `linear_logprob.choose_config`."""
    return CONFIGS[size_class(rows, dtype)]


def along_weight(
    hidden_states,
    weight,
    targets,
    bias,
    entropy,
    logsumexp,
    temperature,
    softcap,
    *,
    outputs=1,
    grads=None,
    grad_weight=None,
    grad_bias=None,
):
    """Gradients of the logits times the weight, `[N, D]` float32, the logits computed again.

    Args:
        outputs: without `grads`, 1 for the slope of the log-probability, 2 for the entropy's as well.
        grads: (grad_logprobs, grad_entropy or None); one output then.
        grad_weight, grad_bias: filled with those gradients, if given (only with `grads`).

    Returns:
        A list of the outputs.

    A part of the vocabulary after the other: a kernel writes the gradients of its logits, and one product an output
    adds it up. Each sum has one program, or one a split that is summed up at the end.
    """
    (rows, width), words = hidden_states.shape, weight.shape[0]
    config = choose_config(rows, hidden_states.dtype)
    part = max(UNIT, min(HELD // max(rows, 1), words + UNIT - 1) // UNIT * UNIT)
    held = hidden_states.new_empty((outputs, rows, part))
    grad_logprobs, grad_entropy = grads or (entropy, None)
    row_blocks = triton.cdiv(rows, config["BLOCK_N"])
    bias_parts = entropy.new_empty((row_blocks, part))
    sums = [None] * outputs
    for first in range(0, words, part):
        count = min(part, words - first)
        launch_triton(
            logit_gradient_kernel,
            (row_blocks, triton.cdiv(count, config["BLOCK_V"])),
            hidden_states.device,
            *(hidden_states, weight, weight if bias is None else bias, targets, entropy, logsumexp),
            *(grad_logprobs, grad_logprobs if grad_entropy is None else grad_entropy),
            *(held, bias_parts, rows, words, first, part, temperature, softcap or 0.0),
            WIDTH=width,
            HAS_BIAS=bias is not None,
            HAS_SOFTCAP=softcap is not None,
            GIVEN=grads is not None,
            HAS_ENTROPY=grad_entropy is not None or outputs == 2,
            HAS_BIAS_GRAD=grad_bias is not None,
            **config,
        )
        for output in range(outputs):
            sums[output] = product(held[output], weight[first : first + count], into=sums[output])
        if grad_weight is not None:
            product(held[0], hidden_states, into=grad_weight[first : first + count], turned=True)
        if grad_bias is not None:
            grad_bias[first : first + count] = bias_parts[:, :count].sum(0)
    return [parts.sum(0) if parts.shape[0] > 1 else parts[0] for parts in sums]


@triton.jit(do_not_specialize=["rows", "words", "first"])
def logit_gradient_kernel(
    hidden,
    weight,
    bias,
    targets,
    entropy,
    logsumexp,
    grad_logprobs,
    grad_entropy,
    held,
    bias_parts,
    rows,
    words,
    first,
    part,
    temperature,
    softcap,
    WIDTH: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    HAS_SOFTCAP: tl.constexpr,
    GIVEN: tl.constexpr,
    HAS_ENTROPY: tl.constexpr,
    HAS_BIAS_GRAD: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_V: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Grid: (blocks of rows, blocks of the words from `first`).

    held `[outputs, rows, part]`: the gradients of the logits before soft-cap and temperature, zero past the last word.
    """
    block = tl.program_id(0).to(tl.int64)
    first_row = block * BLOCK_N
    row = first_row + tl.arange(0, BLOCK_N)
    start = tl.program_id(1).to(tl.int64) * BLOCK_V
    column = start + tl.arange(0, BLOCK_V)
    logits, slope = tile_logits(
        *(hidden, weight, bias, first_row, first + start, rows, words, temperature, softcap),
        *(WIDTH, HAS_BIAS, HAS_SOFTCAP, BLOCK_N, BLOCK_V, BLOCK_D),
    )
    inside = row < rows
    # In two parts: a float32 near 1e4 would be off by half a thousandth. A row past the end weighs nothing.
    normalizer = tl.load(logsumexp + row, mask=inside, other=float("inf"))
    high = normalizer.to(tl.float32)
    low = tl.where(inside, (normalizer - high.to(tl.float64)).to(tl.float32), 0.0)
    log_p = logits - high[:, None] - low[:, None]
    p = tl.exp(log_p)
    target = tl.load(targets + row, mask=inside, other=-1)
    chosen = is_target(target, first + start, BLOCK_V)
    at = held + row[:, None] * part + column[None, :]
    within = inside[:, None] & (first + column < words)[None, :]
    if HAS_ENTROPY:
        above = log_p + tl.load(entropy + row, mask=inside, other=0.0)[:, None]
        above = tl.where(p == 0, 0.0, above)
    if GIVEN:
        grad = tl.load(grad_logprobs + row, mask=inside, other=0.0)[:, None]
        weighed = grad
        if HAS_ENTROPY:
            weighed = grad + tl.load(grad_entropy + row, mask=inside, other=0.0)[:, None] * above
        grads = tl.where(within, (tl.where(chosen, grad, 0.0) - p * weighed) * slope, 0.0)
        if HAS_BIAS_GRAD:
            tl.store(bias_parts + block * part + column, tl.sum(grads, axis=0))
    else:
        grads = tl.where(within, (tl.where(chosen, 1.0, 0.0) - p) * slope, 0.0)
        if HAS_ENTROPY:
            of_entropy = tl.where(within, -p * above * slope, 0.0).to(held.dtype.element_ty)
            tl.store(at + tl.cast(rows, tl.int64) * part, of_entropy, mask=inside[:, None])
    tl.store(at, grads.to(held.dtype.element_ty), mask=inside[:, None])
