from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fastrlhf import kernels
from fastrlhf.kernels import dispatch
from tests.support.memory import allocations
from tests.support.precision import assert_as_good_as

OPERATION = "gae"
DTYPES = [torch.float64, torch.float32, torch.bfloat16]
SHAPES = [(1, 1), (31, 33), (33, 127), (2, 129), (129, 31), (1, 512)]


def definition(rewards, values, mask, gamma, lam):
    """GAE as the double sum of eq. 16, each row's kept stretches one episode each; float64."""
    rewards, values = rewards.double(), values.double()
    advantages = torch.zeros_like(rewards)
    for b, t in mask.nonzero().tolist():
        for k in range(t, mask.shape[1]):
            if not mask[b, k]:
                break
            bootstrap = values[b, k + 1] if k + 1 < mask.shape[1] and mask[b, k + 1] else 0.0
            delta = rewards[b, k] + gamma * bootstrap - values[b, k]
            advantages[b, t] += (gamma * lam) ** (k - t) * delta
    return advantages


def plain(rewards, values, mask, gamma, lam, moments_mask=None):
    """Column by column at the inputs' precision (float32 for bfloat16, rounded at the end), with moments."""
    dtype = rewards.dtype
    if dtype == torch.bfloat16:
        rewards, values = rewards.float(), values.float()
    rewards, values = rewards.masked_fill(~mask, 0), values.masked_fill(~mask, 0)
    deltas = rewards + gamma * torch.nn.functional.pad(values[:, 1:], (0, 1)) - values
    columns, last = [], torch.zeros_like(deltas[:, 0])
    for delta, keep in zip(reversed(deltas.unbind(1)), reversed(mask.unbind(1)), strict=True):
        last = (delta + gamma * lam * last) * keep
        columns.append(last)
    advantages = torch.stack(columns[::-1], dim=1)
    kept = advantages[mask if moments_mask is None else mask & moments_mask].double()
    moments = torch.stack([torch.tensor(kept.numel()).double(), kept.sum(), kept.square().sum()])
    return advantages.to(dtype), (advantages + values).to(dtype), moments


def rows(shape, dtype=torch.float32, seed=0):
    """Rewards, values and a ragged mask: right-padded rows, a gap, the last of several all masked."""
    torch.manual_seed(seed)
    rewards, values = torch.randn(shape).to(dtype), torch.randn(shape).to(dtype)
    lengths = torch.randint(1, shape[1] + 1, (shape[0], 1))
    mask = torch.arange(shape[1]) < lengths
    mask[0, shape[1] // 2 : shape[1] // 2 + shape[1] // 8] = False
    mask[1:][-1:] = False
    return rewards, values, mask


def assert_right(rewards, values, mask, device, gamma=0.99, lam=0.95, moments_mask=None):
    moved = None if moments_mask is None else moments_mask.to(device)
    actual = kernels.gae(
        rewards.to(device), values.to(device), mask.to(device), gamma=gamma, lam=lam, moments_mask=moved
    )
    same = plain(rewards, values, mask, gamma, lam, moments_mask)
    exact = plain(rewards.double(), values.double(), mask, gamma, lam, moments_mask)
    for name, *tensors in zip(("advantages", "returns"), actual, same, exact, strict=False):
        assert_as_good_as(*tensors, name=name)
    assert actual.moments.dtype == torch.float64
    if rewards.dtype != torch.float64:  # sums of float32 advantages are as good as float32
        actual, same = actual._replace(moments=actual.moments.float()), (*same[:2], same[2].float())
    assert_as_good_as(actual.moments, same[2], exact[2], name="moments")


def test_three_steps_by_hand(device):
    # gamma = lam = 1/2, so gamma lam = 1/4. Row 0 keeps three steps:
    #   delta_2 = 3 - 6 = -3                A_2 = -3
    #   delta_1 = 2 + 6/2 - 4 = 1           A_1 = 1 - 3/4 = 0.25
    #   delta_0 = 1 + 4/2 - 2 = 1           A_0 = 1 + 0.25/4 = 1.0625
    # Row 1 keeps steps 0 and 1 only:
    #   A_1 = 2 - 4 = -2, A_0 = 1 + 4/2 - 2 - 2/4 = 0.5
    rewards = torch.tensor([[1.0, 2.0, 3.0], [1.0, 2.0, 3.0]], device=device)
    values = torch.tensor([[2.0, 4.0, 6.0], [2.0, 4.0, 6.0]], device=device)
    mask = torch.tensor([[True, True, True], [True, True, False]], device=device)
    advantages, returns, moments = kernels.gae(rewards, values, mask, gamma=0.5, lam=0.5)
    assert advantages.tolist() == [[1.0625, 0.25, -3.0], [0.5, -2.0, 0.0]]
    assert returns.tolist() == [[3.0625, 4.25, 3.0], [2.5, 2.0, 0.0]]
    # 1.0625 + 0.25 - 3 + 0.5 - 2 = -3.1875; 1.12890625 + 0.0625 + 9 + 0.25 + 4 = 14.44140625
    assert moments.tolist() == [5.0, -3.1875, 14.44140625]


def test_a_gap_ends_the_episode_before_it(device):
    rewards = torch.tensor([[1.0, 9.0, 1.0]], device=device)
    values = torch.tensor([[0.5, 9.0, 0.25]], device=device)
    mask = torch.tensor([[True, False, True]], device=device)
    advantages, returns, _ = kernels.gae(rewards, values, mask, gamma=1.0, lam=1.0)
    assert advantages.tolist() == [[0.5, 0.0, 0.75]]
    assert returns.tolist() == [[1.0, 0.0, 1.0]]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_as_good_as_plain_on_ragged_shapes(device, dtype, shape):
    assert_right(*rows(shape, dtype), device)


@pytest.mark.parametrize(("gamma", "lam"), [(0.0, 0.5), (1.0, 0.0), (1.0, 1.0), (0.9, 1.0), (0, 0)])
def test_every_corner_of_gamma_and_lam(device, gamma, lam):
    assert_right(*rows((7, 33)), device, gamma, lam)


def test_non_contiguous_inputs(device):
    rewards, values, mask = rows((34, 66))
    assert_right(rewards.t()[::2, 1:], values.t()[::2, 1:], mask.t()[::2, 1:], device)
    assert_right(rewards[:1].expand(5, 66), values[1:6], mask[:1].expand(5, 66), device)


@pytest.mark.parametrize("shape", [(0, 5), (3, 0), (0, 0)], ids=str)
def test_empty(device, shape):
    empty = torch.zeros(shape, device=device)
    advantages, returns, moments = kernels.gae(empty, empty, empty.bool())
    assert advantages.shape == returns.shape == shape
    assert moments.tolist() == [0.0, 0.0, 0.0]


def test_fully_masked(device):
    rewards, values, mask = (tensor.to(device) for tensor in rows((3, 33)))
    advantages, returns, moments = kernels.gae(rewards, values, mask & False)
    assert not advantages.any() and not returns.any() and not moments.any()


@pytest.mark.parametrize("columns", [33, 1500])
def test_every_config(triton_config, columns):
    assert_right(*rows((2, columns)), triton_config)


def test_moments_mask_counts_fewer_positions_and_never_masked_ones(device):
    rewards, values, mask = rows((9, 33))
    assert_right(rewards, values, mask, device, moments_mask=torch.rand(9, 33) > 0.5)


def test_moments_of_micro_batches_add_up(device):
    rewards, values, mask = (tensor.to(device) for tensor in rows((8, 33)))
    whole = kernels.gae(rewards, values, mask).moments
    parts = sum(
        kernels.gae(rewards[i : i + 3], values[i : i + 3], mask[i : i + 3]).moments for i in (0, 3, 6)
    )
    torch.testing.assert_close(parts, whole, rtol=1e-14, atol=1e-13)


@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
def test_masked_positions_do_not_leak(device, poison):
    rewards, values, mask = rows((9, 33))
    clean = kernels.gae(rewards.to(device), values.to(device), mask.to(device))
    rewards, values = rewards.masked_fill(~mask, poison), values.masked_fill(~mask, poison)
    poisoned = kernels.gae(rewards.to(device), values.to(device), mask.to(device))
    for got, expected in zip(poisoned, clean, strict=True):
        assert torch.equal(got, expected)


@settings(max_examples=40, deadline=None)
@given(
    shape=st.tuples(st.integers(1, 3), st.integers(1, 9)),
    gamma=st.floats(0, 1),
    lam=st.floats(0, 1),
    seed=st.integers(0, 1000),
    data=st.data(),
)
def test_property_equals_the_definition(shape, gamma, lam, seed, data):
    kept = data.draw(st.lists(st.booleans(), min_size=shape[0] * shape[1], max_size=shape[0] * shape[1]))
    mask = torch.tensor(kept).view(shape)
    torch.manual_seed(seed)
    rewards, values = torch.randn(shape).double(), torch.randn(shape).double()
    advantages, returns, _ = kernels.gae(rewards, values, mask, gamma=gamma, lam=lam)
    exact = definition(rewards, values, mask, gamma, lam)
    assert_as_good_as(advantages, exact, exact, name="advantages")
    assert_as_good_as(returns, exact + values * mask, exact + values * mask, name="returns")


def test_memory_is_the_outputs(device):
    rewards, values, mask = (tensor.to(device) for tensor in rows((64, 128)))
    used = allocations(lambda: kernels.gae(rewards, values, mask))
    outputs = 2 * 4 * 64 * 128 + 3 * 8
    assert used.kept == outputs
    if dispatch.forced_backend() == "reference":
        assert used.peak < 5 * outputs, "a few float64 temporaries"
    else:
        assert used.peak < outputs + 64 * 64, "nothing that grows with B x T"


def test_meta_tensors():
    rewards = torch.empty(3, 5, dtype=torch.bfloat16, device="meta")
    advantages, returns, moments = kernels.gae(rewards, rewards, rewards.bool())
    assert advantages.shape == returns.shape == (3, 5) and moments.shape == (3,)
    assert advantages.dtype == returns.dtype == torch.bfloat16 and moments.dtype == torch.float64


def test_opcheck(device):
    rewards, values, mask = (tensor.to(device) for tensor in rows((4, 7)))
    torch.library.opcheck(torch.ops.fastrlhf.gae.default, (rewards, values, mask, mask, 0.99, 0.95))
    rewards, values, mask = rewards.t(), values.t(), mask.t()
    torch.library.opcheck(torch.ops.fastrlhf.gae.default, (rewards, values, mask, mask, 0.99, 0.95))


def test_compiles_whole(device):
    @torch.compile(fullgraph=True, backend="aot_eager")
    def whitened(rewards, values, mask):
        advantages, returns, moments = kernels.gae(rewards * 2, values, mask)
        return kernels.whiten(advantages, mask, moments), returns

    rewards, values, mask = (tensor.to(device) for tensor in rows((4, 7)))
    advantages, returns, moments = kernels.gae(rewards * 2, values, mask)
    compiled = whitened(rewards, values, mask)
    torch.testing.assert_close(compiled[0], kernels.whiten(advantages, mask, moments))
    assert torch.equal(compiled[1], returns)


def arguments(**changes):
    fitting = {"rewards": torch.zeros(2, 3), "values": torch.zeros(2, 3), "mask": torch.ones(2, 3).bool()}
    return fitting | changes


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"rewards": torch.zeros(3)}, ValueError, r"rewards has shape \[3\], expected \[B, T\]"),
        (
            {"rewards": torch.zeros(2, 3).int()},
            TypeError,
            r"rewards has dtype torch\.int32, expected one of .*float32",
        ),
        (
            {"values": torch.zeros(2, 4)},
            ValueError,
            r"values has shape \[2, 4\], expected \[B, T\] = \[2, 3\]",
        ),
        (
            {"values": torch.zeros(2, 3).double()},
            TypeError,
            r"values has dtype torch\.float64.*torch\.float32",
        ),
        ({"mask": torch.ones(3).bool()}, ValueError, r"mask has shape \[3\], expected \[B, T\] = \[2, 3\]"),
        (
            {"mask": torch.ones(2, 3)},
            TypeError,
            r"mask has dtype torch\.float32, expected one of torch\.bool",
        ),
        ({"moments_mask": torch.ones(2, 4).bool()}, ValueError, r"moments_mask has shape \[2, 4\].*\[2, 3\]"),
        (
            {"moments_mask": torch.ones(2, 3)},
            TypeError,
            r"moments_mask has dtype torch\.float32.*torch\.bool",
        ),
        ({"values": torch.zeros(2, 3, device="meta")}, ValueError, r"rewards on cpu, values on meta"),
        ({"gamma": 1.5}, ValueError, r"gamma is 1\.5, expected a number in \[0, 1\]"),
        ({"gamma": float("nan")}, ValueError, r"gamma is nan"),
        ({"lam": -0.1}, ValueError, r"lam is -0\.1, expected a number in \[0, 1\]"),
    ],
)
def test_errors_name_the_argument_its_value_and_what_was_expected(changes, error, message):
    with pytest.raises(error, match=message):
        kernels.gae(**arguments(**changes))
