"""Log-probability and entropy of chosen tokens straight from hidden states: contract, registration, function."""

from __future__ import annotations

from typing import NamedTuple

import torch

from fastrlhf.device.observe import Cost, nbytes
from fastrlhf.kernels import dispatch
from fastrlhf.kernels.checks import (
    FLOATS,
    check_at_least,
    check_dims,
    check_dtype,
    check_same_device,
    check_shape,
)
from fastrlhf.kernels.registration import operation


class LinearLogprob(NamedTuple):
    """What `linear_logprob` returns."""

    logprobs: torch.Tensor
    entropy: torch.Tensor


def linear_logprob(
    hidden_states: torch.Tensor,
    weight: torch.Tensor,
    targets: torch.Tensor,
    *,
    bias: torch.Tensor | None = None,
    temperature: float = 1.0,
    softcap: float | None = None,
) -> LinearLogprob:
    """Log-probabilities of `targets` and the entropy of the distribution that they come from, without whole logits.

    `z = hidden_states weight^T + bias`, `z = softcap tanh(z / softcap)` if given, `p = softmax(z / temperature)`:
    logprobs `log p[target]`, entropy `-sum(p log p)` in nats. Statistics are float32 whatever the inputs are.

    Args:
        hidden_states: `[N, D]`, float.
        weight: `[V, D]`, the head's, the same dtype.
        targets: `[N]`, int64, in [0, V).
        bias: `[V]`, the same dtype.
        temperature: divides the logits; more than zero.
        softcap: bound of the logits before the temperature (Gemma 2's `final_logit_softcapping`).

    Returns:
        logprobs and entropy, `[N]`, float32 (float64 for float64 inputs), differentiable in hidden_states, weight and
        bias.

    Raises:
        ValueError, TypeError: shapes, dtypes, devices or coefficients that do not fit.
        IndexError: a target outside [0, V) (on a CPU; a GPU is not made to wait for the check).

    Memory: one tile of logits, never `[N, V]`; the backward computes the tiles again.
    """
    check_dims("hidden_states", hidden_states, 2, "[N, D]")
    check_dtype("hidden_states", hidden_states, FLOATS)
    check_dims("weight", weight, 2, "[V, D]")
    check_shape("weight", weight, (weight.shape[0], hidden_states.shape[1]), "[V, D]")
    check_dtype("weight", weight, (hidden_states.dtype,))
    check_shape("targets", targets, (hidden_states.shape[0],), "[N]")
    check_dtype("targets", targets, (torch.int64,))
    if bias is not None:
        check_shape("bias", bias, (weight.shape[0],), "[V]")
        check_dtype("bias", bias, (hidden_states.dtype,))
    check_same_device(hidden_states=hidden_states, weight=weight, targets=targets, bias=bias)
    check_at_least("temperature", temperature, 0, strict=True)
    if softcap is not None:
        check_at_least("softcap", softcap, 0, strict=True)
    return LinearLogprob(*_linear_logprob(hidden_states, weight, targets, bias, float(temperature), softcap))


@dispatch.costs("linear_logprob")
def _cost(hidden_states, weight, targets, bias, temperature, softcap) -> Cost:
    (rows, width), vocabulary = hidden_states.shape, weight.shape[0]
    statistics = 2 * rows * torch.promote_types(hidden_states.dtype, torch.float32).itemsize
    flops = rows * vocabulary * (2 * width + 5)
    return Cost(nbytes(hidden_states, weight, targets, bias), statistics, flops)


@dispatch.costs("linear_logprob_backward")
def _backward_cost(
    grad_logprobs, grad_entropy, hidden_states, weight, targets, bias, temperature, softcap, needs_weight
) -> Cost:
    """The products are the logits again, and one for each gradient."""
    (rows, width), vocabulary = hidden_states.shape, weight.shape[0]
    read = nbytes(grad_logprobs, grad_entropy, hidden_states, weight, targets, bias)
    written = nbytes(hidden_states, *((weight, bias) if needs_weight else ()))
    products = 3 if needs_weight else 2
    return Cost(read, written, rows * vocabulary * (2 * width * products + 8))


@operation("linear_logprob")
def _linear_logprob(
    hidden_states: torch.Tensor,
    weight: torch.Tensor,
    targets: torch.Tensor,
    bias: torch.Tensor | None,
    temperature: float,
    softcap: float | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    if targets.device.type == "cpu" and targets.numel():
        low, high = int(targets.min()), int(targets.max())
        if low < 0 or high >= weight.shape[0]:
            raise IndexError(
                f"targets lie in [{low}, {high}], expected [0, {weight.shape[0]}) (the rows of weight)"
            )
    return dispatch.call("linear_logprob", hidden_states, weight, targets, bias, temperature, softcap)


@_linear_logprob.register_fake
def _(hidden_states, weight, targets, bias, temperature, softcap):
    dtype = torch.promote_types(hidden_states.dtype, torch.float32)
    rows = hidden_states.shape[0]
    return hidden_states.new_empty(rows, dtype=dtype), hidden_states.new_empty(rows, dtype=dtype)


@operation("linear_logprob_backward")
def _linear_logprob_backward(
    grad_logprobs: torch.Tensor,
    grad_entropy: torch.Tensor,
    hidden_states: torch.Tensor,
    weight: torch.Tensor,
    targets: torch.Tensor,
    bias: torch.Tensor | None,
    temperature: float,
    softcap: float | None,
    needs_weight: bool,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Gradients of hidden_states, weight and bias (the last two empty unless `needs_weight`, and a bias is there)."""
    return dispatch.call(
        "linear_logprob_backward",
        grad_logprobs,
        grad_entropy,
        hidden_states,
        weight,
        targets,
        bias,
        temperature,
        softcap,
        needs_weight,
    )


@_linear_logprob_backward.register_fake
def _(grad_logprobs, grad_entropy, hidden_states, weight, targets, bias, temperature, softcap, needs_weight):
    return (
        torch.empty_like(hidden_states),
        torch.empty_like(weight) if needs_weight else weight.new_empty(0),
        weight.new_empty(weight.shape[0] if needs_weight and bias is not None else 0),
    )


def _setup_context(ctx, inputs, output):
    hidden_states, weight, targets, bias, ctx.temperature, ctx.softcap = inputs
    ctx.save_for_backward(hidden_states, weight, targets, bias)


def _backward(ctx, grad_logprobs, grad_entropy):
    hidden_states, weight, targets, bias = ctx.saved_tensors
    needs_weight = ctx.needs_input_grad[1] or ctx.needs_input_grad[3]
    grad_hidden, grad_weight, grad_bias = _linear_logprob_backward(
        grad_logprobs,
        grad_entropy,
        hidden_states,
        weight,
        targets,
        bias,
        ctx.temperature,
        ctx.softcap,
        needs_weight,
    )
    return (
        grad_hidden if ctx.needs_input_grad[0] else None,
        grad_weight if ctx.needs_input_grad[1] else None,
        None,
        grad_bias if ctx.needs_input_grad[3] else None,
        None,
        None,
    )


_linear_logprob.register_autograd(_backward, setup_context=_setup_context)
