"""Safetensors files read and written a part at a time: no file, and no tensor that only passes through, is held whole.

A file begins with the length of its header (8 bytes, little-endian) and the header: JSON with dtype, shape and the
offsets of each tensor's bytes after it (https://github.com/huggingface/safetensors, "Format").
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Mapping
from math import prod
from pathlib import Path
from typing import NamedTuple

import torch

from fastrlhf.memory.disk import memory_of

PART = 16 << 20  # bytes that a read goes through where dtypes differ

_NAMES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
_DTYPES = {name: dtype for dtype, name in _NAMES.items()}


class Stored(NamedTuple):
    """A tensor in a file; `offset` counts from the file's beginning."""

    path: Path
    offset: int
    dtype: torch.dtype
    shape: tuple[int, ...]


class Value(NamedTuple):
    """A tensor to be written; `read` gives it, on any device, when its turn comes."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    read: Callable[[], torch.Tensor]

    @property
    def nbytes(self) -> int:
        return prod(self.shape) * self.dtype.itemsize


def stored_tensors(paths: Iterable[Path]) -> dict[str, Stored]:
    """What safetensors files hold, by name.

    Raises:
        ValueError: a file is not whole, or of a dtype that is not known.
    """
    found = {}
    for path in paths:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            try:
                header = json.loads(file.read(length) if length < path.stat().st_size else "")
            except ValueError as error:
                raise ValueError(f"{path} is not a whole safetensors file") from error
        header.pop("__metadata__", None)
        for name, entry in header.items():
            if entry["dtype"] not in _DTYPES:
                raise ValueError(f"{name} in {path} has dtype {entry['dtype']}, which is not read here")
            begin, end = entry["data_offsets"]
            stored = Stored(path, 8 + length + begin, _DTYPES[entry["dtype"]], tuple(entry["shape"]))
            if 8 + length + end > path.stat().st_size:
                raise ValueError(f"{path} ends before {name}: it was cut short")
            found[name] = stored
    return found


@torch.no_grad()
def read_stored(stored: Stored, target: torch.Tensor) -> None:
    """Read a tensor into `target`, of its shape and on any device, cast to its dtype part by part.

    Raises:
        ValueError: the shapes differ, or the file has been cut short.
    """
    if tuple(target.shape) != stored.shape:
        raise ValueError(f"a tensor in {stored.path} is {list(stored.shape)}, expected {list(target.shape)}")
    with stored.path.open("rb", buffering=0) as file:
        descriptor = file.fileno()
        contiguous = target.is_contiguous()
        if target.device.type == "cpu" and target.dtype == stored.dtype and contiguous:
            _read(descriptor, target, stored.offset, stored.path)
            return
        if not contiguous:
            whole = torch.empty(stored.shape, dtype=stored.dtype)
            _read(descriptor, whole, stored.offset, stored.path)
            target.copy_(whole)
            return
        rows = target.view(-1, target.shape[-1]) if target.dim() > 1 else target.view(-1, 1)
        width = rows.shape[1] * stored.dtype.itemsize
        for start in range(0, len(rows), count := max(1, PART // max(1, width))):
            into = rows[start : start + count]
            part = torch.empty(into.shape, dtype=stored.dtype)
            _read(descriptor, part, stored.offset + start * width, stored.path)
            into.copy_(part)


def load_stored(stored: Stored) -> torch.Tensor:
    """The tensor, as it is in the file."""
    target = torch.empty(stored.shape, dtype=stored.dtype)
    read_stored(stored, target)
    return target


@torch.no_grad()
def write_file(path: Path, values: Mapping[str, Value]) -> None:
    """Write a safetensors file: the header, then each tensor in turn, which is let go before the next is asked for.

    Raises:
        OSError: as a full disk gives; half a file is left behind.
    """
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, value in values.items():
        header[name] = {
            "dtype": _NAMES[value.dtype],
            "shape": list(value.shape),
            "data_offsets": [end, end := end + value.nbytes],
        }
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name, value in values.items():
            tensor = value.read().detach().cpu().contiguous()
            if tensor.dtype != value.dtype or tuple(tensor.shape) != value.shape:
                raise ValueError(f"{name} is {tensor.dtype} {list(tensor.shape)}, expected {value[:2]}")
            file.write(memory_of(tensor))


def write_shards(folder: Path, values: Mapping[str, Value], shard_bytes: int) -> None:
    """Write `model.safetensors`, or shards of at most `shard_bytes` with an index, as `save_pretrained` does."""
    shards: list[dict[str, Value]] = [{}]
    held = 0
    for name, value in values.items():
        if shards[-1] and held + value.nbytes > shard_bytes:
            shards.append({})
            held = 0
        shards[-1][name] = value
        held += value.nbytes
    if len(shards) == 1:
        write_file(folder / "model.safetensors", shards[0])
        return
    files = [f"model-{number:05}-of-{len(shards):05}.safetensors" for number in range(1, len(shards) + 1)]
    for file, shard in zip(files, shards, strict=True):
        write_file(folder / file, shard)
    index = {
        "metadata": {"total_size": sum(value.nbytes for value in values.values())},
        "weight_map": {name: file for file, shard in zip(files, shards, strict=True) for name in shard},
    }
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n")


def _read(descriptor: int, target: torch.Tensor, offset: int, path: Path) -> None:
    left = memory_of(target)
    while left.nbytes:
        count = os.preadv(descriptor, [left], offset)
        if count == 0:
            raise ValueError(f"{path} ends {left.nbytes} bytes early: it was cut short")
        left, offset = left[count:], offset + count
