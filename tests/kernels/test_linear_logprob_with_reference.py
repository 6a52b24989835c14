from __future__ import annotations

import pytest
import torch

from fastrlhf import kernels
from tests.kernels.test_linear_logprob import head

OPERATION = "linear_logprob"
ROWS, WIDTH, WORDS = 21, 8, 97


@pytest.mark.parametrize("ref_width", [WIDTH, 5])
def test_the_reference_beside_the_policy(device, ref_width):
    tensors = {name: tensor.to(device) for name, tensor in head((ROWS, WIDTH, WORDS)).items()}
    hidden_states, weight = (tensors[name].requires_grad_() for name in ("hidden_states", "weight"))
    ref_hidden_states, ref_weight, ref_bias = (
        torch.randn(size, device=device, requires_grad=True)
        for size in ((ROWS, ref_width), (WORDS, ref_width), WORDS)
    )
    both = kernels.linear_logprob_with_reference(
        *(hidden_states, weight, ref_hidden_states, ref_weight, tensors["targets"]),
        bias=tensors["bias"],
        ref_bias=ref_bias,
        temperature=0.7,
    )
    options = {"targets": tensors["targets"], "temperature": 0.7}
    policy = kernels.linear_logprob(hidden_states, weight, bias=tensors["bias"], **options)
    reference = kernels.linear_logprob(ref_hidden_states, ref_weight, bias=ref_bias, **options)
    assert torch.equal(both.logprobs, policy.logprobs) and torch.equal(both.entropy, policy.entropy)
    assert torch.equal(both.ref_logprobs, reference.logprobs) and not both.ref_logprobs.requires_grad
    assert both.logprobs.requires_grad and both.entropy.requires_grad


def test_errors_of_the_reference_name_it():
    hidden_states, weight, targets, _ = head((ROWS, WIDTH, WORDS)).values()
    with pytest.raises(ValueError, match=r"ref_hidden_states has shape \[21\]"):
        kernels.linear_logprob_with_reference(hidden_states, weight, hidden_states[:, 0], weight, targets)
