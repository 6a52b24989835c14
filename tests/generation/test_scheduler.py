"""Blocks are shared, counted and given back; requests are admitted in order."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fastrlhf.generation.cache import BLOCK_SIZE, BlockAllocator, PagedCache, blocks_of
from fastrlhf.generation.request import Request
from fastrlhf.generation.scheduler import Scheduler
from fastrlhf.generation.settings import Settings


def test_blocks_are_free_when_nobody_holds_them():
    allocator = BlockAllocator(5)
    assert allocator.free == 4  # one is the spare block
    first = allocator.take(3)
    assert 0 not in first and len(set(first)) == 3
    allocator.hold(first[:1])
    allocator.release(first)
    assert allocator.free == 3
    with pytest.raises(ValueError, match="4 blocks are wanted, and 3 are free"):
        allocator.take(4)
    allocator.release(first[:1])
    assert allocator.free == 4


def test_positions_lie_in_their_blocks():
    cache = PagedCache(layers=2, blocks=3, key_heads=1, width=2, like=torch.zeros(1))
    assert cache.nbytes == 2 * 2 * 3 * BLOCK_SIZE * 2 * 4
    slots = torch.tensor([2 * BLOCK_SIZE + 1, 5])
    cache.write(1, slots, torch.ones(2, 1, 2), torch.full((2, 1, 2), 3.0))
    assert cache.keys[1, 2, 1].tolist() == [[1.0, 1.0]] and cache.values[1, 0, 5].tolist() == [[3.0, 3.0]]
    cache.copy_blocks([2], [1])
    assert cache.keys[1, 1, 1].tolist() == [[1.0, 1.0]] and cache.values[1, 1, 1].tolist() == [[3.0, 3.0]]
    assert [blocks_of(positions) for positions in (0, 1, 16, 17)] == [0, 1, 1, 2]


def request(index, length, most=4, prompt=None):
    return Request(index, prompt or tuple(range(100 * index, 100 * index + length)), index, Settings(most))


def test_whole_blocks_are_shared_and_the_last_is_copied():
    prompt = tuple(range(2 * BLOCK_SIZE + 4))
    allocator = BlockAllocator(20)
    scheduler = Scheduler([request(0, 0, prompt=prompt), request(1, 0, prompt=prompt)], allocator, 2)
    first, second = scheduler.admit()
    assert first.prefill and first.copied is None
    assert not second.prefill and second.copied == first.blocks[2]
    assert first.blocks[:2] == second.blocks[:2] and first.blocks[2] != second.blocks[2]
    assert allocator.free == 19 - 4
    scheduler.finish(first.blocks)
    scheduler.finish(second.blocks)
    assert allocator.free == 19 - 3  # what the second is to copy
    assert scheduler.admit() == []
    assert allocator.free == 19


def test_nothing_is_copied_where_the_prefix_ends_with_its_block():
    prompt = tuple(range(BLOCK_SIZE + 1))
    first, second = Scheduler(
        [request(0, 0, prompt=prompt), request(1, 0, prompt=prompt)], BlockAllocator(9), 2
    ).admit()
    assert second.copied is None and first.blocks[0] == second.blocks[0]


@settings(max_examples=60, deadline=None)
@given(
    lengths=st.lists(
        st.tuples(st.integers(1, 50), st.integers(1, 20), st.integers(0, 2)), min_size=1, max_size=12
    ),
    blocks=st.integers(6, 20),
    max_rows=st.integers(1, 4),
    order=st.randoms(use_true_random=False),
)
def test_everyone_gets_a_turn_and_every_block_comes_back(lengths, blocks, max_rows, order):
    prompts = {kind: tuple(range(kind, kind + 33)) for kind in (1, 2)}
    waiting = [
        request(index, length, most, prompts.get(kind)) for index, (length, most, kind) in enumerate(lengths)
    ]
    allocator = BlockAllocator(blocks)
    scheduler = Scheduler(waiting, allocator, max_rows)
    active, seen = [], []
    while admitted := scheduler.admit() or active:
        if admitted is not active:
            active += admitted
            seen += [admission.request.index for admission in admitted]
        assert len(active) <= max_rows
        own = [block for each in active for block in each.blocks[len(each.request.prefix) // BLOCK_SIZE :]]
        assert len(set(own)) == len(own)  # what a row writes is its own
        if admitted is not active:
            for copying in (each for each in admitted if each.copied is not None):
                others = [each for each in admitted if each.request.prompt != copying.request.prompt]
                assert all(copying.copied not in each.blocks for each in others)
        scheduler.finish(active.pop(order.randrange(len(active))).blocks)
    assert seen == list(range(len(lengths)))
    assert allocator.free == blocks - 1
