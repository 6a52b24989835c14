"""Operations under `torch.autocast`: the values of casting by hand, gradients in the parameters' dtype."""

from __future__ import annotations

import pytest
import torch

from fastrlhf import kernels
from fastrlhf.kernels import autocast

BF16 = torch.bfloat16


def randn(*shape, seed=0, **options):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), **options)


def cu_seqlens():
    return torch.tensor([0, 3, 8], dtype=torch.int32)


def linear(x, weight, bias):
    return kernels.linear(x, weight, bias)


def lora_linear(x, weight, lora_A, lora_B):
    offsets = torch.tensor([0, x.shape[0]], dtype=torch.int32)
    return kernels.lora_linear(x, weight, lora_A, lora_B, offsets, torch.ones(1))


def attention(query, key, value):
    return kernels.attention(query, key, value, cu_seqlens(), max_seqlen=5).output


def linear_logprob(hidden_states, weight):
    return torch.stack(kernels.linear_logprob(hidden_states, weight, torch.arange(8)))


MATRICES = {
    "linear": (linear, [(8, 16), (12, 16), (12,)]),
    "lora_linear": (lora_linear, [(8, 16), (12, 16), (1, 4, 16), (1, 12, 4)]),
    "attention": (attention, [(8, 4, 16), (8, 2, 16), (8, 2, 16)]),
    "linear_logprob": (linear_logprob, [(8, 16), (20, 16)]),
}


def value_and_gradients(function, leaves, grad_seed=9):
    output = function(*leaves)
    grad = randn(*output.shape, seed=grad_seed).to(output.dtype)
    return output.detach(), torch.autograd.grad(output, leaves, grad)


@pytest.mark.parametrize("name", MATRICES)
def test_a_matrix_operation_has_the_values_of_casting_by_hand(name):
    function, shapes = MATRICES[name]
    leaves = [randn(*shape, seed=seed).requires_grad_() for seed, shape in enumerate(shapes)]
    with torch.autocast("cpu", BF16):
        output, grads = value_and_gradients(function, leaves)
    by_hand, expected = value_and_gradients(lambda *given: function(*(t.to(BF16) for t in given)), leaves)
    assert output.dtype == by_hand.dtype and torch.equal(output, by_hand)
    for leaf, grad, other in zip(leaves, grads, expected, strict=True):
        assert grad.dtype == leaf.dtype == torch.float32
        # a weight that an operation converts itself gets a gradient that was not rounded on the way
        torch.testing.assert_close(grad, other, rtol=2**-7, atol=0)


@pytest.mark.parametrize("name", MATRICES)
def test_inputs_that_autocast_set_apart_go_together(name):
    function, shapes = MATRICES[name]
    given = [randn(*shape, seed=seed) for seed, shape in enumerate(shapes)]
    given[0] = given[0].to(BF16)
    with torch.autocast("cpu", BF16):
        mixed = function(*given)
    assert torch.equal(mixed, function(*(tensor.to(BF16) for tensor in given)))


def test_losses_and_statistics_are_float32():
    values = randn(4, 6)
    mask = torch.ones(4, 6, dtype=torch.bool)
    given = {"old_values": values + 1, "returns": values - 1}
    weight, bias = randn(6), randn(6)
    rounded = values.to(BF16)
    with torch.autocast("cpu", BF16):
        found = (
            kernels.ppo_loss(values, values, values, mask, values=rounded, **given).loss,
            kernels.gae(rounded, values, mask).advantages,
            kernels.group_advantages(rounded.flatten(), group_size=2).advantages,
            kernels.rms_norm(rounded, weight, eps=1e-5, residual=values).normed,
            kernels.layer_norm(rounded, weight, bias, eps=1e-5),
        )
    wide = rounded.float()
    expected = (
        kernels.ppo_loss(values, values, values, mask, values=wide, **given).loss,
        kernels.gae(wide, values, mask).advantages,
        kernels.group_advantages(wide.flatten(), group_size=2).advantages,
        kernels.rms_norm(wide, weight, eps=1e-5, residual=values).normed,
        kernels.layer_norm(wide, weight, bias, eps=1e-5),
    )
    assert all(torch.equal(*pair) for pair in zip(found, expected, strict=True))


def test_it_is_off_inside_an_operation():
    """A backward under autocast, of a forward in float32: its products stay in float32."""
    x, weight = randn(40, 16).requires_grad_(), randn(12, 16).requires_grad_()
    grad = randn(40, 12)
    expected = torch.autograd.grad(kernels.linear(x, weight), (x, weight), grad)
    y = kernels.linear(x, weight)
    with torch.autocast("cpu", BF16):
        found = torch.autograd.grad(y, (x, weight), grad)
    assert all(torch.equal(*pair) for pair in zip(found, expected, strict=True))


def test_float64_stays_as_it_is():
    x, weight = randn(3, 16, dtype=torch.float64), randn(12, 16, dtype=torch.float64)
    with torch.autocast("cpu", BF16):
        assert torch.equal(kernels.linear(x, weight), x @ weight.T)


def test_autocast_of_another_device_changes_nothing():
    x, weight = randn(3, 16), randn(12, 16)
    with torch.autocast("cuda", BF16, enabled=torch.cuda.is_available()):
        assert kernels.linear(x, weight).dtype == torch.float32
    with torch.autocast("cpu", BF16):
        meta = kernels.linear(x.to("meta"), weight.to("meta"))
    assert meta.dtype == torch.float32, "meta tensors have no autocast"


def test_without_autocast_tensors_come_back_untouched(monkeypatch):
    x = randn(3)
    monkeypatch.setattr(autocast, "_is_enabled", lambda _: pytest.fail("asked"))
    assert autocast.matrix_inputs(x, None) == (x, None)


def test_torch_compile_sees_the_same():
    x, weight = randn(8, 16), randn(12, 16)

    def run(x):
        with torch.autocast("cpu", BF16):
            return kernels.linear(x, weight)

    compiled = torch.compile(run, backend="aot_eager", fullgraph=True)(x)
    assert compiled.dtype == BF16 and torch.equal(compiled, run(x))
