"""Scores of responses, by models or by plain functions, and the per-token rewards made of them."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import nn

from fastrlhf.kernels import kl_estimate
from fastrlhf.models.backbone import hidden_states
from fastrlhf.models.heads import check_score_head
from fastrlhf.ppo.reference_states import ReferenceStates
from fastrlhf.ppo.rollout import Rollout

RewardFunction = Callable[[list[str], list[str]], Sequence[float]]


class RewardError(RuntimeError):
    """A reward could not be computed, or is not a finite number; the message shows the prompt and the completion."""


class TokenRewards(NamedTuple):
    """All `[B, R]`, float32: KL of each token (nats), the KL penalty, and the penalty with the score in its place."""

    kl: torch.Tensor
    penalty: torch.Tensor
    rewards: torch.Tensor


def token_rewards(
    logprobs: torch.Tensor,
    ref_logprobs: torch.Tensor,
    scores: torch.Tensor,
    rollout: Rollout,
    *,
    kl_coef: float,
    kl_estimator: str,
    reward_position: str,
) -> TokenRewards:
    """`r_t = -kl_coef kl_t`, plus the score at the response's end.

    Source: Ziegler et al., "Fine-tuning language models from human preferences" (2019), eq. 2.

    Args:
        logprobs, ref_logprobs: `[B, R]`.
        scores: `[B]`.
        rollout: says where each response ends.
        reward_position: "end" puts the score on the last token, "after_end" one later where there is room.
    """
    kl = torch.where(rollout.mask, kl_estimate(logprobs, ref_logprobs, kl_estimator), 0.0)
    penalty = -kl_coef * kl
    last = (rollout.lengths - 1).clamp(min=0)
    if reward_position == "after_end":
        after = rollout.lengths
        last = torch.where(after < kl.shape[1], after, last)
    rewards = penalty.scatter_add(1, last[:, None], scores[:, None].to(penalty.dtype))
    return TokenRewards(kl, penalty, rewards)


class Scorer:
    """The score of each response: the weighted sum of what reward models and reward functions give.

    Args:
        rewards: one reward model (an `nn.Module` with a `score` head) or function `(prompts, completions) -> scores`,
            or a list of them.
        weights: one number per reward; all one if None.
        tokenizer: decodes prompts and completions for functions.
        packing: see `hidden_states`.

    Raises:
        TypeError, ValueError: something that is neither, or another number of weights than of rewards.
    """

    def __init__(
        self, rewards: Any, weights: Sequence[float] | None, tokenizer: Any, packing: bool | None = None
    ):
        self.rewards = list(rewards) if isinstance(rewards, (list, tuple)) else [rewards]
        if not self.rewards:
            raise ValueError("reward_model is an empty list: pass at least one reward")
        for reward in self.rewards:
            if isinstance(reward, nn.Module):
                check_score_head(reward, "reward_model", "or a function")
            elif not callable(reward):
                raise TypeError(
                    f"reward_model is a {type(reward).__name__}, expected a model, a function or a list"
                )
        self.weights = [1.0] * len(self.rewards) if weights is None else [float(weight) for weight in weights]
        if len(self.weights) != len(self.rewards):
            raise ValueError(
                f"reward_weights has {len(self.weights)} numbers for {len(self.rewards)} rewards"
            )
        self.tokenizer = tokenizer
        self.packing = packing

    @property
    def models(self) -> list[nn.Module]:
        """The rewards that are models."""
        return [reward for reward in self.rewards if isinstance(reward, nn.Module)]

    def __call__(
        self, rollout: Rollout, batch_size: int, reference_states: ReferenceStates | None = None
    ) -> torch.Tensor:
        """`[B]`, float32.

        Args:
            reference_states: of this rollout, for the models that share them.

        Raises:
            RewardError: a reward raised, gave another number of scores, or one that is not finite.
        """
        prompts, completions = self.decode(rollout)
        total = torch.zeros(len(prompts), device=rollout.lengths.device)
        for weight, reward in zip(self.weights, self.rewards, strict=True):
            if isinstance(reward, nn.Module):
                shares = reference_states is not None and reward in reference_states.sharers
                states = reference_states if shares else None
                scores = model_scores(reward, rollout, batch_size, self.packing, states)
            else:
                scores = function_scores(reward, prompts, completions).to(total.device)
            _check_finite(reward, scores, prompts, completions)
            total += weight * scores
        return total

    def decode(self, rollout: Rollout) -> tuple[list[str], list[str]]:
        """Prompts and completions as text, without special tokens."""
        prompts = [ids[mask] for ids, mask in zip(rollout.prompt_ids, rollout.prompt_mask, strict=True)]
        responses = [ids[:length] for ids, length in zip(rollout.response_ids, rollout.lengths, strict=True)]
        return (
            self.tokenizer.batch_decode(prompts, skip_special_tokens=True),
            self.tokenizer.batch_decode(responses, skip_special_tokens=True),
        )


@torch.no_grad()
def model_scores(
    model: nn.Module,
    rollout: Rollout,
    batch_size: int,
    packing: bool | None = None,
    shared: ReferenceStates | None = None,
) -> torch.Tensor:
    """`[B]`: the reward model's output at the last token of each response (or of the prompt, where it is empty).

    Args:
        shared: hidden states of the rollout that are the model's own.
    """
    shared = shared or ReferenceStates([], 0)
    scores = []
    for start in range(0, len(rollout.lengths), batch_size):
        rows = slice(start, start + batch_size)
        responses = rollout.responses(rows)
        tokens = responses.input_ids, responses.attention_mask
        hidden = shared.of_reward(rows, functools.partial(hidden_states, model, *tokens, packing))
        last = responses.prompt_length - 1 + rollout.lengths[rows]
        states = hidden[torch.arange(len(last), device=last.device), last]
        scores.append(model.score(states).squeeze(-1).float())
    return torch.cat(scores)


def function_scores(function: RewardFunction, prompts: list[str], completions: list[str]) -> torch.Tensor:
    """`[B]`: what a reward function gives, tried once more if it raises (a service may have been away)."""
    try:
        scores = function(list(prompts), list(completions))
    except Exception:
        try:
            scores = function(list(prompts), list(completions))
        except Exception as error:
            row = _first_failing_row(function, prompts, completions)
            raise RewardError(
                f"{reward_name(function)} raised {type(error).__name__}: {error}, twice\n"
                + show_row(row, prompts, completions)
            ) from error
    if hasattr(scores, "tolist"):
        scores = scores.tolist()
    if isinstance(scores, (str, bytes, Mapping)) or not isinstance(scores, Iterable):
        raise RewardError(
            f"{reward_name(function)} gave {scores!r}, expected a list with one number for each of the {len(prompts)} "
            f"completions\n{show_row(0, prompts, completions)}"
        )
    scores = list(scores)
    if len(scores) != len(prompts):
        raise RewardError(
            f"{reward_name(function)} gave {len(scores)} rewards for {len(prompts)} completions, expected one each\n"
            + show_row(0, prompts, completions)
        )
    numbers = []
    for row, score in enumerate(scores):
        try:
            if isinstance(score, (str, bytes)):
                raise TypeError
            numbers.append(float(score))
        except (TypeError, ValueError):
            raise RewardError(
                f"{reward_name(function)} gave {score!r} for completion {row}, expected a finite number\n"
                + show_row(row, prompts, completions)
            ) from None
    return torch.tensor(numbers)


def _first_failing_row(function: RewardFunction, prompts: list[str], completions: list[str]) -> int:
    for row, (prompt, completion) in enumerate(zip(prompts, completions, strict=True)):
        try:
            function([prompt], [completion])
        except Exception:
            return row
    return 0


def _check_finite(reward: Any, scores: torch.Tensor, prompts: list[str], completions: list[str]) -> None:
    finite = scores.isfinite()
    if not finite.all():
        row = int((~finite).nonzero()[0])
        raise RewardError(
            f"{reward_name(reward)} gave {float(scores[row])} for completion {row}, expected a finite number\n"
            + show_row(row, prompts, completions)
        )


def reward_name(reward: Any) -> str:
    """What messages call a reward."""
    return f"reward {getattr(reward, '__name__', type(reward).__name__)}"


def show_row(row: int, prompts: Sequence[Any], completions: Sequence[Any]) -> str:
    """One prompt and its completion, for the end of a message."""
    return f"  prompt {row}: {prompts[row]!r}\n  completion {row}: {completions[row]!r}"


class KLController:
    """The KL coefficient: fixed, or steered so that the KL per sequence approaches a target.

    Source: Ziegler et al. (2019), section 2.2: `e = clip(kl / target - 1, ±0.2)`, `coef *= 1 + e batch / horizon`.
    """

    def __init__(self, kl_coef: float, target: float | None, horizon: int):
        self.kl_coef, self.target, self.horizon = kl_coef, target, horizon

    def update(self, kl: float, episodes: int) -> None:
        """Steer by the mean KL per sequence (nats) of a batch of `episodes`."""
        if self.target is not None and math.isfinite(kl):
            error = min(max(kl / self.target - 1, -0.2), 0.2)
            self.kl_coef *= 1 + error * episodes / self.horizon
