"""What a decoding step leaves in the state of its rows: a lane a row."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from fastrlhf.device.launch import launch_triton

CONFIGS = [
    {"BLOCK": 128, "num_warps": 1},
]


def choose_config() -> dict:
    """One for all: a batch is a few hundred rows."""
    return CONFIGS[0]


def end_step(
    logprobs, entropy, tokens, steps, lengths, seen, new_tokens, new_logprobs, new_entropy, last_position
):
    """See `fastrlhf.kernels.end_step`."""
    rows = len(tokens)
    config = choose_config()
    of_rows = logprobs, entropy, tokens, steps, lengths, new_tokens, new_logprobs, new_entropy
    launch_triton(
        end_step_kernel,
        (triton.cdiv(rows, config["BLOCK"]),),
        tokens.device,
        *of_rows,
        None if seen is None else seen.view(torch.int8),
        rows,
        0 if seen is None else seen.shape[1],
        last_position,
        *(tensor.stride(0) for tensor in of_rows),
        *((0, 0) if seen is None else seen.stride()),
        **config,
    )


@triton.jit(do_not_specialize=["rows", "vocabulary", "last_position"])
def end_step_kernel(
    logprobs,
    entropy,
    tokens,
    steps,
    lengths,
    new_tokens,
    new_logprobs,
    new_entropy,
    seen,
    rows,
    vocabulary,
    last_position,
    logprobs_stride,
    entropy_stride,
    tokens_stride,
    steps_stride,
    lengths_stride,
    new_tokens_stride,
    new_logprobs_stride,
    new_entropy_stride,
    seen_row_stride,
    seen_stride,
    BLOCK: tl.constexpr,
):
    """Grid: blocks of rows. `seen` may be None."""
    row = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = row < rows
    token = tl.load(new_tokens + row * new_tokens_stride, mask=inside, other=0)
    logprob = tl.load(new_logprobs + row * new_logprobs_stride, mask=inside, other=0.0)
    of_entropy = tl.load(new_entropy + row * new_entropy_stride, mask=inside, other=0.0)
    step = tl.load(steps + row * steps_stride, mask=inside, other=0)
    length = tl.load(lengths + row * lengths_stride, mask=inside, other=0)
    tl.store(tokens + row * tokens_stride, token, mask=inside)
    tl.store(logprobs + row * logprobs_stride, logprob.to(logprobs.dtype.element_ty), mask=inside)
    tl.store(entropy + row * entropy_stride, of_entropy.to(entropy.dtype.element_ty), mask=inside)
    tl.store(steps + row * steps_stride, step + 1, mask=inside)
    tl.store(lengths + row * lengths_stride, tl.minimum(length + 1, last_position), mask=inside)
    if seen is not None:
        known = inside & (token >= 0) & (token < vocabulary)
        marked = tl.full((BLOCK,), 1, tl.int8)
        tl.store(seen + row * seen_row_stride + token * seen_stride, marked, mask=known)
