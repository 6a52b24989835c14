"""Sampling of the next token: one program a row, a block of tokens at a time; thresholds by bisection."""

from __future__ import annotations

import triton
import triton.language as tl

from fastrlhf.device.launch import launch_triton
from fastrlhf.kernels.sample_arguments import sample_call
from fastrlhf.kernels.triton import exact

# A thread keeps WAYS sums of 64 bits for each of its tokens.
CONFIGS = [
    {"BLOCK": 256, "WAYS": 8, "num_warps": 2},
    {"BLOCK": 2048, "WAYS": 8, "num_warps": 8},
]

LOWEST_RANK = tl.constexpr(-2139095041)  # of -inf
AFTER_ALL = tl.constexpr(2**30)


def choose_config(columns: int) -> dict:
    """The smallest block that holds a whole row, or the largest."""
    return next((config for config in CONFIGS if config["BLOCK"] >= columns), CONFIGS[-1])


def sample(*args):
    """See `fastrlhf.kernels.sample`; arguments as `reference`."""
    call = sample_call(*args)
    logits = call.inputs[0]
    rows, columns = logits.shape
    launch_triton(
        sample_kernel,
        (rows,),
        logits.device,
        *call.inputs,
        *call.outputs,
        *call.of_rows,
        *call.numbers,
        *(0 if tensor is None else tensor.stride(0) for tensor in (logits, *call.inputs[2:], *call.of_rows)),
        columns,
        enable_fp_fusion=False,
        **choose_config(columns),
    )
    return call.outputs


@triton.jit
def setting(of_row, stride, number, row):
    """A row's own setting, or that of all."""
    if of_row is None:
        return number
    else:
        return tl.load(of_row + row * stride)


@triton.jit
def read(logits, at, columns, inverse):
    """The block's logits as they are evaluated; -inf beyond the row."""
    inside = at < columns
    x = tl.load(logits + at, mask=inside, other=0.0).to(tl.float32)
    return tl.where(inside, x * inverse, float("-inf"))


@triton.jit
def read_drawn(logits, seen, banned, at, columns, inverse, penalty):
    """The block's logits as they are drawn from; -inf beyond the row."""
    inside = at < columns
    x = tl.load(logits + at, mask=inside, other=0.0).to(tl.float32)
    if seen is not None:
        was_seen = tl.load(seen + at, mask=inside, other=0) != 0
        x = tl.where(was_seen, tl.where(x > 0, tl.div_rn(x, penalty), x * penalty), x)
    drawn = tl.where(inside, x * inverse, float("-inf"))
    if banned is not None:
        drawn = tl.where(tl.load(banned + at, mask=inside, other=0) != 0, float("-inf"), drawn)
    return drawn


@triton.jit
def to_rank(x):
    """Integers in the order of the floats."""
    bits = x.to(tl.int32, bitcast=True)
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)


@triton.jit
def from_rank(rank):
    """The float of a rank, which is its own inverse."""
    return (rank ^ ((rank >> 31) & 0x7FFFFFFF)).to(tl.float32, bitcast=True)


@triton.jit
def weigh_from(
    logits,
    seen,
    banned,
    columns,
    inverse,
    penalty,
    largest,
    lowest,
    least,
    WEIGHTED: tl.constexpr,
    BLOCK: tl.constexpr,
    WAYS: tl.constexpr,
):
    """`[WAYS]`, int64, exact: of the tokens from logit `lowest` on, the number from each logit of `least` on, or
    what they weigh."""
    sums = tl.zeros((BLOCK, WAYS), tl.int64)
    for start in range(0, columns, BLOCK):
        at = start + tl.arange(0, BLOCK)
        x = read_drawn(logits, seen, banned, at, columns, inverse, penalty)
        weight = exact.weight(x - largest) if WEIGHTED else tl.full((BLOCK,), 1, tl.int64)
        weight = tl.where((x >= lowest) & (at < columns), weight, 0)
        sums += tl.where(x[:, None] >= least[None, :], weight[:, None], 0)
    return tl.sum(sums, axis=0)


@triton.jit
def threshold(
    logits,
    seen,
    banned,
    columns,
    inverse,
    penalty,
    largest,
    lowest,
    target,
    WEIGHTED: tl.constexpr,
    BLOCK: tl.constexpr,
    WAYS: tl.constexpr,
):
    """The largest logit such that the tokens from it on (and from `lowest`) weigh at least `target`: the interval of
    ranks that holds it is divided by `WAYS` in every pass over the row, of which there are eleven for eight ways."""
    low = tl.full((), LOWEST_RANK, tl.int64)
    high = to_rank(largest).to(tl.int64) + 1
    ways = tl.arange(0, WAYS).to(tl.int64) + 1
    while high - low > 1:
        ranks = low + (high - low) * ways // WAYS
        least = from_rank(ranks.to(tl.int32))
        sums = weigh_from(
            logits, seen, banned, columns, inverse, penalty, largest, lowest, least, WEIGHTED, BLOCK, WAYS
        )
        enough = sums.to(tl.float64) >= target
        high = tl.min(tl.where(enough, high, ranks), axis=0)
        low = tl.max(tl.where(enough, ranks, low), axis=0)
    return from_rank(low.to(tl.int32))


@triton.jit
def first_of(keys, columns):
    """The largest key, and the first column that has it."""
    best = tl.max(keys, axis=0)
    return best, tl.min(tl.where(keys == best, columns, AFTER_ALL), axis=0)


@triton.jit
def filtered(
    logits,
    seen,
    banned,
    columns,
    inverse,
    penalty,
    largest,
    top_k,
    top_p,
    min_p,
    BLOCK: tl.constexpr,
    WAYS: tl.constexpr,
):
    """The logit from which on top-k, then top-p of what it leaves, and min-p keep tokens."""
    least = tl.full((), float("-inf"), tl.float32)
    if (top_k > 0) & (top_k < columns):
        target = top_k.to(tl.float64)
        least = threshold(
            logits, seen, banned, columns, inverse, penalty, largest, least, target, False, BLOCK, WAYS
        )
    if top_p < 1:
        all_of_them = tl.full((WAYS,), float("-inf"), tl.float32)
        sums = weigh_from(
            logits, seen, banned, columns, inverse, penalty, largest, least, all_of_them, True, BLOCK, WAYS
        )
        target = tl.maximum(
            tl.full((), top_p, tl.float32).to(tl.float64) * tl.max(sums, axis=0).to(tl.float64), 1.0
        )
        nucleus = threshold(
            logits, seen, banned, columns, inverse, penalty, largest, least, target, True, BLOCK, WAYS
        )
        least = tl.maximum(least, nucleus)
    if min_p > 0:
        least = tl.maximum(least, exact.log(tl.minimum(tl.maximum(min_p, 1e-30), 1.0)) + largest)
    return least


@triton.jit
def draw(
    logits,
    seen,
    banned,
    columns,
    inverse,
    penalty,
    largest,
    least,
    seed,
    step,
    row_id,
    BLOCK: tl.constexpr,
):
    """The token, of those from logit `least` on, whose logit plus Gumbel noise is the largest. Column v takes word
    v mod 4 of Philox's block v div 4."""
    best = tl.full((BLOCK,), float("-inf"), tl.float32)
    best_at = tl.zeros((BLOCK,), tl.int32)
    same = tl.zeros((BLOCK // 4,), tl.uint32)
    for start in range(0, columns, BLOCK):
        block = start // 4 + tl.arange(0, BLOCK // 4)
        word0, word1, word2, word3 = tl.philox(
            seed,
            block.to(tl.uint32),
            same + step.to(tl.uint32),
            same + row_id.to(tl.uint32),
            same + (row_id >> 32).to(tl.uint32),
        )
        words = tl.interleave(tl.interleave(word0, word2), tl.interleave(word1, word3))
        at = start + tl.arange(0, BLOCK)
        drawn = read_drawn(logits, seen, banned, at, columns, inverse, penalty)
        key = (drawn - largest) + exact.gumbel(words)
        key = tl.where((drawn >= least) & (at < columns), key, float("-inf"))
        best_at = tl.where(key > best, at, best_at)
        best = tl.where(key > best, key, best)
    _, token = first_of(best, best_at)
    return token


# The vocabulary and the rows' strides do not change from step to step: that they are multiples of 16 makes wide loads.
@triton.jit(do_not_specialize=["seed", "step", "top_k"])
def sample_kernel(
    logits,
    row_ids,
    seen,
    banned,
    tokens,
    logprobs,
    entropies,
    seeds,
    steps,
    temperatures,
    top_ks,
    top_ps,
    min_ps,
    penalties,
    seed,
    step,
    temperature,
    top_k,
    top_p,
    min_p,
    penalty,
    logits_stride,
    seen_stride,
    banned_stride,
    seed_stride,
    step_stride,
    temperature_stride,
    top_k_stride,
    top_p_stride,
    min_p_stride,
    penalty_stride,
    columns,
    BLOCK: tl.constexpr,
    WAYS: tl.constexpr,
):
    """Grid: one program a row. `seen`, `banned` and the settings of rows may be None; a row lies side by side."""
    row = tl.program_id(0).to(tl.int64)
    temperature = setting(temperatures, temperature_stride, temperature, row)
    penalty = setting(penalties, penalty_stride, penalty, row)
    greedy = ~(temperature > 0)
    inverse = tl.div_rn(1.0, tl.where(greedy, 1.0, temperature))
    logits += row * logits_stride
    if seen is not None:
        seen += row * seen_stride
    if banned is not None:
        banned += row * banned_stride

    # the largest logits, and the first column of the largest to draw
    lane = tl.arange(0, BLOCK)
    plain_best = tl.full((BLOCK,), float("-inf"), tl.float32)
    best = tl.full((BLOCK,), float("-inf"), tl.float32)
    best_at = tl.zeros((BLOCK,), tl.int32)
    for start in range(0, columns, BLOCK):
        at = start + lane
        plain = read(logits, at, columns, inverse)
        plain_best = tl.where(plain > plain_best, plain, plain_best)
        drawn = read_drawn(logits, seen, banned, at, columns, inverse, penalty)
        best_at = tl.where(drawn > best, at, best_at)
        best = tl.where(drawn > best, drawn, best)
    plain_largest = tl.max(plain_best, axis=0)
    largest, token = first_of(best, best_at)

    # log Z and entropy: sums of what is less probable than the largest, which drowns in one beside it
    equal = tl.zeros((BLOCK,), tl.float32)
    others = tl.zeros((BLOCK,), tl.float32)
    weighted = tl.zeros((BLOCK,), tl.float32)
    for start in range(0, columns, BLOCK):
        x = read(logits, start + lane, columns, inverse) - plain_largest
        e = exact.exp(x)
        equal += tl.where(x == 0, 1.0, 0.0)
        others += tl.where(x == 0, 0.0, e)
        weighted += tl.where(e > 0, x * e, 0.0)
    beyond_one = (tl.sum(equal, axis=0) - 1) + tl.sum(others, axis=0)
    z = 1 + beyond_one
    # log(1 + y) = y log(z) / (z - 1), with z the rounded 1 + y (Kahan)
    log_sum = tl.where(z == 1, beyond_one, beyond_one * tl.div_rn(exact.log(z), tl.where(z == 1, 1.0, z - 1)))
    entropy = log_sum - tl.div_rn(tl.sum(weighted, axis=0), z)

    is_distribution = (largest > float("-inf")) & (largest < float("inf")) & (z == z)
    if is_distribution & ~greedy:
        least = filtered(
            logits,
            seen,
            banned,
            columns,
            inverse,
            penalty,
            largest,
            setting(top_ks, top_k_stride, top_k, row),
            setting(top_ps, top_p_stride, top_p, row),
            setting(min_ps, min_p_stride, min_p, row),
            BLOCK,
            WAYS,
        )
        token = draw(
            logits,
            seen,
            banned,
            columns,
            inverse,
            penalty,
            largest,
            least,
            setting(seeds, seed_stride, seed, row).to(tl.int64),
            setting(steps, step_stride, step, row).to(tl.int64),
            tl.load(row_ids + row),
            BLOCK,
        )

    token = tl.where(is_distribution, token, 0)
    chosen = tl.load(logits + token).to(tl.float32) * inverse
    tl.store(tokens + row, token.to(tl.int64))
    tl.store(logprobs + row, tl.where(is_distribution, (chosen - plain_largest) - log_sum, float("nan")))
    tl.store(entropies + row, tl.where(is_distribution, tl.maximum(entropy, 0.0), float("nan")))
