"""The generator: rows of a described model that come and go, a step at a time for all of them."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from fastrlhf.device.observe import host_waits
from fastrlhf.generation.cache import BLOCK_SIZE, PagedCache, block_bytes, blocks_of
from fastrlhf.generation.compiled_step import CompiledStep
from fastrlhf.generation.eager_step import EagerStep, GraphedStep
from fastrlhf.generation.prefill import prefill
from fastrlhf.generation.request import Event, Request, not_a_number
from fastrlhf.generation.rows import Rows
from fastrlhf.generation.scheduler import Scheduler
from fastrlhf.generation.transfer import Drawn, ReadBack
from fastrlhf.models.decoder import Decoder
from fastrlhf.models.layers import rows_are_native, run_packed

# How many steps the host is behind a GPU, which so has the next one to do while the host reads what a step drew. What a
# row draws after its end is thrown away.
STEPS_BEHIND = 1


@dataclass
class Active:
    """A request in the batch, its blocks, and how many steps it was in (of the last of them the host may not know)."""

    request: Request
    blocks: list[int]
    steps: int = 0


class Engine:
    """Generates for `requests`, at most `max_rows` at a time.

    Args:
        decoder: the model's description.
        cache_bytes: the most that keys and values may take; None: what `max_rows` rows can need. Fewer rows are in the
            batch where it does not suffice.

    Raises:
        ValueError: one request alone needs more than `cache_bytes`.
        torch.OutOfMemoryError: not even the largest request alone fits into the device's memory.
    """

    def __init__(
        self,
        decoder: Decoder,
        requests: list[Request],
        *,
        max_rows: int,
        cache_bytes: int | None = None,
    ):
        self.decoder = decoder
        device = decoder.embedding.device
        max_rows = min(max_rows, len(requests))
        positions = max(request.positions for request in requests)
        self.cache: PagedCache | None = _cache_for(decoder, requests, max_rows, cache_bytes)
        self._scheduler = Scheduler(requests, self.cache.allocator, max_rows)
        vocabulary = decoder.head.out_features
        self._rows = Rows(max_rows, blocks_of(positions), vocabulary, device, requests)
        self._active: list[Active] = []
        if rows_are_native(decoder) and decoder.bring is None:
            self._step = CompiledStep(decoder, self._rows, self.cache, positions)
        else:
            self._step = EagerStep(decoder, self._rows, self.cache, positions)
            if device.type == "cuda" and decoder.bring is None:
                self._step = GraphedStep(self._step, max_rows)
        self.stay_behind(0 if device.type == "cpu" else STEPS_BEHIND)

    def stay_behind(self, steps: int) -> None:
        """Let the host read what a step drew when so many more have begun."""
        self._behind = steps
        in_place = steps == 0 and self.decoder.embedding.device.type == "cpu"
        self._free = deque(ReadBack(self._rows.drawn, in_place=in_place) for _ in range(steps + 1))
        self._under_way: deque[tuple[list[Request], ReadBack]] = deque()

    def run(self) -> Iterator[Event]:
        """The tokens, as they come. The cache is released at the end, also where the caller stops listening.

        Raises:
            FloatingPointError: a row's logits are NaN; the message names the row, the step and the layer.
        """
        try:
            while self._admit():
                goes_on = any(each.steps < each.request.settings.max_new_tokens for each in self._active)
                if goes_on:
                    self._begin_step()
                if len(self._under_way) > self._behind or not goes_on:
                    yield from self._look()
        finally:
            self.release()

    def release(self) -> None:
        """Let the cache and the step's buffers go."""
        self.cache = self._step = self._rows = None
        self._active.clear()
        self._free.clear()
        self._under_way.clear()

    def _admit(self) -> int:
        """Take in what has room; returns how many rows there are."""
        admitted = self._scheduler.admit()
        prompts = [(new.request.prefix, new.blocks) for new in admitted if new.prefill]
        if prompts:
            prefill(self.decoder, self.cache, prompts)
        copies = [new for new in admitted if new.copied is not None]
        targets = [new.blocks[(len(new.request.prefix) - 1) // BLOCK_SIZE] for new in copies]
        self.cache.copy_blocks([new.copied for new in copies], targets)
        if admitted:
            self._rows.place(len(self._active), [(new.request, new.blocks) for new in admitted])
            self._active += [Active(new.request, new.blocks) for new in admitted]
        return len(self._active)

    def _begin_step(self) -> None:
        """One token for every row; what they draw is on its way to the host."""
        for row, each in enumerate(self._active):
            if each.steps and each.steps == each.request.settings.min_new_tokens:
                self._rows.allow_stops(row)
            each.steps += 1
        count = len(self._active)
        self._step(count)
        back = self._free.popleft()
        back.begin(count)
        self._under_way.append(([each.request for each in self._active], back))

    def _look(self) -> Iterator[Event]:
        """Read what the oldest step under way drew."""
        requests, back = self._under_way.popleft()
        drawn: list[Drawn] = back.wait()
        self._free.append(back)
        for request, (token, logprob, entropy) in zip(requests, drawn, strict=True):
            if request.finish_reason is not None:
                continue
            if logprob != logprob:
                raise not_a_number(request, self._where_it_breaks(request))
            yield request.push(token, logprob, entropy)
        for row in reversed(range(len(self._active))):
            if self._active[row].request.finish_reason is not None:
                self._leave(row)

    def _leave(self, row: int) -> None:
        """A row has ended; the last one takes its place."""
        self._scheduler.finish(self._active[row].blocks)
        last = len(self._active) - 1
        if row != last:
            self._rows.move(last, row)
            self._active[row] = self._active[last]
        self._active.pop()
        self._rows.clear(last)

    @torch.no_grad()
    def _where_it_breaks(self, request: Request) -> str:
        """The first part of the model whose result is not finite, looked for by computing the row's text again."""
        found: list[str] = []

        def watch(layer: int, added: torch.Tensor) -> None:
            if not found and not bool(added.isfinite().all()):
                found.append(f"layer {layer}")

        tokens = [*request.prompt, *request.tokens]
        with host_waits("which layer's output is not finite"):
            run_packed(self.decoder, torch.tensor(tokens, device=self.decoder.embedding.device), watch)
        return f"; the first output that is not finite is that of {found[0] if found else 'the head'}"


def _cache_for(
    decoder: Decoder, requests: list[Request], max_rows: int, cache_bytes: int | None
) -> PagedCache:
    """Room for the `max_rows` largest requests, or for as many as the budget and the device have memory for."""
    of = decoder.layers[0].attention
    layers, like = len(decoder.layers), decoder.embedding
    needs = sorted((blocks_of(request.positions) for request in requests), reverse=True)
    each = block_bytes(layers, of.key_heads, of.width, like.dtype)
    least, wanted = needs[0] + 1, sum(needs[:max_rows]) + 1  # and the spare one
    if cache_bytes is not None:
        wanted = min(wanted, cache_bytes // each)
        if wanted < least:
            largest = max(request.positions for request in requests)
            raise ValueError(
                f"cache_bytes is {cache_bytes}, but a sequence of {largest} tokens (prompt and max_new_tokens) "
                f"takes {least * each} bytes of keys and values; allow so many, or shorten the sequence"
            )
    while True:
        try:
            return PagedCache(layers, wanted, of.key_heads, of.width, like)
        except torch.OutOfMemoryError:
            if wanted == least:
                raise
            wanted = max(least, wanted // 2)
