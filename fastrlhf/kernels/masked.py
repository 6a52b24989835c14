"""Sums, means and whitening over the positions that a mask keeps.

Moments are kept as additive sums so that micro-batches and ranks can be added up before anything is divided.
"""

from __future__ import annotations

import torch

from fastrlhf.kernels.checks import check_shape


def masked_moments(values: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Count, sum and sum of squares of the masked values.

    Args:
        values: `[...]`, any float dtype.
        mask: like `values`, true where a value counts.

    Returns:
        float64 `[3]`: count, sum, sum of squares. float64 because the variance of values far from zero is a small
        difference of large sums.
    """
    check_shape("mask", mask, tuple(values.shape), "the shape of values")
    mask = mask.bool()  # counted as true or false: 1,001 ones in bfloat16 add up to 1,000
    kept = torch.where(mask, values.double(), 0.0)
    return torch.stack([mask.sum(dtype=torch.float64), kept.sum(), kept.square().sum()])


def masked_mean(values: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Mean of the masked values (a scalar of their dtype), zero where the mask keeps none."""
    count, total, _ = masked_moments(values, mask)
    return (total / count.clamp(min=1)).to(values.dtype)


def whiten(
    values: torch.Tensor,
    mask: torch.Tensor,
    moments: torch.Tensor | None = None,
    *,
    shift_mean: bool = True,
    epsilon: float = 1e-8,
) -> torch.Tensor:
    """Scale the masked values to unit (unbiased) variance, and to zero mean if `shift_mean`; the others become zero.

    Args:
        values: `[...]`, any float dtype.
        mask: like `values`, true where a value counts.
        moments: float64 `[3]` from `masked_moments`, added up over whatever shares the whitening; computed from
            `values` and `mask` if None.
        shift_mean: False keeps the mean, as rewards need (a shifted reward changes what ending early is worth).
        epsilon: added to the variance.

    Returns:
        Like `values`. With fewer than two masked values the variance counts as zero.
    """
    check_shape("mask", mask, tuple(values.shape), "the shape of values")
    count, total, squares = masked_moments(values, mask) if moments is None else moments
    mean = total / count.clamp(min=1)
    variance = ((squares - total * mean) / (count - 1).clamp(min=1)).clamp(min=0)
    # Masked before the arithmetic too: the gradient of a product with NaN is NaN, selected or not.
    kept = torch.where(mask.bool(), values.double(), 0.0)
    whitened = (kept - mean) * torch.rsqrt(variance + epsilon)
    if not shift_mean:
        whitened = whitened + mean
    return torch.where(mask.bool(), whitened, 0.0).to(values.dtype)
