"""Cases of `ppo_loss`."""

from __future__ import annotations

from math import inf

import torch

from fastrlhf.kernels.cases import normal, ragged


def cases(dtype):
    """Every option on, and as few tensors as can be."""
    old, old_values = normal(3, 37, seed=1) - 2, normal(3, 37, seed=2)
    logprobs, reference = old + normal(3, 37, seed=3, scale=0.3), old + normal(3, 37, seed=4, scale=0.3)
    values, returns = old_values + normal(3, 37, seed=5, scale=0.2), normal(3, 37, seed=6)
    advantages, entropy = normal(3, 37, seed=7) + 0.5, normal(3, 37, seed=8).abs()
    weights, token_weights = normal(3, 37, seed=9).abs(), normal(3, 37, seed=10).abs()
    mask, value_mask, denominators = ragged(3, 37), ragged(3, 37, seed=1), torch.tensor([50.0, 60.0]).double()
    first = [tensor.to(dtype) for tensor in (logprobs, old, advantages)]
    critic = [tensor.to(dtype) for tensor in (values, old_values, returns)]
    rest = [tensor.to(dtype) for tensor in (entropy, reference, weights, token_weights)]
    options = (0.2, 0.3, 1.5, 0.4, 0.1, 0.1, 0.02, 0.3)
    plain = (0.2, 0.2, inf, inf, inf, 0.0, 0.0, 0.0)
    return {
        "every option": (*first, mask, *critic, value_mask, *rest, denominators, *options, "k3"),
        "policy alone": (*first, mask, *[None] * 3, mask.clone(), *[None] * 4, denominators, *plain, "k1"),
    }
