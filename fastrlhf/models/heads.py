"""Heads on hidden states: the language model's own, and the scalar ones that PPO adds."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from math import sqrt
from typing import NamedTuple

import torch
from torch import nn

from fastrlhf.memory.using import own_leaf, using
from fastrlhf.models.backbone import backbone, base_model, evaluation_mode


class ValueHead(nn.Module):
    """`V(s)` from the hidden state of the last token of `s`: a linear map that starts at zero.

    Starting at zero, the first advantages are the rewards themselves instead of the noise of an untrained critic.
    """

    def __init__(self, hidden_size: int):
        super().__init__()
        self.score = nn.Linear(hidden_size, 1)
        nn.init.zeros_(self.score.weight)
        nn.init.zeros_(self.score.bias)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """`[..., D]` to `[...]`, float32."""
        return self.score(hidden_states.to(self.score.weight.dtype)).squeeze(-1).float()


class RewardHead(nn.Linear):
    """Scalar reward from a hidden state, initialised with standard deviation 1/√(d+1).

    Source: Stiennon et al., "Learning to summarize from human feedback" (2020), appendix.
    """

    def __init__(self, hidden_size: int):
        super().__init__(hidden_size, 1, bias=False)
        nn.init.normal_(self.weight, std=1 / sqrt(hidden_size + 1))


class LanguageModelHead(NamedTuple):
    """The map from hidden states to logits: `softcap tanh((h weight^T + bias) / softcap)`."""

    weight: torch.Tensor
    bias: torch.Tensor | None
    softcap: float | None


@contextmanager
def using_head(model: nn.Module) -> Iterator[LanguageModelHead]:
    """The head of a model, on the device for the block though the model's memory is managed (see `memory.using`).

    Raises:
        ValueError: as `language_model_head`.
    """
    head, output = language_model_head(model), base_model(model).get_output_embeddings()
    with using(output):
        yield head._replace(weight=own_leaf(output, output.weight))


def language_model_head(model: nn.Module) -> LanguageModelHead:
    """The head of a Hugging Face causal language model (or of a PEFT model around one).

    Raises:
        ValueError: the head is not one linear map (an adapter sits on it, or the model scales its logits), so that
            log-probabilities cannot be computed from hidden states without whole logits.
    """
    model = base_model(model)
    output = model.get_output_embeddings()
    if type(output) is not nn.Linear:
        raise ValueError(
            f"the output head of {type(model).__name__} is a {type(output).__name__}, expected torch.nn.Linear; "
            "leave it out of target_modules and modules_to_save"
        )
    softcap = getattr(model.config.get_text_config(), "final_logit_softcapping", None)
    return LanguageModelHead(output.weight, output.bias, softcap)


@torch.no_grad()
def check_language_model_head(model: nn.Module) -> None:
    """Raise ValueError unless backbone and head together give the model's own logits, tried on two tokens (not where
    the model is on meta, and has none)."""
    head = language_model_head(model)
    if head.weight.is_meta:
        return
    model = base_model(model)
    tokens = torch.arange(2, device=head.weight.device)[None] % head.weight.shape[0]
    with evaluation_mode(model):  # dropout would tell the two apart
        expected = model(input_ids=tokens).logits
        hidden = backbone(model)(input_ids=tokens).last_hidden_state
    actual = torch.nn.functional.linear(hidden, head.weight, head.bias)
    if head.softcap is not None:
        actual = head.softcap * torch.tanh(actual / head.softcap)
    if not torch.allclose(
        actual.float(), expected.float(), rtol=1e-2, atol=1e-2 * float(expected.abs().max())
    ):
        raise ValueError(
            f"{type(model).__name__} does more to its logits than one linear map (a scale, perhaps), which is not "
            "supported: log-probabilities are computed from hidden states, without whole logits"
        )


def check_score_head(model: nn.Module, name: str, otherwise: str) -> None:
    """Raise ValueError unless `model` maps tokens to one number: a backbone and a `score` head of width one.

    Args:
        model: what was passed as the argument `name`.
        otherwise: what may be passed in place of such a model.
    """
    expected = f"pass an AutoModelForSequenceClassification with num_labels=1, {otherwise}"
    if not hasattr(model, "score"):
        raise ValueError(f"{name} is a {type(model).__name__} without a `score` head; {expected}")
    width = getattr(model.score, "out_features", 1)
    if width != 1:
        raise ValueError(f"the `score` head of {name} gives {width} numbers, expected one; {expected}")
    backbone(model)
