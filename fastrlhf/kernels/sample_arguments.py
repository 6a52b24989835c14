"""What the launchers of the compiled `sample` kernels hand over, and what comes back."""

from __future__ import annotations

from typing import NamedTuple

import torch


class SampleCall(NamedTuple):
    """Held until the kernel is launched: a contiguous copy among the inputs dies with its last reference.

    The order of what is handed over is that of `SampleCall` in csrc/sample_binding.h.
    """

    inputs: tuple[torch.Tensor | None, ...]
    outputs: tuple[torch.Tensor, ...]
    numbers: tuple[float, ...]
    of_rows: tuple[torch.Tensor | None, ...]

    @property
    def arguments(self) -> tuple[tuple[float, ...], ...]:
        """Addresses, sizes and strides, whole numbers, real ones, and addresses and strides of the rows' settings."""
        logits, _, seen, banned = self.inputs
        seed, step, temperature, top_k, *real = self.numbers
        return (
            tuple(_address(tensor) for tensor in (*self.inputs, *self.outputs)),
            (
                *logits.shape,
                *(0 if tensor is None else tensor.stride(0) for tensor in (logits, seen, banned)),
            ),
            (seed, step, top_k),
            (temperature, *real),
            tuple(_address(tensor) for tensor in self.of_rows),
            tuple(0 if tensor is None else tensor.stride(0) for tensor in self.of_rows),
        )


def sample_call(logits, row_ids, *options) -> SampleCall:
    """From the arguments of `sample` (see `fastrlhf.kernels.reference.sample`), with the outputs allocated."""
    *numbers, seen, banned, of_rows = options
    rows, columns = logits.shape
    for tensor in (seen, banned):
        assert tensor is None or (tensor.shape == logits.shape and tensor.dtype == torch.bool)
    assert all(tensor is None or tensor.shape == (rows,) for tensor in of_rows)
    # A row's elements lie side by side; rows may lie anywhere, as in the last position of [B, T, V].
    logits, seen, banned = (
        tensor if tensor is None or tensor.stride(1) == 1 or columns == 1 else tensor.contiguous()
        for tensor in (logits, seen, banned)
    )
    tokens = torch.empty(rows, dtype=torch.int64, device=logits.device)
    logprobs, entropy = (torch.empty(rows, dtype=torch.float32, device=logits.device) for _ in range(2))
    return SampleCall(
        (logits, row_ids.contiguous(), seen, banned),
        (tokens, logprobs, entropy),
        tuple(numbers),
        tuple(of_rows),
    )


def _address(tensor: torch.Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()
