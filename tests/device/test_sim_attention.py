"""PyTorch's attention on sim:0: the CPU's values, in one kernel each way."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

B, H, L, D = 2, 4, 6, 8


def tensors(key_heads=H):
    generator = torch.Generator().manual_seed(0)
    shapes = (B, H, L, D), (B, key_heads, L, D), (B, key_heads, L, D)
    return [torch.randn(shape, generator=generator) for shape in shapes]


CASES = {
    "plain": (tensors(), {}),
    "causal": (tensors(), {"is_causal": True}),
    "added": (tensors(), {"attn_mask": torch.linspace(-1, 1, L * L).double().view(L, L)}),
    "masked, with a row that sees nothing": (tensors(), {"attn_mask": torch.ones(L, L).tril(-1).bool()}),
    "masked": (tensors(), {"attn_mask": torch.ones(L, L).tril().bool(), "scale": 0.3}),
    "grouped": (tensors(key_heads=2), {"enable_gqa": True}),
}


@pytest.mark.parametrize("case", CASES)
def test_values_and_gradients_are_those_of_the_cpu(device, case):
    given, options = CASES[case]
    results = []
    for place in ("cpu", "sim"):
        inputs = [tensor.double().to(place).requires_grad_() for tensor in given]
        there = {k: v.to(place) if isinstance(v, torch.Tensor) else v for k, v in options.items()}
        out = scaled_dot_product_attention(*inputs, **there)
        out.square().sum().backward()
        results.append([out, *(tensor.grad for tensor in inputs)])
    for one, other in zip(*results, strict=True):
        assert other.device.type == "sim"
        torch.testing.assert_close(one, other.cpu(), rtol=1e-12, atol=1e-14)


def test_it_is_one_kernel_each_way_that_holds_no_scores(device):
    inputs = [tensor.to("sim").requires_grad_() for tensor in tensors()]
    grad = torch.ones(B, H, L, D, device="sim")
    size, statistics, scores = 4 * B * H * L * D, 4 * B * H * L, B * H * L * L
    held = device.live
    device.reset()
    out = scaled_dot_product_attention(*inputs)
    assert device.launches == {"sim::attention": 1}
    assert device.cost == (3 * size, size + statistics, 2 * 2 * scores * D)
    assert device.live == held + size + statistics
    device.reset()
    out.backward(grad)
    assert device.launches == {"sim::attention_backward": 1}
    assert device.cost == (5 * size + statistics, 3 * size, 5 * 2 * scores * D)


def test_dropout_or_a_mask_that_learns_is_computed_in_parts(device):
    inputs = [tensor.to("sim") for tensor in tensors()]
    scaled_dot_product_attention(*inputs, dropout_p=0.5)
    mask = torch.zeros(L, L, device="sim", requires_grad=True)
    scaled_dot_product_attention(*inputs, attn_mask=mask).sum().backward()
    assert mask.grad.shape == (L, L) and "sim::attention" not in device.launches


def test_tensors_of_the_host_do_not_mix(device):
    query, key, value = tensors()
    with pytest.raises(RuntimeError, match="expected all tensors to be on the same device"):
        scaled_dot_product_attention(query.to("sim"), key, value)
