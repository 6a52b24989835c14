"""Checks of arguments that every operation makes, with messages that name the argument and what was expected."""

from __future__ import annotations

import torch

FLOATS = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


def check_shape(name: str, tensor: torch.Tensor, shape: tuple[int, ...], meaning: str) -> None:
    """Raise ValueError unless `tensor` has `shape`; `meaning` spells the shape, such as `[B, T]`."""
    if tensor.shape != shape:
        raise ValueError(f"{name} has shape {list(tensor.shape)}, expected {meaning} = {list(shape)}")


def check_dims(name: str, tensor: torch.Tensor, dims: int, meaning: str) -> None:
    """Raise ValueError unless `tensor` has `dims` dimensions; `meaning` spells the shape."""
    if tensor.dim() != dims:
        raise ValueError(f"{name} has shape {list(tensor.shape)}, expected {meaning}")


def check_dtype(name: str, tensor: torch.Tensor, allowed: tuple[torch.dtype, ...]) -> None:
    """Raise TypeError unless the dtype of `tensor` is one of `allowed`."""
    if tensor.dtype not in allowed:
        raise TypeError(f"{name} has dtype {tensor.dtype}, expected one of {', '.join(map(str, allowed))}")


def check_same_device(**tensors: torch.Tensor | None) -> None:
    """Raise ValueError unless all the tensors given lie on one device."""
    first = None
    for tensor in tensors.values():
        if tensor is None:
            continue
        if first is None:
            first = tensor.device
        elif tensor.device != first:
            raise ValueError(
                "all tensors must be on one device: "
                + ", ".join(
                    f"{name} on {tensor.device}" for name, tensor in tensors.items() if tensor is not None
                )
            )


def check_like(name: str, like: torch.Tensor, dtype: torch.dtype, **tensors: torch.Tensor | None) -> None:
    """Raise ValueError or TypeError unless each of `tensors` has `dtype`, and the shape and the device of `like`.

    `name` is that of `like`. Where all is well, one look at each tensor: with the checks above one by one, those of
    `ppo_loss` took a tenth of its time.
    """
    shape, device = like.shape, like.device
    for named, tensor in tensors.items():
        if tensor is None or (tensor.shape == shape and tensor.dtype == dtype and tensor.device == device):
            continue
        check_shape(named, tensor, tuple(shape), f"the shape of {name}")
        check_dtype(named, tensor, (dtype,))
        check_same_device(**{name: like, named: tensor})


def check_at_least(name: str, value: float, low: float, *, strict: bool = False) -> None:
    """Raise ValueError unless `value` is at least `low` (above it if `strict`); NaN is refused."""
    if not (value > low if strict else value >= low):
        raise ValueError(f"{name} is {value}, expected {'more than' if strict else 'at least'} {low}")
