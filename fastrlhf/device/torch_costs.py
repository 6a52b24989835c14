"""What one of PyTorch's own operations has to read, write and compute, as `Cost` defines it.

Elements that an expanded tensor shows many times are read once. Only products of matrices (and attention) count as
arithmetic: the rest is bound by memory on every card.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.utils.flop_counter import flop_registry

from fastrlhf.device import sim_attention
from fastrlhf.device.observe import Cost
from fastrlhf.device.trees import tensors_in

# They read the shape of a tensor and not its values.
FILLS = {
    f"aten::{name}"
    for name in (
        *("fill_", "zero_", "normal_", "uniform_", "random_", "bernoulli_", "exponential_"),
        *("ones_like", "zeros_like", "full_like", "rand_like", "randn_like"),
        *("new_ones", "new_zeros", "new_full"),
    )
}
# They read, of their first argument, what they give.
LOOKUPS = {"aten::embedding", "aten::index", "aten::index_select", "aten::gather"}
# They change, in their first argument, as many elements as the tensor of this name has.
SCATTERS = {
    "aten::index_put_": "values",
    "aten::_index_put_impl_": "values",
    "aten::index_copy_": "source",
    "aten::index_add_": "source",
    "aten::scatter_": "index",
    "aten::scatter_add_": "index",
}


def torch_cost(
    func: Any, args: tuple, kwargs: dict[str, Any], out: Any, fresh: Sequence[torch.Tensor]
) -> Cost:
    """The cost of a call of an ATen operation.

    Args:
        out: what it returned.
        fresh: the tensors among it that are no views of its arguments.
    """
    schema, named = func._schema, _by_name(func._schema, args, kwargs)
    given = list(tensors_in((args, kwargs)))
    changed = list(tensors_in(_changed(schema, named)))
    flops = _flops(func, args, kwargs, out)
    if schema.name in FILLS:
        return Cost(0, size(*fresh, *changed), flops)
    if schema.name in LOOKUPS:
        return Cost(size(*given[1:], *fresh), size(*fresh), flops)
    if schema.name in SCATTERS:
        part = named[SCATTERS[schema.name]].numel() * given[0].element_size()
        return Cost(size(*given[1:]), part, flops)
    results = {id(named.get(argument.name)) for argument in schema.arguments if argument.is_out}
    read = [tensor for tensor in given if id(tensor) not in results]
    return Cost(size(*read), size(*fresh, *changed), flops)


def size(*tensors: torch.Tensor) -> int:
    """Bytes of the tensors, those of an expanded dimension once."""
    return sum(_elements(tensor) * tensor.element_size() for tensor in tensors)


def dtype(*tensors: torch.Tensor) -> torch.dtype:
    """What an operation on these tensors computes in: the first float's type."""
    return next((tensor.dtype for tensor in tensors if tensor.is_floating_point()), torch.float32)


def _elements(tensor: torch.Tensor) -> int:
    if 0 in tensor.shape:
        return 0
    number = 1
    for length, stride in zip(tensor.shape, tensor.stride(), strict=True):
        number *= length if stride else 1
    return number


def _flops(func: Any, args: tuple, kwargs: dict[str, Any], out: Any) -> int:
    if func.namespace == sim_attention.NAMESPACE:
        return sim_attention.flops(func._schema.name, *args)
    formula = flop_registry.get(func._overloadpacket)
    return int(formula(*args, **kwargs, out_val=out)) if formula else 0


def _by_name(schema: Any, args: tuple, kwargs: dict[str, Any]) -> dict[str, Any]:
    return {argument.name: value for argument, value in zip(schema.arguments, args, strict=False)} | kwargs


def _changed(schema: Any, named: dict[str, Any]) -> list[Any]:
    marked = [a.name for a in schema.arguments if a.alias_info is not None and a.alias_info.is_write]
    return [named.get(name) for name in marked]
