"""The books of who holds memory, now and at the peak."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from fastrlhf.device.holdings import Holdings, Piece, by_kind


def piece(holder: str) -> Piece:
    return Piece(torch.UntypedStorage(0), holder)


def test_the_peak_is_named_as_its_pieces_are_named_when_it_is_read():
    held, gradient, weight = Holdings(), piece("aten::mm"), piece("weight")
    held.book(weight, 2)
    held.book(gradient, 3)
    held.drop(gradient)
    gradient.holder = "gradients / layer"
    assert held.at_peak == {"weight": 2, "gradients / layer": 3}
    assert held.holders == {"weight": 2}


def test_what_came_later_is_not_of_the_peak():
    held, first, later = Holdings(), piece("first"), piece("later")
    held.book(first, 5)
    held.book(first, 1)
    held.book(later, 3)
    assert (held.peak, held.at_peak, held.holders) == (5, {"first": 5}, {"first": 1, "later": 3})
    held.restart()
    assert (held.peak, held.at_peak) == (4, {"first": 1, "later": 3})


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 9)), max_size=40))
def test_the_holders_sum_up_to_the_peak_whatever_happens(changes):
    held, pieces, sizes = Holdings(), [piece(str(number)) for number in range(5)], [0] * 5
    peak, then = 0, {}
    for number, size in changes:
        held.book(pieces[number], size)
        sizes[number] = size
        if sum(sizes) > peak:
            peak, then = sum(sizes), {str(n): size for n, size in enumerate(sizes) if size}
    assert held.live == sum(sizes)
    assert held.peak == peak and held.at_peak == then


def test_kinds_are_the_first_part_of_a_name():
    holders = {"gradients / a": 1, "gradients / b": 2, "cache": 3, "aten::mm [2]": 4, "cached / a": 5}
    assert by_kind(holders) == {"gradients": 3, "cache": 3, "other": 9}
