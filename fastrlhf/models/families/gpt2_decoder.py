"""The description of GPT-2 for the generator."""

from __future__ import annotations

from torch import nn

from fastrlhf.models import decoder
from fastrlhf.models.decoder import MLP, Attention, Decoder, Layer


def describe(model: nn.Module, head: decoder.Projection) -> Decoder:
    """See `fastrlhf.models.describe`."""
    inner = model.transformer
    decoder.check_plain(inner.wpe)
    layers = tuple(map(_layer, inner.h))
    return Decoder(
        inner.wte.weight, 1.0, inner.wpe.weight, layers, decoder.norm(inner.ln_f), head, rotary=None
    )


def _layer(layer: nn.Module) -> Layer:
    decoder.check_plain(layer)
    decoder.check_plain(layer.attn)
    decoder.check_plain(layer.mlp)
    attention, mlp = layer.attn, layer.mlp
    if hasattr(layer, "crossattention"):
        raise decoder.CannotDescribe("its layers have cross-attention")
    return Layer(
        decoder.norm(layer.ln_1),
        Attention(
            (decoder.projection(attention.c_attn),),
            "chunks",
            decoder.projection(attention.c_proj),
            attention.num_heads,
            attention.num_heads,
            attention.head_dim,
            attention.scaling,
        ),
        decoder.norm(layer.ln_2),
        MLP(None, decoder.projection(mlp.c_fc), decoder.projection(mlp.c_proj), decoder.activation(mlp.act)),
    )
