"""Who takes part in a benchmark: plain PyTorch, compiled by torch.compile, peers by name, and our backends."""

from __future__ import annotations

from collections.abc import Callable
from time import perf_counter
from typing import Any, NamedTuple

import torch

from fastrlhf.device.observe import Cost, Kernel, observing

# Its threads wait busily, as PyTorch's do: in one process the two slow each other down, so it runs in a process alone.
ALONE = ("OpenBLAS",)
_CPU_ONLY = ("OpenBLAS", "int8pack", "oneDNN")


class Others(NamedTuple):
    """Who takes part beside our backends.

    Attributes:
        peers: named by the keyword arguments of `measure`.
        compiled: torch.compile of the plain computation; False where it hands the work to the same library.
        reference: our reference; False where it computes what the plain way does and takes many seconds.
    """

    peers: tuple[str, ...] = ()
    compiled: bool = True
    reference: bool = True


def beside(*peers: str, compiled: bool = True, reference: bool = True) -> Callable[[Callable], Callable]:
    """Decorates a benchmark that is compared with more, or less, than plain PyTorch and torch.compile."""

    def mark(function: Callable) -> Callable:
        function.others = Others(peers, compiled, reference)
        return function

    return mark


def others_of(function: Callable) -> Others:
    """Who takes part in a benchmark beside our backends."""
    return getattr(function, "others", Others())


def names(others: Others, *, alone: bool, compiled: bool) -> list[str]:
    """The contenders that are not our backends, of those that run alone or of the rest."""
    peers = [peer for peer in others.peers if not (peer in _CPU_ONLY and torch.cuda.is_available())]
    if alone:
        return [peer for peer in peers if peer in ALONE]
    mine = ["eager", "compiled"] if compiled and others.compiled else ["eager"]
    return mine + [peer for peer in peers if peer not in ALONE]


def cost_of(function: Callable[[], Any]) -> Cost:
    """What the operations that `function` calls declare to read, write and compute, backward included."""
    total = Cost()

    def watch(kernel: Kernel, args: tuple[Any, ...]) -> Any:
        nonlocal total
        total = Cost(*(sum(pair) for pair in zip(total, kernel.cost(*args), strict=True)))
        return kernel.run(*args)

    with observing(watch):
        function()
    return total


def read_gbps(device: str, megabytes: int = 512, rounds: int = 7) -> float:
    """How fast the memory is read, in GB/s (10^9 bytes): the best of several sums of a tensor beyond every cache."""
    numbers = torch.ones(megabytes * 1_000_000 // 4, device=device)
    best = float("inf")
    for _ in range(rounds):
        start = perf_counter()
        numbers.sum().item()
        best = min(best, perf_counter() - start)
    return numbers.nbytes / best / 1e9
