from __future__ import annotations

import importlib.util
import math

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from fastrlhf import kernels
from fastrlhf.kernels.linear_logprob import _linear_logprob
from fastrlhf.kernels.reference.linear_logprob import TILE_ROWS
from tests.support.backends import interpreted, on_triton
from tests.support.memory import allocations
from tests.support.precision import assert_as_good_as

OPERATION = "linear_logprob"
DTYPES = [torch.float64, torch.float32, torch.bfloat16]
SHAPES = [  # N, D, V
    (1, 1, 1),
    (1, 8, 31),
    (31, 33, 127),
    (TILE_ROWS, 16, 33),
    (127, 31, 129),
    (129, 8, 1),
    (300, 16, 33),
]
LEAVES = ("hidden_states", "weight", "bias")


def head(shape=(70, 16, 33), dtype=torch.float32, scale=1.0):
    """Hidden states, weight, targets and bias; the logits have about the standard deviation `scale`."""
    torch.manual_seed(0)
    rows, width, vocabulary = shape
    return {
        "hidden_states": torch.randn(rows, width).to(dtype),
        "weight": (scale * torch.randn(vocabulary, width) / math.sqrt(width)).to(dtype),
        "targets": torch.randint(vocabulary, (rows,)),
        "bias": torch.randn(vocabulary).to(dtype),
    }


def plain(*, hidden_states, weight, targets, bias=None, temperature=1.0, softcap=None):
    """Whole logits; statistics in float32 at least."""
    logits = torch.nn.functional.linear(hidden_states, weight, bias)
    logits = logits.float() if logits.dtype == torch.bfloat16 else logits
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    log_p = torch.log_softmax(logits / temperature, dim=-1)
    return log_p[torch.arange(len(targets)), targets], -(log_p.exp() * log_p).sum(-1)


def with_gradients(
    function, tensors, device="cpu", dtype=None, needed=LEAVES, used=("logprobs", "entropy"), **options
):
    """logprobs, entropy, and the gradients of a weighted sum of those `used` in the leaves `needed`."""
    tensors = {
        name: tensor.to(device, dtype if tensor.is_floating_point() else None)
        for name, tensor in tensors.items()
    }
    leaves = {name: tensors[name].detach().requires_grad_() for name in needed if name in tensors}
    logprobs, entropy = function(**(tensors | leaves), **options)
    factors = torch.linspace(-1, 2, max(len(logprobs), 1), dtype=torch.float64)[: len(logprobs)].to(logprobs)
    objective = sum(
        (factor * output).sum()
        for name, output, factor in (("logprobs", logprobs, factors), ("entropy", entropy, 0.5 - factors))
        if name in used
    )
    return logprobs, entropy, dict(zip(leaves, torch.autograd.grad(objective, leaves.values()), strict=True))


def assert_right(tensors, device, **options):
    actual = with_gradients(kernels.linear_logprob, tensors, device, **options)
    same = with_gradients(plain, tensors, **options)
    exact = with_gradients(plain, tensors, dtype=torch.float64, **options)
    assert_as_good_as(actual[0], same[0], exact[0], name="logprobs")
    assert_as_good_as(actual[1], same[1], exact[1], name="entropy")
    assert actual[2].keys() == exact[2].keys()
    for name, gradient in exact[2].items():
        assert_as_good_as(actual[2][name], same[2][name], gradient, name=f"gradient of {name}")


def test_one_row_by_hand(device):
    # Logits of hidden state (1, 2): 1 x 0 + 2 x 0 = 0 and 1 x log 3 + 2 x 0 = log 3, so p = 1/4, 3/4.
    # d log p[1] / dz = (-1/4, 1/4); entropy H = log 4 - 3/4 log 3.
    hidden_states = torch.tensor([[1.0, 2.0]], device=device, requires_grad=True)
    weight = torch.tensor([[0.0, 0.0], [math.log(3), 0.0]], device=device, requires_grad=True)
    logprobs, entropy = kernels.linear_logprob(hidden_states, weight, torch.tensor([1], device=device))
    assert logprobs.item() == pytest.approx(math.log(3 / 4), rel=1e-6)
    assert entropy.item() == pytest.approx(math.log(4) - 0.75 * math.log(3), rel=1e-6)
    grad_hidden, grad_weight = torch.autograd.grad(logprobs.sum(), [hidden_states, weight], retain_graph=True)
    assert grad_hidden.flatten().tolist() == pytest.approx([0.25 * math.log(3), 0], rel=1e-6)
    assert grad_weight.flatten().tolist() == pytest.approx([-0.25, -0.5, 0.25, 0.5], rel=1e-6)
    # dH / dz_1 = -p_1 (log p_1 + H) = -3/4 (log 3/4 + log 4 - 3/4 log 3) = -3/16 log 3
    (grad_weight,) = torch.autograd.grad(entropy.sum(), weight)
    assert grad_weight[1].tolist() == pytest.approx([-3 / 16 * math.log(3), -3 / 8 * math.log(3)], rel=1e-6)


def test_temperature_bias_and_softcap_by_hand(device):
    # z = softcap tanh(bias / softcap) / temperature = 2 tanh(1 / 2) / 0.5 against 0
    zeros = torch.zeros(2, 3, device=device)
    bias = torch.tensor([1.0, 0.0], device=device)
    targets = torch.tensor([0, 1], device=device)
    logprobs, _ = kernels.linear_logprob(zeros, zeros, targets, bias=bias, temperature=0.5, softcap=2.0)
    z = 2 * math.tanh(0.5) / 0.5
    assert logprobs.tolist() == pytest.approx([-math.log1p(math.exp(-z)), -math.log1p(math.exp(z))], rel=1e-6)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_as_good_as_plain_on_ragged_shapes(device, dtype, shape):
    assert_right(head(shape, dtype), device)


@pytest.mark.parametrize("vocabulary", [32_001, 50_257])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_as_good_as_plain_on_large_ragged_vocabularies(device, dtype, vocabulary):
    assert_right(head((3, 8, vocabulary), dtype), device)


@pytest.mark.parametrize(
    "options",
    [
        {"temperature": 0.7},
        {"temperature": 2},
        {"softcap": 1.5},
        {"softcap": 30},
        {"temperature": 0.7, "softcap": 1.5},
    ],
    ids=str,
)
@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_as_good_as_plain_with_every_option(device, dtype, with_bias, options):
    tensors = head(dtype=dtype, scale=3.0)
    if not with_bias:
        del tensors["bias"]
    assert_right(tensors, device, **options)


@pytest.mark.parametrize("needed", [LEAVES[:1], LEAVES[1:2], LEAVES[2:], LEAVES[::2]], ids=" ".join)
def test_gradients_only_where_asked(device, needed):
    assert_right(head(), device, needed=needed)


@pytest.mark.parametrize("used", ["logprobs", "entropy"])
def test_only_one_output_used(device, used):
    assert_right(head(), device, used=(used,))


def test_non_contiguous_inputs(device):
    tensors = head((140, 32, 66))
    tensors["hidden_states"] = tensors["hidden_states"].t().contiguous().t()[::2, ::2]
    tensors["weight"] = tensors["weight"].t().contiguous().t()[1::2, ::2]
    tensors["targets"] = tensors["targets"][::2] // 2
    tensors["bias"] = tensors["bias"][::2]
    assert_right(tensors, device)
    tensors["hidden_states"] = tensors["hidden_states"][:1].expand(70, 16)
    tensors["bias"] = tensors["bias"][:1].expand(33)
    assert_right(tensors, device)


def test_gradient_that_is_not_contiguous(device):
    hidden_states, weight, targets, _ = (tensor.to(device) for tensor in head((70, 4, 9)).values())
    results = []
    for grads in (torch.ones(2, device=device).expand(70, 2).t(), torch.ones(2, 70, device=device)):
        outputs = kernels.linear_logprob(hidden_states, weight.requires_grad_(), targets)
        results.append(torch.autograd.grad(outputs, weight, tuple(grads))[0])
    assert torch.equal(*results)


@pytest.mark.parametrize("shape", [(0, 8, 33), (0, 1, 1)], ids=str)
def test_empty(device, shape):
    logprobs, entropy, gradients = with_gradients(kernels.linear_logprob, head(shape), device)
    assert logprobs.shape == entropy.shape == (0,)
    assert gradients["hidden_states"].shape == shape[:2]
    assert not gradients["weight"].any() and gradients["weight"].shape == (shape[2], shape[1])
    assert not gradients["bias"].any() and gradients["bias"].shape == (shape[2],)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_extreme_logits(device, dtype):
    # Whole numbers, so that the logits (up to 1e4 either way) are exact and the test is about the softmax.
    tensors = head((70, 2, 33), dtype)
    tensors["hidden_states"] = torch.randint(-4, 5, (70, 2)).to(dtype)
    tensors["weight"] = torch.randint(-4, 5, (33, 2)).mul(256).to(dtype)
    tensors["bias"] = torch.zeros(33, dtype=dtype)
    tensors["bias"][:2] = torch.tensor([8192, -8192])
    assert_right(tensors, device)
    assert_right(tensors, device, softcap=30.0)


def test_certain_token(device):
    tensors = head((2, 3, 5))
    tensors["bias"] = torch.tensor([1e4, -1e4, 0, 0, 0])
    tensors["targets"] = torch.tensor([0, 1])
    logprobs, entropy, gradients = with_gradients(kernels.linear_logprob, tensors, device)
    assert logprobs[0] == 0 and logprobs[1] < -1.9e4 and not entropy.any()
    assert all(gradient.isfinite().all() for gradient in gradients.values())


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_tokens_with_logit_minus_infinity_count_as_absent(device, dtype):
    tensors = head((70, 16, 33), dtype)
    tensors["targets"] %= 30
    tensors["bias"][30:] = -math.inf
    fewer = tensors | {"weight": tensors["weight"][:30], "bias": tensors["bias"][:30]}
    actual = with_gradients(kernels.linear_logprob, tensors, device)
    same, exact = with_gradients(plain, fewer), with_gradients(plain, fewer, dtype=torch.float64)
    assert_as_good_as(actual[0], same[0], exact[0], name="logprobs")
    assert_as_good_as(actual[1], same[1], exact[1], name="entropy")
    for name in LEAVES:
        gradient = actual[2][name]
        if name != "hidden_states":
            assert not gradient[30:].any()
            gradient = gradient[:30]
        assert_as_good_as(gradient, same[2][name], exact[2][name], name=f"gradient of {name}")


@pytest.mark.parametrize("options", [{}, {"temperature": 0.7, "softcap": 2.0}], ids=str)
@pytest.mark.parametrize("with_bias", [False, True])
def test_gradcheck(device, with_bias, options):
    hidden_states, weight, targets, bias = (
        tensor.to(device) for tensor in head((5, 3, 7), torch.float64).values()
    )
    leaves = [hidden_states, weight, bias] if with_bias else [hidden_states, weight]

    def function(hidden_states, weight, bias=None):
        return kernels.linear_logprob(hidden_states, weight, targets, bias=bias, **options)

    assert torch.autograd.gradcheck(function, [leaf.requires_grad_() for leaf in leaves])


def used_memory(rows, device, dtype, needed):
    tensors = {name: tensor.to(device) for name, tensor in head((rows, 8, 2003), dtype).items()}
    forward = allocations(lambda: kernels.linear_logprob(**tensors))
    both = allocations(lambda: with_gradients(kernels.linear_logprob, tensors, device, needed=needed))
    return forward, both


@pytest.fixture
def few_held_gradients(monkeypatch):
    """The block of gradients that the Triton kernels hold, which a card's cache decides, made small for a toy."""
    if importlib.util.find_spec("triton"):
        module = importlib.import_module("fastrlhf.kernels.triton.linear_logprob_gradient")
        monkeypatch.setattr(module, "HELD", 1 << 14)


@pytest.mark.parametrize("needed", [LEAVES[:1], LEAVES], ids=["hidden_states", "all"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_memory_is_tiles_never_whole_logits(device, dtype, needed, few_held_gradients):
    few, many = (64, 128) if interpreted() else (1024, 2048)
    for small, large in zip(
        used_memory(few, device, dtype, needed), used_memory(many, device, dtype, needed), strict=True
    ):
        # Triton holds at least 128 words of two gradients, and sums of each part of the vocabulary
        held, kept = (2003 * 4 / 7, 2003 * 4 / 10) if on_triton() else (2003 * 4 / 8, 4 * 12 * 8)
        assert large.largest <= many * held, "tiles of the logits"
        assert (large.peak - small.peak) / (many - few) <= kept, (
            "slopes, their sums over parts of the vocabulary, gradients: all of width 8"
        )


@pytest.mark.parametrize(
    ("needed", "options", "slopes"),
    [
        ((), {}, 0),
        (LEAVES, {}, 0),
        (LEAVES[2:], {}, 0),
        (LEAVES[:1], {}, 2),
        (LEAVES[:1], {"entropy_grad": False}, 1),
    ],
)
def test_memory_kept_for_the_backward(device, needed, options, slopes):
    tensors = {name: tensor.to(device) for name, tensor in head((3 * TILE_ROWS, 8, 2003)).items()}
    for name in needed:
        tensors[name].requires_grad_()
    used = allocations(lambda: kernels.linear_logprob(**tensors, **options))
    logsumexp = 8 if needed and not slopes else 0
    assert used.kept == 3 * TILE_ROWS * (4 + 4 + logsumexp + slopes * 4 * 8)


def test_with_a_frozen_head_the_backward_runs_no_matrix_product(device):
    tensors = {name: tensor.to(device) for name, tensor in head().items()}
    outputs = kernels.linear_logprob(
        **(tensors | {"hidden_states": tensors["hidden_states"].requires_grad_()})
    )
    tensors["weight"].fill_(math.nan)
    (gradient,) = torch.autograd.grad(sum(outputs).sum(), tensors["hidden_states"])
    assert gradient.isfinite().all()


@pytest.mark.parametrize("needed", [LEAVES[:1], LEAVES], ids=["frozen", "trainable"])
def test_an_entropy_that_is_only_watched(device, needed):
    tensors = {name: tensor.to(device) for name, tensor in head().items()}
    for name in needed:
        tensors[name].requires_grad_()
    watched = kernels.linear_logprob(**tensors, entropy_grad=False)
    assert not watched.entropy.requires_grad
    leaves = [tensors[name] for name in needed]
    expected = kernels.linear_logprob(**tensors)
    assert torch.equal(watched.entropy, expected.entropy)
    for one, other in zip(
        torch.autograd.grad(watched.logprobs.sum(), leaves),
        torch.autograd.grad(expected.logprobs.sum(), leaves),
        strict=True,
    ):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("needs_weight", [False, True])
def test_opcheck_of_the_backward(device, transposed, with_bias, needs_weight):
    arguments = op_arguments(device, transposed, with_bias)
    _, entropy, logsumexp, *_ = _linear_logprob(*arguments, 0)
    grads = torch.randn(2, 5, device=device).unbind(0)
    for grad_entropy in (grads[1], None):
        torch.library.opcheck(
            torch.ops.fastrlhf.linear_logprob_backward.default,
            (grads[0], grad_entropy, *arguments[:4], entropy, logsumexp, *arguments[4:], needs_weight),
        )


@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("slopes", [0, 1, 2])
def test_opcheck(device, transposed, with_bias, slopes):
    hidden_states, weight, targets, bias, *numbers = op_arguments(device, transposed, with_bias)
    hidden_states.requires_grad_()
    if not slopes:
        weight.requires_grad_()
    torch.library.opcheck(
        torch.ops.fastrlhf.linear_logprob.default, (hidden_states, weight, targets, bias, *numbers, slopes)
    )


def op_arguments(device, transposed, with_bias):
    hidden_states, weight, targets, bias = (tensor.to(device) for tensor in head((5, 3, 7)).values())
    if transposed:
        hidden_states, weight = hidden_states.t().contiguous().t(), weight.t().contiguous().t()
    return hidden_states, weight, targets, bias if with_bias else None, 0.7, 2.0


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_meta_and_fake_tensors(dtype):
    tensors = {name: tensor.to("meta") for name, tensor in head(dtype=dtype).items()}
    logprobs, entropy, gradients = with_gradients(kernels.linear_logprob, tensors, "meta")
    assert logprobs.shape == entropy.shape == (70,)
    assert logprobs.dtype == entropy.dtype == torch.promote_types(dtype, torch.float32)
    for name, gradient in gradients.items():
        assert gradient.shape == tensors[name].shape and gradient.dtype == dtype
    with FakeTensorMode() as mode:
        fakes = {name: mode.from_tensor(tensor) for name, tensor in head(dtype=dtype).items()}
        assert kernels.linear_logprob(**fakes).entropy.shape == (70,)


def test_compiles_whole(device):
    tensors = head((5, 3, 7))

    def scaled(**tensors):
        return kernels.linear_logprob(**(tensors | {"hidden_states": 2 * tensors["hidden_states"]}))

    compiled = torch.compile(scaled, fullgraph=True, backend="aot_eager")
    expected = with_gradients(scaled, tensors, device)
    actual = with_gradients(compiled, tensors, device)
    torch.testing.assert_close(actual, expected)


@pytest.mark.slow
def test_compiles_with_the_default_compiler(device):
    tensors = head((5, 3, 7))

    def policy(*, hidden_states, **rest):
        outputs = kernels.linear_logprob(torch.tanh(hidden_states), **rest)
        return outputs.logprobs.exp(), outputs.entropy * 2

    actual = with_gradients(torch.compile(policy, fullgraph=True), tensors, device)
    torch.testing.assert_close(actual, with_gradients(policy, tensors, device))


@pytest.mark.parametrize("target", [-1, 7])
def test_a_target_outside_the_vocabulary(target):
    tensors = head((5, 3, 7))
    tensors["targets"] = torch.tensor([0, 1, 2, 6, target])
    low, high = min(0, target), max(6, target)
    with pytest.raises(IndexError, match=rf"targets lie in \[{low}, {high}\], expected \[0, 7\)"):
        kernels.linear_logprob(**tensors)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        (
            {"hidden_states": torch.zeros(2, 5, 3)},
            ValueError,
            r"hidden_states has shape \[2, 5, 3\], .*\[N, D\]",
        ),
        (
            {"hidden_states": torch.zeros(5, 3).int()},
            TypeError,
            r"hidden_states has dtype torch\.int32, expected",
        ),
        ({"weight": torch.zeros(7)}, ValueError, r"weight has shape \[7\], expected \[V, D\]"),
        (
            {"weight": torch.zeros(7, 4)},
            ValueError,
            r"weight has shape \[7, 4\], expected \[V, D\] = \[7, 3\]",
        ),
        (
            {"weight": torch.zeros(7, 3).double()},
            TypeError,
            r"weight has dtype torch\.float64.*torch\.float32",
        ),
        ({"targets": torch.zeros(4).long()}, ValueError, r"targets has shape \[4\], expected \[N\] = \[5\]"),
        ({"targets": torch.zeros(5).int()}, TypeError, r"targets has dtype torch\.int32, .*torch\.int64"),
        ({"bias": torch.zeros(8)}, ValueError, r"bias has shape \[8\], expected \[V\] = \[7\]"),
        ({"bias": torch.zeros(7).half()}, TypeError, r"bias has dtype torch\.float16, .*torch\.float32"),
        (
            {"bias": torch.zeros(7, device="meta")},
            ValueError,
            r"on one device: hidden_states on cpu.*bias on meta",
        ),
        ({"temperature": 0}, ValueError, r"temperature is 0, expected more than 0"),
        ({"temperature": math.nan}, ValueError, r"temperature is nan, expected more than 0"),
        ({"softcap": -1.0}, ValueError, r"softcap is -1\.0, expected more than 0"),
    ],
)
def test_errors_name_the_argument_its_value_and_what_was_expected(changes, error, message):
    with pytest.raises(error, match=message):
        kernels.linear_logprob(**(head((5, 3, 7)) | changes))
