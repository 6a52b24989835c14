"""The description of Llama and its kin for the generator: Mistral, Qwen2, Qwen3, Gemma."""

from __future__ import annotations

from functools import partial

from torch import nn

from fastrlhf.models import decoder
from fastrlhf.models.decoder import MLP, Attention, Decoder, Layer
from fastrlhf.models.families.llama import _window


def describe(model: nn.Module, head: decoder.Projection) -> Decoder:
    """See `fastrlhf.models.describe`."""
    inner = model.model
    gemma = model.config.get_text_config().model_type == "gemma"
    norm = partial(decoder.norm, weight_offset=1.0, cast_before_weight=False) if gemma else decoder.norm
    return Decoder(
        inner.embed_tokens.weight,
        # transformers before 5.23 multiplied in the model's forward
        inner.config.hidden_size**0.5 if gemma else 1.0,
        None,
        tuple(_layer(layer, norm) for layer in inner.layers),
        norm(inner.norm),
        head,
        inner.rotary_emb,
    )


def _layer(layer: nn.Module, norm) -> Layer:
    decoder.check_plain(layer)
    decoder.check_plain(layer.self_attn)
    decoder.check_plain(layer.mlp)
    attention, mlp = layer.self_attn, layer.mlp
    query, key, value = map(decoder.projection, (attention.q_proj, attention.k_proj, attention.v_proj))
    width = attention.head_dim
    return Layer(
        norm(layer.input_layernorm),
        Attention(
            (query, key, value),
            None,
            decoder.projection(attention.o_proj),
            query.out_features // width,
            key.out_features // width,
            width,
            attention.scaling,
            _window(attention),
            norm(attention.q_norm) if hasattr(attention, "q_norm") else None,
            norm(attention.k_norm) if hasattr(attention, "k_norm") else None,
        ),
        norm(layer.post_attention_layernorm),
        MLP(
            *map(decoder.projection, (mlp.gate_proj, mlp.up_proj, mlp.down_proj)),
            decoder.activation(mlp.act_fn),
        ),
    )
