"""The C++ sampler beside the reference: bit for bit the same token, with any vectors and any number of threads."""

from __future__ import annotations

import math

import pytest
import torch

from fastrlhf.kernels import native
from fastrlhf.kernels.reference.sample import sample as reference_sample

pytestmark = pytest.mark.skipif(
    native.missing("_cpu") is not None, reason=f"fastrlhf._cpu: {native.missing('_cpu')}"
)

if native.missing("_cpu") is None:
    from fastrlhf.kernels.cpu.sample import sample

NONE = [None] * 7


def case(logits, top_k=0, top_p=1.0, min_p=0.0, temperature=1.0, seen=None, banned=None):
    row_ids = torch.arange(len(logits)) + 2**33
    penalty = 1.0 if seen is None else 1.3
    return logits, row_ids, 2**62 + 1, 17, temperature, top_k, top_p, min_p, penalty, seen, banned, NONE


def normal(*shape, scale=2.0, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * scale


@pytest.mark.parametrize("columns", [1, 7, 8, 9, 31, 32, 33, 1000, 50_257])
def test_both_versions_draw_the_tokens_of_the_reference(vectors, columns):
    logits = normal(3, columns)
    seen, banned = normal(3, columns, seed=1) > 0, normal(3, columns, seed=2) > 1
    banned[:, 0] = False
    for args in (
        case(logits),
        case(logits, top_k=20, temperature=0.7),
        case(logits, top_p=0.9, seen=seen),
        case(logits, min_p=0.02, banned=banned),
    ):
        assert torch.equal(sample(*args)[0], reference_sample(*args)[0])


@pytest.mark.parametrize(
    "logits",
    [
        normal(3, 20_000).round(),  # more equal logits than the last step sorts
        torch.zeros(2, 5_000),
        normal(2, 20_000) * 1e-30,
        normal(2, 20_000).exp() * torch.where(normal(2, 20_000, seed=1) > 0, 1e-20, -1e-38),
        normal(2, 3_000) * 1e30,
        torch.cat([torch.full((2, 4_000), -math.inf), normal(2, 1_000)], dim=1),
        torch.cat([torch.full((2, 4_000), -0.0), torch.zeros(2, 1_000)], dim=1),
    ],
    ids=["ties", "equal", "tiny", "around zero", "huge", "mostly -inf", "both zeros"],
)
@pytest.mark.parametrize(
    "filters",
    [
        {"top_k": 1},
        {"top_k": 700},
        {"top_k": 2_999},
        {"top_p": 0.1},
        {"top_p": 0.9999},
        {"top_k": 900, "top_p": 0.5},
    ],
    ids=str,
)
def test_thresholds_of_unusual_rows(vectors, logits, filters):
    args = case(logits, **filters)
    assert torch.equal(sample(*args)[0], reference_sample(*args)[0])


def test_the_number_of_threads_and_the_vectors_change_no_bit():
    args = case(normal(7, 3_001), top_p=0.95, seen=normal(7, 3_001, seed=1) > 0)
    before, results = torch.get_num_threads(), []
    for threads in (1, 2, 5):
        torch.set_num_threads(threads)
        results.append(sample(*args))
    torch.set_num_threads(before)
    native.module("_cpu").force_portable(True)
    results.append(sample(*args))
    native.module("_cpu").force_portable(False)
    for other in results[1:]:
        assert all(torch.equal(one, two) for one, two in zip(results[0], other, strict=True))


def test_it_reads_rows_where_they_lie_and_nothing_beside_them():
    whole = torch.full((4, 3, 50), math.nan)
    whole[:, 1, :45] = normal(4, 45)
    logits = whole[:, 1, :45]
    assert all(
        torch.equal(one, two)
        for one, two in zip(sample(*case(logits)), sample(*case(logits.contiguous())), strict=True)
    )
    mask = torch.ones(4, 90, dtype=torch.bool)
    mask[:, ::2] = normal(4, 45, seed=1) > 0
    for strided in (mask[:, ::2], mask[:, :45]):
        one, two = (sample(*case(logits, seen=seen)) for seen in (strided, strided.contiguous()))
        assert torch.equal(one[0], two[0])
