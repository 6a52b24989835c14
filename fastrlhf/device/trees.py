"""Tensors among the arguments and results of operations, in lists, tuples and dictionaries.

`torch.utils._pytree` does it for more, and took a fifth of the time of a simulated step.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch


def over_tensors(change: Callable[[torch.Tensor], Any], tree: Any) -> Any:
    """`tree` with `change` of each tensor in its place."""
    if isinstance(tree, torch.Tensor):
        return change(tree)
    if isinstance(tree, (tuple, list)):
        return type(tree)([over_tensors(change, part) for part in tree])
    if isinstance(tree, dict):
        return {key: over_tensors(change, part) for key, part in tree.items()}
    return tree


def tensors_in(tree: Any) -> Iterator[torch.Tensor]:
    """The tensors of `tree`, in order."""
    if isinstance(tree, torch.Tensor):
        yield tree
    elif isinstance(tree, (tuple, list)):
        for part in tree:
            yield from tensors_in(part)
    elif isinstance(tree, dict):
        for part in tree.values():
            yield from tensors_in(part)
