"""Parameters that have no values yet, and know where to read them once there is a place for them."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

_NAME = "_fastrlhf_read"


def defer(parameter: nn.Parameter, read: Callable[[torch.Tensor], None]) -> None:
    """Have a parameter on the meta device read its values with `read(target)` when it gets a place."""
    vars(parameter)[_NAME] = read


def read_deferred(parameter: nn.Parameter, target: torch.Tensor) -> bool:
    """Write the values of a parameter on the meta device into `target`; False where it knows of none."""
    read = vars(parameter).pop(_NAME, None)
    if read is not None:
        read(target)
    return read is not None


def is_deferred(parameter: nn.Parameter) -> bool:
    """Whether its values are still to be read."""
    return _NAME in vars(parameter)
