from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch._subclasses.fake_tensor import FakeTensorMode

from fastrlhf import kernels
from tests.support.layers import BASES, exact_weight, in_dtype, layer, to
from tests.support.memory import allocations
from tests.support.precision import assert_as_good_as

OPERATION = "linear"
SHAPES = [  # N, out, in
    (1, 1, 1),
    (1, 33, 65),
    (2, 64, 16),
    (3, 5, 31),
    (5, 127, 17),
    (8, 129, 33),
    (31, 70, 64),
    (32, 3, 100),
    (33, 66, 129),
    (129, 31, 47),
]


def with_gradients(function, x, weight, bias, *, exact=False):
    """The output, and the gradients of a weighted sum of it in x, a float weight and the bias."""
    if exact:
        x, weight, bias = x.double(), exact_weight(weight), None if bias is None else bias.double()
    leaves = [t for t in (x, weight, bias) if isinstance(t, torch.Tensor) and t.is_floating_point()]
    with torch.enable_grad():
        for leaf in leaves:
            leaf.requires_grad_()
        y = function(x, weight, bias)
        factors = (
            torch.linspace(-1, 2, max(y.numel(), 1), dtype=torch.float64)[: y.numel()].view(y.shape).to(y)
        )
        gradients = torch.autograd.grad((factors * y).sum(), leaves)
    for leaf in leaves:
        leaf.requires_grad_(False)
    return y.detach(), *gradients


def plain(x, weight, bias):
    return torch.nn.functional.linear(x, in_dtype(weight, x.dtype), bias)


def assert_right(x, weight, bias, device):
    actual = with_gradients(kernels.linear, *to(device, x, weight, bias))
    same, exact = with_gradients(plain, x, weight, bias), with_gradients(plain, x, weight, bias, exact=True)
    names = ["y", "gradient of x", "gradient of weight", "gradient of bias"]
    if isinstance(weight, kernels.QuantizedWeight):
        names.remove("gradient of weight")
        exact = [*exact[:2], *exact[3:]]
    for name, *results in zip(names, actual, same, exact, strict=False):
        assert_as_good_as(*results, name=name)
    assert len(actual) == len(same) == len(exact)


def test_by_hand(device):
    x = torch.tensor([[1.0, 2.0]], device=device)
    weight = torch.tensor([[3.0, 4.0], [5.0, 6.0]], device=device)
    bias = torch.tensor([0.5, -0.5], device=device)
    assert kernels.linear(x, weight, bias).tolist() == [[11.5, 16.5]]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("base", BASES)
def test_as_good_as_plain_on_ragged_shapes(device, base, shape):
    assert_right(*layer(shape, base), device)


@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16], ids=str)
def test_as_good_as_plain_in_other_dtypes(device, dtype, base):
    for shape in SHAPES[::4]:
        assert_right(*layer(shape, base, dtype), device)


@pytest.mark.parametrize("base", BASES)
def test_without_bias_and_with_leading_dimensions(device, base):
    x, weight, _ = layer((12, 9, 33), base)
    assert_right(x, weight, None, device)
    flat, folded = (kernels.linear(*to(device, part, weight)) for part in (x, x.view(3, 2, 2, 33)))
    assert torch.equal(flat.view(3, 2, 2, 9), folded)
    assert kernels.linear(x[0].to(device), weight.to(device)).shape == (9,)


@pytest.mark.parametrize("rows", [7, 40])
@pytest.mark.parametrize("base", BASES)
def test_non_contiguous(device, base, rows):
    x, weight, bias = layer((2 * rows, 66, 70), base)
    x = x.t().contiguous().t()[::2]
    if isinstance(weight, torch.Tensor):
        x, weight = x[:, ::2], weight.t().contiguous().t()[::2, ::2]
        bias = bias[::2]
    assert_right(x, weight, bias, device)
    assert_right(x[:1].expand(rows, -1), weight, bias[:1].expand(len(bias)), device)


@pytest.mark.parametrize("shape", [(0, 5, 3), (0, 5, 0), (3, 5, 0), (3, 0, 5), (40, 0, 5)], ids=str)
@pytest.mark.parametrize("base", ["float32", "int8", "nf4"])
def test_empty(device, base, shape):
    assert_right(*layer(shape, base), device)


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_extremes(device, scale):
    for rows in (3, 40):
        x, weight, bias = layer((rows, 35, 67))
        assert_right(x * scale, weight, bias * scale, device)


@settings(max_examples=40, deadline=None)
@given(
    rows=st.integers(0, 40),
    out=st.integers(0, 70),
    width=st.integers(0, 70),
    base=st.sampled_from(BASES),
    seed=st.integers(0, 2**20),
)
def test_any_shape(rows, out, width, base, seed):
    assert_right(*layer((rows, out, width), base, seed=seed), "cpu")


@pytest.mark.parametrize("base", ["int8", "nf4"])
def test_a_quantised_base_is_never_held_whole(device, base):
    backend = kernels.dispatch.forced_backend()
    if backend == "reference":
        pytest.skip("the reference holds the weight")
    shape, most = ((64, 4096, 1024), 4 << 20) if backend == "cpu" else ((33, 128, 512), 33 * 512 * 4)
    x, weight, _ = layer(shape, base)
    x, weight = to(device, x, weight)
    with_gradients(kernels.linear, x, weight, None)  # measures its providers, all at once
    used = allocations(lambda: with_gradients(kernels.linear, x, weight, None))
    assert used.largest <= most, "a tile of 4 MB, of a weight of 16; in Triton the gradient of x"


def test_memory_kept_for_the_backward(device):
    x, weight, bias = to(device, *layer((64, 32, 16)))
    x.requires_grad_()
    kernels.linear(x, weight, bias)
    assert allocations(lambda: kernels.linear(x.neg(), weight, bias)).kept == 4 * 64 * 32, (
        "y, and no copy of x"
    )


@pytest.mark.parametrize("base", ["float32", "int8", "nf4"])
def test_opcheck(device, base):
    x, weight, bias = to(device, *layer((5, 6, 7), base))
    parts = (weight, None, None, None) if base == "float32" else weight[:4]
    torch.library.opcheck(
        torch.ops.fastrlhf.linear_backward.default,
        (torch.ones(5, 6, device=device), x, *parts, True, base == "float32", True),
    )
    if base == "float32":
        weight.requires_grad_()
    torch.library.opcheck(
        torch.ops.fastrlhf.linear.default, (x.requires_grad_(), *parts, bias.requires_grad_())
    )


@pytest.mark.parametrize("base", BASES)
def test_meta_and_fake_tensors(base):
    x, weight, bias = to("meta", *layer((5, 6, 7), base))
    assert [g.shape for g in with_gradients(kernels.linear, x, weight, bias)][:2] == [(5, 6), (5, 7)]
    with FakeTensorMode(allow_non_fake_inputs=True):
        assert kernels.linear(torch.zeros(5, 7), layer((5, 6, 7))[1]).shape == (5, 6)


def test_compiles_whole(device):
    inputs = to(device, *layer((5, 6, 7)))

    def scaled(x, weight, bias):
        return kernels.linear(2 * x, weight, bias)

    compiled = torch.compile(scaled, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(with_gradients(compiled, *inputs), with_gradients(scaled, *inputs))


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"x": torch.tensor(1.0)}, ValueError, r"x has shape \[\], expected \[\.\.\., in\]"),
        ({"x": torch.zeros(5, 3).int()}, TypeError, r"x has dtype torch\.int32, expected"),
        ({"weight": torch.zeros(7)}, ValueError, r"weight has shape \[7\], expected \[out, in\]"),
        ({"weight": torch.zeros(7, 4)}, ValueError, r"weight has shape \[7, 4\], .* \[7, 3\]"),
        ({"weight": torch.zeros(7, 3).int()}, TypeError, r"weight has dtype torch\.int32"),
        ({"bias": torch.zeros(8)}, ValueError, r"bias has shape \[8\], expected \[out\] = \[7\]"),
        ({"bias": torch.zeros(7).half()}, TypeError, r"bias has dtype torch\.float16, .*torch\.float32"),
        ({"bias": torch.zeros(7, device="meta")}, ValueError, r"on one device: x on cpu.*bias on meta"),
    ],
)
def test_errors_name_the_argument_its_value_and_what_was_expected(changes, error, message):
    given_args = {"x": torch.zeros(5, 3), "weight": torch.zeros(7, 3), "bias": torch.zeros(7)} | changes
    with pytest.raises(error, match=message):
        kernels.linear(**given_args)


def test_a_quantised_weight_of_another_width():
    with pytest.raises(ValueError, match=r"weight has shape \[7, 4\], expected \[out, in\] = \[7, 3\]"):
        kernels.linear(torch.zeros(5, 3), kernels.quantize(torch.zeros(7, 4)))
