"""The disk tier's worker as its own adversary: work is done as late, and in as many pieces, as a seed says.

The order that the tier asked for is kept, as by its one thread. What must not be touched meanwhile is watched: a buffer
that is being read into is poisoned and has to stay so, one that is being written has to keep its bytes.
"""

from __future__ import annotations

from collections import deque
from concurrent.futures import Future
from random import Random
from typing import Any

import pytest
import torch

from fastrlhf.memory import disk
from fastrlhf.memory.disk import memory_of

POISON = 0xFF  # bytes of a NaN


class TouchedError(AssertionError):
    """Memory was used while the disk was using it."""


class ScheduledWorker:
    """In place of a `ThreadPoolExecutor` with one thread."""

    def __init__(self, random: Random):
        self._random = random
        self._queue: deque[tuple[Job, Any]] = deque()

    def submit(self, run, call, done: str, tensor: torch.Tensor, offset: int) -> Job:
        job = Job(self)
        memory = memory_of(tensor)
        if done == "read":
            memory[:] = bytes([POISON]) * memory.nbytes
        before = bytes(memory)

        def work() -> None:
            if bytes(memory) != before:
                raise TouchedError(f"memory was touched before it was {done}")
            run(call, done, tensor, offset)

        self._queue.append((job, work))
        self.some()
        return job

    def some(self) -> None:
        """The disk has had time for some of what it was given."""
        for _ in range(self._random.choice((0, 0, 1, 3))):
            if self._queue:
                self._next()

    def until(self, job: Job) -> None:
        while not Future.done(job):
            self._next()

    def shutdown(self, wait: bool) -> None:
        while self._queue:
            self._next()

    def _next(self) -> None:
        job, work = self._queue.popleft()
        try:
            job.set_result(work())
        except TouchedError:
            raise  # at once: nobody may ever ask for this job's result
        except BaseException as error:
            job.set_exception(error)


class Job(Future):
    """What the worker was given; whoever waits for it has it done."""

    def __init__(self, worker: ScheduledWorker):
        super().__init__()
        self._worker = worker

    def done(self) -> bool:
        self._worker.some()
        return super().done()

    def result(self, timeout: float | None = None) -> None:
        self._worker.until(self)
        return super().result(timeout)


def schedule_disk(monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    """Disk tiers that are made from now on work by this seed."""
    random = Random(seed)
    monkeypatch.setattr(disk, "ThreadPoolExecutor", lambda *args, **named: ScheduledWorker(random))
