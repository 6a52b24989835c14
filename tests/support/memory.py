"""How many bytes a function allocates through PyTorch's allocators, whoever asks for them."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import accumulate
from typing import Any, NamedTuple

import torch
from torch.profiler import ProfilerActivity, profile


class Allocations(NamedTuple):
    """What `allocations` returns, in bytes."""

    largest: int
    peak: int
    kept: int


def allocations(function: Callable[[], Any]) -> Allocations:
    """Run `function`; measure its largest allocation, the most it held at once, and what its result keeps."""
    # named, since all that PyTorch supports would ask for the simulated device too
    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * torch.cuda.is_available()
    with without_collection(), profile(activities=activities, profile_memory=True) as prof:
        kept = function()
    # Not `prof.events()`: it hangs each allocation on its operation and keeps those made outside of one only.
    events = [event for event in prof.profiler.kineto_results.events() if event.name() == "[memory]"]
    sizes = [event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())]
    del kept
    return Allocations(max(sizes, default=0), max(accumulate(sizes), default=0), sum(sizes))


@contextmanager
def without_collection() -> Iterator[None]:
    """Python's collector at rest: it would free an earlier test's tensors, which the measured function never had."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
