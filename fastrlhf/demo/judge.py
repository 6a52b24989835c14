"""The held-out judge of the demo: a logistic head on sentence embeddings, which is never the reward.

The reward is a lexicon that a policy can learn to game; a rise of the reward that this judge does not share
is a warning. `train_judge.py` makes its head from labelled reviews that give no prompts.
"""

import json
from collections.abc import Sequence
from pathlib import Path

import torch

from fastrlhf.demo.embed import WIDTH, Embedder

HEAD_FILE = Path(__file__).with_name("judge_head.json")


class Judge:
    """The probability that a text is of a positive review; 91 MB of weights, on the CPU, in float32.

    Raises `MissingAssetError` if the embedding's package is absent, `ValueError` if the head has not 384
    weights.
    """

    def __init__(self, head_file: Path = HEAD_FILE):
        head = json.loads(head_file.read_text())
        if len(head["weight"]) != WIDTH:
            raise ValueError(f"{head_file.name} must hold {WIDTH} weights, got {len(head['weight'])}")
        self._weight = torch.tensor(head["weight"])
        self._bias = head["bias"]
        self._embedder = Embedder()

    def positive_probability(self, texts: Sequence[str], batch_size: int = 16) -> list[float]:
        """One probability in [0, 1] a text.

        The head was trained on snippets of 22 words; `judge_head.json` says how often it is right on others.
        Raises `ValueError` if `batch_size` is below 1.
        """
        embeddings = self._embedder.embed(texts, batch_size=batch_size)
        return torch.sigmoid(embeddings @ self._weight + self._bias).tolist()
