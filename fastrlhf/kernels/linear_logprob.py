"""Log-probability and entropy of chosen tokens straight from hidden states: contract, registration, function."""

from __future__ import annotations

from typing import NamedTuple

import torch

from fastrlhf.device.observe import Cost, nbytes
from fastrlhf.kernels import dispatch
from fastrlhf.kernels.autocast import matrix_inputs
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
    entropy_grad: bool = True,
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
        entropy_grad: False where the entropy is only watched: it then has no gradient, which saves a frozen head
            a matrix product.

    Returns:
        logprobs and entropy, `[N]`, float32 (float64 for float64 inputs), differentiable in hidden_states, weight and
        bias.

    Raises:
        ValueError, TypeError: shapes, dtypes, devices or coefficients that do not fit.
        IndexError: a target outside [0, V) (on a CPU; a GPU is not made to wait for the check, and gives NaN).

    Memory: a tile of logits a thread, never `[N, V]`. With a trainable head (weight or bias requires a gradient) the
    backward computes the tiles again. With a frozen one the forward keeps the derivatives of each row's outputs in its
    hidden state, `[N, D]` each, float32 (one without `entropy_grad`), and the backward is elementwise.
    """
    logprobs, entropy, _ = logprobs_beside_top(
        hidden_states, weight, targets, bias, temperature, softcap, entropy_grad
    )
    return LinearLogprob(logprobs, entropy)


def logprobs_beside_top(
    hidden_states: torch.Tensor,
    weight: torch.Tensor,
    targets: torch.Tensor,
    bias: torch.Tensor | None,
    temperature: float,
    softcap: float | None,
    entropy_grad: bool,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """What `linear_logprob` returns, and the log-probability of each row's likeliest word, `[N]`, without gradient.

    The two log-probabilities are equal to the bit where no word is likelier than the target.
    """
    hidden_states, weight, bias = matrix_inputs(hidden_states, weight, bias)
    check_head(hidden_states, weight, targets, bias, temperature, softcap)
    frozen = not (weight.requires_grad or (bias is not None and bias.requires_grad))
    slopes = 0
    if frozen and hidden_states.requires_grad and torch.is_grad_enabled():
        slopes = 2 if entropy_grad else 1
    logprobs, entropy, *_, top_logprobs = _linear_logprob(
        hidden_states, weight, targets, bias, float(temperature), softcap, slopes
    )
    return logprobs, entropy if entropy_grad else entropy.detach(), top_logprobs


def check_head(
    hidden_states: torch.Tensor,
    weight: torch.Tensor,
    targets: torch.Tensor,
    bias: torch.Tensor | None,
    temperature: float,
    softcap: float | None,
) -> None:
    """Raise the ValueError or TypeError that the docstring of `linear_logprob` promises."""
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


def check_targets(targets: torch.Tensor, weight: torch.Tensor) -> None:
    """Raise IndexError unless targets on a CPU are rows of `weight`; a GPU is not made to wait for the check."""
    if targets.device.type == "cpu" and targets.numel():
        low, high = int(targets.min()), int(targets.max())
        if low < 0 or high >= weight.shape[0]:
            raise IndexError(
                f"targets lie in [{low}, {high}], expected [0, {weight.shape[0]}) (the rows of weight)"
            )


@dispatch.costs("linear_logprob")
def _cost(hidden_states, weight, targets, bias, temperature, softcap, slopes) -> Cost:
    """The products are the logits, and one for each slope."""
    (rows, width), vocabulary = hidden_states.shape, weight.shape[0]
    number = torch.promote_types(hidden_states.dtype, torch.float32).itemsize
    written = rows * (3 * number + 8 + slopes * width * number)
    flops = rows * vocabulary * (2 * width * (1 + slopes) + 5)
    return Cost(nbytes(hidden_states, weight, targets, bias), written, flops)


@dispatch.costs("linear_logprob_backward")
def _backward_cost(
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
) -> Cost:
    """The products are the logits again, and one for each gradient."""
    (rows, width), vocabulary = hidden_states.shape, weight.shape[0]
    given = grad_logprobs, grad_entropy, hidden_states, weight, targets, bias, entropy, logsumexp
    written = nbytes(hidden_states, *((weight, bias) if needs_weight else ()))
    products = 3 if needs_weight else 2
    return Cost(nbytes(*given), written, rows * vocabulary * (2 * width * products + 8))


@operation("linear_logprob")
def _linear_logprob(
    hidden_states: torch.Tensor,
    weight: torch.Tensor,
    targets: torch.Tensor,
    bias: torch.Tensor | None,
    temperature: float,
    softcap: float | None,
    slopes: int,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """logprobs, entropy, logsumexp `[N]` in float64 (of the logits divided by the temperature, for the backward), the
    first `slopes` of d logprob / d hidden_states and d entropy / d hidden_states, `[N, D]` (the others empty), and the
    log-probability of the likeliest word, `[N]`."""
    check_targets(targets, weight)
    return dispatch.call("linear_logprob", hidden_states, weight, targets, bias, temperature, softcap, slopes)


@_linear_logprob.register_fake
def _(hidden_states, weight, targets, bias, temperature, softcap, slopes):
    dtype = torch.promote_types(hidden_states.dtype, torch.float32)
    rows = hidden_states.shape[0]
    return (
        hidden_states.new_empty(rows, dtype=dtype),
        hidden_states.new_empty(rows, dtype=dtype),
        hidden_states.new_empty(rows, dtype=torch.float64),
        *(
            hidden_states.new_empty(hidden_states.shape if wanted else (0,), dtype=dtype)
            for wanted in (slopes > 0, slopes > 1)
        ),
        hidden_states.new_empty(rows, dtype=dtype),
    )


@operation("linear_logprob_backward")
def _linear_logprob_backward(
    grad_logprobs: torch.Tensor,
    grad_entropy: torch.Tensor | None,
    hidden_states: torch.Tensor,
    weight: torch.Tensor,
    targets: torch.Tensor,
    bias: torch.Tensor | None,
    entropy: torch.Tensor,
    logsumexp: torch.Tensor,
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
        entropy,
        logsumexp,
        temperature,
        softcap,
        needs_weight,
    )


@_linear_logprob_backward.register_fake
def _(grad_logprobs, grad_entropy, hidden_states, weight, targets, bias, *rest):
    needs_weight = rest[-1]
    return (
        torch.empty_like(hidden_states, memory_format=torch.contiguous_format),
        weight.new_empty(tuple(weight.shape) if needs_weight else 0),
        weight.new_empty(weight.shape[0] if needs_weight and bias is not None else 0),
    )


def _setup_context(ctx, inputs, output):
    hidden_states, weight, targets, bias, ctx.temperature, ctx.softcap, ctx.slopes = inputs
    _, entropy, logsumexp, *slopes, top_logprobs = output
    ctx.mark_non_differentiable(logsumexp, *slopes, top_logprobs, *([entropy] if ctx.slopes == 1 else []))
    ctx.set_materialize_grads(False)
    if ctx.slopes:
        ctx.dtype = hidden_states.dtype
        ctx.save_for_backward(*slopes[: ctx.slopes])
    else:
        ctx.save_for_backward(hidden_states, weight, targets, bias, entropy, logsumexp)


def _backward(ctx, grad_logprobs, grad_entropy, *_):
    if grad_logprobs is None and grad_entropy is None:
        return (None,) * 7
    if ctx.slopes:
        grad_hidden = _along_slopes((grad_logprobs, grad_entropy), ctx.saved_tensors).to(ctx.dtype)
        return (grad_hidden, *(None,) * 6)
    hidden_states, weight, targets, bias, entropy, logsumexp = ctx.saved_tensors
    if grad_logprobs is None:
        grad_logprobs = torch.zeros_like(grad_entropy)
    grad_hidden, grad_weight, grad_bias = _linear_logprob_backward(
        grad_logprobs,
        grad_entropy,
        hidden_states,
        weight,
        targets,
        bias,
        entropy,
        logsumexp,
        ctx.temperature,
        ctx.softcap,
        ctx.needs_input_grad[1] or ctx.needs_input_grad[3],
    )
    return (
        grad_hidden if ctx.needs_input_grad[0] else None,
        grad_weight if ctx.needs_input_grad[1] else None,
        None,
        grad_bias if ctx.needs_input_grad[3] else None,
        None,
        None,
        None,
    )


def _along_slopes(grads, slopes) -> torch.Tensor:
    """The sum of `grad[:, None] * slope` over the gradients that are there."""
    (grad, slope), *rest = [pair for pair in zip(grads, slopes, strict=False) if pair[0] is not None]
    total = grad[:, None] * slope
    for grad, slope in rest:
        total.addcmul_(grad[:, None], slope)
    return total


_linear_logprob.register_autograd(_backward, setup_context=_setup_context)
