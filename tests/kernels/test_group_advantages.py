from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fastrlhf import kernels
from fastrlhf.kernels import dispatch
from fastrlhf.kernels.group_advantages import GROUP_ESTIMATORS
from fastrlhf.kernels.group_rows import group_rows
from tests.support.memory import allocations
from tests.support.precision import assert_as_good_as

OPERATION = "group_advantages"
DTYPES = [torch.float64, torch.float32, torch.bfloat16]
every_estimator = pytest.mark.parametrize("estimator", GROUP_ESTIMATORS)


def plain(scores, ids, mask, estimator, epsilon=1e-4):
    """Group by group in the scores' precision (float32 for bfloat16, rounded at the end), with moments."""
    dtype = scores.dtype
    scores = scores.float() if dtype == torch.bfloat16 else scores
    advantages = torch.zeros_like(scores)
    for group in ids.unique():
        members = (ids == group) & mask
        kept = scores[members]
        if len(kept) > 1 and estimator == "rloo":
            others = (kept.sum() - kept) / (len(kept) - 1)
            advantages[members] = kept - others
        elif len(kept) > 1:
            deviation = kept - kept.mean()
            advantages[members] = deviation / (kept.std() + epsilon) if estimator == "grpo" else deviation
    kept = advantages[mask].double()
    moments = torch.stack([torch.tensor(kept.numel()).double(), kept.sum(), kept.square().sum()])
    return advantages.to(dtype), moments


def assert_right(scores, device, estimator="grpo", group_size=None, groups=None, mask=None):
    ids = torch.arange(len(scores)) // group_size if groups is None else groups
    kept = torch.ones(len(scores), dtype=torch.bool) if mask is None else mask
    moved = {"groups": groups, "mask": mask}
    moved = {name: None if tensor is None else tensor.to(device) for name, tensor in moved.items()}
    actual = kernels.group_advantages(scores.to(device), group_size=group_size, estimator=estimator, **moved)
    same, exact = (plain(numbers, ids, kept, estimator) for numbers in (scores, scores.double()))
    assert_as_good_as(actual.advantages, same[0], exact[0], name="advantages")
    assert actual.moments.dtype == torch.float64
    moments, plain_moments = actual.moments, same[1]
    if scores.dtype != torch.float64:  # sums of float32 advantages are as good as float32
        moments, plain_moments = moments.float(), plain_moments.float()
    assert_as_good_as(moments, plain_moments, exact[1], name="moments")


def rollout(prompts, responses, dtype=torch.float32, seed=0):
    """Scores, the same responses by ids in any order, and a mask that leaves two of each group at least."""
    generator = torch.Generator().manual_seed(seed)
    scores = (torch.randn(prompts * responses, generator=generator) + 2).to(dtype)
    order = torch.randperm(prompts * responses, generator=generator)
    mask = torch.rand(prompts, responses, generator=generator) > 0.4
    mask[:, :2] = True
    return scores, order, mask.flatten()


@pytest.mark.parametrize(
    ("estimator", "expected"),
    [
        # means 4 and 2; unbiased variances (9 + 1 + 4 + 4) / 3 = 6 and 4 / 3
        (
            "grpo",
            [
                -3 / 6**0.5,
                -1 / 6**0.5,
                2 / 6**0.5,
                2 / 6**0.5,
                *[-1 / (4 / 3) ** 0.5, 1 / (4 / 3) ** 0.5] * 2,
            ],
        ),
        ("dr_grpo", [-3, -1, 2, 2, -1, 1, -1, 1]),
        # 1 - (3 + 6 + 6) / 3 = -4, 3 - 13 / 3, 6 - 10 / 3 twice; 1 - 7 / 3, 3 - 5 / 3 twice
        ("rloo", [-4, -4 / 3, 8 / 3, 8 / 3, -4 / 3, 4 / 3, -4 / 3, 4 / 3]),
    ],
)
def test_two_groups_by_hand(device, estimator, expected):
    scores = torch.tensor([1.0, 3.0, 6.0, 6.0, 1.0, 3.0, 1.0, 3.0], device=device)
    advantages, moments = kernels.group_advantages(scores, group_size=4, estimator=estimator, epsilon=1e-9)
    assert advantages.tolist() == pytest.approx(expected, rel=1e-6)
    assert moments.tolist() == pytest.approx(
        [8, sum(expected), sum(x * x for x in expected)], rel=1e-6, abs=1e-6
    )


@every_estimator
@pytest.mark.parametrize("shape", [(1, 2), (3, 31), (5, 33), (33, 3), (2, 129), (1, 300)], ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_as_good_as_plain(device, dtype, shape, estimator):
    scores, order, mask = rollout(*shape, dtype)
    assert_right(scores, device, estimator, shape[1])
    assert_right(scores, device, estimator, shape[1], mask=mask)
    ids = (torch.arange(len(scores)) // shape[1])[order]
    assert_right(scores[order], device, estimator, groups=ids)
    assert_right(scores[order], device, estimator, groups=ids, mask=mask[order])


@every_estimator
@pytest.mark.parametrize("group_size", [16, 300])
def test_every_config(triton_config, estimator, group_size):
    scores, _, mask = rollout(2, group_size)
    assert_right(scores, triton_config, estimator, group_size, mask=mask)


def test_groups_of_different_sizes(device):
    scores, _, mask = rollout(1, 60)
    groups = torch.tensor([0] * 2 + [50] * 3 + [7] + [59] * 40 + [1] * 14)[torch.randperm(60)]
    assert_right(scores, device, "grpo", groups=groups)
    assert_right(scores, device, "dr_grpo", groups=groups, mask=mask)


def test_non_contiguous_inputs(device):
    scores, _, mask = rollout(6, 8)
    groups = torch.arange(48) // 8
    assert_right(scores[::2], device, group_size=4, mask=mask[::2])
    assert_right(scores[:1].expand(12), device, group_size=4)
    assert_right(scores[::2], device, groups=groups[::2])


@every_estimator
@pytest.mark.parametrize("by_id", [False, True])
def test_empty(device, estimator, by_id):
    empty = torch.zeros(0, device=device)
    given = {"groups": empty.long()} if by_id else {"group_size": 4}
    advantages, moments = kernels.group_advantages(empty, estimator=estimator, **given)
    assert advantages.shape == (0,) and moments.tolist() == [0, 0, 0]


@every_estimator
@pytest.mark.parametrize("score", [0.0, 0.1, -3.3e4, 1e30])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_equal_scores_get_exactly_zero(device, dtype, score, estimator):
    scores = torch.full((21,), score, dtype=dtype, device=device)
    advantages, moments = kernels.group_advantages(scores, group_size=7, estimator=estimator, epsilon=1e-30)
    assert not advantages.any() and moments.tolist() == [21, 0, 0]


@every_estimator
def test_extreme_scores(device, estimator):
    scores = torch.tensor([3e38, -3e38, 3e38, -3e38, 1e4, 1e4 + 2**-9, 1e4, 1e4 - 2**-9])
    assert_right(scores.double(), "cpu", estimator, 4)
    if estimator == "rloo":  # beyond float32
        scores[:4] /= 2
    actual = kernels.group_advantages(scores.to(device), group_size=4, estimator=estimator).advantages
    exact = plain(scores.double(), torch.arange(8) // 4, torch.ones(8).bool(), estimator)[0]
    torch.testing.assert_close(actual.cpu().double(), exact, rtol=1e-6, atol=0)


@pytest.mark.parametrize("estimator", ["grpo", "dr_grpo"])
def test_a_response_alone_gets_zero(device, estimator):
    scores = torch.tensor([5.0, 1.0, 2.0, 9.0], device=device)
    mask = torch.tensor([True, False, True, True], device=device)
    assert not kernels.group_advantages(scores, group_size=1, estimator=estimator).advantages.any()
    advantages, moments = kernels.group_advantages(scores, group_size=2, mask=mask, estimator=estimator)
    assert not advantages[:2].any() and (advantages[2:] != 0).all() and moments[0] == 3


@every_estimator
@pytest.mark.parametrize("poison", [math.nan, math.inf])
def test_rows_that_are_left_out_do_not_leak(device, estimator, poison):
    scores, order, mask = rollout(4, 6)
    ids = (torch.arange(24) // 6)[order].to(device)
    for kept, groups in ((mask, {"group_size": 6}), (mask[order], {"groups": ids})):
        options = {"mask": kept.to(device), "estimator": estimator} | groups
        clean = kernels.group_advantages(scores.to(device), **options)
        again = kernels.group_advantages(scores.masked_fill(~kept, poison).to(device), **options)
        assert torch.equal(again.advantages, clean.advantages) and torch.equal(again.moments, clean.moments)
        assert not clean.advantages[~options["mask"]].any()


@every_estimator
def test_all_left_out(device, estimator):
    scores = torch.randn(12, device=device)
    given = {"mask": torch.zeros(12, dtype=torch.bool, device=device), "estimator": estimator}
    for groups in ({"group_size": 4}, {"groups": torch.arange(12, device=device) // 5}):
        advantages, moments = kernels.group_advantages(scores, **groups, **given)
        assert not advantages.any() and not moments.any()


@every_estimator
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_score_that_is_not_finite_makes_its_group_nan(device, estimator, bad):
    scores = torch.tensor([1.0, bad, 3.0, 4.0, 1.0, 2.0, 3.0, 5.0], device=device)
    for groups in ({"group_size": 4}, {"groups": torch.arange(8, device=device) // 4}):
        advantages, moments = kernels.group_advantages(scores, estimator=estimator, **groups)
        assert advantages[:4].isnan().all() and advantages[4:].isfinite().all()
        assert moments[0] == 8 and moments[1:].isnan().all()


def test_moments_of_micro_batches_whiten_the_whole(device):
    scores = rollout(9, 4)[0].to(device)
    whole = kernels.group_advantages(scores, group_size=4, estimator="rloo")
    parts = [
        kernels.group_advantages(scores[i : i + 12], group_size=4, estimator="rloo") for i in (0, 12, 24)
    ]
    torch.testing.assert_close(sum(part.moments for part in parts), whole.moments, rtol=1e-14, atol=1e-13)
    whitened = kernels.whiten(whole.advantages, torch.ones_like(scores).bool(), whole.moments)
    assert whitened.mean().abs() < 1e-6 and whitened.std().item() == pytest.approx(1, abs=1e-6)


@settings(max_examples=40, deadline=None)
@given(
    rows=st.integers(1, 30),
    spread=st.integers(1, 6),
    seed=st.integers(0, 1000),
    offset=st.sampled_from([0.0, 1e3, -1e5]),
    estimator=st.sampled_from(["grpo", "dr_grpo"]),
)
def test_property_any_groups(rows, spread, seed, offset, estimator):
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randn(rows, generator=generator) + offset
    groups = torch.randint(0, min(spread, rows), (rows,), generator=generator)
    mask = torch.rand(rows, generator=generator) > 0.3
    assert_right(scores, "cpu", estimator, groups=groups, mask=mask)


def test_the_rows_of_each_group():
    groups = torch.tensor([3, 0, 3, 5, 0, -1, 9, 3])
    order, starts = group_rows(groups)
    members = [order[starts[g] : starts[g + 1]].tolist() for g in range(8)]
    assert members == [[1, 4], [], [], [0, 2, 7], [], [3], [], []]


@pytest.mark.parametrize("estimator", ["grpo", "rloo"])
def test_where_the_host_must_not_wait_an_id_that_does_not_exist_gives_nan(device, estimator):
    # what a GPU gets: the public function's check reads the ids on a CPU alone
    groups = torch.tensor([0, 0, 2**40, 0, -1, 1], device=device)
    scores = torch.tensor([1.0, 2.0, 4.0, 3.0, 5.0, 7.0], device=device)
    advantages, _ = dispatch.call("group_advantages", scores, None, groups, 1, estimator, 1e-4)
    assert advantages[[2, 4]].isnan().all() and advantages[[0, 1, 3]].isfinite().all()
    alone = advantages[5]
    assert alone.isnan() if estimator == "rloo" else alone == 0


def test_memory_is_the_outputs(device):
    scores = torch.randn(4096, device=device)
    used = allocations(lambda: kernels.group_advantages(scores, group_size=64))
    assert used.kept == 4 * 4096 + 3 * 8


def test_meta_tensors():
    scores = torch.empty(6, dtype=torch.bfloat16, device="meta")
    advantages, moments = kernels.group_advantages(scores, group_size=3, estimator="rloo")
    assert advantages.shape == (6,) and advantages.dtype == torch.bfloat16 and advantages.is_meta
    assert moments.shape == (3,) and moments.dtype == torch.float64


def test_opcheck(device):
    scores, groups = torch.randn(12, device=device)[::2], torch.tensor([0, 1, 1, 0, 1, 0], device=device)
    operation = torch.ops.fastrlhf.group_advantages.default
    torch.library.opcheck(operation, (scores, None, None, 3, "grpo", 1e-4))
    torch.library.opcheck(operation, (scores, scores < 9, groups, 1, "rloo", 1e-4))


def test_compiles_whole(device):
    @torch.compile(fullgraph=True, backend="aot_eager")
    def doubled(scores, groups):
        return kernels.group_advantages(scores * 2, groups=groups, estimator="rloo").advantages

    scores, groups = torch.randn(8, device=device), torch.arange(8, device=device) // 3
    expected = kernels.group_advantages(scores * 2, groups=groups, estimator="rloo").advantages
    assert torch.equal(doubled(scores, groups), expected)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"scores": torch.zeros(2, 3)}, ValueError, r"scores has shape \[2, 3\], expected \[B\]"),
        ({"scores": torch.zeros(6).int()}, TypeError, r"scores has dtype torch\.int32.*torch\.float32"),
        ({"mask": torch.ones(5).bool()}, ValueError, r"mask has shape \[5\], expected \[B\] = \[6\]"),
        ({"mask": torch.ones(6)}, TypeError, r"mask has dtype torch\.float32, expected one of torch\.bool"),
        ({"groups": torch.zeros(6).long()}, ValueError, "give either group_size or groups"),
        ({"group_size": None}, ValueError, "give either group_size or groups"),
        ({"group_size": 4}, ValueError, "group_size is 4, expected a number that divides the 6 rows"),
        ({"group_size": 0}, ValueError, "group_size is 0, expected a number that divides"),
        ({"group_size": None, "groups": torch.zeros(5).long()}, ValueError, r"groups has shape \[5\]"),
        ({"group_size": None, "groups": torch.zeros(6).int()}, TypeError, r"groups has dtype torch\.int32"),
        ({"mask": torch.ones(6, device="meta").bool()}, ValueError, r"scores on cpu, mask on meta"),
        (
            {"estimator": "reinforce"},
            ValueError,
            "estimator is 'reinforce', expected one of grpo, dr_grpo, rloo",
        ),
        ({"epsilon": 0.0}, ValueError, r"epsilon is 0\.0, expected more than 0"),
        ({"epsilon": math.nan}, ValueError, "epsilon is nan"),
        (
            {"group_size": None, "groups": torch.tensor([0, 0, 1, 1, 2, 6])},
            IndexError,
            r"groups lie in \[0, 6\]",
        ),
        (
            {"group_size": None, "groups": torch.tensor([0, 0, 1, 1, 2, -1])},
            IndexError,
            r"groups lie in \[-1, 2\]",
        ),
    ],
)
def test_errors_name_the_argument_its_value_and_what_was_expected(changes, error, message):
    with pytest.raises(error, match=message):
        kernels.group_advantages(**{"scores": torch.zeros(6), "group_size": 3} | changes)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"group_size": 1}, "estimator 'rloo' compares a response with others, but group_size is 1"),
        ({"groups": torch.tensor([0, 0, 1, 2, 2, 2])}, "one alone counts in group 1"),
        ({"group_size": 3, "mask": torch.tensor([1, 1, 0, 0, 1, 0]).bool()}, "one alone counts in group 1"),
    ],
)
def test_leave_one_out_needs_others(given, message):
    with pytest.raises(ValueError, match=message):
        kernels.group_advantages(torch.zeros(6), estimator="rloo", **given)
