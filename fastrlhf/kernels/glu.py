"""Gated linear units, SwiGLU and GeGLU: contract, registration and public functions."""

from __future__ import annotations

import torch

from fastrlhf.device.observe import Cost, nbytes
from fastrlhf.kernels import dispatch
from fastrlhf.kernels.checks import FLOATS, check_dtype, check_same_device, check_shape
from fastrlhf.kernels.registration import operation

ACTIVATIONS = ("silu", "gelu", "gelu_tanh")


def swiglu(gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
    """`silu(gate) * up` with `silu(x) = x / (1 + exp(-x))`, in float32 and rounded once.

    Source: Shazeer, "GLU variants improve transformer" (2020), eq. 6.

    Args:
        gate, up: `[..., D]`, one shape and float dtype. Rows may lie apart: the halves of a fused projection need no
            copy.

    Returns:
        Like `gate`, differentiable in both.

    Raises:
        ValueError, TypeError: shapes, dtypes or devices that do not fit.

    Memory: the output; the backward keeps gate and up alone, and computes the activation again.
    """
    return _checked(gate, up, "silu")


def geglu(gate: torch.Tensor, up: torch.Tensor, approximate: str = "none") -> torch.Tensor:
    """`gelu(gate) * up` in float32 and rounded once.

    Sources: Shazeer, "GLU variants improve transformer" (2020), eq. 6; Hendrycks and Gimpel, "Gaussian error linear
    units" (2016).

    Args:
        gate, up: `[..., D]`, one shape and float dtype. Rows may lie apart: the halves of a fused projection need no
            copy.
        approximate: "none", `gelu(x) = x Phi(x)` with the normal distribution function; or "tanh", `gelu(x) =
            x/2 (1 + tanh(sqrt(2 / pi) (x + 0.044715 x³)))`, as Gemma has it ("gelu_pytorch_tanh").

    Returns:
        Like `gate`, differentiable in both.

    Raises:
        ValueError, TypeError: shapes, dtypes, devices or an approximation that do not fit.

    Memory: the output; the backward keeps gate and up alone, and computes the activation again.
    """
    if approximate not in ("none", "tanh"):
        raise ValueError(f"approximate is {approximate!r}, expected 'none' or 'tanh'")
    return _checked(gate, up, "gelu" if approximate == "none" else "gelu_tanh")


def _checked(gate, up, activation):
    check_dtype("gate", gate, FLOATS)
    check_shape("up", up, tuple(gate.shape), "[..., D], the shape of gate")
    check_dtype("up", up, (gate.dtype,))
    check_same_device(gate=gate, up=up)
    return _glu(gate, up, activation)


@dispatch.costs("glu")
def _cost(gate, up, activation) -> Cost:
    return Cost(nbytes(gate, up), nbytes(gate), 5 * gate.numel())


@dispatch.costs("glu_backward")
def _backward_cost(grad_output, gate, up, activation) -> Cost:
    return Cost(nbytes(grad_output, gate, up), nbytes(gate, up), 12 * gate.numel())


@operation("glu")
def _glu(gate: torch.Tensor, up: torch.Tensor, activation: str) -> torch.Tensor:
    return dispatch.call("glu", gate, up, activation)


@_glu.register_fake
def _(gate, up, activation):
    return gate.new_empty(gate.shape)


@operation("glu_backward")
def _glu_backward(
    grad_output: torch.Tensor, gate: torch.Tensor, up: torch.Tensor, activation: str
) -> tuple[torch.Tensor, torch.Tensor]:
    """Gradients of gate and up: `g up activation'(gate)` and `g activation(gate)`."""
    return dispatch.call("glu_backward", grad_output, gate, up, activation)


@_glu_backward.register_fake
def _(grad_output, gate, up, activation):
    return gate.new_empty(gate.shape), gate.new_empty(gate.shape)


def _setup_context(ctx, inputs, output):
    gate, up, ctx.activation = inputs
    ctx.save_for_backward(gate, up)


def _backward(ctx, grad_output):
    grad_gate, grad_up = _glu_backward(grad_output, *ctx.saved_tensors, ctx.activation)
    needs_gate, needs_up, _ = ctx.needs_input_grad
    return grad_gate if needs_gate else None, grad_up if needs_up else None, None


_glu.register_autograd(_backward, setup_context=_setup_context)
