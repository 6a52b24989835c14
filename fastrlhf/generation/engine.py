"""The generator: rows of a described model that come and go, a step at a time for all of them."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from fastrlhf.device.observe import host_waits
from fastrlhf.generation.cache import BLOCK_SIZE, PagedCache, block_bytes, blocks_of
from fastrlhf.generation.compiled_step import CompiledStep
from fastrlhf.generation.eager_step import EagerStep, GraphedStep
from fastrlhf.generation.prefill import prefill
from fastrlhf.generation.request import Event, Request, not_a_number
from fastrlhf.generation.rows import Rows
from fastrlhf.generation.scheduler import Scheduler
from fastrlhf.models.decoder import Decoder
from fastrlhf.models.layers import rows_are_native, run_packed

# How many steps a GPU makes before the host looks which rows have ended; their tokens after that are thrown away.
STEPS_BETWEEN_LOOKS = 8


class Engine:
    """Generates for `requests`, at most `max_rows` at a time.

    Args:
        decoder: the model's description.
        cache_bytes: the most that keys and values may take; None: what `max_rows` rows can need. Fewer rows are in the
            batch where it does not suffice.
        every_token: have the host look after every step, as streaming wants.

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
        every_token: bool = False,
    ):
        self.decoder = decoder
        device = decoder.embedding.device
        max_rows = min(max_rows, len(requests))
        positions = max(request.positions for request in requests)
        self.cache: PagedCache | None = _cache_for(decoder, requests, max_rows, cache_bytes)
        self._scheduler = Scheduler(requests, self.cache.allocator, max_rows)
        vocabulary = decoder.head.out_features
        self._rows = Rows(max_rows, blocks_of(positions), vocabulary, device, requests)
        self._active: list[tuple[Request, list[int]]] = []
        if rows_are_native(decoder):
            self._step = CompiledStep(decoder, self._rows, self.cache, positions)
        else:
            self._step = EagerStep(decoder, self._rows, self.cache, positions)
            if device.type == "cuda":
                self._step = GraphedStep(self._step, max_rows)
        looks_late = device.type == "cuda" and not every_token and not any(r.text for r in requests)
        self._between_looks = STEPS_BETWEEN_LOOKS if looks_late else 1

    @torch.no_grad()
    def run(self) -> Iterator[Event]:
        """The tokens, as they come. The cache is released at the end, also where the caller stops listening.

        Raises:
            FloatingPointError: a row's logits are NaN; the message names the row, the step and the layer.
        """
        try:
            while self._admit():
                yield from self._look(self._burst())
        finally:
            self.release()

    def release(self) -> None:
        """Let the cache and the step's buffers go."""
        self.cache = self._step = self._rows = None
        self._active.clear()

    def _admit(self) -> int:
        """Take in what has room; returns how many rows there are."""
        admitted = self._scheduler.admit()
        prompts = [(new.request.prefix, new.blocks) for new in admitted if new.prefill]
        if prompts:
            prefill(self.decoder, self.cache, prompts)
        copies = [new for new in admitted if new.copied is not None]
        targets = [new.blocks[(len(new.request.prefix) - 1) // BLOCK_SIZE] for new in copies]
        self.cache.copy_blocks([new.copied for new in copies], targets)
        for new in admitted:
            self._rows.place(len(self._active), new.request, new.blocks)
            self._active.append((new.request, new.blocks))
        return len(self._active)

    def _burst(self) -> list[list[tuple[int, float, float]]]:
        """A few steps; of each, the token, log-probability and entropy of every row."""
        count = len(self._active)
        steps = min(self._between_looks, *(request.undecided for request, _ in self._active)) or 1
        kept = []
        for _ in range(steps):
            self._step(count)
            drawn = self._rows.drawn(count)
            kept.append(drawn if steps == 1 else [tensor.clone() for tensor in drawn])
        with host_waits("which tokens the rows drew"):
            return [list(zip(*(tensor.tolist() for tensor in drawn), strict=True)) for drawn in kept]

    def _look(self, steps: list[list[tuple[int, float, float]]]) -> Iterator[Event]:
        for drawn in steps:
            for (request, _), (token, logprob, entropy) in zip(self._active, drawn, strict=True):
                if request.finish_reason is not None:
                    continue
                if logprob != logprob:
                    raise not_a_number(request, self._where_it_breaks(request))
                yield request.push(token, logprob, entropy)
                if len(request.tokens) == request.settings.min_new_tokens and self._rows.banned is not None:
                    self._rows.allow_stops(self._row_of(request))
        for row in reversed(range(len(self._active))):
            if self._active[row][0].finish_reason is not None:
                self._leave(row)

    def _row_of(self, request: Request) -> int:
        return next(row for row, (other, _) in enumerate(self._active) if other is request)

    def _leave(self, row: int) -> None:
        """A row has ended; the last one takes its place."""
        self._scheduler.finish(self._active[row][1])
        last = len(self._active) - 1
        if row != last:
            self._rows.move(last, row)
            self._active[row] = self._active[last]
        self._active.pop()
        self._rows.clear(last)

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
