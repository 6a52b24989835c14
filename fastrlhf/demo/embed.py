"""Sentence embeddings by all-MiniLM-L6-v2, read from the files of its package with plain transformers.

Wang et al., "MiniLM: Deep Self-Attention Distillation for Task-Agnostic Compression of Pre-Trained
Transformers", 2020; fine-tuned for sentences as in Reimers and Gurevych, "Sentence-BERT", 2019.
"""

from collections.abc import Sequence

import torch
from transformers import AutoModel, AutoTokenizer

from fastrlhf.demo.assets import MINILM, asset
from fastrlhf.demo.quiet import quiet_loading

WIDTH = 384
MAX_TOKENS = 256  # the length that sentence-transformers cuts at for this model


class Embedder:
    """MiniLM on the CPU in float32. Raises `MissingAssetError` if its package is absent."""

    def __init__(self):
        folder = asset(MINILM, "model")
        with quiet_loading():
            self._tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
            self._model = AutoModel.from_pretrained(folder, dtype=torch.float32, local_files_only=True).eval()

    @torch.no_grad()
    def embed(self, texts: Sequence[str], *, batch_size: int) -> torch.Tensor:
        """Embeddings [len(texts), 384] of length 1: the mean of a text's last hidden states, without padding.

        A text is cut at 256 tokens. `batch_size` texts run at once; it changes the result by rounding only.
        Raises `ValueError` if `batch_size` is below 1.
        """
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        embeddings = torch.empty(len(texts), WIDTH)
        for start in range(0, len(texts), batch_size):
            batch = self._tokenizer(
                list(texts[start : start + batch_size]),
                padding=True,
                truncation=True,
                max_length=MAX_TOKENS,
                return_tensors="pt",
            )
            hidden_states = self._model(**batch).last_hidden_state  # [batch, tokens, 384]
            mask = batch["attention_mask"].unsqueeze(-1)
            mean = (hidden_states * mask).sum(1) / mask.sum(1)
            embeddings[start : start + batch_size] = torch.nn.functional.normalize(mean, dim=1)
        return embeddings
