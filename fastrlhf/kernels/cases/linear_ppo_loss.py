"""Cases of `linear_ppo_loss`."""

from __future__ import annotations

from math import inf

import torch

from fastrlhf.kernels.cases import normal
from fastrlhf.kernels.linear_ppo_loss import Gradients
from fastrlhf.kernels.linear_ppo_loss_arguments import split_operands
from fastrlhf.kernels.ppo_loss import checked_operands, ppo_loss

ROWS, WIDTH, VOCABULARY = 5, 48, 131


def cases(dtype):
    """A vocabulary that no tile divides; every option and a trainable head, few and a frozen one, the loss alone."""
    hidden_states, weight = normal(ROWS, WIDTH, seed=1), normal(VOCABULARY, WIDTH, seed=2) / WIDTH**0.5
    bias, targets = normal(VOCABULARY, seed=3), torch.tensor([0, 1, 64, 129, VOCABULARY - 1])
    logprobs = torch.log_softmax(hidden_states @ weight.T, -1).gather(1, targets[:, None]).squeeze(1)
    kept = torch.promote_types(dtype, torch.float32)  # what is known of the tokens
    old, ref = (logprobs + normal(2, ROWS, seed=4, scale=0.3)).to(kept)
    values, old_values, returns, advantages = normal(4, ROWS, seed=5).to(kept)
    mask = torch.tensor([True, True, False, True, True])
    every = {"old_values": old_values, "returns": returns, "ref_logprobs": ref, "weights": returns.abs()}
    every |= {
        "dual_clip": 1.5,
        "cliprange_high": 0.3,
        "entropy_coef": 0.1,
        "kl_coef": 0.3,
        "denominator": 7.0,
    }
    head = [tensor.to(dtype) for tensor in (hidden_states, weight)]

    def loss(rows=slice(None), **options):
        options = ppo_loss.__kwdefaults__ | options
        operands = checked_operands(old[rows], old[rows], advantages[rows], mask[rows], **options)
        return split_operands(operands)[1:]

    return {
        "trainable head, every option": (
            *head,
            targets,
            bias.to(dtype),
            values,
            0.7,
            8.0,
            *loss(values=values, entropy=values, **every),
            int(Gradients.HEAD),
        ),
        "frozen head": (*head, targets, None, None, 1.0, None, *loss(), int(Gradients.HIDDEN)),
        "frozen head, entropy": (
            *head,
            targets,
            None,
            None,
            1.0,
            None,
            *loss(entropy=old, entropy_coef=0.1, dual_clip=inf),
            int(Gradients.HIDDEN),
        ),
        "the loss alone": (*head, targets, None, None, 1.0, None, *loss(), int(Gradients.NONE)),
        "no row": (
            head[0][:0],
            head[1],
            targets[:0],
            None,
            None,
            1.0,
            None,
            *loss(slice(0)),
            int(Gradients.HEAD),
        ),
    }
