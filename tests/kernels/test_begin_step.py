from __future__ import annotations

import pytest
import torch

from fastrlhf import kernels
from fastrlhf.kernels import dispatch
from fastrlhf.kernels.cases import normal
from fastrlhf.kernels.cases.begin_step import cases
from tests.support.precision import assert_as_good_as

OPERATION = "begin_step"
DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
NAMES = list(cases(torch.float32))


def moved(arguments, device):
    return [arg.to(device) if isinstance(arg, torch.Tensor) else arg for arg in arguments]


def call(embedding, tokens, lengths, block_table, block_size, scale, position_embedding, cos, sin):
    options = {"position_embedding": position_embedding, "cos": cos, "sin": sin}
    return kernels.begin_step(
        embedding, tokens, lengths, block_table, block_size=block_size, scale=scale, **options
    )


def test_by_hand(device):
    embedding = torch.tensor([[1.0, 2.0], [3.0, 4.0]], device=device)
    angles = torch.arange(12.0, device=device).view(6, 2)
    tokens = torch.tensor([1, 0], device=device)
    lengths, table = (
        torch.tensor(rows, dtype=torch.int32, device=device) for rows in ([5, 2], [[7, 4], [3, 9]])
    )
    out = kernels.begin_step(
        embedding, tokens, lengths, table, block_size=4, scale=2.0, cos=angles, sin=-angles
    )
    assert out.hidden.tolist() == [[6.0, 8.0], [2.0, 4.0]]
    assert out.slots.tolist() == [17, 14] and out.lengths.tolist() == [6, 3]
    assert out.cos.tolist() == [[10.0, 11.0], [4.0, 5.0]] and torch.equal(out.sin, -out.cos)
    assert out.slots.dtype == torch.int64 and out.lengths.dtype == torch.int32


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_as_good_as_plain(device, dtype, name):
    arguments = cases(dtype)[name]
    embedding, tokens, lengths, _, _, scale, positions, cos, sin = arguments
    out = call(*moved(arguments, device))
    exact = embedding.double()[tokens] * scale
    plain = embedding[tokens] * torch.tensor(scale, dtype=dtype)
    if positions is not None:
        exact, plain = exact + positions.double()[lengths], plain + positions[lengths]
    assert_as_good_as(out.hidden, plain, exact, name="hidden")
    assert torch.equal(out.hidden.cpu(), plain), "rounded where the model's own forward rounds"
    for angles, table in ((out.cos, cos), (out.sin, sin)):
        assert angles.shape == (3, 0) if table is None else torch.equal(angles.cpu(), table[lengths])
    assert out.slots.tolist() == [20, 11, 35]


def test_every_config(triton_config):
    for dtype in (torch.float32, torch.bfloat16):
        arguments = list(cases(dtype)["rotary"])
        arguments[0] = normal(5, 300, seed=8).to(dtype)
        arguments[1] = torch.tensor([4, 0, 2])
        out = call(*moved(arguments, triton_config))
        assert torch.equal(out.hidden.cpu(), arguments[0][arguments[1]])
        assert out.slots.tolist() == [20, 11, 35]


def test_embedded_positions_in_another_dtype(device):
    arguments = list(cases(torch.float32)["embedded positions"])
    arguments[0] = arguments[0].bfloat16()
    out = call(*moved(arguments, device))
    assert out.hidden.dtype == torch.float32
    assert torch.equal(out.hidden.cpu(), arguments[0][arguments[1]] + arguments[6][arguments[2]])


def test_what_is_not_there_is_nan_and_has_no_slot(device):
    embedding, _, _, table, size, scale, _, cos, sin = moved(cases(torch.float32)["rotary"], device)
    tokens = torch.tensor([11, -1, 2], device=device)
    lengths = torch.tensor([1, 12, -1], dtype=torch.int32, device=device)
    run = dispatch.choose("begin_step", embedding)
    hidden, slots, _, of_cos, _ = run(embedding, tokens, lengths, table, size, scale, None, cos, sin)
    assert hidden[:2].isnan().all() and torch.equal(hidden[2], embedding[2])
    assert slots.tolist() == [21, -1, -1]
    assert torch.equal(of_cos[0], cos[1]) and of_cos[1:].isnan().all()


def test_no_row_and_no_block(device):
    embedding, tokens, lengths, table, size, scale, _, cos, sin = moved(
        cases(torch.float32)["rotary"], device
    )
    run = dispatch.choose("begin_step", embedding)
    out = run(embedding, tokens[:0], lengths[:0], table[:0], size, scale, None, cos, sin)
    assert [tuple(each.shape) for each in out] == [(0, 20), (0,), (0,), (0, 6), (0, 6)]
    assert run(embedding, tokens, lengths, table[:, :0], size, scale, None, cos, sin)[1].tolist() == [-1] * 3


@pytest.mark.parametrize(
    ("at", "change", "problem"),
    [
        (0, lambda x: x[0], "embedding has shape"),
        (0, lambda x: x[:0], "embedding.shape"),
        (1, lambda x: x.int(), "tokens"),
        (1, lambda x: x + 5, r"tokens goes from 5 to 15, expected numbers in \[0, 11\)"),
        (2, lambda x: x[:2], "lengths has shape"),
        (2, lambda x: x + 1, r"lengths goes from 1 to 12, expected numbers in \[0, 12\)"),
        (3, lambda x: x.long(), "block_table"),
        (3, lambda x: x[:, :1], r"lengths goes from 0 to 11, expected numbers in \[0, 4\)"),
        (4, lambda x: 0, "block_size"),
        (6, lambda x: torch.ones(3, 5), "position_embedding has shape"),
        (7, lambda x: None, "one of cos and sin is None"),
        (8, lambda x: x[:, :5], "sin has shape"),
    ],
)
def test_errors(at, change, problem):
    arguments = list(cases(torch.float32)["rotary"])
    arguments[at] = change(arguments[at])
    with pytest.raises((ValueError, TypeError), match=problem):
        call(*arguments)


@pytest.mark.parametrize("name", NAMES)
def test_opcheck(name):
    torch.library.opcheck(torch.ops.fastrlhf.begin_step.default, cases(torch.float32)[name])
