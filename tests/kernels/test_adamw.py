from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fastrlhf import kernels
from fastrlhf.kernels import dispatch
from fastrlhf.kernels.cases import adamw as adamw_cases
from tests.support.memory import allocations
from tests.support.precision import assert_as_good_as

OPERATION = "adamw"
SIZES = [1, 7, 33, 127, 1025]
OPTIONS = {"lr": 1e-2, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.1}
STATE = ("parameters", "exp_avg", "exp_avg_sq")


def chunk(size, dtype=torch.float32, seed=0, steps=2):
    """Parameters and the state that `steps` steps of PyTorch leave, with the next gradients."""
    generator = torch.Generator().manual_seed(seed)

    def normal():
        return torch.randn(size, generator=generator).to(dtype)

    made = {"parameters": normal(), "exp_avg": torch.zeros(size, dtype=dtype)}
    made["exp_avg_sq"] = torch.zeros(size, dtype=dtype)
    for step in range(1, steps + 1):
        made = made | plain(**made, gradients=normal(), step=step, **OPTIONS)
    return made | {"gradients": 3 * normal()}


def plain(parameters, gradients, exp_avg, exp_avg_sq, *, step, grad_scale=1.0, max_norm=None, **options):
    """One step of `torch.optim.AdamW`, clipped by PyTorch."""
    parameter = torch.nn.Parameter(parameters.clone())
    parameter.grad = gradients.to(parameters.dtype) / grad_scale
    if max_norm is not None:
        torch.nn.utils.clip_grad_norm_([parameter], max_norm)
    optimizer = torch.optim.AdamW([parameter], foreach=False, **options)
    optimizer.state[parameter] = {
        "step": torch.tensor(float(step - 1), dtype=torch.float64),
        "exp_avg": exp_avg.clone(),
        "exp_avg_sq": exp_avg_sq.clone(),
    }
    optimizer.step()
    state = optimizer.state[parameter]
    return {
        "parameters": parameter.detach(),
        "exp_avg": state["exp_avg"],
        "exp_avg_sq": state["exp_avg_sq"],
    }


def ours(tensors, device="cpu", **options):
    """The chunk after one step; the tensors given stay."""
    moved = {name: tensor.to(device).clone() for name, tensor in tensors.items()}
    kernels.adamw(
        moved["parameters"],
        moved["gradients"],
        moved["exp_avg"],
        moved["exp_avg_sq"],
        **{**OPTIONS, **options},
    )
    return moved


def assert_right(tensors, device, *, step=3, clipped_to=None, **options):
    """Each of parameters, moments and what the step changed is as good as PyTorch's."""
    options = {**OPTIONS, **options}
    exact_tensors = {name: tensor.double() for name, tensor in tensors.items()}
    given_options = {**options, "step": step}
    if clipped_to is not None:
        scale = options.get("grad_scale", 1.0)
        norm = torch.linalg.vector_norm(tensors["gradients"].double() / scale).float()
        given_options |= {"max_norm": clipped_to, "grad_norm": norm.to(device)}
        options["max_norm"] = clipped_to
    actual = ours(tensors, device, **given_options)
    same = plain(**tensors, step=step, **options)
    exact = plain(**exact_tensors, step=step, **options)
    for name in STATE:
        assert_as_good_as(actual[name], same[name], exact[name], name=name)


def test_two_steps_by_hand(device):
    # g = 2, betas 0.5 and 0.75: m = 1, v = 1, corrected 2 and 4: p = (1 - 0.1 · 0.5) · 1 - 0.1 · 2 / 2 = 0.85.
    # Again with g = -1: m = 0, v = 1: p = 0.95 · 0.85 = 0.8075.
    chunks = [torch.tensor([value], device=device) for value in (1.0, 2.0, 0.0, 0.0)]
    options = {"lr": 0.1, "betas": (0.5, 0.75), "eps": 0.0, "weight_decay": 0.5}
    kernels.adamw(*chunks, step=1, **options)
    assert [round(float(each), 6) for each in chunks] == [0.85, 2.0, 1.0, 1.0]
    chunks[1].fill_(-1.0)
    kernels.adamw(*chunks, step=2, **options)
    assert [round(float(each), 6) for each in chunks] == [0.8075, -1.0, 0.0, 1.0]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("step", [1, 3, 1000, 10**6])
def test_as_good_as_pytorch(device, dtype, size, step):
    assert_right(chunk(size, dtype, steps=min(step - 1, 3)), device, step=step)


def test_every_config(triton_config):
    for size in (1025, 2048):
        assert_right(chunk(size), triton_config, clipped_to=1.0)


def test_an_update_of_parameters_that_are_zero_has_all_its_digits(device):
    # From one on the first digits of an update are those of the parameter.
    tensors = chunk(127) | {"parameters": torch.zeros(127)}
    assert_right(tensors, device, lr=1e-5)


@pytest.mark.parametrize(
    "options",
    [
        {"clipped_to": 0.5},
        {"clipped_to": 1e4},
        {"grad_scale": 1024.0},
        {"grad_scale": 1024.0, "clipped_to": 0.01},
        {"weight_decay": 0.0},
        {"lr": 0.0},
        {"eps": 1e-5},
        {"betas": (0.0, 0.0)},
        {"betas": (0.9, 0.95)},
    ],
    ids=str,
)
def test_options(device, options):
    assert_right(chunk(130), device, **options)


@pytest.mark.parametrize("step", [1, 3, 1000])
@pytest.mark.parametrize(
    "names", [("lr",), ("step",), ("grad_scale",), ("lr", "step", "grad_scale")], ids=str
)
def test_scalars_as_tensors_are_as_good(device, names, step):
    numbers = {"lr": 1e-2, "step": step, "grad_scale": 3.0}
    tensors = chunk(130, steps=min(step - 1, 3))
    exact = plain(**{name: t.double() for name, t in tensors.items()}, **OPTIONS, step=step, grad_scale=3.0)
    same = plain(**tensors, **OPTIONS, step=step, grad_scale=3.0)
    for dtype in (torch.float32, torch.float64):
        scalars = {name: torch.tensor(numbers[name], dtype=dtype, device=device) for name in names}
        actual = ours(tensors, device, **{**numbers, **scalars})
        for name in STATE:
            assert_as_good_as(actual[name], same[name], exact[name], name=name)


@pytest.mark.parametrize("size", SIZES)
def test_bfloat16_gradients_and_copy(device, size):
    tensors = chunk(size)
    tensors["gradients"] = tensors["gradients"].bfloat16()
    copy = torch.full((size,), math.nan, dtype=torch.bfloat16, device=device)
    actual = ours(tensors, device, step=3, bfloat16_copy=copy)
    exact = plain(**{name: tensor.double() for name, tensor in tensors.items()}, step=3, **OPTIONS)
    same = plain(**tensors, step=3, **OPTIONS)
    for name in STATE:
        assert_as_good_as(actual[name], same[name], exact[name], name=name)
    assert torch.equal(copy, actual["parameters"].bfloat16())


def test_the_copy_rounds_to_nearest_even_and_keeps_nan(device):
    numbers = torch.tensor(
        [1 + 2**-8, 1 + 3 * 2**-8, 1 + 2**-8 + 2**-20, -1 - 2**-8, math.nan, math.inf, 3.4e38]
    )
    chunks = [numbers.to(device), *torch.zeros(3, 7, device=device)]
    copy = torch.zeros(7, dtype=torch.bfloat16, device=device)
    kernels.adamw(*chunks, lr=0.0, step=1, bfloat16_copy=copy)
    assert torch.equal(copy.cpu().nan_to_num(nan=7.0), numbers.bfloat16().nan_to_num(nan=7.0))


@pytest.mark.parametrize("norm", [math.nan, math.inf])
@pytest.mark.parametrize("max_norm", [None, 1.0])
def test_a_norm_that_is_not_finite_skips_the_step(device, norm, max_norm):
    tensors = chunk(130)
    tensors["gradients"][7] = norm
    copy = torch.full((130,), 5.0, dtype=torch.bfloat16, device=device)
    grad_norm = torch.tensor(norm, device=device)
    actual = ours(tensors, device, step=3, grad_norm=grad_norm, max_norm=max_norm, bfloat16_copy=copy)
    for name in STATE:
        assert torch.equal(actual[name].cpu(), tensors[name]), name
    assert (copy == 5).all()


@pytest.mark.parametrize("begin", [1, 3, 4, 9])
def test_where_a_chunk_begins_and_ends_changes_no_bit(device, begin):
    tensors = chunk(300)
    tensors["gradients"] = tensors["gradients"].bfloat16()
    whole = ours(tensors, device, step=3)
    padded = {name: torch.full((400,), 9.0).to(tensor.dtype) for name, tensor in tensors.items()}
    padded = {name: tensor.to(device) for name, tensor in padded.items()}
    parts = {name: tensor[begin : begin + 300] for name, tensor in padded.items()}
    for name, part in parts.items():
        part.copy_(tensors[name])
    for some in (slice(0, 101), slice(101, 300)):
        given_chunks = [parts[name][some] for name in ("parameters", "gradients", "exp_avg", "exp_avg_sq")]
        kernels.adamw(*given_chunks, step=3, **OPTIONS)
    for name in STATE:
        assert torch.equal(parts[name], whole[name]), name
        assert (padded[name][:begin] == 9).all() and (padded[name][begin + 300 :] == 9).all()


def test_follows_pytorch_over_many_steps(device):
    tensors, exact = chunk(65, steps=0), chunk(65, torch.float64, steps=0)
    same = tensors
    moved = {name: tensor.to(device).clone() for name, tensor in tensors.items()}
    exact["parameters"] = tensors["parameters"].double()
    for step in range(1, 21):
        gradients = torch.randn(65, generator=torch.Generator().manual_seed(step))
        kernels.adamw(
            moved["parameters"],
            gradients.to(device),
            moved["exp_avg"],
            moved["exp_avg_sq"],
            step=step,
            **OPTIONS,
        )
        same = same | {"gradients": gradients}
        exact = exact | {"gradients": gradients.double()}
        same, exact = same | plain(**same, step=step, **OPTIONS), exact | plain(**exact, step=step, **OPTIONS)
    for name in STATE:
        assert_as_good_as(moved[name], same[name], exact[name], name=name)


def test_empty(device):
    copy = torch.zeros(0, dtype=torch.bfloat16, device=device)
    assert ours(chunk(0), device, step=1, bfloat16_copy=copy)["parameters"].shape == (0,)


def test_leaves_of_a_model_are_updated_and_their_versions_told(device):
    parameters = torch.nn.Parameter(torch.ones(5, device=device))
    version = parameters._version
    gradients, *moments = torch.ones(3, 5, device=device)
    kernels.adamw(parameters, gradients, *moments, lr=0.1, step=1)
    assert (parameters < 1).all() and parameters.requires_grad and parameters._version > version


def test_memory_is_nothing(device):
    chunks = [tensor.to(device) for tensor in chunk(4096).values()]
    parameters, exp_avg, exp_avg_sq, gradients = chunks
    used = allocations(lambda: kernels.adamw(parameters, gradients, exp_avg, exp_avg_sq, step=3, **OPTIONS))
    assert used.kept == 0
    if dispatch.forced_backend() != "reference":
        assert used.peak <= 64


@settings(max_examples=30, deadline=None)
@given(
    size=st.integers(0, 200),
    seed=st.integers(0, 1000),
    step=st.integers(1, 10_000),
    lr=st.floats(0, 0.1),
    weight_decay=st.floats(0, 1),
    scale=st.sampled_from([1.0, 8.0, 65536.0]),
    clipped_to=st.sampled_from([None, 0.1, 10.0]),
)
def test_property_as_good_as_pytorch(size, seed, step, lr, weight_decay, scale, clipped_to):
    options = {"lr": lr, "weight_decay": weight_decay, "grad_scale": scale, "clipped_to": clipped_to}
    assert_right(chunk(size, seed=seed), "cpu", step=step, **options)


def test_opcheck(device):
    for args in adamw_cases.cases(torch.float32).values():
        there = [arg.to(device) if isinstance(arg, torch.Tensor) else arg for arg in args]
        torch.library.opcheck(torch.ops.fastrlhf.adamw.default, there)


def test_compiles_whole(device):
    def step(parameters, gradients, exp_avg, exp_avg_sq):
        kernels.adamw(parameters, 2 * gradients, exp_avg, exp_avg_sq, step=3, **OPTIONS)
        return parameters * 2

    tensors = chunk(33)
    names = ("parameters", "gradients", "exp_avg", "exp_avg_sq")
    one, other = ([tensors[name].to(device).clone() for name in names] for _ in range(2))
    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(*one), step(*other))
    torch.testing.assert_close(one, other)


def arguments(**changes):
    made = {name: torch.zeros(3) for name in (*STATE, "gradients")}
    return made | {"lr": 0.1, "step": 1} | changes


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"parameters": torch.zeros(3, 1)}, ValueError, r"parameters has shape \[3, 1\], expected \[N\]"),
        ({"parameters": torch.zeros(3).bfloat16()}, TypeError, r"parameters has dtype torch\.bfloat16"),
        ({"gradients": torch.zeros(4)}, ValueError, r"gradients has shape \[4\], expected \[N\] = \[3\]"),
        ({"gradients": torch.zeros(3).half()}, TypeError, r"gradients has dtype torch\.float16"),
        ({"exp_avg": torch.zeros(3).double()}, TypeError, r"exp_avg has dtype torch\.float64"),
        ({"exp_avg_sq": torch.zeros(6)[::2]}, ValueError, r"exp_avg_sq has stride 2, expected a contiguous"),
        ({"bfloat16_copy": torch.zeros(3)}, TypeError, r"bfloat16_copy has dtype torch\.float32"),
        ({"exp_avg": torch.zeros(3, device="meta")}, ValueError, r"parameters on cpu.*exp_avg on meta"),
        ({"lr": torch.zeros((), device="meta")}, ValueError, r"lr on meta"),
        ({"lr": torch.zeros(2)}, ValueError, r"lr has shape \[2\], expected a scalar"),
        ({"lr": -1.0}, ValueError, r"lr is -1\.0, expected at least 0"),
        ({"step": 0}, ValueError, r"step is 0, expected at least 1"),
        ({"eps": -1.0}, ValueError, r"eps is -1\.0"),
        ({"weight_decay": math.nan}, ValueError, r"weight_decay is nan"),
        ({"betas": (0.9, 1.0)}, ValueError, r"betas\[1\] is 1\.0, expected a number in \[0, 1\)"),
        ({"grad_scale": 0.0}, ValueError, r"grad_scale is 0\.0, expected more than 0"),
        ({"max_norm": 1.0}, ValueError, r"max_norm is 1\.0, but grad_norm is None"),
        (
            {"max_norm": 0.0, "grad_norm": torch.ones(())},
            ValueError,
            r"max_norm is 0\.0, expected more than 0",
        ),
    ],
)
def test_errors_name_the_argument_its_value_and_what_was_expected(changes, error, message):
    with pytest.raises(error, match=message):
        kernels.adamw(**arguments(**changes))
