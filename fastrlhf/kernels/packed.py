"""Weights packed for oneDNN, kept until they change or nobody holds the weight any more, as far as there is room."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.multiprocessing.reductions import StorageWeakRef

_SAMPLE = 128

_limit = 4 << 30
_kept: dict[tuple, _Entry] = {}


@dataclass
class _Entry:
    packed: torch.Tensor
    # Holds the storage's address, not its memory: no other storage gets the key's address while this is here.
    storage: StorageWeakRef
    version: int
    sample: torch.Tensor
    nbytes: int


def packed(weight: torch.Tensor, rows: int, *, transposed: bool = False, keep: bool = True) -> torch.Tensor:
    """`weight` (or its transpose) in the layout that oneDNN wants for about `rows` rows.

    A kept one is packed anew when the weight has changed. A change in place counts as one by the tensor's version
    and, since `.data` has none and native kernels write past it, by 128 numbers spread over the weight.
    """
    if not keep or not keeps(weight, transposed):
        return _pack(weight, rows, transposed)
    key = _key(weight, transposed)
    entry = _kept.get(key)
    version, sample = 0 if weight.is_inference() else weight._version, _sample(weight)
    if entry is None or entry.version != version or not torch.equal(entry.sample, sample):
        _kept.pop(key, None)
        storage = StorageWeakRef(weight.untyped_storage())
        entry = _Entry(_pack(weight, rows, transposed), storage, version, sample, weight.nbytes)
        _kept[key] = entry
    return entry.packed


def keeps(weight: torch.Tensor, transposed: bool = False) -> bool:
    """Whether a packed copy of `weight` (or its transpose) stays: it is there, or there is room for it."""
    if _key(weight, transposed) in _kept:
        return True
    _forget_expired()
    return packed_bytes() + weight.nbytes <= _limit


def packed_bytes() -> int:
    """What the kept copies take."""
    return sum(entry.nbytes for entry in _kept.values())


def limit_packed(nbytes: int) -> None:
    """Keep at most `nbytes` of packed weights (4 GiB unless told otherwise): those that came first. A product with
    another weight packs it anew, which costs about a tenth of a product of 1,024 rows and two thirds of one of 128.

    (A model's layers take turns: if those used last were kept instead, each would be dropped before its next use.)
    """
    global _limit
    _limit = nbytes
    _forget_expired()
    while _kept and packed_bytes() > _limit:
        _kept.popitem()


def _key(weight: torch.Tensor, transposed: bool) -> tuple:
    address = weight.untyped_storage()._cdata
    return (address, weight.storage_offset(), tuple(weight.shape), weight.stride(), transposed)


def _forget_expired() -> None:
    for key in [key for key, entry in _kept.items() if entry.storage.expired()]:
        del _kept[key]


def _pack(weight: torch.Tensor, rows: int, transposed: bool) -> torch.Tensor:
    weight = weight.detach()
    return torch.ops.mkldnn._reorder_linear_weight((weight.T if transposed else weight).contiguous(), rows)


def _sample(weight: torch.Tensor) -> torch.Tensor:
    """128 numbers, NaN among them as bits: a NaN equals itself."""
    step = max(1, weight.numel() // _SAMPLE)
    flat = weight.detach().as_strided((min(_SAMPLE, weight.numel()),), (step,), weight.storage_offset())
    return flat.view(torch.int32).clone()
