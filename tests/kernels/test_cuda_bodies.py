"""The CUDA kernel bodies, unmodified, on the CPU (see tests/support/cuda_on_cpu.h)."""

from __future__ import annotations

import math

import pytest
import torch

from fastrlhf.kernels.reference.gae import gae as reference_gae
from fastrlhf.kernels.reference.ppo_loss import ppo_loss as reference_ppo_loss
from tests.kernels.native_cases import (
    GAE_OUTPUTS,
    PPO_OUTPUTS,
    SHAPES,
    assert_gae_as_good_as_reference,
    assert_not_finite_alike,
    assert_ppo_loss_as_good_as_reference,
    assert_same,
    gae_case,
    of_many_magnitudes,
    option_sets,
    ppo_case,
    with_tensor,
)
from tests.support import cuda_on_cpu
from tests.support.cuda_on_cpu import gae, ppo_loss

without_address_sanitizer = pytest.mark.skipif(
    cuda_on_cpu.ADDRESS,
    reason="AddressSanitizer takes the place of the watch, and errors in fibers confuse it",
)
both_orders = pytest.mark.parametrize("reversed_threads", [False, True], ids=["forward", "reversed"])


@both_orders
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_gae_is_as_good_as_the_reference(shape, reversed_threads):
    for gamma, lam in ((1.0, 0.95), (0.9, 1.0), (0.0, 0.5), (0.99, 0.0)):
        args = gae_case(shape, gamma=gamma, lam=lam)
        assert_gae_as_good_as_reference(gae(*args, reversed_threads=reversed_threads), args)


def test_gae_stops_what_is_not_finite_at_the_end_of_its_episode():
    rewards, values, mask, moments_mask, gamma, lam = gae_case((6, 100))
    rewards[0, 80], values[3, 60] = math.nan, math.inf
    args = (
        rewards.masked_fill(~mask, math.nan),
        values.masked_fill(~mask, math.inf),
        mask,
        moments_mask,
        gamma,
        lam,
    )
    for name, one, other in zip(GAE_OUTPUTS, gae(*args), reference_gae(*args), strict=True):
        assert torch.equal(one.isnan(), other.isnan()), name
        assert torch.equal(one.isinf(), other.isinf()), name


@both_orders
@pytest.mark.parametrize("shape", [*SHAPES, (9, 1500)], ids=str)
def test_ppo_loss_is_as_good_as_the_reference(shape, reversed_threads):
    args = ppo_case(shape, kl_coef=0.3, entropy_coef=0.1, cliprange_value=0.1, dual_clip=1.3)
    assert_ppo_loss_as_good_as_reference(ppo_loss(*args, reversed_threads=reversed_threads), args)


@pytest.mark.parametrize("options", option_sets(), ids=lambda options: " ".join(options))
def test_ppo_loss_with_every_combination_of_options(options):
    for without in ((), ("values", "weights"), ("entropy", "ref_logprobs", "token_weights")):
        args = ppo_case((3, 21), without=without, **options)
        assert_ppo_loss_as_good_as_reference(ppo_loss(*args), args)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, 1e4])
@pytest.mark.parametrize("position", [0, 1, 2, 4, 5, 6, 8, 9, 10, 11])
def test_what_is_not_finite_goes_where_the_reference_sends_it(position, bad):
    for options in option_sets()[::21]:
        args = ppo_case((2, 30), **options)
        tensor = args[position].clone()
        tensor[0, :10], tensor[1, 5:] = bad, -bad
        args = with_tensor(args, position, tensor)
        assert_not_finite_alike(ppo_loss(*args), args)


def test_bfloat16_rounds_once_at_the_end():
    args = gae_case((5, 70), dtype=torch.bfloat16)
    in_float32 = (args[0].float(), args[1].float(), *args[2:])
    for name, one, exact in zip(GAE_OUTPUTS, gae(*args), gae(*in_float32), strict=True):
        assert torch.equal(one, exact.to(one.dtype)), name

    args = ppo_case((5, 70), dtype=torch.bfloat16, kl_coef=0.2, entropy_coef=0.1)
    in_float32 = tuple(
        t.float() if isinstance(t, torch.Tensor) and t.dtype == torch.bfloat16 else t for t in args
    )
    for name, one, exact in zip(PPO_OUTPUTS, ppo_loss(*args), ppo_loss(*in_float32), strict=True):
        assert torch.equal(one, exact.to(one.dtype)), name
    for one, other in zip(ppo_loss(*args), reference_ppo_loss(*args), strict=True):
        assert (one.dtype, one.shape) == (other.dtype, other.shape)


def test_the_order_of_threads_changes_no_bit():
    args = of_many_magnitudes(gae_case((9, 300)))
    assert_same(gae(*args), gae(*args, reversed_threads=True), names=GAE_OUTPUTS)
    args = of_many_magnitudes(ppo_case((9, 300), kl_coef=0.1))
    assert_same(ppo_loss(*args), ppo_loss(*args, reversed_threads=True), names=PPO_OUTPUTS)


def run_faulty(kernel: str, reversed_threads: bool) -> list[int]:
    out = torch.full((64,), -7, dtype=torch.int32)
    cuda_on_cpu.bodies().faulty(kernel, out.data_ptr(), reversed_threads)
    return out.tolist()


@without_address_sanitizer
@both_orders
@pytest.mark.parametrize(
    "kernel",
    [
        "without_barrier",
        "reused_too_early",
        "two_writers",
        "shuffle_for_a_barrier",
        "warp_barrier_across_warps",
        "half_a_warp_barrier",
        "sums_twice",
    ],
)
def test_a_race_in_shared_memory_raises(kernel, reversed_threads):
    message = (
        r"race in shared memory: thread \d+ (writes|reads) byte \d+, which thread \d+ (wrote|read), and no "
    )
    with pytest.raises(RuntimeError, match=message):
        run_faulty(kernel, reversed_threads)
    assert run_faulty("with_barrier", reversed_threads) == list(range(63, -1, -1)), (
        "the next kernel runs as ever"
    )


@both_orders
@pytest.mark.parametrize("kernel", ["with_barrier", "warp_barrier", "neighbouring_bytes"])
def test_what_a_barrier_orders_is_no_race(kernel, reversed_threads):
    threads = range(64)
    expected = {
        "with_barrier": [63 - thread for thread in threads],
        "warp_barrier": [thread ^ 1 for thread in threads],
        "neighbouring_bytes": list(threads),
    }
    assert run_faulty(kernel, reversed_threads) == expected[kernel]


@without_address_sanitizer
def test_the_instrument_shows_a_read_of_shared_memory_that_nobody_wrote():
    for _ in range(2):
        out = torch.tensor(run_faulty("reads_unwritten_memory", False), dtype=torch.int32).view(torch.float32)
        assert out[::2].isnan().all() and (out[1::2] == 1).all()


@without_address_sanitizer
@both_orders
def test_the_instrument_raises_where_a_gpu_would_hang_or_err(reversed_threads):
    with pytest.raises(RuntimeError, match=r"deadlock: 32 of 64 threads wait at a barrier, 32 have ended"):
        run_faulty("barrier_in_a_branch", reversed_threads)
    with pytest.raises(RuntimeError, match="a lane takes part in a warp operation that leaves it out"):
        run_faulty("lane_outside_its_mask", reversed_threads)


@both_orders
def test_warp_functions_of_the_instrument(reversed_threads):
    out = torch.empty(64, 6, dtype=torch.int32)
    cuda_on_cpu.bodies().warp_functions(out.data_ptr(), reversed_threads)
    ballot = sum(1 << lane for lane in range(0, 32, 3))
    for thread in range(64):
        lane = thread % 32
        assert out[thread].tolist() == [
            lane + 3 if lane + 3 < 32 else lane,
            lane - 3 if lane >= 3 else lane,
            lane ^ 5,
            lane // 8 * 8 + 1,
            ballot,
            2 if lane < 16 else 20,
        ]
