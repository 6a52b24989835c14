"""Streams and events of the simulated device, adversarial: a copy lands as late as the rules allow.

A kernel is computed at once. A non-blocking copy only joins its stream's queue, and its destination is poisoned. It
lands before the next kernel of its own stream, or at a wait for an event that was recorded after it; a reader that
waits for neither sees poison, as it could on a GPU.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager

# Called when the host waits, with what it waits in and the time until which it does.
OnWait = Callable[[str, float], None]


class Stream:
    """A queue of copies that are under way; the names are those of `torch.cuda.Stream`.

    Args:
        on_wait: called when the host waits for the stream.

    Attributes:
        ready: when all that the stream was given is done, on the clock of the timeline (0 where there is none).
    """

    def __init__(self, on_wait: OnWait):
        self.on_wait = on_wait
        self.ready = 0.0
        self._copies: deque[Callable[[], None]] = deque()
        self.landed = 0

    def enqueue(self, copy: Callable[[], None]) -> None:
        """A copy begins."""
        self._copies.append(copy)

    @property
    def enqueued(self) -> int:
        """Copies begun so far."""
        return self.landed + len(self._copies)

    def land(self, first: int | None = None) -> None:
        """Let the `first` copies ever begun (all of them if None) arrive."""
        until = self.enqueued if first is None else first
        while self.landed < until:
            self.landed += 1
            self._copies.popleft()()

    def record_event(self, event: Event) -> Event:
        """Mark the place after what is in the queue now."""
        event.record(self)
        return event

    def wait_event(self, event: Event) -> None:
        """What this stream does next comes after the event. The host does not wait."""
        event.land()
        self.ready = max(self.ready, event.time)

    def wait_stream(self, stream: Stream) -> None:
        """What this stream does next comes after all that is in `stream` now."""
        stream.land()
        self.ready = max(self.ready, stream.ready)

    def synchronize(self) -> None:
        """The host waits for all that is in the queue."""
        self.on_wait("Stream.synchronize", self.ready)
        self.land()

    def query(self) -> bool:
        """Whether the queue is empty; copies land late, so it is only after a wait."""
        return not self._copies


class Event:
    """A place in a stream's queue; the names are those of `torch.cuda.Event`.

    Args:
        streams: whose current stream is meant where none is named.

    Attributes:
        time: when what was recorded is done, on the clock of the timeline.
    """

    def __init__(self, streams: Streams):
        self._streams = streams
        self._stream: Stream | None = None
        self._after = 0
        self.time = 0.0

    def record(self, stream: Stream | None = None) -> None:
        """Mark the place after what is in the queue of `stream` (the current one if None) now."""
        self._stream = stream or self._streams.current
        self._after = self._stream.enqueued
        self.time = self._stream.ready

    def land(self) -> None:
        """Let all that was recorded arrive; an event that was never recorded has nothing to wait for."""
        if self._stream is not None:
            self._stream.land(self._after)

    def wait(self, stream: Stream | None = None) -> None:
        """What `stream` (the current one if None) does next comes after this event."""
        (stream or self._streams.current).wait_event(self)

    def synchronize(self) -> None:
        """The host waits for this event."""
        if self._stream is not None:
            self._stream.on_wait("Event.synchronize", self.time)
        self.land()

    def elapsed_time(self, later: Event) -> float:
        """Milliseconds on the clock of the timeline from this event to `later`."""
        return 1e3 * (later.time - self.time)

    def query(self) -> bool:
        """Whether all that was recorded has arrived."""
        return self._stream is None or self._stream.landed >= self._after


class Streams:
    """The streams of a device: the one that is current, and all those that a wait for the device waits for."""

    def __init__(self, on_wait: OnWait):
        self._on_wait = on_wait
        self._all: list[Stream] = []
        self._stack = [self.new()]

    def new(self) -> Stream:
        """Another stream."""
        stream = Stream(self._on_wait)
        self._all.append(stream)
        return stream

    @property
    def current(self) -> Stream:
        """Where work goes now (of the process: autograd's thread works on the stream of the forward)."""
        return self._stack[-1]

    @contextmanager
    def using(self, stream: Stream | None) -> Iterator[None]:
        """In the block work goes to `stream` (None changes nothing)."""
        self._stack.append(stream or self.current)
        try:
            yield
        finally:
            self._stack.pop()

    def synchronize(self) -> None:
        """The host waits for everything."""
        self._on_wait("synchronize", max(stream.ready for stream in self._all))
        for stream in self._all:
            stream.land()
