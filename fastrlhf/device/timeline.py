"""The simulated device's clock: when each kernel and copy would run on a card, and who waits for whom.

Nothing here takes real time. There is a clock for each thread of the host, one for each stream (`Stream.ready`, when
all that it was given is done), and one for each of the three engines of a card: kernels, copies to the device, and
copies to the host. Work starts when the host has asked for it, its stream has come to it, and its engine is free.
Events and waits carry times from one clock to another, so that it shows what overlaps and what stalls.
"""

from __future__ import annotations

import threading
from collections import Counter
from typing import NamedTuple

from fastrlhf.device.profiles import Profile
from fastrlhf.device.streams import Stream

COMPUTE, TO_DEVICE, TO_HOST, HOST = "compute", "to device", "to host", "host"
ENGINES = (COMPUTE, TO_DEVICE, TO_HOST)

# A copy from pageable memory of up to this size is staged at once, and the host goes on
# (CUDA runtime, "API synchronization behavior").
STAGED = 64 * 1024


class Interval(NamedTuple):
    """Something that took time; seconds since the last reset."""

    lane: str
    name: str
    start: float
    end: float


class Timeline:
    """Clocks for one device.

    Attributes:
        profile: the card.
        intervals: all that ran, in the order in which it was asked for.
        busy: seconds that each engine, and the host in our kernels on its own memory, worked.
        stalled: seconds that kernels did not run because a copy had not come, or the host was waiting for one.
        idle: seconds that they did not run because the host had not asked yet.
    """

    def __init__(self, profile: Profile):
        self.profile = profile
        self._engines = dict.fromkeys(ENGINES, 0.0)
        self._hosts: dict[int, float] = {}
        self._waits: dict[int, list[tuple[float, float]]] = {}
        self.reset()

    def reset(self) -> None:
        """Start counting again, with nothing under way."""
        self._origin = max(*self._engines.values(), *self._hosts.values(), 0.0)
        self._engines = dict.fromkeys(ENGINES, self._origin)
        self._hosts.clear()
        self._waits.clear()
        self.intervals: list[Interval] = []
        self.busy: Counter[str] = Counter()
        self.stalled = self.idle = 0.0

    @property
    def seconds(self) -> float:
        """From the last reset until all is done."""
        return max(*self._engines.values(), *self._hosts.values(), self._origin) - self._origin

    @property
    def now(self) -> float:
        """The clock of this thread of the host. A thread that nobody has seen starts where the last one is."""
        me = threading.get_ident()
        if me not in self._hosts:
            self._hosts[me] = max(self._hosts.values(), default=self._origin)
        return self._hosts[me]

    def advance(self, until: float) -> None:
        """This thread goes on no sooner than `until`, such as the `now` of the one that gave it its work."""
        self._hosts[threading.get_ident()] = max(self.now, until)

    # Work

    def kernel(self, stream: Stream, name: str, size: int, operations: int, rate: float) -> None:
        """A kernel that moves `size` bytes and does `operations` at `rate` a second."""
        asked, free = self._issue(), self._engines[COMPUTE]
        start = max(asked, free, stream.ready)
        self._account_for_gap(free, asked, start)
        seconds = max(size / self.profile.bandwidth, operations / rate)
        self._run(COMPUTE, name, start, start + self.profile.kernel_start + seconds, stream)

    def copy(self, stream: Stream, lane: str, size: int, *, pinned: bool, blocking: bool) -> None:
        """A copy over the link; the host waits if it asks for that, or where the memory is pageable."""
        asked = self._issue()
        speed = self.profile.to_device if lane == TO_DEVICE else self.profile.to_host
        seconds = size / (speed if pinned else speed * self.profile.pageable_share)
        start = max(asked, self._engines[lane], stream.ready)
        self._run(lane, f"{size:,} bytes", start, start + seconds, stream)
        staged = lane == TO_DEVICE and size <= STAGED
        if blocking or not (pinned or staged):
            self.host_waits(stream.ready)

    def host_work(self, name: str, size: int) -> None:
        """One of our kernels on the host, in this thread, on memory of its own; as fast as that is."""
        start = self.now
        self._hosts[threading.get_ident()] = start + size / self.profile.host_bandwidth
        self._note(HOST, name, start, self.now)

    def host_waits(self, until: float) -> None:
        """This thread waits."""
        if until > self.now:
            self._waits.setdefault(threading.get_ident(), []).append((self.now, until))
            self.advance(until)

    def _issue(self) -> float:
        self._hosts[threading.get_ident()] = self.now + self.profile.host_issue
        return self.now

    def _run(self, lane: str, name: str, start: float, end: float, stream: Stream) -> None:
        self._engines[lane] = stream.ready = end
        self._note(lane, name, start, end)

    def _note(self, lane: str, name: str, start: float, end: float) -> None:
        self.busy[lane] += end - start
        self.intervals.append(Interval(lane, name, start - self._origin, end - self._origin))

    def _account_for_gap(self, free: float, asked: float, start: float) -> None:
        """Kernels rest from `free` to `start`. Kernels run one after another, so what holds a stream up beyond that is
        a copy; and where the host held it up, it was waiting (for a copy, since no kernel ran) or busy."""
        held_up = start - max(asked, free)
        waits = self._waits.pop(threading.get_ident(), [])
        waited = sum(max(0.0, end - max(begin, free)) for begin, end in waits)
        self.stalled += held_up + waited
        self.idle += max(0.0, start - free - held_up - waited)
