"""The books of a simulated device: who holds its memory, what it ran, what crossed, and when the host waited."""

from __future__ import annotations

import functools
import weakref
from collections import Counter, deque
from collections.abc import Iterator
from contextlib import contextmanager
from math import inf

import torch

from fastrlhf.device.holdings import Holdings, Piece
from fastrlhf.device.observe import Cost, reason_to_wait
from fastrlhf.device.pinned import Pinned
from fastrlhf.device.profiles import Profile
from fastrlhf.device.streams import Streams
from fastrlhf.device.timeline import TO_DEVICE, TO_HOST, Timeline

POISON = 0xFF  # bytes of all ones are NaN in every float type, and -1 in every integer type
_refused: deque[int] = deque(maxlen=8)  # the last backward passes that ended, or will, with an error


class HostWaitError(RuntimeError):
    """Inside a step the host waited for the device, where no reason to was given."""


class UseAfterFreeError(RuntimeError):
    """An operation touched memory that was given back."""


def refuse(error: RuntimeError) -> None:
    """Raise `error`; in a backward only at its end (PyTorch's guard of a foreign device's stream dies of it before)."""
    task = torch._C._current_graph_task_id()
    if task == -1:
        raise error
    if task not in _refused:
        _refused.append(task)
        torch.autograd.Variable._execution_engine.queue_callback(functools.partial(_raise, error))


def _raise(error: RuntimeError) -> None:
    raise error


class Allocation:
    """What tensors that share a piece of memory share. The piece counts until the last is gone or it is given back."""

    def __init__(self, piece: Piece, stream: object):
        self.piece = piece
        self.freed = False
        # those whose work the allocator waits for before it gives the memory to another
        self.streams = {stream}
        self.release: weakref.finalize


class Ledger:
    """Counts for one device; sizes in bytes.

    Attributes:
        capacity: bytes that fit.
        holdings: who holds the memory.
        backward_holder: who holds what a backward allocates where no label does; None: the operation that made it.
        to_device, to_host: bytes that crossed.
        launches: kernels by name (views and copies are none). cost: what they had to read, write and compute.
        waits: how often the host waited, by reason (or by operation, where none was given).
        poison: whether fresh and freed memory is filled with NaN.
        values: whether anything is computed (see `without_values`).
        pinned: the memory of the host that is pinned for this device.
        timeline: when all of it would happen on the card of a profile, or None where there is none.
    """

    def __init__(
        self,
        capacity: float = inf,
        poison: bool = True,
        profile: Profile | None = None,
        values: bool = True,
    ):
        self.capacity, self.poison, self.values = capacity, poison and values, values
        self.pinned = Pinned()
        self.timeline = Timeline(profile) if profile else None
        self.holdings = Holdings()
        self.backward_holder: str | None = None
        self._allocations: weakref.WeakValueDictionary[int, Allocation] = weakref.WeakValueDictionary()
        self._labels: list[str] = []
        self._steps = 0
        self.streams = Streams(self.wait)
        self.reset()

    def reset(self) -> None:
        """Start counting again; what is held stays held."""
        self.holdings.restart()
        self.to_device = self.to_host = 0
        self.launches: Counter[str] = Counter()
        self.cost = Cost()
        self.waits: Counter[str] = Counter()
        if self.timeline:
            self.timeline.reset()

    # Memory

    @property
    def live(self) -> int:
        """Bytes held now."""
        return self.holdings.live

    @property
    def peak(self) -> int:
        """The most bytes held at once."""
        return self.holdings.peak

    @property
    def holders(self) -> Counter[str]:
        """Bytes held now, by holder."""
        return self.holdings.holders

    @property
    def at_peak(self) -> Counter[str]:
        """Bytes held at the peak, by holder."""
        return self.holdings.at_peak

    def allocation(self, storage: torch.UntypedStorage, maker: str, stream: object) -> Allocation:
        """The allocation that `storage` is, made on `stream` by `maker` if it is new."""
        known = self._allocations.get(storage._cdata)
        if known is not None:
            self._book(known.piece, maker)  # `resize_` has perhaps made it larger
            return known
        piece = Piece(storage, self._holder(maker))
        self._book(piece, maker)
        made = Allocation(piece, stream)
        self._allocations[storage._cdata] = made
        made.release = weakref.finalize(made, self._release, piece)
        made.release.atexit = False
        return made

    def _book(self, piece: Piece, maker: str) -> None:
        more = piece.storage.nbytes() - piece.booked
        if self.live + more > self.capacity:
            refuse(torch.OutOfMemoryError(self._out_of_memory(more, maker)))
        self.holdings.book(piece, piece.storage.nbytes())

    def _holder(self, maker: str) -> str:
        if self._labels:
            return self._labels[-1]
        in_backward = torch._C._current_graph_task_id() != -1
        return self.backward_holder or maker if in_backward else maker

    def free(self, allocation: Allocation) -> None:
        """Give memory back although tensors are left: whoever touches it gets an error."""
        allocation.freed = True
        allocation.release()

    def _release(self, piece: Piece) -> None:
        self.holdings.drop(piece)
        if self.poison:
            piece.storage.fill_(POISON)

    def _out_of_memory(self, size: int, maker: str) -> str:
        pieces = Counter(piece.holder for piece in self.holdings.pieces)
        held = ", ".join(
            f"{megabytes(total)} by {holder} ({pieces[holder]})"
            for holder, total in self.holders.most_common(8)
        )
        return (
            f"sim:0 is out of memory: {maker} asks for {megabytes(size)}, and of {megabytes(self.capacity)} "
            f"{megabytes(self.capacity - self.live)} are free. Held: {held or 'nothing'}"
        )

    @contextmanager
    def label(self, name: str) -> Iterator[None]:
        """What is allocated in the block is held by `name`, in messages and in `holders`; within another label, by
        both."""
        self.enter(" / ".join((*self._labels[-1:], name)))
        try:
            yield
        finally:
            self.leave()

    def enter(self, holder: str) -> None:
        """Until `leave`, what is allocated is held by `holder`, whatever label this is within."""
        self._labels.append(holder)

    def leave(self) -> None:
        """The end of what `enter` began."""
        self._labels.pop()

    # Work

    def kernel(self, name: str, cost: Cost, dtype: torch.dtype, tf32: bool = False) -> None:
        """One launch on the current stream.

        Args:
            dtype: what it computes in; tf32: whether it may round float32 to it.
        """
        self.launches[name] += 1
        self.cost = Cost(*(total + one for total, one in zip(self.cost, cost, strict=True)))
        if self.timeline:
            rate = self.timeline.profile.rate(dtype, tf32)
            self.timeline.kernel(self.streams.current, name, cost.read + cost.written, cost.flops, rate)

    def copy(self, size: int, *, to_device: bool, pinned: bool, blocking: bool) -> None:
        """A copy between the host and the device on the current stream; the host's end is `pinned` or not."""
        if to_device:
            self.to_device += size
        else:
            self.to_host += size
        if self.timeline:
            lane = TO_DEVICE if to_device else TO_HOST
            self.timeline.copy(self.streams.current, lane, size, pinned=pinned, blocking=blocking)

    def host_work(self, name: str, cost: Cost) -> None:
        """One of our operations ran on tensors of the host."""
        if self.timeline:
            self.timeline.host_work(name, cost.read + cost.written)

    # The host

    @contextmanager
    def step(self) -> Iterator[None]:
        """A block in which the host must not wait for the device, but where `observe.host_waits` gives a reason."""
        self._steps += 1
        try:
            yield
        finally:
            self._steps -= 1

    def wait(self, operation: str, until: float = 0.0) -> None:
        """The host waits for the device, in `operation`, until a time on the clock of the timeline."""
        reason = reason_to_wait()
        if reason is None and self._steps:
            refuse(
                HostWaitError(
                    f"{operation} makes the host wait for sim:0 inside a step; keep the value on the device, or name "
                    "the reason with fastrlhf.device.observe.host_waits"
                )
            )
        self.waits[reason or operation] += 1
        if self.timeline:
            self.timeline.host_waits(until)

    def wait_for_stream(self) -> None:
        """The host goes on when the current stream is done: the end of a wait that `wait` counted."""
        if self.timeline:
            self.timeline.host_waits(self.streams.current.ready)


def megabytes(size: float) -> str:
    """A size for a message, in MB (10^6 bytes)."""
    return f"{size / 1e6:.3g} MB"
