from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import gelu, silu

from fastrlhf import kernels
from fastrlhf.kernels.glu import ACTIVATIONS
from tests.support.memory import allocations
from tests.support.precision import assert_as_good_as

OPERATION = "glu"
DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
SHAPES = [(1, 1), (31, 33), (2, 3, 129), (7,), (3, 1100), (130, 8)]
activations = pytest.mark.parametrize("activation", ACTIVATIONS)

OURS = {
    "silu": kernels.swiglu,
    "gelu": kernels.geglu,
    "gelu_tanh": lambda gate, up: kernels.geglu(gate, up, "tanh"),
}
PLAIN = {
    "silu": lambda gate, up: silu(gate) * up,
    "gelu": lambda gate, up: gelu(gate) * up,
    "gelu_tanh": lambda gate, up: gelu(gate, approximate="tanh") * up,
}


def halves(shape, dtype=torch.float32, seed=0, scale=2.0):
    torch.manual_seed(seed)
    return (scale * torch.randn(shape)).to(dtype), torch.randn(shape).to(dtype)


def with_gradients(function, gate, up, device="cpu", dtype=None):
    leaves = [tensor.to(device, dtype).detach().requires_grad_() for tensor in (gate, up)]
    out = function(*leaves)
    torch.manual_seed(1)
    grad = torch.randn(gate.shape).to(gate.dtype).to(out)
    return out, *torch.autograd.grad(out, leaves, grad)


def assert_right(activation, gate, up, device):
    actual = with_gradients(OURS[activation], gate, up, device)
    same = with_gradients(PLAIN[activation], gate, up)
    exact = with_gradients(PLAIN[activation], gate, up, dtype=torch.float64)
    for name, *tensors in zip(
        ("output", "gradient of gate", "gradient of up"), actual, same, exact, strict=True
    ):
        assert_as_good_as(*tensors, name=name)


def test_by_hand(device):
    # silu(ln 3) = ln 3 · 3/4; gelu(1) = Phi(1) = 0.8413447; gelu_tanh(1) = (1 + tanh(0.7978846 · 1.044715)) / 2
    gate, up = torch.tensor([math.log(3), 0.0], device=device), torch.tensor([8.0, 5.0], device=device)
    assert kernels.swiglu(gate, up).tolist() == pytest.approx([6 * math.log(3), 0.0], rel=1e-6)
    gate = torch.tensor([1.0, -1.0], device=device)
    assert kernels.geglu(gate, up).tolist() == pytest.approx([8 * 0.84134475, -5 * 0.15865525], rel=1e-6)
    assert kernels.geglu(gate, up, "tanh").tolist() == pytest.approx(
        [8 * 0.84119199, -5 * 0.15880801], rel=1e-6
    )


@activations
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_as_good_as_plain_on_ragged_shapes(device, dtype, shape, activation):
    assert_right(activation, *halves(shape, dtype), device)


@activations
def test_every_config(triton_config, activation):
    assert_right(activation, *halves((2, 1100)), triton_config)


@activations
def test_halves_of_a_fused_projection_and_other_strides(device, activation):
    fused = halves((9, 140))[0]
    assert_right(activation, *fused.chunk(2, dim=-1), device)
    assert_right(activation, *(tensor.t()[::2, 1:] for tensor in halves((34, 66))), device)
    gate, up = halves((6, 40))
    assert_right(activation, gate[:1].expand(6, 40), up, device)
    assert_right(activation, gate, up[:, :1].expand(6, 40), device)


@activations
@pytest.mark.parametrize("low", [-1e4, -100.0, -20.0, -1.0])
def test_gates_of_every_size(device, activation, low):
    gate = torch.linspace(low, -low, 4001)
    assert_right(activation, gate, torch.ones_like(gate), device)


@activations
def test_what_is_not_finite_stays_where_it_is(device, activation):
    gate, up = (tensor.to(device) for tensor in halves((5, 33)))
    clean = OURS[activation](gate, up)
    gate[1, 3], up[2, 4], gate[3, 5] = math.nan, math.inf, math.inf
    out = OURS[activation](gate, up)
    assert (~out.isfinite()).nonzero().tolist() == [[1, 3], [2, 4], [3, 5]]
    assert torch.equal(out[out.isfinite()], clean[out.isfinite()])


@activations
@pytest.mark.parametrize("shape", [(0, 7), (3, 0), (0,)], ids=str)
def test_empty(device, activation, shape):
    assert all(tensor.shape == shape for tensor in with_gradients(OURS[activation], *halves(shape), device))


@settings(max_examples=30, deadline=None)
@given(
    activation=st.sampled_from(ACTIVATIONS),
    shape=st.tuples(st.integers(0, 20), st.integers(1, 70)),
    seed=st.integers(0, 1000),
    scale=st.sampled_from([0.1, 1.0, 10.0]),
)
def test_property_as_good_as_plain(activation, shape, seed, scale):
    assert_right(activation, *halves(shape, seed=seed, scale=scale), "cpu")


@activations
def test_gradcheck(device, activation):
    leaves = [tensor.to(device).requires_grad_() for tensor in halves((3, 5), torch.float64)]
    assert torch.autograd.gradcheck(OURS[activation], leaves)


@pytest.mark.parametrize("frozen", [0, 1], ids=["gate", "up"])
def test_frozen_tensors_get_no_gradient(device, frozen):
    leaves = [tensor.to(device).requires_grad_(i != frozen) for i, tensor in enumerate(halves((4, 7)))]
    kernels.swiglu(*leaves).sum().backward()
    assert [leaf.grad is None for leaf in leaves] == [frozen == 0, frozen == 1]


@activations
def test_memory_kept_for_the_backward_is_the_inputs(device, activation):
    gate, up = (tensor.to(device).requires_grad_() for tensor in halves((64, 256)))
    assert allocations(lambda: OURS[activation](gate, up)).kept == 4 * 64 * 256


@activations
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_meta_tensors(dtype, activation):
    for tensor in with_gradients(OURS[activation], *halves((3, 5, 7), dtype), "meta"):
        assert tensor.shape == (3, 5, 7) and tensor.dtype == dtype


@activations
def test_opcheck(device, activation):
    gate, up = (tensor.to(device) for tensor in halves((5, 7)))
    torch.library.opcheck(
        torch.ops.fastrlhf.glu_backward.default, (gate.cos(), gate.t().contiguous().t(), up, activation)
    )
    torch.library.opcheck(
        torch.ops.fastrlhf.glu.default,
        (gate.requires_grad_(), up.t().contiguous().t().requires_grad_(), activation),
    )


@activations
def test_compiles_whole(device, activation):
    def block(gate, up):
        return OURS[activation](2 * gate, up).tanh()

    compiled = torch.compile(block, fullgraph=True, backend="aot_eager")
    gate, up = halves((4, 7))
    torch.testing.assert_close(
        with_gradients(compiled, gate, up, device), with_gradients(block, gate, up, device)
    )


@pytest.mark.parametrize(
    ("gate", "up", "error", "message"),
    [
        (torch.zeros(2, 3).int(), torch.zeros(2, 3), TypeError, r"gate has dtype torch\.int32, expected"),
        (torch.zeros(2, 3), torch.zeros(3), ValueError, r"up has shape \[3\], expected .* = \[2, 3\]"),
        (torch.zeros(3), torch.zeros(3).half(), TypeError, r"up has dtype torch\.float16.*torch\.float32"),
        (torch.zeros(3), torch.zeros(3, device="meta"), ValueError, r"gate on cpu, up on meta"),
    ],
)
def test_errors_name_the_argument_its_value_and_what_was_expected(gate, up, error, message):
    for function in OURS.values():
        with pytest.raises(error, match=message):
            function(gate, up)


def test_an_approximation_that_there_is_not():
    with pytest.raises(ValueError, match="approximate is 'sigmoid', expected 'none' or 'tanh'"):
        kernels.geglu(torch.zeros(3), torch.zeros(3), "sigmoid")
