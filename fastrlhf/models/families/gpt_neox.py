"""Attention and layers of GPT-NeoX and Pythia."""

from __future__ import annotations

from fastrlhf.kernels import rope
from fastrlhf.models.attention_interface import attend


class GPTNeoXAttention:
    """Forward of `GPTNeoXAttention`: one projection of all three, a part of each head rotated."""

    def forward(
        self, hidden_states, attention_mask=None, layer_past=None, position_embeddings=None, **kwargs
    ):
        heads = (*hidden_states.shape[:-1], -1, 3 * self.head_size)
        query, key, value = self.query_key_value(hidden_states).view(heads).chunk(3, dim=-1)
        rotated = rope(query, key, *(angle.expand(*query.shape[:2], -1) for angle in position_embeddings))
        query, key, value = (tensor.transpose(1, 2) for tensor in (*rotated, value))
        if layer_past is not None:
            key, value = layer_past.update(key, value, self.layer_idx)
        output, _ = attend(
            self,
            query,
            key,
            value,
            attention_mask,
            scaling=self.scaling,
            dropout=self.attention_dropout if self.training else 0.0,
            **kwargs,
        )
        return self.dense(output.flatten(2)), None
