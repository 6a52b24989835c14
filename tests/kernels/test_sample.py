from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fastrlhf import kernels
from fastrlhf.kernels.reference import sample as reference
from tests.support.backends import needs_many_rows
from tests.support.precision import assert_as_good_as

OPERATION = "sample"
DTYPES = [torch.float64, torch.float32, torch.bfloat16]
SHAPES = [(1, 1), (1, 31), (3, 33), (2, 127), (2, 129), (2, 32_001), (1, 50_257)]


def batch(shape=(5, 33), dtype=torch.float32, device="cpu", scale=2.0):
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(shape, generator=generator).mul(scale).to(dtype)
    return logits.to(device), torch.arange(shape[0], device=device) * 7


def philox(counter, key):
    """Philox4x32-10 in whole numbers, as the paper's figure reads."""
    (c0, c1, c2, c3), (k0, k1) = counter, key
    for _ in range(10):
        p0, p1 = 0xD2511F53 * c0, 0xCD9E8D57 * c2
        c0, c1, c2, c3 = (p1 >> 32) ^ c1 ^ k0, p1 % 2**32, (p0 >> 32) ^ c3 ^ k1, p0 % 2**32
        k0, k1 = (k0 + 0x9E3779B9) % 2**32, (k1 + 0xBB67AE85) % 2**32
    return c0, c1, c2, c3


def uniforms(seed, step, row_id, columns):
    """Column v takes word v mod 4 of the counter (v div 4, step, halves of the row), its top 23 bits."""
    key = seed % 2**32, seed >> 32
    blocks = [philox((i, step, row_id % 2**32, row_id >> 32), key) for i in range((columns + 3) // 4)]
    words = [word for block in blocks for word in block]
    return [((word >> 9) + 0.5) / 2**23 for word in words[:columns]]


def kept(logits, top_k, top_p):
    """Which tokens of one row top-k and top-p keep: a list of booleans, from sorted Python floats."""
    p = torch.softmax(logits.double(), -1).tolist()
    keep = [True] * len(p)
    if 0 < top_k < len(p):
        least = sorted(p, reverse=True)[top_k - 1]
        keep = [q >= least for q in p]
    if top_p < 1:
        total = sum(q for q, k in zip(p, keep, strict=True) if k)
        before = 0.0
        for token in sorted((t for t in range(len(p)) if keep[t]), key=lambda t: -p[t]):
            keep[token] = before < top_p * (
                1 + 1e-6
            )  # float32 may keep one more where the sum just reaches top_p
            before += p[token] / total
    return keep


@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [
        ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
        ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
        ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
    ],
    ids=["zeros", "ones", "pi"],
)
def test_philox_gives_the_known_answers_of_random123(counter, key, expected):
    counter, key, expected = ([int(word, 16) for word in words.split()] for words in (counter, key, expected))
    words = reference.philox(tuple(torch.tensor([word]) for word in counter), tuple(key))
    assert [word.item() for word in words] == expected
    assert list(philox(counter, key)) == expected


@pytest.mark.parametrize("seed", [0, 1, 2**31, 2**32 + 5, 2**63, 2**64 - 1])
@pytest.mark.parametrize(("step", "row_id"), [(0, 0), (3, 2**33 + 1), (2**32 - 1, 2**62)])
def test_draws_are_those_of_the_documented_counters(device, seed, step, row_id):
    logits, _ = batch((1, 33), device=device)
    noise = -torch.tensor(uniforms(seed, step, row_id, 33), dtype=torch.float64).log().neg().log()
    expected = (torch.log_softmax(logits.double().cpu(), -1) + noise).argmax()
    row_ids = torch.tensor([row_id], device=device)
    assert kernels.sample(logits, row_ids, seed=seed, step=step).tokens.item() == expected


def test_uniforms_stay_inside_zero_and_one(monkeypatch):
    row_ids = torch.tensor([0])
    for word, expected in ((0, 2.0**-24), (0xFFFFFFFF, 1 - 2.0**-24)):
        monkeypatch.setattr(reference, "philox", lambda counter, key, w=word: (torch.full((1, 1), w),) * 4)
        assert reference.uniform(row_ids, row_ids, row_ids, 4).double().tolist() == [[expected] * 4]
        assert reference.gumbel(row_ids, row_ids, row_ids, 4).isfinite().all()


def assert_right(logits, row_ids, **options):
    temperature = options.get("temperature", 1) or 1
    tokens, logprobs, entropy = kernels.sample(logits, row_ids, seed=3, step=5, **options)

    def plain(logits):
        log_p = torch.log_softmax(logits / temperature, -1)
        return log_p.gather(1, tokens.cpu()[:, None])[:, 0], torch.special.entr(log_p.exp()).sum(-1)

    assert tokens.dtype == torch.int64 and tokens.shape == row_ids.shape
    logits = logits.cpu()
    same = plain(logits.float() if logits.dtype == torch.bfloat16 else logits)
    exact = plain(logits.double())
    assert_as_good_as(logprobs, same[0], exact[0], name="logprobs")
    assert_as_good_as(entropy, same[1], exact[1], name="entropy")
    return tokens


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_logprobs_and_entropy_are_as_good_as_plain(device, dtype, shape):
    assert_right(*batch(shape, dtype, device))


@pytest.mark.parametrize(
    "options",
    [
        {"temperature": 0.7},
        {"temperature": 3},
        {"top_k": 3},
        {"top_p": 0.4},
        {"temperature": 0.7, "top_k": 5, "top_p": 0.9},
        {"temperature": 0.0},
        {"temperature": 0, "top_k": 2, "top_p": 0.5},
    ],
    ids=str,
)
def test_logprobs_are_those_before_top_k_and_top_p(device, options):
    assert_right(*batch(device=device), **options)


def test_two_tokens_by_hand(device):
    # p = 1/4, 3/4; temperature 1/2 squares the odds: 1/10, 9/10.
    logits = torch.tensor([[0.0, math.log(3)]], device=device)
    row_ids = torch.zeros(1, dtype=torch.int64, device=device)
    tokens, logprobs, entropy = kernels.sample(logits, row_ids, seed=0, step=0, temperature=0.5)
    assert logprobs.item() == pytest.approx(math.log((0.1, 0.9)[tokens.item()]), rel=1e-6)
    assert entropy.item() == pytest.approx(-0.1 * math.log(0.1) - 0.9 * math.log(0.9), rel=1e-6)


def test_temperature_zero_takes_the_largest_logit(device):
    logits, row_ids = batch((9, 129), device=device)
    tokens, logprobs, _ = kernels.sample(logits, row_ids, seed=0, step=0, temperature=0)
    assert torch.equal(tokens, logits.argmax(-1))
    torch.testing.assert_close(logprobs, logits.log_softmax(-1).amax(-1))


@pytest.mark.parametrize("options", [{"top_k": 1}, {"top_p": 1e-6}, {"temperature": 1e-4}], ids=str)
def test_options_that_leave_only_the_largest_logit(device, options):
    logits, row_ids = batch((9, 129), device=device)
    assert torch.equal(kernels.sample(logits, row_ids, seed=0, step=0, **options).tokens, logits.argmax(-1))


def chi_square(tokens, p):
    observed = torch.bincount(tokens.cpu(), minlength=len(p)).double()
    assert observed[p == 0].sum() == 0, "a token of probability zero was drawn"
    expected = p * len(tokens)
    return ((observed - expected)[p > 0].square() / expected[p > 0]).sum().item()


@pytest.mark.parametrize(
    ("options", "p", "critical"),  # critical: chi-square exceeded with probability 1e-4
    [
        ({}, [0.4, 0.3, 0.15, 0.1, 0.05, 0.0], 23.51),  # 4 degrees of freedom
        ({"temperature": 0.5}, [0.16, 0.09, 0.0225, 0.01, 0.0025, 0.0], 23.51),
        ({"top_k": 3}, [0.4, 0.3, 0.15, 0.0, 0.0, 0.0], 18.42),
        ({"top_k": 17}, [0.4, 0.3, 0.15, 0.1, 0.05, 0.0], 23.51),
        ({"top_p": 0.75}, [0.4, 0.3, 0.15, 0.0, 0.0, 0.0], 18.42),
        (
            {"top_k": 3, "top_p": 0.75},
            [0.4, 0.3, 0.0, 0.0, 0.0, 0.0],
            15.14,
        ),  # 0.7 of the 0.85 that top-k left
        ({"top_p": 0.999}, [0.4, 0.3, 0.15, 0.1, 0.05, 0.0], 23.51),
    ],
    ids=str,
)
def test_tokens_follow_their_distribution(device, options, p, critical):
    needs_many_rows()
    logits = torch.tensor([0.4, 0.3, 0.15, 0.1, 0.05, 0.0]).log()[[3, 0, 5, 1, 4, 2]].to(device)
    p = torch.tensor(p, dtype=torch.float64)[[3, 0, 5, 1, 4, 2]]
    rows = torch.arange(20_000, device=device)
    tokens = kernels.sample(logits.expand(20_000, 6), rows, seed=11, step=2, **options).tokens
    assert chi_square(tokens, p / p.sum()) < critical


@pytest.mark.parametrize("changed", ["step", "seed", "row_ids"])
def test_draws_of_other_steps_seeds_and_rows_are_independent(device, changed):
    needs_many_rows()
    logits = torch.zeros(20_000, 3, device=device)
    base = {"row_ids": torch.arange(20_000, device=device), "seed": 1, "step": 1}
    other = base | {changed: base[changed] + (2**32 if changed == "row_ids" else 1)}
    first, second = (kernels.sample(logits, **arguments).tokens for arguments in (base, other))
    pairs = chi_square(3 * first + second, torch.full((9,), 1 / 9, dtype=torch.float64))
    assert pairs < 31.83  # 8 degrees of freedom, probability 1e-4


def test_a_row_draws_the_same_whatever_batch_it_stands_in(device):
    logits, row_ids = batch((15, 129), device=device)
    whole = kernels.sample(logits, row_ids, seed=5, step=9, top_p=0.9)
    order = torch.randperm(15, generator=torch.Generator().manual_seed(1))[:7].to(device)
    for rows in (order, order[:1]):
        part = kernels.sample(logits[rows], row_ids[rows], seed=5, step=9, top_p=0.9)
        for got, expected in zip(part, whole, strict=True):
            assert torch.equal(got, expected[rows])


def test_the_same_logits_draw_the_same_at_another_precision_or_stride(device):
    logits, row_ids = batch((31, 129), torch.bfloat16, device)
    tokens = kernels.sample(logits, row_ids, seed=5, step=9).tokens
    assert torch.equal(kernels.sample(logits.float(), row_ids, seed=5, step=9).tokens, tokens)
    wide = torch.zeros(129, 62, device=device)
    wide[:, ::2] = logits.t().float()
    strided = kernels.sample(wide.t()[::2], row_ids.repeat_interleave(2)[::2], seed=5, step=9)
    for got, expected in zip(strided, kernels.sample(logits.float(), row_ids, seed=5, step=9), strict=True):
        torch.testing.assert_close(got, expected)


def test_top_k_keeps_all_that_equal_the_last(device):
    logits = torch.tensor([1.0, 3.0, 3.0, 0.0], device=device).expand(24, 4)
    tokens = kernels.sample(logits, torch.arange(24, device=device), seed=0, step=0, top_k=1).tokens
    assert set(tokens.tolist()) == {1, 2}


def test_extreme_logits(device):
    logits, row_ids = batch((9, 33), device=device, scale=1e4)
    assert torch.equal(assert_right(logits, row_ids), logits.argmax(-1))
    equal = torch.full((9, 33), -1e4, device=device)
    assert_right(equal, row_ids, top_p=0.5)


@pytest.mark.parametrize("options", [{}, {"top_k": 5}, {"top_p": 0.999}, {"temperature": 0}], ids=str)
def test_logits_of_minus_infinity_are_never_drawn(device, options):
    logits, row_ids = batch((12, 33), device=device)
    logits[:, 3:] = -math.inf
    tokens = assert_right(logits, row_ids, **options)
    assert tokens.max() < 3
    logits[:, :2] = -math.inf
    tokens, logprobs, entropy = kernels.sample(logits, row_ids, seed=3, step=5, **options)
    assert tokens.eq(2).all() and not logprobs.any() and not entropy.any()


@settings(max_examples=60, deadline=None)
@given(
    vocabulary=st.integers(1, 40),
    top_k=st.integers(0, 45),
    top_p=st.floats(0.01, 1),
    temperature=st.floats(0.1, 5),
    seed=st.integers(0, 2**64 - 1),
    ties=st.booleans(),
)
def test_property_tokens_are_those_that_top_k_and_top_p_keep(
    vocabulary, top_k, top_p, temperature, seed, ties
):
    logits = torch.randn(6, vocabulary, generator=torch.Generator().manual_seed(seed % 1000)) * 2
    logits = logits.round() if ties else logits
    options = {"temperature": temperature, "top_k": top_k, "top_p": top_p}
    tokens, logprobs, entropy = kernels.sample(logits, torch.arange(6), seed=seed, step=0, **options)
    for row, token in enumerate(tokens.tolist()):
        p_of = torch.softmax(logits[row].double() / temperature, -1)
        alike = [t for t in range(vocabulary) if logits[row, t] == logits[row, token]]
        keep = kept(logits[row] / temperature, top_k, top_p)
        assert any(keep[t] for t in alike), (p_of, keep, token)  # which of equal tokens stays is not promised
    assert (logprobs <= 0).all() and (entropy >= 0).all() and (entropy < math.log(vocabulary) + 1e-5).all()


@pytest.mark.parametrize("options", [{}, {"top_k": 3, "top_p": 0.5}, {"temperature": 0}], ids=str)
def test_empty_batch(device, options):
    logits, row_ids = batch((0, 33), device=device)
    assert all(tensor.shape == (0,) for tensor in kernels.sample(logits, row_ids, seed=0, step=0, **options))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_meta_tensors(dtype):
    tokens, logprobs, entropy = kernels.sample(*batch(dtype=dtype, device="meta"), seed=0, step=0)
    assert tokens.shape == logprobs.shape == entropy.shape == (5,) and tokens.dtype == torch.int64
    assert logprobs.dtype == entropy.dtype == torch.promote_types(dtype, torch.float32)


@pytest.mark.parametrize("temperature", [0.0, 0.7])
def test_opcheck(device, temperature):
    logits, row_ids = batch((4, 7), device=device)
    numbers = (3, 5, temperature, 3, 0.9, 0.1, 1.2)
    torch.library.opcheck(
        torch.ops.fastrlhf.sample.default, (logits, row_ids, *numbers, None, None, [None] * 7)
    )
    seen, of_rows = logits.t() > 0, [None, row_ids.repeat(2)[:7], None, None, None, None, None]
    banned = torch.tensor([True, False, False, False]).expand(7, 4)
    torch.library.opcheck(
        torch.ops.fastrlhf.sample.default,
        (logits.t(), row_ids.repeat(2)[:7], *numbers, seen, banned, of_rows),
    )


def test_compiles_whole_for_any_step(device):
    @torch.compile(fullgraph=True, backend="aot_eager")
    def halved(logits, row_ids, step):
        return kernels.sample(logits / 2, row_ids, seed=2**63, step=step, top_p=0.9)

    logits, row_ids = batch(device=device)
    for step in range(3):
        expected = kernels.sample(logits / 2, row_ids, seed=2**63, step=step, top_p=0.9)
        torch.testing.assert_close(halved(logits, row_ids, step), expected)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"logits": torch.zeros(7)}, ValueError, r"logits has shape \[7\], expected \[B, V\]"),
        ({"logits": torch.zeros(2, 7).int()}, TypeError, r"logits has dtype torch\.int32, expected one of"),
        (
            {"logits": torch.zeros(2, 0)},
            ValueError,
            r"logits has shape \[2, 0\], expected \[B, V\] with V from 1",
        ),
        ({"row_ids": torch.zeros(3).long()}, ValueError, r"row_ids has shape \[3\], expected \[B\] = \[2\]"),
        ({"row_ids": torch.zeros(2).int()}, TypeError, r"row_ids has dtype torch\.int32, .*torch\.int64"),
        ({"row_ids": torch.zeros(2, device="meta").long()}, ValueError, r"logits on cpu, row_ids on meta"),
        ({"seed": -1}, ValueError, r"seed is -1, expected at least 0"),
        ({"seed": 2**64}, ValueError, r"seed is 18446744073709551616, expected less than 2\*\*64"),
        ({"step": -1}, ValueError, r"step is -1, expected at least 0"),
        ({"temperature": -0.5}, ValueError, r"temperature is -0\.5, expected at least 0"),
        ({"temperature": math.nan}, ValueError, r"temperature is nan, expected at least 0"),
        ({"top_k": -1}, ValueError, r"top_k is -1, expected at least 0"),
        ({"top_p": 0.0}, ValueError, r"top_p is 0\.0, expected a number in \(0, 1\]"),
        ({"top_p": 1.01}, ValueError, r"top_p is 1\.01, expected a number in \(0, 1\]"),
    ],
)
def test_errors_name_the_argument_its_value_and_what_was_expected(changes, error, message):
    fitting = {"logits": torch.zeros(2, 7), "row_ids": torch.arange(2), "seed": 0, "step": 0}
    with pytest.raises(error, match=message):
        kernels.sample(**(fitting | changes))
