"""One decoding step by the operations' launchers, on any device and dtype; on a GPU replayed as a CUDA graph."""

from __future__ import annotations

from collections.abc import Callable

import torch

from fastrlhf.generation.cache import BLOCK_SIZE, PagedCache
from fastrlhf.generation.rows import Rows
from fastrlhf.kernels import dispatch
from fastrlhf.kernels.autocast import switched_off
from fastrlhf.models.decoder import Decoder
from fastrlhf.models.layers import embed, logits, project, project_rows, rows_are_native, run_layers


class EagerStep:
    """Call it with a number of rows: each of the first rows reads its token, and gets the next one sampled.

    Nothing makes the host wait, and all that changes lies in the tensors of `rows`: a CUDA graph of it can be replayed.
    """

    def __init__(self, decoder: Decoder, rows: Rows, cache: PagedCache, positions: int):
        self._decoder, self._rows, self._cache = decoder, rows, cache
        self._angles = decoder.angles(torch.arange(positions, device=decoder.embedding.device))
        self._last_position = positions - 1
        # on a CPU in float32 a row has the bits that the compiled step gives it
        self._product = project_rows if rows_are_native(decoder) else project

    @torch.no_grad()
    def __call__(self, count: int) -> None:
        with switched_off(self._decoder.embedding):
            self._run(count)

    def _run(self, count: int) -> None:
        rows, decoder = self._rows, self._decoder
        positions = rows.lengths[:count].long()
        table = rows.block_table[:count]
        block = table.gather(1, (positions // BLOCK_SIZE)[:, None])[:, 0].long()
        slots = block * BLOCK_SIZE + positions % BLOCK_SIZE
        lengths = rows.lengths[:count] + 1

        def attend(layer: int, query, key, value):
            self._cache.write(layer, slots, key, value)
            of = decoder.layers[layer].attention
            caches = self._cache.keys[layer], self._cache.values[layer]
            return dispatch.call(
                "decode_attention", query, *caches, table, lengths, of.scale, of.window, None
            )

        angles = None if self._angles is None else tuple(table[positions] for table in self._angles)
        hidden = embed(decoder, rows.tokens[:count], positions)
        hidden = run_layers(decoder, hidden, angles, attend, self._product)
        rows.draw(logits(decoder, hidden, self._product))
        # a row that only fills a graph's batch up would grow without end
        rows.lengths[:count] = lengths.clamp(max=self._last_position)


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
