"""The layers of a described model on any device and dtype, with attention as the caller has it.

These are the operations' launchers without their registered operations: for forwards that no gradient goes through.
The callers switch autocast off, under which PyTorch's own products would come out in another dtype than the weights'.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from fastrlhf.kernels import QuantizedWeight, dispatch, native
from fastrlhf.kernels.autocast import switched_off
from fastrlhf.kernels.cpu.linear import thin_linear
from fastrlhf.models.decoder import MLP, Attention, Decoder, Layer, Norm, Projection
from fastrlhf.models.one_adapter import scale_of, whole_batch

# Queries `[N, H, D]`, keys and values `[N, Hk, D]` of a layer (its number comes first) to outputs `[N, H, D]`.
Attend = Callable[[int, torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
Product = Callable[[torch.Tensor, Projection], torch.Tensor]
Angles = tuple[torch.Tensor, torch.Tensor]


def project(
    x: torch.Tensor, projection: Projection, group_offsets: torch.Tensor | None = None
) -> torch.Tensor:
    """`[N, out]` of x `[N, in]`, by the product that is fastest for so many rows.

    Args:
        group_offsets: int32 `[0, N]`, of one adapter that has all rows, where the caller keeps them.
    """
    if _is_one_product(x, projection):
        return _with_adapter(x, projection, group_offsets)
    y = _base_product(x, projection)
    for adapter in projection.adapters:
        hidden = _linear(x.to(adapter.down.dtype), adapter.down)
        y += (_linear(hidden, adapter.up, adapter.bias) * adapter.scaling).to(y.dtype)
    return y


def _is_one_product(x: torch.Tensor, projection: Projection) -> bool:
    """Whether `lora_linear` computes all of it."""
    if len(projection.adapters) != 1 or projection.transposed:
        return False
    adapter = projection.adapters[0]
    fits = adapter.down.dtype in (x.dtype, torch.promote_types(x.dtype, torch.float32))
    return fits and adapter.bias is None and adapter.up.dtype == adapter.down.dtype


def _with_adapter(x: torch.Tensor, projection: Projection, group_offsets: torch.Tensor | None):
    weight, bias, [(down, up, _, scaling)], _ = projection
    if group_offsets is None:
        group_offsets = whole_batch(len(x), x.device)
    adapter = down[None], up[None], group_offsets, scale_of(scaling, x.device)
    return dispatch.call("lora_linear", x, *_parts(weight), *adapter, bias)[0]


def _base_product(x: torch.Tensor, projection: Projection) -> torch.Tensor:
    weight, bias, _, transposed = projection
    if transposed:
        return x @ weight if bias is None else torch.addmm(bias, x, weight)
    return _linear(x, weight, bias)


def _linear(x, weight, bias=None):
    return dispatch.call("linear", x, *_parts(weight), bias)


def _parts(weight: torch.Tensor | QuantizedWeight) -> tuple[torch.Tensor | None, ...]:
    """The weight as operations take it: its codes, scales, their scales and their offset."""
    return weight[:4] if isinstance(weight, QuantizedWeight) else (weight, None, None, None)


def project_rows(x: torch.Tensor, projection: Projection) -> torch.Tensor:
    """As `project`, on a CPU in float32; each row has the bits that it has in a decoding step, whatever the others."""
    weight, bias, adapters, transposed = projection
    if isinstance(weight, QuantizedWeight):
        y = thin_linear(x, weight.codes, bias, weight.scales)
    else:
        y = thin_linear(x, weight, bias, transposed=transposed)
    for adapter in adapters:
        hidden = thin_linear(x, adapter.down)
        y += thin_linear(hidden, adapter.up, adapter.bias) * adapter.scaling
    return y


def rows_are_native(decoder: Decoder) -> bool:
    """Whether the compiled kernels of the CPU serve this model: `project_rows`, and the compiled decoding step."""
    if native.missing("_cpu") is not None or dispatch.forced_backend() not in (None, "cpu"):
        return False
    return all(
        tensor.device.type == "cpu" and tensor.dtype in (torch.float32, torch.int8)
        for tensor in decoder.tensors()
    )


def embed(decoder: Decoder, tokens: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    """`[N, D]` of tokens and their positions `[N]`."""
    with decoder.having("embedding"):
        hidden = decoder.embedding[tokens]
        if decoder.embedding_scale != 1.0:
            hidden = hidden * torch.tensor(decoder.embedding_scale, dtype=hidden.dtype, device=hidden.device)
        if decoder.position_embedding is not None:
            hidden = hidden + decoder.position_embedding[positions]
        return hidden


def logits(decoder: Decoder, hidden: torch.Tensor, product: Product = project) -> torch.Tensor:
    """`[N, V]` of hidden states `[N, D]`."""
    with decoder.having("head"):
        return product(hidden, decoder.head)


def run_layers(
    decoder: Decoder,
    hidden: torch.Tensor,
    angles: Angles | None,
    attend: Attend,
    product: Product = project,
    watch: Callable[[int, torch.Tensor], None] = lambda index, hidden: None,
) -> torch.Tensor:
    """Hidden states `[N, D]` after the layers and the final norm, from embeddings `[N, D]`.

    `watch` gets what each layer adds to the hidden states.
    """
    added = None
    for index, layer in enumerate(decoder.layers):
        with decoder.having(index):
            normed, hidden = _enter(layer.attention_norm, added, hidden)
            added, hidden = _run_layer(index, layer, normed, hidden, angles, attend, product)
        watch(index, added)
    with decoder.having("norm"):
        return _enter(decoder.final_norm, added, hidden)[0]


def _enter(norm: Norm, added: torch.Tensor | None, hidden: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The norm of what the layer before has left to add, if any, and the hidden states with it."""
    return (normalise(norm, hidden), hidden) if added is None else add_and_normalise(norm, added, hidden)


def _run_layer(index: int, layer: Layer, normed, hidden, angles, attend, product):
    """What the layer adds last, and the hidden states to add it to."""
    attended = product(
        _attention(index, layer.attention, normed, angles, attend, product), layer.attention.output
    )
    if layer.parallel:
        return attended + _mlp(layer.mlp, normalise(layer.mlp_norm, hidden), product), hidden
    normed, hidden = add_and_normalise(layer.mlp_norm, attended, hidden)
    return _mlp(layer.mlp, normed, product), hidden


def _attention(index: int, attention: Attention, normed, angles, attend, product) -> torch.Tensor:
    query, key, value = split_heads(attention, [product(normed, part) for part in attention.projections])
    if attention.query_norm is not None:
        query = normalise(attention.query_norm, query)
        key = normalise(attention.key_norm, key)
    if angles is not None:
        query, key = dispatch.call("rope", query, key, *angles, False)
    return attend(index, query.contiguous(), key, value).flatten(1)


def split_heads(attention: Attention, projected: list[torch.Tensor]) -> list[torch.Tensor]:
    """Views `[N, H, D]`, `[N, Hk, D]`, `[N, Hk, D]` of the projections' results."""
    if attention.fused == "heads":
        return list(projected[0].unflatten(1, (attention.heads, 3, attention.width)).unbind(2))
    if attention.fused == "chunks":
        projected = projected[0].chunk(3, dim=1)
    counts = (attention.heads, attention.key_heads, attention.key_heads)
    return [
        part.unflatten(1, (count, attention.width)) for part, count in zip(projected, counts, strict=True)
    ]


def _mlp(mlp: MLP, normed: torch.Tensor, product: Product) -> torch.Tensor:
    up = product(normed, mlp.up)
    if mlp.gate is None:
        return product(dispatch.call("glu", up, torch.ones_like(up), mlp.activation), mlp.down)
    return product(dispatch.call("glu", product(normed, mlp.gate), up, mlp.activation), mlp.down)


def normalise(norm: Norm, hidden: torch.Tensor) -> torch.Tensor:
    return _norm(norm, hidden, None)[0]


def add_and_normalise(
    norm: Norm, added: torch.Tensor, hidden: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """The norm of `added + hidden`, and that sum."""
    return _norm(norm, added, hidden)[:2]


def _norm(norm: Norm, hidden, residual):
    weight, bias, *options = norm
    return dispatch.call("norm", hidden, weight, bias, residual, *options)


def packed_attention(decoder: Decoder, cu_seqlens: torch.Tensor, longest: int) -> Attend:
    """Attention of packed sequences to themselves."""

    def attend(index: int, query, key, value):
        of = decoder.layers[index].attention
        options = cu_seqlens, None, longest, of.scale, of.window, None
        return dispatch.call("attention", query, key, value, *options)[0]

    return attend


def run_packed(decoder: Decoder, tokens: torch.Tensor, watch=lambda index, hidden: None) -> torch.Tensor:
    """Logits `[T, V]` of one sequence `[T]`."""
    positions = torch.arange(len(tokens), device=tokens.device)
    cu_seqlens = torch.tensor([0, len(tokens)], dtype=torch.int32, device=tokens.device)
    with switched_off(decoder.embedding):
        hidden = run_layers(
            decoder,
            embed(decoder, tokens, positions),
            decoder.angles(positions),
            packed_attention(decoder, cu_seqlens, len(tokens)),
            watch=watch,
        )
        return logits(decoder, hidden)
