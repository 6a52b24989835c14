"""What the backends of `linear_ppo_loss` share: the arguments of `ppo_loss` on their way through, of which it knows the
names of a few alone, and the operation by its two parts."""

from __future__ import annotations

from collections.abc import Callable

import torch

from fastrlhf.kernels.ppo_loss import _ppo_loss

_NAMES = _ppo_loss.arguments
_LOGPROBS, _VALUES, _ENTROPY, _DENOMINATORS = (
    _NAMES.index(name) for name in ("logprobs", "values", "entropy", "denominators")
)
# Tensors come first, then numbers, then the estimator's name.
_TENSORS = _DENOMINATORS + 1
_ENTROPY_COEF = _NAMES.index("entropy_coef") - _TENSORS


def split_operands(
    operands: tuple[torch.Tensor | float | str | None, ...],
) -> tuple[torch.Tensor | None, list[torch.Tensor | None], list[float], str]:
    """The operation's arguments as the values, its other tensors, its numbers and the KL estimator; None for logprobs,
    values and entropy, which are not among the tensors."""
    tensors = [
        None if position in (_LOGPROBS, _VALUES, _ENTROPY) else tensor
        for position, tensor in enumerate(operands[:_TENSORS])
    ]
    return operands[_VALUES], tensors, list(operands[_TENSORS:-1]), operands[-1]


def with_entropy_gradient(numbers: list[float]) -> bool:
    """Whether the entropy is in the loss: otherwise it is only watched."""
    return numbers[_ENTROPY_COEF] != 0


def loss_operands(
    logprobs: torch.Tensor,
    entropy: torch.Tensor,
    values: torch.Tensor | None,
    tensors: list[torch.Tensor | None],
    numbers: list[float],
    kl_estimator: str,
    rows: slice = slice(None),
) -> tuple[torch.Tensor | float | str | None, ...]:
    """The operation's arguments for some of the rows, with what has been found; the denominators stay everybody's."""
    whole = list(tensors)
    whole[_LOGPROBS], whole[_ENTROPY], whole[_VALUES] = logprobs, entropy, values
    part = [
        tensor if tensor is None or position == _DENOMINATORS else tensor[rows]
        for position, tensor in enumerate(whole)
    ]
    return (*part, *numbers, kl_estimator)


def by_parts(
    linear_logprob: Callable,
    linear_logprob_backward: Callable,
    ppo_loss: Callable,
    head: tuple,
    options: tuple,
    gradients: int,
) -> tuple[torch.Tensor, ...]:
    """The operation by a backend's launchers of its parts: the logits are computed again for the gradients.

    Args:
        head: hidden_states, weight, targets, bias, temperature and softcap.
        options: values, tensors, numbers and kl_estimator, see `split_operands`.
    """
    hidden_states, weight, *_ = head
    logprobs, entropy, logsumexp, *_ = linear_logprob(*head, 0)
    operands = loss_operands(logprobs, entropy, *options)
    loss, stats, grad_logprobs, grad_values, grad_entropy = ppo_loss(*operands)
    grads = [hidden_states.new_empty(0), weight.new_empty(0), weight.new_empty(0)]
    if gradients:
        grad_entropy = grad_entropy if with_entropy_gradient(options[2]) else None
        statistics = entropy, logsumexp
        grads = linear_logprob_backward(
            grad_logprobs, grad_entropy, *head[:4], *statistics, *head[4:], gradients > 1
        )
    return loss, stats, *grads, grad_values
