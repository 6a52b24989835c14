"""PPO's loss from hidden states on the C++ kernels of `linear_logprob` and `ppo_loss`, a block of rows at a time."""

from __future__ import annotations

import torch

from fastrlhf.kernels import native
from fastrlhf.kernels.cpu.linear_logprob import addresses, head, linear_logprob
from fastrlhf.kernels.cpu.ppo_loss import ppo_loss
from fastrlhf.kernels.linear_ppo_loss_arguments import loss_operands, with_entropy_gradient

# The logits of so many rows are held. A block reads the weight twice, and reads and writes its gradient: on one core
# of a Zen 5, at V = 50,304 and D = 256, that costs as much as the product that it saves with 96 rows; 128 rows save 6 %
# of the whole, 256 save 12 %.
BLOCK_ROWS = 128


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
    if gradients > 1 or (gradients and with_entropy_gradient(numbers)):
        return _by_blocks(head_of_rows, options, needs_weight=gradients > 1)
    logprobs, entropy, _, slope, _ = linear_logprob(*head_of_rows, int(gradients > 0))
    loss, stats, grad_logprobs, grad_values, _ = ppo_loss(*loss_operands(logprobs, entropy, *options))
    if gradients:
        slope *= grad_logprobs[:, None]
    return loss, stats, slope, torch.empty(0), torch.empty(0), grad_values


def _by_blocks(head_of_rows: tuple, options: tuple, *, needs_weight: bool) -> tuple[torch.Tensor, ...]:
    hidden_states, weight, targets, bias, temperature, softcap = head_of_rows
    inputs, (rows, words, width) = head(hidden_states, weight, targets, bias)
    hidden_states, weight, bias, targets = inputs
    logprobs, entropy = torch.empty(2, rows)
    logsumexp = torch.empty(rows, dtype=torch.float64)
    # A gradient of no rows is zero, and the kernel writes what has rows alone.
    new = torch.empty if rows else torch.zeros
    grad_hidden = torch.empty(rows, width)
    grad_weight = new((words, width) if needs_weight else 0)
    has_bias = needs_weight and bias is not None
    grad_bias = new(words if has_bias else 0)
    grad_head = (grad_weight if needs_weight else None, grad_bias if has_bias else None)

    module, threads = native.module("_cpu"), torch.get_num_threads()
    largest = (min(rows, BLOCK_ROWS), words, width)
    held = torch.empty(module.held_logits(largest))
    forward_scratch = torch.empty(module.linear_logprob_scratch(largest, 0, threads))
    backward_scratch = torch.empty(module.linear_logprob_backward_scratch(largest, True))
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
            addresses(*found, None, None, held),
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
