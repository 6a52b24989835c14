"""Cases of the backward of `linear_logprob`."""

from __future__ import annotations

import torch

from fastrlhf.kernels.cases import linear_logprob, normal


def cases(dtype):
    """Those of the forward, with a trainable head and with a frozen one."""
    statistics = torch.promote_types(dtype, torch.float32)
    made = {}
    for name, args in linear_logprob.cases(dtype).items():
        rows = args[0].shape[0]
        gradients = normal(rows, seed=4).to(statistics), normal(rows, seed=5).to(statistics)
        made[name] = (*gradients, *args, True)
        made[f"{name}, frozen head"] = (*gradients, *args, False)
    return made
