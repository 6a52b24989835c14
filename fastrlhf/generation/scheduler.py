"""Which requests are in the batch: a row that ends makes room at once for the next that fits into the cache."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable
from dataclasses import dataclass

from fastrlhf.generation.cache import BLOCK_SIZE, BlockAllocator, blocks_of
from fastrlhf.generation.request import Request


@dataclass
class Admission:
    """A request that enters the batch, with the blocks of all positions that it can reach.

    Attributes:
        prefill: whether the keys and values of the prefix are still to be computed.
        copied: the block to copy where a prompt's blocks are shared and its last one is not full, else None.
    """

    request: Request
    blocks: list[int]
    prefill: bool
    copied: int | None = None


class Scheduler:
    """Admits requests in their order.

    Args:
        requests: those to come.
        allocator: of the cache's blocks.
        max_rows: the most rows of the batch.
    """

    def __init__(self, requests: Iterable[Request], allocator: BlockAllocator, max_rows: int):
        self.waiting = deque(requests)
        self.allocator = allocator
        self.max_rows = max_rows
        self.active = 0
        self._expected = Counter(request.prompt for request in self.waiting)
        # blocks with the keys and values of prompts that more requests wait for
        self._prompts: dict[tuple[int, ...], list[int]] = {}
        # of prompts that nobody waits for any more, but whose last block is still to be copied
        self._leaving: list[int] = []

    def admit(self) -> list[Admission]:
        """Those that enter now. What they are to copy stays until the next call."""
        self.allocator.release(self._leaving)
        self._leaving, admitted = [], []
        while self.waiting and self.active < self.max_rows:
            admission = self._admit(self.waiting[0])
            if admission is None:
                break
            self.waiting.popleft()
            self.active += 1
            admitted.append(admission)
        return admitted

    def finish(self, blocks: list[int]) -> None:
        """A row has ended and leaves its blocks."""
        self.allocator.release(blocks)
        self.active -= 1

    def _admit(self, request: Request) -> Admission | None:
        held = self._prompts.get(request.prompt, [])
        whole = held[: len(request.prefix) // BLOCK_SIZE]
        wanted = blocks_of(request.positions) - len(whole)
        if wanted > self.allocator.free and self.active == 0:
            self._forget_prompts(but=request.prompt)
        if wanted > self.allocator.free:
            return None
        blocks = whole + self.allocator.take(wanted)
        self.allocator.hold(whole)
        self._expected[request.prompt] -= 1
        if held:
            copied = held[-1] if len(held) > len(whole) else None
            admission = Admission(request, blocks, False, copied)
            if not self._expected[request.prompt]:
                self._leaving += self._prompts.pop(request.prompt)
            return admission
        if self._expected[request.prompt] and request.prefix:
            self._prompts[request.prompt] = blocks[: blocks_of(len(request.prefix))]
            self.allocator.hold(self._prompts[request.prompt])
        return Admission(request, blocks, bool(request.prefix))

    def _forget_prompts(self, but: tuple[int, ...]) -> None:
        """Give up the blocks of prompts that are waited for; they will be computed again."""
        for prompt in [prompt for prompt in self._prompts if prompt != but]:
            self.allocator.release(self._prompts.pop(prompt))
