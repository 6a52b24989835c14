"""The clipped PPO objective with its statistics and gradients: one pass over the tokens, then one program adds up."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from fastrlhf.device.launch import launch_triton
from fastrlhf.kernels.ppo_loss import Stat
from fastrlhf.kernels.ppo_loss_arguments import ppo_loss_arguments
from fastrlhf.kernels.triton.expm1 import expm1_and_rest

CONFIGS = [
    {"BLOCK": 256, "num_warps": 1},
    {"BLOCK": 1024, "num_warps": 4},
]

POLICY_LOSS = tl.constexpr(int(Stat.POLICY_LOSS))
VALUE_LOSS = tl.constexpr(int(Stat.VALUE_LOSS))
ENTROPY = tl.constexpr(int(Stat.ENTROPY))
KL = tl.constexpr(int(Stat.KL))
APPROX_KL = tl.constexpr(int(Stat.APPROX_KL))
RATIO = tl.constexpr(int(Stat.RATIO))
CLIPPED = tl.constexpr(int(Stat.CLIPPED))
VALUE_CLIPPED = tl.constexpr(int(Stat.VALUE_CLIPPED))
TOKENS = tl.constexpr(int(Stat.TOKENS))
VALUE_TOKENS = tl.constexpr(int(Stat.VALUE_TOKENS))
STATS = tl.constexpr(len(Stat))
OBJECTIVE = STATS  # of policy loss, entropy and KL with their coefficients, weighted by token_weights
# The columns of a program's sums: those from the objective's on are neither written nor looked at, and make rows start
# at multiples of 16 bytes.
COLUMNS = tl.constexpr(16)


def choose_config(tokens: int) -> dict:
    """Small blocks for few tokens, so that they spread over the card."""
    return CONFIGS[tokens > 128 * CONFIGS[0]["BLOCK"]]


def ppo_loss(*args):
    """See `fastrlhf.kernels.ppo_loss`; arguments as `reference`. No atomics: the same input gives the same bits."""
    given = ppo_loss_arguments(*args)
    config = choose_config(given.tokens)
    loss, stats, *gradients = given.outputs
    *tensors, denominators = given.inputs
    *limits, vf_coef, entropy_coef, kl_coef = given.numbers
    programs = triton.cdiv(given.tokens, config["BLOCK"])
    block_sums = torch.empty(programs, COLUMNS.value, dtype=torch.float64, device=loss.device)
    launch_triton(
        ppo_loss_kernel,
        (programs,),
        loss.device,
        *tensors,
        denominators,
        *gradients,
        block_sums,
        given.tokens,
        *limits,
        vf_coef,
        entropy_coef,
        kl_coef,
        KL_ESTIMATOR=given.kl_estimator,
        EVEN=given.tokens % 16 == 0,
        **config,
    )
    launch_triton(
        ppo_loss_finish_kernel,
        (1,),
        loss.device,
        block_sums,
        denominators,
        loss,
        stats,
        programs,
        vf_coef,
        BLOCK=64,
        num_warps=4,
    )
    return given.outputs


@triton.jit
def maximum(x, y):
    """The larger, NaN if either is: the hardware's own maximum drops NaN."""
    return tl.maximum(x, y, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def minimum(x, y):
    return tl.minimum(x, y, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def add_up(sums, STAT: tl.constexpr, term, kept):
    """Store the sum of `term` over the kept lanes of the block, float64, in its place."""
    tl.store(sums + STAT, tl.sum(tl.where(kept, term, 0.0).to(tl.float64), axis=0))


@triton.jit
def put(target, at, number, inside):
    tl.store(target + at, number.to(target.dtype.element_ty), mask=inside)


@triton.jit
def take(source, at, inside, kept):
    """The numbers of the kept lanes in float32, zero in the others. All are loaded: a mask that is another for every
    lane leaves no load of 16 bytes."""
    return tl.where(kept, tl.load(source + at, mask=inside, other=0.0).to(tl.float32), 0.0)


@triton.jit(do_not_specialize=["tokens"])
def ppo_loss_kernel(
    logprobs,
    old_logprobs,
    advantages,
    mask,
    values,
    old_values,
    returns,
    value_mask,
    entropy,
    ref_logprobs,
    weights,
    token_weights,
    denominators,
    grad_logprobs,
    grad_values,
    grad_entropy,
    block_sums,
    tokens,
    cliprange,
    cliprange_high,
    dual_clip,
    log_ratio_clamp,
    cliprange_value,
    vf_coef,
    entropy_coef,
    kl_coef,
    KL_ESTIMATOR: tl.constexpr,
    EVEN: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Grid: one program a block of tokens. All tensors are contiguous; values (with old_values and returns), entropy,
    ref_logprobs, weights and token_weights may each be None. block_sums: float64 `[programs, COLUMNS]`. EVEN: `tokens`
    is a multiple of 16, without which a lane's mask is its own and no load takes 16 bytes."""
    if EVEN:
        tokens = (
            tokens // 16 * 16
        )  # so that the compiler sees it; `tl.multiple_of` says nothing of an argument
    program = tl.program_id(0).to(tl.int64)
    at = program * BLOCK + tl.arange(0, BLOCK)
    inside = at < tokens
    sums = block_sums + program * COLUMNS
    keep = tl.load(mask + at, mask=inside, other=0) != 0

    # policy
    logprob = take(logprobs, at, inside, keep)
    advantage = take(advantages, at, inside, keep)
    log_ratio = logprob - take(old_logprobs, at, inside, keep)
    within = tl.abs(log_ratio) <= log_ratio_clamp
    log_ratio = minimum(maximum(log_ratio, -log_ratio_clamp), log_ratio_clamp)
    ratio = tl.exp(log_ratio)
    unclipped = -advantage * ratio
    clipped = -advantage * minimum(maximum(ratio, 1 - cliprange), 1 + cliprange_high)
    is_clipped = clipped > unclipped
    loss = maximum(unclipped, clipped)
    bound = tl.where(advantage < 0, -advantage * dual_clip, float("inf"))
    is_bounded = loss > bound
    loss = minimum(loss, bound)
    slope = unclipped
    if weights is not None:
        weight = take(weights, at, inside, keep)
        loss *= weight
        slope *= weight
    slope = tl.where(is_clipped | is_bounded | (within == 0), 0.0, slope)
    add_up(sums, POLICY_LOSS, loss, keep)
    add_up(sums, APPROX_KL, 0.5 * log_ratio * log_ratio, keep)
    add_up(sums, RATIO, ratio, keep)
    add_up(sums, CLIPPED, is_clipped.to(tl.float32), keep)
    add_up(sums, TOKENS, keep.to(tl.float32), keep)

    # KL to the reference; the objective's terms join it one by one, so that few numbers live at once
    objective = loss
    kl = tl.zeros((BLOCK,), tl.float32)
    if ref_logprobs is not None:
        difference = take(ref_logprobs, at, inside, keep) - logprob
        if KL_ESTIMATOR == 1:
            kl, kl_slope = -difference, tl.full((BLOCK,), 1.0, tl.float32)
        elif KL_ESTIMATOR == 2:
            kl, kl_slope = 0.5 * difference * difference, -difference
        else:
            expm1, kl = expm1_and_rest(difference)
            kl_slope = -expm1
        # a term is only watched at zero: zero times what overflowed would be NaN
        objective += tl.where(kl_coef != 0, kl_coef * kl, 0.0)
        slope += tl.where(kl_coef != 0, kl_coef * kl_slope, 0.0)
    add_up(sums, KL, kl, keep)

    # entropy
    bonus = tl.zeros((BLOCK,), tl.float32)
    if entropy is not None:
        bonus = take(entropy, at, inside, keep)
        objective -= tl.where(entropy_coef != 0, entropy_coef * bonus, 0.0)
    add_up(sums, ENTROPY, bonus, keep)

    share = 1 / tl.load(denominators).to(tl.float32)
    if token_weights is not None:
        token_weight = take(token_weights, at, inside, keep)
        objective *= token_weight
        share *= token_weight
    add_up(sums, OBJECTIVE, objective, keep)
    put(grad_logprobs, at, tl.where(keep, share * slope, 0.0), inside)
    if entropy is not None:
        put(grad_entropy, at, tl.where(keep, -entropy_coef * share, 0.0), inside)

    # value
    keep_value = tl.load(value_mask + at, mask=inside, other=0) != 0
    value_loss = tl.zeros((BLOCK,), tl.float32)
    value_is_clipped = value_loss
    if values is not None:
        value, old_value = take(values, at, inside, keep_value), take(old_values, at, inside, keep_value)
        target = take(returns, at, inside, keep_value)
        clipped_value = minimum(maximum(value, old_value - cliprange_value), old_value + cliprange_value)
        square = (value - target) * (value - target)
        clipped_square = (clipped_value - target) * (clipped_value - target)
        value_loss = 0.5 * maximum(square, clipped_square)
        is_clipped = clipped_square > square
        value_is_clipped = is_clipped.to(tl.float32)
        gradient = vf_coef * (value - target) / tl.load(denominators + 1).to(tl.float32)
        stopped = is_clipped | (keep_value == 0) | (vf_coef == 0)
        put(grad_values, at, tl.where(stopped, 0.0, gradient), inside)
    add_up(sums, VALUE_LOSS, value_loss, keep_value)
    add_up(sums, VALUE_CLIPPED, value_is_clipped, keep_value)
    add_up(sums, VALUE_TOKENS, keep_value.to(tl.float32), keep_value)


@triton.jit
def pick(totals, STAT: tl.constexpr):
    return tl.sum(tl.where(tl.arange(0, COLUMNS) == STAT, totals, 0.0), axis=0)


@triton.jit(do_not_specialize=["programs"])
def ppo_loss_finish_kernel(block_sums, denominators, loss, stats, programs, vf_coef, BLOCK: tl.constexpr):
    """Grid: one program. block_sums: float64 `[programs, COLUMNS]`."""
    stat = tl.arange(0, COLUMNS)
    totals = tl.zeros((COLUMNS,), tl.float64)
    for start in range(0, programs, BLOCK):
        row = start + tl.arange(0, BLOCK)
        part = block_sums + row[:, None] * COLUMNS + stat[None, :]
        totals += tl.sum(tl.load(part, mask=row[:, None] < programs, other=0.0), axis=0)
    tl.store(stats + stat, totals, mask=stat < STATS)

    result = pick(totals, OBJECTIVE) / tl.load(denominators)
    if vf_coef != 0:  # only watched at zero, as above
        result += vf_coef * pick(totals, VALUE_LOSS) / tl.load(denominators + 1)
    tl.store(loss, result.to(tl.float32))
