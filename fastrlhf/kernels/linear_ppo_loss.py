"""PPO's loss straight from hidden states, with its gradients in the same pass: contract, registration, function."""

from __future__ import annotations

from enum import IntEnum
from typing import Any

import torch

from fastrlhf.device.observe import Cost, nbytes
from fastrlhf.kernels import dispatch
from fastrlhf.kernels.autocast import matrix_inputs
from fastrlhf.kernels.linear_logprob import check_head, check_targets
from fastrlhf.kernels.linear_ppo_loss_arguments import split_operands
from fastrlhf.kernels.ppo_loss import PPOLoss, Stat, checked_operands, ppo_loss
from fastrlhf.kernels.registration import all_plain, operation

_DEFAULTS: dict[str, Any] = dict(ppo_loss.__kwdefaults__)


class Gradients(IntEnum):
    """Of what the operation finds the gradient, the values aside."""

    NONE = 0
    HIDDEN = 1
    HEAD = 2  # hidden states, weight and bias


def linear_ppo_loss(
    hidden_states: torch.Tensor,
    weight: torch.Tensor,
    targets: torch.Tensor,
    old_logprobs: torch.Tensor,
    advantages: torch.Tensor,
    mask: torch.Tensor,
    *,
    bias: torch.Tensor | None = None,
    temperature: float = 1.0,
    softcap: float | None = None,
    **options: Any,
) -> PPOLoss:
    """`ppo_loss` of the log-probabilities and entropies that `linear_logprob` finds, differentiable in hidden_states,
    weight and bias, and in the values among the options.

    The loss's gradient of a token needs that token's log-probability and entropy alone, so the gradients are found at
    once, and the backward only multiplies them by the gradient of the loss. On a CPU, from a width of 512 on, a block
    of rows is done at a time: its logits over the whole vocabulary, the loss, the gradient of the logits in their
    place, and from there those of hidden_states and head. Matrix products, against those of `linear_logprob` and
    `ppo_loss` one after the other:

    - trainable head: three against four;
    - frozen head, entropy_coef not zero: two against three;
    - frozen head otherwise: two, with no row's logits held (the derivative of the log-probability is known in the pass
      that finds it, and the loss's gradient multiplies it afterwards).

    Of narrower states, where a block's traffic on the weight costs more than the product that it saves, and on a GPU
    (see `triton/linear_ppo_loss.py`) the products are those of the two operations.

    Args:
        hidden_states, weight, targets, bias, temperature, softcap: see `linear_logprob`, N tokens.
        old_logprobs, advantages: `[N]`, float32 (float64 for float64 hidden_states).
        mask: `[N]`, bool: the tokens that count.
        options: the other keyword arguments of `ppo_loss`; tensors `[N]`. The entropy is the head's own.

    Returns:
        loss and stats, as `ppo_loss`.

    Raises:
        ValueError, TypeError, IndexError: as `linear_logprob` and `ppo_loss`.

    Memory: the gradients, kept from the forward to the backward: hidden_states', and the head's if it is trainable. The
    backward returns those themselves where the gradient of the loss is one (on a CPU), else products of the same size.
    By blocks also the logits of at most 128 rows (26 MB at V = 50,304: every block reads the weight and its gradient,
    and with fewer rows that takes longer than computing the logits again), and a tile a thread. Otherwise what
    `linear_logprob` and its backward hold.
    """
    hidden_states, weight, bias = matrix_inputs(hidden_states, weight, bias)
    check_head(hidden_states, weight, targets, bias, temperature, softcap)
    if "entropy" in options:
        raise TypeError("entropy is not an option of linear_ppo_loss, which finds it")
    dtype = torch.promote_types(hidden_states.dtype, torch.float32)
    found = hidden_states.new_empty(hidden_states.shape[:1], dtype=dtype)  # stands for what is to be found
    given = _DEFAULTS | options | {"entropy": found}
    operands = checked_operands(found, old_logprobs, advantages, mask, **given)
    values, *loss_arguments = split_operands(operands)
    loss, stats, *_ = _linear_ppo_loss(
        hidden_states,
        weight,
        targets,
        bias,
        values,
        float(temperature),
        softcap,
        *loss_arguments,
        int(_wanted(hidden_states, weight, bias)),
    )
    return PPOLoss(loss, stats)


def _wanted(hidden_states: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> Gradients:
    if not torch.is_grad_enabled():
        return Gradients.NONE
    if weight.requires_grad or (bias is not None and bias.requires_grad):
        return Gradients.HEAD
    return Gradients.HIDDEN if hidden_states.requires_grad else Gradients.NONE


@dispatch.costs("linear_ppo_loss")
def _cost(hidden_states, weight, targets, bias, values, temperature, softcap, tensors, *rest) -> Cost:
    """The products are the logits, and one for each of the gradients of hidden_states and weight."""
    gradients = rest[-1]
    (rows, width), vocabulary = hidden_states.shape, weight.shape[0]
    number = torch.promote_types(hidden_states.dtype, torch.float32).itemsize
    written = number + 8 * len(Stat) + nbytes(values)
    written += nbytes(hidden_states) * (gradients > 0) + nbytes(weight, bias) * (gradients > 1)
    flops = rows * vocabulary * (2 * width * (1 + gradients) + 10)
    return Cost(nbytes(hidden_states, weight, targets, bias, values, *tensors), written, flops)


@operation("linear_ppo_loss")
def _linear_ppo_loss(
    hidden_states: torch.Tensor,
    weight: torch.Tensor,
    targets: torch.Tensor,
    bias: torch.Tensor | None,
    values: torch.Tensor | None,
    temperature: float,
    softcap: float | None,
    tensors: list[torch.Tensor | None],
    numbers: list[float],
    kl_estimator: str,
    gradients: int,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """loss, stats, and the gradients of loss in hidden_states, weight, bias and values (empty where not wanted, or
    without bias or values). `tensors`, `numbers`, kl_estimator: see `split_operands`; `gradients`: see `Gradients`."""
    check_targets(targets, weight)
    return dispatch.call(
        "linear_ppo_loss",
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
    )


@_linear_ppo_loss.register_fake
def _(hidden_states, weight, targets, bias, values, *rest):
    gradients = rest[-1]
    dtype = torch.promote_types(hidden_states.dtype, torch.float32)

    def like(tensor, wanted):
        return tensor.new_empty(tensor.shape) if wanted else hidden_states.new_empty(0)

    return (
        hidden_states.new_empty((), dtype=dtype),
        hidden_states.new_empty(len(Stat), dtype=torch.float64),
        like(hidden_states, gradients > 0),
        like(weight, gradients > 1),
        like(bias, gradients > 1 and bias is not None),
        hidden_states.new_empty(0, dtype=dtype) if values is None else values.new_empty(values.shape),
    )


_LEAVES = (0, 1, 3, 4)  # hidden_states, weight, bias, values


def _setup_context(ctx, inputs, output):
    _, stats, *gradients = output
    ctx.mark_non_differentiable(stats, *gradients)
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*gradients)
    ctx.arguments = len(inputs)


def _backward(ctx, grad_loss, *_):
    grads: list[torch.Tensor | None] = [None] * ctx.arguments
    if grad_loss is not None:
        one = grad_loss.device.type == "cpu" and all_plain((grad_loss,)) and bool(grad_loss == 1)
        for position, gradient in zip(_LEAVES, ctx.saved_tensors, strict=True):
            if ctx.needs_input_grad[position]:
                # Multiplied in the loss's dtype: a loss scale of 65,536 is already infinite in float16.
                grads[position] = (
                    gradient if one else (gradient.to(grad_loss.dtype) * grad_loss).to(gradient.dtype)
                )
    return tuple(grads)


_linear_ppo_loss.register_autograd(_backward, setup_context=_setup_context)
