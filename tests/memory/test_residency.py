"""Pieces that come and go in any order: against a dictionary that never moves anything."""

from __future__ import annotations

from concurrent.futures import Future

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fastrlhf.memory.buffers import MappedBuffer, ResizedBuffer
from fastrlhf.memory.copies import Copier
from fastrlhf.memory.disk import TierError
from fastrlhf.memory.meter import CapacityError, Meter
from fastrlhf.memory.placement import AutoPlacement, Piece, StaticPlacement
from fastrlhf.memory.residency import Residency, Resident, Use
from fastrlhf.memory.resident import resident_mb
from fastrlhf.memory.tiers import DiskTier, FileTicket, HostHome

SIZES = [4, 4, 8, 4, 12, 4, 8]
CAPACITY = 4 * 32  # the largest that stays, and two in use
CPU = torch.device("cpu")


class LateHome:
    """A home whose copies are made as late as is allowed: when they are waited for."""

    def __init__(self, numel):
        self.meter = Meter("late")
        self.held = torch.zeros(numel)
        self.queue = []

    def load(self, flat):
        flat.fill_(torch.nan)
        return self.later(lambda: flat.copy_(self.held))

    def store(self, flat):
        return self.later(lambda: self.held.copy_(flat))

    def later(self, copy):
        ticket = LateTicket(self)
        self.queue.append((ticket, copy))
        return ticket

    def land(self, ticket):
        while self.queue and not ticket.done:
            first, copy = self.queue.pop(0)
            copy()
            first.done = True


class LateTicket:
    def __init__(self, home):
        self.home, self.done = home, False

    def wait(self):
        self.home.land(self)

    synchronize = wait


OPERATIONS = st.lists(
    st.tuples(
        st.lists(st.integers(0, len(SIZES) - 1), min_size=1, max_size=2, unique=True),
        st.sampled_from(["read", "write", "fresh", "discard", "step", "nested"]),
    ),
    max_size=60,
)


@settings(deadline=None, max_examples=200)
@given(OPERATIONS, st.integers(0, 3), st.booleans(), st.sets(st.integers(0, 6), max_size=1))
def test_every_use_finds_what_was_last_written(operations, prefetch, static, staying):
    residency = Residency(
        StaticPlacement() if static else AutoPlacement(), Meter("device", CAPACITY), prefetch
    )
    pieces = [
        residency.add(
            Resident(
                Piece(i, "parameters"),
                ResizedBuffer(torch.zeros(size)),
                None if i in staying else LateHome(size),
            )
        )
        for i, size in enumerate(SIZES)
    ]
    expected = {piece.key: 0.0 for piece in pieces}
    for value, (chosen, operation) in enumerate(operations, start=1):
        used = [pieces[i] for i in chosen]
        if operation == "discard":
            # what was written is at home or lost: here all of it is sent home when it is released
            residency.discard(used)
            continue
        if operation == "step":
            residency.end_step()
            continue
        writes = operation in ("write", "fresh")
        with residency.using([Use(piece, writes, operation == "fresh") for piece in used]):
            if operation == "nested":
                with residency.using([Use(used[0])]):
                    pass
            for piece in used:
                if writes:
                    piece.flat.fill_(value)
                    expected[piece.key] = value
                assert (piece.flat == expected[piece.key]).all()
        assert residency.meter.held <= CAPACITY
        here = sum(piece.nbytes for piece in pieces if piece.here)
        assert here == residency.meter.held
        assert all(piece.flat.untyped_storage().nbytes() == piece.nbytes * piece.here for piece in pieces)
    residency.settle()
    for piece in pieces:
        held = piece.flat if piece.home is None else piece.home.held
        assert (held == expected[piece.key]).all()


def residency_of(homes, capacity=CAPACITY, prefetch=0):
    residency = Residency(AutoPlacement(), Meter("device", capacity), prefetch)
    return residency, [
        residency.add(Resident(Piece(i, "parameters"), ResizedBuffer(torch.zeros(4)), home))
        for i, home in enumerate(homes)
    ]


def test_what_is_needed_next_is_brought_while_something_else_is_used():
    residency, pieces = residency_of([LateHome(4) for _ in range(4)], capacity=32, prefetch=1)
    for _ in range(2):
        for piece in pieces:
            with residency.using([Use(piece)]):
                pass
        residency.end_step()
    with residency.using([Use(pieces[0])]):
        assert pieces[1].here and not pieces[2].here


def test_a_piece_that_is_used_never_leaves():
    residency, pieces = residency_of([LateHome(4) for _ in range(4)], capacity=32)
    residency.acquire([Use(pieces[0])])
    residency.acquire([Use(pieces[1])])
    with pytest.raises(CapacityError, match="16 B more do not fit"):
        residency.acquire([Use(pieces[2])])
    assert pieces[0].here and pieces[1].here


def test_after_a_failed_copy_nothing_is_used_any_more():
    class Fails(LateHome):
        def store(self, flat):
            raise TierError("the cable was pulled")

    residency, pieces = residency_of([Fails(4), LateHome(4)])
    with pytest.raises(TierError, match="cable"), residency.using([Use(pieces[0], writes=True)]):
        pass
    with pytest.raises(TierError, match="cable"):
        residency.acquire([Use(pieces[1])])


def test_a_copy_that_fails_in_the_middle_is_met_where_it_is_waited_for():
    class Broken(LateHome):
        def load(self, flat):
            failed: Future[None] = Future()
            failed.set_exception(TierError("half of it came"))
            return FileTicket(failed)

    residency, pieces = residency_of([Broken(4)])
    with pytest.raises(TierError, match="half"):
        residency.acquire([Use(pieces[0])])


def test_a_home_in_memory_and_a_home_on_the_disk_hold_what_they_are_given(tmp_path):
    host, copier = Meter("host", 1000), Copier(CPU)
    tier = DiskTier(tmp_path, copier, Meter("disk", 1000), host)
    homes = [tier.home(40), tier.home(80), HostHome(40, copier, host)]
    tier.open()
    sizes = [10, 20, 10]
    for home, size in zip(homes, sizes, strict=True):
        home.fill(torch.arange(size, dtype=torch.float32))
    for home, size in zip(homes, sizes, strict=True):
        flat = torch.empty(size)
        home.load(flat).wait()
        assert flat.tolist() == list(range(size))
        ticket = home.store(flat.neg_())
        ticket.synchronize()
        assert home.values(flat, 2, 5).tolist() == flat[2:7].tolist()
    tier.close()
    with pytest.raises(CapacityError, match="the disk tier"):
        tier.home(1000)


def test_a_buffer_gives_its_memory_back_and_its_views_stay():
    # (larger than what the C library keeps for itself)
    shape = (3, 4 << 20)
    for buffer in (MappedBuffer(shape, torch.float32), ResizedBuffer(torch.zeros(shape))):
        view = buffer.flat[1].view(2048, 2048).t()
        for value in (1.0, 2.0):
            buffer.flat.fill_(value)
            assert (view == value).all() and view.data_ptr() % 64 == 0
            before = resident_mb()
            buffer.give_back()
            assert resident_mb() < before - 0.9 * buffer.flat.nbytes / 1e6
            buffer.take()
    assert MappedBuffer((0,), torch.float32).flat.shape == (0,)
