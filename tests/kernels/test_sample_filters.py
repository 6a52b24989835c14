"""What `sample` leaves out or makes less likely, and the settings of single rows."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fastrlhf import kernels
from tests.support.backends import interpreted, needs_many_rows
from tests.support.precision import assert_as_good_as

OPERATION = "sample"
# Around a vector, a warp's and a block's tile, and two vocabularies.
COLUMNS = [1, 2, 15, 16, 17, 257, 1023, 4097]
OPTIONS = [
    {},
    {"temperature": 0.0},
    {"temperature": 0.6},
    {"top_k": 1},
    {"top_k": 7},
    {"top_k": 40, "temperature": 1.7},
    {"top_p": 0.3},
    {"top_p": 0.95, "temperature": 0.8},
    {"top_p": 0.999999},
    {"min_p": 0.2},
    {"min_p": 1.0},
    {"top_k": 30, "top_p": 0.7, "min_p": 0.05},
    {"penalty": 1.5, "top_p": 0.9},
    {"bans": True, "top_k": 9},
    {"bans": True, "penalty": 0.7, "temperature": 0.9, "top_p": 0.8, "min_p": 0.01},
    {"bans": True, "penalty": 1.2, "temperature": 0.0},
]


def batch(rows, columns, device, seed=0, ties=False, scale=3.0):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(rows, columns, generator=generator) * scale
    logits = logits.round() if ties else logits
    seen = torch.rand(rows, columns, generator=generator) < 0.3
    banned = torch.rand(rows, columns, generator=generator) < 0.2
    banned[:, columns // 2] = False
    row_ids = torch.randint(0, 2**40, (rows,), generator=generator)
    return [tensor.to(device) for tensor in (logits, row_ids, seen, banned)]


def arguments(options, seen, banned):
    given = {name: value for name, value in options.items() if name not in ("bans", "penalty")}
    if options.get("bans"):
        given["banned"] = banned
    if "penalty" in options:
        given |= {"seen": seen, "repetition_penalty": options["penalty"]}
    return given


@pytest.mark.parametrize("ties", [False, True], ids=["apart", "ties"])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_every_backend_draws_the_tokens_of_the_reference(device, options, ties):
    for columns in [257] if interpreted() else COLUMNS:
        logits, row_ids, seen, banned = batch(2, columns, device, seed=columns, ties=ties)
        given = arguments(options, seen, banned)
        for seed in [2**63] if interpreted() else [0, 2**63 + columns]:
            tokens, *floats = kernels.sample(logits, row_ids, seed=seed, step=columns, **given)
            with kernels.using("reference"):
                expected, *others = kernels.sample(logits, row_ids, seed=seed, step=columns, **given)
            assert torch.equal(tokens, expected), columns
            for one, other in zip(floats, others, strict=True):
                torch.testing.assert_close(one, other)


def test_every_backend_draws_the_tokens_of_the_reference_many_times_over(device):
    rows, columns = (40, 300) if interpreted() else (2_000, 1_000)
    logits, row_ids, _, _ = batch(rows, columns, device, scale=1.0)
    tokens = kernels.sample(logits, row_ids, seed=5, step=1, temperature=0.9).tokens
    with kernels.using("reference"):
        assert torch.equal(tokens, kernels.sample(logits, row_ids, seed=5, step=1, temperature=0.9).tokens)
    assert len(set(tokens.tolist())) > rows // 3


def kept(logits, *, top_k=0, top_p=1.0, min_p=0.0):
    """Which tokens of one row the filters keep: a list of booleans, from sorted Python floats."""
    p = torch.softmax(logits.double(), -1).tolist()
    keep = [q >= sorted(p, reverse=True)[top_k - 1] if 0 < top_k < len(p) else True for q in p]
    if top_p < 1:
        total = math.fsum(q for q, k in zip(p, keep, strict=True) if k)
        before = [math.fsum(r for r, k in zip(p, keep, strict=True) if k and r > q) for q in p]
        keep = [k and b < top_p * total for k, b in zip(keep, before, strict=True)]
    return [k and q >= min_p * max(p) for k, q in zip(keep, p, strict=True)]


@pytest.mark.parametrize("ties", [False, True], ids=["apart", "ties"])
@pytest.mark.parametrize(
    "options",
    [
        {"top_k": 4},
        {"top_p": 0.6},
        {"min_p": 0.11},
        {"top_k": 6, "top_p": 0.77},
        {"top_k": 6, "top_p": 0.9, "min_p": 0.21},
    ],
    ids=str,
)
def test_exactly_the_kept_tokens_are_drawn(device, options, ties):
    needs_many_rows()
    logits = batch(1, 12, device, seed=4, ties=ties, scale=1.0)[0]
    keep = kept(logits[0].cpu(), **options)
    assert 1 < sum(keep) < 12
    rows = 3_000
    row_ids = torch.arange(rows, device=device)
    tokens = kernels.sample(logits.expand(rows, 12), row_ids, seed=1, step=0, **options).tokens
    assert torch.bincount(tokens.cpu(), minlength=12).gt(0).tolist() == keep


def test_top_p_keeps_all_that_equal_the_last(device):
    logits = torch.tensor([1.0, 3.0, 3.0, 0.0], device=device).expand(24, 4)
    tokens = kernels.sample(logits, torch.arange(24, device=device), seed=0, step=0, top_p=0.1).tokens
    assert set(tokens.tolist()) == {1, 2}


def test_the_penalty_by_hand(device):
    # Logits ln 4 and -ln 4 become ln 2 and -ln 16 with a penalty of two: odds of 2 : 1 : 1/16.
    needs_many_rows()
    rows, ln4 = 20_000, math.log(4)
    logits = torch.tensor([ln4, 0.0, -ln4], device=device).expand(rows, 3)
    seen = torch.tensor([True, False, True], device=device).expand(rows, 3)
    row_ids = torch.arange(rows, device=device)
    drawn = kernels.sample(logits, row_ids, seed=0, step=0, repetition_penalty=2.0, seen=seen)
    share = torch.bincount(drawn.tokens.cpu(), minlength=3) / rows
    torch.testing.assert_close(share, torch.tensor([32.0, 16.0, 1.0]) / 49, atol=0.012, rtol=0)
    plain = torch.log_softmax(logits[0].cpu(), -1)
    torch.testing.assert_close(drawn.logprobs.cpu(), plain[drawn.tokens.cpu()])


@pytest.mark.parametrize(
    "options", [{"bans": True}, {"penalty": 3.0}, {"bans": True, "penalty": 0.4}], ids=str
)
def test_logprobs_and_entropy_are_those_before_penalty_and_bans(device, options):
    logits, row_ids, seen, banned = batch(5, 300, device)
    given = arguments(options, seen, banned)
    tokens, logprobs, entropy = kernels.sample(logits, row_ids, seed=2, step=0, temperature=0.7, **given)

    def plain(logits):
        log_p = torch.log_softmax(logits.cpu() / 0.7, -1)
        return log_p.gather(1, tokens.cpu()[:, None])[:, 0], torch.special.entr(log_p.exp()).sum(-1)

    for one, same, exact in zip((logprobs, entropy), plain(logits), plain(logits.double()), strict=True):
        assert_as_good_as(one, same, exact)


@pytest.mark.parametrize("shape", ["[V]", "[B, V]"])
def test_banned_tokens_are_never_drawn(device, shape):
    logits, row_ids, _, banned = batch(24, 33, device, scale=1.0)
    banned = banned[0] if shape == "[V]" else banned
    for temperature in (0.0, 1.0):
        tokens = kernels.sample(
            logits, row_ids, seed=0, step=0, temperature=temperature, banned=banned
        ).tokens
        assert not banned.expand(24, 33).gather(1, tokens[:, None]).any()
        assert len(set(tokens.tolist())) > 5


def test_settings_of_each_row_in_tensors(device):
    names = ("seed", "step", "temperature", "top_k", "top_p", "min_p", "repetition_penalty")
    rows = [
        (0, 0, 1.0, 0, 1.0, 0.0, 1.0),
        (2**63 - 1, 7, 0.0, 3, 0.5, 0.0, 1.3),
        (5, 2**32 - 1, 0.6, 5, 1.0, 0.0, 1.0),
        (5, 3, 1.4, 0, 0.7, 0.0, 0.8),
        (5, 3, 1.4, 400, 1.0, 0.3, 2.0),
        (1, 1, 0.9, 20, 0.95, 0.01, 1.1),
    ]
    logits, row_ids, seen, _ = batch(6, 257, device)
    columns = zip(names, zip(*rows, strict=True), strict=True)
    tensors = {name: torch.tensor(values, device=device) for name, values in columns}
    together = kernels.sample(logits, row_ids, seen=seen, **tensors)
    for row, numbers in enumerate(rows):
        at = slice(row, row + 1)
        alone = kernels.sample(
            logits[at], row_ids[at], seen=seen[at], **dict(zip(names, numbers, strict=True))
        )
        for one, other in zip(together, alone, strict=True):
            assert torch.equal(one[at], other), row


def test_a_scalar_tensor_is_the_setting_of_all_rows(device):
    logits, row_ids, _, _ = batch(4, 33, device)
    step, temperature = torch.tensor(9, device=device), torch.tensor(0.5, device=device)
    got = kernels.sample(logits, row_ids, seed=2, step=step, temperature=temperature)
    expected = kernels.sample(logits, row_ids, seed=2, step=9, temperature=0.5)
    for one, other in zip(got, expected, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize(
    ("name", "value", "like"),
    [
        ("temperature", -1.0, 0.0),
        ("top_k", -3, 0),
        ("top_k", 10**12, 0),
        ("top_p", -1.0, 1e-6),
        ("top_p", 2.0, 1.0),
        ("top_p", math.nan, 1.0),
        ("min_p", -1.0, 0.0),
        ("min_p", 7.0, 1.0),
        ("min_p", math.nan, 0.0),
    ],
)
def test_a_tensors_value_out_of_range_counts_as_the_nearest_inside(device, name, value, like):
    logits, row_ids, _, _ = batch(9, 33, device)
    got = kernels.sample(logits, row_ids, seed=0, step=0, **{name: torch.tensor(value, device=device)})
    for one, other in zip(got, kernels.sample(logits, row_ids, seed=0, step=0, **{name: like}), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("options", [{}, {"top_k": 3, "top_p": 0.5}, {"temperature": 0.0}], ids=str)
def test_a_row_without_a_distribution_is_nan_and_the_others_do_not_notice(device, options):
    logits, row_ids, _, banned = batch(6, 40, device)
    expected = kernels.sample(logits, row_ids, seed=0, step=0, banned=banned, **options)
    spoiled, bans = logits.clone(), banned.clone()
    spoiled[0, 7], spoiled[1, 39], spoiled[2], bans[3] = math.nan, math.inf, -math.inf, True
    got = kernels.sample(spoiled, row_ids, seed=0, step=0, banned=bans, **options)
    assert got.tokens[:4].tolist() == [0] * 4
    assert got.logprobs[:4].isnan().all() and got.entropy[:4].isnan().all()
    for one, other in zip(got, expected, strict=True):
        assert torch.equal(one[4:], other[4:])


@settings(max_examples=80, deadline=None)
@given(
    columns=st.integers(1, 60),
    top_k=st.integers(0, 65),
    top_p=st.floats(0.01, 1),
    min_p=st.floats(0, 1),
    temperature=st.floats(0.1, 5),
    seed=st.integers(0, 2**64 - 1),
    ties=st.booleans(),
)
def test_property_what_is_drawn_was_kept(columns, top_k, top_p, min_p, temperature, seed, ties):
    logits, row_ids, _, _ = batch(6, columns, "cpu", seed=seed % 1000, ties=ties, scale=2.0)
    filters = {"top_k": top_k, "top_p": top_p, "min_p": min_p}
    tokens = kernels.sample(logits, row_ids, seed=seed, step=0, temperature=temperature, **filters).tokens
    # float64's edges lie a rounding away from float32's
    loose = {"top_k": top_k, "top_p": top_p * (1 + 1e-5) if top_p < 1 else 1.0, "min_p": min_p * (1 - 1e-5)}
    for row, token in enumerate(tokens.tolist()):
        scaled = (logits[row] / temperature).double()
        near = [t for t in range(columns) if abs(scaled[t] - scaled[token]) < 1e-5]
        assert any(kept(scaled, **loose)[t] for t in near)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"min_p": -0.1}, ValueError, r"min_p is -0\.1, expected a number in \[0, 1\]"),
        ({"min_p": 1.1}, ValueError, r"min_p is 1\.1, expected a number in \[0, 1\]"),
        ({"repetition_penalty": 0.0}, ValueError, r"repetition_penalty is 0\.0, expected more than 0"),
        ({"repetition_penalty": 1.1}, ValueError, r"repetition_penalty is 1\.1, but seen is None"),
        ({"repetition_penalty": torch.ones(2)}, ValueError, r"repetition_penalty is .*, but seen is None"),
        (
            {"seen": torch.ones(2, 6).bool()},
            ValueError,
            r"seen has shape \[2, 6\], expected \[B, V\] = \[2, 7\]",
        ),
        ({"seen": torch.ones(2, 7)}, TypeError, r"seen has dtype torch\.float32, .*torch\.bool"),
        ({"banned": torch.ones(6).bool()}, ValueError, r"banned has shape \[6\], expected \[V\] or \[B, V\]"),
        ({"banned": torch.ones(1, 7).bool()}, ValueError, r"banned has shape \[1, 7\], expected \[V\] or"),
        ({"banned": torch.ones(7)}, TypeError, r"banned has dtype torch\.float32, .*torch\.bool"),
        ({"step": torch.zeros(3).long()}, ValueError, r"step has shape \[3\], expected \[B\] = \[2\]"),
        ({"top_k": torch.zeros(2)}, TypeError, r"top_k has dtype torch\.float32, .*torch\.int64"),
        ({"top_p": torch.zeros(2).double()}, TypeError, r"top_p has dtype torch\.float64, .*torch\.float32"),
        ({"min_p": torch.zeros(2, device="meta")}, ValueError, r"logits on cpu, .*min_p on meta"),
        ({"logits": torch.zeros(2, 2**20 + 1)}, ValueError, r"expected \[B, V\] with V from 1 to 1048576"),
    ],
)
def test_errors_name_the_argument_its_value_and_what_was_expected(changes, error, message):
    fitting = {"logits": torch.zeros(2, 7), "row_ids": torch.arange(2), "seed": 0, "step": 0}
    with pytest.raises(error, match=message):
        kernels.sample(**(fitting | changes))


def test_every_config(triton_config):
    for columns in (5, 300):
        logits, row_ids, seen, banned = batch(2, columns, triton_config)
        given = {"seen": seen, "repetition_penalty": 1.3, "banned": banned, "top_p": 0.9}
        got = kernels.sample(logits, row_ids, seed=3, step=1, **given)
        with kernels.using("reference"):
            expected = kernels.sample(logits, row_ids, seed=3, step=1, **given)
        assert torch.equal(got.tokens, expected.tokens)
        torch.testing.assert_close(got.entropy, expected.entropy)
