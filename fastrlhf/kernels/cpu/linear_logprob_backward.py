"""Launcher of the C++ kernel of `linear_logprob`'s gradients."""

from __future__ import annotations

import torch

from fastrlhf.kernels import native
from fastrlhf.kernels.cpu.linear_logprob import addresses, head


def linear_logprob_backward(
    grad_logprobs,
    grad_entropy,
    hidden_states,
    weight,
    targets,
    bias,
    entropy,
    logsumexp,
    temperature,
    softcap,
    needs_weight,
):
    """See `fastrlhf.kernels.linear_logprob`. Bit for bit the same for every number of threads."""
    inputs, sizes = head(hidden_states, weight, targets, bias)
    rows, words, width = sizes
    outer = [
        None if tensor is None else tensor.contiguous()
        for tensor in (grad_logprobs, grad_entropy, entropy, logsumexp)
    ]
    assert all(tensor is None or tensor.shape == (rows,) for tensor in outer)
    # A gradient of no rows is zero, and the kernel writes what has rows alone.
    new = hidden_states.new_empty if rows else hidden_states.new_zeros
    grad_hidden = hidden_states.new_empty(rows, width)
    grad_weight = new((words, width) if needs_weight else 0)
    has_bias = needs_weight and bias is not None
    grad_bias = new(words if has_bias else 0)
    module, threads = native.module("_cpu"), torch.get_num_threads()
    scratch = hidden_states.new_empty(module.linear_logprob_backward_scratch(sizes, False))
    module.linear_logprob_backward(
        addresses(*inputs),
        sizes,
        temperature,
        softcap or 0.0,
        addresses(
            *outer, grad_hidden, grad_weight if needs_weight else None, grad_bias if has_bias else None, None
        ),
        False,
        scratch.data_ptr(),
        threads,
    )
    return grad_hidden, grad_weight, grad_bias
