"""Cases of the backward of `lora_linear`."""

from __future__ import annotations

from fastrlhf.kernels.cases import lora_linear, normal
from fastrlhf.kernels.reference.lora_linear import lora_linear as forward


def cases(dtype):
    """Those of the forward, with its reference's results: all gradients, or all but a frozen weight's."""
    made = {}
    for name, args in lora_linear.cases(dtype).items():
        x, *inputs, bias = args
        output, hidden = forward(*args)
        grad = normal(*output.shape, seed=8).to(dtype)
        made[name] = (grad, x, hidden, *inputs, True, inputs[1] is None, bias is not None)
    return made
