"""One decoding step by the operations' launchers, on any device and dtype; on a GPU replayed as a CUDA graph."""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch

from fastrlhf.generation.cache import BLOCK_SIZE, PagedCache
from fastrlhf.generation.rows import Rows
from fastrlhf.kernels import dispatch
from fastrlhf.kernels.autocast import switched_off
from fastrlhf.models.decoder import Decoder
from fastrlhf.models.layers import logits, project, project_rows, rows_are_native, run_layers


class EagerStep:
    """Call it with a number of rows: each of the first rows reads its token, and gets the next one sampled.

    Nothing makes the host wait, and all that changes lies in the tensors of `rows`: a CUDA graph of it can be replayed.
    """

    def __init__(self, decoder: Decoder, rows: Rows, cache: PagedCache, positions: int):
        self._decoder, self._rows, self._cache = decoder, rows, cache
        self._angles = decoder.angles(torch.arange(positions, device=decoder.embedding.device))
        # on a CPU in float32 a row has the bits that the compiled step gives it
        self._products_of_rows = rows_are_native(decoder)

    @torch.no_grad()
    def __call__(self, count: int) -> None:
        with switched_off(self._decoder.embedding):
            self._run(count)

    def _run(self, count: int) -> None:
        rows, decoder = self._rows, self._decoder
        table = rows.block_table[:count]
        state = rows.tokens[:count], rows.lengths[:count], table, BLOCK_SIZE
        tables = decoder.embedding_scale, decoder.position_embedding, *(self._angles or (None, None))
        with decoder.having("embedding"):
            hidden, slots, lengths, *angles = dispatch.call("begin_step", decoder.embedding, *state, *tables)
        if self._angles is None:
            angles = None, None

        def attend(layer: int, query, key, value):
            caches = self._cache.keys[layer], self._cache.values[layer]
            of_slots = (cache.flatten(0, 1) for cache in caches)
            query = dispatch.call("rope_cache", query, key, value, *angles, slots, *of_slots)
            of = decoder.layers[layer].attention
            return dispatch.call(
                "decode_attention", query, *caches, table, lengths, of.scale, of.window, None
            )

        product = project_rows
        if not self._products_of_rows:
            product = functools.partial(project, group_offsets=rows.group_offsets[count])
        hidden = run_layers(decoder, hidden, None, attend, product)  # the angles are `rope_cache`'s
        rows.draw(logits(decoder, hidden, product))


Replay = Callable[[], None]


class GraphedStep:
    """An `EagerStep` as one CUDA graph for each of a few numbers of rows; rows that are not there write nowhere.

    What a graph reads and writes are the tensors of `rows` and of the cache, which stay in place; `Rows.clear` has
    made the rows after the last harmless.

    Args:
        capture: records a function without running it, and gives what runs it.
    """

    def __init__(self, step: EagerStep, max_rows: int, capture: Callable[[Replay], Replay] | None = None):
        self._step = step
        self._max_rows = max_rows
        self._capture = capture or CUDAGraphs()
        self._replays: dict[int, Replay] = {}

    def __call__(self, count: int) -> None:
        bucket = bucket_of(count, self._max_rows)
        if bucket in self._replays:
            self._replays[bucket]()
            return
        # for real: kernels are compiled and prove themselves at their first use, which must not be recorded
        self._step(bucket)
        self._replays[bucket] = self._capture(lambda: self._step(bucket))


class CUDAGraphs:
    """Captures functions as CUDA graphs that share their memory, since never two of them run at a time."""

    def __init__(self):
        self._pool = torch.cuda.graph_pool_handle()

    def __call__(self, function: Replay) -> Replay:
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool):
            function()
        return graph.replay


def bucket_of(count: int, max_rows: int) -> int:
    """The rows that a graph for `count` rows has: 1, 2, 4, then multiples of 8."""
    bucket = 1 << (count - 1).bit_length() if count <= 8 else -(-count // 8) * 8
    return min(bucket, max_rows)
