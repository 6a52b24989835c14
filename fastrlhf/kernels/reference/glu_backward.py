"""Gradients of the gated linear units, the activation computed again."""

from __future__ import annotations

import torch
from torch.nn.functional import gelu, silu

from fastrlhf.kernels.reference.glu import approximate


def glu_backward(grad_output, gate, up, activation):
    """See `fastrlhf.kernels.glu`. Computes in float32 at least; the derivatives are PyTorch's own."""
    dtype = torch.promote_types(gate.dtype, torch.float32)
    gradient, x, scale = (tensor.to(dtype) for tensor in (grad_output, gate, up))
    if activation == "silu":
        activated = silu(x)
        grad_gate = torch.ops.aten.silu_backward(gradient * scale, x)
    else:
        activated = gelu(x, approximate=approximate(activation))
        grad_gate = torch.ops.aten.gelu_backward(gradient * scale, x, approximate=approximate(activation))
    return grad_gate.to(gate.dtype).contiguous(), (gradient * activated).to(gate.dtype).contiguous()
