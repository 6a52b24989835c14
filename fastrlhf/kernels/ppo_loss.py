"""The clipped PPO objective with its statistics and gradients in one pass: contract, registration, public function."""

from __future__ import annotations

from enum import IntEnum
from math import inf
from typing import NamedTuple

import torch

from fastrlhf.device.observe import Cost, nbytes
from fastrlhf.kernels import dispatch
from fastrlhf.kernels.autocast import float32_inputs
from fastrlhf.kernels.checks import FLOATS, check_at_least, check_dtype, check_like
from fastrlhf.kernels.kl import KL_ESTIMATORS
from fastrlhf.kernels.registration import operation


class Stat(IntEnum):
    """Where each sum stands in `PPOLoss.stats`. Sums over kept tokens, never means: micro-batches and ranks add up."""

    POLICY_LOSS = 0
    VALUE_LOSS = 1
    ENTROPY = 2
    KL = 3
    APPROX_KL = 4
    RATIO = 5
    CLIPPED = 6
    VALUE_CLIPPED = 7
    TOKENS = 8
    VALUE_TOKENS = 9


class PPOLoss(NamedTuple):
    """What `ppo_loss` returns."""

    loss: torch.Tensor
    stats: torch.Tensor


def ppo_loss(
    logprobs: torch.Tensor,
    old_logprobs: torch.Tensor,
    advantages: torch.Tensor,
    mask: torch.Tensor,
    *,
    values: torch.Tensor | None = None,
    old_values: torch.Tensor | None = None,
    returns: torch.Tensor | None = None,
    value_mask: torch.Tensor | None = None,
    entropy: torch.Tensor | None = None,
    ref_logprobs: torch.Tensor | None = None,
    weights: torch.Tensor | None = None,
    token_weights: torch.Tensor | None = None,
    denominator: torch.Tensor | float | None = None,
    value_denominator: torch.Tensor | float | None = None,
    cliprange: float = 0.2,
    cliprange_high: float | None = None,
    dual_clip: float | None = None,
    log_ratio_clamp: float | None = None,
    cliprange_value: float | None = 0.2,
    vf_coef: float = 0.1,
    entropy_coef: float = 0.0,
    kl_coef: float = 0.0,
    kl_estimator: str = "k3",
) -> PPOLoss:
    """PPO's policy and value loss, differentiable in `logprobs`, `values` and `entropy`.

    Sources: Schulman et al., "Proximal policy optimization algorithms" (2017), eq. 7 (clipping); its value clipping;
    Ye et al., "Mastering complex control in MOBA games" (2020), eq. 5 (dual clip); Yu et al., "DAPO" (2025), eq. 10
    (`cliprange_high`). With ratio = exp(logprobs - old_logprobs) and sums over the kept tokens:

        policy = w max(-A ratio, -A clip(ratio, 1 - cliprange, 1 + cliprange_high))
        loss = sum(c (policy - entropy_coef entropy + kl_coef kl(logprobs, ref_logprobs))) / denominator
             + vf_coef sum(½ max((V - R)², (clip(V, V_old ± cliprange_value) - R)²)) / value_denominator

    A term whose coefficient is zero is only watched: if its statistic overflows, loss and gradients do not.

    The aggregation is that of c, `token_weights`, and `denominator`. Neither given: the mean over tokens (DAPO). c = 1
    over the tokens of the sequence: the mean over sequences of their means (GRPO: Shao et al., "DeepSeekMath",
    2024, eq. 3). A constant denominator: Dr. GRPO (Liu et al., "Understanding R1-Zero-like training", 2025).

    A ratio of whole sequences (GSPO: Zheng et al., "Group sequence policy optimization", 2025) is no option: it needs
    a sum over the sequence before the first of its tokens has a loss. With s the sequence's mean of logprobs -
    old_logprobs, `old_logprobs = (logprobs - s).detach()` and GRPO's token_weights give its loss and its gradient.

    Args:
        logprobs, old_logprobs, advantages: `[...]`, one shape and float dtype.
        mask: `[...]`, bool: the tokens that count.
        values, old_values, returns: `[...]`, given together or not at all (then there is no value loss).
        value_mask: `[...]`, bool: the states whose value counts; `mask` if None.
        entropy: `[...]`: entropy of each token's distribution, for the statistic and for `entropy_coef`.
        ref_logprobs: `[...]`: needed for the KL term and its statistic.
        weights: `[...]`: w, the factor of each token's policy loss and of its statistic (an off-policy correction,
            which is not meant for entropy and KL); 1 if None.
        token_weights: `[...]`: c, each token's share in the loss, but not in the statistics; 1 if None.
        denominator, value_denominator: what the sums are divided by (a number, or a scalar tensor), at least 1: the
            whole minibatch's when this call sees only a part of it. If None this call's own: the sum of the kept
            tokens' token_weights (without, their number), and the number of values.
        cliprange: lower (and, without `cliprange_high`, upper) distance of the ratio from one.
        dual_clip: bounds the loss of a token with negative advantage by `-A dual_clip`; more than 1.
        log_ratio_clamp: bound on |logprobs - old_logprobs|, beyond which there is no gradient.
        cliprange_value: None leaves the value loss unclipped.
        kl_estimator: "k1", "k2" or "k3" (see `kl_estimate`).

    Returns:
        loss, a float32 scalar (float64 for float64 inputs), and stats, float64 `[10]`, laid out as `Stat` says.

    Raises:
        ValueError, TypeError: shapes, dtypes, devices or coefficients that do not fit.

    Memory: the gradients (like their inputs), kept from the forward to the backward, and nothing else.
    """
    loss, stats, *_ = _ppo_loss(*checked_operands(**locals()))
    return PPOLoss(loss, stats)


def checked_operands(
    logprobs: torch.Tensor,
    old_logprobs: torch.Tensor,
    advantages: torch.Tensor,
    mask: torch.Tensor,
    *,
    values: torch.Tensor | None,
    old_values: torch.Tensor | None,
    returns: torch.Tensor | None,
    value_mask: torch.Tensor | None,
    entropy: torch.Tensor | None,
    ref_logprobs: torch.Tensor | None,
    weights: torch.Tensor | None,
    token_weights: torch.Tensor | None,
    denominator: torch.Tensor | float | None,
    value_denominator: torch.Tensor | float | None,
    cliprange: float,
    cliprange_high: float | None,
    dual_clip: float | None,
    log_ratio_clamp: float | None,
    cliprange_value: float | None,
    vf_coef: float,
    entropy_coef: float,
    kl_coef: float,
    kl_estimator: str,
) -> tuple[torch.Tensor | float | str | None, ...]:
    """The arguments of the registered operation, tensors first, from those of `ppo_loss`, whose errors it raises."""
    logprobs, old_logprobs, advantages, entropy, ref_logprobs, weights, token_weights = float32_inputs(
        logprobs, old_logprobs, advantages, entropy, ref_logprobs, weights, token_weights
    )
    values, old_values, returns = float32_inputs(values, old_values, returns)
    check_dtype("logprobs", logprobs, FLOATS)
    value_mask = mask if value_mask is None else value_mask
    check_like(
        "logprobs",
        logprobs,
        logprobs.dtype,
        old_logprobs=old_logprobs,
        advantages=advantages,
        values=values,
        old_values=old_values,
        returns=returns,
        entropy=entropy,
        ref_logprobs=ref_logprobs,
        weights=weights,
        token_weights=token_weights,
    )
    check_like("logprobs", logprobs, torch.bool, mask=mask, value_mask=value_mask)
    if not (values is None) == (old_values is None) == (returns is None):
        given = {"values": values, "old_values": old_values, "returns": returns}
        missing = ", ".join(name for name, tensor in given.items() if tensor is None)
        raise ValueError(f"values, old_values and returns go together; missing: {missing}")
    if entropy is None and entropy_coef != 0:
        raise ValueError(f"entropy_coef is {entropy_coef}, but entropy is None")
    if ref_logprobs is None and kl_coef != 0:
        raise ValueError(f"kl_coef is {kl_coef}, but ref_logprobs is None")
    if kl_estimator not in KL_ESTIMATORS:
        raise ValueError(f"kl_estimator is {kl_estimator!r}, expected one of {', '.join(KL_ESTIMATORS)}")
    cliprange_high = cliprange if cliprange_high is None else cliprange_high
    check_at_least("cliprange", cliprange, 0)
    check_at_least("cliprange_high", cliprange_high, 0)
    dual_clip = inf if dual_clip is None else dual_clip
    check_at_least("dual_clip", dual_clip, 1, strict=True)
    log_ratio_clamp = inf if log_ratio_clamp is None else log_ratio_clamp
    check_at_least("log_ratio_clamp", log_ratio_clamp, 0, strict=True)
    cliprange_value = inf if cliprange_value is None else cliprange_value
    check_at_least("cliprange_value", cliprange_value, 0)

    return (
        logprobs,
        old_logprobs,
        advantages,
        mask,
        values,
        old_values,
        returns,
        value_mask,
        entropy,
        ref_logprobs,
        weights,
        token_weights,
        _denominators(denominator, mask, token_weights, value_denominator, value_mask),
        float(cliprange),
        float(cliprange_high),
        float(dual_clip),
        float(log_ratio_clamp),
        float(cliprange_value),
        float(vf_coef),
        float(entropy_coef),
        float(kl_coef),
        kl_estimator,
    )


def _denominators(
    denominator: torch.Tensor | float | None,
    mask: torch.Tensor,
    token_weights: torch.Tensor | None,
    value_denominator: torch.Tensor | float | None,
    value_mask: torch.Tensor,
) -> torch.Tensor:
    """float64 `[2]` on the device, at least 1 each, without making the host wait for a sum."""
    tokens = None
    if denominator is None and token_weights is None:
        denominator = tokens = mask.sum()
    elif denominator is None:
        denominator = torch.where(mask, token_weights, 0).sum(dtype=torch.float64)
    if value_denominator is None:
        counted = value_mask is mask and tokens is not None
        value_denominator = tokens if counted else value_mask.sum()
    both = torch.zeros(2, dtype=torch.float64, device=mask.device)
    both[0], both[1] = denominator, value_denominator
    return both.clamp_(min=1)


@dispatch.costs("ppo_loss")
def _cost(logprobs, *others) -> Cost:
    """The arithmetic depends on the options: 20 operations a token for the policy, and 10 for each other term."""
    _, _, _, values, _, _, _, entropy, ref_logprobs, *_ = others
    given = [term for term in (values, entropy, ref_logprobs) if term is not None]
    read = nbytes(logprobs, *(tensor for tensor in others if isinstance(tensor, torch.Tensor)))
    sums = torch.promote_types(logprobs.dtype, torch.float32).itemsize + 8 * len(Stat)
    written = nbytes(logprobs, values, entropy) + sums
    return Cost(read, written, (20 + 10 * len(given)) * logprobs.numel())


@operation("ppo_loss")
def _ppo_loss(
    logprobs: torch.Tensor,
    old_logprobs: torch.Tensor,
    advantages: torch.Tensor,
    mask: torch.Tensor,
    values: torch.Tensor | None,
    old_values: torch.Tensor | None,
    returns: torch.Tensor | None,
    value_mask: torch.Tensor,
    entropy: torch.Tensor | None,
    ref_logprobs: torch.Tensor | None,
    weights: torch.Tensor | None,
    token_weights: torch.Tensor | None,
    denominators: torch.Tensor,
    cliprange: float,
    cliprange_high: float,
    dual_clip: float,
    log_ratio_clamp: float,
    cliprange_value: float,
    vf_coef: float,
    entropy_coef: float,
    kl_coef: float,
    kl_estimator: str,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """loss, stats, and the gradients of loss in logprobs, values (empty without) and entropy (empty without)."""
    return dispatch.call(
        "ppo_loss",
        logprobs,
        old_logprobs,
        advantages,
        mask,
        values,
        old_values,
        returns,
        value_mask,
        entropy,
        ref_logprobs,
        weights,
        token_weights,
        denominators,
        cliprange,
        cliprange_high,
        dual_clip,
        log_ratio_clamp,
        cliprange_value,
        vf_coef,
        entropy_coef,
        kl_coef,
        kl_estimator,
    )


@_ppo_loss.register_fake
def _(logprobs, old_logprobs, advantages, mask, values, old_values, returns, value_mask, entropy, *_):
    def like(tensor):
        return logprobs.new_empty(tuple(logprobs.shape) if tensor is not None else (0,))

    loss = logprobs.new_empty((), dtype=torch.promote_types(logprobs.dtype, torch.float32))
    return (
        loss,
        logprobs.new_empty(len(Stat), dtype=torch.float64),
        like(logprobs),
        like(values),
        like(entropy),
    )


def _setup_context(ctx, inputs, output):
    _, stats, *gradients = output
    ctx.mark_non_differentiable(stats, *gradients)
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*gradients)
    ctx.given = [inputs[position] is not None for position in (0, 4, 8)]


def _backward(ctx, grad_loss, *_):
    grads: list[torch.Tensor | None] = [None] * 22
    if grad_loss is not None:
        for position, gradient, given in zip((0, 4, 8), ctx.saved_tensors, ctx.given, strict=True):
            if given and ctx.needs_input_grad[position]:
                if gradient.dtype == grad_loss.dtype:
                    grads[position] = gradient * grad_loss
                else:  # in the loss's dtype: a loss scale of 65,536 is already infinite in float16
                    grads[position] = (gradient.to(grad_loss.dtype) * grad_loss).to(gradient.dtype)
    return tuple(grads)


_ppo_loss.register_autograd(_backward, setup_context=_setup_context)
