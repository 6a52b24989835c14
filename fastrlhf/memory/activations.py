"""Activations that wait for their backward in the host's memory."""

from __future__ import annotations

import weakref
from collections import deque
from typing import Any

import torch
from torch import nn
from torch.autograd.graph import saved_tensors_hooks

from fastrlhf.memory.copies import Copier, Ticket, host_buffer
from fastrlhf.memory.meter import Meter

# Bytes under which a tensor stays: a copy costs about as much as so many bytes (see `layout.CHUNK_COST`).
SMALLEST = 256 * 1024
# Activations that are on their way out while the next ones are computed.
LEAVING = 2


class Activations:
    """Sends what a forward keeps for its backward to the host, and has it back before it is asked for.

    That is what autograd saves while `attach`ed modules run: with gradient checkpointing the input of each layer,
    without it all that the layers' operations keep. Weights stay with their chunks.

    Args:
        copier: of the device. device, host: the books of the two tiers; what waits in the host is held there.
        prefetch: how many activations are brought ahead of the one that is needed.
    """

    def __init__(self, copier: Copier, device: Meter, host: Meter, prefetch: int):
        self.copier, self.device, self.host, self.prefetch = copier, device, host, prefetch
        self._leaving: deque[weakref.ref[Away]] = deque()
        self._away: weakref.WeakValueDictionary[int, Away] = weakref.WeakValueDictionary()
        self._count = 0
        self._free: dict[int, list[torch.Tensor]] = {}

    def attach(self, module: nn.Module) -> None:
        """Have what is saved within `module`'s forward leave the device."""
        entered: list[saved_tensors_hooks | None] = []

        def send_activations_away(module: nn.Module, args: Any) -> None:
            hooks = saved_tensors_hooks(self._pack, self._unpack) if torch.is_grad_enabled() else None
            if hooks is not None:
                hooks.__enter__()
            entered.append(hooks)

        def keep_activations(module: nn.Module, args: Any, output: Any) -> None:
            if entered and (hooks := entered.pop()) is not None:
                hooks.__exit__()

        module.register_forward_pre_hook(send_activations_away)
        module.register_forward_hook(keep_activations, always_call=True)

    def buffer(self, size: int) -> torch.Tensor:
        """Memory of the host for `size` bytes, one that was used before if there is one.

        Raises:
            CapacityError: the host tier has no room for more.
        """
        room = _rounded(size)
        if self._free.get(room):
            return self._free[room].pop()
        self.host.hold(room)
        return host_buffer(room, self.copier.device)

    def give_back(self, buffer: torch.Tensor) -> None:
        """A buffer can be used again by what is asked of the device from now on."""
        self._free.setdefault(buffer.numel(), []).append(buffer)

    @torch.no_grad()
    def _pack(self, tensor: torch.Tensor) -> torch.Tensor | Away:
        weight = isinstance(tensor, nn.Parameter) or isinstance(tensor._base, nn.Parameter)
        if weight or tensor.nbytes < SMALLEST or not self._is_flat_on_device(tensor):
            return tensor
        for reference in self._leaving:
            if (away := reference()) is not None and away.is_of(tensor):
                return away  # several operations often keep the same one
        while len(self._leaving) >= LEAVING:
            if (oldest := self._leaving.popleft()()) is not None:
                oldest.leave()
        self._count += 1
        away = Away(self, self._count, tensor.detach())
        self._leaving.append(weakref.ref(away))
        self._away[away.number] = away
        return away

    def _is_flat_on_device(self, tensor: torch.Tensor) -> bool:
        return tensor.device.type == self.copier.device.type and tensor.is_contiguous()

    @torch.no_grad()
    def _unpack(self, saved: torch.Tensor | Away) -> torch.Tensor:
        if not isinstance(saved, Away):
            return saved
        tensor = saved.arrive()
        # a backward goes through them in reverse
        for number in range(saved.number - 1, saved.number - 1 - self.prefetch, -1):
            if (earlier := self._away.get(number)) is not None:
                earlier.set_out()
        return tensor


class Away:
    """An activation in the host's memory; when nothing asks for it any more its buffer is given back.

    Attributes:
        number: counts them in the order of the forward.
    """

    def __init__(self, owner: Activations, number: int, source: torch.Tensor):
        self.number, self._owner = number, owner
        self._source: torch.Tensor | None = source
        self._version = source._version
        self._like = source.shape, source.dtype
        self._size = source.nbytes
        self._buffer = owner.buffer(self._size)
        self._ticket: Ticket = owner.copier.to_host(self._values(), source)
        owner.device.moved_out += self._size
        owner.host.moved_in += self._size
        self._coming: torch.Tensor | None = None
        self._arrived: weakref.ref[torch.Tensor] | None = None

    def is_of(self, tensor: torch.Tensor) -> bool:
        """Whether it holds the values of `tensor`, which are still on the device."""
        source = self._source
        return source is not None and (
            source._version == tensor._version
            and (source.shape, source.dtype) == (tensor.shape, tensor.dtype)
            and source.data_ptr() == tensor.data_ptr() != 0
        )

    def leave(self) -> None:
        """Let the device's memory go: what the device does from now on comes after the copy.

        Raises:
            RuntimeError: the activation was changed in place since it was saved.
        """
        if self._source._version != self._version:
            raise RuntimeError(
                "a tensor needed for the backward was modified in place while it was on its way to the host: "
                "do without the in-place operation, or without offload_activations"
            )
        self._ticket.wait()
        self._source = None

    def set_out(self) -> None:
        """Begin to come back, unless it is on the device."""
        if self._coming is not None or self._present() is not None:
            return
        shape, dtype = self._like
        self._coming = torch.empty(shape, dtype=dtype, device=self._owner.copier.device)
        self._ticket = self._owner.copier.to_device(self._coming, self._values())
        self._owner.device.moved_in += self._size
        self._owner.host.moved_out += self._size

    def arrive(self) -> torch.Tensor:
        """The activation, on the device."""
        if (tensor := self._present()) is not None:
            return tensor
        self.set_out()
        tensor, self._coming = self._coming, None
        self._ticket.wait()
        self._arrived = weakref.ref(tensor)
        return tensor

    def _present(self) -> torch.Tensor | None:
        """The tensor on the device: the one that was saved, while it is leaving, or one that arrived and is in use."""
        return self._source if self._arrived is None else self._arrived()

    def _values(self) -> torch.Tensor:
        shape, dtype = self._like
        return self._buffer[: self._size].view(dtype).view(shape)

    def __del__(self) -> None:
        if hasattr(self, "_ticket"):
            self._ticket.wait()  # the last copy into the buffer or out of it
            self._owner.give_back(self._buffer)


def _rounded(size: int) -> int:
    """A size that others come to as well: three bits of it are kept, the rest is rounded up."""
    step = 1 << max(size.bit_length() - 3, 0)
    return -(-size // step) * step
