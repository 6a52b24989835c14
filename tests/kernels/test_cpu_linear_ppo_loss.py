from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch

from fastrlhf import kernels
from fastrlhf.kernels import native
from fastrlhf.kernels.cpu import linear_ppo_loss as launcher
from tests.kernels.test_linear_ppo_loss import (
    HEAD,
    LEAVES,
    assert_right,
    case,
    several,
    with_gradients,
    without_values,
)
from tests.kernels.test_ppo_loss import EVERYTHING
from tests.support.memory import allocations

pytestmark = pytest.mark.skipif(
    native.missing("_cpu") is not None, reason=f"fastrlhf._cpu: {native.missing('_cpu')}"
)

# N, D, V: around a panel (8, 16, 32 rows), a block (128 rows), a stripe (6, 12 words), a tile of the vocabulary (240
# words), a merged chunk (4 tiles), and a piece of the depth (128).
SHAPES = [(3, 5, 7), (32, 129, 240), (97, 12, 241), (128, 7, 1921), (129, 40, 959), (258, 13, 239)]
NEEDED = pytest.mark.parametrize("needed", [HEAD[:1], HEAD], ids=["frozen", "trainable"])


@pytest.fixture(autouse=True, params=["blocks", "parts"])
def way(request, monkeypatch):
    """Both ways to the gradients, whatever the width."""
    monkeypatch.setattr(launcher, "WIDE", 0 if request.param == "blocks" else 1 << 20)
    return request.param


def test_wide_states_go_by_blocks(way, monkeypatch):
    monkeypatch.undo()
    monkeypatch.setattr(launcher, "_by_blocks", lambda *args, **named: pytest.fail("by blocks"))
    for width, goes in ((launcher.WIDE - 1, False), (launcher.WIDE, True)):
        with pytest.raises(pytest.fail.Exception) if goes else nullcontext():
            with_gradients(kernels.linear_ppo_loss, case((3, width, 7)), "cpu", HEAD)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@NEEDED
def test_as_good_as_plain_at_every_edge(instructions, needed, shape):
    assert_right(several(shape), "cpu", needed, **EVERYTHING)


@pytest.mark.parametrize("options", [{"softcap": 2.0, "temperature": 0.6}, {"kl_coef": 0.3}], ids=str)
@pytest.mark.parametrize("entropy_coef", [0.0, 0.5])
@NEEDED
def test_every_option(instructions, needed, entropy_coef, options):
    assert_right(several((140, 9, 1100), scale=3.0), "cpu", needed, entropy_coef=entropy_coef, **options)


def test_logits_that_change_from_tile_to_tile(instructions):
    tensors = case((140, 4, 2400))
    for first in (-1e4, 1e4):
        tensors["bias"][:700] += first
        tensors["targets"] = tensors["targets"] % 700 + (700 if first < 0 else 0)
        tensors["old_logprobs"] = tensors["ref_logprobs"] = torch.full((140,), -7.0)
        assert_right(tensors, "cpu", HEAD, entropy_coef=0.5)
        tensors["bias"][:700] -= first


@pytest.mark.parametrize("entropy_coef", [0.0, 0.5])
@NEEDED
def test_the_number_of_threads_changes_no_bit(instructions, threads, needed, entropy_coef):
    tensors, results = case((300, 24, 2500)), []
    for count in (1, 2, 3, 9):
        threads(count)
        loss, stats, gradients = with_gradients(
            kernels.linear_ppo_loss, tensors, "cpu", needed, entropy_coef=entropy_coef
        )
        results.append([loss, stats, *gradients.values()])
    for other in results[1:]:
        assert all(torch.equal(*pair) for pair in zip(results[0], other, strict=True))


@NEEDED
def test_a_row_that_is_not_finite_stays_in_its_row(instructions, needed):
    tensors = case((140, 4, 1000))
    clean = with_gradients(kernels.linear_ppo_loss, tensors, "cpu", needed, entropy_coef=0.5)
    tensors["hidden_states"][130] = torch.nan
    loss, _, gradients = with_gradients(kernels.linear_ppo_loss, tensors, "cpu", needed, entropy_coef=0.5)
    others = torch.arange(140) != 130
    assert loss.isnan() == tensors["mask"][130]
    assert torch.equal(gradients["hidden_states"][others], clean[2]["hidden_states"][others])


@pytest.mark.parametrize("entropy_coef", [0.0, 0.5])
@pytest.mark.parametrize("width", [256, 576])
@NEEDED
def test_temporary_memory_is_under_32_megabytes(threads, needed, width, entropy_coef):
    threads(2)
    tensors = without_values(case((1024, width, 50_304)))
    used = allocations(
        lambda: with_gradients(
            kernels.linear_ppo_loss, tensors, "cpu", needed, 1.0, entropy_coef=entropy_coef
        )
    )
    assert used.peak - sum(tensors[name].nbytes for name in needed) < 32e6


def test_values_have_their_gradient_whatever_the_head_wants(instructions):
    for needed in (LEAVES[3:], LEAVES[::3]):
        assert_right(several((140, 4, 100)), "cpu", needed, **EVERYTHING)
