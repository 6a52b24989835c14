"""One decoding step of a float32 model on a CPU, compiled: a list of kernels with the addresses of their buffers.

Between two kernels there is no Python: 30 layers are 300 calls.
"""

from __future__ import annotations

import torch

from fastrlhf.generation.cache import BLOCK_SIZE, PagedCache
from fastrlhf.generation.rows import Rows
from fastrlhf.kernels import QuantizedWeight, native
from fastrlhf.kernels.glu import ACTIVATIONS
from fastrlhf.models.decoder import MLP, Attention, Decoder, Layer, Norm, Projection


class CompiledStep:
    """Call it with a number of rows: each of the first rows reads its token, and gets the next one sampled.

    Args:
        decoder: all float32 (or int8) and on the CPU; its tensors stay in place as long as the step is used.
        positions: how many positions the rows can have.
    """

    def __init__(self, decoder: Decoder, rows: Rows, cache: PagedCache, positions: int):
        self._program = native.module("_cpu").DecodeProgram()
        self._rows, self._cache = rows, cache
        self._count = len(rows.tokens)
        # what the program has addresses of; buffers by name, so that the layers use the same ones
        self._held: list[torch.Tensor] = []
        self._buffers: dict[str, torch.Tensor] = {}
        self.logits = torch.empty(self._count, decoder.head.out_features, dtype=torch.float32)
        self._begin(decoder, positions)
        self._layers(decoder)
        self._linears((self._buffer("normed", decoder.embedding.shape[1]), decoder.head, self.logits))
        self._sample()

    @property
    def nbytes(self) -> int:
        """What its buffers take."""
        return self.logits.nbytes + sum(buffer.nbytes for buffer in self._buffers.values())

    def __call__(self, count: int) -> None:
        self._program.run(count)

    def _hold(self, tensor: torch.Tensor | None) -> int:
        """The address of a tensor that stays; zero for None."""
        if tensor is None:
            return 0
        tensor = tensor.detach().contiguous()
        self._held.append(tensor)
        return tensor.data_ptr()

    def _buffer(self, name: str, width: int) -> torch.Tensor:
        """`[B, width]`, float32: one buffer for a name and width."""
        key = f"{name} {width}"
        if key not in self._buffers:
            self._buffers[key] = torch.empty(self._count, width, dtype=torch.float32)
        return self._buffers[key]

    def _begin(self, decoder: Decoder, positions: int) -> None:
        angles = decoder.angles(torch.arange(positions)) or (None, None)
        self._rotated = rotated = 0 if angles[0] is None else angles[0].shape[1]
        of_rows = [self._buffer(name, rotated) for name in ("cos", "sin")] if rotated else []
        self._angles = [buffer.data_ptr() for buffer in of_rows]
        rows = self._rows
        hidden = self._buffer("hidden", decoder.embedding.shape[1])
        of_rows = (rows.tokens, rows.lengths, rows.block_table, rows.slots)
        self._program.begin(
            [
                *(tensor.data_ptr() for tensor in of_rows),
                self._hold(decoder.embedding),
                self._hold(decoder.position_embedding),
                hidden.data_ptr(),
                *(self._hold(table) for table in angles),
                *(self._angles or (0, 0)),
            ],
            [rows.block_table.shape[1], BLOCK_SIZE, hidden.shape[1], rotated],
            decoder.embedding_scale,
        )

    def _layers(self, decoder: Decoder) -> None:
        width = decoder.embedding.shape[1]
        hidden, normed, added = (self._buffer(name, width) for name in ("hidden", "normed", "added"))
        self._norm(decoder.layers[0].attention_norm, hidden, normed)
        for index, layer in enumerate(decoder.layers):
            self._layer(index, layer, hidden, normed, added)
            last = index + 1 == len(decoder.layers)
            after = decoder.final_norm if last else decoder.layers[index + 1].attention_norm
            self._norm(after, added, normed, residual=hidden)

    def _layer(self, index: int, layer: Layer, hidden, normed, added) -> None:
        attended = self._attention(index, layer.attention, normed)
        self._linears((attended, layer.attention.output, added))
        if layer.parallel:
            self._norm(layer.mlp_norm, hidden, normed)
            self._mlp(layer.mlp, normed, added, adds=True)
        else:
            self._norm(layer.mlp_norm, added, normed, residual=hidden)
            self._mlp(layer.mlp, normed, added)

    def _attention(self, index: int, attention: Attention, normed: torch.Tensor) -> torch.Tensor:
        heads, key_heads, width = attention.heads, attention.key_heads, attention.width
        counts = {"query": heads, "key": key_heads, "value": key_heads}
        parts = [self._buffer(name, count * width) for name, count in counts.items()]
        if attention.fused is None:
            products = zip(attention.projections, parts, strict=True)
            self._linears(*((normed, projection, part) for projection, part in products))
        else:
            self._fused(attention, normed, parts)
        query, key, _ = parts
        for norm, part, count in ((attention.query_norm, query, heads), (attention.key_norm, key, key_heads)):
            if norm is not None:
                self._norm(norm, part, part, each=count)
        addresses = [part.data_ptr() for part in parts]
        if self._angles:
            self._program.rope([*addresses[:2], *self._angles], [heads, key_heads, width, self._rotated])
        keys, values = self._cache.keys[index], self._cache.values[index]
        rows = self._rows
        caches = [cache.data_ptr() for cache in (keys, values)]
        self._program.write_cache([*addresses[1:], *caches, rows.slots.data_ptr()], key_heads * width)
        output = self._buffer("attended", heads * width)
        self._program.decode_attention(
            [addresses[0], rows.block_table.data_ptr(), rows.lengths.data_ptr()],
            [[cache.data_ptr(), *cache.stride()[:3]] for cache in (keys, values)],
            [
                self._count,
                heads,
                key_heads,
                width,
                *keys.shape[:2],
                rows.block_table.shape[1],
                attention.window or 0,
            ],
            attention.scale,
            0.0,
            output.data_ptr(),
        )
        return output

    def _fused(self, attention: Attention, normed: torch.Tensor, parts: list[torch.Tensor]) -> None:
        """One product, and each part's heads of it side by side."""
        projection, width = attention.projections[0], attention.width
        fused = self._buffer("fused", projection.out_features)
        self._linears((normed, projection, fused))
        of_heads = attention.fused == "heads"
        for number, part in enumerate(parts):
            start = number * (width if of_heads else part.shape[1])
            stride = 3 * width if of_heads else width
            self._program.copy_heads(
                fused.data_ptr() + 4 * start,
                part.data_ptr(),
                [attention.heads, width, fused.shape[1], stride],
            )

    def _mlp(self, mlp: MLP, normed: torch.Tensor, added: torch.Tensor, *, adds: bool = False) -> None:
        columns = mlp.up.out_features
        gate, up, activated = (self._buffer(name, columns) for name in ("gate", "up", "activated"))
        if mlp.gate is None:
            self._linears((normed, mlp.up, gate))
            factor = self._hold(torch.ones(columns, dtype=torch.float32))
        else:
            self._linears((normed, mlp.gate, gate), (normed, mlp.up, up))
            factor = up.data_ptr()
        self._program.glu(
            [gate.data_ptr(), factor, activated.data_ptr()],
            columns,
            mlp.gate is not None,
            ACTIVATIONS.index(mlp.activation),
        )
        self._linears((activated, mlp.down, added), adds=adds)

    def _linears(self, *products: tuple[torch.Tensor, Projection, torch.Tensor], adds: bool = False) -> None:
        """Products (x, projection, y) that share the threads; the adapters' second ones come after all first ones."""
        first, second = [], []
        for x, projection, y in products:
            first.append(self._call(x, projection.weight, projection.bias, y, projection.transposed, adds))
            for adapter in projection.adapters:
                hidden = torch.empty(self._count, adapter.down.shape[0], dtype=torch.float32)
                self._held.append(hidden)
                first.append(self._call(x, adapter.down, None, hidden))
                second.append(self._call(hidden, adapter.up, adapter.bias, y, False, True, adapter.scaling))
        self._program.linears(first)
        for call in second:  # one after the other: two adapters may add to the same y
            self._program.linears([call])

    def _call(
        self, x, weight, bias, y, transposed: bool = False, adds: bool = False, factor: float = 1.0
    ) -> tuple:
        quantised = isinstance(weight, QuantizedWeight)
        addresses = [
            x.data_ptr(),
            0 if quantised else self._hold(weight),
            self._hold(weight.codes) if quantised else 0,
            self._hold(weight.scales) if quantised else 0,
            self._hold(bias),
            y.data_ptr(),
        ]
        return addresses, (y.shape[1], x.shape[1]), (transposed, adds), factor

    def _norm(self, norm: Norm, hidden, normed, residual: torch.Tensor | None = None, each: int = 1) -> None:
        """The norm of `hidden`, or of its sum with `residual`, which is left there; `each` norms a row."""
        statistics = self._buffer("statistics", 2 * each)
        self._program.norm(
            [
                hidden.data_ptr(),
                0 if residual is None else residual.data_ptr(),
                self._hold(norm.weight),
                self._hold(norm.bias),
                normed.data_ptr(),
                0 if residual is None else residual.data_ptr(),
                statistics.data_ptr(),
                statistics.data_ptr() + 4 * each * self._count,
            ],
            each,
            hidden.shape[1] // each,
            norm.eps,
            norm.weight_offset,
        )

    def _sample(self) -> None:
        """The next tokens, and what changes with them. In the program too: after a step the caches hold weights, and a
        call of PyTorch's takes 60 microseconds."""
        rows = self._rows
        settings = rows.settings(self._count)
        tensors = (self.logits, rows.row_ids, rows.seen, rows.banned, *rows.drawn)
        filters = (self.logits, rows.seen, rows.banned)
        self._program.sample(
            [0 if tensor is None else tensor.data_ptr() for tensor in tensors],
            [*self.logits.shape, *(0 if tensor is None else tensor.stride(0) for tensor in filters)],
            [tensor.data_ptr() for tensor in settings],
            [tensor.stride(0) for tensor in settings],
        )
