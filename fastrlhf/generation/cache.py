"""The keys and values of the rows, in blocks: a row's lie anywhere, and rows of one prompt share its blocks."""

from __future__ import annotations

import torch

from fastrlhf.generation.transfer import upload

BLOCK_SIZE = 16
# Belongs to no row: rows that fill up a CUDA graph's batch write there.
SPARE_BLOCK = 0


class BlockAllocator:
    """Blocks by number, each with a count of those who hold it."""

    def __init__(self, blocks: int):
        self._holders = [0] * blocks
        self._free = list(range(blocks - 1, SPARE_BLOCK, -1))

    @property
    def free(self) -> int:
        """How many blocks nobody holds."""
        return len(self._free)

    def take(self, count: int) -> list[int]:
        """`count` blocks for one holder."""
        if count > self.free:
            raise ValueError(f"{count} blocks are wanted, and {self.free} are free")
        blocks = [self._free.pop() for _ in range(count)]
        self.hold(blocks)
        return blocks

    def hold(self, blocks: list[int]) -> None:
        """One holder more for each of them."""
        for block in blocks:
            self._holders[block] += 1

    def release(self, blocks: list[int]) -> None:
        """One holder less; a block that nobody holds is free."""
        for block in blocks:
            self._holders[block] -= 1
            if self._holders[block] == 0:
                self._free.append(block)


class PagedCache:
    """keys, values: `[layers, blocks, BLOCK_SIZE, Hk, D]`. Position p of a row is slot `p % BLOCK_SIZE` of the block
    that the row's table has at `p // BLOCK_SIZE`."""

    def __init__(self, layers: int, blocks: int, key_heads: int, width: int, like: torch.Tensor):
        shape = (layers, blocks, BLOCK_SIZE, key_heads, width)
        self.keys = torch.empty(shape, dtype=like.dtype, device=like.device)
        self.values = torch.empty(shape, dtype=like.dtype, device=like.device)
        self.allocator = BlockAllocator(blocks)

    @property
    def nbytes(self) -> int:
        return self.keys.nbytes + self.values.nbytes

    def copy_blocks(self, sources: list[int], targets: list[int]) -> None:
        """Each of `targets` gets the contents of its source."""
        if sources:
            to, of = (upload(blocks, torch.int64, self.keys.device) for blocks in (targets, sources))
            for tensor in (self.keys, self.values):
                tensor[:, to] = tensor[:, of]

    def write(self, layer: int, slots: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> None:
        """`[N, Hk, D]` to slots `[N]`, int64, `block BLOCK_SIZE + slot of the block`."""
        for tensor, new in ((self.keys, key), (self.values, value)):
            tensor[layer].flatten(0, 1).index_copy_(0, slots, new)


def blocks_of(positions: int) -> int:
    """How many blocks so many positions take."""
    return -(-positions // BLOCK_SIZE)


def block_bytes(layers: int, key_heads: int, width: int, dtype: torch.dtype) -> int:
    """What a block takes, keys and values of all layers."""
    return 2 * layers * BLOCK_SIZE * key_heads * width * dtype.itemsize
