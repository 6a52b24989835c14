"""The tensors of the simulated device: their values are on the CPU, their rules and books are a GPU's."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from enum import Enum, auto
from typing import Any

import torch

from fastrlhf.device import without_values
from fastrlhf.device.ledger import POISON, Allocation, Ledger, UseAfterFreeError, refuse
from fastrlhf.device.observe import Cost, Kernel, nbytes
from fastrlhf.device.torch_costs import dtype, size, torch_cost
from fastrlhf.device.trees import over_tensors, tensors_in

NAME = "sim"
COPIES = {"aten::copy_", "aten::_copy_from", "aten::_copy_from_and_resize", "aten::_to_copy"}
EMPTY = {
    "aten::empty",
    "aten::empty_like",
    "aten::empty_strided",
    "aten::empty_permuted",
    "aten::new_empty",
    "aten::new_empty_strided",
}
# The size of the result, or a number, is wanted on the host.
HOST_WAITS = {
    "aten::_local_scalar_dense",
    "aten::_unique2",
    "aten::bincount",
    "aten::equal",
    "aten::masked_scatter_backward",
    "aten::masked_select",
    "aten::nonzero",
    "aten::unique_consecutive",
    "aten::unique_dim",
}
INDEXING = {"aten::index", "aten::index_put", "aten::index_put_", "aten::_index_put_impl_"}
BOOLEANS = (torch.bool, torch.uint8)

_active: list[Ledger] = []


class Place(Enum):
    """Where the process is: in ordinary code, in the body of a registered operation of ours, or in its kernel."""

    OUTSIDE = auto()
    REGISTERED = auto()
    KERNEL = auto()


_place = Place.OUTSIDE


def active() -> Ledger:
    """The books of sim:0.

    Raises:
        RuntimeError: the device is not registered now.
    """
    if not _active:
        raise RuntimeError("sim:0 is not registered: use it inside `with simulated.registered():`")
    return _active[-1]


class SimTensor(torch.Tensor):
    """A tensor on sim:0.

    Attributes:
        elem: its values, a tensor on the CPU with the same strides (on meta, where there are none).
        allocation: the memory that it is in, shared with its views.
    """

    elem: torch.Tensor
    allocation: Allocation

    @staticmethod
    def __new__(cls, elem: torch.Tensor, maker: str) -> SimTensor:
        made = torch.Tensor._make_wrapper_subclass(
            cls,
            elem.size(),
            strides=elem.stride(),
            storage_offset=elem.storage_offset(),
            dtype=elem.dtype,
            device=torch.device("sim", 0),
        )
        ledger = active()
        made.allocation = ledger.allocation(elem.untyped_storage(), maker, ledger.streams.current)
        made.elem = elem
        return made

    def __init__(self, elem: torch.Tensor, maker: str):
        pass

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return run(func, args, kwargs or {})

    def __repr__(self, *, tensor_contents=None) -> str:
        return f"{self.elem!r} on sim:0"

    def __deepcopy__(self, memo: dict) -> SimTensor:
        if id(self) not in memo:
            copied = self.detach().clone().requires_grad_(self.requires_grad)
            if isinstance(self, torch.nn.Parameter):
                copied = torch.nn.Parameter(copied, self.requires_grad)
            memo[id(self)] = copied
        return memo[id(self)]

    def __reduce_ex__(self, protocol: int) -> Any:
        """A file holds the values as a tensor of the host."""
        return self.detach().cpu().requires_grad_(self.requires_grad).__reduce_ex__(protocol)

    # What makes `nn.Module.to` change a parameter in place, as it does for a GPU: tied weights stay tied.

    def __tensor_flatten__(self) -> tuple[list[str], None]:
        return ["elem"], None

    @staticmethod
    def __tensor_unflatten__(
        inner: dict[str, torch.Tensor], context: None, size: Any, stride: Any
    ) -> SimTensor:
        return SimTensor(inner["elem"], "unflatten")

    @property
    def data(self) -> SimTensor:
        return self.detach()

    @data.setter
    def data(self, value: torch.Tensor) -> None:
        if not isinstance(value, SimTensor):
            raise RuntimeError(f"a tensor on sim:0 cannot take the data of one on {value.device}")
        torch.Tensor.data.__set__(self, value)
        self.elem, self.allocation = value.elem, value.allocation

    def data_ptr(self) -> int:
        """Tells one piece of memory from another; nothing may read there."""
        return self.elem.data_ptr()

    def untyped_storage(self) -> torch.UntypedStorage:
        """As `data_ptr`: to see what is shared, not to read."""
        return self.elem.untyped_storage()

    def new_tensor(self, data: Any, *, dtype=None, device=None, requires_grad: bool = False) -> torch.Tensor:
        made = torch.empty((), dtype=self.dtype).new_tensor(data, dtype=dtype)
        return made.to(self.device if device is None else device).requires_grad_(requires_grad)

    def tolist(self) -> Any:
        return self.cpu().tolist()

    def record_stream(self, stream: Any) -> None:
        """The allocator waits for `stream` too before it gives the memory to others."""
        self.allocation.streams.add(stream)


def run(func: Any, args: tuple, kwargs: dict[str, Any]) -> Any:
    """One operation of PyTorch (or a registered one of ours) that a tensor or an argument brought to sim:0."""
    name, ledger = func._schema.name, active()
    tensors = list(tensors_in((args, kwargs)))
    ours = [tensor for tensor in tensors if isinstance(tensor, SimTensor)]
    _check_usable(name, tensors, ours, copies=name in COPIES)
    if name in COPIES:
        return _copy(func, args, kwargs)
    waits = _makes_host_wait(name, args, kwargs)
    if waits:
        ledger.wait(name)
    ledger.streams.current.land()

    device = kwargs.get("device")
    to_sim = bool(ours) or not tensors if device is None else torch.device(device).type == "sim"
    if device is not None:
        kwargs = {**kwargs, "device": "cpu"}
    ours_registered = name.startswith("fastrlhf::")
    with _in(Place.REGISTERED if ours_registered else _place):
        if ledger.values or not to_sim:
            out = func(*unwrap(args), **unwrap(kwargs))
        elif ours_registered:
            out = without_values.run_registered(func, unwrap(args), unwrap(kwargs))
        else:
            out = without_values.run(func, unwrap(args), unwrap(kwargs), wanted=waits)
    if not to_sim:
        return out
    wrapped = wrap(out, ours, name)
    fresh = _fresh(wrapped, ours)
    if name in EMPTY:
        if ledger.poison:
            for tensor in fresh:
                tensor.elem.untyped_storage().fill_(POISON)
    elif (fresh or func._schema.is_mutable) and not ours_registered:
        tf32 = torch.get_float32_matmul_precision() != "highest"
        ledger.kernel(name, torch_cost(func, args, kwargs, wrapped, fresh), dtype(*ours, *fresh), tf32)
    if waits:
        ledger.wait_for_stream()
    return wrapped


def observe(kernel: Kernel, args: tuple[Any, ...]) -> Any:
    """An operation of ours, called for tensors of sim:0 or within a registered operation on them: one launch."""
    tensors = list(tensors_in(args))
    ours = [tensor for tensor in tensors if isinstance(tensor, SimTensor)]
    ledger = active()
    if not ours and _place != Place.REGISTERED:
        if _place == Place.OUTSIDE:
            ledger.host_work(kernel.operation, kernel.cost(*args))
            if not ledger.values and without_values.in_place(kernel.operation):
                return None
        return kernel.run(*args)
    if ours:
        _check_usable(kernel.operation, tensors, ours)
        ledger.streams.current.land()
    with _in(Place.KERNEL):
        values = unwrap(args)
        out = kernel.run(*values) if ledger.values else without_values.run_kernel(kernel.operation, values)
    ledger.kernel(kernel.operation, kernel.cost(*args), dtype(*tensors))
    return wrap(out, ours, kernel.operation) if ours else out


@contextmanager
def _in(place: Place) -> Iterator[None]:
    global _place
    before, _place = _place, place
    try:
        yield
    finally:
        _place = before


def unwrap(tree: Any) -> Any:
    """The values on the CPU in place of the tensors of sim:0."""
    return over_tensors(lambda tensor: tensor.elem if isinstance(tensor, SimTensor) else tensor, tree)


def wrap(tree: Any, ours: list[SimTensor], maker: str) -> Any:
    """The reverse: one of `ours` where its own values came back, as from an operation in place, else a new tensor."""
    own = {id(tensor.elem): tensor for tensor in ours}

    def one(leaf: torch.Tensor) -> SimTensor:
        if id(leaf) not in own:
            return SimTensor(leaf, _describe(maker, leaf))
        tensor = own[id(leaf)]
        if tensor.shape != leaf.shape or tensor.stride() != leaf.stride():
            tensor.data = SimTensor(leaf, _describe(maker, leaf))  # `out=` was resized, or `t_` and the like
        return tensor

    return over_tensors(one, tree)


def _fresh(tree: Any, ours: list[SimTensor]) -> list[SimTensor]:
    known = {id(tensor.allocation) for tensor in ours}
    return [
        tensor
        for tensor in tensors_in(tree)
        if isinstance(tensor, SimTensor) and id(tensor.allocation) not in known
    ]


def _check_usable(
    name: str, tensors: list[torch.Tensor], ours: list[SimTensor], copies: bool = False
) -> None:
    """Nothing freed, and all on the device; a number on the host (no dimensions) may stand beside, as on a GPU."""
    for tensor in ours:
        if tensor.allocation.freed:
            refuse(
                UseAfterFreeError(
                    f"{name} touches memory of {tensor.allocation.piece.holder} that was given back"
                )
            )
    if copies:
        return
    strangers = [tensor for tensor in tensors if not isinstance(tensor, SimTensor) and tensor.dim() > 0]
    if ours and strangers:
        found = ", ".join(f"{list(tensor.shape)} on {tensor.device}" for tensor in (*ours, *strangers))
        refuse(RuntimeError(f"{name}: expected all tensors to be on the same device, but found {found}"))


def _makes_host_wait(name: str, args: tuple, kwargs: dict[str, Any]) -> bool:
    if name in INDEXING:
        return any(isinstance(index, torch.Tensor) and index.dtype in BOOLEANS for index in args[1])
    if name == "aten::repeat_interleave":
        return kwargs.get("output_size") is None
    return name in HOST_WAITS


def _describe(maker: str, tensor: torch.Tensor) -> str:
    return f"{maker} {list(tensor.shape)} {str(tensor.dtype).removeprefix('torch.')}"


# Copies


def _copy(func: Any, args: tuple, kwargs: dict[str, Any]) -> torch.Tensor:
    name = func._schema.name
    if name == "aten::_to_copy":
        return _copy_to_new(func, args[0], kwargs)
    source, target = (args[1], args[0]) if name == "aten::copy_" else args[:2]
    non_blocking = args[2] if len(args) > 2 else kwargs.get("non_blocking", False)
    _begin(source, target, non_blocking)
    if not _lands_late(source, target, non_blocking):
        _arrive(source, target)
        _copy_values(unwrap(target), unwrap(source))
        return target
    _enqueue(source, target)
    return target


def _copy_to_new(func: Any, source: torch.Tensor, kwargs: dict[str, Any]) -> torch.Tensor:
    device = torch.device(kwargs.get("device") or source.device)
    if device.type not in ("sim", "cpu"):
        raise RuntimeError(f"sim:0 copies to and from the CPU, not to {device}")
    non_blocking = kwargs.get("non_blocking", False)
    if not non_blocking:
        active().streams.current.land()
    kwargs = {**kwargs, "device": "cpu", "non_blocking": False}
    if active().values:
        values = func(unwrap(source), **kwargs)
    else:
        values = without_values.converted(func, unwrap(source), kwargs, to_host=device.type == "cpu")
    target = values if device.type == "cpu" else SimTensor(values, _describe("aten::_to_copy", values))
    if device.type == "cpu" and non_blocking:
        active().pinned.add(target)  # as PyTorch does, so that the host need not wait
    _begin(source, target, non_blocking)
    if _lands_late(source, target, non_blocking):
        _enqueue(source, target)
    else:
        _arrive(source, target)
    return target


def _begin(source: torch.Tensor, target: torch.Tensor, non_blocking: bool) -> None:
    """Books the bytes: within the device a copy is a kernel."""
    ledger, from_sim, to_sim = active(), isinstance(source, SimTensor), isinstance(target, SimTensor)
    if from_sim and to_sim:
        ledger.kernel("aten::copy_", Cost(size(source), size(target)), dtype(target))
        return
    pinned = ledger.pinned.holds(source if to_sim else target)
    ledger.copy(nbytes(source), to_device=to_sim, pinned=pinned, blocking=not non_blocking)


def _lands_late(source: torch.Tensor, target: torch.Tensor, non_blocking: bool) -> bool:
    """A copy to memory of the host that is not pinned is done when the call returns, whoever asked it not to block."""
    from_sim, to_sim = isinstance(source, SimTensor), isinstance(target, SimTensor)
    return non_blocking and from_sim != to_sim and (to_sim or active().pinned.holds(target))


def _arrive(source: torch.Tensor, target: torch.Tensor) -> None:
    """What was begun on this stream before has landed; the host has waited if one side is its own."""
    ledger = active()
    if not isinstance(target, SimTensor):
        ledger.wait("a copy to the host")
    elif not isinstance(source, SimTensor):
        ledger.wait("a blocking copy from the host")
    ledger.streams.current.land()


def _enqueue(source: torch.Tensor, target: torch.Tensor) -> None:
    stream, values, destination = active().streams.current, unwrap(source), unwrap(target)
    if active().values:
        poison(destination)
    # the allocator keeps memory that this stream made, or was told of, until the copy is done
    kept = [tensor.allocation for tensor in (source, target) if isinstance(tensor, SimTensor)]
    kept = [allocation for allocation in kept if stream in allocation.streams]

    def land() -> None:
        _copy_values(destination, values)
        kept.clear()

    stream.enqueue(land)


def _copy_values(target: torch.Tensor, source: torch.Tensor) -> None:
    if active().values:
        target.copy_(source)
    else:
        without_values.copy_values(target, source)


def poison(tensor: torch.Tensor) -> None:
    """Fill a tensor of the CPU, which may be a view, with what no right result holds: bytes of all ones."""
    if tensor.dtype == torch.bool:
        tensor.fill_(True)
    else:
        tensor.fill_(torch.nan if tensor.is_floating_point() or tensor.is_complex() else -1)
