"""For code that takes a module's weights without running it, in models that may be offloaded or not."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

if TYPE_CHECKING:
    from fastrlhf.memory.manager import MemoryManager

# The names of the hooks by which a manager has weights on the device while a module runs, and what it saves elsewhere:
# no number changes by them.
MANAGER_HOOKS = ("bring_parameters", "let_parameters_go", "send_activations_away", "keep_activations")

_NAME = "_fastrlhf_manager"


class _Managed:
    """The manager of a module; a copy of the module has none."""

    def __init__(self, manager: MemoryManager | None):
        self.manager = manager

    def __deepcopy__(self, memo: dict[int, Any]) -> _Managed:
        return _Managed(None)

    def __reduce__(self) -> tuple[type, tuple[None]]:
        return _Managed, (None,)


def using(module: nn.Module) -> AbstractContextManager[None]:
    """The weights of `module` are on the device for the block, and when a backward needs what the block saved.

    Where nothing is offloaded this does nothing.
    """
    manager = manager_of(module)
    return nullcontext() if manager is None else manager.use(module)


def manager_of(module: nn.Module) -> MemoryManager | None:
    """Who has the weights of `module`; None where nothing is offloaded."""
    managed = vars(module).get(_NAME)
    return None if managed is None else managed.manager


def own_leaf(module: nn.Module, parameter: nn.Parameter) -> torch.Tensor:
    """`parameter` for code within `using(module)` that reads it once a forward, such as a head's.

    Where its memory is managed it is a leaf of its own, whose gradient joins the parameter's as soon as it is known.
    (PyTorch would hold that of tied embeddings, as large as they are, until the end of the backward.)
    """
    manager = manager_of(module)
    return parameter if manager is None else manager.own_leaf(parameter)


def put_under(manager: MemoryManager, module: nn.Module) -> None:
    """From now on `manager` has the weights of `module`."""
    vars(module)[_NAME] = _Managed(manager)
