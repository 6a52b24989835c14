"""Our attention as an attention implementation of transformers, `attn_implementation="fastrlhf"`.

transformers asks an implementation for a mask once a forward, and hands it to `attend` in every layer. Ours are small:
None (all tokens are real), int32 `[B]` (padding on the left of each row), int32 `[1, 1, 1, S + 1]` (one row of packed
sequences and their bounds), or, for whatever else a mask may say, bool `[B, 1, T, S]` for PyTorch's attention.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import Any

import torch
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

from fastrlhf.kernels import attention, left_padded_attention

NAME = "fastrlhf"
LARGEST_HEAD = 256
_padding_counts = False


def register() -> None:
    """Make the implementation known to transformers under `NAME`."""
    AttentionInterface.register(NAME, attend)
    AttentionMaskInterface.register(NAME, make_mask)


def packed_mask(cu_seqlens: torch.Tensor) -> torch.Tensor:
    """The attention mask that tells an accelerated model where packed sequences begin: bounds as `[1, 1, 1, S + 1]`.

    transformers passes a mask of four dimensions on as it is. `max_length_q`, the longest sequence's length, has to go
    with it.
    """
    return cu_seqlens.to(torch.int32)[None, None, None]


@contextmanager
def padding_counts():
    """What stands at padding is computed as transformers does in the block: padding on the right sees none either."""
    global _padding_counts
    _padding_counts = True
    try:
        yield
    finally:
        _padding_counts = False


def make_mask(
    *,
    batch_size: int,
    q_length: int,
    kv_length: int,
    attention_mask: torch.Tensor | None = None,
    allow_is_causal_skip: bool = True,
    **kwargs: Any,
) -> torch.Tensor | None:
    """transformers' mask interface.

    Args:
        attention_mask: `[B, S]`, bool: the real tokens.
        allow_is_causal_skip: False where the pattern is more than causal (such as sequences packed without bounds).
    """
    if allow_is_causal_skip and attention_mask is None:
        return None
    if allow_is_causal_skip and attention_mask.shape[1] == kv_length and not _padding_counts:
        padding = _left_padding(attention_mask, q_length)
        if padding is not None:
            return padding
    return sdpa_mask(
        batch_size=batch_size,
        q_length=q_length,
        kv_length=kv_length,
        attention_mask=attention_mask,
        allow_is_causal_skip=False,
        **kwargs,
    )


def _left_padding(attention_mask: torch.Tensor, q_length: int) -> torch.Tensor | None:
    """`[B]`, int32, or None where a real token would see padding behind its row's first one.

    Without a cache padding on the right needs no mask: causal attention does not look that far.
    """
    kept = attention_mask.bool()
    padding = (kept.cumsum(dim=1) == 0).sum(dim=1, dtype=torch.int32)
    seen = kept if q_length < kept.shape[1] else kept | (kept.flip(1).cumsum(dim=1).flip(1) == 0)
    whole = seen.sum(dim=1) == kept.shape[1] - padding
    empty = ~kept.any(dim=1)
    return padding if bool((whole | empty).all()) else None


def attend(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    softcap: float | None = None,
    max_length_q: int | None = None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """transformers' attention interface.

    Args:
        query: `[B, H, T, D]`; key, value: `[B, Hk, S, D]`, S > T with a cache.
        attention_mask: what `make_mask` or `packed_mask` made.

    Returns:
        `[B, T, H, D]`, and None: there are no weights to show.
    """
    small_mask = attention_mask is None or attention_mask.dtype == torch.int32
    if small_mask and query.shape[2] == key.shape[2] and not dropout and query.shape[-1] <= LARGEST_HEAD:
        if (
            len({tensor.dtype for tensor in (query, key, value)}) > 1
        ):  # autocast, and a norm of queries and keys
            query, key = query.to(value.dtype), key.to(value.dtype)
        options = {"scale": scaling, "window": sliding_window, "softcap": softcap}
        tensors = [tensor.transpose(1, 2) for tensor in (query, key, value)]
        if attention_mask is None or attention_mask.dim() == 1:
            return left_padded_attention(*tensors, attention_mask, **options), None
        packed = [tensor.squeeze(0) for tensor in tensors]
        bounds = attention_mask.flatten()
        longest = packed[0].shape[0] if max_length_q is None else max_length_q
        return attention(*packed, bounds, max_seqlen=longest, **options).output[None], None
    seen = _whole_mask(query, key, attention_mask, sliding_window) if small_mask else attention_mask
    return _plain_attention(query, key, value, seen, scaling, dropout, softcap).transpose(1, 2), None


def _whole_mask(
    query: torch.Tensor, key: torch.Tensor, padding: torch.Tensor | None, window: int | None
) -> torch.Tensor:
    """bool `[B or 1, 1, T, S]`: what each of the last T positions sees of S."""
    positions = torch.arange(key.shape[2], device=key.device)
    distance = positions[-query.shape[2] :, None] - positions
    seen = (distance >= 0)[None, None]
    if window is not None:
        seen = seen & (distance < window)
    if padding is not None and padding.dim() == 1:
        return seen & (positions >= padding[:, None, None, None])
    if padding is not None:
        sequence = torch.searchsorted(padding.flatten(), positions.to(torch.int32), right=True)
        return seen & (sequence[-query.shape[2] :, None] == sequence)
    return seen


def _plain_attention(query, key, value, seen, scaling, dropout, softcap):
    """`[B, H, T, D]` by PyTorch: decoding, dropout, and masks that are neither padding nor bounds."""
    groups = query.shape[1] // key.shape[1]
    if softcap is None:
        return torch.nn.functional.scaled_dot_product_attention(
            query, key, value, seen, dropout_p=dropout, scale=scaling, enable_gqa=groups > 1
        )
    key, value = (tensor.repeat_interleave(groups, dim=1) for tensor in (key, value))
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    scores = softcap * torch.tanh(scale * (query @ key.transpose(2, 3)).float() / softcap)
    weights = scores.masked_fill(~seen, torch.finfo(scores.dtype).min).softmax(dim=-1).to(query.dtype)
    return torch.nn.functional.dropout(weights, dropout) @ value
