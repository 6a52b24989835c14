"""Cases of the backward of `linear`."""

from __future__ import annotations

from fastrlhf.kernels.cases import linear, normal


def cases(dtype):
    """Those of the forward: all gradients, or that of a frozen weight's input."""
    made = {}
    for name, (x, weight, *scales, bias) in linear.cases(dtype).items():
        grad = normal(x.shape[0], weight.shape[0], seed=5).to(dtype)
        trainable = scales[0] is None
        made[name] = (grad, x if trainable else x[:0], weight, *scales, True, trainable, bias is not None)
    return made
