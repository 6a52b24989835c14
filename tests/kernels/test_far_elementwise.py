"""Norms, gated units, rotary embedding and AdamW on tensors of more than 2^31 elements, of which a few are touched."""

from __future__ import annotations

import math

import pytest
import torch

from fastrlhf.kernels import triton as backend
from fastrlhf.kernels.cases import cases, normal
from fastrlhf.kernels.dispatch import implementation
from tests.support.far import FAR, far_memory, far_rows, programs_from

if not backend.interpreted() or backend.unavailable():
    pytest.skip("needs Triton's interpreter", allow_module_level=True)

ROWS, WIDTH = 3, 1100  # longer than a tile: a program a row


def run(operation, *args):
    """The Triton launcher's results."""
    return implementation(operation, "triton", *args)(*args)


def assert_same(actual, expected):
    for one, other in zip(actual, expected, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("bias", [None, normal(WIDTH, seed=4)], ids=["RMS", "layer"])
def test_rows_of_norms(bias):
    x, residual, gradient, passed = (normal(ROWS, WIDTH, seed=seed) for seed in range(4))
    weight, numbers = normal(WIDTH, seed=5), (1e-5, 0.0, bias is None)
    near = run("norm", x, weight, bias, residual, *numbers)
    assert_same(run("norm", far_rows(x), weight, bias, far_rows(residual), *numbers), near)
    _, summed, mean, rstd = near
    rest = (weight, None if bias is None else mean, rstd, 0.0, True)
    assert_same(
        run("norm_backward", far_rows(gradient), far_rows(passed), far_rows(summed), *rest),
        run("norm_backward", gradient, passed, summed, *rest),
    )


def test_rows_of_gated_units():
    gate, up, gradient = (normal(ROWS, 70, seed=seed) for seed in range(3))
    assert torch.equal(run("glu", far_rows(gate), far_rows(up), "silu"), run("glu", gate, up, "silu"))
    far = run("glu_backward", far_rows(gradient), far_rows(gate), far_rows(up), "silu")
    assert_same(far, run("glu_backward", gradient, gate, up, "silu"))


def test_tokens_of_rotary_embedding():
    *near, transposed = cases("rope", torch.float32)["whole heads"]
    far = [far_rows(tensor) for tensor in near]
    expected = run("rope", *near, transposed)
    assert_same(run("rope", *far, transposed), expected)
    run("rope_inplace", *far)
    assert_same(far[:2], expected)


def test_a_decoding_step():
    *heads, slots, keys, values = cases("rope_cache", torch.float32)["whole heads"]
    near, far = [keys.clone(), values.clone()], [far_rows(keys), far_rows(values)]
    expected = run("rope_cache", *heads, slots, *near)
    assert torch.equal(run("rope_cache", *map(far_rows, heads), slots, *far), expected)
    assert_same(far, near)

    embedding, tokens, lengths, table, *numbers, cos, sin = cases("begin_step", torch.float32)["both"]
    near = run("begin_step", embedding, tokens, lengths, table, *numbers, cos, sin)
    *numbers, positions = numbers
    tables = [far_rows(tensor) for tensor in (positions, cos, sin)]
    assert_same(
        run("begin_step", far_rows(embedding), tokens, lengths, far_rows(table), *numbers, *tables), near
    )

    *state, seen, new, logprobs, entropy, last = cases("end_step", torch.float32)["marked"]
    run("end_step", *state, far := far_rows(seen), new, logprobs, entropy, last)
    assert far.all()


def test_outputs_of_rows_past_2_31_elements():
    """The kernels' outputs are contiguous: only a program that is far along writes far along."""
    from fastrlhf.kernels.triton.glu import glu_kernel
    from fastrlhf.kernels.triton.norm import norm_kernel

    first = FAR // WIDTH + 1
    x, up, weight = far_rows(normal(2, WIDTH)), normal(1, WIDTH, seed=1), normal(WIDTH, seed=2)
    x = x[:1]
    normed = far_memory((first + 1) * WIDTH, torch.float32).view(-1, WIDTH)
    rstd = far_memory(first + 1, torch.float32)
    gated = far_memory((first + 1) * WIDTH, torch.float32).view(-1, WIDTH)
    # a stride of zero leaves every program the first row to read
    with programs_from(first):
        norm_kernel[(1,)](
            x,
            None,
            weight,
            None,
            normed,
            normed,
            rstd,
            rstd,
            first + 1,
            0,
            0,
            1e-5,
            0.0,
            HAS_RESIDUAL=False,
            IS_CENTRED=False,
            CAST_BEFORE_WEIGHT=True,
            COLUMNS=WIDTH,
            ROWS=1,
            BLOCK=2048,
        )
        glu_kernel[(1, 1)](x, up, gated, 0, 0, ACTIVATION="silu", COLUMNS=WIDTH, BLOCK=2048)
    near = run("norm", x, weight, None, None, 1e-5, 0.0, True)
    assert torch.equal(normed[first:], near[0]) and torch.equal(rstd[first:], near[3])
    assert torch.equal(gated[first:], run("glu", x, up, "silu"))


def test_a_chunk_of_more_than_2_31_parameters():
    from fastrlhf.kernels.adamw_numbers import adamw_numbers
    from fastrlhf.kernels.triton.adamw import adamw_kernel

    size, numbers = 256, (1e-2, 3, 1.0, math.inf, 0.9, 0.999, 1e-8, 0.1)
    near = [normal(size, seed=1), normal(size, seed=2), *torch.zeros(2, size).unbind()]
    far = [far_memory(FAR + size, torch.float32) for _ in near]
    for chunk, values in zip(far, near, strict=True):
        chunk[FAR:] = values
    nothing = [None] * 5
    with programs_from(FAR // size):
        adamw_kernel[(1,)](*far, *nothing, *adamw_numbers(*numbers), FAR + size, EVEN=True, BLOCK=size)
    run("adamw", *near, *nothing, *numbers)
    assert_same([chunk[FAR:] for chunk in far], near)
