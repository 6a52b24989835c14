"""Launcher of the C++ kernel of log-probabilities and entropies from hidden states."""

from __future__ import annotations

import torch

from fastrlhf.kernels import native


def linear_logprob(hidden_states, weight, targets, bias, temperature, softcap, slopes):
    """See `fastrlhf.kernels.linear_logprob`. Bit for bit the same for every number of threads."""
    inputs, sizes = head(hidden_states, weight, targets, bias)
    rows, _, width = sizes
    empty = hidden_states.new_empty
    logprobs, entropy, top_logprobs = empty(rows), empty(rows), empty(rows)
    logsumexp = torch.empty(rows, dtype=torch.float64)
    kept = [empty((rows, width) if wanted else 0) for wanted in (slopes > 0, slopes > 1)]
    module, threads = native.module("_cpu"), torch.get_num_threads()
    scratch = empty(module.linear_logprob_scratch(sizes, slopes, threads))
    module.linear_logprob(
        addresses(*inputs),
        sizes,
        temperature,
        softcap or 0.0,
        addresses(
            *(logprobs, entropy, logsumexp, top_logprobs),
            *(slope if slope.dim() == 2 else None for slope in kept),
            None,
        ),
        scratch.data_ptr(),
        threads,
    )
    return logprobs, entropy, logsumexp, *kept, top_logprobs


def head(hidden_states, weight, targets, bias) -> tuple[list[torch.Tensor | None], tuple[int, int, int]]:
    """The inputs, contiguous, in the order of csrc/cpu/linear_logprob_binding.h, and (rows, words, width).

    The list is to be held until the kernel returns: a contiguous copy dies with its last reference.
    """
    inputs = [
        None if tensor is None else tensor.contiguous() for tensor in (hidden_states, weight, bias, targets)
    ]
    (rows, width), words = hidden_states.shape, weight.shape[0]
    assert weight.shape == (words, width) and targets.shape == (rows,)
    assert bias is None or bias.shape == (words,)
    return inputs, (rows, words, width)


def addresses(*tensors: torch.Tensor | None) -> list[int]:
    """Zero for None."""
    return [0 if tensor is None else tensor.data_ptr() for tensor in tensors]
