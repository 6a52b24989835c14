"""Cases of the backward of `linear_logprob`."""

from __future__ import annotations

import torch

from fastrlhf.kernels.cases import linear_logprob, normal
from fastrlhf.kernels.reference.linear_logprob import linear_logprob as forward


def cases(dtype):
    """Those of the forward, with its reference's results; a trainable head and a frozen one."""
    statistics = torch.promote_types(dtype, torch.float32)
    made = {}
    for name, args in linear_logprob.cases(dtype).items():
        *inputs, temperature, softcap, _ = args
        rows = args[0].shape[0]
        gradients = normal(rows, seed=4).to(statistics), normal(rows, seed=5).to(statistics)
        _, entropy, logsumexp, *_ = forward(*args)
        results = (*gradients, *inputs, entropy, logsumexp, temperature, softcap)
        made[name] = (*results, True)
        made[f"{name}, frozen head"] = (*results, False)
    return made
