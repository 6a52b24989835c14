"""Weights in 8 and 4 bits: contract, registration and public functions."""

from __future__ import annotations

from typing import NamedTuple

import torch

from fastrlhf.device.observe import Cost, nbytes
from fastrlhf.kernels import dispatch
from fastrlhf.kernels.checks import FLOATS, check_dims, check_dtype, check_same_device, check_shape
from fastrlhf.kernels.code_books import table
from fastrlhf.kernels.registration import operation

FORMATS = ("int8", "nf4")
NF4_BLOCK = 64
SCALE_BLOCK = 256
_WEIGHT_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


class QuantizedWeight(NamedTuple):
    """A weight `[out, in]` in 8 or 4 bits.

    int8: codes int8 `[out, in]`, scales float32 `[out]`; the weight is `codes * scales`. The other two are None.
    nf4: codes uint8 `[out, 32 ceil(in / 64)]`, two codes a byte, the first in the high half; scales uint8 `[out,
    ceil(in / 64)]`, codes of the 8-bit dynamic float; scale_scales float32 `[ceil(blocks / 256)]`; offset float32 `[]`.
    """

    codes: torch.Tensor
    scales: torch.Tensor
    scale_scales: torch.Tensor | None
    offset: torch.Tensor | None
    in_features: int
    dtype: torch.dtype

    @property
    def format(self) -> str:
        return "int8" if self.codes.dtype == torch.int8 else "nf4"

    @property
    def shape(self) -> tuple[int, int]:
        return self.codes.shape[0], self.in_features

    @property
    def device(self) -> torch.device:
        return self.codes.device

    @property
    def nbytes(self) -> int:
        """What the weight takes: 1 byte a number and 4 a row (int8), or about 0.516 bytes a number (nf4)."""
        return sum(part.nbytes for part in self if isinstance(part, torch.Tensor))

    def to(self, device: torch.device | str) -> QuantizedWeight:
        return self._replace(
            **{
                name: part.to(device)
                for name, part in self._asdict().items()
                if isinstance(part, torch.Tensor)
            }
        )


def quantize(weight: torch.Tensor, format: str = "nf4") -> QuantizedWeight:
    """`weight` in 8 or 4 bits, with scales of its own.

    int8: symmetric by output channel, `scale = max|row| / 127`, `code = round(w / scale)`, halves to even; a row is
    within half a scale of itself. nf4: blocks of 64 along a row (each row begins one; the last may be shorter),
    `code` the nearest of the 16 values to `w / max|block|`, a tie to the lower; the blocks' maxima are kept as 8-bit
    floats in blocks of 256 after their mean is taken off ("double quantisation").
    A row or block of zeros comes back as zeros.

    Source: Dettmers et al., "LLM.int8()" (2022), section 2, and "QLoRA" (2023), section 3. Where `in` is a multiple
    of 64, codes and blocks are laid out as in that paper's released code.

    Args:
        weight: `[out, in]`, float32, bfloat16 or float16, finite.
        format: "int8" or "nf4".

    Raises:
        ValueError, TypeError: a shape, dtype or format that does not fit; a weight that is not finite (on a CPU; a GPU
            is not made to wait for the check, and the row, or with nf4 the whole weight, comes back as NaN).
    """
    check_dims("weight", weight, 2, "[out, in]")
    check_dtype("weight", weight, _WEIGHT_DTYPES)
    if format not in FORMATS:
        raise ValueError(f"format is {format!r}, expected one of {', '.join(FORMATS)}")
    codes, scales, scale_scales, offset = _quantize(weight.detach(), format)
    if format == "int8":
        return QuantizedWeight(codes, scales, None, None, weight.shape[1], weight.dtype)
    return QuantizedWeight(codes, scales, scale_scales, offset, weight.shape[1], weight.dtype)


def dequantize(weight: QuantizedWeight, dtype: torch.dtype | None = None) -> torch.Tensor:
    """The weight `[out, in]` that `quantize` made `weight` of, within its rounding.

    Args:
        weight: what `quantize` returns.
        dtype: of the result; None for that of the weight that was quantised. The product of code and scale is
            float32, and rounded once.

    Raises:
        ValueError, TypeError: parts that do not fit together, a dtype that is not a float.
    """
    dtype = weight.dtype if dtype is None else dtype
    check_quantized("weight", weight)
    if dtype not in FLOATS:
        raise TypeError(f"dtype is {dtype}, expected one of {', '.join(map(str, FLOATS))}")
    return _dequantize(*weight[:5], dtype)


def check_quantized(name: str, weight: QuantizedWeight) -> None:
    """Raise ValueError or TypeError unless the parts of `weight` fit together."""
    codes, scales, scale_scales, offset, in_features, _ = weight
    if _is_int8(weight):
        return
    check_dims(f"{name}.codes", codes, 2, "[out, in] or [out, 32 ceil(in / 64)]")
    check_dtype(f"{name}.codes", codes, (torch.int8, torch.uint8))
    out, is_nf4 = codes.shape[0], codes.dtype == torch.uint8
    blocks = -(-in_features // NF4_BLOCK)
    check_shape(
        f"{name}.codes", codes, (out, NF4_BLOCK // 2 * blocks if is_nf4 else in_features), "[out, ...]"
    )
    check_shape(f"{name}.scales", scales, (out, blocks) if is_nf4 else (out,), "a scale each")
    check_dtype(f"{name}.scales", scales, (torch.uint8 if is_nf4 else torch.float32,))
    check_same_device(codes=codes, scales=scales, scale_scales=scale_scales, offset=offset)
    if is_nf4 != (scale_scales is not None) or is_nf4 != (offset is not None):
        raise ValueError(f"{name} has {'no' if is_nf4 else 'a'} scale_scales or offset, which only nf4 has")
    if scale_scales is not None and offset is not None:
        check_shape(
            f"{name}.scale_scales", scale_scales, (-(-out * blocks // SCALE_BLOCK),), "[blocks / 256]"
        )
        check_shape(f"{name}.offset", offset, (), "[]")
        for part, tensor in (("scale_scales", scale_scales), ("offset", offset)):
            check_dtype(f"{name}.{part}", tensor, (torch.float32,))


def _is_int8(weight: QuantizedWeight) -> bool:
    """Whether the parts are those of an int8 weight: one look, where the checks by name take 2 us of a call's 6."""
    codes, scales, scale_scales, offset, in_features, _ = weight
    return (
        codes.dtype == torch.int8
        and scales.dtype == torch.float32
        and codes.shape == (scales.shape[0] if scales.dim() == 1 else -1, in_features)
        and scale_scales is None
        and offset is None
        and scales.device == codes.device
    )


def _quantize_scales(maxima: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Codes, scales and mean of the blocks' maxima. A sixty-fourth of the weight's size: plain PyTorch will do."""
    # in float64, where their sum cannot overflow
    offset = maxima.double().mean().float() if maxima.numel() else maxima.new_zeros(())
    centred = (maxima - offset).flatten()
    blocks = torch.nn.functional.pad(centred, (0, -len(centred) % SCALE_BLOCK)).view(-1, SCALE_BLOCK)
    scales = blocks.abs().amax(dim=1)
    fraction = torch.where(scales[:, None] > 0, blocks / scales[:, None], 0.0)
    codes = torch.bucketize(fraction, table("dynamic thresholds", maxima.device)).to(torch.uint8)
    return codes.flatten()[: len(centred)].view(maxima.shape), scales, offset


@dispatch.costs("quantize")
def _cost(weight, format) -> Cost:
    out, width = weight.shape
    blocks = -(-width // NF4_BLOCK)
    written = out * (width + 4)
    if format == "nf4":
        written = out * blocks * (NF4_BLOCK // 2 + 1) + 4 * (-(-out * blocks // SCALE_BLOCK) + 1)
    return Cost(nbytes(weight), written, 3 * weight.numel())


@dispatch.costs("dequantize")
def _dequantize_cost(codes, scales, scale_scales, offset, in_features, dtype) -> Cost:
    numbers = codes.shape[0] * in_features
    return Cost(nbytes(codes, scales, scale_scales, offset), numbers * dtype.itemsize, numbers)


@operation("quantize")
def _quantize(
    weight: torch.Tensor, format: str
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """The tensors of a `QuantizedWeight`, the last two empty for int8."""
    codes, scales = dispatch.call("quantize", weight, format)
    # a NaN or an infinity is the largest of its row or block, and so in its scale
    if weight.device.type == "cpu" and not bool(scales.isfinite().all()):
        raise ValueError("weight holds a NaN or an infinity, expected finite numbers")
    if format == "int8":
        return codes, scales, scales.new_empty(0), scales.new_empty(0)
    return codes, *_quantize_scales(scales)


@_quantize.register_fake
def _(weight, format):
    out, width = weight.shape
    if format == "int8":
        parts = ((out, width), torch.int8), (out, torch.float32), (0, torch.float32), (0, torch.float32)
    else:
        blocks = (width + NF4_BLOCK - 1) // NF4_BLOCK
        parts = (
            ((out, NF4_BLOCK // 2 * blocks), torch.uint8),
            ((out, blocks), torch.uint8),
            ((out * blocks + SCALE_BLOCK - 1) // SCALE_BLOCK, torch.float32),
            ((), torch.float32),
        )
    return tuple(weight.new_empty(shape, dtype=dtype) for shape, dtype in parts)


@operation("dequantize")
def _dequantize(
    codes: torch.Tensor,
    scales: torch.Tensor,
    scale_scales: torch.Tensor | None,
    offset: torch.Tensor | None,
    in_features: int,
    dtype: torch.dtype,
) -> torch.Tensor:
    return dispatch.call("dequantize", codes, scales, scale_scales, offset, in_features, dtype)


@_dequantize.register_fake
def _(codes, scales, scale_scales, offset, in_features, dtype):
    return codes.new_empty(codes.shape[0], in_features, dtype=dtype)
