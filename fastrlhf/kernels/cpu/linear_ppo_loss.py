"""PPO's loss from hidden states on the C++ kernels of `linear_logprob` and `ppo_loss`, a block of rows at a time."""

from __future__ import annotations

import torch

from fastrlhf.kernels import native
from fastrlhf.kernels.cpu.linear_logprob import addresses, head, linear_logprob
from fastrlhf.kernels.cpu.linear_logprob_backward import linear_logprob_backward
from fastrlhf.kernels.cpu.ppo_loss import ppo_loss
from fastrlhf.kernels.linear_ppo_loss_arguments import by_parts, loss_operands, with_entropy_gradient

# The logits of so many rows are held, which leaves all temporaries under 32 MB at V = 50,304.
BLOCK_ROWS = 128
# Every block reads the weight, and reads and writes its gradient. With narrower states that takes longer than computing
# the logits again: benchmarks/kernels/linear_ppo_loss.py, at widths of 256 and 576 on two threads.
WIDE = 512


def linear_ppo_loss(
    hidden_states,
    weight,
    targets,
    bias,
    values,
    temperature,
    softcap,
    tensors,
    numbers,
    kl_estimator,
    gradients,
):
    """See `fastrlhf.kernels.linear_ppo_loss`. Bit for bit the same for every number of threads."""
    head_of_rows = (hidden_states, weight, targets, bias, temperature, softcap)
    options = (values, tensors, numbers, kl_estimator)
    with_entropy = with_entropy_gradient(numbers)
    if hidden_states.shape[1] >= WIDE and (gradients > 1 or (gradients and with_entropy)):
        return _by_blocks(head_of_rows, options, needs_weight=gradients > 1)
    if gradients != 1:
        return by_parts(linear_logprob, linear_logprob_backward, ppo_loss, head_of_rows, options, gradients)
    # a frozen head: the derivatives of a row's outputs are known in the pass that finds those
    logprobs, entropy, _, slope, entropy_slope, _ = linear_logprob(*head_of_rows, 2 if with_entropy else 1)
    operands = loss_operands(logprobs, entropy, *options)
    loss, stats, grad_logprobs, grad_values, grad_entropy = ppo_loss(*operands)
    slope *= grad_logprobs[:, None]
    if with_entropy:
        slope.addcmul_(grad_entropy[:, None], entropy_slope)
    return loss, stats, slope, slope.new_empty(0), slope.new_empty(0), grad_values


def _by_blocks(head_of_rows: tuple, options: tuple, *, needs_weight: bool) -> tuple[torch.Tensor, ...]:
    hidden_states, weight, targets, bias, temperature, softcap = head_of_rows
    inputs, (rows, words, width) = head(hidden_states, weight, targets, bias)
    hidden_states, weight, bias, targets = inputs
    empty = hidden_states.new_empty
    logprobs, entropy = empty(2, rows)
    logsumexp = torch.empty(rows, dtype=torch.float64)
    # A gradient of no rows is zero, and the kernel writes what has rows alone.
    new = empty if rows else hidden_states.new_zeros
    grad_hidden = empty(rows, width)
    grad_weight = new((words, width) if needs_weight else 0)
    has_bias = needs_weight and bias is not None
    grad_bias = new(words if has_bias else 0)
    grad_head = (grad_weight if needs_weight else None, grad_bias if has_bias else None)

    module, threads = native.module("_cpu"), torch.get_num_threads()
    largest = (min(rows, BLOCK_ROWS), words, width)
    held = empty(module.held_logits(largest))
    forward_scratch = empty(module.linear_logprob_scratch(largest, 0, threads))
    backward_scratch = empty(module.linear_logprob_backward_scratch(largest, True))
    for first in range(0, rows, BLOCK_ROWS):
        block = slice(first, min(first + BLOCK_ROWS, rows))
        sizes = (block.stop - first, words, width)
        inputs = addresses(hidden_states[block], weight, bias, targets[block])
        found = (logprobs[block], entropy[block], logsumexp[block])
        module.linear_logprob(
            inputs,
            sizes,
            temperature,
            softcap or 0.0,
            addresses(*found, None, None, None, held),
            forward_scratch.data_ptr(),
            threads,
        )
        operands = loss_operands(logprobs, entropy, *options, block)
        _, _, grad_logprobs, _, grad_entropy = ppo_loss(*operands)
        module.linear_logprob_backward(
            inputs,
            sizes,
            temperature,
            softcap or 0.0,
            addresses(
                grad_logprobs,
                grad_entropy if with_entropy_gradient(options[2]) else None,
                *found[1:],
                grad_hidden[block],
                *grad_head,
                held,
            ),
            first > 0,
            backward_scratch.data_ptr(),
            threads,
        )
    # The sums of the statistics are those of all tokens at once, so that they are exactly `ppo_loss`'s.
    loss, stats, _, grad_values, _ = ppo_loss(*loss_operands(logprobs, entropy, *options))
    return loss, stats, grad_hidden, grad_weight, grad_bias, grad_values
