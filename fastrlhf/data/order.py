"""The order in which prompts are seen: a function of seed and step alone, so that a resumed run goes on in it."""

from __future__ import annotations

from collections.abc import Iterator

import torch


class PromptOrder:
    """Batches of row numbers, without end: a fresh shuffle each epoch (or none), the remainder of an epoch dropped.

    Every rank computes the same shuffle and takes its own slice of each batch.

    Args:
        size: number of rows.
        batch_size: rows a step, over all ranks; at most `size`.
        seed: decides the shuffles.
        first_batch: batches already seen (where a resumed run goes on).
        rank, world_size: which slice of each batch is this process's.
        shuffle: False leaves the rows in their order.

    Raises:
        ValueError: no rows, fewer rows than a batch, or a batch that the ranks cannot share evenly.
    """

    def __init__(
        self,
        size: int,
        batch_size: int,
        seed: int,
        *,
        first_batch: int = 0,
        rank: int = 0,
        world_size: int = 1,
        shuffle: bool = True,
    ):
        if size == 0:
            raise ValueError("train_dataset is empty: there is no prompt to learn from")
        if batch_size > size:
            raise ValueError(
                f"train_dataset has {size} rows, fewer than one batch of {batch_size} (per_device_train_batch_size x "
                "gradient_accumulation_steps x ranks): make the batch smaller or add prompts"
            )
        if batch_size % world_size:
            raise ValueError(f"a batch of {batch_size} is not divisible by {world_size} ranks")
        self.size, self.batch_size, self.seed, self.first_batch = size, batch_size, seed, first_batch
        self.shuffle = shuffle
        self.share = slice(rank * batch_size // world_size, (rank + 1) * batch_size // world_size)

    def __iter__(self) -> Iterator[list[int]]:
        epoch, batch = divmod(self.first_batch, self.size // self.batch_size)
        while True:
            rows = self.epoch_order(epoch)
            for start in range(batch * self.batch_size, self.size - self.batch_size + 1, self.batch_size):
                yield rows[start : start + self.batch_size][self.share]
            epoch, batch = epoch + 1, 0

    def epoch_order(self, epoch: int) -> list[int]:
        """All rows in the order of one epoch."""
        if not self.shuffle:
            return list(range(self.size))
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
        return torch.randperm(self.size, generator=generator).tolist()
