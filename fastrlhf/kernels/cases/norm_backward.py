"""Cases of the backward of `norm`."""

from __future__ import annotations

from fastrlhf.kernels.cases import norm, normal
from fastrlhf.kernels.reference.norm import norm as forward


def cases(dtype):
    """Those of the forward with its reference's statistics, the weight trainable and frozen."""
    made = {}
    for name, args in norm.cases(dtype).items():
        hidden_states, weight, bias, residual, _, offset, _ = args
        _, summed, mean, rstd = forward(*args)
        gradients = [normal(*hidden_states.shape, seed=seed).to(dtype) for seed in (5, 6)]
        rest = (
            gradients[0],
            None if residual is None else gradients[1],
            hidden_states if residual is None else summed,
            weight,
            None if bias is None else mean,
            rstd,
            offset,
        )
        made[name], made[f"{name}, frozen"] = (*rest, True), (*rest, False)
    return made
