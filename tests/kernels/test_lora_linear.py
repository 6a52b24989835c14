from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch._subclasses.fake_tensor import FakeTensorMode

from fastrlhf import kernels
from fastrlhf.kernels import dispatch
from tests.support.backends import on_gpu
from tests.support.layers import BASES, exact_weight, in_dtype, layer, to
from tests.support.memory import allocations
from tests.support.precision import assert_as_good_as

OPERATION = "lora_linear"
NAMES = ("x", "weight", "lora_A", "lora_B", "bias")
CASES = [  # N, out, in, r, offsets
    ((1, 1, 1), 1, [0, 1]),
    ((5, 33, 65), 4, [0, 5]),
    ((33, 31, 70), 8, [0, 10, 33]),
    ((40, 17, 33), 3, [2, 2, 20, 31]),  # an empty group, and rows of none at both ends
    ((70, 66, 47), 16, [0, 1, 64, 65, 70]),
    ((3, 5, 7), 2, [1, 1]),
    ((70, 67, 47), 9, [0, 70]),  # one adapter for all of many rows
]


def case(shape, rank, offsets, base="float32", dtype=torch.float32, adapter_dtype=None, seed=0):
    """Arguments of `lora_linear` by name."""
    x, weight, bias = layer(shape, base, dtype, seed)
    generator = torch.Generator().manual_seed(seed + 1)
    groups, (_, out, width) = len(offsets) - 1, shape
    return {
        "x": x,
        "weight": weight,
        "lora_A": (torch.randn(groups, rank, width, generator=generator) / max(1, width) ** 0.5).to(
            adapter_dtype or dtype
        ),
        "lora_B": torch.randn(groups, out, rank, generator=generator).to(adapter_dtype or dtype),
        "group_offsets": torch.tensor(offsets, dtype=torch.int32),
        "scaling": 0.5 + torch.rand(groups, generator=generator),
        "bias": bias,
    }


def plain(x, weight, lora_A, lora_B, group_offsets, scaling, bias=None):
    """Group by group, the low-rank part in the adapters' dtype, as the libraries have it."""
    base, offsets, parts = in_dtype(weight, x.dtype), group_offsets.tolist(), []
    y = torch.nn.functional.linear(x, base, bias)
    parts.append(y[: offsets[0]])
    for g, (start, end) in enumerate(itertools.pairwise(offsets)):
        hidden = x[start:end].to(lora_A.dtype) @ lora_A[g].T
        low_rank = hidden * scaling[g].to(hidden.dtype) @ lora_B[g].T
        parts.append((y[start:end] + low_rank).to(x.dtype))
    return torch.cat([*parts, y[offsets[-1] :]])


def with_gradients(function, args, *, needed=NAMES):
    """The output, and by name the gradients of a weighted sum of it."""
    tensors = {name: args[name] for name in needed if isinstance(args.get(name), torch.Tensor)}
    leaves = {name: tensor.detach().requires_grad_() for name, tensor in tensors.items()}
    y = function(**(args | leaves))
    factors = torch.linspace(-1, 2, max(y.numel(), 1), dtype=torch.float64)[: y.numel()].view(y.shape).to(y)
    gradients = torch.autograd.grad((factors * y).sum(), leaves.values(), allow_unused=True)
    named = dict(zip(leaves, gradients, strict=True))
    return y.detach(), {n: torch.zeros_like(leaves[n]) if g is None else g for n, g in named.items()}


def exactly(args):
    """The same in float64."""
    args = args | {"weight": exact_weight(args["weight"])}
    return {n: a.double() if a is not None and a.is_floating_point() else a for n, a in args.items()}


def on(device, args):
    return dict(zip(args, to(device, *args.values()), strict=True))


def assert_right(args, device, needed=NAMES):
    if isinstance(args["weight"], kernels.QuantizedWeight):
        needed = tuple(name for name in needed if name != "weight")
    actual = with_gradients(kernels.lora_linear, on(device, args), needed=needed)
    same = with_gradients(plain, args, needed=needed)
    exact = with_gradients(plain, exactly(args), needed=needed)
    assert_as_good_as(actual[0], same[0], exact[0], name="y")
    assert actual[1].keys() == exact[1].keys()
    for name, gradient in exact[1].items():
        assert_as_good_as(actual[1][name], same[1][name], gradient, name=f"gradient of {name}")


def test_two_adapters_by_hand(device):
    # base: 1 x 1 + 2 x 1 = 3 a row. Row 0: 10 x (1 x 1) x 2 = 20. Row 1: 1 x (2 x 1) x 3 = 6. Row 2 has none.
    args = {
        "x": torch.tensor([[1.0, 2.0]] * 3),
        "weight": torch.ones(1, 2),
        "lora_A": torch.tensor([[[1.0, 0.0]], [[0.0, 1.0]]]),
        "lora_B": torch.tensor([[[2.0]], [[3.0]]]),
        "group_offsets": torch.tensor([0, 1, 2], dtype=torch.int32),
        "scaling": torch.tensor([10.0, 1.0]),
    }
    assert kernels.lora_linear(**on(device, args)).tolist() == [[23], [9], [3]]


@pytest.mark.parametrize("shape_rank_offsets", CASES, ids=str)
@pytest.mark.parametrize("base", BASES)
def test_as_good_as_plain(device, base, shape_rank_offsets):
    assert_right(case(*shape_rank_offsets, base), device)


@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("adapters", ["wide", "the same"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16], ids=str)
def test_as_good_as_plain_in_other_dtypes(device, dtype, adapters, base):
    wide = torch.promote_types(dtype, torch.float32) if adapters == "wide" else dtype
    assert_right(case(*CASES[3], base, dtype, wide), device)


@pytest.mark.parametrize("needed", [NAMES[:1], NAMES[1:2], NAMES[2:3], NAMES[3:4], NAMES[4:]], ids=" ".join)
def test_gradients_only_where_asked(device, needed):
    assert_right(case(*CASES[2]), device, needed)


@pytest.mark.parametrize("base", ["float32", "nf4"])
def test_every_config(triton_config, base):
    assert_right(case(*CASES[2], base), triton_config)


def test_without_bias(device):
    assert_right(case(*CASES[2]) | {"bias": None}, device)


@pytest.mark.parametrize("base", ["float32", "nf4"])
def test_a_group_of_one_row_is_what_linear_gives_with_the_adapter_merged(device, base):
    args = case((6, 20, 40), 4, [0, 2, 6], base)
    weight = in_dtype(args["weight"], torch.float64)
    actual = kernels.lora_linear(**on(device, args)).cpu()
    for rows, g in ((slice(0, 2), 0), (slice(2, 6), 1)):
        merged = (
            weight + args["scaling"][g].double() * args["lora_B"][g].double() @ args["lora_A"][g].double()
        )
        expected = args["x"][rows].double() @ merged.T + args["bias"]
        torch.testing.assert_close(actual[rows].double(), expected, rtol=1e-5, atol=1e-5)


def test_non_contiguous(device):
    args = case((66, 34, 140), 8, [0, 10, 33])
    args["x"] = args["x"].t().contiguous().t()[::2, ::2]
    args["weight"] = args["weight"].t().contiguous().t()[:, ::2]
    args["lora_A"] = args["lora_A"].mT.contiguous().mT[:, ::2, ::2]
    args["lora_B"] = args["lora_B"].mT.contiguous().mT[:, :, ::2]
    assert_right(args, device)


@pytest.mark.parametrize(
    ("shape", "rank", "offsets"),
    [((0, 5, 3), 2, [0, 0]), ((4, 5, 3), 2, [0]), ((4, 0, 3), 2, [0, 4]), ((4, 5, 3), 0, [0, 4])],
    ids=["no rows", "no groups", "no outputs", "rank zero"],
)
def test_empty(device, shape, rank, offsets):
    assert_right(case(shape, rank, offsets), device)


def test_what_is_not_finite_stays_in_its_group(device):
    args = on(device, case((9, 6, 8), 2, [0, 3, 9]))
    args["x"][4] = torch.nan
    y, gradients = with_gradients(kernels.lora_linear, args)
    assert y[4].isnan().all() and y[[0, 1, 2, 3, 5, 6, 7, 8]].isfinite().all()
    assert gradients["lora_A"][1].isnan().all() and gradients["lora_A"][0].isfinite().all()
    assert gradients["lora_B"][1].isnan().all() and gradients["lora_B"][0].isfinite().all()


@settings(max_examples=30, deadline=None)
@given(
    rows=st.integers(0, 40),
    out=st.integers(0, 40),
    width=st.integers(0, 70),
    rank=st.integers(0, 40),
    cuts=st.lists(st.integers(0, 40), min_size=1, max_size=4),
    base=st.sampled_from(BASES),
    seed=st.integers(0, 2**20),
)
def test_any_shape(rows, out, width, rank, cuts, base, seed):
    offsets = sorted(min(cut, rows) for cut in cuts)
    assert_right(case((rows, out, width), rank, offsets, base, seed=seed), "cpu")


def test_memory_kept_for_the_backward(device):
    args = on(device, case((64, 32, 48), 4, [0, 64]))
    args["lora_A"].requires_grad_()
    kernels.lora_linear(**args)
    used = allocations(lambda: kernels.lora_linear(**args))
    assert used.kept == 4 * (64 * 32 + 64 * 4), "y, and the hidden states of the adapter"


@pytest.mark.parametrize("base", ["float32", "int8", "nf4"])
def test_opcheck(device, base):
    args = on(device, case((5, 6, 7), 2, [0, 2, 5], base))
    weight = args.pop("weight")
    parts = (weight, None, None, None) if base == "float32" else weight[:4]
    x, *rest = args.values()
    hidden, grad = torch.ones(5, 2, device=device), torch.ones(5, 6, device=device)
    needs = (True, base == "float32", True)
    torch.library.opcheck(
        torch.ops.fastrlhf.lora_linear_backward.default, (grad, x, hidden, *parts, *rest[:4], *needs)
    )
    leaves = [tensor.requires_grad_() for tensor in (x, rest[0], rest[1], rest[4])]
    torch.library.opcheck(
        torch.ops.fastrlhf.lora_linear.default,
        (leaves[0], *parts, leaves[1], leaves[2], *rest[2:4], leaves[3]),
    )


@pytest.mark.parametrize("base", BASES)
def test_meta_and_fake_tensors(base):
    args = case((5, 6, 7), 2, [0, 2, 5], base)
    y, gradients = with_gradients(kernels.lora_linear, on("meta", args))
    assert y.shape == (5, 6)
    assert all(gradients[name].shape == args[name].shape for name in gradients)
    with FakeTensorMode(allow_non_fake_inputs=True):
        assert kernels.lora_linear(**args).shape == (5, 6)


def test_compiles_whole(device):
    args = on(device, case((5, 6, 7), 2, [0, 2, 5]))

    def scaled(x, **rest):
        return kernels.lora_linear(2 * x, **rest)

    compiled = torch.compile(scaled, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(with_gradients(compiled, args), with_gradients(scaled, args))


@pytest.mark.parametrize("offsets", [[0, 3, 2], [-1, 2, 5], [0, 2, 6]], ids=str)
def test_offsets_that_fall_or_leave_the_rows(offsets):
    args = case((5, 6, 7), 2, [0, 2, 5]) | {"group_offsets": torch.tensor(offsets, dtype=torch.int32)}
    with pytest.raises(ValueError, match=r"group_offsets is \[.*\], expected to rise within \[0, 5\]"):
        kernels.lora_linear(**args)


@pytest.mark.parametrize("offsets", [[0, 3, 2], [-1, 2, 5], [0, 2, 6], [4, 3, 5]], ids=str)
@pytest.mark.parametrize("backend", ["reference", "triton"])
def test_where_nobody_waits_for_the_check_such_offsets_give_nan(backend, offsets):
    args = case((5, 6, 7), 2, [0, 2, 5]) | {"group_offsets": torch.tensor(offsets, dtype=torch.int32)}
    x, weight, *rest = to("cuda" if on_gpu(backend) else "cpu", *args.values())
    launcher = dispatch.implementation("lora_linear", backend, x, weight)
    if isinstance(launcher, str):
        pytest.skip(launcher)
    assert launcher(x, weight, None, None, None, *rest)[0].isnan().all()


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"x": torch.zeros(5)}, ValueError, r"x has shape \[5\], expected \[N, in\]"),
        ({"weight": torch.zeros(6, 8)}, ValueError, r"weight has shape \[6, 8\], .* \[6, 7\]"),
        ({"lora_A": torch.zeros(2, 7)}, ValueError, r"lora_A has shape \[2, 7\], expected \[G, r, in\]"),
        ({"lora_A": torch.zeros(2, 2, 8)}, ValueError, r"lora_A has shape .* \[2, 2, 7\]"),
        ({"lora_A": torch.zeros(2, 2, 7).half()}, TypeError, r"lora_A has dtype torch\.float16"),
        ({"lora_B": torch.zeros(2, 6, 3)}, ValueError, r"lora_B has shape .* = \[2, 6, 2\]"),
        ({"lora_B": torch.zeros(2, 6, 2).double()}, TypeError, r"lora_B has dtype torch\.float64"),
        ({"group_offsets": torch.zeros(2).int()}, ValueError, r"group_offsets .*\[G \+ 1\] = \[3\]"),
        ({"group_offsets": torch.zeros(3).long()}, TypeError, r"group_offsets has dtype torch\.int64"),
        ({"scaling": torch.zeros(3)}, ValueError, r"scaling has shape \[3\], expected \[G\] = \[2\]"),
        ({"scaling": torch.zeros(2).double()}, TypeError, r"scaling has dtype torch\.float64"),
        ({"bias": torch.zeros(7)}, ValueError, r"bias has shape \[7\], expected \[out\] = \[6\]"),
        ({"bias": torch.zeros(6).half()}, TypeError, r"bias has dtype torch\.float16"),
        ({"scaling": torch.zeros(2, device="meta")}, ValueError, r"on one device: .*scaling on meta"),
    ],
)
def test_errors_name_the_argument_its_value_and_what_was_expected(changes, error, message):
    with pytest.raises(error, match=message):
        kernels.lora_linear(**(case((5, 6, 7), 2, [0, 2, 5]) | changes))
