"""`fastrlhf.offload`: a model larger than its device, in any training loop."""

from __future__ import annotations

from collections.abc import Sequence
from math import inf
from pathlib import Path

import torch
from torch import nn

from fastrlhf.memory.hybrid_adam import HybridAdam
from fastrlhf.memory.manager import MemoryManager
from fastrlhf.memory.placement import AutoPlacement, Capacities, Placement, StaticPlacement
from fastrlhf.memory.sizes import parse_size

_UNSUPPORTED = ("amsgrad", "maximize", "differentiable", "capturable")


def offload(
    model: nn.Module | Sequence[nn.Module],
    optimizer: torch.optim.Optimizer | None = None,
    *,
    device_memory: str | int | None = None,
    host_memory: str | int | None = None,
    disk: str | Path | None = None,
    disk_memory: str | int | None = None,
    device: str | torch.device | None = None,
    placement: str | Placement = "auto",
    prefetch: int = 2,
    chunk_size: str | int | None = None,
    offload_activations: bool = False,
) -> HybridAdam | MemoryManager:
    """Train, or run, models whose parameters, gradients and optimizer state are more than the device holds.

        optimizer = fastrlhf.offload(model, torch.optim.AdamW(model.parameters(), lr=1e-5), device_memory="6GB")
        model(batch).loss.backward()
        optimizer.clip_grad_norm_(1.0)
        optimizer.step()
        optimizer.zero_grad()

    The model is changed in place and runs as before; put adapters on it, and accelerate it, before. Results do not
    depend on the memory given.

    Args:
        model: a model, or several that share the memory (policy, reference, reward model).
        optimizer: an AdamW over parameters of these, or an Adam without weight decay; the returned one takes its place,
            with its groups and state. None: nothing is trained.
        device_memory: what parameters, gradients and optimizer state may take on the device, beside activations.
            A number of bytes, or such as "6GB"; None: no limit. Where the device is the CPU: memory of the process.
        host_memory: what they may take in the host's memory beside. None: no limit; where the device is the CPU, none.
        disk: a directory for what fits in neither, which is read and written all the time: an SSD of this machine.
        disk_memory: what they may take there. None: no limit.
        device: where the model runs; None: where it is now.
        placement: "auto" (what is needed furthest in the future leaves first), or a `StaticPlacement`.
        prefetch: how many uses ahead chunks are brought while others are computed with.
        chunk_size: how much moves at once; None searches the size that wastes least.
        offload_activations: what the forward keeps for the backward goes to the host's memory (and counts in
            `host_memory`) until it is needed: each layer's input with gradient checkpointing, else all that the layers'
            operations keep. For devices other than the CPU, whose memory is the host's.

    Returns:
        The optimizer (its `manager` has the books: `print(optimizer.manager.report())`), or without one the manager.

    Raises:
        ValueError, TypeError: an argument that cannot be meant.
        CapacityError: something has no place; the message says how many bytes are needed. TierError: the disk cannot be
            used.
    """
    models = [model] if isinstance(model, nn.Module) else list(model)
    parameters = [parameter for each in models for parameter in each.parameters()]
    if not parameters:
        raise ValueError("model has no parameters: there is nothing to move")
    groups = [] if optimizer is None else optimizer.param_groups
    trained = [parameter for group in groups for parameter in group["params"]]
    _check(parameters, trained, optimizer)
    place = torch.device(device) if device is not None else _device_of(parameters)
    if placement == "auto":
        placement = AutoPlacement()
    if not isinstance(placement, (AutoPlacement, StaticPlacement)):
        raise ValueError(f'placement is {placement!r}, expected "auto" or a StaticPlacement')
    if prefetch < 0:
        raise ValueError(f"prefetch is {prefetch}, expected a number from 0 on")
    if offload_activations and place.type == "cpu":
        raise ValueError(
            "offload_activations=True, but the device is the CPU, whose memory is the host's: nothing would be saved. "
            "Gradient checkpointing makes the activations fewer, and shorter micro-batches smaller"
        )
    host_default = 0 if place.type == "cpu" else inf
    manager = MemoryManager(
        models,
        trained,
        device=place,
        capacities=Capacities(
            _size("device_memory", device_memory, inf),
            _size("host_memory", host_memory, host_default),
            0 if disk is None else _size("disk_memory", disk_memory, inf),
        ),
        directory=disk,
        placement=placement,
        prefetch=prefetch,
        chunk_bytes=None if chunk_size is None else parse_size("chunk_size", chunk_size),
        offload_activations=offload_activations,
    )
    if optimizer is None:
        return manager
    ours = HybridAdam(manager, groups)
    if optimizer.state:
        ours.load_states(dict(optimizer.state))
        optimizer.state.clear()
    return ours


def _size(name: str, size: str | int | None, default: float) -> float:
    return default if size is None else parse_size(name, size)


def _device_of(parameters: Sequence[nn.Parameter]) -> torch.device:
    """Where a model runs: the device of its parameters; the CPU for one that has no values yet."""
    device = next(
        (parameter.device for parameter in parameters if not parameter.is_meta), torch.device("cpu")
    )
    return device


def _check(
    parameters: Sequence[nn.Parameter],
    trained: Sequence[nn.Parameter],
    optimizer: torch.optim.Optimizer | None,
) -> None:
    """Raise for an optimizer that cannot be taken over."""
    if optimizer is None:
        return
    # ours is called AdamW too
    if not isinstance(optimizer, torch.optim.Adam) and type(optimizer).__name__ != "AdamW":
        raise TypeError(f"optimizer is a {type(optimizer).__name__}, expected torch.optim.AdamW")
    for group in optimizer.param_groups:
        for name in _UNSUPPORTED:
            if group.get(name):
                raise ValueError(f"optimizer has {name}=True, which is not supported")
        decoupled = type(optimizer).__name__ == "AdamW" or group.get("decoupled_weight_decay")
        if group["weight_decay"] and not decoupled:
            raise ValueError("optimizer is an Adam with weight decay: use torch.optim.AdamW")
    known = {id(parameter) for parameter in parameters}
    if any(id(parameter) not in known for parameter in trained):
        raise ValueError("optimizer has parameters that are not in model")
    for parameter in trained:
        if parameter.dtype not in (torch.float32, torch.bfloat16, torch.float64):
            raise TypeError(
                f"a trained parameter is {parameter.dtype}, expected float32, bfloat16 or float64"
            )
        if parameter.grad is not None:
            raise ValueError("a parameter has a gradient: call optimizer.zero_grad() before fastrlhf.offload")
