"""A simulated accelerator, `sim:0`, for machines that have none.

    with simulated.registered(capacity=8 * 10**9) as device:
        model.to("sim")
        with device.step():
            train(model)
        print(device.peak, device.launches, device.to_host)

Values are computed on the CPU, those of our operations by our CPU kernels. What is simulated are a GPU's rules and
books: memory with a capacity, bytes to and from the host, kernels launched, errors where an operation mixes devices or,
inside a step, makes the host wait, and copies that land late (see `streams`). An operation of ours is one launch, with
the cost that it declares; its temporaries are not counted. With the profile of a card, `device.timeline` says when each
kernel and copy would run on it.

PyTorch has one place for a foreign device in a process, and cannot take it back: after the block the name stays, and
using it raises. While registered, `torch.accelerator.is_available()` stays False, so that loaders do not pin memory for
it.

In a backward, an error of the device's own comes at the end of it. PyTorch does not survive another error of Python in
the backward of one of its own operations on a foreign device: where it says "terminate called", look for one.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from math import inf
from typing import Any

import torch
from torch.utils import _foreach_utils
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

from fastrlhf.device import sim_attention, sim_tensor
from fastrlhf.device.ledger import Ledger
from fastrlhf.device.observe import observing
from fastrlhf.device.profiles import Profile
from fastrlhf.device.profiles import profile as named_profile
from fastrlhf.device.sim_tensor import NAME, SimTensor, active
from fastrlhf.device.stand_ins import stand_ins
from fastrlhf.device.streams import Event, Stream

_libraries: list[torch.library.Library] = []


@contextmanager
def registered(
    capacity: float | None = None,
    *,
    poison: bool = True,
    profile: str | Profile | None = None,
    values: bool = True,
) -> Iterator[Ledger]:
    """sim:0, for the block, with books of its own.

    Args:
        capacity: its memory in bytes; by default the profile's, without one no limit.
        poison: fill fresh and freed memory with NaN.
        values: compute; False has floats as shapes alone, so that models of any size run (see `without_values`).
        profile: the card whose seconds `Ledger.timeline` counts, or its name in `profiles.PROFILES`; None: no seconds.

    Raises:
        ValueError: there is no profile of that name.
        RuntimeError: another foreign device has PyTorch's place already.
    """
    _claim()
    if isinstance(profile, str):
        profile = named_profile(profile)
    if capacity is None:
        capacity = profile.capacity if profile else inf
    ledger = Ledger(capacity, poison, profile, values)
    supported, swap = (
        _foreach_utils._foreach_supported_types,
        torch.__future__.get_swap_module_params_on_conversion(),
    )
    sim_tensor._active.append(ledger)
    try:
        # `nn.Module.to` then changes parameters in place both ways, as it does for a GPU
        torch.__future__.set_swap_module_params_on_conversion(True)
        supported.append(SimTensor)
        # Autograd starts a thread for each device that it finds at the first backward of the process, and none later:
        # here the backward runs in the thread that asks for it.
        with (
            stand_ins(),
            observing(sim_tensor.observe),
            torch.autograd.set_multithreading_enabled(False),
        ):
            yield ledger
    finally:
        supported.remove(SimTensor)
        torch.__future__.set_swap_module_params_on_conversion(swap)
        sim_tensor._active.remove(ledger)


def free(tensor: torch.Tensor) -> None:
    """Give the memory of a tensor, and of all its views, back: it is filled with NaN, and touching it raises."""
    active().free(tensor.allocation)


def _claim() -> None:
    taken = torch._C._get_privateuse1_backend_name()
    if taken == NAME:
        return
    if taken != "privateuseone":
        raise RuntimeError(f"the device {taken!r} has PyTorch's place for foreign devices in this process")
    _setup_privateuseone_for_python_backend(NAME, backend_module=_Module())
    library = torch.library.Library("_", "IMPL")
    library.fallback(lambda func, *args, **kwargs: sim_tensor.run(func, args, kwargs), "PrivateUse1")
    # Our operations have autocast's rules themselves; PyTorch's own products stay in the dtype of what they are given.
    library.fallback(torch.library.fallthrough_kernel, "AutocastPrivateUse1")
    _libraries.extend([library, *sim_attention.register()])


class _Module:
    """`torch.sim`, with the names of `torch.cuda`."""

    @staticmethod
    def is_available() -> bool:
        """False, or `torch.accelerator` would have loaders pin memory for it."""
        return False

    @staticmethod
    def is_initialized() -> bool:
        return True

    @staticmethod
    def device_count() -> int:
        return 1

    @staticmethod
    def current_device() -> int:
        return 0

    @staticmethod
    def _is_in_bad_fork() -> bool:
        return False

    @staticmethod
    def manual_seed_all(seed: int) -> None:
        """Random numbers come from the CPU's generator, which has its own seed."""

    @staticmethod
    def get_amp_supported_dtype() -> list[torch.dtype]:
        """Checkpointed activations ask, to compute them again as they were computed."""
        return [torch.bfloat16, torch.float16]

    @staticmethod
    def get_rng_state(device: Any = None) -> torch.Tensor:
        return torch.get_rng_state()

    @staticmethod
    def set_rng_state(state: torch.Tensor, device: Any = None) -> None:
        torch.set_rng_state(state)

    @staticmethod
    @contextmanager
    def device(index: Any) -> Iterator[None]:
        yield

    @staticmethod
    def Stream(device: Any = None, priority: int = 0) -> Stream:
        return active().streams.new()

    @staticmethod
    def Event(**options: bool) -> Event:
        return Event(active().streams)

    @staticmethod
    def current_stream(device: Any = None) -> Stream:
        return active().streams.current

    @staticmethod
    def stream(stream: Stream | None) -> Any:
        return active().streams.using(stream)

    @staticmethod
    def synchronize(device: Any = None) -> None:
        active().streams.synchronize()

    @staticmethod
    def memory_allocated(device: Any = None) -> int:
        return active().live

    @staticmethod
    def max_memory_allocated(device: Any = None) -> int:
        return active().peak

    @staticmethod
    def mem_get_info(device: Any = None) -> tuple[float, float]:
        return active().capacity - active().live, active().capacity

    @staticmethod
    def empty_cache() -> None:
        """Nothing is cached."""
