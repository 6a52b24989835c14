from __future__ import annotations

import pytest
import torch

from fastrlhf import kernels
from fastrlhf.kernels.cases.end_step import cases

OPERATION = "end_step"


def moved(arguments, device):
    return [arg.to(device).clone() if isinstance(arg, torch.Tensor) else arg for arg in arguments]


def call(*arguments):
    *state, new_tokens, new_logprobs, new_entropy, last = arguments
    kernels.end_step(*state, (new_tokens, new_logprobs, new_entropy), last_position=last)


def assert_right(device, rows=5, vocabulary=7, apart=False):
    def made(tensor):
        return (tensor.repeat_interleave(2, dim=-1)[..., ::2] if apart else tensor).to(device)

    tokens = made(torch.arange(rows))
    state = [made(torch.zeros(rows)), made(torch.zeros(rows)), tokens.clone(), made(torch.arange(rows) * 3)]
    lengths = made(torch.arange(rows, dtype=torch.int32))
    seen = made(torch.zeros(rows, vocabulary, dtype=torch.bool))
    new = made(torch.arange(rows).flip(0) % vocabulary)
    logprobs, entropy = made(torch.randn(rows)), made(torch.rand(rows))
    call(*state, lengths, seen, new, logprobs, entropy, 3)
    for kept, expected in zip(state, (logprobs, entropy, new, made(torch.arange(rows) * 3 + 1)), strict=True):
        assert torch.equal(kept, expected)
    assert lengths.tolist() == [min(row + 1, 3) for row in range(rows)]
    assert torch.equal(seen.cpu(), torch.nn.functional.one_hot(new.cpu(), vocabulary).bool())


def test_by_hand(device):
    assert_right(device)


def test_more_rows_than_a_block(device):
    assert_right(device, rows=131, vocabulary=3)


def test_every_config(triton_config):
    assert_right(triton_config, rows=259)


def test_other_strides(device):
    assert_right(device, apart=True)


def test_what_was_marked_stays_marked(device):
    arguments = moved(cases(torch.float32)["marked"], device)
    arguments[5] = torch.tensor([[True, False], [False, True], [False, False]], device=device)
    call(*arguments)
    assert arguments[5].tolist() == [[True, False], [True, True], [True, False]]


def test_a_token_that_there_is_none_of_marks_nothing(device):
    arguments = moved(cases(torch.float32)["marked"], device)
    arguments[5] = torch.zeros(3, 4, dtype=torch.bool, device=device)
    arguments[6] = torch.tensor([-1, 4, 3], device=device)
    call(*arguments)
    assert arguments[5].nonzero().tolist() == [[2, 3]]


def test_without_marks_and_without_rows(device):
    for name in ("at the last position", "no row"):
        arguments = moved(cases(torch.float32)[name], device)
        call(*arguments)
        assert torch.equal(arguments[0], arguments[7]) and torch.equal(arguments[2], arguments[6])
        assert arguments[4].tolist() == ([3, 1, 4] if len(arguments[0]) else [])


@pytest.mark.parametrize(
    ("at", "change", "problem"),
    [
        (0, lambda x: x.bfloat16(), "logprobs"),
        (1, lambda x: x[:2], "entropy has shape"),
        (2, lambda x: x.int(), "tokens"),
        (3, lambda x: x.int(), "steps"),
        (4, lambda x: x.long(), "lengths"),
        (5, lambda x: x[:2], "seen has shape"),
        (6, lambda x: x[:2], r"drawn\[0\] has shape"),
        (8, lambda x: x.double(), r"drawn\[2\]"),
        (9, lambda x: -1, "last_position"),
    ],
)
def test_errors(at, change, problem):
    arguments = moved(cases(torch.float32)["marked"], "cpu")
    arguments[at] = change(arguments[at])
    with pytest.raises((ValueError, TypeError), match=problem):
        call(*arguments)


def test_opcheck():
    torch.library.opcheck(torch.ops.fastrlhf.end_step.default, cases(torch.float32)["marked"])
