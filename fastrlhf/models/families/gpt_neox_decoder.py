"""The description of GPT-NeoX and Pythia for the generator."""

from __future__ import annotations

from torch import nn

from fastrlhf.models import decoder
from fastrlhf.models.decoder import MLP, Attention, Decoder, Layer


def describe(model: nn.Module, head: decoder.Projection) -> Decoder:
    """See `fastrlhf.models.describe`."""
    inner = model.gpt_neox
    layers, norm = tuple(map(_layer, inner.layers)), decoder.norm(inner.final_layer_norm)
    return Decoder(inner.embed_in.weight, 1.0, None, layers, norm, head, inner.rotary_emb)


def _layer(layer: nn.Module) -> Layer:
    decoder.check_plain(layer)
    decoder.check_plain(layer.attention)
    decoder.check_plain(layer.mlp)
    attention, mlp, width = layer.attention, layer.mlp, layer.attention.head_size
    fused = decoder.projection(attention.query_key_value)
    heads = fused.out_features // (3 * width)
    up, down = map(decoder.projection, (mlp.dense_h_to_4h, mlp.dense_4h_to_h))
    return Layer(
        decoder.norm(layer.input_layernorm),
        Attention(
            (fused,), "heads", decoder.projection(attention.dense), heads, heads, width, attention.scaling
        ),
        decoder.norm(layer.post_attention_layernorm),
        MLP(None, up, down, decoder.activation(mlp.act)),
        parallel=layer.use_parallel_residual,
    )
