"""The products of training on a CPU, each by the provider that was fastest when its shape was first seen.

PyTorch's own products are MKL's, which on AMD processors do not use all there is: 111 GFLOP/s a core where oneDNN,
inside the same PyTorch, reaches 243 with a weight that stays packed for it, and ours 235 with the weight as it lies
(Zen 5, 512 rows of 576 by 1,536, float32; in the gradient of the weight 107 and 238). The choice is a table, so that a
run which is resumed with the table of its first part computes the same bits.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable

import torch

from fastrlhf.kernels.cpu.matmul import matmul
from fastrlhf.kernels.packed import keeps, packed

PROVIDERS = ("torch", "onednn", "ours")
# Another provider than PyTorch has to be this much faster: a lead that the next run may not see is not worth a table
# that changes, nor a packed copy of the weight.
_LEAD = 1.05
_ROUNDS = 3
# Products of less work, counted in multiplications, are PyTorch's unmeasured: they take microseconds, which a clock
# tells apart one way today and the other tomorrow, and the bits of a small run with it.
_WORTH_MEASURING = 1 << 22

_table: dict[str, str] = {}


def forward(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, *, keep: bool = True
) -> torch.Tensor:
    """`x weight^T + bias`, `[N, out]`; all float32 on the CPU. `keep` says whether the packed weight may stay."""
    keep = keep and keeps(weight)
    candidates = {
        "torch": lambda: torch.nn.functional.linear(x, weight, bias),
        "onednn": lambda: _onednn(x, packed(weight, x.shape[0], keep=keep), bias),
        "ours": lambda: matmul(x, weight.T, bias)[0],
    }
    return _run("forward", (x.shape[0], *weight.shape), keep, candidates)


def grad_input(grad: torch.Tensor, weight: torch.Tensor, *, keep: bool = True) -> torch.Tensor:
    """`grad weight`, `[N, in]`."""
    keep = keep and keeps(weight, transposed=True)
    candidates = {
        "torch": lambda: grad @ weight,
        "onednn": lambda: _onednn(grad, packed(weight, grad.shape[0], transposed=True, keep=keep)),
        "ours": lambda: matmul(grad, weight)[0],
    }
    return _run("grad_input", (grad.shape[0], *weight.shape), keep, candidates)


def grad_weight(grad: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """`grad^T x`, `[out, in]`. Both operands are new every time: the packing is part of the product."""
    candidates = {
        "torch": lambda: grad.T @ x,
        "onednn": lambda: _onednn(grad.T.contiguous(), packed(x, grad.shape[1], transposed=True, keep=False)),
        "ours": lambda: matmul(grad.T, x)[0],
    }
    return _run("grad_weight", (x.shape[0], grad.shape[1], x.shape[1]), False, candidates)


def export_table() -> dict[str, str]:
    """The choices made so far: product, shape and threads to provider. Part of a run's state."""
    return dict(_table)


def import_table(table: dict[str, str]) -> None:
    """Take over the choices of another run; shapes that it did not see are measured when they come.

    Raises:
        ValueError: a provider that there is not.
    """
    for key, provider in table.items():
        if provider not in PROVIDERS:
            raise ValueError(f"table names the provider {provider!r} for {key}, expected one of {PROVIDERS}")
    _table.update(table)


def clear_table() -> None:
    """Forget all choices."""
    _table.clear()


def _run(
    product: str, shape: tuple[int, int, int], keep: bool, candidates: dict[str, Callable[[], torch.Tensor]]
) -> torch.Tensor:
    if math.prod(shape) < _WORTH_MEASURING or not torch.backends.mkldnn.is_available():
        return candidates["torch"]()
    rows = 1 << (shape[0] - 1).bit_length()

    def key(rows: int) -> str:
        kept = "kept" if keep else "packed each time"
        return f"{product} {rows}x{shape[1]}x{shape[2]}, {kept}, {torch.get_num_threads()} threads"

    # Packed sequences give another number of rows every step: those of one power of two share a choice, and so does
    # the next one up or down. A run whose first step has seen all its products then measures nothing later, where it
    # might find otherwise than when it is resumed.
    known = next((key(near) for near in (rows, 2 * rows, rows // 2) if key(near) in _table), None)
    if known is None:
        known = key(rows)
        # oneDNN is worth a copy that stays; one for a single product takes memory and more time than ours
        offered = candidates if keep else {name: candidates[name] for name in ("torch", "ours")}
        _table[known] = _fastest(offered)
    return candidates[_table[known]]()


def _fastest(candidates: dict[str, Callable[[], torch.Tensor]]) -> str:
    """The name of the candidate with the least time of a few, taken in turns after one that does not count."""
    best = {name: float("inf") for name in candidates}
    for count in range(_ROUNDS + 1):
        for name, candidate in candidates.items():
            start = time.perf_counter()
            candidate()
            if count:
                best[name] = min(best[name], time.perf_counter() - start)
    winner = min(best, key=lambda name: best[name])
    return winner if best[winner] * _LEAD <= best["torch"] else "torch"


def _onednn(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
