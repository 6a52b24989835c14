"""Weights packed for oneDNN, kept until they change, the memory is wanted, or nobody holds the weight any more."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

import torch
from torch.multiprocessing.reductions import StorageWeakRef

_SAMPLE = 128

_limit = 4 << 30
_kept: OrderedDict[tuple, _Entry] = OrderedDict()


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
    if not keep or weight.nbytes > _limit:
        return _pack(weight, rows, transposed)
    storage = weight.untyped_storage()
    key = (storage._cdata, weight.storage_offset(), tuple(weight.shape), weight.stride(), transposed)
    entry = _kept.get(key)
    version, sample = 0 if weight.is_inference() else weight._version, _sample(weight)
    if entry is None or entry.version != version or not torch.equal(entry.sample, sample):
        _kept.pop(key, None)
        _make_room(weight.nbytes)
        entry = _Entry(
            _pack(weight, rows, transposed), StorageWeakRef(storage), version, sample, weight.nbytes
        )
        _kept[key] = entry
    _kept.move_to_end(key)
    return entry.packed


def packed_bytes() -> int:
    """What the kept copies take."""
    return sum(entry.nbytes for entry in _kept.values())


def limit_packed(nbytes: int) -> None:
    """Keep at most `nbytes` of packed weights (4 GiB unless told otherwise), those used last; with 0 each product packs
    its weight anew, which costs about a tenth of a product of 1,024 rows and two thirds of one of 128."""
    global _limit
    _limit = nbytes
    _make_room(0)


def _make_room(nbytes: int) -> None:
    for key in [key for key, entry in _kept.items() if entry.storage.expired()]:
        del _kept[key]
    while _kept and packed_bytes() + nbytes > _limit:
        _kept.popitem(last=False)


def _pack(weight: torch.Tensor, rows: int, transposed: bool) -> torch.Tensor:
    weight = weight.detach()
    return torch.ops.mkldnn._reorder_linear_weight((weight.T if transposed else weight).contiguous(), rows)


def _sample(weight: torch.Tensor) -> torch.Tensor:
    """128 numbers, NaN among them as bits: a NaN equals itself."""
    step = max(1, weight.numel() // _SAMPLE)
    flat = weight.detach().as_strided((min(_SAMPLE, weight.numel()),), (step,), weight.storage_offset())
    return flat.view(torch.int32).clone()
