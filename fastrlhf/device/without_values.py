"""Running the simulated device without values: floats, and the bytes of quantised weights, are shapes alone.

They are meta tensors, which take no memory, so that a model of any size runs in the time of Python alone. Integers and
booleans (tokens, masks, positions) have their values. Where a value is wanted that is not there it is zero.
"""

from __future__ import annotations

import mmap
from collections.abc import Callable
from typing import Any

import torch

from fastrlhf.device.trees import over_tensors, tensors_in

_BODY = torch._C.DispatchKeySet(torch._C.DispatchKey.CPU)
_VALUED = {torch.bool, torch.int16, torch.int32, torch.int64}
_NUMBERS = {"BoolType", "IntType", "FloatType", "NumberType"}
# Operations on booleans whose result is as large as there are true ones are computed with their places instead.
_INDEXING = {"aten::index", "aten::index_put", "aten::index_put_", "aten::_index_put_impl_"}


def has_values(dtype: torch.dtype) -> bool:
    """Whether tensors of this dtype are computed."""
    return dtype in _VALUED


def hollow(tree: Any) -> Any:
    """The tensors of the host among `tree` as they are kept for the device: those without values on meta."""
    return over_tensors(lambda tensor: tensor if has_values(tensor.dtype) else _on_meta(tensor), tree)


def run(func: Callable[..., Any], args: tuple, kwargs: dict[str, Any], *, wanted: bool) -> Any:
    """An operation of PyTorch on hollow tensors.

    Args:
        kwargs: `device`, if there, is the host.
        wanted: the shape of the result depends on the values.
    """
    tensors = list(tensors_in((args, kwargs)))
    wanted = wanted or any(result.type.kind() in _NUMBERS for result in func._schema.returns)
    if wanted or (tensors and not any(tensor.is_meta for tensor in tensors)):
        return hollow(func(*over_tensors(_zeros, args), **over_tensors(_zeros, kwargs)))
    if func._schema.name in _INDEXING:
        args = (args[0], _places(args[1]), *args[2:])
    elsewhere = {**kwargs, "device": "meta"} if "device" in kwargs else kwargs
    out = func(*over_tensors(_on_meta, args), **over_tensors(_on_meta, elsewhere))
    if any(has_values(tensor.dtype) for tensor in tensors_in(out)):
        return hollow(func(*over_tensors(_zeros, args), **over_tensors(_zeros, kwargs)))
    return out


def run_registered(func: Callable[..., Any], args: tuple, kwargs: dict[str, Any]) -> Any:
    """A registered operation of ours on hollow tensors: its own body, which asks for its kernels."""
    return func.redispatch(_BODY, *args, **kwargs)


def run_kernel(operation: str, args: tuple) -> Any:
    """The outputs of a kernel of ours, as its fake implementation has them."""
    out = getattr(torch.ops.fastrlhf, operation).default(*over_tensors(_on_meta, args))
    return over_tensors(lambda tensor: _zeros(tensor).clone() if has_values(tensor.dtype) else tensor, out)


def in_place(operation: str) -> bool:
    """Whether an operation of ours gives nothing but what it changes."""
    return not getattr(torch.ops.fastrlhf, operation).default._schema.returns


def copy_values(target: torch.Tensor, source: torch.Tensor) -> None:
    """Copy what has values, from host to device or back."""
    if not has_values(target.dtype):
        return
    target.copy_(_zeros(source))


def converted(func: Callable[..., Any], source: torch.Tensor, kwargs: dict[str, Any], to_host: bool) -> Any:
    """`aten::_to_copy` of a tensor."""
    made = func(_on_meta(source), **{**kwargs, "device": "meta"})
    if has_values(made.dtype):
        return func(_zeros(source), **{**kwargs, "device": "cpu"})
    return torch.zeros_like(made, device="cpu") if to_host else made


def untouched(like: torch.Tensor) -> torch.Tensor:
    """Zeros in memory of the host that the operating system gives when it is touched, which nobody does."""
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | getattr(mmap, "MAP_NORESERVE", 0)
    pages = mmap.mmap(-1, max(like.nbytes, 1), flags=flags)
    return torch.frombuffer(pages, dtype=torch.uint8)[: like.nbytes].view(like.dtype).view(like.shape)


def _on_meta(tensor: torch.Tensor) -> torch.Tensor:
    return tensor if tensor.is_meta else torch.empty_like(tensor, device="meta")


def _zeros(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor, or zeros of its shape that take no memory."""
    return torch.zeros((), dtype=tensor.dtype).expand(tensor.shape) if tensor.is_meta else tensor


def _places(indices: Any) -> list[torch.Tensor | None]:
    found: list[torch.Tensor | None] = []
    for index in indices:
        if isinstance(index, torch.Tensor) and index.dtype in (torch.bool, torch.uint8):
            found.extend(index.nonzero(as_tuple=True))
        else:
            found.append(index)
    return found
