"""What is the Triton kernels' own: their configurations, bounds that are wrong, and tensors past 2^31 elements."""

from __future__ import annotations

import pytest
import torch

from fastrlhf import kernels
from fastrlhf.kernels.triton import interpreted, unavailable
from tests.kernels.attention_cases import LEAVES, assert_attention_right, attention_case, with_gradients
from tests.kernels.decode_attention_cases import decode_case
from tests.support.configs import config_id, every_config, forced_config
from tests.support.far import FAR, far_rows
from tests.support.poison import poisoned_memory

if reason := unavailable():
    pytest.skip(reason, allow_module_level=True)

from fastrlhf.kernels.triton.attention import attention
from fastrlhf.kernels.triton.attention_backward import attention_backward
from fastrlhf.kernels.triton.attention_tile import MAX_WIDTH, serves

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
CHOICES = [*every_config("attention"), *every_config("attention_backward")]
pytestmark = [pytest.mark.gpu] if DEVICE == "cuda" else []


@pytest.fixture(autouse=True)
def on_the_triton_backend():
    with kernels.using("triton"), poisoned_memory():
        yield


@pytest.mark.parametrize("options", [{}, {"window": 40, "softcap": 3.0}], ids=str)
@pytest.mark.parametrize("choice", CHOICES, ids=config_id)
def test_every_config(choice, options):
    with forced_config(*choice):
        assert_attention_right(attention_case((67, 9), 2, 1, 16, skip=(1, 0)), DEVICE, **options)


@pytest.mark.parametrize("bounds", [[-5, 20, 40], [0, 70, 40], [0, 20, 10**6], [30, 10, 40]], ids=str)
def test_bounds_that_are_wrong_are_not_read_at(bounds):
    # A registered operation on a CPU refuses them; on a GPU nothing does.
    case = attention_case((20, 20))
    query, key, value = (case[name].to(DEVICE) for name in LEAVES)
    cu_seqlens = torch.tensor(bounds, dtype=torch.int32, device=DEVICE)
    output, lse = attention(query, key, value, cu_seqlens, None, 40, 0.2, None, None)
    attention_backward(output, query, key, value, output, lse, cu_seqlens, None, 40, 0.2, None, None)


def test_head_dimensions_too_large_are_refused_with_a_reason():
    assert serves(torch.zeros(1, 1, MAX_WIDTH + 1)) == "takes head dimensions up to 256, not 257"
    assert serves(torch.zeros(1, 1, MAX_WIDTH, device=DEVICE)) is None


@pytest.mark.skipif(not interpreted(), reason="needs Triton's interpreter")
def test_rows_past_2_31_elements():
    case = attention_case((3, 1), 2, 1, 16)
    far = case | {name: far_rows(case[name]) for name in LEAVES}
    assert far["query"].stride(0) * 3 > FAR
    for one, other in zip(
        with_gradients(kernels.attention, far), with_gradients(kernels.attention, case), strict=True
    ):
        assert torch.equal(one, other)


@pytest.mark.skipif(not interpreted(), reason="needs Triton's interpreter")
def test_blocks_of_a_cache_past_2_31_elements():
    case = decode_case((20, 3), 2, 1, 16, block_size=8)
    far = case | {name: far_rows(case[name]) for name in ("key_cache", "value_cache")}
    assert torch.equal(kernels.decode_attention(**far), kernels.decode_attention(**case))
