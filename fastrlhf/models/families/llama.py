"""Attention and layers of Llama and its kin: Mistral, Qwen2, Qwen3, Gemma."""

from __future__ import annotations

from fastrlhf.kernels import rope
from fastrlhf.models.attention_interface import attend
from fastrlhf.models.recompute import computed_again


class LlamaAttention:
    """Forward of `LlamaAttention` and those like it; with `q_norm` and `k_norm` of Qwen3's."""

    def forward(
        self, hidden_states, position_embeddings=None, attention_mask=None, past_key_values=None, **kwargs
    ):
        heads = (*hidden_states.shape[:-1], -1, self.head_dim)
        query = self.q_proj(hidden_states).view(heads)
        key = self.k_proj(hidden_states).view(heads)
        value = self.v_proj(hidden_states).view(heads)
        if hasattr(self, "q_norm"):
            query, key = self.q_norm(query), self.k_norm(key)
        rotated = rope(query, key, *(angle.expand(*query.shape[:2], -1) for angle in position_embeddings))
        query, key, value = (tensor.transpose(1, 2) for tensor in (*rotated, value))
        if past_key_values is not None:
            key, value = past_key_values.update(key, value, self.layer_idx)
        output, _ = attend(
            self,
            query,
            key,
            value,
            attention_mask,
            scaling=self.scaling,
            dropout=self.attention_dropout if self.training else 0.0,
            sliding_window=_window(self),
            **kwargs,
        )
        return self.o_proj(output.flatten(2)), None


def _window(module) -> int | None:
    """The sliding window: the layer's own where layers differ (Qwen), else the model's (Mistral)."""
    if hasattr(module, "sliding_window"):
        return module.sliding_window
    return getattr(module.config, "sliding_window", None)


class LlamaLayer:
    """Forward of `LlamaDecoderLayer` and those like it: the residual is added where the next norm reads it."""

    def forward(self, hidden_states, **kwargs):
        normed = self.input_layernorm(hidden_states)
        with computed_again(normed, lambda: self.input_layernorm(hidden_states)):
            attended, _ = self.self_attn(hidden_states=normed, **kwargs)
        normed, residual = self.post_attention_layernorm(attended, residual=hidden_states)
        with computed_again(normed, lambda: self.post_attention_layernorm(residual)):
            return residual + self.mlp(normed)
