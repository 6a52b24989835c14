from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fastrlhf import kernels
from fastrlhf.kernels import dispatch
from tests.support.memory import allocations
from tests.support.precision import assert_as_good_as

OPERATION = "norm"
DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
SHAPES = [(1, 3), (31, 33), (3, 127), (2, 3, 129), (5,), (130, 8), (3, 1100)]
EPS = 1e-5


def plain_rms(
    hidden_states, weight, *, eps, residual=None, weight_offset=0.0, cast_before_weight=True, bias=None
):
    """As the Llama and Gemma of transformers have it."""
    if residual is not None:
        hidden_states = residual + hidden_states
    x = hidden_states if hidden_states.dtype == torch.float64 else hidden_states.float()
    x = x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps)
    if cast_before_weight and not weight_offset:
        normed = weight * x.to(weight.dtype)
    else:
        normed = (x * (weight_offset + weight.to(x.dtype))).type_as(hidden_states)
    return normed, hidden_states


def plain_layer(hidden_states, weight, bias, *, eps, residual=None):
    if residual is not None:
        hidden_states = residual + hidden_states
    return torch.nn.functional.layer_norm(hidden_states, weight.shape, weight, bias, eps), hidden_states


def ours_rms(hidden_states, weight, *, bias=None, **options):
    normed = kernels.rms_norm(hidden_states, weight, **options)
    return normed if isinstance(normed, tuple) else (normed, hidden_states)


def ours_layer(hidden_states, weight, bias, **options):
    normed = kernels.layer_norm(hidden_states, weight, bias, **options)
    return normed if isinstance(normed, tuple) else (normed, hidden_states)


KINDS = {
    "Llama": (ours_rms, plain_rms, {}, ()),
    "Gemma": (ours_rms, plain_rms, {"weight_offset": 1.0, "cast_before_weight": False}, ()),
    "layer": (ours_layer, plain_layer, {}, ("bias",)),
    "Llama, residual": (ours_rms, plain_rms, {}, ("residual",)),
    "Gemma, residual": (
        ours_rms,
        plain_rms,
        {"weight_offset": 1.0, "cast_before_weight": False},
        ("residual",),
    ),
    "layer, residual": (ours_layer, plain_layer, {}, ("bias", "residual")),
}
kinds = pytest.mark.parametrize("kind", KINDS)


def rows(kind, shape, dtype=torch.float32, seed=0):
    """The tensors that a kind takes. Every other weight is far from one, the rows are off centre."""
    torch.manual_seed(seed)
    made = {
        "hidden_states": 2 * torch.randn(shape) + 0.5,
        "weight": 1 + torch.randn(shape[-1]),
        "bias": torch.randn(shape[-1]),
        "residual": torch.randn(shape) - 0.3,
    }
    return {name: made[name].to(dtype) for name in ("hidden_states", "weight", *KINDS[kind][3])}


def with_gradients(function, tensors, device="cpu", dtype=None, **options):
    """Outputs, and the gradients of every tensor for random gradients of the outputs (both, with a residual)."""
    leaves = {name: tensor.to(device, dtype).detach().requires_grad_() for name, tensor in tensors.items()}
    normed, summed = function(**leaves, **options)
    torch.manual_seed(1)
    grads = [torch.randn(normed.shape).to(tensors["weight"].dtype).to(normed) for _ in range(2)]
    outputs = [normed, summed] if "residual" in tensors else [normed]
    got = torch.autograd.grad(outputs, list(leaves.values()), grads[: len(outputs)])
    return normed, summed, dict(zip(leaves, got, strict=True))


def assert_right(kind, tensors, device, eps=EPS):
    ours, plain, options, _ = KINDS[kind]
    options = {**options, "eps": eps}
    actual = with_gradients(ours, tensors, device, **options)
    same = with_gradients(plain, tensors, **options)
    exact = with_gradients(plain, tensors, dtype=torch.float64, **options)
    for i, name in enumerate(("normed", "summed")):
        assert_as_good_as(actual[i], same[i], exact[i], name=name)
    for name in tensors:
        assert_as_good_as(actual[2][name], same[2][name], exact[2][name], name=f"gradient of {name}")


def test_two_elements_by_hand(device):
    # mean of squares of (3, 4): 12.5; with eps 3.5 the root is 4. Layer: mean 3.5, variance 0.25, with 0.75 the root 1.
    x = torch.tensor([[3.0, 4.0]], device=device)
    weight, bias = torch.tensor([2.0, -1.0], device=device), torch.tensor([10.0, 20.0], device=device)
    assert kernels.rms_norm(x, weight, eps=3.5).tolist() == [[1.5, -1.0]]
    assert kernels.rms_norm(x, weight, eps=3.5, weight_offset=1.0).tolist() == [[2.25, 0.0]]
    assert kernels.layer_norm(x, weight, bias, eps=0.75).tolist() == [[9.0, 19.5]]
    one = torch.tensor([[1.0, 1.0]], device=device)
    normed, summed = kernels.rms_norm(x - one, weight, eps=3.5, residual=one)
    assert normed.tolist() == [[1.5, -1.0]] and summed.tolist() == [[3.0, 4.0]]


@kinds
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_as_good_as_plain_on_ragged_shapes(device, dtype, shape, kind):
    assert_right(kind, rows(kind, shape, dtype), device)


def test_rows_of_one_element(device):
    tensors = rows("layer", (3, 1))
    normed, _, gradients = with_gradients(ours_layer, tensors, device, eps=EPS)
    assert torch.equal(normed.cpu(), tensors["bias"].expand(3, 1))
    assert not gradients["hidden_states"].any() and not gradients["weight"].any()
    # The gradient of an RMS norm is what eps leaves of a difference of like numbers.
    assert_right("Llama", rows("Llama", (3, 1)), device, eps=0.5)


@pytest.mark.parametrize("kind", ["Llama, residual", "layer, residual"])
def test_every_config(triton_config, kind):
    assert_right(kind, rows(kind, (5, 40)), triton_config)
    assert_right(kind, rows(kind, (3, 1030)), triton_config)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("kind", ["Llama", "Llama, residual", "Gemma, residual"])
def test_low_precision_rounds_where_transformers_does(device, dtype, kind):
    ours, plain, options, _ = KINDS[kind]
    tensors = rows(kind, (9, 64), dtype)
    actual, _ = ours(**{name: tensor.to(device) for name, tensor in tensors.items()}, eps=EPS, **options)
    expected, _ = plain(**tensors, eps=EPS, **options)
    # the reciprocal root may differ in its last bit, and so a rounding now and then
    assert (actual.cpu() == expected).float().mean() > 0.98
    swapped = {**options, "cast_before_weight": not options.get("cast_before_weight", True)}
    other, _ = ours(**{name: tensor.to(device) for name, tensor in tensors.items()}, eps=EPS, **swapped)
    assert (other.cpu() == expected).float().mean() < 0.95


@kinds
def test_non_contiguous_inputs(device, kind):
    tensors = rows(kind, (34, 66))
    for name in tensors.keys() - {"weight", "bias"}:
        tensors[name] = tensors[name].t()[::2, 1:]
    for name in tensors.keys() & {"weight", "bias"}:
        tensors[name] = torch.stack([tensors[name], tensors[name]], 1)[:33, 0]
    assert_right(kind, tensors, device)
    fused = rows(kind, (7, 3, 40))
    fused["hidden_states"] = torch.randn(7, 200)[:, 40:160].unflatten(1, (3, 40))
    assert_right(kind, fused, device)
    expanded = rows(kind, (6, 40))
    expanded["hidden_states"] = expanded["hidden_states"][:1].expand(6, 40)
    assert_right(kind, expanded, device)


@kinds
@pytest.mark.parametrize("scale", [1e4, 1e-4, 0.0])
def test_extreme_rows(device, kind, scale):
    tensors = rows(kind, (9, 33))
    for name in tensors.keys() & {"hidden_states", "residual"}:
        tensors[name] = tensors[name] * scale
    assert_right(kind, tensors, device)


def test_a_mean_far_from_zero_costs_no_digits(device):
    tensors = rows("layer", (9, 130))
    tensors["hidden_states"] += 1000
    assert_right("layer", tensors, device)


@kinds
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_what_is_not_finite_stays_in_its_row(device, kind, bad):
    ours, _, options, _ = KINDS[kind]
    tensors = {name: tensor.to(device) for name, tensor in rows(kind, (5, 33)).items()}
    clean, _ = ours(**tensors, eps=EPS, **options)
    tensors["hidden_states"][2, 7] = bad
    normed, _ = ours(**tensors, eps=EPS, **options)
    assert normed[2].isnan().any()
    others = torch.tensor([0, 1, 3, 4], device=normed.device)
    assert torch.equal(normed[others], clean[others])


@kinds
def test_empty(device, kind):
    ours, _, options, _ = KINDS[kind]
    normed, _, gradients = with_gradients(ours, rows(kind, (0, 7)), device, eps=EPS, **options)
    assert normed.shape == gradients["hidden_states"].shape == (0, 7)
    assert not gradients["weight"].any() and gradients["weight"].shape == (7,)


@settings(max_examples=30, deadline=None)
@given(
    kind=st.sampled_from(list(KINDS)),
    shape=st.tuples(st.integers(0, 40), st.integers(3, 70)),
    seed=st.integers(0, 1000),
    eps=st.sampled_from([1e-2, 0.1, 1.0]),
)
def test_property_as_good_as_plain(kind, shape, seed, eps):
    assert_right(kind, rows(kind, shape, seed=seed), "cpu", eps)


@kinds
def test_gradcheck(device, kind):
    ours, _, options, _ = KINDS[kind]
    tensors = rows(kind, (3, 5), torch.float64)

    def function(*leaves):
        given = dict(zip(tensors, leaves, strict=True))
        normed, summed = ours(**given, eps=0.1, **options)
        return (normed, summed) if "residual" in given else normed

    assert torch.autograd.gradcheck(function, [t.to(device).requires_grad_() for t in tensors.values()])


@pytest.mark.parametrize("only", ["normed", "summed"])
def test_gradient_of_one_output_alone(device, only):
    tensors = rows("Llama, residual", (4, 7))
    leaves = {name: tensor.to(device).requires_grad_() for name, tensor in tensors.items()}
    out = getattr(kernels.rms_norm(**leaves, eps=EPS), only)
    out.sum().backward()
    if only == "summed":
        assert leaves["weight"].grad is None
        assert torch.equal(leaves["residual"].grad, torch.ones_like(leaves["residual"]))
    assert torch.equal(leaves["hidden_states"].grad, leaves["residual"].grad)


@pytest.mark.parametrize("frozen", ["weight", "hidden_states"])
def test_frozen_tensors_get_no_gradient(device, frozen):
    tensors = {name: tensor.to(device) for name, tensor in rows("layer", (4, 7)).items()}
    for name, tensor in tensors.items():
        tensor.requires_grad_(name != frozen)
    kernels.layer_norm(**tensors, eps=EPS).square().sum().backward()
    assert {name for name, tensor in tensors.items() if tensor.grad is None} == {frozen}


@kinds
def test_memory_is_the_outputs(device, kind):
    ours, _, options, _ = KINDS[kind]
    tensors = {name: tensor.to(device).requires_grad_() for name, tensor in rows(kind, (64, 256)).items()}
    used = allocations(lambda: ours(**tensors, eps=EPS, **options))
    outputs = 4 * 64 * 256 * (2 if "residual" in tensors else 1)
    statistics = 4 * 64 * (2 if "bias" in tensors else 1)
    assert outputs <= used.kept <= outputs + statistics
    if dispatch.forced_backend() != "reference":
        assert used.peak <= outputs + statistics + 64


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@kinds
def test_meta_tensors(dtype, kind):
    ours, _, options, _ = KINDS[kind]
    tensors = rows(kind, (3, 5, 7), dtype)
    normed, summed, gradients = with_gradients(ours, tensors, "meta", eps=EPS, **options)
    assert normed.shape == summed.shape == (3, 5, 7) and normed.dtype == summed.dtype == dtype
    for name, gradient in gradients.items():
        assert gradient.shape == tensors[name].shape and gradient.dtype == dtype


@pytest.mark.parametrize("transposed", [False, True])
@kinds
def test_opcheck(device, kind, transposed):
    _, _, options, _ = KINDS[kind]
    tensors = {name: tensor.to(device) for name, tensor in rows(kind, (5, 7)).items()}
    if transposed:
        for name in tensors.keys() & {"hidden_states", "residual"}:
            tensors[name] = tensors[name].t().contiguous().t()
    bias, residual = tensors.get("bias"), tensors.get("residual")
    offset, cast = options.get("weight_offset", 0.0), options.get("cast_before_weight", True)
    leaves = [
        tensor if tensor is None else tensor.requires_grad_()
        for tensor in (tensors["hidden_states"], tensors["weight"], bias, residual)
    ]
    torch.library.opcheck(torch.ops.fastrlhf.norm.default, (*leaves, EPS, offset, cast))
    with torch.no_grad():
        hidden_states, weight = (leaf.detach() for leaf in leaves[:2])
        _, _, mean, rstd = torch.ops.fastrlhf.norm(*leaves, EPS, offset, cast)
        grad = torch.randn(5, 7, device=device)
        for needs_weight in (False, True):
            statistics = (None if bias is None else mean, rstd)
            arguments = (grad, None, hidden_states, weight, *statistics, offset, needs_weight)
            torch.library.opcheck(torch.ops.fastrlhf.norm_backward.default, arguments)


@kinds
def test_compiles_whole(device, kind):
    ours, _, options, _ = KINDS[kind]
    tensors = rows(kind, (4, 7))

    def block(hidden_states, **others):
        normed, summed = ours(2 * hidden_states, **others, eps=EPS, **options)
        return normed.tanh(), summed

    compiled = torch.compile(block, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(
        with_gradients(compiled, tensors, device), with_gradients(block, tensors, device)
    )


def arguments(**changes):
    made = {"hidden_states": torch.zeros(2, 3), "weight": torch.ones(3), "bias": torch.ones(3), "eps": EPS}
    return made | changes


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        (
            {"hidden_states": torch.tensor(1.0)},
            ValueError,
            r"hidden_states has shape \[\], expected \[\.\.\., D\]",
        ),
        ({"hidden_states": torch.zeros(2, 0)}, ValueError, r"hidden_states has shape \[2, 0\].*at least one"),
        ({"hidden_states": torch.zeros(2, 3).int()}, TypeError, r"dtype torch\.(int32|float32)"),
        ({"weight": torch.ones(4)}, ValueError, r"(weight|bias) has shape"),
        ({"weight": torch.ones(3).double()}, TypeError, r"weight has dtype torch\.float64.*torch\.float32"),
        ({"residual": torch.zeros(2, 4)}, ValueError, r"residual has shape \[2, 4\], expected .* = \[2, 3\]"),
        ({"residual": torch.zeros(2, 3).half()}, TypeError, r"residual has dtype torch\.float16"),
        (
            {"residual": torch.zeros(2, 3, device="meta")},
            ValueError,
            r"hidden_states on cpu.*residual on meta",
        ),
        ({"eps": -1.0}, ValueError, r"eps is -1\.0, expected at least 0"),
        ({"eps": math.nan}, ValueError, r"eps is nan"),
    ],
)
def test_errors_name_the_argument_its_value_and_what_was_expected(changes, error, message):
    given_arguments = arguments(**changes)
    with pytest.raises(error, match=message):
        kernels.layer_norm(**given_arguments)
    del given_arguments["bias"]
    with pytest.raises(error, match=message):
        kernels.rms_norm(**given_arguments)


def test_errors_of_the_bias():
    with pytest.raises(ValueError, match=r"bias has shape \[4\], expected \[D\] = \[3\]"):
        kernels.layer_norm(**arguments(bias=torch.ones(4)))
    with pytest.raises(TypeError, match=r"bias has dtype torch\.float16"):
        kernels.layer_norm(**arguments(bias=torch.ones(3).half()))
