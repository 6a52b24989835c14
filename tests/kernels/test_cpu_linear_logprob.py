from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fastrlhf import kernels
from fastrlhf.kernels import native
from fastrlhf.kernels.reference.linear_logprob import linear_logprob as reference
from fastrlhf.kernels.reference.linear_logprob_backward import linear_logprob_backward as reference_backward
from tests.kernels.native_cases import assert_same
from tests.support.memory import allocations
from tests.support.precision import assert_as_good_as, assert_as_good_on_average, joined

pytestmark = pytest.mark.skipif(
    native.missing("_cpu") is not None, reason=f"fastrlhf._cpu: {native.missing('_cpu')}"
)

if native.missing("_cpu") is None:
    from fastrlhf.kernels.cpu.linear_logprob import linear_logprob
    from fastrlhf.kernels.cpu.linear_logprob_backward import linear_logprob_backward

FORWARD = ("logprobs", "entropy", "logsumexp", "logprob_slope", "entropy_slope", "top_logprobs")
BACKWARD = ("grad_hidden", "grad_weight", "grad_bias")
NAN, INF = math.nan, math.inf
# So that the largest error of plain PyTorch is no accident.
ENOUGH_ROWS = 512

# N, D, V: around a panel (8, 16, 32 rows), a stripe (6, 12 words), a piece of the depth (256), a tile of the vocabulary
# (240 words), a merged chunk (4 tiles), a group (512 rows) and a block (1,024 rows).
SHAPES = [
    (1, 1, 1),
    (3, 5, 7),
    (8, 6, 6),
    (16, 12, 12),
    (31, 13, 239),
    (32, 256, 240),
    (33, 257, 241),
    (65, 40, 959),
    (65, 40, 2881),
    (513, 3, 1921),
    (1025, 2, 300),
]


def case(shape, seed=0, with_bias=True, temperature=0.8, softcap=None, scale=1.5):
    """The arguments that forward and backward share: tensors, then numbers."""
    rows, width, words = shape
    generator = torch.Generator().manual_seed(seed)

    def normal(*size):
        return torch.randn(*size, generator=generator)

    weight = scale * normal(words, width) / max(width, 1) ** 0.5
    targets = torch.randint(words, (rows,), generator=generator)
    bias = normal(words) if with_bias else None
    return (normal(rows, width), weight, targets, bias), (temperature, softcap)


def backward_arguments(tensors, numbers, entropy, logsumexp, with_entropy=True):
    generator = torch.Generator().manual_seed(1)
    grads = torch.randn(2, len(entropy), generator=generator).to(tensors[0].dtype)
    return (*grads[:1], grads[1] if with_entropy else None, *tensors, entropy, logsumexp, *numbers, True)


def in_float64(args):
    return tuple(
        arg.double() if isinstance(arg, torch.Tensor) and arg.is_floating_point() else arg for arg in args
    )


def assert_right(tensors, numbers, with_entropy=True):
    """Forward with both slopes and backward with all gradients, against the reference."""
    assert_all_right([(tensors, numbers)], with_entropy)


def assert_all_right(cases, with_entropy=True, as_good=assert_as_good_as):
    """As `assert_right`, the numbers of all cases at once."""
    results = []
    for tensors, numbers in cases:
        exact = reference(*in_float64(tensors), *numbers, 2)
        same, actual = reference(*tensors, *numbers, 2), linear_logprob(*tensors, *numbers, 2)
        fewer = linear_logprob(*tensors, *numbers, 1)
        assert_same(fewer[:4], actual[:4], names=FORWARD[:4])
        assert fewer[4].shape == (0,)
        assert_same(linear_logprob(*tensors, *numbers, 0)[:3], actual[:3], names=FORWARD[:3])
        # Each backward with the logsumexp of its own forward: the logits are rounded alike.
        results.append(
            [
                (*forward, *function(*backward_arguments(given, numbers, *forward[1:3], with_entropy)))
                for function, given, forward in (
                    (linear_logprob_backward, tensors, actual),
                    (reference_backward, tensors, same),
                    (reference_backward, in_float64(tensors), exact),
                )
            ]
        )
    runs = [joined(of_all_cases) for of_all_cases in zip(*results, strict=True)]
    for name, *three in zip(FORWARD + BACKWARD, *runs, strict=True):
        if name == "logsumexp":  # made of float32 logits
            three = [tensor.float() for tensor in three[:2]] + three[2:]
        as_good(*three, name=name)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_as_good_as_the_reference_at_every_edge(instructions, shape):
    assert_right(*case(shape))


@pytest.mark.parametrize("softcap", [None, 2.0])
@pytest.mark.parametrize("temperature", [1.0, 0.6])
@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("with_entropy", [False, True])
def test_every_option(instructions, softcap, temperature, with_bias, with_entropy):
    assert_right(*case((40, 9, 1100), 3, with_bias, temperature, softcap), with_entropy)


@settings(max_examples=40, deadline=None)
@given(
    shape=st.tuples(st.integers(1, 70), st.integers(1, 30), st.integers(2, 1300)),
    seed=st.integers(0, 2**20),
    with_bias=st.booleans(),
    temperature=st.floats(0.3, 3),
    softcap=st.none() | st.floats(1, 50),
    scale=st.floats(0.1, 8),
)
def test_any_shape_and_any_options(shape, seed, with_bias, temperature, softcap, scale):
    seeds = range(seed, seed + math.ceil(ENOUGH_ROWS / shape[0]))
    cases = [case(shape, one, with_bias, temperature, softcap, scale) for one in seeds]
    assert_all_right(cases, as_good=assert_as_good_on_average)


@pytest.mark.parametrize("first", [-1e4, 1e4])
def test_logits_that_change_from_tile_to_tile(instructions, first):
    # The first chunk's logits say nothing of those after it: neither their largest nor their mean.
    (hidden_states, weight, targets, bias), numbers = case((40, 4, 2400))
    bias[:700] += first
    assert_right((hidden_states, weight, targets, bias), numbers)
    bias[:] = -INF
    bias[[300, 2000]] = torch.tensor([0.5, 1.0])
    assert_right((hidden_states, weight, targets * 0 + 2000, bias), numbers)


def test_rising_logits(instructions):
    (hidden_states, weight, targets, _bias), numbers = case((40, 4, 2400))
    assert_right((hidden_states, weight, targets, torch.linspace(-30, 30, 2400)), numbers)


@pytest.mark.parametrize("bad", [NAN, INF, -INF])
def test_what_is_not_finite_stays_in_its_row(instructions, bad):
    tensors, numbers = case((40, 4, 1000), with_bias=False)
    clean = linear_logprob(*tensors, *numbers, 2)
    tensors[0][17, 2] = bad
    expected, actual = reference(*tensors, *numbers, 2), linear_logprob(*tensors, *numbers, 2)
    others = torch.arange(40) != 17
    for name, before, one, other in zip(FORWARD, clean, actual, expected, strict=True):
        assert torch.equal(one[others], before[others]), name
        assert torch.equal(one.isnan(), other.isnan()), name


def test_absent_words_everywhere_are_nan_as_in_the_reference(instructions):
    tensors, numbers = case((3, 4, 1000))
    tensors[3].fill_(-INF)
    assert linear_logprob(*tensors, *numbers, 2)[0].isnan().all()
    assert reference(*tensors, *numbers, 2)[0].isnan().all()


def test_without_width_or_rows(instructions):
    for shape in ((5, 0, 40), (0, 5, 40)):
        tensors, numbers = case(shape)
        outputs, expected = linear_logprob(*tensors, *numbers, 2), reference(*tensors, *numbers, 2)
        for one, other in zip(outputs, expected, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)
        arguments = backward_arguments(tensors, numbers, *expected[1:3])
        for one, other in zip(
            linear_logprob_backward(*arguments), reference_backward(*arguments), strict=True
        ):
            torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


def test_the_number_of_threads_changes_no_bit(instructions, threads):
    tensors, numbers = case((130, 24, 2500))
    results = []
    for count in (1, 2, 3, 5):
        threads(count)
        outputs = linear_logprob(*tensors, *numbers, 2)
        arguments = backward_arguments(tensors, numbers, *outputs[1:3])
        results.append((*outputs, *linear_logprob_backward(*arguments)))
    for other in results[1:]:
        assert_same(other, results[0], names=FORWARD + BACKWARD)


def test_the_versions_of_the_kernel_differ_in_bits_and_so_are_versions():
    module, (tensors, numbers) = native.module("_cpu"), case((64, 300, 700))
    results = []
    for portable, avx512 in ((True, False), (False, False), (False, True)):
        module.force_portable(portable)
        module.allow_avx512(avx512)
        results.append(linear_logprob(*tensors, *numbers, 2)[3])
    module.force_portable(False)
    if module.simd() == "avx2":
        assert not torch.equal(results[0], results[1]), "products are rounded before they are added up"
    for result in results[1:]:
        torch.testing.assert_close(result, results[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("width", [256, 576])
@pytest.mark.parametrize("trainable", [False, True], ids=["frozen", "trainable"])
def test_temporary_memory_is_under_32_megabytes(instructions, threads, width, trainable):
    if instructions == "portable":
        pytest.skip("the same memory, at a tenth of the speed")
    threads(2)
    rows, words = 1024, 50_304
    hidden_states = torch.randn(rows, width, requires_grad=True)
    weight = torch.randn(words, width, requires_grad=trainable)
    targets = torch.randint(words, (rows,))

    def both():
        logprobs, entropy = kernels.linear_logprob(hidden_states, weight, targets)
        leaves = [hidden_states, weight] if trainable else [hidden_states]
        return torch.autograd.grad(logprobs.sum() + entropy.sum(), leaves)

    used = allocations(both)
    assert used.peak - (4 * words * width if trainable else 0) < 32e6
