"""The Triton kernels of `linear_logprob` on more than 2^31 elements, of which a few are touched."""

from __future__ import annotations

import pytest
import torch

from fastrlhf.device.launch import launch_triton
from fastrlhf.kernels import triton as backend
from tests.support.far import FAR, far_memory, programs_from

if not backend.interpreted() or backend.unavailable():
    pytest.skip("needs Triton's interpreter", allow_module_level=True)

from fastrlhf.kernels.triton.linear_logprob import CONFIGS, linear_logprob_kernel, linear_logprob_merge_kernel
from fastrlhf.kernels.triton.linear_logprob_gradient import logit_gradient_kernel
from fastrlhf.kernels.triton.linear_logprob_product import CONFIGS as PRODUCT
from fastrlhf.kernels.triton.linear_logprob_product import linear_logprob_product_kernel

CPU = torch.device("cpu")
WIDTH, FEW, WORDS, TEMPERATURE = 40, 5, 7, 0.7
PLAIN = {"WIDTH": WIDTH, "HAS_BIAS": False, "HAS_SOFTCAP": False}
TILE = CONFIGS[0]


def head():
    """Hidden states `[FEW, WIDTH]`, a weight `[WORDS, WIDTH]`, and the tempered logits of the two in float64."""
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(FEW, WIDTH, generator=generator)
    weight = torch.randn(WORDS, WIDTH, generator=generator)
    return hidden, weight, (hidden.double() @ weight.double().T) / TEMPERATURE


def after(first: int, rows: torch.Tensor) -> torch.Tensor:
    """`rows` after `first` others, which nobody touches."""
    far = far_memory((first + len(rows)) * rows[0].numel(), rows.dtype).view(-1, *rows.shape[1:])
    far[first:] = rows
    return far


def past(multiple: int) -> int:
    """The first multiple that lies past 2^31 elements in rows of WIDTH."""
    return (FAR // WIDTH // multiple + 1) * multiple


def test_rows_past_2_31_elements():
    hidden, weight, logits = head()
    first = past(TILE["BLOCK_N"])
    rows, padded = first + FEW, first + TILE["BLOCK_N"]
    targets = after(first, torch.arange(FEW))
    partial = far_memory(4 * padded, torch.float32)
    with programs_from(first // TILE["BLOCK_N"]):
        arguments = (
            after(first, hidden),
            weight,
            weight,
            targets,
            partial,
            rows,
            padded,
            WORDS,
            1,
            TEMPERATURE,
            0.0,
        )
        launch_triton(linear_logprob_kernel, (1, 1), CPU, *arguments, **PLAIN, **TILE)
    logprobs, entropy, top_logprobs = (after(first, torch.full((FEW,), torch.nan)) for _ in range(3))
    logsumexp = after(first, torch.full((FEW,), torch.nan, dtype=torch.float64))
    with programs_from(first // 256):
        results = partial, targets, logprobs, entropy, logsumexp, top_logprobs
        sizes = rows, padded, WORDS, 1
        launch_triton(linear_logprob_merge_kernel, (1,), CPU, *results, *sizes, BLOCK=256, num_warps=2)
    expected = logits.log_softmax(1)
    torch.testing.assert_close(
        logprobs[first:].double(), expected[range(FEW), range(FEW)], rtol=1e-5, atol=1e-6
    )
    torch.testing.assert_close(logsumexp[first:], logits.logsumexp(1), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(top_logprobs[first:].double(), expected.amax(1), rtol=1e-5, atol=1e-6)


def test_words_past_2_31_elements():
    hidden, weight, logits = head()
    first = past(TILE["BLOCK_V"])
    far, words = after(first, weight), first + WORDS
    targets = first + torch.arange(FEW)
    partial = far_memory(4 * 16 * (first // TILE["BLOCK_V"] + 1), torch.float32)
    with programs_from(first // TILE["BLOCK_V"], axis=1):
        arguments = hidden, far, far, targets, partial, FEW, 16, words, 1, TEMPERATURE, 0.0
        launch_triton(linear_logprob_kernel, (1, 1), CPU, *arguments, **PLAIN, **TILE)
    here = partial[16 * (first // TILE["BLOCK_V"]) :][:FEW]
    torch.testing.assert_close(here.double(), logits.amax(1), rtol=1e-6, atol=1e-6)

    held, nothing = torch.full((1, FEW, 128), torch.nan), torch.zeros(FEW)
    launch_triton(
        logit_gradient_kernel,
        (1, 1),
        CPU,
        *(hidden, far, far, targets, nothing, logits.logsumexp(1), nothing, nothing, held, nothing),
        *(FEW, words, first, 128, TEMPERATURE, 0.0),
        **PLAIN,
        GIVEN=False,
        HAS_ENTROPY=False,
        HAS_BIAS_GRAD=False,
        **TILE,
    )
    expected = (torch.eye(FEW, WORDS) - logits.softmax(1)) / TEMPERATURE
    torch.testing.assert_close(held[0, :, :WORDS].double(), expected.double(), rtol=1e-5, atol=2e-6)
    assert not held[0, :, WORDS:].any()


def test_sums_past_2_31_elements():
    hidden, _, _ = head()
    tile = PRODUCT[0]
    first = past(tile["BLOCK_M"])
    held = after(first, torch.nn.functional.pad(hidden, (0, 64 - WIDTH)))
    depth = WIDTH
    other = torch.randn(depth, WIDTH, generator=torch.Generator().manual_seed(1))
    into = after(first, torch.full((FEW, WIDTH), torch.nan))
    with programs_from(first // tile["BLOCK_M"]):
        arguments = held, other, into, first + FEW, 64, first + FEW, depth, 1
        launch_triton(
            linear_logprob_product_kernel,
            (1, 1),
            CPU,
            *arguments,
            WIDTH=WIDTH,
            TURNED=False,
            ADD=False,
            **tile,
        )
    torch.testing.assert_close(into[first:], hidden @ other, rtol=1e-5, atol=1e-5)
