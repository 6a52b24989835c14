"""Who leaves, and where each piece has its home: numbers alone."""

from __future__ import annotations

from math import inf

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastrlhf.memory.meter import CapacityError
from fastrlhf.memory.placement import (
    AutoPlacement,
    Capacities,
    ChunkSizes,
    Piece,
    StaticPlacement,
    Trace,
    plan_homes,
)

STEPS = st.lists(st.lists(st.integers(0, 6), min_size=1, max_size=3).map(tuple), min_size=1, max_size=20)


@given(STEPS, st.integers(0, 40))
def test_a_repeated_step_is_foreseen(step, uses):
    """Against looking through the whole step, from any place in it."""
    trace = Trace()
    for use in step:
        trace.use(use)
    trace.end_step()
    done = [step[i % len(step)] for i in range(uses)]
    for use in done:
        trace.use(use)
    place = len(done) % len(step)
    ahead = step[place:] + step[:place]
    for key in range(7):
        assert trace.distance(key) == next((i for i, use in enumerate(ahead) if key in use), inf)
    assert list(trace.upcoming(4)) == [(i, key) for i, use in enumerate(ahead[:4]) for key in use]


def test_the_place_is_found_again_after_something_else():
    trace = Trace()
    for use in "abcdabe":
        trace.use((use,))
    trace.end_step()
    trace.use(("c",))  # the step begins in the middle
    assert trace.distance("d") == 0
    trace.use(("x",))  # unknown: nothing is learnt from it
    assert trace.distance("d") == 0
    for use in "dab":
        trace.use((use,))
    assert trace.distance("e") == 0 and trace.distance("x") == inf


def test_the_last_step_is_what_counts():
    trace = Trace()
    for step in ("ab", "cd"):
        for use in step:
            trace.use((use,))
        trace.end_step()
    trace.end_step()  # an empty one changes nothing
    assert trace.distance("a") == inf and trace.distance("d") == 1


def simulate(uses, capacity, victim, used=lambda key: None):
    """How many pieces are brought by a cache of `capacity` whose victim a function names."""
    here, brought = set(), 0
    for place, key in enumerate(uses):
        if key not in here:
            brought += 1
            if len(here) == capacity:
                here.remove(victim(sorted(here), uses[place:]))
            here.add(key)
        used(key)
    return brought


@given(st.integers(3, 12), st.integers(2, 6))
def test_what_is_needed_furthest_in_the_future_leaves_first(layers, capacity):
    """Forward and backward, again and again: as few are brought as by who knows the future, no more than by LRU."""
    step = [*range(layers), *reversed(range(layers))]
    trace = Trace()
    for key in step:
        trace.use((key,))
    trace.end_step()
    uses = step * 3

    def oracle(here, future):
        return max(here, key=lambda key: future.index(key) if key in future else inf)

    def foreseen(here, future):
        return max(here, key=trace.distance)

    brought = simulate(uses, capacity, foreseen, lambda key: trace.use((key,)))
    assert brought <= simulate(uses, capacity, oracle) + capacity  # the oracle knows that a last step follows
    recent: list[int] = []
    lru = simulate(
        uses, capacity, lambda here, _: min(here, key=lambda key: rindex(recent, key)), recent.append
    )
    assert brought <= lru


def rindex(items, item):
    return len(items) - items[::-1].index(item)


CHUNKS = [ChunkSizes(10, 10, 20)] * 4 + [ChunkSizes(30)]
SETS = [(f"layer {i}", {Piece(i, "parameters"), Piece(i, "gradients")}) for i in range(4)]
SETS.append(("frozen", {Piece(4, "parameters")}))


def held(homes, tier):
    return sum(CHUNKS[piece.chunk].size(piece) for piece, place in homes.items() if place == tier)


def test_all_stays_where_all_fits():
    homes = plan_homes(CHUNKS, AutoPlacement(), Capacities(190), SETS)
    assert set(homes.values()) == {"device"} and held(homes, "device") == 190


def test_without_room_for_all_parameters_nothing_is_nailed_down():
    homes = plan_homes(CHUNKS, AutoPlacement(), Capacities(60, 200), SETS)
    assert set(homes.values()) == {"host"}


def test_room_beyond_the_parameters_keeps_whole_chunks():
    homes = plan_homes(CHUNKS, AutoPlacement(), Capacities(170, 200), SETS)
    assert {piece.chunk for piece, tier in homes.items() if tier == "device"} == {0, 1}


def test_parameters_have_the_first_claim_to_the_host():
    homes = plan_homes(CHUNKS, AutoPlacement(), Capacities(50, 80, inf), SETS)
    assert {piece.role for piece, tier in homes.items() if tier == "host"} == {"parameters", "gradients"}
    assert held(homes, "host") == 80 and held(homes, "disk") == 110


def test_the_buffers_of_the_disk_count_against_the_host():
    homes = plan_homes(CHUNKS, AutoPlacement(), Capacities(50, 160, inf, buffers=4), SETS)
    assert held(homes, "host") == 40  # 4 buffers of 30
    with pytest.raises(CapacityError, match=r"\(30 bytes\) more are needed"):
        plan_homes(CHUNKS, AutoPlacement(), Capacities(50, 90, inf, buffers=4), SETS)


def test_static_fractions():
    homes = plan_homes(CHUNKS, StaticPlacement(0.6, 0.2), Capacities(120, inf), SETS)
    stays = sorted(piece for piece, tier in homes.items() if tier == "device")
    assert stays == [
        (0, "gradients"),
        (0, "optimizer"),
        (0, "parameters"),
        (1, "parameters"),
        (2, "parameters"),
    ]
    for wrong in ((0.2, 0.3), (1.1, 0), (0.5, -0.1)):
        with pytest.raises(ValueError, match="placement"):
            StaticPlacement(*wrong)


def test_too_little_is_refused_with_the_number_that_would_do():
    with pytest.raises(CapacityError, match=r"device_memory is 29 B, but frozen needs 30 B \(30 bytes\)"):
        plan_homes(CHUNKS, AutoPlacement(), Capacities(29, inf), SETS)
    with pytest.raises(CapacityError, match=r"update of chunk . needs 90 B .*, 60 B of it"):
        plan_homes(CHUNKS, StaticPlacement(0.6, 0.2), Capacities(89, inf), SETS)
    with pytest.raises(CapacityError, match=r"190 B \(190 bytes\) have no place .* 90 B \(90 bytes\) more"):
        plan_homes(CHUNKS, AutoPlacement(), Capacities(50, 60, 40), SETS)


@given(
    st.lists(st.tuples(st.integers(1, 30), st.integers(0, 30), st.integers(0, 60)), min_size=1, max_size=8),
    st.integers(1, 400),
    st.integers(0, 400),
    st.integers(0, 400),
    st.sampled_from([AutoPlacement(), StaticPlacement(), StaticPlacement(0.5, 0.25)]),
)
def test_homes_are_within_their_tiers_or_refused(sizes, device, host, disk, placement):
    chunks = [ChunkSizes(*size) for size in sizes]
    sets = [(str(i), {p for p in c.pieces(i) if p.role != "optimizer"}) for i, c in enumerate(chunks)]
    capacities = Capacities(device, host, disk, buffers=2)
    try:
        homes = plan_homes(chunks, placement, capacities, sets)
    except CapacityError:
        return
    assert set(homes) == {piece for i, chunk in enumerate(chunks) for piece in chunk.pieces(i)}
    used = {
        tier: [chunks[p.chunk].size(p) for p, place in homes.items() if place == tier]
        for tier in ("device", "host", "disk")
    }
    kept = {piece for piece, tier in homes.items() if tier == "device"}
    extra = max(sum(chunks[p.chunk].size(p) for p in pieces - kept) for _, pieces in sets)
    assert sum(used["device"]) + extra <= device
    buffers = 2 * max(used["disk"], default=0)
    assert sum(used["host"]) + buffers <= host or not (used["host"] or buffers)
    assert sum(used["disk"]) <= disk
