"""The losses of GRPO and RLOO, each a way to call `ppo_loss`: by tokens, or by whole completions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch

from fastrlhf.grpo.experience import LearnedFrom
from fastrlhf.kernels import kl_estimate, ppo_loss, weighted_kl
from fastrlhf.models.actor_critic import ActorCriticOutput


class Minibatch(NamedTuple):
    """What sums over a minibatch are divided by, whatever micro-batch they are of.

    rows: of the minibatch; tokens: of the rollout that are learned from, times the minibatch's share in the rollout's
    rows (a scalar tensor); micro_batches: how many make up the minibatch.
    """

    rows: int
    tokens: torch.Tensor
    micro_batches: int


class GroupLoss(NamedTuple):
    """A micro-batch's loss, and the sums that `GroupStats` makes averages of, scalars by name."""

    loss: torch.Tensor
    sums: dict[str, torch.Tensor]


@dataclass(frozen=True)
class GRPOLoss:
    """GRPO's loss, with its variants.

    With A a completion's advantage, and the sums over its tokens t:

        loss = sum_i c_i sum_t w_t max(-A r_t, -A clip(r_t, 1 - epsilon, 1 + epsilon_high)) + beta kl_t

    Sources and c: "grpo" (Shao et al., "DeepSeekMath", 2024, eq. 3): one over the completion's length and over the
    completions; "dr_grpo" (Liu et al., 2025): one over the completions and the longest length; "dapo" (Yu et al., 2025)
    and "bnpo": one over the tokens of all completions, and over those of the micro-batch; "luspo" (2026): one over the
    completions.

    Attributes:
        level: "token": r_t is the token's ratio; "sequence": that of the completion, by the mean of its log-ratios
            (Zheng et al., "Group sequence policy optimization", 2025).
        delta: bounds r where A is negative (Prime Intellect, "INTELLECT-2", 2025).
        off_policy_threshold: KL to the rollout's policy (nats a token) above which a completion with negative advantage
            is left out ("DeepSeek-V3.2", 2025, eq. 9).
        top_entropy: the share of tokens, those of highest entropy, that the policy's term is of (Wang et al., "Beyond
            the 80/20 rule", 2025).
        corrects_kl: multiply the KL by r (see `weighted_kl`).
    """

    kind: str
    level: str
    epsilon: float
    epsilon_high: float
    delta: float | None
    beta: float
    corrects_kl: bool
    top_entropy: float
    off_policy_threshold: float | None
    longest: int

    def __call__(
        self, output: ActorCriticOutput, part: LearnedFrom, minibatch: Minibatch, entropy_coef: float
    ) -> GroupLoss:
        """The loss of a micro-batch.

        Args:
            output: of the policy, for the rows of `part`.
            entropy_coef: of the bonus, the mean entropy of a token.
        """
        logprobs, entropy, _ = output
        old, ref_logprobs, advantages, mask, weights = part
        old = logprobs.detach() if old is None else old
        log_ratio = torch.where(mask, logprobs - old, 0.0)
        lengths = mask.sum(dim=1)
        if self.level == "sequence":
            log_ratio = (log_ratio.sum(dim=1) / lengths.clamp(min=1))[:, None]
        among = self._among(entropy.detach(), mask)
        weight = self._weights(logprobs.detach(), old, advantages, mask, among, weights)
        share, denominator = self._shares(lengths, minibatch)
        policy = self._policy_loss(logprobs, old, log_ratio, advantages, mask, weight, share, denominator)
        loss, kl = policy, None
        if ref_logprobs is not None:
            # the policy's own where the mask is false: what overflows there would make the gradient NaN
            reference = torch.where(mask, ref_logprobs, logprobs.detach())
            if self.corrects_kl:
                kl = weighted_kl(logprobs, reference, log_ratio)
            else:
                kl = kl_estimate(logprobs, reference, "k3")
            loss = loss + self.beta * (share[:, None] * kl).sum() / denominator
        if entropy_coef:
            count = among.sum().clamp(min=1) * minibatch.micro_batches
            loss = loss - entropy_coef * torch.where(among, entropy, 0.0).sum() / count
        sums = clip_sums(log_ratio.detach(), advantages, mask, self.epsilon, self.epsilon_high)
        sums |= {
            "policy_loss": policy.detach(),
            "entropy": torch.where(mask, entropy.detach(), 0.0).sum(),
            "entropy_among": torch.where(among, entropy.detach(), 0.0).sum(),
            "among": among.sum(),
            "tokens": lengths.sum(),
        }
        return GroupLoss(loss, sums if kl is None else sums | {"kl": kl.detach().sum()})

    def _policy_loss(self, logprobs, old, log_ratio, advantages, mask, weight, share, denominator):
        clips = {
            "denominator": denominator,
            "cliprange": self.epsilon,
            "cliprange_high": self.epsilon_high,
            "dual_clip": self.delta,
        }
        if self.level == "token":
            shape = logprobs.shape
            return ppo_loss(
                logprobs,
                old,
                advantages[:, None].expand(shape).contiguous(),
                mask,
                weights=weight,
                token_weights=share[:, None].expand(shape).contiguous(),
                **clips,
            ).loss
        # a completion is one action here, that counts as its tokens do together
        ratio = log_ratio[:, 0]
        together = torch.where(mask, 1.0 if weight is None else weight, 0.0).sum(dim=1)
        zeros = torch.zeros_like(advantages)
        return ppo_loss(
            ratio, zeros, advantages, mask.any(dim=1), token_weights=share * together, **clips
        ).loss

    def _shares(
        self, lengths: torch.Tensor, minibatch: Minibatch
    ) -> tuple[torch.Tensor, torch.Tensor | float]:
        """What each completion's token losses are multiplied by, `[B]`, and what their sum is divided by."""
        ones = torch.ones(lengths.shape, device=lengths.device)
        match self.kind:
            case "grpo":
                return ones / lengths.clamp(min=1), minibatch.rows
            case "dr_grpo":
                return ones, minibatch.rows * self.longest
            case "luspo":
                return ones, minibatch.rows
            case "bnpo":
                return ones, lengths.sum().clamp(min=1) * minibatch.micro_batches
            case "dapo":
                return ones, minibatch.tokens
        raise ValueError(f"no loss is called {self.kind!r}")

    def _among(self, entropy: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """`[B, R]`, bool: the tokens of the policy's term."""
        if self.top_entropy == 1:
            return mask
        kept = torch.where(mask, entropy.float(), torch.nan)
        return mask & (entropy >= torch.nanquantile(kept, 1 - self.top_entropy))

    def _weights(self, logprobs, old, advantages, mask, among, weights) -> torch.Tensor | None:
        """`[B, R]`: the factor of each token in the policy's term; None: one."""
        factors = [] if weights is None else [weights]
        if self.top_entropy < 1:
            factors.append(among.to(logprobs.dtype))
        if self.off_policy_threshold is not None:
            kl = torch.where(mask, old - logprobs, 0.0).sum(dim=1) / mask.sum(dim=1).clamp(min=1)
            kept = (advantages >= 0) | (kl <= self.off_policy_threshold)
            factors.append(kept[:, None].expand(mask.shape).to(logprobs.dtype))
        return None if not factors else torch.stack(factors).prod(dim=0)


@dataclass(frozen=True)
class RLOOLoss:
    """RLOO's loss: the mean over completions of PPO's, each a single action with the sum of its log-probabilities.

    Source: Ahmadian et al., "Back to basics" (2024), section 3.
    """

    epsilon: float
    epsilon_high: float

    def __call__(self, output: ActorCriticOutput, part: LearnedFrom, minibatch: Minibatch) -> GroupLoss:
        """The loss of a micro-batch."""
        logprobs, entropy, _ = output
        old, _, advantages, mask, weights = part
        old = logprobs.detach() if old is None else old
        log_ratio = torch.where(mask, logprobs - old, 0.0).sum(dim=1)
        everything = torch.ones_like(advantages, dtype=torch.bool)
        loss = ppo_loss(
            log_ratio,
            torch.zeros_like(advantages),
            advantages,
            everything,
            weights=None if weights is None else torch.where(mask, weights, 1.0).prod(dim=1),
            denominator=minibatch.rows,
            cliprange=self.epsilon,
            cliprange_high=self.epsilon_high,
        ).loss
        sums = clip_sums(log_ratio.detach()[:, None], advantages, mask, self.epsilon, self.epsilon_high)
        sums |= {"entropy": torch.where(mask, entropy.detach(), 0.0).sum(), "tokens": mask.sum()}
        return GroupLoss(loss, sums)


def clip_sums(
    log_ratio: torch.Tensor, advantages: torch.Tensor, mask: torch.Tensor, low: float, high: float
) -> dict[str, torch.Tensor]:
    """How often the ratio is clipped, below and above, of how many; and the least and most often in a completion.

    Args:
        log_ratio: `[B, R]`, or `[B, 1]` where it is a completion's.
    """
    ratio, advantage = log_ratio.exp(), advantages[:, None]
    counted = mask if log_ratio.shape[1] > 1 else torch.ones_like(ratio, dtype=torch.bool)
    below = (ratio < 1 - low) & (advantage < 0) & counted
    above = (ratio > 1 + high) & (advantage > 0) & counted
    units = counted.sum(dim=1)
    return {
        "units": units.sum(),
        "below": below.sum(),
        "above": above.sum(),
        "least_below": _over(below.sum(dim=1), units, torch.inf).amin(),
        "most_above": _over(above.sum(dim=1), units, -torch.inf).amax(),
    }


def _over(counts: torch.Tensor, units: torch.Tensor, otherwise: float) -> torch.Tensor:
    return (counts / units.clamp(min=1)).where(units > 0, otherwise)
