"""Policy and critic (or the policy alone) as one module: log-probabilities, entropy and values of responses."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import nn

from fastrlhf.device.observe import host_waits
from fastrlhf.kernels import linear_logprob
from fastrlhf.models.backbone import base_model, hidden_states
from fastrlhf.models.frozen import Entering, top_hidden_states
from fastrlhf.models.heads import ValueHead, check_score_head, using_head


class Responses(NamedTuple):
    """Prompts with responses, as models read them.

    input_ids `[B, P + R]`: left-padded prompts, then right-padded responses; attention_mask like it (bool);
    prompt_length P; mask `[B, R]` (bool): the response tokens whose log-probability counts; padding_counts: padding
    among them, as TRL has it; entering: the states of all real `tokens()` at the first trained layer of the policy.
    """

    input_ids: torch.Tensor
    attention_mask: torch.Tensor
    prompt_length: int
    mask: torch.Tensor
    padding_counts: bool = False
    entering: Entering | None = None

    def hidden_states(
        self, model: nn.Module, packing: bool | None, *, shares_bottom: bool = False
    ) -> torch.Tensor:
        """`[B, P + R - 1, D]`, of `tokens()` (see `fastrlhf.models.backbone.hidden_states`).

        Args:
            shares_bottom: the model is the policy under its first trained layer.
        """
        if shares_bottom and self.entering is not None:
            return top_hidden_states(model, self.entering, *self.tokens())
        return hidden_states(model, *self.tokens(), packing, padding_counts=self.padding_counts)

    def tokens(self) -> tuple[torch.Tensor, torch.Tensor]:
        """`input_ids` and `attention_mask` without the last column, after which nothing was chosen."""
        return self.input_ids[:, :-1], self.attention_mask[:, :-1]

    def response_states(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """`[B, R, D]`: the hidden state in which each response token was chosen, one position before it."""
        return hidden_states[:, self.prompt_length - 1 :][:, : self.mask.shape[1]]

    def targets(self) -> torch.Tensor:
        """`[B, R]`: the response tokens."""
        return self.input_ids[:, self.prompt_length :]


class ActorCriticOutput(NamedTuple):
    """Log-probabilities and entropy (zero where `mask` is false) and values (None without a critic), `[B, R]`,
    float32."""

    logprobs: torch.Tensor
    entropy: torch.Tensor
    values: torch.Tensor | None


def response_logprobs(
    model: nn.Module,
    hidden: torch.Tensor,
    responses: Responses,
    temperature: float,
    *,
    entropy_grad: bool = True,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probabilities and entropy `[B, R]` of the response tokens that count, from the model's hidden states.

    Args:
        hidden: `[B, P + R - 1, D]`, or with the last column too.
        entropy_grad: see `linear_logprob`.
    """
    mask = responses.mask
    with host_waits("how many tokens the responses have"):
        kept = mask.nonzero(as_tuple=True)
    # by indices and not by masks, whose backward would make the host wait again
    with using_head(model) as head:
        logprobs, entropy = linear_logprob(
            responses.response_states(hidden)[kept].to(head.weight.dtype),
            head.weight,
            responses.targets()[kept],
            bias=head.bias,
            temperature=temperature,
            softcap=head.softcap,
            entropy_grad=entropy_grad,
        )
    zeros = torch.zeros(mask.shape, dtype=logprobs.dtype, device=mask.device)
    return zeros.index_put(kept, logprobs), zeros.index_put(kept, entropy)


class ActorCritic(nn.Module):
    """The policy and its critic.

    Args:
        policy: a Hugging Face causal language model, or a PEFT model around one.
        value_model: a `ValueHead` on the policy's hidden states (one base, two roles), or a Hugging Face model with a
            `score` head (`AutoModelForSequenceClassification`) with a backbone of its own, or None: no critic.
        detach_value: keep the value loss from reaching the policy's weights through a shared base.
        packing: compute hidden states on real tokens only; None: where a model's attention is ours.
        entropy_grad: whether the entropy is trained on, and not only watched.
    """

    def __init__(
        self,
        policy: nn.Module,
        value_model: nn.Module | None,
        *,
        detach_value: bool = True,
        packing: bool | None = None,
        entropy_grad: bool = True,
    ):
        super().__init__()
        self.policy = policy
        self.value_model = value_model
        self.detach_value = detach_value
        self.packing = packing
        self.entropy_grad = entropy_grad
        if value_model is not None and not self.shares_base:
            check_score_head(value_model, "value_model", "or None for a head on the policy's base")

    @property
    def shares_base(self) -> bool:
        """Whether the critic reads the policy's hidden states."""
        return isinstance(self.value_model, ValueHead)

    @property
    def config(self):
        """The policy's configuration, where callbacks look for it."""
        return base_model(self.policy).config

    def forward(self, responses: Responses, temperature: float) -> ActorCriticOutput:
        hidden = self._policy_states(responses)
        logprobs, entropy = response_logprobs(
            self.policy, hidden, responses, temperature, entropy_grad=self.entropy_grad
        )
        return ActorCriticOutput(logprobs, entropy, self._values(responses, hidden))

    def _policy_states(self, responses: Responses) -> torch.Tensor:
        return responses.hidden_states(self.policy, self.packing, shares_bottom=True)

    def values(self, responses: Responses) -> torch.Tensor:
        """Values `[B, R]` alone, float32: no product with the policy's head, and none of its layers but for a shared
        base."""
        hidden = self._policy_states(responses) if self.shares_base else None
        return self._values(responses, hidden)

    def _values(self, responses: Responses, policy_hidden: torch.Tensor | None) -> torch.Tensor | None:
        if self.value_model is None:
            return None
        if self.shares_base:
            states = responses.response_states(policy_hidden)
            return self.value_model(states.detach() if self.detach_value else states)
        hidden = responses.hidden_states(self.value_model, self.packing)
        return self.value_model.score(responses.response_states(hidden)).squeeze(-1).float()


def reference_logprobs(
    model: nn.Module,
    responses: Responses,
    temperature: float,
    *,
    packing: bool | None = None,
    shares_bottom: bool = False,
    hidden: torch.Tensor | None = None,
) -> torch.Tensor:
    """Log-probabilities `[B, R]` of the response tokens under a frozen model.

    Args:
        hidden: the model's hidden states, if they are known.
    """
    if hidden is None:
        hidden = responses.hidden_states(model, packing, shares_bottom=shares_bottom)
    return response_logprobs(model, hidden, responses, temperature)[0]
