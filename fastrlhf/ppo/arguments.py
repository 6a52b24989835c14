"""The trainer's arguments, made into what it works with, and refused where they cannot be meant."""

from __future__ import annotations

from typing import Any

from torch import nn

from fastrlhf.models.backbone import base_model, is_peft
from fastrlhf.models.decoder import CannotDescribe
from fastrlhf.models.describe import describe
from fastrlhf.models.heads import check_language_model_head
from fastrlhf.ppo.config import PPOConfig


def check_models(
    model: nn.Module, ref_model: nn.Module | None, reward_model: Any, value_model: nn.Module | None
) -> None:
    """Raise ValueError where one object is to be two models, one of which changes."""
    if ref_model is model:
        raise ValueError("ref_model is the same object as model: pass a copy of it, or None")
    if value_model is not None and any(
        value_model is other for other in (model, ref_model, *as_list(reward_model))
    ):
        raise ValueError("value_model is trained and must be a model of its own: pass a copy, or None")


def check_additions(
    args: PPOConfig,
    model: nn.Module,
    ref_model: nn.Module | None,
    value_model: nn.Module | None,
    pretrain_dataset: Any,
) -> None:
    """Raise ValueError where an option asks for what the other arguments do not give."""
    if args.advantage_estimator != "gae" and value_model is not None:
        raise ValueError(
            f"advantage_estimator={args.advantage_estimator!r} has no critic: leave value_model out, or use 'gae'"
        )
    if args.ref_reset_steps is not None and ref_model is None and is_peft(model):
        raise ValueError(
            "ref_reset_steps changes the reference, which here is the policy's own base with the adapter off: pass a "
            "ref_model, or leave ref_reset_steps out"
        )
    if bool(args.ptx_coef) != (pretrain_dataset is not None):
        raise ValueError(
            f"ptx_coef is {args.ptx_coef} and pretrain_dataset is "
            f"{'missing' if pretrain_dataset is None else 'given'}: they go together"
        )


def check_policy(model: nn.Module, ref_model: nn.Module | None, ref_adapter: str | None) -> None:
    """Raise ValueError unless the policy gives log-probabilities from hidden states, and has a reference to compare."""
    check_language_model_head(model)
    if ref_model is not None:
        _check_vocabulary(model, ref_model)
    elif ref_adapter is None:
        _check_adapter_can_be_off(model)


def check_rollout_weights(weights: str | None, model: nn.Module) -> None:
    """Raise ValueError where the generator cannot read the policy's layers, of which it is to make copies."""
    if weights is None:
        return
    try:
        describe(model)
    except CannotDescribe as reason:
        raise ValueError(
            f"rollout_weights is {weights!r}, which needs a policy that generates on our kernels: {reason}"
        ) from None


def stop_tokens(args: PPOConfig, tokenizer: Any) -> tuple[int, ...]:
    """The tokens that end a response."""
    if args.stop_token == "eos":
        if tokenizer.eos_token_id is None:
            raise ValueError(
                "stop_token is 'eos' and the tokenizer has no end token: set tokenizer.eos_token"
            )
        return (tokenizer.eos_token_id,)
    return () if args.stop_token_id is None else (args.stop_token_id,)


def _check_vocabulary(model: nn.Module, ref_model: nn.Module) -> None:
    ours, theirs = (base_model(m).get_output_embeddings().weight.shape[0] for m in (model, ref_model))
    if ours != theirs:
        raise ValueError(
            f"ref_model has a vocabulary of {theirs} tokens and model one of {ours}: they must be the same"
        )


def _check_adapter_can_be_off(model: nn.Module) -> None:
    """The reference is the policy with its adapter off; a bias that was trained with it stays on in PEFT."""
    for config in model.peft_config.values() if is_peft(model) else ():
        bias = getattr(config, "bias", "none")
        if bias != "none":
            raise ValueError(
                f"the adapter has bias={bias!r}, which PEFT cannot turn off to give the reference: use bias='none', or "
                "pass a ref_model"
            )


def as_list(value: Any) -> list:
    """The elements of a list or tuple; else the one that `value` is."""
    return list(value) if isinstance(value, (list, tuple)) else [value]
