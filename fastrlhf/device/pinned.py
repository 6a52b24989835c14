"""Which memory of the host is pinned for the simulated device: nothing but a mark, and its bytes."""

from __future__ import annotations

import torch
from torch.multiprocessing.reductions import StorageWeakRef


class Pinned:
    """Sizes in bytes.

    Attributes:
        peak: the most at once.
    """

    def __init__(self):
        self.peak = 0
        # A weak reference keeps the storage's address from being given to another.
        self._storages: dict[int, tuple[StorageWeakRef, int]] = {}

    def add(self, tensor: torch.Tensor) -> torch.Tensor:
        """Mark the memory of `tensor`, all of its storage, as pinned; gives the tensor back."""
        storage = tensor.untyped_storage()
        self._storages[storage._cdata] = StorageWeakRef(storage), storage.nbytes()
        self.peak = max(self.peak, self.live)
        return tensor

    def holds(self, tensor: torch.Tensor) -> bool:
        """Whether `tensor` is in pinned memory."""
        return tensor.untyped_storage()._cdata in self._storages

    @property
    def live(self) -> int:
        """Bytes pinned now."""
        gone = [address for address, (storage, _) in self._storages.items() if storage.expired()]
        for address in gone:
            del self._storages[address]
        return sum(size for _, size in self._storages.values())
